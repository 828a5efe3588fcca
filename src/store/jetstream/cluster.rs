//! What everybody in this room shares: the connection, the names, and what is known of titles.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::RwLock;
use prost::Message;
use tokio::sync::{OnceCell, watch};

use super::{
    names::Names,
    places::PlacesCodec,
    wire::{StoredMessage, Wire},
};
use crate::{
    clock::Clock,
    domain::{EpochSeconds, Title},
    proto::rows::{CompletionRow, FeedPartRow},
    store::{StoreError, frame, rows::stored_at},
};

/// See the module.
pub(super) struct Cluster {
    pub(super) wire: Wire,
    pub(super) names: Names,
    pub(super) codec: PlacesCodec,
    pub(super) clock: Arc<dyn Clock>,
    titles: RwLock<HashMap<Title, Arc<Feed>>>,
    /// The greatest sequence that was seen in each partition.
    seen: Vec<AtomicU64>,
}

/// What this server knows of a title's feed.
pub(super) struct Feed {
    pub(super) parts: Vec<FeedPart>,
    pub(super) changes: watch::Sender<()>,
    /// Whether somebody listens to what other servers store.
    pub(super) is_followed: AtomicBool,
}

/// What this server knows of one partition of a feed.
#[derive(Default)]
pub(super) struct FeedPart {
    /// An event that is there, or was; no newer one is known.
    pub(super) newest: AtomicU64,
    newest_stored_at: AtomicU64,
    loaded: OnceCell<()>,
}

/// Reads a value that stands at a subject.
pub(super) fn read_row<T: Message + Default>(message: &StoredMessage) -> Result<T, StoreError> {
    let StoredMessage { subject, value, .. } = message;
    frame::decode(subject.as_bytes(), value)
        .map_err(|error| StoreError::Corrupt(format!("the value of `{subject}` {error}")))
}

// === impl Cluster ===

impl Cluster {
    pub(super) fn new(wire: Wire, names: Names, store_id: u64, clock: Arc<dyn Clock>) -> Self {
        let partitions = names.partitions;
        let codec = PlacesCodec { store_id, partitions };
        let seen = (0..partitions).map(|_| AtomicU64::new(0)).collect();
        Self { wire, names, codec, clock, titles: RwLock::default(), seen }
    }

    pub(super) fn partitions(&self) -> std::ops::Range<u32> {
        0..self.names.partitions
    }

    /// What is known of a title's feed.
    pub(super) fn feed(&self, title: &Title) -> Arc<Feed> {
        if let Some(feed) = self.titles.read().get(title) {
            return feed.clone();
        }
        let mut titles = self.titles.write();
        let new = || {
            Arc::new(Feed {
                parts: self.partitions().map(|_| FeedPart::default()).collect(),
                changes: watch::Sender::new(()),
                is_followed: AtomicBool::new(false),
            })
        };
        titles.entry(title.clone()).or_insert_with(new).clone()
    }

    /// The greatest sequence of a partition that was seen, and this one.
    pub(super) fn see(&self, partition: u32, sequence: u64) -> u64 {
        let before = self.seen[partition as usize].fetch_max(sequence, Ordering::SeqCst);
        before.max(sequence)
    }

    /// Where each partition was seen last.
    pub(super) fn seen(&self) -> Vec<u64> {
        self.seen.iter().map(|seen| seen.load(Ordering::SeqCst)).collect()
    }

    /// The newest event of a partition's feed, as its leader has it.
    pub(super) async fn newest(
        &self,
        partition: u32,
        title: &Title,
    ) -> Result<Option<StoredMessage>, StoreError> {
        let (stream, subject) = (self.names.stream(partition), self.names.events(partition, title));
        self.wire.last(&stream, &subject).await
    }

    /// What is known of a partition's feed beside its events, and the sequence it stands at.
    pub(super) async fn feed_row(
        &self,
        partition: u32,
        title: &Title,
    ) -> Result<(FeedPartRow, u64), StoreError> {
        let (stream, subject) = (self.names.stream(partition), self.names.feed(partition, title));
        let message = self.wire.last(&stream, &subject).await?;
        match message {
            Some(message) => Ok((read_row(&message)?, message.sequence)),
            None => Ok((FeedPartRow::default(), 0)),
        }
    }

    /// What to stamp an event with: never less than an event before it in the same partition.
    pub(super) async fn now(
        &self,
        partition: u32,
        title: &Title,
    ) -> Result<EpochSeconds, StoreError> {
        let feed = self.feed(title);
        let part = &feed.parts[partition as usize];
        part.loaded
            .get_or_try_init(async || {
                let (row, _) = self.feed_row(partition, title).await?;
                part.stamp(EpochSeconds::new(row.trimmed_stored_at));
                if let Some(newest) = self.newest(partition, title).await? {
                    let row: CompletionRow = read_row(&newest)?;
                    part.stamp(stored_at(&row));
                }
                Ok::<_, StoreError>(())
            })
            .await?;
        let newest = EpochSeconds::new(part.newest_stored_at.load(Ordering::SeqCst));
        Ok(self.clock.now().max(newest))
    }

    /// Notes an event that was stored, and wakes whoever waits for one.
    pub(super) fn note(&self, partition: u32, title: &Title, sequence: u64, at: EpochSeconds) {
        self.see(partition, sequence);
        let feed = self.feed(title);
        feed.parts[partition as usize].stamp(at);
        feed.hear(partition, sequence);
    }
}

impl Feed {
    /// Notes that an event is there; wakes whoever waits, where that is new.
    pub(super) fn hear(&self, partition: u32, sequence: u64) {
        let newest = &self.parts[partition as usize].newest;
        if newest.fetch_max(sequence, Ordering::SeqCst) < sequence {
            self.changes.send_replace(());
        }
    }
}

impl FeedPart {
    pub(super) fn stamp(&self, at: EpochSeconds) {
        self.newest_stored_at.fetch_max(at.get(), Ordering::SeqCst);
    }
}

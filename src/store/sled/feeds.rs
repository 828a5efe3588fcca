//! What is kept in memory of each title's feed: its two ends, and whom to wake.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::domain::{EpochSeconds, Title};

/// The ends of one feed. Events `trimmed_through + 1 ..= head` are there and durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FeedEnds {
    pub(super) trimmed_through: u64,
    pub(super) head: u64,
    /// When the newest event that is gone had been stored.
    pub(super) trimmed_stored_at: EpochSeconds,
    /// When the newest event there ever was had been stored.
    pub(super) newest_stored_at: EpochSeconds,
    /// Cursors of the store that this one was restored from work up to here.
    pub(super) restored_through: u64,
    /// Grows with each step of an erasure.
    pub(super) erasures: u64,
}

/// One feed, shared by the committer, which writes, and by readers.
pub(super) struct TitleFeed {
    trimmed_through: AtomicU64,
    head: AtomicU64,
    trimmed_stored_at: AtomicU64,
    newest_stored_at: AtomicU64,
    restored_through: u64,
    erasures: AtomicU64,
    changes: watch::Sender<()>,
}

/// All feeds. A title's feed is made the first time somebody asks for it.
#[derive(Default)]
pub(super) struct Feeds {
    by_title: RwLock<HashMap<Title, Arc<TitleFeed>>>,
}

// === impl TitleFeed ===

impl TitleFeed {
    fn new(ends: FeedEnds) -> Self {
        Self {
            trimmed_through: AtomicU64::new(ends.trimmed_through),
            head: AtomicU64::new(ends.head),
            trimmed_stored_at: AtomicU64::new(ends.trimmed_stored_at.get()),
            newest_stored_at: AtomicU64::new(ends.newest_stored_at.get()),
            restored_through: ends.restored_through,
            erasures: AtomicU64::new(ends.erasures),
            changes: watch::Sender::new(()),
        }
    }

    /// The ends now. Both only grow, and the old end is read first, so it is never past the head.
    pub(super) fn ends(&self) -> FeedEnds {
        let trimmed_through = self.trimmed_through.load(Ordering::SeqCst);
        FeedEnds {
            trimmed_through,
            head: self.head.load(Ordering::SeqCst),
            trimmed_stored_at: EpochSeconds::new(self.trimmed_stored_at.load(Ordering::SeqCst)),
            newest_stored_at: EpochSeconds::new(self.newest_stored_at.load(Ordering::SeqCst)),
            restored_through: self.restored_through,
            erasures: self.erasures(),
        }
    }

    /// Where retention stands now.
    pub(super) fn trimmed_through(&self) -> u64 {
        self.trimmed_through.load(Ordering::SeqCst)
    }

    /// Moves the old end. Readers that are in the middle of what goes will find out by asking for
    /// the end once more after they have read.
    pub(super) fn trim(&self, through: u64, stored_at: EpochSeconds) {
        self.trimmed_stored_at.store(stored_at.get(), Ordering::SeqCst);
        self.trimmed_through.fetch_max(through, Ordering::SeqCst);
    }

    /// Grows with each step of an erasure: before anything goes, and again when that is durable.
    pub(super) fn erasures(&self) -> u64 {
        self.erasures.load(Ordering::SeqCst)
    }

    /// Counts a step of an erasure. Whoever reads the feed learns of it before anything goes.
    pub(super) fn count_erasure(&self) -> u64 {
        self.erasures.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Counts what became durable.
    pub(super) fn count_erasures(&self, erasures: u64) {
        self.erasures.fetch_max(erasures, Ordering::SeqCst);
    }

    /// Moves the new end and wakes whoever waits for it.
    pub(super) fn extend(&self, ends: FeedEnds) {
        self.newest_stored_at.store(ends.newest_stored_at.get(), Ordering::SeqCst);
        self.head.store(ends.head, Ordering::SeqCst);
        // An imported feed may begin behind events that are gone.
        self.trim(ends.trimmed_through, ends.trimmed_stored_at);
        self.changes.send_replace(());
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}

// === impl Feeds ===

impl Feeds {
    pub(super) fn new(ends: HashMap<Title, FeedEnds>) -> Self {
        let feeds = ends.into_iter().map(|(title, ends)| (title, Arc::new(TitleFeed::new(ends))));
        Self { by_title: RwLock::new(feeds.collect()) }
    }

    pub(super) fn of(&self, title: &Title) -> Arc<TitleFeed> {
        if let Some(feed) = self.by_title.read().get(title) {
            return feed.clone();
        }
        let mut by_title = self.by_title.write();
        let feed = by_title.entry(title.clone());
        feed.or_insert_with(|| Arc::new(TitleFeed::new(FeedEnds::default()))).clone()
    }
}

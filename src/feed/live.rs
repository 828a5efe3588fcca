//! The live end of feeds: what completes is read once, made ready to send once, and handed to every
//! subscriber of the title from memory.
//!
//! A subscriber reads the store until it has caught up and goes on with the live end from there.
//! One that does not keep up loses its place in the live end, and reads the store again from its
//! own cursor: memory is bounded, and nobody waits for it.

use std::{collections::HashMap, sync::Arc, time::Instant};

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::{
    domain::{Cursor, Entry, Title},
    metrics::METRICS,
    store::{FeedError, FeedSource},
};

/// Batches kept for subscribers that are a little behind; one that everybody has is not kept. A
/// batch holds at most a page of the store (64 KiB) and its messages.
pub(super) const BATCHES: usize = 32;

/// Most entries of one batch.
const BATCH_ENTRIES: usize = 128;

/// Subscribers of a title are woken so many at a time: after each few the runtime gets to other
/// work, so that a set need not wait until all subscribers have been served. Those who join one
/// after the other are often of one connection, whose answers then leave together.
const PART_SUBSCRIBERS: usize = 4;

/// After each part of a batch of no more entries, the other threads get the processor too (the
/// committer, and those that write for it): else each could wait until all subscribers have been
/// served. In larger batches that would cost a tenth of the throughput.
const GENTLE_ENTRIES_MAX: usize = 16;

/// An entry, and what is sent for it.
#[derive(Debug)]
pub(super) struct Ready<T> {
    pub(super) entry: Entry,
    /// `None` where there is nothing to send.
    pub(super) message: Option<T>,
}

/// Entries that follow each other without a hole.
#[derive(Debug)]
pub(super) struct Batch<T> {
    pub(super) entries: Vec<Ready<T>>,
}

/// See the module. `T` is what is sent for an entry. Cloning shares it.
pub struct Live<T> {
    pub(super) store: Arc<dyn FeedSource>,
    pub(super) prepare: fn(&Entry) -> Option<T>,
    titles: Arc<Mutex<Titles<T>>>,
}

type Titles<T> = HashMap<Title, Arc<Ring<T>>>;

/// The live end of one title.
struct Ring<T> {
    /// Each of at most [`PART_SUBSCRIBERS`].
    parts: Mutex<Vec<broadcast::Sender<Arc<Batch<T>>>>>,
}

impl<T> Ring<T> {
    fn join(&self) -> broadcast::Receiver<Arc<Batch<T>>> {
        let mut parts = self.parts.lock();
        let has_room = |part: &&broadcast::Sender<_>| part.receiver_count() < PART_SUBSCRIBERS;
        if let Some(part) = parts.iter().find(has_room) {
            return part.subscribe();
        }
        let (part, receiver) = broadcast::channel(BATCHES);
        parts.push(part);
        receiver
    }

    async fn send(&self, batch: Batch<T>) {
        let is_gentle = batch.entries.len() <= GENTLE_ENTRIES_MAX;
        let batch = Arc::new(batch);
        let parts = self.parts.lock().clone();
        for part in parts {
            if part.send(batch.clone()).is_ok() {
                tokio::task::yield_now().await;
                if is_gentle {
                    std::thread::yield_now();
                }
            }
        }
    }

    /// Forgets parts that everybody has left; tells whether anybody is there.
    fn has_subscribers(&self) -> bool {
        let mut parts = self.parts.lock();
        parts.retain(|part| part.receiver_count() > 0);
        !parts.is_empty()
    }
}

// === impl Live ===

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        let (store, titles) = (self.store.clone(), self.titles.clone());
        Self { store, prepare: self.prepare, titles }
    }
}

impl<T: Send + Sync + 'static> Live<T> {
    /// The live ends of this store's feeds; `prepare` makes what is sent for an entry.
    #[must_use]
    pub fn new(store: Arc<dyn FeedSource>, prepare: fn(&Entry) -> Option<T>) -> Self {
        Self { store, prepare, titles: Arc::default() }
    }

    /// Joins the live end. Whoever then reads the store to its end misses nothing in between: the
    /// batches begin at or before the place where that read ends.
    pub(super) async fn join(
        &self,
        title: &Title,
    ) -> Result<broadcast::Receiver<Arc<Batch<T>>>, FeedError> {
        if let Some(ring) = self.titles.lock().get(title) {
            return Ok(ring.join());
        }
        let newest = self.store.feed_bounds(title).await?.newest;
        let mut titles = self.titles.lock();
        if let Some(ring) = titles.get(title) {
            return Ok(ring.join());
        }
        let ring = Arc::new(Ring { parts: Mutex::default() });
        let receiver = ring.join();
        titles.insert(title.clone(), ring.clone());
        tokio::spawn(self.clone().follow(title.clone(), newest, ring));
        Ok(receiver)
    }

    /// Reads a feed from `cursor` on for as long as somebody listens. Where it cannot go on, the
    /// subscribers notice by the end of the batches, and find out why by reading themselves.
    async fn follow(self, title: Title, mut cursor: Cursor, ring: Arc<Ring<T>>) {
        let mut changes = self.store.feed_changes(&title);
        let mut woken = Instant::now();
        loop {
            changes.borrow_and_update();
            let Ok(page) = self.store.entries(&title, &cursor, BATCH_ENTRIES).await else {
                break;
            };
            if let Some(last) = page.last() {
                cursor = last.cursor.clone();
                let ready = |entry| Ready { message: (self.prepare)(&entry), entry };
                let entries = page.into_iter().map(ready).collect();
                ring.send(Batch { entries }).await;
                METRICS.feed_lag(woken.elapsed());
            } else if changes.changed().await.is_err() {
                break;
            } else {
                woken = Instant::now();
            }
            let mut titles = self.titles.lock();
            if !ring.has_subscribers() {
                titles.remove(&title);
                return;
            }
        }
        self.titles.lock().remove(&title);
    }
}

//! The store on one machine: sled 0.34.7, inside the bounds in which it survives a power cut.
//!
//! Rooms: `open` (creation, hygiene; with `folder`, `ballast`, `mark`) → `verify` → [`SledStore`];
//! writes go through `commit` and then `publish`, and end with `poison`; what is written beside
//! sets (`trim`, `subscriptions`, `operations`) is `work` for the committer; reads go through
//! `view` and `scans`; `keys`, `frame` and `rows` are the format on disk; `restore` makes a folder
//! of a backup.

mod ballast;
mod bounds;
mod catalogs;
mod commit;
mod counts;
mod error;
mod feeds;
mod folder;
mod frame;
mod keys;
#[allow(unsafe_code, reason = "defines C functions; the one unsafe module")]
mod libc_calls;
mod mark;
mod open;
mod operations;
mod poison;
mod publish;
mod read;
mod restore;
mod scans;
mod slices;
mod subscriptions;
mod trim;
mod verify;
mod view;
mod watchdog;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use tokio::{
    runtime::Handle,
    sync::{
        Semaphore,
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    task::spawn_blocking,
};

use self::{
    commit::{Committer, Group, Job},
    counts::Counts,
    feeds::Feeds,
    keys::Key,
    libc_calls::LogSyncs,
    poison::Poison,
    publish::{Handover, Publisher, SyncLog},
    read::{damaged, failed},
    scans::read_feed,
    subscriptions::Subscriptions,
    view::{DurableView, Records, share_out},
    watchdog::{COMMIT_TIME_MAX, FLUSHER_AWAY_MAX, Stopwatch, sled_failure},
    work::{Room, Staged},
};
use super::{
    Answered, CatalogError, FeedBounds, FeedError, FeedSource, Operations, Retention, Store,
    StoreError, StoreHealth, StoredCatalog, Subscription, SubscriptionError, cursor::CursorCodec,
    poisoned, rows,
};
use crate::{
    clock::Clock,
    domain::{
        Catalog, Cursor, Entry, EpochSeconds, NodeId, PlayerKey, PlayerUpdate, State,
        SubscriptionName, Title,
    },
    metrics::METRICS,
};

pub use bounds::{EXTRA_BYTES_DEFAULT, EXTRA_BYTES_MAX};
pub use error::OpenError;
pub use restore::Restoration;
pub use verify::Report;

/// Most updates that wait for the committer. A caller beyond that waits for a place, no longer
/// than its deadline.
const QUEUE_JOBS_MAX: usize = 4096;

/// Reads of the tree at once. Each takes a thread, with memory of its own and what it has read: a
/// crowd that catches up with a feed waits for its turn, and leaves threads for other work.
const READS_MAX: usize = 32;

/// See the module.
pub struct SledStore {
    view: Arc<DurableView>,
    feeds: Arc<Feeds>,
    subscriptions: Arc<Subscriptions>,
    counts: Arc<Counts>,
    store_id: u64,
    cursors: CursorCodec,
    poison: Poison,
    /// `None` only while dropping.
    jobs: Option<mpsc::Sender<Job>>,
    /// The committer and the publisher.
    threads: Vec<JoinHandle<()>>,
    /// One permit for whoever reads every record of a title.
    counting: Arc<Semaphore>,
    /// One permit for each of [`READS_MAX`].
    reading: Arc<Semaphore>,
    /// Once one has failed, none may succeed while the store is open.
    _syncs: Arc<LogSyncs>,
    /// Dropped last: the folder is ours until sled has closed.
    _lock: File,
}

// === impl SledStore ===

impl SledStore {
    /// Opens a data folder, or makes it; reads all of it once to see that it is sound.
    ///
    /// Of `cache_bytes`, sled keeps three quarters of pages in memory, and players' records take
    /// the rest; what is around them makes up to 3 times that.
    ///
    /// # Errors
    ///
    /// [`OpenError`], whose text says what to do.
    pub fn open(dir: &Path, cache_bytes: u64, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let (pages, players) = share_out(cache_bytes);
        let opened = open::open(dir, pages)?;
        let tree = (*opened.db).clone();
        let sync_log = Box::new(move || tree.flush().map(drop).map_err(io::Error::other));
        let blobs = opened.store.join("blobs");
        let io = |source| OpenError::Io { path: dir.to_owned(), source };
        let changed = fs::metadata(&blobs).and_then(|blobs| blobs.modified()).map_err(io)?;
        Ok(Self::start(opened, players, clock, sync_log, (blobs, changed), COMMIT_TIME_MAX))
    }

    /// Opens a data folder that exists, reads all of it, and closes it. `progress` is told now and
    /// then how many rows were read.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; [`OpenError::Damaged`] holds what is wrong.
    pub fn verify(
        dir: &Path,
        cache_bytes: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Report, OpenError> {
        Ok(open::inspect(dir, cache_bytes, progress)?.report)
    }

    fn start(
        opened: open::Opened,
        players_bytes: u64,
        clock: Arc<dyn Clock>,
        sync_log: SyncLog,
        blobs: (PathBuf, SystemTime),
        commit_time_max: Duration,
    ) -> Self {
        let view = Arc::new(DurableView::new((*opened.db).clone(), players_bytes));
        let feeds = Arc::new(Feeds::new(opened.report.feeds));
        let places = opened.report.subscriptions;
        let subscriptions = Arc::new(Subscriptions::new(places.clone()));
        let counts = Arc::new(Counts::new(opened.report.counts));
        let store_id = opened.row.store_id;
        let cursors = CursorCodec::new(store_id).restored_from(opened.row.ancestor_id);
        let mark = opened.mark.map(Arc::new);
        let poison = Poison::new(mark.clone());
        let (applying, syncing) = (Stopwatch::default(), Stopwatch::default());
        let syncs = Arc::new(opened.syncs);
        let failure = sled_failure(opened.config, Arc::clone(&syncs), FLUSHER_AWAY_MAX);
        watchdog::start([&applying, &syncing], &poison, commit_time_max, failure);

        let (jobs, queue) = mpsc::channel(QUEUE_JOBS_MAX);
        let (publisher, groups) = std::sync::mpsc::sync_channel(0);
        let handover = Handover::new(Publisher {
            view: view.clone(),
            subscriptions: subscriptions.clone(),
            counts: counts.clone(),
            poison: poison.clone(),
            sync_log,
            mark,
            blobs,
            stopwatch: syncing,
            runtime: Handle::try_current().ok(),
        });
        let committer = Committer {
            view: view.clone(),
            feeds: feeds.clone(),
            applied_feeds: HashMap::new(),
            subscriptions: places,
            cursors,
            clock,
            row: opened.row,
            poison: poison.clone(),
            stopwatch: applying,
            handover: handover.clone(),
            publisher,
        };
        let threads = vec![
            start_thread("committer", move || committer.run(queue)),
            start_thread("publisher", move || handover.run(groups)),
        ];
        let counting = Arc::new(Semaphore::new(1));
        let reading = Arc::new(Semaphore::new(READS_MAX));
        let jobs = Some(jobs);
        Self {
            view,
            feeds,
            subscriptions,
            counts,
            store_id,
            cursors,
            poison,
            jobs,
            threads,
            counting,
            reading,
            _syncs: syncs,
            _lock: opened.lock,
        }
    }

    /// Hands a job to the committer. Whoever stops waiting afterwards does not stop the job.
    async fn queue(&self, job: Job) -> Result<(), StoreError> {
        let jobs = self.jobs.as_ref().ok_or(StoreError::Poisoned)?;
        if self.poison.is_set() {
            return Err(StoreError::Poisoned);
        }
        let waiting = jobs.max_capacity() - jobs.capacity();
        METRICS.updates_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        match jobs.try_send(job) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(StoreError::Poisoned),
            // A committer that hangs makes no place.
            Err(TrySendError::Full(job)) => tokio::select! {
                biased;
                sent = jobs.send(job) => sent.map_err(|_| StoreError::Poisoned),
                () = poisoned(self.poison.health()) => Err(StoreError::Poisoned),
            },
        }
    }

    /// Has the committer do a job, and waits for its answer.
    async fn commit<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<T>) -> Job,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let done = async {
            self.queue(job(answer)).await?;
            answered.await.map_err(|_| StoreError::Poisoned)
        };
        // A committer that hangs answers nobody.
        tokio::select! {
            biased;
            done = done => done,
            () = poisoned(self.poison.health()) => Err(StoreError::Poisoned),
        }
    }

    /// Has the committer stage some work in a group, and waits until that is durable.
    async fn work<T: Send + 'static, E: From<StoreError> + Send + 'static>(
        &self,
        room: Room,
        stage: impl FnOnce(&mut Committer, &mut Group) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let stage = Box::new(stage);
        self.commit(|answer| Job::Work(Box::new(Staged { room, stage, answer }))).await?
    }

    /// Runs reads that may be long where they keep nobody waiting.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DurableView) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = self.reading.clone().acquire_owned().await;
        let permit = permit.map_err(|error| StoreError::Failed(error.to_string()))?;
        let view = self.view.clone();
        // The work goes on where the caller has gone, and keeps its permit until it is done.
        let done = spawn_blocking(move || {
            let _permit = permit;
            work(&view)
        });
        let done = done.await;
        done.map_err(|error| StoreError::Failed(error.to_string()))?
    }
}

/// Ends the process where sled's flusher panics. sled would wait for it without end: in opening, in
/// `verify`, and in the stop. Nothing is lost: a store outlives a crash.
pub fn abort_where_the_flusher_panics() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        if thread::current().name() == Some("log flusher") {
            std::process::abort();
        }
    }));
}

impl Drop for SledStore {
    fn drop(&mut self) {
        drop(self.jobs.take());
        // A thread that hangs in a commit must not hold the process.
        if !self.poison.is_set() {
            for thread in self.threads.drain(..) {
                let _ = thread.join();
            }
        }
    }
}

#[async_trait]
impl FeedSource for SledStore {
    async fn feed_bounds(&self, title: &Title) -> Result<FeedBounds, StoreError> {
        let ends = self.feeds.of(title).ends();
        Ok(FeedBounds {
            oldest: self.cursors.encode(title, ends.trimmed_through),
            newest: self.cursors.encode(title, ends.head),
        })
    }

    async fn entries(
        &self,
        title: &Title,
        after: &Cursor,
        limit: usize,
    ) -> Result<Vec<Entry>, FeedError> {
        let sequence = self.position(title, after).ok_or(FeedError::NotACursor)?;
        let feed = self.feeds.of(title);
        let head = feed.ends().head;
        let oldest = || self.cursors.encode(title, feed.trimmed_through());
        if sequence > head {
            return Err(FeedError::InFuture { oldest: oldest() });
        }
        let entries = match sequence == head {
            true => Vec::new(),
            false => {
                let (title, cursors) = (title.clone(), self.cursors);
                let range = sequence + 1..=head;
                self.read(move |view| read_feed(view, &title, range, limit, cursors)).await?
            }
        };
        // Retention may have removed rows while we read: only now is the answer sure.
        if sequence < feed.trimmed_through() {
            return Err(FeedError::Expired { oldest: oldest() });
        }
        if entries.is_empty() && sequence < head {
            return Err(StoreError::Corrupt(format!("event {} is missing", sequence + 1)).into());
        }
        Ok(entries)
    }

    fn own_cursor(&self, title: &Title, cursor: &Cursor) -> Cursor {
        let sequence = self.position(title, cursor);
        sequence.map_or_else(|| cursor.clone(), |sequence| self.cursors.encode(title, sequence))
    }

    fn advanced(&self, title: &Title, cursor: &Cursor, entry: &Cursor) -> Option<Cursor> {
        (!self.reaches(title, cursor, entry)).then(|| entry.clone())
    }

    fn feed_changes(&self, title: &Title) -> watch::Receiver<()> {
        self.feeds.of(title).changes()
    }
}

#[async_trait]
impl Store for SledStore {
    async fn submit(&self, update: PlayerUpdate) -> Result<Answered, StoreError> {
        let (answer, answered) = Answered::new();
        self.queue(Job::Apply(update, answer)).await?;
        Ok(answered)
    }

    async fn records(&self, player: &PlayerKey) -> Result<Vec<(NodeId, State)>, StoreError> {
        let records = match self.view.cached(player) {
            Some(records) => records,
            None => {
                let player = player.clone();
                self.read(move |view| view.read(&player)).await?
            }
        };
        Ok(states(&records))
    }

    async fn trim_feed(&self, title: &Title, keep: Retention) -> Result<usize, StoreError> {
        let title = title.clone();
        let trim = move |committer: &mut Committer, group: &mut Group| {
            trim::trim(committer, group, &title, keep)
        };
        self.work(Room::Shared, trim).await
    }

    async fn open_subscription(
        &self,
        title: &Title,
        name: &SubscriptionName,
        after: Option<&Cursor>,
    ) -> Result<Subscription, SubscriptionError> {
        let (key, after) = ((title.clone(), name.clone()), after.cloned());
        let open = move |committer: &mut Committer, group: &mut Group| {
            subscriptions::open(committer, group, key, after.as_ref())
        };
        self.work(Room::Shared, open).await
    }

    async fn ack(
        &self,
        title: &Title,
        name: &SubscriptionName,
        through: &Cursor,
        _: u64,
    ) -> Result<Subscription, SubscriptionError> {
        let (key, through) = ((title.clone(), name.clone()), through.clone());
        let ack = move |committer: &mut Committer, group: &mut Group| {
            subscriptions::ack(committer, group, key, &through)
        };
        self.work(Room::Shared, ack).await
    }

    async fn subscriptions(&self, title: &Title) -> Result<Vec<Subscription>, StoreError> {
        let head = self.feeds.of(title).ends().head;
        let all = self.subscriptions.of(title).into_iter();
        let told = all.map(|(name, row)| Subscription {
            name,
            cursor: self.cursors.encode(title, row.sequence),
            lag: head.saturating_sub(row.sequence),
            moved_at: EpochSeconds::new(row.moved_at),
            claim: 0,
        });
        Ok(told.collect())
    }

    async fn delete_subscription(
        &self,
        title: &Title,
        name: &SubscriptionName,
    ) -> Result<(), SubscriptionError> {
        let key = (title.clone(), name.clone());
        let delete = move |committer: &mut Committer, group: &mut Group| {
            subscriptions::delete(committer, group, key)
        };
        self.work(Room::Shared, delete).await
    }

    async fn newer_catalogs(
        &self,
        known: &BTreeMap<Title, u64>,
    ) -> Result<Vec<StoredCatalog>, StoreError> {
        let known = known.clone();
        self.read(move |view| catalogs::load(view.tree(), &known)).await
    }

    async fn replace_catalog(
        &self,
        title: &Title,
        expected: u64,
        catalog: Arc<Catalog>,
    ) -> Result<StoredCatalog, CatalogError> {
        let title = title.clone();
        self.commit(|answer| Job::ReplaceCatalog(title, expected, catalog, answer)).await?
    }

    fn catalog_changes(&self) -> watch::Receiver<()> {
        // Nobody else replaces any.
        watch::Sender::new(()).subscribe()
    }

    async fn count_players(
        &self,
        title: &Title,
        nodes: &BTreeSet<NodeId>,
    ) -> Result<u64, StoreError> {
        let (title, nodes) = (title.clone(), nodes.clone());
        // One at a time, and not after the caller has gone: it may read millions of keys.
        let permit = self.counting.clone().acquire_owned().await;
        let permit = permit.map_err(|error| StoreError::Failed(error.to_string()))?;
        let asked = Arc::new(());
        let still_asked = Arc::downgrade(&asked);
        let counted = self.read(move |view| {
            let _permit = permit;
            let mut count = 0;
            let mut last = None;
            for key in view.tree().scan_prefix(keys::records_of_title(&title)).keys() {
                if still_asked.strong_count() == 0 {
                    break;
                }
                let key = key.map_err(failed)?;
                let Some(Key::Record(player, node)) = Key::decode(&key) else {
                    return Err(damaged(&key, "stands under a key that is no record's"));
                };
                if nodes.contains(&node) && last.as_ref() != Some(&player.player) {
                    count += 1;
                    last = Some(player.player);
                }
            }
            Ok(count)
        });
        let counted = counted.await;
        drop(asked);
        counted
    }

    fn health(&self) -> watch::Receiver<StoreHealth> {
        self.poison.health()
    }
}

fn states(records: &Records) -> Vec<(NodeId, State)> {
    records.iter().map(|(node, stored)| (node.clone(), stored.record.state.clone())).collect()
}

fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(work);
    started.expect("a thread can be started while the store opens")
}

#[cfg(test)]
#[path = "corruption_tests.rs"]
mod corruption_tests;
#[cfg(test)]
#[path = "sled_tests.rs"]
mod tests;

//! The publisher makes applied groups durable, in order, shows them to readers and subscribers, and
//! has their callers answered. It is a thread of its own, so that the next group is applied while
//! one is synced; where nothing else waits, the committer does this work itself and spares its
//! caller the way to another thread.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::oneshot};

use super::{
    bounds::{GROUP_JOBS_MAX, GROUP_JOBS_MIN},
    counts::{Counts, Tally},
    feeds::{FeedEnds, TitleFeed},
    mark::Mark,
    poison::Poison,
    subscriptions::{Moved, Subscriptions},
    view::DurableView,
    watchdog::Stopwatch,
};
use crate::{
    metrics::METRICS,
    store::{
        Applied, ApplyError, CatalogError, StoreError, StoredCatalog, crash_point::crash_point,
    },
};

/// Makes applied writes durable; the store's is sled's `flush`, which ends in our fdatasync.
pub(super) type SyncLog = Box<dyn FnMut() -> io::Result<()> + Send>;

/// A group that is applied; its answers wait in [`Poison::unanswered`].
pub(super) struct Sealed {
    /// Its number among all groups of the store; `None` where it has written nothing.
    pub(super) number: Option<u64>,
    /// Records that it completes.
    pub(super) completions: u64,
    /// What it does to the counts.
    pub(super) tally: Tally,
    /// The feeds it changes, as they are after it.
    pub(super) feeds: Vec<(Arc<TitleFeed>, FeedEnds)>,
    /// The subscriptions it moves.
    pub(super) subscriptions: Vec<Moved>,
}

/// What to tell a caller once its group is durable.
pub(super) enum Answer {
    Applied(oneshot::Sender<Result<Applied, ApplyError>>, Result<Applied, ApplyError>),
    /// Work that is not a set tells its caller itself.
    Worked(Box<dyn FnOnce(Result<(), StoreError>) + Send>),
    Replaced(
        oneshot::Sender<Result<StoredCatalog, CatalogError>>,
        Result<StoredCatalog, CatalogError>,
    ),
}

impl Answer {
    /// Tells the caller, given what became of the group. Whoever stopped waiting is not told.
    pub(super) fn send(self, done: Result<(), StoreError>) {
        match self {
            Self::Applied(caller, result) => {
                drop(caller.send(done.map_err(ApplyError::from).and(result)));
            }
            Self::Worked(tell) => tell(done),
            Self::Replaced(caller, result) => {
                drop(caller.send(done.map_err(CatalogError::from).and(result)));
            }
        }
    }
}

/// The way of groups from the committer to the publisher.
#[derive(Clone)]
pub(super) struct Handover(Arc<Shared>);

struct Shared {
    publisher: Mutex<Publisher>,
    /// Groups that were handed to the thread and are not published yet.
    under_way: AtomicUsize,
    /// How long the last sync took.
    sync_nanos: AtomicU64,
}

/// The publisher's state.
pub(super) struct Publisher {
    pub(super) view: Arc<DurableView>,
    pub(super) subscriptions: Arc<Subscriptions>,
    pub(super) counts: Arc<Counts>,
    pub(super) poison: Poison,
    pub(super) sync_log: SyncLog,
    pub(super) mark: Option<Arc<Mark>>,
    /// Where sled would put blobs, which it never syncs; and when that folder last changed.
    pub(super) blobs: (PathBuf, SystemTime),
    pub(super) stopwatch: Stopwatch,
    /// Where callers wait; answering them there wakes them without a detour.
    pub(super) runtime: Option<Handle>,
}

// === impl Handover ===

impl Handover {
    pub(super) fn new(publisher: Publisher) -> Self {
        let (under_way, sync_nanos) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self(Arc::new(Shared { publisher: Mutex::new(publisher), under_way, sync_nanos }))
    }

    /// The publisher's thread: works until the committer is gone and its last group is published.
    pub(super) fn run(&self, sealed: Receiver<Sealed>) {
        while let Ok(group) = sealed.recv() {
            self.publish(group);
            self.0.under_way.fetch_sub(1, Ordering::Release);
        }
    }

    /// Publishes a group: here where nothing else is to be done, else on the publisher's thread
    /// once that has finished the group before. Groups are published in the order they come here.
    pub(super) fn hand_over(&self, group: Sealed, is_alone: bool, thread: &SyncSender<Sealed>) {
        if is_alone && self.0.under_way.load(Ordering::Acquire) == 0 {
            return self.publish(group);
        }
        self.0.under_way.fetch_add(1, Ordering::Release);
        thread.send(group).expect("the publisher lives as long as the committer");
    }

    /// How many updates make a group whose judging and applying takes about as long as a sync, so
    /// that neither waits for the other.
    pub(super) fn group_jobs(&self) -> usize {
        const UPDATE_NANOS: u64 = 4000;
        let jobs = self.0.sync_nanos.load(Ordering::Relaxed) / UPDATE_NANOS;
        usize::try_from(jobs).unwrap_or(usize::MAX).clamp(GROUP_JOBS_MIN, GROUP_JOBS_MAX)
    }

    fn publish(&self, group: Sealed) {
        let mut publisher = self.0.publisher.lock();
        match catch_unwind(AssertUnwindSafe(|| publisher.publish(group))) {
            Ok(None) => {}
            Ok(Some(sync_time)) => {
                let nanos = u64::try_from(sync_time.as_nanos()).unwrap_or(u64::MAX);
                self.0.sync_nanos.store(nanos, Ordering::Relaxed);
            }
            Err(_) => publisher.poison.set("the publisher panicked"),
        }
    }
}

// === impl Publisher ===

impl Publisher {
    /// Tells how long the sync took, where there was one.
    fn publish(&mut self, group: Sealed) -> Option<Duration> {
        if self.poison.is_set() {
            // Whoever poisoned it has answered, or this was sealed at that moment.
            self.poison.answer();
            return None;
        }
        let mut sync_time = None;
        if group.number.is_some() {
            let start = Instant::now();
            self.stopwatch.start();
            crash_point!("before-sync");
            let synced = (self.sync_log)().and_then(|()| self.check_blobs());
            self.stopwatch.stop();
            if let Err(error) = synced {
                self.poison.set(&error.to_string());
                return None;
            }
            sync_time = Some(start.elapsed());
            crash_point!("synced");
            self.view.publish();
            crash_point!("shown");
        }
        if !group.subscriptions.is_empty() {
            self.subscriptions.publish(group.subscriptions);
        }
        self.counts.publish(group.tally);
        METRICS.completions.inc_by(group.completions);
        for (feed, ends) in group.feeds {
            feed.count_erasures(ends.erasures);
            if feed.ends().head < ends.head {
                crash_point!("before-the-feed");
                feed.extend(ends);
            }
        }
        // None where the watchdog has given this group up: its callers were told so.
        let answers = self.poison.unanswered().pop_front();
        let updates = answers.as_ref().map_or(0, Vec::len);
        if let Some(answers) = answers {
            crash_point!("before-answers");
            self.answer(answers);
            crash_point!("answered");
        }
        // What nobody waits for comes last.
        if let Some(time) = sync_time {
            METRICS.group(updates, time);
        }
        let marked = self.mark.as_ref().zip(group.number).map(|(mark, number)| mark.set(number));
        if let Some(Err(error)) = marked {
            self.poison.set(&error.to_string());
        }
        sync_time
    }

    /// A group of answers is one task for the runtime: from there each wakes its caller without
    /// crossing threads.
    fn answer(&self, answers: Vec<Answer>) {
        let send = move || answers.into_iter().for_each(|answer| answer.send(Ok(())));
        match &self.runtime {
            Some(runtime) => drop(runtime.spawn(async move { send() })),
            None => send(),
        }
    }

    /// Asks for the folder's time only: that needs no file descriptor, so a process that has run
    /// out of them does not take its store for damaged.
    fn check_blobs(&self) -> io::Result<()> {
        let (blobs, unchanged) = &self.blobs;
        match fs::metadata(blobs)?.modified()? == *unchanged {
            true => Ok(()),
            false => Err(io::Error::other("sled wrote a blob, which it does not sync")),
        }
    }
}

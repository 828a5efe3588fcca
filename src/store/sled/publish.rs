//! The publisher: a thread that makes applied groups durable, in order, shows them to readers and
//! subscribers, and has their callers answered.

use std::{
    collections::VecDeque,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, mpsc::Receiver},
    time::SystemTime,
};

use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
};

use super::{
    feeds::{FeedEnds, TitleFeed},
    view::DurableView,
    watchdog::{Stopwatch, poison},
};
use crate::store::{Applied, ApplyError, CatalogError, StoreError, StoreHealth, StoredCatalog};

/// Makes applied writes durable; the store's is sled's `flush`, which ends in our fdatasync.
pub(super) type SyncLog = Box<dyn FnMut() -> io::Result<()> + Send>;

/// The answers of every group that is not durable yet, oldest group first.
pub(super) type Unanswered = Arc<Mutex<VecDeque<Vec<Answer>>>>;

/// A group that is applied; its answers wait in [`Unanswered`].
pub(super) struct Sealed {
    pub(super) has_written: bool,
    /// The feeds it changes, as they are after it.
    pub(super) feeds: Vec<(Arc<TitleFeed>, FeedEnds)>,
}

/// What to tell a caller once its group is durable.
pub(super) enum Answer {
    Applied(oneshot::Sender<Result<Applied, ApplyError>>, Result<Applied, ApplyError>),
    Trimmed(oneshot::Sender<Result<usize, StoreError>>, Result<usize, StoreError>),
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
            Self::Trimmed(caller, result) => drop(caller.send(done.and(result))),
            Self::Replaced(caller, result) => {
                drop(caller.send(done.map_err(CatalogError::from).and(result)));
            }
        }
    }
}

/// The publisher's state; [`Publisher::run`] is its thread.
pub(super) struct Publisher {
    pub(super) view: Arc<DurableView>,
    pub(super) health: watch::Sender<StoreHealth>,
    pub(super) sync_log: SyncLog,
    /// Where sled would put blobs, which it never syncs; and when that folder last changed.
    pub(super) blobs: (PathBuf, SystemTime),
    pub(super) stopwatch: Stopwatch,
    pub(super) unanswered: Unanswered,
    /// Where callers wait; answering them there wakes them without a detour.
    pub(super) runtime: Option<Handle>,
}

// === impl Publisher ===

impl Publisher {
    /// Works until the committer is gone and its last group is published.
    pub(super) fn run(mut self, sealed: Receiver<Sealed>) {
        while let Ok(group) = sealed.recv() {
            let work = AssertUnwindSafe(|| self.publish(group));
            if catch_unwind(work).is_err() {
                poison(&self.health, &self.unanswered, "the publisher panicked");
            }
        }
    }

    fn publish(&mut self, group: Sealed) {
        if *self.health.borrow() == StoreHealth::Poisoned {
            // Whoever poisoned it has answered, or this was sealed at that moment.
            return poison_answers(&self.unanswered);
        }
        if group.has_written {
            self.stopwatch.start();
            let synced = (self.sync_log)().and_then(|()| self.check_blobs());
            self.stopwatch.stop();
            if let Err(error) = synced {
                return poison(&self.health, &self.unanswered, &error.to_string());
            }
            self.view.publish();
        }
        for (feed, ends) in group.feeds {
            if feed.ends().head < ends.head {
                feed.extend(ends.head, ends.newest_completed_at);
            }
        }
        // None where the watchdog has given this group up: its callers were told so.
        if let Some(answers) = self.unanswered.lock().pop_front() {
            self.answer(answers);
        }
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

/// Tells every caller who still waits that the store takes no more writes.
pub(super) fn poison_answers(unanswered: &Unanswered) {
    let groups = std::mem::take(&mut *unanswered.lock());
    for answer in groups.into_iter().flatten() {
        answer.send(Err(StoreError::Poisoned));
    }
}

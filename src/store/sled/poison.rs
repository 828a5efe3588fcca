//! The end of all writes, once one has failed: nobody knows any more what is on the disk.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Weak},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::{
    mark::{DISTRUST_UNTOLD, Mark},
    publish::Answer,
};
use crate::store::{StoreError, StoreHealth};

/// Whether a write has failed, and whom to tell. Cloning shares it.
#[derive(Clone)]
pub(super) struct Poison(Arc<Shared>);

/// As [`Poison`], but keeps nothing alive.
pub(super) struct WeakPoison(Weak<Shared>);

struct Shared {
    health: watch::Sender<StoreHealth>,
    /// The answers of every group that is not durable yet, oldest group first.
    unanswered: Mutex<VecDeque<Vec<Answer>>>,
    mark: Option<Arc<Mark>>,
}

// === impl Poison ===

impl Poison {
    pub(super) fn new(mark: Option<Arc<Mark>>) -> Self {
        let health = watch::Sender::new(StoreHealth::Serving);
        Self(Arc::new(Shared { health, unanswered: Mutex::default(), mark }))
    }

    pub(super) fn downgrade(&self) -> WeakPoison {
        WeakPoison(Arc::downgrade(&self.0))
    }

    pub(super) fn health(&self) -> watch::Receiver<StoreHealth> {
        self.0.health.subscribe()
    }

    pub(super) fn is_set(&self) -> bool {
        *self.0.health.borrow() == StoreHealth::Poisoned
    }

    /// Whoever puts answers there asks [`Poison::is_set`] under this lock.
    pub(super) fn unanswered(&self) -> MutexGuard<'_, VecDeque<Vec<Answer>>> {
        self.0.unanswered.lock()
    }

    /// Ends all writes, says so, and answers everybody whose update is not known to be durable.
    pub(super) fn set(&self, cause: &str) {
        tracing::error!(
            cause,
            "a write failed: the store takes no more writes; free or repair the disk, run \
             `accolade verify` on a copy, then start the server anew"
        );
        self.0.health.send_replace(StoreHealth::Poisoned);
        self.answer();
        // Last, since it may hang as the write did.
        if let Some(Err(error)) = self.0.mark.as_ref().map(|mark| mark.distrust()) {
            tracing::error!(%error, "{DISTRUST_UNTOLD}");
        }
    }

    /// Tells every caller who still waits that the store takes no more writes.
    pub(super) fn answer(&self) {
        let groups = mem::take(&mut *self.unanswered());
        for answer in groups.into_iter().flatten() {
            answer.send(Err(StoreError::Poisoned));
        }
    }
}

// === impl WeakPoison ===

impl WeakPoison {
    pub(super) fn upgrade(&self) -> Option<Poison> {
        self.0.upgrade().map(Poison)
    }
}

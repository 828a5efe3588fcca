//! Notices a commit that does not end.
//!
//! Some failures inside sled 0.34.7 are not told to whoever waits in `flush`: a write that fails on
//! one of its threads sets an error but wakes nobody. The committer would then wait for ever, with
//! a store that looks healthy. So a commit that takes too long counts as failed.

use std::{
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::commit::poison;
use crate::store::StoreHealth;

/// Longest commit. A healthy one takes milliseconds, on a spinning disk under load seconds.
pub(super) const COMMIT_TIME_MAX: Duration = Duration::from_secs(30);

/// Watches until whoever shares `under_way` is gone, or the store is poisoned.
pub(super) fn start(
    under_way: &Arc<Mutex<Option<Instant>>>,
    health: watch::Sender<StoreHealth>,
    commit_time_max: Duration,
) {
    let under_way: Weak<_> = Arc::downgrade(under_way);
    let pause = (commit_time_max / 10).min(Duration::from_secs(1));
    let work = move || {
        while let Some(under_way) = under_way.upgrade() {
            let began = *under_way.lock();
            drop(under_way);
            if *health.borrow() == StoreHealth::Poisoned {
                return;
            }
            if began.is_some_and(|began| began.elapsed() > commit_time_max) {
                poison(&health, "a commit does not end");
                return;
            }
            thread::sleep(pause);
        }
    };
    let started = thread::Builder::new().name("commit-watchdog".to_owned()).spawn(work);
    started.expect("a thread can be started while the store opens");
}

//! Ends all writes when one failed, and notices a commit that does not end.
//!
//! Some failures inside sled 0.34.7 are not told to whoever waits in `flush`: a write that fails on
//! one of its threads sets an error but may wake nobody. The publisher would then wait for ever,
//! with a store that looks healthy. And sled's flusher, which empties old segments, fails where
//! nobody waits at all. So sled is asked for errors all the time, and a commit that takes too long
//! without one counts as failed as well.

use std::{
    mem,
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{libc_calls::LogSyncs, poison::Poison};

/// Longest call into sled for one group. A healthy one takes milliseconds, on a spinning disk under
/// load seconds.
pub(super) const COMMIT_TIME_MAX: Duration = Duration::from_secs(30);

/// Longest time in which sled's flusher, which comes by twice a second, may not be seen: so long
/// that no healthy disk is taken for a failed one, so short that the folder does not grow by much.
pub(super) const FLUSHER_AWAY_MAX: Duration = Duration::from_secs(300);

/// How often sled is asked whether something failed.
pub(super) const FAILURE_POLL: Duration = Duration::from_millis(50);

/// When the call under way began; none is under way by default.
#[derive(Clone, Default)]
pub(super) struct Stopwatch(Arc<Mutex<Option<Instant>>>);

impl Stopwatch {
    pub(super) fn start(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    pub(super) fn stop(&self) {
        *self.0.lock() = None;
    }
}

/// Watches until the owners of the stopwatches are gone, or the store is poisoned.
pub(super) fn start(
    stopwatches: [&Stopwatch; 2],
    poison: &Poison,
    commit_time_max: Duration,
    mut failure: impl FnMut() -> Option<String> + Send + 'static,
) {
    let watched: [Weak<Mutex<_>>; 2] = stopwatches.map(|watch| Arc::downgrade(&watch.0));
    let poison = poison.downgrade();
    let work = move || {
        let (mut last, mut watched_for) = (None, Duration::ZERO);
        while let Some(poison) = poison.upgrade() {
            if poison.is_set() {
                return;
            }
            if let Some(cause) = failure() {
                return poison.set(&cause);
            }
            let began = watched.iter().filter_map(|watch| *watch.upgrade()?.lock()).min();
            // Counted here and not by the clock: a process or machine that was paused has not been
            // at work meanwhile, and its disk has not failed.
            watched_for = match began.is_some() && began == last {
                true => watched_for + FAILURE_POLL,
                false => Duration::ZERO,
            };
            last = began;
            if watched_for > commit_time_max {
                return poison.set("a commit does not end");
            }
            drop(poison);
            thread::sleep(FAILURE_POLL);
        }
    };
    let started = thread::Builder::new().name("commit-watchdog".to_owned()).spawn(work);
    started.expect("a thread can be started while the store opens");
}

/// What failed inside sled, where it tells nobody; to be asked every [`FAILURE_POLL`].
pub(super) fn sled_failure(
    config: sled::Config,
    syncs: Arc<LogSyncs>,
    away_max: Duration,
) -> impl FnMut() -> Option<String> {
    let (mut flushes, mut unchanged_for) = (0, Duration::ZERO);
    move || {
        if let Err(error) = config.global_error() {
            return Some(error.to_string());
        }
        if syncs.have_failed() {
            return Some("a sync of the log failed".to_owned());
        }
        let last = mem::replace(&mut flushes, syncs.flushes());
        // Counted here and not by the clock: see the watchdog.
        unchanged_for = match last == flushes {
            true => unchanged_for + FAILURE_POLL,
            false => Duration::ZERO,
        };
        // The flusher of sled ends for ever where it cannot read a page.
        // On Linux it is seen by its syncs.
        let has_ended = cfg!(target_os = "linux") && unchanged_for > away_max;
        has_ended.then(|| "sled's flusher has ended".to_owned())
    }
}

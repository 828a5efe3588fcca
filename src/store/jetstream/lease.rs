//! Reads that are never stale. A stream's leader answers reads by itself, so one that was cut off from
//! the others, and has not noticed, would answer with what is not true any more.
//!
//! A write that was acknowledged was taken by a majority, which chooses no other leader for at least
//! 4 seconds after that (`minElectionTimeoutDefault` in `server/raft.go` of nats-server): the timers
//! of those who took it began anew, and who did not take it gets no votes of theirs. So until then
//! there is no leader but the one that acknowledged, and what it reads is the truth. Where nothing
//! was written of late, a small message is written first, for all who wait.
//!
//! This trusts that clocks of machines run about equally fast; not that they show the same time.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{sync::Mutex, time::Instant};

/// How long after a write was sent that was acknowledged there is no other leader; half a second
/// less than the least time.
const LEASE: Duration = Duration::from_millis(3500);

/// The leases of an installation's streams. Empty where there is no choice of leaders.
pub(super) struct Leases {
    start: Instant,
    of: HashMap<String, Lease>,
}

/// The lease of one stream.
pub(super) struct Lease {
    /// Until when, in microseconds since the start.
    until: AtomicU64,
    /// Where the small message goes.
    pub(super) subject: String,
    /// Held by whoever writes it.
    pub(super) renewing: Mutex<()>,
}

impl Leases {
    /// Of streams, each with the subject of its small message.
    pub(super) fn new(streams: impl IntoIterator<Item = (String, String)>) -> Self {
        let lease =
            |subject| Lease { until: AtomicU64::new(0), subject, renewing: Mutex::default() };
        let of = streams.into_iter().map(|(stream, subject)| (stream, lease(subject)));
        Self { start: Instant::now(), of: of.collect() }
    }

    /// The lease of a stream, where it needs one.
    pub(super) fn of(&self, stream: &str) -> Option<&Lease> {
        self.of.get(stream)
    }

    /// Notes that a write was acknowledged which was sent at a time.
    pub(super) fn renew(&self, stream: &str, sent: Instant) {
        if let Some(lease) = self.of.get(stream) {
            lease.until.fetch_max(self.micros(sent + LEASE), Ordering::SeqCst);
        }
    }

    /// Until when a lease runs; `None` where it has run out.
    pub(super) fn until(&self, lease: &Lease) -> Option<Instant> {
        let until = self.start + Duration::from_micros(lease.until.load(Ordering::SeqCst));
        (until > Instant::now()).then_some(until)
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_runs_from_when_a_write_was_sent() {
        let leases = Leases::new([("S".to_owned(), "s".to_owned())]);
        let lease = leases.of("S").unwrap();
        assert!(leases.until(lease).is_none(), "nothing was written yet");
        let sent = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        leases.renew("S", sent);
        assert_eq!(leases.until(lease), Some(sent + LEASE));
        leases.renew("S", sent - Duration::from_millis(500));
        assert_eq!(leases.until(lease), Some(sent + LEASE), "an older one changes nothing");
        tokio::time::advance(Duration::from_millis(2501)).await;
        assert!(leases.until(lease).is_none());
        assert!(leases.of("T").is_none());
    }
}

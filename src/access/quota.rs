//! How much a token or a title may ask for.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use governor::{
    DefaultDirectRateLimiter, InsufficientCapacity, RateLimiter,
    clock::{Clock, DefaultClock},
};

use super::{AccessError, Whose};

/// The smallest rate: that of one batch.
pub const REQUESTS_PER_SECOND_MIN: u32 = 100;

/// The smallest rate of bytes: that of the largest request message.
pub const BYTES_PER_SECOND_MIN: u32 = 4 << 20;

/// What a token or a title may ask for. `None` is no limit. Rates allow a second's worth at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Requests a second; each update of a batch or a stream, and each player read, is one.
    pub requests_per_second: Option<NonZeroU32>,
    /// Bytes of request messages a second.
    pub request_bytes_per_second: Option<NonZeroU32>,
    /// Streams open at once.
    pub streams_max: Option<NonZeroU32>,
}

/// What a request takes from quotas.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Requests, 1 or more.
    pub requests: usize,
    /// Bytes of the message.
    pub bytes: usize,
}

/// What is left of a quota.
#[derive(Debug)]
pub(super) struct Meter {
    requests: Option<DefaultDirectRateLimiter>,
    bytes: Option<DefaultDirectRateLimiter>,
    streams: Option<(NonZeroU32, Arc<AtomicU32>)>,
}

/// A place of a stream in a quota, given back when dropped.
#[derive(Debug)]
pub struct StreamPermit(Arc<AtomicU32>);

// === impl Quota ===

impl Quota {
    pub(super) fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

// === impl Meter ===

impl Meter {
    pub(super) fn new(quota: Quota) -> Self {
        let rate = |per_second| RateLimiter::direct(governor::Quota::per_second(per_second));
        Self {
            requests: quota.requests_per_second.map(rate),
            bytes: quota.request_bytes_per_second.map(rate),
            streams: quota.streams_max.map(|max| (max, Arc::default())),
        }
    }

    pub(super) fn charge(&self, cost: Cost, whose: impl Fn() -> Whose) -> Result<(), AccessError> {
        let rates =
            [(&self.requests, cost.requests, "requests"), (&self.bytes, cost.bytes, "bytes")];
        for (limiter, amount, what) in rates {
            let Some(limiter) = limiter else { continue };
            let amount = u32::try_from(amount).unwrap_or(u32::MAX);
            let amount = NonZeroU32::new(amount).unwrap_or(NonZeroU32::MIN);
            // What is more than a second's worth takes a whole second's.
            let taken = match limiter.check_n(amount) {
                Ok(taken) => taken,
                Err(InsufficientCapacity(most)) => {
                    let most = NonZeroU32::new(most).unwrap_or(NonZeroU32::MIN);
                    limiter.check_n(most).unwrap_or(Ok(()))
                }
            };
            let Err(wait) = taken else { continue };
            let retry_after = wait.wait_time_from(DefaultClock::default().now());
            return Err(AccessError::QuotaExceeded { whose: whose(), what, retry_after });
        }
        Ok(())
    }

    pub(super) fn open_stream(
        &self,
        whose: impl Fn() -> Whose,
    ) -> Result<Option<StreamPermit>, AccessError> {
        let Some((max, open)) = &self.streams else { return Ok(None) };
        let permit = StreamPermit(open.clone());
        match open.fetch_add(1, Ordering::Relaxed) < max.get() {
            true => Ok(Some(permit)),
            false => Err(AccessError::StreamsExhausted { whose: whose(), max: max.get() }),
        }
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

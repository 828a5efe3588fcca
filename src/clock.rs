//! The time of day, as a parameter, so that a test can be given any.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::domain::EpochSeconds;

/// Tells the time of day.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> EpochSeconds;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    fn now(&self) -> EpochSeconds {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        EpochSeconds::new(since.as_secs())
    }
}

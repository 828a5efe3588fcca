//! Asking again while a cluster cannot answer.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long something is asked again and again: longer than a cluster takes to choose a leader, and
/// than most requests have.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Pauses between attempts: from the first, doubled, to the last.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Waits longer from attempt to attempt.
pub(super) struct Pauses {
    next: Duration,
    deadline: Instant,
}

impl Pauses {
    pub(super) fn new(patience: Duration) -> Self {
        Self { next: PAUSE_MIN, deadline: Instant::now() + patience }
    }

    /// Waits for the next attempt; false where there is to be none.
    pub(super) async fn wait(&mut self) -> bool {
        if Instant::now() + self.next > self.deadline {
            return false;
        }
        sleep(self.next.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        self.next = PAUSE_MAX.min(self.next * 2);
        true
    }
}

/// Asks again while the cluster cannot answer.
macro_rules! patiently {
    ($ask:expr) => {{
        let mut pauses = Pauses::new(PATIENCE);
        loop {
            match $ask.await {
                Err(error @ StoreError::Unavailable(_)) => {
                    if !pauses.wait().await {
                        break Err(error);
                    }
                }
                told => break told,
            }
        }
    }};
}

pub(super) use patiently;

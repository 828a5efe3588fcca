//! When a call is tried again.

use std::{error::Error, iter::successors, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Response, Status, TimeoutExpired};
use tonic_types::StatusExt;

/// Longest deadline; a longer one is this.
const DEADLINE_MAX: Duration = Duration::from_secs(24 * 3600);

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// An attempt gets at most so long, for a connection may have died without a word.
const ATTEMPT_MAX: Duration = Duration::from_secs(3);

/// Whether trying again can help.
#[must_use]
pub fn may_pass(status: &Status) -> bool {
    use Code::{Aborted, Cancelled, DeadlineExceeded, Internal, Unavailable, Unknown};
    // A connection that breaks in the middle shows as any of these.
    let is_broken = matches!(
        status.code(),
        Unavailable | Unknown | Cancelled | Aborted | DeadlineExceeded | Internal
    );
    is_broken || pause_told(status).is_some()
}

/// tonic counts the time as well, and calls it CANCELLED when it is over.
fn has_timed_out(status: &Status) -> bool {
    let mut causes = successors(status.source(), |error| (*error).source());
    causes.any(|error| error.downcast_ref::<TimeoutExpired>().is_some())
}

/// How long the server asks to wait.
fn pause_told(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// A name that no other update has: 128 random bits.
pub(super) fn request_id() -> Result<String, Status> {
    let mut bytes = [0; 16];
    let made = getrandom::fill(&mut bytes);
    made.map_err(|error| Status::internal(format!("no random numbers: {error}")))?;
    Ok(BASE64URL_NOPAD.encode(&bytes))
}

/// Pauses that grow from one failure to the next; each is between half of it and all of it, so that
/// those who failed together do not come back together.
#[derive(Debug)]
pub struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(PAUSE_MIN)
    }
}

impl Pauses {
    /// What to wait after this failure; longer where the server says so.
    pub fn next(&mut self, status: &Status) -> Duration {
        let pause = self.0.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.0 = (self.0 * 2).min(PAUSE_MAX);
        pause_told(status).map_or(pause, |told| told + pause)
    }
}

/// The attempts of one call.
#[derive(Debug)]
pub(super) struct Attempts {
    until: Instant,
    pauses: Pauses,
}

impl Attempts {
    pub(super) fn new(deadline: Duration) -> Self {
        Self { until: Instant::now() + deadline.min(DEADLINE_MAX), pauses: Pauses::default() }
    }

    /// The next attempt, with its deadline: there for the server, and here for what comes before
    /// the server and after its first word.
    pub(super) async fn attempt<M, T>(
        &self,
        message: M,
        call: impl AsyncFnOnce(Request<M>) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let time = self.left().min(ATTEMPT_MAX);
        let mut request = Request::new(message);
        request.set_timeout(time);
        match timeout(time, call(request)).await {
            Ok(Err(status)) if !has_timed_out(&status) => Err(status),
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            _ => Err(Status::deadline_exceeded("no answer came in time")),
        }
    }

    /// Waits for the next attempt; gives the failure back where there is none.
    pub(super) async fn after(&mut self, status: Status) -> Result<(), Status> {
        let pause = self.pauses.next(&status);
        if !may_pass(&status) || pause >= self.left() {
            return Err(status);
        }
        sleep(pause).await;
        Ok(())
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_nothing_else() {
        for code in 0..=16 {
            let code = Code::from_i32(code);
            let expected = [
                Code::Unavailable,
                Code::Unknown,
                Code::Cancelled,
                Code::Aborted,
                Code::DeadlineExceeded,
                Code::Internal,
            ];
            assert_eq!(may_pass(&Status::new(code, "")), expected.contains(&code), "{code:?}");
        }
        let told = ErrorDetails::with_retry_info(Some(Duration::from_secs(2)));
        let quota = Status::with_error_details(Code::ResourceExhausted, "", told);
        assert!(may_pass(&quota));
        assert!(Pauses::default().next(&quota) >= Duration::from_secs(2));
    }

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let mut pauses = Pauses::default();
        let status = Status::unavailable("");
        let all: Vec<_> = (0..20).map(|_| pauses.next(&status)).collect();
        assert!(all[0] >= PAUSE_MIN / 2 && all[0] <= PAUSE_MIN);
        assert!(all.iter().all(|pause| *pause <= PAUSE_MAX));
        assert!(all[19] >= PAUSE_MAX / 2);
    }

    #[tokio::test]
    async fn attempts_end_before_the_deadline() {
        let mut attempts = Attempts::new(Duration::from_secs(2));
        let mut count = 0;
        while attempts.after(Status::unavailable("gone")).await.is_ok() {
            count += 1;
        }
        assert!((1..12).contains(&count), "{count} attempts");
        let mut attempts = Attempts::new(Duration::from_secs(60));
        attempts.after(Status::unavailable("gone")).await.unwrap();
        attempts.after(Status::invalid_argument("wrong")).await.unwrap_err();
    }
}

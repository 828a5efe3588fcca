//! Deadlines, and statuses that the transport makes by itself, in the words of this API.
//!
//! Every status that the services make carries `ErrorInfo`. One that does not was made by tonic:
//! an undecodable message (INTERNAL there), one over the limit (OUT_OF_RANGE there), an unknown
//! method, an encoding. Those are the caller's mistakes and are answered as such.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use crate::service::{from_transport, refusal};

const GRPC_TIMEOUT_HEADER: &str = "grpc-timeout";

/// Wraps the services.
#[derive(Clone, Debug)]
pub struct RefusalsLayer {
    request_time_max: Duration,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Refusals<S> {
    inner: S,
    request_time_max: Duration,
}

impl RefusalsLayer {
    pub(super) fn new(request_time_max: Duration) -> Self {
        Self { request_time_max }
    }
}

impl<S> Layer<S> for RefusalsLayer {
    type Service = Refusals<S>;

    fn layer(&self, inner: S) -> Refusals<S> {
        Refusals { inner, request_time_max: self.request_time_max }
    }
}

impl<S> Service<Request<Body>> for Refusals<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let asked = grpc_timeout(request.headers()).unwrap_or(Duration::MAX);
        let limit = asked.min(self.request_time_max);
        // A stream's answer is there as soon as its first headers are, so this bounds its start.
        // The time begins now, and not when the future is first polled: tonic keeps the caller's
        // deadline too, around this layer and without a reason in its status.
        let answer = tokio::time::timeout(limit, self.inner.call(request));
        Box::pin(async move {
            match answer.await {
                Ok(answer) => answer.map(explain),
                Err(_) => Ok(deadline_exceeded().into_http()),
            }
        })
    }
}

fn deadline_exceeded() -> Status {
    refusal(
        Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
        "the time for this request ran out; a set may still have been stored: ask again with the \
         same request_id",
    )
}

fn explain(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok && status.details().is_empty() => {
            from_transport(&status).into_http()
        }
        _ => response,
    }
}

/// Reads `grpc-timeout`: at most 8 digits and a unit.
/// Source: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT_HEADER)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = is_number.then(|| digits.parse().ok()).flatten()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(GRPC_TIMEOUT_HEADER, text.parse().unwrap());
            grpc_timeout(&headers)
        };
        assert_eq!(read("1m"), Some(Duration::from_millis(1)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "m", "1", "-1S", "123456789S", "1x", "+1S"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}

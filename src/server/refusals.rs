//! What every request goes through: who calls, by when it must be answered, how long it took; and
//! statuses that the transport makes by itself are put in the words of this API.
//!
//! Every status that the services make carries `ErrorInfo`. One that does not was made by tonic:
//! an undecodable message (INTERNAL there), one over the limit (OUT_OF_RANGE there), an unknown
//! method, an encoding. Those are the caller's mistakes and are answered as such.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Request, Response, header::AUTHORIZATION};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::Instrument;

use super::{codes::code_name, revocable};
use crate::{
    access::{Access, Caller},
    metrics::METRICS,
    service::{deadline_exceeded, from_access, from_transport},
    telemetry::{answered, request_span},
};

const GRPC_TIMEOUT_HEADER: &str = "grpc-timeout";

/// Whoever may reach the server may ask whether it is well.
const OPEN_TO_ALL: &str = "/grpc.health.v1.Health/";

/// Its streams know nothing of tokens.
const REFLECTION: &str = "/grpc.reflection.";

/// Wraps the services.
#[derive(Clone)]
pub struct RefusalsLayer {
    access: Arc<Access>,
    request_time_max: Duration,
}

/// See the module.
#[derive(Clone)]
pub struct Refusals<S> {
    inner: S,
    access: Arc<Access>,
    request_time_max: Duration,
}

impl RefusalsLayer {
    pub(super) fn new(access: Arc<Access>, request_time_max: Duration) -> Self {
        Self { access, request_time_max }
    }
}

impl<S> Layer<S> for RefusalsLayer {
    type Service = Refusals<S>;

    fn layer(&self, inner: S) -> Refusals<S> {
        let access = self.access.clone();
        Refusals { inner, access, request_time_max: self.request_time_max }
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let begun = Instant::now();
        let method = METRICS.method(request.uri().path().trim_start_matches('/'));
        let span = request_span(&method.name, request.headers());
        let authorization = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
        match self.access.authenticate(authorization) {
            Ok(caller) => drop(request.extensions_mut().insert(caller)),
            Err(_) if request.uri().path().starts_with(OPEN_TO_ALL) => {}
            Err(error) => {
                let refused = from_access(&error);
                let code = code_name(refused.code());
                METRICS.request(method, code, begun.elapsed());
                answered(&span, code);
                return Box::pin(async move { Ok(refused.into_http()) });
            }
        }
        let asked = grpc_timeout(request.headers()).unwrap_or(Duration::MAX);
        let limit = asked.min(self.request_time_max);
        let revoked = match request.uri().path().starts_with(REFLECTION) {
            true => request.extensions().get::<Caller>().and_then(Caller::revoked).cloned(),
            false => None,
        };
        // A stream's answer is there as soon as its first headers are, so this bounds its start.
        // The time begins now, and not when the future is first polled: tonic keeps the caller's
        // deadline too, around this layer and without a reason in its status.
        let answer = span.in_scope(|| self.inner.call(request));
        let answer = tokio::time::timeout(limit, answer.instrument(span.clone()));
        Box::pin(async move {
            let answer = match answer.await {
                Ok(answer) => answer.map(explain).map(|answer| match revoked {
                    Some(revoked) => revocable::end_on(revoked, answer),
                    None => answer,
                }),
                Err(_) => Ok(deadline_exceeded().into_http()),
            };
            let status = answer.as_ref().ok().and_then(|it| Status::from_header_map(it.headers()));
            let code = status.map_or(Code::Ok, |status| status.code());
            METRICS.request(method, code_name(code), begun.elapsed());
            answered(&span, code_name(code));
            answer
        })
    }
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

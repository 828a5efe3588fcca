//! Reading on, for a bounded while, what a client of HTTP/1.1 still sends after it was answered: a
//! request that is refused before it is read to its end. Were the connection closed at once, the
//! system would reset it, and the client might lose the answer with it. (HTTP/2 needs none of this:
//! there a stream ends, and not the connection.)

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::{Request, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::{runtime::Handle, time::timeout};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

/// So much is read on at most.
const BYTES_MAX: usize = 8 << 20;

/// So long is read on at most.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Wraps all services; see the module.
#[derive(Clone, Copy, Debug)]
pub struct LingerLayer;

/// See the module.
#[derive(Clone, Debug)]
pub struct Linger<S>(S);

/// A body that is read on when it is dropped.
struct LingeringBody(Option<Body>);

impl<S> Layer<S> for LingerLayer {
    type Service = Linger<S>;

    fn layer(&self, inner: S) -> Linger<S> {
        Linger(inner)
    }
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Linger<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        self.0.call(match request.version() {
            Version::HTTP_2 => request,
            _ => request.map(|body| Body::new(LingeringBody(Some(body)))),
        })
    }
}

impl HttpBody for LingeringBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for LingeringBody {
    fn drop(&mut self) {
        if let Some(body) = self.0.take().filter(|body| !body.is_end_stream())
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(timeout(TIME_MAX, read_on(body)));
        }
    }
}

async fn read_on(mut body: Body) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Buf::remaining);
        if bytes > BYTES_MAX {
            break;
        }
    }
}

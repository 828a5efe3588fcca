//! Answers that end when the caller's token is taken away. Streams of our own services see to that
//! themselves; this is for those that come with tonic.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Status, body::Body};

use crate::{access::AccessError, service::from_access};

/// See the module.
struct Revocable {
    body: Body,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
    is_over: bool,
}

/// Ends the answer, with a status that says why, once `revoked` is cancelled.
pub(super) fn end_on(revoked: CancellationToken, answer: Response<Body>) -> Response<Body> {
    answer.map(|body| {
        let revoked = Box::pin(revoked.cancelled_owned());
        Body::new(Revocable { body, revoked, is_over: false })
    })
}

impl HttpBody for Revocable {
    type Data = <Body as HttpBody>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        if self.revoked.as_mut().poll(context).is_ready() {
            self.is_over = true;
            let trailers = from_access(&AccessError::Revoked).into_http::<()>().into_parts().0;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers.headers))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

//! A gRPC answer as Connect has it.

use std::time::Duration;

use async_stream::stream;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body::Frame as BodyFrame;
use http_body_util::{BodyExt, StreamBody};
use prost_reflect::MessageDescriptor;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status, body::Body};

use super::{
    Form, error,
    frames::{END, Frames, frame},
    json::Codec,
};
use crate::service::deadline_exceeded;

/// An answer's own end, or why it has none.
const NO_TRAILERS: &str = "the answer has no status";

/// An answer without a message.
pub(super) fn failed(form: Form, status: &Status) -> Response<Body> {
    match form.is_stream {
        true => {
            let mut response = Response::new(Body::new(http_body_util::Full::new(end(status))));
            response.headers_mut().insert(header::CONTENT_TYPE, form.content_type());
            response
        }
        false => failed_unary(HeaderMap::new(), status),
    }
}

fn failed_unary(mut headers: HeaderMap, status: &Status) -> Response<Body> {
    let text = error::to_json(status).to_string();
    let mut response = Response::new(Body::new(http_body_util::Full::from(text)));
    (_, *response.status_mut()) = error::code(status.code());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *response.headers_mut() = headers;
    response
}

/// The answer of a unary call: all of it is there before the first byte leaves.
pub(super) async fn unary(
    response: Response<Body>,
    codec: Codec,
    descriptor: MessageDescriptor,
) -> Response<Body> {
    let (head, body) = response.into_parts();
    let mut headers = own(&head.headers);
    if let Some(status) = Status::from_header_map(&head.headers)
        && status.code() != Code::Ok
    {
        return failed_unary(headers, &status);
    }
    let message = match collect(body).await {
        Ok((message, trailers)) => {
            for (name, value) in &own(&trailers) {
                if let Ok(name) = HeaderName::try_from(format!("trailer-{name}")) {
                    headers.append(name, value.clone());
                }
            }
            codec.encode(&descriptor, message)
        }
        Err(status) => Err(status),
    };
    match message {
        Ok(message) => {
            let mut response = Response::new(Body::new(http_body_util::Full::new(message)));
            let form = Form { codec, is_stream: false };
            headers.insert(header::CONTENT_TYPE, form.content_type());
            *response.headers_mut() = headers;
            response
        }
        Err(status) => failed_unary(headers, &status),
    }
}

/// The one message of an answer, and what came behind it.
async fn collect(body: Body) -> Result<(Bytes, HeaderMap), Status> {
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let status = Status::from_header_map(&trailers);
    let status = status.unwrap_or_else(|| Status::internal(NO_TRAILERS));
    if status.code() != Code::Ok {
        return Err(status);
    }
    let mut frames = Frames::default();
    frames.push(&collected.to_bytes());
    let message = frames.next(usize::MAX).ok().flatten();
    let message = message.ok_or_else(|| Status::internal("the answer has no message"))?.message;
    Ok((message, trailers))
}

/// The answer of a stream: messages as they come, and how it ended as the last. Where the caller
/// gave a deadline, the stream ends then.
pub(super) fn stream(
    response: Response<Body>,
    codec: Codec,
    descriptor: MessageDescriptor,
    deadline: Option<Duration>,
) -> Response<Body> {
    let form = Form { codec, is_stream: true };
    let (head, mut body) = response.into_parts();
    if let Some(status) = Status::from_header_map(&head.headers) {
        return failed(form, &status);
    }
    let far = Duration::from_secs(u64::from(u32::MAX));
    let until = Instant::now() + deadline.unwrap_or(far);
    let frames = stream! {
        let mut frames = Frames::default();
        let status = loop {
            let piece = match timeout_at(until, body.frame()).await {
                Err(_) => break deadline_exceeded(),
                Ok(None) => break Status::internal(NO_TRAILERS),
                Ok(Some(Err(status))) => break status,
                Ok(Some(Ok(piece))) => piece,
            };
            let piece = match piece.into_data() {
                Ok(piece) => piece,
                Err(piece) => {
                    let trailers = piece.into_trailers().unwrap_or_default();
                    let status = Status::from_header_map(&trailers);
                    break status.unwrap_or_else(|| Status::internal(NO_TRAILERS));
                }
            };
            frames.push(&piece);
            let mut broken = None;
            while let Ok(Some(next)) = frames.next(usize::MAX) {
                match codec.encode(&descriptor, next.message) {
                    Ok(message) => yield Ok::<_, Status>(BodyFrame::data(frame(0, &message))),
                    Err(status) => broken = Some(status),
                }
            }
            if let Some(status) = broken {
                break status;
            }
        };
        yield Ok(BodyFrame::data(end(&status)));
    };
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    *response.headers_mut() = own(&head.headers);
    response.headers_mut().insert(header::CONTENT_TYPE, form.content_type());
    response
}

/// How a stream ended, framed.
fn end(status: &Status) -> Bytes {
    let mut end = json!({});
    if status.code() != Code::Ok {
        end["error"] = error::to_json(status);
    }
    if let Some(metadata) = error::metadata(status) {
        end["metadata"] = metadata;
    }
    frame(END, Value::to_string(&end).as_bytes())
}

/// What the service itself put among the headers.
fn own(headers: &HeaderMap) -> HeaderMap {
    let of_grpc = |name: &HeaderName| {
        name.as_str().starts_with("grpc-")
            || [header::CONTENT_TYPE, header::CONTENT_LENGTH].contains(name)
    };
    let kept = headers.iter().filter(|(name, _)| !of_grpc(name));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

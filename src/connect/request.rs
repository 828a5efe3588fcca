//! A Connect request as gRPC.

use std::time::Duration;

use async_stream::try_stream;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Version, header};
use http_body::Frame as BodyFrame;
use http_body_util::{BodyExt, LengthLimitError, Limited, StreamBody};
use prost_reflect::MessageDescriptor;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Status, body::Body};

use super::{
    Form,
    frames::{COMPRESSED, END, Frames, frame},
    json::Codec,
};
use crate::service::refusal;

const TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("connect-protocol-version");
const STREAM_ENCODING: HeaderName = HeaderName::from_static("connect-content-encoding");

/// Headers that say how the bytes come, and not what is asked.
const OF_TRANSPORT: [HeaderName; 10] = [
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::EXPECT,
    header::HOST,
    header::UPGRADE,
    TIMEOUT,
    PROTOCOL_VERSION,
    STREAM_ENCODING,
];

/// Times that gRPC can say in milliseconds, with 8 digits.
const MILLIS_MAX: u128 = 99_999_999;

/// The caller's deadline.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let is_number = (1..=10).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let millis = is_number.then(|| text.parse().ok()).flatten();
    millis.map(Duration::from_millis).map(Some).ok_or_else(|| {
        header_invalid(format!("`Connect-Timeout-Ms` is {text:?}; pass 1 to 10 digits"))
    })
}

/// The same request for a gRPC service, and the caller's deadline. The body is read only when the
/// service asks for it, so whoever is refused before that sends in vain.
pub(super) fn to_grpc(
    request: Request<Body>,
    form: Form,
    descriptor: &MessageDescriptor,
    bytes_max: usize,
) -> Result<(Request<Body>, Option<Duration>), Status> {
    let (mut head, body) = request.into_parts();
    let text = |name: &HeaderName| head.headers.get(name).and_then(|it| it.to_str().ok());
    if let Some(version) = text(&PROTOCOL_VERSION).filter(|version| *version != "1") {
        let message = format!("`Connect-Protocol-Version` is {version:?}; this server speaks 1");
        return Err(header_invalid(message));
    }
    let encoding = if form.is_stream { STREAM_ENCODING } else { header::CONTENT_ENCODING };
    if text(&encoding).is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return Err(compressed());
    }
    let deadline = timeout(&head.headers)?;
    for name in OF_TRANSPORT {
        head.headers.remove(name);
    }
    if let Some(deadline) = deadline {
        let text = match deadline.as_millis() {
            millis @ ..=MILLIS_MAX => format!("{millis}m"),
            _ => format!("{}S", deadline.as_secs()),
        };
        let value = HeaderValue::try_from(text).expect("digits and a letter are a value");
        head.headers.insert("grpc-timeout", value);
    }
    let grpc = HeaderValue::from_static("application/grpc+proto");
    head.headers.insert(header::CONTENT_TYPE, grpc);
    head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    head.version = Version::HTTP_2;
    let (codec, descriptor) = (form.codec, descriptor.clone());
    let body = match form.is_stream {
        true => to_body(messages(body, codec, descriptor, bytes_max)),
        false => to_body(message(body, codec, descriptor, bytes_max)),
    };
    Ok((Request::from_parts(head, body), deadline))
}

fn to_body(frames: impl Stream<Item = Result<Bytes, Status>> + Send + 'static) -> Body {
    Body::new(StreamBody::new(frames.map(|frame| frame.map(BodyFrame::data))))
}

/// The one message of a unary call, framed.
fn message(
    body: Body,
    codec: Codec,
    descriptor: MessageDescriptor,
    bytes_max: usize,
) -> impl Stream<Item = Result<Bytes, Status>> + Send {
    try_stream! {
        let read = Limited::new(body, bytes_max).collect().await;
        let bytes = read.map_err(|error| match error.is::<LengthLimitError>() {
            true => too_large(bytes_max),
            false => cut_off(),
        })?;
        yield frame(0, &codec.decode(&descriptor, bytes.to_bytes())?);
    }
}

/// The messages of a stream, each framed anew.
fn messages(
    mut body: Body,
    codec: Codec,
    descriptor: MessageDescriptor,
    bytes_max: usize,
) -> impl Stream<Item = Result<Bytes, Status>> + Send {
    try_stream! {
        let mut frames = Frames::default();
        while let Some(piece) = body.frame().await {
            let Ok(piece) = piece.map_err(|_| cut_off())?.into_data() else { continue };
            frames.push(&piece);
            while let Some(next) = frames.next(bytes_max).map_err(|_| too_large(bytes_max))? {
                match next.flags {
                    0 => yield frame(0, &codec.decode(&descriptor, next.message)?),
                    COMPRESSED => Err(compressed())?,
                    END => Err(undecodable("the end of a stream is the server's to say"))?,
                    flags => Err(undecodable(&format!("a frame has flags {flags}")))?,
                }
            }
        }
        if frames.is_cut() {
            Err(undecodable("the last frame is cut"))?;
        }
    }
}

fn header_invalid(message: String) -> Status {
    refusal(Code::InvalidArgument, "HEADER_INVALID", message)
}

fn compressed() -> Status {
    refusal(Code::Unimplemented, "COMPRESSION_UNSUPPORTED", "send requests uncompressed")
}

fn too_large(bytes_max: usize) -> Status {
    let message = format!("the request message is too large: this server reads {bytes_max} bytes");
    refusal(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", message)
}

fn undecodable(how: &str) -> Status {
    let message = format!("the request message cannot be decoded: {how}");
    refusal(Code::InvalidArgument, "MESSAGE_UNDECODABLE", message)
}

/// The caller has gone; nobody hears this.
fn cut_off() -> Status {
    refusal(Code::Cancelled, "CANCELLED", "the request ended before it was complete")
}

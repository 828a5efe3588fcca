//! A door for clients that have no gRPC: the Connect protocol, with JSON or binary messages, over
//! HTTP/1.1 and HTTP/2. `curl` and the standard library of any language can call the API.
//!
//! It is a translation in front of the gRPC services: a request is put in gRPC's frames, its answer
//! taken out of them. So tokens, limits, deadlines, metrics and rules are those of gRPC. (Crates
//! that speak Connect bring services of their own kind, on which all of those would have to be
//! built once more.)
//!
//! Source: <https://connectrpc.com/docs/protocol>. Not supported: `GET`, compressed messages.

mod answer;
mod error;
mod frames;
mod json;
mod request;

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use self::json::Codec;
use crate::service::refusal;

/// What may be posted.
const ACCEPT_POST: HeaderValue = HeaderValue::from_static(
    "application/json, application/proto, application/connect+json, application/connect+proto, \
     application/grpc, application/grpc-web",
);

/// Wraps gRPC services; see the module.
#[derive(Clone, Copy, Debug)]
pub struct ConnectLayer {
    message_bytes_max: usize,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Connect<S> {
    inner: S,
    message_bytes_max: usize,
}

/// How a Connect request is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    codec: Codec,
    /// Messages in frames of their own, as streams have them.
    is_stream: bool,
}

/// What a request is, by its content type.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Connect(Form),
    /// gRPC and gRPC-Web, which others take.
    Grpc,
    Unknown,
}

impl ConnectLayer {
    /// Takes messages of so many bytes; what the services take is theirs to say.
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        Self { message_bytes_max }
    }
}

impl<S> Layer<S> for ConnectLayer {
    type Service = Connect<S>;

    fn layer(&self, inner: S) -> Connect<S> {
        Connect { inner, message_bytes_max: self.message_bytes_max }
    }
}

impl<S> Service<Request<Body>> for Connect<S>
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
        let form = match kind(request.headers()) {
            Kind::Grpc => return Box::pin(self.inner.call(request)),
            Kind::Unknown => return ready(unknown()),
            Kind::Connect(form) => form,
        };
        if request.method() != Method::POST {
            let post = HeaderValue::from_static("POST");
            return ready(empty(StatusCode::METHOD_NOT_ALLOWED, header::ALLOW, post));
        }
        let Some(method) = json::method(request.uri().path()) else {
            return ready(answer::failed(form, &method_not_found()));
        };
        let streams = method.is_client_streaming() || method.is_server_streaming();
        if streams != form.is_stream {
            return ready(unknown());
        }
        let asked = request::to_grpc(request, form, &method.input(), self.message_bytes_max);
        let (asked, deadline) = match asked {
            Ok(asked) => asked,
            Err(status) => return ready(answer::failed(form, &status)),
        };
        let answered = self.inner.call(asked);
        Box::pin(async move {
            let response = answered.await?;
            Ok(match form.is_stream {
                true => answer::stream(response, form.codec, method.output(), deadline),
                false => answer::unary(response, form.codec, method.output()).await,
            })
        })
    }
}

fn ready(
    response: Response<Body>,
) -> Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>> {
    Box::pin(std::future::ready(Ok(response)))
}

fn kind(headers: &HeaderMap) -> Kind {
    let text = headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok());
    let essence = text.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let form = |codec, is_stream| Kind::Connect(Form { codec, is_stream });
    match essence {
        "application/json" => form(Codec::Json, false),
        "application/proto" => form(Codec::Proto, false),
        "application/connect+json" => form(Codec::Json, true),
        "application/connect+proto" => form(Codec::Proto, true),
        grpc if grpc.starts_with("application/grpc") => Kind::Grpc,
        _ => Kind::Unknown,
    }
}

impl Form {
    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match (self.is_stream, self.codec) {
            (false, Codec::Json) => "application/json",
            (false, Codec::Proto) => "application/proto",
            (true, Codec::Json) => "application/connect+json",
            (true, Codec::Proto) => "application/connect+proto",
        })
    }
}

/// A content type that is none of ours, or not one for this method.
fn unknown() -> Response<Body> {
    let name = HeaderName::from_static("accept-post");
    empty(StatusCode::UNSUPPORTED_MEDIA_TYPE, name, ACCEPT_POST)
}

fn empty(status: StatusCode, name: HeaderName, value: HeaderValue) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(name, value);
    response
}

fn method_not_found() -> Status {
    let message = "this server has no such method; the `.proto` files name them";
    refusal(Code::Unimplemented, "METHOD_NOT_FOUND", message)
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;

//! A status as Connect's clients read it.

use data_encoding::BASE64_NOPAD;
use http::StatusCode;
use prost::Message;
use serde_json::{Map, Value, json};
use tonic::{Code, Status, metadata::KeyAndValueRef};
use tonic_types::StatusExt;

/// The name of a code, and the HTTP status of an answer that ends so.
/// Source: <https://connectrpc.com/docs/protocol#error-codes>.
pub(super) fn code(code: Code) -> (&'static str, StatusCode) {
    match code {
        Code::Cancelled => ("canceled", StatusCode::from_u16(499).expect("it is in range")),
        Code::InvalidArgument => ("invalid_argument", StatusCode::BAD_REQUEST),
        Code::DeadlineExceeded => ("deadline_exceeded", StatusCode::GATEWAY_TIMEOUT),
        Code::NotFound => ("not_found", StatusCode::NOT_FOUND),
        Code::AlreadyExists => ("already_exists", StatusCode::CONFLICT),
        Code::PermissionDenied => ("permission_denied", StatusCode::FORBIDDEN),
        Code::ResourceExhausted => ("resource_exhausted", StatusCode::TOO_MANY_REQUESTS),
        Code::FailedPrecondition => ("failed_precondition", StatusCode::BAD_REQUEST),
        Code::Aborted => ("aborted", StatusCode::CONFLICT),
        Code::OutOfRange => ("out_of_range", StatusCode::BAD_REQUEST),
        Code::Unimplemented => ("unimplemented", StatusCode::NOT_IMPLEMENTED),
        Code::Unavailable => ("unavailable", StatusCode::SERVICE_UNAVAILABLE),
        Code::Unauthenticated => ("unauthenticated", StatusCode::UNAUTHORIZED),
        Code::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR),
        Code::DataLoss => ("data_loss", StatusCode::INTERNAL_SERVER_ERROR),
        Code::Ok | Code::Unknown => ("unknown", StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// The error object. Each detail has its bytes for programs and, under `debug`, JSON for people.
pub(super) fn to_json(status: &Status) -> Value {
    let carried = tonic_types::Status::decode(status.details()).unwrap_or_default();
    let details = carried.details.into_iter().map(|any| {
        let name = any.type_url.rsplit('/').next().unwrap_or_default().to_owned();
        let mut detail = Map::new();
        if let Some(debug) = debug(&name, status) {
            detail.insert("debug".to_owned(), debug);
        }
        detail.insert("type".to_owned(), Value::String(name));
        detail.insert("value".to_owned(), Value::String(BASE64_NOPAD.encode(&any.value)));
        Value::Object(detail)
    });
    let (code, _) = code(status.code());
    let details: Vec<_> = details.collect();
    match details.is_empty() {
        true => json!({"code": code, "message": status.message()}),
        false => json!({"code": code, "message": status.message(), "details": details}),
    }
}

/// The details that this API sends, by proto3's mapping.
fn debug(name: &str, status: &Status) -> Option<Value> {
    match name {
        "google.rpc.ErrorInfo" => status.get_details_error_info().map(
            |info| json!({"reason": info.reason, "domain": info.domain, "metadata": info.metadata}),
        ),
        "google.rpc.BadRequest" => status.get_details_bad_request().map(|bad| {
            let violations = bad.field_violations.into_iter();
            let violations: Vec<_> = violations
                .map(|it| json!({"field": it.field, "description": it.description}))
                .collect();
            json!({"fieldViolations": violations})
        }),
        "google.rpc.RetryInfo" => status.get_details_retry_info().map(|retry| {
            let delay = retry.retry_delay.unwrap_or_default();
            json!({"retryDelay": format!("{}s", delay.as_secs_f64())})
        }),
        _ => None,
    }
}

/// What else travels with a status, as the end of a stream has it.
pub(super) fn metadata(status: &Status) -> Option<Value> {
    let mut metadata: Map<String, Value> = Map::new();
    for entry in status.metadata().iter() {
        let KeyAndValueRef::Ascii(key, value) = entry else { continue };
        if let (false, Ok(value)) = (key.as_str().starts_with("grpc-"), value.to_str()) {
            metadata.insert(key.to_string(), json!([value]));
        }
    }
    (!metadata.is_empty()).then_some(Value::Object(metadata))
}

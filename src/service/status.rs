//! The one table from errors to statuses. Every status carries `ErrorInfo` with a reason; what a
//! caller sent wrong also `BadRequest` with a line a field; internal causes go to the log only,
//! with an id that the caller gets too.

use std::{collections::HashMap, time::Duration};

use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    access::AccessError,
    domain::{CatalogMistake, Cursor, NodeId, Refusal, SubscriptionName, Title},
    feed::WatchError,
    metrics::{METRICS, Refused},
    store::{
        ApplyError, CatalogError, FeedError, ImportError, ResetError, StoreError, SubscriptionError,
    },
};

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "accolade";

/// When to ask again for a stream: nobody knows when another one ends.
const STREAM_RETRY_AFTER: Duration = Duration::from_secs(1);

/// One wrong field of a request.
pub(super) struct Violation {
    /// The path to it, as in the request.
    pub(super) field: String,
    /// What is wrong, and what to pass instead.
    pub(super) problem: String,
}

/// A status with `ErrorInfo`.
#[must_use]
pub fn refusal(code: Code, reason: &str, message: impl Into<String>) -> Status {
    with_metadata(code, reason, message, [])
}

fn with_metadata<const N: usize>(
    code: Code,
    reason: &str,
    message: impl Into<String>,
    metadata: [(&str, String); N],
) -> Status {
    let metadata: HashMap<_, _> =
        metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(code, message, details)
}

/// A request that took too long.
#[must_use]
pub fn deadline_exceeded() -> Status {
    refusal(
        Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
        "the time for this request ran out; a set may still have been stored: ask again with the \
         same request_id",
    )
}

/// Fields that are wrong.
pub(super) fn invalid(violations: Vec<Violation>) -> Status {
    // A status travels in headers, which clients bound at 8 KiB, and each text is in it twice.
    const SHOWN_BYTES_MAX: usize = 1500;
    let mut bytes = 0;
    let fitting = violations.iter().take_while(|it| {
        bytes += it.field.len() + it.problem.len();
        bytes <= SHOWN_BYTES_MAX
    });
    let shown = fitting.count().max(1);
    let more = violations.len().saturating_sub(shown);
    let rest = (more > 0).then(|| Violation {
        field: "request".to_owned(),
        problem: format!("has {more} more mistakes"),
    });
    let mut details = ErrorDetails::with_error_info("FIELD_INVALID", DOMAIN, HashMap::new());
    let texts: Vec<_> = violations
        .into_iter()
        .take(shown)
        .chain(rest)
        .map(|Violation { field, problem }| {
            details.add_bad_request_violation(&field, &problem);
            format!("`{field}` {problem}")
        })
        .collect();
    Status::with_error_details(Code::InvalidArgument, texts.join("; "), details)
}

/// A status as a message. Every status of this API carries itself, encoded, as its details.
pub(super) fn to_message(status: &Status) -> tonic_types::Status {
    tonic_types::Status::decode(status.details()).unwrap_or_else(|_| tonic_types::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// A field that must be there.
pub(super) fn missing(field: &str) -> Status {
    invalid(vec![Violation { field: field.to_owned(), problem: "is missing".to_owned() }])
}

/// The server stops while a caller sends.
pub(super) fn draining() -> Status {
    let message = "the server is stopping; send what has no answer again, with the same \
                   request_id, to a server that runs";
    refusal(Code::Unavailable, "DRAINING", message)
}

/// Definitions that are wrong.
pub(super) fn invalid_catalog(mistakes: Vec<CatalogMistake>) -> Status {
    let violations = mistakes.into_iter().map(|CatalogMistake { index, field, problem }| {
        let field = match index {
            Some(index) => format!("definitions[{index}].{field}"),
            None => field.to_owned(),
        };
        Violation { field, problem }
    });
    invalid(violations.collect())
}

/// Why somebody may not do something.
#[must_use]
pub fn from_access(error: &AccessError) -> Status {
    let (code, reason, refused) = match error {
        AccessError::TokenMissing => {
            (Code::Unauthenticated, "TOKEN_MISSING", Refused::Unauthenticated)
        }
        AccessError::TokenUnknown => {
            (Code::Unauthenticated, "TOKEN_UNKNOWN", Refused::Unauthenticated)
        }
        AccessError::Revoked => (Code::Unauthenticated, "TOKEN_REVOKED", Refused::Unauthenticated),
        AccessError::Forbidden { .. } => (Code::PermissionDenied, "FORBIDDEN", Refused::Forbidden),
        AccessError::QuotaExceeded { .. } => {
            (Code::ResourceExhausted, "QUOTA_EXCEEDED", Refused::Quota)
        }
        AccessError::StreamsExhausted { .. } => {
            (Code::ResourceExhausted, "STREAMS_EXHAUSTED", Refused::Quota)
        }
    };
    METRICS.refused(refused);
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    let retry_after = match error {
        AccessError::QuotaExceeded { retry_after, .. } => Some(*retry_after),
        AccessError::StreamsExhausted { .. } => Some(STREAM_RETRY_AFTER),
        _ => None,
    };
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    Status::with_error_details(code, error.to_string(), details)
}

/// A title that no catalogue was applied for.
pub(super) fn title_not_found(title: &Title) -> Status {
    let message = format!("title {title:?} is unknown; apply a catalogue for it first");
    refusal(Code::NotFound, "TITLE_NOT_FOUND", message)
}

/// A node that the catalogue does not have.
pub(super) fn node_not_found(title: &Title, node: &NodeId) -> Status {
    let message = format!("the catalogue of title {title:?} has no node {node:?}");
    refusal(Code::NotFound, "NODE_NOT_FOUND", message)
}

/// An answer that is larger than a message may be.
pub(super) fn response_too_large(bytes: usize, bytes_max: usize, remedy: &str) -> Status {
    let message = format!("the answer takes {bytes} bytes, one message {bytes_max}; {remedy}");
    refusal(Code::ResourceExhausted, "RESPONSE_TOO_LARGE", message)
}

/// A title whose catalogue is read from a file.
pub(super) fn managed_by_file(title: &Title) -> Status {
    let message = format!("the catalogue of title {title:?} is read from a file: change the file");
    refusal(Code::FailedPrecondition, "CATALOG_MANAGED_BY_FILE", message)
}

/// A status that tonic made by itself, in the words of this API.
#[must_use]
pub fn from_transport(made: &Status) -> Status {
    let said = made.message();
    match made.code() {
        Code::Internal => {
            let message = format!("the request message cannot be decoded: {said}");
            refusal(Code::InvalidArgument, "MESSAGE_UNDECODABLE", message)
        }
        Code::OutOfRange | Code::ResourceExhausted => {
            let message = format!("the request message is too large: {said}");
            refusal(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", message)
        }
        Code::Unimplemented if said.contains("ompress") => {
            let message = format!("{said}; send requests uncompressed");
            refusal(Code::Unimplemented, "COMPRESSION_UNSUPPORTED", message)
        }
        Code::Unimplemented => {
            let message = "this server has no such method; `grpcurl ADDRESS list` names them";
            refusal(Code::Unimplemented, "METHOD_NOT_FOUND", message)
        }
        Code::NotFound => refusal(Code::NotFound, "NOT_FOUND", said),
        code => refusal(code, "TRANSPORT", said),
    }
}

pub(super) fn from_store(error: StoreError) -> Status {
    match error {
        StoreError::Poisoned => refusal(
            Code::Unavailable,
            "STORE_POISONED",
            "the store takes no more writes since one failed; the operator must look after it",
        ),
        // What the engine said is for the operator; that it may pass is for the caller.
        StoreError::Unavailable(cause) => {
            tracing::warn!(%cause, "the store cannot be reached");
            let message = "the store cannot be reached, or is choosing a leader; nothing was \
                           stored: ask again";
            let mut details =
                ErrorDetails::with_error_info("STORE_UNAVAILABLE", DOMAIN, HashMap::new());
            details.set_retry_info(Some(STREAM_RETRY_AFTER));
            Status::with_error_details(Code::Unavailable, message, details)
        }
        StoreError::OutcomeUnknown => deadline_exceeded(),
        other => internal(&other),
    }
}

/// `prefix` gives the path to the fields of one of the updates.
pub(super) fn from_apply(error: ApplyError, prefix: impl Fn(usize) -> String) -> Status {
    match error {
        ApplyError::Refused(refused @ Refusal::ExtraWithoutVersion { index }) => {
            let field = format!("{}expected_version", prefix(index));
            invalid(vec![Violation { field, problem: format!("is missing: {refused}") }])
        }
        ApplyError::Refused(refused @ Refusal::TooLate) => {
            refusal(Code::FailedPrecondition, "UPDATE_TOO_LATE", format!("the update {refused}"))
        }
        ApplyError::Refused(refused @ Refusal::TooManyLate) => refusal(
            Code::ResourceExhausted,
            "LATE_UPDATES_EXHAUSTED",
            format!("the update cannot be applied: {refused}"),
        ),
        ApplyError::TooLarge { .. } => {
            let field = "updates".to_owned();
            invalid(vec![Violation { field, problem: format!("are too large: {error}") }])
        }
        ApplyError::PlayerTooLarge { .. } => {
            refusal(Code::ResourceExhausted, "PLAYER_TOO_LARGE", error.to_string())
        }
        ApplyError::Store(error) => from_store(error),
    }
}

/// `field` is where the cursor came from.
pub(super) fn from_feed(error: FeedError, field: &str) -> Status {
    let out_of_range = |reason, oldest: &Cursor| {
        let oldest = oldest.as_str().to_owned();
        let message = format!("`{field}` {error}");
        with_metadata(Code::OutOfRange, reason, message, [("oldest", oldest)])
    };
    match &error {
        FeedError::NotACursor => invalid(vec![Violation {
            field: field.to_owned(),
            problem: format!("{error}; pass one that this server gave you, or none"),
        }]),
        FeedError::Expired { oldest } => out_of_range("CURSOR_EXPIRED", oldest),
        FeedError::InFuture { oldest } => out_of_range("CURSOR_IN_FUTURE", oldest),
        FeedError::Store(error) => from_store(error.clone()),
    }
}

pub(super) fn from_watch(error: WatchError) -> Status {
    match error {
        WatchError::Draining { ref cursor } => {
            let cursor = cursor.as_str().to_owned();
            let message = error.to_string();
            with_metadata(Code::Unavailable, "DRAINING", message, [("cursor", cursor)])
        }
        WatchError::Feed(error) => from_feed(error, "after"),
    }
}

/// `field` is where the cursor came from.
pub(super) fn from_subscription(
    error: SubscriptionError,
    name: &SubscriptionName,
    field: &str,
) -> Status {
    match error {
        SubscriptionError::Feed(error) => from_feed(error, field),
        SubscriptionError::NotFound => subscription_not_found(name),
        SubscriptionError::TakenOver => taken_over(name),
        SubscriptionError::TooMany => {
            refusal(Code::ResourceExhausted, "SUBSCRIPTIONS_EXHAUSTED", error.to_string())
        }
    }
}

pub(super) fn from_reset(error: ResetError) -> Status {
    match error {
        ResetError::TooMany => {
            refusal(Code::FailedPrecondition, "RESETS_EXHAUSTED", error.to_string())
        }
        ResetError::Store(error) => from_store(error),
    }
}

/// `numbers` says which message of the import each item of the step came in.
pub(super) fn from_import(error: ImportError, numbers: &[usize]) -> Status {
    match error {
        ImportError::Refused { index, problem } => {
            let number = numbers.get(index).copied().unwrap_or_default();
            let message = format!("item {number} {problem}");
            refusal(Code::FailedPrecondition, "IMPORT_REFUSED", message)
        }
        ImportError::Store(error) => from_store(error),
    }
}

/// A player was erased since an export was begun.
pub(super) fn export_outdated() -> Status {
    let message = "a player was erased since this export was begun; begin it anew";
    refusal(Code::Aborted, "EXPORT_OUTDATED", message)
}

/// An item of an import that no export gives.
pub(super) fn malformed_item(number: usize, problem: &str) -> Status {
    let problem = format!("number {number} is malformed: {problem}");
    invalid(vec![Violation { field: "item".to_owned(), problem }])
}

/// A subscription that nobody made, or that was deleted.
pub(super) fn subscription_not_found(name: &SubscriptionName) -> Status {
    let message = format!("the title has no subscription {name:?}; a consumer makes it");
    refusal(Code::NotFound, "SUBSCRIPTION_NOT_FOUND", message)
}

/// A newer consumer has the subscription.
pub(super) fn taken_over(name: &SubscriptionName) -> Status {
    let message = format!("another consumer has taken over subscription {name:?}");
    refusal(Code::Aborted, "SUBSCRIPTION_TAKEN_OVER", message)
}

/// A consumer subscribes a second time.
pub(super) fn subscribed_already() -> Status {
    let problem = "is only for the first message; open another stream".to_owned();
    invalid(vec![Violation { field: "subscribe".to_owned(), problem }])
}

/// Why a caller's stream could not be read on; one that went away hears nothing of it.
pub(super) fn from_stream(status: &Status) -> Status {
    match status.code() {
        Code::Cancelled => status.clone(),
        // Only what the transport made by itself has no details.
        _ if !status.details().is_empty() => status.clone(),
        _ => from_transport(status),
    }
}

pub(super) fn from_catalog(error: CatalogError) -> Status {
    match error {
        CatalogError::RevisionMismatch { actual, .. } => with_metadata(
            Code::Aborted,
            "CATALOG_REVISION_MISMATCH",
            format!("{error}; read it again, then apply"),
            [("revision", actual.to_string())],
        ),
        CatalogError::TooManyTitles => {
            refusal(Code::ResourceExhausted, "TITLES_EXHAUSTED", error.to_string())
        }
        CatalogError::Store(error) => from_store(error),
    }
}

/// The same words for every cause; the cause is in the log, under the id.
fn internal(cause: &dyn std::error::Error) -> Status {
    let id = format!("{:016x}", fastrand::u64(..));
    tracing::error!(%id, %cause, "internal error");
    let message = format!("internal error; the server's log has the cause under id {id}");
    with_metadata(Code::Internal, "INTERNAL", message, [("id", id)])
}

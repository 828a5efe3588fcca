//! The API: messages in, domain values through, messages out. Nothing is decided here but how a
//! thing is said on the wire; `status` is the one table from errors to status codes.

mod admin;
mod admit;
mod catalog;
mod completion;
mod consume;
mod export;
mod import;
mod parse;
mod status;
mod storage;
mod stream_set;
mod sync;
mod transfer;
mod wire;

pub use admin::AdminApi;
pub use admit::Doors;
pub use catalog::CatalogApi;
pub use completion::CompletionApi;
pub use status::{DOMAIN, deadline_exceeded, from_access, from_transport, refusal};
pub use storage::{StorageApi, StorageLimits};
pub use transfer::{Piece, piece};
pub use wire::definition as definition_message;

/// Most ids in one filter of a request.
pub const FILTER_IDS_MAX: usize = 256;

/// Most players of one BatchGet.
pub const BATCH_PLAYERS_MAX: usize = 100;

//! What is generated from `proto/`.

/// The API: messages, clients and servers.
#[allow(clippy::all, clippy::pedantic, missing_docs, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("accolade.v1");
}

mod encoded;

pub use encoded::{Encoded, EncodedCodec};

/// The server of `CompletionService` with encoded answers where they are shared; for the rest like
/// the one in [`v1`].
#[allow(clippy::all, clippy::pedantic, missing_docs, reason = "generated")]
pub mod completion_server {
    include!(concat!(env!("OUT_DIR"), "/accolade.v1.CompletionService.rs"));
}

/// Rows of the sled store.
#[allow(clippy::all, clippy::pedantic, missing_docs, reason = "generated")]
pub(crate) mod rows {
    tonic::include_proto!("accolade.store.v1");
}

/// The API's descriptors, encoded; for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/accolade_descriptor.bin"));

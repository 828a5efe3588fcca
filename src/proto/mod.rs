//! What is generated from `proto/`.

use prost::Message;

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

/// Every method of the API, as in its path: `accolade.v1.Service/Method`.
pub fn methods() -> impl Iterator<Item = String> {
    let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS);
    let files = set.expect("descriptors made by the build are sound").file;
    files.into_iter().flat_map(|file| {
        let package = file.package().to_owned();
        file.service.into_iter().flat_map(move |service| {
            let path = format!("{package}.{}", service.name());
            let methods = service.method.into_iter();
            methods.map(move |method| format!("{path}/{}", method.name())).collect::<Vec<_>>()
        })
    })
}

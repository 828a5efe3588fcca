//! Messages between JSON and binary, by proto3's own mapping.

use std::{collections::HashMap, sync::LazyLock};

use bytes::Bytes;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, MethodDescriptor,
    SerializeOptions,
};
use tonic::{Code, Status};

use crate::{proto::DESCRIPTORS, service::refusal};

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Json,
    Proto,
}

/// Every method there is, by its path.
static METHODS: LazyLock<HashMap<String, MethodDescriptor>> = LazyLock::new(|| {
    let mut pool = DescriptorPool::decode(DESCRIPTORS).expect("descriptors are sound");
    pool.decode_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .expect("descriptors are sound");
    let services: Vec<_> = pool.services().collect();
    let methods = services.iter().flat_map(|service| {
        service.methods().map(|it| (format!("/{}/{}", service.full_name(), it.name()), it))
    });
    methods.collect()
});

/// The method of a path.
pub(super) fn method(path: &str) -> Option<MethodDescriptor> {
    METHODS.get(path).cloned()
}

impl Codec {
    /// A caller's message as gRPC has it. A binary one is left for the service to decode.
    pub(super) fn decode(
        self,
        descriptor: &MessageDescriptor,
        bytes: Bytes,
    ) -> Result<Bytes, Status> {
        if self == Self::Proto {
            return Ok(bytes);
        }
        // A field that is not known is a mistake of whoever wrote it by hand.
        let options = DeserializeOptions::new().deny_unknown_fields(true);
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let read =
            DynamicMessage::deserialize_with_options(descriptor.clone(), &mut json, &options);
        let message = read.and_then(|message| json.end().map(|()| message));
        let message = message.map_err(|error| {
            let message = format!("the request message cannot be decoded: {error}");
            refusal(Code::InvalidArgument, "MESSAGE_UNDECODABLE", message)
        })?;
        Ok(message.encode_to_vec().into())
    }

    /// An answer as the caller wants it: in JSON with every field, named as the mapping says.
    pub(super) fn encode(
        self,
        descriptor: &MessageDescriptor,
        bytes: Bytes,
    ) -> Result<Bytes, Status> {
        if self == Self::Proto {
            return Ok(bytes);
        }
        let unreadable = |error: &dyn std::error::Error| Status::internal(error.to_string());
        let message = DynamicMessage::decode(descriptor.clone(), bytes);
        let message = message.map_err(|error| unreadable(&error))?;
        let options = SerializeOptions::new().skip_default_fields(false);
        let mut json = Vec::new();
        let written =
            message.serialize_with_options(&mut serde_json::Serializer::new(&mut json), &options);
        written.map_err(|error| unreadable(&error))?;
        Ok(json.into())
    }
}

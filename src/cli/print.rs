//! Messages as JSON: proto3's own mapping, every field shown, named as in the `.proto` files.

use std::{
    io::{ErrorKind, Write},
    sync::OnceLock,
};

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};

use crate::proto::DESCRIPTORS;

/// Prints a line; ends the program where nobody reads it any more.
pub(super) fn line(line: &str) {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            eprintln!("accolade: the output cannot be written: {error}");
            std::process::exit(1);
        }
    }
}

/// One line of JSON; `name` is the message's name in package `accolade.v1`.
pub(super) fn json(name: &str, message: &impl Message) -> String {
    let options = SerializeOptions::new().skip_default_fields(false).use_proto_field_name(true);
    let mut line = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut line);
    let dynamic = dynamic(name, &message.encode_to_vec());
    dynamic
        .serialize_with_options(&mut serializer, &options)
        .expect("a decoded message can be written");
    String::from_utf8(line).expect("JSON is UTF-8")
}

/// Reads a line of JSON; `name` is the message's name in package `accolade.v1`.
pub(super) fn from_json<M: Message + Default>(name: &str, line: &str) -> Result<M, String> {
    let mut deserializer = serde_json::Deserializer::from_str(line);
    let message = DynamicMessage::deserialize(descriptor(name), &mut deserializer);
    let message = message.map_err(|error| error.to_string())?;
    deserializer.end().map_err(|error| error.to_string())?;
    message.transcode_to().map_err(|error| error.to_string())
}

fn dynamic(name: &str, bytes: &[u8]) -> DynamicMessage {
    DynamicMessage::decode(descriptor(name), bytes).expect("a message reads back")
}

fn descriptor(name: &str) -> MessageDescriptor {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    let decode = || DescriptorPool::decode(DESCRIPTORS).expect("descriptors are sound");
    let descriptor = POOL.get_or_init(decode).get_message_by_name(&format!("accolade.v1.{name}"));
    descriptor.expect("the message is of the API")
}

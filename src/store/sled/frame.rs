//! The frame of stored values, within the bound of an entry.

use prost::Message;

use super::bounds::ENTRY_BYTES_MAX;
use crate::store::frame;

pub(super) use frame::decode;

/// Encodes a value for its key.
pub(super) fn encode(key: &[u8], row: &impl Message) -> Vec<u8> {
    let value = frame::encode(key, row);
    let bytes = key.len() + value.len();
    assert!(bytes <= ENTRY_BYTES_MAX, "an entry of {bytes} bytes would become a blob");
    value
}

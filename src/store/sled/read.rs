//! Reading rows: every value is checked, and every failure says which key.

use std::sync::Arc;

use sled::Tree;

use super::{
    frame, keys,
    rows::{entry_from_row, record_from_row},
};
use crate::{
    domain::{Entry, NodeId, PlayerKey, Title},
    proto::rows::CompletionRow,
    store::{StoreError, StoredRecord, cursor::CursorCodec},
};

/// Reads a record's value.
pub(super) fn read_record(key: &[u8], value: &[u8]) -> Result<StoredRecord, StoreError> {
    let row = read_row(key, value)?;
    record_from_row(&row).ok_or_else(|| damaged(key, "holds impossible numbers"))
}

/// Reads any value.
pub(super) fn read_row<T: prost::Message + Default>(
    key: &[u8],
    value: &[u8],
) -> Result<T, StoreError> {
    frame::decode(key, value).map_err(|error| damaged(key, &error.to_string()))
}

/// Says which key is damaged, and how.
pub(super) fn damaged(key: &[u8], how: &str) -> StoreError {
    match keys::Key::decode(key) {
        Some(key) => StoreError::Corrupt(format!("the value of {key:?} {how}")),
        None => StoreError::Corrupt(format!("the value of key {key:02x?} {how}")),
    }
}

/// An error of sled itself.
pub(super) fn failed(error: sled::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}

/// The records of a player as they are in the tree, in the order of their nodes' ids; no more than
/// `limit`, which are then any.
pub(super) fn read_records(
    tree: &Tree,
    player: &PlayerKey,
    limit: usize,
) -> Result<Vec<(NodeId, Arc<StoredRecord>)>, StoreError> {
    let mut records = Vec::new();
    for entry in tree.scan_prefix(keys::records_of_player(player)).take(limit) {
        let (key, value) = entry.map_err(failed)?;
        match keys::Key::decode(&key) {
            Some(keys::Key::Record(_, node)) => {
                records.push((node, Arc::new(read_record(&key, &value)?)));
            }
            _ => return Err(damaged(&key, "stands under a key that is no record's")),
        }
    }
    // Keys sort by the length of an id first.
    records.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(records)
}

/// Reads the value of a place in a feed.
pub(super) fn read_entry(
    key: &[u8],
    value: &[u8],
    cursors: CursorCodec,
    title: &Title,
    sequence: u64,
) -> Result<Entry, StoreError> {
    let row: CompletionRow = read_row(key, value)?;
    let cursor = cursors.encode(title, sequence);
    entry_from_row(&row, title.clone(), cursor)
        .ok_or_else(|| damaged(key, "is no possible event of a feed"))
}

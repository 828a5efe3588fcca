//! Reads that go over a feed or over players, a bounded piece at a time.

use std::ops::RangeInclusive;

use super::{
    keys::{self, Key},
    read::{failed, read_entry},
    view::{DurableView, Records},
};
use crate::{
    domain::{Entry, NodeId, PlayerId, Title},
    store::{PlayerRecords, StoreError, StoredRecord, cursor::CursorCodec},
};

/// Most bytes of entries in one answer of [`FeedSource::entries`], but for its last. A
/// subscriber that stops reading holds as much.
const PAGE_BYTES_MAX: usize = 64 << 10;

/// Records after which one answer of [`Operations::full_records`] ends, with its last player.
const PLAYERS_RECORDS: usize = 256;

/// Entries are hidden from readers by the feed's head until they are durable, so they are read from
/// the tree itself. What is erased goes from there a moment before that is durable.
pub(super) fn read_feed(
    view: &DurableView,
    title: &Title,
    range: RangeInclusive<u64>,
    limit: usize,
    cursors: CursorCodec,
) -> Result<Vec<Entry>, StoreError> {
    let first = keys::completion(title, *range.start());
    let last = keys::completion(title, *range.end());
    let mut entries = Vec::new();
    let mut bytes = 0;
    let rows = view.tree().range(first..=last).take(limit);
    for (row, sequence) in rows.zip(range) {
        let (key, value) = row.map_err(failed)?;
        if key != keys::completion(title, sequence) {
            // A hole: retention at work, which the caller finds out.
            break;
        }
        entries.push(read_entry(&key, &value, cursors, title, sequence)?);
        bytes += value.len();
        if bytes > PAGE_BYTES_MAX {
            break;
        }
    }
    Ok(entries)
}

/// A player's records, to be given away.
pub(super) fn owned(records: &Records) -> Vec<(NodeId, StoredRecord)> {
    records.iter().map(|(node, stored)| (node.clone(), (**stored).clone())).collect()
}

/// Some players with all of their records, in the order of their keys.
pub(super) fn read_players(
    view: &DurableView,
    title: &Title,
    mut after: Option<PlayerId>,
) -> Result<Vec<PlayerRecords>, StoreError> {
    let mut players = Vec::new();
    let mut records_read = 0;
    while records_read < PLAYERS_RECORDS {
        let keys = match &after {
            Some(player) => view.tree().range(keys::behind_player(title, player)..),
            None => view.tree().range(keys::records_of_title(title)..),
        };
        let Some(key) = keys.keys().next().transpose().map_err(failed)? else { break };
        let Some(Key::Record(player, _)) = Key::decode(&key) else { break };
        if player.title != *title {
            break;
        }
        let records = owned(&view.read_aside(&player)?);
        after = Some(player.player.clone());
        // One whose first record is not durable yet has none.
        if !records.is_empty() {
            records_read += records.len();
            players.push((player.player, records));
        }
    }
    Ok(players)
}

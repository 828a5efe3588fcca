//! Removing the old end of a feed, a bounded step at a time.

use super::{
    bounds::TRIM_ROWS_MAX,
    commit::{Committer, Group},
    keys,
    read::{failed, read_row},
    rows::stored_at,
};
use crate::{
    domain::Title,
    proto::rows::CompletionRow,
    store::{Retention, StoreError, crash_point::crash_point},
};

/// Removes the oldest completions that need not be kept, at most [`TRIM_ROWS_MAX`]; tells how many.
pub(super) fn trim(
    committer: &mut Committer,
    group: &mut Group,
    title: &Title,
    keep: Retention,
) -> Result<usize, StoreError> {
    let (feed, mut ends) = committer.feed(title, group);
    // Only what is durable already can go.
    let head = feed.ends().head;
    let mut removed = Vec::new();
    while ends.trimmed_through < head && removed.len() < TRIM_ROWS_MAX {
        let sequence = ends.trimmed_through + 1;
        let key = keys::completion(title, sequence);
        let value = committer.view.tree().get(&key).map_err(failed)?;
        let missing = || StoreError::Corrupt(format!("event {sequence} is missing"));
        let row: CompletionRow = read_row(&key, &value.ok_or_else(missing)?)?;
        if keep.keeps(ends.head - ends.trimmed_through, stored_at(&row)) {
            break;
        }
        ends.trimmed_stored_at = stored_at(&row);
        removed.push(key);
        ends.trimmed_through = sequence;
    }
    if removed.is_empty() {
        return Ok(0);
    }
    group.write_feed(title, ends);
    let count = removed.len();
    group.stored += count as u64;
    for key in removed {
        group.write(key, None);
    }
    crash_point!("trimming");
    // Readers must learn that these are going before they go.
    feed.trim(ends.trimmed_through, ends.trimmed_stored_at);
    group.feeds.insert(title.clone(), (feed, ends));
    Ok(count)
}

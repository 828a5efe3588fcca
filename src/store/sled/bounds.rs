//! The bounds inside which sled 0.34.7 survives a power cut. sled does not enforce them; we do.
//!
//! A tree page larger than a quarter of a segment becomes a file of its own in `blobs/`, which sled
//! never syncs: so pages must stay small. And a commit group must not span more than one segment
//! between two syncs. Both were found by cutting the power of thousands of stores.

use crate::{
    domain::{BATCH_UPDATES_MAX, LATE_UPDATES_MAX, REMEMBERED_UPDATES},
    store::PAST_EVENTS_MAX,
};

/// sled's segment size, fixed when a store is created.
pub(super) const SEGMENT_BYTES: usize = 8 << 20;

/// Most entries of one sled page.
const PAGE_ENTRIES_MAX: usize = 17;

/// Page size from which sled makes a blob.
const BLOB_BYTES: usize = SEGMENT_BYTES / 4;

/// Largest key and value together.
pub(super) const ENTRY_BYTES_MAX: usize = 80 << 10;

/// Largest sum of keys and values of one commit group: an eighth of a segment.
pub(super) const GROUP_BYTES_MAX: usize = SEGMENT_BYTES / 8;

/// Updates of one commit group where a sync is short: so few that another group is at work while
/// one is synced, so many that what a group costs by itself is small beside them.
pub(super) const GROUP_JOBS_MIN: usize = 64;

/// Most updates of one commit group, however long a sync takes; keeps the wait of the first short.
pub(super) const GROUP_JOBS_MAX: usize = 1024;

/// Most rows that one retention step removes.
pub(super) const TRIM_ROWS_MAX: usize = 256;

/// Most bytes that work other than a set writes: a step of retention is the largest.
pub(super) const WORK_BYTES_MAX: usize = 64 << 10;

/// Most records that one step of an erasure removes, each with all of its events.
pub(super) const ERASE_RECORDS_MAX: usize = 32;

/// Most bytes that one imported item writes: an event, and its record.
pub(super) const ITEM_BYTES_MAX: usize = 2 * ENTRY_BYTES_MAX;

/// Largest `extra` that the server may be configured to take.
pub const EXTRA_BYTES_MAX: usize = 64 << 10;

/// Default limit of `extra`.
pub const EXTRA_BYTES_DEFAULT: usize = 16 << 10;

/// A record's key and value without its extra: ids, remembered updates, events, late updates.
const RECORD_WITHOUT_EXTRA_BYTES_MAX: usize = 7 << 10;

/// As many as the rules keep.
const REMEMBERED_MAX: usize = 8;

/// A key of a feed, with the few bytes that stand for an erased event.
const ERASED_EVENT_BYTES_MAX: usize = 180;

/// A completion's key and value without its extra: ids, texts of the definition.
const COMPLETION_WITHOUT_EXTRA_BYTES_MAX: usize = 8 << 10;

const _: () = {
    assert!(REMEMBERED_MAX as u64 == REMEMBERED_UPDATES);
    assert!(PAGE_ENTRIES_MAX * ENTRY_BYTES_MAX < BLOB_BYTES);
    assert!(EXTRA_BYTES_MAX + COMPLETION_WITHOUT_EXTRA_BYTES_MAX <= ENTRY_BYTES_MAX);
    // Keys of completions: a title, a number, and what frames them.
    assert!((TRIM_ROWS_MAX + 1) * 160 <= WORK_BYTES_MAX);
    // Three ids; then 3 numbers with an id each, 3 numbers each, 2 numbers each.
    let record =
        3 * 130 + REMEMBERED_MAX * 170 + PAST_EVENTS_MAX * 34 + LATE_UPDATES_MAX * 22 + 100;
    assert!(record <= RECORD_WITHOUT_EXTRA_BYTES_MAX);
    // A reset writes a record without extra, and an event with a reason.
    assert!(2 * RECORD_WITHOUT_EXTRA_BYTES_MAX <= WORK_BYTES_MAX);
    let erased = 400 + (PAST_EVENTS_MAX + 1) * ERASED_EVENT_BYTES_MAX;
    assert!(ERASE_RECORDS_MAX * erased <= GROUP_BYTES_MAX);
    assert!(EXTRA_BYTES_MAX + RECORD_WITHOUT_EXTRA_BYTES_MAX <= ENTRY_BYTES_MAX);
    assert!(ITEM_BYTES_MAX < GROUP_BYTES_MAX);
    let update = 2 * EXTRA_BYTES_DEFAULT
        + RECORD_WITHOUT_EXTRA_BYTES_MAX
        + COMPLETION_WITHOUT_EXTRA_BYTES_MAX;
    assert!(BATCH_UPDATES_MAX * update <= GROUP_BYTES_MAX);
};

//! The rules of a set, as one pure function that every store calls.
//!
//! An update is judged against the records that are stored, in a fixed order: retry, conflict,
//! `extra` without a version, completed already, and only then the change itself. Unknown titles
//! and nodes, and malformed values, cannot get here: [`PlayerUpdate`] is made of parsed values and
//! of the catalogue's own nodes.

use std::borrow::Borrow;

use thiserror::Error;

use super::{
    EpochSeconds, Extra, LATE_DAYS_MAX, LATE_UPDATES_MAX, MaxProgress, NodeUpdate, PlayerUpdate,
    REMEMBERED_UPDATES, Record, Remembered, RequestId, SetUpdate, State, Version,
    late::decide_late,
};

/// What became of one update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Stored: the version is one higher.
    Stored,
    /// There was nothing to do, or a neighbour in the batch kept it from being stored.
    Unchanged,
    /// The record is not at the expected version.
    Conflict,
}

/// What is answered for one update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What became of it.
    pub verdict: Verdict,
    /// The record before.
    pub before: State,
    /// The record after; equal to `before` unless stored.
    pub after: State,
    /// Whether this update completed the record.
    pub newly_completed: bool,
}

/// What is decided of a whole [`PlayerUpdate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Whether this is a retry of something stored before.
    pub replayed: bool,
    /// One outcome for each update.
    pub outcomes: Vec<Outcome>,
    /// The record to store for each update; `None` where nothing is stored.
    pub writes: Vec<Option<Record>>,
}

/// Why an update is refused although each of its values is legal.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// `extra` came without a version.
    #[error("`extra` needs `expected_version`: pass the version you read, or 0 for a new record")]
    ExtraWithoutVersion {
        /// Which of the updates.
        index: usize,
    },
    /// A late update is too late.
    #[error(
        "happened more than {LATE_DAYS_MAX} days ago: nobody can tell any more whether it \
             was counted"
    )]
    TooLate,
    /// A record has too many late updates.
    #[error(
        "its record has {LATE_UPDATES_MAX} late updates of the last {LATE_DAYS_MAX} days \
             already: send one that adds up several"
    )]
    TooManyLate,
}

/// Judges an update against the stored `records`, one for each update and in the same order; a
/// record that does not exist is the default. `now` is what a completion is stamped with.
///
/// # Errors
///
/// [`Refusal`] where the update must be put differently; nothing is to be stored then.
///
/// # Panics
///
/// Where `records` and the updates differ in number, or two updates are of one node.
pub fn decide(
    update: &PlayerUpdate,
    records: &[impl Borrow<Record>],
    now: EpochSeconds,
) -> Result<Ruling, Refusal> {
    assert_eq!(update.updates.len(), records.len(), "one record for each update");
    let records: Vec<&Record> = records.iter().map(Borrow::borrow).collect();
    assert!(update.has_distinct_nodes(), "one update of each node");
    if let Some(at) = update.happened_at {
        return decide_late(update, at, records[0], now);
    }
    if let Some(id) = &update.request_id
        && records.iter().any(|record| record.recall(id).is_some())
    {
        let outcomes = records.iter().map(|record| replay(record, id)).collect();
        return Ok(Ruling { replayed: true, outcomes, writes: vec![None; records.len()] });
    }

    let asked = || update.updates.iter().zip(records.iter().copied());
    if asked().any(|(item, record)| conflicts(item, record)) {
        let outcomes = asked().map(|(item, record)| held_back(item, record)).collect();
        return Ok(Ruling { replayed: false, outcomes, writes: vec![None; records.len()] });
    }
    for (index, item) in update.updates.iter().enumerate() {
        if item.update.extra().is_some() && item.update.expected().is_none() {
            return Err(Refusal::ExtraWithoutVersion { index });
        }
    }

    let (outcomes, writes) = asked()
        .map(|(NodeUpdate { node, update: set }, record)| {
            let target = node.definition().max_progress();
            apply(record, set, update.request_id.as_ref(), target, now)
        })
        .unzip();
    Ok(Ruling { replayed: false, outcomes, writes })
}

fn conflicts(item: &NodeUpdate, record: &Record) -> bool {
    item.update.expected().is_some_and(|expected| expected != record.state.version)
}

/// The answer for an update of a batch in which something conflicted.
fn held_back(item: &NodeUpdate, record: &Record) -> Outcome {
    match conflicts(item, record) {
        true => Outcome { verdict: Verdict::Conflict, ..unchanged(record) },
        false => unchanged(record),
    }
}

pub(super) fn unchanged(record: &Record) -> Outcome {
    Outcome {
        verdict: Verdict::Unchanged,
        before: record.state.clone(),
        after: record.state.clone(),
        newly_completed: false,
    }
}

/// The outcome of an earlier update, told again. A record of the batch that does not remember the
/// id had nothing to do then, or has moved on; either way it is answered as it stands now.
pub(super) fn replay(record: &Record, id: &RequestId) -> Outcome {
    let Some(past) = record.recall(id) else { return unchanged(record) };
    let newly_completed = past.version == record.completed_version;
    let completed = record.completed_version != Version::default();
    let completed_at = |at_that_time: bool| match at_that_time {
        true => record.state.completed_at,
        false => EpochSeconds::default(),
    };
    let after = State {
        progress: past.progress_after,
        completed_at: completed_at(completed && record.completed_version <= past.version),
        extra: match past.version == record.state.version {
            true => record.state.extra.clone(),
            false => Extra::default(),
        },
        version: past.version,
    };
    let before = State {
        progress: past.progress_before,
        completed_at: completed_at(completed && record.completed_version < past.version),
        extra: Extra::default(),
        version: Version::stored(past.version.get() - 1),
    };
    Outcome { verdict: Verdict::Stored, before, after, newly_completed }
}

pub(super) fn apply(
    record: &Record,
    update: &SetUpdate,
    request_id: Option<&RequestId>,
    target: MaxProgress,
    now: EpochSeconds,
) -> (Outcome, Option<Record>) {
    let before = &record.state;
    let is_completed = before.completed_at.is_set();
    if is_completed && update.change().is_some() {
        return (unchanged(record), None);
    }

    let progress = match update.change() {
        Some(change) => change.apply(before.progress, target),
        None if is_completed => before.progress,
        // Only a target that was lowered meanwhile makes a difference.
        None => before.progress.min(target.as_progress()),
    };
    let newly_completed = !is_completed && progress >= target.as_progress();
    if progress == before.progress && !newly_completed && update.extra().is_none() {
        return (unchanged(record), None);
    }

    let version = before.version.next();
    let after = State {
        progress,
        completed_at: match newly_completed {
            true => at_least_one(now),
            false => before.completed_at,
        },
        extra: update.extra().unwrap_or(&before.extra).clone(),
        version,
    };
    let written = Record {
        state: after.clone(),
        completed_version: if newly_completed { version } else { record.completed_version },
        remembered: remember(record, request_id, &after),
        reset_at: record.reset_at,
        late: record.late.clone(),
    };
    let outcome =
        Outcome { verdict: Verdict::Stored, before: before.clone(), after, newly_completed };
    (outcome, Some(written))
}

/// A completion must leave 0 even where a machine's clock stands at the epoch.
fn at_least_one(now: EpochSeconds) -> EpochSeconds {
    EpochSeconds::new(now.get().max(1))
}

/// The memory after one more update: ids of the last [`REMEMBERED_UPDATES`] versions.
pub(super) fn remember(
    record: &Record,
    request_id: Option<&RequestId>,
    after: &State,
) -> Vec<Remembered> {
    let newest = request_id.map(|id| Remembered {
        request_id: id.clone(),
        version: after.version,
        progress_before: record.state.progress,
        progress_after: after.progress,
    });
    let oldest = after.version.get().saturating_sub(REMEMBERED_UPDATES);
    let kept = record.remembered.iter().filter(|past| past.version.get() > oldest).cloned();
    kept.chain(newest).collect()
}

impl Record {
    pub(super) fn recall(&self, id: &RequestId) -> Option<&Remembered> {
        self.remembered.iter().find(|past| past.request_id == *id)
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;

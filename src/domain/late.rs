//! The rule of late updates: changes of the past, from a game server that was cut off.
//!
//! Each carries the caller's own time and request id. It is applied once, whatever comes before or
//! after it and however often it comes: its id is remembered for longer than an update may be late,
//! and not only among the last few of the record. What is older than a reset stays undone.

use sha2::{Digest as _, Sha256};

use super::{
    EpochSeconds, NodeUpdate, PlayerUpdate, Record, Refusal, RequestId, Ruling,
    rules::{apply, replay, unchanged},
};

/// How late an update may be, in days.
pub const LATE_DAYS_MAX: u64 = 30;

/// Most late updates of one record within that time.
pub const LATE_UPDATES_MAX: usize = 128;

const DAY_SECONDS: u64 = 24 * 3600;

/// How long ids are remembered: a day longer than they may come, in case a clock is set back.
const REMEMBERED_SECONDS: u64 = (LATE_DAYS_MAX + 1) * DAY_SECONDS;

/// A late update that was stored, kept to recognise it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Late {
    /// Stands for the caller's id.
    pub request_digest: u64,
    /// The caller's time.
    pub at: EpochSeconds,
}

/// Judges an update that happened `at` some moment; of one node, with a request id.
pub(super) fn decide_late(
    update: &PlayerUpdate,
    at: EpochSeconds,
    record: &Record,
    now: EpochSeconds,
) -> Result<Ruling, Refusal> {
    let ([NodeUpdate { node, update: set }], Some(id)) = (&*update.updates, &update.request_id)
    else {
        panic!("a late update is of one node, and has a request id");
    };
    let told =
        |replayed, outcome| Ok(Ruling { replayed, outcomes: vec![outcome], writes: vec![None] });
    if record.recall(id).is_some() {
        return told(true, replay(record, id));
    }
    let digest = digest(id);
    if record.late.iter().any(|late| late.request_digest == digest) {
        return told(true, unchanged(record));
    }
    let seconds_before = |seconds| EpochSeconds::new(now.get().saturating_sub(seconds));
    if at < seconds_before(LATE_DAYS_MAX * DAY_SECONDS) {
        return Err(Refusal::TooLate);
    }
    if record.reset_at.is_set() && at <= record.reset_at {
        return told(false, unchanged(record));
    }
    // A clock that is ahead must not complete in the future.
    let at = at.min(now);
    let target = node.definition().max_progress();
    let (outcome, mut write) = apply(record, set, Some(id), target, at);
    if let Some(record) = &mut write {
        let forgotten = seconds_before(REMEMBERED_SECONDS);
        record.late.retain(|late| late.at >= forgotten);
        if record.late.len() >= LATE_UPDATES_MAX {
            return Err(Refusal::TooManyLate);
        }
        record.late.push(Late { request_digest: digest, at });
    }
    Ok(Ruling { replayed: false, outcomes: vec![outcome], writes: vec![write] })
}

/// So few bits are enough: they tell ids of one record apart, at most [`LATE_UPDATES_MAX`].
fn digest(id: &RequestId) -> u64 {
    let digest = Sha256::digest(id.as_str());
    let (first, _) = digest.split_first_chunk().expect("a digest has 32 bytes");
    u64::from_le_bytes(*first)
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::subsequence};

    use super::*;
    use crate::{domain::decide, testing::Update};

    const NOW: u64 = 100 * DAY_SECONDS;

    fn late(record: &Record, id: &str, at: u64, delta: u64) -> Result<Ruling, Refusal> {
        let update = Update::of("t", "p").id(id).delta("n", 1000, delta).at(at).build();
        decide(&update, &[record], EpochSeconds::new(NOW))
    }

    fn applied(record: Record, id: &str, at: u64, delta: u64) -> Record {
        let ruling = late(&record, id, at, delta).unwrap();
        ruling.writes.into_iter().next().unwrap().unwrap_or(record)
    }

    #[test]
    fn a_late_update_completes_at_its_own_time_and_never_in_the_future() {
        let done = applied(Record::default(), "a", NOW - 500, 1000);
        assert_eq!(done.state.completed_at.get(), NOW - 500);
        let ahead = applied(Record::default(), "a", NOW + 500, 1000);
        assert_eq!(ahead.state.completed_at.get(), NOW);
    }

    #[test]
    fn what_is_too_late_or_too_much_is_refused() {
        let window = LATE_DAYS_MAX * DAY_SECONDS;
        assert!(late(&Record::default(), "a", NOW - window, 1).is_ok());
        let refused = late(&Record::default(), "a", NOW - window - 1, 1);
        assert_eq!(refused, Err(Refusal::TooLate));
        let mut record = Record::default();
        for n in 0..LATE_UPDATES_MAX {
            record = applied(record, &format!("id{n}"), NOW - 7, 1);
        }
        assert_eq!(late(&record, "more", NOW, 1), Err(Refusal::TooManyLate));
        assert!(late(&record, "id0", NOW, 1).unwrap().replayed, "known ones are still answered");
        for late in &mut record.late {
            late.at = EpochSeconds::new(NOW - REMEMBERED_SECONDS - 1);
        }
        assert_eq!(applied(record, "more", NOW, 1).late.len(), 1, "those of long ago are gone");
    }

    #[test]
    fn what_is_older_than_a_reset_stays_undone() {
        let reset = Record { reset_at: EpochSeconds::new(NOW - 50), ..Record::default() };
        assert_eq!(late(&reset, "a", NOW - 50, 1).unwrap().writes, [None]);
        assert!(late(&reset, "a", NOW - 49, 1).unwrap().writes[0].is_some());
    }

    proptest! {
        /// Goal: once each, whatever the order and the repeats.
        #[test]
        fn any_order_and_any_repeats_count_each_update_once(
            order in Just((0..40_usize).collect::<Vec<_>>()).prop_shuffle(),
            again in subsequence((0..40_usize).collect::<Vec<_>>(), 0..40).prop_shuffle(),
        ) {
            let mut record = Record::default();
            for n in order.iter().chain(&again) {
                record = applied(record, &format!("id{n}"), NOW - *n as u64, 1 + *n as u64);
            }
            prop_assert_eq!(record.state.progress.get(), (1..=40).sum::<u64>());
            prop_assert_eq!(record.state.version.get(), 40);
        }
    }
}

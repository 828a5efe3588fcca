//! Each rule by an example, and all of them together by random histories of one record.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::domain::{
    Catalog, Change, DefinitionDraft, Extra, Node, NodeId, PROGRESS_MAX, PlayerId, PlayerKey,
    Progress, SetUpdate, Title,
};

const NOW: EpochSeconds = EpochSeconds::new(1_652_950_659);

fn node(id: &str, max_progress: u64) -> Arc<Node> {
    let max_progress = i64::try_from(max_progress).unwrap();
    let draft = DefinitionDraft { node_id: id.into(), max_progress, ..Default::default() };
    let catalog = Catalog::parse(vec![draft]).unwrap();
    catalog.node(&NodeId::parse(id).unwrap()).unwrap().clone()
}

/// What one test asks for; turns into an update of node "n".
#[derive(Clone, Debug, Default)]
struct Ask {
    change: Option<Change>,
    extra: Option<&'static str>,
    expected: Option<u64>,
    request_id: Option<String>,
}

impl Ask {
    fn change(change: Change) -> Self {
        Self { change: Some(change), ..Self::default() }
    }

    fn extra(extra: &'static str, expected: u64) -> Self {
        Self { extra: Some(extra), expected: Some(expected), ..Self::default() }
    }

    fn id(self, id: &str) -> Self {
        Self { request_id: Some(id.to_owned()), ..self }
    }

    fn expecting(self, version: u64) -> Self {
        Self { expected: Some(version), ..self }
    }

    fn item(&self, id: &str, max_progress: u64) -> NodeUpdate {
        let extra = self.extra.map(|text| Extra::parse(text, 100).unwrap());
        let expected = self.expected.map(Version::stored);
        let update = SetUpdate::new(self.change, extra, expected).expect("asks for something");
        NodeUpdate { node: node(id, max_progress), update }
    }
}

fn batch(asks: &[(&str, Ask)], request_id: Option<&str>, max_progress: u64) -> PlayerUpdate {
    let player = PlayerId::parse("10001").unwrap();
    PlayerUpdate {
        key: PlayerKey { title: Title::parse("t").unwrap(), player },
        request_id: request_id.map(|id| RequestId::parse(id).unwrap()),
        updates: asks.iter().map(|(id, ask)| ask.item(id, max_progress)).collect(),
        happened_at: None,
    }
}

/// Judges one update, stores what it says, and gives the outcome and whether it was a replay.
fn set(record: &mut Record, max_progress: u64, ask: &Ask) -> Result<(Outcome, bool), Refusal> {
    let update = batch(&[("n", ask.clone())], ask.request_id.as_deref(), max_progress);
    let mut ruling = decide(&update, std::slice::from_ref(record), NOW)?;
    if let Some(written) = ruling.writes.remove(0) {
        *record = written;
    }
    Ok((ruling.outcomes.remove(0), ruling.replayed))
}

fn check(record: &mut Record, max_progress: u64, ask: Ask) -> Outcome {
    let (outcome, replayed) = set(record, max_progress, &ask).unwrap();
    assert!(!replayed);
    outcome
}

#[test]
fn delta_adds_at_least_raises_and_finish_completes() {
    for (change, progress) in [
        (Change::Delta(3), 7),
        (Change::Delta(100), 10),
        (Change::Delta(u64::MAX), 10),
        (Change::AtLeast(3), 4),
        (Change::AtLeast(9), 9),
        (Change::AtLeast(u64::MAX), 10),
        (Change::Finish, 10),
    ] {
        let mut record = Record::default();
        check(&mut record, 10, Ask::change(Change::Delta(4)));
        let outcome = check(&mut record, 10, Ask::change(change));
        assert_eq!(outcome.after.progress.get(), progress, "{change:?}");
        assert_eq!(outcome.newly_completed, progress == 10, "{change:?}");
        assert_eq!(outcome.after.completed_at == NOW, progress == 10, "{change:?}");
    }
}

#[test]
fn the_first_version_is_one_and_nothing_to_do_is_no_version() {
    let mut record = Record::default();
    let first = check(&mut record, 10, Ask::change(Change::AtLeast(5)));
    assert_eq!((first.before.version.get(), first.after.version.get()), (0, 1));
    let idle = check(&mut record, 10, Ask::change(Change::AtLeast(4)));
    assert_eq!(idle.verdict, Verdict::Unchanged);
    assert_eq!(idle.after.version.get(), 1);
}

#[test]
fn another_version_is_a_conflict_that_shows_the_stored_record() {
    let mut record = Record::default();
    check(&mut record, 10, Ask::change(Change::Delta(1)));
    let stored = record.clone();
    for ask in [Ask::extra("mine", 0), Ask::change(Change::Delta(1)).expecting(7)] {
        let outcome = check(&mut record, 10, ask);
        assert_eq!(outcome.verdict, Verdict::Conflict);
        assert_eq!((&outcome.before, &outcome.after), (&stored.state, &stored.state));
        assert_eq!(record, stored, "nothing is stored");
    }
}

#[test]
fn extra_needs_a_version_absent_leaves_it_and_empty_clears_it() {
    let mut record = Record::default();
    let without = Ask { extra: Some("x"), ..Ask::default() };
    assert_eq!(set(&mut record, 10, &without), Err(Refusal::ExtraWithoutVersion { index: 0 }));
    check(&mut record, 10, Ask::extra("x", 0));
    let kept = check(&mut record, 10, Ask::change(Change::Delta(1)));
    assert_eq!(kept.after.extra.as_str(), "x");
    let cleared = check(&mut record, 10, Ask::extra("", 2));
    assert_eq!(cleared.after.extra.as_str(), "");
    assert_eq!(cleared.after.version.get(), 3);
}

#[test]
fn a_completed_record_takes_no_change_but_takes_extra() {
    let mut record = Record::default();
    check(&mut record, 10, Ask::change(Change::Finish));
    for change in [Change::Delta(1), Change::AtLeast(10), Change::Finish] {
        let outcome = check(&mut record, 20, Ask::change(change));
        assert_eq!((outcome.verdict, outcome.newly_completed), (Verdict::Unchanged, false));
    }
    let both = Ask { change: Some(Change::Finish), ..Ask::extra("x", 1) };
    assert_eq!(check(&mut record, 10, both).verdict, Verdict::Unchanged);
    let extra = check(&mut record, 10, Ask::extra("x", 1));
    assert_eq!((extra.verdict, extra.newly_completed), (Verdict::Stored, false));
    assert_eq!(extra.after.completed_at, NOW);
}

#[test]
fn a_lower_target_completes_at_the_next_set_and_a_higher_one_takes_nothing_back() {
    let mut record = Record::default();
    check(&mut record, 10, Ask::change(Change::Delta(7)));
    let outcome = check(&mut record, 5, Ask::change(Change::Delta(1)));
    assert!(outcome.newly_completed);
    assert_eq!(outcome.after.progress.get(), 5, "progress stops at the target");
    let later = check(&mut record, 50, Ask::change(Change::Delta(1)));
    assert_eq!(later.verdict, Verdict::Unchanged);
    assert_eq!(later.after.completed_at, NOW);

    let mut record = Record::default();
    check(&mut record, 10, Ask::change(Change::Delta(7)));
    let outcome = check(&mut record, 5, Ask::extra("x", 1));
    assert!(outcome.newly_completed, "extra alone is a set too");
    assert_eq!(outcome.after.progress.get(), 5);
}

#[test]
fn a_completion_leaves_zero_even_at_the_epoch() {
    let update = batch(&[("n", Ask::change(Change::Finish))], None, 1);
    let ruling = decide(&update, &[Record::default()], EpochSeconds::default()).unwrap();
    assert!(ruling.outcomes[0].after.completed_at.is_set());
}

#[test]
fn a_retry_is_told_its_outcome_again_and_counts_once() {
    let mut record = Record::default();
    let mut told = Vec::new();
    for (id, change) in [("a", Change::Delta(4)), ("b", Change::Delta(9)), ("c", Change::Delta(1))]
    {
        let ask = Ask::change(change).id(id);
        told.push((ask.clone(), set(&mut record, 10, &ask).unwrap().0));
    }
    let stored = record.clone();
    for (ask, outcome) in told.iter().take(2) {
        let (again, replayed) = set(&mut record, 10, ask).unwrap();
        assert!(replayed);
        assert_eq!(&again, outcome);
        assert_eq!(record, stored, "counted once");
    }
    let (_, replayed) = set(&mut record, 10, &told[2].0).unwrap();
    assert!(!replayed, "what stored nothing is judged anew");
}

#[test]
fn a_retry_is_recognised_before_its_version_is_compared() {
    let mut record = Record::default();
    let ask = Ask { change: Some(Change::Delta(1)), ..Ask::extra("x", 0) }.id("a");
    let first = set(&mut record, 10, &ask).unwrap().0;
    assert_eq!(set(&mut record, 10, &ask).unwrap(), (first, true));
}

#[test]
fn the_last_eight_stored_updates_are_remembered_and_no_more() {
    let mut record = Record::default();
    for n in 0..9 {
        set(&mut record, 1000, &Ask::change(Change::Delta(1)).id(&format!("r{n}"))).unwrap();
    }
    let replayed = |record: &Record, id: &str| {
        set(&mut record.clone(), 1000, &Ask::change(Change::Delta(1)).id(id)).unwrap().1
    };
    assert!(!replayed(&record, "r0"));
    assert!((1..9).all(|n| replayed(&record, &format!("r{n}"))));
    // Updates without an id take a place too.
    check(&mut record, 1000, Ask::change(Change::Delta(1)));
    assert!(!replayed(&record, "r1"));
    assert!(replayed(&record, "r2"));
}

#[test]
fn a_batch_is_stored_wholly_or_not_at_all() {
    let mut one = Record::default();
    check(&mut one, 10, Ask::change(Change::Delta(1)));
    let records = [one, Record::default()];
    let good = Ask::change(Change::Delta(2));
    let stale = Ask::change(Change::Delta(2)).expecting(3);

    let ruling = decide(&batch(&[("a", good.clone()), ("b", stale)], None, 10), &records, NOW);
    let ruling = ruling.unwrap();
    let verdicts: Vec<_> = ruling.outcomes.iter().map(|outcome| outcome.verdict).collect();
    assert_eq!(verdicts, [Verdict::Unchanged, Verdict::Conflict]);
    assert!(ruling.writes.iter().all(Option::is_none));

    let update = batch(&[("a", good.clone()), ("b", good)], Some("id"), 10);
    let stored = decide(&update, &records, NOW).unwrap();
    let written: Vec<_> = stored.writes.iter().flatten().cloned().collect();
    assert_eq!(written.len(), 2);
    let again = decide(&update, &written, NOW).unwrap();
    assert!(again.replayed);
    assert_eq!(again.outcomes, stored.outcomes);
}

#[test]
fn a_replayed_batch_applies_nothing_to_a_record_that_forgot_it() {
    let ask = Ask::change(Change::Delta(1));
    let update = batch(&[("a", ask.clone()), ("b", ask)], Some("id"), 1000);
    let first = decide(&update, &[Record::default(), Record::default()], NOW).unwrap();
    let mut records: Vec<_> = first.writes.into_iter().flatten().collect();
    for _ in 0..8 {
        check(&mut records[0], 1000, Ask::change(Change::Delta(1)));
    }
    let again = decide(&update, &records, NOW).unwrap();
    assert!(again.replayed);
    assert!(again.writes.iter().all(Option::is_none));
}

// === all rules together ===

fn ask() -> impl Strategy<Value = Ask> {
    let number = prop_oneof![1..20u64, Just(u64::MAX), Just(PROGRESS_MAX)];
    let change = prop_oneof![
        number.clone().prop_map(Change::Delta),
        number.prop_map(Change::AtLeast),
        Just(Change::Finish),
    ];
    let expected = proptest::option::weighted(0.4, 0..6u64);
    let extra = proptest::option::weighted(0.3, prop_oneof![Just("x"), Just("")]);
    let id = proptest::option::weighted(0.5, "[a-e]");
    (proptest::option::weighted(0.9, change), extra, expected, id)
        .prop_filter("asks for something", |(change, extra, ..)| {
            change.is_some() || extra.is_some()
        })
        .prop_map(|(change, extra, expected, request_id)| Ask {
            change,
            extra,
            expected,
            request_id,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_history_keeps_the_rules(
        targets in proptest::collection::vec(prop_oneof![1..30u64, Just(PROGRESS_MAX)], 1..4),
        asks in proptest::collection::vec((ask(), any::<prop::sample::Index>()), 1..40),
    ) {
        let mut record = Record::default();
        // Ids of the last eight stored updates, with their outcomes: the memory, kept naively.
        let mut memory: Vec<(Option<String>, Outcome)> = Vec::new();
        for (ask, target) in &asks {
            let target = *target.get(&targets);
            let before = record.clone();
            let known = memory.iter().rev().take(8)
                .find(|(id, _)| id.is_some() && *id == ask.request_id)
                .map(|(_, outcome)| outcome.clone());

            let result = set(&mut record, target, ask);
            let conflicts = ask.expected.is_some_and(|it| it != before.state.version.get());
            let Ok((outcome, replayed)) = result else {
                prop_assert!(known.is_none() && !conflicts);
                prop_assert!(ask.extra.is_some() && ask.expected.is_none());
                prop_assert_eq!(&record, &before);
                continue;
            };
            prop_assert_eq!(replayed, known.is_some());
            if let Some(known) = known {
                prop_assert_eq!(&record, &before, "a replay stores nothing");
                prop_assert_eq!(outcome.newly_completed, known.newly_completed);
                prop_assert_eq!(outcome.after.version, known.after.version);
                prop_assert_eq!(outcome.after.progress, known.after.progress);
                prop_assert_eq!(outcome.after.completed_at, known.after.completed_at);
                prop_assert_eq!(outcome.before.version, known.before.version);
                prop_assert_eq!(outcome.before.progress, known.before.progress);
                prop_assert_eq!(outcome.before.completed_at, known.before.completed_at);
                continue;
            }
            prop_assert_eq!(&outcome.before, &before.state, "the before-image");
            prop_assert_eq!(&outcome.after, &record.state, "the after-image");
            prop_assert_eq!(outcome.verdict == Verdict::Conflict, conflicts);

            let stored = outcome.verdict == Verdict::Stored;
            let versions = record.state.version.get() - before.state.version.get();
            prop_assert_eq!(versions, u64::from(stored), "one version exactly when stored");
            if !stored {
                prop_assert_eq!(&record, &before);
                continue;
            }
            let was_completed = before.state.completed_at.is_set();
            prop_assert!(record.state.progress.get() <= target || was_completed);
            let reached = record.state.progress >= Progress::clamped(target);
            prop_assert_eq!(outcome.newly_completed, !was_completed && reached);
            prop_assert!(!was_completed || record.state.completed_at == before.state.completed_at);
            prop_assert!(!was_completed || record.state.progress == before.state.progress);
            let extra = ask.extra.unwrap_or(before.state.extra.as_str());
            prop_assert_eq!(record.state.extra.as_str(), extra);
            memory.push((ask.request_id.clone(), outcome));
        }
    }
}

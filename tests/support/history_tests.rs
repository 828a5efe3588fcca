//! The checker must accept what a model record answered, refuse what was spoiled on purpose, and
//! agree with two searches through all orders, a short one and stateright's, where nobody knows.
#![allow(dead_code, unused_imports, reason = "without a harness there are no tests to use them")]

use std::{collections::HashSet, ops::RangeInclusive};

use fastrand::Rng;
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

use super::*;

#[test]
fn accepts_what_records_answered() {
    for seed in 0..2_000 {
        let mut rng = Rng::with_seed(seed);
        let history = generate(&Shape::medium(&mut rng), &mut rng);
        assert_eq!(check(&history), Ok(()), "seed {seed}");
    }
}

#[test]
fn refuses_every_mutant() {
    let mut rng = Rng::with_seed(1);
    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    while refused.values().sum::<usize>() < 1_000 {
        let history = generate(&Shape::medium(&mut rng), &mut rng);
        let Some((mutant, name)) = mutate(&history, &mut rng) else { continue };
        assert!(check(&mutant).is_err(), "{name}:\n{}", text(&mutant));
        *refused.entry(name).or_default() += 1;
    }
    assert!(refused.len() == 10 && refused.values().all(|times| *times >= 50), "{refused:?}");
}

/// What `mutate` promises, without trusting the checker.
#[test]
fn mutants_are_wrong_in_every_order() {
    let mut rng = Rng::with_seed(2);
    let mut refused = 0;
    while refused < 2_000 {
        let history = generate(&Shape::small(&mut rng), &mut rng);
        let Some((mutant, name)) = mutate(&history, &mut rng) else { continue };
        assert!(!search(&mutant), "{name}:\n{}", text(&mutant));
        assert!(check(&mutant).is_err(), "{name}:\n{}", text(&mutant));
        refused += 1;
    }
}

#[test]
fn agrees_with_a_search_through_all_orders() {
    compare(10_000, 3, search);
}

#[test]
fn agrees_with_stateright() {
    compare(3_000, 4, |history| {
        let mut events: Vec<_> = (0..history.len())
            .flat_map(|op| {
                let returned = history[op].returned.map(|at| (at, true, op));
                [Some((history[op].invoked, false, op)), returned].into_iter().flatten()
            })
            .collect();
        events.sort_unstable();
        let mut tester = LinearizabilityTester::new(Model::default());
        for (_, returned, op) in events {
            // Each operation is a thread of its own: the times alone say what came first.
            let told = match returned {
                false => tester.on_invoke(op, history[op].kind).map(drop),
                true => tester.on_return(op, history[op].outcome).map(drop),
            };
            told.expect("an operation begins, then ends");
        }
        tester.is_consistent()
    });
}

/// On histories of which half were changed at random, for better or worse.
fn compare(histories: u64, seed: u64, is_linearizable: impl Fn(&[Operation]) -> bool) {
    let mut rng = Rng::with_seed(seed);
    let mut wrong = 0;
    for nth in 0..histories {
        let mut history = generate(&Shape::small(&mut rng), &mut rng);
        for _ in 0..nth % 4 {
            distort(&mut history, &mut rng);
        }
        let expected = is_linearizable(&history);
        assert_eq!(check(&history).is_ok(), expected, "{:?}:\n{}", check(&history), text(&history));
        wrong += u64::from(!expected);
        assert!(expected || nth % 4 != 0, "{}", text(&history));
    }
    println!("{wrong} of {histories} were not linearizable");
    assert!(
        (histories / 4..histories / 4 * 3).contains(&wrong),
        "both kinds are compared: {wrong}"
    );
}

#[test]
fn an_empty_history_is_fine() {
    accepted(&[]);
    accepted(&[get(1..=2, 0, 0), lost_add(1), lost_add_on(0, 3)]);
}

#[test]
fn operations_at_once_have_any_order() {
    accepted(&[add(1..=9, 2, 2), add(1..=9, 1, 1), get(1..=9, 0, 0), get(1..=9, 2, 2)]);
    accepted(&[add(1..=5, 2, 2), add(5..=9, 1, 1)]);
    accepted(&[add_on(0, 1..=3, 1, 1), conflict(0, 2..=4, 1, 1), conflict(1, 1..=3, 0, 0)]);
}

#[test]
fn a_stale_read() {
    let history = [add(1..=2, 1, 1), add(3..=4, 2, 2), get(5..=6, 1, 1)];
    refused(&history, "was over before [client 0, r: get, 5..=6, read 1 (1)] began");
    refused(&[add(1..=2, 1, 1), get(3..=4, 0, 0)], "was over before");
    refused(&[add(1..=2, 1, 1), conflict(1, 3..=4, 0, 0)], "was over before");
    refused(&[add(1..=9, 1, 1), get(2..=3, 1, 1), get(4..=5, 0, 0)], "was over before");
}

#[test]
fn a_read_from_the_future() {
    refused(&[get(1..=2, 1, 1), add(3..=4, 1, 1)], "was over before");
    refused(&[get(1..=2, 1, 1), lost_add(3)], "nobody can have stored version 1 in time");
    refused(&[get(1..=2, 1, 1)], "nobody can have stored version 1 in time");
    refused(&[get(1..=2, u64::MAX, 1)], "nobody can have stored version 1 in time");
}

#[test]
fn writes_out_of_order() {
    refused(&[add(1..=2, 2, 2), add(3..=4, 1, 1)], "was over before");
}

#[test]
fn a_lost_update() {
    refused(&[add(1..=2, 1, 1), add(3..=4, 1, 1)], "version 1 was stored twice");
    refused(&[add_on(0, 1..=4, 1, 1), add_on(0, 1..=4, 1, 1)], "version 1 was stored twice");
    refused(&[add(1..=2, 1, 1), add(3..=4, 2, 1)], "add up to {2}");
}

#[test]
fn a_version_left_out() {
    refused(&[add(1..=2, 1, 1), add(3..=4, 3, 3)], "nobody can have stored version 2 in time");
    refused(&[add(1..=2, 1, 1), conflict(1, 3..=4, 2, 2)], "nobody can have stored version 2");
}

#[test]
fn answers_that_contradict_themselves() {
    refused(&[conflict(0, 1..=2, 0, 0)], "conflicts with what it expects");
    refused(&[add(1..=2, 1, 1), conflict(1, 3..=4, 1, 1)], "conflicts with what it expects");
    refused(&[add(1..=2, 1, 1), add_on(0, 3..=4, 2, 2)], "stored what does not follow");
    refused(&[add(1..=2, 0, 0)], "stored what does not follow");
    refused(&[get(1..=2, 0, 1)], "add up to {0}");
    let blind = Operation { kind: ADD, ..conflict(0, 3..=4, 1, 1) };
    refused(&[add(1..=2, 1, 1), blind], "has an answer of another kind");
    refused(&[Operation { kind: ADD, ..get(1..=2, 0, 0) }], "has an answer of another kind");
    refused(&[Operation { invoked: 3, ..get(1..=2, 0, 0) }], "returned before it began");
    refused(&[Operation { returned: None, ..get(1..=2, 0, 0) }], "returned before it began");
    refused(&[Operation { returned: Some(1), ..lost_add(1) }], "returned without an answer");
}

#[test]
fn a_set_without_answer_may_have_taken_effect() {
    accepted(&[lost_add(1), get(2..=3, 1, 1)]);
    accepted(&[lost_add(1), get(2..=3, 0, 0)]);
    accepted(&[lost_add_on(0, 1), add(2..=3, 2, 2)]);
    accepted(&[lost_add_on(0, 1), conflict(0, 2..=3, 1, 1)]);
}

#[test]
fn a_set_without_answer_may_take_effect_late() {
    accepted(&[lost_add(1), get(2..=3, 0, 0), add(4..=5, 1, 1), get(6..=7, 2, 2)]);
    accepted(&[get(1..=2, 0, 0), get(3..=4, 1, 1), lost_add(4)]);
    refused(&[get(1..=2, 0, 0), get(3..=4, 1, 1), lost_add(5)], "nobody can have stored version 1");
    // Version 1 was stored before version 2, and so before 4.
    refused(&[get(1..=9, 1, 1), add(2..=4, 2, 2), lost_add(5)], "nobody can have stored version 1");
    accepted(&[get(1..=9, 1, 1), add(2..=4, 2, 2), lost_add(4)]);
}

#[test]
fn a_set_without_answer_takes_effect_once() {
    let history = [lost_add(1), get(2..=3, 1, 1), add(4..=5, 2, 2), get(6..=7, 3, 3)];
    refused(&history, "nobody can have stored version 3 in time");
    let history = [lost_add(1), lost_add(5), get(2..=3, 1, 1), add(4..=5, 2, 2), get(6..=7, 3, 3)];
    accepted(&history);
    refused(&[lost_add(1), lost_add(4), get(2..=3, 2, 2)], "nobody can have stored version 2");
}

#[test]
fn a_set_without_answer_stores_only_on_what_it_expects() {
    refused(&[lost_add_on(1, 1), get(2..=3, 1, 1)], "nobody can have stored version 1");
    accepted(&[lost_add_on(1, 1), lost_add(1), get(2..=3, 2, 2)]);
    accepted(&[lost_add_on(1, 1), lost_add_on(0, 1), get(2..=3, 2, 2)]);
    refused(&[lost_add_on(0, 1), lost_add_on(0, 1), get(2..=3, 2, 2)], "stored version 2");
    // The blind one must be left for version 2.
    accepted(&[lost_add(1), lost_add_on(0, 1), get(2..=3, 2, 2)]);
}

#[test]
fn a_get_without_answer_means_nothing() {
    let lost = Operation { kind: Kind::Get, ..lost_add(1) };
    accepted(&[lost.clone(), get(2..=3, 0, 0)]);
    refused(&[lost, get(2..=3, 1, 1)], "nobody can have stored version 1");
}

#[test]
fn deltas_tell_who_filled_a_hole() {
    let five = Operation { kind: Kind::Set { expected: None, delta: 5 }, ..lost_add(1) };
    let seven = Operation { kind: Kind::Set { expected: Some(0), delta: 7 }, ..lost_add(1) };
    for progress in [5, 7, 12] {
        let version = if progress == 12 { 2 } else { 1 };
        let add = add(4..=5, version + 1, progress + 1);
        accepted(&[five.clone(), seven.clone(), get(2..=3, version, progress), add]);
    }
    refused(&[five.clone(), seven.clone(), get(2..=3, 1, 12)], "add up to {5, 7}");
    refused(&[five, seven, get(2..=3, 1, 5), get(4..=5, 2, 12)], "nobody");
}

#[test]
fn records_do_not_mix() {
    let other = |op| Operation { key: "other".into(), ..op };
    let history = [add(1..=2, 1, 1), other(add(3..=4, 1, 1)), other(get(5..=6, 1, 1))];
    assert_eq!(check(&history), Ok(()));
    let history = [lost_add(1), other(get(2..=3, 1, 1))];
    assert!(check(&history).unwrap_err().contains("in time for [client 0, other: get"));
}

const ADD: Kind = Kind::Set { expected: None, delta: 1 };

fn add(time: RangeInclusive<u64>, version: u64, progress: u64) -> Operation {
    let outcome = Outcome::Stored { version, progress };
    Operation { kind: ADD, outcome, ..get(time, 0, 0) }
}

fn add_on(expected: u64, time: RangeInclusive<u64>, version: u64, progress: u64) -> Operation {
    let kind = Kind::Set { expected: Some(expected), delta: 1 };
    Operation { kind, ..add(time, version, progress) }
}

fn conflict(expected: u64, time: RangeInclusive<u64>, version: u64, progress: u64) -> Operation {
    let outcome = Outcome::Conflict { version, progress };
    Operation { outcome, ..add_on(expected, time, 0, 0) }
}

fn get(time: RangeInclusive<u64>, version: u64, progress: u64) -> Operation {
    Operation {
        client: 0,
        key: "r".into(),
        kind: Kind::Get,
        invoked: *time.start(),
        returned: Some(*time.end()),
        outcome: Outcome::Read { version, progress },
    }
}

fn lost_add(invoked: u64) -> Operation {
    Operation { returned: None, outcome: Outcome::Unknown, ..add(invoked..=invoked, 0, 0) }
}

fn lost_add_on(expected: u64, invoked: u64) -> Operation {
    Operation { kind: Kind::Set { expected: Some(expected), delta: 1 }, ..lost_add(invoked) }
}

fn accepted(history: &[Operation]) {
    assert_eq!(check(history), Ok(()));
    assert!(search(history));
}

fn refused(history: &[Operation], why: &str) {
    let error = check(history).unwrap_err();
    assert!(error.contains(why), "{error}");
}

fn text(history: &[Operation]) -> String {
    history.iter().map(Operation::to_string).collect::<Vec<_>>().join("\n")
}

/// One record, and what it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Model {
    version: u64,
    progress: u64,
}

impl Model {
    fn answer(&mut self, kind: Kind) -> Outcome {
        let Self { version, progress } = *self;
        match kind {
            Kind::Get => Outcome::Read { version, progress },
            Kind::Set { expected: Some(expected), .. } if expected != version => {
                Outcome::Conflict { version, progress }
            }
            Kind::Set { delta, .. } => {
                *self = Self { version: version + 1, progress: progress + delta };
                Outcome::Stored { version: self.version, progress: self.progress }
            }
        }
    }
}

impl SequentialSpec for Model {
    type Op = Kind;
    type Ret = Outcome;

    fn invoke(&mut self, op: &Kind) -> Outcome {
        self.answer(*op)
    }
}

/// Wing and Gong's search: whatever began before all that is left returned may come next.
fn search(history: &[Operation]) -> bool {
    let mut seen = HashSet::new();
    let mut open = vec![(0u32, Model::default())];
    while let Some((done, model)) = open.pop() {
        let left = (0..history.len()).filter(|op| done & 1 << op == 0);
        let first = left.clone().filter_map(|op| history[op].returned).min();
        let Some(first) = first else { return true };
        for op in left.filter(|op| history[*op].invoked <= first) {
            let mut next = model;
            let answer = next.answer(history[op].kind);
            let agrees = history[op].returned.is_none() || answer == history[op].outcome;
            if agrees && seen.insert((done | 1 << op, next)) {
                open.push((done | 1 << op, next));
            }
        }
    }
    false
}

struct Shape {
    clients: usize,
    /// Of each client, at most.
    operations: usize,
    keys: usize,
    /// The longest time between two events of a client.
    pause: u64,
    deltas: u64,
    /// How many of a hundred operations have no answer.
    lost: u64,
}

impl Shape {
    fn small(rng: &mut Rng) -> Self {
        let (operations, pause) = (rng.usize(1..=5), rng.u64(1..10));
        let (deltas, lost) = (rng.u64(1..=3), rng.u64(..60));
        Self { clients: 3, operations, keys: 1, pause, deltas, lost }
    }

    fn medium(rng: &mut Rng) -> Self {
        let (clients, operations) = (rng.usize(2..=8), rng.usize(1..=40));
        let (keys, pause) = (rng.usize(1..=4), rng.u64(1..100));
        let (deltas, lost) = (rng.u64(1..=3), rng.u64(..30));
        Self { clients, operations, keys, pause, deltas, lost }
    }
}

/// What clients are told when each operation takes effect at one moment between its invocation and
/// its answer. Those without an answer take effect at any time since, or never.
fn generate(shape: &Shape, rng: &mut Rng) -> History {
    let mut effects = Vec::new();
    for client in 0..shape.clients {
        let mut now = 0;
        for _ in 0..rng.usize(1..=shape.operations) {
            let invoked = now + rng.u64(..=shape.pause);
            let effect = invoked + rng.u64(..=shape.pause);
            now = effect + rng.u64(..=shape.pause);
            let lost = rng.u64(..100) < shape.lost;
            let late = if lost { rng.choice([0, 3, 30]).unwrap() * shape.pause } else { 0 };
            let op = Operation {
                client,
                key: format!("r{}", rng.usize(..shape.keys)),
                kind: Kind::Get,
                invoked,
                returned: (!lost).then_some(now),
                outcome: Outcome::Unknown,
            };
            effects.push((effect + rng.u64(..=late), rng.u64(..), op));
        }
    }
    effects.sort_by_key(|(effect, tie, _)| (*effect, *tie));
    let mut records: BTreeMap<String, Model> = BTreeMap::new();
    let mut history = Vec::new();
    for (_, _, mut op) in effects {
        let record = records.entry(op.key.clone()).or_default();
        if rng.u64(..4) > 0 {
            let near = (record.version + rng.u64(..4)).saturating_sub(2);
            let expected = rng.choice([None, Some(record.version), Some(near)]).unwrap();
            op.kind = Kind::Set { expected, delta: rng.u64(1..=shape.deltas) };
        }
        if op.returned.is_some() {
            op.outcome = record.answer(op.kind);
        } else if rng.bool() {
            record.answer(op.kind);
        }
        history.push(op);
    }
    rng.shuffle(&mut history);
    history
}

/// Changes something about an operation; whether it is then linearizable, nobody knows.
fn distort(history: &mut History, rng: &mut Rng) {
    if history.is_empty() {
        return;
    }
    let other = history[rng.usize(..history.len())].clone();
    let latest = history.iter().filter_map(|op| op.returned).max().unwrap_or_default();
    let nth = rng.usize(..history.len());
    let op = &mut history[nth];
    match rng.u64(..8) {
        0 => drop(history.swap_remove(nth)),
        1 => (op.returned, op.outcome) = (None, Outcome::Unknown),
        2 => op.invoked = rng.u64(..=op.returned.unwrap_or(latest)),
        3 => op.returned = op.returned.map(|_| op.invoked + rng.u64(..=latest)),
        4 => op.kind = other.kind,
        5 if other.returned.is_some() && op.returned.is_some() => op.outcome = other.outcome,
        _ => match (&mut op.kind, &mut op.outcome) {
            (Kind::Set { expected: Some(expected), .. }, _) if rng.bool() => {
                *expected = (*expected + rng.u64(..3)).saturating_sub(1);
            }
            (Kind::Set { delta, .. }, _) if rng.bool() => *delta = rng.u64(1..=3),
            (
                _,
                Outcome::Stored { version, progress }
                | Outcome::Conflict { version, progress }
                | Outcome::Read { version, progress },
            ) => {
                *version = (*version + rng.u64(..3)).saturating_sub(1);
                *progress = (*progress + rng.u64(..3)).saturating_sub(1);
            }
            _ => {}
        },
    }
}

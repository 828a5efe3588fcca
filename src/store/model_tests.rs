//! Random histories on the sled store, restarts among them, against the simplest model there is:
//! plain maps and the rules.
//!
//! `ACCOLADE_MODEL_HISTORIES` sets how many, of 30 steps each on average; 340 unless given, which
//! are 10,000 steps.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use tokio::runtime::Runtime;

use super::{FeedError, FeedSource, Operations, Rarity, Retention, Store, sled::SledStore};
use crate::{
    domain::{
        Change, Cursor, EpochSeconds, Event, PlayerUpdate, Reason, Record, RequestId, ResetUpdate,
        State, Version, decide, decide_reset,
    },
    testing::{TestClock, Update, node_id, player, title},
};

const PLAYERS: [&str; 3] = ["a", "b", "ab"];
const NODES: [(&str, i64); 3] = [("x", 1), ("y", 4), ("xy", 9)];
const NOW: u64 = 1000;

/// `make soak` sets more.
fn histories() -> u32 {
    std::env::var("ACCOLADE_MODEL_HISTORIES").map_or(340, |text| text.parse().expect("a number"))
}

#[derive(Clone, Debug)]
enum Step {
    Apply(PlayerUpdate),
    Reset(ResetUpdate),
    Erase(&'static str),
    Trim(u64),
    Restart,
}

#[derive(Clone, Debug, Default)]
struct Model {
    records: BTreeMap<(String, String), Record>,
    /// Player, node and whether it is a reset, of every event there ever was; `None` where erased.
    feed: Vec<Option<(String, String, bool)>>,
    trimmed: usize,
}

impl Model {
    fn apply(&mut self, update: &PlayerUpdate) {
        let id = update.key.player.as_str().to_owned();
        let keys = update
            .updates
            .iter()
            .map(|item| (id.clone(), item.node.definition().node_id().as_str().to_owned()));
        let keys: Vec<_> = keys.collect();
        let stored = keys.iter().map(|key| self.records.get(key).cloned().unwrap_or_default());
        let stored: Vec<_> = stored.collect();
        let Ok(ruling) = decide(update, &stored, EpochSeconds::new(NOW)) else { return };
        for ((key, write), outcome) in keys.into_iter().zip(ruling.writes).zip(ruling.outcomes) {
            let Some(record) = write else { continue };
            if outcome.newly_completed {
                self.feed.push(Some((key.0.clone(), key.1.clone(), false)));
            }
            self.records.insert(key, record);
        }
    }

    fn reset(&mut self, update: &ResetUpdate) {
        let key = (update.key.player.as_str().to_owned(), update.node.as_str().to_owned());
        let stored = self.records.get(&key).cloned().unwrap_or_default();
        if let Some(record) = decide_reset(update, &stored, EpochSeconds::new(NOW)).write {
            self.feed.push(Some((key.0.clone(), key.1.clone(), true)));
            self.records.insert(key, record);
        }
    }

    fn erase(&mut self, id: &str) {
        self.records.retain(|(player, _), _| player != id);
        for event in &mut self.feed {
            if event.as_ref().is_some_and(|(player, ..)| player == id) {
                *event = None;
            }
        }
    }

    fn rarity(&self) -> Rarity {
        let players: BTreeSet<_> = self.records.keys().map(|(player, _)| player).collect();
        let mut rarity = Rarity { players: players.len() as u64, ..Rarity::default() };
        for ((_, node), record) in &self.records {
            if record.state.completed_at.is_set() {
                *rarity.completed.entry(node_id(node)).or_default() += 1;
            }
        }
        rarity
    }
}

fn reset() -> impl Strategy<Value = ResetUpdate> {
    let (who, node) = (0..PLAYERS.len(), 0..NODES.len());
    let expected = proptest::option::weighted(0.2, 0..4u64);
    (who, node, expected, proptest::option::of("[a-f]")).prop_map(|(who, node, expected, id)| {
        ResetUpdate {
            key: player("t", PLAYERS[who]),
            node: node_id(NODES[node].0),
            reason: Reason::parse("a test").unwrap(),
            expected: expected.map(Version::stored),
            request_id: id.map(|id| RequestId::parse(&id).unwrap()),
        }
    })
}

fn update() -> impl Strategy<Value = PlayerUpdate> {
    let item = (
        prop_oneof![(1..6u64).prop_map(Change::Delta), (1..9u64).prop_map(Change::AtLeast)],
        proptest::option::weighted(0.3, "[a-z]{0,3}"),
        proptest::option::weighted(0.4, 0..4u64),
    );
    let nodes = proptest::sample::subsequence(NODES.to_vec(), 1..=3);
    (0..PLAYERS.len(), nodes, proptest::collection::vec(item, 3), proptest::option::of("[a-f]"))
        .prop_map(|(who, nodes, items, request_id)| {
            let mut update = Update::of("t", PLAYERS[who]);
            for ((node, target), (change, extra, expected)) in nodes.into_iter().zip(items) {
                update = update.set(node, target, Some(change), extra.as_deref(), expected);
            }
            match request_id {
                Some(id) => update.id(&id).build(),
                None => update.build(),
            }
        })
}

/// Of the last seconds, under few ids, so that they come again.
fn late_update() -> impl Strategy<Value = PlayerUpdate> {
    (0..PLAYERS.len(), 0..NODES.len(), 1..4u64, "[a-m]", 0..5u64).prop_map(
        |(who, node, delta, id, ago)| {
            let (node, target) = NODES[node];
            Update::of("t", PLAYERS[who]).id(&id).delta(node, target, delta).at(NOW - ago).build()
        },
    )
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Step> {
        prop_oneof![
            20 => update().prop_map(Step::Apply),
            3 => late_update().prop_map(Step::Apply),
            2 => reset().prop_map(Step::Reset),
            1 => (0..PLAYERS.len()).prop_map(|who| Step::Erase(PLAYERS[who])),
            1 => (0..5u64).prop_map(Step::Trim),
            1 => Just(Step::Restart),
        ]
        .boxed()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        match step {
            Step::Apply(update) => state.apply(update),
            Step::Reset(update) => state.reset(update),
            Step::Erase(id) => state.erase(id),
            Step::Trim(keep) => {
                let keep = usize::try_from(*keep).unwrap();
                state.trimmed = state.trimmed.max(state.feed.len().saturating_sub(keep));
            }
            Step::Restart => {}
        }
        state
    }
}

struct Tested {
    runtime: Runtime,
    dir: tempfile::TempDir,
    /// `None` only in the middle of a restart.
    store: Option<SledStore>,
    start: Cursor,
}

/// In memory where there is such a folder: it takes a third of the time, and what a disk may do to
/// a store is for other tests.
fn make_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn open(dir: &tempfile::TempDir) -> SledStore {
    SledStore::open(dir.path(), 1 << 20, TestClock::at(NOW)).unwrap()
}

impl StateMachineTest for Tested {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(_: &Model) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = make_dir();
        let store = open(&dir);
        let start = runtime.block_on(store.feed_bounds(&title("t"))).unwrap().oldest;
        Self { runtime, dir, store: Some(store), start }
    }

    fn apply(mut this: Self, _: &Model, step: Step) -> Self {
        let store = this.store.take().unwrap();
        this.store = Some(match step {
            Step::Apply(update) => {
                let _ = this.runtime.block_on(store.apply(update));
                store
            }
            Step::Reset(update) => {
                this.runtime.block_on(store.reset(update)).expect("few events");
                store
            }
            Step::Erase(id) => {
                let erase = || this.runtime.block_on(store.erase_player(&player("t", id)));
                while erase().unwrap().records > 0 {}
                store
            }
            Step::Trim(keep) => {
                let keep = Retention { count: Some(keep), ..Retention::default() };
                this.runtime.block_on(store.trim_feed(&title("t"), keep)).unwrap();
                store
            }
            Step::Restart => {
                drop(store);
                open(&this.dir)
            }
        });
        this
    }

    fn check_invariants(this: &Self, model: &Model) {
        let store: &SledStore = this.store.as_ref().unwrap();
        for id in PLAYERS {
            let records = this.runtime.block_on(store.records(&player("t", id))).unwrap();
            let found: BTreeMap<_, State> = records
                .into_iter()
                .map(|(node, state)| (node.as_str().to_owned(), state))
                .collect();
            let expected = model.records.iter().filter(|((who, _), _)| who == id);
            let expected: BTreeMap<_, _> =
                expected.map(|((_, node), record)| (node.clone(), record.state.clone())).collect();
            assert_eq!(found, expected, "records of {id}");
        }
        let from_start = this.runtime.block_on(store.entries(&title("t"), &this.start, 1000));
        assert_eq!(matches!(from_start, Err(FeedError::Expired { .. })), model.trimmed > 0);
        let oldest = this.runtime.block_on(store.feed_bounds(&title("t"))).unwrap().oldest;
        let feed = this.runtime.block_on(store.entries(&title("t"), &oldest, 1000)).unwrap();
        let found = feed.iter().map(|it| {
            let (key, node, _) = it.event.of()?;
            let is_reset = matches!(it.event, Event::Reset(_));
            Some((key.player.as_str().to_owned(), node.as_str().to_owned(), is_reset))
        });
        assert_eq!(found.collect::<Vec<_>>(), model.feed[model.trimmed..]);
        let mut rarity = this.runtime.block_on(store.rarity(&title("t"))).unwrap();
        rarity.completed.retain(|_, completed| *completed > 0);
        assert_eq!(rarity, model.rarity());
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig {
        cases: histories(),
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn sled_agrees_with_plain_maps(sequential 1..60 => Tested);
}

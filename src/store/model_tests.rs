//! Random histories on real stores, restarts among them, against the simplest model there is: plain
//! maps and the rules. On a cluster two servers take the steps in turn.
//!
//! `ACCOLADE_MODEL_HISTORIES` sets how many, of 30 steps each on average; 340 unless given, which
//! are 10,000 steps. On a cluster it is a tenth of that.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use proptest::{prelude::*, test_runner::TestRunner};
use proptest_state_machine::ReferenceStateMachine;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{
    ApplyError, FeedError, Rarity, Retention, Store,
    jetstream::{Address, JetStreamStore},
    sled::SledStore,
};
use crate::{
    domain::{
        Change, Cursor, EpochSeconds, Event, Outcome, PlayerUpdate, Reason, Record, Refusal,
        RequestId, ResetUpdate, State, Version, decide, decide_reset,
    },
    testing::{TestClock, Update, lay_out, memory_dir, nats, node_id, player, title},
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

/// Player, node and whether it is a reset; `None` where it was erased.
type FeedEvent = Option<(String, String, bool)>;

/// What is answered to a step: whether it was a retry, and what became of each update.
type Answer = Result<(bool, Vec<Outcome>), Refusal>;

#[derive(Clone, Debug, Default)]
struct Model {
    records: BTreeMap<(String, String), Record>,
    /// Every event there ever was.
    feed: Vec<FeedEvent>,
    /// How many of them are gone where an erased event keeps its place.
    trimmed: usize,
    /// How many of them are gone where it does not.
    trimmed_present: usize,
    /// To the last step, where it was an update.
    answer: Option<Answer>,
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
        let ruling = decide(update, &stored, EpochSeconds::new(NOW));
        self.answer = Some(ruling.clone().map(|ruling| (ruling.replayed, ruling.outcomes)));
        let Ok(ruling) = ruling else { return };
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
        let ruling = decide_reset(update, &stored, EpochSeconds::new(NOW));
        self.answer = Some(Ok((ruling.replayed, vec![ruling.outcome])));
        if let Some(record) = ruling.write {
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

    fn trim(&mut self, keep: usize) {
        self.trimmed = self.trimmed.max(self.feed.len().saturating_sub(keep));
        let present = (self.trimmed_present..self.feed.len()).filter(|n| self.feed[*n].is_some());
        let present: Vec<_> = present.collect();
        if present.len() > keep {
            self.trimmed_present = present[present.len() - keep - 1] + 1;
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
        state.answer = None;
        match step {
            Step::Apply(update) => state.apply(update),
            Step::Reset(update) => state.reset(update),
            Step::Erase(id) => state.erase(id),
            Step::Trim(keep) => state.trim(usize::try_from(*keep).unwrap()),
            Step::Restart => {}
        }
        state
    }
}

/// Where a store is.
trait Place {
    /// Whether an erased event stays, empty.
    const KEEPS_ERASED: bool;
    /// Whether a feed has one order, and is trimmed as a whole.
    const IS_ONE_ORDER: bool;

    /// The servers of the store; those from before are gone.
    async fn open(&self) -> Vec<Arc<dyn Store>>;
}

impl Place for TempDir {
    const KEEPS_ERASED: bool = true;
    const IS_ONE_ORDER: bool = true;

    async fn open(&self) -> Vec<Arc<dyn Store>> {
        vec![Arc::new(SledStore::open(self.path(), 1 << 20, TestClock::at(NOW)).unwrap())]
    }
}

struct Cluster<const PARTITIONS: u32>(Address);

impl<const PARTITIONS: u32> Place for Cluster<PARTITIONS> {
    const KEEPS_ERASED: bool = false;
    const IS_ONE_ORDER: bool = PARTITIONS == 1;

    async fn open(&self) -> Vec<Arc<dyn Store>> {
        let open = || JetStreamStore::open(&self.0, 1 << 20, TestClock::at(NOW));
        vec![Arc::new(open().await.unwrap()), Arc::new(open().await.unwrap())]
    }
}

struct Tested<P> {
    place: P,
    /// The next step is for the first.
    servers: Vec<Arc<dyn Store>>,
    start: Cursor,
}

impl<P: Place> Tested<P> {
    async fn new(place: P) -> Self {
        let servers = place.open().await;
        let start = servers[0].feed_bounds(&title("t")).await.unwrap().oldest;
        Self { place, servers, start }
    }

    /// Takes a step, and tells what was answered.
    async fn take(&mut self, step: Step) -> Option<Answer> {
        self.servers.rotate_left(1);
        let server = self.servers.last().expect("there is one").clone();
        match step {
            Step::Apply(update) => match server.apply(update).await {
                Ok(applied) => {
                    let outcomes = applied.outcomes.into_iter().map(|(outcome, _)| outcome);
                    return Some(Ok((applied.replayed, outcomes.collect())));
                }
                Err(ApplyError::Refused(refusal)) => return Some(Err(refusal)),
                Err(error) => panic!("{error}"),
            },
            Step::Reset(update) => {
                let done = server.reset(update).await.expect("few events");
                return Some(Ok((done.replayed, vec![done.outcome])));
            }
            Step::Erase(id) => {
                while server.erase_player(&player("t", id)).await.unwrap().records > 0 {}
            }
            Step::Trim(keep) if P::IS_ONE_ORDER => {
                let keep = Retention { count: Some(keep), ..Retention::default() };
                server.trim_feed(&title("t"), keep).await.unwrap();
            }
            Step::Trim(_) => {}
            Step::Restart => {
                drop(server);
                self.servers.clear();
                self.servers = self.place.open().await;
            }
        }
        None
    }

    /// Asks the server that did not take the last step, where there are two.
    async fn check(&self, model: &Model) {
        let store = &self.servers[0];
        for id in PLAYERS {
            let records = store.records(&player("t", id)).await.unwrap();
            let found: BTreeMap<_, State> = records
                .into_iter()
                .map(|(node, state)| (node.as_str().to_owned(), state))
                .collect();
            let expected = model.records.iter().filter(|((who, _), _)| who == id);
            let expected: BTreeMap<_, _> =
                expected.map(|((_, node), record)| (node.clone(), record.state.clone())).collect();
            assert_eq!(found, expected, "records of {id}");
        }

        let trimmed = match (P::IS_ONE_ORDER, P::KEEPS_ERASED) {
            (false, _) => 0,
            (true, true) => model.trimmed,
            (true, false) => model.trimmed_present,
        };
        let expected = model.feed[trimmed..].iter();
        let expected: Vec<_> =
            expected.filter(|it| P::KEEPS_ERASED || it.is_some()).cloned().collect();
        let from_start = store.entries(&title("t"), &self.start, 1000).await;
        assert_eq!(matches!(from_start, Err(FeedError::Expired { .. })), trimmed > 0);
        let oldest = store.feed_bounds(&title("t")).await.unwrap().oldest;
        let feed = store.entries(&title("t"), &oldest, 1000).await.unwrap();
        let found = feed.iter().map(|it| {
            let (key, node, _) = it.event.of()?;
            let is_reset = matches!(it.event, Event::Reset(_));
            Some((key.player.as_str().to_owned(), node.as_str().to_owned(), is_reset))
        });
        let found: Vec<_> = found.collect();
        if P::IS_ONE_ORDER {
            assert_eq!(found, expected);
        } else {
            assert_eq!(found.len(), expected.len());
            for id in PLAYERS {
                let of_player = |feed: &[FeedEvent]| {
                    let mut feed = feed.to_vec();
                    feed.retain(|it| it.as_ref().is_some_and(|(player, ..)| player == id));
                    feed
                };
                assert_eq!(of_player(&found), of_player(&expected));
            }
        }
    }

    /// By servers that have counted nothing yet: a cluster may tell a count again for a while.
    async fn check_rarity(&mut self, model: &Model) {
        self.take(Step::Restart).await;
        let mut rarity = self.servers[0].rarity(&title("t")).await.unwrap();
        rarity.completed.retain(|_, completed| *completed > 0);
        assert_eq!(rarity, model.rarity());
    }
}

/// Lets random histories happen, each in a place of its own.
fn agrees<P: Place>(runtime: &Runtime, histories: u32, place: impl AsyncFn() -> P) {
    let config = ProptestConfig {
        cases: histories,
        max_shrink_iters: 200,
        failure_persistence: None,
        source_file: Some(file!()),
        test_name: Some(std::any::type_name::<P>()),
        ..ProptestConfig::default()
    };
    let steps = Model::sequential_strategy(1..60);
    let done = TestRunner::new(config).run(&steps, |(mut model, steps, seen)| {
        let seen: Option<Arc<AtomicUsize>> = seen;
        runtime.block_on(async {
            let mut tested = Tested::new(place().await).await;
            for step in steps {
                // What was not seen is not tried again when a failure is made smaller.
                if let Some(seen) = &seen {
                    seen.fetch_add(1, Ordering::SeqCst);
                }
                model = <Model as ReferenceStateMachine>::apply(model, &step);
                let answer = tested.take(step).await;
                assert_eq!(answer, model.answer);
                tested.check(&model).await;
            }
            tested.check_rarity(&model).await;
        });
        Ok(())
    });
    if let Err(error) = done {
        panic!("{error}");
    }
}

fn agrees_on_a_cluster<const PARTITIONS: u32>() {
    let runtime = Runtime::new().unwrap();
    let nats = nats();
    let count = AtomicUsize::new(0);
    agrees(&runtime, histories().div_ceil(10), async || {
        let prefix = format!("h{}", count.fetch_add(1, Ordering::SeqCst));
        Cluster::<PARTITIONS>(lay_out(&nats, &prefix, PARTITIONS).await)
    });
}

#[test]
fn sled_agrees_with_plain_maps() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    agrees(&runtime, histories(), async || memory_dir());
}

#[test]
fn two_servers_of_a_cluster_agree_with_plain_maps() {
    agrees_on_a_cluster::<1>();
}

#[test]
fn two_servers_of_a_cluster_of_several_partitions_agree_with_plain_maps() {
    agrees_on_a_cluster::<4>();
}

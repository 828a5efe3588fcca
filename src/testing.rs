//! What tests of several rooms build alike.

use std::{
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use proptest::{collection::vec, prelude::*, sample::Index};
use tempfile::TempDir;

use crate::{
    clock::Clock,
    domain::{
        Catalog, Change, Completion, DefinitionDraft, Entry, EpochSeconds, Event, Extra, NodeId,
        NodeUpdate, PlayerId, PlayerKey, PlayerUpdate, RequestId, SetUpdate, SubscriptionName,
        Title, Version,
    },
    store::jetstream::{self, Address, Plan},
};

#[allow(dead_code, reason = "shared with the tests from outside")]
#[path = "../tests/support/nats.rs"]
pub(crate) mod nats;

/// In memory where there is such a folder and room in it: it takes a third of the time, and what a
/// disk may do to a store is for other tests.
fn memory() -> PathBuf {
    const BYTES_MIN: u64 = 1 << 30;
    let memory = PathBuf::from("/dev/shm");
    let room = rustix::fs::statvfs(&memory).map_or(0, |it| it.f_bavail * it.f_frsize);
    if room >= BYTES_MIN { memory } else { std::env::temp_dir() }
}

/// A folder there.
pub(crate) fn memory_dir() -> TempDir {
    tempfile::tempdir_in(memory()).unwrap()
}

/// A server of NATS.
pub(crate) fn nats() -> nats::Nats {
    nats::Nats::start_in(&memory(), 1, nats::Ways::Direct)
}

/// A cluster of one server, laid out.
pub(crate) async fn cluster(partitions: u32) -> (nats::Nats, Address) {
    let nats = tokio::task::spawn_blocking(nats).await.unwrap();
    let address = lay_out(&nats, "ach", partitions).await;
    (nats, address)
}

/// Lays an installation of that prefix out.
pub(crate) async fn lay_out(nats: &nats::Nats, prefix: &str, partitions: u32) -> Address {
    let address: Address = nats.url(prefix).parse().unwrap();
    let plan = Plan { partitions: Some(partitions), replicas: Some(1) };
    jetstream::init(&address, plan).await.unwrap();
    address
}

/// A clock that stands where it was put.
#[derive(Default)]
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn at(seconds: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(seconds)))
    }

    pub(crate) fn put(&self, seconds: u64) {
        self.0.store(seconds, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> EpochSeconds {
        EpochSeconds::new(self.0.load(Ordering::SeqCst))
    }
}

pub(crate) fn title(text: &str) -> Title {
    Title::parse(text).unwrap()
}

pub(crate) fn node_id(text: &str) -> NodeId {
    NodeId::parse(text).unwrap()
}

pub(crate) fn subscription(text: &str) -> SubscriptionName {
    SubscriptionName::parse(text).unwrap()
}

pub(crate) fn player(title_text: &str, player: &str) -> PlayerKey {
    PlayerKey { title: title(title_text), player: PlayerId::parse(player).unwrap() }
}

/// A catalogue of these nodes with these targets.
pub(crate) fn catalog(nodes: &[(&str, i64)]) -> Catalog {
    let drafts = nodes.iter().map(|(id, max_progress)| DefinitionDraft {
        node_id: (*id).to_owned(),
        max_progress: *max_progress,
        display_name: format!("名 {id}"),
        ..Default::default()
    });
    Catalog::parse(drafts.collect()).unwrap()
}

/// Builds an update of player `p` of title `t`.
pub(crate) struct Update(PlayerUpdate);

impl Update {
    pub(crate) fn of(title: &str, player_id: &str) -> Self {
        let key = player(title, player_id);
        Self(PlayerUpdate { key, request_id: None, updates: vec![], happened_at: None })
    }

    /// Makes it a late one.
    pub(crate) fn at(mut self, seconds: u64) -> Self {
        self.0.happened_at = Some(EpochSeconds::new(seconds));
        self
    }

    pub(crate) fn id(mut self, id: &str) -> Self {
        self.0.request_id = Some(RequestId::parse(id).unwrap());
        self
    }

    /// Adds `delta` to a node with this target.
    pub(crate) fn delta(self, node: &str, target: i64, delta: u64) -> Self {
        self.set(node, target, Some(Change::Delta(delta)), None, None)
    }

    pub(crate) fn set(
        mut self,
        node: &str,
        target: i64,
        change: Option<Change>,
        extra: Option<&str>,
        expected: Option<u64>,
    ) -> Self {
        let catalog = catalog(&[(node, target)]);
        let extra = extra.map(|text| Extra::parse(text, usize::MAX).unwrap());
        let update = SetUpdate::new(change, extra, expected.map(Version::stored)).unwrap();
        let node = catalog.node(&node_id(node)).unwrap().clone();
        self.0.updates.push(NodeUpdate { node, update });
        self
    }

    pub(crate) fn build(self) -> PlayerUpdate {
        self.0
    }
}

/// The player of something in a feed.
pub(crate) fn player_of(entry: &Entry) -> &str {
    let (key, ..) = entry.event.of().expect("nothing was erased");
    key.player.as_str()
}

/// A completion in a feed.
pub(crate) fn completion_of(entry: &Entry) -> &Completion {
    match &entry.event {
        Event::Completion(completion) => completion,
        other => panic!("{other:?} is no completion"),
    }
}

/// One change of some bytes.
#[derive(Clone, Debug)]
pub(crate) enum Mutation {
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// A piece once more, somewhere else.
    Repeat(Index, usize, Index),
    Swap(Index, Index),
    Cut(Index),
}

/// So many changes; `inserted` is what may be put in, `piece` how long what is removed or repeated.
pub(crate) fn mutations(
    inserted: impl Strategy<Value = Vec<u8>>,
    piece: Range<usize>,
    count: Range<usize>,
) -> impl Strategy<Value = Vec<Mutation>> {
    let at = any::<Index>;
    let mutation = prop_oneof![
        4 => (at(), 0..8u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        4 => (at(), inserted).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        4 => (at(), piece.clone()).prop_map(|(at, len)| Mutation::Remove(at, len)),
        4 => (at(), piece, at()).prop_map(|(at, len, to)| Mutation::Repeat(at, len, to)),
        4 => (at(), at()).prop_map(|(a, b)| Mutation::Swap(a, b)),
        1 => at().prop_map(Mutation::Cut),
    ];
    vec(mutation, count)
}

pub(crate) fn mutated(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        let range = |at: &Index, count: usize| at.index(len)..len.min(at.index(len) + count);
        match mutation {
            Mutation::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
            Mutation::Insert(at, more) => {
                bytes.splice(at.index(len)..at.index(len), more.iter().copied());
            }
            Mutation::Remove(at, count) => drop(bytes.drain(range(at, *count))),
            Mutation::Repeat(at, count, to) => {
                let piece = bytes[range(at, *count)].to_vec();
                bytes.splice(to.index(len)..to.index(len), piece);
            }
            Mutation::Swap(a, b) => bytes.swap(a.index(len), b.index(len)),
            Mutation::Cut(at) => bytes.truncate(at.index(len)),
        }
    }
    bytes
}

//! What tests of several rooms build alike.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    clock::Clock,
    domain::{
        Catalog, Change, DefinitionDraft, EpochSeconds, Extra, NodeId, NodeUpdate, PlayerId,
        PlayerKey, PlayerUpdate, RequestId, SetUpdate, Title, Version,
    },
};

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
        Self(PlayerUpdate { key: player(title, player_id), request_id: None, updates: vec![] })
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

//! A store in memory, the simplest that keeps the contract: for tests, and to read the contract
//! without an engine in the way. Nothing survives the process.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    Answered, Applied, ApplyError, CatalogError, FeedBounds, FeedError, Retention, Store,
    StoreError, StoreHealth, StoredCatalog, TITLES_MAX, cursor::CursorCodec,
};
use crate::{
    clock::Clock,
    domain::{
        Catalog, Completion, Cursor, EpochSeconds, NodeId, PlayerKey, PlayerUpdate, Record, State,
        Title, decide,
    },
};

/// See the module.
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    cursors: CursorCodec,
    health: watch::Sender<StoreHealth>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    records: BTreeMap<(PlayerKey, NodeId), (Record, u64)>,
    feeds: BTreeMap<Title, Feed>,
    catalogs: BTreeMap<Title, StoredCatalog>,
}

struct Feed {
    trimmed_through: u64,
    completions: VecDeque<Completion>,
    newest_completed_at: EpochSeconds,
    changes: watch::Sender<()>,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            trimmed_through: 0,
            completions: VecDeque::new(),
            newest_completed_at: EpochSeconds::default(),
            changes: watch::Sender::new(()),
        }
    }
}

impl Feed {
    fn head(&self) -> u64 {
        self.trimmed_through + self.completions.len() as u64
    }
}

// === impl MemoryStore ===

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            cursors: CursorCodec::new(fastrand::u64(..)),
            health: watch::Sender::new(StoreHealth::Serving),
            inner: Mutex::default(),
        }
    }

    fn apply_now(&self, update: &PlayerUpdate) -> Result<Applied, ApplyError> {
        let title = update.key.title.clone();
        let mut inner = self.inner.lock();
        let Inner { records, feeds, .. } = &mut *inner;
        let keys = update
            .updates
            .iter()
            .map(|item| (update.key.clone(), item.node.definition().node_id().clone()));
        let keys: Vec<_> = keys.collect();
        let stored = keys.iter().map(|key| records.get(key).cloned().unwrap_or_default());
        let (before, sequences): (Vec<Record>, Vec<u64>) = stored.unzip();
        let feed = feeds.entry(title.clone()).or_default();
        let now = self.clock.now().max(feed.newest_completed_at);
        let ruling = decide(update, &before, now)?;

        let mut outcomes = Vec::new();
        let items = update.updates.iter().zip(keys).zip(sequences);
        for ((outcome, write), ((item, key), mut sequence)) in
            ruling.outcomes.into_iter().zip(ruling.writes).zip(items)
        {
            if let Some(record) = write {
                if outcome.newly_completed {
                    sequence = feed.head() + 1;
                    feed.newest_completed_at = now;
                    feed.completions.push_back(Completion {
                        cursor: self.cursors.encode(&title, sequence),
                        key: update.key.clone(),
                        node: item.node.clone(),
                        progress: record.state.progress,
                        completed_at: record.state.completed_at,
                        version: record.state.version,
                        extra: record.state.extra.clone(),
                    });
                    feed.changes.send_replace(());
                }
                records.insert(key, (record, sequence));
            }
            let cursor = outcome.newly_completed.then(|| self.cursors.encode(&title, sequence));
            outcomes.push((outcome, cursor));
        }
        Ok(Applied { replayed: ruling.replayed, outcomes })
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn submit(&self, update: PlayerUpdate) -> Result<Answered, StoreError> {
        let (answer, answered) = Answered::new();
        let _ = answer.send(self.apply_now(&update));
        Ok(answered)
    }

    async fn records(&self, player: &PlayerKey) -> Result<Vec<(NodeId, State)>, StoreError> {
        let inner = self.inner.lock();
        let of_player = inner.records.iter().filter(|((key, _), _)| key == player);
        Ok(of_player.map(|((_, node), (record, _))| (node.clone(), record.state.clone())).collect())
    }

    async fn feed_bounds(&self, title: &Title) -> Result<FeedBounds, StoreError> {
        let mut inner = self.inner.lock();
        let feed = inner.feeds.entry(title.clone()).or_default();
        Ok(FeedBounds {
            oldest: self.cursors.encode(title, feed.trimmed_through),
            newest: self.cursors.encode(title, feed.head()),
        })
    }

    async fn completions(
        &self,
        title: &Title,
        after: &Cursor,
        limit: usize,
    ) -> Result<Vec<Completion>, FeedError> {
        let sequence = self.cursors.decode(title, after).ok_or(FeedError::NotACursor)?;
        let mut inner = self.inner.lock();
        let feed = inner.feeds.entry(title.clone()).or_default();
        let oldest = self.cursors.encode(title, feed.trimmed_through);
        if sequence > feed.head() {
            return Err(FeedError::InFuture { oldest });
        }
        let Some(skipped) = sequence.checked_sub(feed.trimmed_through) else {
            return Err(FeedError::Expired { oldest });
        };
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        Ok(feed.completions.iter().skip(skipped).take(limit).cloned().collect())
    }

    fn feed_changes(&self, title: &Title) -> watch::Receiver<()> {
        self.inner.lock().feeds.entry(title.clone()).or_default().changes.subscribe()
    }

    async fn trim_feed(&self, title: &Title, keep: Retention) -> Result<usize, StoreError> {
        let mut inner = self.inner.lock();
        let feed = inner.feeds.entry(title.clone()).or_default();
        let before = feed.completions.len();
        while let Some(first) = feed.completions.front() {
            if keep.keeps(feed.completions.len() as u64, first.completed_at) {
                break;
            }
            feed.completions.pop_front();
            feed.trimmed_through += 1;
        }
        Ok(before - feed.completions.len())
    }

    async fn catalogs(&self) -> Result<Vec<StoredCatalog>, StoreError> {
        Ok(self.inner.lock().catalogs.values().cloned().collect())
    }

    async fn replace_catalog(
        &self,
        title: &Title,
        expected: u64,
        catalog: Arc<Catalog>,
    ) -> Result<StoredCatalog, CatalogError> {
        let catalogs = &mut self.inner.lock().catalogs;
        let actual = catalogs.get(title).map_or(0, |stored| stored.revision);
        if actual != expected {
            return Err(CatalogError::RevisionMismatch { expected, actual });
        }
        if actual == 0 && catalogs.len() >= TITLES_MAX {
            return Err(CatalogError::TooManyTitles);
        }
        let stored = StoredCatalog { title: title.clone(), revision: actual + 1, catalog };
        catalogs.insert(title.clone(), stored.clone());
        Ok(stored)
    }

    async fn count_players(
        &self,
        title: &Title,
        nodes: &BTreeSet<NodeId>,
    ) -> Result<u64, StoreError> {
        let inner = self.inner.lock();
        let matching =
            inner.records.keys().filter(|(key, node)| key.title == *title && nodes.contains(node));
        let players: BTreeSet<_> = matching.map(|(key, _)| &key.player).collect();
        Ok(players.len() as u64)
    }

    fn health(&self) -> watch::Receiver<StoreHealth> {
        self.health.subscribe()
    }
}

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
    Answered, Applied, ApplyError, CatalogError, FeedBounds, FeedError, FeedSource, Retention,
    SUBSCRIPTIONS_MAX, Store, StoreError, StoreHealth, StoredCatalog, Subscription,
    SubscriptionError, TITLES_MAX, cursor::CursorCodec,
};
use crate::{
    clock::Clock,
    domain::{
        Catalog, Completion, Cursor, EpochSeconds, NodeId, PlayerKey, PlayerUpdate, Record, State,
        SubscriptionName, Title, decide,
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
    subscriptions: BTreeMap<(Title, SubscriptionName), (u64, EpochSeconds)>,
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

    /// The place of a cursor that works.
    fn place(&self, inner: &mut Inner, title: &Title, cursor: &Cursor) -> Result<u64, FeedError> {
        let sequence = self.cursors.decode(title, cursor).ok_or(FeedError::NotACursor)?;
        let feed = inner.feeds.entry(title.clone()).or_default();
        let oldest = self.cursors.encode(title, feed.trimmed_through);
        match sequence {
            it if it > feed.head() => Err(FeedError::InFuture { oldest }),
            it if it < feed.trimmed_through => Err(FeedError::Expired { oldest }),
            _ => Ok(sequence),
        }
    }

    fn subscription(
        &self,
        inner: &mut Inner,
        title: &Title,
        name: &SubscriptionName,
    ) -> Option<Subscription> {
        let (sequence, moved_at) = *inner.subscriptions.get(&(title.clone(), name.clone()))?;
        let head = inner.feeds.entry(title.clone()).or_default().head();
        let (cursor, lag) = (self.cursors.encode(title, sequence), head - sequence);
        Some(Subscription { name: name.clone(), cursor, lag, moved_at })
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
impl FeedSource for MemoryStore {
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
        let mut inner = self.inner.lock();
        let sequence = self.place(&mut inner, title, after)?;
        let feed = inner.feeds.entry(title.clone()).or_default();
        let skipped = sequence - feed.trimmed_through;
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        Ok(feed.completions.iter().skip(skipped).take(limit).cloned().collect())
    }

    fn feed_changes(&self, title: &Title) -> watch::Receiver<()> {
        self.inner.lock().feeds.entry(title.clone()).or_default().changes.subscribe()
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

    async fn open_subscription(
        &self,
        title: &Title,
        name: &SubscriptionName,
        after: Option<&Cursor>,
    ) -> Result<Subscription, SubscriptionError> {
        let inner = &mut *self.inner.lock();
        let sequence = after.map(|after| self.place(inner, title, after)).transpose()?;
        let head = inner.feeds.entry(title.clone()).or_default().head();
        let known = inner.subscriptions.keys().filter(|(of, _)| of == title).count();
        let key = (title.clone(), name.clone());
        if !inner.subscriptions.contains_key(&key) && known >= SUBSCRIPTIONS_MAX {
            return Err(SubscriptionError::TooMany);
        }
        let now = self.clock.now();
        let place = inner.subscriptions.entry(key).or_insert((sequence.unwrap_or(head), now));
        if let Some(sequence) = sequence.filter(|sequence| *sequence != place.0) {
            *place = (sequence, now);
        }
        self.subscription(inner, title, name).ok_or(SubscriptionError::NotFound)
    }

    async fn ack(
        &self,
        title: &Title,
        name: &SubscriptionName,
        through: &Cursor,
    ) -> Result<Subscription, SubscriptionError> {
        let inner = &mut *self.inner.lock();
        let sequence = match self.place(inner, title, through) {
            // It was delivered, and has left the feed since.
            Err(FeedError::Expired { .. }) => self.cursors.decode(title, through).unwrap_or(0),
            place => place?,
        };
        let place = inner.subscriptions.get_mut(&(title.clone(), name.clone()));
        let place = place.ok_or(SubscriptionError::NotFound)?;
        if sequence > place.0 {
            *place = (sequence, self.clock.now());
        }
        self.subscription(inner, title, name).ok_or(SubscriptionError::NotFound)
    }

    async fn subscriptions(&self, title: &Title) -> Result<Vec<Subscription>, StoreError> {
        let inner = &mut *self.inner.lock();
        let names = inner.subscriptions.keys().filter(|(of, _)| of == title);
        let names: Vec<_> = names.map(|(_, name)| name.clone()).collect();
        Ok(names.iter().filter_map(|name| self.subscription(inner, title, name)).collect())
    }

    async fn delete_subscription(
        &self,
        title: &Title,
        name: &SubscriptionName,
    ) -> Result<(), SubscriptionError> {
        let removed = self.inner.lock().subscriptions.remove(&(title.clone(), name.clone()));
        removed.map(drop).ok_or(SubscriptionError::NotFound)
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

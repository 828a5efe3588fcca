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
    Answered, Applied, ApplyError, Bookmark, CatalogError, Erased, FeedBounds, FeedError,
    FeedSource, ImportError, Imported, Operations, PlayerRecords, Rarity, ResetDone, ResetError,
    Retention, SUBSCRIPTIONS_MAX, Store, StoreError, StoreHealth, StoredCatalog, StoredRecord,
    Subscription, SubscriptionError, TITLES_MAX, Times,
    cursor::CursorCodec,
    transfer::{self, Item, Target},
};
use crate::{
    clock::Clock,
    domain::{
        Catalog, Completion, Cursor, Entry, EpochSeconds, Event, NodeId, PlayerKey, PlayerUpdate,
        Reset, ResetRuling, ResetUpdate, State, SubscriptionName, Title, decide, decide_reset,
    },
};

/// See the module.
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    id: u64,
    cursors: CursorCodec,
    health: watch::Sender<StoreHealth>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    records: Records,
    feeds: BTreeMap<Title, Feed>,
    catalogs: BTreeMap<Title, StoredCatalog>,
    subscriptions: Subscriptions,
}

type Records = BTreeMap<(PlayerKey, NodeId), StoredRecord>;
type Subscriptions = BTreeMap<(Title, SubscriptionName), (u64, EpochSeconds)>;

struct Feed {
    trimmed_through: u64,
    entries: VecDeque<Entry>,
    newest_stored_at: EpochSeconds,
    erasures: u64,
    changes: watch::Sender<()>,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            trimmed_through: 0,
            entries: VecDeque::new(),
            newest_stored_at: EpochSeconds::default(),
            erasures: 0,
            changes: watch::Sender::new(()),
        }
    }
}

impl Feed {
    fn head(&self) -> u64 {
        self.trimmed_through + self.entries.len() as u64
    }
}

// === impl MemoryStore ===

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let id = fastrand::u64(..);
        Self {
            clock,
            id,
            cursors: CursorCodec::new(id),
            health: watch::Sender::new(StoreHealth::Serving),
            inner: Mutex::default(),
        }
    }

    /// The place of a cursor that works.
    fn place(&self, inner: &mut Inner, title: &Title, cursor: &Cursor) -> Result<u64, FeedError> {
        let sequence = self.cursors.decode(title, cursor, 0).ok_or(FeedError::NotACursor)?;
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
        Some(Subscription { name: name.clone(), cursor, lag, moved_at, claim: 0 })
    }

    /// Puts an event at the end of a feed; tells its place.
    fn append(&self, feed: &mut Feed, title: &Title, event: Event, stored_at: EpochSeconds) -> u64 {
        let sequence = feed.head() + 1;
        let cursor = self.cursors.encode(title, sequence);
        feed.newest_stored_at = stored_at;
        feed.entries.push_back(Entry { cursor, stored_at, event });
        feed.changes.send_replace(());
        sequence
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
        let stored: Vec<StoredRecord> = stored.collect();
        let before: Vec<_> = stored.iter().map(|stored| &stored.record).collect();
        let feed = feeds.entry(title.clone()).or_default();
        let now = self.clock.now().max(feed.newest_stored_at);
        let ruling = decide(update, &before, now)?;

        let mut outcomes = Vec::new();
        let items = update.updates.iter().zip(keys).zip(&stored);
        for ((outcome, write), ((item, key), stored)) in
            ruling.outcomes.into_iter().zip(ruling.writes).zip(items)
        {
            let mut sequence = stored.completion_sequence;
            if let Some(record) = write {
                if outcome.newly_completed {
                    let event = Event::Completion(Completion::of(&update.key, &item.node, &record));
                    sequence = self.append(feed, &title, event, now);
                }
                let past = stored.past.clone();
                records.insert(key, StoredRecord { record, completion_sequence: sequence, past });
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

    async fn entries(
        &self,
        title: &Title,
        after: &Cursor,
        limit: usize,
    ) -> Result<Vec<Entry>, FeedError> {
        let mut inner = self.inner.lock();
        let sequence = self.place(&mut inner, title, after)?;
        let feed = inner.feeds.entry(title.clone()).or_default();
        let skipped = sequence - feed.trimmed_through;
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        Ok(feed.entries.iter().skip(skipped).take(limit).cloned().collect())
    }

    fn own_cursor(&self, _: &Title, cursor: &Cursor) -> Cursor {
        cursor.clone()
    }

    fn advanced(&self, title: &Title, cursor: &Cursor, entry: &Cursor) -> Option<Cursor> {
        (!self.reaches(title, cursor, entry)).then(|| entry.clone())
    }

    fn feed_changes(&self, title: &Title) -> watch::Receiver<()> {
        self.inner.lock().feeds.entry(title.clone()).or_default().changes.subscribe()
    }
}

#[async_trait]
impl Operations for MemoryStore {
    async fn reset(&self, update: ResetUpdate) -> Result<ResetDone, ResetError> {
        let mut inner = self.inner.lock();
        let Inner { records, feeds, .. } = &mut *inner;
        let ResetUpdate { key, node, .. } = &update;
        let feed = feeds.entry(key.title.clone()).or_default();
        let now = self.clock.now().max(feed.newest_stored_at);
        let place = (key.clone(), node.clone());
        let stored = records.get(&place).cloned().unwrap_or_default();
        let ResetRuling { replayed, outcome, write } = decide_reset(&update, &stored.record, now);
        let Some(record) = write else {
            let version = outcome.after.version;
            let told = stored.events().find(|event| replayed && event.version == version);
            let cursor = told.map(|event| self.cursors.encode(&key.title, event.sequence));
            return Ok(ResetDone { replayed, outcome, cursor });
        };
        let after = stored.reset(record, feed.head() + 1, feed.trimmed_through);
        let after = after.ok_or(ResetError::TooMany)?;
        let event = Event::Reset(Reset::of(&update, &outcome, now));
        let sequence = self.append(feed, &key.title, event, now);
        records.insert(place, after);
        let cursor = Some(self.cursors.encode(&key.title, sequence));
        Ok(ResetDone { replayed, outcome, cursor })
    }

    async fn erase_player(&self, player: &PlayerKey) -> Result<Erased, StoreError> {
        let mut inner = self.inner.lock();
        let Inner { records, feeds, .. } = &mut *inner;
        let before = records.len();
        records.retain(|(key, _), _| key != player);
        let mut erased = Erased { records: (before - records.len()) as u64, events: 0 };
        let feed = feeds.entry(player.title.clone()).or_default();
        feed.erasures += 2 * u64::from(erased.records > 0);
        for entry in &mut feed.entries {
            if entry.event.of().is_some_and(|(key, ..)| key == player) {
                entry.event = Event::Erased;
                erased.events += 1;
            }
        }
        Ok(erased)
    }

    async fn rarity(&self, title: &Title) -> Result<Rarity, StoreError> {
        let inner = self.inner.lock();
        let mut rarity = Rarity::default();
        let mut players = BTreeSet::new();
        for ((key, node), stored) in
            inner.records.iter().filter(|((key, _), _)| key.title == *title)
        {
            players.insert(&key.player);
            if stored.completion_sequence != 0 {
                *rarity.completed.entry(node.clone()).or_default() += 1;
            }
        }
        rarity.players = players.len() as u64;
        Ok(rarity)
    }

    fn id(&self) -> u64 {
        self.id
    }

    async fn erasures(&self, title: &Title) -> Result<u64, StoreError> {
        Ok(self.inner.lock().feeds.get(title).map_or(0, |feed| feed.erasures))
    }

    fn position(&self, title: &Title, cursor: &Cursor) -> Option<u64> {
        self.cursors.decode(title, cursor, 0)
    }

    async fn full_records(
        &self,
        title: &Title,
        after: Option<&Bookmark>,
    ) -> Result<(Vec<PlayerRecords>, Option<Bookmark>), StoreError> {
        let inner = self.inner.lock();
        let of_title = inner.records.iter().filter(|((key, _), _)| key.title == *title);
        let next = of_title
            .map(|((key, _), _)| &key.player)
            .find(|it| after.is_none_or(|a| it.as_str() > a.0.as_str()));
        let Some(player) = next else { return Ok((Vec::new(), None)) };
        let of_player = inner
            .records
            .iter()
            .filter(|((key, _), _)| key.title == *title && key.player == *player);
        let records = of_player.map(|((_, node), stored)| (node.clone(), stored.clone()));
        let bookmark = Bookmark(player.as_str().to_owned());
        Ok((vec![(player.clone(), records.collect())], Some(bookmark)))
    }

    async fn player_records(
        &self,
        player: &PlayerKey,
    ) -> Result<Vec<(NodeId, StoredRecord)>, StoreError> {
        let inner = self.inner.lock();
        let of_player = inner.records.iter().filter(|((key, _), _)| key == player);
        Ok(of_player.map(|((_, node), stored)| (node.clone(), stored.clone())).collect())
    }

    async fn import(
        &self,
        title: &Title,
        items: Vec<Item>,
        times: Times,
    ) -> Result<(Imported, Vec<Item>), ImportError> {
        let inner = &mut *self.inner.lock();
        let feed = inner.feeds.entry(title.clone()).or_default();
        // On a copy, which takes the place of the title where nothing is refused.
        let mut copy = TitleCopy {
            store: self,
            title,
            records: inner.records.clone(),
            feed: Feed {
                trimmed_through: feed.trimmed_through,
                entries: feed.entries.clone(),
                newest_stored_at: feed.newest_stored_at,
                erasures: feed.erasures,
                changes: feed.changes.clone(),
            },
            subscriptions: inner.subscriptions.clone(),
        };
        let imported = transfer::import(&mut copy, title, items, times)?;
        let TitleCopy { records, feed, subscriptions, .. } = copy;
        feed.changes.send_replace(());
        inner.feeds.insert(title.clone(), feed);
        (inner.records, inner.subscriptions) = (records, subscriptions);
        Ok(imported)
    }
}

/// What an import has made of a title so far.
struct TitleCopy<'a> {
    store: &'a MemoryStore,
    title: &'a Title,
    records: Records,
    feed: Feed,
    subscriptions: Subscriptions,
}

impl Target for TitleCopy<'_> {
    fn ends(&mut self) -> (u64, u64, EpochSeconds) {
        (self.feed.trimmed_through, self.feed.head(), self.feed.newest_stored_at)
    }

    fn now(&self) -> EpochSeconds {
        self.store.clock.now()
    }

    fn event(&mut self, position: u64) -> Result<Option<Event>, StoreError> {
        let place = position - self.feed.trimmed_through - 1;
        let entry = usize::try_from(place).ok().and_then(|place| self.feed.entries.get(place));
        Ok(entry.map(|entry| entry.event.clone()))
    }

    fn record(&mut self, key: &PlayerKey, node: &NodeId) -> Result<StoredRecord, StoreError> {
        Ok(self.records.get(&(key.clone(), node.clone())).cloned().unwrap_or_default())
    }

    fn begin_feed(&mut self, position: u64) {
        self.feed.trimmed_through = position;
    }

    fn append(&mut self, _: u64, entry: &Entry) {
        self.store.append(&mut self.feed, self.title, entry.event.clone(), entry.stored_at);
    }

    fn put(
        &mut self,
        key: &PlayerKey,
        node: &NodeId,
        stored: StoredRecord,
    ) -> Result<(), StoreError> {
        self.records.insert((key.clone(), node.clone()), stored);
        Ok(())
    }

    fn subscribe(&mut self, name: SubscriptionName, position: u64) -> Result<bool, String> {
        let known = self.subscriptions.keys().filter(|(of, _)| of == self.title).count();
        let key = (self.title.clone(), name);
        match self.subscriptions.contains_key(&key) {
            true => Ok(false),
            false if known >= SUBSCRIPTIONS_MAX => Err(SubscriptionError::TooMany.to_string()),
            false => {
                self.subscriptions.insert(key, (position, self.store.clock.now()));
                Ok(true)
            }
        }
    }

    fn is_full(&self) -> bool {
        false
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
        Ok(of_player.map(|((_, node), it)| (node.clone(), it.record.state.clone())).collect())
    }

    async fn trim_feed(&self, title: &Title, keep: Retention) -> Result<usize, StoreError> {
        let mut inner = self.inner.lock();
        let feed = inner.feeds.entry(title.clone()).or_default();
        let before = feed.entries.len();
        while let Some(first) = feed.entries.front() {
            if keep.keeps(feed.entries.len() as u64, first.stored_at) {
                break;
            }
            feed.entries.pop_front();
            feed.trimmed_through += 1;
        }
        Ok(before - feed.entries.len())
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
        _: u64,
    ) -> Result<Subscription, SubscriptionError> {
        let inner = &mut *self.inner.lock();
        let sequence = match self.place(inner, title, through) {
            // It was delivered, and has left the feed since.
            Err(FeedError::Expired { .. }) => self.cursors.decode(title, through, 0).unwrap_or(0),
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

    async fn newer_catalogs(
        &self,
        known: &BTreeMap<Title, u64>,
    ) -> Result<Vec<StoredCatalog>, StoreError> {
        let inner = self.inner.lock();
        let is_newer = |it: &&StoredCatalog| known.get(&it.title) != Some(&it.revision);
        Ok(inner.catalogs.values().filter(is_newer).cloned().collect())
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

    fn catalog_changes(&self) -> watch::Receiver<()> {
        // Nobody else replaces any.
        watch::Sender::new(()).subscribe()
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

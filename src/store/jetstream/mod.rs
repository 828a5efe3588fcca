//! The store on many machines: NATS JetStream. Servers that share a cluster keep nothing of their
//! own; consensus, replication and durability are JetStream's.
//!
//! Rooms: `address`, `connection`, `layout` (made once, checked at start), `names`; `wire` is all
//! that is said to JetStream, `reach` whether a majority answers, `cluster` what is shared by the
//! rest. A set goes through `players` (queue, compare and swap, unknown outcomes), `draft` (the
//! rules) and `document` (the format). `feed` and `places` are feeds and their cursors;
//! `subscriptions`, `catalogs`, `scan`, `erase` and `import` are what their names say; `words` is
//! what servers say to each other, and `monitor` asks those of NATS about themselves.

mod address;
mod catalogs;
mod cluster;
mod connection;
mod document;
mod draft;
mod erase;
mod feed;
mod groups;
mod import;
mod layout;
mod monitor;
mod names;
mod patience;
mod places;
mod players;
mod reach;
mod scan;
mod subscriptions;
mod wire;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::{
    sync::{broadcast, oneshot, watch},
    task::AbortHandle,
    time::{Duration, sleep},
};

use self::{
    cluster::Cluster, names::Names, players::Players, scan::Counted, wire::Wire, words::Words,
};
use super::{
    Answered, Bookmark, CatalogError, Erased, FeedBounds, FeedError, FeedSource, ImportError,
    Imported, Operations, PlayerRecords, Rarity, ResetDone, ResetError, Retention, Store,
    StoreError, StoreHealth, StoredCatalog, StoredRecord, Subscription, SubscriptionError, Times,
    transfer::Item,
};
use crate::{
    clock::Clock,
    domain::{
        Catalog, Cursor, Entry, NodeId, PlayerKey, PlayerUpdate, ResetUpdate, State,
        SubscriptionName, Title,
    },
};

pub use address::{Address, AddressError, Monitor, MonitorError, PREFIX_DEFAULT};
pub use layout::{EngineError, Found, Plan};
pub use names::PARTITIONS_MAX;

/// How often catalogues are looked for, in case that something said of them was lost.
const CATALOGS_INTERVAL: Duration = Duration::from_secs(2);

/// How often it is asked whether a majority answers, where nothing shows it.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// See the module.
pub struct JetStreamStore {
    cluster: Arc<Cluster>,
    players: Arc<Players>,
    counted: Arc<Counted>,
    health: watch::Sender<StoreHealth>,
    catalog_changes: watch::Sender<()>,
    words: Words,
    listening: [AbortHandle; 3],
}

/// Makes an installation, or what is missing of it.
///
/// # Errors
///
/// [`EngineError`], whose text says what to do.
pub async fn init(address: &Address, plan: Plan) -> Result<Found, EngineError> {
    let wire = Wire::connect(address, watch::Sender::new(StoreHealth::Serving)).await?;
    let worries = monitor::check(address).await?;
    let mut found = layout::init(&wire, address, plan).await?;
    found.worries.extend(worries);
    Ok(found)
}

/// Checks an installation, as a server does when it starts.
///
/// # Errors
///
/// [`EngineError`], whose text says what to do.
pub async fn check(address: &Address) -> Result<Found, EngineError> {
    let wire = Wire::connect(address, watch::Sender::new(StoreHealth::Serving)).await?;
    let worries = monitor::check(address).await?;
    let mut found = layout::check(&wire, address).await?;
    found.worries.extend(worries);
    Ok(found)
}

// === impl JetStreamStore ===

impl JetStreamStore {
    /// Connects to an installation, and checks it. Of documents that this server wrote last,
    /// `cache_bytes` are kept.
    ///
    /// # Errors
    ///
    /// [`EngineError`], whose text says what to do.
    pub async fn open(
        address: &Address,
        cache_bytes: u64,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EngineError> {
        let health = watch::Sender::new(StoreHealth::Serving);
        let wire = Wire::connect(address, health.clone()).await?;
        let worries = monitor::check(address).await?;
        let found = layout::check(&wire, address).await?;
        for worry in worries.iter().chain(&found.worries).chain(&found.missing) {
            tracing::warn!("{worry}");
        }
        let names = Names::new(&address.prefix, found.partitions);
        let cluster = Arc::new(Cluster::new(wire, names, found.store_id, clock));
        let _ = look(&cluster).await;
        let players = Arc::new(Players::new(cluster.clone(), cache_bytes));
        let catalog_changes = watch::Sender::new(());
        let words = Words::default();
        let listening = [
            tokio::spawn(listen(cluster.clone(), catalog_changes.clone())).abort_handle(),
            tokio::spawn(words.clone().listen(cluster.clone(), players.clone())).abort_handle(),
            tokio::spawn(probe(cluster.clone())).abort_handle(),
        ];
        tracing::info!(
            cluster = %address.shown(),
            partitions = found.partitions,
            replicas = found.replicas,
            "the store is a JetStream cluster"
        );
        Ok(Self {
            cluster,
            players,
            counted: Arc::default(),
            health,
            catalog_changes,
            words,
            listening,
        })
    }

    fn places(&self, title: &Title, cursor: &Cursor) -> Option<places::Places> {
        self.cluster.codec.decode(title, cursor)
    }
}

impl Drop for JetStreamStore {
    fn drop(&mut self) {
        self.listening.iter().for_each(AbortHandle::abort);
    }
}

/// Looks how far each partition is, for the cursors that sets give.
async fn look(cluster: &Cluster) -> Result<(), StoreError> {
    for partition in cluster.partitions() {
        let (stream, subject) = (cluster.names.stream(partition), cluster.names.first(partition));
        cluster.see(partition, cluster.wire.counts_once(&stream, &subject).await?.1);
    }
    Ok(())
}

/// Writes something that says nothing where it is not known whether a majority answers, so that
/// this does not depend on what clients do.
async fn probe(cluster: Arc<Cluster>) {
    for partition in cluster.partitions().cycle() {
        sleep(PROBE_INTERVAL).await;
        if cluster.wire.is_in_doubt() {
            let _ = cluster.wire.mark(&cluster.names.mark(partition)).await;
        }
    }
}

/// Wakes whoever waits for catalogues that other servers replace.
async fn listen(cluster: Arc<Cluster>, changes: watch::Sender<()>) {
    let (_, said) = cluster.names.repeated_titles();
    let mut newest = 0;
    loop {
        let Ok(mut heard) = cluster.wire.listen(said.clone()).await else {
            sleep(CATALOGS_INTERVAL).await;
            continue;
        };
        loop {
            let stream = cluster.names.shared_stream();
            if let Ok((_, last)) = cluster.wire.counts(&stream, &cluster.names.engine()).await
                && last > newest
            {
                newest = last;
                changes.send_replace(());
            }
            // One partition is as far as its own cursor says.
            if cluster.names.partitions > 1 {
                let _ = look(&cluster).await;
            }
            tokio::select! {
                message = heard.next() => if message.is_none() { break },
                () = sleep(CATALOGS_INTERVAL) => {}
            }
        }
    }
}

#[async_trait]
impl FeedSource for JetStreamStore {
    async fn feed_bounds(&self, title: &Title) -> Result<FeedBounds, StoreError> {
        feed::bounds(&self.cluster, title).await
    }

    async fn entries(
        &self,
        title: &Title,
        after: &Cursor,
        limit: usize,
    ) -> Result<Vec<Entry>, FeedError> {
        let places = self.places(title, after).ok_or(FeedError::NotACursor)?;
        feed::entries(&self.cluster, title, &places, limit).await
    }

    fn own_cursor(&self, _: &Title, cursor: &Cursor) -> Cursor {
        cursor.clone()
    }

    fn advanced(&self, title: &Title, cursor: &Cursor, entry: &Cursor) -> Option<Cursor> {
        let (Some(here), Some(there)) = (self.places(title, cursor), self.places(title, entry))
        else {
            return None;
        };
        let both: Vec<_> = here.iter().zip(&there).map(|(here, there)| *here.max(there)).collect();
        (both != here).then(|| self.cluster.codec.encode(title, &both))
    }

    fn feed_changes(&self, title: &Title) -> watch::Receiver<()> {
        let feed = self.cluster.feed(title);
        let changes = feed.changes.subscribe();
        feed::follow(&self.cluster, title, &feed);
        changes
    }
}

#[async_trait]
impl Operations for JetStreamStore {
    async fn reset(&self, update: ResetUpdate) -> Result<ResetDone, ResetError> {
        let (answer, answered) = oneshot::channel();
        self.players.reset(update, answer).await?;
        answered.await.unwrap_or(Err(StoreError::OutcomeUnknown.into()))
    }

    async fn erase_player(&self, player: &PlayerKey) -> Result<Erased, StoreError> {
        let erased = erase::erase(&self.cluster, &self.players, player).await?;
        // What other servers keep in memory goes with it; if they do not hear of it, in time.
        let _ = self.words.say_erased(&self.cluster, player).await;
        Ok(erased)
    }

    async fn rarity(&self, title: &Title) -> Result<Rarity, StoreError> {
        self.counted.rarity(&self.cluster, title).await
    }

    fn id(&self) -> u64 {
        self.cluster.codec.store_id
    }

    async fn erasures(&self, title: &Title) -> Result<u64, StoreError> {
        let mut erasures = 0;
        for partition in self.cluster.partitions() {
            erasures += self.cluster.feed_row(partition, title).await?.0.erasures;
        }
        Ok(erasures)
    }

    fn position(&self, _: &Title, _: &Cursor) -> Option<u64> {
        // Sequences of streams have holes.
        None
    }

    fn reaches(&self, title: &Title, cursor: &Cursor, other: &Cursor) -> bool {
        let (Some(here), Some(there)) = (self.places(title, cursor), self.places(title, other))
        else {
            return false;
        };
        here.iter().zip(&there).all(|(here, there)| here >= there)
    }

    fn covers(
        &self,
        player: &PlayerKey,
        records: &[(NodeId, StoredRecord)],
        cursor: &Cursor,
    ) -> bool {
        let partition = self.cluster.names.partition(player) as usize;
        let places = self.places(&player.title, cursor);
        places.is_some_and(|places| {
            places[partition].max(import::GONE) >= super::stored::newest_event(records)
        })
    }

    async fn full_records(
        &self,
        title: &Title,
        after: Option<&Bookmark>,
    ) -> Result<(Vec<PlayerRecords>, Option<Bookmark>), StoreError> {
        scan::players(&self.cluster, title, after).await
    }

    async fn player_records(
        &self,
        player: &PlayerKey,
    ) -> Result<Vec<(NodeId, StoredRecord)>, StoreError> {
        Ok(scan::owned(&self.players.read(player).await?.document))
    }

    async fn import(
        &self,
        title: &Title,
        items: Vec<Item>,
        times: Times,
    ) -> Result<(Imported, Vec<Item>), ImportError> {
        import::import(&self.cluster, &self.players, title, items, times).await
    }
}

#[async_trait]
impl Store for JetStreamStore {
    async fn submit(&self, update: PlayerUpdate) -> Result<Answered, StoreError> {
        let (answer, answered) = Answered::new();
        self.players.set(update, answer).await?;
        Ok(answered)
    }

    async fn records(&self, player: &PlayerKey) -> Result<Vec<(NodeId, State)>, StoreError> {
        let known = self.players.read(player).await?;
        let records = known.document.records.iter();
        Ok(records.map(|(node, stored)| (node.clone(), stored.record.state.clone())).collect())
    }

    async fn trim_feed(&self, title: &Title, keep: Retention) -> Result<usize, StoreError> {
        feed::trim(&self.cluster, title, keep).await
    }

    async fn open_subscription(
        &self,
        title: &Title,
        name: &SubscriptionName,
        after: Option<&Cursor>,
    ) -> Result<Subscription, SubscriptionError> {
        subscriptions::open(&self.cluster, title, name, after).await
    }

    async fn ack(
        &self,
        title: &Title,
        name: &SubscriptionName,
        through: &Cursor,
        claim: u64,
    ) -> Result<Subscription, SubscriptionError> {
        subscriptions::ack(&self.cluster, title, name, through, claim).await
    }

    async fn claim(
        &self,
        title: &Title,
        name: &SubscriptionName,
        claim: u64,
    ) -> Result<(), StoreError> {
        self.words.say_claim(&self.cluster, title, name, claim).await
    }

    fn claims(&self) -> broadcast::Receiver<(Title, SubscriptionName, u64)> {
        self.words.claims.subscribe()
    }

    async fn subscriptions(&self, title: &Title) -> Result<Vec<Subscription>, StoreError> {
        subscriptions::all(&self.cluster, title).await
    }

    async fn delete_subscription(
        &self,
        title: &Title,
        name: &SubscriptionName,
    ) -> Result<(), SubscriptionError> {
        let claim = subscriptions::delete(&self.cluster, title, name).await?;
        // Consumers on other servers end; if they do not hear of it, with their next ack.
        let _ = self.words.say_claim(&self.cluster, title, name, claim).await;
        Ok(())
    }

    async fn newer_catalogs(
        &self,
        known: &BTreeMap<Title, u64>,
    ) -> Result<Vec<StoredCatalog>, StoreError> {
        catalogs::newer(&self.cluster, known).await
    }

    async fn replace_catalog(
        &self,
        title: &Title,
        expected: u64,
        catalog: Arc<Catalog>,
    ) -> Result<StoredCatalog, CatalogError> {
        catalogs::replace(&self.cluster, title, expected, catalog).await
    }

    fn catalog_changes(&self) -> watch::Receiver<()> {
        self.catalog_changes.subscribe()
    }

    async fn count_players(
        &self,
        title: &Title,
        nodes: &BTreeSet<NodeId>,
    ) -> Result<u64, StoreError> {
        scan::count_players(&self.cluster, title, nodes).await
    }

    fn health(&self) -> watch::Receiver<StoreHealth> {
        self.health.subscribe()
    }
}

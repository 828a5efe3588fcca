//! Where records, completions and catalogues are kept. The trait is on the level of the rules
//! ("apply this update", "completions after this cursor"), so that each engine can use its own best
//! atomic step.

mod crash_point;
mod cursor;
mod frame;
pub mod jetstream;
mod memory;
mod operate;
mod rows;
pub mod sled;
mod stored;
pub mod transfer;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::{broadcast, oneshot, watch};

use crate::domain::{
    Catalog, Cursor, Entry, EpochSeconds, NodeId, Outcome, PlayerKey, PlayerUpdate, Refusal, State,
    SubscriptionName, Title,
};

pub use memory::MemoryStore;
pub use operate::{
    Bookmark, Erased, ImportError, Imported, Operations, Rarity, ResetDone, ResetError, Times,
};
pub use stored::{PAST_EVENTS_MAX, PastEvent, PlayerRecords, StoredRecord};

/// Most titles of one store; each has a little memory of its own for as long as it runs.
pub const TITLES_MAX: usize = 1000;

/// Most named subscriptions of one title.
pub const SUBSCRIPTIONS_MAX: usize = 100;

/// Where feeds are read. Whatever a method shows is durable before it does.
#[async_trait]
pub trait FeedSource: Send + Sync + 'static {
    /// The two ends of a title's feed.
    async fn feed_bounds(&self, title: &Title) -> Result<FeedBounds, StoreError>;

    /// What stands after a cursor, in order, without holes: at most `limit` entries, fewer where
    /// their bytes add up; none only where the feed ends at `after`.
    async fn entries(
        &self,
        title: &Title,
        after: &Cursor,
        limit: usize,
    ) -> Result<Vec<Entry>, FeedError>;

    /// A cursor as this store writes it: one that works may come from the store that this one was
    /// restored from. One that does not work stays as it is.
    fn own_cursor(&self, title: &Title, cursor: &Cursor) -> Cursor;

    /// Where a reader at `cursor` is once it has read the entry at `entry` as well; `None` where it
    /// had read that before. Readers of a feed need not all get its entries in the same order.
    fn advanced(&self, title: &Title, cursor: &Cursor, entry: &Cursor) -> Option<Cursor>;

    /// Wakes whenever entries of a title became visible.
    fn feed_changes(&self, title: &Title) -> watch::Receiver<()>;
}

/// Keeps everything. Whatever a method returns or shows is durable before it does.
///
/// A future that is dropped leaves its update wholly applied or not at all.
#[async_trait]
pub trait Store: Operations {
    /// Judges and stores one player's updates, all or none ([`crate::domain::decide`]).
    async fn apply(&self, update: PlayerUpdate) -> Result<Applied, ApplyError> {
        self.submit(update).await?.await
    }

    /// The first half of [`Store::apply`]: the update has its place in the order of all updates
    /// when this returns, and is applied whether or not somebody waits for the answer.
    async fn submit(&self, update: PlayerUpdate) -> Result<Answered, StoreError>;

    /// All records of one player in the order of their ids' bytes, as of one moment.
    async fn records(&self, player: &PlayerKey) -> Result<Vec<(NodeId, State)>, StoreError>;

    /// Removes the oldest entries of a feed that `keep` does not keep, a bounded number of them;
    /// tells how many: 0 means that there are no more.
    async fn trim_feed(&self, title: &Title, keep: Retention) -> Result<usize, StoreError>;

    /// Finds a named subscription, or makes it where there is none, at the feed's end. With `after`
    /// it is moved there.
    async fn open_subscription(
        &self,
        title: &Title,
        name: &SubscriptionName,
        after: Option<&Cursor>,
    ) -> Result<Subscription, SubscriptionError>;

    /// Moves a subscription forward, for the consumer that it was opened for; a cursor behind it
    /// changes nothing.
    async fn ack(
        &self,
        title: &Title,
        name: &SubscriptionName,
        through: &Cursor,
        claim: u64,
    ) -> Result<Subscription, SubscriptionError>;

    /// Says to other servers of this store that a subscription was opened for a consumer here.
    async fn claim(&self, _: &Title, _: &SubscriptionName, _: u64) -> Result<(), StoreError> {
        // There are none.
        Ok(())
    }

    /// What other servers say so.
    fn claims(&self) -> broadcast::Receiver<(Title, SubscriptionName, u64)> {
        broadcast::Sender::new(1).subscribe()
    }

    /// Every subscription of a title, in the order of their names' bytes.
    async fn subscriptions(&self, title: &Title) -> Result<Vec<Subscription>, StoreError>;

    /// Forgets a subscription.
    async fn delete_subscription(
        &self,
        title: &Title,
        name: &SubscriptionName,
    ) -> Result<(), SubscriptionError>;

    /// Every title with its catalogue.
    async fn catalogs(&self) -> Result<Vec<StoredCatalog>, StoreError> {
        self.newer_catalogs(&BTreeMap::new()).await
    }

    /// Every title with its catalogue, but those of known revisions.
    async fn newer_catalogs(
        &self,
        known: &BTreeMap<Title, u64>,
    ) -> Result<Vec<StoredCatalog>, StoreError>;

    /// Replaces a title's catalogue if it is at revision `expected`; 0 stands for a new title.
    async fn replace_catalog(
        &self,
        title: &Title,
        expected: u64,
        catalog: Arc<Catalog>,
    ) -> Result<StoredCatalog, CatalogError>;

    /// Wakes when a catalogue may have been replaced by another server.
    fn catalog_changes(&self) -> watch::Receiver<()>;

    /// How many players have a record of any of these nodes. Reads every record of the title.
    async fn count_players(
        &self,
        title: &Title,
        nodes: &BTreeSet<NodeId>,
    ) -> Result<u64, StoreError>;

    /// Whether the store still takes updates, and when it stopped.
    fn health(&self) -> watch::Receiver<StoreHealth>;
}

/// An update that has its place; ends with what became of it.
#[derive(Debug)]
pub struct Answered(oneshot::Receiver<Result<Applied, ApplyError>>);

/// What an update did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Whether this is a retry of something stored before.
    pub replayed: bool,
    /// One outcome for each update; with the completion's cursor where it completed the record.
    pub outcomes: Vec<(Outcome, Option<Cursor>)>,
}

/// The two ends of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedBounds {
    /// After this cursor comes everything that is retained.
    pub oldest: Cursor,
    /// After this cursor comes what completes from now on.
    pub newest: Cursor,
}

/// Where a named subscription stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Its name.
    pub name: SubscriptionName,
    /// Everything up to here is acked.
    pub cursor: Cursor,
    /// Completions of the feed after the cursor.
    pub lag: u64,
    /// When the cursor was moved.
    pub moved_at: EpochSeconds,
    /// Tells consumers apart, in stores that several servers share; else 0.
    pub claim: u64,
}

/// Which entries of a feed to keep; the default keeps all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Keeps those that were stored at this moment or later.
    pub stored_since: Option<EpochSeconds>,
    /// Keeps this many of the newest.
    pub count: Option<u64>,
}

/// Ends once the store takes no more writes; never, where it is closed before that.
pub async fn poisoned(mut health: watch::Receiver<StoreHealth>) {
    if health.wait_for(|health| *health == StoreHealth::Poisoned).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A title's catalogue as it is stored.
#[derive(Clone, Debug)]
pub struct StoredCatalog {
    /// The title.
    pub title: Title,
    /// How often its catalogue was replaced; 1 for the first.
    pub revision: u64,
    /// The catalogue.
    pub catalog: Arc<Catalog>,
}

/// Whether a store takes updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreHealth {
    /// It does.
    Serving,
    /// It cannot be reached now; it may be again.
    Unreachable,
    /// A write failed. Nothing more is written until the process is started anew; reads go on.
    Poisoned,
}

/// Why a store could not do its work.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// An earlier write failed, so that nobody knows what is on disk.
    #[error("the store takes no more writes since one failed; start the server anew")]
    Poisoned,
    /// Something stored is not as it was written.
    #[error("the store is damaged: {0}")]
    Corrupt(String),
    /// The engine failed.
    #[error("the store failed: {0}")]
    Failed(String),
    /// The engine cannot be reached, or is choosing a leader. Nothing was done.
    #[error("the store cannot be reached: {0}; try again")]
    Unavailable(String),
    /// The engine did not answer: a write may have been stored, or may not.
    #[error("the store did not answer in time")]
    OutcomeUnknown,
}

/// Why an update was not stored.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// It must be put differently.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It rewrites more than one atomic step can hold: the extras already stored count too.
    #[error(
        "the batch writes {bytes} bytes, with the extras already stored; one step takes \
         {bytes_max}: split it"
    )]
    TooLarge {
        /// What it would write.
        bytes: usize,
        /// What one step takes.
        bytes_max: usize,
    },
    /// A player's records are more than the engine keeps of one.
    #[error(
        "the player's records would take {bytes} bytes together; this store keeps {bytes_max} of \
         one: make extras smaller"
    )]
    PlayerTooLarge {
        /// What they would take.
        bytes: usize,
        /// What there is room for.
        bytes_max: usize,
    },
    /// The store could not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why completions could not be read.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum FeedError {
    /// The text is no cursor, or not one of this title's feed in this store.
    #[error("is not a cursor of this title's feed")]
    NotACursor,
    /// Retention has removed completions after the cursor.
    #[error("is older than what is retained; the oldest cursor is {oldest:?}")]
    Expired {
        /// A cursor that works.
        oldest: Cursor,
    },
    /// The cursor names a place that the feed has not reached.
    #[error("is from the future of this feed; the oldest cursor is {oldest:?}")]
    InFuture {
        /// A cursor that works.
        oldest: Cursor,
    },
    /// The store could not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a subscription could not be opened or moved.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum SubscriptionError {
    /// The cursor does not work.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// There is none of that name.
    #[error("the title has no such subscription")]
    NotFound,
    /// It was opened for another consumer since.
    #[error("another consumer has the subscription now")]
    TakenOver,
    /// The title has as many as there may be.
    #[error("the title has {SUBSCRIPTIONS_MAX} subscriptions already; delete one")]
    TooMany,
}

impl From<StoreError> for SubscriptionError {
    fn from(error: StoreError) -> Self {
        Self::Feed(error.into())
    }
}

/// Why a catalogue was not replaced.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The title is at another revision.
    #[error("the title's catalogue is at revision {actual}, not {expected}")]
    RevisionMismatch {
        /// What the caller expected.
        expected: u64,
        /// What is stored.
        actual: u64,
    },
    /// There are as many titles as there may be.
    #[error("there are {TITLES_MAX} titles already; a store takes no more")]
    TooManyTitles,
    /// The store could not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Answered {
    fn new() -> (oneshot::Sender<Result<Applied, ApplyError>>, Self) {
        let (answer, answered) = oneshot::channel();
        (answer, Self(answered))
    }
}

impl Future for Answered {
    type Output = Result<Applied, ApplyError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The other end is dropped unused only where the store has stopped.
        let answer = Pin::new(&mut self.0).poll(context);
        answer.map(|answer| answer.unwrap_or(Err(StoreError::Poisoned.into())))
    }
}

impl Retention {
    /// Whether the oldest of `count` entries is to be kept.
    #[must_use]
    pub fn keeps(self, count: u64, stored_at: EpochSeconds) -> bool {
        self.count.is_none_or(|most| count <= most)
            && self.stored_since.is_none_or(|since| stored_at >= since)
    }
}

impl fmt::Debug for dyn Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

#[cfg(test)]
mod contract_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod operate_tests;

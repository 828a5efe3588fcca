//! What operators do with a store: take records back, erase players, move titles.

use std::collections::HashMap;

use async_trait::async_trait;
use thiserror::Error;

use super::{
    FeedSource, PAST_EVENTS_MAX, PlayerRecords, StoreError, StoredRecord, stored::newest_event,
    transfer::Item,
};
use crate::domain::{Cursor, NodeId, Outcome, PlayerKey, ResetUpdate, Title};

/// See the module. Whatever a method returns is durable before it does.
#[async_trait]
pub trait Operations: FeedSource {
    /// Judges and stores a reset ([`crate::domain::decide_reset`]), and its event in the same step.
    async fn reset(&self, update: ResetUpdate) -> Result<ResetDone, ResetError>;

    /// Removes records of a player, and what they have in the feed, a bounded number of them; a
    /// record goes with all of its events. Tells how many; nothing means that there are no more.
    async fn erase_player(&self, player: &PlayerKey) -> Result<Erased, StoreError>;

    /// How many players a title has, and how many of them have completed each node.
    async fn rarity(&self, title: &Title) -> Result<Rarity, StoreError>;

    /// The number that this store was made with.
    fn id(&self) -> u64;

    /// A number that grows with each step of an erasure in a title: before anything goes, and once
    /// more when that is durable.
    async fn erasures(&self, title: &Title) -> Result<u64, StoreError>;

    /// The place that a cursor of this store names, as a number that grows with the feed, 1 from
    /// entry to entry; `None` where it is no cursor, or the store has no such numbers.
    fn position(&self, title: &Title, cursor: &Cursor) -> Option<u64>;

    /// Whether everything that was read at `other` was read at `cursor` too.
    fn reaches(&self, title: &Title, cursor: &Cursor, other: &Cursor) -> bool {
        let place = |cursor| self.position(title, cursor);
        place(cursor).zip(place(other)).is_some_and(|(here, there)| here >= there)
    }

    /// Whether every event that these records of a player name was read at `cursor`.
    fn covers(
        &self,
        player: &PlayerKey,
        records: &[(NodeId, StoredRecord)],
        cursor: &Cursor,
    ) -> bool {
        self.position(&player.title, cursor) >= Some(newest_event(records))
    }

    /// Everything that is stored of some players, who follow `after` in the store's own order; and
    /// where to go on, which is nowhere where there are no more. A player who is written meanwhile
    /// may be told again.
    async fn full_records(
        &self,
        title: &Title,
        after: Option<&Bookmark>,
    ) -> Result<(Vec<PlayerRecords>, Option<Bookmark>), StoreError>;

    /// Everything that is stored of one player.
    async fn player_records(
        &self,
        player: &PlayerKey,
    ) -> Result<Vec<(NodeId, StoredRecord)>, StoreError>;

    /// Stores items that another store gave, by the rules of `transfer.rs`: the first of them in
    /// one step, all or none; those that come back had no place in it. What is there already is not
    /// stored again.
    async fn import(
        &self,
        title: &Title,
        items: Vec<Item>,
        times: Times,
    ) -> Result<(Imported, Vec<Item>), ImportError>;
}

/// A place among a title's players, made and understood by a store alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bookmark(pub String);

/// Whether times of the future are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// No: whatever is stored behind them would get them too.
    Checked,
    /// They are those of this very store.
    Trusted,
}

/// What a reset did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetDone {
    /// Whether this is a retry of something stored before.
    pub replayed: bool,
    /// What became of it.
    pub outcome: Outcome,
    /// Its place in the feed, where it was stored.
    pub cursor: Option<Cursor>,
}

/// What one step of an erasure removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Records.
    pub records: u64,
    /// Events of the feed, whose places stay and are empty.
    pub events: u64,
}

/// How many have done what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rarity {
    /// Players with a record.
    pub players: u64,
    /// Players with a completed record of each node; a node that nobody completed may be missing.
    pub completed: HashMap<NodeId, u64>,
}

/// What one step of an import did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Items that were stored.
    pub stored: u64,
    /// Items that were there already.
    pub present: u64,
    /// Records that stay as they are: here they are newer.
    pub kept: u64,
}

/// Why a record was not reset.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ResetError {
    /// It has as many events as a record may have.
    #[error(
        "the record has {PAST_EVENTS_MAX} resets and completions behind it already, and takes no \
         more; erase the player to begin anew"
    )]
    TooMany,
    /// The store could not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why items were not imported; nothing of their step is stored.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum ImportError {
    /// An item does not go with what is stored.
    #[error("item {index} {problem}")]
    Refused {
        /// Which of the items.
        index: usize,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The store could not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

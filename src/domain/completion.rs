//! Events of a title's feed, and the cursors that name their places.

use std::{collections::HashSet, fmt, sync::Arc};

use super::{
    EpochSeconds, Extra, Node, NodeId, Outcome, PlayerId, PlayerKey, Progress, Reason, Record,
    ResetUpdate, Version,
};

/// An opaque place in a title's feed, made and understood by a store alone. Cloning is cheap.
#[derive(Clone, PartialEq, Eq)]
pub struct Cursor(Arc<str>);

impl Cursor {
    /// Takes a text, from a store or from a caller; only a store can tell whether it is a cursor.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// What stands at one place of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The place.
    pub cursor: Cursor,
    /// When it was stored; never lower than that of an entry before.
    pub stored_at: EpochSeconds,
    /// What happened there.
    pub event: Event,
}

/// What happened at one place of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A record completed.
    Completion(Completion),
    /// A record was reset.
    Reset(Reset),
    /// Something of a player who was erased since; nobody is shown this.
    Erased,
}

/// The one event of a record that completed, with the node as it was defined then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Whose.
    pub key: PlayerKey,
    /// Of which node.
    pub node: Arc<Node>,
    /// The progress that completed it.
    pub progress: Progress,
    /// When.
    pub completed_at: EpochSeconds,
    /// The version that completed it.
    pub version: Version,
    /// The extra at that version.
    pub extra: Extra,
}

/// The event of a record that was reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    /// Whose.
    pub key: PlayerKey,
    /// Of which node.
    pub node: NodeId,
    /// The operator's words.
    pub reason: Reason,
    /// The progress before.
    pub progress: Progress,
    /// When the record had completed; not set where it had not.
    pub completed_at: EpochSeconds,
    /// The version after.
    pub version: Version,
    /// When.
    pub reset_at: EpochSeconds,
}

/// Which events a subscriber wants. The default wants all.
#[derive(Clone, Debug, Default)]
pub struct CompletionFilter {
    /// Only of these players; empty means all.
    pub players: HashSet<PlayerId>,
    /// Only of these nodes; empty means all.
    pub nodes: HashSet<NodeId>,
}

impl Completion {
    /// The one that `record` just made at `node`.
    #[must_use]
    pub fn of(key: &PlayerKey, node: &Arc<Node>, record: &Record) -> Self {
        Self {
            key: key.clone(),
            node: node.clone(),
            progress: record.state.progress,
            completed_at: record.state.completed_at,
            version: record.state.version,
            extra: record.state.extra.clone(),
        }
    }
}

impl Reset {
    /// The one that an update made, which was stored at `reset_at`.
    #[must_use]
    pub fn of(update: &ResetUpdate, outcome: &Outcome, reset_at: EpochSeconds) -> Self {
        Self {
            key: update.key.clone(),
            node: update.node.clone(),
            reason: update.reason.clone(),
            progress: outcome.before.progress,
            completed_at: outcome.before.completed_at,
            version: outcome.after.version,
            reset_at,
        }
    }
}

impl Event {
    /// Whose record of which node, and the version it has since.
    #[must_use]
    pub fn of(&self) -> Option<(&PlayerKey, &NodeId, Version)> {
        match self {
            Self::Completion(it) => Some((&it.key, it.node.definition().node_id(), it.version)),
            Self::Reset(it) => Some((&it.key, &it.node, it.version)),
            Self::Erased => None,
        }
    }
}

impl CompletionFilter {
    /// Whether an event is wanted.
    #[must_use]
    pub fn admits(&self, event: &Event) -> bool {
        event.of().is_some_and(|(key, node, _)| {
            (self.players.is_empty() || self.players.contains(&key.player))
                && (self.nodes.is_empty() || self.nodes.contains(node))
        })
    }
}

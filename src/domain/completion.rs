//! Completions, and the cursors that name their places.

use std::{collections::HashSet, fmt, sync::Arc};

use super::{EpochSeconds, Extra, Node, NodeId, PlayerId, PlayerKey, Progress, Version};

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

/// The one event of a record that completed, with the node as it was defined then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Its place in the feed.
    pub cursor: Cursor,
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

/// Which completions a subscriber wants. The default wants all.
#[derive(Clone, Debug, Default)]
pub struct CompletionFilter {
    /// Only these players; empty means all.
    pub players: HashSet<PlayerId>,
    /// Only these nodes; empty means all.
    pub nodes: HashSet<NodeId>,
}

impl CompletionFilter {
    /// Whether a completion is wanted.
    #[must_use]
    pub fn admits(&self, completion: &Completion) -> bool {
        let player = &completion.key.player;
        let node = completion.node.definition().node_id();
        (self.players.is_empty() || self.players.contains(player))
            && (self.nodes.is_empty() || self.nodes.contains(node))
    }
}

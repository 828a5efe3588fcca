//! What a caller asks for, parsed.

use std::{collections::HashSet, sync::Arc};

use super::{
    EpochSeconds, Extra, MaxProgress, Node, PlayerKey, Progress, RequestId, ValueError, Version,
};

/// Most updates of one batch. So many, with extras of the default limit and the largest
/// definitions, still fit one commit group (`store/sled/bounds.rs` asserts it).
pub const BATCH_UPDATES_MAX: usize = 20;

/// What happens to the progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Adds this much.
    Delta(u64),
    /// Raises to this value.
    AtLeast(u64),
    /// Completes.
    Finish,
}

impl Change {
    /// Checks a number to add.
    ///
    /// # Errors
    ///
    /// [`ValueError::OutOfRange`] where it is not 1 or more.
    pub fn delta(value: i64) -> Result<Self, ValueError> {
        Self::positive(value).map(Self::Delta)
    }

    /// Checks a number to raise to.
    ///
    /// # Errors
    ///
    /// [`ValueError::OutOfRange`] where it is not 1 or more.
    pub fn at_least(value: i64) -> Result<Self, ValueError> {
        Self::positive(value).map(Self::AtLeast)
    }

    fn positive(value: i64) -> Result<u64, ValueError> {
        let error = ValueError::OutOfRange { value, min: 1, max: i64::MAX as u64 };
        u64::try_from(value).ok().filter(|number| *number > 0).ok_or(error)
    }

    /// The progress after this change: never over the target, and no number overflows.
    pub(super) fn apply(self, progress: Progress, target: MaxProgress) -> Progress {
        let raw = match self {
            Self::Delta(delta) => progress.get().saturating_add(delta),
            Self::AtLeast(value) => progress.get().max(value),
            Self::Finish => target.get(),
        };
        Progress::clamped(raw.min(target.get()))
    }
}

/// What is asked of one record. At least one of `change` and `extra` is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetUpdate {
    change: Option<Change>,
    extra: Option<Extra>,
    expected: Option<Version>,
}

impl SetUpdate {
    /// Puts an update together; `None` where it would ask for nothing.
    #[must_use]
    pub fn new(
        change: Option<Change>,
        extra: Option<Extra>,
        expected: Option<Version>,
    ) -> Option<Self> {
        (change.is_some() || extra.is_some()).then_some(Self { change, extra, expected })
    }

    /// What happens to the progress.
    #[must_use]
    pub fn change(&self) -> Option<Change> {
        self.change
    }

    /// The new extra.
    #[must_use]
    pub fn extra(&self) -> Option<&Extra> {
        self.extra.as_ref()
    }

    /// The version the caller's decision is based on.
    #[must_use]
    pub fn expected(&self) -> Option<Version> {
        self.expected
    }
}

/// One update, and the node it is for as the catalogue has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeUpdate {
    /// The node.
    pub node: Arc<Node>,
    /// What is asked.
    pub update: SetUpdate,
}

/// Updates of one player, stored all or none; 1 to [`BATCH_UPDATES_MAX`], each of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlayerUpdate {
    /// Whose records.
    pub key: PlayerKey,
    /// The caller's name for this.
    pub request_id: Option<RequestId>,
    /// The updates.
    pub updates: Vec<NodeUpdate>,
    /// When it happened, for a late update: that is of one node, and has a request id.
    pub happened_at: Option<EpochSeconds>,
}

impl PlayerUpdate {
    /// Whether no two updates are of the same node.
    #[must_use]
    pub fn has_distinct_nodes(&self) -> bool {
        let mut seen = HashSet::new();
        let mut ids = self.updates.iter().map(|item| item.node.definition().node_id());
        self.updates.len() == 1 || ids.all(|id| seen.insert(id))
    }
}

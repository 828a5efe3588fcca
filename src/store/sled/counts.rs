//! How many players a title has, and how many have completed each node: counted when the store is
//! opened, and moved by each group at the moment it is shown.

use std::collections::HashMap;

use parking_lot::RwLock;

use super::view::Change;
use crate::{
    domain::{NodeId, Title},
    store::{Rarity, StoredRecord},
};

/// The counts of all titles.
pub(super) type ByTitle = HashMap<Title, Rarity>;

/// The durable counts.
#[derive(Default)]
pub(super) struct Counts(RwLock<ByTitle>);

/// What a group does to them.
#[derive(Default)]
pub(super) struct Tally(HashMap<Title, Moved>);

#[derive(Default)]
struct Moved {
    players: i64,
    completed: HashMap<NodeId, i64>,
}

// === impl Tally ===

impl Tally {
    /// Adds what changes of a player's records do; `players` is how many more the title has.
    pub(super) fn take(&mut self, title: &Title, changes: &[Change], players: i64) {
        if players != 0 {
            self.of(title).players += players;
        }
        for Change { node, before, after } in changes {
            let (before, after) = (is_completed(before.as_deref()), is_completed(after.as_deref()));
            if before != after {
                let moved = self.of(title).completed.entry(node.clone()).or_default();
                *moved += i64::from(after) - i64::from(before);
            }
        }
    }

    fn of(&mut self, title: &Title) -> &mut Moved {
        if !self.0.contains_key(title) {
            self.0.insert(title.clone(), Moved::default());
        }
        self.0.get_mut(title).expect("it was just put there")
    }
}

fn is_completed(record: Option<&StoredRecord>) -> bool {
    record.is_some_and(|record| record.completion_sequence != 0)
}

// === impl Counts ===

impl Counts {
    pub(super) fn new(counts: ByTitle) -> Self {
        Self(RwLock::new(counts))
    }

    /// Shows what became durable.
    pub(super) fn publish(&self, tally: Tally) {
        if tally.0.is_empty() {
            return;
        }
        let mut counts = self.0.write();
        for (title, Moved { players, completed }) in tally.0 {
            let count = counts.entry(title).or_default();
            count.players = count.players.saturating_add_signed(players);
            for (node, moved) in completed {
                let completed = count.completed.entry(node).or_default();
                *completed = completed.saturating_add_signed(moved);
            }
        }
    }

    pub(super) fn of(&self, title: &Title) -> Rarity {
        self.0.read().get(title).cloned().unwrap_or_default()
    }
}

//! Records as readers see them: only what is durable, from memory where it is there.
//!
//! sled shows a write as soon as it is applied, before it is synced. A reader that saw it, and a
//! power cut right then, would leave a version that somebody knows and the disk does not; the next
//! set would hand it out a second time. So the committer announces the changes of a group before it
//! applies them, with every record as it was before; readers of the tree put those back until the
//! group is synced. A reader reads the tree first and the announced groups second: whichever way it
//! races with the committer, it ends with what was durable at some moment during the read.
//!
//! Players that were read are kept in a cache, which changes at the moment a group is published.
//! A read that finds its player there waits for nobody.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::RwLock;
use quick_cache::{Weighter, sync::Cache};
use sled::Tree;

use super::{
    keys,
    read::{failed, read_record, read_records},
};
use crate::{
    domain::{NodeId, PlayerKey},
    store::{StoreError, StoredRecord},
};

/// How often a scan is repeated because a group that touches it was published in the middle of it.
/// After that it holds off publication for the length of one scan.
const SCAN_ATTEMPTS: usize = 8;

/// Published groups whose changes are kept, so that a scan knows which of them touch it.
const RECENT_GROUPS: usize = 16;

/// A player with more records than this is read from the tree each time: keeping it up to date
/// would cost too much.
const CACHED_RECORDS_MAX: usize = 256;

/// Of the bytes given to the store, the cache of players takes one in this many; sled's pages the
/// rest.
const PLAYERS_SHARE: u64 = 4;

/// The records of a player, in the order of their nodes' ids.
pub(super) type Records = Arc<[(NodeId, Arc<StoredRecord>)]>;

/// What the cache knows of a player.
#[derive(Clone)]
enum Cached {
    All(Records),
    /// More than [`CACHED_RECORDS_MAX`]: to be read from the tree.
    TooMany,
}

/// What one group does to the records of each player.
pub(super) type Changes = HashMap<PlayerKey, Vec<Change>>;

/// What a group does to one record.
pub(super) struct Change {
    pub(super) node: NodeId,
    /// As it was before the group; `None` where it did not exist.
    pub(super) before: Option<Arc<StoredRecord>>,
    /// As it is after the group; `None` where it goes.
    pub(super) after: Option<Arc<StoredRecord>>,
}

/// See the module.
pub(super) struct DurableView {
    tree: Tree,
    players: Cache<PlayerKey, Cached, ByBytes>,
    groups: RwLock<Groups>,
}

#[derive(Default)]
struct Groups {
    /// Counts groups that became durable.
    published: u64,
    /// Groups that are announced and not yet durable, oldest first.
    hidden: VecDeque<Arc<Changes>>,
    /// The groups that became durable last, newest first.
    recent: VecDeque<Arc<Changes>>,
}

/// Counts about what a player takes in memory.
#[derive(Clone)]
struct ByBytes;

impl Weighter<PlayerKey, Cached> for ByBytes {
    fn weight(&self, player: &PlayerKey, cached: &Cached) -> u64 {
        // Estimates: values, allocations and their headers, the place in the cache.
        const PLAYER: usize = 200;
        const RECORD: usize = 260;
        const REMEMBERED: usize = 120;
        const PAST: usize = 24;
        const LATE: usize = 16;
        let records: &[_] = match cached {
            Cached::All(records) => records,
            Cached::TooMany => &[],
        };
        let records = records.iter().map(|(node, stored)| {
            let extra = stored.record.state.extra.as_str().len();
            let rare = stored.past.len() * PAST + stored.record.late.len() * LATE;
            let remembered = stored.record.remembered.len() * REMEMBERED;
            RECORD + node.as_str().len() + extra + remembered + rare
        });
        (PLAYER + player.player.as_str().len() + records.sum::<usize>()) as u64
    }
}

/// How the bytes given to the store are shared out: (sled's pages, players).
pub(super) fn share_out(cache_bytes: u64) -> (u64, u64) {
    let players = cache_bytes / PLAYERS_SHARE;
    (cache_bytes - players, players)
}

// === impl DurableView ===

impl DurableView {
    pub(super) fn new(tree: Tree, players_bytes: u64) -> Self {
        const PLAYER_BYTES: u64 = 2048;
        let players = usize::try_from(players_bytes / PLAYER_BYTES).unwrap_or(usize::MAX);
        let players = Cache::with_weighter(players, players_bytes, ByBytes);
        Self { tree, players, groups: RwLock::default() }
    }

    /// The tree itself, not-yet-durable writes included: for the committer, and for keys that are
    /// kept from readers in another way.
    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The durable records of a player, if they are in memory.
    pub(super) fn cached(&self, player: &PlayerKey) -> Option<Records> {
        match self.players.get(player)? {
            Cached::All(records) => Some(records),
            Cached::TooMany => None,
        }
    }

    /// The durable records of a player, as of one moment; reads the tree.
    pub(super) fn read(&self, player: &PlayerKey) -> Result<Records, StoreError> {
        self.read_with(player, |this, records| this.keep(player, records))
    }

    /// `finish` is called while no group can be published.
    fn read_with(
        &self,
        player: &PlayerKey,
        finish: impl Fn(&Self, Vec<(NodeId, Arc<StoredRecord>)>) -> Records,
    ) -> Result<Records, StoreError> {
        for _ in 0..SCAN_ATTEMPTS {
            let published = self.groups.read().published;
            let applied = read_records(&self.tree, player, usize::MAX)?;
            let groups = self.groups.read();
            if !groups.has_touched(player, groups.published - published) {
                return Ok(finish(self, groups.restore(player, applied)));
            }
        }
        let groups = self.groups.read();
        let applied = read_records(&self.tree, player, usize::MAX)?;
        Ok(finish(self, groups.restore(player, applied)))
    }

    /// To be called while no group can be published.
    fn keep(&self, player: &PlayerKey, records: Vec<(NodeId, Arc<StoredRecord>)>) -> Records {
        let records = Records::from(records);
        let cached = match records.len() > CACHED_RECORDS_MAX {
            true => Cached::TooMany,
            false => Cached::All(records.clone()),
        };
        self.players.insert(player.clone(), cached);
        records
    }

    /// A record with every change that is announced; `None` where it does not exist. For the
    /// committer: it reads the tree, and nothing must be applied meanwhile. A player who writes
    /// will write again, so all records are read at once.
    pub(super) fn applied(
        &self,
        player: &PlayerKey,
        node: &NodeId,
    ) -> Result<Option<Arc<StoredRecord>>, StoreError> {
        let groups = self.groups.read();
        let hidden = groups.hidden.iter().rev().find_map(|changes| find(changes, player, node));
        if let Some(change) = hidden {
            return Ok(change.after.clone());
        }
        drop(groups);
        let records = match self.players.get(player) {
            Some(Cached::All(records)) => records,
            Some(Cached::TooMany) => return self.read_one(player, node),
            None => {
                let applied = read_records(&self.tree, player, CACHED_RECORDS_MAX + 1)?;
                if applied.len() > CACHED_RECORDS_MAX {
                    self.players.insert(player.clone(), Cached::TooMany);
                    return self.read_one(player, node);
                }
                let groups = self.groups.read();
                self.keep(player, groups.restore(player, applied))
            }
        };
        let place = records.binary_search_by(|(of, _)| of.cmp(node)).ok();
        Ok(place.map(|place| records[place].1.clone()))
    }

    /// Whether a player has any record, with every change that is applied. For the committer.
    pub(super) fn has_applied(&self, player: &PlayerKey) -> Result<bool, StoreError> {
        let first = self.tree.scan_prefix(keys::records_of_player(player)).keys().next();
        Ok(first.transpose().map_err(failed)?.is_some())
    }

    /// The durable records of a player, as of one moment, without keeping them in memory: for reads
    /// that go over all players.
    pub(super) fn read_aside(&self, player: &PlayerKey) -> Result<Records, StoreError> {
        match self.cached(player) {
            Some(records) => Ok(records),
            None => self.read_with(player, |_, records| records.into()),
        }
    }

    fn read_one(
        &self,
        player: &PlayerKey,
        node: &NodeId,
    ) -> Result<Option<Arc<StoredRecord>>, StoreError> {
        let key = keys::record(player, node);
        let value = self.tree.get(&key).map_err(failed)?;
        value.map(|value| read_record(&key, &value).map(Arc::new)).transpose()
    }

    /// Hides a group that is about to be applied, behind those that are hidden already.
    pub(super) fn hide(&self, changes: Arc<Changes>) {
        self.groups.write().hidden.push_back(changes);
    }

    /// Shows the oldest hidden group: it is durable now.
    pub(super) fn publish(&self) {
        let mut groups = self.groups.write();
        let Some(changes) = groups.hidden.pop_front() else { return };
        for (player, changes) in &*changes {
            if let Some(Cached::All(records)) = self.players.get(player) {
                self.keep(player, merge(&records, changes));
            }
        }
        groups.recent.push_front(changes);
        groups.recent.truncate(RECENT_GROUPS);
        groups.published += 1;
    }
}

/// What a group does to a record.
pub(super) fn find<'a>(
    changes: &'a Changes,
    player: &PlayerKey,
    node: &NodeId,
) -> Option<&'a Change> {
    changes.get(player)?.iter().find(|change| change.node == *node)
}

fn merge(records: &Records, changes: &[Change]) -> Vec<(NodeId, Arc<StoredRecord>)> {
    let mut merged = records.to_vec();
    for Change { node, after, .. } in changes {
        match (merged.binary_search_by(|(of, _)| of.cmp(node)), after) {
            (Ok(place), Some(after)) => merged[place].1 = after.clone(),
            (Ok(place), None) => drop(merged.remove(place)),
            (Err(place), Some(after)) => merged.insert(place, (node.clone(), after.clone())),
            (Err(_), None) => {}
        }
    }
    merged
}

impl Groups {
    /// Whether one of the last `count` groups changes, or may have changed, this player.
    fn has_touched(&self, player: &PlayerKey, count: u64) -> bool {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        count > self.recent.len()
            || self.recent.iter().take(count).any(|changes| changes.contains_key(player))
    }

    /// Puts back what hidden groups change: the oldest of them knows what is durable.
    fn restore(
        &self,
        player: &PlayerKey,
        mut records: Vec<(NodeId, Arc<StoredRecord>)>,
    ) -> Vec<(NodeId, Arc<StoredRecord>)> {
        let hidden = self.hidden.iter().rev().filter_map(|changes| changes.get(player));
        for Change { node, before, .. } in hidden.flatten() {
            let place = records.binary_search_by(|(of, _)| of.cmp(node));
            match (place, before) {
                (Ok(place), Some(before)) => records[place].1 = before.clone(),
                (Ok(place), None) => drop(records.remove(place)),
                (Err(place), Some(before)) => {
                    records.insert(place, (node.clone(), before.clone()));
                }
                (Err(_), None) => {}
            }
        }
        records
    }
}

#[cfg(test)]
mod tests {
    use super::{super::rows::record_to_row, *};
    use crate::{
        domain::{Progress, Record, State, Version},
        testing::{node_id, player},
    };

    fn stored(version: u64) -> Arc<StoredRecord> {
        let state = State {
            progress: Progress::clamped(version),
            version: Version::stored(version),
            ..State::default()
        };
        let record = Record { state, ..Record::default() };
        Arc::new(StoredRecord { record, ..StoredRecord::default() })
    }

    fn changes(id: &str, nodes: &[(&str, u64, u64)]) -> Arc<Changes> {
        let changes = nodes.iter().map(|(node, before, after)| Change {
            node: node_id(node),
            before: (*before > 0).then(|| stored(*before)),
            after: Some(stored(*after)),
        });
        Arc::new(Changes::from([(player("t", id), changes.collect())]))
    }

    fn view() -> DurableView {
        let db = sled::Config::new().temporary(true).open().unwrap();
        DurableView::new((*db).clone(), 1 << 20)
    }

    fn write(view: &DurableView, id: &str, node: &str, version: u64) {
        let key = keys::record(&player("t", id), &node_id(node));
        let value = super::super::frame::encode(&key, &record_to_row(&stored(version)));
        view.tree.insert(key, value).unwrap();
    }

    fn versions(records: &Records) -> Vec<(&str, u64)> {
        let pairs = records.iter();
        pairs.map(|(node, it)| (node.as_str(), it.record.state.version.get())).collect()
    }

    #[test]
    fn hidden_groups_are_seen_by_nobody_until_they_are_published_one_by_one() {
        let view = view();
        let p = player("t", "p");
        let expect = |durable: &[(&str, u64)]| {
            assert_eq!(versions(&view.read(&p).unwrap()), durable, "from the tree");
            assert_eq!(versions(&view.cached(&p).unwrap()), durable, "from memory");
        };
        write(&view, "p", "a", 1);
        write(&view, "p", "c", 4);
        expect(&[("a", 1), ("c", 4)]);

        view.hide(changes("p", &[("a", 1, 2), ("b", 0, 1)]));
        write(&view, "p", "a", 2);
        write(&view, "p", "b", 1);
        expect(&[("a", 1), ("c", 4)]);
        view.hide(changes("p", &[("a", 2, 3)]));
        write(&view, "p", "a", 3);
        expect(&[("a", 1), ("c", 4)]);

        let applied = |node: &str| {
            let found = view.applied(&p, &node_id(node)).unwrap();
            found.map(|it| it.record.state.version.get())
        };
        assert_eq!([applied("a"), applied("b"), applied("c")], [Some(3), Some(1), Some(4)]);
        assert_eq!(applied("d"), None);

        view.publish();
        assert_eq!(versions(&view.cached(&p).unwrap()), [("a", 2), ("b", 1), ("c", 4)]);
        expect(&[("a", 2), ("b", 1), ("c", 4)]);
        view.publish();
        expect(&[("a", 3), ("b", 1), ("c", 4)]);
    }

    #[test]
    fn a_scan_is_repeated_only_for_groups_that_touch_it() {
        let view = view();
        let publish = |id: &str| {
            view.hide(changes(id, &[("n", 0, 1)]));
            view.publish();
        };
        publish("other");
        publish("mine");
        for _ in 0..RECENT_GROUPS - 1 {
            publish("other");
        }
        let groups = view.groups.read();
        let mine = player("t", "mine");
        assert!(!groups.has_touched(&mine, 0));
        assert!(!groups.has_touched(&mine, RECENT_GROUPS as u64 - 1));
        assert!(groups.has_touched(&mine, RECENT_GROUPS as u64));
        let nobody = player("t", "x");
        assert!(groups.has_touched(&nobody, RECENT_GROUPS as u64 + 1), "nobody knows any more");
    }

    #[test]
    fn a_player_with_too_many_records_is_not_kept() {
        // The cache has a part for each core, which must hold the player.
        let db = sled::Config::new().temporary(true).open().unwrap();
        let view = DurableView::new((*db).clone(), 1 << 28);
        let p = player("t", "p");
        for n in 0..CACHED_RECORDS_MAX {
            write(&view, "p", &format!("n{n:04}"), 1);
        }
        assert_eq!(view.read(&p).unwrap().len(), CACHED_RECORDS_MAX);
        assert!(view.cached(&p).is_some());
        view.hide(changes("p", &[("one-more", 0, 1)]));
        write(&view, "p", "one-more", 1);
        view.publish();
        assert!(view.cached(&p).is_none());
        assert_eq!(view.read(&p).unwrap().len(), CACHED_RECORDS_MAX + 1);
        assert!(view.cached(&p).is_none());
    }
}

//! Reads that show only what is durable.
//!
//! sled shows a write as soon as it is applied, before it is synced. A reader that saw it, and a
//! power cut right then, would leave a version that somebody knows and the disk does not; the next
//! set would hand it out a second time. So before the committer applies a group it puts the present
//! values of all keys of the group into an overlay, and takes them out once the group is synced.
//! A reader reads the tree first and the overlay second: whichever way it races with the
//! committer, it ends with a value that was durable at some moment during the read.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::RwLock;
use sled::{IVec, Tree};

/// How often a scan is repeated because a group that touches it was published in the middle of it.
/// After that it holds off publication for the length of one scan.
const SCAN_ATTEMPTS: usize = 8;

/// Published groups whose keys are kept, so that a scan knows which of them touch it.
const RECENT_GROUPS: usize = 16;

/// A value per key as it was before the group under way; `None` where there was none.
pub(super) type Before = BTreeMap<Vec<u8>, Option<IVec>>;

/// See the module.
pub(super) struct DurableView {
    tree: Tree,
    overlay: RwLock<Overlay>,
}

#[derive(Default)]
struct Overlay {
    /// Counts groups that became durable.
    published: u64,
    before: Before,
    /// The groups that became durable last, newest first.
    recent: VecDeque<Before>,
}

impl DurableView {
    pub(super) fn new(tree: Tree) -> Self {
        Self { tree, overlay: RwLock::default() }
    }

    /// The tree itself, not-yet-durable writes included: for the committer, and for keys that are
    /// kept from readers in another way.
    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// All durable entries whose key begins with `prefix`, as of one moment, in key order.
    pub(super) fn scan(&self, prefix: &[u8]) -> sled::Result<Vec<(IVec, IVec)>> {
        for _ in 0..SCAN_ATTEMPTS {
            let published = self.overlay.read().published;
            let applied = self.scan_applied(prefix)?;
            let overlay = self.overlay.read();
            if !overlay.has_touched(prefix, overlay.published - published) {
                return Ok(overlay.restore(prefix, applied));
            }
        }
        let overlay = self.overlay.read();
        let applied = self.scan_applied(prefix)?;
        Ok(overlay.restore(prefix, applied))
    }

    fn scan_applied(&self, prefix: &[u8]) -> sled::Result<Vec<(IVec, IVec)>> {
        self.tree.scan_prefix(prefix).collect()
    }

    /// Hides a group that is about to be applied.
    pub(super) fn hide(&self, before: Before) {
        let mut overlay = self.overlay.write();
        assert!(overlay.before.is_empty(), "one group at a time");
        overlay.before = before;
    }

    /// Shows the group that was hidden: it is durable now.
    pub(super) fn publish(&self) {
        let mut overlay = self.overlay.write();
        let mut published = std::mem::take(&mut overlay.before);
        // From here on only the keys are asked for; their old values need not stay in memory.
        for value in published.values_mut() {
            *value = None;
        }
        overlay.recent.push_front(published);
        overlay.recent.truncate(RECENT_GROUPS);
        overlay.published += 1;
    }
}

impl Overlay {
    /// Whether one of the last `groups` groups has, or may have, a key of this prefix.
    fn has_touched(&self, prefix: &[u8], groups: u64) -> bool {
        let groups = usize::try_from(groups).unwrap_or(usize::MAX);
        let touches = |group: &Before| {
            group.range(prefix.to_vec()..).next().is_some_and(|(key, _)| key.starts_with(prefix))
        };
        groups > self.recent.len() || self.recent.iter().take(groups).any(touches)
    }

    fn restore(&self, prefix: &[u8], applied: Vec<(IVec, IVec)>) -> Vec<(IVec, IVec)> {
        let hidden = self.before.range(prefix.to_vec()..);
        let mut hidden = hidden.take_while(|(key, _)| key.starts_with(prefix)).peekable();
        if hidden.peek().is_none() {
            return applied;
        }
        let mut entries: BTreeMap<IVec, IVec> = applied.into_iter().collect();
        for (key, before) in hidden {
            match before {
                Some(value) => drop(entries.insert(IVec::from(key.as_slice()), value.clone())),
                None => drop(entries.remove(key.as_slice())),
            }
        }
        entries.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_group_is_seen_by_nobody_until_it_is_published() {
        let db = sled::Config::new().temporary(true).open().unwrap();
        let view = DurableView::new((*db).clone());
        db.insert(b"ab", b"old").unwrap();
        db.insert(b"ad", b"same").unwrap();
        view.hide(Before::from([(b"ab".to_vec(), Some("old".into())), (b"ac".to_vec(), None)]));
        db.insert(b"ab", b"new").unwrap();
        db.insert(b"ac", b"new").unwrap();

        let texts = |entries: Vec<(IVec, IVec)>| -> Vec<String> {
            entries.iter().map(|(_, v)| String::from_utf8_lossy(v).into_owned()).collect()
        };
        assert_eq!(texts(view.scan(b"a").unwrap()), ["old", "same"]);
        view.publish();
        assert_eq!(texts(view.scan(b"a").unwrap()), ["new", "new", "same"]);
    }

    #[test]
    fn a_scan_is_repeated_only_for_groups_that_touch_it() {
        let db = sled::Config::new().temporary(true).open().unwrap();
        let view = DurableView::new((*db).clone());
        let publish = |key: &[u8]| {
            view.hide(Before::from([(key.to_vec(), None)]));
            view.publish();
        };
        publish(b"other");
        publish(b"mine");
        for _ in 0..RECENT_GROUPS - 1 {
            publish(b"other");
        }
        let overlay = view.overlay.read();
        assert!(!overlay.has_touched(b"mine", 0));
        assert!(!overlay.has_touched(b"mine", RECENT_GROUPS as u64 - 1));
        assert!(overlay.has_touched(b"mine", RECENT_GROUPS as u64));
        assert!(overlay.has_touched(b"x", RECENT_GROUPS as u64 + 1), "nobody knows any more");
    }
}

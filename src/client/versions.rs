//! The versions that a client has seen.

use std::{fmt, sync::Arc};

use quick_cache::sync::Cache;

use super::RecordId;

/// Most records whose version is remembered; those that were not used for long are forgotten, and
/// their next set may conflict once more than it would have to.
const VERSIONS_MAX: usize = 10_000;

/// The newest version of each record that was seen; clones share it.
#[derive(Clone)]
pub(super) struct Versions(Arc<Cache<RecordId, i64>>);

impl Default for Versions {
    fn default() -> Self {
        Self(Arc::new(Cache::new(VERSIONS_MAX)))
    }
}

impl fmt::Debug for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} versions", self.0.len())
    }
}

impl Versions {
    /// 0 for a record that was not seen.
    pub(super) fn of(&self, id: &RecordId) -> i64 {
        self.0.get(id).unwrap_or_default()
    }

    /// Answers may come in another order than they were made in: an older one changes nothing.
    pub(super) fn saw(&self, id: &RecordId, version: i64) {
        if version > self.of(id) {
            self.0.insert(id.clone(), version);
        }
    }

    /// Where a set conflicted, this is stored, be it older: a backup may have been restored.
    pub(super) fn conflicted(&self, id: &RecordId, version: i64) {
        self.0.insert(id.clone(), version);
    }
}

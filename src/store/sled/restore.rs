//! Making a data folder from a backup. It is made under another name and gets its own only when it
//! is whole and verified, so that a crash in the middle leaves nothing that looks like a store.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Report, SledStore,
    commit::{Committer, Group},
    error::{OpenError, at, unreadable},
    folder::{create_dir, remove_dir, sync_dir, sync_tree},
    operations,
    work::Room,
};
use crate::{
    clock::Clock,
    domain::Title,
    store::{Store, StoreError, crash_point::crash_point},
};

/// A data folder in the making.
pub struct Restoration {
    store: Arc<SledStore>,
    building: PathBuf,
    dir: PathBuf,
    cache_bytes: u64,
}

// === impl Restoration ===

impl Restoration {
    /// Begins to make a folder; until it is whole, it has the ending `.restoring`. What an earlier
    /// attempt left there is removed.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; where the folder exists already, nothing is touched.
    pub fn begin(dir: &Path, cache_bytes: u64, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        if fs::symlink_metadata(dir).is_ok() {
            return Err(OpenError::Exists(dir.to_owned()));
        }
        let name = dir.file_name().ok_or_else(|| OpenError::Exists(dir.to_owned()))?;
        let mut building = name.to_owned();
        building.push(".restoring");
        let building = dir.with_file_name(building);
        create_dir(parent(dir))?;
        remove_dir(&building)?;
        let store = Arc::new(SledStore::open(&building, cache_bytes, clock)?);
        Ok(Self { store, building, dir: dir.to_owned(), cache_bytes })
    }

    /// Where everything is to be stored.
    #[must_use]
    pub fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// Closes and verifies what was made, and gives it its name. Cursors of the store of this id
    /// work in it, as far as the feeds of these titles go.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; there is no folder of that name then.
    ///
    /// # Panics
    ///
    /// Where the store of [`Restoration::store`] is still held.
    pub async fn finish(
        self,
        ancestor_id: u64,
        titles: Vec<Title>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Report, OpenError> {
        let Self { store, building, dir, cache_bytes } = self;
        let finish = move |committer: &mut Committer, group: &mut Group| {
            operations::finish_restore(committer, group, ancestor_id, &titles);
            Ok::<_, StoreError>(())
        };
        let finished = store.work(Room::Alone, finish).await;
        finished.map_err(|error| unreadable(&building)(error.to_string()))?;
        let store = Arc::into_inner(store).expect("nobody else holds the store");
        drop(store);
        crash_point!("restored");
        let report = SledStore::verify(&building, cache_bytes, progress)?;
        sync_tree(&building)?;
        crash_point!("restored-and-synced");
        fs::rename(&building, &dir).map_err(at(&dir))?;
        sync_dir(parent(&dir))?;
        Ok(report)
    }
}

fn parent(dir: &Path) -> &Path {
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

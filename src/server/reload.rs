//! Catalogue files that are read again when they change.
//!
//! Files are looked at, not watched: that works alike on every file system, on mounted volumes, and
//! where a deployment swaps a symbolic link. A change is taken once it has stood still for one
//! interval, so that a file is not read while it is being written.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::{task::spawn_blocking, time};

use crate::{
    catalog::{self, Applied, CatalogFileError, Catalogs},
    domain::{Catalog, Title},
};

/// A title's file, and how it looked when it was last read.
pub(super) struct CatalogFile {
    title: Title,
    path: PathBuf,
    read: Looks,
    seen: Looks,
}

/// Names, sizes and times of a file or of all files of a folder.
type Looks = Vec<(PathBuf, u64, Option<SystemTime>)>;

// === impl CatalogFile ===

impl CatalogFile {
    pub(super) fn new(title: Title, path: PathBuf) -> Self {
        Self { title, path, read: Looks::new(), seen: Looks::new() }
    }

    pub(super) fn title(&self) -> &Title {
        &self.title
    }

    /// Reads the file now.
    pub(super) async fn load(&mut self) -> Result<Catalog, CatalogFileError> {
        let path = self.path.clone();
        let work = spawn_blocking(move || (looks(&path), catalog::load(&path)));
        let (looks, loaded) = work.await.expect("reading a catalogue does not panic");
        self.read.clone_from(&looks);
        self.seen = looks;
        loaded
    }

    /// Whether the file has changed since it was read, and has stopped changing.
    async fn has_changed(&mut self) -> bool {
        let path = self.path.clone();
        let Ok(now) = spawn_blocking(move || looks(&path)).await else { return false };
        let stands_still = now == self.seen;
        self.seen = now;
        stands_still && self.seen != self.read
    }
}

/// Applies changed files for as long as the server runs. A file with mistakes is told of once, and
/// the old catalogue stays.
pub(super) async fn follow(mut files: Vec<CatalogFile>, catalogs: Catalogs, interval: Duration) {
    loop {
        time::sleep(interval).await;
        for file in &mut files {
            if !file.has_changed().await {
                continue;
            }
            let catalog = match file.load().await {
                Ok(catalog) => catalog,
                Err(error) => {
                    tracing::error!(%error, title = ?file.title, "the old catalogue stays");
                    continue;
                }
            };
            match catalogs.apply(&file.title, catalog, None, false).await {
                Ok(applied) => log(&file.title, &applied),
                Err(error) => tracing::error!(%error, title = ?file.title, "catalogue not stored"),
            }
        }
    }
}

/// Says what a file that was read has changed.
pub(super) fn log(title: &Title, applied: &Applied) {
    tracing::info!(
        ?title,
        revision = applied.revision,
        added = applied.diff.added.len(),
        changed = applied.diff.changed.len(),
        removed = applied.diff.removed.len(),
        "catalogue file read"
    );
}

fn looks(path: &Path) -> Looks {
    let one = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        Some((path.to_owned(), metadata.len(), metadata.modified().ok()))
    };
    let mut looks: Looks = one(path).into_iter().collect();
    if let Ok(entries) = fs::read_dir(path) {
        looks.extend(entries.filter_map(|entry| one(&entry.ok()?.path())));
    }
    looks.sort();
    looks
}

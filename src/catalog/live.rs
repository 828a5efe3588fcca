//! The catalogue of every title as it is now: read by each set without a lock, replaced as a whole.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::sync::Mutex;

use crate::{
    domain::{Catalog, CatalogDiff, Title},
    store::{CatalogError, Store, StoreError, StoredCatalog},
};

/// Pause before catalogues are read again that could not be read.
const RELOAD_PAUSE: Duration = Duration::from_secs(2);

/// How often to try to replace a catalogue that other servers replace at the same time.
const ATTEMPTS_MAX: u32 = 5;

/// See the module. Cloning shares it.
#[derive(Clone)]
pub struct Catalogs {
    store: Arc<dyn Store>,
    live: Arc<ArcSwap<BTreeMap<Title, StoredCatalog>>>,
    /// One replacement at a time, so that live and stored catalogues change in the same order.
    applying: Arc<Mutex<()>>,
}

/// What a replacement changed, or would change.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The title's revision now.
    pub revision: u64,
    /// How the new catalogue differs from the one before.
    pub diff: CatalogDiff,
}

// === impl Catalogs ===

impl Catalogs {
    /// Loads what the store has.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where it cannot be read.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let stored = store.catalogs().await?;
        let live = stored.into_iter().map(|stored| (stored.title.clone(), stored)).collect();
        Ok(Self { store, live: Arc::new(ArcSwap::from_pointee(live)), applying: Arc::default() })
    }

    /// A title's catalogue.
    #[must_use]
    pub fn get(&self, title: &Title) -> Option<StoredCatalog> {
        self.live.load().get(title).cloned()
    }

    /// Every title's catalogue, in the order of the titles' bytes.
    #[must_use]
    pub fn all(&self) -> Arc<BTreeMap<Title, StoredCatalog>> {
        self.live.load_full()
    }

    /// Takes over what other servers replace, for as long as the store can tell.
    pub async fn follow(self) {
        let mut changes = self.store.catalog_changes();
        // Something may have been replaced since this was opened.
        changes.mark_changed();
        while changes.changed().await.is_ok() {
            if let Err(error) = self.reload().await {
                tracing::warn!(%error, "catalogues could not be read; trying again");
                tokio::time::sleep(RELOAD_PAUSE).await;
                changes.mark_changed();
            }
        }
    }

    /// Reads what is newer in the store.
    async fn reload(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.applying.lock().await;
        self.reload_locked().await.map(drop)
    }

    /// Tells whether anything was newer.
    async fn reload_locked(&self) -> Result<bool, StoreError> {
        let live = self.live.load_full();
        let known = live.iter().map(|(title, stored)| (title.clone(), stored.revision)).collect();
        let newer = self.store.newer_catalogs(&known).await?;
        if newer.is_empty() {
            return Ok(false);
        }
        let mut live = BTreeMap::clone(&live);
        for stored in newer {
            tracing::info!(title = ?stored.title, revision = stored.revision, "catalogue changed");
            live.insert(stored.title.clone(), stored);
        }
        self.live.store(Arc::new(live));
        Ok(true)
    }

    /// Replaces a title's catalogue, or makes a new title. One that is equal changes nothing.
    ///
    /// # Errors
    ///
    /// [`CatalogError`]; the old catalogue stays.
    pub async fn apply(
        &self,
        title: &Title,
        catalog: Catalog,
        expected: Option<u64>,
        dry_run: bool,
    ) -> Result<Applied, CatalogError> {
        // In a task of its own: a caller that goes away must not leave the stored catalogue and the
        // live one apart.
        let (this, title) = (self.clone(), title.clone());
        let applying =
            tokio::spawn(async move { this.apply_now(&title, catalog, expected, dry_run).await });
        applying.await.map_err(|error| StoreError::Failed(error.to_string()))?
    }

    async fn apply_now(
        &self,
        title: &Title,
        catalog: Catalog,
        expected: Option<u64>,
        dry_run: bool,
    ) -> Result<Applied, CatalogError> {
        let _one_at_a_time = self.applying.lock().await;
        let catalog = Arc::new(catalog);
        let mut attempts = 0;
        loop {
            let applied = self.apply_once(title, &catalog, expected, dry_run).await;
            let is_behind = matches!(applied, Err(CatalogError::RevisionMismatch { .. }));
            attempts += 1;
            // Another server may have replaced it, and this one not have heard of that yet.
            if !is_behind || attempts > ATTEMPTS_MAX || !self.reload_locked().await? {
                return applied;
            }
        }
    }

    async fn apply_once(
        &self,
        title: &Title,
        catalog: &Arc<Catalog>,
        expected: Option<u64>,
        dry_run: bool,
    ) -> Result<Applied, CatalogError> {
        let old = self.get(title);
        let revision = old.as_ref().map_or(0, |old| old.revision);
        if let Some(expected) = expected
            && expected != revision
        {
            return Err(CatalogError::RevisionMismatch { expected, actual: revision });
        }
        let diff = catalog.diff(old.as_ref().map(|old| &*old.catalog));
        if dry_run || diff == CatalogDiff::default() {
            return Ok(Applied { revision, diff });
        }
        let stored = self.store.replace_catalog(title, revision, catalog.clone()).await?;
        let revision = stored.revision;
        let mut live = BTreeMap::clone(&self.live.load());
        live.insert(title.clone(), stored);
        self.live.store(Arc::new(live));
        Ok(Applied { revision, diff })
    }
}

//! Catalogues in the tree: encoded as a whole, cut into chunks, under a new revision each time.
//! The title's row names the revision that counts, so a replacement is not half done at any moment.

use sled::Tree;

use super::{
    bounds::GROUP_BYTES_MAX,
    frame, keys,
    keys::Key,
    read::{damaged, failed, read_row},
    rows::{catalog_from_row, catalog_to_row},
};
use crate::{
    domain::{Catalog, Title},
    proto::rows::{CatalogChunkRow, CatalogRow, TitleRow},
    store::{CatalogError, StoreError, StoredCatalog, TITLES_MAX},
};
use prost::Message;
use std::{collections::BTreeMap, sync::Arc};

const CHUNK_BYTES: usize = 64 << 10;
const CHUNKS_PER_STEP: usize = GROUP_BYTES_MAX / CHUNK_BYTES / 2;
const REMOVALS_PER_STEP: usize = 1024;

/// Keys and values to write (or, without a value, to remove) in one atomic step.
pub(super) type Step = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// The steps that replace a title's catalogue, if it is at revision `expected`.
pub(super) fn plan(
    tree: &Tree,
    title: &Title,
    expected: u64,
    catalog: &Catalog,
) -> Result<Vec<Step>, CatalogError> {
    let actual = title_row(tree, title)?.map_or(0, |row| row.revision);
    if actual != expected {
        return Err(CatalogError::RevisionMismatch { expected, actual });
    }
    if actual == 0 && tree.scan_prefix(keys::titles()).count() >= TITLES_MAX {
        return Err(CatalogError::TooManyTitles);
    }
    let revision = actual + 1;
    let bytes = catalog_to_row(catalog).encode_to_vec();
    let chunks: Step = bytes
        .chunks(CHUNK_BYTES)
        .zip(0..)
        .map(|(piece, chunk)| {
            let key = Key::CatalogChunk { title: title.clone(), revision, chunk }.encode();
            let value = frame::encode(&key, &CatalogChunkRow { piece: piece.to_vec() });
            (key, Some(value))
        })
        .collect();

    let row = TitleRow { revision, chunk_count: u32::try_from(chunks.len()).unwrap_or(u32::MAX) };
    let key = Key::Title(title.clone()).encode();
    let value = frame::encode(&key, &row);
    let mut steps: Vec<Step> = chunks.chunks(CHUNKS_PER_STEP).map(<[_]>::to_vec).collect();
    steps.push(vec![(key, Some(value))]);
    steps.extend(removals(stale_chunks(tree, title, revision)?));
    Ok(steps)
}

/// The steps that remove chunks of replacements that a crash cut short.
pub(super) fn leftovers(tree: &Tree) -> Result<Vec<Step>, StoreError> {
    let mut stale = Vec::new();
    let mut known: Option<(Title, u64)> = None;
    for entry in tree.scan_prefix(keys::chunks()) {
        let (key, _) = entry.map_err(failed)?;
        let Some(Key::CatalogChunk { title, revision, .. }) = Key::decode(&key) else {
            return Err(damaged(&key, "stands under a key that is no chunk's"));
        };
        if known.as_ref().is_none_or(|(of, _)| *of != title) {
            let current = title_row(tree, &title)?.map_or(0, |row| row.revision);
            known = Some((title, current));
        }
        if known.as_ref().is_some_and(|(_, current)| *current != revision) {
            stale.push(key.to_vec());
        }
    }
    Ok(removals(stale))
}

/// Every title with its catalogue, but those of known revisions.
pub(super) fn load(
    tree: &Tree,
    known: &BTreeMap<Title, u64>,
) -> Result<Vec<StoredCatalog>, StoreError> {
    let mut catalogs = Vec::new();
    for entry in tree.scan_prefix(keys::titles()) {
        let (key, value) = entry.map_err(failed)?;
        let Some(Key::Title(title)) = Key::decode(&key) else {
            return Err(damaged(&key, "stands under a key that is no title's"));
        };
        let TitleRow { revision, chunk_count } = read_row(&key, &value)?;
        if known.get(&title) == Some(&revision) {
            continue;
        }
        let mut bytes = Vec::new();
        for chunk in 0..chunk_count {
            let key = Key::CatalogChunk { title: title.clone(), revision, chunk }.encode();
            let value = tree.get(&key).map_err(failed)?;
            let value = value.ok_or_else(|| damaged(&key, "is missing"))?;
            bytes.extend(read_row::<CatalogChunkRow>(&key, &value)?.piece);
        }
        let row = CatalogRow::decode(bytes.as_slice()).ok();
        let catalog = row.and_then(catalog_from_row);
        let catalog = Arc::new(catalog.ok_or_else(|| damaged(&key, "names no sound catalogue"))?);
        catalogs.push(StoredCatalog { title, revision, catalog });
    }
    catalogs.sort_by(|a, b| a.title.cmp(&b.title));
    Ok(catalogs)
}

fn title_row(tree: &Tree, title: &Title) -> Result<Option<TitleRow>, StoreError> {
    let key = Key::Title(title.clone()).encode();
    let value = tree.get(&key).map_err(failed)?;
    value.map(|value| read_row(&key, &value)).transpose()
}

/// Chunks of other revisions than the one that is about to count.
fn stale_chunks(tree: &Tree, title: &Title, revision: u64) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut stale = Vec::new();
    for key in tree.scan_prefix(keys::chunks_of_title(title)).keys() {
        let key = key.map_err(failed)?;
        match Key::decode(&key) {
            Some(Key::CatalogChunk { revision: of, .. }) if of != revision => {
                stale.push(key.to_vec());
            }
            _ => {}
        }
    }
    Ok(stale)
}

fn removals(keys: Vec<Vec<u8>>) -> Vec<Step> {
    let keys: Step = keys.into_iter().map(|key| (key, None)).collect();
    keys.chunks(REMOVALS_PER_STEP).map(<[_]>::to_vec).collect()
}

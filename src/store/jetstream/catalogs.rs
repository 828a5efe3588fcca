//! Catalogues: in pieces, since they are larger than a message may be. A catalogue is written in
//! one batch, of which the head is the last: whoever reads a head finds its pieces, or a newer one.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;

use super::{
    cluster::{Cluster, read_row},
    names::Names,
    patience::Pauses,
    wire::{Write, Written},
};
use crate::{
    domain::{Catalog, Title},
    proto::rows::{CatalogHeadRow, CatalogPieceRow, CatalogRow},
    store::{
        CatalogError, StoreError, StoredCatalog, TITLES_MAX, frame,
        rows::{catalog_from_row, catalog_to_row},
    },
};

const PIECE_BYTES: usize = 512 << 10;

/// How long to try to write one, or to read one that is being written.
const PATIENCE: Duration = Duration::from_secs(30);

/// Every title's catalogue, but those of known revisions.
pub(super) async fn newer(
    cluster: &Cluster,
    known: &BTreeMap<Title, u64>,
) -> Result<Vec<StoredCatalog>, StoreError> {
    let stream = cluster.names.shared_stream();
    let subjects = cluster.names.titles();
    let (counts, _) = cluster.wire.counts(&stream, &subjects).await?;
    let mut catalogs = Vec::with_capacity(counts.len());
    for (subject, _) in counts {
        let title = Names::title_of(&subject);
        let title =
            title.ok_or_else(|| StoreError::Corrupt(format!("`{subject}` is no title's")))?;
        catalogs.extend(read(cluster, &title, known.get(&title).copied()).await?);
    }
    catalogs.sort_by(|a, b| a.title.cmp(&b.title));
    Ok(catalogs)
}

/// A title's catalogue, if it has one of another revision than the known.
async fn read(
    cluster: &Cluster,
    title: &Title,
    known: Option<u64>,
) -> Result<Option<StoredCatalog>, StoreError> {
    let mut pauses = Pauses::new(PATIENCE);
    loop {
        let Some((head, _)) = head(cluster, title).await? else { return Ok(None) };
        if known == Some(head.revision) {
            return Ok(None);
        }
        if let Some(catalog) = pieces(cluster, title, head).await? {
            let catalog = Arc::new(catalog);
            return Ok(Some(StoredCatalog {
                title: title.clone(),
                revision: head.revision,
                catalog,
            }));
        }
        // It is being replaced.
        if !pauses.wait().await {
            let error = format!("the catalogue of {title:?} has pieces of several revisions");
            return Err(StoreError::Corrupt(error));
        }
    }
}

async fn head(
    cluster: &Cluster,
    title: &Title,
) -> Result<Option<(CatalogHeadRow, u64)>, StoreError> {
    let (stream, subject) = (cluster.names.shared_stream(), cluster.names.title(title));
    let message = cluster.wire.last(&stream, &subject).await?;
    message.map(|message| Ok((read_row(&message)?, message.sequence))).transpose()
}

/// The catalogue of a head; `None` where a piece is of another revision.
async fn pieces(
    cluster: &Cluster,
    title: &Title,
    head: CatalogHeadRow,
) -> Result<Option<Catalog>, StoreError> {
    let stream = cluster.names.shared_stream();
    let mut bytes = Vec::new();
    for number in 0..head.piece_count {
        let subject = cluster.names.piece(title, number);
        let message = cluster.wire.last(&stream, &subject).await?;
        let row = message.as_ref().map(read_row::<CatalogPieceRow>).transpose()?;
        match row {
            Some(row) if row.revision == head.revision => bytes.extend(row.piece),
            _ => return Ok(None),
        }
    }
    let catalog = CatalogRow::decode(bytes.as_slice()).ok().and_then(catalog_from_row);
    let damaged = || StoreError::Corrupt(format!("the catalogue of {title:?} is not sound"));
    catalog.map(Some).ok_or_else(damaged)
}

/// Replaces a title's catalogue, if it is at revision `expected`.
pub(super) async fn replace(
    cluster: &Cluster,
    title: &Title,
    expected: u64,
    catalog: Arc<Catalog>,
) -> Result<StoredCatalog, CatalogError> {
    let write_id = fastrand::u64(1..);
    let revision = expected + 1;
    let bytes = catalog_to_row(&catalog).encode_to_vec();
    let mut pauses = Pauses::new(PATIENCE);
    let (mut pieces_before, mut is_unknown) = (0, false);
    let stored_at = loop {
        let known = head(cluster, title).await?;
        if let Some((head, sequence)) = known
            && head.write_id == write_id
        {
            break sequence;
        }
        let (actual, sequence) = known.map_or((0, 0), |(head, sequence)| (head.revision, sequence));
        pieces_before = known.map_or(0, |(head, _)| head.piece_count);
        if actual != expected {
            return Err(CatalogError::RevisionMismatch { expected, actual });
        }
        if actual == 0 && count(cluster).await? >= TITLES_MAX {
            return Err(CatalogError::TooManyTitles);
        }
        let writes = writes(cluster, title, (revision, write_id), &bytes, sequence).await?;
        match cluster.wire.write(writes).await {
            Written::Stored(sequence) => break sequence,
            // Read anew, the head shows what became of it.
            Written::Unknown(_) | Written::Conflict => is_unknown = true,
            Written::NotSent(_) => {}
        }
        if !pauses.wait().await {
            let error = StoreError::Unavailable("the catalogue could not be written".to_owned());
            return Err(if is_unknown { StoreError::OutcomeUnknown } else { error }.into());
        }
    };
    // Pieces that a longer catalogue had, which nobody reads any more; a still newer one may have
    // written them again.
    let stream = cluster.names.shared_stream();
    for number in (0..pieces_before).skip(bytes.len().div_ceil(PIECE_BYTES)) {
        let subject = cluster.names.piece(title, number);
        let _ = cluster.wire.purge(&stream, &subject, stored_at).await;
    }
    Ok(StoredCatalog { title: title.clone(), revision, catalog })
}

async fn count(cluster: &Cluster) -> Result<usize, StoreError> {
    let (stream, subjects) = (cluster.names.shared_stream(), cluster.names.titles());
    let (counts, _) = cluster.wire.counts(&stream, &subjects).await?;
    Ok(counts.len())
}

/// One batch: the pieces, and the head.
async fn writes(
    cluster: &Cluster,
    title: &Title,
    (revision, write_id): (u64, u64),
    bytes: &[u8],
    head_sequence: u64,
) -> Result<Vec<Write>, StoreError> {
    let stream = cluster.names.shared_stream();
    let mut writes = Vec::new();
    for (number, piece) in (0..).zip(bytes.chunks(PIECE_BYTES)) {
        let subject = cluster.names.piece(title, number);
        let last = cluster.wire.last(&stream, &subject).await?;
        let row = CatalogPieceRow { revision, piece: piece.to_vec() };
        let value = Bytes::from(frame::encode(subject.as_bytes(), &row));
        let replaces = Some(last.map_or(0, |last| last.sequence));
        writes.push(Write { subject, value, replaces });
    }
    let piece_count = u32::try_from(writes.len()).unwrap_or(u32::MAX);
    let subject = cluster.names.title(title);
    let row = CatalogHeadRow { revision, piece_count, write_id };
    let value = Bytes::from(frame::encode(subject.as_bytes(), &row));
    writes.push(Write { subject, value, replaces: Some(head_sequence) });
    Ok(writes)
}

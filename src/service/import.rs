//! `ImportRecords`: items in, in steps that are each stored as a whole.

use std::sync::Arc;

use async_stream::try_stream;
use futures_util::FutureExt;
use prost::Message;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    status,
    transfer::{Piece, piece},
    wire::int,
};
use crate::{
    catalog::Catalogs,
    domain::Title,
    proto::v1,
    store::{CatalogError, Imported, Store, Times, transfer::Item},
};

/// Most bytes of messages that wait for one step of the store.
const BYTES_MAX: usize = 1 << 20;

/// Most items that wait for it.
const ITEMS_MAX: usize = 512;

/// What the items of one step take.
#[derive(Default)]
struct Step {
    items: Vec<Item>,
    /// Which message each of them came in, counted from 1.
    numbers: Vec<usize>,
    bytes: usize,
}

/// Stores items as they come; `first` was read already, to see which title they are for.
pub(super) fn import(
    store: Arc<dyn Store>,
    catalogs: Catalogs,
    title: Title,
    first: v1::ImportRecordsRequest,
    mut requests: Streaming<v1::ImportRecordsRequest>,
    stop: CancellationToken,
) -> impl Stream<Item = Result<v1::ImportRecordsResponse, Status>> + Send {
    try_stream! {
        let stopped = stop.cancelled_owned();
        tokio::pin!(stopped);
        let mut told = v1::ImportRecordsResponse::default();
        let mut read = 0;
        let mut pending = Step::default();
        let mut next = Some(Ok(first));
        let mut is_open = true;
        while is_open {
            match next.take() {
                Some(request) => {
                    let request = request.map_err(|status| status::from_stream(&status))?;
                    read += 1;
                    take(request, read, &title, &catalogs, &mut pending).await?;
                }
                None => is_open = false,
            }
            let waiting = match is_open && pending.has_room() {
                true => requests.next().now_or_never(),
                false => None,
            };
            match waiting {
                Some(request) => next = request,
                // Nothing more is there yet, or nothing more fits.
                None => {
                    let stored = store_step(&*store, &title, &mut pending).await?;
                    told.items = int(read as u64);
                    told.stored += int(stored.stored);
                    told.present += int(stored.present);
                    told.kept += int(stored.kept);
                    yield told;
                    if is_open {
                        next = tokio::select! {
                            biased;
                            () = &mut stopped => Some(Err(status::draining())),
                            request = requests.next() => request,
                        };
                    }
                }
            }
        }
    }
}

/// Adds what a message says to the step.
async fn take(
    request: v1::ImportRecordsRequest,
    number: usize,
    title: &Title,
    catalogs: &Catalogs,
    step: &mut Step,
) -> Result<(), Status> {
    let bytes = request.encoded_len();
    let message = request.item.ok_or_else(|| status::malformed_item(number, "it is missing"))?;
    let piece = piece(message, title);
    match piece.map_err(|problem| status::malformed_item(number, &problem))? {
        Piece::Start { catalog, item, .. } => {
            if catalogs.get(title).is_none() {
                match catalogs.apply(title, catalog, Some(0), false).await {
                    // Somebody made it meanwhile.
                    Err(CatalogError::RevisionMismatch { .. }) => {}
                    applied => drop(applied.map_err(status::from_catalog)?),
                }
            }
            step.add(item, bytes, number);
        }
        Piece::Item(_) if catalogs.get(title).is_none() => {
            return Err(status::title_not_found(title));
        }
        Piece::Item(item) => step.add(item, bytes, number),
        Piece::Nothing | Piece::End => {}
    }
    Ok(())
}

async fn store_step(store: &dyn Store, title: &Title, step: &mut Step) -> Result<Imported, Status> {
    let Step { mut items, mut numbers, .. } = std::mem::take(step);
    let mut all = Imported::default();
    while !items.is_empty() {
        let imported = store.import(title, items, Times::Checked).await;
        let (imported, rest) = imported.map_err(|error| status::from_import(error, &numbers))?;
        all.stored += imported.stored;
        all.present += imported.present;
        all.kept += imported.kept;
        numbers.drain(..numbers.len() - rest.len());
        items = rest;
    }
    Ok(all)
}

impl Step {
    fn add(&mut self, item: Item, bytes: usize, number: usize) {
        self.bytes += bytes;
        self.items.push(item);
        self.numbers.push(number);
    }

    fn has_room(&self) -> bool {
        self.bytes < BYTES_MAX && self.items.len() < ITEMS_MAX
    }
}

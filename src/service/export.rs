//! `ExportRecords`: a title in an order in which every beginning of it is sound.

use std::{collections::HashSet, sync::Arc};

use async_stream::try_stream;
use data_encoding::BASE64URL_NOPAD;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    status,
    transfer::{event_message, record_message},
    wire::{self, int},
};
use crate::{
    domain::{Cursor, Event, PlayerId, Title},
    proto::v1::{self, title_item::Item as Kind},
    store::{FeedError, Store, StoredCatalog},
};

/// Entries of a feed that are read at once.
const ENTRIES_AT_ONCE: usize = 256;

/// A place to go on from comes after so many items.
const CHECKPOINT_ITEMS: u64 = 1000;

/// How far an export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Everything of the feed up to here was given.
    cursor: Cursor,
    records: Records,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Records {
    /// They come behind the feed.
    NotYet,
    /// Those after this player, or all.
    After(Option<PlayerId>),
}

// === impl Place ===

impl Place {
    /// As text: the cursor, and the last player where records were begun.
    fn token(&self) -> String {
        let cursor = self.cursor.as_str();
        match &self.records {
            Records::NotYet => cursor.to_owned(),
            Records::After(None) => format!("{cursor}."),
            Records::After(Some(player)) => {
                format!("{cursor}.{}", BASE64URL_NOPAD.encode(player.as_str().as_bytes()))
            }
        }
    }

    /// Reads a token; whether its cursor works is for the store to say.
    pub(super) fn parse(token: &str) -> Option<Self> {
        let (cursor, player) = match token.split_once('.') {
            None => (token, None),
            Some((cursor, player)) => (cursor, Some(player)),
        };
        let records = match player {
            None => Records::NotYet,
            Some("") => Records::After(None),
            Some(player) => {
                let bytes = BASE64URL_NOPAD.decode(player.as_bytes()).ok()?;
                let player = PlayerId::parse(std::str::from_utf8(&bytes).ok()?).ok()?;
                Records::After(Some(player))
            }
        };
        Some(Self { cursor: Cursor::new(cursor), records })
    }
}

/// Gives a title's items from a place on, or all.
pub(super) fn export(
    store: Arc<dyn Store>,
    catalog: StoredCatalog,
    after: Option<Place>,
    stop: CancellationToken,
) -> impl Stream<Item = Result<v1::ExportRecordsResponse, Status>> + Send {
    try_stream! {
        let title = catalog.title.clone();
        let mut end = v1::ExportEnd::default();
        let Place { cursor, records } = match after {
            Some(place) => place,
            None => {
                let oldest = store.feed_bounds(&title).await.map_err(status::from_store)?.oldest;
                let removed_through = store.position(&title, &oldest).unwrap_or(0);
                yield item(start(&*store, &catalog, removed_through));
                Place { cursor: oldest, records: Records::NotYet }
            }
        };
        let mut feed = Feed { store: &*store, title: &title, cursor, erased: HashSet::new() };
        let mut given = 0;
        let mut last_player = match &records {
            Records::After(player) => player.clone(),
            Records::NotYet => None,
        };
        if records == Records::NotYet {
            loop {
                let page = feed.page().await?;
                if page.is_empty() {
                    break;
                }
                for event in page {
                    end.events += 1;
                    given += 1;
                    yield item(event);
                }
                if given >= CHECKPOINT_ITEMS {
                    given = 0;
                    yield checkpoint(&Place { cursor: feed.cursor.clone(), records: Records::NotYet });
                }
                check(&stop)?;
            }
        }
        loop {
            let players = store.full_records(&title, last_player.as_ref()).await;
            let players = players.map_err(status::from_store)?;
            if players.is_empty() {
                break;
            }
            for (player, records) in players {
                for (node, stored) in records {
                    let newest = stored.events().map(|event| event.sequence).max().unwrap_or(0);
                    while feed.position() < newest {
                        for event in feed.page().await? {
                            end.events += 1;
                            yield item(event);
                        }
                    }
                    // Erased after the record was read: nothing of it is to go out.
                    if !stored.events().any(|event| feed.erased.contains(&event.sequence)) {
                        end.records += 1;
                        given += 1;
                        yield item(record_message(&player, &node, &stored));
                    }
                }
                last_player = Some(player);
                if given >= CHECKPOINT_ITEMS {
                    given = 0;
                    let records = Records::After(last_player.clone());
                    yield checkpoint(&Place { cursor: feed.cursor.clone(), records });
                }
                check(&stop)?;
            }
        }
        loop {
            let page = feed.page().await?;
            if page.is_empty() {
                break;
            }
            for event in page {
                end.events += 1;
                yield item(event);
            }
            check(&stop)?;
        }
        for subscription in store.subscriptions(&title).await.map_err(status::from_store)? {
            // One that has come past what was given is as far as that.
            let position = store.position(&title, &subscription.cursor).unwrap_or(0);
            let position = position.min(feed.position());
            let name = subscription.name.as_str().to_owned();
            let position = int(position);
            yield item(Kind::Subscription(v1::ExportedSubscription { name, position }));
        }
        yield item(Kind::End(end));
    }
}

/// The feed of a title, as far as it was given.
struct Feed<'a> {
    store: &'a dyn Store,
    title: &'a Title,
    cursor: Cursor,
    /// Places of what was erased.
    erased: HashSet<u64>,
}

impl Feed<'_> {
    fn position(&self) -> u64 {
        self.store.position(self.title, &self.cursor).unwrap_or(0)
    }

    /// What comes next; nothing at the feed's end.
    async fn page(&mut self) -> Result<Vec<Kind>, Status> {
        let page = self.store.entries(self.title, &self.cursor, ENTRIES_AT_ONCE).await;
        let page = page.map_err(from_feed)?;
        let mut events = Vec::with_capacity(page.len());
        for entry in page {
            self.cursor = entry.cursor.clone();
            let position = self.position();
            if entry.event == Event::Erased {
                self.erased.insert(position);
            }
            events.push(event_message(position, &entry));
        }
        Ok(events)
    }
}

fn start(store: &dyn Store, catalog: &StoredCatalog, removed_through: u64) -> Kind {
    let nodes = catalog.catalog.nodes();
    Kind::Start(v1::ExportStart {
        title: catalog.title.as_str().to_owned(),
        store_id: store.id(),
        definitions: nodes.map(|node| wire::definition(node.definition())).collect(),
        removed_through: int(removed_through),
    })
}

fn checkpoint(place: &Place) -> v1::ExportRecordsResponse {
    item(Kind::Checkpoint(v1::Checkpoint { token: place.token() }))
}

fn item(kind: Kind) -> v1::ExportRecordsResponse {
    v1::ExportRecordsResponse { item: Some(v1::TitleItem { item: Some(kind) }) }
}

fn check(stop: &CancellationToken) -> Result<(), Status> {
    match stop.is_cancelled() {
        true => Err(status::draining()),
        false => Ok(()),
    }
}

/// Retention that overtakes an export is told like a cursor that is too old.
fn from_feed(error: FeedError) -> Status {
    status::from_feed(error, "after")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_as_its_place() {
        for player in [None, Some("p"), Some("a.b/玩家 ")] {
            let player = player.map(|player| PlayerId::parse(player).unwrap());
            let place = Place { cursor: Cursor::new("AQ-_"), records: Records::After(player) };
            assert_eq!(Place::parse(&place.token()), Some(place));
        }
        let place = Place { cursor: Cursor::new("AQ"), records: Records::NotYet };
        assert_eq!(Place::parse(&place.token()), Some(place));
        for token in ["AQ.!", "AQ.AA", "AQ.a.b"] {
            assert_eq!(Place::parse(token), None, "{token:?}");
        }
    }
}

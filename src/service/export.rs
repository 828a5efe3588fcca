//! `ExportRecords`: a title in an order in which every beginning of it is sound.

use std::sync::Arc;

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
    domain::{Cursor, PlayerId, Title},
    proto::v1::{self, title_item::Item as Kind},
    store::{PlayerRecords, Store, StoredCatalog},
};

/// Entries of a feed that are read at once.
const ENTRIES_AT_ONCE: usize = 256;

/// A place to go on from comes after so many items.
const CHECKPOINT_ITEMS: u64 = 1000;

/// How far an export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Erasures that the title had seen when the export was begun.
    erasures: u64,
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
    /// As text: erasures and cursor, and the last player where records were begun.
    fn token(&self) -> String {
        let Self { erasures, cursor, records } = self;
        let feed = format!("{erasures}.{}", cursor.as_str());
        match records {
            Records::NotYet => feed,
            Records::After(None) => format!("{feed}."),
            Records::After(Some(player)) => {
                format!("{feed}.{}", BASE64URL_NOPAD.encode(player.as_str().as_bytes()))
            }
        }
    }

    /// Reads a token; whether its cursor works is for the store to say.
    pub(super) fn parse(token: &str) -> Option<Self> {
        let (erasures, rest) = token.split_once('.')?;
        let (cursor, player) = match rest.split_once('.') {
            None => (rest, None),
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
        Some(Self { erasures: erasures.parse().ok()?, cursor: Cursor::new(cursor), records })
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
        let Place { erasures, cursor, records } = match after {
            Some(place) => place,
            None => {
                let erasures = store.erasures(&title);
                let oldest = store.feed_bounds(&title).await.map_err(status::from_store)?.oldest;
                let removed_through = store.position(&title, &oldest).unwrap_or(0);
                yield item(start(&*store, &catalog, removed_through));
                Place { erasures, cursor: oldest, records: Records::NotYet }
            }
        };
        let mut feed = Feed { store: &*store, title: &title, erasures, stop, cursor };
        let (mut is_feed_given, mut last_player) = match records {
            Records::NotYet => (false, None),
            Records::After(player) => (true, player),
        };
        let mut given = 0;
        // Whose records are read once more, behind events that they have.
        let mut again = None;
        'pages: loop {
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
                if !is_feed_given && given >= CHECKPOINT_ITEMS {
                    given = 0;
                    yield feed.checkpoint(Records::NotYet);
                }
            }
            is_feed_given = true;
            let players = feed.players(last_player.as_ref()).await?;
            if players.is_empty() {
                break;
            }
            for (player, records) in players {
                let events = records.iter().flat_map(|(_, stored)| stored.events());
                let newest = events.map(|event| event.sequence).max().unwrap_or(0);
                if newest > feed.position() && again.as_ref() != Some(&player) {
                    again = Some(player);
                    continue 'pages;
                }
                while feed.position() < newest {
                    for event in feed.page().await? {
                        end.events += 1;
                        yield item(event);
                    }
                }
                for (node, stored) in records {
                    end.records += 1;
                    given += 1;
                    yield item(record_message(&player, &node, &stored));
                }
                last_player = Some(player);
                if given >= CHECKPOINT_ITEMS {
                    given = 0;
                    yield feed.checkpoint(Records::After(last_player.clone()));
                }
            }
        }
        for subscription in store.subscriptions(&title).await.map_err(status::from_store)? {
            // One that has come past what was given is as far as that.
            let position = store.position(&title, &subscription.cursor).unwrap_or(0);
            let position = int(position.min(feed.position()));
            let name = subscription.name.as_str().to_owned();
            yield item(Kind::Subscription(v1::ExportedSubscription { name, position }));
        }
        feed.check()?;
        yield item(Kind::End(end));
    }
}

/// A title that is being exported, and how far its feed was given.
struct Feed<'a> {
    store: &'a dyn Store,
    title: &'a Title,
    /// Erasures that it had seen at the beginning. Another would take away what was given already.
    erasures: u64,
    stop: CancellationToken,
    cursor: Cursor,
}

impl Feed<'_> {
    fn position(&self) -> u64 {
        self.store.position(self.title, &self.cursor).unwrap_or(0)
    }

    /// What comes next; nothing at the feed's end.
    async fn page(&mut self) -> Result<Vec<Kind>, Status> {
        let page = self.store.entries(self.title, &self.cursor, ENTRIES_AT_ONCE).await;
        // Retention that overtakes an export is told like a cursor that is too old.
        let page = page.map_err(|error| status::from_feed(error, "after"))?;
        self.check()?;
        let mut events = Vec::with_capacity(page.len());
        for entry in page {
            self.cursor = entry.cursor.clone();
            events.push(event_message(self.position(), &entry));
        }
        Ok(events)
    }

    /// The players after one, with all of their records.
    async fn players(&self, after: Option<&PlayerId>) -> Result<Vec<PlayerRecords>, Status> {
        let players = self.store.full_records(self.title, after).await;
        let players = players.map_err(status::from_store)?;
        self.check()?;
        Ok(players)
    }

    /// To be asked after each read: what was read is given only where it goes with what was.
    fn check(&self) -> Result<(), Status> {
        if self.stop.is_cancelled() {
            return Err(status::draining());
        }
        match self.store.erasures(self.title) == self.erasures {
            true => Ok(()),
            false => Err(status::export_outdated()),
        }
    }

    fn checkpoint(&self, records: Records) -> v1::ExportRecordsResponse {
        let (erasures, cursor) = (self.erasures, self.cursor.clone());
        let token = Place { erasures, cursor, records }.token();
        item(Kind::Checkpoint(v1::Checkpoint { token }))
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

fn item(kind: Kind) -> v1::ExportRecordsResponse {
    v1::ExportRecordsResponse { item: Some(v1::TitleItem { item: Some(kind) }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_as_its_place() {
        for player in [None, Some("p"), Some("a.b/玩家 ")] {
            let player = player.map(|player| PlayerId::parse(player).unwrap());
            let (cursor, records) = (Cursor::new("AQ-_"), Records::After(player));
            let place = Place { erasures: 3, cursor, records };
            assert_eq!(Place::parse(&place.token()), Some(place));
        }
        let place = Place { erasures: 0, cursor: Cursor::new("AQ"), records: Records::NotYet };
        assert_eq!(Place::parse(&place.token()), Some(place));
        for token in ["AQ", "x.AQ", "1.AQ.!", "1.AQ.AA", "1.AQ.a.b"] {
            assert_eq!(Place::parse(token), None, "{token:?}");
        }
    }
}

//! `ExportRecords`: a title in an order in which every beginning of it is sound.

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_stream::try_stream;
use data_encoding::BASE64URL_NOPAD;
use tokio::time::sleep;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    status,
    transfer::{event_message, record_message},
    wire::{self, int},
};
use crate::{
    domain::{Cursor, Entry, NodeId, PlayerId, PlayerKey, Title},
    proto::v1::{self, title_item::Item as Kind},
    store::{FeedError, PlayerRecords, Store, StoredCatalog, StoredRecord},
};

/// Entries of a feed that are read at once.
const ENTRIES_AT_ONCE: usize = 256;

/// How often to look for a place to begin while retention moves the feed's old end.
const BEGIN_ATTEMPTS: usize = 10;

/// Players who are given once more at the end; of others who complete something meanwhile, the last
/// request ids are not known to whoever imports.
const TOUCHED_MAX: usize = 100_000;

/// How often players are given once more. Each time they are those of events that came meanwhile.
const ROUNDS_MAX: usize = 20;

/// Pause before the feed is read again for an event that is not shown yet.
const NOT_YET_PAUSE: Duration = Duration::from_millis(1);

/// A place to go on from comes after so many items.
const CHECKPOINT_ITEMS: u64 = 1000;

/// How far an export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The store that it is a place of.
    store_id: u64,
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
    /// As text: store, erasures and cursor, and the last player where records were begun.
    fn token(&self) -> String {
        let Self { store_id, erasures, cursor, records } = self;
        let feed = format!("{store_id:x}.{erasures}.{}", cursor.as_str());
        match records {
            Records::NotYet => feed,
            Records::After(None) => format!("{feed}."),
            Records::After(Some(player)) => {
                format!("{feed}.{}", BASE64URL_NOPAD.encode(player.as_str().as_bytes()))
            }
        }
    }

    /// Reads a token.
    pub(super) fn parse(token: &str) -> Option<Self> {
        let (store_id, rest) = token.split_once('.')?;
        let store_id = u64::from_str_radix(store_id, 16).ok()?;
        let (erasures, rest) = rest.split_once('.')?;
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
        let (erasures, cursor) = (erasures.parse().ok()?, Cursor::new(cursor));
        Some(Self { store_id, erasures, cursor, records })
    }

    /// Whether it is a place of this title in this store.
    pub(super) fn is_of(&self, store: &dyn Store, title: &Title) -> bool {
        self.store_id == store.id() && store.position(title, &self.cursor).is_some()
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
        let erasures = store.erasures(&title);
        let is_new = after.is_none();
        let (place, mut page) = match after {
            Some(place) => (place, Vec::new()),
            None => {
                let (cursor, page) = begin(&*store, &title).await?;
                let (store_id, records) = (store.id(), Records::NotYet);
                (Place { store_id, erasures, cursor, records }, page)
            }
        };
        let Place { erasures, cursor, records, .. } = place;
        let mut feed = Feed { store: &*store, title: &title, erasures, stop, cursor };
        if is_new {
            yield item(start(&*store, &catalog, feed.position()));
        }
        let head = feed.head().await?;
        let mut given = 0;
        let mut last_player = match records {
            Records::After(player) => player,
            Records::NotYet => {
                loop {
                    for event in feed.take(std::mem::take(&mut page)) {
                        end.events += 1;
                        given += 1;
                        yield item(event);
                    }
                    if feed.position() >= head {
                        break;
                    }
                    if given >= CHECKPOINT_ITEMS {
                        given = 0;
                        yield feed.checkpoint(Records::NotYet);
                    }
                    page = feed.read().await?;
                }
                None
            }
        };
        // Who has an event behind there; their records are given once more at the end.
        let mut touched = HashSet::new();
        loop {
            let players = feed.players(last_player.as_ref()).await?;
            if players.is_empty() {
                break;
            }
            for (player, records) in players {
                while feed.position() < newest_event(&records) {
                    for event in feed.next(&mut touched).await? {
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
        let head = feed.head().await?;
        while feed.position() < head {
            for event in feed.next(&mut touched).await? {
                end.events += 1;
                yield item(event);
            }
        }
        for _ in 0..ROUNDS_MAX {
            for player in std::mem::take(&mut touched) {
                let key = PlayerKey { title: title.clone(), player };
                let records = store.player_records(&key).await.map_err(status::from_store)?;
                feed.check()?;
                while feed.position() < newest_event(&records) {
                    for event in feed.next(&mut touched).await? {
                        end.events += 1;
                        yield item(event);
                    }
                }
                for (node, stored) in records {
                    end.records += 1;
                    yield item(record_message(&key.player, &node, &stored));
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

/// The old end of a feed, and what follows it.
async fn begin(store: &dyn Store, title: &Title) -> Result<(Cursor, Vec<Entry>), Status> {
    let mut attempts = 0;
    loop {
        let oldest = store.feed_bounds(title).await.map_err(status::from_store)?.oldest;
        match store.entries(title, &oldest, ENTRIES_AT_ONCE).await {
            // Retention has overtaken the place that was chosen here.
            Err(FeedError::Expired { .. }) if attempts < BEGIN_ATTEMPTS => attempts += 1,
            read => return Ok((oldest, read.map_err(|error| status::from_feed(error, "after"))?)),
        }
    }
}

/// The last place of the feed that records name; 0 where they name none.
fn newest_event(records: &[(NodeId, StoredRecord)]) -> u64 {
    let events = records.iter().flat_map(|(_, stored)| stored.events());
    events.map(|event| event.sequence).max().unwrap_or(0)
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
    /// A cursor of the feed always has a place.
    fn position(&self) -> u64 {
        self.store.position(self.title, &self.cursor).unwrap_or(0)
    }

    /// Where the feed ends now.
    async fn head(&self) -> Result<u64, Status> {
        let bounds = self.store.feed_bounds(self.title).await.map_err(status::from_store)?;
        Ok(self.store.position(self.title, &bounds.newest).unwrap_or(0))
    }

    /// What comes next; nothing at the feed's end.
    async fn read(&self) -> Result<Vec<Entry>, Status> {
        let page = self.store.entries(self.title, &self.cursor, ENTRIES_AT_ONCE).await;
        // Retention that overtakes an export is told like a cursor that is too old.
        let page = page.map_err(|error| status::from_feed(error, "after"))?;
        self.check()?;
        Ok(page)
    }

    /// Moves behind what was read, and says it.
    fn take(&mut self, page: Vec<Entry>) -> Vec<Kind> {
        let mut events = Vec::with_capacity(page.len());
        for entry in page {
            self.cursor = entry.cursor.clone();
            events.push(event_message(self.position(), &entry));
        }
        events
    }

    /// What comes next, while records are given; notes whose it is.
    async fn next(&mut self, touched: &mut HashSet<PlayerId>) -> Result<Vec<Kind>, Status> {
        let page = self.read().await?;
        if page.is_empty() {
            // A record is shown a moment before its event is.
            sleep(NOT_YET_PAUSE).await;
        }
        for (key, ..) in page.iter().filter_map(|entry| entry.event.of()) {
            if touched.len() < TOUCHED_MAX {
                touched.insert(key.player.clone());
            }
        }
        Ok(self.take(page))
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
        let (store_id, erasures) = (self.store.id(), self.erasures);
        let token = Place { store_id, erasures, cursor: self.cursor.clone(), records }.token();
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
            let place = Place { store_id: u64::MAX, erasures: 3, cursor, records };
            assert_eq!(Place::parse(&place.token()), Some(place));
        }
        let (cursor, records) = (Cursor::new("AQ"), Records::NotYet);
        let place = Place { store_id: 7, erasures: 0, cursor, records };
        assert_eq!(Place::parse(&place.token()), Some(place));
        for token in ["AQ", "1.AQ", "x.1.AQ", "1.x.AQ", "1.1.AQ.!", "1.1.AQ.AA", "1.1.AQ.a.b"] {
            assert_eq!(Place::parse(token), None, "{token:?}");
        }
    }
}

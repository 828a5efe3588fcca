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
    domain::{Cursor, Entry, NodeId, PlayerId, PlayerKey, SubscriptionName, Title},
    proto::v1::{self, title_item::Item as Kind},
    store::{Bookmark, FeedError, PlayerRecords, Store, StoredCatalog, StoredRecord},
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

/// Where the feed of a store begins that does not number events: this place counts as gone, so that
/// a record whose completion is gone has a place for it.
const FIRST_POSITION: u64 = 1;

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
    /// The place of the last event that was given, or the last that is gone. Stores that do not
    /// number events have them numbered here.
    position: u64,
    records: Records,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Records {
    /// They come behind the feed.
    NotYet,
    /// Those after this place, or all.
    After(Option<Bookmark>),
}

// === impl Place ===

impl Place {
    /// As text: store, erasures, cursor and position, and the last player where records were begun.
    fn token(&self) -> String {
        let Self { store_id, erasures, cursor, position, records } = self;
        let feed = format!("{store_id:x}.{erasures}.{}.{position}", cursor.as_str());
        match records {
            Records::NotYet => feed,
            Records::After(None) => format!("{feed}."),
            Records::After(Some(Bookmark(place))) => {
                format!("{feed}.{}", BASE64URL_NOPAD.encode(place.as_bytes()))
            }
        }
    }

    /// Reads a token.
    pub(super) fn parse(token: &str) -> Option<Self> {
        let mut parts = token.split('.');
        let store_id = u64::from_str_radix(parts.next()?, 16).ok()?;
        let erasures = parts.next()?.parse().ok()?;
        let cursor = Cursor::new(parts.next()?);
        let position = parts.next()?.parse().ok().filter(|it| i64::try_from(*it).is_ok())?;
        let records = match parts.next() {
            None => Records::NotYet,
            Some("") => Records::After(None),
            Some(place) => {
                let bytes = BASE64URL_NOPAD.decode(place.as_bytes()).ok()?;
                Records::After(Some(Bookmark(String::from_utf8(bytes).ok()?)))
            }
        };
        let is_whole = parts.next().is_none();
        is_whole.then_some(Self { store_id, erasures, cursor, position, records })
    }

    /// Whether it is a place of this title in this store.
    pub(super) fn is_of(&self, store: &dyn Store, title: &Title) -> bool {
        self.store_id == store.id() && store.reaches(title, &self.cursor, &self.cursor)
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
        let erasures = store.erasures(&title).await.map_err(status::from_store)?;
        let is_new = after.is_none();
        let (place, mut page) = match after {
            Some(place) => (place, Vec::new()),
            None => {
                let (cursor, page) = begin(&*store, &title).await?;
                let (store_id, records) = (store.id(), Records::NotYet);
                // Without numbers of its own a feed begins behind place 1, which is gone.
                let position = store.position(&title, &cursor).unwrap_or(FIRST_POSITION);
                (Place { store_id, erasures, cursor, position, records }, page)
            }
        };
        let mut subscribed = Subscribed::of(&*store, &title, &place).await?;
        let Place { erasures, cursor, position, records, .. } = place;
        let mut feed = Feed { store: &*store, title: &title, erasures, stop, cursor, position };
        if is_new {
            yield item(start(&*store, &catalog, feed.position));
        }
        let head = feed.head().await?;
        let mut given = 0;
        let mut bookmark = match records {
            Records::After(bookmark) => bookmark,
            Records::NotYet => {
                loop {
                    for event in feed.take(std::mem::take(&mut page), &mut subscribed) {
                        end.events += 1;
                        given += 1;
                        yield item(event);
                    }
                    if feed.has_reached(&head) {
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
            let (players, next) = feed.players(bookmark.as_ref()).await?;
            for (player, records) in players {
                let key = PlayerKey { title: title.clone(), player };
                while !feed.has_all_of(&key, &records).await? {
                    for event in feed.next(&mut touched, &mut subscribed).await? {
                        end.events += 1;
                        yield item(event);
                    }
                }
                for (node, stored) in records {
                    end.records += 1;
                    given += 1;
                    yield item(record_message(&key.player, &node, &stored, feed.is_numbered()));
                }
            }
            if next.is_none() {
                break;
            }
            bookmark = next;
            if given >= CHECKPOINT_ITEMS {
                given = 0;
                yield feed.checkpoint(Records::After(bookmark.clone()));
            }
        }
        let head = feed.head().await?;
        while !feed.has_reached(&head) {
            for event in feed.next(&mut touched, &mut subscribed).await? {
                end.events += 1;
                yield item(event);
            }
        }
        for _ in 0..ROUNDS_MAX {
            for player in std::mem::take(&mut touched) {
                let key = PlayerKey { title: title.clone(), player };
                let records = store.player_records(&key).await.map_err(status::from_store)?;
                feed.check().await?;
                while !feed.has_all_of(&key, &records).await? {
                    for event in feed.next(&mut touched, &mut subscribed).await? {
                        end.events += 1;
                        yield item(event);
                    }
                }
                for (node, stored) in records {
                    end.records += 1;
                    yield item(record_message(&key.player, &node, &stored, feed.is_numbered()));
                }
            }
        }
        for (name, position) in subscribed.places(&feed).await? {
            let (name, position) = (name.as_str().to_owned(), int(position));
            yield item(Kind::Subscription(v1::ExportedSubscription { name, position }));
        }
        feed.check().await?;
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

/// Where named subscriptions stand among the positions of an export.
struct Subscribed(Vec<Tracked>);

/// A subscription of a store that does not number events.
struct Tracked {
    name: SubscriptionName,
    cursor: Cursor,
    /// Everything up to here is acked.
    position: u64,
    /// Whether everything that was given so far is.
    is_open: bool,
}

impl Subscribed {
    /// Those of a title, as the export begins or goes on at a place. Of one that stands before that
    /// nobody can tell any more how far: it begins anew, and hears again what it has heard.
    async fn of(store: &dyn Store, title: &Title, place: &Place) -> Result<Self, Status> {
        if store.position(title, &place.cursor).is_some() {
            return Ok(Self(Vec::new()));
        }
        let all = store.subscriptions(title).await.map_err(status::from_store)?;
        let tracked = all.into_iter().map(|subscription| {
            let is_open = store.reaches(title, &subscription.cursor, &place.cursor);
            let position = if is_open { place.position } else { FIRST_POSITION };
            Tracked { name: subscription.name, cursor: subscription.cursor, position, is_open }
        });
        Ok(Self(tracked.collect()))
    }

    /// Notes that everything up to a cursor was given.
    fn note(&mut self, store: &dyn Store, title: &Title, cursor: &Cursor, position: u64) {
        for tracked in self.0.iter_mut().filter(|tracked| tracked.is_open) {
            tracked.is_open = store.reaches(title, &tracked.cursor, cursor);
            if tracked.is_open {
                tracked.position = position;
            }
        }
    }

    async fn places(self, feed: &Feed<'_>) -> Result<Vec<(SubscriptionName, u64)>, Status> {
        if !feed.is_numbered() {
            return Ok(self.0.into_iter().map(|it| (it.name, it.position)).collect());
        }
        let all = feed.store.subscriptions(feed.title).await.map_err(status::from_store)?;
        let places = all.into_iter().map(|subscription| {
            // One that has come past what was given is as far as that.
            let position = feed.store.position(feed.title, &subscription.cursor).unwrap_or(0);
            (subscription.name, position.min(feed.position))
        });
        Ok(places.collect())
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
    position: u64,
}

impl Feed<'_> {
    /// Whether the store itself numbers events.
    fn is_numbered(&self) -> bool {
        self.store.position(self.title, &self.cursor).is_some()
    }

    fn has_reached(&self, cursor: &Cursor) -> bool {
        self.store.reaches(self.title, &self.cursor, cursor)
    }

    /// Whether all events of a player's records were given. One that is gone, by an erasure that
    /// was cut short, keeps its place only in a store that numbers events.
    async fn has_all_of(
        &self,
        player: &PlayerKey,
        records: &[(NodeId, StoredRecord)],
    ) -> Result<bool, Status> {
        if self.store.covers(player, records, &self.cursor) {
            return Ok(true);
        }
        Ok(!self.is_numbered() && self.has_reached(&self.head().await?))
    }

    /// Where the feed ends now.
    async fn head(&self) -> Result<Cursor, Status> {
        let bounds = self.store.feed_bounds(self.title).await.map_err(status::from_store)?;
        Ok(bounds.newest)
    }

    /// What comes next; nothing at the feed's end.
    async fn read(&self) -> Result<Vec<Entry>, Status> {
        let page = self.store.entries(self.title, &self.cursor, ENTRIES_AT_ONCE).await;
        // Retention that overtakes an export is told like a cursor that is too old.
        let page = page.map_err(|error| status::from_feed(error, "after"))?;
        self.check().await?;
        Ok(page)
    }

    /// Moves behind what was read, and says it.
    fn take(&mut self, page: Vec<Entry>, subscribed: &mut Subscribed) -> Vec<Kind> {
        let mut events = Vec::with_capacity(page.len());
        for entry in page {
            self.cursor = entry.cursor.clone();
            let numbered = self.store.position(self.title, &self.cursor);
            self.position = numbered.unwrap_or(self.position + 1);
            subscribed.note(self.store, self.title, &self.cursor, self.position);
            events.push(event_message(self.position, &entry));
        }
        events
    }

    /// What comes next, while records are given; notes whose it is.
    async fn next(
        &mut self,
        touched: &mut HashSet<PlayerId>,
        subscribed: &mut Subscribed,
    ) -> Result<Vec<Kind>, Status> {
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
        Ok(self.take(page, subscribed))
    }

    /// The players after a place, with all of their records, and where to go on.
    async fn players(
        &self,
        after: Option<&Bookmark>,
    ) -> Result<(Vec<PlayerRecords>, Option<Bookmark>), Status> {
        let players = self.store.full_records(self.title, after).await;
        let players = players.map_err(status::from_store)?;
        self.check().await?;
        Ok(players)
    }

    /// To be asked after each read: what was read is given only where it goes with what was.
    async fn check(&self) -> Result<(), Status> {
        if self.stop.is_cancelled() {
            return Err(status::draining());
        }
        let erasures = self.store.erasures(self.title).await.map_err(status::from_store)?;
        match erasures == self.erasures {
            true => Ok(()),
            false => Err(status::export_outdated()),
        }
    }

    fn checkpoint(&self, records: Records) -> v1::ExportRecordsResponse {
        let (store_id, erasures, position) = (self.store.id(), self.erasures, self.position);
        let cursor = self.cursor.clone();
        let token = Place { store_id, erasures, cursor, position, records }.token();
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
        for place in [None, Some("p"), Some("a.b/玩家 ")] {
            let bookmark = place.map(|place| Bookmark(place.to_owned()));
            let (cursor, records) = (Cursor::new("AQ-_"), Records::After(bookmark));
            let place = Place { store_id: u64::MAX, erasures: 3, cursor, position: 9, records };
            assert_eq!(Place::parse(&place.token()), Some(place));
        }
        let (cursor, records) = (Cursor::new("AQ"), Records::NotYet);
        let place = Place { store_id: 7, erasures: 0, cursor, position: 0, records };
        assert_eq!(Place::parse(&place.token()), Some(place));
        let wrong =
            ["AQ", "1.1.AQ", "x.1.AQ.1", "1.x.AQ.1", "1.1.AQ.x", "1.1.AQ.1.!", "1.1.AQ.1.a.b"];
        for token in wrong {
            assert_eq!(Place::parse(token), None, "{token:?}");
        }
    }
}

//! Retention works while a page is read. Goal: whoever named no cursor is never told that one is
//! too old, and what was read already is given.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Page, PageRequest, page};
use crate::{
    domain::{CompletionFilter, Cursor, Entry, Title},
    feed::Start,
    store::{FeedBounds, FeedError, FeedSource, MemoryStore, Retention, Store, StoreError},
    testing::{TestClock, Update, player_of, title},
};

/// Removes all but so many completions just before a read of the feed.
struct Overtaken {
    store: MemoryStore,
    /// Which read, counted from 1.
    read: usize,
    kept: u64,
    reads: AtomicUsize,
}

#[async_trait]
impl FeedSource for Overtaken {
    async fn feed_bounds(&self, title: &Title) -> Result<FeedBounds, StoreError> {
        self.store.feed_bounds(title).await
    }

    async fn entries(
        &self,
        title: &Title,
        after: &Cursor,
        limit: usize,
    ) -> Result<Vec<Entry>, FeedError> {
        if self.reads.fetch_add(1, Ordering::Relaxed) + 1 == self.read {
            let keep = Retention { stored_since: None, count: Some(self.kept) };
            while self.store.trim_feed(title, keep).await? > 0 {}
        }
        self.store.entries(title, after, limit).await
    }

    fn own_cursor(&self, title: &Title, cursor: &Cursor) -> Cursor {
        self.store.own_cursor(title, cursor)
    }

    fn advanced(&self, title: &Title, cursor: &Cursor, entry: &Cursor) -> Option<Cursor> {
        self.store.advanced(title, cursor, entry)
    }

    fn feed_changes(&self, title: &Title) -> watch::Receiver<()> {
        self.store.feed_changes(title)
    }
}

/// A page of so many completions, while retention leaves `kept` of them before the `read`th read.
async fn overtaken(completions: usize, read: usize, kept: u64) -> Page {
    let store = MemoryStore::new(TestClock::at(1000));
    for n in 0..completions {
        let update = Update::of("t", &format!("p{n}")).delta("n", 1, 1).build();
        store.apply(update).await.unwrap();
    }
    let store = Overtaken { store, read, kept, reads: AtomicUsize::new(0) };
    let (after, filter) = (Start::Oldest, CompletionFilter::default());
    let request = PageRequest { title: title("t"), after, filter, size: 5000 };
    page(&store, request).await.expect("no cursor was named")
}

#[tokio::test]
async fn a_page_from_the_oldest_begins_again_where_retention_overtakes_it() {
    let Page { entries, is_last, .. } = overtaken(3, 1, 1).await;
    let players: Vec<_> = entries.iter().map(player_of).collect();
    assert_eq!((players, is_last), (vec!["p2"], true));
}

#[tokio::test]
async fn a_page_that_is_overtaken_later_gives_what_it_has() {
    let Page { entries, is_last, .. } = overtaken(1500, 2, 0).await;
    assert_eq!((entries.len(), is_last), (1000, false));
}

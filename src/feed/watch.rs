//! Following a title's feed.

use std::{sync::Arc, time::Duration};

use async_stream::try_stream;
use thiserror::Error;
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, sleep},
};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

use super::live::{Batch, Live, Ready};
use crate::{
    domain::{CompletionFilter, Cursor, Entry, Title},
    store::{FeedBounds, FeedError, FeedSource, StoreError},
};

/// Entries read from the store at once.
const PAGE_ENTRIES: usize = 256;

/// How often to look for a place to begin while retention moves the feed's old end.
const BEGIN_ATTEMPTS: usize = 10;

/// Pause before the live end is joined anew after it ended.
const REJOIN_PAUSE: Duration = Duration::from_millis(50);

/// What to follow, and from where.
#[derive(Clone, Debug)]
pub struct WatchRequest {
    /// The title.
    pub title: Title,
    /// Where to begin.
    pub after: Start,
    /// What the subscriber wants.
    pub filter: CompletionFilter,
    /// The longest silence.
    pub heartbeat_interval: Duration,
}

/// Where a watch or a list begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// With what completes from now on.
    Now,
    /// With the oldest that is retained.
    Oldest,
    /// After a cursor.
    After(Cursor),
}

/// One event of a watch.
#[derive(Clone, Debug)]
pub enum FeedEvent<T> {
    /// Always first.
    Started {
        /// Where the watch begins.
        cursor: Cursor,
        /// The feed's old end.
        oldest: Cursor,
    },
    /// What is sent for an entry that passed the filter.
    Entry(T),
    /// Nothing was sent for a while, and everything up to here was.
    Heartbeat {
        /// How far the watch has come.
        cursor: Cursor,
    },
}

/// Why a watch ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The server stops.
    #[error("the server is stopping; resume after the cursor {cursor:?}")]
    Draining {
        /// How far the watch has come.
        cursor: Cursor,
    },
    /// The feed cannot be read.
    #[error(transparent)]
    Feed(#[from] FeedError),
}

impl From<StoreError> for WatchError {
    fn from(error: StoreError) -> Self {
        Self::Feed(error.into())
    }
}

/// Where a watch or a list begins.
pub(super) struct Begun {
    pub(super) cursor: Cursor,
    /// The feed's old end.
    pub(super) oldest: Cursor,
    /// What follows the cursor.
    pub(super) read: Vec<Entry>,
}

/// Finds the cursor to begin after, and reads at most `limit` entries there. A cursor that does
/// not work is refused.
pub(super) async fn begin(
    store: &dyn FeedSource,
    title: &Title,
    start: Start,
    limit: usize,
) -> Result<Begun, FeedError> {
    for _ in 0..BEGIN_ATTEMPTS {
        let FeedBounds { oldest, newest } = store.feed_bounds(title).await?;
        let cursor = match &start {
            Start::Now => newest,
            Start::Oldest => oldest.clone(),
            Start::After(cursor) => cursor.clone(),
        };
        match store.entries(title, &cursor, limit).await {
            Ok(read) => {
                let cursor = store.own_cursor(title, &cursor);
                return Ok(Begun { cursor, oldest, read });
            }
            // Retention has overtaken the place that was chosen here; the caller named none.
            Err(FeedError::Expired { .. }) if !matches!(start, Start::After(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::Failed("retention overtakes every attempt to begin".to_owned()).into())
}

impl<T: Clone + Send + Sync + 'static> Live<T> {
    /// Follows a feed until `drain` is cancelled or an error ends it. Work is done only while the
    /// stream is polled.
    pub fn watch(
        &self,
        request: WatchRequest,
        drain: CancellationToken,
    ) -> impl Stream<Item = Result<FeedEvent<T>, WatchError>> + Send + use<T> {
        let this = self.clone();
        try_stream! {
            let WatchRequest { title, after, filter, heartbeat_interval } = request;
            let Begun { mut cursor, oldest, .. } = begin(&*this.store, &title, after, 1).await?;
            yield FeedEvent::Started { cursor: cursor.clone(), oldest };

            let drained = drain.clone().cancelled_owned();
            tokio::pin!(drained);
            let heartbeat = sleep(heartbeat_interval);
            tokio::pin!(heartbeat);
            let mut last_sent = Instant::now();
            // Joined before the store is read to its end, so that nothing falls in between.
            let mut live = this.join(&title).await?;
            let mut place = Place::Behind;
            loop {
                let batch = match place {
                    Place::Behind => {
                        let read = this.store.entries(&title, &cursor, PAGE_ENTRIES).await?;
                        if read.is_empty() {
                            place = Place::CaughtUp;
                        }
                        Next::Read(read)
                    }
                    Place::CaughtUp | Place::Live => tokio::select! {
                        biased;
                        batch = live.recv() => match batch {
                            Ok(batch) => Next::Live(batch),
                            Err(RecvError::Lagged(_)) => Next::FellBehind,
                            Err(RecvError::Closed) => Next::Ended,
                        },
                        () = &mut heartbeat => Next::Silence,
                        () = &mut drained => Next::Silence,
                    },
                };
                match batch {
                    Next::Read(entries) => for entry in entries {
                        // A subscriber may take its time between two entries.
                        if drain.is_cancelled() {
                            break;
                        }
                        cursor = entry.cursor.clone();
                        if filter.admits(&entry.event)
                            && let Some(message) = (this.prepare)(&entry)
                        {
                            yield FeedEvent::Entry(message);
                            last_sent = Instant::now();
                        }
                    },
                    Next::Live(batch) => {
                        for Ready { entry, message } in &batch.entries {
                            if drain.is_cancelled() {
                                break;
                            }
                            if let Place::CaughtUp = place {
                                let advanced = this.store.advanced(&title, &cursor, &entry.cursor);
                                let Some(advanced) = advanced else { continue };
                                cursor = advanced;
                                // From here on this reader and the live end go together.
                                if cursor == entry.cursor {
                                    place = Place::Live;
                                }
                            } else {
                                cursor = entry.cursor.clone();
                            }
                            if filter.admits(&entry.event)
                                && let Some(message) = message
                            {
                                yield FeedEvent::Entry(message.clone());
                                last_sent = Instant::now();
                            }
                        }
                    }
                    Next::FellBehind => place = Place::Behind,
                    Next::Ended => {
                        sleep(REJOIN_PAUSE).await;
                        live = this.join(&title).await?;
                        place = Place::Behind;
                    }
                    Next::Silence => {}
                }
                if drain.is_cancelled() {
                    Err(WatchError::Draining { cursor: cursor.clone() })?;
                }
                if last_sent.elapsed() >= heartbeat_interval {
                    yield FeedEvent::Heartbeat { cursor: cursor.clone() };
                    last_sent = Instant::now();
                }
                if heartbeat.is_elapsed() {
                    heartbeat.as_mut().reset(last_sent + heartbeat_interval);
                }
            }
        }
    }
}

/// Where a subscriber reads.
#[derive(Clone, Copy)]
enum Place {
    /// The store, until its end.
    Behind,
    /// The live end, which may still bring what was read from the store.
    CaughtUp,
    /// The live end.
    Live,
}

/// What a subscriber got.
enum Next<T> {
    Read(Vec<Entry>),
    Live(Arc<Batch<T>>),
    FellBehind,
    Ended,
    Silence,
}

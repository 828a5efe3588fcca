//! Following a title's feed.

use std::{sync::Arc, time::Duration};

use async_stream::try_stream;
use thiserror::Error;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{Completion, CompletionFilter, Cursor, Title},
    store::{FeedError, Store, StoreError},
};

/// Completions read from the store at once.
const PAGE_COMPLETIONS: usize = 256;

/// How often to look for a place to begin while retention moves the feed's old end.
const BEGIN_ATTEMPTS: usize = 10;

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
pub enum FeedEvent {
    /// Always first.
    Started {
        /// Where the watch begins.
        cursor: Cursor,
        /// The feed's old end.
        oldest: Cursor,
    },
    /// A completion that passed the filter.
    Completion(Box<Completion>),
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

/// Finds the cursor to begin after, and the feed's old end. A cursor that does not work is refused.
pub(super) async fn begin(
    store: &dyn Store,
    title: &Title,
    start: Start,
) -> Result<(Cursor, Cursor), FeedError> {
    for _ in 0..BEGIN_ATTEMPTS {
        let bounds = store.feed_bounds(title).await?;
        let cursor = match &start {
            Start::Now => &bounds.newest,
            Start::Oldest => &bounds.oldest,
            Start::After(cursor) => cursor,
        };
        match store.completions(title, cursor, 1).await {
            Ok(_) => return Ok((cursor.clone(), bounds.oldest)),
            // Retention has overtaken the place that was chosen here; the caller named none.
            Err(FeedError::Expired { .. }) if !matches!(start, Start::After(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::Failed("retention overtakes every attempt to begin".to_owned()).into())
}

/// Follows a feed until `drain` is cancelled or an error ends it. Work is done only while the
/// stream is polled.
pub fn watch(
    store: Arc<dyn Store>,
    request: WatchRequest,
    drain: CancellationToken,
) -> impl Stream<Item = Result<FeedEvent, WatchError>> + Send {
    try_stream! {
        let WatchRequest { title, after, filter, heartbeat_interval } = request;
        let mut changes = store.feed_changes(&title);
        let (mut cursor, oldest) = begin(&*store, &title, after).await?;
        yield FeedEvent::Started { cursor: cursor.clone(), oldest };

        let mut last_sent = Instant::now();
        loop {
            // Taken before the feed is read, so that a change in between is not slept over.
            changes.borrow_and_update();
            let page = store.completions(&title, &cursor, PAGE_COMPLETIONS).await?;
            let is_end = page.is_empty();
            for completion in page {
                // A subscriber may take its time between two completions.
                if drain.is_cancelled() {
                    Err(WatchError::Draining { cursor: cursor.clone() })?;
                }
                cursor = completion.cursor.clone();
                if filter.admits(&completion) {
                    yield FeedEvent::Completion(Box::new(completion));
                    last_sent = Instant::now();
                }
            }
            if drain.is_cancelled() {
                Err(WatchError::Draining { cursor: cursor.clone() })?;
            }
            let due = last_sent + heartbeat_interval;
            if is_end {
                tokio::select! {
                    _ = changes.changed() => {}
                    () = tokio::time::sleep_until(due) => {}
                    () = drain.cancelled() => {}
                }
            }
            if Instant::now() >= due {
                yield FeedEvent::Heartbeat { cursor: cursor.clone() };
                last_sent = Instant::now();
            }
        }
    }
}

//! Whenever somebody joins, and however slow they are: every completion once, in order.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{FeedEvent, Live, Start, WatchRequest};
use crate::{
    domain::{CompletionFilter, Cursor},
    store::{MemoryStore, Store},
    testing::{TestClock, Update, title},
};

const COMPLETIONS: usize = 3000;

async fn complete(store: &dyn Store, n: usize) -> Cursor {
    let update = Update::of("t", &format!("p{n}")).delta("n", 1, 1).build();
    store.apply(update).await.unwrap().outcomes[0].1.clone().unwrap()
}

/// Follows until the last completion is there; `pause` is what the subscriber takes for each.
async fn follow(live: Live<Cursor>, after: Start, last: Cursor, pause: Duration) -> Vec<Cursor> {
    let request = WatchRequest {
        title: title("t"),
        after,
        filter: CompletionFilter::default(),
        heartbeat_interval: Duration::from_secs(60),
    };
    let events = live.watch(request, CancellationToken::new());
    tokio::pin!(events);
    let mut cursors = Vec::new();
    while cursors.last() != Some(&last) {
        if let FeedEvent::Completion(cursor) = events.next().await.unwrap().unwrap() {
            cursors.push(cursor);
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    }
    cursors
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_joins_at_any_time_gets_each_completion_once_and_in_order() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(TestClock::at(1000)));
    let live = Live::new(store.clone(), |completion| completion.cursor.clone());
    // Cursors are the same in every store of this id: the last one is known from a first store.
    let (tell_last, last) = tokio::sync::watch::channel(None);
    let mut subscribers = JoinSet::new();
    let mut cursors = Vec::new();
    for n in 0..COMPLETIONS {
        if n % 100 == 0 {
            let (live, mut last, joined) = (live.clone(), last.clone(), cursors.len());
            let after = cursors.last().cloned().map_or(Start::Oldest, Start::After);
            // Some begin far back, and some cannot keep up with the live end.
            let (after, skipped) = match n % 300 {
                0 => (Start::Oldest, 0),
                _ => (after, joined),
            };
            let pause = Duration::from_micros(if n % 700 == 0 { 500 } else { 0 });
            subscribers.spawn(async move {
                let last = last.wait_for(Option::is_some).await.unwrap().clone().unwrap();
                (skipped, follow(live, after, last, pause).await)
            });
        }
        cursors.push(complete(&*store, n).await);
        if n == COMPLETIONS / 2 {
            // From here on they run beside the writer: the last cursor is foretold.
            tell_last.send_replace(Some(foretell_last().await));
        }
        if n % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut count = 0;
    while let Some(done) = subscribers.join_next().await {
        let (skipped, got) = done.unwrap();
        assert_eq!(got.len(), cursors.len() - skipped);
        assert_eq!(got, cursors[skipped..]);
        count += 1;
    }
    assert_eq!(count, COMPLETIONS / 100);
}

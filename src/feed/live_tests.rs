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

/// Follows until `count` completions are there; `pause` is what the subscriber takes for each.
async fn follow(live: Live<Cursor>, after: Start, count: usize, pause: Duration) -> Vec<Cursor> {
    let request = WatchRequest {
        title: title("t"),
        after,
        filter: CompletionFilter::default(),
        heartbeat_interval: Duration::from_secs(60),
    };
    let events = live.watch(request, CancellationToken::new());
    tokio::pin!(events);
    let mut cursors = Vec::new();
    while cursors.len() < count {
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
    let mut subscribers = JoinSet::new();
    let mut cursors: Vec<Cursor> = Vec::new();
    for n in 0..COMPLETIONS {
        if n % 100 == 0 {
            // Some begin far back; some are too slow for the live end.
            let (after, known) = match cursors.last() {
                Some(last) if n % 300 != 0 => (Start::After(last.clone()), n),
                _ => (Start::Oldest, 0),
            };
            let pause = Duration::from_micros(if n % 700 == 0 { 500 } else { 0 });
            let following = follow(live.clone(), after, COMPLETIONS - known, pause);
            subscribers.spawn(async move { (known, following.await) });
        }
        cursors.push(complete(&*store, n).await);
        tokio::task::yield_now().await;
    }
    let mut count = 0;
    while let Some(done) = subscribers.join_next().await {
        let (known, got) = done.unwrap();
        assert_eq!(got, cursors[known..]);
        count += 1;
    }
    assert_eq!(count, COMPLETIONS / 100);
}

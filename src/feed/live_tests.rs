//! Whenever somebody joins, and however slow they are: every completion once, in order.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::task::JoinSet;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;

use super::{FeedEvent, Live, Start, WatchError, WatchRequest, live::BATCHES};
use crate::{
    domain::{CompletionFilter, Cursor},
    store::{MemoryStore, Store},
    testing::{TestClock, Update, title},
};

const COMPLETIONS: usize = 3000;

/// Longest wait for the next completion; those of this test come within milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

async fn complete(store: &dyn Store, n: usize) -> Cursor {
    let update = Update::of("t", &format!("p{n}")).delta("n", 1, 1).build();
    store.apply(update).await.unwrap().outcomes[0].1.clone().unwrap()
}

type Events = Pin<Box<dyn Stream<Item = Result<FeedEvent<Cursor>, WatchError>> + Send>>;

fn watch(live: &Live<Cursor>, after: Start) -> Events {
    let request = WatchRequest {
        title: title("t"),
        after,
        filter: CompletionFilter::default(),
        heartbeat_interval: Duration::from_secs(60),
    };
    Box::pin(live.watch(request, CancellationToken::new()))
}

/// The next completion.
async fn next(events: &mut Events) -> Cursor {
    loop {
        let event = tokio::time::timeout(PATIENCE, events.next()).await;
        let event = event.expect("a completion comes in time");
        if let FeedEvent::Entry(cursor) = event.unwrap().unwrap() {
            return cursor;
        }
    }
}

/// Follows until `count` completions are there; `pause` is what the subscriber takes for each.
async fn follow(live: Live<Cursor>, after: Start, count: usize, pause: Duration) -> Vec<Cursor> {
    let mut events = watch(&live, after);
    let mut cursors = Vec::new();
    while cursors.len() < count {
        cursors.push(next(&mut events).await);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    cursors
}

/// Goal: whoever is overtaken by the live end goes on from the store.
#[tokio::test]
async fn a_subscriber_that_falls_behind_the_live_end_misses_nothing() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(TestClock::at(1000)));
    let live = Live::new(store.clone(), |entry| Some(entry.cursor.clone()));
    let (mut slow, mut fast) = (watch(&live, Start::Oldest), watch(&live, Start::Oldest));
    let first = complete(&*store, 0).await;
    assert_eq!([next(&mut slow).await, next(&mut fast).await], [first.clone(), first]);
    // Whoever waits has read the store to its end: from here on both are at the live end.
    for events in [&mut slow, &mut fast] {
        let waiting = tokio::time::timeout(Duration::from_millis(50), events.next()).await;
        assert!(waiting.is_err(), "there is nothing more");
    }
    let second = complete(&*store, 1).await;
    assert_eq!([next(&mut slow).await, next(&mut fast).await], [second.clone(), second]);

    // Each of these is a batch of its own, since the other subscriber gets it before the next.
    let mut missed = Vec::new();
    for n in 0..3 * BATCHES {
        missed.push(complete(&*store, 2 + n).await);
        assert_eq!(next(&mut fast).await, missed[n]);
    }
    for cursor in missed {
        assert_eq!(next(&mut slow).await, cursor);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_joins_at_any_time_gets_each_completion_once_and_in_order() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(TestClock::at(1000)));
    let live = Live::new(store.clone(), |entry| Some(entry.cursor.clone()));
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

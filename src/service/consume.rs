//! `ConsumeCompletions`: one consumer a named subscription, and its acks.

use std::{collections::HashMap, sync::Arc};

use async_stream::try_stream;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, Streaming};

use super::status;
use crate::{
    domain::{Cursor, SubscriptionName, Title},
    proto::{
        Encoded,
        v1::{self, consume_completions_request::Action, consume_completions_response::Event},
    },
    store::Store,
};

/// A title's subscription.
pub(super) type Key = (Title, SubscriptionName);

/// Who consumes what, on this server.
#[derive(Clone, Default)]
pub(super) struct Consumers(Arc<Mutex<HashMap<Key, Consumer>>>);

struct Consumer {
    /// Says why the consumer must end.
    end: watch::Sender<Option<Status>>,
    /// Held by whoever acks, so that a new consumer begins behind the last ack of the old one.
    acking: Arc<AsyncMutex<()>>,
    /// What its subscription was opened with; 0 until it is.
    opened: u64,
    /// The greatest claim that another server has.
    heard: u64,
}

impl Consumer {
    /// Ends where another server has a later claim.
    fn end_if_older(&self, name: &SubscriptionName) {
        if self.opened != 0 && self.opened < self.heard {
            self.end.send_replace(Some(status::taken_over(name)));
        }
    }
}

/// A consumer's place; given back when dropped.
pub(super) struct Claim {
    consumers: Consumers,
    key: Key,
    end: watch::Receiver<Option<Status>>,
    acking: Option<tokio::sync::OwnedMutexGuard<()>>,
}

/// How far a consumer's acks are.
#[derive(Clone, Default)]
struct Acks {
    acked: Option<Cursor>,
    /// Why there are no more.
    failed: Option<Status>,
}

// === impl Consumers ===

impl Consumers {
    /// Takes the place of the consumer there is, and waits until its last ack is stored.
    pub(super) async fn claim(&self, key: Key) -> Claim {
        let (end_sender, end) = watch::channel(None);
        let acking = {
            let mut all = self.0.lock();
            let consumer = all.entry(key.clone()).or_insert_with(|| Consumer {
                end: watch::Sender::new(None),
                acking: Arc::default(),
                opened: 0,
                heard: 0,
            });
            consumer.opened = 0;
            let before = std::mem::replace(&mut consumer.end, end_sender);
            before.send_replace(Some(status::taken_over(&key.1)));
            consumer.acking.clone()
        };
        // Given back also where the caller goes away while it waits.
        let mut claim = Claim { consumers: self.clone(), key, end, acking: None };
        claim.acking = Some(acking.lock_owned().await);
        claim
    }

    /// Whether a subscription has a consumer.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.0.lock().contains_key(key)
    }

    /// Notes that another server has a consumer of a subscription, and which claim.
    pub(super) fn heard(&self, key: &Key, claim: u64) {
        if let Some(consumer) = self.0.lock().get_mut(key) {
            consumer.heard = consumer.heard.max(claim);
            consumer.end_if_older(&key.1);
        }
    }

    /// Ends the consumer of a subscription that is gone.
    pub(super) fn end(&self, key: &Key, why: Status) {
        if let Some(consumer) = self.0.lock().get(key) {
            consumer.end.send_replace(Some(why));
        }
    }
}

impl Claim {
    /// Notes what the subscription was opened with.
    pub(super) fn opened(&self, claim: u64) {
        let mut all = self.consumers.0.lock();
        if let Some(consumer) = all.get_mut(&self.key).filter(|consumer| self.is_of(consumer)) {
            consumer.opened = claim;
            consumer.end_if_older(&self.key.1);
        }
    }

    /// Whether a consumer is the one of this claim: one that took over has a channel of its own.
    fn is_of(&self, consumer: &Consumer) -> bool {
        self.end.same_channel(&consumer.end.subscribe())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut all = self.consumers.0.lock();
        if all.get(&self.key).is_some_and(|consumer| self.is_of(consumer)) {
            all.remove(&self.key);
        }
    }
}

/// Merges what a consumer gets from the feed with what becomes of its acks; `opened` is the claim
/// of its subscription.
pub(super) fn consume(
    store: Arc<dyn Store>,
    claim: Claim,
    opened: u64,
    requests: Streaming<v1::ConsumeCompletionsRequest>,
    events: impl Stream<Item = Result<Encoded<v1::ConsumeCompletionsResponse>, Status>> + Send,
) -> impl Stream<Item = Result<Encoded<v1::ConsumeCompletionsResponse>, Status>> + Send {
    let (told, mut acks) = watch::channel(Acks::default());
    let gone = CancellationToken::new();
    // Apart from the stream, which is not looked at while its consumer does not read.
    tokio::spawn(take_acks(store, claim, opened, requests, told, gone.clone()));
    let is_there: DropGuard = gone.drop_guard();
    try_stream! {
        let _is_there = is_there;
        tokio::pin!(events);
        loop {
            let (message, failed) = tokio::select! {
                biased;
                Ok(()) = acks.changed() => {
                    let Acks { acked, failed } = acks.borrow_and_update().clone();
                    (acked.as_ref().map(acked_message), failed)
                }
                event = events.next() => match event {
                    None => break,
                    Some(Ok(message)) => (Some(message), None),
                    Some(Err(status)) => (None, Some(status)),
                },
            };
            if let Some(message) = message {
                yield message;
            }
            if let Some(status) = failed {
                Err(status)?;
            }
        }
    }
}

fn acked_message(cursor: &Cursor) -> Encoded<v1::ConsumeCompletionsResponse> {
    let acked = v1::Acked { cursor: cursor.as_str().to_owned() };
    Encoded::from(&v1::ConsumeCompletionsResponse { event: Some(Event::Acked(acked)) })
}

/// Stores acks as they come until the consumer must end, or is gone.
async fn take_acks(
    store: Arc<dyn Store>,
    mut claim: Claim,
    opened: u64,
    mut requests: Streaming<v1::ConsumeCompletionsRequest>,
    told: watch::Sender<Acks>,
    gone: CancellationToken,
) {
    let mut is_open = true;
    let (title, name) = claim.key.clone();
    let failed = loop {
        let request = tokio::select! {
            biased;
            () = gone.cancelled() => return,
            end = claim.end.wait_for(Option::is_some) => match end {
                Ok(end) => break end.clone(),
                Err(_) => return,
            },
            request = requests.next(), if is_open => request,
        };
        let cursor = match newest(request, &mut requests) {
            Ok(Some(cursor)) => cursor,
            Ok(None) => {
                is_open = false;
                continue;
            }
            Err(status) => break Some(status),
        };
        match store.ack(&title, &name, &cursor, opened).await {
            Ok(subscription) => {
                told.send_modify(|acks| acks.acked = Some(subscription.cursor));
            }
            Err(error) => break Some(status::from_subscription(error, &name, "ack.cursor")),
        }
    };
    told.send_modify(|acks| acks.failed = failed);
}

/// The last of the acks that are there already; `None` where the consumer has ended its side.
fn newest(
    first: Option<Result<v1::ConsumeCompletionsRequest, Status>>,
    requests: &mut Streaming<v1::ConsumeCompletionsRequest>,
) -> Result<Option<Cursor>, Status> {
    /// Whoever sends without end is answered in between.
    const AT_ONCE: usize = 1000;
    let mut next = first;
    let mut newest = None;
    for _ in 0..AT_ONCE {
        let Some(request) = next else { return Ok(newest) };
        match request.map_err(|status| status::from_stream(&status))?.action {
            Some(Action::Ack(ack)) => newest = Some(Cursor::new(&ack.cursor)),
            Some(Action::Subscribe(_)) => return Err(status::subscribed_already()),
            None => return Err(status::missing("ack")),
        }
        next = match requests.next().now_or_never() {
            None => return Ok(newest),
            Some(request) => request,
        };
    }
    Ok(newest)
}

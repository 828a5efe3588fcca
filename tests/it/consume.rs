//! Named subscriptions: the server keeps the cursor, one consumer a name, nothing skipped.

use accolade::proto::v1::{
    Ack, Completion, ConsumeCompletionsRequest, ConsumeCompletionsResponse,
    DeleteSubscriptionRequest, ListSubscriptionsRequest, Subscribe, Subscription,
    consume_completions_request::Action, consume_completions_response::Event,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::support::{PATIENCE, Server, delta, reason, set};

struct Consumer {
    requests: mpsc::Sender<ConsumeCompletionsRequest>,
    answers: Streaming<ConsumeCompletionsResponse>,
}

fn subscribe(name: &str) -> Subscribe {
    let heartbeat_interval = Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 });
    Subscribe { title: "t".into(), name: name.into(), heartbeat_interval, ..Default::default() }
}

impl Consumer {
    async fn start(server: &Server, subscribe: Subscribe) -> Result<Self, Status> {
        let (requests, stream) = mpsc::channel(100);
        let action = Some(Action::Subscribe(subscribe));
        requests.send(ConsumeCompletionsRequest { action }).await.unwrap();
        let mut client = server.completions().await;
        let answers = client.consume_completions(ReceiverStream::new(stream)).await?.into_inner();
        let mut consumer = Self { requests, answers };
        match consumer.event().await? {
            Event::Started(_) => Ok(consumer),
            other => panic!("{other:?} came before `started`"),
        }
    }

    async fn event(&mut self) -> Result<Event, Status> {
        let message = timeout(PATIENCE, self.answers.message()).await.expect("a message comes")?;
        Ok(message.expect("a stream ends with an error").event.expect("one event is set"))
    }

    /// The first event that is looked for, among at most as many as there are heartbeats in the
    /// time that a test may take.
    async fn find<T>(&mut self, wanted: impl Fn(Result<Event, Status>) -> Option<T>) -> T {
        for _ in 0..300 {
            if let Some(found) = wanted(self.event().await) {
                return found;
            }
        }
        panic!("what is looked for does not come");
    }

    async fn completion(&mut self) -> Completion {
        let wanted = |event| match event {
            Ok(Event::Completion(completion)) => Some(completion),
            event => event.map(|_| None).unwrap(),
        };
        self.find(wanted).await
    }

    async fn ack(&self, cursor: &str) {
        let action = Some(Action::Ack(Ack { cursor: cursor.to_owned() }));
        self.requests.send(ConsumeCompletionsRequest { action }).await.unwrap();
    }

    /// Acks, and waits until that is on disk.
    async fn acked(&mut self, cursor: &str) {
        self.ack(cursor).await;
        let wanted = |event: Result<Event, Status>| match event.unwrap() {
            Event::Acked(acked) => (acked.cursor == cursor).then_some(()),
            _ => None,
        };
        self.find(wanted).await;
    }

    /// The error that the stream ends with.
    async fn end(&mut self) -> Status {
        self.find(Result::err).await
    }
}

async fn complete(server: &Server, players: &[&str]) -> Vec<String> {
    let mut client = server.storage().await;
    let mut cursors = Vec::new();
    for player in players {
        cursors.push(set(&mut client, delta("t", player, "n", 1)).await.cursor);
    }
    cursors
}

async fn listed(server: &Server) -> Vec<Subscription> {
    let request = ListSubscriptionsRequest { title: "t".into() };
    let answer = server.completions().await.list_subscriptions(request).await.unwrap();
    answer.into_inner().subscriptions
}

async fn started(args: &[&str]) -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), args);
    server.apply("t", &[("n", 1)]).await;
    (server, dir)
}

#[tokio::test]
async fn what_was_not_acked_comes_again_also_after_a_kill() {
    let (server, dir) = started(&[]).await;
    complete(&server, &["before"]).await;
    let mut consumer = Consumer::start(&server, subscribe("rewards")).await.unwrap();
    let cursors = complete(&server, &["a", "b", "c"]).await;
    for player in ["a", "b", "c"] {
        assert_eq!(consumer.completion().await.player_id, player);
    }
    // Out of order: acks are cumulative.
    consumer.acked(&cursors[1]).await;
    consumer.ack(&cursors[0]).await;
    let stays = |event: Result<Event, Status>| match event.unwrap() {
        Event::Acked(acked) => Some(acked.cursor),
        _ => None,
    };
    assert_eq!(consumer.find(stays).await, cursors[1]);
    drop(consumer);
    server.kill();

    let server = Server::start(&dir.path().join("data"), &[]);
    let mut consumer = Consumer::start(&server, subscribe("rewards")).await.unwrap();
    assert_eq!(consumer.completion().await.player_id, "c", "only what was not acked");
    let from_oldest = Subscribe { after: Some(String::new()), ..subscribe("rewards") };
    let mut consumer = Consumer::start(&server, from_oldest).await.unwrap();
    assert_eq!(consumer.completion().await.player_id, "before", "moved back");
}

#[tokio::test]
async fn a_new_consumer_takes_over_also_from_one_that_does_not_read() {
    let (server, _dir) = started(&[]).await;
    let mut first = Consumer::start(&server, subscribe("s")).await.unwrap();
    let cursors = complete(&server, &["a", "b"]).await;
    let mut second = Consumer::start(&server, subscribe("s")).await.unwrap();
    assert_eq!(second.completion().await.player_id, "a");
    // What the first has got is behind it on its stream; its acks count no more.
    let late = Action::Ack(Ack { cursor: cursors[1].clone() });
    let late = ConsumeCompletionsRequest { action: Some(late) };
    // The stream may have ended already.
    let _ = first.requests.send(late).await;
    let end = first.end().await;
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Aborted, "SUBSCRIPTION_TAKEN_OVER"));
    let listed = listed(&server).await;
    assert_eq!((listed[0].lag, listed[0].active), (2, true));
    assert_eq!(second.completion().await.player_id, "b");
    second.acked(&cursors[1]).await;
}

#[tokio::test]
async fn one_that_fell_behind_retention_is_told_and_goes_on_where_it_says() {
    let (server, _dir) = started(&["--retention-count", "1"]).await;
    drop(Consumer::start(&server, subscribe("s")).await.unwrap());
    let cursors = complete(&server, &["a", "b", "c"]).await;
    let expired = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Err(refused) = Consumer::start(&server, subscribe("s")).await {
                let told = (refused.code(), reason(&refused));
                assert_eq!(told, (Code::OutOfRange, "CURSOR_EXPIRED".to_owned()));
                let oldest = refused.get_details_error_info().unwrap().metadata["oldest"].clone();
                // Retention may have come by before all of them were there.
                if oldest == cursors[1] {
                    return oldest;
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    });
    let after = Some(expired.await.expect("retention comes by every second"));
    let mut consumer =
        Consumer::start(&server, Subscribe { after, ..subscribe("s") }).await.unwrap();
    assert_eq!(consumer.completion().await.player_id, "c");
}

#[tokio::test]
async fn subscriptions_are_listed_measured_and_deleted() {
    let (server, _dir) = started(&["--admin-listen", "127.0.0.1:0"]).await;
    let mut consumer = Consumer::start(&server, subscribe("rewards")).await.unwrap();
    let cursors = complete(&server, &["a", "b"]).await;
    consumer.acked(&cursors[0]).await;
    let all = listed(&server).await;
    assert_eq!(all.len(), 1);
    let Subscription { name, cursor, lag, active, moved_at } = &all[0];
    assert_eq!((name.as_str(), cursor, *lag, *active), ("rewards", &cursors[0], 1, true));
    assert!(*moved_at > 1_700_000_000);
    let lag = "accolade_subscription_lag_completions{title=\"t\",subscription=\"rewards\"}";
    assert_eq!(server.metric(lag), 1);

    let request = DeleteSubscriptionRequest { title: "t".into(), name: "rewards".into() };
    server.completions().await.delete_subscription(request.clone()).await.unwrap();
    let end = consumer.end().await;
    assert_eq!((end.code(), reason(&end).as_str()), (Code::NotFound, "SUBSCRIPTION_NOT_FOUND"));
    assert!(listed(&server).await.is_empty());
    assert!(!server.admin("/metrics").1.contains("rewards"));
    let again = server.completions().await.delete_subscription(request).await.unwrap_err();
    assert_eq!(reason(&again), "SUBSCRIPTION_NOT_FOUND");
}

#[tokio::test]
async fn what_a_consumer_says_wrong_is_told() {
    let (server, _dir) = started(&[]).await;
    let refused = |subscribe| async { Consumer::start(&server, subscribe).await.err().unwrap() };
    let mistakes = refused(Subscribe { title: "t\n".into(), ..subscribe("") }).await;
    assert_eq!(crate::support::fields(&mistakes), ["subscribe.name", "subscribe.title"]);
    let unknown = refused(Subscribe { title: "u".into(), ..subscribe("s") }).await;
    assert_eq!(reason(&unknown), "TITLE_NOT_FOUND");
    let nonsense = refused(Subscribe { after: Some("x".into()), ..subscribe("s") }).await;
    assert_eq!(crate::support::fields(&nonsense), ["subscribe.after"]);
    assert!(listed(&server).await.is_empty(), "nothing was made");

    let mut consumer = Consumer::start(&server, subscribe("s")).await.unwrap();
    // One that cannot begin does not take over.
    refused(Subscribe { after: Some("x".into()), ..subscribe("s") }).await;
    consumer.ack("nonsense").await;
    assert_eq!(crate::support::fields(&consumer.end().await), ["ack.cursor"]);
    let mut consumer = Consumer::start(&server, subscribe("s")).await.unwrap();
    let action = Some(Action::Subscribe(subscribe("s")));
    consumer.requests.send(ConsumeCompletionsRequest { action }).await.unwrap();
    assert_eq!(crate::support::fields(&consumer.end().await), ["subscribe"]);
}

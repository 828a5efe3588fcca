//! Many sets under way on one stream.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use accolade::proto::v1::{
    SetAchievementStorageRequest, StreamSetAchievementStorageRequest,
    StreamSetAchievementStorageResponse, stream_set_achievement_storage_response::Outcome,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::support::{LONG_PATIENCE, PATIENCE, Server, StorageClient, delta, get, reason};

/// A set of one record; each needs the one before it.
fn nth(node: &str, n: i64) -> SetAchievementStorageRequest {
    SetAchievementStorageRequest { expected_version: Some(n), ..delta("t", "p", node, 1) }
}

fn tagged(
    sets: impl IntoIterator<Item = SetAchievementStorageRequest>,
) -> impl Iterator<Item = StreamSetAchievementStorageRequest> {
    let tags = (0..).zip(sets);
    tags.map(|(tag, set)| StreamSetAchievementStorageRequest { tag, set: Some(set) })
}

async fn send(
    client: &mut StorageClient,
    requests: Vec<StreamSetAchievementStorageRequest>,
) -> Streaming<StreamSetAchievementStorageResponse> {
    let answers = client.stream_set_achievement_storage(tokio_stream::iter(requests)).await;
    answers.expect("the stream opens").into_inner()
}

/// Every answer by its tag, and how the stream ended.
async fn drain(
    mut answers: Streaming<StreamSetAchievementStorageResponse>,
) -> (BTreeMap<u64, Outcome>, Result<(), Status>) {
    let mut outcomes = BTreeMap::new();
    loop {
        match timeout(PATIENCE, answers.message()).await.expect("an answer comes in time") {
            Ok(Some(answer)) => {
                let earlier = outcomes.insert(answer.tag, answer.outcome.expect("one is set"));
                assert!(earlier.is_none(), "tag {} was answered twice", answer.tag);
            }
            Ok(None) => return (outcomes, Ok(())),
            Err(status) => return (outcomes, Err(status)),
        }
    }
}

fn code(outcome: &Outcome) -> i32 {
    match outcome {
        Outcome::Response(response) => response.code,
        Outcome::Status(status) => panic!("refused: {status:?}"),
    }
}

async fn server(dir: &tempfile::TempDir, args: &[&str]) -> Server {
    let server = Server::start(&dir.path().join("data"), args);
    server.apply("t", &[("n", 1_000_000), ("m", 3)]).await;
    server
}

#[tokio::test]
async fn each_set_of_a_stream_is_answered_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir, &[]).await;
    let mut requests: Vec<_> = tagged([
        delta("t", "p", "n", 5),
        delta("t", "", "n", 1),
        delta("t", "p", "nowhere", 1),
        nth("n", 7),
        delta("t", "q", "m", 9),
    ])
    .collect();
    requests.push(StreamSetAchievementStorageRequest { tag: 99, set: None });
    let mut client = server.storage().await;
    let (outcomes, end) = drain(send(&mut client, requests).await).await;
    end.expect("the stream ends well");

    assert_eq!(outcomes.len(), 6);
    let refused = |tag: u64, expected: Code, reason: &str| {
        let Outcome::Status(status) = &outcomes[&tag] else { panic!("{:?}", outcomes[&tag]) };
        assert_eq!(status.code, i32::from(expected));
        let details = prost::Message::encode_to_vec(status);
        let status = Status::with_details(expected, &*status.message, details.into());
        let info = status.get_details_error_info().expect("ErrorInfo");
        assert_eq!((info.reason.as_str(), info.domain.as_str()), (reason, "accolade"));
    };
    assert_eq!(code(&outcomes[&0]), 0);
    refused(1, Code::InvalidArgument, "FIELD_INVALID");
    refused(2, Code::NotFound, "NODE_NOT_FOUND");
    assert_eq!(code(&outcomes[&3]), 5, "a conflict is data");
    let Outcome::Response(completed) = &outcomes[&4] else { panic!("{:?}", outcomes[&4]) };
    assert!(completed.newly_completed && !completed.cursor.is_empty());
    refused(99, Code::InvalidArgument, "FIELD_INVALID");
}

/// Goal: pipelining does not mix up the sets of one record.
#[tokio::test]
async fn sets_of_one_stream_are_applied_in_the_order_they_were_sent() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir, &[]).await;
    let mut client = server.storage().await;
    let requests = tagged((0..2000).map(|n| nth("n", n))).collect();
    let (outcomes, end) = drain(send(&mut client, requests).await).await;
    end.expect("the stream ends well");
    assert_eq!(outcomes.len(), 2000);
    assert!(outcomes.values().all(|outcome| code(outcome) == 0), "each finds the one before it");
    assert_eq!(get(&mut client, "t", "p").await[0].version, 2000);
}

/// Goal: a caller that sends and does not read is held back by flow control, costs a bounded amount
/// of memory, and loses nothing.
#[tokio::test]
async fn a_stream_that_is_not_read_is_held_back_and_loses_nothing() {
    const SETS: usize = 1000;
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir, &["--stream-sets-max", "4"]).await;
    let mut client = server.storage().await;
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = taken.clone();
    let requests = (0..SETS).map(|n| SetAchievementStorageRequest {
        extra: Some("x".repeat(16_000)),
        expected_version: Some(0),
        ..delta("t", &format!("p{n}"), "n", 1)
    });
    let requests: Vec<_> = tagged(requests).collect();
    let requests = tokio_stream::iter(requests).map(move |request| {
        counter.fetch_add(1, Ordering::SeqCst);
        request
    });
    let answers = client.stream_set_achievement_storage(requests).await.unwrap().into_inner();
    // Held back where nothing more is taken for two seconds, and not only because a disk stalls.
    let (start, mut before, mut still) = (Instant::now(), 0, 0);
    while still < 10 {
        assert!(start.elapsed() < LONG_PATIENCE, "{before} sets were taken");
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = taken.load(Ordering::SeqCst);
        still = if now == before && now > 100 { still + 1 } else { 0 };
        before = now;
    }
    // 4 under way, and what the windows of both directions hold: some 2 MiB here.
    assert!(before < SETS / 2, "{before} sets were taken from a caller that reads nothing");

    let (outcomes, end) = drain(answers).await;
    end.expect("the stream ends well");
    assert_eq!(outcomes.len(), SETS);
    assert!(outcomes.values().all(|outcome| code(outcome) == 0));
}

#[tokio::test]
async fn a_stream_is_told_that_the_server_stops() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir, &[]).await;
    let mut client = server.storage().await;
    let (requests, queue) = mpsc::channel(16);
    let answers = client.stream_set_achievement_storage(ReceiverStream::new(queue)).await.unwrap();
    let mut answers = answers.into_inner();
    requests.send(tagged([nth("n", 0)]).next().unwrap()).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().tag, 0);
    server.terminate();
    let (_, end) = drain(answers).await;
    let status = end.expect_err("the caller has not ended its side");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "DRAINING"));
    assert!(server.wait().await.success());
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_a_stream_after_the_answers_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir, &[]).await;
    let mut client = server.storage().await;
    let large = SetAchievementStorageRequest {
        extra: Some("x".repeat(100_000)),
        expected_version: Some(3),
        ..delta("t", "p", "n", 1)
    };
    let requests = tagged([nth("n", 0), nth("n", 1), large, nth("n", 2)]).collect();
    let (outcomes, end) = drain(send(&mut client, requests).await).await;
    let status = end.expect_err("the third message cannot be read");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(reason(&status), "MESSAGE_TOO_LARGE");
    assert_eq!(outcomes.keys().copied().collect::<Vec<_>>(), [0, 1]);
    assert_eq!(get(&mut client, "t", "p").await[0].version, 2, "and the fourth was not");
}

/// Goal: whoever sends faster than sets are stored is held back, and each set is answered.
///
/// Method: commits take long, and each set is sent in a frame of its own, as most languages' gRPC
/// does. HTTP/2 ends a connection that has too many small frames nobody has read yet.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn small_sets_that_come_faster_than_they_are_stored_end_no_connection() {
    const SETS: i64 = 4000;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut command = std::process::Command::new(crate::support::BINARY);
    command.args(["serve", "--listen=127.0.0.1:0", "--data"]).arg(&data);
    command.env("FAILPOINTS", "before-sync=sleep(200)");
    let server = Server::run(command, &data.with_extension("log")).unwrap();
    server.apply("t", &[("n", 1_000_000)]).await;
    let client = server.storage().await;
    let mut streams = tokio::task::JoinSet::new();
    for stream in 0..2 {
        let mut client = client.clone();
        let player = format!("p{stream}");
        streams.spawn(async move {
            let sets = tagged((0..SETS).map(move |_| delta("t", &player, "n", 1)));
            let sets = tokio_stream::iter(sets.collect::<Vec<_>>()).then(async |set| {
                tokio::task::yield_now().await;
                set
            });
            let answers = client.stream_set_achievement_storage(Box::pin(sets)).await;
            drain(answers.unwrap().into_inner()).await
        });
    }
    for (outcomes, end) in streams.join_all().await {
        assert!(end.is_ok(), "{end:?}");
        assert!(outcomes.values().all(|outcome| code(outcome) == 0));
        assert_eq!(outcomes.len(), usize::try_from(SETS).unwrap());
    }
    let mut client = client;
    for player in ["p0", "p1"] {
        assert_eq!(get(&mut client, "t", player).await[0].progress, SETS);
    }
}

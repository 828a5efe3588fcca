//! Starting and stopping.

use std::{
    collections::HashSet,
    error::Error,
    io::Write,
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use accolade::{
    client::may_pass,
    proto::v1::{
        Completion, SetAchievementStorageRequest, StreamSetAchievementStorageRequest,
        stream_set_achievement_storage_response::Outcome, watch_completions_response::Event,
    },
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;

use crate::{
    crowds::{Stream, next, stall, watch},
    pauses::pages,
    support::{PATIENCE, Server, StorageClient, Watch, accolade, delta, get, reason, set, text},
};

/// How long a process may take beyond its drain time, on a machine that runs other tests as well.
const MARGIN: Duration = Duration::from_secs(20);

/// Waits until something has happened so many times.
async fn reaches(count: &AtomicI64, at_least: i64) {
    let start = Instant::now();
    while count.load(Ordering::SeqCst) < at_least {
        assert!(start.elapsed() < PATIENCE, "{count:?} of {at_least}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_folder_or_an_address_in_use_is_refused_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data, &[]);
    let log = Server::try_start(&data, &[]).err().expect("the folder is in use");
    assert!(log.contains("is in use by another process"), "{log}");
    let other = dir.path().join("other");
    let log = Server::try_start(&other, &["--listen", &server.address]).err().expect("in use");
    assert!(log.contains("cannot listen on"), "{log}");
}

#[test]
fn other_machines_are_let_in_only_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    let refused = accolade(&["serve", "--listen", "0.0.0.0:0", "--data", &data]);
    assert_eq!(refused.status.code(), Some(64));
    assert!(text(&refused.stderr).contains("without TLS"), "{}", text(&refused.stderr));
    let insecure = ["check-config", "--listen", "0.0.0.0:0", "--insecure"];
    assert!(accolade(&insecure).status.success());
}

/// Goal: a folder that has lost its titles does not look like a new one.
#[tokio::test]
async fn the_sample_title_is_only_for_new_folders() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let clock = Arc::new(accolade::clock::SystemClock);
    drop(accolade::store::sled::SledStore::open(&data, 1 << 20, clock).unwrap());
    // sled's threads in this process let go of the folder a moment after that.
    let start = Instant::now();
    let server = loop {
        match Server::try_start(&data, &[]) {
            Ok(server) => break server,
            Err(log) => {
                assert!(log.contains("is in use by another process"), "{log}");
                assert!(start.elapsed() < PATIENCE, "it stays in use");
            }
        }
    };
    let mut client = server.catalogs().await;
    let titles = client.list_titles(accolade::proto::v1::ListTitlesRequest {}).await.unwrap();
    assert!(titles.into_inner().titles.is_empty());
}

#[tokio::test]
async fn health_says_serving_for_every_service() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let mut client = HealthClient::new(server.channel().await);
    for service in [
        "",
        "accolade.v1.AchievementStorageService",
        "accolade.v1.CompletionService",
        "accolade.v1.CatalogService",
    ] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let response = client.check(request).await.unwrap().into_inner();
        assert_eq!(response.status, 1, "{service:?} is serving");
    }
}

/// Goal: a client that follows health hears NOT_SERVING and does not hold the stopping server.
#[tokio::test]
async fn whoever_follows_health_hears_of_the_stop() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &["--drain-seconds-max", "60"]);
    let mut client = HealthClient::new(server.channel().await);
    let mut health = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status, 1, "SERVING");
    let start = Instant::now();
    server.terminate();
    assert_eq!(health.message().await.unwrap().unwrap().status, 2, "NOT_SERVING");
    assert!(!matches!(health.message().await, Ok(Some(_))), "the stream ends");
    assert!(server.wait().await.success());
    assert!(start.elapsed() < MARGIN, "the drain time is not used up: {:?}", start.elapsed());
}

/// Goal: connections that say nothing, half of what they should, or stay open with a stream, do
/// not hold the process beyond its drain time.
#[tokio::test]
async fn silent_connections_do_not_hold_a_stopping_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &["--drain-seconds-max", "2"]);
    let _silent = TcpStream::connect(&server.address).unwrap();
    let mut half = TcpStream::connect(&server.address).unwrap();
    half.write_all(b"PRI * HT").unwrap();
    let _watch = Watch::after(&server, "demo", "").await;
    let mut client = server.storage().await;
    set(&mut client, delta("demo", "p", "adventure", 1)).await;
    let start = Instant::now();
    server.terminate();
    assert!(server.wait().await.success());
    assert!(start.elapsed() <= Duration::from_secs(2) + MARGIN, "{:?}", start.elapsed());
}

/// Goal: whatever was answered while the server was stopping is there when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_under_load_loses_nothing_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data, &[]);
    server.apply("t", &[("n", 1_000_000)]).await;
    let mut writers = JoinSet::new();
    let answered: [_; 4] = std::array::from_fn(|_| Arc::new(AtomicI64::new(0)));
    for (writer, answered) in answered.iter().cloned().enumerate() {
        let mut client = server.storage().await;
        writers.spawn(async move {
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline {
                let request = delta("t", &format!("w{writer}"), "n", 1);
                let Ok(answer) = client.set_achievement_storage(request).await else { break };
                let version = answer.into_inner().updated.unwrap().version;
                answered.store(version, Ordering::SeqCst);
            }
            (writer, answered.load(Ordering::SeqCst))
        });
    }
    for answered in &answered {
        reaches(answered, 20).await;
    }
    server.terminate();
    assert!(server.wait().await.success());
    let server = Server::start(&data, &[]);
    let mut client = server.storage().await;
    for (writer, answered) in writers.join_all().await {
        let stored = get(&mut client, "t", &format!("w{writer}")).await[0].version;
        // The last set may have been stored without an answer.
        let expected = answered..=answered + 1;
        assert!(answered > 0 && expected.contains(&stored), "{stored}, and not {expected:?}");
    }
}

/// What a writer was told.
struct Told {
    player: String,
    /// Of the record that it counts on.
    version: i64,
    /// Sets of that record that were sent.
    sent: i64,
    /// Who has completed.
    completed: Vec<String>,
}

/// Counts, and completes a new player with every third set, until the server is gone.
async fn write(mut client: StorageClient, player: String, answered: Arc<AtomicI64>) -> Told {
    let mut told = Told { player, version: 0, sent: 0, completed: Vec::new() };
    for n in 0.. {
        let finishes = n % 3 == 2;
        let request = match finishes {
            // A few of these fill the window of a subscriber that does not read.
            true => SetAchievementStorageRequest {
                extra: Some("x".repeat(16_000)),
                expected_version: Some(0),
                ..delta("t", &format!("{}-{n}", told.player), "done", 1)
            },
            false => delta("t", &told.player, "n", 1),
        };
        told.sent += i64::from(!finishes);
        let completed = request.player_id.clone();
        match timeout(PATIENCE, client.set_achievement_storage(request)).await.unwrap() {
            Ok(_) if finishes => told.completed.push(completed),
            Ok(answer) => {
                told.version = answer.into_inner().updated.unwrap().version;
                answered.store(told.version, Ordering::SeqCst);
            }
            Err(status) => {
                // A set that meets the end of its connection is told so by the transport, which
                // says UNAVAILABLE, CANCELLED or INTERNAL, as that has come.
                let is_told = status.code() == Code::Unavailable || status.source().is_some();
                assert!(is_told && may_pass(&status), "{status:?}");
                break;
            }
        }
    }
    told
}

/// Counts on one stream, many sets at a time, until the stream ends.
async fn write_stream(
    mut client: StorageClient,
    player: String,
    answered: Arc<AtomicI64>,
) -> (Told, Status) {
    let mut told = Told { player, version: 0, sent: 0, completed: Vec::new() };
    let (requests, queue) = mpsc::channel(16);
    let answers = client.stream_set_achievement_storage(ReceiverStream::new(queue)).await;
    let mut answers = answers.unwrap().into_inner();
    let set = delta("t", &told.player, "n", 1);
    let sending = tokio::spawn(async move {
        for tag in 0.. {
            let request = StreamSetAchievementStorageRequest { tag, set: Some(set.clone()) };
            if requests.send(request).await.is_err() {
                return i64::try_from(tag).unwrap();
            }
        }
        unreachable!("the stream ends first")
    });
    let end = loop {
        match timeout(PATIENCE, answers.message()).await.unwrap() {
            Ok(answer) => {
                let outcome = answer.expect("it ends with an error").outcome;
                let Some(Outcome::Response(response)) = outcome else { panic!("{outcome:?}") };
                told.version = told.version.max(response.updated.unwrap().version);
                answered.store(told.version, Ordering::SeqCst);
            }
            Err(end) => break end,
        }
    };
    drop(answers);
    told.sent = sending.await.unwrap();
    (told, end)
}

/// Everything that a stream still has, and how it ended.
async fn drain(mut stream: Stream, count: Arc<AtomicI64>) -> (Vec<Completion>, Status) {
    let mut heard = Vec::new();
    loop {
        match next(&mut stream).await {
            Ok(Event::Completion(completion)) => {
                heard.push(completion);
                count.fetch_add(1, Ordering::SeqCst);
            }
            Ok(_) => {}
            Err(end) => return (heard, end),
        }
    }
}

/// Goal: whatever clients do and leave undone, a server that is told to stop is gone in time, says
/// so to all who listen, and has kept everything that it answered.
///
/// Method: everything at once, so that nothing that ends well hides what does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_among_clients_of_every_kind_is_in_time_and_loses_nothing() {
    const DRAIN: Duration = Duration::from_secs(3);
    /// The preface and no settings of one's own, then a frame of headers that says it is longer.
    const HALF_HEADERS: &[u8] =
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x40\x01\x04\0\0\0\x01\x83\x86";
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let drain_time = format!("--drain-seconds-max={}", DRAIN.as_secs());
    let server = Server::start(&data, &[&drain_time]);
    server.apply("t", &[("n", 1 << 50), ("done", 1)]).await;
    let _silent = TcpStream::connect(&server.address).unwrap();
    let mut half_preface = TcpStream::connect(&server.address).unwrap();
    half_preface.write_all(b"PRI * HT").unwrap();
    let mut half_headers = TcpStream::connect(&server.address).unwrap();
    half_headers.write_all(HALF_HEADERS).unwrap();
    let mut counts = Vec::new();
    let mut count = || {
        counts.push(Arc::new(AtomicI64::new(0)));
        counts.last().unwrap().clone()
    };
    let mut listening = JoinSet::new();
    for _ in 0..2 {
        let mut client = server.completions().await;
        let stream = client.watch_completions(watch("", &[])).await.unwrap();
        listening.spawn(drain(stream.into_inner(), count()));
    }
    let stalled = stall(&server, "").await;
    let (mut writers, mut streams) = (JoinSet::new(), JoinSet::new());
    for writer in 0..8 {
        writers.spawn(write(server.storage().await, format!("w{writer}"), count()));
    }
    for stream in 0..2 {
        streams.spawn(write_stream(server.storage().await, format!("s{stream}"), count()));
    }

    for count in counts {
        reaches(&count, 20).await;
    }
    let start = Instant::now();
    server.terminate();
    assert!(server.wait().await.success());
    let stopped = start.elapsed();
    assert!(stopped <= DRAIN + MARGIN, "{stopped:?}");

    let mut told = writers.join_all().await;
    for (of_stream, end) in streams.join_all().await {
        assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "DRAINING"));
        told.push(of_stream);
    }
    let server = Server::start(&data, &[]);
    let mut client = server.storage().await;
    let feed = pages(&server, "t", "").await;
    let completed: HashSet<_> = feed.iter().map(|it| &it.player_id).collect();
    for Told { player, version, sent, completed: answered } in &told {
        let stored = get(&mut client, "t", player).await[0].version;
        assert!(*version > 0 && (*version..=*sent).contains(&stored), "{player} has {stored}");
        let lost = answered.iter().find(|it| !completed.contains(it));
        assert_eq!(lost, None, "its completion was answered");
    }
    for (heard, end) in listening.join_all().await {
        assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "DRAINING"));
        let last = &heard.last().expect("there were completions").cursor;
        assert_eq!(end.get_details_error_info().unwrap().metadata["cursor"], *last);
        assert!(feed.starts_with(&heard), "it heard the feed, as far as it had come");
        assert_eq!(pages(&server, "t", last).await, feed[heard.len()..], "and hears the rest");
    }
    // What was under way to this one when the process ended; there was no room to say more.
    let (heard, _) = drain(stalled, Arc::default()).await;
    assert!(feed.starts_with(&heard) && heard.len() < feed.len(), "it had stopped to read");
}

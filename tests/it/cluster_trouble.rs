//! A cluster that is not well, or asked for much: what is told of it, and that it goes on.

use std::time::{Duration, Instant};

use accolade::proto::v1::{
    BatchSetAchievementStorageRequest, NodeUpdate, SetAchievementStorageRequest,
    StreamSetAchievementStorageRequest,
};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::timeout};
use tokio_stream::StreamExt;
use tonic::{Code, Response, Status};

use crate::{
    cluster::{init, wait_for_title},
    support::{LONG_PATIENCE, PATIENCE, Server, accolade, delta, get, nats::Nats, set, text},
};

/// Sets that may wait in one partition.
const PLACES_OF_A_PARTITION: u64 = 4096;

/// Waits until a server says that it is ready, or that it is not.
async fn wait_ready(server: &Server, is_ready: bool) {
    let start = Instant::now();
    while server.admin("/readyz").0.contains("200") != is_ready {
        assert!(start.elapsed() < 2 * PATIENCE, "it is not ready: {is_ready}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Asks until there is an answer: a cluster may choose leaders at any time.
pub async fn answered<T>(ask: impl AsyncFn() -> Result<Response<T>, Status>) -> T {
    let start = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer.into_inner(),
            Err(failed) => {
                let may_pass = [Code::Unavailable, Code::DeadlineExceeded].contains(&failed.code());
                assert!(may_pass && start.elapsed() < LONG_PATIENCE, "{failed:?}");
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_majority_is_told_until_it_is_back() {
    let start = tokio::task::spawn_blocking(|| Nats::start(3));
    let mut nats = start.await.unwrap();
    let url = nats.url("ach");
    init(&url, "1", "3");
    let dir = TempDir::new().unwrap();
    let args = ["--admin-listen", "127.0.0.1:0"];
    let server = Server::start_on(&url, &dir.path().join("a"), &args);
    server.apply("t", &[("n", 2)]).await;
    let mut client = server.storage().await;
    set(&mut client, delta("t", "p", "n", 1)).await;
    let survivor = nats.server_of("accolade");
    let lost: Vec<_> = (0..3).filter(|n| *n != survivor).collect();
    for n in &lost {
        nats.kill(*n);
    }
    wait_ready(&server, false).await;
    let mut request = delta("t", "p", "n", 1);
    request.request_id = "r".to_owned();
    let failed = client.set_achievement_storage(request.clone()).await.unwrap_err();
    assert!([Code::Unavailable, Code::DeadlineExceeded].contains(&failed.code()), "{failed:?}");
    for n in &lost {
        nats.run(*n);
    }
    wait_ready(&server, true).await;
    let answer = answered(async || client.clone().set_achievement_storage(request.clone()).await);
    let version = answer.await.updated.unwrap().version;
    assert_eq!(version, 2, "it counts once, whichever of them did");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_room_loses_nothing_and_goes_on_when_it_has_some() {
    let mut nats = Nats::start(1);
    nats.reconfigure(0, "sync_interval: always", "sync_interval: always, max_file_store: 4MB");
    let url = nats.url("ach");
    init(&url, "1", "1");
    let dir = TempDir::new().unwrap();
    let args = ["--admin-listen", "127.0.0.1:0"];
    let server = Server::start_on(&url, &dir.path().join("a"), &args);
    server.apply("t", &[("n", 1)]).await;
    let mut client = server.storage().await;
    let update = |n: usize| SetAchievementStorageRequest {
        extra: Some("x".repeat(16_000)),
        expected_version: Some(0),
        ..delta("t", &n.to_string(), "n", 1)
    };
    let mut stored = Vec::new();
    let mut players = 0..1000;
    let failed = loop {
        let player = players.next().expect("there is no more room than there was to be");
        match client.set_achievement_storage(update(player)).await {
            Ok(answer) => {
                assert!(answer.into_inner().newly_completed);
                stored.push(player);
            }
            // Else it was only slow, and may be stored.
            Err(failed) if server.log().contains("JetStream refuses to store something") => {
                break failed;
            }
            Err(_) => {}
        }
    };
    assert!([Code::Unavailable, Code::DeadlineExceeded].contains(&failed.code()), "{failed:?}");
    wait_ready(&server, false).await;

    nats.reconfigure(0, "max_file_store: 4MB", "max_file_store: 64MB");
    wait_ready(&server, true).await;
    for player in &stored {
        assert_eq!(get(&mut client, "t", &player.to_string()).await.len(), 1, "{player} is lost");
    }
    set(&mut client, update(players.end)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_true_on_a_cluster_and_told_without_it() {
    const PLAYERS: u64 = 20;
    let nats = Nats::start(1);
    let url = nats.url("ach");
    init(&url, "2", "1");
    let dir = TempDir::new().unwrap();
    let args = ["--admin-listen", "127.0.0.1:0"];
    let server = Server::start_on(&url, &dir.path().join("a"), &args);
    server.apply("t", &[("n", 2)]).await;
    let mut client = server.storage().await;
    for player in 0..PLAYERS {
        set(&mut client, delta("t", &player.to_string(), "n", 1)).await;
        set(&mut client, delta("t", &player.to_string(), "n", 1)).await;
    }
    assert_eq!(server.metric("accolade_completions_total"), PLAYERS);
    let start = Instant::now();
    while server.metric("accolade_updates_waiting") > 0 {
        assert!(start.elapsed() < PATIENCE, "nothing waits");
    }
    assert!((1..=2 * PLAYERS).contains(&server.metric("accolade_group_updates_count")));
    nats.signal(0, "STOP");
    let start = Instant::now();
    assert_eq!(server.metric("accolade_completions_total"), PLAYERS);
    // Lags are asked of the store for 2 s at most; the store would try for 30 s.
    assert!(start.elapsed() < Duration::from_secs(25), "told after {:?}", start.elapsed());
    wait_ready(&server, false).await;
    nats.signal(0, "CONT");
    wait_ready(&server, true).await;
}

/// A server that keeps the only replica of a partition, and nothing of what all share: the titles,
/// and the players of another partition.
fn only_of_a_partition(nats: &Nats, partitions: u32) -> Option<(usize, u32, u32)> {
    let leaders: Vec<_> = (0..partitions).map(|n| nats.leader(&format!("ACH_{n}"))).collect();
    let shared = nats.leader("ACH")?;
    let apart = leaders.iter().position(|leader| leader.is_some_and(|it| it != shared))?;
    let lost = leaders[apart]?;
    let stays = leaders.iter().position(|leader| leader.is_some_and(|it| it != lost))?;
    Some((lost, u32::try_from(apart).unwrap(), u32::try_from(stays).unwrap()))
}

/// Sets that wait for a partition that is not there have places of their own.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_gone_holds_up_no_other() {
    const PARTITIONS: u32 = 12;
    /// More than may wait in one partition.
    const SETS: u64 = 5000;
    let start = tokio::task::spawn_blocking(|| Nats::start(3));
    let mut nats = start.await.unwrap();
    // By how much they have left NATS spreads streams.
    for n in 0..3 {
        nats.reconfigure(n, "sync_interval: always", "sync_interval: always, max_file_store: 4GB");
    }
    let url = nats.url("ach");
    init(&url, &PARTITIONS.to_string(), "1");
    let start = Instant::now();
    let (lost, gone, stays) = loop {
        if let Some(found) = only_of_a_partition(&nats, PARTITIONS) {
            break found;
        }
        let on = |n: u32| nats.leader(&format!("ACH_{n}"));
        let all: Vec<_> = (0..PARTITIONS).map(on).collect();
        assert!(start.elapsed() < PATIENCE, "not on several servers: {all:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let players_of = |partition: u32| {
        (0..).map(|n| format!("p{n}")).filter(move |player| {
            crc32fast::hash(format!("t\0{player}").as_bytes()) % PARTITIONS == partition
        })
    };
    let dir = TempDir::new().unwrap();
    let args = [
        "--admin-listen=127.0.0.1:0",
        "--stream-sets-max=65536",
        "--drain-seconds-max=3",
        "--request-seconds-max=60",
    ];
    // One that it stays connected to.
    let store = format!("nats://127.0.0.1:{}/ach", nats.port((lost + 1) % 3));
    let server = Server::start_on(&store, &dir.path().join("a"), &args);
    server.apply("t", &[("n", 1)]).await;
    let mut client = server.storage().await;
    nats.kill(lost);
    let sets = players_of(gone).zip(0..SETS).map(|(player, tag)| {
        let set = Some(delta("t", &player, "n", 1));
        StreamSetAchievementStorageRequest { tag, set }
    });
    let sets = tokio_stream::iter(sets.collect::<Vec<_>>()).chain(tokio_stream::pending());
    let start = Instant::now();
    let waiting = client.clone().stream_set_achievement_storage(sets).await.unwrap();
    // All places are taken, and one set waits for a place.
    while server.metric("accolade_updates_waiting") < PLACES_OF_A_PARTITION {
        assert!(start.elapsed() < PATIENCE, "they wait");
    }
    for player in players_of(stays).take(20) {
        assert!(set(&mut client, delta("t", &player, "n", 1)).await.newly_completed);
        assert_eq!(get(&mut client, "t", &player).await.len(), 1);
    }
    let waiting_still = server.metric("accolade_updates_waiting");
    // The store gives the first of them up after 30 s.
    if start.elapsed() < Duration::from_secs(25) {
        assert!(waiting_still >= PLACES_OF_A_PARTITION, "{waiting_still} still wait");
    }
    // Told to stop, it waits for them no longer than for others.
    let start = Instant::now();
    server.terminate();
    assert!(server.wait().await.success());
    assert!(start.elapsed() < Duration::from_secs(20), "it waits for {:?}", start.elapsed());
    let mut waiting = waiting.into_inner();
    while let Ok(answer) = timeout(PATIENCE, waiting.message()).await.expect("it ends") {
        assert!(answer.is_some(), "it ends with an error");
    }
}

/// NATS gives up a connection that does not take what it asked for in time.
#[tokio::test(flavor = "multi_thread")]
async fn many_large_players_are_read_at_once() {
    const PLAYERS: usize = 80;
    const NODES: usize = 50;
    const READS: usize = 5 * PLAYERS;
    let nodes: Vec<_> = (0..NODES).map(|n| format!("n{n}")).collect();
    // Less than by default, and half as much again as may be under way at most. A reader that the
    // machine leaves without time is not slow.
    let nats = Nats::start_with("max_pending: 48MB\nwrite_deadline: \"60s\"\n");
    let url = nats.url("ach");
    init(&url, "16", "1");
    let dir = TempDir::new().unwrap();
    let patient = ["--request-seconds-max=120"];
    // One that wrote nothing itself has to read everything.
    let [writer, reader] =
        ["a", "b"].map(|name| Server::start_on(&url, &dir.path().join(name), &patient));
    let catalog: Vec<_> = nodes.iter().map(|node| (node.as_str(), 1)).collect();
    writer.apply("t", &[&catalog[..], &[("n", 1)]].concat()).await;
    wait_for_title(&reader, "t").await;
    let mut client = writer.storage().await;
    for player in 0..PLAYERS {
        for nodes in nodes.chunks(4) {
            let updates = nodes.iter().map(|node| NodeUpdate {
                node_id: node.clone(),
                extra: Some("x".repeat(16_000)),
                expected_version: Some(0),
                ..NodeUpdate::default()
            });
            let batch = BatchSetAchievementStorageRequest {
                title: "t".to_owned(),
                player_id: format!("p{player}"),
                updates: updates.collect(),
                ..BatchSetAchievementStorageRequest::default()
            };
            client.batch_set_achievement_storage(batch).await.unwrap();
        }
    }
    let mut clients = Vec::new();
    for _ in 0..READS {
        clients.push(reader.storage().await);
    }
    let mut reads = JoinSet::new();
    for (read, mut client) in clients.into_iter().enumerate() {
        // And some who are not there.
        let player = format!("p{}", read % (PLAYERS + 8));
        reads.spawn(async move { get(&mut client, "t", &player).await.len() });
    }
    let found = reads.join_all().await;
    let missing = (0..READS).filter(|read| read % (PLAYERS + 8) >= PLAYERS).count();
    assert_eq!(found.iter().filter(|records| **records == NODES).count(), READS - missing);
    assert_eq!(found.iter().filter(|records| **records == 0).count(), missing);
    let start = Instant::now();
    let told = loop {
        match nats.get(0, "/varz") {
            Some(told) => break told,
            None => assert!(start.elapsed() < PATIENCE, "it tells nothing of itself"),
        }
    };
    assert!(told.contains("\"slow_consumers\": 0"), "{told}");
}

#[test]
fn a_check_of_a_cluster_names_replicas_that_are_gone() {
    let mut nats = Nats::start(3);
    let url = nats.url("ach");
    init(&url, "2", "3");
    let check = || accolade(&["engine", "check", "--store", &url]);
    let sound = check();
    assert!(sound.status.success(), "{}", text(&sound.stderr));
    nats.kill(2);
    let start = Instant::now();
    loop {
        let checked = check();
        let said = text(&checked.stderr);
        // Both partitions, and the stream of everything else; the others notice after a while.
        if said.lines().filter(|line| line.contains("\"n2\" is gone")).count() == 3 {
            assert!(!checked.status.success());
            assert!(text(&checked.stdout).contains("3 replicas are missing or behind"));
            break;
        }
        assert!(start.elapsed() < 2 * PATIENCE, "{said}");
    }
    nats.run(2);
    nats.wait_ready(2);
    while !check().status.success() {
        assert!(start.elapsed() < 2 * LONG_PATIENCE, "it is back");
    }
}

//! Starting and stopping.

use std::{
    io::Write,
    net::TcpStream,
    time::{Duration, Instant},
};

use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::support::{PATIENCE, Server, Watch, accolade, delta, get, set, text};

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
    let clock = std::sync::Arc::new(accolade::clock::SystemClock);
    drop(accolade::store::sled::SledStore::open(&data, 1 << 20, clock).unwrap());
    let server = Server::start(&data, &[]);
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
    let server = Server::start(&dir.path().join("data"), &["--drain-seconds-max", "20"]);
    let mut client = HealthClient::new(server.channel().await);
    let mut health = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status, 1, "SERVING");
    let start = Instant::now();
    server.terminate();
    assert_eq!(health.message().await.unwrap().unwrap().status, 2, "NOT_SERVING");
    assert!(!matches!(health.message().await, Ok(Some(_))), "the stream ends");
    assert!(server.wait().await.success());
    assert!(start.elapsed() < Duration::from_secs(10), "the drain time is not used up");
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
    // The drain time, and room for a machine that runs other tests beside this one.
    let limit = Duration::from_secs(6);
    assert!(start.elapsed() <= limit, "{:?}", start.elapsed());
}

/// Goal: whatever was answered while the server was stopping is there when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_under_load_loses_nothing_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data, &[]);
    server.apply("t", &[("n", 1_000_000)]).await;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let mut client = server.storage().await;
        tasks.spawn(async move {
            let mut acknowledged = 0;
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline {
                let request = delta("t", &writer.to_string(), "n", 1);
                match client.set_achievement_storage(request).await {
                    Ok(response) => acknowledged = response.into_inner().updated.unwrap().version,
                    Err(_) => break,
                }
            }
            acknowledged
        });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.terminate();
    assert!(server.wait().await.success());
    let mut acknowledged = Vec::new();
    while let Some(done) = tasks.join_next().await {
        acknowledged.push(done.unwrap());
    }
    let server = Server::start(&data, &[]);
    let mut client = server.storage().await;
    let mut stored = Vec::new();
    for writer in 0..4 {
        stored.push(get(&mut client, "t", &writer.to_string()).await[0].version);
    }
    acknowledged.sort_unstable();
    stored.sort_unstable();
    for (acknowledged, stored) in acknowledged.iter().zip(&stored) {
        assert!(stored >= acknowledged && *acknowledged > 0, "{acknowledged} {stored}");
    }
}

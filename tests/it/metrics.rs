//! What an operator's machines see.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Instant,
};

use accolade::proto::v1::set_achievement_storage_request::Change;

use crate::support::{PATIENCE, Server, Watch, delta, get, set};

#[tokio::test]
async fn metrics_count_what_happens() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &["--admin-listen=127.0.0.1:0"]);
    let mut storage = server.storage().await;
    let mut watch = Watch::after(&server, "demo", "").await;
    let mut request = delta("demo", "secret-player", "first_steps", 1);
    request.request_id = "r".to_owned();
    set(&mut storage, request.clone()).await;
    set(&mut storage, request.clone()).await;
    let stale = delta("demo", "secret-player", "first_steps", 1);
    set(&mut storage, {
        let mut it = stale;
        it.expected_version = Some(7);
        it
    })
    .await;
    let mut finish = delta("demo", "secret-player", "first_steps", 1);
    finish.change = Some(Change::Finish(true));
    set(&mut storage, finish.clone()).await;
    set(&mut storage, finish).await;
    watch.completion().await;
    get(&mut storage, "demo", "secret-player").await;
    storage
        .get_achievement_storage(accolade::proto::v1::GetAchievementStorageRequest::default())
        .await
        .unwrap_err();

    let sets = |outcome| server.metric(&format!("accolade_sets_total{{outcome=\"{outcome}\"}}"));
    let counted = ["stored", "unchanged", "conflict", "replayed"].map(sets);
    assert_eq!(counted, [2, 1, 1, 1]);
    let service = "accolade.v1.AchievementStorageService";
    let requests = |method, code| {
        let labels = format!("{{method=\"{service}/{method}\",code=\"{code}\"}}");
        server.metric(&format!("accolade_requests_total{labels}"))
    };
    assert_eq!(requests("SetAchievementStorage", "OK"), 5);
    assert_eq!(requests("GetAchievementStorage", "OK"), 1);
    assert_eq!(requests("GetAchievementStorage", "INVALID_ARGUMENT"), 1);
    assert_eq!(requests("BatchSetAchievementStorage", "OK"), 0);
    assert_eq!(server.metric("accolade_completions_total"), 1);
    assert_eq!(server.metric("accolade_subscribers"), 1);
    assert!(server.metric("accolade_connections") >= 2);
    assert!(server.metric("accolade_sync_seconds_count") >= 2);
    // Measured beside the requests.
    let start = Instant::now();
    for measured in ["accolade_feed_lag_seconds_count", "accolade_store_bytes"] {
        while server.metric(measured) == 0 {
            assert!(start.elapsed() < PATIENCE, "{measured} is 0");
        }
    }
    assert_eq!(server.metric("accolade_store_poisoned"), 0);
    let (_, text) = server.admin("/metrics");
    assert!(!text.contains("secret-player") && !text.contains("demo"), "no id is a label: {text}");
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn every_metric_stands_in_the_readme() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &["--admin-listen=127.0.0.1:0"]);
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));
    let (readme, (_, text)) = (readme.unwrap(), server.admin("/metrics"));
    let mut names = 0;
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let shown = format!("`{name}{suffix}`");
        assert!(readme.contains(&shown), "README does not explain {shown}");
        names += 1;
    }
    assert!(names > 10, "{names} metrics");
}

/// Requests under names from outside do not make new series.
#[tokio::test]
async fn labels_come_from_a_closed_set() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &["--admin-listen=127.0.0.1:0"]);
    let mut client = tonic::client::Grpc::new(server.channel().await);
    let series = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    let mut counts = Vec::new();
    for round in 0..2 {
        for n in 0..20 {
            client.ready().await.unwrap();
            let path = format!("/evil.{round}/Method{n}").parse().unwrap();
            let codec = tonic_prost::ProstCodec::<(), ()>::default();
            let answer = client.unary(tonic::Request::new(()), path, codec).await;
            assert_eq!(answer.unwrap_err().code(), tonic::Code::Unimplemented);
        }
        counts.push(series(&server.admin("/metrics").1));
    }
    assert_eq!(counts[0], counts[1]);
    let labels = "{method=\"unknown\",code=\"UNIMPLEMENTED\"}";
    assert_eq!(server.metric(&format!("accolade_requests_total{labels}")), 40);
}

#[tokio::test]
async fn probes_tell_alive_from_ready() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--admin-listen=127.0.0.1:0", "--drain-seconds-max=60"];
    let server = Server::start(&dir.path().join("data"), &args);
    for path in ["/livez", "/readyz"] {
        assert!(server.admin(path).0.contains("200"), "{path}");
    }
    assert!(server.admin("/").0.contains("404"));
    // Held open by a request that is waited for, and not complete.
    let mut slow = TcpStream::connect(&server.address).unwrap();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    let path = "/accolade.v1.AchievementStorageService/GetAchievementStorage";
    let head = "Host: x\r\nContent-Type: application/json\r\nContent-Length: 10";
    write!(slow, "POST {path} HTTP/1.1\r\n{head}\r\nExpect: 100-continue\r\n\r\n").unwrap();
    let mut go_on = [0; 12];
    slow.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100");
    server.terminate();
    let start = Instant::now();
    while !server.admin("/readyz").0.contains("503") {
        assert!(start.elapsed() < PATIENCE, "it is stopping");
    }
    assert!(server.admin("/livez").0.contains("200"));
    drop(slow);
    assert!(server.wait().await.success());
}

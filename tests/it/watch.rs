//! The feed's contract, over the wire.

use std::time::{Duration, Instant};

use accolade::proto::v1::{
    ListCompletionsRequest, WatchCompletionsRequest, watch_completions_response::Event,
};
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::{PATIENCE, Server, Watch, delta, reason, set};

struct Subject {
    server: Server,
    dir: tempfile::TempDir,
}

async fn subject(args: &[&str]) -> Subject {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), args);
    server.apply("t", &[("n", 1), ("m", 1)]).await;
    Subject { server, dir }
}

impl Subject {
    /// Completes node `n` for these players, in order.
    async fn complete(&self, players: impl IntoIterator<Item = String>) -> Vec<String> {
        let mut client = self.server.storage().await;
        let mut cursors = Vec::new();
        for player in players {
            cursors.push(set(&mut client, delta("t", &player, "n", 1)).await.cursor);
        }
        cursors
    }
}

fn request() -> WatchCompletionsRequest {
    let heartbeat_interval = Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 });
    WatchCompletionsRequest { title: "t".into(), heartbeat_interval, ..Default::default() }
}

#[tokio::test]
async fn a_watch_from_now_begins_now() {
    let subject = subject(&[]).await;
    let cursors = subject.complete(["before".to_owned()]).await;
    let mut watch = Watch::start(&subject.server, request()).await;
    let Event::Started(started) = watch.event().await.unwrap() else { panic!("started is first") };
    assert_eq!(started.cursor, cursors[0]);
    subject.complete(["after".to_owned()]).await;
    assert_eq!(watch.completion().await.player_id, "after");

    let mut all = Watch::after(&subject.server, "t", &started.oldest).await;
    assert_eq!(all.completion().await.player_id, "before");
}

#[tokio::test]
async fn a_quiet_watch_hears_heartbeats_that_move_past_what_its_filter_dropped() {
    let subject = subject(&[]).await;
    let filtered = WatchCompletionsRequest {
        after: Some(String::new()),
        player_ids: vec!["wanted".into()],
        achievement_ids: vec!["n".into()],
        ..request()
    };
    let mut watch = Watch::start(&subject.server, filtered).await;
    assert!(matches!(watch.event().await.unwrap(), Event::Started(_)));
    let cursors = subject.complete((0..5).map(|n| format!("p{n}"))).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        assert!(tokio::time::Instant::now() < deadline);
        let Event::Heartbeat(heartbeat) = watch.event().await.unwrap() else {
            panic!("nothing passes the filter")
        };
        if heartbeat.cursor == cursors[4] {
            break;
        }
    }
    let mut client = subject.server.storage().await;
    set(&mut client, delta("t", "wanted", "m", 1)).await;
    set(&mut client, delta("t", "wanted", "n", 1)).await;
    let completion = watch.completion().await;
    assert_eq!(
        (completion.player_id.as_str(), completion.achievement_id.as_str()),
        ("wanted", "n")
    );
}

#[tokio::test]
async fn pages_and_watches_tell_the_same_feed() {
    let subject = subject(&[]).await;
    let cursors = subject.complete((0..25).map(|n| format!("p{n}"))).await;
    let mut client = subject.server.completions().await;
    let mut request = ListCompletionsRequest {
        title: "t".into(),
        page_size: 10,
        ..ListCompletionsRequest::default()
    };
    let mut listed = Vec::new();
    for _ in 0..10 {
        let page = client.list_completions(request.clone()).await.unwrap().into_inner();
        listed.extend(page.completions.into_iter().map(|completion| completion.cursor));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            assert_eq!(page.cursor, cursors[24]);
            break;
        }
    }
    assert_eq!(listed, cursors);

    for start in [0, 7, 24] {
        let mut watch = Watch::after(&subject.server, "t", &cursors[start]).await;
        for cursor in &cursors[start + 1..] {
            assert_eq!(watch.completion().await.cursor, *cursor);
        }
    }
    let filtered = ListCompletionsRequest {
        title: "t".into(),
        after: cursors[3].clone(),
        player_ids: vec!["p2".into(), "p9".into()],
        ..ListCompletionsRequest::default()
    };
    let page = client.list_completions(filtered).await.unwrap().into_inner();
    assert_eq!(page.completions.len(), 1);
    assert_eq!(page.completions[0].player_id, "p9");
    assert_eq!((page.next_page_token.as_str(), &page.cursor), ("", &cursors[24]));
}

#[tokio::test]
async fn old_and_future_cursors_are_out_of_range_and_name_one_that_works() {
    let first = subject(&[]).await;
    let data = first.dir.path().join("data");
    let copy = first.dir.path().join("copy");
    first.complete(["a".to_owned()]).await;
    first.server.terminate();
    first.server.wait().await;
    copy_dir(&data, &copy);

    // The same store goes on, with retention; its copy stays behind.
    let server = Server::start(&data, &["--retention-count", "2"]);
    let on = Subject { server, dir: first.dir };
    let cursors = on.complete((0..5).map(|n| format!("p{n}"))).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let status = loop {
        let mut watch = Watch::after(&on.server, "t", &cursors[0]).await;
        if let Err(status) = watch.event().await {
            let oldest = status.get_details_error_info().unwrap().metadata["oldest"].clone();
            // Retention may have come by before all of them were there.
            if oldest == cursors[2] {
                break status;
            }
        }
        assert!(tokio::time::Instant::now() < deadline, "retention works");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::OutOfRange, "CURSOR_EXPIRED"));
    let oldest = &cursors[2];
    let mut watch = Watch::after(&on.server, "t", oldest).await;
    assert_eq!(watch.completion().await.cursor, cursors[3]);

    let behind = Server::start(&copy, &[]);
    let mut watch = Watch::after(&behind, "t", &cursors[4]).await;
    let status = watch.event().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::OutOfRange, "CURSOR_IN_FUTURE"));
    let list = ListCompletionsRequest {
        title: "t".into(),
        after: cursors[4].clone(),
        ..ListCompletionsRequest::default()
    };
    let status = behind.completions().await.list_completions(list).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[tokio::test]
async fn retention_by_age_forgets_what_is_old() {
    let subject = subject(&["--retention-seconds", "1"]).await;
    let cursors = subject.complete(["a".to_owned()]).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut watch = Watch::after(&subject.server, "t", "").await;
        let Event::Started(started) = watch.event().await.unwrap() else { panic!() };
        if started.oldest == cursors[0] {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Goal: a subscriber that stops reading harms neither writers nor other subscribers, and gets
/// everything when it reads again.
#[tokio::test]
async fn a_subscriber_that_stops_reading_harms_nobody() {
    let subject = subject(&[]).await;
    let ids: Vec<_> = (0..40).map(|n| format!("n{n}")).collect();
    let nodes: Vec<_> = ids.iter().map(|id| (id.as_str(), 1)).collect();
    subject.server.apply("big", &nodes).await;
    let mut stalled = Watch::after(&subject.server, "big", "").await;
    let mut reading = Watch::after(&subject.server, "big", "").await;
    let mut client = subject.server.storage().await;
    // Far more than the windows of a connection hold.
    let mut cursors = Vec::new();
    for player in 0..8 {
        for id in &ids {
            let request = accolade::proto::v1::SetAchievementStorageRequest {
                extra: Some("x".repeat(16_000)),
                expected_version: Some(0),
                ..delta("big", &player.to_string(), id, 1)
            };
            cursors.push(set(&mut client, request).await.cursor);
        }
    }
    for cursor in &cursors {
        assert_eq!(reading.completion().await.cursor, *cursor);
    }
    for cursor in &cursors {
        assert_eq!(stalled.completion().await.cursor, *cursor);
    }
}

/// Goal: a subscriber that is in the middle of a long feed learns that the server stops, too.
#[tokio::test]
async fn a_slow_watch_ends_with_a_cursor_as_well() {
    let args = ["--drain-seconds-max", "60", "--admin-listen", "127.0.0.1:0"];
    let subject = subject(&args).await;
    let ids: Vec<_> = (0..40).map(|n| format!("n{n}")).collect();
    let nodes: Vec<_> = ids.iter().map(|id| (id.as_str(), 1)).collect();
    subject.server.apply("big", &nodes).await;
    let mut client = subject.server.storage().await;
    for player in 0..5 {
        for id in &ids {
            let request = accolade::proto::v1::SetAchievementStorageRequest {
                extra: Some("x".repeat(16_000)),
                expected_version: Some(0),
                ..delta("big", &player.to_string(), id, 1)
            };
            set(&mut client, request).await;
        }
    }
    drop(client);
    let mut watch = Watch::after(&subject.server, "big", "").await;
    let mut last = watch.completion().await.cursor;
    tokio::time::sleep(Duration::from_millis(300)).await;
    subject.server.terminate();
    let start = Instant::now();
    while !subject.server.admin("/readyz").1.contains("stopping") {
        assert!(start.elapsed() < PATIENCE, "it does not stop");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut read = 1;
    let status = loop {
        match watch.event().await {
            Ok(Event::Completion(completion)) => {
                last = completion.cursor;
                read += 1;
            }
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert!(read < 200, "the stream ends before the feed does");
    assert_eq!(reason(&status), "DRAINING");
    assert_eq!(status.get_details_error_info().unwrap().metadata["cursor"], last);
    assert!(subject.server.wait().await.success());
}

#[tokio::test]
async fn watches_end_with_unavailable_and_a_cursor_when_the_server_stops() {
    let subject = subject(&[]).await;
    let cursors = subject.complete(["a".to_owned(), "b".to_owned()]).await;
    let mut watch = Watch::after(&subject.server, "t", "").await;
    watch.completion().await;
    watch.completion().await;
    subject.server.terminate();
    let status = loop {
        if let Err(status) = watch.event().await {
            break status;
        }
    };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "DRAINING"));
    assert_eq!(status.get_details_error_info().unwrap().metadata["cursor"], cursors[1]);
    assert!(subject.server.wait().await.success());
}

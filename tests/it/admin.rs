//! What operators do: take records back, erase players, and count who has completed what.

use accolade::proto::v1::{
    ErasePlayerRequest, ExportRecordsRequest, GetRarityRequest, GetRarityResponse,
    ListCompletionsRequest, ListCompletionsResponse, NodeRarity, RecordState,
    ResetAchievementRequest, ResetAchievementResponse, SetAchievementStorageRequest,
    SetAchievementStorageResponse, WatchCompletionsRequest, watch_completions_response::Event,
};
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::support::{PATIENCE, Server, Watch, delta, fields, get, reason, set};

/// A server with a title of two nodes.
pub async fn started() -> (Server, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    server.apply("t", &[("m", 3), ("n", 1)]).await;
    (server, dir)
}

/// The same data after a kill. A server reads all of it, and starts only where it is sound.
pub fn restarted(server: Server, dir: &TempDir) -> Server {
    server.kill();
    Server::start(&dir.path().join("data"), &[])
}

/// A request that takes a record back.
pub fn reset(player: &str, node: &str) -> ResetAchievementRequest {
    ResetAchievementRequest {
        title: "t".to_owned(),
        player_id: player.to_owned(),
        node_id: node.to_owned(),
        reason: "refunded".to_owned(),
        ..ResetAchievementRequest::default()
    }
}

pub async fn take_back(
    server: &Server,
    request: ResetAchievementRequest,
) -> ResetAchievementResponse {
    let answer = server.operator().await.reset_achievement(request).await;
    answer.expect("the reset is legal").into_inner()
}

/// Erases a player; how many records and events that removed.
pub async fn erase(server: &Server, player: &str) -> (i64, i64) {
    let request = ErasePlayerRequest { title: "t".to_owned(), player_id: player.to_owned() };
    let erased = server.operator().await.erase_player(request).await;
    let erased = erased.expect("the erasure is legal").into_inner();
    (erased.records, erased.events)
}

/// A set that reaches any target of this title.
pub async fn complete(server: &Server, player: &str, node: &str) -> SetAchievementStorageResponse {
    set(&mut server.storage().await, delta("t", player, node, 3)).await
}

/// Everything that a watch from the oldest is sent, in order; of some players, or of all.
pub async fn feed(server: &Server, title: &str, players: &[&str]) -> Vec<Event> {
    let now = WatchCompletionsRequest { title: title.to_owned(), ..Default::default() };
    let Event::Started(end) = Watch::start(server, now.clone()).await.event().await.unwrap() else {
        panic!("started is first")
    };
    let all = WatchCompletionsRequest {
        after: Some(String::new()),
        player_ids: players.iter().map(|player| (*player).to_owned()).collect(),
        heartbeat_interval: Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 }),
        ..now
    };
    let mut watch = Watch::start(server, all).await;
    let read = async {
        let mut events = Vec::new();
        loop {
            let event = watch.event().await.unwrap();
            let (cursor, is_entry) = match &event {
                Event::Started(started) => (&started.cursor, false),
                Event::Heartbeat(heartbeat) => (&heartbeat.cursor, false),
                Event::Completion(completion) => (&completion.cursor, true),
                Event::Reset(reset) => (&reset.cursor, true),
            };
            let is_last = *cursor == end.cursor;
            if is_entry {
                events.push(event);
            }
            if is_last {
                return events;
            }
        }
    };
    timeout(PATIENCE, read).await.expect("the feed ends")
}

/// The same in short: who, which node, what, and the record's version since.
async fn lines(server: &Server, players: &[&str]) -> Vec<String> {
    let line = |event: Event| match event {
        Event::Completion(it) => {
            format!("{} {} completed {}", it.player_id, it.achievement_id, it.version)
        }
        Event::Reset(it) => format!("{} {} reset {}", it.player_id, it.achievement_id, it.version),
        other => panic!("{other:?} has no place in a feed"),
    };
    feed(server, "t", players).await.into_iter().map(line).collect()
}

async fn listed(server: &Server, player: Option<&str>) -> ListCompletionsResponse {
    let player_ids = player.map(ToOwned::to_owned).into_iter().collect();
    let request = ListCompletionsRequest { title: "t".into(), player_ids, ..Default::default() };
    server.completions().await.list_completions(request).await.unwrap().into_inner()
}

/// So many players, and so many of them have completed "m" and "n".
async fn count(server: &Server, players: u32, completed: [u32; 2]) {
    let request = GetRarityRequest { title: "t".to_owned() };
    let counted = server.catalogs().await.get_rarity(request).await.unwrap().into_inner();
    let share = |completed: u32| match players {
        0 => 0.0,
        players => f64::from(completed) / f64::from(players),
    };
    let nodes = ["m", "n"].into_iter().zip(completed).map(|(node, completed)| NodeRarity {
        achievement_id: node.to_owned(),
        completed_players: completed.into(),
        share: share(completed),
    });
    let expected = GetRarityResponse { players: players.into(), nodes: nodes.collect() };
    assert_eq!(counted, expected);
}

#[tokio::test]
async fn a_reset_is_told_and_the_record_completes_again() {
    let (server, dir) = started().await;
    let first = SetAchievementStorageRequest { request_id: "s".into(), ..delta("t", "p", "n", 1) };
    let completed = set(&mut server.storage().await, first.clone()).await;
    let mut watch = Watch::after(&server, "t", &completed.cursor).await;
    let asked = ResetAchievementRequest {
        expected_version: Some(1),
        request_id: "r".into(),
        ..reset("p", "n")
    };
    let done = take_back(&server, asked.clone()).await;
    assert_eq!((done.code, done.message.as_str()), (0, "正常返回"));
    assert!(done.changed && !done.replayed);
    let before = done.entity.clone().unwrap();
    assert_eq!((before.progress, before.version), (1, 1));
    assert_eq!(before.completed_at, completed.updated.unwrap().completed_at);
    let after = RecordState { version: 2, ..RecordState::default() };
    assert_eq!(done.updated, Some(after), "back at its beginning, and the version goes on");

    let Event::Reset(heard) = watch.entry().await else { panic!("the reset is next") };
    assert_eq!((heard.player_id.as_str(), heard.achievement_id.as_str()), ("p", "n"));
    assert_eq!((&heard.cursor, heard.reason.as_str()), (&done.cursor, "refunded"));
    assert_eq!((heard.progress, heard.completed_at, heard.version), (1, before.completed_at, 2));
    assert!(heard.reset_at >= heard.completed_at);
    assert_eq!(listed(&server, None).await.resets, [heard]);

    let retried = take_back(&server, asked.clone()).await;
    assert!(retried.replayed && retried.changed);
    assert_eq!((&retried.cursor, &retried.updated), (&done.cursor, &done.updated));
    let retried = set(&mut server.storage().await, first).await;
    assert!(retried.replayed, "it was counted before, and is not counted again");
    assert!(!retried.newly_completed && retried.cursor.is_empty(), "the reset has taken it back");

    let again = complete(&server, "p", "n").await;
    assert!(again.newly_completed);
    let Event::Completion(heard) = watch.entry().await else { panic!("a completion is next") };
    assert_eq!((&heard.cursor, heard.version), (&again.cursor, 3));

    let server = restarted(server, &dir);
    let told = ["p n completed 1", "p n reset 2", "p n completed 3"];
    assert_eq!(lines(&server, &[]).await, told);
    let retried = take_back(&server, asked).await;
    assert!(retried.replayed);
    assert_eq!((&retried.cursor, &retried.updated), (&done.cursor, &done.updated));
    let record = get(&mut server.storage().await, "t", "p").await.remove(0);
    assert_eq!((record.progress, record.version), (1, 3));
    assert_ne!(record.completed_at, 0);
}

#[tokio::test]
async fn a_reset_that_conflicts_or_has_nothing_to_do_changes_nothing() {
    let (server, _dir) = started().await;
    complete(&server, "p", "n").await;
    let stale = ResetAchievementRequest { expected_version: Some(7), ..reset("p", "n") };
    let told = take_back(&server, stale).await;
    assert_eq!((told.code, told.message.as_str()), (5, "操作冲突"));
    assert_eq!((told.entity.unwrap().version, told.changed, told.cursor.as_str()), (1, false, ""));
    for (player, node) in [("nobody", "n"), ("p", "no such node")] {
        let told = take_back(&server, reset(player, node)).await;
        assert_eq!((told.code, told.changed, told.cursor.as_str()), (0, false, ""));
        assert_eq!(told.updated, Some(RecordState::default()), "{player} has no record of {node}");
    }
    assert_eq!(lines(&server, &[]).await, ["p n completed 1"]);

    assert!(take_back(&server, reset("p", "n")).await.changed);
    let told = take_back(&server, reset("p", "n")).await;
    assert_eq!((told.code, told.changed, told.updated.unwrap().version), (0, false, 2));
    assert_eq!(lines(&server, &[]).await, ["p n completed 1", "p n reset 2"]);
    // Whoever has read the record before conflicts.
    let stale =
        SetAchievementStorageRequest { expected_version: Some(1), ..delta("t", "p", "n", 1) };
    let told = set(&mut server.storage().await, stale).await;
    assert_eq!((told.code, told.entity.unwrap().version), (5, 2));
}

#[tokio::test]
async fn a_reset_takes_the_extra_too_and_needs_no_node_in_the_catalogue() {
    let (server, _dir) = started().await;
    let halfway = SetAchievementStorageRequest {
        extra: Some("red hat".into()),
        expected_version: Some(0),
        ..delta("t", "p", "m", 2)
    };
    set(&mut server.storage().await, halfway).await;
    server.apply("t", &[("n", 1)]).await;
    let told = take_back(&server, reset("p", "m")).await;
    let before = told.entity.unwrap();
    assert_eq!((before.extra.as_str(), before.progress, before.version), ("red hat", 2, 1));
    let heard = listed(&server, None).await.resets.remove(0);
    assert_eq!((heard.progress, heard.completed_at, heard.version), (2, 0, 2));
    server.apply("t", &[("m", 3), ("n", 1)]).await;
    let record = get(&mut server.storage().await, "t", "p").await.remove(0);
    assert_eq!((record.extra.as_str(), record.progress, record.version), ("", 0, 2));
}

#[tokio::test]
async fn a_filter_for_another_player_hears_no_reset() {
    let (server, _dir) = started().await;
    complete(&server, "p", "n").await;
    let of_q = WatchCompletionsRequest {
        title: "t".into(),
        player_ids: vec!["q".into()],
        ..Default::default()
    };
    let mut watch = Watch::start(&server, of_q).await;
    assert!(matches!(watch.event().await.unwrap(), Event::Started(_)));
    take_back(&server, reset("p", "n")).await;
    complete(&server, "q", "n").await;
    let Event::Completion(heard) = watch.entry().await else { panic!("a reset of p is heard") };
    assert_eq!(heard.player_id, "q");
    assert_eq!(lines(&server, &["q"]).await, ["q n completed 1"]);
    assert_eq!(lines(&server, &["p"]).await, ["p n completed 1", "p n reset 2"]);
    assert!(listed(&server, Some("q")).await.resets.is_empty());
    assert_eq!(listed(&server, Some("p")).await.resets.len(), 1);
}

#[tokio::test]
async fn a_record_with_64_events_behind_it_is_reset_no_more_until_its_player_is_erased() {
    let (server, _dir) = started().await;
    for _ in 0..32 {
        complete(&server, "p", "n").await;
        assert!(take_back(&server, reset("p", "n")).await.changed);
    }
    complete(&server, "p", "n").await;
    let refused = server.operator().await.reset_achievement(reset("p", "n")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(reason(&refused), "RESETS_EXHAUSTED");
    assert_eq!(get(&mut server.storage().await, "t", "p").await[0].version, 65, "it stays");
    assert_eq!(erase(&server, "p").await, (1, 65));
    complete(&server, "p", "n").await;
    assert_eq!(take_back(&server, reset("p", "n")).await.updated.unwrap().version, 2);
}

/// Nothing of `p` is told, and whoever stands at one of these cursors hears of `b` next.
async fn p_is_gone(server: &Server, cursors: &[String]) {
    assert_eq!(lines(server, &[]).await, ["a n completed 1", "b n completed 1"]);
    assert!(lines(server, &["p"]).await.is_empty());
    assert!(get(&mut server.storage().await, "t", "p").await.is_empty());
    let page = listed(server, None).await;
    assert_eq!((page.completions.len(), page.resets.len()), (2, 0));
    for cursor in cursors {
        let mut watch = Watch::after(server, "t", cursor).await;
        assert_eq!(watch.completion().await.player_id, "b");
    }
}

#[tokio::test]
async fn an_erased_player_is_gone_and_all_others_stay() {
    let (server, dir) = started().await;
    let first = SetAchievementStorageRequest { request_id: "s".into(), ..delta("t", "p", "n", 1) };
    let cursors = [
        complete(&server, "a", "n").await.cursor,
        set(&mut server.storage().await, first.clone()).await.cursor,
        complete(&server, "p", "m").await.cursor,
        take_back(&server, reset("p", "n")).await.cursor,
    ];
    complete(&server, "b", "n").await;
    complete(&server, "p", "n").await;
    let mut watch = Watch::after(&server, "t", &cursors[3]).await;
    assert_eq!(watch.completion().await.player_id, "b");

    assert_eq!(erase(&server, "p").await, (2, 4));
    p_is_gone(&server, &cursors).await;
    let server = restarted(server, &dir);
    p_is_gone(&server, &cursors).await;
    assert_eq!(erase(&server, "p").await, (0, 0));
    assert_eq!(erase(&server, "nobody").await, (0, 0));

    let anew = set(&mut server.storage().await, first).await;
    assert!(!anew.replayed && anew.newly_completed, "no request id of before is known");
    assert_eq!(anew.updated.unwrap().version, 1);
    let told = ["a n completed 1", "b n completed 1", "p n completed 1"];
    assert_eq!(lines(&server, &[]).await, told);
}

/// Goal: steps of an erasure leave nothing between them.
#[tokio::test]
async fn a_player_of_many_records_goes_whole() {
    let (server, dir) = started().await;
    let nodes: Vec<_> = (0..70).map(|n| format!("n{n}")).collect();
    let all: Vec<_> = nodes.iter().map(|node| (node.as_str(), 1)).collect();
    server.apply("t", &all).await;
    let mut client = server.storage().await;
    for node in &nodes {
        assert!(set(&mut client, delta("t", "p", node, 1)).await.newly_completed);
    }
    assert_eq!(erase(&server, "p").await, (70, 70));
    let server = restarted(server, &dir);
    assert!(get(&mut server.storage().await, "t", "p").await.is_empty());
    assert!(lines(&server, &[]).await.is_empty());
    server.apply("t", &[("m", 3), ("n", 1)]).await;
    count(&server, 0, [0, 0]).await;
}

#[tokio::test]
async fn rarity_counts_exactly() {
    let (server, dir) = started().await;
    count(&server, 0, [0, 0]).await;
    let mut client = server.storage().await;
    for (player, node) in [("a", "n"), ("b", "n"), ("d", "m")] {
        complete(&server, player, node).await;
    }
    set(&mut client, delta("t", "c", "m", 1)).await;
    count(&server, 4, [1, 2]).await;
    complete(&server, "a", "n").await;
    count(&server, 4, [1, 2]).await;
    take_back(&server, reset("a", "n")).await;
    count(&server, 4, [1, 1]).await;
    complete(&server, "b", "m").await;
    count(&server, 4, [2, 1]).await;
    erase(&server, "b").await;
    count(&server, 3, [1, 0]).await;
    erase(&server, "c").await;
    count(&server, 2, [1, 0]).await;

    let server = restarted(server, &dir);
    count(&server, 2, [1, 0]).await;
    complete(&server, "a", "n").await;
    complete(&server, "b", "n").await;
    count(&server, 3, [1, 2]).await;
    // Players of a node that left the catalogue are players, and it comes back as it was.
    server.apply("t", &[("other", 1)]).await;
    let request = GetRarityRequest { title: "t".to_owned() };
    let counted = server.catalogs().await.get_rarity(request).await.unwrap().into_inner();
    assert_eq!((counted.players, counted.nodes[0].completed_players), (3, 0));
    server.apply("t", &[("m", 3), ("n", 1)]).await;
    count(&server, 3, [1, 2]).await;
}

#[tokio::test]
async fn what_an_operator_says_wrong_is_told() {
    let (server, _dir) = started().await;
    let (mut operator, mut catalogs) = (server.operator().await, server.catalogs().await);
    let wrong = |status: Status| {
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        fields(&status)
    };
    let mistakes = ResetAchievementRequest {
        title: String::new(),
        player_id: "p\n".into(),
        node_id: String::new(),
        reason: String::new(),
        expected_version: Some(-1),
        request_id: "x".repeat(129),
    };
    let refused = operator.reset_achievement(mistakes).await.unwrap_err();
    let named = ["title", "player_id", "node_id", "reason", "expected_version", "request_id"];
    assert_eq!(wrong(refused), named);
    for reason in ["two\nlines".to_owned(), "x".repeat(257)] {
        let mistake = ResetAchievementRequest { reason, ..reset("p", "n") };
        assert_eq!(wrong(operator.reset_achievement(mistake).await.unwrap_err()), ["reason"]);
    }
    let refused = operator.erase_player(ErasePlayerRequest::default()).await.unwrap_err();
    assert_eq!(wrong(refused), ["title", "player_id"]);
    let refused = catalogs.get_rarity(GetRarityRequest::default()).await.unwrap_err();
    assert_eq!(wrong(refused), ["title"]);

    let (title, player_id) = ("u".to_owned(), "p".to_owned());
    let unknown = ResetAchievementRequest { title: title.clone(), ..reset("p", "n") };
    let erasure = ErasePlayerRequest { title: title.clone(), player_id };
    let export = ExportRecordsRequest { title: title.clone(), after: String::new() };
    let refusals = [
        operator.reset_achievement(unknown).await.err(),
        operator.erase_player(erasure).await.err(),
        operator.export_records(export).await.err(),
        catalogs.get_rarity(GetRarityRequest { title }).await.err(),
    ];
    for refused in refusals {
        let refused = refused.expect("nobody knows this title");
        assert_eq!(refused.code(), Code::NotFound);
        assert_eq!(reason(&refused), "TITLE_NOT_FOUND");
    }
}

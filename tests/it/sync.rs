//! Late updates: what a game server wrote down while it was cut off, brought once it is back.

use accolade::{
    clock::{Clock, SystemClock},
    proto::v1::{
        LateUpdate, ListCompletionsRequest, SetAchievementStorageRequest,
        SetAchievementStorageResponse, SyncAchievementStorageRequest, late_outcome::Outcome,
        late_update::Change,
    },
};
use futures_util::future::join_all;
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::{
    admin::{reset, restarted, take_back},
    support::{Server, as_status, delta, fields, get, reason, set},
};

/// A server with a title of three nodes.
async fn started() -> (Server, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    server.apply("t", &[("count", 1000), ("m", 3), ("n", 1)]).await;
    (server, dir)
}

/// Seconds since the Unix epoch.
pub fn now() -> i64 {
    i64::try_from(SystemClock.now().get()).unwrap()
}

/// An update that happened at some time.
pub fn late(player: &str, node: &str, change: Change, id: &str, happened_at: i64) -> LateUpdate {
    LateUpdate {
        player_id: player.to_owned(),
        node_id: node.to_owned(),
        change: Some(change),
        request_id: id.to_owned(),
        happened_at,
    }
}

async fn try_sync(server: &Server, updates: &[LateUpdate]) -> Result<Vec<Outcome>, Status> {
    let (title, updates) = ("t".to_owned(), updates.to_vec());
    let ids: Vec<_> = updates.iter().map(|update| update.request_id.clone()).collect();
    let request = SyncAchievementStorageRequest { title, updates };
    let answer = server.storage().await.sync_achievement_storage(request).await?;
    let outcomes = answer.into_inner().outcomes;
    assert!(outcomes.iter().map(|outcome| &outcome.request_id).eq(&ids), "in their order");
    Ok(outcomes.into_iter().map(|outcome| outcome.outcome.expect("one is set")).collect())
}

/// Brings updates of which none is refused.
pub async fn sync(server: &Server, updates: &[LateUpdate]) -> Vec<SetAchievementStorageResponse> {
    let outcomes = try_sync(server, updates).await.expect("the updates are legal");
    let responses = outcomes.into_iter().map(|outcome| match outcome {
        Outcome::Response(response) => response,
        Outcome::Status(status) => panic!("refused: {status:?}"),
    });
    responses.collect()
}

/// Why an update was refused, if it was.
fn refusal(outcome: &Outcome) -> Option<(Code, String)> {
    match outcome {
        Outcome::Response(_) => None,
        Outcome::Status(status) => {
            let status = as_status(status);
            Some((status.code(), reason(&status)))
        }
    }
}

/// Sends all updates in an order of its own, some of them twice; tells how many were no repeats.
async fn shuffled(server: &Server, updates: &[LateUpdate], seed: u64) -> usize {
    let mut sent = updates.to_vec();
    sent.extend_from_within(..10);
    fastrand::Rng::with_seed(seed).shuffle(&mut sent);
    let mut counted = 0;
    for part in sent.chunks(16) {
        counted += sync(server, part).await.iter().filter(|told| !told.replayed).count();
    }
    counted
}

/// Goal: what several game servers bring at once, in any order, and once more after a crash, is
/// counted once.
#[tokio::test]
async fn late_updates_count_once_whatever_their_order_and_repeats() {
    let (server, dir) = started().await;
    let at = now() - 1000;
    let updates: Vec<_> =
        (1..=40).map(|n| late("p", "count", Change::Delta(n), &format!("id{n}"), at + n)).collect();
    let counted = join_all((0..3).map(|seed| shuffled(&server, &updates, seed))).await;
    assert_eq!(counted.iter().sum::<usize>(), 40);
    let server = restarted(server, &dir);
    assert_eq!(shuffled(&server, &updates, 3).await, 0, "a crash forgets none");
    let record = get(&mut server.storage().await, "t", "p").await.remove(0);
    assert_eq!((record.progress, record.version), (820, 40), "1 + 2 + … + 40");
}

#[tokio::test]
async fn a_late_update_completes_at_its_own_time_and_at_the_end_of_the_feed() {
    let (server, _dir) = started().await;
    let live = set(&mut server.storage().await, delta("t", "live", "n", 1)).await;
    let live = live.updated.unwrap().completed_at;
    let start = now();
    let told = sync(
        &server,
        &[
            late("p", "m", Change::Delta(2), "a", start - 100),
            late("p", "m", Change::AtLeast(3), "b", start - 500),
            late("q", "n", Change::Finish(true), "c", start + 5000),
        ],
    )
    .await;
    assert_eq!([&told[0], &told[1], &told[2]].map(|it| it.newly_completed), [false, true, true]);
    let completed = told[1].updated.clone().unwrap();
    assert_eq!((completed.completed_at, completed.progress), (start - 500, 3));
    let ahead = told[2].updated.clone().unwrap().completed_at;
    assert!((start..=now()).contains(&ahead), "a time in the future counts as now: {ahead}");

    let request = ListCompletionsRequest { title: "t".into(), ..Default::default() };
    let page = server.completions().await.list_completions(request).await.unwrap().into_inner();
    let found = page.completions.iter().map(|it| (it.player_id.as_str(), it.completed_at));
    let expected = [("live", live), ("p", start - 500), ("q", ahead)];
    assert_eq!(found.collect::<Vec<_>>(), expected);
    assert_eq!(page.completions[1].cursor, told[1].cursor);
    assert_eq!(page.completions[2].cursor, told[2].cursor);
}

#[tokio::test]
async fn what_is_refused_is_told_for_itself_and_the_others_are_stored() {
    const DAY: i64 = 24 * 3600;
    let (server, _dir) = started().await;
    let at = now();
    let updates = [
        late("p", "count", Change::Delta(1), "a", at - 1),
        late("p", "count", Change::Delta(10), "old", at - 30 * DAY - 60),
        late("p", "no such node", Change::Delta(1), "b", at - 1),
        late("p", "count", Change::Delta(100), "young", at - 30 * DAY + 3600),
    ];
    let too_late = Some((Code::FailedPrecondition, "UPDATE_TOO_LATE".to_owned()));
    let not_found = Some((Code::NotFound, "NODE_NOT_FOUND".to_owned()));
    for _ in 0..2 {
        let outcomes = try_sync(&server, &updates).await.unwrap();
        let refusals: Vec<_> = outcomes.iter().map(refusal).collect();
        assert_eq!(refusals, [None, too_late.clone(), not_found.clone(), None]);
    }
    let record = get(&mut server.storage().await, "t", "p").await.remove(0);
    assert_eq!((record.progress, record.version), (101, 2));
}

#[tokio::test]
async fn what_a_late_update_says_wrong_is_told_and_nothing_of_the_request_is_stored() {
    let (server, _dir) = started().await;
    let sound = late("p", "count", Change::Delta(1), "a", now());
    let refused = async |updates: &[LateUpdate]| {
        let status = try_sync(&server, updates).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        fields(&status)
    };
    let empty = LateUpdate { player_id: "p".into(), node_id: "n".into(), ..Default::default() };
    let named = ["updates[1].request_id", "updates[1].happened_at", "updates[1].change"];
    assert_eq!(refused(&[sound.clone(), empty]).await, named);
    let with = |change| LateUpdate { change: Some(change), ..sound.clone() };
    for (wrong, field) in [
        (LateUpdate { player_id: String::new(), ..sound.clone() }, "player_id"),
        (LateUpdate { node_id: "\n".into(), ..sound.clone() }, "node_id"),
        (LateUpdate { request_id: "x".repeat(129), ..sound.clone() }, "request_id"),
        (LateUpdate { happened_at: -1, ..sound.clone() }, "happened_at"),
        (with(Change::Delta(0)), "delta"),
        (with(Change::AtLeast(-1)), "at_least"),
        (with(Change::Finish(false)), "finish"),
    ] {
        assert_eq!(refused(&[sound.clone(), wrong]).await, [format!("updates[1].{field}")]);
    }
    assert_eq!(refused(&[]).await, ["updates"]);
    assert_eq!(refused(&vec![sound.clone(); 257]).await, ["updates"]);
    assert!(get(&mut server.storage().await, "t", "p").await.is_empty());

    let request = SyncAchievementStorageRequest { title: "u".into(), updates: vec![sound] };
    let unknown = server.storage().await.sync_achievement_storage(request).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "TITLE_NOT_FOUND"));
}

#[tokio::test]
async fn what_happened_before_a_reset_stays_undone() {
    let (server, _dir) = started().await;
    let at = now();
    let finish = |id, at| late("p", "n", Change::Finish(true), id, at);
    let first = finish("a", at - 10);
    assert!(sync(&server, std::slice::from_ref(&first)).await[0].newly_completed);
    assert!(take_back(&server, reset("p", "n")).await.changed);
    let told = sync(&server, &[finish("b", at - 5), first.clone()]).await;
    assert!(!told[0].changed && !told[0].replayed, "it was not known when the operator decided");
    assert!(told[1].replayed && !told[1].newly_completed);
    // A clock that is ahead is later than the reset for sure.
    let told = sync(&server, &[finish("c", at + 5000), first]).await;
    assert!(told[0].newly_completed && told[1].replayed);
    assert_eq!(get(&mut server.storage().await, "t", "p").await[0].version, 3);
}

#[tokio::test]
async fn a_record_takes_128_late_updates_in_30_days() {
    let (server, _dir) = started().await;
    let at = now() - 1000;
    let updates: Vec<_> =
        (0..129).map(|n| late("p", "count", Change::Delta(1), &format!("id{n}"), at + n)).collect();
    let outcomes = try_sync(&server, &updates).await.unwrap();
    assert!(outcomes[..128].iter().all(|outcome| refusal(outcome).is_none()));
    let exhausted = Some((Code::ResourceExhausted, "LATE_UPDATES_EXHAUSTED".to_owned()));
    assert_eq!(refusal(&outcomes[128]), exhausted);
    assert!(sync(&server, &updates[..128]).await.iter().all(|told| told.replayed));
    let told = set(&mut server.storage().await, delta("t", "p", "count", 1)).await;
    assert_eq!(told.updated.unwrap().progress, 129, "sets go on");
}

/// Goal: what was stored is answered, however long the texts beside it are.
#[tokio::test]
async fn records_with_long_texts_are_answered_without_them() {
    let (server, _dir) = started().await;
    let mut client = server.storage().await;
    let mut updates = Vec::new();
    for n in 0..256 {
        let player = format!("p{n}");
        let with_text = SetAchievementStorageRequest {
            extra: Some("x".repeat(16_000)),
            expected_version: Some(0),
            ..delta("t", &player, "count", 1)
        };
        set(&mut client, with_text).await;
        updates.push(late(&player, "count", Change::Delta(2), "id", now() - 5));
    }
    let told = sync(&server, &updates).await;
    assert!(told.iter().all(|told| told.changed && told.updated.as_ref().unwrap().progress == 3));
    assert!(told.iter().all(|told| told.updated.as_ref().unwrap().extra.is_empty()));
    let kept = get(&mut client, "t", "p7").await;
    assert_eq!(kept[0].extra.len(), 16_000, "it is left out of the answer only");
}

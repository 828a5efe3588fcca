//! The seed's own story: two rooms hold one player, and one of them is behind.

use accolade::proto::v1::{
    RecordState, SetAchievementStorageRequest, set_achievement_storage_request::Change,
};

use crate::support::{Server, Watch, delta, get, set};

fn with_extra(delta_by: i64, extra: &str, version: i64, id: &str) -> SetAchievementStorageRequest {
    SetAchievementStorageRequest {
        extra: Some(extra.to_owned()),
        expected_version: Some(version),
        request_id: id.to_owned(),
        ..delta("demo", "10001", "hunter_of_beasts", delta_by)
    }
}

#[tokio::test]
async fn two_rooms_one_player_one_completion() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data, &[]);
    let (mut room_a, mut room_b) = (server.storage().await, server.storage().await);

    // A subscriber learns where the feed stands, and goes away.
    let mut watch = Watch::after(&server, "demo", "").await;
    set(&mut room_a, delta("demo", "10002", "adventure", 1)).await;
    let seen = watch.completion().await;
    assert_eq!(seen.player_id, "10002");
    drop(watch);

    // Both rooms read version 0. Room B reports three cows.
    assert!(get(&mut room_a, "demo", "10001").await.is_empty());
    let stored = set(&mut room_b, with_extra(3, r#"{"cow":3,"sheep":0}"#, 0, "b1")).await;
    assert_eq!((stored.code, stored.message.as_str()), (0, "正常返回"));
    assert_eq!(stored.updated.unwrap().version, 1);

    // Room A, which saw one cow, still believes in version 0.
    let refused = set(&mut room_a, with_extra(1, r#"{"cow":1,"sheep":0}"#, 0, "a1")).await;
    assert_eq!((refused.code, refused.message.as_str()), (5, "操作冲突"));
    let entity = refused.entity.unwrap();
    let expected = RecordState {
        completed_at: 0,
        extra: r#"{"cow":3,"sheep":0}"#.to_owned(),
        progress: 3,
        version: 1,
    };
    assert_eq!(entity, expected, "the record now stored");

    // It merges, and completes with three sheep; the answer is lost, so it asks again.
    let merged = with_extra(3, r#"{"cow":3,"sheep":3}"#, entity.version, "a2");
    let done = set(&mut room_a, merged.clone()).await;
    assert!(done.newly_completed && done.changed && !done.replayed);
    let again = set(&mut room_a, merged).await;
    assert!(again.replayed && again.newly_completed);
    assert_eq!((again.cursor, again.updated), (done.cursor.clone(), done.updated));
    let late = set(&mut room_b, delta("demo", "10001", "hunter_of_beasts", 1)).await;
    assert_eq!((late.code, late.changed), (0, false));

    // The server is killed; the subscriber comes back, and sees the completion exactly once.
    server.kill();
    let server = Server::start(&data, &[]);
    let mut watch = Watch::after(&server, "demo", &seen.cursor).await;
    let completion = watch.completion().await;
    assert_eq!(completion.player_id, "10001");
    assert_eq!(completion.achievement_id, "hunter_of_beasts");
    assert_eq!((completion.root_id.as_str(), completion.parent_id.as_str()), ("combat", "combat"));
    assert_eq!(completion.display_name, "混合猎手");
    assert_eq!((completion.progress, completion.max_progress, completion.version), (6, 6, 2));
    assert_eq!(completion.extra, r#"{"cow":3,"sheep":3}"#);
    assert_eq!(completion.cursor, done.cursor);
    let mut room_a = server.storage().await;
    set(&mut room_a, delta("demo", "10003", "adventure", 1)).await;
    assert_eq!(watch.completion().await.player_id, "10003", "nothing came twice");
    assert_ne!(completion.completed_at, 0);
}

#[tokio::test]
async fn finish_and_at_least_say_what_they_mean() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let mut client = server.storage().await;
    let at_least = |value| SetAchievementStorageRequest {
        change: Some(Change::AtLeast(value)),
        ..delta("demo", "1", "explorer", 0)
    };
    assert_eq!(set(&mut client, at_least(4)).await.updated.unwrap().progress, 4);
    assert!(!set(&mut client, at_least(3)).await.changed);
    let finish = SetAchievementStorageRequest { change: Some(Change::Finish(true)), ..at_least(0) };
    let done = set(&mut client, finish).await;
    assert!(done.newly_completed);
    assert_eq!(done.updated.unwrap().progress, 10);
    assert_eq!(done.entity.unwrap().progress, 4, "the record before");
}

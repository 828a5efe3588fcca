//! Titles that move from a folder to a cluster, and back.

use std::{collections::BTreeMap, path::Path, time::Instant};

use accolade::proto::v1::{
    ExportedRecord, GetRarityRequest, ListSubscriptionsRequest, exported_event, title_item::Item,
};
use tempfile::TempDir;
use tonic::Code;

use crate::{
    admin::{reset, started, take_back},
    cluster::init,
    support::{PATIENCE, Server, accolade, delta, get, nats::Nats, set, text},
    sync::sync,
    transfer::{complete_many, exported, fill, late_ones, refund, with_hat},
};

/// What a title has, but for the places that each store has of its own.
#[derive(Debug, Default, PartialEq)]
struct Contents {
    records: BTreeMap<(String, String), ExportedRecord>,
    /// What happened to each player, in its order: node, version, and whether it was a reset.
    events: BTreeMap<String, Vec<(String, i64, bool)>>,
}

async fn contents(server: &Server) -> Contents {
    let mut contents = Contents::default();
    for item in exported(server, "t", "").await.unwrap() {
        match item {
            Item::Record(mut it) => {
                it.past.iter_mut().for_each(|event| event.position = 0);
                it.completion_position = 0;
                contents.records.insert((it.player_id.clone(), it.achievement_id.clone()), it);
            }
            Item::Event(event) => {
                let (player, told) = match event.event.unwrap() {
                    exported_event::Event::Completion(it) => {
                        (it.player_id, (it.achievement_id, it.version, false))
                    }
                    exported_event::Event::Reset(it) => {
                        (it.player_id, (it.achievement_id, it.version, true))
                    }
                    // Its place is kept by stores that number events.
                    exported_event::Event::Erased(_) => continue,
                };
                contents.events.entry(player).or_default().push(told);
            }
            _ => {}
        }
    }
    contents
}

fn run(args: &[&str]) -> String {
    let done = accolade(args);
    assert!(done.status.success(), "{}", text(&done.stderr));
    text(&done.stdout)
}

/// `accolade export` from one server, `accolade import` into another; tells what both said.
fn moved(from: &Server, to: &Server, file: &Path) -> String {
    let file = file.to_str().unwrap();
    run(&["export", "--server", &from.url(), "t", file]);
    run(&["import", "--server", &to.url(), "t", file])
}

/// Events behind the one subscription.
async fn lag(server: &Server) -> i64 {
    let list = ListSubscriptionsRequest { title: "t".into() };
    let listed = server.completions().await.list_subscriptions(list).await.unwrap().into_inner();
    let [subscription] = &listed.subscriptions[..] else { panic!("{listed:?}") };
    assert_eq!(subscription.name, "rewards");
    subscription.lag
}

async fn moves_to_a_cluster_and_back(partitions: &str) {
    let (source, _source_dir) = started().await;
    fill(&source).await;
    complete_many(&source, 700).await;
    let expected = contents(&source).await;

    let nats = Nats::start(1);
    let url = nats.url("ach");
    init(&url, partitions, "1");
    let dir = TempDir::new().unwrap();
    let start = |name: &str| Server::start_on(&url, &dir.path().join(name), &[]);
    let (a, b) = (start("a.log"), start("b.log"));
    moved(&source, &a, &dir.path().join("there.jsonl"));
    let heard = Instant::now();
    while exported(&b, "t", "").await.is_err_and(|refused| refused.code() == Code::NotFound) {
        assert!(heard.elapsed() < PATIENCE, "it has not heard of the title");
    }
    assert_eq!(contents(&b).await, expected, "on {partitions} partitions");
    // Those of the player who was erased count in the source alone.
    let behind = lag(&a).await;
    assert_eq!(behind, lag(&source).await - 2);
    // Again: everything is there.
    let again = run(&[
        "import",
        "--server",
        &b.url(),
        "t",
        dir.path().join("there.jsonl").to_str().unwrap(),
    ]);
    assert!(again.contains(": 0 stored"), "{again}");
    assert_eq!(contents(&a).await, expected);

    let back_dir = TempDir::new().unwrap();
    let back = Server::start(&back_dir.path().join("data"), &[]);
    moved(&b, &back, &dir.path().join("back.jsonl"));
    assert_eq!(contents(&back).await, expected, "back from {partitions} partitions");
    let told_again = lag(&back).await;
    match partitions {
        "1" => assert_eq!(told_again, behind),
        // Partitions have no common order: some may be told again, none is left out.
        _ => assert!((behind..=expected_events(&expected)).contains(&told_again)),
    }

    for server in [&a, &back] {
        let rarity = GetRarityRequest { title: "t".into() };
        let rarity = server.catalogs().await.get_rarity(rarity.clone()).await.unwrap();
        let of_source = GetRarityRequest { title: "t".into() };
        let of_source = source.catalogs().await.get_rarity(of_source).await.unwrap();
        assert_eq!(rarity.into_inner(), of_source.into_inner());
        // What was sent before the move is recognised behind it.
        assert!(set(&mut server.storage().await, with_hat()).await.replayed);
        assert!(take_back(server, refund()).await.replayed);
        assert!(sync(server, &late_ones()).await.iter().all(|told| told.replayed));
        // And a record goes on where it was.
        let done = take_back(server, reset("b", "n")).await;
        assert_eq!(done.updated.unwrap().version, 2);
        assert_eq!(get(&mut server.storage().await, "t", "b").await[0].version, 2);
    }
}

/// A backup of a cluster is one of all its titles, and makes a folder.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_cluster_becomes_a_folder() {
    let (source, _source_dir) = started().await;
    fill(&source).await;
    let expected = contents(&source).await;
    let nats = Nats::start(1);
    let url = nats.url("ach");
    init(&url, "4", "1");
    let dir = TempDir::new().unwrap();
    let server = Server::start_on(&url, &dir.path().join("a.log"), &[]);
    moved(&source, &server, &dir.path().join("there.jsonl"));
    server.apply("u", &[("x", 5)]).await;
    set(&mut server.storage().await, delta("u", "p", "x", 2)).await;

    let (file, folder) = (dir.path().join("all.backup"), dir.path().join("restored"));
    run(&["backup", "--server", &server.url(), file.to_str().unwrap()]);
    let told = run(&["restore", file.to_str().unwrap(), folder.to_str().unwrap()]);
    assert!(told.starts_with("restored 2 titles"), "{told}");
    let restored = Server::start(&folder, &[]);
    assert_eq!(contents(&restored).await, expected);
    assert_eq!(get(&mut restored.storage().await, "u", "p").await[0].progress, 2);
    assert!(set(&mut restored.storage().await, with_hat()).await.replayed);
}

fn expected_events(contents: &Contents) -> i64 {
    contents.events.values().map(Vec::len).sum::<usize>().try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_title_moves_to_a_cluster_of_one_partition_and_back() {
    moves_to_a_cluster_and_back("1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_title_moves_to_a_cluster_of_several_partitions_and_back() {
    moves_to_a_cluster_and_back("4").await;
}

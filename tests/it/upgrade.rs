//! Data folders of every format that was ever released open in this version, with everything that
//! they hold.
//!
//! A fixture is such a folder and `contents.json`, all that can be read from it. To add one of this
//! version, pass a new folder in `ACCOLADE_FIXTURE` to the test
//! `a_folder_that_is_filled_now_holds_what_a_fixture_holds`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use accolade::proto::{
    DESCRIPTORS,
    v1::{
        ApplyCatalogRequest, BatchSetAchievementStorageRequest, Completion, Definition,
        GetCatalogRequest, ListCompletionsRequest, ListTitlesRequest, NodeUpdate,
        SetAchievementStorageRequest, node_update::Change, watch_completions_response::Event,
    },
};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::{Map, Value, json};

use crate::support::{PATIENCE, Server, Watch, accolade, delta, get, set, text};

/// A title with a catalogue of its own, in the fixture that this file fills.
const TITLE: &str = "游戏/1";

/// A player whose ten updates have ids, of which the last eight are remembered.
const BUSY: &str = "../../busy";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Lays the fixture out as a data folder.
fn lay_out(fixture: &Path, data: &Path) {
    let store = data.join("store");
    fs::create_dir_all(store.join("blobs")).unwrap();
    for entry in fs::read_dir(fixture).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        match name.to_str().unwrap() {
            "README.md" | "contents.json" => {}
            "mark" => drop(fs::copy(&path, data.join(name)).unwrap()),
            _ => drop(fs::copy(&path, store.join(name)).unwrap()),
        }
    }
    // The zeroes at its end are left out.
    fs::File::options().write(true).open(store.join("db")).unwrap().set_len(8_388_607).unwrap();
}

/// A message of the API in protobuf's own JSON; fields that are not set are left out, so that those
/// which later versions add make no difference.
fn to_json(name: &str, message: &impl Message) -> Value {
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let descriptor = pool.get_message_by_name(&format!("accolade.v1.{name}")).unwrap();
    let message = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).unwrap();
    let options = SerializeOptions::new().use_proto_field_name(true);
    message.serialize_with_options(serde_json::value::Serializer, &options).unwrap()
}

async fn list(server: &Server, title: &str, after: &str) -> Vec<Completion> {
    let (title, after) = (title.to_owned(), after.to_owned());
    let request = ListCompletionsRequest { title, after, page_size: 1000, ..Default::default() };
    let page = server.completions().await.list_completions(request).await.unwrap().into_inner();
    assert_eq!(page.next_page_token, "", "a fixture is small");
    page.completions
}

async fn oldest(server: &Server, title: &str) -> String {
    let event = Watch::after(server, title, "").await.event().await.unwrap();
    let Event::Started(started) = event else { panic!("{event:?}") };
    started.oldest
}

/// Everything that the API shows of all titles, and of these players in each.
async fn contents(server: &Server, players: &[String]) -> Value {
    let mut catalogs = server.catalogs().await;
    let titles = catalogs.list_titles(ListTitlesRequest {}).await.unwrap().into_inner().titles;
    let mut contents = Map::new();
    for title in titles.into_iter().map(|summary| summary.title) {
        let request = GetCatalogRequest { title: title.clone() };
        let catalog = catalogs.get_catalog(request).await.unwrap().into_inner();
        let feed = list(server, &title, "").await;
        let feed: Vec<_> = feed.iter().map(|it| to_json("Completion", it)).collect();
        let mut records = Map::new();
        for player in players {
            let found = get(&mut server.storage().await, &title, player).await;
            if !found.is_empty() {
                let found = found.iter().map(|it| to_json("Record", it)).collect();
                records.insert(player.clone(), found);
            }
        }
        let catalog = to_json("GetCatalogResponse", &catalog);
        let oldest = oldest(server, &title).await;
        let all = json!({
            "catalog": catalog, "feed": feed, "oldest": oldest, "records": records,
        });
        contents.insert(title, all);
    }
    Value::Object(contents)
}

/// Every player of any title.
fn players(contents: &Value) -> Vec<String> {
    let titles = contents.as_object().unwrap().values();
    titles.flat_map(|title| title["records"].as_object().unwrap().keys().cloned()).collect()
}

/// What `accolade verify` says of a folder: it counts records that a catalogue hides as well.
fn verify(data: &Path) -> String {
    let verified = accolade(&["verify", &data.display().to_string()]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    text(&verified.stdout).trim().to_owned()
}

fn read_contents(fixture: &Path) -> Value {
    let contents = fs::read_to_string(fixture.join("contents.json")).unwrap();
    serde_json::from_str(&contents).unwrap()
}

/// Opens a fixture and compares all of it; then once more, with a set in between, for what this
/// version writes into such a folder must open as well.
async fn check(name: &str) -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    lay_out(&fixture(name), &data);
    let Value::Object(mut read) = read_contents(&fixture(name)) else { panic!("{name}") };
    let expected = read.remove("titles").unwrap();
    let players = players(&expected);

    let server = Server::start(&data, &[]);
    assert_eq!(contents(&server, &players).await, expected, "{name}");
    for (title, held) in expected.as_object().unwrap() {
        // Cursors that this folder once gave still work.
        let feed: Vec<_> = held["feed"].as_array().unwrap().iter().collect();
        let cursors = feed.iter().map(|completion| &completion["cursor"]);
        for (at, cursor) in [&held["oldest"]].into_iter().chain(cursors).enumerate() {
            let rest = list(&server, title, cursor.as_str().unwrap()).await;
            let rest: Vec<_> = rest.iter().map(|it| to_json("Completion", it)).collect();
            assert_eq!(rest.iter().collect::<Vec<_>>(), feed[at..], "{name}: {title} {cursor}");
        }
    }
    server.kill();
    assert_eq!(verify(&data), read["verified"], "{name}");

    let server = Server::start(&data, &[]);
    set(&mut server.storage().await, delta("demo", "new", "chef", 1)).await;
    server.kill();
    let server = Server::start(&data, &[]);
    assert_eq!(contents(&server, &players).await, expected, "{name}, after a set");
    assert_eq!(get(&mut server.storage().await, "demo", "new").await[0].progress, 1);
    (dir, server)
}

#[tokio::test]
async fn the_first_format_opens_with_everything_that_it_held() {
    check("format-1").await;
}

#[tokio::test]
async fn the_first_format_with_counts_opens_with_everything_that_it_held() {
    let (_dir, server) = check("format-1-counted").await;
    let mut client = server.storage().await;
    // What players had at a node that is gone is there again with it.
    assert_eq!(get(&mut client, TITLE, "p").await.len(), 1);
    apply(&server, catalogs().0).await;
    let found = get(&mut client, TITLE, "p").await;
    let found: Vec<_> = found.iter().map(|it| (it.achievement_id.as_str(), &*it.extra)).collect();
    assert_eq!(found, [("gone", "gone of p"), ("secret", "secret of p")]);

    // Ids of requests are known, with what their callers were told.
    let again = set(&mut client, numbered(10)).await;
    let version = again.updated.as_ref().unwrap().version;
    assert_eq!((again.replayed, again.changed, version), (true, true, 10), "{again:?}");
    let again = client.batch_set_achievement_storage(batch()).await.unwrap().into_inner();
    assert!(again.replayed, "{again:?}");
    let cursor = &again.results[0].cursor;
    let feed = list(&server, TITLE, "").await;
    assert!(feed.iter().any(|it| it.cursor == *cursor && it.player_id == "batch"), "{again:?}");
    assert_eq!(get(&mut client, TITLE, BUSY).await[0].version, 10);
}

fn definition(id: &str, max_progress: i64) -> Definition {
    Definition {
        node_id: id.to_owned(),
        max_progress,
        display_name: format!("名 {id}"),
        description: "一\n\"two\"".to_owned(),
        unfinished_icon: format!("textures/{id}_grey.png"),
        finished_icon: format!("textures/{id}.png"),
        rank: -max_progress,
        ..Definition::default()
    }
}

/// The set number `n` of the busy player.
fn numbered(n: i64) -> SetAchievementStorageRequest {
    SetAchievementStorageRequest {
        request_id: format!("request {n}"),
        extra: Some(format!("{n} 😀\n{}", "x".repeat(200))),
        expected_version: Some(n - 1),
        ..delta(TITLE, BUSY, "counter", 7)
    }
}

fn batch() -> BatchSetAchievementStorageRequest {
    let update = |node_id: &str, change, extra: Option<&str>| NodeUpdate {
        node_id: node_id.to_owned(),
        change,
        extra: extra.map(str::to_owned),
        expected_version: Some(0),
    };
    let updates = vec![
        update("secret", Some(Change::Finish(true)), None),
        update("counter", Some(Change::AtLeast(9)), Some("")),
        update("gone", None, Some("only an extra")),
    ];
    BatchSetAchievementStorageRequest {
        title: TITLE.to_owned(),
        player_id: "batch".to_owned(),
        updates,
        request_id: "batch".to_owned(),
    }
}

/// The first catalogue and the one that replaces it: without a node, with another target.
fn catalogs() -> (Vec<Definition>, Vec<Definition>) {
    let secret = Definition {
        parent_id: "counter".to_owned(),
        hidden: true,
        metadata: "{\"coins\":10}".to_owned(),
        ..definition("secret", 5)
    };
    (
        vec![definition("gone", 1), definition("counter", 1000), secret.clone()],
        vec![definition("counter", 2000), secret],
    )
}

async fn apply(server: &Server, definitions: Vec<Definition>) {
    let request =
        ApplyCatalogRequest { title: TITLE.to_owned(), definitions, ..Default::default() };
    server.catalogs().await.apply_catalog(request).await.unwrap();
}

/// Fills a new folder with something of everything, in two lives of a server; the second one trims
/// the feed. Gives back all that can be read.
async fn fill(data: &Path) -> Value {
    let server = Server::start(data, &[]);
    let mut client = server.storage().await;
    let ids = ["p", &"长".repeat(42), "10001"];
    let (first, second) = catalogs();
    for (definitions, node) in [(first, "gone"), (second, "secret")] {
        apply(&server, definitions).await;
        for id in ids {
            let request = SetAchievementStorageRequest {
                extra: Some(format!("{node} of {id}")),
                expected_version: Some(0),
                ..delta(TITLE, id, node, 5)
            };
            assert!(set(&mut client, request).await.newly_completed);
        }
        if node == "gone" {
            let stored = client.batch_set_achievement_storage(batch()).await.unwrap().into_inner();
            assert_eq!(stored.code, 0, "{stored:?}");
        }
    }
    for n in 1..=10 {
        assert!(set(&mut client, numbered(n)).await.changed);
    }
    set(&mut client, delta("demo", "10001", "hunter_of_beasts", 2)).await;
    set(&mut client, delta("demo", "10001", "adventure", 1)).await;
    let feed = list(&server, TITLE, "").await;
    drop(client);
    server.terminate();
    assert!(server.wait().await.success());

    let server = Server::start(data, &["--retention-count", "5"]);
    let start = Instant::now();
    while oldest(&server, TITLE).await != feed[feed.len() - 6].cursor {
        assert!(start.elapsed() < PATIENCE, "retention works");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let players = ids.into_iter().chain([BUSY, "batch"]).map(str::to_owned);
    let titles = contents(&server, &players.collect::<Vec<_>>()).await;
    server.terminate();
    assert!(server.wait().await.success());
    json!({ "titles": titles, "verified": verify(data) })
}

/// Copies a data folder to a new fixture.
fn write_fixture(data: &Path, filled: &Value, fixture: &Path) {
    fs::create_dir(fixture).unwrap();
    fs::copy(data.join("mark"), fixture.join("mark")).unwrap();
    for entry in fs::read_dir(data.join("store")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, fixture.join(path.file_name().unwrap())).unwrap();
        }
    }
    let mut db = fs::read(fixture.join("db")).unwrap();
    assert_eq!(db.len(), 8_388_607, "`lay_out` restores this length");
    db.truncate(db.iter().rposition(|byte| *byte != 0).unwrap() + 1);
    fs::write(fixture.join("db"), db).unwrap();
    let filled = serde_json::to_string_pretty(filled).unwrap();
    fs::write(fixture.join("contents.json"), filled + "\n").unwrap();
}

/// Without what differs from folder to folder: cursors, and when something completed.
fn masked(contents: &Value) -> Value {
    match contents {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| match name.as_str() {
                "cursor" | "completed_at" | "oldest" => (name.clone(), Value::Bool(true)),
                _ => (name.clone(), masked(value)),
            });
            Value::Object(fields.collect())
        }
        Value::Array(items) => items.iter().map(masked).collect(),
        other => other.clone(),
    }
}

#[tokio::test]
async fn a_folder_that_is_filled_now_holds_what_a_fixture_holds() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let filled = fill(&data).await;
    if let Some(fixture) = std::env::var_os("ACCOLADE_FIXTURE") {
        write_fixture(&data, &filled, Path::new(&fixture));
    }
    let fixture = read_contents(&fixture("format-1-counted"));
    // The sample catalogue may change; what was once stored of it does not.
    let without_demo = |contents: &Value| {
        let mut contents = masked(contents);
        contents["titles"].as_object_mut().unwrap().remove("demo");
        contents
    };
    assert_eq!(without_demo(&filled), without_demo(&fixture));
}

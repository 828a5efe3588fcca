//! Several servers on one JetStream cluster: one service, whichever of them is asked.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use accolade::proto::v1::{
    ConsumeCompletionsRequest, ConsumeCompletionsResponse, ListCompletionsRequest,
    ResetAchievementRequest, SetAchievementStorageRequest, consume_completions_request::Action,
    consume_completions_response::Event as Consumed, watch_completions_response::Event,
};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{
    LONG_PATIENCE, PATIENCE, Server, Watch, accolade, delta, get,
    nats::{self, Nats},
    reason, set, text,
};

/// Lays a cluster out.
pub fn init(url: &str, partitions: &str, replicas: &str) {
    let args = ["engine", "init", "--store", url, "--partitions", partitions];
    let done = accolade(&[&args[..], &["--replicas", replicas]].concat());
    assert!(done.status.success(), "{}", text(&done.stderr));
}

/// Two servers on one cluster that both know the title `t`.
struct Pair {
    servers: [Server; 2],
    _nats: Nats,
    _dir: TempDir,
}

async fn pair(partitions: &str, nodes: &[(&str, i64)]) -> Pair {
    let nats = Nats::start(1);
    let url = nats.url("ach");
    init(&url, partitions, "1");
    let dir = TempDir::new().unwrap();
    let servers = ["a", "b"]
        .map(|name| Server::start_on(&url, &dir.path().join(name).with_extension("log"), &[]));
    servers[0].apply("t", nodes).await;
    wait_for_title(&servers[1], "t").await;
    Pair { servers, _nats: nats, _dir: dir }
}

fn refused(args: &[&str]) -> String {
    let done = accolade(args);
    assert!(!done.status.success(), "{}", text(&done.stdout));
    text(&done.stderr)
}

/// Waits until a server knows a title.
pub async fn wait_for_title(server: &Server, title: &str) {
    let start = Instant::now();
    let mut client = server.storage().await;
    // One that was answered too late may have been stored.
    let id = "first".to_owned();
    let set = SetAchievementStorageRequest { request_id: id, ..delta(title, "first", "n", 1) };
    while client.set_achievement_storage(set.clone()).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "{title} is not heard of");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_cluster_is_laid_out_once_and_checked_at_each_start() {
    let nats = Nats::start(1);
    let url = nats.url("ach");
    let other = nats.url("other");
    let serve = |url: &str| refused(&["serve", "--listen", "127.0.0.1:0", "--store", url]);
    assert!(serve(&url).contains("is not laid out yet; run `accolade engine init --store"));
    assert!(refused(&["engine", "check", "--store", &url]).contains("engine init"));
    let three = refused(&["engine", "init", "--store", &url]);
    assert!(three.contains("is one server alone, which cannot keep 3 replicas"), "{three}");

    init(&url, "3", "1");
    init(&url, "3", "1");
    // What is not said stays as it is.
    let again = accolade(&["engine", "init", "--store", &url]);
    assert!(text(&again.stdout).contains("3 partitions, 1 replicas; sound"), "{again:?}");
    assert!(text(&again.stderr).contains("warning: streams have 1 replicas"), "{again:?}");
    assert!(text(&again.stderr).contains("warning: nobody was asked whether"), "{again:?}");
    let more = ["engine", "init", "--store", &url, "--partitions", "4", "--replicas", "1"];
    let more = refused(&more);
    assert!(more.contains("has 3 partitions, which never changes"), "{more}");
    assert!(
        serve(&other).contains("is not laid out yet"),
        "another prefix is another installation"
    );
    let checked = accolade(&["engine", "check", "--store", &url]);
    assert_eq!(text(&checked.stdout).trim(), format!("{url}: 3 partitions, 1 replicas; sound"));

    let wrong = refused(&["serve", "--store", "http://x"]);
    assert!(wrong.contains("`store` is \"http://x\"; pass none: it is no address"), "{wrong}");
    let alone = refused(&["serve", "--nats-ca", "x"]);
    assert!(alone.contains("settings of NATS are given, and no `store`"), "{alone}");
    assert!(serve("nats://127.0.0.1:1/ach").contains("can be reached"));
}

#[test]
fn the_configuration_for_operators_is_one_that_nats_takes() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let store = TempDir::new().unwrap();
    let environment = [
        ("NATS_NAME", "n1"),
        ("NATS_STORE", store.path().to_str().unwrap()),
        ("NATS_STORE_MAX", "80GB"),
        ("NATS_ROUTES", "[nats://n1:6222, nats://n2:6222, nats://n3:6222]"),
    ];
    let checked = nats::check(&dir.join("nats.conf"), &environment);
    assert!(checked.status.success(), "{}", text(&checked.stderr));

    // The one for Kubernetes is a part of another file.
    let manifest = std::fs::read_to_string(dir.join("kubernetes/nats.yaml")).unwrap();
    let (_, rest) = manifest.split_once("nats.conf: |\n").unwrap();
    let config: Vec<_> = rest.lines().map_while(|line| line.strip_prefix("    ")).collect();
    let file = store.path().join("nats.conf");
    std::fs::write(&file, config.join("\n")).unwrap();
    let checked = nats::check(&file, &environment);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
}

/// Whoever deploys with these copies them.
#[test]
fn the_files_for_operators_are_well_formed_and_name_settings_that_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let mut yaml = 0;
    for folder in ["", "compose", "kubernetes", "systemd"] {
        for file in std::fs::read_dir(root.join("deploy").join(folder)).unwrap() {
            let path = file.unwrap().path();
            let Ok(content) = std::fs::read_to_string(&path) else { continue };
            let name = path.display();
            if path.extension().is_some_and(|it| it == "yaml") {
                for event in saphyr_parser::Parser::new_from_str(&content) {
                    assert!(event.is_ok(), "{name}: {event:?}");
                }
                yaml += 1;
            }
            let is_name = |c: char| c.is_ascii_uppercase() || c == '_';
            for (at, _) in content.match_indices("ACCOLADE_") {
                let setting: String = content[at..].chars().take_while(|c| is_name(*c)).collect();
                assert!(readme.contains(&format!("`{setting}`")), "{name} sets {setting}");
            }
        }
    }
    assert_eq!(yaml, 3);
}

/// The servers of this test sync always, so one that does not is made up of an answer.
#[test]
fn a_cluster_that_does_not_sync_every_write_is_refused() {
    use std::io::{Read, Write};
    let nats = Nats::start(1);
    let url = nats.url("ach");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let monitor = format!("http://{}", listener.local_addr().unwrap());
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        let answer = r#"{"server_name":"n0","jetstream":{"config":{"sync_interval":120}}}"#;
        write!(stream, "HTTP/1.0 200 OK\r\n\r\n{answer}").unwrap();
    });
    let init = ["engine", "init", "--store", &url, "--replicas", "1", "--nats-monitor"];
    let said = refused(&[&init[..], &[&monitor]].concat());
    assert!(said.contains("server \"n0\" does not sync every write"), "{said}");
    answering.join().unwrap();
    let sound = accolade(&[&init[..], &[&nats.monitor(0)]].concat());
    assert!(sound.status.success(), "{}", text(&sound.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_are_one_service() {
    let Pair { servers: [a, b], .. } = &pair("4", &[("n", 2), ("m", 1)]).await;

    // What one stores, the other has at once, and judges by.
    let (mut on_a, mut on_b) = (a.storage().await, b.storage().await);
    let mut watch = Watch::after(b, "t", "").await;
    for n in 0..20 {
        let player = format!("p{n}");
        let first = set(&mut on_a, delta("t", &player, "n", 1)).await;
        assert_eq!(first.updated.unwrap().version, 1);
        assert_eq!(get(&mut on_b, "t", &player).await[0].progress, 1);
        let mut stale = delta("t", &player, "n", 1);
        stale.expected_version = Some(0);
        assert_eq!(set(&mut on_b, stale).await.code, 5);
        let second = set(&mut on_b, delta("t", &player, "n", 1)).await;
        assert!(second.newly_completed && !second.cursor.is_empty());
        // The server that wrote it first still takes it for version 1, and finds out.
        let mut stale = delta("t", &player, "n", 1);
        stale.expected_version = Some(1);
        assert_eq!(set(&mut on_a, stale).await.code, 5);
    }

    // Each completion once, in any order between players; a reset behind the completion of its own.
    let request = ResetAchievementRequest {
        title: "t".to_owned(),
        player_id: "p7".to_owned(),
        node_id: "n".to_owned(),
        reason: "refund".to_owned(),
        ..ResetAchievementRequest::default()
    };
    let done = a.operator().await.reset_achievement(request).await.unwrap().into_inner();
    assert!(done.changed);
    let mut seen: HashMap<String, u32> = HashMap::new();
    for _ in 0..20 {
        let completion = watch.completion().await;
        *seen.entry(completion.player_id).or_default() += 1;
    }
    assert!((0..20).all(|n| seen[&format!("p{n}")] == 1), "{seen:?}");

    // Listed on either server, resumed in the middle on the other.
    let list = async |server: &Server, after: &str, page_size: i32| {
        let (title, after) = ("t".to_owned(), after.to_owned());
        let request = ListCompletionsRequest { title, after, page_size, ..Default::default() };
        server.completions().await.list_completions(request).await.unwrap().into_inner()
    };
    let first = list(a, "", 9).await;
    let rest = list(b, &first.cursor, 100).await;
    assert_eq!((first.completions.len(), rest.completions.len()), (9, 11));
    let mut both: Vec<_> =
        first.completions.iter().chain(&rest.completions).map(|it| &it.player_id).collect();
    both.sort_unstable();
    both.dedup();
    assert_eq!(both.len(), 20);
}

type Acks = tokio::sync::mpsc::Sender<ConsumeCompletionsRequest>;

/// Begins to consume; the first event is behind `subscribed`.
async fn consume(server: &Server) -> (Acks, tonic::Streaming<ConsumeCompletionsResponse>) {
    let (sender, requests) = tokio::sync::mpsc::channel(8);
    let subscribe = accolade::proto::v1::Subscribe {
        title: "t".to_owned(),
        name: "rewards".to_owned(),
        after: Some(String::new()),
        ..Default::default()
    };
    let action = Some(Action::Subscribe(subscribe));
    sender.send(ConsumeCompletionsRequest { action }).await.unwrap();
    let mut client = server.completions().await;
    let events = client.consume_completions(ReceiverStream::new(requests)).await.unwrap();
    (sender, events.into_inner())
}

/// The next completion's player and cursor.
async fn next(
    events: &mut tonic::Streaming<ConsumeCompletionsResponse>,
) -> Result<(String, String), tonic::Status> {
    loop {
        let message = timeout(PATIENCE, events.message()).await.expect("in time")?;
        if let Some(Consumed::Completion(it)) = message.expect("ends with an error").event {
            return Ok((it.player_id, it.cursor));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_on_one_server_takes_over_from_one_on_another() {
    let Pair { servers: [a, b], .. } = &pair("1", &[("n", 1)]).await;
    let mut client = a.storage().await;
    for n in 0..3 {
        set(&mut client, delta("t", &format!("p{n}"), "n", 1)).await;
    }

    let (acks, mut on_a) = consume(a).await;
    assert_eq!(next(&mut on_a).await.unwrap().0, "first");
    let (player, cursor) = next(&mut on_a).await.unwrap();
    assert_eq!(player, "p0");
    let ack = accolade::proto::v1::Ack { cursor };
    let action = Some(Action::Ack(ack.clone()));
    acks.send(ConsumeCompletionsRequest { action }).await.unwrap();
    // Answered once it is stored.
    let mut acked = false;
    let mut rest = Vec::new();
    while !acked {
        let message = on_a.message().await.unwrap().unwrap();
        match message.event {
            Some(Consumed::Acked(_)) => acked = true,
            Some(Consumed::Completion(it)) => rest.push(it.player_id),
            _ => {}
        }
    }

    let (sender, requests) = tokio::sync::mpsc::channel(8);
    let subscribe = accolade::proto::v1::Subscribe {
        title: "t".to_owned(),
        name: "rewards".to_owned(),
        ..Default::default()
    };
    let action = Some(Action::Subscribe(subscribe));
    sender.send(ConsumeCompletionsRequest { action }).await.unwrap();
    let mut on_b = b.completions().await;
    let on_b = on_b.consume_completions(ReceiverStream::new(requests)).await.unwrap();
    let mut on_b = on_b.into_inner();
    assert_eq!(next(&mut on_b).await.unwrap().0, "p1", "behind the last ack");
    // The word of it may be lost: then the next ack tells.
    let again = ConsumeCompletionsRequest { action: Some(Action::Ack(ack)) };
    let _ = acks.send(again).await;
    let ended = timeout(PATIENCE, async {
        loop {
            if let Err(status) = next(&mut on_a).await {
                break status;
            }
        }
    });
    let ended = ended.await.expect("the older one ends");
    assert_eq!(reason(&ended), "SUBSCRIPTION_TAKEN_OVER");
}

/// A document is replaced with every set; whoever reads it meanwhile must not look between two.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_written_all_the_time_is_never_read_as_older_or_missing() {
    const SETS: usize = 1500;
    const READERS: usize = 4;
    let Pair { servers: [a, b], .. } = &pair("1", &[("n", 1 << 40)]).await;
    let (written, reads) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicUsize::new(0)));
    let is_over = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for n in 0..READERS {
        let mut client = [a, b][n % 2].storage().await;
        let (written, reads, is_over) = (written.clone(), reads.clone(), is_over.clone());
        readers.spawn(async move {
            while !is_over.load(Ordering::SeqCst) {
                let before = written.load(Ordering::SeqCst);
                let records = get(&mut client, "t", "hot").await;
                let version = records.first().map_or(0, |record| record.version);
                assert!(version >= before, "version {before} was told, and {version} read");
                reads.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let mut client = b.storage().await;
    let (start, mut sets) = (Instant::now(), 0);
    while sets < SETS || reads.load(Ordering::SeqCst) < SETS / 2 {
        let answer = set(&mut client, delta("t", "hot", "n", 1)).await;
        written.store(answer.updated.unwrap().version, Ordering::SeqCst);
        sets += 1;
        assert!(start.elapsed() < 2 * LONG_PATIENCE, "{sets} sets, {reads:?} reads");
    }
    is_over.store(true, Ordering::SeqCst);
    readers.join_all().await;
}

/// How often each player completes and is reset.
const ROUNDS: usize = 5;

/// A reset is told behind its completion, whoever told it.
#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_a_player_is_told_in_its_order() {
    let Pair { servers, .. } = &pair("4", &[("n", 1)]).await;
    let mut watch = Watch::start(
        &servers[1],
        accolade::proto::v1::WatchCompletionsRequest {
            title: "t".to_owned(),
            after: Some(String::new()),
            ..Default::default()
        },
    )
    .await;
    for round in 0..ROUNDS {
        for n in 0..8 {
            let player = format!("p{n}");
            let server = &servers[(round + n) % 2];
            set(&mut server.storage().await, delta("t", &player, "n", 1)).await;
            let request = ResetAchievementRequest {
                title: "t".to_owned(),
                player_id: player,
                node_id: "n".to_owned(),
                reason: "again".to_owned(),
                ..ResetAchievementRequest::default()
            };
            let other = &servers[(round + n + 1) % 2];
            other.operator().await.reset_achievement(request).await.unwrap();
        }
    }
    let mut versions: HashMap<String, Vec<i64>> = HashMap::new();
    // And the player whose set told that the title is known.
    for _ in 0..=ROUNDS * 8 * 2 {
        match watch.entry().await {
            Event::Completion(it) => versions.entry(it.player_id).or_default().push(it.version),
            Event::Reset(it) => versions.entry(it.player_id).or_default().push(it.version),
            other => panic!("{other:?}"),
        }
    }
    for n in 0..8 {
        let expected: Vec<i64> = (1..).take(2 * ROUNDS).collect();
        assert_eq!(versions[&format!("p{n}")], expected);
    }
}

/// A batch of which only the first message was sent leaves nothing behind.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_in_the_middle_of_a_batch_leaves_nothing_of_it() {
    let nats = Nats::start(1);
    let url = nats.url("ach");
    init(&url, "1", "1");
    let dir = TempDir::new().unwrap();
    let other = Server::start_on(&url, &dir.path().join("b.log"), &[]);
    other.apply("t", &[("n", 1)]).await;
    let mut completed = 0;
    for n in 0..5 {
        let mut command = std::process::Command::new(crate::support::BINARY);
        command.args(["serve", "--store", &url, "--listen", "127.0.0.1:0"]);
        // A batch that is answered late is sent once more, so a set may pass there twice.
        command.env("FAILPOINTS", format!("batch-begun={n}*off->return"));
        let server = Server::run(command, &dir.path().join("a.log")).unwrap();
        let mut client = server.storage().await;
        for sent in 0..=n {
            let player = format!("p{n}-{sent}");
            let mut request = delta("t", &player, "n", 1);
            request.request_id = player.clone();
            let is_stored = client.set_achievement_storage(request.clone()).await.is_ok();
            let mut on_other = other.storage().await;
            let there = get(&mut on_other, "t", &player).await.len();
            // Where it was sent twice, the first may have been stored.
            assert!(usize::from(is_stored) <= there, "{player} was answered");
            let again = set(&mut on_other, request).await;
            assert_eq!(again.replayed, there == 1);
            assert_eq!(again.updated.unwrap().version, 1);
            completed += 1;
            if !is_stored {
                assert!(!server.wait().await.success(), "the batch crashes the server");
                break;
            }
            assert!(sent < n, "the last one crashes the server");
        }
    }
    let request = ListCompletionsRequest {
        title: "t".to_owned(),
        page_size: 1000,
        ..ListCompletionsRequest::default()
    };
    let listed = other.completions().await.list_completions(request).await.unwrap().into_inner();
    assert_eq!(listed.completions.len(), completed);
}

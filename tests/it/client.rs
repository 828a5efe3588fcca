//! The Rust client against the real server: what it retries is counted once, what conflicts is the
//! caller's to decide, and a watch goes on over any number of connections.

use std::{
    collections::BTreeSet,
    process::Command,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use accolade::{
    client::{CONFLICTS_MAX, Client, RecordId},
    proto::v1::{RecordState, SetAchievementStorageRequest},
};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    task::{JoinSet, block_in_place},
};
use tonic::Code;

use crate::{
    network::{Counts, Network},
    support::{BINARY, LONG_PATIENCE, PATIENCE, Server, reason, say},
};

const CALLERS: usize = 8;
const ADDITIONS: i64 = 25;

async fn start(dir: &tempfile::TempDir) -> Server {
    let server = Server::start(&dir.path().join("data"), &[]);
    server.apply("t", &[("counter", 1 << 40), ("once", 1)]).await;
    server
}

/// On the address that it had before, which somebody else may have for a moment.
fn restart(dir: &tempfile::TempDir, address: &str) -> Server {
    let start = Instant::now();
    loop {
        let mut again = Command::new(BINARY);
        again.args(["serve", "--listen", address, "--data"]).arg(dir.path().join("data"));
        match Server::run(again, &dir.path().join("log")) {
            Ok(server) => return server,
            Err(log) => assert!(start.elapsed() < PATIENCE, "{log}"),
        }
    }
}

fn connect(server: &Server) -> Client {
    Client::connect(&server.url()).unwrap().with_deadline(LONG_PATIENCE)
}

fn counter(player: &str) -> RecordId {
    RecordId::new("t", player, "counter")
}

async fn progress(client: &Client, player: &str) -> i64 {
    let records = client.get("t", player, &["counter"]).await.unwrap();
    records.first().map_or(0, |record| record.progress)
}

#[tokio::test(flavor = "multi_thread")]
async fn additions_over_a_bad_network_are_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    let counts = Arc::<Counts>::default();
    let network = Network::start(server.address.clone(), Arc::clone(&counts)).await;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let client = Client::connect(&network.url).unwrap().with_deadline(PATIENCE);
        callers.spawn(async move {
            for _ in 0..ADDITIONS {
                client.add(&counter(&format!("p{caller}")), 1).await.unwrap();
            }
        });
    }
    network.part().await;
    callers.join_all().await;
    let direct = connect(&server);
    for caller in 0..CALLERS {
        assert_eq!(progress(&direct, &format!("p{caller}")).await, ADDITIONS);
    }
    let cuts = counts.cuts.load(Ordering::Relaxed);
    assert!(cuts > 0, "the network was too good");
    say(&format!("{CALLERS} times {ADDITIONS} additions over {cuts} cuts: each counted once"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_meets_a_conflict_and_the_caller_decides() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    let [first, second] = [(); 2].map(|()| connect(&server));
    let record = counter("p");
    let never = |_: &_| panic!("nothing conflicts");
    let stored = first.add(&record, 1).with_extra(|| "a".to_owned(), never).await.unwrap();
    assert_eq!(stored.updated.unwrap().version, 1);
    // It has seen its own version.
    first.add(&record, 1).with_extra(|| "b".to_owned(), never).await.unwrap();

    // The other has seen nothing, and is told what is stored.
    let (asked, told) = (Mutex::new(0), Mutex::new(Vec::new()));
    let extra = || {
        *asked.lock() += 1;
        format!("c{}", asked.lock())
    };
    let goes_on = |entity: &RecordState| {
        told.lock().push((entity.version, entity.progress, entity.extra.clone()));
        true
    };
    let answer = second.add(&record, 10).with_extra(extra, goes_on).await.unwrap();
    let updated = answer.updated.unwrap();
    assert_eq!((answer.code, updated.progress, updated.version), (0, 12, 3));
    assert_eq!(updated.extra, "c2", "it is asked for once more");
    assert_eq!(*told.lock(), [(2, 2, "b".to_owned())]);

    // Who does not go on leaves everything as it is.
    let answer = first.add(&record, 100).with_extra(|| "d".to_owned(), |_| false).await.unwrap();
    assert_eq!((answer.code, answer.entity.unwrap().version), (5, 3));
    assert_eq!(progress(&first, "p").await, 12);
    // Reading has told it the version.
    let never = |_: &_| panic!("nothing conflicts");
    first.add(&record, 1).with_extra(|| "e".to_owned(), never).await.unwrap();
}

/// Goal: what somebody else stores while the caller judges is not overwritten, although this client
/// has seen it.
#[tokio::test(flavor = "multi_thread")]
async fn a_text_is_stored_on_the_record_that_the_caller_judged() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    let [client, other] = [(); 2].map(|()| connect(&server));
    let record = counter("p");
    other.add(&record, 1).with_extra(|| "a".to_owned(), |_| false).await.unwrap();
    let merged = Mutex::new(String::new());
    let extra = || format!("{}+mine", merged.lock());
    let goes_on = |stored: &RecordState| {
        merged.lock().clone_from(&stored.extra);
        if stored.version == 1 {
            // Another task of this process is faster, and so this client sees version 2.
            let faster = other.add(&record, 1).with_extra(|| "a+b".to_owned(), |_| false);
            let seen = async {
                faster.await.unwrap();
                client.get("t", "p", &[]).await.unwrap();
            };
            block_in_place(|| Handle::current().block_on(seen));
        }
        true
    };
    let answer = client.add(&record, 1).with_extra(extra, goes_on).await.unwrap();
    assert_eq!(answer.updated.unwrap().extra, "a+b+mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_addition_that_is_named_is_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    let client = connect(&server);
    let record = counter("p");
    let answers = [
        client.add(&record, 1).with_request_id("this").await.unwrap(),
        client.add(&record, 1).with_request_id("this").await.unwrap(),
    ];
    assert_eq!(answers.map(|answer| answer.replayed), [false, true]);
    assert_eq!(progress(&client, "p").await, 1);
}

/// Goal: whoever looks at other things as well, and so drops `next` all the time, still gets all.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_dropped_all_the_time_connects_anew() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    let client = connect(&server);
    let mut watch = client.watch("t").from_oldest();
    let address = server.address.clone();
    server.kill();
    let mut next = async |ticks: usize| {
        for _ in 0..ticks {
            // Far less than the pauses between two connections become.
            if let Ok(next) = tokio::time::timeout(Duration::from_millis(20), watch.next()).await {
                return Some(next.unwrap().player_id);
            }
        }
        None
    };
    assert_eq!(next(100).await, None);
    let _server = restart(&dir, &address);
    client.add(&RecordId::new("t", "p", "once"), 1).await.unwrap();
    assert_eq!(next(1000).await.as_deref(), Some("p"));
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicts_without_end_are_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    let [client, other] = [(); 2].map(|()| connect(&server));
    let record = counter("p");
    // Somebody is always faster.
    let extra = || {
        block_in_place(|| Handle::current().block_on(async { other.add(&record, 1).await }))
            .unwrap();
        String::new()
    };
    let mut asked = 0;
    let goes_on = |_: &_| {
        asked += 1;
        true
    };
    let answer = client.add(&record, 1).with_extra(extra, goes_on).await.unwrap();
    assert_eq!((answer.code, asked), (5, CONFLICTS_MAX));
    assert_eq!(progress(&client, "p").await, CONFLICTS_MAX + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_over_restarts_of_the_server() {
    const ROUNDS: usize = 4;
    const COMPLETIONS: usize = 50;
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(&dir).await;
    let address = server.address.clone();
    let client = connect(&server);
    let mut watch = client.watch("t").from_oldest();
    let following = tokio::spawn(async move {
        let mut players = Vec::new();
        while players.len() < ROUNDS * COMPLETIONS {
            let completion = tokio::time::timeout(PATIENCE, watch.next()).await;
            players.push(completion.expect("it comes in time").unwrap().player_id);
        }
        players
    });
    let mut completed = Vec::new();
    for round in 0..ROUNDS {
        for n in 0..COMPLETIONS {
            let player = format!("{round}-{n}");
            let answer = client.add(&RecordId::new("t", &player, "once"), 1).await.unwrap();
            assert!(answer.newly_completed);
            completed.push(player);
        }
        server.kill();
        server = restart(&dir, &address);
    }
    assert_eq!(following.await.unwrap(), completed, "each once, in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_pass_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    let client = Client::connect(&server.url()).unwrap().with_deadline(Duration::from_secs(600));
    let set = SetAchievementStorageRequest::default();
    let wrong = client.set(set).await.unwrap_err();
    assert_eq!((wrong.code(), reason(&wrong).as_str()), (Code::InvalidArgument, "FIELD_INVALID"));
    let unknown = client.add(&RecordId::new("other", "p", "n"), 1).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let unknown = client.watch("t").after("no cursor").next().await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);
    // Somebody listens there and says nothing; then nobody listens. Tried again until the deadline.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let silent = Client::connect(&silent).unwrap().with_deadline(Duration::from_millis(300));
    let status = silent.get("t", "p", &[]).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    let nobody = Client::connect("http://127.0.0.1:9").unwrap();
    let nobody = nobody.with_deadline(Duration::from_millis(300));
    let status = nobody.get("t", "p", &[]).await.unwrap_err();
    // The last attempt may have no time left.
    let expected = [Code::Unavailable, Code::DeadlineExceeded];
    assert!(expected.contains(&status.code()), "{status:?}");
    assert!(client.with_token("no\ntoken").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filtered_watch_tells_of_whom_it_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(&dir).await;
    let client = connect(&server);
    for player in ["a", "b", "c"] {
        client.add(&RecordId::new("t", player, "once"), 1).await.unwrap();
    }
    let mut watch = client.watch("t").from_oldest().of_players(&["a".to_owned(), "c".to_owned()]);
    watch = watch.of_nodes(&["once".to_owned()]);
    assert_eq!(watch.cursor(), Some(""));
    let mut players = BTreeSet::new();
    for _ in 0..2 {
        let completion = watch.next().await.unwrap();
        assert_eq!(watch.cursor(), Some(completion.cursor.as_str()));
        players.insert(completion.player_id);
    }
    assert_eq!(players, BTreeSet::from(["a".to_owned(), "c".to_owned()]));
}

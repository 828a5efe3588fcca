//! Kills the server, again and again, under load, on one data folder.
//!
//! Goal: no acknowledged set is lost, no version is given out twice, the versions of each record
//! are 1, 2, 3, …, each completion is in the feed once, and every subscriber sees the same feed.
//!
//! Method: 8 writers add to records that several of them share, each set under a request id of its
//! own; half of them one set at a time, half of them many at once on a stream. A writer whose
//! answer was lost in a kill asks again, under the same id, as soon as the server is back; so in
//! the end every version of every record was told to somebody, and the told versions can be
//! compared with the stored ones. 2 subscribers resume from their cursors.
//!
//! `ACCOLADE_CRASH_CYCLES` sets the number of kills; 500 unless given.

#[path = "support/mod.rs"]
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use accolade::proto::v1::{
    Completion, ListCompletionsRequest, SetAchievementStorageRequest,
    StreamSetAchievementStorageRequest, WatchCompletionsRequest,
    stream_set_achievement_storage_response::Outcome, watch_completions_response::Event,
};
use support::{CompletionClient, PATIENCE, Server, StorageClient, accolade, delta, get, text};
use tokio::{
    sync::{Barrier, Mutex, mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;

const WRITERS: usize = 8;
const SUBSCRIBERS: usize = 2;
const PLAYERS_PER_CYCLE: usize = 6;
const NODES: usize = 40;
const TARGET: i64 = 3;
const STREAM_SETS: usize = 6;
const DEADLINE: Duration = Duration::from_secs(5);

/// Attempts of a request whose answer was lost, each with such a time.
const RETRIES: usize = 6;

/// What the writers were told: player and node → version → request id.
#[derive(Default)]
struct Told {
    versions: BTreeMap<(String, String), BTreeMap<i64, String>>,
    completions: BTreeMap<(String, String), String>,
    /// The newest version of each record that a conflict told.
    seen: BTreeMap<(String, String), i64>,
    answers: u64,
    conflicts: u64,
    replays: u64,
}

/// The cursors that a subscriber has seen.
type Seen = Arc<Mutex<Vec<String>>>;

/// The address of the server of this cycle; "" while there is none.
type Address = watch::Receiver<String>;

#[tokio::main]
async fn main() {
    let cycles = std::env::var("ACCOLADE_CRASH_CYCLES").ok();
    let cycles =
        cycles.map_or(500, |text| text.parse().expect("ACCOLADE_CRASH_CYCLES is a number"));
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let told = Arc::new(Mutex::new(Told::default()));
    let (address, addresses) = watch::channel(String::new());
    let seen: [Seen; SUBSCRIBERS] = Default::default();
    let mut subscribers = JoinSet::new();
    for seen in &seen {
        subscribers.spawn(subscribe(addresses.clone(), seen.clone()));
    }

    let mut unanswered: Vec<Vec<SetAchievementStorageRequest>> = vec![Vec::new(); WRITERS];
    let mut slowest_open = Duration::ZERO;
    for cycle in 0..cycles {
        let start = Instant::now();
        let server = Server::start(&data, &[]);
        slowest_open = slowest_open.max(start.elapsed());
        if cycle == 0 {
            let ids: Vec<_> = (0..NODES).map(|n| format!("n{n}")).collect();
            let nodes: Vec<_> = ids.iter().map(|id| (id.as_str(), TARGET)).collect();
            server.apply("t", &nodes).await;
        }
        address.send_replace(server.url());
        check_stored(&server, &*told.lock().await, cycle).await;

        let retried = Arc::new(Barrier::new(WRITERS + 1));
        let mut writers = JoinSet::new();
        for (writer, lost) in unanswered.iter_mut().enumerate() {
            let client = server.storage().await;
            let (told, retried, lost) = (told.clone(), retried.clone(), std::mem::take(lost));
            writers.spawn(write(client, cycle, writer, lost, retried, told));
        }
        let retrying = timeout(PATIENCE * 8, retried.wait());
        retrying.await.expect("every writer got its answers");
        tokio::time::sleep(Duration::from_millis(20 + fastrand::u64(..150))).await;
        address.send_replace(String::new());
        server.kill();
        while let Some(done) = writers.join_next().await {
            let (writer, lost) = done.expect("a writer saw nothing wrong");
            unanswered[writer] = lost;
        }
    }

    // One more life, to answer what was lost last, and to look at everything.
    let server = Server::start(&data, &[]);
    address.send_replace(server.url());
    let mut client = server.storage().await;
    for lost in unanswered.into_iter().flatten() {
        tell(&mut *told.lock().await, &lost, &mut client).await.expect("the server lives");
    }
    let told = told.lock().await;
    let feed = list(&mut server.completions().await).await;
    check_end(&server, &told, &feed).await;
    let cursors: Vec<_> = feed.iter().map(|completion| completion.cursor.clone()).collect();
    check_subscribers(&seen, &cursors).await;
    subscribers.shutdown().await;
    assert!(!server.log().contains("panicked"), "{}", server.log());
    assert!(!server.log().contains("ERROR"), "{}", server.log());
    server.kill();
    let verified = accolade(&["verify", &data.display().to_string()]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));

    // Few cycles may have none of these.
    let is_telling = told.answers > 0 && told.replays > 0 && told.conflicts > 0;
    assert!(is_telling || cycles < 100, "the machine is too slow for this test");
    let versions: usize = told.versions.values().map(BTreeMap::len).sum();
    println!(
        "crash test passed: {cycles} kills, {} answers ({} conflicts, {} replays), {versions} \
         versions of {} records, 0 lost, 0 twice; {} completions, each once and in order on \
         {SUBSCRIBERS} subscribers; slowest open {slowest_open:?}; {}",
        told.answers,
        told.conflicts,
        told.replays,
        told.versions.len(),
        cursors.len(),
        text(&verified.stdout).trim(),
    );
    println!("\n1 passed, 0 failed");
}

/// Sets until the server dies; gives back the requests whose answers were lost.
async fn write(
    mut client: StorageClient,
    cycle: usize,
    writer: usize,
    lost: Vec<SetAchievementStorageRequest>,
    retried: Arc<Barrier>,
    told: Arc<Mutex<Told>>,
) -> (usize, Vec<SetAchievementStorageRequest>) {
    for request in lost {
        let mut is_answered = false;
        // A disk may be slower than an attempt may take.
        for _ in 0..RETRIES {
            is_answered = is_answered || send(&mut client, &request, &told).await;
        }
        assert!(is_answered, "nobody kills the server before the retries are done");
    }
    retried.wait().await;
    let requests = (0..1_000_000u32).map(|n| {
        let player = format!("{cycle}-{}", fastrand::usize(..PLAYERS_PER_CYCLE));
        let node = format!("n{}", fastrand::usize(..NODES));
        SetAchievementStorageRequest {
            // Some say what they expect, and are often wrong.
            expected_version: (n % 3 == 0).then(|| fastrand::i64(0..TARGET)),
            request_id: format!("{cycle}-{writer}-{n}"),
            ..delta("t", &player, &node, 1)
        }
    });
    if writer.is_multiple_of(2) {
        return (writer, stream(client, requests, &told).await);
    }
    for request in requests {
        if !send(&mut client, &request, &told).await {
            return (writer, vec![request]);
        }
    }
    (writer, Vec::new())
}

/// Keeps sets under way on one stream until the server dies; gives back those without an answer, in
/// the order they were sent.
async fn stream(
    mut client: StorageClient,
    mut requests: impl Iterator<Item = SetAchievementStorageRequest>,
    told: &Mutex<Told>,
) -> Vec<SetAchievementStorageRequest> {
    let (sender, queue) = mpsc::channel(STREAM_SETS);
    let mut under_way = BTreeMap::new();
    let mut next = |under_way: &mut BTreeMap<u64, _>| {
        let (tag, set) = (under_way.keys().next_back().map_or(0, |last| last + 1), requests.next());
        under_way.extend(set.clone().map(|set| (tag, set)));
        let request = StreamSetAchievementStorageRequest { tag, set };
        sender.try_send(request).is_ok()
    };
    for _ in 0..STREAM_SETS {
        next(&mut under_way);
    }
    let opened = client.stream_set_achievement_storage(ReceiverStream::new(queue));
    if let Ok(Ok(answers)) = timeout(DEADLINE, opened).await {
        let mut answers = answers.into_inner();
        let mut answer = async || timeout(DEADLINE, answers.message()).await.ok()?.ok()?;
        while let Some(answer) = answer().await {
            let Some(Outcome::Response(response)) = answer.outcome else {
                panic!("{answer:?}");
            };
            let request = under_way.remove(&answer.tag).expect("a set is answered once");
            record(&mut *told.lock().await, &request, &response);
            next(&mut under_way);
        }
    }
    under_way.into_values().collect()
}

/// False where the answer was lost.
async fn send(
    client: &mut StorageClient,
    request: &SetAchievementStorageRequest,
    told: &Mutex<Told>,
) -> bool {
    // A client without a deadline can wait for ever on a connection whose other end was killed.
    let answer = timeout(DEADLINE, client.set_achievement_storage(request.clone()));
    match answer.await {
        Ok(Ok(response)) => {
            record(&mut *told.lock().await, request, &response.into_inner());
            true
        }
        Ok(Err(_)) | Err(_) => false,
    }
}

async fn tell(
    told: &mut Told,
    request: &SetAchievementStorageRequest,
    client: &mut StorageClient,
) -> Result<(), tonic::Status> {
    let response = client.set_achievement_storage(request.clone()).await?;
    record(told, request, &response.into_inner());
    Ok(())
}

fn record(
    told: &mut Told,
    request: &SetAchievementStorageRequest,
    response: &accolade::proto::v1::SetAchievementStorageResponse,
) {
    told.answers += 1;
    told.conflicts += u64::from(response.code == 5);
    told.replays += u64::from(response.replayed);
    let key = (request.player_id.clone(), request.node_id.clone());
    if response.code == 5 {
        // A conflict tells a version, too.
        let stored = response.entity.as_ref().expect("always there").version;
        let seen = told.seen.entry(key.clone()).or_default();
        *seen = stored.max(*seen);
    }
    if !response.changed {
        return;
    }
    let version = response.updated.as_ref().expect("always there").version;
    let before = response.entity.as_ref().expect("always there").version;
    assert_eq!(version, before + 1, "{key:?}");
    let id = &request.request_id;
    let first = told.versions.entry(key.clone()).or_default().entry(version).or_insert(id.clone());
    assert_eq!(first, id, "version {version} of {key:?} was given out twice");
    if response.newly_completed {
        let cursor = told.completions.entry(key).or_insert(response.cursor.clone());
        assert_eq!(*cursor, response.cursor, "a completion has one place");
    }
}

/// Right after an open: every acknowledged version of the last cycle is there.
async fn check_stored(server: &Server, told: &Told, cycle: usize) {
    let mut client = server.storage().await;
    for player in 0..PLAYERS_PER_CYCLE {
        let player = format!("{}-{player}", cycle.saturating_sub(1));
        let stored: BTreeMap<_, _> = get(&mut client, "t", &player)
            .await
            .into_iter()
            .map(|record| (record.achievement_id.clone(), record))
            .collect();
        for ((_, node), versions) in told.versions.iter().filter(|((of, _), _)| *of == player) {
            let acknowledged = versions.keys().next_back().unwrap();
            let found = stored.get(node).map_or(0, |record| record.version);
            assert!(found >= *acknowledged, "{player} {node}: {acknowledged} was lost, {found} is");
        }
    }
}

/// At the end: told and stored versions are equal, and so are completed records and the feed.
async fn check_end(server: &Server, told: &Told, feed: &[Completion]) {
    let mut client = server.storage().await;
    let players: BTreeSet<_> = told.versions.keys().map(|(player, _)| player.clone()).collect();
    let mut completed = BTreeMap::new();
    for player in players {
        for record in get(&mut client, "t", &player).await {
            let key = (player.clone(), record.achievement_id.clone());
            let seen = told.seen.get(&key).copied().unwrap_or_default();
            assert!(seen <= record.version, "{key:?}: a conflict told {seen}, which is lost");
            let versions: Vec<_> = told.versions[&key].keys().copied().collect();
            assert_eq!(versions, (1..=record.version).collect::<Vec<_>>(), "{key:?}");
            assert_eq!(record.progress, record.version, "each version added one: {key:?}");
            assert_eq!(record.completed_at != 0, record.progress == TARGET, "{key:?}");
            if record.completed_at != 0 {
                completed.insert(key, record.version);
            }
        }
    }
    let in_feed: BTreeMap<_, _> = feed
        .iter()
        .map(|it| ((it.player_id.clone(), it.achievement_id.clone()), it.version))
        .collect();
    assert_eq!(in_feed.len(), feed.len(), "each completion is in the feed once");
    assert_eq!(in_feed, completed);
    let cursors: BTreeMap<_, _> = feed
        .iter()
        .map(|it| ((it.player_id.clone(), it.achievement_id.clone()), it.cursor.clone()))
        .collect();
    assert_eq!(cursors, told.completions, "each at the place its writer was told");
}

async fn list(client: &mut CompletionClient) -> Vec<Completion> {
    let mut request = ListCompletionsRequest {
        title: "t".into(),
        page_size: 1000,
        ..ListCompletionsRequest::default()
    };
    let mut all = Vec::new();
    for _ in 0..1000 {
        let page = client.list_completions(request.clone()).await.unwrap().into_inner();
        all.extend(page.completions);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return all;
        }
    }
    panic!("the feed does not end");
}

/// Follows the feed across all lives of the server, and notes every cursor it sees.
async fn subscribe(mut address: Address, seen: Seen) {
    let mut cursor = String::new();
    loop {
        let url = address.borrow_and_update().clone();
        if !url.is_empty() {
            let _ = follow(&url, &mut cursor, &seen, &address).await;
        }
        let _ = timeout(Duration::from_millis(20), address.changed()).await;
    }
}

async fn follow(
    url: &str,
    cursor: &mut String,
    seen: &Seen,
    address: &Address,
) -> Result<(), Box<dyn std::error::Error>> {
    // As in `send`: each wait has an end.
    let connecting = CompletionClient::connect(url.to_owned());
    let mut client = timeout(DEADLINE, connecting).await??;
    let request = WatchCompletionsRequest {
        title: "t".into(),
        after: Some(cursor.clone()),
        heartbeat_interval: Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 }),
        ..WatchCompletionsRequest::default()
    };
    let mut stream = timeout(DEADLINE, client.watch_completions(request)).await??.into_inner();
    while let Some(message) = timeout(DEADLINE, stream.message()).await?? {
        match message.event.expect("one is set") {
            Event::Started(started) => *cursor = started.cursor,
            Event::Heartbeat(heartbeat) => *cursor = heartbeat.cursor,
            Event::Completion(completion) => {
                cursor.clone_from(&completion.cursor);
                seen.lock().await.push(completion.cursor);
            }
            Event::Reset(reset) => panic!("nobody resets anything: {reset:?}"),
        }
        if *address.borrow() != url {
            break;
        }
    }
    Ok(())
}

/// Waits until every subscriber is at the end of the feed, and compares what they saw.
async fn check_subscribers(seen: &[Seen], cursors: &[String]) {
    let deadline = Instant::now() + PATIENCE;
    for seen in seen {
        while seen.lock().await.len() < cursors.len() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(*seen.lock().await, cursors, "each completion once and in order");
    }
}

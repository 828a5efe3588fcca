//! The server under steady load for a long time, and what it takes of the machine meanwhile.
//!
//! Goal: once it is warm, memory, open files and disk stay where they are, and in the end every set
//! that was answered is there, once.
//!
//! Method: the rate of the real binary is measured with callers that ask again at once; then they
//! ask at 70 % of it. There are reads, sets, batches, streams of sets, completions, and a
//! subscriber, on records of which a few are hot; all of them connect anew again and again.
//! Retention keeps the feed short. Once a second, the server is looked at from outside.
//!
//! `ACCOLADE_SOAK_SECONDS` sets how long; 120 unless given.
#![allow(clippy::cast_precision_loss, reason = "bytes and counts are far below 2^52")]

#[path = "support/mod.rs"]
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use accolade::proto::v1::{
    BatchSetAchievementStorageRequest, NodeUpdate, SetAchievementStorageRequest,
    StreamSetAchievementStorageRequest, WatchCompletionsRequest, node_update,
    stream_set_achievement_storage_response::Outcome, watch_completions_response::Event,
};
use support::{CompletionClient, PATIENCE, Server, StorageClient, accolade, delta, get, set, text};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;

const CALLERS: usize = 8;
const STREAMS: usize = 2;
/// Sets under way on one stream.
const STREAM_SETS: usize = 8;
/// Operations on one connection.
const CONNECTION_OPERATIONS: usize = 500;
/// Completions on one watch.
const WATCH_COMPLETIONS: usize = 50;
/// Part of the rate of callers that ask again at once.
const LOAD: f64 = 0.7;

const PLAYERS: usize = 5000;
const HOT_PLAYERS: usize = 8;
const NODES: usize = 8;
const BATCH_NODES: usize = 4;
/// One operation in so many completes a record of a new player: such records stay, so they are few.
const COMPLETES_ONE_IN: usize = 200;
const RETENTION_COUNT: &str = "500";

/// Small, so that all caches are full when the measuring begins.
const CACHE_BYTES: &str = "4194304";

/// How much more memory there may be at the end of the second half than at its beginning, on a
/// straight line through all samples: so much do allocator and caches move up and down by
/// themselves. A night finds what loses a byte an operation.
const MEMORY_GROWTH_BYTES_MAX: f64 = (48 << 20) as f64;
/// As much for files: some connections are just being closed.
const FILES_GROWTH_MAX: f64 = 4.0;

const SEGMENT_BYTES: u64 = 8 << 20;
/// `ballast`, the room for opening on a full disk.
const BALLAST_BYTES: u64 = 4 * SEGMENT_BYTES;
/// Segments that sled takes however little it stores: it fills new ones while it moves what is left
/// in old ones, and takes those again only after a sync.
const SEGMENTS: u64 = 4;
/// How much more disk there may be at the end of the second half, as of memory. One segment more in
/// the middle of it makes 12 MiB on the line, two make 24; without the flusher these were 32 MiB in
/// a minute.
const DISK_GROWTH_BYTES_MAX: f64 = (26 << 20) as f64;
/// A record: key, frame and numbers; and for each request id that it remembers, as much as 8.
const RECORD_BYTES: u64 = 60;
const REMEMBERED_BYTES: u64 = 28;
/// A record that one set completed, and its completion.
const COMPLETED_BYTES: u64 = 200;

/// Player and node of a record, and how many changes of it were told.
type Versions = BTreeMap<(String, String), u64>;

/// Operations each second of all callers, and of all streams.
#[derive(Clone, Copy)]
struct Rates {
    calls: f64,
    stream_sets: f64,
}

/// What the server takes of the machine at one moment.
#[derive(Clone, Copy)]
struct Sample {
    memory_bytes: f64,
    files: f64,
    disk_bytes: u64,
}

#[tokio::main]
async fn main() {
    let seconds = std::env::var("ACCOLADE_SOAK_SECONDS").ok();
    let seconds: u64 =
        seconds.map_or(120, |text| text.parse().expect("ACCOLADE_SOAK_SECONDS is a number"));
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let args = ["--cache-bytes", CACHE_BYTES, "--retention-count", RETENTION_COUNT];
    let server = Server::start(&data, &args);
    let ids: Vec<_> = (0..NODES).map(|n| format!("n{n}")).collect();
    let counters = ids.iter().map(|id| (id.as_str(), 1 << 50));
    server.apply("t", &counters.chain([("once", 1)]).collect::<Vec<_>>()).await;

    let (stop, stopped) = watch::channel(false);
    let subscriber = tokio::spawn(subscribe(server.url(), stopped.clone()));
    let warming = Duration::from_secs(seconds / 10 + 2);
    let mut versions = fill(&server).await;
    let closed = load(&server, "warm", warming, None, &mut versions).await;
    let looking = tokio::spawn(sample(server.pid(), data.clone(), stopped));
    let time = Duration::from_secs(seconds);
    let rates = Rates { calls: closed.calls * LOAD, stream_sets: closed.stream_sets * LOAD };
    let open = load(&server, "load", time, Some(rates), &mut versions).await;
    stop.send_replace(true);
    let samples = looking.await.expect("the server runs");
    let received = subscriber.await.expect("the subscriber saw nothing wrong");

    let completions: BTreeSet<_> =
        versions.keys().filter(|(_, node)| node == "once").map(|(player, _)| player).collect();
    assert_eq!(received.iter().collect::<BTreeSet<_>>(), completions, "each is received, once");
    check_records(&server, &versions).await;
    assert!(!server.log().contains("ERROR"), "{}", server.log());
    assert!(!server.log().contains("panicked"), "{}", server.log());
    server.terminate();
    assert!(server.wait().await.success());
    let verified = accolade(&["verify", &data.display().to_string()]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));

    println!(
        "soak passed: {seconds} s at {:.0} of {:.0} operations a second, every set there once, \
         {} completions received once; {}",
        open.calls + open.stream_sets,
        closed.calls + closed.stream_sets,
        completions.len(),
        judge(&samples, logical_bytes(&versions)),
    );
    println!("\n1 passed, 0 failed");
}

/// A first change of every record, so that there are no more of them later.
async fn fill(server: &Server) -> Versions {
    let mut fillers = JoinSet::new();
    for filler in 0..CALLERS {
        let mut client = server.storage().await;
        fillers.spawn(async move {
            for player in (filler..PLAYERS).step_by(CALLERS) {
                let player_id = format!("p{player}");
                let request = batch(player_id.clone(), 0..NODES, player_id);
                client.batch_set_achievement_storage(request).await.expect("the batch is legal");
            }
        });
    }
    fillers.join_all().await;
    let player = |player: usize| (0..NODES).map(move |node| (player, node));
    let records = (0..PLAYERS).flat_map(player);
    records.map(|(player, node)| ((format!("p{player}"), format!("n{node}")), 1)).collect()
}

/// All callers and streams for a time; gives back how fast they were.
async fn load(
    server: &Server,
    phase: &'static str,
    time: Duration,
    rates: Option<Rates>,
    versions: &mut Versions,
) -> Rates {
    let until = Instant::now() + time;
    let pace = |rate: fn(Rates) -> f64, count: usize| {
        let interval = rates.map(|rates| Duration::from_secs_f64(count as f64 / rate(rates)));
        Pace { interval: interval.unwrap_or_default(), due: Instant::now() }
    };
    let (mut callers, mut streams) = (JoinSet::new(), JoinSet::new());
    for number in 0..CALLERS {
        let pace = pace(|rates| rates.calls, CALLERS);
        let name = format!("{phase}-{number}");
        let task =
            Task { url: server.url(), name, until, pace, versions: Versions::new(), done: 0 };
        callers.spawn(task.call());
    }
    for number in CALLERS..CALLERS + STREAMS {
        let pace = pace(|rates| rates.stream_sets, STREAMS);
        let name = format!("{phase}-{number}");
        let task =
            Task { url: server.url(), name, until, pace, versions: Versions::new(), done: 0 };
        streams.spawn(task.stream());
    }
    let mut rate = async |tasks: JoinSet<Task>| {
        let mut done = 0;
        for task in tasks.join_all().await {
            done += task.done;
            for (key, changes) in task.versions {
                *versions.entry(key).or_default() += changes;
            }
        }
        done as f64 / time.as_secs_f64()
    };
    Rates { calls: rate(callers).await, stream_sets: rate(streams).await }
}

/// Lets one operation go each interval; those that are late follow at once.
struct Pace {
    interval: Duration,
    due: Instant,
}

impl Pace {
    async fn wait(&mut self) {
        if !self.interval.is_zero() {
            tokio::time::sleep_until(self.due).await;
            self.due += self.interval;
        }
    }
}

/// One caller, or one stream.
struct Task {
    url: String,
    name: String,
    until: Instant,
    pace: Pace,
    /// What it was told to have changed.
    versions: Versions,
    done: usize,
}

impl Task {
    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    async fn connect(&self) -> StorageClient {
        StorageClient::connect(self.url.clone()).await.expect("the server accepts")
    }

    fn changed(&mut self, player: &str, node: &str) {
        *self.versions.entry((player.to_owned(), node.to_owned())).or_default() += 1;
    }

    fn request_id(&self) -> String {
        format!("{}-{}", self.name, self.done)
    }

    /// A set of a record that others set as well, or of one that nobody ever set.
    fn next_set(&self) -> SetAchievementStorageRequest {
        let request = match fastrand::usize(..COMPLETES_ONE_IN) {
            0 => delta("t", &self.request_id(), "once", 1),
            _ => delta("t", &any_player(), &any_node(), 1),
        };
        SetAchievementStorageRequest { request_id: self.request_id(), ..request }
    }

    async fn call(mut self) -> Self {
        while !self.is_over() {
            let mut client = self.connect().await;
            for _ in 0..CONNECTION_OPERATIONS {
                self.pace.wait().await;
                if self.is_over() {
                    break;
                }
                let operation = self.operate(&mut client);
                tokio::time::timeout(PATIENCE, operation).await.expect("it is answered in time");
                self.done += 1;
            }
        }
        self
    }

    async fn operate(&mut self, client: &mut StorageClient) {
        match fastrand::u8(..10) {
            0..4 => drop(get(client, "t", &any_player()).await),
            4 => self.compare_and_set(client).await,
            5 => self.set_batch(client).await,
            _ => {
                let request = self.next_set();
                if set(client, request.clone()).await.changed {
                    self.changed(&request.player_id, &request.node_id);
                }
            }
        }
    }

    /// Conflicts where somebody was faster.
    async fn compare_and_set(&mut self, client: &mut StorageClient) {
        let (player, node) = (any_player(), any_node());
        let records = get(client, "t", &player).await;
        let record = records.iter().find(|record| record.achievement_id == node);
        let request = SetAchievementStorageRequest {
            extra: Some("戴着红帽子, for the ninth time".to_owned()),
            expected_version: Some(record.map_or(0, |record| record.version)),
            ..delta("t", &player, &node, 1)
        };
        if set(client, request).await.changed {
            self.changed(&player, &node);
        }
    }

    async fn set_batch(&mut self, client: &mut StorageClient) {
        let player = any_player();
        let nodes = (0..NODES).cycle().skip(fastrand::usize(..NODES)).take(BATCH_NODES);
        let request = batch(player.clone(), nodes, self.request_id());
        let answer = client.batch_set_achievement_storage(request).await;
        for result in answer.expect("the batch is legal").into_inner().results {
            assert!(result.changed, "nothing conflicts");
            self.changed(&player, &result.achievement_id);
        }
    }

    async fn stream(mut self) -> Self {
        while !self.is_over() {
            let mut client = self.connect().await;
            let (sender, queue) = mpsc::channel(STREAM_SETS);
            let answers = client.stream_set_achievement_storage(ReceiverStream::new(queue)).await;
            let mut answers = answers.expect("the stream is opened").into_inner();
            let mut under_way = BTreeMap::new();
            for tag in 0..CONNECTION_OPERATIONS as u64 {
                self.pace.wait().await;
                if self.is_over() {
                    break;
                }
                let set = self.next_set();
                under_way.insert(tag, set.clone());
                let request = StreamSetAchievementStorageRequest { tag, set: Some(set) };
                sender.send(request).await.expect("the stream is open");
                self.done += 1;
                while under_way.len() >= STREAM_SETS {
                    self.answer(&mut answers, &mut under_way).await;
                }
            }
            drop(sender);
            while !under_way.is_empty() {
                self.answer(&mut answers, &mut under_way).await;
            }
        }
        self
    }

    async fn answer(
        &mut self,
        answers: &mut tonic::Streaming<accolade::proto::v1::StreamSetAchievementStorageResponse>,
        under_way: &mut BTreeMap<u64, SetAchievementStorageRequest>,
    ) {
        let answer = tokio::time::timeout(PATIENCE, answers.message()).await;
        let answer = answer.expect("it is answered in time").expect("the stream stands");
        let answer = answer.expect("every set is answered");
        let request = under_way.remove(&answer.tag).expect("a set is answered once");
        let Some(Outcome::Response(response)) = answer.outcome else { panic!("{answer:?}") };
        if response.changed {
            self.changed(&request.player_id, &request.node_id);
        }
    }
}

/// Adds one to each of these nodes.
fn batch(
    player_id: String,
    nodes: impl Iterator<Item = usize>,
    request_id: String,
) -> BatchSetAchievementStorageRequest {
    let updates = nodes.map(|node| NodeUpdate {
        node_id: format!("n{node}"),
        change: Some(node_update::Change::Delta(1)),
        ..NodeUpdate::default()
    });
    let (title, updates) = ("t".to_owned(), updates.collect());
    BatchSetAchievementStorageRequest { title, player_id, updates, request_id }
}

/// Half of them are hot.
fn any_player() -> String {
    let players = if fastrand::bool() { HOT_PLAYERS } else { PLAYERS };
    format!("p{}", fastrand::usize(..players))
}

fn any_node() -> String {
    format!("n{}", fastrand::usize(..NODES))
}

/// Follows the feed over many watches, each from the cursor of the one before, until it is told to
/// stop and nothing more comes; gives back the players in the order of their completions.
async fn subscribe(url: String, stopped: watch::Receiver<bool>) -> Vec<String> {
    let (mut cursor, mut players) = (String::new(), Vec::new());
    loop {
        let mut client = CompletionClient::connect(url.clone()).await.expect("the server accepts");
        let request = WatchCompletionsRequest {
            title: "t".to_owned(),
            after: Some(cursor.clone()),
            heartbeat_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            ..WatchCompletionsRequest::default()
        };
        let watch = client.watch_completions(request).await;
        let mut watch = watch.expect("the watch is legal").into_inner();
        let mut is_at_end = false;
        for _ in 0..WATCH_COMPLETIONS {
            let message = tokio::time::timeout(PATIENCE, watch.message()).await;
            let message = message.expect("heartbeats come").expect("nobody ends the watch");
            match message.expect("nobody ends the watch").event.expect("one is set") {
                Event::Started(started) => cursor = started.cursor,
                // It stands at the end of the feed; the first may have been under way.
                Event::Heartbeat(_) if *stopped.borrow() && is_at_end => return players,
                Event::Heartbeat(heartbeat) => {
                    is_at_end = *stopped.borrow();
                    cursor = heartbeat.cursor;
                }
                Event::Completion(completion) => {
                    cursor = completion.cursor;
                    players.push(completion.player_id);
                }
                Event::Reset(reset) => panic!("nobody resets anything: {reset:?}"),
            }
        }
    }
}

/// Every change that was told is there, and no other.
async fn check_records(server: &Server, versions: &Versions) {
    let mut client = server.storage().await;
    let mut left = versions.clone();
    for player in versions.keys().map(|(player, _)| player).collect::<BTreeSet<_>>() {
        for record in get(&mut client, "t", player).await {
            let key = (player.clone(), record.achievement_id);
            let told = left.remove(&key).map(|version| i64::try_from(version).unwrap());
            assert_eq!(told, Some(record.version), "{key:?}");
            assert_eq!(record.progress, record.version, "each change added one: {key:?}");
        }
    }
    assert_eq!(left, Versions::new(), "what was told is stored");
}

/// Looks at the server once a second.
async fn sample(pid: u32, data: PathBuf, stopped: watch::Receiver<bool>) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    while !*stopped.borrow() {
        second.tick().await;
        samples.push(Sample {
            memory_bytes: memory_bytes(pid) as f64,
            files: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as f64,
            disk_bytes: disk_bytes(&data),
        });
    }
    samples
}

fn memory_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// What a folder takes of the disk; sled's files have holes.
fn disk_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let bytes = entries.map(|path| match path.is_dir() {
        true => disk_bytes(&path),
        // sled removes snapshots meanwhile.
        false => fs::metadata(&path).map_or(0, |file| file.blocks() * 512),
    });
    bytes.sum()
}

/// What the records are made of, if nothing were lost around them.
fn logical_bytes(versions: &Versions) -> u64 {
    let bytes = versions.iter().map(|((_, node), changes)| match node.as_str() {
        "once" => COMPLETED_BYTES,
        _ => RECORD_BYTES + REMEMBERED_BYTES * changes.min(&8),
    });
    bytes.sum()
}

/// How much more the value is at the end than at the beginning, on the straight line that fits.
fn growth(samples: &[Sample], value: fn(&Sample) -> f64) -> f64 {
    let count = samples.len() as f64;
    let mean = samples.iter().map(value).sum::<f64>() / count;
    let middle = (count - 1.0) / 2.0;
    let (mut covariance, mut variance) = (0.0, 0.0);
    for (at, sample) in samples.iter().enumerate() {
        let at = at as f64 - middle;
        covariance += at * (value(sample) - mean);
        variance += at * at;
    }
    covariance / variance * count
}

/// What is asked of the second half of the time.
fn judge(samples: &[Sample], logical_bytes: u64) -> String {
    let half = &samples[samples.len() / 2..];
    assert!(half.len() >= 5, "too short to say anything");
    let memory_growth = growth(half, |sample| sample.memory_bytes);
    let files_growth = growth(half, |sample| sample.files);
    let disk_growth = growth(half, |sample| sample.disk_bytes as f64);
    let max = |value: fn(&Sample) -> f64| half.iter().map(value).fold(0.0, f64::max);
    let memory_max = max(|sample| sample.memory_bytes);
    let files_max = max(|sample| sample.files);
    let disk_max = half.iter().map(|sample| sample.disk_bytes).max().unwrap_or_default();
    let disk_bound = BALLAST_BYTES + SEGMENTS * SEGMENT_BYTES + 4 * logical_bytes;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let line = format!(
        "in the second half memory {:.1} MiB ({:+.1}), {files_max} files ({files_growth:+.1}), \
         disk {:.1} MiB ({:+.1}) of at most {:.1} for {:.1} of records",
        mib(memory_max),
        mib(memory_growth),
        mib(disk_max as f64),
        mib(disk_growth),
        mib(disk_bound as f64),
        mib(logical_bytes as f64),
    );
    assert!(memory_growth <= MEMORY_GROWTH_BYTES_MAX, "memory grows: {line}");
    assert!(files_growth <= FILES_GROWTH_MAX, "files are left open: {line}");
    assert!(disk_max <= disk_bound, "the disk fills: {line}");
    assert!(disk_growth <= DISK_GROWTH_BYTES_MAX, "the disk fills: {line}");
    line
}

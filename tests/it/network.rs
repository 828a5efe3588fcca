//! A bad network between clients and the real server. Goal: whatever is late, lost or told twice on
//! the way, compare-and-sets with retries are what one client after the other could have seen.
//!
//! Method: a proxy delays every piece of bytes by 2 to 30 ms, cuts connections at random, and for a
//! second lets nothing through at all. Clients give up waiting, connect anew, and ask again under
//! the same request id until they are answered. Their histories, and what the records hold in the
//! end, are judged as in `linear.rs`.
//!
//! Randomness is the machine's: a real network stack cannot be replayed from a seed. So a history
//! that fails is told with the operations that cannot be true.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use accolade::proto::v1::{
    SetAchievementStorageRequest, SetAchievementStorageResponse,
    set_achievement_storage_request::Change,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
};
use tonic::transport::{Channel, Endpoint};

use crate::support::{
    Server, StorageClient, get,
    history::{History, Kind, Operation, Outcome, check, mutate},
    say,
};

const CLIENTS: usize = 8;
const OPERATIONS: usize = 30;
const RECORDS: usize = 6;

/// How many updates of a record a request id is known for.
const REMEMBERED: u64 = 8;

/// Longest a client asks for one answer: far beyond any partition.
const TRIES_MAX: u32 = 60;

/// So much longer a client waits each time: a slow machine may need more than the first tries have.
const RETRY_PATIENCE: Duration = Duration::from_millis(50);

/// Histories at the same time; they wait for the network most of the time.
const AT_ONCE: usize = 5;

/// `make soak` sets more.
fn histories() -> usize {
    std::env::var("ACCOLADE_NETWORK_HISTORIES").map_or(10, |text| text.parse().expect("a number"))
}

fn millis(range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(fastrand::u64(range))
}

/// What happened, over all histories.
#[derive(Default)]
pub struct Counts {
    pub cuts: AtomicU64,
    retries: AtomicU64,
    replays: AtomicU64,
    forgotten: AtomicU64,
}

/// The way to the server; gone when dropped.
pub struct Network {
    pub url: String,
    is_parted: watch::Sender<bool>,
    accepting: AbortHandle,
}

impl Network {
    pub async fn start(server: String, counts: Arc<Counts>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (is_parted, parted) = watch::channel(false);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            let mut is_first = true;
            while let Ok((client, _)) = listener.accept().await {
                let (server, parted, counts) = (server.clone(), parted.clone(), counts.clone());
                connections.spawn(async move {
                    let server = TcpStream::connect(server).await.expect("the server listens");
                    if carry(client, server, parted, is_first).await {
                        counts.cuts.fetch_add(1, Relaxed);
                    }
                });
                is_first = false;
                while connections.try_join_next().is_some() {}
            }
        });
        Self { url, is_parted, accepting: accepting.abort_handle() }
    }

    /// Nothing gets through for a second; what was on its way arrives afterwards, if the connection
    /// still stands.
    pub async fn part(&self) {
        tokio::time::sleep(millis(100..900)).await;
        self.is_parted.send_replace(true);
        tokio::time::sleep(millis(800..1200)).await;
        self.is_parted.send_replace(false);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Carries bytes both ways until one side ends, or the connection is cut: then this is true. The
/// first connection is always cut, and soon.
async fn carry(
    client: TcpStream,
    server: TcpStream,
    parted: watch::Receiver<bool>,
    is_first: bool,
) -> bool {
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let life = match (is_first, fastrand::bool()) {
        (true, _) => millis(20..100),
        (false, true) => millis(20..1500),
        (false, false) => Duration::from_secs(600),
    };
    tokio::select! {
        _ = pump(from_client, to_server, parted.clone()) => false,
        _ = pump(from_server, to_client, parted) => false,
        () = tokio::time::sleep(life) => true,
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut parted: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let bytes = from.read(&mut buffer).await?;
        if bytes == 0 {
            return Ok(());
        }
        tokio::time::sleep(millis(2..31)).await;
        if parted.wait_for(|parted| !parted).await.is_err() {
            return Ok(());
        }
        to.write_all(&buffer[..bytes]).await?;
    }
}

/// One of the clients of a history.
struct Caller {
    name: usize,
    round: usize,
    start: Instant,
    url: String,
    counts: Arc<Counts>,
    history: History,
}

impl Caller {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap()
    }

    /// A connection that may be cut before it is used.
    fn connect(&self) -> StorageClient {
        let endpoint = Endpoint::from_shared(self.url.clone()).unwrap();
        let endpoint = endpoint.connect_timeout(Duration::from_millis(500));
        StorageClient::new(endpoint.connect_lazy())
    }

    /// Reads and compare-and-sets on records that all clients share.
    async fn play(mut self) -> History {
        let mut client = self.connect();
        let mut seen = [0; RECORDS];
        for n in 0..OPERATIONS {
            let record = fastrand::usize(..RECORDS);
            let version = match fastrand::u8(..4) {
                0 => self.read(&mut client, record).await,
                _ => self.set(&mut client, record, seen[record], n).await,
            };
            seen[record] = version.unwrap_or(seen[record]);
        }
        self.history
    }

    fn note(&mut self, record: usize, kind: Kind, invoked: u64, outcome: Outcome) {
        let returned = (outcome != Outcome::Unknown).then(|| self.now());
        let (client, key) = (self.name, format!("r{record}"));
        self.history.push(Operation { client, key, kind, invoked, returned, outcome });
    }

    /// A read is not repeated: one that gets no answer says nothing.
    async fn read(&mut self, client: &mut StorageClient, record: usize) -> Option<u64> {
        let invoked = self.now();
        let request = accolade::proto::v1::GetAchievementStorageRequest {
            title: "t".to_owned(),
            player_id: player(self.round, record),
            achievement_ids: Vec::new(),
        };
        let asked = client.get_achievement_storage(request);
        let Ok(Ok(answer)) = tokio::time::timeout(millis(50..600), asked).await else {
            *client = self.connect();
            return None;
        };
        let answer = answer.into_inner();
        let (version, progress) =
            answer.entity.first().map_or((0, 0), |it| numbers(it.version, it.progress));
        self.note(record, Kind::Get, invoked, Outcome::Read { version, progress });
        Some(version)
    }

    /// Asks until there is an answer.
    async fn set(
        &mut self,
        client: &mut StorageClient,
        record: usize,
        expected: u64,
        n: usize,
    ) -> Option<u64> {
        let delta = fastrand::u64(1..=3);
        let kind = Kind::Set { expected: Some(expected), delta };
        let request = SetAchievementStorageRequest {
            title: "t".to_owned(),
            player_id: player(self.round, record),
            node_id: "n".to_owned(),
            change: Some(Change::Delta(delta.try_into().unwrap())),
            expected_version: Some(expected.try_into().unwrap()),
            request_id: format!("{}-{n}", self.name),
            ..SetAchievementStorageRequest::default()
        };
        let invoked = self.now();
        for retry in 0..TRIES_MAX {
            let invoked_again = self.now();
            let asked = client.set_achievement_storage(request.clone());
            let patience = millis(50..600) + RETRY_PATIENCE * retry;
            let Ok(Ok(answer)) = tokio::time::timeout(patience, asked).await else {
                self.counts.retries.fetch_add(1, Relaxed);
                *client = self.connect();
                continue;
            };
            let answer = answer.into_inner();
            self.counts.replays.fetch_add(u64::from(answer.replayed), Relaxed);
            let (version, outcome) = outcome(&answer);
            let is_conflict = matches!(outcome, Outcome::Conflict { .. });
            if retry > 0 && is_conflict && version > expected + REMEMBERED {
                // The first try may have been stored, and be forgotten by now: then this retry is
                // another set.
                self.counts.forgotten.fetch_add(1, Relaxed);
                self.note(record, kind, invoked, Outcome::Unknown);
                self.note(record, kind, invoked_again, outcome);
            } else {
                self.note(record, kind, invoked, outcome);
            }
            return Some(version);
        }
        panic!("no answer after {TRIES_MAX} tries");
    }
}

fn player(round: usize, record: usize) -> String {
    format!("p{round}-{record}")
}

fn numbers(version: i64, progress: i64) -> (u64, u64) {
    (u64::try_from(version).unwrap(), u64::try_from(progress).unwrap())
}

/// The version that a caller now knows of, and the whole of what it was told.
fn outcome(answer: &SetAchievementStorageResponse) -> (u64, Outcome) {
    match (answer.code, &answer.entity, &answer.updated) {
        (0, _, Some(updated)) => {
            let (version, progress) = numbers(updated.version, updated.progress);
            (version, Outcome::Stored { version, progress })
        }
        (5, Some(entity), _) => {
            let (version, progress) = numbers(entity.version, entity.progress);
            (version, Outcome::Conflict { version, progress })
        }
        _ => panic!("{answer:?}"),
    }
}

/// One history, with what the records hold at its end, read past the network.
async fn history(round: usize, server: String, direct: Channel, counts: Arc<Counts>) -> History {
    let network = Network::start(server, counts.clone()).await;
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for name in 0..CLIENTS {
        let (url, counts) = (network.url.clone(), counts.clone());
        callers.spawn(Caller { name, round, start, url, counts, history: History::new() }.play());
    }
    network.part().await;
    let mut history = callers.join_all().await.concat();
    let mut client = StorageClient::new(direct);
    for record in 0..RECORDS {
        let now = || u64::try_from(start.elapsed().as_nanos()).unwrap();
        let invoked = now();
        let found = get(&mut client, "t", &player(round, record)).await;
        let found = found.first().map_or((0, 0), |it| numbers(it.version, it.progress));
        history.push(Operation {
            client: CLIENTS,
            key: format!("r{record}"),
            kind: Kind::Get,
            invoked,
            returned: Some(now()),
            outcome: Outcome::Read { version: found.0, progress: found.1 },
        });
    }
    history
}

#[tokio::test(flavor = "multi_thread")]
async fn every_history_over_a_bad_network_is_linearizable() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    server.apply("t", &[("n", 1 << 50)]).await;
    let counts = Arc::new(Counts::default());
    let (mut next, mut running) = (0, JoinSet::new());
    let (mut operations, mut mutants) = (0, 0);
    let mut told: BTreeMap<&str, usize> = BTreeMap::new();
    loop {
        while next < histories() && running.len() < AT_ONCE {
            let (address, direct) = (server.address.clone(), server.channel().await);
            running.spawn(history(next, address, direct, counts.clone()));
            next += 1;
        }
        let Some(history) = running.join_next().await else { break };
        let history = history.expect("every client is answered in the end");
        check(&history).unwrap_or_else(|error| panic!("{error}\n{history:#?}"));
        operations += history.len();
        for operation in &history {
            *told.entry(name(operation.outcome)).or_default() += 1;
        }
        // That the checker would have noticed is shown on the same history.
        for _ in 0..20 {
            let Some((mutant, what)) = mutate(&history, &mut fastrand::Rng::new()) else {
                continue;
            };
            assert!(check(&mutant).is_err(), "not noticed: {what}");
            mutants += 1;
        }
    }
    let of = |count: &AtomicU64| count.load(Relaxed);
    let (cuts, retries, replays) = (of(&counts.cuts), of(&counts.retries), of(&counts.replays));
    say(&format!(
        "{} histories over a bad network, {operations} operations ({told:?}), {cuts} cuts, \
         {retries} retries, {replays} replays, {} forgotten: linearizable; {mutants} mutants: \
         refused",
        histories(),
        of(&counts.forgotten),
    ));
    let bites = cuts > 0 && retries > 0 && replays > 0 && mutants > 0 && told.len() >= 3;
    assert!(bites, "the histories show nothing");
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

fn name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Stored { .. } => "stored",
        Outcome::Conflict { .. } => "conflicts",
        Outcome::Read { .. } => "reads",
        Outcome::Unknown => "unknown",
    }
}

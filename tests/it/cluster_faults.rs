//! Two servers on three NATS servers while leaders are killed, all of them are killed, a leader
//! stands still or is cut off from the others, and servers of ours are killed: no acknowledged set
//! is lost, every history is linearizable, and every subscriber hears of every completion once.
//!
//! `ACCOLADE_LEADER_KILLS` sets how many leaders are killed; 20 unless given.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use accolade::proto::v1::{
    GetAchievementStorageRequest, ListCompletionsRequest, WatchCompletionsRequest,
    completion_service_client::CompletionServiceClient, watch_completions_response::Event,
};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{Request, transport::Endpoint};

use crate::{
    cluster::{init, wait_for_title},
    cluster_trouble::answered,
    linear::Room,
    support::{
        Server, StorageClient, delta,
        history::{History, check, mutate},
        nats::{Cut, Nats, Ways},
        say,
    },
};

const PARTITIONS: u32 = 3;
const CLIENTS: usize = 6;
const OPERATIONS: usize = 60;
const WRITERS: usize = 2;
const SUBSCRIBERS: usize = 2;

/// Longest wait for what must come in the end: several elections, one after the other.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a caller gives a set of which it must know the outcome.
const DEADLINE: Duration = Duration::from_secs(12);

/// Longer than our servers wait for an answer, and shorter than a cluster waits for its leader.
const STALLED: Duration = Duration::from_secs(3);

/// Longer than a leader that was cut off takes to notice (10 s).
const CUT: Duration = Duration::from_secs(14);

fn leader_kills() -> usize {
    std::env::var("ACCOLADE_LEADER_KILLS").map_or(20, |text| text.parse().expect("a number"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fault {
    KillLeader,
    KillAll,
    StopLeader,
    StopFollowers,
    CutLeader,
    KillServer,
}

struct Scene {
    nats: Nats,
    cluster: String,
    dir: TempDir,
    servers: Vec<Option<Server>>,
    urls: watch::Sender<Vec<String>>,
}

impl Scene {
    fn log(&self, n: usize) -> PathBuf {
        self.dir.path().join(format!("s{n}.log"))
    }

    fn start_server(&mut self, n: usize) {
        self.servers[n] = Some(Server::start_on(&self.cluster, &self.log(n), &[]));
        self.tell();
    }

    /// Tells clients where servers are.
    fn tell(&self) {
        self.urls.send_replace(self.servers.iter().flatten().map(Server::url).collect());
    }

    /// A server of NATS that leads some partition.
    async fn leader(&self) -> usize {
        self.leader_of(&format!("ACH_{}", fastrand::u32(..PARTITIONS))).await
    }

    /// The server that leads a stream, once there is one.
    async fn leader_of(&self, stream: &str) -> usize {
        let start = Instant::now();
        loop {
            if let Some(leader) = self.nats.leader(stream) {
                return leader;
            }
            assert!(start.elapsed() < PATIENCE, "nobody leads {stream}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn cause(&mut self, fault: Fault) {
        match fault {
            Fault::KillLeader => {
                let leader = self.leader().await;
                self.nats.kill(leader);
                sleep(Duration::from_millis(fastrand::u64(0..2000))).await;
                self.nats.run(leader);
            }
            Fault::KillAll => {
                (0..3).for_each(|n| self.nats.kill(n));
                sleep(Duration::from_millis(fastrand::u64(0..1000))).await;
                (0..3).for_each(|n| self.nats.run(n));
            }
            Fault::StopLeader => {
                let stream = format!("ACH_{}", fastrand::u32(..PARTITIONS));
                let leader = self.leader_of(&stream).await;
                self.nats.signal(leader, "STOP");
                // It says nothing; another does.
                self.leader_of(&stream).await;
                self.nats.signal(leader, "CONT");
            }
            // The leader stays the leader, and stores nothing for a while: answers come too late.
            Fault::StopFollowers => {
                let leader = self.leader().await;
                let others = || (0..3).filter(|n| *n != leader);
                others().for_each(|n| self.nats.signal(n, "STOP"));
                sleep(STALLED).await;
                others().for_each(|n| self.nats.signal(n, "CONT"));
            }
            Fault::CutLeader => {
                let leader = self.leader().await;
                self.nats.cut(leader, Cut::Silent);
                sleep(CUT).await;
                self.nats.cut(leader, Cut::Not);
            }
            Fault::KillServer => {
                let n = fastrand::usize(..self.servers.len());
                self.servers[n].take().expect("it runs").kill();
                self.tell();
                sleep(Duration::from_millis(fastrand::u64(0..500))).await;
                self.start_server(n);
            }
        }
    }

    /// Waits until all of the cluster is well.
    fn mend(&self) {
        (0..3).for_each(|n| self.nats.wait_ready(n));
    }
}

/// What writers and subscribers share.
#[derive(Clone)]
struct Shared {
    urls: watch::Receiver<Vec<String>>,
    /// Players whose completion was acknowledged.
    completed: Arc<Mutex<Vec<String>>>,
    is_over: Arc<AtomicBool>,
}

impl Shared {
    async fn url(&mut self) -> String {
        let urls = self.urls.wait_for(|urls| !urls.is_empty()).await.unwrap().clone();
        urls[fastrand::usize(..urls.len())].clone()
    }

    async fn channel(&mut self) -> tonic::transport::Channel {
        loop {
            let endpoint = Endpoint::from_shared(self.url().await).unwrap();
            let endpoint = endpoint.connect_timeout(Duration::from_secs(2));
            if let Ok(channel) = endpoint.connect().await {
                return channel;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Completes one player after the other, each until there is an answer; tells the longest time
    /// without one.
    async fn write(mut self, name: String) -> Duration {
        let mut client = StorageClient::new(self.channel().await);
        let mut longest = Duration::ZERO;
        for n in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                break;
            }
            let player = format!("{name}-{n}");
            let mut set = delta("t", &player, "m", 1);
            set.request_id = player.clone();
            let start = Instant::now();
            loop {
                let mut request = Request::new(set.clone());
                request.set_timeout(DEADLINE);
                let failed = match client.set_achievement_storage(request).await {
                    Ok(answer) => {
                        let answer = answer.into_inner();
                        assert!(answer.code == 0 && answer.newly_completed, "{answer:?}");
                        break;
                    }
                    Err(failed) => failed,
                };
                assert!(start.elapsed() < PATIENCE, "no answer to {player}: {failed:?}");
                client = StorageClient::new(self.channel().await);
            }
            longest = longest.max(start.elapsed());
            self.completed.lock().push(player);
            sleep(Duration::from_millis(2)).await;
        }
        longest
    }

    /// Hears of completions, each time from where it stopped, until it has heard of all.
    async fn follow(mut self, all: Arc<AtomicUsize>) -> HashMap<String, usize> {
        let mut heard: HashMap<String, usize> = HashMap::new();
        let mut after = String::new();
        loop {
            let mut client = CompletionServiceClient::new(self.channel().await);
            let request = WatchCompletionsRequest {
                title: "t".to_owned(),
                after: Some(after.clone()),
                heartbeat_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
                ..WatchCompletionsRequest::default()
            };
            let Ok(Ok(events)) = timeout(DEADLINE, client.watch_completions(request)).await else {
                continue;
            };
            let mut events = events.into_inner();
            while let Ok(Ok(Some(message))) = timeout(DEADLINE, events.message()).await {
                match message.event.unwrap() {
                    Event::Completion(it) => {
                        *heard.entry(it.player_id).or_default() += 1;
                        after = it.cursor;
                    }
                    Event::Started(it) => after = it.cursor,
                    Event::Heartbeat(it) => after = it.cursor,
                    Event::Reset(_) => unreachable!("nobody resets"),
                }
                if heard.len() >= all.load(Ordering::Relaxed) {
                    return heard;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_set_is_lost_whatever_is_killed() {
    let start = || Nats::start_in(&std::env::temp_dir(), 3, Ways::Cuttable);
    let nats = tokio::task::spawn_blocking(start).await.unwrap();
    let cluster = nats.url("ach");
    init(&cluster, &PARTITIONS.to_string(), "3");
    let (urls, watched) = watch::channel(Vec::new());
    let dir = TempDir::new().unwrap();
    let mut scene = Scene { nats, cluster, dir, servers: vec![None, None], urls };
    (0..2).for_each(|n| scene.start_server(n));
    scene.servers[0].as_ref().unwrap().apply("t", &[("n", 1 << 50), ("m", 1)]).await;
    wait_for_title(scene.servers[1].as_ref().unwrap(), "t").await;

    let all = Arc::new(AtomicUsize::new(usize::MAX));
    let shared = |is_over: &Arc<AtomicBool>, completed: &Arc<Mutex<Vec<String>>>| Shared {
        urls: watched.clone(),
        completed: completed.clone(),
        is_over: is_over.clone(),
    };
    let completed = Arc::new(Mutex::new(Vec::new()));
    let mut subscribers = JoinSet::new();
    for _ in 0..SUBSCRIBERS {
        let subscriber = shared(&Arc::default(), &completed);
        subscribers.spawn(subscriber.follow(all.clone()));
    }

    let kills = leader_kills();
    let mut faults = vec![Fault::KillLeader; kills];
    let others = [
        (Fault::KillAll, 10),
        (Fault::StopLeader, 10),
        (Fault::StopFollowers, 5),
        (Fault::CutLeader, 10),
        (Fault::KillServer, 5),
    ];
    for (fault, every) in others {
        faults.extend(vec![fault; kills.div_ceil(every)]);
    }
    fastrand::shuffle(&mut faults);
    let mut outages: HashMap<Fault, Vec<Duration>> = HashMap::new();
    let (mut operations, mut lost, mut mutants) = (0, 0, 0);
    for (round, fault) in faults.iter().copied().enumerate() {
        let start = Instant::now();
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let (operations, urls) = (OPERATIONS, watched.clone());
            clients.spawn(Room { round, client, start, operations, urls }.play());
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let name = format!("w{writer}-{round}");
            writers.spawn(shared(&is_over, &completed).write(name));
        }
        sleep(Duration::from_millis(fastrand::u64(5..200))).await;
        scene.cause(fault).await;
        let histories =
            timeout(PATIENCE, clients.join_all()).await.expect("clients come to an end");
        is_over.store(true, Ordering::Relaxed);
        let longest = writers.join_all().await.into_iter().max().unwrap_or_default();
        outages.entry(fault).or_default().push(longest);

        let history: History = histories.into_iter().flatten().collect();
        check(&history).unwrap_or_else(|error| panic!("round {round}, {fault:?}: {error}"));
        operations += history.len();
        lost += history.iter().filter(|it| it.returned.is_none()).count();
        for _ in 0..5 {
            if let Some((mutant, what)) = mutate(&history, &mut fastrand::Rng::new()) {
                assert!(check(&mutant).is_err(), "round {round}: not noticed: {what}");
                mutants += 1;
            }
        }
        scene.mend();
    }

    // Everything that was acknowledged is there, and was told once.
    let completed = completed.lock().clone();
    let client = scene.servers[0].as_ref().unwrap().storage().await;
    check_records(&client, &completed).await;
    let listed = listed(scene.servers[1].as_ref().unwrap()).await;
    assert_eq!(listed.len(), completed.len(), "every completion was acknowledged in the end");
    assert!(completed.iter().all(|player| listed.get(player) == Some(&1)));
    // With the one that is still to come.
    all.store(completed.len() + 1, Ordering::Relaxed);
    // The last event wakes whoever has heard of all already.
    let mut final_set = delta("t", "last", "m", 1);
    final_set.request_id = "last".to_owned();
    answered(async || client.clone().set_achievement_storage(final_set.clone()).await).await;
    let heard = timeout(PATIENCE, subscribers.join_all()).await.expect("all is heard of");
    for heard in heard {
        assert!(heard.values().all(|count| *count == 1), "something was told twice");
        assert!(completed.iter().all(|player| heard.contains_key(player)));
    }
    for (fault, mut longest) in outages {
        longest.sort_unstable();
        let seconds: Vec<_> = longest.iter().map(|it| format!("{:.1}", it.as_secs_f64())).collect();
        say(&format!("{fault:?}: longest wait for an answer, in s: {}", seconds.join(" ")));
    }
    say(&format!(
        "{} faults, {kills} of them killed leaders: {} completions, 0 lost, 0 told twice; \
         {operations} operations, {lost} without answer: linearizable; {mutants} mutants: refused",
        faults.len(),
        completed.len()
    ));
    assert!(lost > 0 && mutants > 0, "the histories show nothing");
}

/// Everybody's completion is there, once.
async fn check_records(client: &StorageClient, completed: &[String]) {
    for player in completed {
        let ask = async || {
            let (title, player_id) = ("t".to_owned(), player.clone());
            let request =
                GetAchievementStorageRequest { title, player_id, achievement_ids: Vec::new() };
            client.clone().get_achievement_storage(request).await
        };
        let records = answered(ask).await.entity;
        assert_eq!((records.len(), records[0].version), (1, 1), "{player}: {records:?}");
    }
}

/// How often each player is in the feed.
async fn listed(server: &Server) -> HashMap<String, usize> {
    let client = server.completions().await;
    let mut listed = HashMap::new();
    let mut page_token = String::new();
    loop {
        let request = ListCompletionsRequest {
            title: "t".to_owned(),
            page_size: 1000,
            page_token,
            ..ListCompletionsRequest::default()
        };
        let page = answered(async || client.clone().list_completions(request.clone()).await).await;
        for completion in page.completions {
            *listed.entry(completion.player_id).or_default() += 1;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return listed;
        }
    }
}

/// Also where it answers for itself that nobody leads, and nobody asks anything meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_leaves_a_nats_server_that_is_cut_off_from_the_others() {
    let start = || Nats::start_in(&std::env::temp_dir(), 3, Ways::Cuttable);
    let nats = tokio::task::spawn_blocking(start).await.unwrap();
    let cluster = nats.url("ach");
    init(&cluster, "1", "3");
    let dir = TempDir::new().unwrap();
    let args = ["--admin-listen", "127.0.0.1:0"];
    let server = Server::start_on(&cluster, &dir.path().join("a.log"), &args);
    server.apply("t", &[("n", 1)]).await;
    let is_ready = || server.admin("/readyz").0.contains("200");
    for (n, cut) in [Cut::Closed, Cut::Silent, Cut::Closed].into_iter().enumerate() {
        let cut_off = nats.server_of("accolade");
        nats.cut(cut_off, cut);
        let start = Instant::now();
        // Nobody asks anything. It asks whether a majority is there, and makes sure that this is no
        // election.
        while nats.server_of("accolade") == cut_off {
            assert!(start.elapsed() < PATIENCE, "it stays where nobody leads");
            sleep(Duration::from_millis(200)).await;
        }
        let left = start.elapsed();
        // Some 20 s, on a machine that has time for it.
        assert!(left < Duration::from_secs(90), "it left after {left:?}");
        let mut client = server.storage().await;
        let mut request = delta("t", &format!("p{n}"), "n", 1);
        request.request_id = "r".to_owned();
        loop {
            let mut request = Request::new(request.clone());
            request.set_timeout(DEADLINE);
            match client.set_achievement_storage(request).await {
                Ok(_) => break,
                Err(failed) => assert!(start.elapsed() < PATIENCE, "{failed:?}"),
            }
        }
        assert!(is_ready());
        say(&format!("left {left:.1?} after a cut, served again after {:.1?}", start.elapsed()));
        nats.cut(cut_off, Cut::Not);
        (0..3).for_each(|n| nats.wait_ready(n));
    }
}

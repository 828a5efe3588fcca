//! A JetStream cluster of three on this machine: ours on it, it alone, and etcd on three.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use accolade::proto::v1::{SetAchievementStorageRequest, set_achievement_storage_request::Change};
use async_nats::{Client as Nats, HeaderMap, Request};
use bytes::Bytes;

use crate::{
    grpc::{Client, Target, connect},
    load::{Caller, Measured, Result, closed_loop},
    nats,
    parts::catalog,
    peers::Etcd,
    process::{Process, cpu_of, memory_of},
    records::{self, EXTRA, TITLE, Versions},
    report::{Goal::AtLeast, Report},
    watch,
};

const RECORDS: usize = 20_000;
const IN_FLIGHT: [usize; 2] = [64, 256];
const SUBSCRIBERS: usize = 100;
const RATE: &str = "per second";

/// About what a document of a player with one completed record takes, and its event.
const DOCUMENT_BYTES: usize = 110;
const EVENT_BYTES: usize = 60;

/// What is written next by callers who each need another key.
static NEXT: AtomicU64 = AtomicU64::new(0);

async fn start_nats(dir: &Path) -> Result<nats::Nats> {
    let dir = dir.to_owned();
    Ok(tokio::task::spawn_blocking(move || nats::Nats::start_in(&dir, 3, nats::Ways::Direct))
        .await?)
}

async fn init(cluster: &str, partitions: u32) -> Result<()> {
    let binary = std::env::current_exe()?.with_file_name("accolade");
    let mut command = tokio::process::Command::new(binary);
    command.args(["engine", "init", "--store", cluster]);
    command.args(["--partitions", &partitions.to_string(), "--replicas", "3"]);
    let done = command.output().await?;
    match done.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&done.stderr).into()),
    }
}

/// Sets that each complete another player's record: a document and an event.
struct Completer {
    client: Client,
}

impl Caller for Completer {
    async fn call(&mut self) -> Result<()> {
        let answer = self.client.set_achievement_storage(watch::complete()).await?.into_inner();
        match answer.newly_completed {
            true => Ok(()),
            false => Err(format!("{answer:?}").into()),
        }
    }
}

async fn complete(url: &str, in_flight: usize, time: Duration) -> Result<Measured> {
    const CONNECTIONS: usize = 4;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Client::new(connect(url).await?));
    }
    let callers = clients.iter().cycle().take(in_flight);
    closed_loop(callers.map(|client| Completer { client: client.clone() }).collect(), time).await
}

/// The same messages, sent to JetStream by hand: an event and a new document in an atomic batch.
struct Batcher {
    nats: Nats,
    document: Bytes,
    event: Bytes,
}

impl Caller for Batcher {
    async fn call(&mut self) -> Result<()> {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = n.to_string();
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Batch-Id", id.as_str());
        headers.insert("Nats-Batch-Sequence", "1");
        let event = self.nats.publish_with_headers("bare.ev.t", headers, self.event.clone());
        event.await?;
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Batch-Id", id.as_str());
        headers.insert("Nats-Batch-Sequence", "2");
        headers.insert("Nats-Batch-Commit", "1");
        headers.insert("Nats-Rollup", "sub");
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        let request = Request::new().headers(headers).payload(self.document.clone());
        let answer = self.nats.send_request(format!("bare.kv.{id}"), request).await?;
        match std::str::from_utf8(&answer.payload)?.contains("\"error\"") {
            false => Ok(()),
            true => Err(String::from_utf8_lossy(&answer.payload).into()),
        }
    }
}

async fn bare(url: &str, in_flight: usize, time: Duration) -> Result<Measured> {
    const CONNECTIONS: usize = 4;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(async_nats::connect(url).await?);
    }
    let callers = clients.iter().cycle().take(in_flight).map(|nats| Batcher {
        nats: nats.clone(),
        document: vec![7; DOCUMENT_BYTES].into(),
        event: vec![7; EVENT_BYTES].into(),
    });
    closed_loop(callers.collect(), time).await
}

async fn make_bare_stream(url: &str) -> Result<()> {
    use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
    let context = async_nats::jetstream::new(async_nats::connect(url).await?);
    context
        .create_stream(Config {
            name: "BARE".to_owned(),
            subjects: vec!["bare.>".to_owned()],
            num_replicas: 3,
            storage: StorageType::File,
            discard: DiscardPolicy::New,
            allow_atomic_publish: true,
            allow_direct: true,
            allow_rollup: true,
            ..Config::default()
        })
        .await?;
    Ok(())
}

/// Whose processor time it is.
struct Shares {
    nats: Vec<u32>,
    accolade: u32,
}

impl Shares {
    /// That of NATS, of our server, and of the callers.
    fn cpu(&self) -> Result<[f64; 3]> {
        let nats = self.nats.iter().map(|pid| cpu_of(*pid)).sum::<Result<f64>>()?;
        Ok([nats, cpu_of(self.accolade)?, cpu_of(std::process::id())?])
    }

    /// What each took for one, since `before`; the warm-up is as busy as the rest.
    fn report(
        &self,
        before: [f64; 3],
        rate: f64,
        time: Duration,
        of: &str,
        report: &mut Report,
    ) -> Result<()> {
        let count = rate * time.as_secs_f64() * 1.25;
        let whose = ["NATS", "accolade", "the callers"];
        for ((whose, before), after) in whose.into_iter().zip(before).zip(self.cpu()?) {
            report.add(format!("{of}: processor time of {whose}"), "µs", (after - before) / count);
        }
        Ok(())
    }
}

/// Ours, bare JetStream and etcd in turns. All run at the same time; who is not measured is idle.
pub async fn compare(
    dir: &Path,
    connections: usize,
    rounds: usize,
    time: Duration,
    report: &mut Report,
) -> Result<()> {
    let nats = start_nats(dir).await?;
    let cluster = nats.url("ach");
    init(&cluster, 1).await?;
    let servers = cluster.trim_end_matches("/ach").to_owned();
    let servers = servers.split(',').next().unwrap_or_default().to_owned();
    make_bare_stream(&servers).await?;
    let ours = Process::accolade_on(&cluster, &catalog(dir)?).await?;
    let target = Target { url: ours.url.clone(), versions: Versions::new(RECORDS, 0), connections };
    target.fill().await?;
    let etcd = match Etcd::start(&dir.join("etcd"), RECORDS, 3).await {
        Ok(etcd) => Some(etcd),
        Err(error) => {
            eprintln!("etcd is left out: {error}");
            None
        }
    };
    let accolade = ours.child.id().ok_or("the server has ended")?;
    let shares = Shares { nats: (0..3).map(|n| nats.pid(n)).collect(), accolade };
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for in_flight in IN_FLIGHT {
            let name = |of: &str| format!("cluster: {of}, {in_flight} in flight");
            let before = shares.cpu()?;
            let measured = bare(&servers, in_flight, time).await?;
            report.add(name("bare JetStream batches"), RATE, measured.rate);
            shares.report(before, measured.rate, time, &name("of a bare batch"), report)?;
            let before = shares.cpu()?;
            let measured = complete(&ours.url, in_flight, time).await?;
            report.add(name("accolade Set that completes"), RATE, measured.rate);
            shares.report(before, measured.rate, time, &name("of a Set that completes"), report)?;
            let measured = target.set(in_flight, time).await?;
            report.add(name("accolade Set"), RATE, measured.rate);
            let p50 = measured.latency.value_at_quantile(0.5) as f64;
            report.add(name("accolade Set p50"), "µs", p50);
            let measured = target.get(in_flight, time).await?;
            report.add(name("accolade Get"), RATE, measured.rate);
            if let Some(etcd) = &etcd {
                let measured = closed_loop(etcd.setters(in_flight).await?, time).await?;
                report.add(name("etcd"), RATE, measured.rate);
            }
        }
        let delivered = watch::deliveries(&ours.url, SUBSCRIBERS, time).await?;
        let name = format!("cluster: accolade Watch, {SUBSCRIBERS} subscribers");
        report.add(name, "deliveries per second", delivered);
    }
    for in_flight in IN_FLIGHT {
        let name = |of: &str| format!("cluster: {of}, {in_flight} in flight");
        let (ours, bare) = (name("accolade Set that completes"), name("bare JetStream batches"));
        report.ratio(&ours, &bare, AtLeast(0.8));
        report.ratio(&name("accolade Set"), &name("etcd"), AtLeast(2.0));
    }
    Ok(())
}

/// The same work on 1, 4 and 16 partitions, and with more players; and what a player takes in the
/// memory of one NATS server.
pub async fn scale(
    dir: &Path,
    connections: usize,
    time: Duration,
    report: &mut Report,
) -> Result<()> {
    const IN_FLIGHT: usize = 256;
    for partitions in [1, 4, 16] {
        let nats = start_nats(dir).await?;
        let cluster = nats.url("ach");
        init(&cluster, partitions).await?;
        let ours = Process::accolade_on(&cluster, &catalog(dir)?).await?;
        let versions = Versions::new(RECORDS, 0);
        let target = Target { url: ours.url.clone(), versions, connections };
        target.fill().await?;
        for _ in 0..3 {
            let measured = target.set(IN_FLIGHT, time).await?;
            report.add(format!("cluster: Set on {partitions} partitions"), RATE, measured.rate);
            let measured = complete(&ours.url, IN_FLIGHT, time).await?;
            let name = format!("cluster: Set that completes, on {partitions} partitions");
            report.add(name, RATE, measured.rate);
        }
    }
    for players in [100_000, 1_000_000] {
        let nats = start_nats(dir).await?;
        let cluster = nats.url("ach");
        init(&cluster, 4).await?;
        let ours = Process::accolade_on(&cluster, &catalog(dir)?).await?;
        let memory = || -> Result<f64> {
            let pids = (0..3).map(|n| memory_of(nats.pid(n)));
            Ok(pids.sum::<Result<u64>>()? as f64 / 3.0)
        };
        let before = memory()?;
        let start = std::time::Instant::now();
        one_record_each(&ours.url, players).await?;
        let rate = players as f64 / start.elapsed().as_secs_f64();
        report.add(format!("cluster: making {players} players"), RATE, rate);
        let each = (memory()? - before) / players as f64;
        report.add(format!("cluster: memory of one player, of {players}"), "bytes", each);
        let measured = complete(&ours.url, IN_FLIGHT, time).await?;
        let name = format!("cluster: Set that completes, beside {players} players");
        report.add(name, RATE, measured.rate);
    }
    Ok(())
}

/// Gives so many new players a record each.
async fn one_record_each(url: &str, players: usize) -> Result<()> {
    const CALLERS: usize = 256;
    let left = Arc::new(AtomicU64::new(players as u64));
    let mut tasks = tokio::task::JoinSet::new();
    let clients = [connect(url).await?, connect(url).await?, connect(url).await?];
    for caller in 0..CALLERS {
        let (mut client, left) = (Client::new(clients[caller % 3].clone()), left.clone());
        tasks.spawn(async move {
            loop {
                let n = left.fetch_sub(1, Ordering::Relaxed);
                if n == 0 || n > players as u64 {
                    left.store(0, Ordering::Relaxed);
                    return Ok::<_, crate::load::Error>(());
                }
                let request = SetAchievementStorageRequest {
                    title: TITLE.to_owned(),
                    player_id: format!("one-{n}"),
                    node_id: records::node(0),
                    change: Some(Change::Delta(1)),
                    extra: Some(EXTRA.to_owned()),
                    expected_version: Some(0),
                    request_id: String::new(),
                };
                client.set_achievement_storage(request).await?;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

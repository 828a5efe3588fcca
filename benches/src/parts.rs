//! What is measured, and what is compared with what.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    grpc::{Client, Target, connect},
    load::{Result, histogram, micros, open_loop},
    peers::{self, Peer},
    process::Process,
    records::{self, Versions},
    report::{
        Goal::{AtLeast, AtMost},
        Report,
    },
    sled_loop::SledLoop,
    watch::{self, MixedSetter, Subscribers},
};

/// Records of every store but in the scale part.
const RECORDS: usize = 100_000;

const IN_FLIGHT: [usize; 3] = [1, 64, 256];
const STREAM_IN_FLIGHT: [usize; 2] = [64, 256];
const SUBSCRIBERS: usize = 1000;
const IDLE_SUBSCRIBERS: usize = 10_000;

const RATE: &str = "per second";
const MICROS: &str = "µs";

/// Everything that runs at the same time; who is not measured is idle.
pub struct Stage {
    echo: Process,
    accolade: Process,
    bare: Target,
    ours: Target,
    sled: SledLoop,
    peers: Vec<(&'static str, Peer)>,
}

impl Stage {
    pub async fn open(dir: &Path, connections: usize) -> Result<Self> {
        eprintln!("filling {RECORDS} records");
        let echo = Process::echo().await?;
        let accolade = Process::accolade(&dir.join("accolade"), &catalog(dir)?, &[]).await?;
        let target = |process: &Process, version| Target {
            url: process.url.clone(),
            versions: Versions::new(RECORDS, version),
            connections,
        };
        let (bare, ours) = (target(&echo, 1), target(&accolade, 0));
        ours.fill().await?;
        let sled = SledLoop::open(&dir.join("sled"), RECORDS)?;
        Ok(Self { echo, accolade, bare, ours, sled, peers: Vec::new() })
    }

    pub async fn start_peers(&mut self, dir: &Path) {
        self.peers = peers::start(dir, RECORDS).await;
    }

    pub fn stop_peers(&mut self) {
        self.peers.clear();
    }
}

/// The catalogue of the records.
pub fn catalog(dir: &Path) -> Result<PathBuf> {
    let nodes = 0..u32::try_from(records::NODES)?;
    let definition = |node| {
        let target = 1_u64 << 50;
        format!("[[definitions]]\nnode_id = \"{}\"\nmax_progress = {target}\n", records::node(node))
    };
    let path = dir.join("catalog.toml");
    fs::write(&path, nodes.map(definition).collect::<String>())?;
    Ok(path)
}

pub async fn unary(stage: &Stage, time: Duration, report: &mut Report) -> Result<()> {
    for in_flight in IN_FLIGHT {
        let bare = stage.bare.set(in_flight, time).await?;
        report.add(format!("tonic echo of Set, {in_flight} in flight"), RATE, bare.rate);
        let ours = stage.ours.set(in_flight, time).await?;
        report.add(format!("accolade Set, {in_flight} in flight"), RATE, ours.rate);
        if in_flight == 1 {
            let sync = sync_time(stage)?;
            let echo_p50 = bare.latency.value_at_quantile(0.5) as f64;
            report.add("one fdatasync", MICROS, sync);
            report.add("one caller: accolade Set p50", MICROS, {
                ours.latency.value_at_quantile(0.5) as f64
            });
            report.add("one caller: tonic echo p50 + one fdatasync", MICROS, echo_p50 + sync);
        }
        let bare = stage.bare.get(in_flight, time).await?;
        report.add(format!("tonic echo of Get, {in_flight} in flight"), RATE, bare.rate);
        let ours = stage.ours.get(in_flight, time).await?;
        report.add(format!("accolade Get, {in_flight} in flight"), RATE, ours.rate);
        for (name, peer) in &stage.peers {
            let theirs = peer.set(in_flight, time).await?;
            report.add(format!("{name}, {in_flight} in flight"), RATE, theirs.rate);
        }
    }
    Ok(())
}

/// The median time of an fdatasync after a write of 4 KiB to a file that is already that long.
fn sync_time(stage: &Stage) -> Result<f64> {
    let mut file = File::create(stage.sled.path().with_extension("sync"))?;
    let mut times = histogram();
    for _ in 0..300 {
        file.write_all(&[7; 4096])?;
        let start = Instant::now();
        file.sync_data()?;
        times.saturating_record(micros(start.elapsed()));
    }
    Ok(times.value_at_quantile(0.5) as f64)
}

pub async fn stream(stage: &Stage, time: Duration, report: &mut Report) -> Result<()> {
    for in_flight in STREAM_IN_FLIGHT {
        let bare = stage.bare.stream_set(in_flight, time).await?;
        report.add(format!("tonic echo stream, {in_flight} in flight"), RATE, bare.rate);
        let ours = stage.ours.stream_set(in_flight, time).await?;
        report.add(format!("accolade StreamSet, {in_flight} in flight"), RATE, ours.rate);
        let sled = tokio::task::block_in_place(|| stage.sled.run(in_flight, time))?;
        report.add(format!("sled alone, groups of {in_flight}"), RATE, sled);
    }
    Ok(())
}

pub fn compare(report: &mut Report) {
    ratio(report, "accolade Get", "tonic echo of Get", 64, AtLeast(0.90));
    ratio(report, "accolade Set", "tonic echo of Set", 256, AtLeast(0.75));
    ratio(report, "accolade Set", "etcd", 64, AtLeast(6.0));
    ratio(report, "accolade Set", "postgresql", 64, AtLeast(2.0));
    ratio(report, "accolade StreamSet", "redis", 256, AtLeast(1.5));
    for in_flight in STREAM_IN_FLIGHT {
        let ours = format!("accolade StreamSet, {in_flight} in flight");
        report.ratio(&ours, &format!("sled alone, groups of {in_flight}"), AtLeast(0.9));
    }
    let (ours, bare) =
        ("one caller: accolade Set p50", "one caller: tonic echo p50 + one fdatasync");
    report.ratio(ours, bare, AtMost(1.5));
}

fn ratio(
    report: &mut Report,
    ours: &str,
    theirs: &str,
    in_flight: usize,
    goal: crate::report::Goal,
) {
    let name = |of: &str| format!("{of}, {in_flight} in flight");
    report.ratio(&name(ours), &name(theirs), goal);
}

/// Latency while questions come at a fixed rate: half of what each can take with 64 in flight.
pub async fn latency(
    stage: &mut Stage,
    dir: &Path,
    rounds: usize,
    time: Duration,
    report: &mut Report,
) -> Result<()> {
    if stage.peers.is_empty() {
        stage.start_peers(dir).await;
    }
    let half = |rate: f64| (rate / 2.0).max(100.0);
    let bare = half(stage.bare.set(64, time).await?.rate);
    let ours = half(stage.ours.set(64, time).await?.rate);
    let mut theirs = Vec::new();
    for (_, peer) in &stage.peers {
        theirs.push(half(peer.set(64, time).await?.rate));
    }
    for _ in 0..rounds {
        let mut all = vec![
            ("tonic echo", bare, open_loop(stage.bare.setters(64).await?, bare, time).await?),
            ("accolade", ours, open_loop(stage.ours.setters(64).await?, ours, time).await?),
        ];
        for ((name, peer), rate) in stage.peers.iter().zip(&theirs) {
            all.push((name, *rate, peer.set_at(*rate, time).await?));
        }
        for (name, rate, latency) in all {
            report.add(format!("half load: {name}, offered"), RATE, rate);
            for (quantile, text) in [(0.5, "p50"), (0.99, "p99"), (0.999, "p99.9")] {
                let value = latency.value_at_quantile(quantile) as f64;
                report.add(format!("half load: {name} Set {text}"), MICROS, value);
            }
        }
    }
    Ok(())
}

pub async fn watch(
    stage: &Stage,
    rounds: usize,
    time: Duration,
    report: &mut Report,
) -> Result<()> {
    let ours = format!("accolade Watch, {SUBSCRIBERS} subscribers");
    let bare = format!("tonic server streams, {SUBSCRIBERS} subscribers");
    for _ in 0..rounds {
        let theirs = watch::bare_deliveries(&stage.echo.url, SUBSCRIBERS, time).await?;
        report.add(&bare, "deliveries per second", theirs);
        let delivered = watch::deliveries(&stage.accolade.url, SUBSCRIBERS, time).await?;
        report.add(&ours, "deliveries per second", delivered);
    }
    report.ratio(&ours, &bare, AtLeast(0.7));

    let alone = "Set p99, no subscribers";
    let crowded = "Set p99, 1,000 live and one stalled subscriber";
    for _ in 0..rounds {
        report.add(alone, MICROS, mixed_p99(stage, time).await?);
        let live = Process::subscribers(&stage.accolade.url, SUBSCRIBERS).await?;
        // Never read from again: its window fills, and then the server must do without it.
        let stalled = watch::follow(connect(&stage.accolade.url).await?).await?;
        report.add(crowded, MICROS, mixed_p99(stage, time).await?);
        drop(stalled);
        live.kill().await?;
    }
    report.ratio(crowded, alone, AtMost(1.2));

    // A server of its own: nothing of what was open before is in the figure.
    let dir = tempfile::tempdir_in(stage.sled.path().parent().unwrap_or(Path::new(".")))?;
    let server = Process::accolade(&dir.path().join("data"), &catalog(dir.path())?, &[]).await?;
    let before = server.memory()?;
    let idle = Subscribers::open(&server.url, IDLE_SUBSCRIBERS).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let each = (server.memory()? - before) as f64 / IDLE_SUBSCRIBERS as f64;
    drop(idle);
    report.add("memory of one idle subscriber", "bytes", each);
    report.judge("memory of one idle subscriber, bytes", each, AtMost(20_000.0));
    Ok(())
}

/// 99 of 100 sets are faster, at 1,000 a second, of which one in twenty completes a record.
async fn mixed_p99(stage: &Stage, time: Duration) -> Result<f64> {
    const CALLERS: usize = 32;
    const SETS_PER_SECOND: f64 = 1000.0;
    let client = Client::new(connect(&stage.accolade.url).await?);
    let callers = (0..CALLERS).map(|_| MixedSetter { client: client.clone() }).collect();
    let latency = open_loop(callers, SETS_PER_SECOND, time * 2).await?;
    Ok(latency.value_at_quantile(0.99) as f64)
}

/// The same work on a small and on a large store, what the large one takes, and how long it takes
/// to open after a kill.
pub async fn scale(
    dir: &Path,
    connections: usize,
    records_max: usize,
    time: Duration,
    report: &mut Report,
) -> Result<()> {
    const IN_FLIGHT: usize = 64;
    let catalog = catalog(dir)?;
    let sizes = [RECORDS, records_max / 10, records_max];
    let mut servers = Vec::new();
    for records in sizes {
        let data = dir.join(format!("scale-{records}"));
        let server = Process::accolade(&data, &catalog, &[]).await?;
        let (url, versions) = (server.url.clone(), Versions::new(records, 0));
        let target = Target { url, versions, connections };
        let start = Instant::now();
        target.fill().await?;
        let rate = records as f64 / start.elapsed().as_secs_f64();
        report.add(format!("{records} records: filled at"), RATE, rate);
        servers.push((records, data, server, target));
    }
    for _ in 0..5 {
        for (records, _, _, target) in &servers {
            let sets = target.set(IN_FLIGHT, time).await?;
            report.add(format!("{records} records: Set, {IN_FLIGHT} in flight"), RATE, sets.rate);
        }
    }
    let name = |records: usize| format!("{records} records: Set, {IN_FLIGHT} in flight");
    report.ratio(&name(records_max), &name(RECORDS), AtLeast(0.8));
    for (records, data, server, _) in servers {
        let memory = server.memory()? as f64 / 1e6;
        report.add(format!("{records} records: memory"), "MB", memory);
        server.kill().await?;
        report.add(format!("{records} records: disk"), "MB", disk_bytes(&data)? as f64 / 1e6);
        let start = Instant::now();
        let server = Process::accolade(&data, &catalog, &[]).await?;
        let opened = start.elapsed();
        report.add(format!("{records} records: open after kill -9"), "ms", {
            opened.as_secs_f64() * 1000.0
        });
        let after = server.memory()? as f64 / 1e6;
        report.add(format!("{records} records: memory after open"), "MB", after);
        if records == records_max {
            let most = memory.max(after);
            report.judge("memory at the largest size, MB", most, AtMost(2500.0));
            report.judge("open at the largest size, s", opened.as_secs_f64(), AtMost(20.0));
        }
        server.kill().await?;
        fs::remove_dir_all(&data)?;
    }
    Ok(())
}

fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

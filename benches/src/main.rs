//! How fast Accolade is, beside bare tonic, bare sled, and other databases on the same work, all in
//! one run. `make bench` runs it; README.md says how to read what it prints.

#![allow(clippy::cast_precision_loss, reason = "counts and times are far below 2^53")]

mod cluster;
mod echo;
mod grpc;
mod load;
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../../tests/support/nats.rs"]
mod nats;
mod parts;
mod peers;
mod process;
mod records;
mod report;
mod sled_loop;
mod watch;

use std::{fs, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::json;

use load::Result;
use report::Report;

/// The same as the service's, so that the baseline has no other memory to work with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Accolade beside bare tonic, bare sled, etcd, Redis and PostgreSQL.
#[derive(Parser)]
struct Args {
    /// Only this part; may be given more than once
    #[arg(long)]
    part: Vec<Part>,
    /// How often each figure is taken, in turns with all others
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each figure is measured, after a warm-up of a quarter of it
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Connections of the gRPC clients
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Records of the scale part at its largest
    #[arg(long, default_value_t = 10_000_000)]
    scale_records: usize,
    /// Where the databases keep their files while they run; a disk, not memory
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Where to write the figures as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// What this process is for the one that measures
    #[command(subcommand)]
    role: Option<Role>,
}

/// A process beside the one that measures.
#[derive(Subcommand)]
#[command(hide = true)]
enum Role {
    /// The bare tonic server
    Echo,
    /// Subscribers of a server
    Subscribers { url: String, count: usize },
}

/// A part of the run.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Get and Set, 1, 64 and 256 in flight, and the other databases
    Unary,
    /// Sets on streams, and sled alone
    Stream,
    /// Latency at half load
    Latency,
    /// Subscribers
    Watch,
    /// Millions of records
    Scale,
    /// A JetStream cluster of three, beside bare JetStream and etcd; only where it is asked for
    Cluster,
    /// How such a cluster grows; only where it is asked for
    ClusterScale,
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(Args::parse()))
}

async fn run(args: Args) -> Result<()> {
    match args.role {
        Some(Role::Echo) => return echo::serve().await,
        Some(Role::Subscribers { url, count }) => return watch::subscribe_many(&url, count).await,
        None => {}
    }
    let dir = tempfile::Builder::new().prefix("accolade-bench-").tempdir_in(&args.dir)?;
    // PostgreSQL runs as a user of its own, who must get through to its folder.
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let time = Duration::from_secs_f64(args.seconds);
    let mut report = Report::default();
    let wants = |part| args.part.is_empty() || args.part.contains(&part);
    if [Part::Unary, Part::Stream, Part::Latency, Part::Watch].into_iter().any(wants) {
        let mut stage = parts::Stage::open(dir.path(), args.connections).await?;
        if wants(Part::Unary) || wants(Part::Stream) {
            stage.start_peers(dir.path()).await;
            for round in 1..=args.rounds {
                eprintln!("round {round} of {}", args.rounds);
                if wants(Part::Unary) {
                    parts::unary(&stage, time, &mut report).await?;
                }
                if wants(Part::Stream) {
                    parts::stream(&stage, time, &mut report).await?;
                }
            }
            parts::compare(&mut report);
        }
        if wants(Part::Latency) {
            parts::latency(&mut stage, dir.path(), args.rounds, time, &mut report).await?;
        }
        stage.stop_peers();
        if wants(Part::Watch) {
            parts::watch(&stage, args.rounds, time, &mut report).await?;
        }
    }
    if wants(Part::Scale) {
        parts::scale(dir.path(), args.connections, args.scale_records, time, &mut report).await?;
    }
    if args.part.contains(&Part::Cluster) {
        cluster::compare(dir.path(), args.connections, args.rounds, time, &mut report).await?;
    }
    if args.part.contains(&Part::ClusterScale) {
        cluster::scale(dir.path(), args.connections, time, &mut report).await?;
    }
    println!("{}", report.table());
    if let Some(path) = &args.json {
        let about = json!({
            "cores": std::thread::available_parallelism()?.get(),
            "rounds": args.rounds,
            "seconds": args.seconds,
            "connections": args.connections,
        });
        fs::write(path, serde_json::to_string_pretty(&report.json(about))?)?;
    }
    Ok(())
}

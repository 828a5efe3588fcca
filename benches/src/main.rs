//! How fast Accolade is, beside bare tonic, bare sled, and other databases on the same work.

mod echo;
mod grpc;
mod load;
mod process;
mod records;
mod sled_loop;

use std::time::Duration;

use load::Result;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run())
}

async fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).map(String::as_str) == Some("echo") {
        return echo::serve().await;
    }
    let connections: usize = std::env::var("CONNS").ok().and_then(|c| c.parse().ok()).unwrap_or(4);
    let secs: f64 = std::env::var("SECS").ok().and_then(|c| c.parse().ok()).unwrap_or(3.0);
    let only = std::env::var("ONLY").unwrap_or_default();
    let time = Duration::from_secs_f64(secs);
    let dir = tempfile::tempdir_in("/work")?;
    let want = |name: &str| only.is_empty() || only.split(',').any(|o| o == name);
    if want("sled") {
        let sled = sled_loop::SledLoop::open(&dir.path().join("sled"), 100_000)?;
        for group in [16, 64, 256, 512] {
            println!("sled {group}: {:.0}", sled.run(group, time)?);
        }
    }
    let catalog = dir.path().join("catalog.toml");
    let nodes: String = (0..8)
        .map(|i| {
            format!("[[definitions]]\nnode_id = \"node-{i}\"\nmax_progress = 1125899906842624\n")
        })
        .collect();
    std::fs::write(&catalog, nodes)?;
    let echo = process::Process::echo().await?;
    let target = |url: &str, version| grpc::Target {
        url: url.to_owned(),
        versions: records::Versions::new(100_000, version),
        connections,
    };
    let bare = target(&echo.url, 1);
    let ours = process::Process::accolade(&dir.path().join("data"), &catalog, &[]).await?;
    let mine = target(&ours.url, 0);
    if want("get") || want("set") || want("stream") {
        let start = std::time::Instant::now();
        mine.fill().await?;
        println!("filled in {:?}", start.elapsed());
    }
    for round in 0..1 {
        let _ = round;
        let flights = std::env::var("FLIGHT").unwrap_or("1,64,256".into());
        for in_flight in flights.split(',').map(|f| f.parse::<usize>().unwrap()) {
            for (name, t) in [("echo", &bare), ("accolade", &mine)] {
                if std::env::var("TARGET").is_ok_and(|t| t != name) {
                    continue;
                } else {
                    if want("set") {
                        let m = t.set(in_flight, time).await?;
                        println!(
                            "{name} set {in_flight}: {:.0}  p50 {} p99 {}",
                            m.rate,
                            m.latency.value_at_quantile(0.5),
                            m.latency.value_at_quantile(0.99)
                        );
                    }
                    if want("get") {
                        let m = t.get(in_flight, time).await?;
                        println!(
                            "{name} get {in_flight}: {:.0}  p50 {} p99 {}",
                            m.rate,
                            m.latency.value_at_quantile(0.5),
                            m.latency.value_at_quantile(0.99)
                        );
                    }
                    if in_flight > 1 && want("stream") {
                        let m = t.stream_set(in_flight, time).await?;
                        println!(
                            "{name} stream {in_flight}: {:.0}  p50 {} p99 {}",
                            m.rate,
                            m.latency.value_at_quantile(0.5),
                            m.latency.value_at_quantile(0.99)
                        );
                    }
                }
            }
        }
    }
    println!("memory {}", ours.memory()?);
    Ok(())
}

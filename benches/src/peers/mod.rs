//! Other databases at the same work: one compare-and-set of a record on its known version, durable
//! before the answer.

mod etcd;
mod postgres;
mod redis;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

pub use self::{etcd::Etcd, postgres::Postgres, redis::Redis};
use crate::load::{Measured, Result, closed_loop, open_loop};

/// A database that runs, or why it does not.
pub enum Peer {
    Etcd(Etcd),
    Redis(Redis),
    Postgres(Postgres),
}

/// Starts every database that is installed; says which are not.
pub async fn start(dir: &Path, records: usize) -> Vec<(&'static str, Peer)> {
    let mut peers = Vec::new();
    let mut add = |name, started: Result<Peer>| match started {
        Ok(peer) => peers.push((name, peer)),
        Err(error) => match error.source() {
            Some(cause) => eprintln!("{name} is left out: {error}: {cause}"),
            None => eprintln!("{name} is left out: {error}"),
        },
    };
    add("etcd", Etcd::start(&dir.join("etcd"), records, 1).await.map(Peer::Etcd));
    add("redis", Redis::start(&dir.join("redis"), records).await.map(Peer::Redis));
    add("postgresql", Postgres::start(&dir.join("postgres"), records).await.map(Peer::Postgres));
    peers
}

impl Peer {
    pub async fn set(&self, in_flight: usize, time: Duration) -> Result<Measured> {
        match self {
            Self::Etcd(peer) => closed_loop(peer.setters(in_flight).await?, time).await,
            Self::Redis(peer) => closed_loop(peer.setters(in_flight).await?, time).await,
            Self::Postgres(peer) => closed_loop(peer.setters(in_flight).await?, time).await,
        }
    }

    pub async fn set_at(&self, rate: f64, time: Duration) -> Result<Histogram<u64>> {
        const CALLERS: usize = 64;
        match self {
            Self::Etcd(peer) => open_loop(peer.setters(CALLERS).await?, rate, time).await,
            Self::Redis(peer) => open_loop(peer.setters(CALLERS).await?, rate, time).await,
            Self::Postgres(peer) => open_loop(peer.setters(CALLERS).await?, rate, time).await,
        }
    }
}

/// Finds an installed program.
fn program(name: &str, more: &[&str]) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(more.iter().map(PathBuf::from));
    let mut candidates = places.map(|place| place.join(name));
    candidates
        .find(|path| path.is_file())
        .ok_or_else(|| format!("`{name}` is not installed").into())
}

/// A port that is free now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn make_dir(dir: &Path) -> Result<()> {
    Ok(fs::create_dir_all(dir)?)
}

/// Tries until it works, at most half a minute.
async fn until<T, F: Future<Output = Result<T>>>(mut attempt: impl FnMut() -> F) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt().await {
            Err(_) if start.elapsed() < Duration::from_secs(30) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            done => return done,
        }
    }
}

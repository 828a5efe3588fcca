//! Redis with `appendfsync always`: a script that compares the version and writes.

use std::{path::Path, process::Stdio};

use redis::{Client, Script, aio::MultiplexedConnection};
use tokio::process::{Child, Command};

use super::{free_port, make_dir, program, until};
use crate::{
    load::{Caller, Result},
    records::{self, EXTRA, Record, Share, Versions},
};

const CONNECTIONS: usize = 4;

const COMPARE_AND_SET: &str = "
    if redis.call('HGET', KEYS[1], 'version') ~= ARGV[1] then return 0 end
    redis.call('HSET', KEYS[1], 'version', ARGV[2], 'extra', ARGV[3])
    return 1";

pub struct Redis {
    _child: Child,
    client: Client,
    versions: Versions,
}

impl Redis {
    pub async fn start(dir: &Path, records: usize) -> Result<Self> {
        let server = program("redis-server", &[])?;
        make_dir(dir)?;
        let port = free_port()?.to_string();
        let child = Command::new(server)
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always", "--dir"])
            .arg(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let client = Client::open(format!("redis://127.0.0.1:{port}/"))?;
        let this = Self { _child: child, client, versions: Versions::new(records, 1) };
        let mut connection = until(|| async { this.connection().await }).await?;
        let indexes: Vec<u32> = (0..u32::try_from(records)?).collect();
        for part in indexes.chunks(1000) {
            let mut pipe = redis::pipe();
            for index in part {
                let key = records::key(*index);
                pipe.hset_multiple(key, &[("version", "1"), ("extra", EXTRA)]).ignore();
            }
            pipe.query_async::<()>(&mut connection).await?;
        }
        Ok(this)
    }

    async fn connection(&self) -> Result<MultiplexedConnection> {
        Ok(self.client.get_multiplexed_async_connection().await?)
    }

    pub async fn setters(&self, in_flight: usize) -> Result<Vec<Setter>> {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(self.connection().await?);
        }
        let shares = self.versions.shares(in_flight).into_iter().zip(connections.iter().cycle());
        let setter = |(share, connection): (Share, &MultiplexedConnection)| Setter {
            connection: connection.clone(),
            script: Script::new(COMPARE_AND_SET),
            share,
        };
        Ok(shares.map(setter).collect())
    }
}

pub struct Setter {
    connection: MultiplexedConnection,
    script: Script,
    share: Share,
}

impl Caller for Setter {
    async fn call(&mut self) -> Result<()> {
        let record @ Record { index, version } = self.share.next();
        let mut invocation = self.script.key(records::key(index));
        invocation.arg(version).arg(version + 1).arg(EXTRA);
        let stored: i64 = invocation.invoke_async(&mut self.connection).await?;
        if stored != 1 {
            return Err("redis: somebody else wrote".into());
        }
        self.share.wrote(record);
        Ok(())
    }
}

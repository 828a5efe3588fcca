//! PostgreSQL: a prepared UPDATE with the version in its WHERE.

use std::{fs, os::unix::fs::chown, path::Path, process::Stdio};

use tokio::process::{Child, Command};
use tokio_postgres::{Client, NoTls, Statement};

use super::{free_port, make_dir, program, until};
use crate::{
    load::{Caller, Result},
    records::{self, EXTRA, Record, Share, Versions},
};

const UPDATE: &str =
    "UPDATE records SET version = version + 1, extra = $3 WHERE key = $1 AND version = $2";

/// Where Debian keeps its programs.
const PLACES: [&str; 4] = [
    "/usr/lib/postgresql/15/bin",
    "/usr/lib/postgresql/16/bin",
    "/usr/lib/postgresql/17/bin",
    "/usr/lib/postgresql/18/bin",
];

pub struct Postgres {
    _child: Child,
    port: u16,
    versions: Versions,
}

impl Postgres {
    pub async fn start(dir: &Path, records: usize) -> Result<Self> {
        let (initdb, postgres) = (program("initdb", &PLACES)?, program("postgres", &PLACES)?);
        make_dir(dir)?;
        let data = dir.join("data");
        let user = unprivileged_user()?;
        if let Some((uid, gid)) = user {
            chown(dir, Some(uid), Some(gid))?;
        }
        let run = |program: &Path| {
            let mut command = Command::new(program);
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command.current_dir(dir).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let made = run(&initdb)
            .args(["--username", "bench", "--auth", "trust", "--pgdata"])
            .arg(&data)
            .status()
            .await?;
        if !made.success() {
            return Err(format!("initdb: {made}").into());
        }
        let port = free_port()?;
        let child = run(&postgres)
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "unix_socket_directories=", "-c", "max_connections=300"])
            .args(["-c", "shared_buffers=256MB", "-c", "max_wal_size=4GB"])
            .kill_on_drop(true)
            .spawn()?;
        let this = Self { _child: child, port, versions: Versions::new(records, 1) };
        let client = until(|| async { this.client().await }).await?;
        let table = "CREATE TABLE records (key text PRIMARY KEY, version bigint, extra text)";
        client.batch_execute(table).await?;
        let keys: Vec<String> = (0..u32::try_from(records)?).map(records::key).collect();
        let insert = "INSERT INTO records SELECT key, 1, $2 FROM unnest($1::text[]) AS key";
        client.execute(insert, &[&keys, &EXTRA]).await?;
        client.batch_execute("VACUUM ANALYZE records").await?;
        Ok(this)
    }

    async fn client(&self) -> Result<Client> {
        let address = format!("host=127.0.0.1 port={} user=bench dbname=postgres", self.port);
        let (client, connection) = tokio_postgres::connect(&address, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// A connection each: one serves one statement at a time.
    pub async fn setters(&self, in_flight: usize) -> Result<Vec<Setter>> {
        let mut setters = Vec::new();
        for share in self.versions.shares(in_flight) {
            let client = self.client().await?;
            let update = client.prepare(UPDATE).await?;
            setters.push(Setter { client, update, share });
        }
        Ok(setters)
    }
}

/// PostgreSQL refuses to run as root; Debian's package makes a user for it.
fn unprivileged_user() -> Result<Option<(u32, u32)>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let is_root = status.lines().any(|line| line.starts_with("Uid:\t0\t"));
    if !is_root {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let fields: Vec<_> = line.ok_or("there is no user `postgres`")?.split(':').collect();
    Ok(Some((fields[2].parse()?, fields[3].parse()?)))
}

pub struct Setter {
    client: Client,
    update: Statement,
    share: Share,
}

impl Caller for Setter {
    async fn call(&mut self) -> Result<()> {
        let record @ Record { index, version } = self.share.next();
        let key = records::key(index);
        let changed = self.client.execute(&self.update, &[&key, &version, &EXTRA]).await?;
        if changed != 1 {
            return Err("postgresql: somebody else wrote".into());
        }
        self.share.wrote(record);
        Ok(())
    }
}

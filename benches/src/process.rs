//! Servers under test, each a process of its own.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::load::Result;

/// Longest wait for a server to be ready.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server; killed when dropped.
pub struct Process {
    pub child: Child,
    pub url: String,
}

impl Process {
    /// Starts a server whose first line ends in its address.
    pub async fn announced(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = timeout(PATIENCE, lines.next_line()).await??.ok_or("the server ended")?;
        let url = line.split_whitespace().last().unwrap_or_default().to_owned();
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { child, url })
    }

    pub async fn echo() -> Result<Self> {
        Self::announced(Command::new(std::env::current_exe()?).arg("echo")).await
    }

    /// Subscribers in a process of their own; all of them are open. They stand for machines of
    /// their own, so they get only the time that nobody else here wants.
    pub async fn subscribers(url: &str, count: usize) -> Result<Self> {
        let mut command = Command::new("chrt");
        command.args(["--idle", "0"]).arg(std::env::current_exe()?);
        Self::announced(command.args(["subscribers", url, &count.to_string()])).await
    }

    /// Our server, from the same folder as this program.
    pub async fn accolade(data: &Path, catalog: &Path, args: &[&str]) -> Result<Self> {
        let binary = std::env::current_exe()?.with_file_name("accolade");
        let mut command = Command::new(binary);
        command.arg("serve").args(["--listen", "127.0.0.1:0", "--log-filter", "warn"]);
        command.arg("--data").arg(data);
        command.arg("--catalog").arg(format!("{}={}", crate::records::TITLE, catalog.display()));
        Self::announced(command.args(args)).await
    }

    /// Our server on a cluster.
    pub async fn accolade_on(cluster: &str, catalog: &Path) -> Result<Self> {
        let binary = std::env::current_exe()?.with_file_name("accolade");
        let mut command = Command::new(binary);
        command.args(["serve", "--listen", "127.0.0.1:0", "--log-filter", "error"]);
        command.args(["--store", cluster, "--catalog"]);
        Self::announced(command.arg(format!("{}={}", crate::records::TITLE, catalog.display())))
            .await
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> Result<u64> {
        memory_of(self.child.id().ok_or("the server has ended")?)
    }
}

/// Resident memory of a process, in bytes.
pub fn memory_of(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|text| text.split_whitespace().next()).ok_or("no VmRSS")?;
    Ok(kib.parse::<u64>()? * 1024)
}

/// Processor time that a process has taken so far, in microseconds.
pub fn cpu_of(pid: u32) -> Result<f64> {
    const MICROS_PER_TICK: f64 = 10_000.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may have spaces: user and system time are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(')').ok_or("no name in stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<std::result::Result<f64, _>>()? * MICROS_PER_TICK)
}

impl Process {
    /// Kills it, and waits until it is gone.
    pub async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}

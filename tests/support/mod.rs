//! Runs the real binary and talks to it.
#![allow(dead_code, reason = "each test binary uses a part of this")]

pub mod history;
pub mod nats;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use accolade::proto::v1::{
    ApplyCatalogRequest, Completion, Definition, GetAchievementStorageRequest, Record,
    SetAchievementStorageRequest, SetAchievementStorageResponse, WatchCompletionsRequest,
    achievement_storage_service_client::AchievementStorageServiceClient,
    admin_service_client::AdminServiceClient, catalog_service_client::CatalogServiceClient,
    completion_service_client::CompletionServiceClient, set_achievement_storage_request::Change,
    watch_completions_response::Event,
};
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

pub const BINARY: &str = env!("CARGO_BIN_EXE_accolade");

/// Longest wait for anything that should happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Longest wait for what takes its time on a busy machine: thousands of somethings, or a server
/// that starts or stops.
pub const LONG_PATIENCE: Duration = Duration::from_secs(120);

pub type StorageClient = AchievementStorageServiceClient<Channel>;
pub type CompletionClient = CompletionServiceClient<Channel>;
pub type CatalogClient = CatalogServiceClient<Channel>;
pub type AdminClient = AdminServiceClient<Channel>;

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pub address: String,
    log: PathBuf,
}

impl Server {
    /// Starts on a data folder, on a free port, and waits until it listens.
    pub fn start(data: &Path, args: &[&str]) -> Self {
        Self::try_start(data, args).expect("the server starts")
    }

    /// Starts on a cluster, as [`Self::start`] does on a folder; `log` is its log.
    pub fn start_on(cluster: &str, log: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.args(["serve", "--store", cluster, "--listen", "127.0.0.1:0"]).args(args);
        Self::run(command, log).expect("the server starts")
    }

    /// The error is what the server wrote to its log.
    pub fn try_start(data: &Path, args: &[&str]) -> Result<Self, String> {
        let mut command = Command::new(BINARY);
        command.arg("serve").arg("--data").arg(data).args(["--listen", "127.0.0.1:0"]).args(args);
        // A disk that stalls under many tests is no failure of theirs.
        command.env("ACCOLADE_REQUEST_SECONDS_MAX", "60");
        Self::run(command, &data.with_extension("log"))
    }

    /// Runs a command that ends up as a server.
    pub fn run(mut command: Command, log: &Path) -> Result<Self, String> {
        let log_file = fs::File::options().create(true).append(true).open(log).unwrap();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .spawn()
            .expect("the binary runs");
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let (told, first) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = lines.read_line(&mut line);
            let _ = told.send(line);
            // Keeps the pipe from filling; ends with the child.
            lines.read_to_string(&mut String::new())
        });
        let Ok(line) = first.recv_timeout(LONG_PATIENCE) else {
            let _ = child.kill();
            panic!("it does not start: {}", fs::read_to_string(log).unwrap());
        };
        let url = line.trim().strip_prefix("accolade listens on ");
        let Some(address) = url.and_then(|url| url.split("://").nth(1)) else {
            let _ = child.wait();
            return Err(fs::read_to_string(log).unwrap());
        };
        let address = address.to_owned();
        Ok(Self { child, address, log: log.to_owned() })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// What an operator's machine gets from the admin listener: the status line and the text.
    pub fn admin(&self, path: &str) -> (String, String) {
        let log = self.log();
        // The log may be one that several servers wrote, one after the other.
        let address = log.rsplit_once("admin=").and_then(|(_, rest)| rest.split(' ').next());
        let mut stream = TcpStream::connect(address.expect("`--admin-listen` is given")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    /// The value of a metric, by its name and labels; 0 where it was never counted.
    pub fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.admin("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(self.url()).unwrap();
        endpoint.connect().await.expect("the server accepts")
    }

    /// A client that is sent so much on a stream before it must read: with the 2 MiB that are
    /// usual, all of what most streams of the tests say. Many of them do not fill the connection.
    pub async fn narrow_channel(&self, window_bytes: u32) -> Channel {
        const ALL_STREAMS: u32 = 16 << 20;
        let endpoint = Endpoint::from_shared(self.url()).unwrap();
        let endpoint = endpoint.initial_stream_window_size(window_bytes);
        let endpoint = endpoint.initial_connection_window_size(ALL_STREAMS);
        endpoint.connect().await.expect("the server accepts")
    }

    pub async fn storage(&self) -> StorageClient {
        AchievementStorageServiceClient::new(self.channel().await)
    }

    pub async fn completions(&self) -> CompletionClient {
        CompletionServiceClient::new(self.channel().await)
    }

    pub async fn catalogs(&self) -> CatalogClient {
        CatalogServiceClient::new(self.channel().await)
    }

    pub async fn operator(&self) -> AdminClient {
        AdminServiceClient::new(self.channel().await)
    }

    /// Replaces a title's catalogue by nodes with targets.
    pub async fn apply(&self, title: &str, nodes: &[(&str, i64)]) {
        let definitions = nodes.iter().map(|(id, max_progress)| Definition {
            node_id: (*id).to_owned(),
            max_progress: *max_progress,
            ..Definition::default()
        });
        let request = ApplyCatalogRequest {
            title: title.to_owned(),
            definitions: definitions.collect(),
            ..ApplyCatalogRequest::default()
        };
        self.catalogs().await.apply_catalog(request).await.expect("the catalogue is sound");
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal, such as STOP.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Waits for the end of the process, while the clients of this test run on: a server that stops
    /// gracefully waits for their side of its connections.
    pub async fn wait(mut self) -> ExitStatus {
        let start = Instant::now();
        while start.elapsed() < LONG_PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the server does not end; its log:\n{}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command of the binary to its end.
pub fn accolade(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).stdin(Stdio::null()).output().expect("the binary runs")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Shows a line also where the test passes, which `println!` does not.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "\n{line}");
}

/// A set that adds.
pub fn delta(title: &str, player: &str, node: &str, delta: i64) -> SetAchievementStorageRequest {
    SetAchievementStorageRequest {
        title: title.to_owned(),
        player_id: player.to_owned(),
        node_id: node.to_owned(),
        change: Some(Change::Delta(delta)),
        ..SetAchievementStorageRequest::default()
    }
}

pub async fn set(
    client: &mut StorageClient,
    request: SetAchievementStorageRequest,
) -> SetAchievementStorageResponse {
    client.set_achievement_storage(request).await.expect("the set is legal").into_inner()
}

pub async fn get(client: &mut StorageClient, title: &str, player: &str) -> Vec<Record> {
    let request = GetAchievementStorageRequest {
        title: title.to_owned(),
        player_id: player.to_owned(),
        achievement_ids: Vec::new(),
    };
    client.get_achievement_storage(request).await.expect("the get is legal").into_inner().entity
}

/// A watch, with messages taken one at a time.
pub struct Watch {
    stream: Streaming<accolade::proto::v1::WatchCompletionsResponse>,
}

impl Watch {
    pub async fn start(server: &Server, request: WatchCompletionsRequest) -> Self {
        let response = server.completions().await.watch_completions(request).await;
        Self { stream: response.expect("the watch is legal").into_inner() }
    }

    /// Watches a title after a cursor; "" is the oldest.
    pub async fn after(server: &Server, title: &str, cursor: &str) -> Self {
        let (title, after) = (title.to_owned(), Some(cursor.to_owned()));
        let request = WatchCompletionsRequest { title, after, ..Default::default() };
        Self::start(server, request).await
    }

    pub async fn event(&mut self) -> Result<Event, Status> {
        let message = tokio::time::timeout(PATIENCE, self.stream.message()).await;
        let message = message.expect("a message comes in time")?;
        Ok(message.expect("a stream ends with an error").event.expect("one event is set"))
    }

    /// The next completion; passes over everything else.
    pub async fn completion(&mut self) -> Completion {
        loop {
            if let Event::Completion(completion) = self.event().await.unwrap() {
                return completion;
            }
        }
    }

    /// The next completion or reset; passes over everything else.
    pub async fn entry(&mut self) -> Event {
        loop {
            match self.event().await.unwrap() {
                Event::Started(_) | Event::Heartbeat(_) => {}
                event => return event,
            }
        }
    }
}

/// A status that came as a message.
pub fn as_status(message: &tonic_types::Status) -> Status {
    let details = prost::Message::encode_to_vec(message);
    Status::with_details(Code::from(message.code), message.message.clone(), details.into())
}

/// The reason in a status's `ErrorInfo`, which every status must have.
pub fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    let info = info.unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "accolade");
    info.reason
}

/// The fields that a status names.
pub fn fields(status: &Status) -> Vec<String> {
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations);
    violations.unwrap_or_default().into_iter().map(|violation| violation.field).collect()
}

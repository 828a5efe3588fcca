//! Real NATS servers on loopback, as many as a test asks for.

use std::{
    collections::BTreeSet,
    fs,
    io::{
        ErrorKind::{TimedOut, WouldBlock},
        Read, Write,
    },
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tempfile::TempDir;

/// Longest wait for servers to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(180);

/// How often ways between servers look whether they are cut.
const STEP: Duration = Duration::from_millis(10);

/// A port that nobody listens on.
const NOBODY: u16 = 1;

/// Servers of one cluster; ended when dropped.
pub struct Nats {
    nodes: Vec<Node>,
    network: Network,
    _dir: TempDir,
}

/// How servers reach each other.
#[derive(Clone, Copy)]
pub enum Ways {
    Direct,
    /// So that they can be cut off.
    Cuttable,
}

/// What servers say to each other goes through here, so that a server can be cut off. Bytes of a
/// connection that is cut arrive when it is mended, as they would in a network that lost them.
struct Network {
    /// How each server is cut off.
    cuts: Arc<Vec<Mutex<Cut>>>,
    is_over: Arc<AtomicBool>,
}

/// How a server is cut off from the others, but not from its clients.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    #[default]
    Not,
    /// Nothing arrives.
    Silent,
    /// Connections are closed, and new ones are not let in.
    Closed,
}

impl Network {
    fn new(count: usize) -> Self {
        Self {
            cuts: Arc::new((0..count).map(|_| Mutex::default()).collect()),
            is_over: Arc::default(),
        }
    }

    /// The port of a way from one server to the port of another.
    fn way(&self, from: usize, to: usize, port: u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let way = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let (cuts, is_over) = (self.cuts.clone(), self.is_over.clone());
        let cut_of = move |n: usize| *cuts[n].lock();
        let cut = Arc::new(move || cut_of(from).max(cut_of(to)));
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let Ok((near, _)) = listener.accept() else {
                    sleep(STEP);
                    continue;
                };
                if cut() == Cut::Closed {
                    continue;
                }
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (cut, is_over) = (cut.clone(), is_over.clone());
                    thread::spawn(move || carry(from, to, &*cut, &is_over));
                }
            }
        });
        way
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Carries bytes one way until an end is closed.
fn carry(mut from: TcpStream, mut to: TcpStream, cut: &dyn Fn() -> Cut, is_over: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    from.set_nonblocking(false).unwrap();
    from.set_read_timeout(Some(STEP * 10)).unwrap();
    while !is_over.load(Ordering::Relaxed) && cut() != Cut::Closed {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if matches!(error.kind(), WouldBlock | TimedOut) => continue,
            Err(_) => break,
        };
        while cut() == Cut::Silent && !is_over.load(Ordering::Relaxed) {
            sleep(STEP);
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

struct Node {
    child: Option<Child>,
    config: PathBuf,
    port: u16,
    http: u16,
}

/// The program: that of `make tools`, or what `ACCOLADE_NATS_SERVER` names.
fn program() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = if root.ends_with("benches") { root.parent().unwrap() } else { root };
    let installed = root.join(".tools/venv/bin/nats-server");
    let program = std::env::var_os("ACCOLADE_NATS_SERVER").map_or(installed, PathBuf::from);
    assert!(program.exists(), "`{}` is missing; run `make tools`", program.display());
    program
}

/// Ports that are free, that nothing else in this process was given, and no outgoing connection
/// is: a server that is killed must find its own again.
fn free_ports<const N: usize>() -> [u16; N] {
    // Below what Linux gives to outgoing connections (`ip_local_port_range`).
    const RANGE: std::ops::Range<u16> = 15_000..32_000;
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock();
    let mut tries = (0..1000).map(|_| fastrand::u16(RANGE));
    std::array::from_fn(|_| {
        let is_free =
            |port: &u16| !given.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let port = tries.find(is_free).expect("a port is free");
        given.insert(port);
        port
    })
}

/// What the program says of a configuration.
pub fn check(config: &Path, environment: &[(&str, &str)]) -> std::process::Output {
    let mut command = Command::new(program());
    command.arg("-t").arg("-c").arg(config).envs(environment.iter().copied());
    command.output().expect("nats-server runs")
}

// === impl Nats ===

impl Nats {
    /// Starts so many servers, and waits until they are ready.
    pub fn start(count: usize) -> Self {
        Self::start_in(&std::env::temp_dir(), count, Ways::Direct)
    }

    /// Starts one server with more in its configuration.
    pub fn start_with(more: &str) -> Self {
        Self::start_nodes(&std::env::temp_dir(), 1, Ways::Direct, more)
    }

    /// The same, with their files in a folder of this one.
    pub fn start_in(dir: &Path, count: usize, ways: Ways) -> Self {
        Self::start_nodes(dir, count, ways, "")
    }

    fn start_nodes(dir: &Path, count: usize, ways: Ways, more: &str) -> Self {
        let dir = TempDir::new_in(dir).unwrap();
        let ports: Vec<_> = (0..count).map(|_| free_ports::<3>()).collect();
        let network = Network::new(count);
        let nodes = ports.iter().enumerate().map(|(n, [port, http, cluster])| {
            let data = dir.path().join(format!("n{n}"));
            let mut text = format!(
                "server_name: n{n}\nlisten: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{http}\"\n\
                 jetstream {{ store_dir: \"{}\", sync_interval: always }}\n",
                data.display()
            );
            text += more;
            if count > 1 {
                let others = ports.iter().enumerate().filter(|(other, _)| *other != n);
                let routes: Vec<_> = others
                    .map(|(other, [_, _, cluster])| match ways {
                        Ways::Direct => *cluster,
                        Ways::Cuttable => network.way(n, other, *cluster),
                    })
                    .map(|port| format!("nats://127.0.0.1:{port}"))
                    .collect();
                let routes = routes.join(", ");
                text.extend([
                    format!("cluster {{ name: c, listen: \"127.0.0.1:{cluster}\", "),
                    // What servers tell each other of addresses would be a way around the cuts.
                    format!("no_advertise: true, advertise: \"127.0.0.1:{NOBODY}\", "),
                    format!("routes: [{routes}] }}\n"),
                ]);
            }
            let config = dir.path().join(format!("n{n}.conf"));
            fs::write(&config, text).unwrap();
            Node { child: None, config, port: *port, http: *http }
        });
        let nodes: Vec<_> = nodes.collect();
        let mut nats = Self { nodes, network, _dir: dir };
        (0..count).for_each(|n| nats.run(n));
        (0..count).for_each(|n| nats.wait_ready(n));
        nats
    }

    /// The address for `--store`.
    pub fn url(&self, prefix: &str) -> String {
        let hosts = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port));
        format!("nats://{}/{prefix}", hosts.collect::<Vec<_>>().join(","))
    }

    /// The port of a server.
    pub fn port(&self, n: usize) -> u16 {
        self.nodes[n].port
    }

    /// The address at which a server tells about itself.
    pub fn monitor(&self, n: usize) -> String {
        format!("http://127.0.0.1:{}", self.nodes[n].http)
    }

    /// Starts a server that does not run.
    pub fn run(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        assert!(node.child.is_none(), "it runs");
        let log = node.config.with_extension("log");
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let child = Command::new(program())
            .arg("-c")
            .arg(&node.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        node.child = Some(child.expect("nats-server runs"));
    }

    /// Starts a server anew with another configuration.
    pub fn reconfigure(&mut self, n: usize, from: &str, to: &str) {
        self.kill(n);
        let config = &self.nodes[n].config;
        let text = fs::read_to_string(config).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(config, text.replace(from, to)).unwrap();
        self.run(n);
        self.wait_ready(n);
    }

    /// Waits until a server says that it is healthy.
    pub fn wait_ready(&self, n: usize) {
        let start = Instant::now();
        while !self.is_healthy(n) {
            assert!(start.elapsed() < PATIENCE, "n{n} is not ready; its log:\n{}", self.log(n));
            sleep(Duration::from_millis(20));
        }
    }

    pub fn is_healthy(&self, n: usize) -> bool {
        self.get(n, "/healthz").is_some_and(|answer| answer.contains("200 OK"))
    }

    /// What a server's monitoring answers.
    pub fn get(&self, n: usize, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.nodes[n].http)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    pub fn log(&self, n: usize) -> String {
        fs::read_to_string(self.nodes[n].config.with_extension("log")).unwrap_or_default()
    }

    pub fn pid(&self, n: usize) -> u32 {
        self.nodes[n].child.as_ref().expect("it runs").id()
    }

    pub fn is_running(&self, n: usize) -> bool {
        self.nodes[n].child.is_some()
    }

    /// `kill -9`.
    pub fn kill(&mut self, n: usize) {
        if let Some(mut child) = self.nodes[n].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a signal, such as STOP.
    pub fn signal(&self, n: usize, name: &str) {
        let pid = self.pid(n).to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Cuts a server off from the others, but not from its clients; or mends that.
    pub fn cut(&self, n: usize, cut: Cut) {
        *self.network.cuts[n].lock() = cut;
    }

    /// The server that a client of that name is connected to; waits until it is.
    pub fn server_of(&self, client: &str) -> usize {
        let name = format!("\"name\": \"{client}\"");
        let has = |n: &usize| self.get(*n, "/connz").is_some_and(|answer| answer.contains(&name));
        let start = Instant::now();
        loop {
            if let Some(found) = (0..self.nodes.len()).find(has) {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "{client} is not connected");
            sleep(Duration::from_millis(20));
        }
    }

    /// Which server says of itself that it leads a stream, if any does.
    pub fn leader(&self, stream: &str) -> Option<usize> {
        (0..self.nodes.len()).filter(|n| self.is_running(*n)).find(|n| {
            self.leader_as_told_by(*n, stream).is_some_and(|leader| leader == format!("n{n}"))
        })
    }

    fn leader_as_told_by(&self, n: usize, stream: &str) -> Option<String> {
        let answer = self.get(n, "/jsz?streams=true")?;
        let body = answer.split_once("\r\n\r\n")?.1;
        let json: serde_json::Value = serde_json::from_str(body).ok()?;
        let accounts = json["account_details"].as_array()?;
        let mut streams = accounts.iter().filter_map(|it| it["stream_detail"].as_array()).flatten();
        let found = streams.find(|it| it["name"] == stream)?;
        Some(found["cluster"]["leader"].as_str()?.to_owned())
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        for n in 0..self.nodes.len() {
            // One that was stopped does not end otherwise.
            self.kill(n);
        }
    }
}

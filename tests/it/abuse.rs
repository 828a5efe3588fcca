//! Clients that mean no good, on raw connections: each is cut off, and everybody else is answered.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    process::Command,
    time::{Duration, Instant},
};

use crate::support::{BINARY, PATIENCE, Server, delta, get, set};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_HEADERS: u8 = 4;

const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Time for a TLS handshake or the first bytes, which the server gives.
pub const OPENING_TIME: Duration = Duration::from_secs(5);

const STREAM_SET: &str = "/accolade.v1.AchievementStorageService/StreamSetAchievementStorage";

/// A client of HTTP/2 that sends what it likes.
pub struct Raw(pub TcpStream);

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// How a connection was ended.
#[derive(Clone, Copy, Debug)]
struct GoAway {
    last_stream: u32,
    code: u32,
}

impl Raw {
    pub fn connect(server: &Server) -> Self {
        let stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    /// A connection of which nothing can be complained of yet.
    pub fn open(server: &Server) -> Self {
        let mut raw = Self::connect(server);
        raw.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        raw.send(&frame(SETTINGS, 0, 0, &[])).unwrap();
        raw
    }

    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes)
    }

    /// The next frame; `None` where the server has closed the connection.
    pub fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.read(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.read(&mut payload)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], stream, payload })
    }

    fn read(&mut self, buffer: &mut [u8]) -> Option<()> {
        match self.0.read_exact(buffer) {
            Ok(()) => Some(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the server neither answers nor closes")
            }
            Err(_) => None,
        }
    }

    /// Reads until the connection ends; gives the code of the GOAWAY, if there was one.
    pub fn ended(&mut self) -> Option<u32> {
        self.goaway().map(|goaway| goaway.code)
    }

    /// Reads until the connection ends; gives its last GOAWAY.
    fn goaway(&mut self) -> Option<GoAway> {
        let mut last = None;
        while let Some(frame) = self.next() {
            if frame.kind == GOAWAY {
                let number = |at| u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap());
                last = Some(GoAway { last_stream: number(0), code: number(4) });
            }
        }
        last
    }
}

/// Whether nothing could be sent for a while, on a connection that is still there.
fn is_stuck(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A field of a header block, spelled out.
pub fn field(name: &str, value: impl AsRef<[u8]>) -> Vec<u8> {
    literal(0, name, value.as_ref())
}

/// A field of a header block, which the other side is to remember or not.
fn literal(kind: u8, name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    for text in [name.as_bytes(), value] {
        // Lengths from 127 on go on in groups of seven bits (RFC 7541, 5.1).
        match text.len().checked_sub(127) {
            None => bytes.push(u8::try_from(text.len()).unwrap()),
            Some(mut rest) => {
                bytes.push(127);
                while rest > 127 {
                    bytes.push(u8::try_from(rest & 127).unwrap() | 128);
                    rest >>= 7;
                }
                bytes.push(u8::try_from(rest).unwrap());
            }
        }
        bytes.extend(text);
    }
    bytes
}

pub fn request_headers(path: &str) -> Vec<u8> {
    [
        field(":method", "POST"),
        field(":scheme", "http"),
        field(":path", path),
        field(":authority", "x"),
        field("content-type", "application/grpc"),
        field("te", "trailers"),
    ]
    .concat()
}

/// Ticks of processor time, a hundred a second, that the server has used.
fn ticks(server: &Server) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// This process holds hundreds of sockets, beside those of other tests.
fn raise_limit_of_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

pub async fn answers(server: &Server) {
    let mut client = server.storage().await;
    set(&mut client, delta("demo", "p", "adventure", 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_no_more_streams_than_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let mut raw = Raw::open(&server);
    let settings = raw.next().unwrap();
    assert_eq!(settings.kind, SETTINGS);
    let values = settings.payload.chunks(6);
    let mut values = values.map(|it| (it[1], u32::from_be_bytes(it[2..6].try_into().unwrap())));
    assert_eq!(values.find(|(id, _)| *id == 3), Some((3, 128)));

    let headers = request_headers(STREAM_SET);
    for n in 0..129 {
        raw.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &headers)).unwrap();
    }
    let refused = std::iter::from_fn(|| raw.next()).find(|it| it.kind == RST_STREAM).unwrap();
    assert_eq!((refused.stream, refused.payload), (257, REFUSED_STREAM.to_be_bytes().to_vec()));
    answers(&server).await;
}

/// CVE-2023-44487 and CVE-2025-8671: streams that are reset as fast as they are opened, by the
/// client or by what the client makes the server do.
#[tokio::test(flavor = "multi_thread")]
async fn floods_of_resets_end_their_connection() {
    /// Twice what the server allows: streams that wait to be reset are not counted at once.
    const STREAMS_TAKEN_MAX: u32 = 2 * 1200;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    answers(&server).await;
    let before = server.memory();
    // A window that overflows is an error of the stream, which the server then resets.
    let provocations: [(&str, u8, &[u8]); 2] =
        [("reset", RST_STREAM, &[0, 0, 0, 8]), ("provoked", WINDOW_UPDATE, &[0x7f, 255, 255, 255])];
    let headers = request_headers(STREAM_SET);
    for (name, kind, payload) in provocations {
        // The reason is told to a sender who reads along. One who does not is cut off all the same.
        for reads in [false, true] {
            let mut raw = Raw::open(&server);
            let mut reader = Raw(raw.0.try_clone().unwrap());
            let reading = reads.then(|| std::thread::spawn(move || reader.goaway()));
            let start = Instant::now();
            for stream in (1..).step_by(2) {
                let opened = frame(HEADERS, END_HEADERS, stream, &headers);
                let sent = raw.send(&[opened, frame(kind, 0, stream, payload)].concat());
                if let Err(error) = sent {
                    assert!(!is_stuck(&error), "{name}: the server neither reads nor closes");
                    break;
                }
                // What lies in the buffers of the connection the server has not taken.
                assert!(start.elapsed() < PATIENCE, "{name}: the server takes all of them");
            }
            if let Some(reading) = reading {
                let goaway = reading.join().unwrap().expect("a reason is told");
                assert_eq!(goaway.code, ENHANCE_YOUR_CALM, "{name}: {goaway:?}");
                // Streams of a client have the odd numbers.
                let taken = goaway.last_stream.div_ceil(2);
                assert!(taken <= STREAMS_TAKEN_MAX, "{name}: {taken} streams were taken");
            }
            answers(&server).await;
        }
    }
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_without_end_are_cut_off_and_cost_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    answers(&server).await;
    let before = server.memory();
    let mut raw = Raw::open(&server);
    let filler = [field("x-filler", "x".repeat(100))].concat().repeat(140);
    let mut sent = raw.send(&frame(HEADERS, 0, 1, &request_headers(STREAM_SET)));
    let mut frames = 0;
    while sent.is_ok() && frames < 20_000 {
        sent = raw.send(&frame(CONTINUATION, 0, 1, &filler));
        frames += 1;
    }
    let error = sent.expect_err("the server took all frames");
    assert!(!is_stuck(&error), "the server neither reads nor closes, after {frames} frames");
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more");
    answers(&server).await;
}

/// Goal: a list of headers is refused by its size, whichever way it is packed.
#[tokio::test(flavor = "multi_thread")]
async fn header_bombs_are_refused_and_cost_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    answers(&server).await;
    // A little more than the 8 KiB that the server takes: this one request is refused.
    let socket = tokio::net::TcpStream::connect(&server.address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    for (bytes, status) in [(9 << 10, 431), (4 << 10, 200)] {
        let request = http::Request::post(format!("http://{}{STREAM_SET}", server.address))
            .header("content-type", "application/grpc")
            .header("x-filler", "x".repeat(bytes))
            .body(())
            .unwrap();
        client = client.ready().await.unwrap();
        let (response, _sending) = client.send_request(request, true).unwrap();
        let response = tokio::time::timeout(PATIENCE, response).await.expect("in time").unwrap();
        assert_eq!(response.status().as_u16(), status, "{bytes} bytes");
    }

    // A field of 4 KB that the other side remembers, and then its number, 62, in one byte a time:
    // 16 KB on the wire stand for 48 MB.
    let before = server.memory();
    let remembered = literal(0x40, "x", &[b'x'; 4000]);
    let repeated = [&request_headers(STREAM_SET), &remembered[..], &[0xbe; 12_000]].concat();
    for _ in 0..40 {
        let mut raw = Raw::open(&server);
        raw.send(&frame(HEADERS, END_HEADERS, 1, &repeated)).unwrap();
        raw.ended().expect("the connection is ended, and it is told why");
    }
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
    answers(&server).await;
}

/// RUSTSEC-2026-0258.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_empty_frames_harms_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    answers(&server).await;
    let before = server.memory();
    let mut raw = Raw::open(&server);
    raw.send(&frame(HEADERS, END_HEADERS, 1, &request_headers(STREAM_SET))).unwrap();
    let many = frame(DATA, 0, 1, &[]).repeat(1000);
    for _ in 0..1000 {
        if raw.send(&many).is_err() {
            break;
        }
    }
    answers(&server).await;
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_are_closed_and_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--admin-listen=127.0.0.1:0"];
    let server = Server::start(&dir.path().join("data"), &args);
    raise_limit_of_files();
    // The best of five of a new client's reads; sockets that starve others slow down each of them.
    let best_of_five = async || {
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let asked = Instant::now();
            get(&mut server.storage().await, "demo", "p").await;
            best = best.min(asked.elapsed());
        }
        best
    };
    let alone = best_of_five().await;
    let mut silent: Vec<_> = (0..1000).map(|_| Raw::connect(&server)).collect();
    silent[0].send(b"PRI * HT").unwrap();
    // One byte at a time is not faster for it.
    let start = Instant::now();
    let mut slow = Raw::connect(&server);
    let mut bytes = b"PRI * HTTP/2.0\r\n".iter().cycle();
    answers(&server).await;
    let waited = best_of_five().await;
    // Other tests may take both cores meanwhile.
    let limit = alone * 10 + Duration::from_secs(2);
    assert!(waited < limit, "a new client waited for {waited:?}, and {alone:?} without them");
    while slow.send(&[*bytes.next().unwrap()]).is_ok() {
        assert!(start.elapsed() < PATIENCE, "a slow one is not closed");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for raw in &mut silent {
        // The server's own first frame, perhaps; then nothing.
        assert_eq!(raw.ended(), None);
    }
    assert!(start.elapsed() >= OPENING_TIME, "not too early");
    assert!(server.metric("accolade_refusals_total{reason=\"too_slow\"}") >= 1001);
    // A connection that has said what it must may be quiet.
    let mut quiet = Raw::open(&server);
    quiet.next().unwrap();
    tokio::time::sleep(OPENING_TIME + Duration::from_secs(1)).await;
    quiet.send(&frame(PING, 0, 0, &[7; 8])).unwrap();
    let pong = std::iter::from_fn(|| quiet.next()).find(|frame| frame.kind == PING).unwrap();
    assert_eq!(pong.payload, [7; 8]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_so_many_connections_and_gets_places_back() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--connections-per-address-max=4", "--admin-listen=127.0.0.1:0"];
    let server = Server::start(&dir.path().join("data"), &args);
    let mut open: Vec<_> = (0..4).map(|_| Raw::open(&server)).collect();
    for raw in &mut open {
        raw.next().unwrap();
    }
    assert!(Raw::connect(&server).next().is_none(), "the fifth is closed");
    let refused = "accolade_refusals_total{reason=\"connections_of_address\"}";
    assert_eq!(server.metric(refused), 1);
    drop(open.pop());
    let start = Instant::now();
    while server.metric("accolade_connections") > 3 {
        assert!(start.elapsed() < PATIENCE, "a place is given back");
    }
    answers(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_so_many_connections_in_all() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &["--connections-max=4"]);
    let mut open: Vec<_> = (0..4).map(|_| Raw::open(&server)).collect();
    for raw in &mut open {
        raw.next().unwrap();
    }
    assert!(Raw::connect(&server).next().is_none(), "the fifth is closed");
}

/// The system refuses connections before the settings do: waiting for files must not keep a core
/// busy, and the store is not taken for damaged.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_files_waits_for_them_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 128 && exec \"$@\"", "sh", BINARY, "serve"]);
    command.arg("--data").arg(&data).arg("--listen=127.0.0.1:0");
    let server = Server::run(command, &data.with_extension("log")).unwrap();
    let mut client = server.storage().await;
    raise_limit_of_files();
    let silent: Vec<_> = (0..300).map(|_| Raw::connect(&server)).collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = ticks(&server);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = ticks(&server) - before;
    assert!(used < 40, "{used} of 200 ticks are used for nothing");
    assert!(server.log().contains("no connection can be accepted"), "{}", server.log());
    set(&mut client, delta("demo", "p", "adventure", 1)).await;
    drop(silent);
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let url = tonic::transport::Endpoint::from_shared(server.url()).unwrap();
        let url = url.connect_timeout(Duration::from_secs(1)).timeout(Duration::from_secs(1));
        if let Ok(channel) = url.connect().await {
            let mut client = crate::support::StorageClient::new(channel);
            let request = delta("demo", "p", "adventure", 1);
            if client.set_achievement_storage(request).await.is_ok() {
                return;
            }
        }
    }
    panic!("it does not accept again; its log:\n{}", server.log());
}

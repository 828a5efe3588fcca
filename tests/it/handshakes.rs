//! Clients that stop half way: in a TLS handshake, in a frame, with a stream open. Each gives its
//! place back, and whoever answers keeps it.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use accolade::proto::v1::{
    GetAchievementStorageRequest, SetAchievementStorageRequest, WatchCompletionsRequest,
};
use prost::Message;
use tokio::io::AsyncReadExt;
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring},
};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::{
    abuse::{
        DATA, END_HEADERS, HEADERS, OPENING_TIME, Raw, SETTINGS, WINDOW_UPDATE, answers, frame,
        request_headers,
    },
    support::{PATIENCE, Server, StorageClient, Watch, delta, get, set},
};

const GET: &str = "/accolade.v1.AchievementStorageService/GetAchievementStorage";
const WATCH: &str = "/accolade.v1.CompletionService/WatchCompletions";

const END_STREAM: u8 = 1;

/// A silence of a second is probed, and 5 seconds later the connection is given up. Twice that goes
/// by at the most, since the silence is looked at once an interval; the rest is for a machine that
/// runs other tests beside this one.
const GIVEN_UP: Duration = Duration::from_secs(40);

/// Probes soon, and tells how many are there. Those that answer have the time for it.
const PROBES: [&str; 3] = [
    "--keepalive-interval-seconds=1",
    "--keepalive-timeout-seconds=5",
    "--admin-listen=127.0.0.1:0",
];

/// Waits until a gauge is at a value.
async fn settles(server: &Server, gauge: &str, value: u64, time_max: Duration) {
    let start = Instant::now();
    loop {
        let now = server.metric(gauge);
        if now == value {
            return;
        }
        assert!(start.elapsed() < time_max, "{gauge} is {now}, and not {value}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A message as a unary request sends it.
fn request(stream: u32, path: &str, message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let framed = [&[0], &length[..], &message].concat();
    [
        frame(HEADERS, END_HEADERS, stream, &request_headers(path)),
        frame(DATA, END_STREAM, stream, &framed),
    ]
    .concat()
}

fn watch() -> WatchCompletionsRequest {
    WatchCompletionsRequest { title: "demo".to_owned(), ..WatchCompletionsRequest::default() }
}

/// Reads until the server closes.
fn closed(stream: &mut TcpStream) {
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the server does not close")
            }
            Err(_) => return,
        }
    }
}

/// A server with a certificate of its own, and that certificate.
fn start_with_tls(dir: &Path) -> (Server, rcgen::CertifiedKey<rcgen::KeyPair>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let paths = ["crt", "key"].map(|kind| dir.join(format!("server.{kind}")));
    fs::write(&paths[0], made.cert.pem()).unwrap();
    fs::write(&paths[1], made.signing_key.serialize_pem()).unwrap();
    let certificate = format!("--tls-certificate={}", paths[0].display());
    let key = format!("--tls-key={}", paths[1].display());
    let args = [certificate.as_str(), key.as_str(), "--admin-listen=127.0.0.1:0"];
    (Server::start(&dir.join("data"), &args), made)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_handshake_that_stalls_is_closed_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let (server, made) = start_with_tls(dir.path());
    let start = Instant::now();
    let mut silent = Raw::connect(&server);
    // A record of 512 bytes, of which the first are there: a ClientHello.
    let mut begun = Raw::connect(&server);
    begun.send(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).unwrap();
    let mut slow = Raw::connect(&server);
    slow.send(&[0x16, 3, 1, 2, 0]).unwrap();
    // One that is through, and has the same time again for the first bytes of HTTP/2.
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(&server.address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let through = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();

    // Others are let in meanwhile.
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(made.cert.pem()));
    let endpoint = Endpoint::from_shared(format!("https://{}", server.address)).unwrap();
    let endpoint = endpoint.tls_config(tls.domain_name("localhost")).unwrap();
    let mut client = StorageClient::new(endpoint.connect().await.unwrap());
    set(&mut client, delta("demo", "p", "adventure", 1)).await;

    // One byte at a time is not faster for it.
    while slow.send(&[0]).is_ok() {
        assert!(start.elapsed() < PATIENCE, "a slow one is not closed");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    closed(&mut silent.0);
    closed(&mut begun.0);
    assert!(start.elapsed() + Duration::from_millis(100) >= OPENING_TIME, "not too early");
    let (mut through, _) = tokio::io::split(through);
    let ended = tokio::time::timeout(PATIENCE, through.read_to_end(&mut Vec::new())).await;
    drop(ended.expect("it is closed"));
    // Room for a machine that runs other tests beside this one.
    assert!(start.elapsed() < OPENING_TIME * 4, "after {:?}", start.elapsed());
    assert_eq!(server.metric("accolade_refusals_total{reason=\"too_slow\"}"), 4);
    set(&mut client, delta("demo", "p", "adventure", 1)).await;
}

/// Goal: who has said what it must, and then stops in the middle of a header block, can answer no
/// probe, and is given up; who answers probes stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_header_block_without_end_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &PROBES);
    let mut honest = Watch::after(&server, "demo", "").await;
    let headers = request_headers(WATCH);
    let whole = frame(HEADERS, END_HEADERS, 1, &headers);
    // Half a frame, and a frame that is to be continued.
    let mut half = Raw::open(&server);
    half.send(&whole[..whole.len() / 2]).unwrap();
    let mut open_block = Raw::open(&server);
    open_block.send(&frame(HEADERS, 0, 1, &headers)).unwrap();
    // One byte at a time, of 16 KB, is not faster for it.
    let mut slow = Raw::open(&server);
    slow.send(&frame(HEADERS, 0, 1, &[0; 16 << 10])[..9]).unwrap();
    let start = Instant::now();
    while slow.0.write_all(&[0]).is_ok() {
        assert!(start.elapsed() < GIVEN_UP, "a slow one is not given up");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    half.ended();
    open_block.ended();
    assert!(start.elapsed() < GIVEN_UP, "after {:?}", start.elapsed());
    settles(&server, "accolade_connections", 1, GIVEN_UP).await;
    let mut client = server.storage().await;
    set(&mut client, delta("demo", "p", "adventure", 1)).await;
    assert_eq!(honest.completion().await.player_id, "p");
}

/// Goal: a subscriber whose machine is gone does not count as one for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_subscriber_gives_its_place_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &PROBES);
    let mut honest = Watch::after(&server, "demo", "").await;
    let mut dead = Raw::open(&server);
    dead.send(&request(1, WATCH, &watch())).unwrap();
    settles(&server, "accolade_subscribers", 2, PATIENCE).await;
    assert_eq!(server.metric("accolade_connections"), 2);
    settles(&server, "accolade_subscribers", 1, GIVEN_UP).await;
    settles(&server, "accolade_connections", 1, GIVEN_UP).await;
    dead.ended();
    let mut client = server.storage().await;
    set(&mut client, delta("demo", "p", "adventure", 1)).await;
    assert_eq!(honest.completion().await.player_id, "p");
}

/// Goal: neither does one that lets the server's answers pile up until nothing can be sent to it,
/// not even why its connection ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_subscriber_with_full_buffers_gives_its_place_back() {
    const EXTRA_BYTES: usize = 65_536;
    let dir = tempfile::tempdir().unwrap();
    let sizes = ["--extra-bytes-max=65536", "--request-bytes-max=131072"];
    let args: Vec<_> = PROBES.into_iter().chain(sizes).collect();
    let server = Server::start(&dir.path().join("data"), &args);
    let mut client = server.storage().await;
    let large = SetAchievementStorageRequest {
        extra: Some("x".repeat(EXTRA_BYTES)),
        expected_version: Some(0),
        ..delta("demo", "large", "explorer", 1)
    };
    set(&mut client, large).await;

    let mut dead = Raw::open(&server);
    rustix::net::sockopt::set_socket_recv_buffer_size(&dead.0, 4096).unwrap();
    // It says that it takes everything: a window of 2^31 - 1 bytes for each stream and for all.
    dead.send(&frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 255, 255, 255])).unwrap();
    dead.send(&frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes())).unwrap();
    dead.send(&request(1, WATCH, &watch())).unwrap();
    settles(&server, "accolade_subscribers", 1, PATIENCE).await;
    // 8 MB of answers; the system takes 4 MB for a connection at the most.
    let ask = GetAchievementStorageRequest {
        title: "demo".to_owned(),
        player_id: "large".to_owned(),
        achievement_ids: Vec::new(),
    };
    for n in 1..=120 {
        dead.send(&request(2 * n + 1, GET, &ask)).unwrap();
    }
    settles(&server, "accolade_subscribers", 0, GIVEN_UP).await;
    settles(&server, "accolade_connections", 1, GIVEN_UP).await;
    assert_eq!(get(&mut client, "demo", "large").await.len(), 1);
    answers(&server).await;
}

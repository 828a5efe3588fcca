//! Connect over HTTP/1.1, byte by byte: what is refused, how, and that no rule of gRPC is missing.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{PATIENCE, Server, accolade, text};

const SERVICE: &str = "accolade.v1.AchievementStorageService";
const GET: &str = "GetAchievementStorage";
const SET: &str = "SetAchievementStorage";

/// hyper closes a connection of HTTP/1.1 that sends no headers for so long.
const IDLE_MAX: Duration = Duration::from_secs(30);

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn reason(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).expect("errors are JSON");
        body["details"][0]["debug"]["reason"].as_str().expect("a reason").to_owned()
    }
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a request of which nothing follows, and reads the answer to its end.
fn ask(server: &Server, line: &str, headers: &str, body: &str) -> Answer {
    let mut stream = connect(server);
    let length = body.len();
    let head = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}");
    stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes()).unwrap();
    read(stream)
}

fn read(mut stream: TcpStream) -> Answer {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = text(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

fn post(server: &Server, method: &str, headers: &str, body: &str) -> Answer {
    let headers = format!("Content-Type: application/json\r\n{headers}");
    ask(server, &format!("POST /{SERVICE}/{method}"), &headers, body)
}

fn started(args: &[&str]) -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Server::start(&dir.path().join("data"), args), dir)
}

const ONE: &str = r#"{"title": "demo", "player_id": "1"}"#;

#[tokio::test]
async fn what_is_no_call_is_refused_and_says_what_to_do() {
    let (server, _dir) = started(&[]);
    assert_eq!(post(&server, GET, "", ONE).status, 200);

    let got =
        ask(&server, &format!("GET /{SERVICE}/{GET}"), "Content-Type: application/json\r\n", "");
    assert!(got.status == 405 && got.head.contains("allow: post"), "{}", got.head);
    let page = ask(&server, "GET /", "", "");
    assert!(page.status == 415 && page.head.contains("application/connect+json"), "{}", page.head);
    let stream = "POST /accolade.v1.CompletionService/WatchCompletions";
    let unary = ask(&server, stream, "Content-Type: application/json\r\n", "{}");
    assert_eq!(unary.status, 415, "a stream needs frames");

    for (method, headers, body, status, reason) in [
        ("Nope", "", "{}", 501, "METHOD_NOT_FOUND"),
        (GET, "Content-Encoding: gzip\r\n", "x", 501, "COMPRESSION_UNSUPPORTED"),
        (GET, "Connect-Protocol-Version: 2\r\n", ONE, 400, "HEADER_INVALID"),
        (GET, "Connect-Timeout-Ms: soon\r\n", ONE, 400, "HEADER_INVALID"),
        (GET, "", "", 400, "MESSAGE_UNDECODABLE"),
        (GET, "", r#"{"titel": "demo"}"#, 400, "MESSAGE_UNDECODABLE"),
        (GET, "", r#"{"title": "demo"}"#, 400, "FIELD_INVALID"),
        (GET, "", r#"{"title": "no", "player_id": "1"}"#, 404, "TITLE_NOT_FOUND"),
    ] {
        let answer = post(&server, method, headers, body);
        assert_eq!((answer.status, answer.reason().as_str()), (status, reason), "{headers}{body}");
    }
    let large = format!(r#"{{"title": "demo", "player_id": "{}"}}"#, "x".repeat(100_000));
    let answer = post(&server, GET, "", &large);
    assert_eq!((answer.status, answer.reason().as_str()), (429, "MESSAGE_TOO_LARGE"));
}

#[tokio::test]
async fn a_caller_without_a_token_is_refused_before_its_message_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let made = accolade(&["token", "reader", "--scope", "read"]);
    let file = dir.path().join("tokens.toml");
    std::fs::write(&file, &made.stdout).unwrap();
    let args = ["--tokens", file.to_str().unwrap()];
    let server = Server::start(&dir.path().join("data"), &args);
    let mut stream = connect(&server);
    let head = "Content-Type: application/json\r\nContent-Length: 1000\r\nConnection: close";
    stream
        .write_all(
            format!("POST /{SERVICE}/{GET} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n").as_bytes(),
        )
        .unwrap();
    let answer = read(stream);
    assert_eq!((answer.status, answer.reason().as_str()), (401, "TOKEN_MISSING"));

    let shown = text(&made.stderr);
    let token = shown.lines().last().expect("the token is the last line");
    let token = format!("Authorization: Bearer {token}\r\n");
    assert_eq!(post(&server, GET, &token, ONE).status, 200);
    let write = r#"{"title": "demo", "player_id": "1", "node_id": "chef", "delta": 1}"#;
    let answer = post(&server, SET, &token, write);
    assert_eq!((answer.status, answer.reason().as_str()), (403, "FORBIDDEN"));
}

#[tokio::test]
async fn a_message_that_does_not_come_is_waited_for_until_the_deadline() {
    let (server, _dir) = started(&[]);
    let mut stream = connect(&server);
    let begun = Instant::now();
    let head = "Content-Type: application/json\r\nContent-Length: 10\r\nConnect-Timeout-Ms: 300";
    let head = format!("{head}\r\nConnection: close");
    stream
        .write_all(
            format!("POST /{SERVICE}/{GET} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n").as_bytes(),
        )
        .unwrap();
    let answer = read(stream);
    assert_eq!((answer.status, answer.reason().as_str()), (504, "DEADLINE_EXCEEDED"));
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn only_pages_that_are_named_may_call() {
    let (server, _dir) = started(&["--cors-origin", "https://play.example.com"]);
    let ask_as = |server: &Server, origin: &str| {
        let asked = "Access-Control-Request-Method: POST\r\n";
        let headers = format!("Origin: {origin}\r\n{asked}");
        ask(server, &format!("OPTIONS /{SERVICE}/{GET}"), &headers, "").head
    };
    let allowed = "access-control-allow-origin: https://play.example.com";
    assert!(ask_as(&server, "https://play.example.com").contains(allowed));
    assert!(!ask_as(&server, "https://other.example.com").contains("access-control-allow-origin"));
    let called = post(&server, GET, "Origin: https://play.example.com\r\n", ONE);
    assert!(called.head.contains(allowed) && called.head.contains("grpc-status"));

    let (server, _dir) = started(&[]);
    assert!(!ask_as(&server, "https://play.example.com").contains("access-control"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_asks_nothing_more_is_closed() {
    let (server, _dir) = started(&[]);
    let mut stream = connect(&server);
    stream.set_read_timeout(Some(IDLE_MAX + PATIENCE)).unwrap();
    let head = format!("Content-Type: application/json\r\nContent-Length: {}", ONE.len());
    let begun = Instant::now();
    stream
        .write_all(
            format!("POST /{SERVICE}/{GET} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n{ONE}").as_bytes(),
        )
        .unwrap();
    let answer = read(stream);
    assert_eq!(answer.status, 200);
    assert!(begun.elapsed() >= IDLE_MAX, "it was kept for the next request");
}

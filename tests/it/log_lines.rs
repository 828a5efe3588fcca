//! What clients send writes no lines of the log, not even where everything is logged: no line is
//! forged, no terminal is driven, and no token is told.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
};

use accolade::proto::v1::{
    ApplyCatalogRequest, Definition, GetCatalogRequest, ListCompletionsRequest,
    WatchCompletionsRequest,
};
use tonic::{Request, metadata::MetadataValue};

use crate::{
    abuse::{END_HEADERS, GOAWAY, HEADERS, RST_STREAM, Raw, field, frame, request_headers},
    support::{PATIENCE, Server, accolade, delta, text},
};

const SET: &str = "/accolade.v1.AchievementStorageService/SetAchievementStorage";

/// Clears a terminal, and begins a line that looks like the server's own. U+009B stands for ESC and
/// `[` in one.
const HOSTILE: &str = "\x1b[2J\u{9b}2J\r\n2026-01-01T00:00:00.000000Z ERROR forged: all is lost\n\
                       {\"timestamp\":\"2026-01-01T00:00:00.000000Z\",\"level\":\"FORGED\"}\n";

/// A server that logs everything and wants a token; the token, and the text of its log after
/// clients have sent what they should not.
async fn log_of_hostile_clients(dir: &Path, format: &str) -> (String, String) {
    let scopes = ["read", "write", "watch", "catalog"].map(|scope| format!("--scope={scope}"));
    let scopes = scopes.iter().map(String::as_str);
    let made = accolade(&["token", "a"].into_iter().chain(scopes).collect::<Vec<_>>());
    assert!(made.status.success(), "{}", text(&made.stderr));
    let token = text(&made.stderr).lines().nth(1).unwrap().to_owned();
    let file = dir.join("tokens.toml");
    fs::write(&file, text(&made.stdout)).unwrap();
    let args = [
        "--log-filter=trace".to_owned(),
        format!("--log-format={format}"),
        format!("--tokens={}", file.display()),
        "--admin-listen=127.0.0.1:0".to_owned(),
    ];
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let server = Server::start(&dir.join("data"), &args);
    as_messages(&server, &token).await;
    as_headers(&server, &token);
    to_the_admin_listener(&server, &token);
    // Not while it writes.
    server.kill();
    (token, fs::read_to_string(dir.join("data.log")).unwrap())
}

/// A request that carries a token, and what is no header of ours: a value of bytes may be anything.
fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request.metadata_mut().insert_bin("evil-bin", MetadataValue::from_bytes(HOSTILE.as_bytes()));
    request
}

/// Every field that a client may fill, refused or not.
async fn as_messages(server: &Server, token: &str) {
    let mut storage = server.storage().await;
    for request in [
        delta(HOSTILE, "p", "explorer", 1),
        delta("demo", HOSTILE, "explorer", 1),
        delta("demo", "p", HOSTILE, 1),
    ] {
        storage.set_achievement_storage(with(token, request)).await.expect_err("an id");
    }
    let mut request = delta("demo", "p", "explorer", 1);
    request.request_id.push_str(HOSTILE);
    storage.set_achievement_storage(with(token, request.clone())).await.expect_err("an id");
    request.request_id.clear();
    (request.extra, request.expected_version) = (Some(HOSTILE.to_owned()), Some(0));
    storage.set_achievement_storage(with(token, request)).await.expect("extras are free texts");

    let mut completions = server.completions().await;
    let (title, after) = ("demo".to_owned(), HOSTILE.to_owned());
    let list = ListCompletionsRequest { title, after, ..ListCompletionsRequest::default() };
    completions.list_completions(with(token, list)).await.expect_err("a cursor");
    let (title, after) = ("demo".to_owned(), Some(HOSTILE.to_owned()));
    let watch = WatchCompletionsRequest { title, after, ..WatchCompletionsRequest::default() };
    let watch = completions.watch_completions(with(token, watch)).await.expect("it begins");
    watch.into_inner().message().await.expect_err("a cursor");

    let mut catalogs = server.catalogs().await;
    let catalog = GetCatalogRequest { title: HOSTILE.to_owned() };
    catalogs.get_catalog(with(token, catalog)).await.expect_err("an id");
    let apply = |definition| ApplyCatalogRequest {
        title: "other".to_owned(),
        definitions: vec![definition],
        ..ApplyCatalogRequest::default()
    };
    let free = Definition {
        node_id: "n".to_owned(),
        display_name: HOSTILE.to_owned(),
        description: HOSTILE.to_owned(),
        metadata: HOSTILE.to_owned(),
        ..Definition::default()
    };
    let applied = catalogs.apply_catalog(with(token, apply(free.clone()))).await;
    applied.expect("these are free texts");
    let wrong = Definition { node_id: HOSTILE.to_owned(), parent_id: HOSTILE.to_owned(), ..free };
    catalogs.apply_catalog(with(token, apply(wrong))).await.expect_err("an id");
}

/// Bytes that client libraries do not let through, in every header that is looked at.
fn as_headers(server: &Server, token: &str) {
    let bearer = format!("Bearer {token}");
    let path = format!("/{HOSTILE}");
    let spoiled = format!("{bearer}\n");
    let plain = request_headers(SET);
    let method = |method| {
        let rest = [field(":scheme", "http"), field(":path", SET), field(":authority", "x")];
        [vec![field(":method", method)], rest.to_vec()].concat().concat()
    };
    let mut blocks = vec![
        request_headers(&path),
        request_headers(&path.replace('\n', "%0a").replace(['\r', '\x1b'], "?")),
        method(HOSTILE),
        [&plain, &field("authorization", &spoiled)[..]].concat(),
        [&plain, &field("Authorization", &bearer)[..]].concat(),
        [&plain, &field(HOSTILE, "x")[..]].concat(),
    ];
    for name in ["te", "grpc-encoding", "grpc-timeout", "user-agent", "evil", ":path", ":authority"]
    {
        let token = field("authorization", &bearer);
        // As it is, and as far as it is legal in a header: bytes from 0x80 on are.
        let legal = HOSTILE.replace(['\n', '\r', '\x1b'], "?");
        for value in [HOSTILE, &legal] {
            blocks.push([&plain, &token, &field(name, value)[..]].concat());
        }
    }
    for block in blocks {
        let mut raw = Raw::open(server);
        raw.send(&frame(HEADERS, END_HEADERS | 1, 1, &block)).unwrap();
        let ends = [HEADERS, RST_STREAM, GOAWAY];
        std::iter::from_fn(|| raw.next()).find(|it| ends.contains(&it.kind)).expect("an answer");
    }
}

fn to_the_admin_listener(server: &Server, token: &str) {
    let log = server.log();
    let address = ["admin=", "\"admin\":\""].iter().find_map(|it| log.split(it).nth(1)).unwrap();
    let address = address.split([' ', '"']).next().unwrap();
    for path in ["/metrics", "/\x1b[2J", "/%1b[2J"] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nEvil: \x1b[2J\r\nAuthorization: Bearer {token}\r\n\
             Connection: close\r\n\r\n"
        );
        // It may be refused, and the connection closed, before all of it is read.
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

/// What holds for the log in any format.
fn check(token: &str, log: &str) {
    assert!(!log.contains(token), "the token is in the log: {}", around(log, token));
    let is_hostile = |it: char| it.is_control() && it != '\n';
    let at = log.find(is_hostile);
    assert!(at.is_none(), "a terminal is driven: {:?}", at.map(|at| log[..at].lines().last()));
    // It is not for a lack of words that nothing is told: what was sent is there, escaped.
    assert!(log.contains("[2J"), "nothing of what was sent is in the log");
    assert!(log.contains("TRACE") && log.contains("h2::"), "everything is logged");
}

/// The line of a text.
fn around<'a>(log: &'a str, part: &str) -> &'a str {
    log.lines().find(|line| line.contains(part)).unwrap_or_default()
}

/// Whether a text begins as the server's own lines do: 2026-01-01T00:00:00.000000Z.
fn has_time(line: &str) -> bool {
    let shape = line.chars().take(28).map(|it| if it.is_ascii_digit() { '0' } else { it });
    shape.collect::<String>() == "0000-00-00T00:00:00.000000Z "
}

#[tokio::test]
async fn nothing_that_clients_send_forges_a_line_for_people() {
    let dir = tempfile::tempdir().unwrap();
    let (token, log) = log_of_hostile_clients(dir.path(), "human").await;
    check(&token, &log);
    for line in log.lines() {
        let level = line.get(28..).unwrap_or_default().trim_start().split(' ').next().unwrap();
        let levels = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"];
        assert!(has_time(line) && levels.contains(&level), "no line of the server: {line:?}");
        assert!(!line[28..].trim_start().starts_with("ERROR forged"), "forged: {line:?}");
    }
}

#[tokio::test]
async fn nothing_that_clients_send_forges_a_line_for_machines() {
    let dir = tempfile::tempdir().unwrap();
    let (token, log) = log_of_hostile_clients(dir.path(), "json").await;
    check(&token, &log);
    for line in log.lines() {
        let parsed: serde_json::Value = serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {line:?}"));
        for key in ["timestamp", "level", "target"] {
            assert!(parsed[key].is_string(), "no `{key}` in {line}");
        }
        assert_ne!(parsed["level"], "FORGED", "{line}");
        // A key that is there twice is read by some as the first and by others as the last.
        assert_eq!(line.matches("\"level\":").count(), 1, "{line}");
    }
}

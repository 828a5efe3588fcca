//! Whatever is wrong with a request is answered with the status that says so.

use accolade::proto::v1::{
    BatchGetAchievementStorageRequest, BatchSetAchievementStorageRequest,
    GetAchievementStorageRequest, GetCatalogRequest, ListCompletionsRequest, NodeUpdate,
    SetAchievementStorageRequest, WatchCompletionsRequest, node_update,
    set_achievement_storage_request::Change,
};
use proptest::{
    prelude::any,
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use prost::bytes::{Buf, BufMut, Bytes};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};

use crate::support::{PATIENCE, Server, delta, fields, get, reason, say, set};

const SET: &str = "/accolade.v1.AchievementStorageService/SetAchievementStorage";

/// Sends bytes as they are.
#[derive(Default)]
pub struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let bytes = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(bytes)))
    }
}

async fn send(channel: &Channel, method: &'static str, bytes: Vec<u8>) -> Result<Bytes, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("the connection stands");
    let path = PathAndQuery::from_static(method);
    let response = grpc.unary(Request::new(Bytes::from(bytes)), path, RawCodec).await;
    response.map(tonic::Response::into_inner)
}

struct Subject {
    server: Server,
    _dir: tempfile::TempDir,
}

fn subject(args: &[&str]) -> Subject {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), args);
    Subject { server, _dir: dir }
}

impl Subject {
    /// A set that must be refused, and change nothing.
    async fn refused(&self, request: SetAchievementStorageRequest) -> Status {
        let mut client = self.server.storage().await;
        client.set_achievement_storage(request).await.expect_err("must be refused")
    }
}

#[tokio::test]
async fn each_wrong_field_of_a_set_is_named() {
    let subject = subject(&[]);
    let good = delta("demo", "p", "explorer", 1);
    let with = |change| SetAchievementStorageRequest { change, ..good.clone() };
    let long = "x".repeat(129);
    let cases: Vec<(SetAchievementStorageRequest, &[&str])> = vec![
        (delta("", "", "", 1), &["title", "player_id", "node_id"]),
        (delta(&long, "a\0b", "x\n", 1), &["title", "player_id", "node_id"]),
        (delta("demo", "\x1b[2J", "explorer", 1), &["player_id"]),
        (with(Some(Change::Delta(0))), &["delta"]),
        (with(Some(Change::Delta(i64::MIN))), &["delta"]),
        (with(Some(Change::AtLeast(-1))), &["at_least"]),
        (with(Some(Change::Finish(false))), &["finish"]),
        (with(None), &["change"]),
        (
            SetAchievementStorageRequest { expected_version: Some(-1), ..good.clone() },
            &["expected_version"],
        ),
        (
            SetAchievementStorageRequest { extra: Some("x".into()), ..good.clone() },
            &["expected_version"],
        ),
        (
            SetAchievementStorageRequest {
                extra: Some("x".repeat(16385)),
                expected_version: Some(0),
                ..good.clone()
            },
            &["extra"],
        ),
        (
            SetAchievementStorageRequest { request_id: "a\tb".into(), ..good.clone() },
            &["request_id"],
        ),
    ];
    for (request, expected) in cases {
        let status = subject.refused(request.clone()).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{request:?}");
        assert_eq!(reason(&status), "FIELD_INVALID");
        assert_eq!(fields(&status), expected, "{request:?}");
    }
    let mut client = subject.server.storage().await;
    assert!(get(&mut client, "demo", "p").await.is_empty(), "nothing was stored");
}

#[tokio::test]
async fn odd_but_legal_ids_are_kept_apart() {
    let subject = subject(&[]);
    let mut client = subject.server.storage().await;
    let ids = ["../../x", "a/b", "a", "玩家😀", "\u{202e}rtl", "%00", "'; --", &"x".repeat(128)];
    for id in ids {
        set(&mut client, delta("demo", id, "explorer", 2)).await;
    }
    for id in ids {
        let records = get(&mut client, "demo", id).await;
        assert_eq!((records.len(), records[0].progress), (1, 2), "{id:?}");
    }
}

#[tokio::test]
async fn huge_numbers_are_clamped_and_overflow_nothing() {
    let subject = subject(&[]);
    let mut client = subject.server.storage().await;
    for (player, change) in [("a", Change::Delta(i64::MAX)), ("b", Change::AtLeast(i64::MAX))] {
        let request = SetAchievementStorageRequest {
            change: Some(change),
            ..delta("demo", player, "explorer", 0)
        };
        assert_eq!(set(&mut client, request).await.updated.unwrap().progress, 10);
    }
    let absurd = SetAchievementStorageRequest {
        expected_version: Some(i64::MAX),
        ..delta("demo", "a", "explorer", 1)
    };
    assert_eq!(set(&mut client, absurd).await.code, 5, "a version that never was is a conflict");
}

#[tokio::test]
async fn unknown_titles_and_nodes_are_not_found() {
    let subject = subject(&[]);
    let status = subject.refused(delta("nope", "p", "explorer", 1)).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "TITLE_NOT_FOUND"));
    let status = subject.refused(delta("demo", "p", "nope", 1)).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "NODE_NOT_FOUND"));

    let request = GetAchievementStorageRequest {
        title: "nope".into(),
        player_id: "p".into(),
        achievement_ids: vec![],
    };
    let mut client = subject.server.storage().await;
    let status = client.get_achievement_storage(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "TITLE_NOT_FOUND"));
    let request = WatchCompletionsRequest { title: "nope".into(), ..Default::default() };
    let status = subject.server.completions().await.watch_completions(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "TITLE_NOT_FOUND"));
    let request = GetCatalogRequest { title: "nope".into() };
    let status = subject.server.catalogs().await.get_catalog(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "TITLE_NOT_FOUND"));
}

#[tokio::test]
async fn batches_are_bounded_and_name_the_wrong_update() {
    let subject = subject(&[]);
    let mut client = subject.server.storage().await;
    let item = |node: &str, delta| NodeUpdate {
        node_id: node.into(),
        change: Some(node_update::Change::Delta(delta)),
        extra: None,
        expected_version: None,
    };
    let batch = |updates| BatchSetAchievementStorageRequest {
        title: "demo".into(),
        player_id: "p".into(),
        updates,
        request_id: String::new(),
    };
    let twice = vec![item("explorer", 1), item("chef", 0), item("explorer", 1)];
    let many: Vec<_> = (0..21).map(|n| item(&format!("n{n}"), 1)).collect();
    let extra = NodeUpdate { extra: Some("x".into()), ..item("chef", 1) };
    let cases = [
        (batch(vec![]), vec!["updates"]),
        (batch(many), vec!["updates"]),
        (batch(twice), vec!["updates[1].delta", "updates[2].node_id"]),
        (batch(vec![item("explorer", 1), extra]), vec!["updates[1].expected_version"]),
    ];
    for (request, expected) in cases {
        let status = client.batch_set_achievement_storage(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(fields(&status), expected);
    }
    let players = |ids: Vec<String>| BatchGetAchievementStorageRequest {
        title: "demo".into(),
        player_ids: ids,
    };
    let many = (0..101).map(|n| n.to_string()).collect();
    for request in [players(vec![]), players(many)] {
        let status = client.batch_get_achievement_storage(request).await.unwrap_err();
        assert_eq!(fields(&status), ["player_ids"]);
    }
    assert!(get(&mut client, "demo", "p").await.is_empty(), "nothing was stored");
}

#[tokio::test]
async fn feeds_refuse_what_is_no_cursor_and_bound_what_is_asked() {
    let subject = subject(&[]);
    let mut client = subject.server.completions().await;
    let watch = WatchCompletionsRequest { title: "demo".into(), ..Default::default() };
    let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
    let many: Vec<String> = (0..257).map(|n| n.to_string()).collect();
    for (request, field) in [
        (
            WatchCompletionsRequest { heartbeat_interval: Some(seconds(0)), ..watch.clone() },
            "heartbeat_interval",
        ),
        (
            WatchCompletionsRequest { heartbeat_interval: Some(seconds(-9)), ..watch.clone() },
            "heartbeat_interval",
        ),
        (
            WatchCompletionsRequest { heartbeat_interval: Some(seconds(601)), ..watch.clone() },
            "heartbeat_interval",
        ),
        (WatchCompletionsRequest { player_ids: many, ..watch.clone() }, "player_ids"),
        (
            WatchCompletionsRequest { achievement_ids: vec![String::new()], ..watch.clone() },
            "achievement_ids[0]",
        ),
    ] {
        let status = client.watch_completions(request).await.unwrap_err();
        assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec![field.into()]));
    }
    let forged = WatchCompletionsRequest { after: Some("AQAAAAAAAAABAAAAAA".into()), ..watch };
    let mut stream = client.watch_completions(forged).await.unwrap().into_inner();
    let status = stream.message().await.unwrap_err();
    assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec!["after".into()]));

    let list = ListCompletionsRequest { title: "demo".into(), ..Default::default() };
    for (request, field) in [
        (ListCompletionsRequest { page_size: -1, ..list.clone() }, "page_size"),
        (ListCompletionsRequest { page_size: 1001, ..list.clone() }, "page_size"),
        (ListCompletionsRequest { after: "x".into(), ..list.clone() }, "after"),
        (ListCompletionsRequest { page_token: "x".into(), ..list.clone() }, "page_token"),
    ] {
        let status = client.list_completions(request).await.unwrap_err();
        assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec![field.into()]));
    }
}

#[tokio::test]
async fn undecodable_messages_are_the_callers_mistake() {
    let subject = subject(&[]);
    let channel = subject.server.channel().await;
    let mut nested = Vec::new();
    for _ in 0..200 {
        // Field 99, a group inside a group inside a group.
        nested.extend_from_slice(&[0x9b, 0x06]);
    }
    let cases = [vec![0xff; 10], vec![0x0a, 0x05, b'a'], vec![0x0a, 0x02, 0xff, 0xfe], nested];
    for bytes in cases {
        let status = send(&channel, SET, bytes.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{bytes:02x?}: {status:?}");
        assert_eq!(reason(&status), "MESSAGE_UNDECODABLE");
    }
}

/// Goal: no bytes make the server panic, answer INTERNAL, or stop.
#[tokio::test]
async fn random_messages_never_reach_an_internal_error() {
    let subject = subject(&[]);
    let channel = subject.server.channel().await;
    let methods = [
        SET,
        "/accolade.v1.AchievementStorageService/GetAchievementStorage",
        "/accolade.v1.AchievementStorageService/BatchSetAchievementStorage",
        "/accolade.v1.AchievementStorageService/BatchGetAchievementStorage",
        "/accolade.v1.CompletionService/ListCompletions",
        "/accolade.v1.CatalogService/GetCatalog",
        "/grpc.health.v1.Health/Check",
    ];
    // Half of it noise, half of it a legal message with bytes changed.
    let legal = prost::Message::encode_to_vec(&delta("demo", "p", "explorer", 1));
    let noise = proptest::collection::vec(any::<u8>(), 0..80);
    let changes = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4);
    let mut runner = TestRunner::deterministic();
    for round in 0..10_000 {
        let bytes = if round % 2 == 0 {
            noise.new_tree(&mut runner).unwrap().current()
        } else {
            let mut bytes = legal.clone();
            for (at, byte) in changes.new_tree(&mut runner).unwrap().current() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        };
        let method = methods[round % methods.len()];
        if let Err(status) = send(&channel, method, bytes.clone()).await {
            let expected = [Code::InvalidArgument, Code::NotFound];
            assert!(expected.contains(&status.code()), "{method} {bytes:02x?}: {status:?}");
            reason(&status);
        }
    }
    assert!(!subject.server.log().contains("panicked"), "{}", subject.server.log());
}

#[tokio::test]
async fn messages_over_the_limit_are_refused_before_they_are_read() {
    let subject = subject(&[]);
    let channel = subject.server.channel().await;
    let status = send(&channel, SET, vec![0; 65537]).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(reason(&status), "MESSAGE_TOO_LARGE");
    let mut client = subject.server.storage().await;
    set(&mut client, delta("demo", "p", "explorer", 1)).await;
}

#[tokio::test]
async fn answers_over_the_limit_say_how_to_ask_for_less() {
    let subject = subject(&["--request-bytes-max", "131072", "--extra-bytes-max", "65536"]);
    let server = &subject.server;
    let ids: Vec<_> = (0..80).map(|n| format!("n{n}")).collect();
    let nodes: Vec<_> = ids.iter().map(|id| (id.as_str(), 9)).collect();
    server.apply("big", &nodes).await;
    let mut client = server.storage().await;
    for id in &ids {
        let request = SetAchievementStorageRequest {
            extra: Some("x".repeat(60_000)),
            expected_version: Some(0),
            ..delta("big", "p", id, 1)
        };
        set(&mut client, request).await;
    }
    let all = GetAchievementStorageRequest {
        title: "big".into(),
        player_id: "p".into(),
        achievement_ids: vec![],
    };
    let status = client.get_achievement_storage(all.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(reason(&status), "RESPONSE_TOO_LARGE");
    let some = GetAchievementStorageRequest { achievement_ids: ids[..9].to_vec(), ..all };
    let answer = client.get_achievement_storage(some).await.unwrap().into_inner();
    assert_eq!(answer.entity.len(), 9);
}

#[tokio::test]
async fn unknown_methods_and_encodings_are_unimplemented() {
    let subject = subject(&[]);
    let channel = subject.server.channel().await;
    let unknown = "/accolade.v1.AchievementStorageService/Nope";
    let status = send(&channel, unknown, vec![]).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(reason(&status), "METHOD_NOT_FOUND");
    let status = send(&channel, "/no.such.Service/Nope", vec![]).await.unwrap_err();
    assert_eq!(reason(&status), "METHOD_NOT_FOUND");

    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let mut request = Request::new(Bytes::new());
    request.metadata_mut().insert("grpc-encoding", "gzip".parse().unwrap());
    let status = grpc.unary(request, PathAndQuery::from_static(SET), RawCodec).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(reason(&status), "COMPRESSION_UNSUPPORTED");
}

/// Sets of one record under ids of their own.
const IDS_OF_A_RECORD: u64 = 4;

/// Goal: a set whose deadline passes is counted once by its retries, whatever became of it.
#[tokio::test]
async fn a_passed_deadline_is_retried_under_the_same_id_and_counts_once() {
    let subject = subject(&[]);
    subject.server.apply("t", &[("n", 1_000_000)]).await;
    let mut client = subject.server.storage().await;
    let (mut expired, mut replayed) = (0, 0);
    for n in 0..300 {
        // Fewer ids of a record than it remembers: the first attempt may come after others.
        let player = format!("p{}", n / IDS_OF_A_RECORD);
        let request = SetAchievementStorageRequest {
            request_id: format!("r{n}"),
            ..delta("t", &player, "n", 1)
        };
        let mut hasty = Request::new(request.clone());
        hasty.set_timeout(std::time::Duration::from_micros(50 * (n % 40)));
        if let Err(status) = client.set_achievement_storage(hasty).await {
            let expected = [Code::DeadlineExceeded, Code::Cancelled];
            assert!(expected.contains(&status.code()), "{status:?}");
            expired += 1;
            replayed += u64::from(set(&mut client, request).await.replayed);
        }
    }
    say(&format!("{expired} deadlines passed, of which {replayed} sets were stored"));
    assert!(expired > 0, "some deadlines pass");
    for n in 0..300 / IDS_OF_A_RECORD {
        let records = get(&mut client, "t", &format!("p{n}")).await;
        let each = i64::try_from(IDS_OF_A_RECORD).unwrap();
        assert_eq!((records[0].progress, records[0].version), (each, each));
    }
}

/// A request sent by hand over HTTP/2: every client library frames messages and keeps deadlines by
/// itself. Its stream stays open, so that nothing is answered because it ended.
async fn by_hand(
    subject: &Subject,
    path: &str,
    header: (&str, &str),
    body: Option<Vec<u8>>,
) -> Status {
    let socket = tokio::net::TcpStream::connect(&subject.server.address).await.unwrap();
    let (client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{}{path}", subject.server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(header.0, header.1)
        .body(())
        .unwrap();
    let mut client = client.ready().await.unwrap();
    let (response, mut sending) = client.send_request(request, false).unwrap();
    if let Some(body) = body {
        sending.send_data(Bytes::from(body), false).unwrap();
    }
    let answered = async {
        let mut response = response.await.unwrap();
        let status = Status::from_header_map(response.headers());
        if let Some(status) = status {
            return status;
        }
        let body = response.body_mut();
        assert!(body.data().await.is_none(), "no message is answered");
        let trailers = body.trailers().await.unwrap().expect("trailers");
        Status::from_header_map(&trailers).expect("a status")
    };
    tokio::time::timeout(PATIENCE, answered).await.expect("an answer")
}

/// A message as it is sent: whether it is compressed, its length, itself.
fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[flag], &length[..], message].concat()
}

/// The most memory that the server has taken so far, in bytes.
fn peak(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn the_servers_own_deadline_status_carries_its_reason() {
    let subject = subject(&[]);
    // The message itself never comes.
    let status = by_hand(&subject, SET, ("grpc-timeout", "20m"), None).await;
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
}

/// Goal: a message that claims to be 4 GiB long is refused by its length, not waited for.
#[tokio::test]
async fn a_length_of_four_gibibytes_is_refused_at_once() {
    let subject = subject(&[]);
    let body = vec![0, 0xff, 0xff, 0xff, 0xff];
    let status = by_hand(&subject, SET, ("x", "y"), Some(body)).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(reason(&status), "MESSAGE_TOO_LARGE");
    let peak = peak(&subject.server);
    assert!(peak < 128 << 20, "{peak} bytes at the most");
}

/// 32 MiB of zeros (33,554,191 bytes) as gzip, in 32,546 bytes: a legal message by its length.
/// Dynamic codes give the longest repetition two bits, both 0, so all but the ends is zeros.
fn gzip_bomb() -> Vec<u8> {
    const HEAD: [u8; 23] = [
        0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff, // the header of gzip
        0xed, 0xc0, 0x81, 0, 0, 0, 0, 0x80, 0xa0, 0xfd, 0xa9, 0x17, 0xa9, // the codes, a zero
    ];
    // The end of the block, the checksum, the length.
    const TAIL: [u8; 10] = [0x80, 1, 0x53, 0xb2, 0x27, 1, 0x0f, 0xff, 0xff, 1];
    [&HEAD[..], &vec![0; 32_513], &TAIL].concat()
}

/// Goal: what unpacks to a thousand times its size is refused as it is; nobody unpacks it to see.
#[tokio::test]
async fn a_compression_bomb_is_refused_and_costs_no_memory() {
    let subject = subject(&[]);
    let mut client = subject.server.storage().await;
    set(&mut client, delta("demo", "p", "explorer", 1)).await;
    let before = peak(&subject.server);
    let bomb = gzip_bomb();
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let methods = [
        SET,
        "/accolade.v1.AchievementStorageService/StreamSetAchievementStorage",
        "/accolade.v1.CompletionService/WatchCompletions",
        "/grpc.health.v1.Health/Check",
        reflection,
    ];
    for method in methods {
        let packed = Some(framed(1, &bomb));
        let status = by_hand(&subject, method, ("grpc-encoding", "gzip"), packed.clone()).await;
        assert_eq!(status.code(), Code::Unimplemented, "{method}: {status:?}");
        assert_eq!(reason(&status), "COMPRESSION_UNSUPPORTED", "{method}");
        // Without the header, what the flag says is the caller's mistake; so is a flag of no
        // meaning.
        let cases = [("x", "y", 1), ("grpc-encoding", "identity", 1), ("x", "y", 2)];
        for (name, value, flag) in cases {
            let body = Some(framed(flag, &bomb));
            let status = by_hand(&subject, method, (name, value), body).await;
            if method == reflection {
                // This service is tonic's, and ends its stream without a word.
                assert_eq!(status.code(), Code::Ok, "{status:?}");
                continue;
            }
            assert_eq!(status.code(), Code::InvalidArgument, "{method} {flag}: {status:?}");
            assert_eq!(reason(&status), "MESSAGE_UNDECODABLE", "{method} {flag}");
        }
    }
    let grown = peak(&subject.server).saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
    set(&mut client, delta("demo", "p", "explorer", 1)).await;
}

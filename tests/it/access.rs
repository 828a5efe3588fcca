//! Tokens and quotas, from outside.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use accolade::proto::v1::{
    ApplyCatalogRequest, BatchGetAchievementStorageRequest, BatchSetAchievementStorageRequest,
    Definition, GetAchievementStorageRequest, ListCompletionsRequest, ListTitlesRequest,
    NodeUpdate, StreamSetAchievementStorageRequest, WatchCompletionsRequest,
    catalog_service_client::CatalogServiceClient, node_update,
    set_achievement_storage_request::Change, stream_set_achievement_storage_response::Outcome,
    watch_completions_response::Event,
};
use futures_util::future::join_all;
use prost::{Message, bytes::Bytes};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{
    Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel,
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest,
};
use tonic_types::StatusExt;

use crate::{
    bad_input::RawCodec,
    every_method::{OF_A_TITLE, try_all},
    support::{PATIENCE, Server, accolade, delta, fields, reason, text},
};

/// Two looks at the file, a second apart each; the rest is for a machine that runs other tests
/// beside this one.
const OUT_AFTER_MAX: Duration = Duration::from_secs(10);

const REFLECTION: [&str; 2] = [
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// A server with a file of tokens.
pub struct Guarded {
    pub server: Server,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

/// A token as the command makes it, and its entry for the file.
pub fn token(name: &str, titles: &[&str], scopes: &[&str]) -> (String, String) {
    let mut args = vec!["token", name];
    args.extend(titles.iter().flat_map(|title| ["--title", title]));
    args.extend(scopes.iter().flat_map(|scope| ["--scope", scope]));
    let made = accolade(&args);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let entry = text(&made.stdout);
    let token = text(&made.stderr).lines().nth(1).unwrap().to_owned();
    assert!(!entry.contains(&token), "the server's file does not hold the token");
    (token, entry)
}

impl Guarded {
    pub fn start(entries: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens.toml");
        fs::write(&file, entries).unwrap();
        let tokens = format!("--tokens={}", file.display());
        let args: Vec<_> = [tokens.as_str()].iter().chain(args).copied().collect();
        let server = Server::start(&dir.path().join("data"), &args);
        Self { server, file, _dir: dir }
    }
}

/// A request that carries a token.
pub fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

pub fn get(title: &str) -> GetAchievementStorageRequest {
    let (title, player_id) = (title.to_owned(), "p".to_owned());
    GetAchievementStorageRequest { title, player_id, achievement_ids: Vec::new() }
}

pub fn watch(title: &str) -> WatchCompletionsRequest {
    WatchCompletionsRequest { title: title.to_owned(), ..WatchCompletionsRequest::default() }
}

pub fn list(title: &str, after: &str) -> ListCompletionsRequest {
    let (title, after) = (title.to_owned(), after.to_owned());
    ListCompletionsRequest { title, after, ..ListCompletionsRequest::default() }
}

pub fn batch_get(title: &str, players: usize) -> BatchGetAchievementStorageRequest {
    let player_ids = (0..players).map(|n| n.to_string()).collect();
    BatchGetAchievementStorageRequest { title: title.to_owned(), player_ids }
}

pub fn batch_set(title: &str) -> BatchSetAchievementStorageRequest {
    let update = NodeUpdate {
        node_id: "first_steps".to_owned(),
        change: Some(node_update::Change::Delta(1)),
        ..NodeUpdate::default()
    };
    BatchSetAchievementStorageRequest {
        title: title.to_owned(),
        player_id: "p".to_owned(),
        updates: vec![update],
        request_id: String::new(),
    }
}

/// Calls any method with any bytes, and with any `authorization`.
async fn call(
    channel: &Channel,
    method: &str,
    authorization: Option<&str>,
    message: Vec<u8>,
) -> Result<Bytes, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("the connection stands");
    let mut request = Request::new(Bytes::from(message));
    if let Some(authorization) = authorization {
        request.metadata_mut().insert("authorization", authorization.parse().unwrap());
    }
    let path = PathAndQuery::try_from(format!("/{method}")).unwrap();
    grpc.unary(request, path, RawCodec).await.map(tonic::Response::into_inner)
}

pub fn definitions() -> Vec<Definition> {
    let node_id = "first_steps".to_owned();
    vec![Definition { node_id, max_progress: 100, ..Definition::default() }]
}

fn refused<T>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.err().expect("this is not allowed");
    (status.code(), reason(&status))
}

#[tokio::test]
async fn without_a_token_only_health_is_answered() {
    let (token, entry) = token("a", &[], &["read"]);
    let guarded = Guarded::start(&entry, &[]);
    let mut storage = guarded.server.storage().await;
    let missing = (Code::Unauthenticated, "TOKEN_MISSING".to_owned());
    let unknown = (Code::Unauthenticated, "TOKEN_UNKNOWN".to_owned());
    assert_eq!(refused(storage.get_achievement_storage(get("demo")).await), missing);
    let wrong = with(&token[1..], get("demo"));
    assert_eq!(refused(storage.get_achievement_storage(wrong).await), unknown);
    let mut titles = guarded.server.catalogs().await;
    assert_eq!(refused(titles.list_titles(ListTitlesRequest {}).await), missing);
    let sets = tokio_stream::pending::<StreamSetAchievementStorageRequest>();
    assert_eq!(refused(storage.stream_set_achievement_storage(sets).await), missing);

    // Every method, with whatever message, and one that is not there. An answer tells nobody which
    // methods there are.
    let channel = guarded.server.channel().await;
    let methods: Vec<_> = accolade::proto::methods().collect();
    let others = REFLECTION.into_iter().chain(["accolade.v1.Nope/Nope", "nope"]);
    for method in methods.iter().map(String::as_str).chain(others) {
        for (authorization, expected) in [
            (None, &missing),
            (Some(token.clone()), &missing),
            (Some(format!("Basic {token}")), &missing),
            (Some("Bearer ".to_owned()), &unknown),
            (Some(format!("Bearer  {token}")), &unknown),
            (Some(format!("Bearer {token}x")), &unknown),
            (Some(format!("Bearer {}", token.to_lowercase())), &unknown),
        ] {
            for message in [vec![], delta("demo", "p", "first_steps", 1).encode_to_vec()] {
                let answer = call(&channel, method, authorization.as_deref(), message).await;
                assert_eq!(refused(answer), *expected, "{method} {authorization:?}");
            }
        }
    }

    storage.get_achievement_storage(with(&token, get("demo"))).await.unwrap();
    let mut health = HealthClient::new(channel);
    health.check(HealthCheckRequest::default()).await.expect("probes have no token");
    health.watch(HealthCheckRequest::default()).await.expect("probes have no token");
    let log = guarded.server.log();
    assert!(!log.contains(&token) && !log.contains(&token[1..]), "a token is in the log:\n{log}");
}

#[tokio::test]
async fn a_token_reaches_its_titles_and_scopes_only() {
    let all = ["read", "write", "watch", "catalog", "admin"];
    let made = all.map(|scope| token(scope, &["demo"], &[scope]));
    let (everything, entry) = token("everything", &[], &all);
    let entries = made.iter().map(|(_, entry)| entry.as_str()).collect::<String>() + &entry;
    let guarded = Guarded::start(&entries, &[]);
    let server = &guarded.server;

    let forbidden = Some((Code::PermissionDenied, "FORBIDDEN".to_owned()));
    // In the order of `try_all`: what each scope opens.
    let opens = [(0..5), (5..9), (9..13), (13..14), (14..18)];
    for (((token, _), opens), scope) in made.iter().zip(opens).zip(all) {
        let ended = try_all(server, token, "demo").await;
        for (n, (ended, method)) in ended.into_iter().zip(OF_A_TITLE).enumerate() {
            let expected = if opens.contains(&n) { None } else { forbidden.clone() };
            assert_eq!(ended, expected, "{scope}: {method}");
        }
        // Of another title it is not even told whether there is one.
        for title in ["other", "nowhere"] {
            let ended = try_all(server, token, title).await;
            assert!(ended.iter().all(|it| *it == forbidden), "{scope}: {ended:?}");
        }
    }
    let ended = try_all(server, &everything, "nowhere").await;
    let not_found = Some((Code::NotFound, "TITLE_NOT_FOUND".to_owned()));
    let makes_titles = ["CatalogService/ApplyCatalog", "AdminService/ImportRecords"];
    for (ended, method) in ended.into_iter().zip(OF_A_TITLE) {
        let expected = if makes_titles.contains(&method) { None } else { not_found.clone() };
        assert_eq!(ended, expected, "{method}");
    }

    // Titles that a token is not for are not listed, and a cursor does not lead there.
    let mut catalogs = server.catalogs().await;
    let title = "secret".to_owned();
    let definitions = definitions();
    let apply = ApplyCatalogRequest { title, definitions, ..ApplyCatalogRequest::default() };
    catalogs.apply_catalog(with(&everything, apply)).await.unwrap();
    let count = async |catalogs: &mut CatalogServiceClient<_>, token: &str| {
        let listed = catalogs.list_titles(with(token, ListTitlesRequest {})).await.unwrap();
        listed.into_inner().titles.len()
    };
    assert_eq!(count(&mut catalogs, &everything).await, 2);
    assert_eq!(count(&mut catalogs, &made[0].0).await, 1);
    let mut completions = server.completions().await;
    let page = completions.list_completions(with(&everything, list("secret", ""))).await.unwrap();
    let cursor = page.into_inner().cursor;
    let stolen = completions.list_completions(with(&made[0].0, list("demo", &cursor))).await;
    let is_refused = |status: Status| {
        let wrong = (status.code(), fields(&status));
        assert_eq!(wrong, (Code::InvalidArgument, vec!["after".to_owned()]));
    };
    is_refused(stolen.expect_err("a cursor of another title"));
    let stolen = WatchCompletionsRequest { after: Some(cursor.clone()), ..watch("demo") };
    let stream = completions.watch_completions(with(&made[2].0, stolen)).await.unwrap();
    is_refused(stream.into_inner().message().await.expect_err("a cursor of another title"));
    let own = WatchCompletionsRequest { after: Some(cursor), ..watch("secret") };
    let stream = completions.watch_completions(with(&everything, own)).await.unwrap();
    stream.into_inner().message().await.expect("a cursor of this title");
}

#[tokio::test]
async fn a_token_taken_away_ends_what_it_had_open_and_nothing_else() {
    let (stays, kept) = token("stays", &["demo"], &["watch", "write"]);
    let (goes, gone) = token("goes", &["demo"], &["watch", "write"]);
    let guarded = Guarded::start(&format!("{kept}{gone}"), &[]);
    let mut completions = guarded.server.completions().await;
    let mut open = Vec::new();
    for token in [&stays, &goes] {
        let watch = completions.watch_completions(with(token, watch("demo"))).await.unwrap();
        let mut watch = watch.into_inner();
        assert!(matches!(watch.message().await.unwrap().unwrap().event, Some(Event::Started(_))));
        open.push(watch);
    }
    let (sets, receiver) = tokio::sync::mpsc::channel(1);
    let mut storage = guarded.server.storage().await;
    let answers =
        storage.stream_set_achievement_storage(with(&goes, ReceiverStream::new(receiver)));
    let mut answers = answers.await.unwrap().into_inner();
    let set = |player: &str| StreamSetAchievementStorageRequest {
        tag: 1,
        set: Some(delta("demo", player, "first_steps", 1)),
    };
    sets.send(set("p")).await.unwrap();
    assert!(matches!(
        answers.message().await.unwrap().unwrap().outcome,
        Some(Outcome::Response(_))
    ));

    // It never stops to send, and is not spared for that.
    let sending = tokio::spawn(async move {
        loop {
            let mut stale = set("p");
            stale.set.as_mut().unwrap().expected_version = Some(1 << 40);
            let _ = sets.send(stale).await;
            match answers.message().await {
                Ok(answer) => assert!(answer.is_some(), "it ends with an error"),
                Err(end) => return end,
            }
        }
    });

    let (comes, new) = token("comes", &["demo"], &["write"]);
    fs::write(&guarded.file, format!("{kept}{new}")).unwrap();
    let replaced = Instant::now();
    let ended = tokio::time::timeout(PATIENCE, open[1].message()).await.expect("it ends in time");
    assert!(replaced.elapsed() <= OUT_AFTER_MAX, "out after {:?}", replaced.elapsed());
    let revoked = (Code::Unauthenticated, "TOKEN_REVOKED".to_owned());
    assert_eq!(refused(ended), revoked);
    let ended = tokio::time::timeout(PATIENCE, sending).await.expect("it ends in time");
    assert_eq!(refused(Err::<(), _>(ended.unwrap())), revoked);
    let unknown = (Code::Unauthenticated, "TOKEN_UNKNOWN".to_owned());
    let again = completions.watch_completions(with(&goes, watch("demo"))).await;
    assert_eq!(refused(again), unknown);

    // Who has the new token completes something, and who watches by the old one hears of it.
    let mut finish = delta("demo", "q", "first_steps", i64::MAX);
    finish.change = Some(Change::Finish(true));
    storage.set_achievement_storage(with(&comes, finish)).await.unwrap();
    let heard = tokio::time::timeout(PATIENCE, async {
        loop {
            match open[0].message().await.unwrap().unwrap().event {
                Some(Event::Heartbeat(_)) => {}
                event => return event,
            }
        }
    });
    assert!(matches!(heard.await.expect("it goes on"), Some(Event::Completion(_))));

    // A file with a mistake changes nothing.
    fs::write(&guarded.file, "[[tokens]]\nname = 1").unwrap();
    let start = Instant::now();
    while !guarded.server.log().contains("the old tokens stay") {
        assert!(start.elapsed() < PATIENCE, "{}", guarded.server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let set = delta("demo", "p", "first_steps", 1);
    storage.set_achievement_storage(with(&stays, set)).await.unwrap();
}

/// Goal: the same holds for a stream of reflection, which a caller may keep open for ever.
#[tokio::test]
async fn a_token_taken_away_ends_its_reflection_too() {
    let (stays, kept) = token("stays", &["demo"], &["read"]);
    let (goes, gone) = token("goes", &["demo"], &["read"]);
    let guarded = Guarded::start(&format!("{kept}{gone}"), &[]);
    let channel = guarded.server.channel().await;
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let (questions, receiver) = tokio::sync::mpsc::channel(1);
    let question = || ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    questions.send(question()).await.unwrap();
    let stream = with(&goes, ReceiverStream::new(receiver));
    let mut answers = reflection.server_reflection_info(stream).await.unwrap().into_inner();
    answers.message().await.unwrap().expect("an answer");

    fs::write(&guarded.file, kept).unwrap();
    let replaced = Instant::now();
    let asks = question().encode_to_vec();
    let (goes, stays) = (format!("Bearer {goes}"), format!("Bearer {stays}"));
    while call(&channel, REFLECTION[0], Some(&goes), asks.clone()).await.is_ok() {
        assert!(replaced.elapsed() <= OUT_AFTER_MAX, "it is not out");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let _ = questions.send(question()).await;
    let answer = tokio::time::timeout(PATIENCE, answers.message()).await.expect("in time");
    assert!(!matches!(answer, Ok(Some(_))), "what it had open goes on: {answer:?}");
    call(&channel, REFLECTION[0], Some(&stays), asks).await.expect("nobody else is out");
}

#[tokio::test]
async fn a_quota_refuses_with_the_time_to_wait_and_spares_other_titles() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--title-requests-per-second-max=100", "--title-streams-max=2"];
    let server = Server::start(&dir.path().join("data"), &args);
    server.apply("quiet", &[("n", 5)]).await;
    let mut storage = server.storage().await;
    let mut refusals = Vec::new();
    let begun = Instant::now();
    let mut asked = 0;
    while refusals.len() < 100 && asked < 5000 {
        let at_once = (0..50).map(|_| {
            let mut storage = storage.clone();
            async move { storage.get_achievement_storage(get("demo")).await }
        });
        let answers = join_all(at_once).await;
        asked += answers.len();
        refusals.extend(answers.into_iter().filter_map(Result::err));
    }
    // 100 at once, and 100 more for each second that this took.
    let allowed = asked - refusals.len();
    let expected = 100 + usize::try_from(begun.elapsed().as_millis() / 10).unwrap() + 1;
    assert!((100..=expected).contains(&allowed), "{allowed} allowed of {expected}");
    assert!(!refusals.is_empty(), "the machine is too slow for this test: {:?}", begun.elapsed());
    for status in &refusals {
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(reason(status), "QUOTA_EXCEEDED");
        let wait = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap();
        assert!(wait <= Duration::from_millis(20), "{wait:?}");
    }
    for _ in 0..50 {
        storage.get_achievement_storage(get("quiet")).await.expect("another title has its own");
    }
    // A stream goes on: each set is refused for itself.
    let sets = (0..1000).map(|n| StreamSetAchievementStorageRequest {
        tag: n,
        set: Some(delta("quiet", "p", "n", 1)),
    });
    let answers = storage.stream_set_achievement_storage(tokio_stream::iter(sets)).await.unwrap();
    let answers: Vec<_> = answers.into_inner().collect().await;
    assert_eq!(answers.len(), 1000);
    let is_refused = |outcome: &Outcome| {
        matches!(outcome, Outcome::Status(status)
        if status.code == Code::ResourceExhausted as i32)
    };
    let refused =
        answers.into_iter().filter(|it| is_refused(it.as_ref().unwrap().outcome.as_ref().unwrap()));
    assert!((1..=999).contains(&refused.count()));
}

/// Goal: each rate of a token is its own, tells a time to wait that is true, and spares others.
#[tokio::test]
async fn a_tokens_rates_refuse_with_the_time_to_wait_and_spare_other_tokens() {
    const METADATA_BYTES: usize = 3_900_000;
    let (few, mut entries) = token("few", &["demo"], &["read"]);
    entries += "requests_per_second = 100\n";
    let (short, entry) = token("short", &["demo"], &["catalog", "read"]);
    entries += &(entry + "request_bytes_per_second = 4194304\n");
    let (free, entry) = token("free", &["demo"], &["catalog", "read"]);
    let guarded = Guarded::start(&(entries + &entry), &[]);
    let waits = |status: Status| {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert_eq!(reason(&status), "QUOTA_EXCEEDED");
        let wait = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap();
        assert!(!wait.is_zero() && wait <= Duration::from_secs(1), "{wait:?}");
        wait
    };

    // A batch takes a second's worth of requests: the next, within that second, is refused.
    let mut storage = guarded.server.storage().await;
    let batch = |token| with(token, batch_get("demo", 100));
    storage.batch_get_achievement_storage(batch(&few)).await.expect("a second's worth");
    let mut again = storage.batch_get_achievement_storage(batch(&few)).await;
    // Where the machine was so slow that the second was over, another one has begun.
    for _ in 0..5 {
        if again.is_ok() {
            again = storage.batch_get_achievement_storage(batch(&few)).await;
        }
    }
    let wait = waits(again.expect_err("the second is not over"));
    for _ in 0..3 {
        storage.batch_get_achievement_storage(batch(&free)).await.expect("it has no quota");
    }
    tokio::time::sleep(wait).await;
    storage.batch_get_achievement_storage(batch(&few)).await.expect("the time is over");

    // A message takes nearly a second's worth of bytes, and is paid for before it is looked at: it
    // is no catalogue, for its text is too long.
    let mut catalogs = guarded.server.catalogs().await;
    let mut definitions = definitions();
    definitions[0].metadata = "x".repeat(METADATA_BYTES);
    let title = "demo".to_owned();
    let apply = ApplyCatalogRequest { title, definitions, ..ApplyCatalogRequest::default() };
    let status = catalogs.apply_catalog(with(&short, apply.clone())).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let mut again = status;
    for _ in 0..5 {
        if again.code() == Code::InvalidArgument {
            again = catalogs.apply_catalog(with(&short, apply.clone())).await.unwrap_err();
        }
    }
    let wait = waits(again);
    for _ in 0..3 {
        let status = catalogs.apply_catalog(with(&free, apply.clone())).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "it has no quota: {status:?}");
    }
    tokio::time::sleep(wait).await;
    let status = catalogs.apply_catalog(with(&short, apply)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "the time is over: {status:?}");
}

/// Goal: what the methods are called and take is told only where the settings say so, and to whom
/// they let in.
#[tokio::test]
async fn reflection_answers_only_where_and_whom_it_should() {
    // The first question of grpcurl: which services are there (field 7, "*").
    let question = || b"\x3a\x01*".to_vec();
    let (token, entry) = token("a", &["demo"], &["read"]);
    let guarded = Guarded::start(&entry, &[]);
    let channel = guarded.server.channel().await;
    let bearer = format!("Bearer {token}");
    for method in REFLECTION {
        let answer = call(&channel, method, None, question()).await;
        assert_eq!(refused(answer), (Code::Unauthenticated, "TOKEN_MISSING".to_owned()));
        let answer = call(&channel, method, Some(&bearer), question()).await.unwrap();
        assert!(text(&answer).contains("accolade.v1.CompletionService"), "{}", text(&answer));
    }

    let silent = Guarded::start(&entry, &["--reflection=false"]);
    let channel = silent.server.channel().await;
    let dir = tempfile::tempdir().unwrap();
    let open = Server::start(&dir.path().join("data"), &["--reflection=false"]);
    for (channel, bearer) in [(channel, Some(bearer.as_str())), (open.channel().await, None)] {
        for method in REFLECTION {
            let answer = call(&channel, method, bearer, question()).await;
            assert_eq!(refused(answer), (Code::Unimplemented, "METHOD_NOT_FOUND".to_owned()));
        }
        call(
            &channel,
            &format!("accolade.v1.{}", OF_A_TITLE[0]),
            bearer,
            get("demo").encode_to_vec(),
        )
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn streams_beyond_a_quota_are_refused_until_one_ends() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &["--title-streams-max=2"]);
    let mut completions = server.completions().await;
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(completions.watch_completions(watch("demo")).await.unwrap());
    }
    let full = completions.watch_completions(watch("demo")).await;
    assert_eq!(refused(full), (Code::ResourceExhausted, "STREAMS_EXHAUSTED".to_owned()));
    open.pop();
    let start = Instant::now();
    while completions.watch_completions(watch("demo")).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "a stream that ended gives its place back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_bad_file_of_tokens_is_told_with_every_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens.toml");
    fs::write(&file, "[[tokens]]\nname = \"a\"\nscopes = [\"fly\"]").unwrap();
    let tokens = format!("--tokens={}", file.display());
    for command in ["serve", "check-config"] {
        let data = dir.path().join("data").display().to_string();
        let said = accolade(&[command, "--listen=127.0.0.1:0", "--data", &data, &tokens]);
        assert_eq!(said.status.code(), Some(64));
        let said = text(&said.stderr);
        for part in ["tokens.toml", "tokens[0]", "`sha256`", "`titles`", "\"fly\""] {
            assert!(said.contains(part), "{part} is missing from:\n{said}");
        }
    }
    assert!(!dir.path().join("data").exists(), "nothing is made before the settings are sound");
}

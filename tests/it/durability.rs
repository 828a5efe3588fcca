//! An answer never leaves before its group is synced: seen from outside the process.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
    process::{Command, Stdio},
};

use accolade::proto::v1::{
    SetAchievementStorageRequest, StreamSetAchievementStorageRequest,
    stream_set_achievement_storage_response::Outcome,
};

use crate::support::{BINARY, Server, delta, say, set};

/// Answers to look for in the trace; each player is one set and one answer.
const SETS: usize = 1000;

fn has_strace() -> bool {
    let works = Command::new(strace()).args(["-o", "/dev/null", "true"]).status();
    works.is_ok_and(|status| status.success())
}

/// The one that `make tools` installs, or the machine's.
fn strace() -> std::path::PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/strace/usr/bin/strace");
    if own.exists() { own } else { "strace".into() }
}

/// Method: run the server under strace. Every set has an `extra` of its own, which its answer
/// carries, so that the trace shows when each was written to the log and when to a socket. In
/// between there must be an fdatasync of the log that began after the one and ended before the
/// other.
#[tokio::test(flavor = "multi_thread")]
async fn no_answer_leaves_before_fdatasync_of_its_group() {
    if !has_strace() {
        say("SKIPPED: strace does not work here, so the order of syscalls was not audited");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let mut command = Command::new(strace());
    command
        .args(["-f", "-yy", "-s", "100000000", "-o"])
        .arg(&trace)
        .args(["-e", "trace=pwrite64,fdatasync,sync_file_range,write,writev,sendto,sendmsg"])
        .args([BINARY, "serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(dir.path().join("data"))
        .stdin(Stdio::null());
    let server = Server::run(command, &dir.path().join("log")).unwrap();
    server.apply("t", &[("n", 9)]).await;
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..6 {
        let mut client = server.storage().await;
        tasks.spawn(async move {
            let requests = (caller..SETS).step_by(6).map(|n| SetAchievementStorageRequest {
                extra: Some(token(n)),
                expected_version: Some(0),
                ..delta("t", &format!("player-{n}"), "n", 1)
            });
            // Half of them each on its own, half of them on streams.
            if caller % 2 == 0 {
                for request in requests {
                    set(&mut client, request).await;
                }
            } else {
                let tagged = (0..)
                    .zip(requests)
                    .map(|(tag, set)| StreamSetAchievementStorageRequest { tag, set: Some(set) });
                let stream = tokio_stream::iter(tagged.collect::<Vec<_>>());
                let answers = client.stream_set_achievement_storage(stream).await.unwrap();
                let mut answers = answers.into_inner();
                while let Some(answer) = answers.message().await.unwrap() {
                    assert!(matches!(answer.outcome, Some(Outcome::Response(_))), "{answer:?}");
                }
            }
        });
    }
    tasks.join_all().await;
    terminate_traced(server.pid());
    server.wait().await;

    let checked = audit(&fs::read_to_string(&trace).unwrap(), SETS);
    say(&format!("audited {checked} answers: each left after the fdatasync of its group"));
    assert_eq!(checked, SETS);
}

/// Stops the server under strace, which ends with it.
fn terminate_traced(strace: u32) {
    let children = fs::read_to_string(format!("/proc/{strace}/task/{strace}/children")).unwrap();
    let child = children.split_whitespace().next().expect("strace runs the server");
    assert!(Command::new("kill").args(["-TERM", child]).status().unwrap().success());
}

fn token(n: usize) -> String {
    format!("token-{n:06}-")
}

/// One syscall of the trace, from where it began to where it ended.
struct Call<'a> {
    name: &'a str,
    text: String,
    begin: usize,
    end: usize,
}

/// Joins what strace tells in two pieces when threads interleave.
fn calls(trace: &str) -> Vec<Call<'_>> {
    let mut open: HashMap<&str, (usize, String)> = HashMap::new();
    let mut calls = Vec::new();
    for (at, line) in trace.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(char::is_whitespace) else { continue };
        let rest = rest.trim_start();
        let (begin, text) = match rest.strip_prefix("<... ") {
            Some(resumed) => match open.remove(thread) {
                Some((begin, head)) => (begin, head + resumed),
                None => continue,
            },
            None => (at, rest.to_owned()),
        };
        if text.ends_with("<unfinished ...>") {
            open.insert(thread, (begin, text));
            continue;
        }
        let name = match rest.strip_prefix("<... ") {
            Some(resumed) => resumed.split(' ').next().unwrap_or_default(),
            None => rest.split('(').next().unwrap_or_default(),
        };
        calls.push(Call { name, text: join_buffers(&text), begin, end: at });
    }
    calls
}

/// A text that writev sends may be cut anywhere between two buffers; here it is whole again.
fn join_buffers(text: &str) -> String {
    let mut pieces = text.split("\", iov_len=");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |joined, piece| {
        joined + piece.split_once("{iov_base=\"").map_or(piece, |(_, rest)| rest)
    })
}

/// Tells how many answers were found in order; panics at the first that was not.
fn audit(trace: &str, sets: usize) -> usize {
    let calls = calls(trace);
    let log = |call: &&Call<'_>| call.text.contains("/store/db>");
    let writes: Vec<_> = calls.iter().filter(|call| call.name == "pwrite64").filter(log).collect();
    let syncs: Vec<_> = calls.iter().filter(|call| call.name == "fdatasync").filter(log).collect();
    let sent: Vec<_> = calls.iter().filter(|call| call.text.contains("TCP:[")).collect();
    assert!(!syncs.is_empty() && !sent.is_empty(), "the trace shows both");
    assert!(
        !calls.iter().any(|call| call.name == "sync_file_range"),
        "sled's own sync goes through ours"
    );
    let mut checked = BTreeSet::new();
    for n in 0..sets {
        let token = token(n);
        let written = writes.iter().find(|call| call.text.contains(&token));
        let written = written.unwrap_or_else(|| panic!("{token} was never written"));
        let answer = sent.iter().find(|call| call.text.contains(&token));
        let answer = answer.unwrap_or_else(|| panic!("{token} was never answered"));
        let is_synced =
            syncs.iter().any(|sync| sync.begin > written.end && sync.end < answer.begin);
        assert!(
            is_synced,
            "{token}: written in line {}, answered in {}",
            written.end, answer.begin
        );
        checked.insert(n);
    }
    checked.len()
}

#[test]
fn the_audit_notices_an_answer_that_leaves_too_early() {
    let written = r#"1 pwrite64(7</x/store/db>, "..token-000000-..", 9, 0) = 9"#;
    let synced = "1 fdatasync(7</x/store/db>) = 0";
    let sent = r#"2 writev(9<TCP:[1->2]>, [{iov_base="..token-000000-.."}], 1) = 9"#;
    assert_eq!(audit(&[written, synced, sent].join("\n"), 1), 1);
    let cut =
        r#"2 writev(9<TCP:[1->2]>, [{iov_base="..toke", iov_len=6}, {iov_base="n-000000-"}])"#;
    assert_eq!(audit(&[written, synced, cut].join("\n"), 1), 1);
    let early = [written, sent, synced].join("\n");
    assert!(std::panic::catch_unwind(|| audit(&early, 1)).is_err());
    let unfinished = [
        written,
        "1 fdatasync(7</x/store/db> <unfinished ...>",
        sent,
        "1 <... fdatasync resumed>) = 0",
    ];
    assert!(std::panic::catch_unwind(|| audit(&unfinished.join("\n"), 1)).is_err());
}

//! Files of titles, as operators write and read them: export, import, backup, restore.

use std::{fs, path::Path, process::Command};

use accolade::proto::v1::{
    BatchSetAchievementStorageRequest, NodeUpdate, WatchCompletionsRequest,
    node_update::Change::Delta,
};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::{
    access::{Guarded, token},
    admin::{reset, take_back},
    support::{BINARY, Server, Watch, accolade, delta, get, reason, set, text},
};

const NODES: usize = 20;

/// Runs a command; tells what it printed.
fn run(args: &[&str]) -> String {
    let output = accolade(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// What a command that fails says.
fn refused(args: &[&str]) -> String {
    let output = accolade(args);
    assert!(!output.status.success(), "{args:?}: {}", text(&output.stdout));
    text(&output.stderr)
}

/// Lines that are sealed once more, as if somebody had written them so.
fn sealed(lines: &[&str]) -> String {
    let text = lines.concat();
    let sha256 = HEXLOWER.encode(&Sha256::digest(&text));
    format!("{text}{{\"seal\":{{\"sha256\":\"{sha256}\"}}}}\n")
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

/// A server with so many players, who have completed each of [`NODES`] nodes.
async fn filled(dir: &Path, players: usize) -> Server {
    let server = Server::start(&dir.join("data"), &[]);
    let nodes: Vec<_> = (0..NODES).map(|n| format!("n{n}")).collect();
    let targets: Vec<_> = nodes.iter().map(|node| (node.as_str(), 1)).collect();
    server.apply("t", &targets).await;
    let mut client = server.storage().await;
    for player in 0..players {
        let updates = nodes.iter().map(|node| NodeUpdate {
            node_id: node.clone(),
            change: Some(Delta(1)),
            ..NodeUpdate::default()
        });
        let request = BatchSetAchievementStorageRequest {
            title: "t".to_owned(),
            player_id: format!("p{player}"),
            updates: updates.collect(),
            request_id: format!("r{player}"),
        };
        client.batch_set_achievement_storage(request).await.unwrap();
    }
    server
}

/// The places of a title's feed.
async fn cursors(server: &Server, count: usize) -> Vec<String> {
    let mut watch = Watch::after(server, "t", "").await;
    let mut cursors = Vec::new();
    for _ in 0..count {
        cursors.push(watch.completion().await.cursor);
    }
    cursors
}

#[tokio::test]
async fn a_restored_backup_goes_on_where_it_was_and_knows_what_it_does_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let server = filled(dir.path(), 3).await;
    server.apply("u", &[("other", 5)]).await;
    set(&mut server.storage().await, delta("u", "p", "other", 2)).await;
    let before = cursors(&server, 3 * NODES).await;
    let (file, restored) = (path(dir.path(), "backup"), path(dir.path(), "restored"));
    let url = server.url();
    assert!(run(&["backup", &file, "--server", &url]).contains("3 titles"), "demo is one");
    // What comes behind the backup is not in it.
    set(&mut server.storage().await, delta("t", "later", "n0", 1)).await;
    let behind = cursors(&server, 3 * NODES + 1).await.pop().unwrap();
    let records = get(&mut server.storage().await, "t", "p1").await;
    server.kill();

    assert!(run(&["restore", &file, &restored]).contains("3 titles"));
    let server = Server::start(Path::new(&restored), &[]);
    assert_eq!(get(&mut server.storage().await, "t", "p1").await, records);
    assert_eq!(get(&mut server.storage().await, "u", "p").await[0].progress, 2);
    let mut watch = Watch::after(&server, "t", &before[57]).await;
    let [a, b] = [watch.completion().await, watch.completion().await];
    assert_eq!((&*a.achievement_id, &*b.achievement_id), ("n18", "n19"), "old cursors work");
    let mut at_the_end = Watch::after(&server, "t", &before[3 * NODES - 1]).await;
    // Its place is given out again; who has the old cursor must not miss that in silence.
    set(&mut server.storage().await, delta("t", "new", "n0", 1)).await;
    assert_eq!(at_the_end.completion().await.player_id, "new", "who had heard all hears more");
    let request = WatchCompletionsRequest {
        title: "t".to_owned(),
        after: Some(behind),
        ..WatchCompletionsRequest::default()
    };
    let mut client = server.completions().await;
    let ended = match client.watch_completions(request).await {
        Ok(answers) => answers.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!((ended.code(), &*reason(&ended)), (Code::OutOfRange, "CURSOR_IN_FUTURE"));
}

#[tokio::test]
async fn a_backup_that_is_not_whole_makes_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let server = filled(dir.path(), 2).await;
    let (file, restored) = (path(dir.path(), "backup"), path(dir.path(), "restored"));
    run(&["backup", &file, "--server", &server.url()]);
    let whole = fs::read_to_string(&file).unwrap();
    let lines: Vec<_> = whole.split_inclusive('\n').collect();
    let lines = &lines[..lines.len() - 1];
    let spoiled = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        let said = refused(&["restore", &path(dir.path(), name), &restored]);
        assert!(!Path::new(&restored).exists(), "{name}");
        said
    };
    assert!(spoiled("unsealed", &lines.concat()).contains("no seal"));
    assert!(spoiled("cut", &whole[..whole.len() - 9]).contains("no seal"));
    assert!(spoiled("empty", "").contains("no seal"));
    let record = lines.iter().rposition(|line| line.starts_with("{\"record\"")).unwrap();
    let lost = whole.replacen(lines[record], "", 1);
    assert!(spoiled("a-record-less", &lost).contains("was changed"));
    let other = whole.replacen("\"progress\":\"1\"", "\"progress\":\"2\"", 1);
    assert!(spoiled("another-digit", &other).contains("was changed"));
    // Sealed, but by nobody who knows what goes together.
    let headless = sealed(&lines[1..]);
    assert!(spoiled("headless", &headless).contains("not the first line"));
    let fewer = sealed(&lines[..lines.len() / 3]);
    assert!(spoiled("a-title-less", &fewer).contains("not whole"));
    let gap = sealed(&[&lines[..10], &lines[11..]].concat());
    assert!(spoiled("an-event-less", &gap).contains("comes next"));
    let nonsense = sealed(&[&lines[..5], &["nonsense\n"], &lines[5..]].concat());
    assert!(spoiled("nonsense", &nonsense).contains("line 6"));
    run(&["restore", &file, &restored]);
    assert!(refused(&["restore", &file, &restored]).contains("is there already"));
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn a_crash_while_restoring_leaves_no_folder_and_no_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let server = filled(dir.path(), 2).await;
    let (file, restored) = (path(dir.path(), "backup"), path(dir.path(), "restored"));
    run(&["backup", &file, "--server", &server.url()]);
    for place in ["applied", "synced", "restored", "restored-and-synced"] {
        let mut command = Command::new(BINARY);
        command.args(["restore", &file, &restored]).env("FAILPOINTS", format!("{place}=return"));
        assert!(!command.output().unwrap().status.success(), "{place} is not passed");
        assert!(!Path::new(&restored).exists(), "{place}");
    }
    run(&["restore", &file, &restored]);
    run(&["verify", &restored]);
}

#[tokio::test]
async fn an_export_that_was_cut_off_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let server = filled(dir.path(), 80).await;
    let url = server.url();
    let file = |name: &str| path(dir.path(), name);
    run(&["export", "t", &file("whole"), "--server", &url]);
    let whole = fs::read(file("whole")).unwrap();
    assert!(refused(&["export", "t", &file("whole"), "--server", &url]).contains("already"));
    // Cut anywhere, also in the middle of a line and behind the seal; with nonsense at its end.
    for (n, bytes) in [0, 100, whole.len() / 2, whole.len()].into_iter().enumerate() {
        let mut part = whole[..bytes].to_vec();
        part.extend_from_slice(b"{\"record\":");
        fs::write(file(&format!("{n}.part")), part).unwrap();
        run(&["export", "t", &file(&n.to_string()), "--server", &url]);
        assert!(!Path::new(&file(&format!("{n}.part"))).exists());
        let again = fs::read_to_string(file(&n.to_string())).unwrap();
        let said = run(&["import", &format!("t{n}"), &file(&n.to_string()), "--server", &url]);
        let items = again.lines().count() - 1;
        assert!(said.starts_with(&format!("{items} items")), "{said}");
        let records = get(&mut server.storage().await, &format!("t{n}"), "p79").await;
        assert_eq!(records.len(), NODES);
    }
}

#[tokio::test]
async fn an_import_says_which_line_is_wrong_and_may_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let server = filled(dir.path(), 3).await;
    take_back(&server, reset("p1", "n3")).await;
    let url = server.url();
    let file = |name: &str| path(dir.path(), name);
    run(&["export", "t", &file("t"), "--server", &url]);
    let whole = fs::read_to_string(file("t")).unwrap();
    let lines: Vec<_> = whole.split_inclusive('\n').collect();
    let lines = &lines[..lines.len() - 1];
    let import = |name: &str, text: &str| {
        fs::write(file(name), text).unwrap();
        refused(&["import", "v", &file(name), "--server", &url])
    };
    assert!(import("unsealed", &lines.concat()).contains("no seal"));
    let cut = import("cut", &sealed(&lines[..lines.len() - 1]));
    assert!(cut.contains("not whole"), "{cut}");
    let nonsense = sealed(&[&lines[..5], &["nonsense\n"], &lines[5..]].concat());
    assert!(import("nonsense", &nonsense).contains("line 6"));
    let twice = sealed(&[lines, lines].concat());
    assert!(import("twice", &twice).contains("begins another title"));
    let said = run(&["import", "v", &file("t"), "--server", &url]);
    assert!(said.contains("stored"), "{said}");
    let said = run(&["import", "v", &file("t"), "--server", &url]);
    assert!(said.contains(": 0 stored"), "{said}");
    let [old, new] = ["t", "v"].map(|title| run(&["rarity", title, "--server", &url]));
    assert_eq!(old, new);
    assert!(new.contains("\"n3\"  2 players  66.67 %"), "{new}");
}

#[tokio::test]
async fn two_exports_of_one_name_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let server = filled(dir.path(), 1).await;
    let file = path(dir.path(), "t");
    let part = fs::File::create(path(dir.path(), "t.part")).unwrap();
    part.lock().unwrap();
    for command in [&["export", "t", &file][..], &["backup", &file]] {
        let said = refused(&[command, &["--server", &server.url()]].concat());
        assert!(said.contains("another process"), "{said}");
    }
    // Another test may be starting a process, which has a copy of what is open for a moment.
    part.unlock().unwrap();
    run(&["export", "t", &file, "--server", &server.url()]);
    refused(&["export", "nothing", &path(dir.path(), "u"), "--server", &server.url()]);
    let left = fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name());
    let parts = left.filter(|name| name.to_string_lossy().ends_with(".part"));
    assert_eq!(parts.count(), 0, "what was refused leaves nothing");
}

#[tokio::test]
async fn an_export_whose_place_is_gone_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let server = filled(dir.path(), 80).await;
    let (file, url) = (|name: &str| path(dir.path(), name), server.url());
    run(&["export", "t", &file("t"), "--server", &url]);
    let whole = fs::read(file("t")).unwrap();
    fs::write(file("u.part"), &whole[..whole.len() / 2]).unwrap();
    let erased = accolade(&["erase", "t", "p3", "--server", &url]);
    assert!(erased.status.success());
    run(&["export", "t", &file("u"), "--server", &url]);
    let said = run(&["import", "v", &file("u"), "--server", &url]);
    assert!(said.contains(" 0 there already"), "{said}");
    // Of another title and another server, without an event.
    for node in ["n0", "n1"] {
        server.apply("quiet", &[(node, 2)]).await;
    }
    fs::write(file("q.part"), &whole[..whole.len() / 2]).unwrap();
    run(&["export", "quiet", &file("q"), "--server", &url]);
    assert_eq!(fs::read_to_string(file("q")).unwrap().lines().count(), 3, "begin, end and seal");
    let other = tempfile::tempdir().unwrap();
    let server = filled(other.path(), 2).await;
    fs::write(file("w.part"), &whole[..whole.len() / 2]).unwrap();
    run(&["export", "t", &file("w"), "--server", &server.url()]);
    run(&["import", "x", &file("w"), "--server", &server.url()]);
}

#[tokio::test]
async fn a_backup_by_a_token_that_does_not_see_all_titles_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (all, entry_of_all) = token("all", &[], &["admin"]);
    let (some, entry_of_some) = token("some", &["demo"], &["admin"]);
    let guarded = Guarded::start(&(entry_of_all + &entry_of_some), &[]);
    let url = guarded.server.url();
    let backup = |name: &str, token: &str| {
        let held = path(dir.path(), &format!("{name}.token"));
        fs::write(&held, token).unwrap();
        accolade(&["backup", &path(dir.path(), name), "--server", &url, "--token-file", &held])
    };
    let refused = backup("some", &some);
    assert_eq!(refused.status.code(), Some(64));
    assert!(text(&refused.stderr).contains("every title"), "{}", text(&refused.stderr));
    let whole = backup("all", &all);
    assert!(whole.status.success(), "{}", text(&whole.stderr));
}

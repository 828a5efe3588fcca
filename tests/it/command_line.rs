//! The commands, as somebody types them.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use crate::support::{BINARY, Server, accolade, delta, set, text};

#[test]
fn every_mistake_in_the_settings_is_told_at_once_and_nothing_starts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("accolade.toml");
    fs::write(&file, "lisen = 1\ncache_bytes = \"many\"\n").unwrap();
    let config = file.display().to_string();
    for command in ["serve", "check-config"] {
        let args = [command, "--config", &config, "--listen", "0.0.0.0:0", "--log-format", "xml"];
        let output = accolade(&args);
        assert_eq!(output.status.code(), Some(64));
        let error = text(&output.stderr);
        for part in ["4 mistakes", "`lisen`", "`cache_bytes`", "`log_format`", "insecure"] {
            assert!(error.contains(part), "{part} is missing from: {error}");
        }
    }
    assert!(!dir.path().join("accolade-data").exists());
}

#[test]
fn a_sound_configuration_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("accolade.toml");
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/samples");
    let catalog = format!("[catalog]\ncsv = \"{samples}/NodeSetting.csv\"\n");
    fs::write(&file, format!("listen = \"127.0.0.1:7\"\nreflection = false\n{catalog}")).unwrap();
    let output = accolade(&["check-config", "--config", &file.display().to_string()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    for part in ["127.0.0.1:7", "reflection: false", "22 nodes"] {
        assert!(shown.contains(part), "{part} is missing from: {shown}");
    }
    fs::write(dir.path().join("bad.toml"), "x").unwrap();
    let bad = format!("t={}", dir.path().join("bad.toml").display());
    let missing = format!("u={}", dir.path().join("missing.toml").display());
    let data = dir.path().join("data").display().to_string();
    for command in [&["check-config"][..], &["serve", "--data", &data]] {
        let args = [command, &["--catalog", &bad, "--catalog", &missing]].concat();
        let output = accolade(&args);
        assert_eq!(output.status.code(), Some(64));
        let error = text(&output.stderr);
        assert!(error.contains("bad.toml:1:") && error.contains("missing.toml:"), "{error}");
    }
}

#[test]
fn usage_mistakes_end_with_64() {
    assert_eq!(accolade(&["fly"]).status.code(), Some(64));
    assert_eq!(accolade(&["--help"]).status.code(), Some(0));
    let refused = accolade(&["get", "demo", "p", "--server", "http://127.0.0.1:1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("accolade serve"), "{}", text(&refused.stderr));
}

#[test]
fn get_set_and_catalog_do_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let url = server.url();
    let run = |args: &[&str]| {
        let output = accolade(&[args, &["--server", &url]].concat());
        (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
    };
    assert_eq!(run(&["get", "demo", "p"]), (0, "no records\n".into()));
    let (code, shown) = run(&["set", "demo", "p", "chef", "--delta", "3"]);
    assert_eq!(code, 0);
    assert!(shown.starts_with("stored\n\"chef\"  3/20  version 1"), "{shown}");
    let set = ["set", "demo", "p", "chef", "--extra", "x", "--expected-version"];
    let (code, shown) = run(&[&set[..], &["0"]].concat());
    assert_eq!(code, 5, "a conflict");
    assert!(shown.starts_with("conflict"), "{shown}");
    assert_eq!(run(&[&set[..], &["1"]].concat()).0, 0);
    let (code, shown) = run(&["get", "demo", "p", "--json"]);
    assert_eq!(code, 0);
    let json: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(json["message"], "正常返回");
    assert_eq!(json["entity"][0]["extra"], "x");
    let (code, shown) = run(&["set", "demo", "p", "chef", "--delta", "-1"]);
    assert_eq!(code, 1);
    assert!(shown.contains("InvalidArgument, FIELD_INVALID: `delta` is -1; pass 1 to"), "{shown}");

    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/NodeSetting.csv");
    let (code, shown) = run(&["catalog", "apply", "csv", samples, "--dry-run"]);
    assert_eq!(code, 0);
    assert!(shown.contains("would change") && shown.contains("+ \"chef\""), "{shown}");
    assert!(!run(&["catalog", "list"]).1.contains("csv"));
    let expected = ["--expected-revision", "0"];
    let apply = ["catalog", "apply", "csv", samples];
    assert_eq!(run(&[&apply[..], &expected].concat()).0, 0);
    assert_eq!(run(&[&apply[..], &expected].concat()).0, 1, "it exists now");
    assert!(run(&["catalog", "list"]).1.contains("\"csv\"  revision 1  22 nodes"));
    assert!(run(&["catalog", "show", "csv"]).1.contains("\"chef\"  target 20  \"大厨\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_resumes_by_itself_after_the_server_was_gone() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data, &[]);
    let (url, address) = (server.url(), server.address.clone());
    let mut watch = Command::new(BINARY)
        .args(["watch", "demo", "--from-oldest", "--server", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut client = server.storage().await;
    set(&mut client, delta("demo", "first", "adventure", 1)).await;
    assert!(lines.next().unwrap().unwrap().contains("\"first\""));
    drop(client);
    server.kill();
    let server = Server::start(&data, &["--listen", &address]);
    let mut client = server.storage().await;
    set(&mut client, delta("demo", "second", "adventure", 1)).await;
    let line = lines.next().unwrap().unwrap();
    assert!(line.contains("\"second\""), "{line}");
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[tokio::test]
async fn verify_tells_what_a_folder_holds() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data, &[]);
    let mut client = server.storage().await;
    set(&mut client, delta("demo", "p", "adventure", 1)).await;
    set(&mut client, delta("demo", "p", "chef", 1)).await;
    let path = data.display().to_string();
    let in_use = accolade(&["verify", &path]);
    assert_eq!(in_use.status.code(), Some(1));
    assert!(text(&in_use.stderr).contains("in use"), "{}", text(&in_use.stderr));
    server.kill();
    let output = accolade(&["verify", &path]);
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), "sound: 1 titles, 2 records, 1 events\n");
    assert_eq!(accolade(&["verify", "/nonexistent/folder"]).status.code(), Some(1));
}

//! Getting in to a cluster: TLS, passwords, tokens, certificates, credentials files.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Output},
};

use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    support::{BINARY, Server, accolade, delta, nats::Nats, set, text},
    tls::Authority,
};

/// What `accolade engine init` says where it does not get in.
fn refused(url: &str, more: &[&str]) -> String {
    let done = init(url, more);
    assert!(!done.status.success(), "{url} {more:?}");
    text(&done.stderr)
}

fn init(url: &str, more: &[&str]) -> Output {
    let args = ["engine", "init", "--replicas", "1", "--store", url];
    accolade(&[&args[..], more].concat())
}

/// Whoever has these gets in, and is served; tells what the server logged.
async fn let_in(dir: &Path, url: &str, more: &[&str]) -> String {
    let done = init(url, more);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let server = Server::start_on(url, &dir.join("a.log"), more);
    server.apply("t", &[("n", 2)]).await;
    let answer = set(&mut server.storage().await, delta("t", "p", "n", 2)).await;
    assert!(answer.newly_completed);
    server.log()
}

/// The part of a configuration that has certificates signed by an authority.
fn tls(dir: &Path, authority: &Authority, more: &str) -> String {
    let [certificate, key] = authority.sign(false).write(dir, "nats");
    fs::write(dir.join("ca.crt"), authority.pem()).unwrap();
    let (certificate, key) = (certificate.display(), key.display());
    format!("tls {{ cert_file: \"{certificate}\", key_file: \"{key}\"{more} }}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_tls_and_a_password_lets_in_who_has_both() {
    let dir = TempDir::new().unwrap();
    // It may do no more than the deployment page says that it needs.
    let subjects = r#"["ach.>", "$JS.API.>", "_INBOX.>"]"#;
    let login = format!(
        "authorization {{ users: [{{ user: accolade, password: \"s@cret/7%\", permissions: \
         {{ publish: {subjects}, subscribe: {subjects} }} }}] }}\n"
    );
    let nats = Nats::start_with(&(login + &tls(dir.path(), &Authority::new(), "")));
    let host = format!("localhost:{}", nats.port(0));
    let url = format!("tls://accolade:s%40cret%2F7%25@{host}");
    let ca = dir.path().join("ca.crt");
    let trusted = ["--nats-ca", ca.to_str().unwrap()];
    let without_password = format!("tls://{host}");
    for (url, more) in [(&url, &[][..]), (&without_password, &trusted)] {
        let said = refused(url, more);
        assert!(said.contains("can be reached") && !said.contains("cret"), "{said}");
    }
    let log = let_in(dir.path(), &url, &trusted).await;
    assert!(!log.contains("cret"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_asks_for_a_token_lets_in_who_has_it() {
    let dir = TempDir::new().unwrap();
    let nats = Nats::start_with("authorization { token: \"s3cr:t\" }\n");
    let url = |token: &str| format!("nats://{token}@127.0.0.1:{}", nats.port(0));
    assert!(refused(&url("other"), &[]).contains("can be reached"));
    let log = let_in(dir.path(), &url("s3cr%3At"), &[]).await;
    assert!(!log.contains("s3cr"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_asks_for_certificates_lets_in_who_has_one() {
    let dir = TempDir::new().unwrap();
    let authority = Authority::new();
    let ca = dir.path().join("ca.crt");
    let verify = format!(", ca_file: \"{}\", verify: true", ca.display());
    let nats = Nats::start_with(&tls(dir.path(), &authority, &verify));
    let url = format!("tls://localhost:{}", nats.port(0));
    let [certificate, key] = authority.sign(false).write(dir.path(), "accolade");
    let [other, other_key] = Authority::new().sign(false).write(dir.path(), "other");
    let [ca, certificate, key, other, other_key] =
        [&ca, &certificate, &key, &other, &other_key].map(|path| path.to_str().unwrap());

    let trusted = ["--nats-ca", ca];
    assert!(refused(&url, &trusted).contains("can be reached"));
    let others = [&trusted[..], &["--nats-certificate", other, "--nats-key", other_key]].concat();
    assert!(refused(&url, &others).contains("can be reached"));
    let half = [&trusted[..], &["--nats-certificate", certificate]].concat();
    assert!(refused(&url, &half).contains("--nats-key"));
    let own = [&trusted[..], &["--nats-certificate", certificate, "--nats-key", key]].concat();
    let_in(dir.path(), &url, &own).await;
}

/// A claim that the issuer has signed, as a JWT.
fn signed(issuer: &KeyPair, subject: &KeyPair, nats: &Value) -> String {
    let encoded = |value: Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let head = encoded(json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let claim = encoded(json!({
        "jti": subject.public_key(),
        "iat": 1,
        "iss": issuer.public_key(),
        "sub": subject.public_key(),
        "name": "test",
        "nats": nats,
    }));
    let text = format!("{head}.{claim}");
    let signature = issuer.sign(text.as_bytes()).unwrap();
    format!("{text}.{}", BASE64URL_NOPAD.encode(&signature))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_accounts_lets_in_who_has_credentials() {
    let dir = TempDir::new().unwrap();
    let [operator, system] = [KeyPair::new_operator(), KeyPair::new_account()];
    let [account, stranger] = [KeyPair::new_account(), KeyPair::new_account()];
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
        "conn": -1, "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1,
        "consumer": -1,
    });
    let of_account = json!({ "limits": limits, "type": "account", "version": 2 });
    let of_system = json!({ "type": "account", "version": 2 });
    let of_operator = json!({
        "type": "operator", "version": 2, "system_account": system.public_key(),
    });
    let mut config = format!("operator: {}\n", signed(&operator, &operator, &of_operator));
    config += "resolver: MEMORY\nresolver_preload: {\n";
    for (known, nats) in [(&account, &of_account), (&system, &of_system)] {
        writeln!(config, "  {}: {}", known.public_key(), signed(&operator, known, nats)).unwrap();
    }
    let nats = Nats::start_with(&(config + "}\n"));
    let url = format!("nats://127.0.0.1:{}", nats.port(0));

    let credentials = |name: &str, issuer: &KeyPair| {
        let user = KeyPair::new_user();
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2,
        });
        let path = dir.path().join(name);
        let jwt = signed(issuer, &user, &limits);
        let seed = user.seed().unwrap();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (own, others) = (credentials("own", &account), credentials("others", &stranger));
    let missing = dir.path().join("none").display().to_string();
    assert!(refused(&url, &[]).contains("can be reached"));
    assert!(refused(&url, &["--nats-credentials", &others]).contains("can be reached"));
    assert!(refused(&url, &["--nats-credentials", &missing]).contains("cannot be read"));
    let_in(dir.path(), &url, &["--nats-credentials", &own]).await;

    // The environment has the same settings: a password need not stand in a list of processes.
    let mut check = Command::new(BINARY);
    check.args(["engine", "check"]).env("ACCOLADE_STORE", &url);
    let done = check.output().unwrap();
    assert!(!done.status.success() && text(&done.stderr).contains("can be reached"));
    let done = check.env("ACCOLADE_NATS_CREDENTIALS", &own).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
}

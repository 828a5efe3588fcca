//! Certificates: who is believed, and that new ones are taken.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::support::{PATIENCE, Server, StorageClient, accolade, text};

/// An authority, and what it has signed.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key.
pub struct Signed {
    certificate: String,
    key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn sign(&self, is_expired: bool) -> Signed {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        if is_expired {
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Signed { certificate, key: key.serialize_pem() }
    }
}

impl Signed {
    /// Both files, under a name.
    pub fn write(&self, dir: &Path, name: &str) -> [PathBuf; 2] {
        let paths = ["crt", "key"].map(|kind| dir.join(format!("{name}.{kind}")));
        fs::write(&paths[0], &self.certificate).unwrap();
        fs::write(&paths[1], &self.key).unwrap();
        paths
    }

    fn identity(&self) -> Identity {
        Identity::from_pem(&self.certificate, &self.key)
    }
}

fn flags(paths: &[PathBuf; 2]) -> Vec<String> {
    vec![
        format!("--tls-certificate={}", paths[0].display()),
        format!("--tls-key={}", paths[1].display()),
    ]
}

fn start(dir: &Path, args: &[String]) -> Server {
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    Server::start(&dir.join("data"), &args)
}

/// Connects and asks something: a refusal of a certificate shows with the first answer.
async fn reach(server: &Server, authority: &str, identity: Option<Identity>) -> Result<(), String> {
    let certificate = Certificate::from_pem(authority);
    let mut tls = ClientTlsConfig::new().ca_certificate(certificate).domain_name("localhost");
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    let endpoint = Endpoint::from_shared(format!("https://{}", server.address)).unwrap();
    let endpoint = endpoint.tls_config(tls).unwrap().timeout(PATIENCE);
    let channel: Channel = endpoint.connect().await.map_err(|error| error.to_string())?;
    let request = accolade::proto::v1::GetAchievementStorageRequest {
        title: "demo".to_owned(),
        player_id: "p".to_owned(),
        achievement_ids: Vec::new(),
    };
    let answer = StorageClient::new(channel).get_achievement_storage(request).await;
    answer.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn with_certificates_only_tls_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let paths = authority.sign(false).write(dir.path(), "server");
    // No `--insecure`: with TLS it may be reached from everywhere.
    let mut args = flags(&paths);
    args.push("--listen=0.0.0.0:0".to_owned());
    let server = start(dir.path(), &args);
    let port = server.address.rsplit(':').next().unwrap();
    let server_url = format!("https://localhost:{port}");

    reach(&server, &authority.pem(), None).await.unwrap();
    reach(&server, &Authority::new().pem(), None).await.expect_err("of another authority");
    let plain = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    if let Ok(channel) = plain.connect().await {
        let request = accolade::proto::v1::GetAchievementStorageRequest::default();
        let answer = StorageClient::new(channel).get_achievement_storage(request).await;
        answer.expect_err("nothing is said without TLS");
    }

    // The commands speak TLS too.
    let ca = dir.path().join("ca.crt");
    fs::write(&ca, authority.pem()).unwrap();
    let ca = ca.display().to_string();
    let got = accolade(&["get", "--server", &server_url, "--ca", &ca, "demo", "p"]);
    assert!(got.status.success(), "{}", text(&got.stderr));
    let got = accolade(&["get", "--server", &server_url, "demo", "p"]);
    assert!(text(&got.stderr).contains("certificate"), "{}", text(&got.stderr));
}

#[tokio::test]
async fn only_clients_of_the_authority_may_connect() {
    let dir = tempfile::tempdir().unwrap();
    let (servers, clients) = (Authority::new(), Authority::new());
    let mut args = flags(&servers.sign(false).write(dir.path(), "server"));
    let ca = dir.path().join("clients.crt");
    fs::write(&ca, clients.pem()).unwrap();
    args.push(format!("--tls-client-ca={}", ca.display()));
    let server = start(dir.path(), &args);
    let pem = servers.pem();
    reach(&server, &pem, Some(clients.sign(false).identity())).await.unwrap();
    reach(&server, &pem, None).await.expect_err("no certificate");
    let foreign = servers.sign(false).identity();
    reach(&server, &pem, Some(foreign)).await.expect_err("of another authority");
    let expired = clients.sign(true).identity();
    reach(&server, &pem, Some(expired)).await.expect_err("expired");
    reach(&server, &pem, Some(clients.sign(false).identity())).await.unwrap();
}

#[tokio::test]
async fn new_certificates_are_taken_without_a_restart_and_bad_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(), Authority::new());
    let paths = old.sign(false).write(dir.path(), "server");
    let server = start(dir.path(), &flags(&paths));
    reach(&server, &old.pem(), None).await.unwrap();

    fs::write(&paths[0], "no certificate").unwrap();
    wait_for(&server, "the old certificates stay").await;
    reach(&server, &old.pem(), None).await.unwrap();

    new.sign(false).write(dir.path(), "server");
    wait_for(&server, "certificates read again").await;
    reach(&server, &new.pem(), None).await.unwrap();
    reach(&server, &old.pem(), None).await.expect_err("it is not used any more");
}

async fn wait_for(server: &Server, line: &str) {
    let start = Instant::now();
    while !server.log().contains(line) {
        assert!(start.elapsed() < PATIENCE, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    let good = Authority::new().sign(false).write(dir.path(), "good");
    let other = Authority::new().sign(false).write(dir.path(), "other");
    let cases = [
        (&good[0], &dir.path().join("missing.key"), "missing.key"),
        (&good[1], &good[1], "no certificate"),
        (&good[0], &other[1], "good.crt"),
    ];
    for (certificate, key, part) in cases {
        let args = flags(&[certificate.clone(), key.clone()]);
        let said =
            accolade(&["serve", "--listen=127.0.0.1:0", "--data", &data, &args[0], &args[1]]);
        assert_eq!(said.status.code(), Some(64));
        assert!(text(&said.stderr).contains(part), "{part}: {}", text(&said.stderr));
    }
    let half = format!("--tls-key={}", good[1].display());
    let said = accolade(&["serve", "--data", &data, &half]);
    assert!(text(&said.stderr).contains("needs both"), "{}", text(&said.stderr));
}

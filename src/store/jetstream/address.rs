//! Where a cluster is, and how to get in: `nats://host:4222,host2:4222/prefix`.

use std::{fmt, path::PathBuf, str::FromStr};

use percent_encoding::percent_decode_str;
use thiserror::Error;

/// The prefix of streams and subjects where none is given.
pub const PREFIX_DEFAULT: &str = "ach";

/// Port of NATS where none is given.
const PORT_DEFAULT: u16 = 4222;

/// Longest prefix, in bytes.
const PREFIX_BYTES_MAX: usize = 32;

/// See the module. `tls://` instead of `nats://` insists on TLS.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Each as `scheme://host:port`.
    pub servers: Vec<String>,
    /// Who this is, where the address says it.
    pub login: Option<Login>,
    /// What names of streams and subjects begin with.
    pub prefix: String,
    /// A NATS credentials file (JWT and key).
    pub credentials: Option<PathBuf>,
    /// Authorities of the cluster's certificates (PEM), instead of those that the system trusts.
    pub ca: Option<PathBuf>,
    /// A client certificate and its key (PEM).
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Where servers of the cluster answer about themselves.
    pub monitors: Vec<Monitor>,
}

/// What stands before the `@` of an address, percent-decoded; the same for all its servers.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// `user:password@`
    Password { user: String, password: String },
    /// `token@`
    Token(String),
}

/// Where a NATS server answers about itself, `http://host:8222`; this is the `host:8222`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor(pub(super) String);

/// Why a text is no address of a monitor.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("pass a URL such as http://host:8222")]
pub struct MonitorError;

impl FromStr for Monitor {
    type Err = MonitorError;

    fn from_str(text: &str) -> Result<Self, MonitorError> {
        let host = text.strip_prefix("http://").ok_or(MonitorError)?.trim_end_matches('/');
        let (name, port) = host.rsplit_once(':').ok_or(MonitorError)?;
        let is_sound = !name.is_empty() && !name.contains('/') && port.parse::<u16>().is_ok();
        is_sound.then(|| Self(host.to_owned())).ok_or(MonitorError)
    }
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

/// Why a text is no address of a cluster.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "is no address of a cluster; pass nats://host:4222,host2:4222 or tls://…, and behind them \
     /prefix where it is not `{PREFIX_DEFAULT}`: 1 to {PREFIX_BYTES_MAX} of a-z, 0-9, - and _, not \
     ending in _ and a number; one user:password@ or token@ for all servers, percent-encoded"
)]
pub struct AddressError;

impl Address {
    /// The address without user, password and token, to be shown.
    #[must_use]
    pub fn shown(&self) -> String {
        let (mut scheme, mut hosts) = ("nats", Vec::new());
        for server in &self.servers {
            let (of_server, host) = server.split_once("://").expect("it was read as one");
            scheme = of_server;
            hosts.push(host);
        }
        format!("{scheme}://{}/{}", hosts.join(","), self.prefix)
    }
}

// Passwords stay out of messages and logs.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { servers: _, prefix: _, login: _, credentials, ca, certificate, monitors } = self;
        let shown = self.shown();
        write!(f, "{shown} ({credentials:?}, {ca:?}, {certificate:?}, {monitors:?})")
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (scheme, rest) = text.split_once("://").ok_or(AddressError)?;
        if !["nats", "tls"].contains(&scheme) {
            return Err(AddressError);
        }
        let (hosts, prefix) = match rest.split_once('/') {
            Some((hosts, "")) => (hosts, PREFIX_DEFAULT),
            Some((hosts, prefix)) => (hosts, prefix),
            None => (rest, PREFIX_DEFAULT),
        };
        let is_sound =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        // `ach_1` would be a partition of `ach`.
        let is_partition = prefix.rsplit_once('_').is_some_and(|(_, rest)| {
            !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit())
        });
        if prefix.len() > PREFIX_BYTES_MAX || is_partition || !prefix.chars().all(is_sound) {
            return Err(AddressError);
        }
        let mut login = None;
        let mut servers = Vec::new();
        for server in hosts.split(',') {
            let (who, host) = match server.trim().rsplit_once('@') {
                Some((who, host)) => (Some(Login::read(who).ok_or(AddressError)?), host),
                None => (None, server.trim()),
            };
            servers.push(format!("{scheme}://{}", host_and_port(host).ok_or(AddressError)?));
            if who.is_some() && login.is_some() && who != login {
                return Err(AddressError);
            }
            login = login.or(who);
        }
        Ok(Self {
            servers,
            login,
            prefix: prefix.to_owned(),
            credentials: None,
            ca: None,
            certificate: None,
            monitors: Vec::new(),
        })
    }
}

impl Login {
    fn read(text: &str) -> Option<Self> {
        let decoded = |text: &str| {
            let text = percent_decode_str(text).decode_utf8().ok()?.into_owned();
            (!text.is_empty()).then_some(text)
        };
        match text.split_once(':') {
            Some((user, password)) => {
                Some(Self::Password { user: decoded(user)?, password: decoded(password)? })
            }
            None => decoded(text).map(Self::Token),
        }
    }
}

/// A server with its port; `None` where it is none.
fn host_and_port(host: &str) -> Option<String> {
    if host.is_empty() || host.contains(['/', ' ', '?', '#', '@']) {
        return None;
    }
    let behind = host.rsplit(']').next()?;
    match behind.rsplit_once(':') {
        Some((_, port)) => port.parse::<u16>().ok().map(|_| host.to_owned()),
        None => Some(format!("{host}:{PORT_DEFAULT}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let address: Address = "nats://a,u:p@b:1/game-1".parse().unwrap();
        assert_eq!(address.servers, ["nats://a:4222", "nats://b:1"]);
        assert_eq!(address.prefix, "game-1");
        assert_eq!(address.shown(), "nats://a:4222,b:1/game-1");
        assert!(!format!("{address:?}").contains("u:p"), "{address:?}");
        let address: Address = "nats://u:p%40%3A%2F%25@a,u:p%40:%2f%25@b".parse().unwrap();
        let password = "p@:/%".to_owned();
        assert!(address.login == Some(Login::Password { user: "u".to_owned(), password }));
        let address: Address = "nats://t%40@a".parse().unwrap();
        assert!(address.login == Some(Login::Token("t@".to_owned())));
        let address: Address = "tls://[::1]:9,[::2]".parse().unwrap();
        assert_eq!(address.servers, ["tls://[::1]:9", "tls://[::2]:4222"]);
        assert_eq!(address.prefix, PREFIX_DEFAULT);
        for text in [
            "",
            "a:1",
            "http://a",
            "nats://",
            "nats://a:x",
            "nats://a,,b",
            "nats://a/B",
            "nats://a,nats://b",
            "nats://u:@a",
            "nats://:p@a",
            "nats://@a",
            "nats://u:%ff@a",
            "nats://u:p@a,u:q@b",
        ] {
            assert_eq!(text.parse::<Address>(), Err(AddressError), "{text:?}");
        }
    }
}

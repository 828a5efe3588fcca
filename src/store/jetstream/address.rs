//! Where a cluster is, and how to get in: `nats://host:4222,host2:4222/prefix`.

use std::{fmt, path::PathBuf, str::FromStr};

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
    /// Each as `scheme://[user:password@]host:port`.
    pub servers: Vec<String>,
    /// What names of streams and subjects begin with.
    pub prefix: String,
    /// A NATS credentials file (JWT and key).
    pub credentials: Option<PathBuf>,
    /// Authorities of the cluster's certificates (PEM), beside those that the system trusts.
    pub ca: Option<PathBuf>,
    /// A client certificate and its key (PEM).
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Where servers of the cluster answer about themselves, each as `http://host:port`.
    pub monitors: Vec<String>,
}

/// Why a text is no address of a cluster.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "is no address of a cluster; pass nats://host:4222,host2:4222 or tls://…, and behind them \
     /prefix where it is not `{PREFIX_DEFAULT}`: 1 to {PREFIX_BYTES_MAX} of a-z, 0-9, - and _, not \
     ending in _ and a number"
)]
pub struct AddressError;

impl Address {
    /// The address without users and passwords, to be shown.
    #[must_use]
    pub fn shown(&self) -> String {
        let scheme = self.servers.first().and_then(|server| server.split_once("://"));
        let scheme = scheme.map_or("nats", |(scheme, _)| scheme);
        let hosts = self.servers.iter().map(|server| {
            let host = server.rsplit("://").next().unwrap_or(server);
            host.rsplit('@').next().unwrap_or(host)
        });
        format!("{scheme}://{}/{}", hosts.collect::<Vec<_>>().join(","), self.prefix)
    }
}

// Passwords stay out of messages and logs.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { servers: _, prefix: _, credentials, ca, certificate, monitors } = self;
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
        let servers: Option<Vec<_>> =
            hosts.split(',').map(|host| server(scheme, host.trim())).collect();
        Ok(Self {
            servers: servers.ok_or(AddressError)?,
            prefix: prefix.to_owned(),
            credentials: None,
            ca: None,
            certificate: None,
            monitors: Vec::new(),
        })
    }
}

/// A server with its port; `None` where it is none.
fn server(scheme: &str, host: &str) -> Option<String> {
    let address = host.rsplit('@').next()?;
    if address.is_empty() || host.contains(['/', ' ', '?', '#']) {
        return None;
    }
    let behind = address.rsplit(']').next()?;
    match behind.rsplit_once(':') {
        Some((_, port)) => port.parse::<u16>().ok().map(|_| format!("{scheme}://{host}")),
        None => Some(format!("{scheme}://{host}:{PORT_DEFAULT}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let address: Address = "nats://a,u:p@b:1/game-1".parse().unwrap();
        assert_eq!(address.servers, ["nats://a:4222", "nats://u:p@b:1"]);
        assert_eq!(address.prefix, "game-1");
        assert_eq!(address.shown(), "nats://a:4222,b:1/game-1");
        assert!(!format!("{address:?}").contains("u:p"), "{address:?}");
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
        ] {
            assert_eq!(text.parse::<Address>(), Err(AddressError), "{text:?}");
        }
    }
}

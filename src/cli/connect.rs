//! Reaching a server.

use std::time::Duration;

use clap::Args;
use thiserror::Error;
use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an answer, or for a stream to begin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the server is.
#[derive(Debug, Clone, Args)]
pub(super) struct ServerArgs {
    /// Where the server listens
    #[arg(
        long,
        value_name = "URL",
        help = "Address of the server [default: http://127.0.0.1:50151, env: ACCOLADE_SERVER]"
    )]
    server: Option<String>,
}

/// Why the server cannot be reached.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address is malformed.
    #[error("`{0}` is no address of a server; pass one such as http://127.0.0.1:50151")]
    BadAddress(String),
    /// Nobody answers there.
    #[error("no server answers at {0}; start one with `accolade serve`, or pass --server")]
    Unreachable(String),
}

impl ServerArgs {
    pub(super) fn endpoint(&self) -> Result<(String, Endpoint), ConnectError> {
        let from_environment = || std::env::var("ACCOLADE_SERVER").ok();
        let default = || "http://127.0.0.1:50151".to_owned();
        let url = self.server.clone().or_else(from_environment).unwrap_or_else(default);
        let endpoint = Endpoint::from_shared(url.clone());
        let endpoint = endpoint.map_err(|_| ConnectError::BadAddress(url.clone()))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        Ok((url, endpoint))
    }

    pub(super) async fn connect(&self) -> Result<Channel, ConnectError> {
        let (url, endpoint) = self.endpoint()?;
        let endpoint = endpoint.timeout(ANSWER_TIMEOUT);
        endpoint.connect().await.map_err(|_| ConnectError::Unreachable(url))
    }
}

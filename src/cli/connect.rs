//! Reaching a server.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use thiserror::Error;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Certificate, ClientTlsConfig, Identity},
};

use crate::client::{Authorization, Connection, endpoint};

/// Longest wait for an answer, or for a stream to begin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the server is, and how to get in.
#[derive(Debug, Clone, Args)]
pub(super) struct ServerArgs {
    /// Where the server listens
    #[arg(
        long,
        value_name = "URL",
        help = "Address of the server, https:// with TLS [default: http://127.0.0.1:50151, env: \
                ACCOLADE_SERVER]"
    )]
    server: Option<String>,
    /// File that holds the token [env: `ACCOLADE_TOKEN`, the token itself]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Authority of the server's certificate (PEM); needed for https://
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Certificate of this client (PEM), where the server asks for one
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
}

/// Why the server cannot be reached.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address is malformed.
    #[error("`{0}` is no address of a server; pass one such as http://127.0.0.1:50151")]
    BadAddress(String),
    /// A file cannot be read.
    #[error("`{}` cannot be read: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}; for https:// pass the authority as --ca")]
    Tls(String),
    /// A secret would go over the network in clear.
    #[error("{0} is given, and the server's address is not encrypted; pass one with https://")]
    NotEncrypted(&'static str),
    /// The token is no token.
    #[error("the token has characters that no token has; give it as `accolade token` printed it")]
    BadToken,
    /// Nobody answers there.
    #[error(
        "no server answers at {url} ({cause}); start one with `accolade serve`, or pass --server"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// What went wrong.
        cause: String,
    },
}

impl ServerArgs {
    pub(super) async fn connect(&self) -> Result<Connection, ConnectError> {
        let from_environment = || std::env::var("ACCOLADE_SERVER").ok();
        let default = || "http://127.0.0.1:50151".to_owned();
        let url = self.server.clone().or_else(from_environment).unwrap_or_else(default);
        let endpoint = endpoint(&url).map_err(|_| ConnectError::BadAddress(url.clone()))?;
        let mut endpoint = endpoint.timeout(ANSWER_TIMEOUT);
        if url.starts_with("https:") {
            let tls = endpoint.tls_config(self.tls()?);
            endpoint = tls.map_err(|error| ConnectError::Tls(with_causes(&error)))?;
        }
        let authorization = self.authorization()?;
        let host = endpoint.uri().host().unwrap_or_default();
        let is_here = host == "localhost" || host.starts_with("127.") || host == "[::1]";
        if !url.starts_with("https:") && (self.ca.is_some() || self.certificate.is_some()) {
            return Err(ConnectError::NotEncrypted("a certificate"));
        }
        if !url.starts_with("https:") && !is_here && authorization.is_some() {
            return Err(ConnectError::NotEncrypted("a token"));
        }
        let channel = endpoint.connect().await;
        let channel = channel
            .map_err(|error| ConnectError::Unreachable { url, cause: with_causes(&error) })?;
        Ok(InterceptedService::new(channel, authorization))
    }

    fn tls(&self) -> Result<ClientTlsConfig, ConnectError> {
        let mut tls = ClientTlsConfig::new();
        if let Some(path) = &self.ca {
            tls = tls.ca_certificate(Certificate::from_pem(read(path)?));
        }
        if let (Some(certificate), Some(key)) = (&self.certificate, &self.key) {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        Ok(tls)
    }

    fn authorization(&self) -> Result<Authorization, ConnectError> {
        let token = match &self.token_file {
            Some(path) => Some(read(path)?),
            None => std::env::var("ACCOLADE_TOKEN").ok(),
        };
        let authorization = token.map(|token| Authorization::new(&token)).transpose();
        Ok(authorization.map_err(|_| ConnectError::BadToken)?.unwrap_or_default())
    }
}

fn read(path: &Path) -> Result<String, ConnectError> {
    let path = path.to_owned();
    fs::read_to_string(&path).map_err(|source| ConnectError::File { path, source })
}

/// An error and what it came from, on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

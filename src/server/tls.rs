//! Certificates, read again when their files change.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use thiserror::Error;
use tokio_rustls::rustls::{
    self, RootCertStore, ServerConfig, crypto::ring, server::WebPkiClientVerifier,
};

use crate::{
    clock::{Clock, SystemClock},
    config::TlsFiles,
    metrics::METRICS,
};

/// Why certificates cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is not there, or is not what it should be.
    #[error("`{}` cannot be used: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// What connections are encrypted with, now.
pub(super) struct Tls {
    files: TlsFiles,
    config: ArcSwap<ServerConfig>,
}

// === impl Tls ===

impl Tls {
    pub(super) fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let config = ArcSwap::from_pointee(load(&files)?);
        METRICS.certificates_read.set(now());
        Ok(Self { files, config })
    }

    /// Reads the files again; where they cannot be used, the old certificates stay.
    pub(super) fn reload(&self) -> Result<(), TlsError> {
        self.config.store(Arc::new(load(&self.files)?));
        METRICS.certificates_read.set(now());
        Ok(())
    }

    pub(super) fn server_config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }
}

/// Reads the files to see that they can be used.
///
/// # Errors
///
/// [`TlsError`], which names the file.
pub fn check(files: &TlsFiles) -> Result<(), TlsError> {
    load(files).map(drop)
}

fn now() -> i64 {
    i64::try_from(SystemClock.now().get()).unwrap_or(i64::MAX)
}

fn load(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let wrong = |path: &Path, problem: &dyn ToString| TlsError::File {
        path: path.to_owned(),
        problem: problem.to_string(),
    };
    let certificates = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|it| wrong(&files.key, &it))?;
    let provider = Arc::new(ring::default_provider());
    let versions = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&files.certificate, &error))?;
    let clients = match &files.client_ca {
        None => versions.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in self::certificates(path)? {
                roots.add(authority).map_err(|error| wrong(path, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = verifier.build().map_err(|error| wrong(path, &error))?;
            versions.with_client_cert_verifier(verifier)
        }
    };
    let config = clients.with_single_cert(certificates, key);
    let mut config: rustls::ServerConfig =
        config.map_err(|error| wrong(&files.certificate, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |problem: String| TlsError::File { path: path.to_owned(), problem };
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(wrong("it has no certificate in PEM".to_owned()))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(wrong(error.to_string())),
    }
}

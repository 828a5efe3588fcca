//! Files that are read again when they change: catalogues, tokens, certificates.
//!
//! Files are looked at, not watched: that works alike on every file system, on mounted volumes, and
//! where a deployment swaps a symbolic link. A change is taken once it has stood still for one
//! interval, so that a file is not read while it is being written.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use thiserror::Error;
use tokio::{task::spawn_blocking, time};

use super::tls::{Tls, TlsError};
use crate::{
    access::{Access, TokenError, Tokens},
    catalog::{self, Applied, CatalogFileError, Catalogs},
    config::TlsFiles,
    domain::{Catalog, Title},
};

/// Largest file of tokens.
const TOKENS_BYTES_MAX: u64 = 4 << 20;

/// Files, and how they looked when they were last read.
struct Watched {
    paths: Vec<PathBuf>,
    read: Looks,
    seen: Looks,
}

/// Names, sizes and times of files, and of all files of a folder.
/// A file that was put in another's place has another inode, even if all else is alike.
type Looks = Vec<(PathBuf, u64, Option<SystemTime>, u64)>;

/// A title's file.
pub(super) struct CatalogFile {
    title: Title,
    path: PathBuf,
    watched: Watched,
}

/// The file of tokens.
pub(super) struct TokensFile {
    path: PathBuf,
    watched: Watched,
}

/// Why a file of tokens cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokensFileError {
    /// It cannot be read.
    #[error("the file of tokens `{}` cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is too large.
    #[error("the file of tokens `{}` is over 4 MiB; write at most 1000 tokens", .0.display())]
    TooLarge(PathBuf),
    /// Something in it is wrong.
    #[error("the file of tokens `{}`:\n{source}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Every mistake.
        source: TokenError,
    },
}

// === impl Watched ===

impl Watched {
    fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, read: Looks::new(), seen: Looks::new() }
    }

    /// To be called before reading.
    async fn mark(&mut self) {
        self.read = self.looks().await;
        self.seen.clone_from(&self.read);
    }

    /// To be called where reading failed for a reason that may pass: it is read again.
    fn forget(&mut self) {
        self.read.clear();
    }

    /// Whether a file has changed since it was read, and has stopped changing.
    async fn has_changed(&mut self) -> bool {
        let now = self.looks().await;
        let stands_still = now == self.seen;
        self.seen = now;
        stands_still && self.seen != self.read
    }

    async fn looks(&self) -> Looks {
        let paths = self.paths.clone();
        let looked = spawn_blocking(move || paths.iter().flat_map(|path| looks(path)).collect());
        looked.await.expect("looking at files does not panic")
    }
}

// === impl CatalogFile ===

impl CatalogFile {
    pub(super) fn new(title: Title, path: PathBuf) -> Self {
        let watched = Watched::new(vec![path.clone()]);
        Self { title, path, watched }
    }

    pub(super) fn title(&self) -> &Title {
        &self.title
    }

    /// Reads the file now.
    pub(super) async fn load(&mut self) -> Result<Catalog, CatalogFileError> {
        self.watched.mark().await;
        let path = self.path.clone();
        let loaded = spawn_blocking(move || catalog::load(&path)).await;
        loaded.expect("reading a catalogue does not panic")
    }
}

// === impl TokensFile ===

impl TokensFile {
    pub(super) fn new(path: PathBuf) -> Self {
        let watched = Watched::new(vec![path.clone()]);
        Self { path, watched }
    }

    /// Reads the file now.
    pub(super) async fn load(&mut self) -> Result<Tokens, TokensFileError> {
        self.watched.mark().await;
        let path = self.path.clone();
        let read = spawn_blocking(move || read_tokens(&path)).await;
        read.expect("reading tokens does not panic")
    }
}

/// Reads a file of tokens.
///
/// # Errors
///
/// [`TokensFileError`] with every mistake.
pub fn read_tokens(path: &Path) -> Result<Tokens, TokensFileError> {
    let io = |source| TokensFileError::Io { path: path.to_owned(), source };
    if fs::metadata(path).map_err(io)?.len() > TOKENS_BYTES_MAX {
        return Err(TokensFileError::TooLarge(path.to_owned()));
    }
    let text = fs::read_to_string(path).map_err(io)?;
    Tokens::parse(&text).map_err(|source| TokensFileError::Wrong { path: path.to_owned(), source })
}

/// The server's certificates.
pub(super) struct CertificateFiles {
    tls: Arc<Tls>,
    watched: Watched,
}

// === impl CertificateFiles ===

impl CertificateFiles {
    /// Reads them.
    pub(super) async fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let mut watched = Watched::new(files.paths());
        watched.mark().await;
        Ok(Self { tls: Arc::new(Tls::open(files)?), watched })
    }

    pub(super) fn tls(&self) -> Arc<Tls> {
        self.tls.clone()
    }
}

/// Takes changed certificates for as long as the server runs; bad ones are told of, and what was
/// there before stays. (The same holds for the other two.)
pub(super) async fn follow_certificates(mut files: CertificateFiles, interval: Duration) {
    loop {
        time::sleep(interval).await;
        if files.watched.has_changed().await {
            files.watched.mark().await;
            match files.tls.reload() {
                Ok(()) => tracing::info!("certificates read again"),
                Err(error) => tracing::error!(%error, "the old certificates stay"),
            }
        }
    }
}

/// Takes changed tokens.
pub(super) async fn follow_tokens(mut file: TokensFile, access: Arc<Access>, interval: Duration) {
    loop {
        time::sleep(interval).await;
        if !file.watched.has_changed().await {
            continue;
        }
        match file.load().await {
            Ok(tokens) => {
                tracing::info!(tokens = tokens.count(), "tokens read again");
                access.replace(tokens);
            }
            Err(error) => {
                if let TokensFileError::Io { .. } = error {
                    file.watched.forget();
                }
                tracing::error!(%error, "the old tokens stay");
            }
        }
    }
}

/// Takes changed catalogues.
pub(super) async fn follow_catalogs(
    mut files: Vec<CatalogFile>,
    catalogs: Catalogs,
    interval: Duration,
) {
    loop {
        time::sleep(interval).await;
        for file in &mut files {
            if file.watched.has_changed().await {
                reload_catalog(file, &catalogs).await;
            }
        }
    }
}

async fn reload_catalog(file: &mut CatalogFile, catalogs: &Catalogs) {
    let catalog = match file.load().await {
        Ok(catalog) => catalog,
        Err(error) => {
            return tracing::error!(%error, title = ?file.title, "the old catalogue stays");
        }
    };
    match catalogs.apply(&file.title, catalog, None, false).await {
        Ok(applied) => log(&file.title, &applied),
        Err(error) => tracing::error!(%error, title = ?file.title, "catalogue not stored"),
    }
}

/// Says what a file that was read has changed.
pub(super) fn log(title: &Title, applied: &Applied) {
    tracing::info!(
        ?title,
        revision = applied.revision,
        added = applied.diff.added.len(),
        changed = applied.diff.changed.len(),
        removed = applied.diff.removed.len(),
        "catalogue file read"
    );
}

fn looks(path: &Path) -> Looks {
    let one = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        Some((path.to_owned(), metadata.len(), metadata.modified().ok(), metadata.ino()))
    };
    let mut looks: Looks = one(path).into_iter().collect();
    if let Ok(entries) = fs::read_dir(path) {
        looks.extend(entries.filter_map(|entry| one(&entry.ok()?.path())));
    }
    looks.sort();
    looks
}

//! Why a data folder could not be opened.

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Why a data folder could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open.
    #[error("`{0}` is in use by another process; stop that one, or pass another folder")]
    InUse(PathBuf),
    /// There is no store in it.
    #[error("`{0}` is no data folder; pass the one that `serve --data` was given")]
    NoDataFolder(PathBuf),
    /// There is something already where a folder is to be made.
    #[error("`{0}` is there already; pass the name of a folder that is not")]
    Exists(PathBuf),
    /// The operating system refused something.
    #[error("`{path}`: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// sled could not open its files.
    #[error("`{path}` cannot be opened: {cause}; keep a copy of the folder, and restore a backup")]
    Unreadable {
        /// Where.
        path: PathBuf,
        /// What sled said.
        cause: String,
    },
    /// The files open, but what they hold is not sound.
    #[error(
        "`{path}` is damaged; keep a copy of the folder, and restore a backup:\n  {}",
        problems.join("\n  ")
    )]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        problems: Vec<String>,
    },
    /// sled does not sync its log the way this program needs.
    #[error(
        "sled's writes do not come through this program's sync; it was not built as it must be"
    )]
    NotSynced,
}

/// Says where the operating system refused something.
pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> OpenError {
    move |source| OpenError::Io { path: path.to_owned(), source }
}

/// Says what cannot be opened.
pub(super) fn unreadable(path: &Path) -> impl Fn(String) -> OpenError {
    move |cause| OpenError::Unreadable { path: path.to_owned(), cause }
}

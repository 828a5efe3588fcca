//! The command line.

/// Prints a line at once; whoever reads this through a pipe and goes away ends the program quietly.
macro_rules! say {
    ($($text:tt)*) => {
        crate::cli::print::line(&format!($($text)*))
    };
}

mod backup;
mod catalog;
mod connect;
mod engine;
mod offline;
mod operate;
mod print;
mod progress;
mod records;
mod serve;
mod token;
mod transfer;
mod watch;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use thiserror::Error;
use tonic::Status;
use tonic_types::StatusExt;

use crate::{
    catalog::CatalogFileError, config::ConfigError, server::ServeError,
    store::jetstream::EngineError, telemetry::TracesError,
};

use self::connect::ConnectError;

/// For a mistake in the command or the settings; `EX_USAGE` of `sysexits.h`.
const EXIT_USAGE: u8 = 64;

/// For `set`, where the answer is code 5.
const EXIT_CONFLICT: u8 = 5;

/// Achievement progress with versions, and a durable stream of completions, over gRPC.
#[derive(Debug, Parser)]
#[command(name = "accolade", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service
    Serve(serve::ServeArgs),
    /// Check flags, environment and configuration file, and the catalogue files they name
    CheckConfig(serve::ServeArgs),
    /// Read a player's records
    Get(records::GetArgs),
    /// Change a player's record; exits with 5 on a conflict
    Set(records::SetArgs),
    /// Follow completions as they happen
    Watch(watch::WatchArgs),
    /// Apply, show or list catalogues
    #[command(subcommand)]
    Catalog(catalog::CatalogCommand),
    /// Tell how many players have completed each node
    Rarity(operate::RarityArgs),
    /// Take a player's record back to its beginning; exits with 5 on a conflict
    Reset(operate::ResetArgs),
    /// Remove everything of a player, from the feed's past too
    Erase(operate::EraseArgs),
    /// Write a title to a file, as lines of JSON; goes on where one was cut off
    Export(transfer::ExportArgs),
    /// Store what was exported; may be repeated
    Import(transfer::ImportArgs),
    /// Write all titles to a file, while the server runs
    Backup(backup::BackupArgs),
    /// Make a data folder from a backup
    Restore(backup::RestoreArgs),
    /// Lay out or check a JetStream cluster, which servers may share
    #[command(subcommand)]
    Engine(engine::EngineCommand),
    /// Make a token, and the entry for the server's file of tokens
    Token(token::TokenArgs),
    /// Read a whole data folder and check it; no server may have it open. sled may cut a torn log
    /// and move pages: verify a copy where that matters
    Verify(offline::VerifyArgs),
}

/// Why a command failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CliError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The arguments are wrong.
    #[error("{0}")]
    Usage(String),
    /// The service failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Traces cannot be sent.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// A catalogue file is wrong.
    #[error(transparent)]
    CatalogFile(#[from] CatalogFileError),
    /// The server cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server said no.
    #[error("{}", said(.0))]
    Status(Box<Status>),
    /// A cluster cannot be used.
    #[error("the cluster {0}")]
    Engine(#[from] EngineError),
    /// A data folder is not sound.
    #[error("{0}")]
    Unsound(String),
    /// A file cannot be read or written.
    #[error("`{}`: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line of a file is wrong.
    #[error("`{}`, line {line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        problem: String,
    },
}

impl CliError {
    /// What to end the process with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_)
            | Self::Usage(_)
            | Self::CatalogFile(_)
            | Self::Traces(_)
            | Self::Serve(
                ServeError::CatalogFiles(_) | ServeError::Tokens(_) | ServeError::Tls(_),
            ) => ExitCode::from(EXIT_USAGE),
            _ => ExitCode::FAILURE,
        }
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// A status with its reason, by which the README explains it.
fn said(status: &Status) -> String {
    let info = status.get_details_error_info();
    let reason = info.as_ref().map_or("no reason", |info| info.reason.as_str());
    format!("{:?}, {reason}: {}", status.code(), status.message())
}

/// Reads the command line; ends the process where it is wrong, or only asks for help.
#[must_use]
pub fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        let _ = error.print();
        std::process::exit(if error.use_stderr() { i32::from(EXIT_USAGE) } else { 0 })
    })
}

/// Does what the command line says.
///
/// # Errors
///
/// [`CliError`], whose text says what to do.
pub async fn run(cli: Cli) -> Result<ExitCode, CliError> {
    match cli.command {
        Command::Serve(args) => serve::serve(args).await,
        Command::CheckConfig(args) => serve::check_config(args),
        Command::Get(args) => records::get(args).await,
        Command::Set(args) => records::set(args).await,
        Command::Watch(args) => watch::watch(args).await,
        Command::Catalog(command) => catalog::run(command).await,
        Command::Rarity(args) => operate::rarity(args).await,
        Command::Reset(args) => operate::reset(args).await,
        Command::Erase(args) => operate::erase(args).await,
        Command::Export(args) => transfer::export(args).await,
        Command::Import(args) => transfer::import(args).await,
        Command::Backup(args) => backup::backup(args).await,
        Command::Restore(args) => backup::restore(args).await,
        Command::Engine(command) => engine::run(command).await,
        Command::Token(args) => token::token(&args),
        Command::Verify(args) => offline::verify(&args),
    }
}

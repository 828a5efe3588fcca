//! `accolade verify`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::CliError;
use crate::store::sled::SledStore;

/// Page cache while verifying: everything is read once, so little is enough.
const CACHE_BYTES: u64 = 64 << 20;

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The data folder
    dir: PathBuf,
}

pub(super) fn verify(args: &VerifyArgs) -> Result<ExitCode, CliError> {
    let report = SledStore::verify(&args.dir, CACHE_BYTES);
    let report = report.map_err(|error| CliError::Unsound(error.to_string()))?;
    println!(
        "sound: {} titles, {} records, {} events",
        report.titles, report.records, report.events
    );
    Ok(ExitCode::SUCCESS)
}

//! `accolade verify`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{CliError, progress};
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
    let bar = progress::rows("verifying");
    let report = SledStore::verify(&args.dir, CACHE_BYTES, &mut |rows| bar.set_position(rows));
    bar.finish_and_clear();
    let report = report.map_err(|error| CliError::Unsound(error.to_string()))?;
    say!("sound: {} titles, {} records, {} events", report.titles, report.records, report.events);
    Ok(ExitCode::SUCCESS)
}

//! The `accolade` program: read the command, do it, say how it went.

use std::{process::ExitCode, time::Duration};

use accolade::cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// After a drain, how long connections that did not finish may hold the process.
const RUNTIME_SHUTDOWN: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    accolade::store::sled::abort_where_the_flusher_panics();
    let command = cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("accolade: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(cli::run(command));
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("accolade: {error}");
            error.exit_code()
        }
    }
}

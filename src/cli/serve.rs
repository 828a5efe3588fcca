//! `accolade serve` and `accolade check-config`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::CliError;
use crate::{
    catalog,
    config::{Layer, SETTINGS, Settings, environment_name},
    server::{ServeError, Server, check_tls, read_tokens},
    telemetry,
};

/// A flag for every setting, and the configuration file.
#[derive(Debug, Clone)]
pub(super) struct ServeArgs {
    flags: Layer,
    config: Option<PathBuf>,
}

impl Args for ServeArgs {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config").long("config").value_name("FILE").help(
            "Configuration file (TOML, keys named as the flags, with underscores) \
                 [env: ACCOLADE_CONFIG]",
        );
        let flags = SETTINGS.iter().map(|setting| {
            let environment = environment_name(setting.key);
            let default = match setting.default {
                "" => String::new(),
                default => format!("default: {default}, "),
            };
            let help = format!("{} [{default}env: {environment}]", setting.help);
            let flag = Arg::new(setting.key)
                .long(setting.key.replace('_', "-"))
                .value_name(setting.value)
                .help(help)
                .action(ArgAction::Append);
            match setting.value {
                "BOOL" => flag.num_args(0..=1).require_equals(true).default_missing_value("true"),
                _ => flag,
            }
        });
        command.arg(config).args(flags)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flags = SETTINGS.iter().filter_map(|setting| {
            let values = matches.get_many::<String>(setting.key)?;
            Some((setting.key.to_owned(), values.cloned().collect()))
        });
        let config = matches.get_one::<String>("config").map(PathBuf::from);
        Ok(Self { flags: flags.collect(), config })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

pub(super) async fn serve(args: ServeArgs) -> Result<ExitCode, CliError> {
    let settings = Settings::load(args.flags, args.config)?;
    let traces = telemetry::start(&settings)?;
    let stop = stop_on_signals()?;
    let server = Server::open(settings).await?;

    let announcement = server.announcement();
    // Whoever started the server may have closed its standard output; that is no reason to stop.
    let _ = writeln!(std::io::stdout(), "{announcement}");
    if server.run(stop).await? {
        tracing::info!("stopped; everything open was finished");
    } else {
        tracing::warn!("stopped; some requests were cut off after the drain time");
    }
    // Sending what is left takes a moment, in which the runtime must go on.
    tokio::task::block_in_place(|| drop(traces));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn check_config(args: ServeArgs) -> Result<ExitCode, CliError> {
    let settings = Settings::load(args.flags, args.config)?;
    if let Some(files) = &settings.tls {
        check_tls(files).map_err(ServeError::from)?;
    }
    if let Some(path) = &settings.tokens {
        let tokens = read_tokens(path).map_err(ServeError::from)?;
        say!("tokens: {}", tokens.count());
    }
    let mut mistakes = Vec::new();
    for (title, path) in &settings.catalogs {
        match catalog::load(path) {
            Ok(catalog) => say!("catalogue of {title:?}: {} nodes", catalog.nodes().len()),
            Err(error) => mistakes.push(error),
        }
    }
    if !mistakes.is_empty() {
        return Err(ServeError::CatalogFiles(mistakes).into());
    }
    say!("the settings are sound: {settings:#?}");
    Ok(ExitCode::SUCCESS)
}

/// A token that SIGTERM or SIGINT cancels.
fn stop_on_signals() -> Result<CancellationToken, CliError> {
    let no_signals = |error| CliError::Usage(format!("signals cannot be received: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(no_signals)?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hang_up.recv() => {
                    tracing::info!("SIGHUP: changed files are read again without it");
                }
            }
        }
        stopping.cancel();
    });
    Ok(stop)
}

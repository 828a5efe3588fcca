//! `accolade engine`: the cluster that servers share.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};

use super::CliError;
use crate::store::jetstream::{self, Address, Found, Monitor, PARTITIONS_MAX, Plan};

/// What to do to a cluster.
#[derive(Debug, Subcommand)]
pub(super) enum EngineCommand {
    /// Lay a cluster out, or what is missing of it; may be repeated
    Init(InitArgs),
    /// Check a cluster, as a server does when it starts
    Check(ClusterArgs),
}

/// Which cluster, and how to get in: as the settings of the same names.
#[derive(Debug, Args)]
pub(super) struct ClusterArgs {
    /// The cluster: nats://host:4222,host2:4222, with /prefix behind it where several installations
    /// share a cluster
    #[arg(long, value_name = "URL", env = "ACCOLADE_STORE", hide_env_values = true)]
    store: Address,
    /// Credentials for the cluster (.creds: JWT and key)
    #[arg(long, value_name = "FILE", env = "ACCOLADE_NATS_CREDENTIALS")]
    nats_credentials: Option<PathBuf>,
    /// Authorities of the cluster's certificates (PEM)
    #[arg(long, value_name = "FILE", env = "ACCOLADE_NATS_CA")]
    nats_ca: Option<PathBuf>,
    /// Certificate to show to the cluster (PEM)
    #[arg(long, value_name = "FILE", env = "ACCOLADE_NATS_CERTIFICATE", requires = "nats_key")]
    nats_certificate: Option<PathBuf>,
    /// That certificate's private key (PEM)
    #[arg(long, value_name = "FILE", env = "ACCOLADE_NATS_KEY", requires = "nats_certificate")]
    nats_key: Option<PathBuf>,
    /// Monitoring address of a server of the cluster, such as http://host:8222; may be given more
    /// than once
    #[arg(long, value_name = "URL", env = "ACCOLADE_NATS_MONITOR", value_delimiter = ';')]
    nats_monitor: Vec<Monitor>,
}

/// Arguments of `engine init`.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Streams that players are spread over; never changes. 1 keeps all events of a title in one
    /// order; 16 is for a large installation [default: what there is, or 1]
    #[arg(long, value_name = "COUNT",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(PARTITIONS_MAX)))]
    partitions: Option<u32>,
    /// Servers that keep each stream; 1 is for trying, and loses what that one loses [default: what
    /// there is, or 3]
    #[arg(long, value_name = "COUNT",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=5))]
    replicas: Option<usize>,
}

impl ClusterArgs {
    fn address(self) -> Address {
        Address {
            credentials: self.nats_credentials,
            ca: self.nats_ca,
            certificate: self.nats_certificate.zip(self.nats_key),
            monitors: self.nats_monitor,
            ..self.store
        }
    }
}

pub(super) async fn run(command: EngineCommand) -> Result<ExitCode, CliError> {
    let (address, found) = match command {
        EngineCommand::Init(args) => {
            let plan = Plan { partitions: args.partitions, replicas: args.replicas };
            let address = args.cluster.address();
            let found = jetstream::init(&address, plan).await?;
            (address, found)
        }
        EngineCommand::Check(args) => {
            let address = args.address();
            let found = jetstream::check(&address).await?;
            (address, found)
        }
    };
    let Found { partitions, replicas, missing, worries, .. } = found;
    for worry in worries {
        eprintln!("warning: {worry}");
    }
    for problem in &missing {
        eprintln!("error: {problem}");
    }
    let (state, code) = match missing.len() {
        0 => ("sound".to_owned(), ExitCode::SUCCESS),
        count => (
            format!(
                "{count} replicas are missing or behind: start their NATS servers, or remove those \
                 that are gone for good (deploy/README.md, When machines fail)"
            ),
            ExitCode::FAILURE,
        ),
    };
    say!("{}: {partitions} partitions, {replicas} replicas; {state}", address.shown());
    Ok(code)
}

//! `accolade catalog apply`, `show` and `list`.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};

use super::{CliError, connect::ServerArgs, print};
use crate::{
    catalog,
    proto::v1::{
        ApplyCatalogRequest, Definition, GetCatalogRequest, ListTitlesRequest,
        catalog_service_client::CatalogServiceClient as Client,
    },
    service::definition_message,
};

/// What to do with catalogues.
#[derive(Debug, Subcommand)]
pub(super) enum CatalogCommand {
    /// Replace a title's catalogue by a file, or make a new title
    Apply(ApplyArgs),
    /// Show a title's catalogue
    Show(ShowArgs),
    /// List the titles
    List(ListArgs),
}

/// Arguments of `catalog apply`.
#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The title
    title: String,
    /// .toml, .json, NetEase's NodeSetting.csv, or a customAchievements folder
    file: PathBuf,
    /// Say what would change, and for how many players, but change nothing
    #[arg(long)]
    dry_run: bool,
    /// Refuse where the catalogue is at another revision; 0 for a new title
    #[arg(long, value_name = "REVISION")]
    expected_revision: Option<i64>,
}

/// Arguments of `catalog show`.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The title
    title: String,
    /// Print the answer as a line of JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `catalog list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Print the answer as a line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(command: CatalogCommand) -> Result<ExitCode, CliError> {
    match command {
        CatalogCommand::Apply(args) => apply(args).await?,
        CatalogCommand::Show(args) => show(args).await?,
        CatalogCommand::List(args) => list(args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn apply(args: ApplyArgs) -> Result<(), CliError> {
    let catalog = catalog::load(&args.file)?;
    let definitions = catalog.nodes().map(|node| definition_message(node.definition()));
    let request = ApplyCatalogRequest {
        title: args.title.clone(),
        definitions: definitions.collect(),
        dry_run: args.dry_run,
        expected_revision: args.expected_revision,
    };
    let mut client = Client::new(args.server.connect().await?);
    let applied = client.apply_catalog(request).await?.into_inner();
    let changes = [&applied.added_node_ids, &applied.changed_node_ids, &applied.removed_node_ids];
    if changes.iter().all(|ids| ids.is_empty()) {
        say!("{:?} is the same already; it stays at revision {}", args.title, applied.revision);
        return Ok(());
    }
    let what = if args.dry_run { "would change" } else { "changed" };
    say!("{what} {:?}, revision {}:", args.title, applied.revision);
    for (sign, ids) in [
        ('+', &applied.added_node_ids),
        ('~', &applied.changed_node_ids),
        ('-', &applied.removed_node_ids),
    ] {
        for id in ids {
            say!("  {sign} {id:?}");
        }
    }
    if args.dry_run {
        say!("  players touched: {}", applied.players_touched);
    }
    Ok(())
}

async fn show(args: ShowArgs) -> Result<(), CliError> {
    let mut client = Client::new(args.server.connect().await?);
    let request = GetCatalogRequest { title: args.title };
    let response = client.get_catalog(request).await?.into_inner();
    if args.json {
        say!("{}", print::json("GetCatalogResponse", &response));
        return Ok(());
    }
    say!("{:?}, revision {}:", response.title, response.revision);
    for Definition { node_id, max_progress, display_name, parent_id, hidden, .. } in
        response.definitions
    {
        let parent =
            if parent_id.is_empty() { String::new() } else { format!("  in {parent_id:?}") };
        let hidden = if hidden { "  hidden" } else { "" };
        say!("  {node_id:?}  target {max_progress}  {display_name:?}{parent}{hidden}");
    }
    Ok(())
}

async fn list(args: ListArgs) -> Result<(), CliError> {
    let mut client = Client::new(args.server.connect().await?);
    let response = client.list_titles(ListTitlesRequest {}).await?.into_inner();
    if args.json {
        say!("{}", print::json("ListTitlesResponse", &response));
        return Ok(());
    }
    for title in response.titles {
        say!("{:?}  revision {}  {} nodes", title.title, title.revision, title.node_count);
    }
    Ok(())
}

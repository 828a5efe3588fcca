//! `accolade rarity`, `accolade reset` and `accolade erase`.

use std::process::ExitCode;

use clap::Args;

use super::{CliError, EXIT_CONFLICT, connect::ServerArgs, print};
use crate::proto::v1::{
    ErasePlayerRequest, GetRarityRequest, ResetAchievementRequest,
    admin_service_client::AdminServiceClient, catalog_service_client::CatalogServiceClient,
};

/// Arguments of `rarity`.
#[derive(Debug, Args)]
pub(super) struct RarityArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The title
    title: String,
    /// Print the answer as a line of JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `reset`.
#[derive(Debug, Args)]
pub(super) struct ResetArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The title
    title: String,
    /// The player
    player: String,
    /// The node
    node: String,
    /// Why; subscribers read it
    #[arg(long)]
    reason: String,
    /// The version the record must be at
    #[arg(long, value_name = "VERSION")]
    expected_version: Option<i64>,
    /// Name of this reset, the same on a retry
    #[arg(long, default_value = "")]
    request_id: String,
    /// Print the answer as a line of JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `erase`.
#[derive(Debug, Args)]
pub(super) struct EraseArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The title
    title: String,
    /// The player
    player: String,
    /// Print the answer as a line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn rarity(args: RarityArgs) -> Result<ExitCode, CliError> {
    let mut client = CatalogServiceClient::new(args.server.connect().await?);
    let response = client.get_rarity(GetRarityRequest { title: args.title }).await?.into_inner();
    if args.json {
        say!("{}", print::json("GetRarityResponse", &response));
        return Ok(ExitCode::SUCCESS);
    }
    say!("{} players", response.players);
    for node in response.nodes {
        let percent = node.share * 100.0;
        say!("{:?}  {} players  {percent:.2} %", node.achievement_id, node.completed_players);
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn reset(args: ResetArgs) -> Result<ExitCode, CliError> {
    let mut client = AdminServiceClient::new(args.server.connect().await?);
    let request = ResetAchievementRequest {
        title: args.title,
        player_id: args.player,
        node_id: args.node,
        reason: args.reason,
        expected_version: args.expected_version,
        request_id: args.request_id,
    };
    let response = client.reset_achievement(request).await?.into_inner();
    let is_conflict = response.code == i32::from(EXIT_CONFLICT);
    if args.json {
        say!("{}", print::json("ResetAchievementResponse", &response));
    } else {
        let what = match &response {
            _ if is_conflict => "conflict: nothing reset",
            it if it.replayed => "reset before, by the same request id",
            it if it.changed => "reset",
            _ => "nothing to do",
        };
        let version = response.updated.map_or(0, |record| record.version);
        say!("{what}; the record is at version {version}");
    }
    Ok(if is_conflict { ExitCode::from(EXIT_CONFLICT) } else { ExitCode::SUCCESS })
}

pub(super) async fn erase(args: EraseArgs) -> Result<ExitCode, CliError> {
    let mut client = AdminServiceClient::new(args.server.connect().await?);
    let request = ErasePlayerRequest { title: args.title, player_id: args.player };
    let response = client.erase_player(request).await?.into_inner();
    match args.json {
        true => say!("{}", print::json("ErasePlayerResponse", &response)),
        false => say!("erased {} records, {} events", response.records, response.events),
    }
    Ok(ExitCode::SUCCESS)
}

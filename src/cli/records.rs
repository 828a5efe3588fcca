//! `accolade get` and `accolade set`.

use std::process::ExitCode;

use clap::Args;

use super::{CliError, EXIT_CONFLICT, connect::ServerArgs, print};
use crate::proto::v1::{
    GetAchievementStorageRequest, Record, SetAchievementStorageRequest,
    achievement_storage_service_client::AchievementStorageServiceClient as Client,
    set_achievement_storage_request::Change,
};

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The title
    title: String,
    /// The player
    player: String,
    /// Only these nodes
    nodes: Vec<String>,
    /// Print the answer as a line of JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `set`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct SetArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The title
    title: String,
    /// The player
    player: String,
    /// The node
    node: String,
    #[command(flatten)]
    change: ChangeArgs,
    /// Text to store beside the progress; needs --expected-version
    #[arg(long)]
    extra: Option<String>,
    /// The version the record must be at; 0 for a new one
    #[arg(long, value_name = "VERSION")]
    expected_version: Option<i64>,
    /// Name of this update, the same on a retry
    #[arg(long, default_value = "")]
    request_id: String,
    /// Print the answer as a line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct ChangeArgs {
    /// Progress to add
    #[arg(long)]
    delta: Option<i64>,
    /// Progress to raise to
    #[arg(long)]
    at_least: Option<i64>,
    /// Complete the record
    #[arg(long)]
    finish: bool,
}

impl ChangeArgs {
    fn change(&self) -> Option<Change> {
        let finish = self.finish.then_some(Change::Finish(true));
        self.delta.map(Change::Delta).or(self.at_least.map(Change::AtLeast)).or(finish)
    }
}

pub(super) async fn get(args: GetArgs) -> Result<ExitCode, CliError> {
    let mut client = Client::new(args.server.connect().await?).max_decoding_message_size(64 << 20);
    let request = GetAchievementStorageRequest {
        title: args.title,
        player_id: args.player,
        achievement_ids: args.nodes,
    };
    let response = client.get_achievement_storage(request).await?.into_inner();
    if args.json {
        say!("{}", print::json("GetAchievementStorageResponse", &response));
    } else if response.entity.is_empty() {
        say!("no records");
    } else {
        response.entity.iter().for_each(print_record);
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn set(args: SetArgs) -> Result<ExitCode, CliError> {
    let mut client = Client::new(args.server.connect().await?);
    let request = SetAchievementStorageRequest {
        title: args.title,
        player_id: args.player,
        node_id: args.node,
        change: args.change.change(),
        extra: args.extra,
        expected_version: args.expected_version,
        request_id: args.request_id,
    };
    let response = client.set_achievement_storage(request).await?.into_inner();
    let is_conflict = response.code == i32::from(EXIT_CONFLICT);
    if args.json {
        say!("{}", print::json("SetAchievementStorageResponse", &response));
    } else {
        let what = match &response {
            _ if is_conflict => "conflict: nothing stored; the record is",
            it if it.replayed => "stored before, by the same request id",
            it if it.newly_completed => "stored; completed now",
            it if it.changed => "stored",
            _ => "nothing to do",
        };
        say!("{what}");
        response.updated.iter().for_each(print_record);
    }
    Ok(if is_conflict { ExitCode::from(EXIT_CONFLICT) } else { ExitCode::SUCCESS })
}

fn print_record(record: &Record) {
    let Record { achievement_id, completed_at, extra, max_progress, progress, version } = record;
    let completed = match completed_at {
        0 => "not completed".to_owned(),
        at => format!("completed at {at}"),
    };
    say!(
        "{achievement_id:?}  {progress}/{max_progress}  version {version}  {completed}  \
         extra {extra:?}"
    );
}

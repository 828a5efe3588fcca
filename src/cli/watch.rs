//! `accolade watch`: follows completions, and resumes by itself after a lost connection.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic_types::StatusExt;

use super::{
    CliError,
    connect::{ConnectError, ServerArgs},
    print,
};
use crate::{
    client::may_pass,
    proto::v1::{
        Completion, Reset, WatchCompletionsRequest,
        completion_service_client::CompletionServiceClient, watch_completions_response::Event,
    },
};

const HEARTBEAT: Duration = Duration::from_secs(10);

/// Silence after which the connection counts as lost.
const SILENCE_MAX: Duration = Duration::from_secs(30);

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Arguments of `watch`.
#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The title
    title: String,
    /// Begin after this cursor
    #[arg(long, value_name = "CURSOR", conflicts_with = "from_oldest")]
    after: Option<String>,
    /// Begin with the oldest completion that is retained
    #[arg(long)]
    from_oldest: bool,
    /// Only this player; may be given more than once
    #[arg(long = "player", value_name = "PLAYER")]
    players: Vec<String>,
    /// Only this node; may be given more than once
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<String>,
    /// Print each message of the stream as a line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn watch(args: WatchArgs) -> Result<ExitCode, CliError> {
    let mut cursor = if args.from_oldest { Some(String::new()) } else { args.after.clone() };
    let mut pause = PAUSE_MIN;
    loop {
        let before = cursor.clone();
        let status = match follow(&args, &mut cursor).await {
            Ok(status) => status,
            Err(CliError::Connect(error @ ConnectError::Unreachable { .. })) => {
                Status::unavailable(error.to_string())
            }
            Err(error) => return Err(error),
        };
        if !may_pass(&status) {
            let info = status.get_details_error_info();
            if let Some(oldest) = info.as_ref().and_then(|info| info.metadata.get("oldest")) {
                eprintln!("accolade: go on with --after {oldest}; some were missed");
            }
            return Err(status.into());
        }
        if cursor != before {
            pause = PAUSE_MIN;
        }
        eprintln!("accolade: {}; trying again", status.message());
        sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Follows one stream to its end, and keeps `cursor` at what was printed.
async fn follow(args: &WatchArgs, cursor: &mut Option<String>) -> Result<Status, CliError> {
    let channel = args.server.connect().await?;
    let mut client = CompletionServiceClient::new(channel);
    let request = WatchCompletionsRequest {
        title: args.title.clone(),
        after: cursor.clone(),
        player_ids: args.players.clone(),
        achievement_ids: args.nodes.clone(),
        heartbeat_interval: HEARTBEAT.try_into().ok(),
    };
    let mut stream = match client.watch_completions(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return Ok(status),
    };
    loop {
        let message = match timeout(SILENCE_MAX, stream.message()).await {
            Err(_) => return Ok(Status::unavailable("the server went silent")),
            Ok(Err(status)) => return Ok(status),
            Ok(Ok(None)) => return Ok(Status::unavailable("the stream ended")),
            Ok(Ok(Some(message))) => message,
        };
        if args.json {
            say!("{}", print::json("WatchCompletionsResponse", &message));
        }
        match message.event {
            Some(Event::Started(started)) => {
                if !args.json {
                    eprintln!("watching {:?} after {}", args.title, started.cursor);
                }
                *cursor = Some(started.cursor);
            }
            Some(Event::Completion(completion)) => {
                if !args.json {
                    print_completion(&completion);
                }
                *cursor = Some(completion.cursor);
            }
            Some(Event::Reset(reset)) => {
                if !args.json {
                    print_reset(&reset);
                }
                *cursor = Some(reset.cursor);
            }
            Some(Event::Heartbeat(heartbeat)) => *cursor = Some(heartbeat.cursor),
            None => {}
        }
    }
}

fn print_completion(completion: &Completion) {
    let Completion { player_id, achievement_id, display_name, completed_at, cursor, .. } =
        completion;
    say!("{completed_at}  {player_id:?}  {achievement_id:?}  {display_name:?}  {cursor}");
}

fn print_reset(reset: &Reset) {
    let Reset { player_id, achievement_id, reason, reset_at, cursor, .. } = reset;
    say!("{reset_at}  {player_id:?}  {achievement_id:?}  reset: {reason:?}  {cursor}");
}

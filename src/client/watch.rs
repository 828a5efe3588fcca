//! Following completions over lost connections.

use std::{fmt, pin::Pin, time::Duration};

use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Response, Status, Streaming};

use super::{
    Connection,
    retry::{Pauses, may_pass},
};
use crate::proto::v1::{
    Completion, Reset, WatchCompletionsRequest, WatchCompletionsResponse,
    completion_service_client::CompletionServiceClient, watch_completions_response::Event,
};

const HEARTBEAT: Duration = Duration::from_secs(10);

/// Silence after which the connection counts as lost.
const SILENCE_MAX: Duration = Duration::from_secs(30);

type Messages = Streaming<WatchCompletionsResponse>;
type Opening = Pin<Box<dyn Future<Output = Result<Response<Messages>, Status>> + Send>>;

/// Follows a title's completions; each comes once, in order, over any number of connections.
///
/// Where whoever follows may end itself, it keeps the cursor of the last completion that it is done
/// with, and begins [`Watch::after`] it the next time.
pub struct Watch {
    client: CompletionServiceClient<Connection>,
    request: WatchCompletionsRequest,
    stream: Stream,
    pauses: Pauses,
}

/// What stands at a place of a feed.
#[derive(Clone, Debug, PartialEq)]
pub enum Happened {
    /// A record completed.
    Completion(Completion),
    /// An operator reset a record.
    Reset(Reset),
}

/// Where the stream stands. Moments and futures are kept here, so that a call to `next` that is
/// dropped and made anew goes on where the other was.
enum Stream {
    Lost { until: Instant },
    Opening { opening: Opening, silent_at: Instant },
    Open { messages: Box<Messages>, silent_at: Instant },
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("request", &self.request).finish_non_exhaustive()
    }
}

// === impl Watch ===

impl Watch {
    /// Follows what completes from now on.
    #[must_use]
    pub fn new(connection: Connection, title: &str) -> Self {
        let heartbeat_interval = HEARTBEAT.try_into().ok();
        let title = title.to_owned();
        let request = WatchCompletionsRequest { title, heartbeat_interval, ..Default::default() };
        let client = CompletionServiceClient::new(connection);
        let stream = Stream::Lost { until: Instant::now() };
        Self { client, request, stream, pauses: Pauses::default() }
    }

    /// Begins with the oldest completion that is retained.
    #[must_use]
    pub fn from_oldest(self) -> Self {
        self.after("")
    }

    /// Begins after a cursor.
    #[must_use]
    pub fn after(mut self, cursor: &str) -> Self {
        self.request.after = Some(cursor.to_owned());
        self
    }

    /// Tells only of these players; all where there are none.
    #[must_use]
    pub fn of_players(mut self, player_ids: &[String]) -> Self {
        self.request.player_ids = player_ids.to_vec();
        self
    }

    /// Tells only of these nodes; all where there are none.
    #[must_use]
    pub fn of_nodes(mut self, node_ids: &[String]) -> Self {
        self.request.achievement_ids = node_ids.to_vec();
        self
    }

    /// Everything up to here was given, or did not pass the filter; none before the first message.
    #[must_use]
    pub fn cursor(&self) -> Option<&str> {
        self.request.after.as_deref()
    }

    /// The next completion; resets are passed over. A future of this that is dropped loses none,
    /// and no time.
    ///
    /// # Errors
    ///
    /// What does not pass by itself: a wrong title or cursor, a missing right, or OUT_OF_RANGE
    /// where retention took what comes next.
    pub async fn next(&mut self) -> Result<Completion, Status> {
        loop {
            if let Happened::Completion(completion) = self.next_event().await? {
                return Ok(completion);
            }
        }
    }

    /// The next completion or reset, for whoever must take something back.
    ///
    /// # Errors
    ///
    /// Those of [`Watch::next`].
    pub async fn next_event(&mut self) -> Result<Happened, Status> {
        loop {
            match self.message().await {
                Ok(message) => {
                    if let Some(happened) = self.take(message) {
                        return Ok(happened);
                    }
                }
                Err(lost) => {
                    self.stream = Stream::Lost { until: Instant::now() + self.pauses.next(&lost) };
                    if !may_pass(&lost) {
                        return Err(lost);
                    }
                }
            }
        }
    }

    async fn message(&mut self) -> Result<WatchCompletionsResponse, Status> {
        let silent = |_| Status::unavailable("the server went silent");
        loop {
            match &mut self.stream {
                Stream::Lost { until } => {
                    sleep_until(*until).await;
                    let (mut client, request) = (self.client.clone(), self.request.clone());
                    let opening = Box::pin(async move { client.watch_completions(request).await });
                    self.stream = Stream::Opening { opening, silent_at: silent_at() };
                }
                Stream::Opening { opening, silent_at: at } => {
                    let opened = timeout_at(*at, opening).await.map_err(silent)??;
                    let messages = Box::new(opened.into_inner());
                    self.stream = Stream::Open { messages, silent_at: silent_at() };
                }
                Stream::Open { messages, silent_at: at } => {
                    let message = timeout_at(*at, messages.message()).await.map_err(silent)??;
                    *at = silent_at();
                    return message.ok_or_else(|| Status::unavailable("the stream ended"));
                }
            }
        }
    }

    /// Moves to where a message is.
    fn take(&mut self, message: WatchCompletionsResponse) -> Option<Happened> {
        let (cursor, happened) = match message.event? {
            Event::Started(started) => (started.cursor, None),
            Event::Heartbeat(heartbeat) => (heartbeat.cursor, None),
            Event::Completion(completion) => {
                (completion.cursor.clone(), Some(Happened::Completion(completion)))
            }
            Event::Reset(reset) => (reset.cursor.clone(), Some(Happened::Reset(reset))),
        };
        if self.request.after.as_ref() != Some(&cursor) {
            self.request.after = Some(cursor);
            self.pauses = Pauses::default();
        }
        happened
    }
}

fn silent_at() -> Instant {
    Instant::now() + SILENCE_MAX
}

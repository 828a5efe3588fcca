//! `CompletionService`.

use std::{ops::RangeInclusive, pin::Pin, sync::Arc, time::Duration};

use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, async_trait};

use super::{
    admit::{Doors, caller, cost},
    parse::Fields,
    status, wire,
};
use crate::{
    access::Scope,
    domain::{Completion, Cursor},
    feed::{FeedEvent, Live, PageRequest, Start, WatchRequest, page},
    metrics::{Counted, METRICS},
    proto::{
        Encoded,
        completion_server::completion_service_server::CompletionService,
        v1::{self, watch_completions_response::Event},
    },
    store::Store,
};

const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(15);
const HEARTBEAT_RANGE: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(600);

const PAGE_SIZE_DEFAULT: usize = 100;
const PAGE_SIZE_MAX: usize = 1000;

/// See the module.
#[derive(Clone)]
pub struct CompletionApi {
    store: Arc<dyn Store>,
    live: Live<Encoded<v1::WatchCompletionsResponse>>,
    doors: Doors,
}

// === impl CompletionApi ===

impl CompletionApi {
    /// Answers from this store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, doors: Doors) -> Self {
        Self { live: Live::new(store.clone(), completion), store, doors }
    }
}

#[async_trait]
impl CompletionService for CompletionApi {
    type WatchCompletionsStream =
        Pin<Box<dyn Stream<Item = Result<Encoded<v1::WatchCompletionsResponse>, Status>> + Send>>;

    async fn watch_completions(
        &self,
        request: Request<v1::WatchCompletionsRequest>,
    ) -> Result<Response<Self::WatchCompletionsStream>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let cost = cost(&request, 1);
        let mut fields = Fields::default();
        let title = fields.title(&request.title);
        let filter = fields.filter(&request.player_ids, &request.achievement_ids);
        let heartbeat_interval = fields.duration(
            "heartbeat_interval",
            request.heartbeat_interval,
            HEARTBEAT_RANGE,
            HEARTBEAT_DEFAULT,
        );
        let title = fields.finish(title)?;
        self.doors.open(&caller, &title, Scope::Watch, cost)?;

        let after = match request.after {
            None => Start::Now,
            Some(text) => start(&text),
        };
        let pass = self.doors.stream(&caller, Some(&title))?;
        let request = WatchRequest { title, after, filter, heartbeat_interval };
        let events = self.live.watch(request, pass.stop());
        let counted = Counted::in_gauge(&METRICS.subscribers);
        let messages = events.map(move |event| {
            let _counted = &counted;
            event.map(message).map_err(status::from_watch)
        });
        Ok(Response::new(Box::pin(pass.hold(messages))))
    }

    async fn list_completions(
        &self,
        request: Request<v1::ListCompletionsRequest>,
    ) -> Result<Response<v1::ListCompletionsResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let cost = cost(&request, 1);
        let mut fields = Fields::default();
        let title = fields.title(&request.title);
        let filter = fields.filter(&request.player_ids, &request.achievement_ids);
        let size = match usize::try_from(request.page_size) {
            Ok(0) => PAGE_SIZE_DEFAULT,
            Ok(size) if size <= PAGE_SIZE_MAX => size,
            _ => {
                let size = request.page_size;
                let problem = format!("is {size}; pass 1 to {PAGE_SIZE_MAX}, or 0 for the default");
                fields.wrong("page_size", problem);
                0
            }
        };
        let title = fields.finish(title)?;
        self.doors.open(&caller, &title, Scope::Read, cost)?;

        let (field, text) = match request.page_token.as_str() {
            "" => ("after", &request.after),
            token => ("page_token", &token.to_owned()),
        };
        let request = PageRequest { title, after: start(text), filter, size };
        let page = page(&*self.store, request).await;
        let page = page.map_err(|error| status::from_feed(error, field))?;
        let cursor = page.cursor.as_str().to_owned();
        Ok(Response::new(v1::ListCompletionsResponse {
            completions: page.completions.iter().map(wire::completion).collect(),
            next_page_token: if page.is_last { String::new() } else { cursor.clone() },
            cursor,
        }))
    }
}

/// "" stands for the oldest that is retained.
fn start(text: &str) -> Start {
    match text {
        "" => Start::Oldest,
        text => Start::After(Cursor::new(text)),
    }
}

fn message(
    event: FeedEvent<Encoded<v1::WatchCompletionsResponse>>,
) -> Encoded<v1::WatchCompletionsResponse> {
    let text = |cursor: Cursor| cursor.as_str().to_owned();
    match event {
        FeedEvent::Completion(message) => message,
        FeedEvent::Started { cursor, oldest } => {
            encode(Event::Started(v1::Started { cursor: text(cursor), oldest: text(oldest) }))
        }
        FeedEvent::Heartbeat { cursor } => {
            encode(Event::Heartbeat(v1::Heartbeat { cursor: text(cursor) }))
        }
    }
}

fn completion(completion: &Completion) -> Encoded<v1::WatchCompletionsResponse> {
    encode(Event::Completion(wire::completion(completion)))
}

fn encode(event: Event) -> Encoded<v1::WatchCompletionsResponse> {
    Encoded::from(&v1::WatchCompletionsResponse { event: Some(event) })
}

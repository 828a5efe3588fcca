//! `CompletionService`.

use std::{ops::RangeInclusive, pin::Pin, sync::Arc, time::Duration};

use tokio::sync::broadcast::error::RecvError;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{
    admit::{Doors, StreamPass, caller, cost},
    consume::{Consumers, consume},
    parse::Fields,
    status, wire,
};
use crate::{
    access::Scope,
    domain::{self, Cursor, Entry},
    feed::{FeedEvent, Live, PageRequest, Start, WatchRequest, page},
    metrics::{Counted, METRICS},
    proto::{
        Encoded,
        completion_server::completion_service_server::CompletionService,
        v1::{self, consume_completions_request::Action, watch_completions_response::Event},
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
    consumers: Consumers,
}

/// What is asked of a feed, by a watch or a consumer.
struct Asked<'a> {
    title: &'a str,
    player_ids: &'a [String],
    achievement_ids: &'a [String],
    heartbeat_interval: Option<prost_types::Duration>,
}

// === impl CompletionApi ===

impl CompletionApi {
    /// Answers from this store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, doors: Doors) -> Self {
        let live = Live::new(store.clone(), entry);
        Self { live, store, doors, consumers: Consumers::default() }
    }

    /// Ends consumers of subscriptions that have one on another server now, for as long as the
    /// store can tell.
    pub async fn follow_claims(self) {
        let mut claims = self.store.claims();
        loop {
            match claims.recv().await {
                Ok((title, name, claim)) => self.consumers.heard(&(title, name), claim),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Follows a feed, for a caller who has a place for it.
    fn follow(
        &self,
        request: WatchRequest,
        pass: &StreamPass,
    ) -> impl Stream<Item = Result<Encoded<v1::WatchCompletionsResponse>, Status>> + Send + use<>
    {
        let events = self.live.watch(request, pass.stop());
        let counted = Counted::in_gauge(&METRICS.subscribers);
        events.map(move |event| {
            let _counted = &counted;
            event.map(message).map_err(status::from_watch)
        })
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
        let asked = Asked {
            title: &request.title,
            player_ids: &request.player_ids,
            achievement_ids: &request.achievement_ids,
            heartbeat_interval: request.heartbeat_interval,
        };
        let mut fields = Fields::default();
        let asked = asked.parse(&mut fields, "");
        let request = fields.finish(asked).map(|asked| WatchRequest {
            after: request.after.map_or(Start::Now, |text| start(&text)),
            ..asked
        })?;
        self.doors.open(&caller, &request.title, Scope::Watch, cost)?;
        let pass = self.doors.stream(&caller, Some(&request.title))?;
        let messages = self.follow(request, &pass);
        Ok(Response::new(Box::pin(pass.hold(messages))))
    }

    type ConsumeCompletionsStream =
        Pin<Box<dyn Stream<Item = Result<Encoded<v1::ConsumeCompletionsResponse>, Status>> + Send>>;

    async fn consume_completions(
        &self,
        request: Request<Streaming<v1::ConsumeCompletionsRequest>>,
    ) -> Result<Response<Self::ConsumeCompletionsStream>, Status> {
        let caller = caller(&request)?;
        let mut requests = request.into_inner();
        let first = requests.message().await.map_err(|status| status::from_stream(&status))?;
        let action = first.as_ref().and_then(|first| first.action.as_ref());
        let Some(Action::Subscribe(subscribe)) = action else {
            return Err(status::missing("subscribe"));
        };
        let cost = cost(subscribe, 1);
        let mut fields = Fields::default();
        let name = fields.subscription("subscribe.name", &subscribe.name);
        let asked = Asked {
            title: &subscribe.title,
            player_ids: &subscribe.player_ids,
            achievement_ids: &subscribe.achievement_ids,
            heartbeat_interval: subscribe.heartbeat_interval,
        };
        let asked = asked.parse(&mut fields, "subscribe.");
        let (asked, name) = fields.finish(asked.zip(name))?;
        let title = asked.title.clone();
        self.doors.open(&caller, &title, Scope::Watch, cost)?;
        let pass = self.doors.stream(&caller, Some(&title))?;

        let after = match subscribe.after.as_deref() {
            None => None,
            Some("") => {
                let bounds = self.store.feed_bounds(&title).await.map_err(status::from_store)?;
                Some(bounds.oldest)
            }
            Some(text) => Some(Cursor::new(text)),
        };
        // A cursor that does not work must not end the consumer there is.
        if let Some(after) = &after {
            let read = self.store.entries(&title, after, 1).await;
            read.map_err(|error| status::from_feed(error, "subscribe.after"))?;
        }
        let claim = self.consumers.claim((title.clone(), name.clone())).await;
        let opened = self.store.open_subscription(&title, &name, after.as_ref()).await;
        let opened =
            opened.map_err(|error| status::from_subscription(error, &name, "subscribe.after"))?;
        claim.opened(opened.claim);
        // Acks of its consumer do not count any more, whether or not another server hears of this.
        if let Err(error) = self.store.claim(&title, &name, opened.claim).await {
            tracing::warn!(%error, "other servers were not told of a new consumer");
        }
        let request = WatchRequest { after: Start::After(opened.cursor), ..asked };
        let events = self.follow(request, &pass).map(|event| event.map(Encoded::reread));
        let messages = consume(self.store.clone(), claim, opened.claim, requests, events);
        Ok(Response::new(Box::pin(pass.hold(messages))))
    }

    async fn list_subscriptions(
        &self,
        request: Request<v1::ListSubscriptionsRequest>,
    ) -> Result<Response<v1::ListSubscriptionsResponse>, Status> {
        let caller = caller(&request)?;
        let cost = cost(request.get_ref(), 1);
        let mut fields = Fields::default();
        let title = fields.title(&request.get_ref().title);
        let title = fields.finish(title)?;
        self.doors.open(&caller, &title, Scope::Watch, cost)?;
        let all = self.store.subscriptions(&title).await.map_err(status::from_store)?;
        let subscriptions = all.into_iter().map(|it| v1::Subscription {
            active: self.consumers.has(&(title.clone(), it.name.clone())),
            name: it.name.as_str().to_owned(),
            cursor: it.cursor.as_str().to_owned(),
            lag: wire::int(it.lag),
            moved_at: wire::int(it.moved_at.get()),
        });
        Ok(Response::new(v1::ListSubscriptionsResponse { subscriptions: subscriptions.collect() }))
    }

    async fn delete_subscription(
        &self,
        request: Request<v1::DeleteSubscriptionRequest>,
    ) -> Result<Response<v1::DeleteSubscriptionResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let cost = cost(&request, 1);
        let mut fields = Fields::default();
        let title = fields.title(&request.title);
        let name = fields.subscription("name", &request.name);
        let (title, name) = fields.finish(title.zip(name))?;
        self.doors.open(&caller, &title, Scope::Watch, cost)?;
        let deleted = self.store.delete_subscription(&title, &name).await;
        deleted.map_err(|error| status::from_subscription(error, &name, "name"))?;
        let why = status::subscription_not_found(&name);
        self.consumers.end(&(title, name), why);
        Ok(Response::new(v1::DeleteSubscriptionResponse {}))
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
        let filter = fields.filter("", &request.player_ids, &request.achievement_ids);
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
        let mut response = v1::ListCompletionsResponse {
            next_page_token: if page.is_last { String::new() } else { cursor.clone() },
            cursor,
            ..v1::ListCompletionsResponse::default()
        };
        for Entry { cursor, event, .. } in &page.entries {
            match event {
                domain::Event::Completion(it) => {
                    response.completions.push(wire::completion(cursor, it));
                }
                domain::Event::Reset(it) => response.resets.push(wire::reset(cursor, it)),
                domain::Event::Erased => {}
            }
        }
        Ok(Response::new(response))
    }
}

impl Asked<'_> {
    /// From now on, until somebody says otherwise.
    fn parse(self, fields: &mut Fields, prefix: &str) -> Option<WatchRequest> {
        let title = fields.title_at(&format!("{prefix}title"), self.title);
        let filter = fields.filter(prefix, self.player_ids, self.achievement_ids);
        let heartbeat_interval = fields.duration(
            &format!("{prefix}heartbeat_interval"),
            self.heartbeat_interval,
            HEARTBEAT_RANGE,
            HEARTBEAT_DEFAULT,
        );
        Some(WatchRequest { title: title?, after: Start::Now, filter, heartbeat_interval })
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
        FeedEvent::Entry(message) => message,
        FeedEvent::Started { cursor, oldest } => {
            encode(Event::Started(v1::Started { cursor: text(cursor), oldest: text(oldest) }))
        }
        FeedEvent::Heartbeat { cursor } => {
            encode(Event::Heartbeat(v1::Heartbeat { cursor: text(cursor) }))
        }
    }
}

fn entry(entry: &Entry) -> Option<Encoded<v1::WatchCompletionsResponse>> {
    let cursor = &entry.cursor;
    match &entry.event {
        domain::Event::Completion(it) => {
            Some(encode(Event::Completion(wire::completion(cursor, it))))
        }
        domain::Event::Reset(it) => Some(encode(Event::Reset(wire::reset(cursor, it)))),
        domain::Event::Erased => None,
    }
}

fn encode(event: Event) -> Encoded<v1::WatchCompletionsResponse> {
    Encoded::from(&v1::WatchCompletionsResponse { event: Some(event) })
}

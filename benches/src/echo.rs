//! The baseline: tonic alone. The same service with the same messages, but nothing behind it.

use std::pin::Pin;

use accolade::proto::v1::{
    self,
    achievement_storage_service_server::{
        AchievementStorageService, AchievementStorageServiceServer,
    },
    completion_service_server::{CompletionService, CompletionServiceServer},
    stream_set_achievement_storage_response::Outcome,
    watch_completions_response::Event,
};
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming, async_trait, transport::server::TcpIncoming};

use crate::{
    load::Result,
    records::{self, EXTRA, NODES},
};

/// Serves until the process is killed; prints its address first.
pub async fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("echo listens on http://{}", listener.local_addr()?);
    tonic::transport::Server::builder()
        .add_service(AchievementStorageServiceServer::new(Echo))
        .add_service(CompletionServiceServer::new(Echo))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await?;
    Ok(())
}

struct Echo;

fn answer(request: v1::SetAchievementStorageRequest) -> v1::SetAchievementStorageResponse {
    let version = request.expected_version.unwrap_or_default();
    let extra = request.extra.unwrap_or_default();
    v1::SetAchievementStorageResponse {
        code: 0,
        message: "正常返回".to_owned(),
        details: String::new(),
        entity: Some(v1::RecordState {
            completed_at: 0,
            extra: extra.clone(),
            progress: version,
            version,
        }),
        updated: Some(record(request.node_id, version + 1, extra)),
        changed: true,
        newly_completed: false,
        replayed: false,
        cursor: String::new(),
    }
}

fn record(achievement_id: String, version: i64, extra: String) -> v1::Record {
    let max_progress = 1 << 50;
    v1::Record { achievement_id, completed_at: 0, extra, max_progress, progress: version, version }
}

#[async_trait]
impl AchievementStorageService for Echo {
    async fn get_achievement_storage(
        &self,
        _: Request<v1::GetAchievementStorageRequest>,
    ) -> std::result::Result<Response<v1::GetAchievementStorageResponse>, Status> {
        let nodes = 0..u32::try_from(NODES).expect("few nodes");
        Ok(Response::new(v1::GetAchievementStorageResponse {
            code: 0,
            message: "正常返回".to_owned(),
            details: String::new(),
            entity: nodes.map(|i| record(records::node(i), 1, EXTRA.to_owned())).collect(),
        }))
    }

    async fn set_achievement_storage(
        &self,
        request: Request<v1::SetAchievementStorageRequest>,
    ) -> std::result::Result<Response<v1::SetAchievementStorageResponse>, Status> {
        Ok(Response::new(answer(request.into_inner())))
    }

    type StreamSetAchievementStorageStream = Pin<
        Box<
            dyn Stream<Item = std::result::Result<v1::StreamSetAchievementStorageResponse, Status>>
                + Send,
        >,
    >;

    async fn stream_set_achievement_storage(
        &self,
        request: Request<Streaming<v1::StreamSetAchievementStorageRequest>>,
    ) -> std::result::Result<Response<Self::StreamSetAchievementStorageStream>, Status> {
        let answers = request.into_inner().map(|item| {
            let v1::StreamSetAchievementStorageRequest { tag, set } = item?;
            let outcome = Some(Outcome::Response(answer(set.unwrap_or_default())));
            Ok(v1::StreamSetAchievementStorageResponse { tag, outcome })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn batch_set_achievement_storage(
        &self,
        _: Request<v1::BatchSetAchievementStorageRequest>,
    ) -> std::result::Result<Response<v1::BatchSetAchievementStorageResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn batch_get_achievement_storage(
        &self,
        _: Request<v1::BatchGetAchievementStorageRequest>,
    ) -> std::result::Result<Response<v1::BatchGetAchievementStorageResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn sync_achievement_storage(
        &self,
        _: Request<v1::SyncAchievementStorageRequest>,
    ) -> std::result::Result<Response<v1::SyncAchievementStorageResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}

/// A completion like those of the real service.
fn completion() -> v1::WatchCompletionsResponse {
    let id = || "finisher-0123456789abcdef".to_owned();
    let event = Event::Completion(v1::Completion {
        cursor: "AQAAAAAAAAABAAAAAA".to_owned(),
        title: records::TITLE.to_owned(),
        player_id: id(),
        achievement_id: records::node(0),
        root_id: records::node(0),
        progress: 1 << 50,
        max_progress: 1 << 50,
        completed_at: 1_800_000_000,
        version: 1,
        ..v1::Completion::default()
    });
    v1::WatchCompletionsResponse { event: Some(event) }
}

#[async_trait]
impl CompletionService for Echo {
    type WatchCompletionsStream = Pin<
        Box<dyn Stream<Item = std::result::Result<v1::WatchCompletionsResponse, Status>> + Send>,
    >;

    async fn watch_completions(
        &self,
        _: Request<v1::WatchCompletionsRequest>,
    ) -> std::result::Result<Response<Self::WatchCompletionsStream>, Status> {
        let message = completion();
        let endless = tokio_stream::iter(std::iter::repeat_with(move || Ok(message.clone())));
        Ok(Response::new(Box::pin(endless)))
    }

    async fn list_completions(
        &self,
        _: Request<v1::ListCompletionsRequest>,
    ) -> std::result::Result<Response<v1::ListCompletionsResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    type ConsumeCompletionsStream =
        tokio_stream::Empty<std::result::Result<v1::ConsumeCompletionsResponse, Status>>;

    async fn consume_completions(
        &self,
        _: Request<Streaming<v1::ConsumeCompletionsRequest>>,
    ) -> std::result::Result<Response<Self::ConsumeCompletionsStream>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn list_subscriptions(
        &self,
        _: Request<v1::ListSubscriptionsRequest>,
    ) -> std::result::Result<Response<v1::ListSubscriptionsResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn delete_subscription(
        &self,
        _: Request<v1::DeleteSubscriptionRequest>,
    ) -> std::result::Result<Response<v1::DeleteSubscriptionResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}

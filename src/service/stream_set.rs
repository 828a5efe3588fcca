//! `StreamSetAchievementStorage`: many sets under way on one stream.

use async_stream::try_stream;
use futures_util::{
    FutureExt,
    future::{Fuse, FusedFuture},
    stream::FuturesUnordered,
};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{StorageApi, status};
use crate::{
    access::Caller,
    proto::v1::{
        StreamSetAchievementStorageRequest, StreamSetAchievementStorageResponse,
        stream_set_achievement_storage_response::Outcome,
    },
    store::StoreError,
};

/// Answers the sets of a stream, at most `limit` at a time; reads no further while so many are
/// under way. Sets reach the store in the order they came.
pub(super) fn stream_set(
    api: StorageApi,
    caller: Caller,
    mut requests: Streaming<StreamSetAchievementStorageRequest>,
    limit: usize,
    stop: CancellationToken,
) -> impl Stream<Item = Result<StreamSetAchievementStorageResponse, Status>> + Send {
    try_stream! {
        let stopped = stop.cancelled_owned();
        // A store that is poisoned may leave what is under way without an answer.
        let broken = api.poisoned();
        tokio::pin!(stopped, broken);
        let mut under_way = FuturesUnordered::new();
        // The set that waits for its place in the store.
        let taking = Fuse::terminated();
        tokio::pin!(taking);
        let mut end = None;
        loop {
            tokio::select! {
                biased;
                () = &mut stopped, if end.is_none() => {
                    end = Some(Err(status::draining()));
                    taking.set(Fuse::terminated());
                }
                () = &mut broken, if end.is_none() || !under_way.is_empty() => {
                    end = Some(Err(status::from_store(StoreError::Poisoned)));
                    break;
                }
                taken = &mut taking, if !taking.is_terminated() => under_way.push(taken),
                // Each set has its place in the store before the next is looked at.
                request = requests.next(),
                    if end.is_none() && taking.is_terminated() && under_way.len() < limit =>
                {
                    match request {
                        Some(Ok(request)) => taking.set(take(&api, &caller, request).fuse()),
                        Some(Err(status)) => end = Some(Err(status::from_stream(&status))),
                        None => end = Some(Ok(())),
                    }
                }
                Some(answer) = under_way.next(), if !under_way.is_empty() => yield answer,
                else => break,
            }
        }
        if let Some(end) = end {
            end?;
        }
    }
}

/// Gives a set its place; the future that comes back ends with its answer.
async fn take(
    api: &StorageApi,
    caller: &Caller,
    request: StreamSetAchievementStorageRequest,
) -> impl Future<Output = StreamSetAchievementStorageResponse> + use<> {
    let StreamSetAchievementStorageRequest { tag, set } = request;
    let taken = match set {
        Some(set) => api.set(caller, set).await,
        None => Err(status::missing("set")),
    };
    async move {
        let outcome = match taken {
            Ok(answered) => answered.await,
            Err(status) => Err(status),
        };
        let outcome = match outcome {
            Ok(response) => Outcome::Response(response),
            Err(status) => Outcome::Status(status::to_message(&status)),
        };
        StreamSetAchievementStorageResponse { tag, outcome: Some(outcome) }
    }
}

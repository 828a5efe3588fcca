//! `AchievementStorageService`.

use std::{collections::HashSet, pin::Pin, sync::Arc};

use prost::Message;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{
    BATCH_PLAYERS_MAX, FILTER_IDS_MAX,
    admit::{Doors, caller, cost},
    parse::{Asked, AskedChange, Fields},
    status,
    stream_set::stream_set,
    sync::sync,
    wire,
};
use crate::{
    access::{Caller, Cost, Scope},
    domain::{
        BATCH_UPDATES_MAX, Catalog, Cursor, Node, NodeId, NodeUpdate, Outcome, PlayerId, PlayerKey,
        PlayerUpdate, RequestId, SetUpdate, Verdict,
    },
    metrics::{METRICS, SetOutcome},
    proto::v1::{
        self, achievement_storage_service_server::AchievementStorageService, node_update,
        set_achievement_storage_request as set,
    },
    store::{Answered, Applied, Store, poisoned},
};

/// See the module.
#[derive(Clone)]
pub struct StorageApi {
    pub(super) store: Arc<dyn Store>,
    pub(super) doors: Doors,
    limits: StorageLimits,
}

/// What one request may ask for.
#[derive(Clone, Copy, Debug)]
pub struct StorageLimits {
    /// Longest extra.
    pub extra_bytes: usize,
    /// Largest answer.
    pub response_bytes: usize,
    /// Most sets of one stream under way.
    pub stream_sets: usize,
}

/// Updates that were parsed but not yet looked up in the catalogue.
struct Parsed {
    key: PlayerKey,
    request_id: Option<RequestId>,
    updates: Vec<(NodeId, SetUpdate)>,
}

// === impl StorageApi ===

impl StorageApi {
    /// Answers from this store, within these limits.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, doors: Doors, limits: StorageLimits) -> Self {
        Self { store, doors, limits }
    }

    /// Gives updates their place in the store; the nodes are theirs, in order.
    async fn submit(
        &self,
        caller: &Caller,
        parsed: Parsed,
        cost: Cost,
    ) -> Result<(Vec<Arc<Node>>, Answered), Status> {
        let Parsed { key, request_id, updates } = parsed;
        let catalog = self.doors.open(caller, &key.title, Scope::Write, cost)?.catalog;
        let updates: Result<Vec<_>, _> = updates
            .into_iter()
            .map(|(id, update)| match catalog.node(&id) {
                Some(node) => Ok(NodeUpdate { node: node.clone(), update }),
                None => Err(status::node_not_found(&key.title, &id)),
            })
            .collect();
        let update = PlayerUpdate { key, request_id, updates: updates?, happened_at: None };
        let nodes = update.updates.iter().map(|item| item.node.clone()).collect();
        let answered = self.store.submit(update).await;
        Ok((nodes, answered.map_err(status::from_store)?))
    }

    /// One set, on its own or of a stream: it has its place in the store when this returns, and the
    /// future that it gives ends with the answer.
    pub(super) async fn set(
        &self,
        caller: &Caller,
        request: v1::SetAchievementStorageRequest,
    ) -> Result<
        impl Future<Output = Result<v1::SetAchievementStorageResponse, Status>> + use<>,
        Status,
    > {
        let (parsed, cost) = (self.parse_set(&request)?, cost(&request, 1));
        drop(request);
        let (nodes, answered) = self.submit(caller, parsed, cost).await?;
        Ok(async move {
            let applied = answered.await;
            let applied = applied.map_err(|error| status::from_apply(error, |_| String::new()))?;
            let node = nodes.first().expect("one update has one node");
            Ok(set_response(node, applied))
        })
    }

    /// Ends once the store takes no more writes.
    pub(super) fn poisoned(&self) -> impl Future<Output = ()> + Send + use<> {
        poisoned(self.store.health())
    }

    /// The records of a player that the catalogue has nodes for.
    async fn entity(
        &self,
        catalog: &Catalog,
        key: &PlayerKey,
        only: &HashSet<NodeId>,
    ) -> Result<Vec<v1::Record>, Status> {
        let records = self.store.records(key).await.map_err(status::from_store)?;
        let wanted = records.iter().filter(|(id, _)| only.is_empty() || only.contains(id));
        let known = wanted.filter_map(|(id, state)| {
            let node = catalog.node(id)?;
            Some(wire::record(id, state, node.definition().max_progress()))
        });
        Ok(known.collect())
    }

    fn check_size(&self, response: &impl Message, remedy: &str) -> Result<(), Status> {
        let bytes = response.encoded_len();
        match bytes > self.limits.response_bytes {
            true => Err(status::response_too_large(bytes, self.limits.response_bytes, remedy)),
            false => Ok(()),
        }
    }

    fn parse_set(&self, request: &v1::SetAchievementStorageRequest) -> Result<Parsed, Status> {
        let mut fields = Fields::default();
        let title = fields.title(&request.title);
        let player = fields.player(&request.player_id);
        let node = fields.node("node_id", &request.node_id);
        let request_id = fields.request_id(&request.request_id);
        let asked = Asked {
            change: request.change.map(|change| match change {
                set::Change::Delta(value) => AskedChange::Delta(value),
                set::Change::AtLeast(value) => AskedChange::AtLeast(value),
                set::Change::Finish(value) => AskedChange::Finish(value),
            }),
            extra: request.extra.as_deref(),
            expected_version: request.expected_version,
        };
        let update = fields.update("", &asked, self.limits.extra_bytes);
        let parsed = title.zip(player).zip(node.zip(update));
        fields.finish(parsed.map(|((title, player), update)| Parsed {
            key: PlayerKey { title, player },
            request_id,
            updates: vec![update],
        }))
    }

    fn parse_batch(
        &self,
        request: &v1::BatchSetAchievementStorageRequest,
    ) -> Result<Parsed, Status> {
        let mut fields = Fields::default();
        let title = fields.title(&request.title);
        let player = fields.player(&request.player_id);
        let request_id = fields.request_id(&request.request_id);
        let count = request.updates.len();
        if count == 0 || count > BATCH_UPDATES_MAX {
            let problem = format!("has {count} updates; pass 1 to {BATCH_UPDATES_MAX}");
            fields.wrong("updates", problem);
        }
        let mut updates = Vec::new();
        let mut seen = HashSet::new();
        for (index, item) in request.updates.iter().take(BATCH_UPDATES_MAX).enumerate() {
            let prefix = update_prefix(index);
            let node = fields.node(&format!("{prefix}node_id"), &item.node_id);
            if !seen.insert(&item.node_id) {
                let problem = "is there twice; ask one update of each node";
                fields.wrong(format!("{prefix}node_id"), problem);
            }
            let asked = Asked {
                change: item.change.map(|change| match change {
                    node_update::Change::Delta(value) => AskedChange::Delta(value),
                    node_update::Change::AtLeast(value) => AskedChange::AtLeast(value),
                    node_update::Change::Finish(value) => AskedChange::Finish(value),
                }),
                extra: item.extra.as_deref(),
                expected_version: item.expected_version,
            };
            updates.extend(node.zip(fields.update(&prefix, &asked, self.limits.extra_bytes)));
        }
        fields.finish(title.zip(player).map(|(title, player)| Parsed {
            key: PlayerKey { title, player },
            request_id,
            updates,
        }))
    }
}

#[async_trait]
impl AchievementStorageService for StorageApi {
    async fn get_achievement_storage(
        &self,
        request: Request<v1::GetAchievementStorageRequest>,
    ) -> Result<Response<v1::GetAchievementStorageResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let title = fields.title(&request.title);
        let player = fields.player(&request.player_id);
        let ids = &request.achievement_ids;
        let only = fields.ids("achievement_ids", ids, FILTER_IDS_MAX, NodeId::parse);
        let (title, player) = fields.finish(title.zip(player))?;

        let catalog = self.doors.open(&caller, &title, Scope::Read, cost(&request, 1))?.catalog;
        let entity = self.entity(&catalog, &PlayerKey { title, player }, &only).await?;
        let code = wire::CODE_OK;
        let response = v1::GetAchievementStorageResponse {
            code,
            message: wire::message(code),
            details: String::new(),
            entity,
        };
        self.check_size(&response, "ask for fewer achievement_ids at a time")?;
        Ok(Response::new(response))
    }

    async fn set_achievement_storage(
        &self,
        request: Request<v1::SetAchievementStorageRequest>,
    ) -> Result<Response<v1::SetAchievementStorageResponse>, Status> {
        let caller = caller(&request)?;
        self.set(&caller, request.into_inner()).await?.await.map(Response::new)
    }

    type StreamSetAchievementStorageStream =
        Pin<Box<dyn Stream<Item = Result<v1::StreamSetAchievementStorageResponse, Status>> + Send>>;

    async fn stream_set_achievement_storage(
        &self,
        request: Request<Streaming<v1::StreamSetAchievementStorageRequest>>,
    ) -> Result<Response<Self::StreamSetAchievementStorageStream>, Status> {
        let (caller, api, limit) = (caller(&request)?, self.clone(), self.limits.stream_sets);
        let pass = self.doors.stream(&caller, None)?;
        let answers = stream_set(api, caller, request.into_inner(), limit, pass.stop());
        Ok(Response::new(Box::pin(pass.hold(answers))))
    }

    async fn batch_set_achievement_storage(
        &self,
        request: Request<v1::BatchSetAchievementStorageRequest>,
    ) -> Result<Response<v1::BatchSetAchievementStorageResponse>, Status> {
        let caller = caller(&request)?;
        let parsed = self.parse_batch(request.get_ref())?;
        let cost = cost(request.get_ref(), parsed.updates.len());
        let (nodes, answered) = self.submit(&caller, parsed, cost).await?;
        let applied = answered.await;
        let applied = applied.map_err(|error| status::from_apply(error, update_prefix))?;
        applied.outcomes.iter().for_each(|(outcome, _)| count(outcome, applied.replayed));
        let pairs = nodes.iter().zip(applied.outcomes);
        let results: Vec<_> =
            pairs.map(|(node, (outcome, cursor))| node_result(node, &outcome, cursor)).collect();
        let code = results.iter().map(|result| result.code).max().unwrap_or(wire::CODE_OK);
        Ok(Response::new(v1::BatchSetAchievementStorageResponse {
            code,
            message: wire::message(code),
            details: String::new(),
            results,
            replayed: applied.replayed,
        }))
    }

    async fn sync_achievement_storage(
        &self,
        request: Request<v1::SyncAchievementStorageRequest>,
    ) -> Result<Response<v1::SyncAchievementStorageResponse>, Status> {
        let caller = caller(&request)?;
        sync(self, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn batch_get_achievement_storage(
        &self,
        request: Request<v1::BatchGetAchievementStorageRequest>,
    ) -> Result<Response<v1::BatchGetAchievementStorageResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let title = fields.title(&request.title);
        let ids = &request.player_ids;
        if ids.is_empty() {
            fields.wrong("player_ids", format!("is empty; pass 1 to {BATCH_PLAYERS_MAX} players"));
        }
        fields.ids("player_ids", ids, BATCH_PLAYERS_MAX, PlayerId::parse);
        let title = fields.finish(title)?;

        let cost = cost(&request, ids.len());
        let catalog = self.doors.open(&caller, &title, Scope::Read, cost)?.catalog;
        let code = wire::CODE_OK;
        let mut response = v1::BatchGetAchievementStorageResponse {
            code,
            message: wire::message(code),
            details: String::new(),
            players: Vec::with_capacity(ids.len()),
        };
        for id in ids.iter().filter_map(|id| PlayerId::parse(id).ok()) {
            let key = PlayerKey { title: title.clone(), player: id };
            let entity = self.entity(&catalog, &key, &HashSet::new()).await?;
            let player_id = key.player.as_str().to_owned();
            response.players.push(v1::PlayerRecords { player_id, entity });
            // Checked after each player, so that no more is held than one answer and one player.
            self.check_size(&response, "ask for fewer player_ids at a time")?;
        }
        Ok(Response::new(response))
    }
}

/// The path to the fields of one update of a batch.
pub(super) fn update_prefix(index: usize) -> String {
    format!("updates[{index}].")
}

/// What is answered for an update of one node.
pub(super) fn set_response(node: &Node, applied: Applied) -> v1::SetAchievementStorageResponse {
    let Applied { replayed, outcomes } = applied;
    let (outcome, cursor) = outcomes.into_iter().next().expect("one update has one outcome");
    count(&outcome, replayed);
    let result = node_result(node, &outcome, cursor);
    v1::SetAchievementStorageResponse {
        code: result.code,
        message: wire::message(result.code),
        details: String::new(),
        entity: result.entity,
        updated: result.updated,
        changed: result.changed,
        newly_completed: result.newly_completed,
        replayed,
        cursor: result.cursor,
    }
}

fn count(outcome: &Outcome, is_replayed: bool) {
    METRICS.set(match outcome.verdict {
        _ if is_replayed => SetOutcome::Replayed,
        Verdict::Stored => SetOutcome::Stored,
        Verdict::Unchanged => SetOutcome::Unchanged,
        Verdict::Conflict => SetOutcome::Conflict,
    });
}

fn node_result(node: &Node, outcome: &Outcome, cursor: Option<Cursor>) -> v1::NodeResult {
    let definition = node.definition();
    let node = definition.node_id();
    v1::NodeResult {
        achievement_id: node.as_str().to_owned(),
        code: wire::code(outcome),
        entity: Some(wire::record_state(&outcome.before)),
        updated: Some(wire::record(node, &outcome.after, definition.max_progress())),
        changed: outcome.before.version != outcome.after.version,
        newly_completed: outcome.newly_completed,
        cursor: cursor.map(|cursor| cursor.as_str().to_owned()).unwrap_or_default(),
    }
}

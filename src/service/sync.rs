//! `SyncAchievementStorage`: updates of the past, each for itself.

use tonic::Status;

use super::{
    StorageApi,
    admit::cost,
    parse::{AskedChange, Fields},
    status,
    storage::{set_response, update_prefix},
};
use crate::{
    access::{Caller, Scope},
    domain::{
        EpochSeconds, NodeId, NodeUpdate, PlayerId, PlayerKey, PlayerUpdate, RequestId, SetUpdate,
        Title,
    },
    proto::v1::{
        LateOutcome, LateUpdate, SetAchievementStorageResponse, SyncAchievementStorageRequest,
        SyncAchievementStorageResponse, late_outcome::Outcome, late_update::Change,
    },
};

/// Most updates of one request.
const LATE_UPDATES_MAX: usize = 256;

/// Applies late updates in their order; each has its place in the store before the next.
pub(super) async fn sync(
    api: &StorageApi,
    caller: &Caller,
    request: SyncAchievementStorageRequest,
) -> Result<SyncAchievementStorageResponse, Status> {
    let (title, updates) = parse(&request)?;
    let cost = cost(&request, updates.len());
    let catalog = api.doors.open(caller, &title, Scope::Write, cost)?.catalog;
    let mut under_way = Vec::with_capacity(updates.len());
    for Late { player, node, set, id, happened_at } in updates {
        let answered = match catalog.node(&node) {
            Some(node) => {
                let updates = vec![NodeUpdate { node: node.clone(), update: set }];
                let (key, request_id) =
                    (PlayerKey { title: title.clone(), player }, Some(id.clone()));
                let happened_at = Some(happened_at);
                let update = PlayerUpdate { key, request_id, updates, happened_at };
                let answered = api.store.submit(update).await.map_err(status::from_store)?;
                Ok((node.clone(), answered))
            }
            None => Err(status::node_not_found(&title, &node)),
        };
        under_way.push((id, answered));
    }
    let mut outcomes = Vec::with_capacity(under_way.len());
    for (id, answered) in under_way {
        let outcome = match answered {
            Ok((node, answered)) => {
                let applied = answered.await;
                let applied = applied.map_err(|error| status::from_apply(error, |_| String::new()));
                applied.map(|applied| without_extra(set_response(&node, applied)))
            }
            Err(status) => Err(status),
        };
        outcomes.push(LateOutcome {
            request_id: id.as_str().to_owned(),
            outcome: Some(match outcome {
                Ok(response) => Outcome::Response(response),
                Err(status) => Outcome::Status(status::to_message(&status)),
            }),
        });
    }
    Ok(SyncAchievementStorageResponse { outcomes })
}

/// Late updates change no extra; with them, an answer could grow larger than a message may be.
fn without_extra(mut response: SetAchievementStorageResponse) -> SetAchievementStorageResponse {
    response.entity.iter_mut().for_each(|record| record.extra.clear());
    response.updated.iter_mut().for_each(|record| record.extra.clear());
    response
}

/// A late update, parsed.
struct Late {
    player: PlayerId,
    node: NodeId,
    set: SetUpdate,
    id: RequestId,
    happened_at: EpochSeconds,
}

fn parse(request: &SyncAchievementStorageRequest) -> Result<(Title, Vec<Late>), Status> {
    let mut fields = Fields::default();
    let title = fields.title(&request.title);
    let count = request.updates.len();
    if count == 0 || count > LATE_UPDATES_MAX {
        fields.wrong("updates", format!("has {count} updates; pass 1 to {LATE_UPDATES_MAX}"));
    }
    let updates = request.updates.iter().take(LATE_UPDATES_MAX).enumerate();
    let updates: Vec<_> = updates.filter_map(|(i, it)| parse_update(&mut fields, i, it)).collect();
    fields.finish(title.map(|title| (title, updates)))
}

fn parse_update(fields: &mut Fields, index: usize, update: &LateUpdate) -> Option<Late> {
    let prefix = update_prefix(index);
    let player = fields.player_at(&format!("{prefix}player_id"), &update.player_id);
    let node = fields.node(&format!("{prefix}node_id"), &update.node_id);
    let id = fields.request_id_at(&format!("{prefix}request_id"), &update.request_id);
    if update.request_id.is_empty() {
        let problem = "is missing; pass the same one whenever this update is sent";
        fields.wrong(format!("{prefix}request_id"), problem);
    }
    let happened_at = u64::try_from(update.happened_at).ok().filter(|at| *at > 0);
    if happened_at.is_none() {
        let problem = "is missing; pass seconds since the Unix epoch, 1 or more";
        fields.wrong(format!("{prefix}happened_at"), problem);
    }
    let change = update.change.map(|change| match change {
        Change::Delta(value) => AskedChange::Delta(value),
        Change::AtLeast(value) => AskedChange::AtLeast(value),
        Change::Finish(value) => AskedChange::Finish(value),
    });
    if change.is_none() {
        fields.wrong(format!("{prefix}change"), "is missing: pass delta, at_least or finish");
    }
    let change = fields.change(&prefix, change?);
    let set = SetUpdate::new(change, None, None)?;
    let happened_at = EpochSeconds::new(happened_at?);
    Some(Late { player: player?, node: node?, set, id: id?, happened_at })
}

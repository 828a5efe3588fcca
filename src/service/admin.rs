//! `AdminService`.

use std::{pin::Pin, sync::Arc};

use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{
    admit::{Doors, caller, cost, enter},
    export::{Place, export},
    import::import,
    parse::Fields,
    status, wire,
};
use crate::{
    access::Scope,
    domain::{PlayerKey, ResetUpdate},
    proto::v1::{self, admin_service_server::AdminService},
    store::{Erased, ResetDone, Store},
};

/// Steps after which an erasure is told as it is: a player who writes on has records again.
const ERASE_STEPS_MAX: usize = 10_000;

/// See the module.
#[derive(Clone)]
pub struct AdminApi {
    store: Arc<dyn Store>,
    doors: Doors,
}

// === impl AdminApi ===

impl AdminApi {
    /// Does what operators ask, to this store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, doors: Doors) -> Self {
        Self { store, doors }
    }
}

#[async_trait]
impl AdminService for AdminApi {
    async fn reset_achievement(
        &self,
        request: Request<v1::ResetAchievementRequest>,
    ) -> Result<Response<v1::ResetAchievementResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let cost = cost(&request, 1);
        let mut fields = Fields::default();
        let title = fields.title(&request.title);
        let player = fields.player(&request.player_id);
        let node = fields.node("node_id", &request.node_id);
        let reason = fields.reason(&request.reason);
        let expected = fields.expected_version(request.expected_version);
        let request_id = fields.request_id(&request.request_id);
        let parsed = title.zip(player).zip(node.zip(reason));
        let ((title, player), (node, reason)) = fields.finish(parsed)?;
        self.doors.open(&caller, &title, Scope::Admin, cost)?;

        let key = PlayerKey { title, player };
        let update = ResetUpdate { key, node, reason, expected, request_id };
        let done = self.store.reset(update).await.map_err(status::from_reset)?;
        let ResetDone { replayed, outcome, cursor } = done;
        let code = wire::code(&outcome);
        Ok(Response::new(v1::ResetAchievementResponse {
            code,
            message: wire::message(code),
            details: String::new(),
            changed: outcome.before.version != outcome.after.version,
            entity: Some(wire::record_state(&outcome.before)),
            updated: Some(wire::record_state(&outcome.after)),
            replayed,
            cursor: cursor.map(|cursor| cursor.as_str().to_owned()).unwrap_or_default(),
        }))
    }

    async fn erase_player(
        &self,
        request: Request<v1::ErasePlayerRequest>,
    ) -> Result<Response<v1::ErasePlayerResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let cost = cost(&request, 1);
        let mut fields = Fields::default();
        let title = fields.title(&request.title);
        let player = fields.player(&request.player_id);
        let (title, player) = fields.finish(title.zip(player))?;
        self.doors.open(&caller, &title, Scope::Admin, cost)?;

        let key = PlayerKey { title, player };
        let mut response = v1::ErasePlayerResponse::default();
        for _ in 0..ERASE_STEPS_MAX {
            let Erased { records, events } =
                self.store.erase_player(&key).await.map_err(status::from_store)?;
            response.records += wire::int(records);
            response.events += wire::int(events);
            if records == 0 {
                break;
            }
        }
        Ok(Response::new(response))
    }

    type ExportRecordsStream =
        Pin<Box<dyn Stream<Item = Result<v1::ExportRecordsResponse, Status>> + Send>>;

    async fn export_records(
        &self,
        request: Request<v1::ExportRecordsRequest>,
    ) -> Result<Response<Self::ExportRecordsStream>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let title = fields.title(&request.title);
        let after = match request.after.as_str() {
            "" => None,
            token => {
                let place = Place::parse(token);
                if place.is_none() {
                    fields.wrong("after", "is no token of a checkpoint; pass one as it was given");
                }
                place
            }
        };
        let title = fields.finish(title)?;
        let catalog = self.doors.open(&caller, &title, Scope::Admin, cost(&request, 1))?;
        if after.as_ref().is_some_and(|place| !place.is_of(&*self.store, &title)) {
            let mut fields = Fields::default();
            fields.wrong("after", "is of another title or another server; begin anew");
            return fields.finish(None);
        }
        let pass = self.doors.stream(&caller, Some(&title))?;
        let items = export(self.store.clone(), catalog, after, pass.stop());
        Ok(Response::new(Box::pin(pass.hold(items))))
    }

    type ImportRecordsStream =
        Pin<Box<dyn Stream<Item = Result<v1::ImportRecordsResponse, Status>> + Send>>;

    async fn import_records(
        &self,
        request: Request<Streaming<v1::ImportRecordsRequest>>,
    ) -> Result<Response<Self::ImportRecordsStream>, Status> {
        let caller = caller(&request)?;
        let mut requests = request.into_inner();
        let first = requests.message().await.map_err(|status| status::from_stream(&status))?;
        let first = first.ok_or_else(|| status::missing("item"))?;
        let mut fields = Fields::default();
        let title = fields.title(&first.title);
        let title = fields.finish(title)?;
        enter(&caller, &title, Scope::Admin, cost(&first, 1))?;
        let pass = self.doors.stream(&caller, None)?;
        let (store, catalogs) = (self.store.clone(), self.doors.catalogs.clone());
        let told = import(store, catalogs, title, first, requests, pass.stop());
        Ok(Response::new(Box::pin(pass.hold(told))))
    }
}

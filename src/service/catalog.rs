//! `CatalogService`.

use std::{collections::BTreeSet, sync::Arc};

use tonic::{Request, Response, Status, async_trait};

use super::{
    admit::{Doors, caller, cost, enter},
    parse::Fields,
    status, wire,
};
use crate::{
    access::Scope,
    domain::{Catalog, NodeId, Title},
    proto::v1::{self, catalog_service_server::CatalogService},
    store::{Rarity, Store},
};

/// See the module.
#[derive(Clone)]
pub struct CatalogApi {
    store: Arc<dyn Store>,
    doors: Doors,
    /// Titles whose catalogue is read from a file, which nobody else may replace.
    from_files: Arc<BTreeSet<Title>>,
}

// === impl CatalogApi ===

impl CatalogApi {
    /// Answers from these catalogues.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, doors: Doors, from_files: BTreeSet<Title>) -> Self {
        Self { store, doors, from_files: Arc::new(from_files) }
    }
}

#[async_trait]
impl CatalogService for CatalogApi {
    async fn get_catalog(
        &self,
        request: Request<v1::GetCatalogRequest>,
    ) -> Result<Response<v1::GetCatalogResponse>, Status> {
        let caller = caller(&request)?;
        let mut fields = Fields::default();
        let title = fields.title(&request.get_ref().title);
        let title = fields.finish(title)?;
        let stored = self.doors.open(&caller, &title, Scope::Read, cost(request.get_ref(), 1))?;
        let nodes = stored.catalog.nodes();
        Ok(Response::new(v1::GetCatalogResponse {
            title: title.as_str().to_owned(),
            revision: wire::int(stored.revision),
            definitions: nodes.map(|node| wire::definition(node.definition())).collect(),
        }))
    }

    async fn apply_catalog(
        &self,
        request: Request<v1::ApplyCatalogRequest>,
    ) -> Result<Response<v1::ApplyCatalogResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let cost = cost(&request, 1);
        let mut fields = Fields::default();
        let title = fields.title(&request.title);
        let expected = request.expected_revision.map(u64::try_from);
        let expected = expected.transpose().unwrap_or_else(|_| {
            fields.wrong("expected_revision", "is negative; pass 0 or more");
            None
        });
        let title = fields.finish(title)?;
        enter(&caller, &title, Scope::Catalog, cost)?;
        if self.from_files.contains(&title) && !request.dry_run {
            return Err(status::managed_by_file(&title));
        }
        let drafts = request.definitions.into_iter().map(wire::draft).collect();
        let catalog = Catalog::parse(drafts).map_err(status::invalid_catalog)?;

        let applied = self.doors.catalogs.apply(&title, catalog, expected, request.dry_run).await;
        let applied = applied.map_err(status::from_catalog)?;
        let noticed = &applied.diff.noticed;
        let players_touched = match request.dry_run && !noticed.is_empty() {
            true => self.store.count_players(&title, noticed).await.map_err(status::from_store)?,
            false => 0,
        };
        let texts = |ids: Vec<NodeId>| ids.iter().map(|id| id.as_str().to_owned()).collect();
        Ok(Response::new(v1::ApplyCatalogResponse {
            revision: wire::int(applied.revision),
            added_node_ids: texts(applied.diff.added),
            changed_node_ids: texts(applied.diff.changed),
            removed_node_ids: texts(applied.diff.removed),
            players_touched: wire::int(players_touched),
        }))
    }

    async fn get_rarity(
        &self,
        request: Request<v1::GetRarityRequest>,
    ) -> Result<Response<v1::GetRarityResponse>, Status> {
        let caller = caller(&request)?;
        let mut fields = Fields::default();
        let title = fields.title(&request.get_ref().title);
        let title = fields.finish(title)?;
        let stored = self.doors.open(&caller, &title, Scope::Read, cost(request.get_ref(), 1))?;
        let Rarity { players, completed } =
            self.store.rarity(&title).await.map_err(status::from_store)?;
        let nodes = stored.catalog.nodes().map(|node| {
            let id = node.definition().node_id();
            let completed = completed.get(id).copied().unwrap_or(0);
            v1::NodeRarity {
                achievement_id: id.as_str().to_owned(),
                completed_players: wire::int(completed),
                share: share(completed, players),
            }
        });
        let nodes = nodes.collect();
        Ok(Response::new(v1::GetRarityResponse { players: wire::int(players), nodes }))
    }

    async fn list_titles(
        &self,
        request: Request<v1::ListTitlesRequest>,
    ) -> Result<Response<v1::ListTitlesResponse>, Status> {
        let caller = caller(&request)?;
        let charged = caller.charge(cost(request.get_ref(), 1));
        charged.map_err(|error| status::from_access(&error))?;
        let all = self.doors.catalogs.all();
        let seen = all.values().filter(|stored| caller.sees(&stored.title));
        let titles = seen.map(|stored| v1::TitleSummary {
            title: stored.title.as_str().to_owned(),
            revision: wire::int(stored.revision),
            node_count: i32::try_from(stored.catalog.nodes().len()).unwrap_or(i32::MAX),
        });
        let (titles, complete) = (titles.collect(), caller.sees_all());
        Ok(Response::new(v1::ListTitlesResponse { titles, complete }))
    }
}

#[allow(clippy::cast_precision_loss, reason = "a share; the counts stand beside it")]
fn share(part: u64, whole: u64) -> f64 {
    match whole {
        0 => 0.0,
        whole => part as f64 / whole as f64,
    }
}

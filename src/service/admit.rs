//! Letting callers in: every method asks here before it does anything for a title.

use std::sync::Arc;

use prost::Message;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Status};

use super::status;
use crate::{
    access::{Access, AccessError, Caller, Cost, Scope, StreamPermit},
    catalog::Catalogs,
    domain::Title,
    store::StoredCatalog,
};

/// What every method passes first. Cloning shares it.
#[derive(Clone)]
pub struct Doors {
    /// Who may do what.
    pub access: Arc<Access>,
    /// Which titles there are.
    pub catalogs: Catalogs,
    /// Cancelled when the server stops: streams end then.
    pub drain: CancellationToken,
}

/// A stream's place in the quotas, given back when dropped.
pub(super) struct StreamPass {
    revoked: Option<CancellationToken>,
    stop: DropGuard,
    _permits: Vec<StreamPermit>,
}

/// Who sent a request. The layer around all services puts it there; without it nobody gets in.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>();
    caller.cloned().ok_or_else(|| status::from_access(&AccessError::TokenMissing))
}

/// Lets in who may do such a thing to a title, whether or not there is one of that name.
pub(super) fn enter(
    caller: &Caller,
    title: &Title,
    scope: Scope,
    cost: Cost,
) -> Result<(), Status> {
    caller.authorize(title, scope, cost).map_err(|error| status::from_access(&error))
}

/// What a message costs that asks for so many things.
pub(super) fn cost(message: &impl Message, requests: usize) -> Cost {
    Cost { requests, bytes: message.encoded_len() }
}

// === impl Doors ===

impl Doors {
    /// The catalogue of a title, for a caller who may do such a thing to it. Whoever may not does
    /// not learn whether the title exists.
    pub(super) fn open(
        &self,
        caller: &Caller,
        title: &Title,
        scope: Scope,
        cost: Cost,
    ) -> Result<StoredCatalog, Status> {
        enter(caller, title, scope, cost)?;
        let stored = self.catalogs.get(title).ok_or_else(|| status::title_not_found(title))?;
        self.access.charge(title, cost).map_err(|error| status::from_access(&error))?;
        Ok(stored)
    }

    /// Takes a stream's place in the quotas of its caller and title.
    pub(super) fn stream(
        &self,
        caller: &Caller,
        title: Option<&Title>,
    ) -> Result<StreamPass, Status> {
        let permits = self.access.open_stream(caller, title);
        let permits = permits.map_err(|error| status::from_access(&error))?;
        let stop = self.drain.child_token();
        let revoked = caller.revoked().cloned();
        if let Some(revoked) = revoked.clone() {
            let stop = stop.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = revoked.cancelled() => stop.cancel(),
                    () = stop.cancelled() => {}
                }
            });
        }
        Ok(StreamPass { revoked, stop: stop.drop_guard(), _permits: permits })
    }
}

// === impl StreamPass ===

impl StreamPass {
    /// Cancelled when the server stops, or the caller's token is taken away.
    pub(super) fn stop(&self) -> CancellationToken {
        self.stop.token().clone()
    }

    fn is_revoked(&self) -> bool {
        self.revoked.as_ref().is_some_and(CancellationToken::is_cancelled)
    }

    /// A stream that keeps its place for as long as it lives. Where it ends because the caller's
    /// token was taken away, it says so.
    pub(super) fn hold<T>(
        self,
        stream: impl Stream<Item = Result<T, Status>>,
    ) -> impl Stream<Item = Result<T, Status>> {
        // The whole pass goes along, not only what is looked at.
        let pass = self;
        stream.map(move |item| match item {
            Err(_) if pass.is_revoked() => Err(status::from_access(&AccessError::Revoked)),
            item => item,
        })
    }
}

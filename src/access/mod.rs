//! Who may do what, and how much of it: tokens with scopes, and quotas of tokens and titles.

mod error;
mod quota;
mod tokens;

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwapOption;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

pub use self::{
    error::{AccessError, Whose},
    quota::{BYTES_PER_SECOND_MIN, Cost, Quota, REQUESTS_PER_SECOND_MIN, StreamPermit},
    tokens::{Digest, Scope, Titles, TokenError, Tokens, new_token},
};
use self::{quota::Meter, tokens::Grant};
use crate::domain::Title;

/// Decides about every caller. Shared by all services.
pub struct Access {
    /// `None` where everybody may do everything.
    tokens: ArcSwapOption<Tokens>,
    title_quota: Quota,
    /// Of titles that have a catalogue, which bounds their number.
    titles: RwLock<HashMap<Title, Arc<Meter>>>,
}

/// Somebody who has come in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller(Option<Arc<Grant>>);

// === impl Access ===

impl Access {
    /// Lets in who has one of these tokens, or everybody where there are none; each title has this
    /// quota.
    #[must_use]
    pub fn new(tokens: Option<Tokens>, title_quota: Quota) -> Self {
        let tokens = ArcSwapOption::from_pointee(tokens);
        Self { tokens, title_quota, titles: RwLock::default() }
    }

    /// Takes other tokens from now on. Who came in by one that is gone, or that has other rights
    /// now, is out; one that is as it was goes on with what it has open. One file at a time.
    pub fn replace(&self, tokens: Tokens) {
        let old = self.tokens.load_full().unwrap_or_default();
        let (tokens, gone) = tokens.following(&old);
        self.tokens.store(Some(Arc::new(tokens)));
        gone.iter().for_each(CancellationToken::cancel);
    }

    /// Finds out who calls, by the value of the request's `authorization`.
    ///
    /// # Errors
    ///
    /// [`AccessError::TokenMissing`] and [`AccessError::TokenUnknown`].
    pub fn authenticate(&self, authorization: Option<&[u8]>) -> Result<Caller, AccessError> {
        let Some(tokens) = &*self.tokens.load() else { return Ok(Caller(None)) };
        let authorization = authorization.ok_or(AccessError::TokenMissing)?;
        let token = bearer(authorization).ok_or(AccessError::TokenMissing)?;
        let grant = tokens.find(token).ok_or(AccessError::TokenUnknown)?;
        Ok(Caller(Some(grant)))
    }

    /// Takes a request's cost from a title's quota. To be asked only for titles that exist.
    ///
    /// # Errors
    ///
    /// [`AccessError::QuotaExceeded`], with the time after which it fits.
    pub fn charge(&self, title: &Title, cost: Cost) -> Result<(), AccessError> {
        match self.title_quota.is_unlimited() {
            true => Ok(()),
            false => self.meter(title).charge(cost, || Whose::Title(title.clone())),
        }
    }

    /// Takes a place for a stream from the quotas of its caller and its title. It is given back
    /// when the permits are dropped.
    ///
    /// # Errors
    ///
    /// [`AccessError::StreamsExhausted`].
    pub fn open_stream(
        &self,
        caller: &Caller,
        title: Option<&Title>,
    ) -> Result<Vec<StreamPermit>, AccessError> {
        let mut permits = Vec::new();
        if let Some(grant) = &caller.0 {
            permits.extend(grant.meter.open_stream(|| Whose::Token(grant.name.clone()))?);
        }
        if let Some(title) = title.filter(|_| !self.title_quota.is_unlimited()) {
            permits.extend(self.meter(title).open_stream(|| Whose::Title(title.clone()))?);
        }
        Ok(permits)
    }

    fn meter(&self, title: &Title) -> Arc<Meter> {
        if let Some(meter) = self.titles.read().get(title) {
            return meter.clone();
        }
        let mut titles = self.titles.write();
        titles
            .entry(title.clone())
            .or_insert_with(|| Arc::new(Meter::new(self.title_quota)))
            .clone()
    }
}

/// The token of `Bearer TOKEN`.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, token) = authorization.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then_some(token)
}

// === impl Caller ===

impl Caller {
    /// Whether this caller may do such a thing to a title; takes the cost from its quota.
    ///
    /// # Errors
    ///
    /// [`AccessError::Revoked`], [`AccessError::Forbidden`], [`AccessError::QuotaExceeded`].
    pub fn authorize(&self, title: &Title, scope: Scope, cost: Cost) -> Result<(), AccessError> {
        let Some(grant) = &self.0 else { return Ok(()) };
        if grant.revoked.is_cancelled() {
            return Err(AccessError::Revoked);
        }
        if !grant.allows(title, scope) {
            return Err(AccessError::Forbidden { title: title.clone(), scope });
        }
        self.charge(cost)
    }

    /// Counts what is not about one title against the caller's quota.
    ///
    /// # Errors
    ///
    /// [`AccessError::Revoked`], [`AccessError::QuotaExceeded`].
    pub fn charge(&self, cost: Cost) -> Result<(), AccessError> {
        let Some(grant) = &self.0 else { return Ok(()) };
        if grant.revoked.is_cancelled() {
            return Err(AccessError::Revoked);
        }
        grant.meter.charge(cost, || Whose::Token(grant.name.clone()))
    }

    /// Whether this caller may know that a title exists.
    #[must_use]
    pub fn sees(&self, title: &Title) -> bool {
        self.0.as_ref().is_none_or(|grant| grant.titles.contain(title))
    }

    /// Whether this caller may know of every title.
    #[must_use]
    pub fn sees_all(&self) -> bool {
        self.0.as_ref().is_none_or(|grant| grant.titles == Titles::All)
    }

    /// Cancelled when the caller's token is taken away; `None` where there are no tokens.
    #[must_use]
    pub fn revoked(&self) -> Option<&CancellationToken> {
        self.0.as_ref().map(|grant| &grant.revoked)
    }
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;

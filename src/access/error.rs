//! Why somebody may not do something.

use std::{fmt, time::Duration};

use thiserror::Error;

use super::Scope;
use crate::domain::Title;

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AccessError {
    /// No token was sent.
    #[error("send `authorization: Bearer TOKEN`, with a token of this server")]
    TokenMissing,
    /// The server does not know the token.
    #[error("this server does not know the token; ask its operator for one")]
    TokenUnknown,
    /// The token was taken away, or was given other rights, while something of it was open.
    #[error("the token was changed or taken away; come again, with one that works")]
    Revoked,
    /// The token does not allow this.
    #[error("the token does not allow {scope} for title {title:?}; ask the operator")]
    Forbidden {
        /// The title.
        title: Title,
        /// What it does not allow.
        scope: Scope,
    },
    /// More than a quota holds, for now.
    #[error("{whose} has used up its quota of {what} per second; wait, then ask again")]
    QuotaExceeded {
        /// Whose quota.
        whose: Whose,
        /// What is counted.
        what: &'static str,
        /// When it fits.
        retry_after: Duration,
    },
    /// As many streams as the quota holds are open.
    #[error("{whose} has {max} streams open, which is all its quota holds; close one first")]
    StreamsExhausted {
        /// Whose quota.
        whose: Whose,
        /// How many it holds.
        max: u32,
    },
}

/// Whose quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Of a token, by its name.
    Token(String),
    /// Of a title.
    Title(Title),
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(name) => write!(f, "token {name:?}"),
            Self::Title(title) => write!(f, "title {title:?}"),
        }
    }
}

//! Bearer tokens. A token is 32 random bytes that only its owner has; the server's file holds its
//! SHA-256 digest, which is of no use to whoever reads it. (A token is too random to be guessed, so
//! it needs no slow digest, as a password would.)

use std::{collections::BTreeSet, fmt, num::NonZeroU32, str::FromStr, sync::Arc};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::quota::{BYTES_PER_SECOND_MIN, Meter, Quota, REQUESTS_PER_SECOND_MIN};
use crate::domain::Title;

/// Longest name of a token.
const NAME_BYTES_MAX: usize = 64;

/// Most tokens of a file: every request is compared with all of them.
const TOKENS_MAX: usize = 1000;

/// What a token may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Read records, lists of completions, and catalogues.
    Read,
    /// Set records.
    Write,
    /// Watch completions.
    Watch,
    /// Replace catalogues.
    Catalog,
    /// Everything an operator does.
    Admin,
}

/// Every scope, by its name in the file.
const SCOPES: [(&str, Scope); 5] = [
    ("read", Scope::Read),
    ("write", Scope::Write),
    ("watch", Scope::Watch),
    ("catalog", Scope::Catalog),
    ("admin", Scope::Admin),
];

/// The titles of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Titles {
    /// `"*"`.
    All,
    /// These.
    Some(BTreeSet<Title>),
}

/// The SHA-256 of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);

/// What one token allows.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) name: String,
    digest: Digest,
    pub(super) titles: Titles,
    scopes: BTreeSet<Scope>,
    quota: Quota,
    pub(super) meter: Meter,
    pub(super) revoked: CancellationToken,
}

/// All tokens of a file.
#[derive(Debug, Default)]
pub struct Tokens(Vec<Arc<Grant>>);

/// Every mistake of a file of tokens.
#[derive(Debug, Error)]
#[error("{}", .0.join("\n"))]
pub struct TokenError(Vec<String>);

/// Makes a token for somebody, and the digest to keep of it.
///
/// # Errors
///
/// The system has no random bytes.
pub fn new_token() -> Result<(String, Digest), getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    let token = BASE64URL_NOPAD.encode(&bytes);
    let digest = Digest::of(token.as_bytes());
    Ok((token, digest))
}

// === impl Tokens ===

impl Tokens {
    /// Reads the text of a file.
    ///
    /// # Errors
    ///
    /// [`TokenError`] with every mistake.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let table: toml::Table =
            text.parse().map_err(|error| TokenError(vec![format!("not TOML: {error}")]))?;
        let mut mistakes = Vec::new();
        for key in table.keys().filter(|key| *key != "tokens") {
            mistakes.push(format!("`{key}` is nothing here; write `[[tokens]]`"));
        }
        let entries = match table.get("tokens") {
            Some(toml::Value::Array(entries)) => entries.as_slice(),
            _ => &[],
        };
        if entries.is_empty() || entries.len() > TOKENS_MAX {
            let count = entries.len();
            mistakes.push(format!("there are {count} `[[tokens]]`; write 1 to {TOKENS_MAX}"));
        }
        let mut grants: Vec<Arc<Grant>> = Vec::new();
        for (index, entry) in entries.iter().enumerate().take(TOKENS_MAX) {
            let mut wrong = |problem: String| mistakes.push(format!("tokens[{index}]: {problem}"));
            let Some(entry) = entry.as_table() else {
                wrong("is no table".to_owned());
                continue;
            };
            let Some(grant) = Grant::parse(entry, &mut wrong) else { continue };
            if grants.iter().any(|it| it.name == grant.name) {
                wrong(format!("the name {:?} is there twice", grant.name));
            }
            if grants.iter().any(|it| it.digest == grant.digest) {
                wrong("the same token is there twice".to_owned());
            }
            grants.push(Arc::new(grant));
        }
        match mistakes.is_empty() {
            true => Ok(Self(grants)),
            false => Err(TokenError(mistakes)),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// These tokens, each as it was used so far where it is the same as in `old`; and what is to be
    /// cancelled for those that are gone.
    pub(super) fn following(self, old: &Self) -> (Self, Vec<CancellationToken>) {
        let grants = self.0.into_iter().map(|new| {
            let same = old.0.iter().find(|old| old.is_same(&new));
            same.cloned().unwrap_or(new)
        });
        let grants: Vec<_> = grants.collect();
        let is_gone = |grant: &&Arc<Grant>| !grants.iter().any(|new| Arc::ptr_eq(new, grant));
        let gone = old.0.iter().filter(is_gone).map(|grant| grant.revoked.clone()).collect();
        (Self(grants), gone)
    }

    /// Compares with every token, in a time that does not tell how near a guess was.
    pub(super) fn find(&self, token: &[u8]) -> Option<Arc<Grant>> {
        let digest = Digest::of(token);
        let mut found = None;
        for grant in &self.0 {
            if bool::from(grant.digest.0.ct_eq(&digest.0)) {
                found = Some(grant.clone());
            }
        }
        found
    }
}

// === impl Grant ===

impl Grant {
    fn parse(entry: &toml::Table, wrong: &mut dyn FnMut(String)) -> Option<Self> {
        const KEYS: [&str; 7] = [
            "name",
            "sha256",
            "titles",
            "scopes",
            "requests_per_second",
            "request_bytes_per_second",
            "streams_max",
        ];
        for key in entry.keys().filter(|key| !KEYS.contains(&key.as_str())) {
            wrong(format!("`{key}` is nothing here; there are {}", KEYS.join(", ")));
        }
        let text = |key: &str| entry.get(key).and_then(toml::Value::as_str);
        let name = text("name").filter(|name| {
            (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
        });
        if name.is_none() {
            wrong(format!("`name` must be a text of 1 to {NAME_BYTES_MAX} bytes"));
        }
        let digest = text("sha256").and_then(|text| text.parse().ok());
        if digest.is_none() {
            wrong("`sha256` must be 64 hexadecimal digits, as `accolade token` prints".to_owned());
        }
        let titles = titles(&texts(entry, "titles", wrong), wrong);
        let mut scopes = BTreeSet::new();
        for text in texts(entry, "scopes", wrong) {
            match text.parse() {
                Ok(scope) => drop(scopes.insert(scope)),
                Err(()) => {
                    let names = SCOPES.map(|(name, _)| name).join(", ");
                    wrong(format!("`scopes` has {text:?}; there are {names}"));
                }
            }
        }
        let mut number = |key: &str, least: u32| match entry.get(key)?.as_integer() {
            Some(0) => None,
            Some(value) if value >= i64::from(least) => {
                NonZeroU32::new(u32::try_from(value).unwrap_or(u32::MAX))
            }
            _ => {
                wrong(format!("`{key}` must be {least} or more, or 0 for no limit"));
                None
            }
        };
        let quota = Quota {
            requests_per_second: number("requests_per_second", REQUESTS_PER_SECOND_MIN),
            request_bytes_per_second: number("request_bytes_per_second", BYTES_PER_SECOND_MIN),
            streams_max: number("streams_max", 1),
        };
        Some(Self {
            name: name?.to_owned(),
            digest: digest?,
            titles,
            scopes,
            quota,
            meter: Meter::new(quota),
            revoked: CancellationToken::new(),
        })
    }

    pub(super) fn allows(&self, title: &Title, scope: Scope) -> bool {
        self.scopes.contains(&scope) && self.titles.contain(title)
    }

    fn is_same(&self, other: &Self) -> bool {
        self.name == other.name
            && self.digest == other.digest
            && self.titles == other.titles
            && self.scopes == other.scopes
            && self.quota == other.quota
    }
}

/// A list of texts that is not empty.
fn texts(entry: &toml::Table, key: &str, wrong: &mut dyn FnMut(String)) -> Vec<String> {
    let list = entry.get(key).and_then(toml::Value::as_array);
    let texts = list.map(|list| {
        list.iter().map(|it| it.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
    });
    match texts.flatten() {
        Some(texts) if !texts.is_empty() => texts,
        _ => {
            wrong(format!("`{key}` must be a list of texts, with at least one"));
            Vec::new()
        }
    }
}

fn titles(texts: &[String], wrong: &mut dyn FnMut(String)) -> Titles {
    if texts == ["*"] {
        return Titles::All;
    }
    let mut titles = BTreeSet::new();
    for text in texts {
        match Title::parse(text) {
            Ok(_) if text == "*" => wrong("`titles` has \"*\" beside others".to_owned()),
            Ok(title) => drop(titles.insert(title)),
            Err(error) => wrong(format!("`titles` has {text:?}, which {error}")),
        }
    }
    Titles::Some(titles)
}

// === impl Titles ===

impl Titles {
    pub(super) fn contain(&self, title: &Title) -> bool {
        match self {
            Self::All => true,
            Self::Some(titles) => titles.contains(title),
        }
    }
}

// === impl Scope ===

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = SCOPES.iter().find(|(_, scope)| scope == self).map(|(name, _)| *name);
        f.write_str(name.unwrap_or_default())
    }
}

impl FromStr for Scope {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        SCOPES.iter().find(|(name, _)| *name == text).map(|(_, scope)| *scope).ok_or(())
    }
}

// === impl Digest ===

impl Digest {
    pub(super) fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }
}

impl FromStr for Digest {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(drop)?;
        bytes.try_into().map(Self).map_err(drop)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

/// Digests do not get into logs.
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(…)")
    }
}

//! The rule of a reset: an operator takes a record back to its beginning, and says why.

use std::{fmt, sync::Arc};

use thiserror::Error;

use super::{
    EpochSeconds, NodeId, Outcome, PlayerKey, Record, RequestId, State, Verdict, Version,
    rules::{remember, replay, unchanged},
};

/// Longest reason, in bytes.
pub const REASON_BYTES_MAX: usize = 256;

/// Why something was reset: 1 to [`REASON_BYTES_MAX`] bytes without control characters.
#[derive(Clone, PartialEq, Eq)]
pub struct Reason(Arc<str>);

/// Why a text is no reason.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "is {bytes} bytes long or has control characters; pass 1 to {REASON_BYTES_MAX} printable bytes"
)]
pub struct ReasonError {
    bytes: usize,
}

/// What is asked of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetUpdate {
    /// Whose record.
    pub key: PlayerKey,
    /// Of which node; the catalogue need not have it.
    pub node: NodeId,
    /// Why.
    pub reason: Reason,
    /// The version the operator's decision is based on.
    pub expected: Option<Version>,
    /// The caller's name for this.
    pub request_id: Option<RequestId>,
}

/// What is decided of a reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetRuling {
    /// Whether this is a retry of something stored before.
    pub replayed: bool,
    /// What is answered.
    pub outcome: Outcome,
    /// The record to store, where something is.
    pub write: Option<Record>,
}

/// Judges a reset against the stored record; one that does not exist is the default. A retry and a
/// conflict are told as those of a set. Progress, completion and extra go; the version goes on, so
/// that whoever has read the record before conflicts, and so does the memory of request ids: a set
/// that was counted before the reset is not counted again.
#[must_use]
pub fn decide_reset(update: &ResetUpdate, record: &Record, now: EpochSeconds) -> ResetRuling {
    let told = |replayed, outcome| ResetRuling { replayed, outcome, write: None };
    if let Some(id) = &update.request_id
        && record.recall(id).is_some()
    {
        return told(true, replay(record, id));
    }
    if update.expected.is_some_and(|expected| expected != record.state.version) {
        return told(false, Outcome { verdict: Verdict::Conflict, ..unchanged(record) });
    }
    let before = &record.state;
    if *before == (State { version: before.version, ..State::default() }) {
        return told(false, unchanged(record));
    }
    let after = State { version: before.version.next(), ..State::default() };
    let write = Record {
        state: after.clone(),
        completed_version: Version::default(),
        remembered: remember(record, update.request_id.as_ref(), &after),
        reset_at: now,
        late: record.late.clone(),
    };
    let outcome =
        Outcome { verdict: Verdict::Stored, before: before.clone(), after, newly_completed: false };
    ResetRuling { replayed: false, outcome, write: Some(write) }
}

// === impl Reason ===

impl Reason {
    /// Checks a text from outside.
    ///
    /// # Errors
    ///
    /// [`ReasonError`], which says what to pass.
    pub fn parse(text: &str) -> Result<Self, ReasonError> {
        let fits = (1..=REASON_BYTES_MAX).contains(&text.len());
        match fits && !text.chars().any(char::is_control) {
            true => Ok(Self(Arc::from(text))),
            false => Err(ReasonError { bytes: text.len() }),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::decide,
        testing::{Update, node_id, player},
    };

    const NOW: EpochSeconds = EpochSeconds::new(1000);

    fn reset(id: Option<&str>, expected: Option<u64>) -> ResetUpdate {
        ResetUpdate {
            key: player("t", "p"),
            node: node_id("n"),
            reason: Reason::parse("bought back").unwrap(),
            expected: expected.map(Version::stored),
            request_id: id.map(|id| RequestId::parse(id).unwrap()),
        }
    }

    fn set(record: &Record, id: &str) -> (bool, Outcome, Option<Record>) {
        let update = Update::of("t", "p").id(id).delta("n", 2, 2).build();
        let mut ruling = decide(&update, &[record], NOW).unwrap();
        (ruling.replayed, ruling.outcomes.remove(0), ruling.writes.remove(0))
    }

    #[test]
    fn a_reset_takes_the_record_to_its_beginning_and_the_version_on() {
        let (.., completed) = set(&Record::default(), "a");
        let completed = completed.unwrap();
        let ruling = decide_reset(&reset(Some("r"), Some(1)), &completed, NOW);
        assert_eq!(ruling.outcome.before, completed.state);
        let reset_record = ruling.write.unwrap();
        let expected = State { version: Version::stored(2), ..State::default() };
        assert_eq!((&reset_record.state, reset_record.reset_at), (&expected, NOW));

        let again = decide_reset(&reset(Some("r"), Some(1)), &reset_record, NOW);
        assert!(again.replayed && again.write.is_none(), "a retry");
        assert_eq!(again.outcome.after, expected);
        let (replayed, outcome, write) = set(&reset_record, "a");
        assert!(replayed && write.is_none(), "what was counted before is not counted again");
        assert!(!outcome.newly_completed, "the reset has taken it back");
        let (replayed, outcome, _) = set(&reset_record, "b");
        assert!(!replayed && outcome.newly_completed, "it may complete again");
        assert_eq!(outcome.after.version.get(), 3);
    }

    #[test]
    fn a_reset_that_finds_nothing_to_do_or_another_version_stores_nothing() {
        let ruling = decide_reset(&reset(None, None), &Record::default(), NOW);
        assert_eq!((ruling.outcome.verdict, ruling.write), (Verdict::Unchanged, None));
        let (.., completed) = set(&Record::default(), "a");
        let ruling = decide_reset(&reset(None, Some(7)), &completed.unwrap(), NOW);
        assert_eq!((ruling.outcome.verdict, ruling.write), (Verdict::Conflict, None));
    }

    #[test]
    fn a_reason_is_a_bounded_line() {
        assert!(Reason::parse("退款").is_ok());
        for text in ["", "two\nlines", &"x".repeat(REASON_BYTES_MAX + 1)] {
            assert!(Reason::parse(text).is_err(), "{text:?}");
        }
    }
}

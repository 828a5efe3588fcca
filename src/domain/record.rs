//! Records: what is stored for (title, player, node), and the small numbers it is made of.

use std::sync::Arc;

use thiserror::Error;

use super::{Late, RequestId};

/// Greatest progress and target: 2^53 - 1, the greatest integer that JavaScript and JSON clients
/// read exactly.
pub const PROGRESS_MAX: u64 = (1 << 53) - 1;

/// How many of a record's last stored updates recognise a retry of theirs.
pub const REMEMBERED_UPDATES: u64 = 8;

/// Why a number or text is not a legal value.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ValueError {
    /// A number outside its range.
    #[error("is {value}; pass {min} to {max}")]
    OutOfRange {
        /// What was given.
        value: i64,
        /// The least legal value.
        min: u64,
        /// The greatest legal value.
        max: u64,
    },
    /// `extra` is too long.
    #[error("is {bytes} bytes long; this server stores at most {bytes_max}")]
    ExtraTooLong {
        /// Its length in bytes.
        bytes: usize,
        /// The server's limit.
        bytes_max: usize,
    },
}

fn in_range(value: i64, min: u64, max: u64) -> Result<u64, ValueError> {
    match u64::try_from(value) {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(ValueError::OutOfRange { value, min, max }),
    }
}

/// How far a player is; 0 to [`PROGRESS_MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Progress(u64);

impl Progress {
    /// Clamps a number into the range.
    #[must_use]
    pub fn clamped(value: u64) -> Self {
        Self(value.min(PROGRESS_MAX))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

/// A node's target; 1 to [`PROGRESS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MaxProgress(u64);

impl MaxProgress {
    /// Checks a number from outside.
    ///
    /// # Errors
    ///
    /// [`ValueError::OutOfRange`] outside 1 to [`PROGRESS_MAX`].
    pub fn parse(value: i64) -> Result<Self, ValueError> {
        in_range(value, 1, PROGRESS_MAX).map(Self)
    }

    /// The progress that completes.
    #[must_use]
    pub fn as_progress(self) -> Progress {
        Progress(self.0)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

/// How many updates of a record were stored; 0 for a record that does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// Greatest version; no record can get there one update at a time.
    pub const MAX: u64 = i64::MAX as u64;

    /// Checks a number from outside.
    ///
    /// # Errors
    ///
    /// [`ValueError::OutOfRange`] where it is negative.
    pub fn parse(value: i64) -> Result<Self, ValueError> {
        in_range(value, 0, Self::MAX).map(Self)
    }

    /// Takes a number that was stored.
    #[must_use]
    pub fn stored(value: u64) -> Self {
        Self(value.min(Self::MAX))
    }

    /// The version after one more update.
    #[must_use]
    pub fn next(self) -> Self {
        assert!(self.0 < Self::MAX, "a version cannot pass {}", Self::MAX);
        Self(self.0 + 1)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

/// A moment, in seconds since the Unix epoch; 0 stands for "never".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochSeconds(u64);

impl EpochSeconds {
    /// Takes a number of seconds.
    #[must_use]
    pub const fn new(seconds: u64) -> Self {
        Self(if seconds > i64::MAX as u64 { i64::MAX as u64 } else { seconds })
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }

    /// Whether this is a moment at all.
    #[must_use]
    pub fn is_set(self) -> bool {
        self.0 != 0
    }
}

/// The caller's own text beside the progress. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra(Arc<str>);

impl Extra {
    /// Checks a text from outside.
    ///
    /// # Errors
    ///
    /// [`ValueError::ExtraTooLong`] where it is longer than `bytes_max`.
    pub fn parse(text: &str, bytes_max: usize) -> Result<Self, ValueError> {
        if text.len() > bytes_max {
            return Err(ValueError::ExtraTooLong { bytes: text.len(), bytes_max });
        }
        Ok(Self(Arc::from(text)))
    }

    /// Takes a text that was stored, whatever the limit is now.
    #[must_use]
    pub fn stored(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Extra {
    fn default() -> Self {
        Self(Arc::from(""))
    }
}

/// The part of a record that callers see and sets change. The default is a record that does not
/// exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// How far the player is.
    pub progress: Progress,
    /// When the record completed; not set while it has not.
    pub completed_at: EpochSeconds,
    /// The caller's text.
    pub extra: Extra,
    /// How many updates were stored.
    pub version: Version,
}

/// A stored update that recognises its own retries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The caller's id.
    pub request_id: RequestId,
    /// The record's version after the update.
    pub version: Version,
    /// The progress before the update.
    pub progress_before: Progress,
    /// The progress after the update.
    pub progress_after: Progress,
}

/// Everything a store keeps for (title, player, node). The default does not exist yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// What callers see.
    pub state: State,
    /// The version that completed the record; 0 while it has not.
    pub completed_version: Version,
    /// The updates with a request id among the last [`REMEMBERED_UPDATES`], oldest first.
    pub remembered: Vec<Remembered>,
    /// When the record was last reset; not set where it never was.
    pub reset_at: EpochSeconds,
    /// The late updates that can still come again, in the order they were stored.
    pub late: Vec<Late>,
}

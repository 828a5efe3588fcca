//! A record with its places in the feed, alike in stores that number a title's events 1, 2, 3, …

use crate::domain::{EpochSeconds, NodeId, PlayerId, Record, Version};

/// Most events of one record that lie before its completion. Each is kept with the record, so that
/// a player can be erased from the feed without a search; a record with so many is not reset again.
pub const PAST_EVENTS_MAX: usize = 64;

/// An event of a record in its title's feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PastEvent {
    /// Its place.
    pub sequence: u64,
    /// The record's version after it.
    pub version: Version,
    /// When the record completed, or was reset.
    pub at: EpochSeconds,
}

/// Everything that is stored of a record. The default does not exist yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredRecord {
    /// The record.
    pub record: Record,
    /// Where its completion stands in the feed; 0 while it is not completed.
    pub completion_sequence: u64,
    /// What it has in the feed before that, oldest first; at most [`PAST_EVENTS_MAX`].
    pub past: Vec<PastEvent>,
}

/// A player with all records.
pub type PlayerRecords = (PlayerId, Vec<(NodeId, StoredRecord)>);

/// The last place of the feed that records name; 0 where they name none.
pub(super) fn newest_event(records: &[(NodeId, StoredRecord)]) -> u64 {
    let events = records.iter().flat_map(|(_, stored)| stored.events());
    events.map(|event| event.sequence).max().unwrap_or(0)
}

impl StoredRecord {
    /// Its completion's place in the feed.
    #[must_use]
    pub fn completion(&self) -> Option<PastEvent> {
        (self.completion_sequence != 0).then_some(PastEvent {
            sequence: self.completion_sequence,
            version: self.record.completed_version,
            at: self.record.state.completed_at,
        })
    }

    /// Everything it has in the feed, oldest first.
    pub fn events(&self) -> impl Iterator<Item = PastEvent> + '_ {
        self.past.iter().copied().chain(self.completion())
    }

    /// Whether its events follow each other, none with a version that it has not reached.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let follows =
            |a: &PastEvent, b: &PastEvent| a.sequence < b.sequence && a.version < b.version;
        let events: Vec<_> = self.events().collect();
        self.past.len() <= PAST_EVENTS_MAX
            && events.is_sorted_by(follows)
            && events.iter().all(|event| event.version <= self.record.state.version)
    }

    /// What `record`, which follows this one by a reset, is stored as; `sequence` is the reset's
    /// place. Events through `trimmed_through` have left the feed, and are forgotten. `None` where
    /// the record has too many others.
    #[must_use]
    pub fn reset(&self, record: Record, sequence: u64, trimmed_through: u64) -> Option<Self> {
        let version = record.state.version;
        let reset = PastEvent { sequence, version, at: record.reset_at };
        let retained = self.events().filter(|event| event.sequence > trimmed_through);
        let past: Vec<_> = retained.chain([reset]).collect();
        let fits = past.len() <= PAST_EVENTS_MAX;
        fits.then_some(Self { record, completion_sequence: 0, past })
    }
}

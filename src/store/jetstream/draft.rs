//! What updates make of a player's document: the rules, and no cluster. Several updates that wait
//! at the same time are judged one after the other, and written as one.

use std::sync::Arc;

use super::document::{Document, PENDING};
use crate::{
    domain::{
        Completion, EpochSeconds, Event, NodeId, Outcome, PlayerUpdate, Record, Refusal, Reset,
        ResetRuling, ResetUpdate, Ruling, Verdict, decide, decide_reset,
    },
    store::StoredRecord,
};

/// A document that is to be written, and the events that go before it.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    pub(super) document: Document,
    pub(super) events: Vec<Event>,
    /// Whether anything is to be written at all.
    pub(super) is_changed: bool,
}

/// What is told of a set: one outcome for each update, with the place of its completion, which may
/// be [`PENDING`].
#[derive(Clone, Debug)]
pub(super) struct SetTold {
    pub(super) replayed: bool,
    pub(super) outcomes: Vec<(Outcome, Option<u64>)>,
}

/// What is told of a reset.
#[derive(Clone, Debug)]
pub(super) struct ResetTold {
    pub(super) replayed: bool,
    pub(super) outcome: Outcome,
    pub(super) place: Option<u64>,
}

/// A record has as many events as it may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct TooMany;

// === impl Draft ===

impl Draft {
    pub(super) fn of(document: &Document) -> Self {
        Self { document: document.clone(), ..Self::default() }
    }

    /// Adds an event; tells its place.
    pub(super) fn push(&mut self, event: Event) -> u64 {
        self.events.push(event);
        PENDING + self.events.len() as u64 - 1
    }

    /// Puts a record in its place.
    pub(super) fn put(&mut self, node: &NodeId, stored: StoredRecord) {
        self.document.records.insert(node.clone(), Arc::new(stored));
        self.is_changed = true;
    }

    /// Judges a set, and does what it says.
    pub(super) fn set(
        &mut self,
        update: &PlayerUpdate,
        now: EpochSeconds,
    ) -> Result<SetTold, Refusal> {
        let nodes = update.updates.iter().map(|item| item.node.definition().node_id());
        let stored: Vec<_> =
            nodes.map(|node| self.document.record(node).cloned().unwrap_or_default()).collect();
        let records: Vec<&Record> = stored.iter().map(|stored| &stored.record).collect();
        let Ruling { replayed, outcomes, writes } = decide(update, &records, now)?;
        let mut told = Vec::with_capacity(outcomes.len());
        let items = update.updates.iter().zip(stored);
        for ((outcome, write), (item, stored)) in outcomes.into_iter().zip(writes).zip(items) {
            let mut place = stored.completion_sequence;
            if let Some(record) = write {
                if outcome.newly_completed {
                    let completion = Completion::of(&update.key, &item.node, &record);
                    place = self.push(Event::Completion(completion));
                }
                let after = StoredRecord { record, completion_sequence: place, past: stored.past };
                self.put(item.node.definition().node_id(), after);
            }
            let place = outcome.newly_completed.then_some(place);
            told.push((outcome, place));
        }
        Ok(SetTold { replayed, outcomes: told })
    }

    /// Judges a reset, and does what it says. Events through `trimmed_through` have left the feed.
    pub(super) fn reset(
        &mut self,
        update: &ResetUpdate,
        now: EpochSeconds,
        trimmed_through: u64,
    ) -> Result<ResetTold, TooMany> {
        let stored = self.document.record(&update.node).cloned().unwrap_or_default();
        let ResetRuling { replayed, outcome, write } = decide_reset(update, &stored.record, now);
        let Some(record) = write else {
            let version = outcome.after.version;
            let told = stored.events().find(|event| event.version == version);
            let told = told.filter(|_| replayed && outcome.verdict == Verdict::Stored);
            return Ok(ResetTold { replayed, outcome, place: told.map(|event| event.sequence) });
        };
        let place = PENDING + self.events.len() as u64;
        let after = stored.reset(record, place, trimmed_through).ok_or(TooMany)?;
        self.push(Event::Reset(Reset::of(update, &outcome, now)));
        self.put(&update.node, after);
        Ok(ResetTold { replayed, outcome, place: Some(place) })
    }
}

/// Where an event of a document that was stored stands: `told` is the place, or which of the events
/// before the document it is.
pub(super) fn settled(told: u64, sequence: u64, events: usize) -> u64 {
    super::document::placed(told, sequence, events).unwrap_or(sequence)
}

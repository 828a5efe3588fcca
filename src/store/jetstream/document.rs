//! A player's document: all records of one player, in one message.
//!
//! A batch has the events first and the document last, right behind each other. So a document need
//! not know the sequence that JetStream will give it to name its events: they are the ones before.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    domain::NodeId,
    proto::rows::{PlayerRecordRow, PlayerRow, WriterRow},
    store::{
        StoreError, StoredRecord, frame,
        rows::{record_from_row, record_to_row},
    },
};

/// Places from here on are of events in the same batch: this is the first of them.
pub(super) const PENDING: u64 = 1 << 63;

/// Servers whose writes a document recognises. So many others would have to write the same player
/// while one waits for an answer.
const WRITERS_MAX: usize = 16;

/// One write of a document by one server; the numbers of a server only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Writer {
    pub(super) id: u64,
    pub(super) number: u64,
}

/// See the module. The default is that of a player who has none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Document {
    pub(super) records: BTreeMap<NodeId, Arc<StoredRecord>>,
    /// The latest first.
    writers: Vec<Writer>,
}

impl Document {
    /// A record; `None` where there is none.
    pub(super) fn record(&self, node: &NodeId) -> Option<&StoredRecord> {
        self.records.get(node).map(|stored| &**stored)
    }

    /// Whether it is this write, or one that was based on it.
    pub(super) fn has(&self, write: Writer) -> bool {
        self.writers.iter().any(|it| it.id == write.id && it.number >= write.number)
    }

    /// Whether it is this write itself.
    pub(super) fn is_by(&self, write: Writer) -> bool {
        self.writers.first() == Some(&write)
    }

    /// Notes who writes it next.
    pub(super) fn sign(&mut self, write: Writer) {
        self.writers.retain(|it| it.id != write.id);
        self.writers.truncate(WRITERS_MAX - 1);
        self.writers.insert(0, write);
    }

    /// The value for its subject; so many events stand before it.
    pub(super) fn encode(&self, subject: &str, pending_events: usize) -> Vec<u8> {
        let records = self.records.iter().map(|(node, stored)| PlayerRecordRow {
            node_id: node.as_str().to_owned(),
            record: Some(record_to_row(stored)),
        });
        let writers = self.writers.iter();
        let writers = writers.map(|it| WriterRow { writer_id: it.id, number: it.number });
        let row = PlayerRow {
            records: records.collect(),
            pending_events: u32::try_from(pending_events).expect("a batch has few messages"),
            writers: writers.collect(),
        };
        frame::encode(subject.as_bytes(), &row)
    }

    /// Reads the value of a subject that stands at a sequence.
    pub(super) fn decode(subject: &str, value: &[u8], sequence: u64) -> Result<Self, StoreError> {
        let damaged = |how: &str| StoreError::Corrupt(format!("the value of `{subject}` {how}"));
        let row: PlayerRow = frame::decode(subject.as_bytes(), value)
            .map_err(|error| damaged(&error.to_string()))?;
        let pending = row.pending_events as usize;
        let impossible = || damaged("holds impossible numbers");
        let mut document = Self::default();
        for PlayerRecordRow { node_id, record } in row.records {
            let node = NodeId::parse(&node_id).map_err(|_| impossible())?;
            let stored = record.as_ref().and_then(record_from_row).ok_or_else(impossible)?;
            document.records.insert(node, Arc::new(stored));
        }
        let writers = row.writers.iter();
        document.writers =
            writers.map(|it| Writer { id: it.writer_id, number: it.number }).collect();
        document.place(sequence, pending).ok_or_else(impossible)?;
        Ok(document)
    }

    /// Gives its new events their places, once the document has its own. `None` where that cannot
    /// be its own.
    pub(super) fn place(&mut self, sequence: u64, pending_events: usize) -> Option<()> {
        for stored in self.records.values_mut() {
            let newest =
                stored.completion_sequence.max(stored.past.last().map_or(0, |it| it.sequence));
            if newest < PENDING {
                continue;
            }
            let stored = Arc::make_mut(stored);
            let places = stored.past.iter_mut().map(|event| &mut event.sequence);
            for place in places.chain([&mut stored.completion_sequence]) {
                *place = placed(*place, sequence, pending_events)?;
            }
        }
        Some(())
    }
}

/// The place of an event, which may be one of those right before `sequence`.
pub(super) fn placed(place: u64, sequence: u64, pending_events: usize) -> Option<u64> {
    if place < PENDING {
        return Some(place);
    }
    let before = (pending_events as u64).checked_sub(place - PENDING)?;
    sequence.checked_sub(before).filter(|place| *place > 0)
}

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
            if document.records.insert(node, Arc::new(stored)).is_some() {
                return Err(impossible());
            }
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
            if !stored.is_sound() {
                return None;
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
    let before = (pending_events as u64).checked_sub(place - PENDING).filter(|it| *it > 0)?;
    sequence.checked_sub(before).filter(|place| (1..PENDING).contains(place))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use prost::Message as _;

    use super::*;
    use crate::{
        domain::{EpochSeconds, Record, State, Version},
        store::PastEvent,
    };

    const SUBJECT: &str = "ach.0.kv.t.p";

    /// A record with events at these places, the last of which is its completion.
    fn record(places: &[u64]) -> Arc<StoredRecord> {
        let events = places.iter().enumerate().map(|(index, place)| PastEvent {
            sequence: *place,
            version: Version::stored(index as u64 + 1),
            at: EpochSeconds::new(1),
        });
        let mut past: Vec<_> = events.collect();
        let completion = past.pop().expect("it has an event");
        let state =
            State { version: completion.version, completed_at: completion.at, ..State::default() };
        let record = Record { state, completed_version: completion.version, ..Record::default() };
        Arc::new(StoredRecord { record, completion_sequence: completion.sequence, past })
    }

    fn document(records: &[(&str, &[u64])]) -> Document {
        let records = records.iter();
        let records =
            records.map(|(node, places)| (NodeId::parse(node).unwrap(), record(places))).collect();
        let mut document = Document { records, writers: Vec::new() };
        document.sign(Writer { id: 7, number: 3 });
        document
    }

    #[test]
    fn events_of_a_batch_stand_right_before_its_document() {
        let written = document(&[("a", &[7, PENDING, PENDING + 2]), ("b", &[PENDING + 1])]);
        let value = written.encode(SUBJECT, 3);
        let read = Document::decode(SUBJECT, &value, 20).unwrap();
        assert_eq!(read, document(&[("a", &[7, 17, 19]), ("b", &[18])]));
        let mut placed = written.clone();
        assert_eq!(placed.place(20, 3), Some(()));
        assert_eq!(placed, read);
        assert_eq!(Document::decode(SUBJECT, &read.encode(SUBJECT, 0), 30).unwrap(), read);
    }

    #[test]
    fn a_document_that_cannot_stand_where_it_does_is_damage() {
        let value = document(&[("a", &[7, PENDING])]).encode(SUBJECT, 1);
        // Its own event would be none, the one before, or one before that.
        for sequence in [0, 1, 7, 8] {
            assert!(Document::decode(SUBJECT, &value, sequence).is_err(), "{sequence}");
        }
        assert!(Document::decode(SUBJECT, &value, 9).is_ok());
        // An event that the batch does not have; another subject's value.
        let missing = document(&[("a", &[PENDING + 1])]).encode(SUBJECT, 1);
        assert!(Document::decode(SUBJECT, &missing, 9).is_err());
        assert!(Document::decode("ach.0.kv.t.q", &value, 9).is_err());
    }

    #[test]
    fn a_write_is_recognised_until_sixteen_others_have_written() {
        let mut document = Document::default();
        let first = Writer { id: 0, number: 5 };
        document.sign(first);
        assert!(document.is_by(first));
        for id in 1..WRITERS_MAX as u64 {
            document.sign(Writer { id, number: 1 });
            document.sign(Writer { id, number: 2 });
            assert!(document.has(first) && !document.is_by(first));
        }
        assert!(!document.has(Writer { id: 0, number: 6 }), "a later one of the same server");
        document.sign(Writer { id: 16, number: 1 });
        assert!(!document.has(first));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_bytes_are_a_document_or_damage(
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            sequence in any::<u64>(),
        ) {
            let value = document(&[("a", &[7, PENDING]), ("b", &[3])]).encode(SUBJECT, 1);
            let row: PlayerRow = frame::decode(SUBJECT.as_bytes(), &value).unwrap();
            let mut bytes = row.encode_to_vec();
            for (index, byte) in changes {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            // Framed anew, so that the checksum does not find it first.
            if let Ok(row) = PlayerRow::decode(&*bytes) {
                let value = frame::encode(SUBJECT.as_bytes(), &row);
                if let Ok(document) = Document::decode(SUBJECT, &value, sequence) {
                    let again = document.encode(SUBJECT, 0);
                    let again = Document::decode(SUBJECT, &again, sequence);
                    prop_assert_eq!(again.ok(), Some(document));
                }
            }
        }
    }
}

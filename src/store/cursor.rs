//! Cursors of stores that number each title's completions 1, 2, 3, …
//!
//! Bytes, before base64url: format (1), sequence (8, big-endian), CRC-32 (4, big-endian) over
//! store id, title, format and sequence. The checksum is no secret: it tells a cursor of another
//! title, of another data folder, or a damaged one from one of ours. A title's feed can be read
//! from any place by whoever may read it at all, so forging one gains nothing.

use data_encoding::BASE64URL_NOPAD;

use crate::domain::{Cursor, Title};

const FORMAT: u8 = 1;
const BYTES: usize = 13;

/// Where cursors stand that a feed has not reached.
const BEYOND: u64 = u64::MAX;

/// Makes and reads the cursors of one store.
#[derive(Clone, Copy, Debug)]
pub(super) struct CursorCodec {
    store_id: u64,
    /// The store whose backup this one was made from.
    ancestor_id: Option<u64>,
}

impl CursorCodec {
    pub(super) fn new(store_id: u64) -> Self {
        Self { store_id, ancestor_id: None }
    }

    /// Reads cursors of the store that this one was restored from as well; 0 stands for none.
    pub(super) fn restored_from(self, ancestor_id: u64) -> Self {
        Self { ancestor_id: (ancestor_id != 0).then_some(ancestor_id), ..self }
    }

    /// The cursor of a completion; sequence 0 stands before the first.
    pub(super) fn encode(self, title: &Title, sequence: u64) -> Cursor {
        let mut bytes = [0; BYTES];
        bytes[0] = FORMAT;
        bytes[1..9].copy_from_slice(&sequence.to_be_bytes());
        let sum = checksum(self.store_id, title, &bytes[..9]);
        bytes[9..].copy_from_slice(&sum.to_be_bytes());
        Cursor::new(&BASE64URL_NOPAD.encode(&bytes))
    }

    /// The sequence a cursor stands for; `None` where it is not one of ours. Of the store that this
    /// one was restored from, those up to `restored_through` stand where they stood. What completed
    /// there afterwards is not here, so its cursors stand where this feed never comes.
    pub(super) fn decode(
        self,
        title: &Title,
        cursor: &Cursor,
        restored_through: u64,
    ) -> Option<u64> {
        let bytes = BASE64URL_NOPAD.decode(cursor.as_str().as_bytes()).ok()?;
        let bytes: [u8; BYTES] = bytes.try_into().ok()?;
        let (body, sum) = bytes.split_at(9);
        let (format, sequence) = body.split_first()?;
        let sequence = u64::from_be_bytes(sequence.try_into().expect("8 of 9 bytes"));
        let is_of = |store_id| sum == checksum(store_id, title, body).to_be_bytes();
        if *format != FORMAT {
            None
        } else if is_of(self.store_id) {
            Some(sequence)
        } else if self.ancestor_id.is_some_and(is_of) {
            Some(if sequence <= restored_through { sequence } else { BEYOND })
        } else {
            None
        }
    }
}

fn checksum(store_id: u64, title: &Title, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&store_id.to_be_bytes());
    hasher.update(title.as_str().as_bytes());
    hasher.update(body);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn title(text: &str) -> Title {
        Title::parse(text).unwrap()
    }

    proptest! {
        #[test]
        fn a_cursor_names_its_sequence(store_id: u64, sequence: u64) {
            let codec = CursorCodec::new(store_id);
            let cursor = codec.encode(&title("t"), sequence);
            prop_assert_eq!(codec.decode(&title("t"), &cursor, 0), Some(sequence));
            prop_assert_eq!(codec.decode(&title("u"), &cursor, 0), None, "another title");
            let other = CursorCodec::new(store_id ^ 1);
            prop_assert_eq!(other.decode(&title("t"), &cursor, 0), None, "another store");
        }

        #[test]
        fn a_restored_store_knows_the_cursors_of_before(sequence in 1..u64::MAX) {
            let ancestor = CursorCodec::new(5);
            let restored = CursorCodec::new(6).restored_from(5);
            let cursor = ancestor.encode(&title("t"), sequence);
            prop_assert_eq!(restored.decode(&title("t"), &cursor, sequence), Some(sequence));
            prop_assert_eq!(restored.decode(&title("t"), &cursor, sequence - 1), Some(BEYOND));
            prop_assert_eq!(restored.decode(&title("u"), &cursor, sequence), None);
            prop_assert_eq!(CursorCodec::new(6).decode(&title("t"), &cursor, sequence), None);
        }

        #[test]
        fn a_flipped_bit_is_noticed(sequence: u64, bit in 0..BYTES * 8) {
            let codec = CursorCodec::new(7);
            let cursor = codec.encode(&title("t"), sequence);
            let mut bytes = BASE64URL_NOPAD.decode(cursor.as_str().as_bytes()).unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let forged = Cursor::new(&BASE64URL_NOPAD.encode(&bytes));
            prop_assert_eq!(codec.decode(&title("t"), &forged, 0), None);
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,64}") {
            prop_assert_eq!(CursorCodec::new(7).decode(&title("t"), &Cursor::new(&text), 0), None);
        }
    }
}

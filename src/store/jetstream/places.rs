//! Cursors of feeds over partitions: the sequence of the last event that was read in each.
//!
//! Bytes, before base64url: format (1), each sequence as a varint, CRC-32 (4, big-endian) over
//! store id, title, format and sequences. As with sled's, the checksum is no secret.

use data_encoding::BASE64URL_NOPAD;

use crate::domain::{Cursor, Title};

const FORMAT: u8 = 2;
const SUM_BYTES: usize = 4;
const PLACE_MAX: u64 = i64::MAX as u64;

/// The sequences through which each partition was read.
pub(super) type Places = Vec<u64>;

/// Makes and reads the cursors of one installation.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlacesCodec {
    pub(super) store_id: u64,
    pub(super) partitions: u32,
}

impl PlacesCodec {
    pub(super) fn encode(self, title: &Title, places: &[u64]) -> Cursor {
        let mut bytes = vec![FORMAT];
        for place in places {
            prost::encoding::encode_varint(*place, &mut bytes);
        }
        let sum = self.checksum(title, &bytes);
        bytes.extend_from_slice(&sum.to_be_bytes());
        Cursor::new(&BASE64URL_NOPAD.encode(&bytes))
    }

    /// The places a cursor stands for; `None` where it is not one of ours.
    pub(super) fn decode(self, title: &Title, cursor: &Cursor) -> Option<Places> {
        let bytes = BASE64URL_NOPAD.decode(cursor.as_str().as_bytes()).ok()?;
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM_BYTES)?)?;
        let (format, mut rest) = body.split_first()?;
        if *format != FORMAT || sum != self.checksum(title, body).to_be_bytes() {
            return None;
        }
        let mut places = Places::new();
        while !rest.is_empty() {
            places.push(prost::encoding::decode_varint(&mut rest).ok()?);
        }
        // No stream has such sequences: whoever made it could reckon with them.
        let are_possible = places.iter().all(|place| *place <= PLACE_MAX);
        (are_possible && places.len() == self.partitions as usize).then_some(places)
    }

    fn checksum(self, title: &Title, body: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.store_id.to_be_bytes());
        hasher.update(title.as_str().as_bytes());
        hasher.update(body);
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::testing::title;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn a_cursor_names_its_places(store_id: u64, places in vec(0..=PLACE_MAX, 1..20)) {
            let partitions = u32::try_from(places.len()).unwrap();
            let codec = PlacesCodec { store_id, partitions };
            let cursor = codec.encode(&title("t"), &places);
            prop_assert_eq!(codec.decode(&title("t"), &cursor), Some(places));
            prop_assert_eq!(codec.decode(&title("u"), &cursor), None, "another title");
            let other = PlacesCodec { store_id: store_id ^ 1, partitions };
            prop_assert_eq!(other.decode(&title("t"), &cursor), None, "another store");
            let more = PlacesCodec { store_id, partitions: partitions + 1 };
            prop_assert_eq!(more.decode(&title("t"), &cursor), None, "more partitions");
        }

        #[test]
        fn a_place_that_no_stream_has_is_none(place in PLACE_MAX + 1..) {
            let codec = PlacesCodec { store_id: 7, partitions: 2 };
            let cursor = codec.encode(&title("t"), &[1, place]);
            prop_assert_eq!(codec.decode(&title("t"), &cursor), None);
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,64}") {
            let codec = PlacesCodec { store_id: 7, partitions: 1 };
            prop_assert_eq!(codec.decode(&title("t"), &Cursor::new(&text)), None);
        }
    }
}

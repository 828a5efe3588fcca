//! The frame around every value that an engine stores: format (1 byte), CRC-32 (4 bytes,
//! big-endian) over key, format and payload, then the payload, a message of
//! `proto/accolade/store/v1/rows.proto`.
//!
//! The key is part of the checksum, so that a value under a wrong key is noticed too.

use prost::Message;
use thiserror::Error;

/// The format this version writes. Older ones are read for ever.
const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 5;

/// Why a stored value could not be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum FrameError {
    #[error("is shorter than any value")]
    TooShort,
    #[error("has format {0}, which this version does not know; use a newer version")]
    UnknownFormat(u8),
    #[error("does not match its checksum")]
    Checksum,
    #[error("has a sound checksum but cannot be decoded")]
    Undecodable,
}

/// Encodes a value for its key.
pub(super) fn encode(key: &[u8], row: &impl Message) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER_BYTES + row.encoded_len());
    value.extend_from_slice(&[FORMAT, 0, 0, 0, 0]);
    row.encode_raw(&mut value);
    let sum = checksum(key, FORMAT, &value[HEADER_BYTES..]);
    value[1..HEADER_BYTES].copy_from_slice(&sum.to_be_bytes());
    value
}

/// Decodes the value of a key.
pub(super) fn decode<T: Message + Default>(key: &[u8], value: &[u8]) -> Result<T, FrameError> {
    let (header, payload) = value.split_at_checked(HEADER_BYTES).ok_or(FrameError::TooShort)?;
    if header[0] != FORMAT {
        return Err(FrameError::UnknownFormat(header[0]));
    }
    if header[1..] != checksum(key, FORMAT, payload).to_be_bytes() {
        return Err(FrameError::Checksum);
    }
    T::decode(payload).map_err(|_| FrameError::Undecodable)
}

fn checksum(key: &[u8], format: u8, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&[format]);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::rows::FeedRow;

    #[test]
    fn a_value_reads_back_under_its_own_key_only() {
        let row = FeedRow {
            restored_through: 0,
            erasures: 0,
            trimmed_through: 7,
            trimmed_completed_at: 9,
        };
        let value = encode(b"key", &row);
        assert_eq!(decode(b"key", &value), Ok(row));
        assert_eq!(decode::<FeedRow>(b"kez", &value), Err(FrameError::Checksum));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_noticed() {
        let value = encode(
            b"key",
            &FeedRow {
                restored_through: 0,
                erasures: 0,
                trimmed_through: 300,
                trimmed_completed_at: 9,
            },
        );
        for bit in 0..value.len() * 8 {
            let mut flipped = value.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<FeedRow>(b"key", &flipped).is_err(), "bit {bit}");
        }
        for len in 0..value.len() {
            assert!(decode::<FeedRow>(b"key", &value[..len]).is_err(), "{len} bytes");
        }
    }
}

//! Messages in a stream of bytes: a byte of flags, four of length, and the message. gRPC and
//! Connect frame alike.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Flags and length.
const HEAD_BYTES: usize = 5;

/// The message is compressed.
pub(super) const COMPRESSED: u8 = 1;
/// Connect: not a message, but how the stream ended.
pub(super) const END: u8 = 2;

/// Puts frames together from pieces as they come.
#[derive(Debug, Default)]
pub(super) struct Frames {
    pending: BytesMut,
}

/// One frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) flags: u8,
    pub(super) message: Bytes,
}

/// The next message is longer than it may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong(pub(super) usize);

// === impl Frames ===

impl Frames {
    pub(super) fn push(&mut self, piece: &[u8]) {
        self.pending.extend_from_slice(piece);
    }

    /// Takes the next frame, where it is all there.
    pub(super) fn next(&mut self, bytes_max: usize) -> Result<Option<Frame>, TooLong> {
        let Some((head, _)) = self.pending.split_first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let [flags, length @ ..] = *head;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > bytes_max {
            return Err(TooLong(length));
        }
        if self.pending.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        self.pending.advance(HEAD_BYTES);
        Ok(Some(Frame { flags, message: self.pending.split_to(length).freeze() }))
    }

    /// Whether a frame has begun that is not all there.
    pub(super) fn is_cut(&self) -> bool {
        !self.pending.is_empty()
    }
}

/// Frames a message.
pub(super) fn frame(flags: u8, message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("messages are bounded far below 4 GiB");
    let mut framed = BytesMut::with_capacity(HEAD_BYTES + message.len());
    framed.put_u8(flags);
    framed.put_u32(length);
    framed.put_slice(message);
    framed.freeze()
}

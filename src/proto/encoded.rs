//! Messages that are encoded before the transport asks, so that one encoding serves many streams.

use std::{fmt, marker::PhantomData};

use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
};
use tonic_prost::ProstCodec;

/// An encoded `M`. Cloning shares the bytes.
pub struct Encoded<M> {
    bytes: Bytes,
    message: PhantomData<fn() -> M>,
}

impl<M: Message> From<&M> for Encoded<M> {
    fn from(message: &M) -> Self {
        Self { bytes: message.encode_to_vec().into(), message: PhantomData }
    }
}

impl<M> Encoded<M> {
    /// The same bytes as another message, which has the same fields under the same numbers.
    pub fn reread<N>(self) -> Encoded<N> {
        Encoded { bytes: self.bytes, message: PhantomData }
    }
}

impl<M> Clone for Encoded<M> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), message: PhantomData }
    }
}

impl<M> fmt::Debug for Encoded<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoded({} bytes)", self.bytes.len())
    }
}

/// Sends encoded messages, receives ordinary ones.
#[derive(Debug)]
pub struct EncodedCodec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for EncodedCodec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M, D> Codec for EncodedCodec<Encoded<M>, D>
where
    M: Send + 'static,
    D: Message + Default + Send + 'static,
{
    type Encode = Encoded<M>;
    type Decode = D;
    type Encoder = EncodedEncoder<M>;
    type Decoder = <ProstCodec<D, D> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        EncodedEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<D, D>::raw_decoder(BufferSettings::default())
    }
}

/// See [`EncodedCodec`].
#[derive(Debug)]
pub struct EncodedEncoder<M>(PhantomData<fn() -> M>);

impl<M> Encoder for EncodedEncoder<M> {
    type Item = Encoded<M>;
    type Error = Status;

    fn encode(&mut self, item: Encoded<M>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item.bytes);
        Ok(())
    }

    /// Each stream keeps a buffer of its own for as long as it is open, and there are many of them:
    /// it begins with the size of a heartbeat.
    fn buffer_settings(&self) -> BufferSettings {
        const BUFFER_BYTES: usize = 256;
        const SEND_BYTES: usize = 32 << 10;
        BufferSettings::new(BUFFER_BYTES, SEND_BYTES)
    }
}

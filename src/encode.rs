//! The encoder's contract: payloads in, one hash code or one reason per payload out.
//!
//! The plugin sees only `dyn Encoder`. Encoders that need no network are in the submodules; the
//! learned one is [`TorchEncoder`](crate::deep::TorchEncoder) behind the `torch` feature.

use std::sync::Arc;

use crate::code::{CodeLen, HashCode};
use crate::error::Result;

/// What a document carries instead of a code until an encoder has seen it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Payload {
    /// An encoded picture: the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF file.
    Image(Arc<[u8]>),
    /// A float vector, such as the embedding of another model.
    Vector(Arc<[f32]>),
}

impl Payload {
    /// Bytes this payload keeps alive; what queues are bounded by.
    pub fn size_bytes(&self) -> usize {
        match self {
            Payload::Image(bytes) => bytes.len(),
            Payload::Vector(values) => std::mem::size_of_val(&values[..]),
        }
    }
}

/// Why one payload has no code. Says nothing about the others of its batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{stage}: {reason}")]
pub struct EncodeError {
    /// Where it failed.
    pub stage: EncodeStage,
    /// What was expected and what was found.
    pub reason: String,
}

/// The stages a payload goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EncodeStage {
    /// Bytes to pixels.
    Decode,
    /// Pixels or vectors to what the model reads.
    Preprocess,
    /// The model, or the packing of its output.
    Encode,
}

impl std::fmt::Display for EncodeStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            EncodeStage::Decode => "decode",
            EncodeStage::Preprocess => "preprocess",
            EncodeStage::Encode => "encode",
        })
    }
}

/// Turns payloads into hash codes of one length.
///
/// Contract: `encode` returns exactly one entry per payload, in order, and the same payload always
/// gets the same code. An `Err` of the whole call means that no entry has a code (device lost, out of
/// memory); one bad payload is an `Err` entry and leaves its neighbours alone.
pub trait Encoder: Send + Sync {
    /// The length of every code this encoder makes.
    fn code_len(&self) -> CodeLen;

    /// Names the model and its weights. A field remembers it, so codes of two models never mix.
    fn model_id(&self) -> &str;

    /// The largest batch worth sending at once.
    fn max_batch(&self) -> usize {
        256
    }

    /// Encodes a batch.
    fn encode(&self, batch: &[Payload]) -> Result<Vec<Result<HashCode, EncodeError>>>;
}

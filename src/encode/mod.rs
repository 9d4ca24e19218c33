//! The encoder's contract: payloads in, one hash code or one reason per payload out.
//!
//! The plugin sees only `dyn Encoder`. Encoders that need no network are in the submodules; the
//! learned one is `deep::TorchEncoder` behind the `torch` feature.

mod lsh;
mod phash;
mod precomputed;
mod service;

use std::sync::{Arc, OnceLock};

use crate::code::{CodeLen, HashCode};
use crate::error::Result;

pub use crate::error::{EncodeError, EncodeStage};
pub use lsh::SignLsh;
pub use phash::PerceptualHash;
pub use precomputed::LogitsEncoder;
pub use service::{EncoderService, ServiceOptions, ServiceStats, Ticket};

/// What a document carries instead of a code until an encoder has seen it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Payload {
    /// An encoded picture: the bytes of a JPEG, PNG, WebP, GIF or BMP file.
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

impl Payload {
    /// What kind of payload this is, for messages.
    fn kind(&self) -> &'static str {
        match self {
            Payload::Image(_) => "a picture",
            Payload::Vector(_) => "a vector",
        }
    }

    /// The vector, or the reason why there is none of `dim` finite numbers.
    pub(crate) fn finite_vector(&self, dim: usize) -> Result<&[f32], EncodeError> {
        let failed = |reason| EncodeError {
            stage: EncodeStage::Preprocess,
            reason,
        };
        let Payload::Vector(values) = self else {
            return Err(failed(format!("expected a vector, got {}", self.kind())));
        };
        if values.len() != dim {
            return Err(failed(format!(
                "expected a vector of {dim} numbers, got {}",
                values.len()
            )));
        }
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => Err(failed(format!(
                "expected finite numbers, number {at} is {}",
                values[at]
            ))),
        }
    }
}

/// Packs code logits; what cannot be packed is the item's failure.
fn pack(len: CodeLen, logits: &[f32]) -> Result<HashCode, EncodeError> {
    crate::code::binarize(len, logits).map_err(|error| EncodeError {
        stage: EncodeStage::Encode,
        reason: error.to_string(),
    })
}

/// Runs parallel work of an encoder on threads of its own. On the global pool it could wait for ever: when
/// callers on that pool wait for their codes, no thread of it is left to make them.
pub(crate) fn on_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    static POOL: OnceLock<Option<rayon::ThreadPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let named = |idx| format!("tanhash-encode-{idx}");
        rayon::ThreadPoolBuilder::new()
            .thread_name(named)
            .build()
            .ok()
    });
    match pool {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

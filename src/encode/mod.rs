//! The encoder's contract: payloads in, one hash code or one reason per payload out.
//!
//! The plugin sees only `dyn Encoder`. Encoders that need no network are in the submodules; the
//! learned one is `deep::TorchEncoder` behind the `torch` feature.

mod fallback;
mod itq;
mod lsh;
mod phash;
mod precomputed;
mod service;

use std::fmt;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use crate::code::{CodeLen, HashCode};
use crate::error::{Error, Result};

pub use crate::error::{EncodeError, EncodeStage};
pub use fallback::Fallback;
pub use itq::Itq;
pub use lsh::SignLsh;
pub use phash::PerceptualHash;
pub use precomputed::LogitsEncoder;
pub use service::{EncoderService, FailureShare, ServiceOptions, ServiceStats, Ticket};

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

/// A kind of [`Payload`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PayloadKind {
    /// Encoded pictures.
    Image,
    /// Float vectors.
    Vector {
        /// Numbers in each.
        dim: usize,
    },
}

impl fmt::Display for PayloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PayloadKind::Image => write!(f, "pictures"),
            PayloadKind::Vector { dim } => write!(f, "vectors of {dim} numbers"),
        }
    }
}

/// What is left to do for a payload once [`Encoder::prepare`] has seen it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Prepared {
    /// All of it.
    Payload(Payload),
    /// The network's part: a picture in the shape that the network reads, as the encoder lays it out.
    Pixels(Vec<u8>),
    /// Nothing.
    Code(HashCode),
}

impl Prepared {
    /// Bytes this keeps alive besides the payload it was made of.
    pub fn size_bytes(&self) -> usize {
        match self {
            Prepared::Payload(_) | Prepared::Code(_) => 0,
            Prepared::Pixels(pixels) => pixels.len(),
        }
    }
}

/// Turns payloads into hash codes of one length.
///
/// Contract: `encode` returns exactly one entry per payload, in order, and the same payload always
/// gets the same code. An `Err` of the whole call means that no entry has a code; one bad payload is an
/// `Err` entry and leaves its neighbours alone. [`ErrorKind::DeviceMemory`] asks for smaller batches,
/// [`ErrorKind::DeviceLost`] says that no call will succeed any more; any other error may be that of one
/// payload.
///
/// An encoder whose work has a part that needs no model, such as decoding pictures, says so by
/// [`prepares`](Encoder::prepares). An [`EncoderService`] then does that part on many threads, while the
/// model is at work on the pictures before. To `prepare` and to `encode_prepared` is to `encode`.
///
/// [`ErrorKind::DeviceMemory`]: crate::ErrorKind::DeviceMemory
/// [`ErrorKind::DeviceLost`]: crate::ErrorKind::DeviceLost
pub trait Encoder: Send + Sync {
    /// The length of every code this encoder makes.
    fn code_len(&self) -> CodeLen;

    /// Names the model and its weights. A field remembers it, so codes of two models never mix.
    fn model_id(&self) -> &str;

    /// The one kind of payload that may get a code; `None` if that is not known. All others fail one by one: who
    /// has a whole collection to encode can ask before.
    fn reads(&self) -> Option<PayloadKind> {
        None
    }

    /// The largest batch worth sending at once.
    fn max_batch(&self) -> usize {
        256
    }

    /// Encodes a batch.
    fn encode(&self, batch: &[Payload]) -> Result<Vec<Result<HashCode, EncodeError>>>;

    /// Whether [`prepare`](Encoder::prepare) does anything. It stays what it is.
    fn prepares(&self) -> bool {
        false
    }

    /// Does the part of the work that needs no model. Called on several threads at once.
    ///
    /// # Errors
    /// What is wrong with this payload.
    fn prepare(&self, payload: &Payload) -> Result<Prepared, EncodeError> {
        Ok(Prepared::Payload(payload.clone()))
    }

    /// The most bytes that [`prepare`](Encoder::prepare) holds for this payload, its result included and
    /// the payload not. An upper bound, found quickly.
    fn prepare_bytes(&self, _payload: &Payload) -> usize {
        0
    }

    /// Encodes what [`prepare`](Encoder::prepare) made, by the contract of `encode`. An encoder that
    /// prepares implements this as well.
    fn encode_prepared(&self, batch: &[Prepared]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        let payloads: Vec<Payload> = batch.iter().filter_map(Prepared::payload).collect();
        if payloads.len() < batch.len() {
            return Err(Error::invalid(
                "expected an encoder that reads what it prepares, got one that implements `prepare` alone",
            ));
        }
        self.encode(&payloads)
    }
}

impl Prepared {
    fn payload(&self) -> Option<Payload> {
        match self {
            Prepared::Payload(payload) => Some(payload.clone()),
            _ => None,
        }
    }
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

/// Codes of vectors of `dim` finite numbers by the signs of their logits, on many threads.
fn sign_codes(
    len: CodeLen,
    dim: usize,
    batch: &[Payload],
    logits: impl Fn(&[f32]) -> Vec<f32> + Sync,
) -> Vec<Result<HashCode, EncodeError>> {
    let code = |payload: &Payload| pack(len, &logits(payload.finite_vector(dim)?));
    on_pool(|| batch.par_iter().map(code).collect())
}

/// Packs code logits; what cannot be packed is the item's failure.
fn pack(len: CodeLen, logits: &[f32]) -> Result<HashCode, EncodeError> {
    crate::code::binarize(len, logits).map_err(|error| EncodeError {
        stage: EncodeStage::Encode,
        reason: error.to_string(),
    })
}

/// The inner products of a vector with the rows of a matrix.
fn products(rows: &[f32], vector: &[f32]) -> Vec<f32> {
    let rows = rows.chunks_exact(vector.len());
    rows.map(|row| dot(row, vector)).collect()
}

/// The inner product, in eight sums that a vector unit can hold and that are added up in order.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
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

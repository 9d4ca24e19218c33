//! Encoders with known answers and known faults.

use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};
use tanhash::encode::EncodeStage;
use tanhash::{CodeLen, EncodeError, Encoder, Error, ErrorKind, HashCode, Payload, Result};

/// The code of a payload is its SHA-256, repeated; a payload that starts with `bad` is refused, one that
/// starts with `panic` panics, and one that starts with `batch` fails its whole batch.
pub struct Lookup {
    model_id: String,
    len: CodeLen,
    pub calls: AtomicUsize,
}

impl Lookup {
    pub fn new(model_id: &str, bits: usize) -> Lookup {
        Lookup {
            model_id: model_id.to_owned(),
            len: CodeLen::new(bits).unwrap(),
            calls: AtomicUsize::new(0),
        }
    }

    pub fn code(bits: usize, bytes: &[u8]) -> HashCode {
        let digest = Sha256::digest(bytes);
        let bytes: Vec<u8> = digest.iter().copied().cycle().take(bits / 8).collect();
        HashCode::from_bytes(&bytes).unwrap()
    }
}

impl Encoder for Lookup {
    fn code_len(&self) -> CodeLen {
        self.len
    }

    fn model_id(&self) -> &str {
        &self.model_id
    }

    fn max_batch(&self) -> usize {
        16
    }

    fn encode(&self, batch: &[Payload]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let bytes_of = |payload: &Payload| match payload {
            Payload::Image(bytes) => bytes.to_vec(),
            Payload::Vector(values) => values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
            _ => Vec::new(),
        };
        if batch
            .iter()
            .any(|payload| bytes_of(payload).starts_with(b"batch"))
        {
            return Err(Error::new(ErrorKind::Encoder("device lost".to_owned())));
        }
        let codes = batch.iter().map(|payload| {
            let bytes = bytes_of(payload);
            assert!(!bytes.starts_with(b"panic"), "a planted panic");
            if bytes.starts_with(b"bad") {
                let reason = "expected a picture, found something else".to_owned();
                return Err(EncodeError {
                    stage: EncodeStage::Decode,
                    reason,
                });
            }
            Ok(Lookup::code(self.len.bits(), &bytes))
        });
        Ok(codes.collect())
    }
}

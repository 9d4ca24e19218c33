//! A second encoder for when the device of the first is lost: the same model on the CPU, by choice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{EncodeError, Encoder, Payload, PayloadKind, Prepared};
use crate::code::{CodeLen, HashCode};
use crate::error::{Error, ErrorKind, Result};

/// Encodes with `first` until its device is lost, then with `second` for good.
///
/// Both must be of one model and prepare payloads alike, as a model opened on a GPU and on the CPU does.
/// Codes may differ in bits whose logit is within rounding of zero. Without this, a lost device stops the
/// service of its encoder, and calls fail with [`ErrorKind::EncoderStopped`].
pub struct Fallback {
    first: Arc<dyn Encoder>,
    second: Arc<dyn Encoder>,
    lost: AtomicBool,
}

impl Fallback {
    /// # Errors
    /// `InvalidArgument` if the two differ in model, code length, or in whether they prepare.
    pub fn new(first: Arc<dyn Encoder>, second: Arc<dyn Encoder>) -> Result<Fallback> {
        if first.model_id() != second.model_id() || first.code_len() != second.code_len() {
            return Err(Error::invalid(format!(
                "expected two encoders of one model, got {:?} of {} bits and {:?} of {} bits",
                first.model_id(),
                first.code_len(),
                second.model_id(),
                second.code_len(),
            )));
        }
        if first.prepares() != second.prepares() {
            return Err(Error::invalid(
                "expected two encoders that both prepare payloads, or neither; one of them does",
            ));
        }
        Ok(Fallback {
            first,
            second,
            lost: AtomicBool::new(false),
        })
    }

    /// Whether the first device was lost.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    fn encoder(&self) -> &dyn Encoder {
        match self.is_lost() {
            false => &*self.first,
            true => &*self.second,
        }
    }

    fn or_second<T>(&self, run: impl Fn(&dyn Encoder) -> Result<T>) -> Result<T> {
        match run(self.encoder()) {
            Err(error) if matches!(error.kind(), ErrorKind::DeviceLost(_)) && !self.is_lost() => {
                tracing::error!(%error, model = self.model_id(), "encoding goes on with the second encoder");
                self.lost.store(true, Ordering::Relaxed);
                run(&*self.second)
            }
            outcome => outcome,
        }
    }
}

impl Encoder for Fallback {
    fn code_len(&self) -> CodeLen {
        self.first.code_len()
    }

    fn model_id(&self) -> &str {
        self.first.model_id()
    }

    fn reads(&self) -> Option<PayloadKind> {
        self.first.reads()
    }

    fn max_batch(&self) -> usize {
        self.encoder().max_batch()
    }

    fn encode(&self, batch: &[Payload]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        self.or_second(|encoder| encoder.encode(batch))
    }

    fn prepares(&self) -> bool {
        self.first.prepares()
    }

    fn prepare(&self, payload: &Payload) -> Result<Prepared, EncodeError> {
        self.encoder().prepare(payload)
    }

    fn prepare_bytes(&self, payload: &Payload) -> usize {
        self.encoder().prepare_bytes(payload)
    }

    fn encode_prepared(&self, batch: &[Prepared]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        self.or_second(|encoder| encoder.encode_prepared(batch))
    }
}

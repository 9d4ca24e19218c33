//! Codes from logits that were computed elsewhere: another framework's model, a file, a service.

use super::{EncodeError, Encoder, Payload, PayloadKind, pack};
use crate::code::{CodeLen, HashCode};
use crate::error::{Error, Result};

/// Packs [`Payload::Vector`] of one number a bit by the sign rule of
/// [`binarize`](crate::code::binarize). Codes as -1 and +1, or as 0 and 1, come through unchanged.
#[derive(Clone, Debug)]
pub struct LogitsEncoder {
    len: CodeLen,
    model_id: String,
}

impl LogitsEncoder {
    /// For the logits of the model that `model_id` names.
    ///
    /// # Errors
    /// `InvalidArgument` if the name is empty: it is all that keeps codes of two models apart.
    pub fn new(len: CodeLen, model_id: impl Into<String>) -> Result<LogitsEncoder> {
        let model_id = model_id.into();
        if model_id.is_empty() {
            return Err(Error::invalid(
                "a model needs a name, so that its codes never mix with another's; got an empty one",
            ));
        }
        Ok(LogitsEncoder { len, model_id })
    }
}

impl Encoder for LogitsEncoder {
    fn code_len(&self) -> CodeLen {
        self.len
    }

    fn model_id(&self) -> &str {
        &self.model_id
    }

    fn reads(&self) -> Option<PayloadKind> {
        let dim = self.len.bits();
        Some(PayloadKind::Vector { dim })
    }

    fn encode(&self, batch: &[Payload]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        Ok(batch
            .iter()
            .map(|payload| pack(self.len, payload.finite_vector(self.len.bits())?))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_become_bits() {
        let encoder = LogitsEncoder::new(CodeLen::new(16).unwrap(), "mine").unwrap();
        let mut logits = [-0.3f32; 16];
        logits[1] = 2.0;
        let codes = encoder
            .encode(&[
                Payload::Vector(logits[..].into()),
                Payload::Vector(logits[1..].into()),
            ])
            .unwrap();
        assert_eq!(codes[0].as_ref().unwrap().words(), [2]);
        assert!(codes[1].is_err());
        assert!(LogitsEncoder::new(CodeLen::new(16).unwrap(), "").is_err());
    }
}

//! Sign hashing by random hyperplanes: a code for any float vector, without training.
//!
//! Bit j is the side of hyperplane j that the vector lies on, so the expected share of differing bits is
//! the angle between two vectors over pi (Charikar, STOC 2002). The hyperplanes follow from the seed
//! alone, by integer arithmetic, and sums are taken in one fixed order: every machine and every
//! release makes the same codes.

use super::{EncodeError, Encoder, Payload, PayloadKind, products, sign_codes};
use crate::code::{CodeLen, HashCode};
use crate::error::{Error, Result};
use crate::random;

/// Vectors longer than this are a mistake of units rather than a model's output.
const MAX_DIM: usize = 1 << 16;

/// Encodes [`Payload::Vector`] of one dimension by random hyperplanes through the origin.
#[derive(Clone, Debug)]
pub struct SignLsh {
    len: CodeLen,
    dim: usize,
    model_id: String,
    /// `bits x dim`, a row a hyperplane's normal.
    normals: Vec<f32>,
}

impl SignLsh {
    /// Draws the hyperplanes for vectors of `dim` numbers. The model is named `lsh-<bits>-<dim>-<seed>`.
    ///
    /// # Errors
    /// `InvalidArgument` unless `dim` is 1 to 65536.
    pub fn new(len: CodeLen, dim: usize, seed: u64) -> Result<SignLsh> {
        if !(1..=MAX_DIM).contains(&dim) {
            return Err(Error::invalid(format!(
                "sign hashing takes vectors of 1 to {MAX_DIM} numbers, got {dim}"
            )));
        }
        let mut rng = random::generator(seed, 0);
        let mut normal = || random::near_normal(&mut rng) as f32;
        Ok(SignLsh {
            len,
            dim,
            model_id: format!("lsh-{len}-{dim}-{seed}"),
            normals: (0..len.bits() * dim).map(|_| normal()).collect(),
        })
    }
}

impl Encoder for SignLsh {
    fn code_len(&self) -> CodeLen {
        self.len
    }

    fn model_id(&self) -> &str {
        &self.model_id
    }

    fn reads(&self) -> Option<PayloadKind> {
        let dim = self.dim;
        Some(PayloadKind::Vector { dim })
    }

    fn encode(&self, batch: &[Payload]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        let logits = |vector: &[f32]| products(&self.normals, vector);
        Ok(sign_codes(self.len, self.dim, batch, logits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::EncodeStage;

    fn vector(values: &[f32]) -> Payload {
        Payload::Vector(values.into())
    }

    #[test]
    fn distance_follows_the_angle() {
        let len = CodeLen::new(1024).unwrap();
        let encoder = SignLsh::new(len, 2, 42).unwrap();
        assert_eq!(encoder.model_id(), "lsh-1024-2-42");
        let at = |degrees: f32| {
            let (y, x) = degrees.to_radians().sin_cos();
            vector(&[x, y])
        };
        let batch = [at(0.0), at(45.0), at(90.0), at(180.0), vector(&[9.0, 0.0])];
        let codes: Vec<HashCode> = encoder
            .encode(&batch)
            .unwrap()
            .into_iter()
            .map(Result::unwrap)
            .collect();
        let distance = |i: usize| codes[0].distance(&codes[i]).unwrap();
        assert!(distance(1).abs_diff(256) < 60, "{}", distance(1));
        assert!(distance(2).abs_diff(512) < 70, "{}", distance(2));
        assert_eq!((distance(3), distance(4)), (1024, 0));
    }

    #[test]
    fn codes_are_the_same_for_ever() {
        let encoder = SignLsh::new(CodeLen::new(64).unwrap(), 19, 7).unwrap();
        let values: Vec<f32> = (0..19).map(|i| (i as f32) - 8.5).collect();
        let code = encoder.encode(&[vector(&values)]).unwrap().remove(0);
        assert_eq!(code.unwrap().to_hex(), "21ce5aa22b8de66a");
    }

    #[test]
    fn one_bad_vector_leaves_the_others_alone() {
        let encoder = SignLsh::new(CodeLen::new(16).unwrap(), 3, 0).unwrap();
        let batch = [
            vector(&[1.0, 2.0, 3.0]),
            vector(&[1.0, f32::NAN, 3.0]),
            vector(&[1.0, 2.0]),
            Payload::Image(Vec::new().into()),
            vector(&[f32::MAX, f32::MAX, f32::MAX]),
        ];
        let codes = encoder.encode(&batch).unwrap();
        assert!(codes[0].is_ok());
        let reason = |i: usize| codes[i].as_ref().unwrap_err().to_string();
        assert_eq!(
            reason(1),
            "preprocess: expected finite numbers, number 1 is NaN"
        );
        assert_eq!(
            reason(2),
            "preprocess: expected a vector of 3 numbers, got 2"
        );
        assert_eq!(reason(3), "preprocess: expected a vector, got a picture");
        if let Err(error) = &codes[4] {
            assert_eq!(error.stage, EncodeStage::Encode);
        }
        assert!(SignLsh::new(CodeLen::new(16).unwrap(), 0, 0).is_err());
    }
}

//! The hash head: features to code logits.
//!
//! `v = BatchNorm(f W^T)`, with `W` K x q drawn from N(0, 0.01^2) and no bias, since the normalization
//! brings one (OrthoHash, Hoe et al. 2021, supplement, Algorithm 1). The normalization balances every
//! bit over the set: each is on for about half of the pictures.

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use crate::deep::weights::{Group, Init, Weights};
use crate::error::Result;

/// Momentum of running statistics, torch's default and the paper's.
const MOMENTUM: f64 = 0.1;
/// Keeps a bit of no variance finite, torch's default and the paper's.
const EPS: f64 = 1e-5;

/// Batch normalization over the first axis (N x C, or N x C x H x W).
pub(crate) struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl BatchNorm {
    pub fn new(
        weights: &mut Weights,
        path: &str,
        group: Group,
        channels: i64,
        rng: &mut ChaCha8Rng,
    ) -> Result<BatchNorm> {
        let mut parameter = |name: &str, value: f64| {
            let name = format!("{path}.{name}");
            weights.parameter(name, group, &[channels], Init::Const(value), rng)
        };
        Ok(BatchNorm {
            weight: parameter("weight", 1.0)?,
            bias: parameter("bias", 0.0)?,
            running_mean: weights.buffer(format!("{path}.running_mean"), &[channels], 0.0)?,
            running_var: weights.buffer(format!("{path}.running_var"), &[channels], 1.0)?,
        })
    }

    /// Batch statistics in training, running statistics otherwise.
    pub fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        Ok(xs.f_batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            train,
            MOMENTUM,
            EPS,
            true,
        )?)
    }
}

/// Features N x q to code logits N x K.
pub struct HashHead {
    weight: Tensor,
    norm: BatchNorm,
}

impl HashHead {
    /// A head of `bits` outputs over `features` inputs, its tensors under `head.`.
    ///
    /// # Errors
    /// `Torch`.
    pub fn new(
        weights: &mut Weights,
        features: i64,
        bits: i64,
        rng: &mut ChaCha8Rng,
    ) -> Result<HashHead> {
        let weight = weights.parameter(
            "head.linear.weight".into(),
            Group::Head,
            &[bits, features],
            Init::Normal(0.01),
            rng,
        )?;
        let norm = BatchNorm::new(weights, "head.norm", Group::Head, bits, rng)?;
        Ok(HashHead { weight, norm })
    }

    /// Code logits N x K of features N x q.
    ///
    /// # Errors
    /// `Torch`.
    pub fn forward(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        let outputs = features.f_linear::<&Tensor>(&self.weight, None)?;
        self.norm.forward(&outputs, train)
    }
}

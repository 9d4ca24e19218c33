//! GreedyHash: Greedy Hash: Towards Fast Optimization for Accurate Hash Coding in CNN, Su et al., NeurIPS
//! 2018, by its authors' code (ssppp).
//!
//! Code logits `u` (N x K, a linear layer with a bias) are classified through their signs, whose gradient
//! is passed straight through:
//!
//! ```text
//! b = sign(u)                                forward;  db/du = 1 backward
//! L = CE(b W^T, y)                           W is C x K, trained, without bias
//! Q = mean over n, k of | |u_nk| - 1 |^3
//! total = L + penalty Q
//! ```
//!
//! W is thrown away after training. A logit of exactly 0 has the sign -1 here, as in a code.

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

use super::{LossTerms, Method, StepInfo};
use crate::deep::weights::{Group, Init, Weights};
use crate::error::Result;

/// Settings of GreedyHash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Weight of Q: 0.1 for CIFAR, 1 for ImageNet in the authors' code.
    pub penalty: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config { penalty: 0.1 }
    }
}

/// GreedyHash with its classification layer.
pub struct GreedyHash {
    penalty: f64,
    bits: i64,
    n_classes: i64,
    weight: Tensor,
    weights: Weights,
}

impl GreedyHash {
    /// The method with a new classification layer, its first values from `rng`.
    ///
    /// # Errors
    /// `InvalidArgument` on a penalty that is not finite or negative; `Torch`.
    pub fn new(
        config: Config,
        n_classes: usize,
        bits: usize,
        device: tch::Device,
        rng: &mut ChaCha8Rng,
    ) -> Result<GreedyHash> {
        super::check_setting("greedyhash", "penalty", config.penalty)?;
        let (bits, n_classes) = (bits as i64, n_classes as i64);
        let mut weights = Weights::new(device);
        let weight = weights.parameter(
            "classes.weight".into(),
            Group::Head,
            &[n_classes, bits],
            Init::Normal(1.0 / (bits as f64).sqrt()),
            rng,
        )?;
        Ok(GreedyHash {
            penalty: config.penalty,
            bits,
            n_classes,
            weight,
            weights,
        })
    }

    fn signs(logits: &Tensor) -> Result<Tensor> {
        let above = logits.f_detach()?.f_gt(0.0)?.f_to_kind(Kind::Float)?;
        Ok(above.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?)
    }
}

impl Method for GreedyHash {
    fn name(&self) -> &'static str {
        "greedyhash"
    }

    fn loss(&self, logits: &Tensor, targets: &Tensor, _at: StepInfo) -> Result<LossTerms> {
        super::check_single("greedyhash", logits, targets, self.bits, self.n_classes)?;
        // The value of the signs, the gradient of the logits.
        let apart = GreedyHash::signs(logits)?.f_sub(&logits.f_detach()?)?;
        let signs = logits.f_add(&apart)?;
        let classification = signs
            .f_linear::<&Tensor>(&self.weight, None)?
            .f_cross_entropy_loss::<Tensor>(targets, None, Reduction::Mean, -100, 0.0)?;
        let apart = logits.f_abs()?.f_sub_scalar(1.0)?.f_abs()?;
        let cubes = apart.f_mul(&apart)?.f_mul(&apart)?.f_mean(Kind::Float)?;
        LossTerms::new()
            .with("classification", 1.0, &classification)?
            .with("quantization", self.penalty, &cubes)
    }

    fn accuracy(&self, logits: &Tensor, targets: &Tensor) -> Result<Option<f64>> {
        super::check_single("greedyhash", logits, targets, self.bits, self.n_classes)?;
        let scores = GreedyHash::signs(logits)?.f_linear::<&Tensor>(&self.weight, None)?;
        Ok(Some(super::top_share(&scores, targets)?))
    }

    fn weights(&self) -> Option<&Weights> {
        Some(&self.weights)
    }
}

//! HashNet: Deep Learning to Hash by Continuation, Cao et al., ICCV 2017.
//!
//! Code logits `v` (N x K, a linear layer with a bias) of a batch, all pairs of it:
//!
//! ```text
//! u      = tanh(beta v),       beta = sqrt(t + 1),  t the epochs passed, divided by continuation_epochs
//! theta  = alpha u u^T
//! L      = 1 / |S| sum_ij w_ij (log(1 + e^theta_ij) - s_ij theta_ij)
//! s_ij   = 1 if i and j share a label, else 0
//! w_ij   = |S| / |S1| for alike pairs, |S| / |S0| for the others
//! ```
//!
//! `|S|` are all N^2 pairs of the batch, a picture with itself included; `|S1|` and `|S0|` those alike
//! and not. beta grows while training goes on, so that tanh approaches the sign. Leaves out the memory of
//! other implementations, which pairs a batch with the last outputs of the whole train split.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{LossTerms, Method, StepInfo};
use crate::error::{Error, Result};

/// Settings of HashNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// alpha: 0.1 in one well-known implementation, 1 in another.
    pub alpha: f64,
    /// Epochs after which t rises by one, at least 1. Ours is 1, for runs of a dozen epochs; the
    /// implementation that the default alpha comes from has 20.
    pub continuation_epochs: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            alpha: 0.1,
            continuation_epochs: 1,
        }
    }
}

/// HashNet.
pub struct HashNet {
    config: Config,
    bits: i64,
    n_classes: i64,
}

impl HashNet {
    /// The method for codes of `bits` bits.
    ///
    /// # Errors
    /// `InvalidArgument` on a setting out of range.
    pub fn new(config: Config, n_classes: usize, bits: usize) -> Result<HashNet> {
        super::check_setting("hashnet", "alpha", config.alpha)?;
        if config.continuation_epochs == 0 {
            return Err(Error::invalid(
                "the continuation of hashnet takes at least 1 epoch, got 0",
            ));
        }
        Ok(HashNet {
            config,
            bits: bits as i64,
            n_classes: n_classes as i64,
        })
    }
}

impl Method for HashNet {
    fn name(&self) -> &'static str {
        "hashnet"
    }

    fn loss(&self, logits: &Tensor, targets: &Tensor, at: StepInfo) -> Result<LossTerms> {
        let multi_label = super::check_batch(logits, targets, self.bits, self.n_classes)?;
        let alike = match multi_label {
            true => {
                let labels = targets.f_to_kind(Kind::Float)?;
                labels.f_matmul(&labels.f_transpose(0, 1)?)?.f_gt(0.0)?
            }
            false => targets
                .f_unsqueeze(0)?
                .f_eq_tensor(&targets.f_unsqueeze(1)?)?,
        }
        .f_to_kind(Kind::Float)?;
        let beta = ((at.epoch / self.config.continuation_epochs + 1) as f64).sqrt();
        let outputs = logits.f_mul_scalar(beta)?.f_tanh()?;
        let theta = outputs
            .f_matmul(&outputs.f_transpose(0, 1)?)?
            .f_mul_scalar(self.config.alpha)?;
        let pairs = theta.f_softplus()?.f_sub(&alike.f_mul(&theta)?)?;
        // w / |S| is 1 / |S1| or 1 / |S0|. A batch of one class has no pair of the other kind.
        let mean = |kind: &Tensor| -> Result<Tensor> {
            let count = kind.f_sum(Kind::Float)?.f_clamp_min(1.0)?;
            Ok(pairs.f_mul(kind)?.f_sum(Kind::Float)?.f_div(&count)?)
        };
        let apart = alike.f_neg()?.f_add_scalar(1.0)?;
        let loss = mean(&alike)?.f_add(&mean(&apart)?)?;
        LossTerms::new().with("pairs", 1.0, &loss)
    }

    fn accuracy(&self, _logits: &Tensor, _targets: &Tensor) -> Result<Option<f64>> {
        Ok(None)
    }
}

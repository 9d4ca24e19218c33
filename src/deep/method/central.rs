//! CSQ: Central Similarity Quantization for Efficient Image and Video Retrieval, Yuan et al., CVPR 2020;
//! its central loss is also the third stage of [SHC](super::shc).
//!
//! With `u = tanh v` of code logits `v` (N x K, a linear layer with a bias) and the center `h` of the
//! picture's class:
//!
//! ```text
//! L     = mean over n, k of BCE((u_nk + 1) / 2, (h_nk + 1) / 2)
//! Q     = mean over n, k of (|u_nk| - 1)^2
//! total = L + quantization_weight Q
//! ```
//!
//! `(tanh v + 1) / 2 = sigmoid(2 v)`, so the binary cross entropy is computed from `2 v`, which stays
//! finite. With several labels the center is the majority of the labels' centers, bit by bit; a tie is
//! settled by a fixed random code, as in the authors' code (yuanli2333). That code's pairwise term is
//! off in its ResNet-50 setting and left out here.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{LossTerms, Method, StepInfo};
use crate::centers::{CentersKind, Codebook};
use crate::error::Result;

/// Settings of CSQ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Weight of Q. The authors' code has 0.05 with ResNet-50 (this default), 0.001 or 0.0001 with
    /// AlexNet.
    pub quantization_weight: f64,
    /// The codebook. Hadamard centers become balanced ones where K is no power of two.
    pub centers: CentersKind,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            quantization_weight: 0.05,
            centers: CentersKind::Hadamard,
        }
    }
}

/// The central loss with its centers.
pub struct Central {
    name: &'static str,
    quantization_weight: f64,
    bits: i64,
    n_classes: i64,
    /// C x K.
    centers: Tensor,
    /// K, settles ties between several labels.
    tie: Tensor,
}

impl Central {
    /// The loss with `codebook` as its targets, on `device`. `name` is that of the method it is part of.
    ///
    /// # Errors
    /// `InvalidArgument` on a weight that is not finite or negative; `Torch`.
    pub fn new(
        name: &'static str,
        quantization_weight: f64,
        codebook: &Codebook,
        device: tch::Device,
    ) -> Result<Central> {
        super::check_setting(name, "quantization weight", quantization_weight)?;
        let (n_classes, bits) = (codebook.n_classes() as i64, codebook.bits() as i64);
        // Any fixed code does; this one is the same for every codebook of its length.
        let tie = Codebook::seeded(CentersKind::Bernoulli, 1, codebook.bits(), 0)?;
        Ok(Central {
            name,
            quantization_weight,
            bits,
            n_classes,
            centers: super::codebook_tensor(codebook, device)?,
            tie: super::codebook_tensor(&tie, device)?.f_view([bits])?,
        })
    }

    /// The center of each picture, N x K.
    fn centers_of(&self, targets: &Tensor, multi_label: bool) -> Result<Tensor> {
        if !multi_label {
            return Ok(self.centers.f_index_select(0, targets)?);
        }
        let votes = targets.f_to_kind(Kind::Float)?.f_matmul(&self.centers)?;
        // Votes are whole numbers: the coin decides where they cancel out.
        Ok(votes.f_add(&self.tie.f_mul_scalar(0.5)?)?.f_sign()?)
    }
}

impl Method for Central {
    fn name(&self) -> &'static str {
        self.name
    }

    fn loss(&self, logits: &Tensor, targets: &Tensor, _at: StepInfo) -> Result<LossTerms> {
        let multi_label = super::check_batch(logits, targets, self.bits, self.n_classes)?;
        let centers = self.centers_of(targets, multi_label)?;
        // BCE(sigmoid(x), t) = softplus(x) - t x.
        let twice = logits.f_mul_scalar(2.0)?;
        let bits = centers.f_add_scalar(1.0)?.f_mul_scalar(0.5)?;
        let central = twice
            .f_softplus()?
            .f_sub(&twice.f_mul(&bits)?)?
            .f_mean(Kind::Float)?;
        LossTerms::new()
            .with("classification", 1.0, &central)?
            .with(
                "quantization",
                self.quantization_weight,
                &quantization(&logits.f_tanh()?)?,
            )
    }

    fn accuracy(&self, logits: &Tensor, targets: &Tensor) -> Result<Option<f64>> {
        super::check_batch(logits, targets, self.bits, self.n_classes)?;
        let products = logits
            .f_tanh()?
            .f_matmul(&self.centers.f_transpose(0, 1)?)?;
        Ok(Some(super::top_share(&products, targets)?))
    }
}

/// mean (|u| - 1)^2, a scalar.
fn quantization(outputs: &Tensor) -> Result<Tensor> {
    let apart = outputs.f_abs()?.f_sub_scalar(1.0)?;
    Ok(apart.f_mul(&apart)?.f_mean(Kind::Float)?)
}

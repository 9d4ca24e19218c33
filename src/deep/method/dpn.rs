//! DPN: Deep Polarized Network, IJCAI 2020, by its authors' code (kamwoh/DPN).
//!
//! Code logits `u` (N x K, a linear layer with a bias, no tanh) meet the target `t` of their class:
//!
//! ```text
//! L = mean over n of sum over k of max(m - u_nk t_nk, 0)
//! ```
//!
//! Targets are random codes by default. Leaves out the authors' option that moves targets to the means of
//! their classes.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{LossTerms, Method, StepInfo};
use crate::centers::{CentersKind, Codebook};
use crate::error::Result;

/// Settings of DPN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// m; 1 in the authors' code.
    pub margin: f64,
    /// The targets; random codes in the authors' code.
    pub centers: CentersKind,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            margin: 1.0,
            centers: CentersKind::Bernoulli,
        }
    }
}

/// DPN with its targets.
pub struct Dpn {
    margin: f64,
    bits: i64,
    n_classes: i64,
    /// C x K.
    centers: Tensor,
}

impl Dpn {
    /// The method with `codebook` as its targets, on `device`.
    ///
    /// # Errors
    /// `InvalidArgument` on a margin that is not finite or negative; `Torch`.
    pub fn new(config: Config, codebook: &Codebook, device: tch::Device) -> Result<Dpn> {
        super::check_setting("dpn", "margin", config.margin)?;
        Ok(Dpn {
            margin: config.margin,
            bits: codebook.bits() as i64,
            n_classes: codebook.n_classes() as i64,
            centers: super::codebook_tensor(codebook, device)?,
        })
    }
}

impl Method for Dpn {
    fn name(&self) -> &'static str {
        "dpn"
    }

    fn loss(&self, logits: &Tensor, targets: &Tensor, _at: StepInfo) -> Result<LossTerms> {
        super::check_single("dpn", logits, targets, self.bits, self.n_classes)?;
        let signed = logits.f_mul(&self.centers.f_index_select(0, targets)?)?;
        let loss = signed
            .f_neg()?
            .f_add_scalar(self.margin)?
            .f_relu()?
            .f_sum_dim_intlist(&[1i64][..], false, Kind::Float)?
            .f_mean(Kind::Float)?;
        LossTerms::new().with("polarization", 1.0, &loss)
    }

    fn accuracy(&self, logits: &Tensor, targets: &Tensor) -> Result<Option<f64>> {
        super::check_single("dpn", logits, targets, self.bits, self.n_classes)?;
        let products = logits.f_matmul(&self.centers.f_transpose(0, 1)?)?;
        Ok(Some(super::top_share(&products, targets)?))
    }
}

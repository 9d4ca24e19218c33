//! OrthoHash: One Loss for All, Deep Hashing with a Single Cosine Similarity based Learning Objective.
//! Hoe, Ng, Zhang, Chan, Song and Xiang, NeurIPS 2021 (arXiv 2109.14449).
//!
//! Code logits `v` (N x K, after batch normalization) meet a fixed codebook `O` (C x K of -1 and +1):
//!
//! ```text
//! cos_nc = <v_n, o_c> / (|v_n| |o_c|)                                      no epsilon; |o_c| = sqrt(K)
//! l_nc   = s (cos_nc - m y_nc)                                             margin Cos
//! l_nc   = s cos(arccos(clamp(cos_nc, -0.99999, 0.99999)) + m y_nc)        margin Arc
//! L      = -1/N sum_n sum_c w_nc log softmax(l_n)_c,   w_n = y_n / |y_n|_1
//! Q      = 1/N sum_n (1 - cos(v_n, sign v_n))
//! total  = L + quantization_weight Q
//! ```
//!
//! With one label a picture `L` is the cross entropy of the true class; with several, the paper's "label
//! smoothing" of its multi-label runs. Maximizing the cosine to a binary, nearly orthogonal target is at
//! once classification and quantization, hence one loss. The code is `b = sign v`. The equations are
//! those of the supplement's Algorithm 1 and of the authors' code (kamwoh/orthohash).

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

use crate::centers::{CentersKind, Codebook};
use crate::deep::method::{LossTerms, Method};
use crate::error::{Error, Result};

/// How the margin enters the true class's logit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Margin {
    /// Taken from the cosine (OrthoCos, the paper's main variant).
    #[default]
    Cos,
    /// Added to the angle (OrthoArc).
    Arc,
}

/// Settings of OrthoHash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the margin enters. Cos.
    pub margin_kind: Margin,
    /// m. The paper's tables use 0.2 (supplement D.2); the authors' CIFAR-10 example and their later
    /// framework use 0.3, and so does this default.
    pub margin: f64,
    /// s, the inverse temperature. `None` is the paper's sqrt(K) (supplement D.2); the authors' code
    /// fixes 8, which is the same at 64 bits.
    pub scale: Option<f64>,
    /// Weight of Q. 0 in the paper: the term exists in the authors' code and is off.
    pub quantization_weight: f64,
    /// The codebook. The paper draws fair coins; its authors recommend the maximum-distance codebook in
    /// their README and use it in their later framework, and so does this default.
    pub centers: CentersKind,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            margin_kind: Margin::Cos,
            margin: 0.3,
            scale: None,
            quantization_weight: 0.0,
            centers: CentersKind::MaxHd,
        }
    }
}

/// OrthoHash with its codebook.
pub struct OrthoHash {
    config: Config,
    scale: f64,
    bits: i64,
    n_classes: i64,
    /// K x C: the centers divided by their length sqrt(K), transposed for the product.
    unit_centers: Tensor,
}

impl OrthoHash {
    /// The method with `codebook` (C x K) as its targets, on `device`.
    ///
    /// # Errors
    /// `InvalidArgument` on a setting that is not finite or negative; `Torch`.
    pub fn new(config: Config, codebook: &Codebook, device: tch::Device) -> Result<OrthoHash> {
        let scale = config.scale.unwrap_or((codebook.bits() as f64).sqrt());
        for (name, value) in [
            ("margin", config.margin),
            ("scale", scale),
            ("quantization weight", config.quantization_weight),
        ] {
            if !value.is_finite() || value < 0.0 {
                return Err(Error::invalid(format!(
                    "the {name} of orthohash is a number from 0, got {value}"
                )));
            }
        }
        let (n_classes, bits) = (codebook.n_classes() as i64, codebook.bits() as i64);
        let unit_centers = Tensor::f_from_slice(codebook.entries())?
            .f_view([n_classes, bits])?
            .f_div_scalar((bits as f64).sqrt())?
            .f_transpose(0, 1)?
            .f_contiguous()?
            .f_to_device(device)?;
        Ok(OrthoHash {
            config,
            scale,
            bits,
            n_classes,
            unit_centers,
        })
    }

    /// Cosine of every picture to every center, N x C.
    fn cosines(&self, logits: &Tensor) -> Result<Tensor> {
        let lengths = logits.f_norm_scalaropt_dim(2, [1i64], true)?;
        Ok(logits.f_div(&lengths)?.f_matmul(&self.unit_centers)?)
    }

    /// The shapes of a batch, checked: true if it is multi-label.
    fn check(&self, logits: &Tensor, targets: &Tensor) -> Result<bool> {
        let (logits_shape, targets_shape) = (logits.size(), targets.size());
        let n_pictures = targets_shape.first().copied().unwrap_or(0);
        let multi_label = targets_shape == [n_pictures, self.n_classes];
        let single_label = targets_shape == [n_pictures] && targets.kind() == Kind::Int64;
        if logits_shape != [n_pictures, self.bits] || !(multi_label || single_label) {
            return Err(Error::invalid(format!(
                "expected logits [N, {}] with N class numbers or indicators [N, {}], got {:?} with {:?}",
                self.bits, self.n_classes, logits_shape, targets_shape
            )));
        }
        Ok(multi_label)
    }
}

impl Method for OrthoHash {
    fn name(&self) -> &'static str {
        "orthohash"
    }

    fn loss(&self, logits: &Tensor, targets: &Tensor) -> Result<LossTerms> {
        let multi_label = self.check(logits, targets)?;
        let cosines = self.cosines(logits)?;
        let indicators = match multi_label {
            true => targets.f_to_kind(Kind::Float)?,
            false => targets.f_one_hot(self.n_classes)?.f_to_kind(Kind::Float)?,
        };
        let margins = indicators.f_mul_scalar(self.config.margin)?;
        let class_logits = match self.config.margin_kind {
            Margin::Cos => cosines.f_sub(&margins)?,
            // The clamp keeps the derivative of arccos finite.
            Margin::Arc => cosines
                .f_clamp(-0.99999, 0.99999)?
                .f_arccos()?
                .f_add(&margins)?
                .f_cos()?,
        }
        .f_mul_scalar(self.scale)?;

        let classification = if multi_label {
            let weights = indicators.f_div(&indicators.f_sum_dim_intlist(
                &[1i64][..],
                true,
                Kind::Float,
            )?)?;
            class_logits
                .f_log_softmax(1, Kind::Float)?
                .f_mul(&weights)?
                .f_sum_dim_intlist(&[1i64][..], false, Kind::Float)?
                .f_mean(Kind::Float)?
                .f_neg()?
        } else {
            class_logits.f_cross_entropy_loss::<Tensor>(
                targets,
                None,
                Reduction::Mean,
                -100,
                0.0,
            )?
        };
        let quantization = match self.config.quantization_weight {
            0.0 => None,
            weight => Some(quantization(logits)?.f_mul_scalar(weight)?),
        };
        Ok(LossTerms {
            classification,
            quantization,
        })
    }

    fn accuracy(&self, logits: &Tensor, targets: &Tensor) -> Result<f64> {
        let multi_label = self.check(logits, targets)?;
        let nearest = self.cosines(&logits.f_detach()?)?.f_argmax(1, false)?;
        let right = match multi_label {
            true => targets
                .f_gather(1, &nearest.f_unsqueeze(1)?, false)?
                .f_gt(0.0)?,
            false => nearest.f_eq_tensor(targets)?,
        };
        Ok(f64::try_from(
            right.f_to_kind(Kind::Float)?.f_mean(Kind::Float)?,
        )?)
    }
}

/// Q = 1/N sum_n (1 - cos(v_n, sign v_n)), a scalar. `logits` are N x K; the sign gets no gradient.
fn quantization(logits: &Tensor) -> Result<Tensor> {
    let signs = logits.f_detach()?.f_sign()?;
    let lengths = logits.f_norm_scalaropt_dim(2, [1i64], false)?;
    let sign_lengths = signs.f_norm_scalaropt_dim(2, [1i64], false)?;
    let cosines = logits
        .f_mul(&signs)?
        .f_sum_dim_intlist(&[1i64][..], false, Kind::Float)?
        .f_div(&lengths.f_mul(&sign_lengths)?)?;
    Ok(cosines.f_mean(Kind::Float)?.f_neg()?.f_add_scalar(1.0)?)
}

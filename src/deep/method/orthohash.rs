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
//! smoothing" of its multi-label runs; with none, `w_n = 0`. Maximizing the cosine to a binary, nearly
//! orthogonal target is at once classification and quantization, hence one loss. The code is
//! `b = sign v`. The equations are those of the supplement's Algorithm 1 and of the authors' code (kamwoh/orthohash).

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

use crate::centers::{CentersKind, Codebook};
use crate::deep::method::{LossTerms, Method, StepInfo};
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

/// s, the inverse temperature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// sqrt(K), the paper's (supplement D.2).
    #[default]
    SqrtBits,
    /// This number. The authors' code fixes 8, which is sqrt(K) at 64 bits.
    Fixed(f64),
    /// sqrt(2) ln(C - 1), which the supplement's ablation recommends; for 3 classes or more.
    LogClasses,
}

impl Scale {
    /// s for `n_classes` codes of `bits` bits.
    pub fn value(self, n_classes: usize, bits: usize) -> f64 {
        match self {
            Scale::SqrtBits => (bits as f64).sqrt(),
            Scale::Fixed(scale) => scale,
            Scale::LogClasses => std::f64::consts::SQRT_2 * (n_classes as f64 - 1.0).ln(),
        }
    }
}

impl std::str::FromStr for Scale {
    type Err = Error;

    fn from_str(text: &str) -> Result<Scale> {
        match (text, text.parse()) {
            ("sqrt-bits", _) => Ok(Scale::SqrtBits),
            ("log-classes", _) => Ok(Scale::LogClasses),
            (_, Ok(scale)) => Ok(Scale::Fixed(scale)),
            _ => Err(Error::invalid(format!(
                "a scale is sqrt-bits, log-classes or a number, got {text:?}"
            ))),
        }
    }
}

impl std::str::FromStr for Margin {
    type Err = Error;

    fn from_str(text: &str) -> Result<Margin> {
        match text {
            "cos" => Ok(Margin::Cos),
            "arc" => Ok(Margin::Arc),
            _ => Err(Error::invalid(format!(
                "a margin enters by cos or arc, got {text:?}"
            ))),
        }
    }
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
    /// s, the inverse temperature.
    pub scale: Scale,
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
            scale: Scale::SqrtBits,
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
        let scale = config.scale.value(codebook.n_classes(), codebook.bits());
        if config.scale == Scale::LogClasses && codebook.n_classes() < 3 {
            return Err(Error::invalid(format!(
                "the scale log-classes takes at least 3 classes, got {}; use sqrt-bits",
                codebook.n_classes()
            )));
        }
        for (name, value) in [
            ("margin", config.margin),
            ("scale", scale),
            ("quantization weight", config.quantization_weight),
        ] {
            super::check_setting("orthohash", name, value)?;
        }
        if scale == 0.0 {
            return Err(Error::invalid(
                "the scale of orthohash is above 0, or nothing is learned; use sqrt-bits",
            ));
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
}

impl Method for OrthoHash {
    fn name(&self) -> &'static str {
        "orthohash"
    }

    fn loss(&self, logits: &Tensor, targets: &Tensor, _at: StepInfo) -> Result<LossTerms> {
        let multi_label = super::check_batch(logits, targets, self.bits, self.n_classes)?;
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
            // An example of no class pulls nowhere.
            let n_labels = indicators.f_sum_dim_intlist(&[1i64][..], true, Kind::Float)?;
            let weights = indicators.f_div(&n_labels.f_clamp_min(1.0)?)?;
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
        let terms = LossTerms::new().with("classification", 1.0, &classification)?;
        match self.config.quantization_weight {
            0.0 => Ok(terms),
            weight => terms.with("quantization", weight, &quantization(logits)?),
        }
    }

    fn accuracy(&self, logits: &Tensor, targets: &Tensor) -> Result<Option<f64>> {
        super::check_batch(logits, targets, self.bits, self.n_classes)?;
        let cosines = self.cosines(&logits.f_detach()?)?;
        Ok(Some(super::top_share(&cosines, targets)?))
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

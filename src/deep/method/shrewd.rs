//! SHREWD: distances of codes follow semantic distances of their classes. Arponen and Bishop, *SHREWD:
//! Semantic Hierarchy-based Relational Embeddings for Weakly-supervised Deep Hashing*, LLD workshop at
//! ICLR 2019 (arXiv 1908.05602), and *Learning to hash with semantic similarity metrics and empirical KL
//! divergence* (arXiv 2005.04917).
//!
//! UNVERIFIED: of both papers only the abstracts were read. That the loss is a classification term, a
//! similarity term and a nearest-neighbour estimate of a KL divergence to a binary target distribution is
//! theirs; every formula and constant below is from memory or standard, not compared with the papers.
//! The weights of the terms are ours.
//!
//! With `z = sigmoid v` of code logits `v` (N x K, a linear layer with a bias), labels `y`, and semantic
//! distances `d` of classes:
//!
//! ```text
//! L_sim = 1/N^2 sum_bc w_bc | |z_b - z_c|_1 / tau_z - d(y_b, y_c) / tau_y |
//!         tau_z, tau_y: the means of |z_b - z_c|_1 and of d(y_b, y_c) over the batch
//!         w_bc = gamma^rho / (gamma + d(y_b, y_c))^rho,   gamma = 0.1, rho = 2
//! L_KL  = K/N sum_b [ log nu_b - log rho_b ]
//!         nu_b: Euclidean distance of z_b to the nearest of N draws from Beta(0.1, 0.1)^K, new every step
//!         rho_b: that to the nearest other z of the batch
//! L_cls = cross entropy of a linear layer over z
//! total = classification_weight L_cls + similarity_weight L_sim + kl_weight L_KL
//! ```
//!
//! On binary codes the L1 distance is the Hamming distance. `L_KL` is the estimator of Wang, Kulkarni and
//! Verdu (IEEE Trans. Inf. Theory 2009) without its constant `log(M / (N - 1))`; nearest neighbours are
//! chosen without gradient, and logarithms of distances are `log(distance^2 + 1e-12) / 2`, finite for
//! equal outputs. The gradient passes through tau_z. Without class labels, weakly supervised, d is given
//! for pairs of train pictures and L_cls is left out.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::Beta;
use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

use super::{LossTerms, Method, StepInfo, TargetKind};
use crate::centers::ClassDistances;
use crate::deep::device::{self, Stream};
use crate::deep::weights::{Group, Init, Weights};
use crate::error::{Error, Result};

/// Added to squared distances under a logarithm.
const DISTANCE_FLOOR: f64 = 1e-12;

/// torch's way to Euclidean distances that sums the squares of differences: by way of a product of matrices,
/// nearly equal outputs would be at any distance.
const TERM_BY_TERM: Option<i64> = Some(2);

/// Settings of SHREWD. All of the defaults are unverified (see the top of the file).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Weight of the classification term; 0 leaves it out. Ours.
    pub classification_weight: f64,
    /// Weight of the similarity term. Ours. `None` is 30 with distances; 3 without, where this term has less to say
    /// than the classification, and at 30 drowns it.
    pub similarity_weight: Option<f64>,
    /// Weight of the KL term. Ours.
    pub kl_weight: f64,
    /// gamma, above 0.
    pub gamma: f64,
    /// rho.
    pub rho: f64,
    /// alpha = beta of the target distribution, above 0; far below 1 it is nearly binary.
    pub target_shape: f64,
    /// The distances are of train pictures, not of classes.
    pub weakly_supervised: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            classification_weight: 1.0,
            similarity_weight: None,
            kl_weight: 0.001,
            gamma: 0.1,
            rho: 2.0,
            target_shape: 0.1,
            weakly_supervised: false,
        }
    }
}

/// SHREWD with its distances and its classification layer.
pub struct Shrewd {
    config: Config,
    similarity_weight: f64,
    bits: i64,
    n_classes: i64,
    /// n x n, of classes or of train pictures.
    distances: Tensor,
    layer: Option<(Tensor, Tensor)>,
    weights: Weights,
}

impl Shrewd {
    /// The method with `distances` of classes, or of train pictures if it is weakly supervised. Without
    /// distances any two classes are at distance 1, which is no semantics, but a baseline.
    ///
    /// # Errors
    /// `InvalidArgument` on a setting out of range, or distances of another number of classes; `Torch`.
    pub fn new(
        config: Config,
        n_classes: usize,
        bits: usize,
        distances: Option<&ClassDistances>,
        device: tch::Device,
        rng: &mut ChaCha8Rng,
    ) -> Result<Shrewd> {
        let default = if distances.is_some() { 30.0 } else { 3.0 };
        let similarity_weight = config.similarity_weight.unwrap_or(default);
        for (name, value, positive) in [
            ("classification weight", config.classification_weight, false),
            ("similarity weight", similarity_weight, false),
            ("KL weight", config.kl_weight, false),
            ("gamma", config.gamma, true),
            ("rho", config.rho, false),
            ("target shape", config.target_shape, true),
        ] {
            super::check_setting("shrewd", name, value)?;
            if positive && value == 0.0 {
                return Err(Error::invalid(format!(
                    "the {name} of shrewd is above 0, got 0"
                )));
            }
        }
        let given = match distances {
            Some(distances) if config.weakly_supervised => distances.clone(),
            Some(distances) if distances.n() == n_classes => distances.clone(),
            Some(distances) => {
                return Err(Error::invalid(format!(
                    "expected distances of {n_classes} classes, got {}; for distances of train pictures choose weakly supervised",
                    distances.n()
                )));
            }
            None if config.weakly_supervised => {
                return Err(Error::invalid(
                    "weakly supervised shrewd learns from distances of train pictures, got none",
                ));
            }
            None => {
                let apart = |at: usize| {
                    if at.is_multiple_of(n_classes + 1) {
                        0.0
                    } else {
                        1.0
                    }
                };
                ClassDistances::new(n_classes, (0..n_classes * n_classes).map(apart).collect())?
            }
        };
        let size = given.n() as i64;
        let distances = Tensor::f_from_slice(given.entries())?
            .f_view([size, size])?
            .f_to_device(device)?;
        let (bits, n_classes) = (bits as i64, n_classes as i64);
        let mut weights = Weights::new(device);
        let mut layer = None;
        if config.classification_weight > 0.0 && !config.weakly_supervised {
            let init = Init::Normal(1.0 / (bits as f64).sqrt());
            let mut parameter = |name: &str, shape: &[i64], init| {
                weights.parameter(name.into(), Group::Head, shape, init, rng)
            };
            layer = Some((
                parameter("classes.weight", &[n_classes, bits], init)?,
                parameter("classes.bias", &[n_classes], Init::Const(0.0))?,
            ));
        }
        Ok(Shrewd {
            config,
            similarity_weight,
            bits,
            n_classes,
            distances,
            layer,
            weights,
        })
    }

    fn check(&self, logits: &Tensor, targets: &Tensor) -> Result<()> {
        super::check_single("shrewd", logits, targets, self.bits, self.n_classes)
    }

    /// The classification layer's scores N x C.
    fn scores(&self, outputs: &Tensor) -> Result<Option<Tensor>> {
        Ok(match &self.layer {
            Some((weight, bias)) => Some(outputs.f_linear(weight, Some(bias))?),
            None => None,
        })
    }

    /// L_sim of outputs N x K.
    fn similarity(&self, outputs: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let wished = self
            .distances
            .f_index_select(0, targets)?
            .f_index_select(1, targets)?;
        let found = Tensor::f_cdist(outputs, outputs, 1.0, None)?;
        let weights = wished
            .f_div_scalar(self.config.gamma)?
            .f_add_scalar(1.0)?
            .f_pow_tensor_scalar(-self.config.rho)?;
        // Batches of one class, or of equal outputs, have no scale.
        let scaled = |distances: &Tensor| -> Result<Tensor> {
            let mean = distances.f_mean(Kind::Float)?.f_clamp_min(DISTANCE_FLOOR)?;
            Ok(distances.f_div(&mean)?)
        };
        let apart = scaled(&found)?.f_sub(&scaled(&wished)?)?.f_abs()?;
        Ok(apart.f_mul(&weights)?.f_mean(Kind::Float)?)
    }

    /// The N x K draws of a step.
    fn draws(&self, n: i64, at: StepInfo, device: tch::Device) -> Result<Tensor> {
        let shape = self.config.target_shape;
        let beta = Beta::new(shape, shape)
            .map_err(|error| Error::invalid(format!("target shape {shape}: {error}")))?;
        let mut rng = device::rng(at.seed, Stream::Step(at.step));
        let draws = (0..n * self.bits).map(|_| {
            let draw: f64 = rng.sample(beta);
            // Shapes far below 1 can underflow in the sampler; such a draw is at one of the ends.
            if draw.is_finite() {
                draw.clamp(0.0, 1.0) as f32
            } else {
                0.0
            }
        });
        let draws = Tensor::f_from_slice(&draws.collect::<Vec<f32>>())?;
        device::moved(&draws.f_view([n, self.bits])?, device)
    }
}

/// L_KL of outputs N x K and draws M x K of the target distribution: `K/N sum (log nu - log rho)`.
///
/// # Errors
/// `InvalidArgument` for fewer than two outputs; `Torch`.
pub fn empirical_kl(outputs: &Tensor, draws: &Tensor) -> Result<Tensor> {
    let n = outputs.size().first().copied().unwrap_or(0);
    if n < 2 {
        return Err(Error::invalid(format!(
            "nearest neighbours take at least 2 outputs, got {n}"
        )));
    }
    let fixed = outputs.f_detach()?;
    let itself = Tensor::f_eye(n, (Kind::Float, outputs.device()))?.f_to_kind(Kind::Bool)?;
    let to_draws = Tensor::f_cdist(&fixed, draws, 2.0, TERM_BY_TERM)?;
    let to_others = Tensor::f_cdist(&fixed, &fixed, 2.0, TERM_BY_TERM)?;
    let to_others = to_others.f_masked_fill(&itself, f64::INFINITY)?;
    let nearest = |distances: &Tensor| distances.f_argmin(1, false);
    let nu = outputs.f_sub(&draws.f_index_select(0, &nearest(&to_draws)?)?)?;
    let rho = outputs.f_sub(&outputs.f_index_select(0, &nearest(&to_others)?)?)?;
    let log = |apart: &Tensor| -> Result<Tensor> {
        Ok(apart
            .f_mul(apart)?
            .f_sum_dim_intlist(&[1i64][..], false, Kind::Float)?
            .f_add_scalar(DISTANCE_FLOOR)?
            .f_log()?
            .f_mul_scalar(0.5)?)
    };
    let bits = outputs.size()[1] as f64;
    Ok(log(&nu)?
        .f_sub(&log(&rho)?)?
        .f_mean(Kind::Float)?
        .f_mul_scalar(bits)?)
}

impl Method for Shrewd {
    fn name(&self) -> &'static str {
        "shrewd"
    }

    fn loss(&self, logits: &Tensor, targets: &Tensor, at: StepInfo) -> Result<LossTerms> {
        self.check(logits, targets)?;
        let outputs = logits.f_sigmoid()?;
        let mut terms = LossTerms::new();
        if let Some(scores) = self.scores(&outputs)? {
            let loss =
                scores.f_cross_entropy_loss::<Tensor>(targets, None, Reduction::Mean, -100, 0.0)?;
            terms = terms.with("classification", self.config.classification_weight, &loss)?;
        }
        let similarity = self.similarity(&outputs, targets)?;
        terms = terms.with("similarity", self.similarity_weight, &similarity)?;
        if self.config.kl_weight > 0.0 {
            let draws = self.draws(logits.size()[0], at, logits.device())?;
            let kl = empirical_kl(&outputs, &draws)?;
            terms = terms.with("kl", self.config.kl_weight, &kl)?;
        }
        Ok(terms)
    }

    fn accuracy(&self, logits: &Tensor, targets: &Tensor) -> Result<Option<f64>> {
        self.check(logits, targets)?;
        match self.scores(&logits.f_sigmoid()?)? {
            Some(scores) => Ok(Some(super::top_share(&scores, targets)?)),
            None => Ok(None),
        }
    }

    fn targets(&self) -> TargetKind {
        match self.config.weakly_supervised {
            true => TargetKind::Examples,
            false => TargetKind::Classes,
        }
    }

    fn weights(&self) -> Option<&Weights> {
        Some(&self.weights)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn the_weight_of_the_similarities_follows_what_they_say() {
        let weight = |given, distances: Option<&ClassDistances>| {
            let config = Config {
                similarity_weight: given,
                ..Config::default()
            };
            let mut rng = ChaCha8Rng::seed_from_u64(0);
            let shrewd = Shrewd::new(config, 3, 16, distances, tch::Device::Cpu, &mut rng);
            shrewd.unwrap().similarity_weight
        };
        let tree = vec![0.0, 0.5, 1.0, 0.5, 0.0, 1.0, 1.0, 1.0, 0.0];
        let tree = ClassDistances::new(3, tree).unwrap();
        assert_eq!((weight(None, None), weight(None, Some(&tree))), (3.0, 30.0));
        assert_eq!(
            (weight(Some(7.0), None), weight(Some(7.0), Some(&tree))),
            (7.0, 7.0)
        );
    }
}

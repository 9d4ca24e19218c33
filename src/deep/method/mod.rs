//! A method: what code logits are pulled towards. One file each.
//!
//! To add one: a file with its equations, its `Config` and its loss, a row in [`MethodConfig`], and
//! recorded values under `fixtures/methods/`. A code is always the signs of the logits; what a method
//! does to them first, a tanh or a sigmoid, happens inside its loss and keeps signs.

pub mod central;
pub mod classifier;
pub mod dpn;
pub mod greedyhash;
pub mod hashnet;
pub mod orthohash;
pub mod shc;
pub mod shrewd;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::centers::{CentersKind, ClassDistances, Codebook};
use crate::deep::device::{self, Stream};
use crate::deep::hash_head::HeadKind;
use crate::deep::weights::Weights;
use crate::error::{Error, Result};

/// What a loss is made of; each a scalar tensor, already weighted, under the name it has in logs.
#[derive(Debug, Default)]
pub struct LossTerms {
    terms: Vec<(&'static str, Tensor)>,
}

impl LossTerms {
    /// No terms.
    pub fn new() -> LossTerms {
        LossTerms::default()
    }

    /// With one more term, `weight` times `value`; a term of weight 0 is left out.
    ///
    /// # Errors
    /// `Torch`.
    pub fn with(mut self, name: &'static str, weight: f64, value: &Tensor) -> Result<LossTerms> {
        if weight != 0.0 {
            self.terms.push((name, value.f_mul_scalar(weight)?));
        }
        Ok(self)
    }

    /// The terms, each with its name.
    pub fn terms(&self) -> &[(&'static str, Tensor)] {
        &self.terms
    }

    /// The term of this name, where the method has it in use.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        let mut terms = self.terms.iter();
        terms.find(|term| term.0 == name).map(|term| &term.1)
    }

    /// The sum that is minimized, a scalar tensor.
    ///
    /// # Errors
    /// `InvalidArgument` without a term; `Torch`.
    pub fn total(&self) -> Result<Tensor> {
        let mut terms = self.terms.iter();
        let first = terms
            .next()
            .ok_or_else(|| Error::invalid("a loss has at least one term of a weight above 0"))?;
        let mut sum = first.1.shallow_clone();
        for (_, term) in terms {
            sum = sum.f_add(term)?;
        }
        Ok(sum)
    }
}

/// Where a run stands, for losses that change on the way or draw random numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepInfo {
    /// The epoch under way, counted from 0.
    pub epoch: usize,
    /// The step under way, counted from 0 over the whole run.
    pub step: usize,
    /// The seed of the run.
    pub seed: u64,
}

/// What the numbers in a batch's targets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// Class numbers.
    Classes,
    /// Rows of the train split: a weakly supervised method knows pictures, not classes.
    Examples,
}

/// A deep hashing method, ready to train: its settings and its targets.
pub trait Method: Send {
    /// The name in options, logs and model ids.
    fn name(&self) -> &'static str;

    /// The loss of a batch.
    ///
    /// `logits` are N x K code logits. `targets` are N class numbers (int64), or N x C indicators
    /// (float32, 1 where the picture has the label) in a multi-label set; rows of the train split for
    /// [`TargetKind::Examples`].
    ///
    /// # Errors
    /// `InvalidArgument` where the shapes do not fit; `Unsupported` for several labels where the method
    /// is defined for one; `Torch`.
    fn loss(&self, logits: &Tensor, targets: &Tensor, at: StepInfo) -> Result<LossTerms>;

    /// The share of pictures whose class the method itself would tell right, by its nearest center or by
    /// its classification layer: a figure to watch, no gradient. `None` for a method of pairs. Shapes as
    /// in [`Method::loss`].
    ///
    /// # Errors
    /// As in [`Method::loss`].
    fn accuracy(&self, logits: &Tensor, targets: &Tensor) -> Result<Option<f64>>;

    /// What the method wants as targets.
    fn targets(&self) -> TargetKind {
        TargetKind::Classes
    }

    /// Trained tensors of the method's own, which encoding does not need: part of a run's state, not of
    /// the model.
    fn weights(&self) -> Option<&Weights> {
        None
    }
}

/// A method's settings, as options and checkpoints carry them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MethodConfig {
    /// Cosine margin loss to fixed hash centers, Hoe et al. 2021.
    #[serde(rename = "orthohash")]
    OrthoHash(orthohash::Config),
    /// Semantic hash centers from a class similarity that the data gives, 2025.
    #[serde(rename = "shc")]
    Shc(shc::Config),
    /// Distances of codes that follow distances of classes, Arponen and Bishop 2019.
    #[serde(rename = "shrewd")]
    Shrewd(shrewd::Config),
    /// Central similarity quantization, Yuan et al. 2020.
    #[serde(rename = "csq")]
    Csq(central::Config),
    /// Deep polarized network.
    #[serde(rename = "dpn")]
    Dpn(dpn::Config),
    /// Classification through the signs.
    #[serde(rename = "greedyhash")]
    GreedyHash(greedyhash::Config),
    /// Pairwise likelihood with continuation.
    #[serde(rename = "hashnet")]
    HashNet(hashnet::Config),
}

/// What a method is built for.
pub(crate) struct BuildContext<'a> {
    /// C.
    pub n_classes: usize,
    /// K.
    pub bits: usize,
    /// The run's seed.
    pub seed: u64,
    /// Where its tensors live.
    pub device: tch::Device,
    /// The centers, for a method that has centers.
    pub codebook: Option<&'a Codebook>,
    /// The distances of classes or examples, for a method that reads them.
    pub distances: Option<&'a ClassDistances>,
}

impl BuildContext<'_> {
    fn codebook(&self) -> Result<&Codebook> {
        self.codebook
            .ok_or_else(|| Error::invalid("expected hash centers for this method, got none"))
    }
}

impl MethodConfig {
    /// The methods' names.
    pub const NAMES: [&'static str; 7] = [
        "orthohash",
        "shc",
        "shrewd",
        "csq",
        "dpn",
        "greedyhash",
        "hashnet",
    ];

    /// The default settings of the method called `name`.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown name.
    pub fn from_name(name: &str) -> Result<MethodConfig> {
        Ok(match name {
            "orthohash" => MethodConfig::OrthoHash(orthohash::Config::default()),
            "shc" => MethodConfig::Shc(shc::Config::default()),
            "shrewd" => MethodConfig::Shrewd(shrewd::Config::default()),
            "csq" => MethodConfig::Csq(central::Config::default()),
            "dpn" => MethodConfig::Dpn(dpn::Config::default()),
            "greedyhash" => MethodConfig::GreedyHash(greedyhash::Config::default()),
            "hashnet" => MethodConfig::HashNet(hashnet::Config::default()),
            _ => {
                return Err(Error::invalid(format!(
                    "no method is called {name:?}; there is {}",
                    MethodConfig::NAMES.join(", ")
                )));
            }
        })
    }

    /// The name in options, logs and model ids.
    pub fn name(&self) -> &'static str {
        match self {
            MethodConfig::OrthoHash(_) => "orthohash",
            MethodConfig::Shc(_) => "shc",
            MethodConfig::Shrewd(_) => "shrewd",
            MethodConfig::Csq(_) => "csq",
            MethodConfig::Dpn(_) => "dpn",
            MethodConfig::GreedyHash(_) => "greedyhash",
            MethodConfig::HashNet(_) => "hashnet",
        }
    }

    /// The hash head that the method is defined with. OrthoHash normalizes; the others have a linear
    /// layer with a bias.
    pub fn head(&self) -> HeadKind {
        match self {
            MethodConfig::OrthoHash(_) => HeadKind::NORM,
            _ => HeadKind::LINEAR,
        }
    }

    /// True for a method that learns from pairs of a batch: a class with one picture has none.
    pub fn needs_pairs(&self) -> bool {
        matches!(self, MethodConfig::HashNet(_) | MethodConfig::Shrewd(_)) && self.reads_classes()
    }

    /// True for a method that is defined for any number of classes an example, or reads none.
    pub fn takes_label_sets(&self) -> bool {
        match self {
            MethodConfig::OrthoHash(_) | MethodConfig::Csq(_) | MethodConfig::HashNet(_) => true,
            MethodConfig::Shrewd(_) => !self.reads_classes(),
            MethodConfig::Shc(_) | MethodConfig::Dpn(_) | MethodConfig::GreedyHash(_) => false,
        }
    }

    /// False for a method that knows pairs of examples alone.
    pub fn reads_classes(&self) -> bool {
        !matches!(self, MethodConfig::Shrewd(config) if config.weakly_supervised)
    }

    /// How the method's centers are made, if it has centers and makes them without looking at the
    /// classes. SHC makes its own in its first two stages.
    pub fn centers(&self) -> Option<CentersKind> {
        match self {
            MethodConfig::OrthoHash(config) => Some(config.centers),
            MethodConfig::Csq(config) => Some(config.centers),
            MethodConfig::Dpn(config) => Some(config.centers),
            _ => None,
        }
    }

    /// The method as it is with codes of `bits` bits: CSQ has balanced centers where there are no Hadamard ones.
    pub(crate) fn for_bits(&self, bits: usize) -> MethodConfig {
        let mut method = self.clone();
        if let MethodConfig::Csq(config) = &mut method {
            config.centers = crate::centers::fitting(config.centers, bits);
        }
        method
    }

    /// True for a method that pulls towards centers.
    pub fn has_centers(&self) -> bool {
        self.centers().is_some() || matches!(self, MethodConfig::Shc(_))
    }

    /// True for a method that reads distances of classes or examples.
    pub fn has_distances(&self) -> bool {
        matches!(self, MethodConfig::Shrewd(_))
    }

    /// The method with its targets.
    pub(crate) fn build(&self, context: &BuildContext<'_>) -> Result<Box<dyn Method>> {
        let BuildContext {
            n_classes,
            bits,
            seed,
            device,
            ..
        } = *context;
        let mut rng = device::rng(seed, Stream::Method);
        Ok(match self {
            MethodConfig::OrthoHash(config) => Box::new(orthohash::OrthoHash::new(
                config.clone(),
                context.codebook()?,
                device,
            )?),
            MethodConfig::Shc(config) => Box::new(central::Central::new(
                "shc",
                config.quantization_weight,
                context.codebook()?,
                device,
            )?),
            MethodConfig::Csq(config) => Box::new(central::Central::new(
                "csq",
                config.quantization_weight,
                context.codebook()?,
                device,
            )?),
            MethodConfig::Dpn(config) => {
                Box::new(dpn::Dpn::new(config.clone(), context.codebook()?, device)?)
            }
            MethodConfig::GreedyHash(config) => Box::new(greedyhash::GreedyHash::new(
                config.clone(),
                n_classes,
                bits,
                device,
                &mut rng,
            )?),
            MethodConfig::HashNet(config) => {
                Box::new(hashnet::HashNet::new(config.clone(), n_classes, bits)?)
            }
            MethodConfig::Shrewd(config) => Box::new(shrewd::Shrewd::new(
                config.clone(),
                n_classes,
                bits,
                context.distances,
                device,
                &mut rng,
            )?),
        })
    }
}

/// `Ok` if a setting is a number from 0.
fn check_setting(method: &str, name: &str, value: f64) -> Result<()> {
    if !value.is_finite() || value < 0.0 {
        return Err(Error::invalid(format!(
            "the {name} of {method} is a number from 0, got {value}"
        )));
    }
    Ok(())
}

/// The shapes of a batch, checked: true if it is multi-label.
fn check_batch(logits: &Tensor, targets: &Tensor, bits: i64, n_classes: i64) -> Result<bool> {
    let (logits_shape, targets_shape) = (logits.size(), targets.size());
    let n_pictures = targets_shape.first().copied().unwrap_or(0);
    let multi_label = targets_shape == [n_pictures, n_classes];
    let single_label = targets_shape == [n_pictures] && targets.kind() == Kind::Int64;
    if logits_shape != [n_pictures, bits] || !(multi_label || single_label) {
        return Err(Error::invalid(format!(
            "expected logits [N, {bits}] with N class numbers or indicators [N, {n_classes}], got {logits_shape:?} with {targets_shape:?}"
        )));
    }
    Ok(multi_label)
}

/// As [`check_batch`], for a method that is defined for one label a picture.
fn check_single(
    method: &str,
    logits: &Tensor,
    targets: &Tensor,
    bits: i64,
    n_classes: i64,
) -> Result<()> {
    match check_batch(logits, targets, bits, n_classes)? {
        false => Ok(()),
        true => Err(crate::error::ErrorKind::Unsupported(format!(
            "{method} is defined for one label a picture, got several; use orthohash, csq or hashnet"
        ))
        .into()),
    }
}

/// The share of pictures with their (or one of their) class(es) on top of `scores`, N x C.
fn top_share(scores: &Tensor, targets: &Tensor) -> Result<f64> {
    let nearest = scores.f_detach()?.f_argmax(1, false)?;
    let right = match targets.dim() {
        2 => targets
            .f_gather(1, &nearest.f_unsqueeze(1)?, false)?
            .f_gt(0.0)?,
        _ => nearest.f_eq_tensor(targets)?,
    };
    Ok(f64::try_from(
        right.f_to_kind(Kind::Float)?.f_mean(Kind::Float)?,
    )?)
}

/// A codebook as a tensor C x K on `device`.
fn codebook_tensor(codebook: &Codebook, device: tch::Device) -> Result<Tensor> {
    let shape = [codebook.n_classes() as i64, codebook.bits() as i64];
    Ok(Tensor::f_from_slice(codebook.entries())?
        .f_view(shape)?
        .f_to_device(device)?)
}

//! A method: what code logits are pulled towards. One file each.
//!
//! To add one: a file with its equations, its `Config` and its loss, a row in [`MethodConfig`], and
//! recorded values under `fixtures/methods/`.

pub mod orthohash;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::deep::device::{self, Stream};
use crate::error::{Error, Result};

/// What a loss is made of; each a scalar tensor, already weighted.
#[derive(Debug)]
pub struct LossTerms {
    /// Tells the classes apart.
    pub classification: Tensor,
    /// Pulls code logits to -1 and +1, where the method has such a term in use.
    pub quantization: Option<Tensor>,
}

impl LossTerms {
    /// The sum that is minimized, a scalar tensor.
    ///
    /// # Errors
    /// `Torch`.
    pub fn total(&self) -> Result<Tensor> {
        Ok(match &self.quantization {
            Some(quantization) => self.classification.f_add(quantization)?,
            None => self.classification.shallow_clone(),
        })
    }
}

/// A deep hashing method, ready to train: its settings and its targets.
pub trait Method: Send {
    /// The name in options, logs and model ids.
    fn name(&self) -> &'static str;

    /// The loss of a batch.
    ///
    /// `logits` are N x K code logits. `targets` are N class numbers (int64), or N x C indicators
    /// (float32, 1 where the picture has the label) in a multi-label set.
    ///
    /// # Errors
    /// `InvalidArgument` where the shapes do not fit; `Torch`.
    fn loss(&self, logits: &Tensor, targets: &Tensor) -> Result<LossTerms>;

    /// The share of pictures whose nearest target, by cosine, is that of (one of) their class(es): a
    /// figure to watch, no gradient. Shapes as in [`Method::loss`].
    ///
    /// # Errors
    /// As in [`Method::loss`].
    fn accuracy(&self, logits: &Tensor, targets: &Tensor) -> Result<f64>;
}

/// A method's settings, as options and checkpoints carry them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MethodConfig {
    /// Cosine margin loss to fixed hash centers, Hoe et al. 2021.
    #[serde(rename = "orthohash")]
    OrthoHash(orthohash::Config),
}

impl MethodConfig {
    /// The default settings of the method called `name`.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown name.
    pub fn from_name(name: &str) -> Result<MethodConfig> {
        match name {
            "orthohash" => Ok(MethodConfig::OrthoHash(orthohash::Config::default())),
            _ => Err(Error::invalid(format!(
                "no method is called {name:?}; there is orthohash"
            ))),
        }
    }

    /// The name in options, logs and model ids.
    pub fn name(&self) -> &'static str {
        match self {
            MethodConfig::OrthoHash(_) => "orthohash",
        }
    }

    /// The method with its targets on `device`, made from `seed`.
    pub(crate) fn build(
        &self,
        n_classes: usize,
        bits: usize,
        seed: u64,
        device: tch::Device,
    ) -> Result<Box<dyn Method>> {
        let mut rng = device::rng(seed, Stream::Centers);
        match self {
            MethodConfig::OrthoHash(config) => {
                let codebook =
                    crate::deep::Codebook::new(config.centers, n_classes, bits, &mut rng)?;
                let method = orthohash::OrthoHash::new(config.clone(), &codebook, device)?;
                Ok(Box::new(method))
            }
        }
    }
}

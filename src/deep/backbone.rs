//! Backbones: pictures to features.
//!
//! One so far, small enough to train from nothing on two CPU cores in minutes. To add another: a variant
//! of [`BackboneKind`] and a type that implements [`Backbone`].

use std::fmt;
use std::str::FromStr;

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::data::PictureShape;
use crate::deep::hash_head::BatchNorm;
use crate::deep::weights::{Group, Init, Weights};
use crate::error::{Error, Result};

/// A feature network.
pub trait Backbone: Send {
    /// q, the number of features.
    fn features(&self) -> i64;

    /// Features N x q of normalized pictures N x channels x side x side. `train` chooses batch
    /// statistics over running ones.
    ///
    /// # Errors
    /// `Torch`, also for pictures of another shape than the network was built for.
    fn forward(&self, pictures: &Tensor, train: bool) -> Result<Tensor>;
}

/// The backbones there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BackboneKind {
    /// [`ConvSmall`]: 0.3 million weights, for pictures of 28 or 32 pixels.
    #[default]
    ConvSmall,
}

impl BackboneKind {
    /// The network, with first values from `rng`, its tensors under `backbone.`.
    ///
    /// # Errors
    /// `InvalidArgument` for a shape it does not take; `Torch`.
    pub fn build(
        self,
        weights: &mut Weights,
        shape: PictureShape,
        rng: &mut ChaCha8Rng,
    ) -> Result<Box<dyn Backbone>> {
        match self {
            BackboneKind::ConvSmall => Ok(Box::new(ConvSmall::new(weights, shape, rng)?)),
        }
    }
}

impl fmt::Display for BackboneKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackboneKind::ConvSmall => "conv-small",
        })
    }
}

impl FromStr for BackboneKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<BackboneKind> {
        match text {
            "conv-small" => Ok(BackboneKind::ConvSmall),
            _ => Err(Error::invalid(format!(
                "no backbone is called {text:?}; there is conv-small"
            ))),
        }
    }
}

/// A small residual network for 28 x 28 and 32 x 32 pictures, in the sizes of 28 x 28:
///
/// ```text
/// 2 x 2 pixels to channels     4 x 14 x 14 (12 for RGB)
/// convolution, residual        32 x 14 x 14
/// convolution by 2, residual   64 x 7 x 7
/// convolution by 2, residual   128 x 4 x 4
/// maximum over the plane       128
/// ```
///
/// Every convolution is 3 x 3 without bias, then batch normalization and ReLU. Folding pixels into
/// channels first keeps all detail and leaves no layer at full size, where a CPU would spend most of its
/// time.
pub struct ConvSmall {
    stages: Vec<(ConvNorm, ConvNorm)>,
}

/// Output channels and stride of the stages.
const STAGES: [(i64, i64); 3] = [(32, 1), (64, 2), (128, 2)];

impl ConvSmall {
    fn new(weights: &mut Weights, shape: PictureShape, rng: &mut ChaCha8Rng) -> Result<ConvSmall> {
        if !matches!((shape.side, shape.channels), (28 | 32, 1 | 3)) {
            return Err(Error::invalid(format!(
                "the backbone conv-small takes pictures of 28 or 32 pixels with 1 or 3 channels, got {} pixels with {}",
                shape.side, shape.channels
            )));
        }
        let mut inputs = 4 * shape.channels as i64;
        let mut stages = Vec::new();
        for (stage_idx, (outputs, stride)) in STAGES.into_iter().enumerate() {
            let path = |layer: &str| format!("backbone.{stage_idx}.{layer}");
            let widen = ConvNorm::new(weights, &path("widen"), inputs, outputs, stride, rng)?;
            let residual = ConvNorm::new(weights, &path("residual"), outputs, outputs, 1, rng)?;
            stages.push((widen, residual));
            inputs = outputs;
        }
        Ok(ConvSmall { stages })
    }
}

impl Backbone for ConvSmall {
    fn features(&self) -> i64 {
        STAGES[STAGES.len() - 1].0
    }

    fn forward(&self, pictures: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = pictures.f_pixel_unshuffle(2)?;
        for (widen, residual) in &self.stages {
            xs = widen.forward(&xs, train)?;
            xs = xs.f_add(&residual.forward(&xs, train)?)?;
        }
        Ok(xs.f_amax([2i64, 3], false)?)
    }
}

/// Convolution 3 x 3, batch normalization, ReLU.
struct ConvNorm {
    weight: Tensor,
    norm: BatchNorm,
    stride: i64,
}

impl ConvNorm {
    fn new(
        weights: &mut Weights,
        path: &str,
        inputs: i64,
        outputs: i64,
        stride: i64,
        rng: &mut ChaCha8Rng,
    ) -> Result<ConvNorm> {
        // He et al. 2015: keeps the variance through a ReLU.
        let init = Init::Normal((2.0 / (inputs * 9) as f64).sqrt());
        let shape = [outputs, inputs, 3, 3];
        let name = format!("{path}.conv.weight");
        Ok(ConvNorm {
            weight: weights.parameter(name, Group::Backbone, &shape, init, rng)?,
            norm: BatchNorm::new(
                weights,
                &format!("{path}.norm"),
                Group::Backbone,
                outputs,
                rng,
            )?,
            stride,
        })
    }

    fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let stride = [self.stride, self.stride];
        let outputs =
            xs.f_conv2d::<&Tensor>(&self.weight, None, stride, [1i64, 1], [1i64, 1], 1)?;
        Ok(self.norm.forward(&outputs, train)?.f_relu_()?)
    }
}

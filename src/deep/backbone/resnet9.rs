//! A residual network of nine layers for small pictures, to be trained from nothing on one CPU core in an hour.

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::Backbone;
use super::layers::{ConvNorm, small_layer};
use crate::data::PictureShape;
use crate::deep::weights::Weights;
use crate::error::Result;

/// A residual network of eight convolutions, the hash head being the ninth layer, in the layout of Page,
/// "How to train your ResNet" (2018), with half of its channels; in the sizes of 28 x 28:
///
/// ```text
/// convolution                    32 x 28 x 28
/// convolution, pooling by 2      64 x 14 x 14
/// two convolutions, added        64 x 14 x 14
/// convolution, pooling by 2     128 x 7 x 7
/// convolution, pooling by 2     256 x 3 x 3
/// two convolutions, added       256 x 3 x 3
/// maximum over the plane        256
/// ```
///
/// Every convolution is 3 x 3 without bias, then batch normalization and ReLU; pooling takes the maximum. A
/// picture of 28 x 28 takes 69 million multiplications, eight times those of `conv-small` and a seventh of
/// those of `resnet-18-cifar`. What else Page's recipe has (its schedule, cutout) belongs to training.
pub struct ResNet9 {
    prepare: ConvNorm,
    stages: Vec<Stage>,
}

/// A convolution with pooling, then two whose outputs are added to their inputs, where there are any.
struct Stage {
    widen: ConvNorm,
    residual: Option<(ConvNorm, ConvNorm)>,
}

/// Outputs of the first convolution.
const PREPARED: i64 = 32;

/// Output channels of the stages, and whether they have a residual pair.
const STAGES: [(i64, bool); 3] = [(64, true), (128, false), (256, true)];

impl ResNet9 {
    pub(super) fn new(
        weights: &mut Weights,
        shape: PictureShape,
        rng: &mut ChaCha8Rng,
    ) -> Result<ResNet9> {
        let mut layer = |path: &str, inputs: i64, outputs: i64| {
            small_layer(weights, path, (inputs, outputs), 1, rng)
        };
        let prepare = layer("prepare", shape.channels as i64, PREPARED)?;
        let mut inputs = PREPARED;
        let mut stages = Vec::new();
        for (stage_idx, (outputs, residual)) in STAGES.into_iter().enumerate() {
            let widen = layer(&format!("{stage_idx}.widen"), inputs, outputs)?;
            let residual = match residual {
                false => None,
                true => Some((
                    layer(&format!("{stage_idx}.residual.0"), outputs, outputs)?,
                    layer(&format!("{stage_idx}.residual.1"), outputs, outputs)?,
                )),
            };
            stages.push(Stage { widen, residual });
            inputs = outputs;
        }
        Ok(ResNet9 { prepare, stages })
    }
}

impl Backbone for ResNet9 {
    fn features(&self) -> i64 {
        STAGES[STAGES.len() - 1].0
    }

    fn forward(&self, pictures: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = self.prepare.forward(pictures, train)?;
        for Stage { widen, residual } in &self.stages {
            let wide = widen.forward(&xs, train)?;
            xs = wide.f_max_pool2d([2i64, 2], [2i64, 2], [0i64, 0], [1i64, 1], false)?;
            if let Some((first, second)) = residual {
                let added = second.forward(&first.forward(&xs, train)?, train)?;
                xs = xs.f_add(&added)?;
            }
        }
        Ok(xs.f_amax([2i64, 3], false)?)
    }

    fn fold(&mut self) -> Result<()> {
        self.prepare.fold()?;
        for Stage { widen, residual } in &mut self.stages {
            widen.fold()?;
            if let Some((first, second)) = residual {
                first.fold()?;
                second.fold()?;
            }
        }
        Ok(())
    }
}

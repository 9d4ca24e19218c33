//! A small residual network, to be trained from nothing on two CPU cores in minutes.

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::Backbone;
use super::layers::{ConvNorm, small_layer};
use crate::data::PictureShape;
use crate::deep::weights::Weights;
use crate::error::{Error, Result};

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
    pub(super) fn new(
        weights: &mut Weights,
        shape: PictureShape,
        rng: &mut ChaCha8Rng,
    ) -> Result<ConvSmall> {
        if !matches!((shape.side, shape.channels), (28 | 32, 1 | 3)) {
            return Err(Error::invalid(format!(
                "the backbone conv-small takes pictures of 28 or 32 pixels with 1 or 3 channels, got {} pixels with {}",
                shape.side, shape.channels
            )));
        }
        let mut inputs = 4 * shape.channels as i64;
        let mut stages = Vec::new();
        for (stage_idx, (outputs, stride)) in STAGES.into_iter().enumerate() {
            let mut layer = |layer: &str, inputs: i64, stride: i64| {
                let path = format!("{stage_idx}.{layer}");
                small_layer(weights, &path, (inputs, outputs), stride, rng)
            };
            let widen = layer("widen", inputs, stride)?;
            let residual = layer("residual", outputs, 1)?;
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

    fn fold(&mut self) -> Result<()> {
        for (widen, residual) in &mut self.stages {
            widen.fold()?;
            residual.fold()?;
        }
        Ok(())
    }
}

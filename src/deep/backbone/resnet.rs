//! Residual networks (He, Zhang, Ren and Sun, CVPR 2016): 18 and 34 layers of basic blocks, 50 of bottlenecks
//! with the stride in the 3 x 3 convolution, as torchvision has them and names their tensors; and the
//! 18-layer one with a stem for pictures of 32 pixels, to be trained from nothing.

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::Backbone;
use super::layers::{Activation, ConvNorm, Layers, Padding, TORCH_NORM, plane_mean};
use crate::deep::weights::Weights;
use crate::error::Result;

/// Which of the family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Blocks of the four stages.
    pub blocks: [usize; 4],
    /// Three convolutions a block in place of two; four times as many outputs.
    pub bottleneck: bool,
    /// A 3 x 3 stem of stride 1 and no pooling, in place of 7 x 7 by 2 and pooling by 2.
    pub small_pictures: bool,
    /// 3, or 1 for grey pictures (small ones only).
    pub channels: i64,
}

/// The feature network of a residual network.
pub struct ResNet {
    stem: ConvNorm,
    pool: bool,
    blocks: Vec<Block>,
    features: i64,
}

/// Convolutions, plus the input, brought to the outputs' size where that differs.
struct Block {
    layers: Vec<ConvNorm>,
    downsample: Option<ConvNorm>,
}

impl ResNet {
    pub(super) fn new(weights: &mut Weights, shape: Shape, rng: &mut ChaCha8Rng) -> Result<ResNet> {
        let mut layers = Layers {
            weights,
            rng,
            norm: TORCH_NORM,
            // Stride 1 then keeps the size.
            padding: |kernel| Padding::Both(kernel / 2),
        };
        let (kernel, stride) = if shape.small_pictures { (3, 1) } else { (7, 2) };
        let sizes = [shape.channels, 64, kernel, stride, 1];
        let stem = layers.conv_norm("conv1", "bn1", sizes, Activation::Relu)?;
        let expansion = if shape.bottleneck { 4 } else { 1 };
        let mut blocks = Vec::new();
        let mut inputs = 64;
        for (stage, n_blocks) in shape.blocks.into_iter().enumerate() {
            let planes = 64 << stage;
            for i in 0..n_blocks {
                let stride = if i == 0 && stage > 0 { 2 } else { 1 };
                let path = format!("layer{}.{i}", stage + 1);
                let sizes = match shape.bottleneck {
                    true => vec![
                        [inputs, planes, 1, 1, 1],
                        [planes, planes, 3, stride, 1],
                        [planes, planes * 4, 1, 1, 1],
                    ],
                    false => vec![[inputs, planes, 3, stride, 1], [planes, planes, 3, 1, 1]],
                };
                blocks.push(Block::new(&mut layers, &path, &sizes, stride)?);
                inputs = planes * expansion;
            }
        }
        Ok(ResNet {
            stem,
            pool: !shape.small_pictures,
            blocks,
            features: inputs,
        })
    }
}

impl Block {
    /// `sizes` are those of its convolutions.
    fn new(layers: &mut Layers, path: &str, sizes: &[[i64; 5]], stride: i64) -> Result<Block> {
        let (inputs, outputs) = (sizes[0][0], sizes[sizes.len() - 1][1]);
        let mut convolutions = Vec::new();
        for (number, &size) in (1..).zip(sizes) {
            let names = (format!("{path}.conv{number}"), format!("{path}.bn{number}"));
            // The last activation comes after the sum.
            let activation = match number == sizes.len() {
                true => Activation::None,
                false => Activation::Relu,
            };
            convolutions.push(layers.conv_norm(&names.0, &names.1, size, activation)?);
        }
        let at = |number: u8| format!("{path}.downsample.{number}");
        let sizes = [inputs, outputs, 1, stride, 1];
        let downsample = match stride != 1 || inputs != outputs {
            false => None,
            true => Some(layers.conv_norm(&at(0), &at(1), sizes, Activation::None)?),
        };
        Ok(Block {
            layers: convolutions,
            downsample,
        })
    }

    fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let mut ys = xs.shallow_clone();
        for layer in &self.layers {
            ys = layer.forward(&ys, train)?;
        }
        let skipped = match &self.downsample {
            Some(downsample) => downsample.forward(xs, train)?,
            None => xs.shallow_clone(),
        };
        Ok(ys.f_add(&skipped)?.f_relu_()?)
    }
}

impl Backbone for ResNet {
    fn features(&self) -> i64 {
        self.features
    }

    fn forward(&self, pictures: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = self.stem.forward(pictures, train)?;
        if self.pool {
            xs = xs.f_max_pool2d([3i64, 3], [2i64, 2], [1i64, 1], [1i64, 1], false)?;
        }
        for block in &self.blocks {
            xs = block.forward(&xs, train)?;
        }
        plane_mean(&xs)
    }

    fn fold(&mut self) -> Result<()> {
        self.stem.fold()?;
        for block in &mut self.blocks {
            for layer in block.layers.iter_mut().chain(&mut block.downsample) {
                layer.fold()?;
            }
        }
        Ok(())
    }
}

//! Residual networks (He, Zhang, Ren and Sun, CVPR 2016): 18 and 34 layers of basic blocks, 50 of bottlenecks
//! with the stride in the 3 x 3 convolution, as torchvision has them and names their tensors; and the
//! 18-layer one with a stem for pictures of 32 pixels, to be trained from nothing.

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::Backbone;
use super::layers::{Activation, ConvNorm, ConvSpec, Padding, TORCH_NORM, he, plane_mean};
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

/// One layer by its names; the edge is filled up so that stride 1 keeps the size.
fn layer(
    weights: &mut Weights,
    (conv, norm): (&str, &str),
    (inputs, outputs, kernel, stride): (i64, i64, i64, i64),
    activation: Activation,
    rng: &mut ChaCha8Rng,
) -> Result<ConvNorm> {
    let spec = ConvSpec {
        inputs,
        outputs,
        kernel,
        stride,
        padding: Padding::Both(kernel / 2),
        groups: 1,
    };
    let deviation = he(kernel * kernel * outputs);
    ConvNorm::new(
        weights, conv, norm, spec, TORCH_NORM, activation, deviation, rng,
    )
}

impl ResNet {
    pub(super) fn new(weights: &mut Weights, shape: Shape, rng: &mut ChaCha8Rng) -> Result<ResNet> {
        let (kernel, stride) = if shape.small_pictures { (3, 1) } else { (7, 2) };
        let sizes = (shape.channels, 64, kernel, stride);
        let stem = layer(weights, ("conv1", "bn1"), sizes, Activation::Relu, rng)?;
        let expansion = if shape.bottleneck { 4 } else { 1 };
        let mut blocks = Vec::new();
        let mut inputs = 64;
        for (stage, n_blocks) in shape.blocks.into_iter().enumerate() {
            let planes = 64 << stage;
            for i in 0..n_blocks {
                let stride = if i == 0 && stage > 0 { 2 } else { 1 };
                let path = format!("layer{}.{i}", stage + 1);
                blocks.push(Block::new(
                    weights,
                    &path,
                    inputs,
                    planes,
                    stride,
                    shape.bottleneck,
                    rng,
                )?);
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
    fn new(
        weights: &mut Weights,
        path: &str,
        inputs: i64,
        planes: i64,
        stride: i64,
        bottleneck: bool,
        rng: &mut ChaCha8Rng,
    ) -> Result<Block> {
        let sizes = match bottleneck {
            true => vec![
                (inputs, planes, 1, 1),
                (planes, planes, 3, stride),
                (planes, planes * 4, 1, 1),
            ],
            false => vec![(inputs, planes, 3, stride), (planes, planes, 3, 1)],
        };
        let outputs = sizes[sizes.len() - 1].1;
        let mut layers = Vec::new();
        for (i, &size) in sizes.iter().enumerate() {
            let (conv, norm) = (
                format!("{path}.conv{}", i + 1),
                format!("{path}.bn{}", i + 1),
            );
            // The last activation comes after the sum.
            let activation = match i + 1 == sizes.len() {
                true => Activation::None,
                false => Activation::Relu,
            };
            layers.push(layer(weights, (&conv, &norm), size, activation, rng)?);
        }
        let downsample = match stride != 1 || inputs != outputs {
            false => None,
            true => {
                let names = (
                    format!("{path}.downsample.0"),
                    format!("{path}.downsample.1"),
                );
                let size = (inputs, outputs, 1, stride);
                Some(layer(
                    weights,
                    (&names.0, &names.1),
                    size,
                    Activation::None,
                    rng,
                )?)
            }
        };
        Ok(Block { layers, downsample })
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

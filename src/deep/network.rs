//! The whole network: backbone, then hash head.

use tch::Tensor;

use crate::data::PictureShape;
use crate::deep::backbone::{Backbone, BackboneKind};
use crate::deep::device::{self, Stream};
use crate::deep::hash_head::{HashHead, HeadKind};
use crate::deep::weights::Weights;
use crate::error::Result;

/// A network from pictures to code logits, with its tensors.
pub struct DeepHashNet {
    backbone: Box<dyn Backbone>,
    head: HashHead,
    weights: Weights,
}

impl DeepHashNet {
    /// A network of `outputs` logits with a head of the kind `head` and first values from `seed`.
    ///
    /// # Errors
    /// `InvalidArgument` for a shape the backbone does not take; `Torch`.
    pub fn new(
        kind: BackboneKind,
        shape: PictureShape,
        outputs: usize,
        head: HeadKind,
        seed: u64,
        device: tch::Device,
    ) -> Result<DeepHashNet> {
        let mut rng = device::rng(seed, Stream::Weights);
        let mut weights = Weights::new(device);
        let backbone = kind.build(&mut weights, shape, &mut rng)?;
        let features = backbone.features();
        let head = HashHead::new(&mut weights, head, features, outputs as i64, &mut rng)?;
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

    /// Measures the head's normalization anew on a target database: see [`HashHead::adapt`]. `pictures`
    /// are batches as in [`DeepHashNet::forward`].
    ///
    /// # Errors
    /// As [`HashHead::adapt`].
    pub fn adapt(&mut self, pictures: &mut dyn Iterator<Item = Result<Tensor>>) -> Result<usize> {
        let _no_grad = tch::no_grad_guard();
        let backbone = &self.backbone;
        let mut features = pictures.map(|batch| backbone.forward(&batch?, false));
        self.head.adapt(&mut features)
    }

    /// All tensors, in order.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }
}

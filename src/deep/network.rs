//! The whole network: backbone, then hash head.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::deep::backbone::{self, Backbone, BackboneKind, WeightsRecord};
use crate::deep::checkpoint::InputSpec;
use crate::deep::device::{self, Stream};
use crate::deep::hash_head::{HashHead, HeadKind};
use crate::deep::weights::Weights;
use crate::error::Result;

/// How a backbone computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackboneMode {
    /// In bfloat16, with float32 weights behind: mixed precision. For GPUs and for CPUs with
    /// instructions for it (AVX-512 BF16, AMX); slower on others.
    pub half: bool,
    /// Normalization by running statistics in training too, which then stay as they are: for fine-tuning
    /// with batches that are small or unlike the pictures before.
    pub running_statistics: bool,
}

/// A network from pictures to code logits, with its tensors.
pub struct DeepHashNet {
    kind: BackboneKind,
    mode: BackboneMode,
    backbone: Box<dyn Backbone>,
    head: HashHead,
    weights: Weights,
    /// Inputs are the backbone's features.
    is_frozen: bool,
}

impl DeepHashNet {
    /// A network of `outputs` logits with a head of the kind `head` and first values from `seed`.
    ///
    /// # Errors
    /// `InvalidArgument` for an input the backbone does not take; `Torch`.
    pub fn new(
        kind: BackboneKind,
        input: &InputSpec,
        outputs: usize,
        head: HeadKind,
        seed: u64,
        device: tch::Device,
    ) -> Result<DeepHashNet> {
        let mut rng = device::rng(seed, Stream::Weights);
        let mut weights = Weights::new(device);
        let backbone = kind.build(&mut weights, input, &mut rng)?;
        let features = backbone.features();
        let head = HashHead::new(&mut weights, head, features, outputs as i64, &mut rng)?;
        Ok(DeepHashNet {
            kind,
            backbone,
            head,
            weights,
            mode: BackboneMode::default(),
            is_frozen: false,
        })
    }

    /// Copies published weights, or those of a model file, into the backbone.
    ///
    /// # Errors
    /// `Io`, `Corrupt`, as [`TrainOptions::weights`](crate::deep::TrainOptions::weights) says.
    pub fn load_backbone(&mut self, path: &Path) -> Result<WeightsRecord> {
        backbone::load_weights(self.kind, &self.weights, path)
    }

    /// Copies the backbone, running statistics included, of another network of the same run: its tensors are the
    /// same in number, order and shape.
    pub(crate) fn copy_backbone(&self, from: &DeepHashNet) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let tensors = |network: &DeepHashNet| -> Vec<Tensor> {
            let entries = network.weights.entries().iter();
            entries
                .filter(|entry| entry.name.starts_with(backbone::PREFIX))
                .map(|entry| entry.tensor.shallow_clone())
                .collect()
        };
        for (mut to, from) in tensors(self).into_iter().zip(tensors(from)) {
            to.f_copy_(&from)?;
        }
        Ok(())
    }

    /// Takes the backbone out of training. From now on inputs are its features.
    pub fn freeze_backbone(&mut self) {
        backbone::freeze(&mut self.weights);
        self.is_frozen = true;
    }

    /// How the backbone computes from now on.
    pub fn set_backbone_mode(&mut self, mode: BackboneMode) {
        self.mode = mode;
    }

    /// Folds the backbone's normalization into its convolutions. For inference only.
    ///
    /// # Errors
    /// `Torch`.
    pub fn fold(&mut self) -> Result<()> {
        self.backbone.fold()
    }

    /// Code logits N x K of what the network reads: normalized pictures N x channels x side x side, or
    /// vectors N x q. `train` chooses batch statistics over running ones.
    ///
    /// # Errors
    /// `Torch`, also for pictures of another shape.
    pub fn forward(&self, pictures: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_features(&self.features_read(pictures, train)?, train)
    }

    /// As [`DeepHashNet::features`], but of what the network reads now: a frozen backbone's features themselves.
    pub(crate) fn features_read(&self, inputs: &Tensor, train: bool) -> Result<Tensor> {
        match self.is_frozen {
            true => Ok(inputs.shallow_clone()),
            false => self.features(inputs, train),
        }
    }

    /// Features N x q, float32, of what the network reads.
    ///
    /// # Errors
    /// `Torch`, also for pictures of another shape.
    pub fn features(&self, inputs: &Tensor, train: bool) -> Result<Tensor> {
        let train = train && !self.mode.running_statistics;
        if !self.mode.half {
            return self.backbone.forward(inputs, train);
        }
        let features = self
            .backbone
            .forward(&inputs.f_to_kind(Kind::BFloat16)?, train)?;
        Ok(features.f_to_kind(Kind::Float)?)
    }

    /// Code logits N x K of features N x q.
    ///
    /// # Errors
    /// `Torch`, also for features of another length.
    pub fn forward_features(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        self.head.forward(features, train)
    }

    /// q, the number of features.
    pub fn n_features(&self) -> i64 {
        self.backbone.features()
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

//! Deep hashing: networks that turn pictures into hash codes, and how they are trained.
//!
//! The only folder that imports `tch`. A run is [`train()`]: a [`Dataset`](crate::data::Dataset) and
//! [`TrainOptions`] in, one checkpoint file out, which [`TorchEncoder`] opens.
//!
//! | method | paper | loss |
//! |---|---|---|
//! | [`orthohash`](method::orthohash) | Hoe et al., NeurIPS 2021 | cosine with margin to fixed, nearly orthogonal hash centers |
//!
//! | step | file |
//! |---|---|
//! | pictures to batches | `augment` |
//! | batches to code logits | [`network`] = [`backbone`] + [`hash_head`] |
//! | targets and loss | [`centers`], [`method`] |
//! | the loop | [`train`](mod@train), with [`adam`] and [`schedule`] |
//! | the file | [`checkpoint`] |
//! | the file in use | [`TorchEncoder`] |
//! | a backbone alone | [`FeatureExtractor`] |
//!
//! Every random number comes from the run's seed. Only dropout reads libtorch's own generator, which the
//! seed sets every epoch.

pub mod adam;
pub mod augment;
pub mod backbone;
pub mod centers;
pub mod checkpoint;
pub mod device;
mod encoder;
pub mod features;
pub mod hash_head;
pub mod method;
pub mod network;
pub mod schedule;
pub mod train;
pub mod weights;

pub use augment::{Augment, Normalization};
pub use backbone::BackboneKind;
pub use centers::{CentersKind, Codebook};
pub use checkpoint::{Checkpoint, InputSpec, ModelConfig, PictureInput};
pub use device::Device;
pub use encoder::TorchEncoder;
pub use features::FeatureExtractor;
pub use method::{LossTerms, Method, MethodConfig};
pub use network::{BackboneMode, DeepHashNet};
pub use schedule::Schedule;
pub use train::{TrainOptions, TrainProgress, TrainSummary, train};

use crate::error::{Error, ErrorKind};

impl From<tch::TchError> for Error {
    /// libtorch's messages end in a C++ backtrace; the first line is what a reader needs.
    fn from(error: tch::TchError) -> Error {
        let text = error.to_string();
        let line = text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_end_matches('.');
        Error::new(ErrorKind::Torch(line.to_owned())).with_source(error)
    }
}

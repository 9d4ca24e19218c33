//! Deep hashing: networks that turn pictures into hash codes, and how they are trained.
//!
//! The only folder that imports `tch`. A run is [`train()`]: a [`Dataset`](crate::data::Dataset) and
//! [`TrainOptions`] in, one checkpoint file out, which [`TorchEncoder`] opens.
//!
//! | method | paper | loss |
//! |---|---|---|
//! | [`orthohash`](method::orthohash) | Hoe et al., NeurIPS 2021 | cosine with margin to fixed, nearly orthogonal hash centers |
//! | [`shc`](method::shc) | ACM TOIS 2025 | central similarity to centers that follow a similarity of the classes |
//! | [`shrewd`](method::shrewd) | Arponen and Bishop 2019 | distances of codes follow distances of classes; unverified |
//! | [`csq`](method::central) | Yuan et al., CVPR 2020 | central similarity to Hadamard centers |
//! | [`dpn`](method::dpn) | IJCAI 2020 | hinge of every bit to a random target |
//! | [`greedyhash`](method::greedyhash) | Su et al., NeurIPS 2018 | classification through the signs |
//! | [`hashnet`](method::hashnet) | Cao et al., ICCV 2017 | likelihood of pairs, tanh that grows steeper |
//!
//! | step | file |
//! |---|---|
//! | pictures to batches | `augment` |
//! | batches to code logits | [`network`] = [`backbone`] + [`hash_head`] |
//! | targets and loss | [`centers`], [`method`] |
//! | the loop | [`train`](mod@train), with [`optimizer`], [`schedule`], [`recipe`] and [`validation`] |
//! | SHC's first stages | `stages` |
//! | what a run leaves | `run_state`, [`run_log`], `curves` |
//! | the file | [`checkpoint`] |
//! | a backbone alone | [`FeatureExtractor`] |
//! | the file in use | [`TorchEncoder`], [`adapt`](mod@adapt) |
//!
//! Every random number comes from the run's seed. Only dropout reads libtorch's own generator, which the
//! seed sets every epoch.

pub mod adapt;
pub mod augment;
pub mod backbone;
pub mod checkpoint;
mod curves;
pub mod device;
mod encoder;
mod erase;
pub mod features;
pub mod hash_head;
pub mod method;
pub mod network;
pub mod optimizer;
pub mod recipe;
pub mod run_log;
mod run_state;
pub mod schedule;
mod stages;
pub mod train;
pub mod validation;
pub mod weights;

pub use crate::centers::{self, CentersKind, Codebook};
pub use adapt::adapt;
pub use augment::{Augment, Normalization};
pub use backbone::BackboneKind;
pub use checkpoint::{
    AdaptationRecord, Checkpoint, InputSpec, ModelConfig, PictureInput, SelectionRecord,
};
pub use device::Device;
pub use encoder::{EncoderOptions, TorchEncoder};
pub use features::FeatureExtractor;
pub use method::{LossTerms, Method, MethodConfig, StepInfo};
pub use network::{BackboneMode, DeepHashNet};
pub use optimizer::{Optimizer, OptimizerKind};
pub use recipe::Recipe;
pub use run_log::TrainProgress;
pub use schedule::Schedule;
pub use train::{Given, TrainOptions, TrainSummary, prepare_features, train};
pub use validation::{SelectBy, Selection};

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

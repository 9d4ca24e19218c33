//! A trained model on another database: the normalization of its hash head measured anew.
//!
//! OrthoHash at instance level (Hoe et al. 2021, supplement, C.1 and D.5): trained on one set of pictures,
//! a head's bits are no longer balanced on another. Mean and variance of the target database are taken
//! instead of the train split's, scale 1, shift 0; no label is used and no weight is trained.

use std::path::Path;
use std::sync::Arc;

use crate::data::Dataset;
use crate::deep::augment::{Augment, Batches};
use crate::deep::checkpoint::{AdaptationRecord, Checkpoint};
use crate::deep::device::Device;
use crate::error::Result;

/// Reads the model file `model`, measures its head's normalization on the database split of `dataset`, writes the
/// model to `out` and returns its new id. `model` and `out` may be the same file.
///
/// # Errors
/// Those of reading a model; `Unsupported` for a head without normalization (all methods but OrthoHash);
/// `InvalidArgument` for fewer than two examples, for values that are too large, and where a logit is the same for all
/// of them; `Io` where `out` cannot be written; `Torch`. `out` is written last.
pub fn adapt(model: &Path, dataset: &Dataset, out: &Path, device: Device) -> Result<String> {
    let set = &dataset.database;
    let device = device.resolve()?;
    let mut checkpoint = Checkpoint::load(model, device)?;
    let input = checkpoint.config.input.clone();
    let batches = Batches::new(Arc::clone(set), input, Augment::NONE, device)?;
    let rows: Vec<i64> = (0..set.labels.len() as i64).collect();
    let mut pictures = batches.parts(&rows).map(|(_, pictures)| pictures);
    let n_examples = checkpoint.network.adapt(&mut pictures)?;
    checkpoint.config.adapted = Some(AdaptationRecord {
        dataset: dataset.name.clone(),
        protocol: dataset.protocol.clone(),
        n_examples,
    });
    checkpoint.save(out)?;
    Ok(checkpoint.config.model_id)
}

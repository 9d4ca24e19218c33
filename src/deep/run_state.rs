//! The state of a run between two epochs: everything it needs to go on bit for bit.
//!
//! A file of tensors beside the model: the network, the method's own tensors, the optimizer's moments and
//! the hash centers, with the description of the run and the best validation so far in its metadata.
//! Random numbers need no state, since each epoch and step has its own stream.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::centers::Codebook;
use crate::deep::checkpoint::{
    self, Checkpoint, ModelConfig, SelectionRecord, TensorFile, write_tensors,
};
use crate::deep::optimizer::Optimizer;
use crate::deep::train::{Fit, TrainOptions};
use crate::deep::validation::Metric;
use crate::error::{Error, Result};

/// The name of the hash centers in the file.
const CENTERS: &str = "targets.centers";

/// The best validation so far, and the model that holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    pub record: SelectionRecord,
    pub model_id: String,
}

/// The state in memory.
pub(crate) struct RunState {
    pub optimizer: Optimizer,
    pub best: Option<Best>,
    /// Second handles of all tensors but the optimizer's, by name.
    tensors: Vec<(String, Tensor)>,
    path: PathBuf,
}

/// What is in the file beside tensors.
#[derive(Serialize, Deserialize)]
struct Metadata {
    config: ModelConfig,
    optimizer_steps: u64,
    best: Option<Best>,
}

impl RunState {
    /// The state of a fit that has not begun.
    pub fn new(fit: &Fit, optimizer: Optimizer) -> Result<RunState> {
        let weights = checkpoint::weight_handles(&fit.model.network).into_iter();
        let mut tensors: Vec<_> = weights
            .map(|(name, tensor)| (format!("weights.{name}"), tensor))
            .collect();
        for entry in fit
            .method
            .weights()
            .into_iter()
            .flat_map(|own| own.entries())
        {
            tensors.push((
                format!("method.{}", entry.name),
                entry.tensor.shallow_clone(),
            ));
        }
        if let Some(codebook) = &fit.codebook {
            let shape = [codebook.n_classes() as i64, codebook.bits() as i64];
            let centers = Tensor::f_from_slice(codebook.entries())?.f_view(shape)?;
            tensors.push((CENTERS.to_owned(), centers));
        }
        Ok(RunState {
            optimizer,
            best: None,
            tensors,
            path: fit.state.clone(),
        })
    }

    /// The hash centers in a state file.
    pub fn codebook(path: &Path) -> Result<Codebook> {
        let (shape, entries) = TensorFile::read(path)?.values(CENTERS)?;
        Codebook::from_entries(shape.last().copied().unwrap_or(0), entries)
    }

    fn all_tensors(&self) -> Vec<(String, Tensor)> {
        let mut tensors: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
            .collect();
        let moments = self.optimizer.state().into_iter();
        tensors.extend(moments.map(|(name, tensor)| (format!("optimizer.{name}"), tensor)));
        tensors
    }

    /// Loads the state in `path`, if there is one, and returns the epoch to go on with.
    pub fn resume(&mut self, model: &mut Checkpoint, path: &Path) -> Result<usize> {
        if !path.exists() {
            return Ok(0);
        }
        let file = TensorFile::read(path)?;
        let metadata: Metadata = file.metadata()?;
        same_run(&metadata.config, &model.config, path)?;
        file.copy_into(&self.all_tensors())?;
        self.optimizer.set_steps(metadata.optimizer_steps);
        self.best = metadata.best;
        model.config = metadata.config;
        Ok(model.config.epochs_done)
    }

    /// Writes the model, if these weights are to be it, then the state. Each is atomic and the state holds
    /// its own weights, so an interruption between the two repeats an epoch and loses nothing.
    pub fn finish_epoch(
        &mut self,
        saves_model: bool,
        model: &mut Checkpoint,
        metric: Option<&Metric>,
        validated: Option<f64>,
        options: &TrainOptions,
    ) -> Result<()> {
        match (metric, validated) {
            _ if !saves_model => {}
            (None, _) => model.save(&options.out)?,
            (Some(metric), Some(value)) => {
                let best = self.best.as_ref().map(|best| best.record.value);
                if best.is_none_or(|best| metric.is_better(value, best)) {
                    let record = SelectionRecord {
                        metric: metric.name.clone(),
                        value,
                        epochs_done: model.config.epochs_done,
                    };
                    model.config.selection = Some(record.clone());
                    model.save(&options.out)?;
                    let model_id = model.config.model_id.clone();
                    self.best = Some(Best { record, model_id });
                }
            }
            (Some(_), None) => {}
        }
        let metadata = Metadata {
            config: model.config.clone(),
            optimizer_steps: self.optimizer.steps(),
            best: self.best.clone(),
        };
        write_tensors(&self.path, &self.all_tensors(), &metadata)
    }
}

/// `Ok` if the run in the state file has the options and the data of this one.
fn same_run(found: &ModelConfig, expected: &ModelConfig, path: &Path) -> Result<()> {
    let differs = |name: &str, found: &dyn std::fmt::Debug, expected: &dyn std::fmt::Debug| {
        Err(Error::invalid(format!(
            "{}: the run to resume has {name} {found:?}, the options say {expected:?}; use the same, or train anew without resume",
            path.display()
        )))
    };
    if let (Some(was), Some(is)) = (found.training.as_object(), expected.training.as_object()) {
        for (name, value) in is {
            if was.get(name) != Some(value) {
                return differs(name, &was.get(name), value);
            }
        }
    }
    if found.class_names != expected.class_names {
        return differs("classes", &found.class_names, &expected.class_names);
    }
    if found.input != expected.input {
        return differs("inputs or their statistics", &found.input, &expected.input);
    }
    if found.backbone_weights != expected.backbone_weights {
        let (was, is) = (&found.backbone_weights, &expected.backbone_weights);
        return differs("backbone weights", was, is);
    }
    if found.library != expected.library {
        return differs("library version", &found.library, &expected.library);
    }
    Ok(())
}

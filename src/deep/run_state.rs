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
    self, Checkpoint, ModelConfig, SelectionRecord, TensorFile, sealed_digest, values_of,
    write_tensors,
};
use crate::deep::optimizer::Optimizer;
use crate::deep::train::{Fit, TrainOptions, diverged};
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
    data: String,
}

/// What is in the file beside tensors.
#[derive(Serialize, Deserialize)]
struct Metadata {
    config: ModelConfig,
    /// A digest of the train split.
    data: String,
    optimizer_steps: u64,
    best: Option<Best>,
}

/// The metadata of the file: the state's as JSON, and the digest of that and of the tensors.
#[derive(Serialize, Deserialize)]
struct Sealed {
    state: String,
    digest: String,
}

/// A state file whose digest is right, with its metadata.
fn open(path: &Path) -> Result<(TensorFile, Metadata)> {
    let file = TensorFile::read(path)?;
    let Sealed { state, digest } = file.metadata()?;
    let damaged = |reason: String| {
        Error::corrupt(
            format!("state file {}", path.display()),
            format!("{reason}; train anew without resume"),
        )
    };
    let found = file.sealed_digest(&state)?;
    if found != digest {
        return Err(damaged(format!(
            "expected the digest {digest}, found {found}"
        )));
    }
    let metadata = serde_json::from_str(&state).map_err(|error| damaged(error.to_string()))?;
    Ok((file, metadata))
}

impl RunState {
    /// The state of a fit that has not begun.
    pub fn new(fit: &Fit, data: &str, optimizer: Optimizer) -> Result<RunState> {
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
            data: data.to_owned(),
        })
    }

    /// The hash centers in a state file.
    pub fn codebook(path: &Path) -> Result<Codebook> {
        let (shape, entries) = open(path)?.0.values(CENTERS)?;
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

    /// `Ok` if every number of the state is finite, after the last step of an epoch: what is written now is
    /// what a run is resumed from.
    pub fn check_finite(&self, epoch: usize, step: usize, lr: f64) -> Result<()> {
        for (name, tensor) in self.all_tensors() {
            if i64::try_from(tensor.f_isfinite()?.f_all()?)? == 0 {
                let what = format!("{name} is no longer finite");
                return Err(diverged(&what, epoch, step, lr));
            }
        }
        Ok(())
    }

    /// Loads the state in `path`, if there is one, and returns the epoch to go on with.
    pub fn resume(&mut self, model: &mut Checkpoint, path: &Path) -> Result<usize> {
        if !path.exists() {
            return Ok(0);
        }
        let (file, metadata) = open(path)?;
        same_run(&metadata.config, &model.config, path)?;
        if metadata.data != self.data {
            return Err(Error::invalid(format!(
                "{}: the run to resume began with other examples or labels than the train split has now; bring them back, or train anew without resume",
                path.display()
            )));
        }
        file.copy_into(&self.all_tensors())?;
        self.optimizer.set_steps(metadata.optimizer_steps);
        self.best = metadata.best;
        model.config = metadata.config;
        Ok(model.config.epochs_done)
    }

    /// Writes the model of the resumed state anew where its file is gone or damaged. One of a later epoch was
    /// written just before the run was killed, and will be again.
    ///
    /// # Errors
    /// `InvalidArgument` where the model is that of an earlier epoch, whose weights are in no other file.
    pub fn restore_model(&self, model: &mut Checkpoint, path: &Path) -> Result<()> {
        let expected = match &self.best {
            Some(best) => &best.model_id,
            None => &model.config.model_id,
        };
        let epochs_done = model.config.epochs_done;
        match (Checkpoint::load(path, tch::Device::Cpu), &self.best) {
            (Ok(Checkpoint { config, .. }), _)
                if config.model_id == *expected || config.epochs_done > epochs_done =>
            {
                Ok(())
            }
            (_, None) => model.save(path),
            (_, Some(best)) => Err(Error::invalid(format!(
                "{}: the run to resume keeps the weights after {} epochs in this file, and it is gone or damaged; train anew without resume",
                path.display(),
                best.record.epochs_done
            ))),
        }
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
            data: self.data.clone(),
            optimizer_steps: self.optimizer.steps(),
            best: self.best.clone(),
        };
        let state = serde_json::to_string(&metadata)
            .map_err(|error| Error::invalid(format!("the state of the run: {error}")))?;
        let tensors = values_of(&self.all_tensors())?;
        let digest = sealed_digest(&state, &tensors);
        write_tensors(&self.path, &tensors, &Sealed { state, digest })
    }
}

/// `Ok` if the run in the state file has the options and the data of this one.
fn same_run(found: &ModelConfig, expected: &ModelConfig, path: &Path) -> Result<()> {
    let refuse = |what: String| {
        Err(Error::invalid(format!(
            "{}: the run to resume {what}; use the same, or train anew without resume",
            path.display()
        )))
    };
    let differs = |name: &str, found: &str, expected: &str| {
        refuse(format!("has {name} {found}, the options say {expected}"))
    };
    let (was, is) = (found.method.name(), expected.method.name());
    if was != is {
        return differs("the method", was, is);
    }
    if let (Some(was), Some(is)) = (found.training.as_object(), expected.training.as_object()) {
        for (name, value) in is {
            if was.get(name) != Some(value) {
                let was = was
                    .get(name)
                    .map_or("none".to_owned(), |was| was.to_string());
                return differs(name, &was, &value.to_string());
            }
        }
    }
    if found.class_names != expected.class_names {
        return refuse("began with other classes".to_owned());
    }
    if found.input != expected.input {
        return refuse("began with other examples, or other statistics of them".to_owned());
    }
    if found.backbone_weights != expected.backbone_weights {
        return refuse("began with other weights of the backbone".to_owned());
    }
    if found.library != expected.library {
        return differs("the library version", &found.library, &expected.library);
    }
    Ok(())
}

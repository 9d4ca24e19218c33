//! The training loop, to be read top to bottom.
//!
//! A run is a function of its data set, its options and its seed: on the CPU, with the same number of
//! threads, two runs give the same weights bit for bit, and so do a run and one that was interrupted and
//! resumed. Leaves out measuring: that is the `eval` floor's, on codes.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rand::RngCore;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::code::CodeLen;
use crate::data::{Dataset, ExampleSet};
use crate::deep::adam::Adam;
use crate::deep::augment::{Augment, Batches};
use crate::deep::backbone::{BackboneKind, WeightsRecord};
use crate::deep::checkpoint::{
    self, Checkpoint, InputSpec, MODEL_FORMAT, ModelConfig, TensorFile, state_path, write_tensors,
};
use crate::deep::device::{self, Device, Stream};
use crate::deep::features::FeatureExtractor;
use crate::deep::method::{LossTerms, MethodConfig};
use crate::deep::network::{BackboneMode, DeepHashNet};
use crate::deep::schedule::Schedule;
use crate::error::{Error, ErrorKind, Result};

/// What to train and how. The defaults are the recipe of `conv-small` from nothing; the papers' own
/// recipes fine-tune larger networks and are named with each method.
#[derive(Clone, Debug, Serialize)]
pub struct TrainOptions {
    /// The method and its settings.
    pub method: MethodConfig,
    /// K, the code length.
    #[serde(serialize_with = "bits")]
    pub code_len: CodeLen,
    /// The feature network.
    pub backbone: BackboneKind,
    /// A `.safetensors` file with published weights for it; `None` trains it from nothing.
    ///
    /// Names, shapes and types must be exactly the backbone's; a classifier is passed over.
    #[serde(skip)]
    pub weights: Option<PathBuf>,
    /// Leaves the backbone as its weights are, and trains the head alone, on features that are computed
    /// once. Needs `weights`; pictures are not augmented.
    pub freeze: bool,
    /// The folder of those features, kept for the next run; without it they lie beside `out`, in a
    /// folder with `.features` added to its name.
    #[serde(skip)]
    pub feature_cache: Option<PathBuf>,
    /// How the backbone computes.
    pub backbone_mode: BackboneMode,
    /// Passes over the train split.
    pub epochs: usize,
    /// Pictures a step, at least 2. The rest of a pass that fills no batch is left out, so that batch
    /// statistics always come from as many pictures.
    pub batch: usize,
    /// The base learning rate of the hash head.
    pub lr: f64,
    /// The backbone's rate over the head's: 1 from nothing, 0.1 for a pretrained backbone (OrthoHash).
    pub backbone_lr_scale: f64,
    /// L2 weight decay, added to gradients.
    pub weight_decay: f64,
    /// How the rate changes.
    pub schedule: Schedule,
    /// What happens to each picture.
    pub augment: Augment,
    /// Everything random comes from it.
    pub seed: u64,
    /// Where to train.
    #[serde(skip)]
    pub device: Device,
    /// Threads of libtorch; `None` leaves them as they are, half or all of the cores at first (see
    /// [`device::set_threads`]).
    #[serde(skip)]
    pub threads: Option<usize>,
    /// A JSON line a logged step goes here.
    #[serde(skip)]
    pub log: Option<PathBuf>,
    /// Steps between two lines, at least 1.
    #[serde(skip)]
    pub log_every: usize,
    /// The model file, written after every epoch. The run's state goes beside it.
    #[serde(skip)]
    pub out: PathBuf,
    /// Go on from the state beside `out`, if there is one.
    #[serde(skip)]
    pub resume: bool,
    /// Stop once this many epochs are done in all, to be resumed later; the schedule still spans
    /// `epochs`.
    #[serde(skip)]
    pub stop_after: Option<usize>,
}

fn bits<S: serde::Serializer>(code_len: &CodeLen, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(code_len.bits() as u64)
}

impl TrainOptions {
    /// The default recipe: codes of `code_len` bits by `method`, written to `out`.
    pub fn new(method: MethodConfig, code_len: CodeLen, out: impl Into<PathBuf>) -> TrainOptions {
        TrainOptions {
            method,
            code_len,
            backbone: BackboneKind::ConvSmall,
            weights: None,
            freeze: false,
            feature_cache: None,
            backbone_mode: BackboneMode::default(),
            epochs: 12,
            batch: 256,
            lr: 3e-3,
            backbone_lr_scale: 1.0,
            weight_decay: 0.0,
            schedule: Schedule::Cosine {
                warmup: 0.15,
                floor: 0.01,
            },
            augment: Augment::default(),
            seed: 0,
            device: Device::Auto,
            threads: None,
            log: None,
            log_every: 1,
            out: out.into(),
            resume: false,
            stop_after: None,
        }
    }

    fn check(&self, dataset: &Dataset) -> Result<()> {
        let n_pictures = dataset.train.labels.len();
        let refuse = |text: String| Err(Error::invalid(text));
        if self.epochs == 0 || self.log_every == 0 {
            return refuse("epochs and log_every start at 1".into());
        }
        if self.batch < 2 || self.batch > n_pictures {
            return refuse(format!(
                "a batch takes 2 to {n_pictures} pictures, as many as the train split has, got {}",
                self.batch
            ));
        }
        for (name, value) in [
            ("lr", self.lr),
            ("backbone_lr_scale", self.backbone_lr_scale),
            ("weight_decay", self.weight_decay),
        ] {
            if !value.is_finite() || value < 0.0 {
                return refuse(format!("{name} is a number from 0, got {value}"));
            }
        }
        self.augment.check()?;
        if self.freeze && self.weights.is_none() {
            return refuse(
                "a backbone that is left as it is needs weights; name their file".into(),
            );
        }
        let n_classes = dataset.class_names.len();
        if let Some(label) = dataset
            .train
            .labels
            .iter()
            .find(|l| **l as usize >= n_classes)
        {
            return refuse(format!(
                "the train split has the label {label}, the data set {n_classes} classes"
            ));
        }
        Ok(())
    }
}

/// One logged step. Times and rates are of this process, from its first step on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainProgress {
    /// The epoch under way, counted from 0.
    pub epoch: usize,
    /// Epochs of the whole run.
    pub epochs: usize,
    /// Steps taken, this one included.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// The sum that is minimized, of this batch.
    pub loss: f64,
    /// Its classification loss.
    pub classification: f64,
    /// Its quantization loss, weighted, where the method has one in use.
    pub quantization: Option<f64>,
    /// The share of the batch whose nearest target is right.
    pub accuracy: f64,
    /// The head's learning rate.
    pub lr: f64,
    /// Pictures a second since the last logged step.
    pub pictures_per_s: f64,
    /// Seconds since this process began to train.
    pub seconds: f64,
}

/// What a run ended with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainSummary {
    /// The model file.
    pub out: PathBuf,
    /// The id of the model in it.
    pub model_id: String,
    /// Epochs done in all, those before a resume included.
    pub epochs_done: usize,
    /// Steps taken in all.
    pub steps: usize,
    /// The loss of the last step; `None` if there was nothing left to do.
    pub loss: Option<f64>,
    /// Seconds of training in this process.
    pub seconds: f64,
    /// The device, as `cpu` or `cuda:N`.
    pub device: String,
}

/// Trains a model and writes it to `options.out` after every epoch.
///
/// # Errors
/// `InvalidArgument` for options that do not fit the data set or the run to resume; `Io` where a file
/// cannot be written; `Corrupt` for a damaged state file; `Unsupported` for an absent GPU; `Torch` when
/// libtorch fails or the loss is no longer finite. Files of the last whole epoch remain.
pub fn train(
    dataset: &Dataset,
    options: &TrainOptions,
    progress: &mut dyn FnMut(&TrainProgress),
) -> Result<TrainSummary> {
    options.check(dataset)?;
    let device = options.device.resolve()?;
    if let Some(n_threads) = options.threads {
        device::set_threads(n_threads);
    }
    let examples = &dataset.train;
    let input = options.backbone.input(examples)?;
    let n_classes = dataset.class_names.len();
    let (bits, seed) = (options.code_len.bits(), options.seed);

    let mut network = DeepHashNet::new(options.backbone, &input, options.code_len, seed, device)?;
    network.set_backbone_mode(options.backbone_mode);
    let weights = options
        .weights
        .as_deref()
        .map(|path| network.load_backbone(path))
        .transpose()?;
    if options.freeze {
        network.freeze_backbone();
    }
    let method = options.method.build(n_classes, bits, seed, device)?;
    let scale = options.backbone_lr_scale;
    let mut adam = Adam::new(network.weights(), options.weight_decay, scale)?;
    let mut model = Checkpoint {
        config: describe(dataset, options, input.clone(), weights)?,
        network,
    };

    let steps_per_epoch = examples.len() / options.batch;
    let steps = steps_per_epoch * options.epochs;
    let first_epoch = match options.resume {
        true => resume(&mut model, &mut adam, &options.out)?,
        false => 0,
    };
    let mut log = Log::open(options, first_epoch * steps_per_epoch)?;
    let batches = match options.freeze {
        false => Batches::new(Arc::clone(examples), input, options.augment, device)?,
        true => {
            let features = frozen_features(dataset, options)?;
            let n_features = model.network.n_features() as usize;
            let input = InputSpec::Features {
                features: n_features,
            };
            Batches::new(features, input, Augment::NONE, device)?
        }
    };
    let labels: Vec<i64> = examples
        .labels
        .iter()
        .map(|&label| i64::from(label))
        .collect();
    let mut order: Vec<i64> = (0..labels.len() as i64).collect();

    let start = Instant::now();
    let (mut logged_at, mut pictures_since) = (start, 0);
    let mut last_loss = None;
    let last_epoch = options
        .stop_after
        .unwrap_or(options.epochs)
        .min(options.epochs);
    for epoch in first_epoch..last_epoch {
        let mut rng = device::rng(seed, Stream::Epoch(epoch));
        // Dropout alone reads libtorch's generator.
        tch::manual_seed(rng.clone().next_u64() as i64);
        // From the same start every time, so that the order is a function of the seed and the epoch.
        order.sort_unstable();
        order.shuffle(&mut rng);
        for (batch_idx, rows) in order.chunks_exact(options.batch).enumerate() {
            let step = epoch * steps_per_epoch + batch_idx;
            let lr = options.lr
                * options
                    .schedule
                    .factor(step, steps_per_epoch, options.epochs);

            let targets: Vec<i64> = rows.iter().map(|&row| labels[row as usize]).collect();
            let targets = Tensor::f_from_slice(&targets)?.f_to_device(device)?;
            let inputs = batches.batch(rows, &mut rng)?;
            let logits = match options.freeze {
                false => model.network.forward(&inputs, true)?,
                true => model.network.forward_features(&inputs, true)?,
            };
            let terms = method.loss(&logits, &targets)?;
            let total = terms.total()?;
            let loss = f64::try_from(&total)?;
            if !loss.is_finite() {
                return Err(diverged(loss, epoch, step, lr));
            }
            total.f_backward()?;
            adam.step(lr)?;
            last_loss = Some(loss);
            pictures_since += rows.len();

            if (step + 1).is_multiple_of(options.log_every) || step + 1 == steps {
                let entry = TrainProgress {
                    epoch,
                    epochs: options.epochs,
                    step: step + 1,
                    steps,
                    loss,
                    classification: f64::try_from(&terms.classification)?,
                    quantization: quantization(&terms)?,
                    accuracy: method.accuracy(&logits, &targets)?,
                    lr,
                    pictures_per_s: pictures_since as f64 / logged_at.elapsed().as_secs_f64(),
                    seconds: start.elapsed().as_secs_f64(),
                };
                log.write(&entry)?;
                progress(&entry);
                (logged_at, pictures_since) = (Instant::now(), 0);
            }
        }
        log.flush()?;
        model.config.epochs_done = epoch + 1;
        save_state(&mut model, &adam, &options.out)?;
    }

    Ok(TrainSummary {
        out: options.out.clone(),
        epochs_done: model.config.epochs_done,
        steps: model.config.epochs_done * steps_per_epoch,
        loss: last_loss,
        seconds: start.elapsed().as_secs_f64(),
        device: match device {
            tch::Device::Cuda(device_idx) => format!("cuda:{device_idx}"),
            _ => "cpu".to_owned(),
        },
        model_id: model.config.model_id,
    })
}

/// The features of the train split by the frozen backbone, from the cache where they are there.
fn frozen_features(dataset: &Dataset, options: &TrainOptions) -> Result<Arc<ExampleSet>> {
    let weights = options.weights.as_deref().unwrap_or(Path::new(""));
    let extractor = FeatureExtractor::open(options.backbone, weights, options.device)?;
    let beside = features_path(&options.out);
    let cache = options.feature_cache.as_deref().unwrap_or(&beside);
    let features = extractor.dataset(dataset, cache, &mut |_, _| {})?;
    Ok(features.train)
}

/// The folder of features beside the model that is trained on them.
fn features_path(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".features");
    PathBuf::from(name)
}

/// The description of the model to be.
fn describe(
    dataset: &Dataset,
    options: &TrainOptions,
    input: InputSpec,
    backbone_weights: Option<WeightsRecord>,
) -> Result<ModelConfig> {
    let training = serde_json::to_value(options)
        .map_err(|error| Error::invalid(format!("options: {error}")))?;
    Ok(ModelConfig {
        format: MODEL_FORMAT,
        library: env!("CARGO_PKG_VERSION").to_owned(),
        model_id: String::new(),
        method: options.method.clone(),
        code_len_bits: options.code_len.bits(),
        backbone: options.backbone,
        backbone_weights,
        input,
        class_names: dataset.class_names.clone(),
        dataset: dataset.name.clone(),
        protocol: dataset.protocol.clone(),
        seed: options.seed,
        epochs_done: 0,
        training,
    })
}

fn quantization(terms: &LossTerms) -> Result<Option<f64>> {
    Ok(match &terms.quantization {
        Some(term) => Some(f64::try_from(term)?),
        None => None,
    })
}

fn diverged(loss: f64, epoch: usize, step: usize, lr: f64) -> Error {
    ErrorKind::Torch(format!(
        "the loss is {loss} at step {step} of epoch {epoch} with learning rate {lr:.3e}; lower the rate, or check the data for constant pictures"
    ))
    .into()
}

/// Everything a run needs to go on: the tensors of the network and of Adam. Random numbers need no
/// state, since each epoch has its own stream.
fn state_tensors(model: &Checkpoint, adam: &Adam) -> Vec<(String, Tensor)> {
    let weights = checkpoint::weight_handles(&model.network).into_iter();
    let named = |prefix: &'static str| move |(name, tensor)| (format!("{prefix}.{name}"), tensor);
    weights
        .map(named("weights"))
        .chain(adam.state().into_iter().map(named("adam")))
        .collect()
}

#[derive(Serialize, Deserialize)]
struct State {
    config: ModelConfig,
    adam_steps: u64,
}

/// Writes the model, then the state. Each is atomic and the state holds its own weights, so an
/// interruption between the two repeats an epoch and loses nothing.
fn save_state(model: &mut Checkpoint, adam: &Adam, out: &Path) -> Result<()> {
    model.save(out)?;
    let state = State {
        config: model.config.clone(),
        adam_steps: adam.steps(),
    };
    write_tensors(&state_path(out), &state_tensors(model, adam), &state)
}

/// Loads the state beside `out`, if there is one, and returns the epoch to go on with.
fn resume(model: &mut Checkpoint, adam: &mut Adam, out: &Path) -> Result<usize> {
    let path = state_path(out);
    if !path.exists() {
        return Ok(0);
    }
    let file = TensorFile::read(&path)?;
    let state: State = file.metadata()?;
    same_run(&state.config, &model.config, &path)?;
    file.copy_into(&state_tensors(model, adam))?;
    adam.set_steps(state.adam_steps);
    model.config = state.config;
    Ok(model.config.epochs_done)
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

/// The JSON lines of a run.
struct Log {
    file: Option<(PathBuf, BufWriter<File>)>,
}

impl Log {
    /// Opens the log. A resumed run keeps the lines of the steps it does not repeat.
    fn open(options: &TrainOptions, first_step: usize) -> Result<Log> {
        let Some(path) = &options.log else {
            return Ok(Log { file: None });
        };
        let old = match first_step {
            0 => String::new(),
            _ => fs::read_to_string(path).unwrap_or_default(),
        };
        let kept: String = old
            .lines()
            .filter(|line| {
                serde_json::from_str::<TrainProgress>(line)
                    .is_ok_and(|entry| entry.step <= first_step)
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        checkpoint::write_atomically(path, kept.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(|error| Error::io(path, error))?;
        Ok(Log {
            file: Some((path.clone(), BufWriter::new(file))),
        })
    }

    fn write(&mut self, entry: &TrainProgress) -> Result<()> {
        let Some((path, file)) = &mut self.file else {
            return Ok(());
        };
        serde_json::to_writer(&mut *file, entry)
            .map_err(std::io::Error::from)
            .and_then(|()| file.write_all(b"\n"))
            .map_err(|error| Error::io(path, error))
    }

    fn flush(&mut self) -> Result<()> {
        match &mut self.file {
            Some((path, file)) => file.flush().map_err(|error| Error::io(path, error)),
            None => Ok(()),
        }
    }
}

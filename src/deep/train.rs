//! The training loop, to be read top to bottom.
//!
//! A run is a function of its data set, its options and its seed: on the CPU, with the same number of
//! threads, two runs give the same weights bit for bit, and so do a run and one that was interrupted and
//! resumed. Leaves out measuring: that is the `eval` floor's, on codes.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use rand::RngCore;
use rand::seq::SliceRandom;
use serde::Serialize;
use tch::Tensor;

use crate::centers::separation::separated;
use crate::centers::{ClassDistances, ClassSimilarity, Codebook};
use crate::code::CodeLen;
use crate::data::{Dataset, ExampleSet};
use crate::deep::augment::{Augment, Batches};
use crate::deep::backbone::BackboneKind;
use crate::deep::checkpoint::{Checkpoint, InputSpec, MODEL_FORMAT, ModelConfig, state_path};
use crate::deep::device::{self, Device, Stream};
use crate::deep::features::FeatureExtractor;
use crate::deep::method::shc::{self, SimilarityFrom};
use crate::deep::method::{BuildContext, Method, MethodConfig, StepInfo, TargetKind};
use crate::deep::network::{BackboneMode, DeepHashNet};
use crate::deep::optimizer::{Optimizer, OptimizerKind};
use crate::deep::run_log::{Log, TrainProgress};
use crate::deep::run_state::{Best, RunState};
use crate::deep::schedule::Schedule;
use crate::deep::stages;
use crate::deep::validation::{Selection, Validation, split};
use crate::error::{Error, ErrorKind, Result};
use crate::labels::LabelSets;

/// What is known of the classes, given by the caller instead of made by the run. Options record digests.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Given {
    /// SHC's S, C x C: leaves out stage 1.
    pub similarity: Option<ClassSimilarity>,
    /// Hash centers, C x K, for any method with centers: leaves out stages 1 and 2 of SHC.
    pub centers: Option<Codebook>,
    /// SHREWD's distances, of classes or (weakly supervised) of the pictures of the train split.
    pub distances: Option<ClassDistances>,
}

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
    /// A `.safetensors` file with published weights for it, or a model file of this library with the same
    /// backbone, which training then goes on from; `None` trains from nothing.
    ///
    /// Names, shapes and types must be exactly the backbone's; a classifier or hash head is passed over.
    #[serde(skip)]
    pub weights: Option<PathBuf>,
    /// Rows and columns of the pictures that a network with published weights reads, 64 to 1024; 224 if
    /// `None`. Half of it is a quarter of the work. The model keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picture_side: Option<usize>,
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
    /// What turns gradients into steps.
    pub optimizer: OptimizerKind,
    /// Which epoch's weights become the model, and when to stop early.
    pub selection: Selection,
    /// Matrices and centers from the caller.
    pub given: Given,
    /// Makes the centers of another method than SHC with stages 1 and 2 of SHC, or with class means.
    pub semantic_centers: Option<shc::Config>,
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
    /// Steps between two lines, at least 1, beside the last of an epoch; also between two calls of the progress.
    /// `None`: 1 on the CPU, 10 on a GPU. The loss is read only then, and checked, because a GPU is waited for.
    #[serde(skip)]
    pub log_every: Option<usize>,
    /// The model file, written after every epoch. The run's state goes beside it.
    #[serde(skip)]
    pub out: PathBuf,
    /// Go on from the state beside `out`, if there is one.
    #[serde(skip)]
    pub resume: bool,
    /// Stop once this many epochs are done in all, those of SHC's stage 1 included, to be resumed later;
    /// the schedule still spans `epochs`.
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
            picture_side: None,
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
            optimizer: OptimizerKind::ADAM,
            selection: Selection::default(),
            given: Given::default(),
            semantic_centers: None,
            augment: Augment::default(),
            seed: 0,
            device: Device::Auto,
            threads: None,
            log: None,
            log_every: None,
            out: out.into(),
            resume: false,
            stop_after: None,
        }
    }

    /// `Ok` if a run over `dataset` can begin: what [`train`] does first.
    ///
    /// # Errors
    /// `InvalidArgument` and `Unsupported`, as [`train`].
    pub fn check(&self, dataset: &Dataset) -> Result<()> {
        let n_pictures = dataset.train.labels.len();
        let refuse = |text: String| Err(Error::invalid(text));
        for (name, count) in [
            ("epochs", self.epochs),
            (
                "steps between two lines of the log",
                self.log_every.unwrap_or(1),
            ),
        ] {
            if count == 0 {
                return refuse(format!("{name}: expected at least 1, got 0"));
            }
        }
        if self.batch < 2 || self.batch > n_pictures {
            let other = if self.batch < 2 { "larger" } else { "smaller" };
            return refuse(format!(
                "a batch takes 2 to {n_pictures} pictures, as many as the train split has, got {}; choose a {other} batch",
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
        if self.lr == 0.0 {
            return refuse(
                "lr: expected a number above 0, at which something is learned, got 0".into(),
            );
        }
        self.augment.check()?;
        if self.freeze && self.weights.is_none() {
            return refuse(
                "a backbone that is left as it is needs weights; name their file".into(),
            );
        }
        if self.weights.is_some() && self.backbone == BackboneKind::Identity {
            return refuse(
                "features have no backbone to load weights into; leave out the weights".into(),
            );
        }
        check_out(&self.out, "model file")?;
        if let Some(log) = &self.log
            && log.extension().is_some_and(|extension| extension == "svg")
        {
            return refuse(format!(
                "{}: the log is lines of JSON, and its curves go beside it with .svg; name it .jsonl",
                log.display()
            ));
        }
        if let Some(log) = &self.log {
            check_out(log, "log")?;
        }
        self.optimizer.check()?;
        self.selection.check()?;
        self.check_given(dataset)?;
        if dataset.train.label_sets().is_some()
            && (self.trains_classifier() || !self.method.takes_label_sets())
        {
            let text = match self.trains_classifier() && self.method.takes_label_sets() {
                true => "the classifier of shc's centers takes one class an example, the data set has several; use class-means or other centers".to_owned(),
                false => format!(
                    "{} is defined for one class an example, the data set has several; use orthohash, csq or hashnet",
                    self.method.name()
                ),
            };
            return Err(ErrorKind::Unsupported(text).into());
        }
        check_classes(dataset, &self.method)
    }

    /// `Ok` if the given matrices belong to the method and have its sizes.
    fn check_given(&self, dataset: &Dataset) -> Result<()> {
        let (n_classes, bits) = (dataset.class_names.len(), self.code_len.bits());
        let name = self.method.name();
        let refuse = |text: String| Err(Error::invalid(text));
        let Given {
            similarity,
            centers,
            distances,
        } = &self.given;
        if centers.is_some() && !self.method.has_centers() {
            return refuse(format!("{name} has no hash centers, got some"));
        }
        if self.semantic_centers.is_some() && self.method.centers().is_none() {
            return refuse(format!(
                "{name} takes no semantic centers; orthohash, csq and dpn do"
            ));
        }
        let stages_distance = self.stages().and_then(|stages| stages.centers.min_distance);
        if centers.is_some() && stages_distance.is_some() {
            return refuse(
                "given centers have the distances they have; leave out the minimum distance".into(),
            );
        }
        if similarity.is_some() && (self.stages().is_none() || centers.is_some()) {
            return refuse(format!(
                "{name} with these options reads no class similarity, got one"
            ));
        }
        if self.stages().is_some_and(|stages| stages.warm_start)
            && (!self.trains_classifier()
                || similarity.is_some()
                || centers.is_some()
                || self.freeze
                || self.backbone == BackboneKind::Identity)
        {
            return refuse(
                "a warm start takes over the backbone of the run's classifier: it goes with a backbone that is trained, and without a given similarity or given centers".into(),
            );
        }
        if self.stages().is_some() && !self.trains_classifier() {
            let stage_1 = self.stages().and_then(|stages| stages.classifier_epochs);
            if similarity.is_some() || centers.is_some() || stage_1.is_some() {
                return refuse(
                    "class-mean centers have their similarity from the features: they go without a given similarity, given centers, or epochs of a classifier".into(),
                );
            }
            if self.weights.is_none() && self.backbone != BackboneKind::Identity {
                return refuse(format!(
                    "class-mean centers take features that say something of the classes, {} has random weights here; name a file of weights, train on features, or take shc's centers, which train a classifier first",
                    self.backbone
                ));
            }
        }
        if distances.is_some() && !self.method.has_distances() {
            return refuse(format!("{name} reads no distances, got some; shrewd does"));
        }
        if let Some(centers) = centers
            && (centers.n_classes(), centers.bits()) != (n_classes, bits)
        {
            return refuse(format!(
                "expected {n_classes} centers of {bits} bits, got {} of {}",
                centers.n_classes(),
                centers.bits()
            ));
        }
        if let Some(similarity) = similarity
            && similarity.n_classes() != n_classes
        {
            return refuse(format!(
                "expected the similarity of {n_classes} classes, got {}",
                similarity.n_classes()
            ));
        }
        let n_pictures = dataset.train.labels.len();
        if let (Some(distances), MethodConfig::Shrewd(config)) = (distances, &self.method)
            && config.weakly_supervised
            && distances.n() != n_pictures
        {
            return refuse(format!(
                "expected distances of the {n_pictures} pictures of the train split, got {}",
                distances.n()
            ));
        }
        Ok(())
    }

    /// The hash centers of a run over `n_classes` classes, where they do not follow from the data: those given, or drawn
    /// by the seed. None where the method has no centers, or makes them by the stages of SHC.
    ///
    /// # Errors
    /// `InvalidArgument` if the method's kind of codebook has no centers of so many bits.
    pub fn fixed_centers(&self, n_classes: usize) -> Result<Option<Codebook>> {
        if self.given.centers.is_some() {
            return Ok(self.given.centers.clone());
        }
        let bits = self.code_len.bits();
        match self.method.for_bits(bits).centers() {
            Some(kind) if self.stages().is_none() => {
                let mut rng = device::rng(self.seed, Stream::Centers);
                Codebook::new(kind, n_classes, bits, &mut rng).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// What the model's description calls the hash centers.
    fn centers_name(&self) -> Result<Option<String>> {
        if let Some(centers) = &self.given.centers {
            let digest =
                serde_json::to_value(centers).map_err(|error| Error::invalid(error.to_string()))?;
            return Ok(Some(format!(
                "given, {}",
                digest.as_str().unwrap_or_default()
            )));
        }
        Ok(match self.stages() {
            Some(stages) if stages.similarity_from == SimilarityFrom::ClassMeans => {
                Some("class-means".to_owned())
            }
            Some(_) => Some("shc".to_owned()),
            None => {
                let kind = self.method.for_bits(self.code_len.bits()).centers();
                kind.map(|kind| kind.to_string())
            }
        })
    }

    /// Whether there is the state of a run to go on from, of any of its stages.
    pub fn can_resume(&self) -> bool {
        state_path(&self.out).is_file() || stages::classifier_state(&self.out).is_file()
    }

    /// What happens to pictures: nothing where features are read instead of them, or computed once.
    fn augment(&self) -> Augment {
        match self.freeze || self.backbone == BackboneKind::Identity {
            true => Augment::NONE,
            false => self.augment,
        }
    }

    /// The settings of SHC's first stages, where the run has them.
    fn stages(&self) -> Option<&shc::Config> {
        match &self.method {
            MethodConfig::Shc(config) => Some(config),
            _ => self.semantic_centers.as_ref(),
        }
    }

    /// Whether the first of those stages is a classifier, unless its outcome is given.
    fn trains_classifier(&self) -> bool {
        let from = self.stages().map(|stages| stages.similarity_from);
        from == Some(SimilarityFrom::Classifier)
    }
}

/// `Ok` if a file can be written there: what is no plain file would be replaced by one.
fn check_out(path: &Path, what: &str) -> Result<()> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(Error::invalid(format!(
            "{}: expected the name of a {what}, found a {}; choose another name",
            path.display(),
            match found.is_dir() {
                true => "folder",
                false => "device or a pipe",
            }
        ))),
        Ok(_) => Ok(()),
        Err(_) => match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
                Err(Error::invalid(format!(
                    "{}: expected a folder to write the {what} {} in, found none; make it first",
                    folder.display(),
                    path.display()
                )))
            }
            _ => Ok(()),
        },
    }
}

/// `Ok` if every class can be learned. A class that only the database has is left unseen on purpose.
fn check_classes(dataset: &Dataset, method: &MethodConfig) -> Result<()> {
    let n_classes = dataset.class_names.len();
    if n_classes < 2 && method.reads_classes() {
        return Err(Error::invalid(format!(
            "training takes at least 2 classes, the data set has {n_classes}"
        )));
    }
    if let Some(sets) = dataset.train.label_sets()
        && sets.n_classes() != n_classes
    {
        return Err(Error::invalid(format!(
            "the train split has indicators of {} classes, the data set {n_classes} classes",
            sets.n_classes()
        )));
    }
    let count_classes = |set: &ExampleSet| -> Result<Vec<usize>> {
        let mut counts = vec![0usize; n_classes];
        let labels = set.all_labels();
        for label in (0..set.len()).flat_map(|example| labels.of(example)) {
            let count = counts.get_mut(label as usize).ok_or_else(|| {
                Error::invalid(format!(
                    "a split has the label {label}, the data set {n_classes} classes, counted from 0"
                ))
            })?;
            *count += 1;
        }
        Ok(counts)
    };
    let in_database = count_classes(&dataset.database)?;
    let in_train = count_classes(&dataset.train)?;
    if !method.reads_classes() {
        return Ok(());
    }
    for (class, count) in in_train.into_iter().enumerate() {
        let name = &dataset.class_names[class];
        if count == 0 && in_database[class] == 0 {
            return Err(Error::invalid(format!(
                "class {name:?} has no train picture; add pictures or remove the class"
            )));
        }
        if count == 1 && method.needs_pairs() {
            return Err(Error::invalid(format!(
                "class {name:?} has one train picture, and the method learns from pairs of a class; add pictures, remove the class, or use orthohash"
            )));
        }
    }
    Ok(())
}

/// What a run ended with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainSummary {
    /// The model file.
    pub out: PathBuf,
    /// The id of the model in it; empty if the run was stopped before there was one.
    pub model_id: String,
    /// Epochs done in all, those before a resume included; those of SHC's stage 1 not.
    pub epochs_done: usize,
    /// Steps taken in all, those of SHC's stage 1 included.
    pub steps: usize,
    /// The loss of the last step; `None` if there was nothing left to do.
    pub loss: Option<f64>,
    /// How the model was chosen among the epochs, if not as the last; with its figure.
    pub selection: Option<crate::deep::checkpoint::SelectionRecord>,
    /// Seconds of training in this process.
    pub seconds: f64,
    /// The device, as `cpu` or `cuda:N`.
    pub device: String,
}

/// Trains a model and writes it to `options.out` after every epoch. `progress` gets every logged step; the
/// features of a frozen backbone are computed before the first, see [`prepare_features`].
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
        device::set_threads(n_threads)?;
    }
    let input = options
        .backbone
        .input(&dataset.train, options.picture_side)?;
    let config = describe(dataset, options, input.clone())?;
    // A frozen backbone is run once; from here on the data set is of its features.
    let features;
    let (dataset, input, augment) = match options.freeze {
        false => (dataset, input, options.augment()),
        true => {
            features = frozen_features(dataset, options, &mut |_, _| {})?;
            let input = BackboneKind::Identity.input(&features.train, None)?;
            (&features, input, options.augment())
        }
    };
    let labels: Vec<i64> = dataset
        .train
        .labels
        .iter()
        .map(|&label| i64::from(label))
        .collect();
    let (rows, held_back) = split(&labels, dataset.class_names.len(), options)?;
    let batches = |augment| {
        let train = Arc::clone(&dataset.train);
        Batches::new(train, input.clone(), augment, device).map(Rc::new)
    };
    let augmented = batches(augment)?;
    let plain = match augment == Augment::NONE {
        true => Rc::clone(&augmented),
        false => batches(Augment::NONE)?,
    };
    let mut run = Run {
        options,
        device,
        n_classes: dataset.class_names.len(),
        steps_per_epoch: rows.len() / options.batch,
        batches: augmented,
        plain,
        labels,
        label_sets: dataset.train.label_sets().cloned(),
        rows,
        config,
        data: dataset.train.digest()?,
        start: Instant::now(),
        progress,
    };
    if run.steps_per_epoch == 0 {
        return Err(Error::invalid(format!(
            "a batch of {} pictures is more than the {} that are left beside the validation split; choose a smaller batch",
            options.batch,
            run.rows.len()
        )));
    }
    if !(options.resume && options.can_resume()) {
        // Files of another run must not be what a later resume finds.
        for path in [
            state_path(&options.out),
            stages::classifier_state(&options.out),
        ] {
            remove_if_there(&path)?;
        }
        stages::remove_outcomes(&options.out)?;
    }

    // Stages 1 and 2, where the method has them: what the codes are pulled towards.
    let classifier_epochs = match (options.stages(), &options.given) {
        (Some(config), given)
            if options.trains_classifier()
                && given.centers.is_none()
                && given.similarity.is_none() =>
        {
            config.classifier_epochs.unwrap_or(options.epochs)
        }
        _ => 0,
    };
    let total_steps = (classifier_epochs + options.epochs) * run.steps_per_epoch;
    let mut log = Log::open(options)?;
    let Some((codebook, classifier)) =
        codebook(&mut run, classifier_epochs, total_steps, &mut log)?
    else {
        return Ok(run.summary(String::new(), 0, 0, None, None));
    };

    // The hashing network itself.
    let method = options.method.build(&BuildContext {
        n_classes: run.n_classes,
        bits: options.code_len.bits(),
        seed: options.seed,
        device,
        codebook: codebook.as_ref(),
        distances: options.given.distances.as_ref(),
    })?;
    let validation = Validation::new(dataset, options, &held_back, &run.plain, &input, device)?;
    let model = run.checkpoint(options.code_len.bits(), options.method.head())?;
    if let Some(classifier) = classifier {
        model.network.copy_backbone(&classifier)?;
    }
    let mut fit = Fit {
        name: "hashing",
        model,
        method,
        epochs: options.epochs,
        steps_before: classifier_epochs * run.steps_per_epoch,
        total_steps,
        state: state_path(&options.out),
        saves_model: true,
        codebook,
        validation,
        stream: Stream::Epoch,
        epochs_max: options
            .stop_after
            .map(|epochs| epochs.saturating_sub(classifier_epochs)),
    };
    let ended = run.fit(&mut fit, &mut log)?;
    if ended.epochs_done > 0 {
        remove_if_there(&stages::classifier_state(&options.out))?;
    }
    let selection = ended.best.as_ref().map(|best| best.record.clone());
    let steps = (classifier_epochs + ended.epochs_done) * run.steps_per_epoch;
    let model_id = match ended.best {
        Some(best) => best.model_id,
        None => fit.model.config.model_id,
    };
    Ok(run.summary(model_id, ended.epochs_done, steps, ended.loss, selection))
}

/// The hash centers of the run, if its method has any: given, kept in the state of the run to resume, made
/// from the seed, or by stages 1 and 2 of SHC; with the classifier of stage 1, where the hashing network begins
/// with its backbone. The outer `None` says that the run was stopped on the way.
fn codebook(
    run: &mut Run<'_>,
    classifier_epochs: usize,
    total_steps: usize,
    log: &mut Log,
) -> Result<Option<(Option<Codebook>, Option<DeepHashNet>)>> {
    let options = run.options;
    let (n_classes, bits) = (run.n_classes, options.code_len.bits());
    let state = state_path(&options.out);
    if !options.method.has_centers() {
        return Ok(Some((None, None)));
    }
    if options.resume && state.exists() {
        return Ok(Some((Some(RunState::codebook(&state)?), None)));
    }
    let mut classifier = None;
    let codebook = match (options.fixed_centers(n_classes)?, options.stages()) {
        (Some(codebook), _) => codebook,
        (None, Some(config)) => {
            // What stage 2 would refuse is refused before hours of stage 1.
            let settings = config.centers_of(n_classes, bits);
            settings.check()?;
            let min_distance = settings.min_distance(n_classes, bits);
            let mut rng = device::rng(options.seed, Stream::Centers);
            separated(n_classes, bits, min_distance, &mut rng)?;
            let similarity = match &options.given.similarity {
                Some(similarity) => similarity.clone(),
                None if config.similarity_from == SimilarityFrom::ClassMeans => {
                    stages::class_means(run)?
                }
                None => {
                    match stages::similarity(run, config, classifier_epochs, total_steps, log)? {
                        Some((similarity, network)) => {
                            classifier = config.warm_start.then_some(network);
                            similarity
                        }
                        None => return Ok(None),
                    }
                }
            };
            stages::save_similarity(&similarity, &options.out)?;
            stages::centers(&similarity, config, options)?
        }
        (None, None) => return Ok(Some((None, None))),
    };
    stages::save_codebook(&codebook, &options.out)?;
    Ok(Some((Some(codebook), classifier)))
}

/// What all stages of a run share.
pub(crate) struct Run<'a> {
    pub options: &'a TrainOptions,
    pub device: tch::Device,
    pub n_classes: usize,
    pub steps_per_epoch: usize,
    /// Augmented pictures of the train split.
    pub batches: Rc<Batches>,
    /// The same as they are.
    pub plain: Rc<Batches>,
    /// The class of each picture of the train split, the first of several.
    pub labels: Vec<i64>,
    /// All of them, where a picture may have several.
    pub label_sets: Option<LabelSets>,
    /// The pictures that are learned from: all but those held back for validation.
    pub rows: Vec<i64>,
    pub config: ModelConfig,
    /// A digest of the train split: a run goes on with the examples that it began with.
    pub data: String,
    pub start: Instant,
    pub progress: &'a mut dyn FnMut(&TrainProgress),
}

/// One network that is fitted: the classifier of SHC's stage 1, or the hashing network.
pub(crate) struct Fit {
    /// The stage's name in the log.
    pub name: &'static str,
    pub model: Checkpoint,
    pub method: Box<dyn Method>,
    pub epochs: usize,
    /// Steps of the stages before.
    pub steps_before: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
    /// The state file.
    pub state: PathBuf,
    /// Whether the network becomes the model file.
    pub saves_model: bool,
    pub codebook: Option<Codebook>,
    pub validation: Option<Validation>,
    /// Where an epoch's random numbers come from.
    pub stream: fn(usize) -> Stream,
    /// Stop after so many epochs, to be resumed.
    pub epochs_max: Option<usize>,
}

/// How a fit ended.
pub(crate) struct Ended {
    pub epochs_done: usize,
    pub loss: Option<f64>,
    pub best: Option<Best>,
}

impl Run<'_> {
    /// A new network of `outputs` logits, with the run's description.
    pub fn checkpoint(
        &self,
        outputs: usize,
        head: crate::deep::hash_head::HeadKind,
    ) -> Result<Checkpoint> {
        let options = self.options;
        let mut config = self.config.clone();
        let (input, seed) = (&config.input, options.seed);
        let mut network =
            DeepHashNet::new(options.backbone, input, outputs, head, seed, self.device)?;
        network.set_backbone_mode(options.backbone_mode);
        if let Some(path) = &options.weights {
            config.backbone_weights = Some(network.load_backbone(path)?);
        }
        if options.freeze {
            network.freeze_backbone();
        }
        Ok(Checkpoint { config, network })
    }

    /// The loop.
    pub fn fit(&mut self, fit: &mut Fit, log: &mut Log) -> Result<Ended> {
        let options = self.options;
        let mut weights = vec![fit.model.network.weights()];
        weights.extend(fit.method.weights());
        let (decay, scale) = (options.weight_decay, options.backbone_lr_scale);
        let optimizer = Optimizer::new(options.optimizer, &weights, decay, scale)?;
        let mut state = RunState::new(fit, &self.data, optimizer)?;
        let first_epoch = match options.resume {
            true => state.resume(&mut fit.model, &fit.state)?,
            false => 0,
        };
        if first_epoch > 0 && fit.saves_model {
            state.restore_model(&mut fit.model, &options.out)?;
        }
        log.start(fit.steps_before + first_epoch * self.steps_per_epoch)?;
        let n_steps = self.steps_per_epoch;
        let log_every = options.log_every.unwrap_or(match self.device.is_cuda() {
            true => 10,
            false => 1,
        });
        // Every step has the same shapes, so the time that cuDNN takes to try its kernels comes back. Of the process, like
        // the threads.
        if self.device.is_cuda() {
            tch::Cuda::cudnn_set_benchmark(true);
        }
        let last_epoch = fit.epochs_max.unwrap_or(fit.epochs).min(fit.epochs);
        let mut order = self.rows.clone();
        let (mut logged_at, mut pictures_since) = (Instant::now(), 0);
        let mut last_loss = None;
        let (fit_start, mut steps_here) = (Instant::now(), 0);
        for epoch in first_epoch..last_epoch {
            if options.selection.is_over(epoch, state.best.as_ref()) {
                break;
            }
            let mut rng = device::rng(options.seed, (fit.stream)(epoch));
            // Dropout alone reads libtorch's generator.
            tch::manual_seed(rng.clone().next_u64() as i64);
            // From the same start every time, so that the order is a function of the seed and the epoch.
            order.sort_unstable();
            order.shuffle(&mut rng);
            for (batch_idx, rows) in order.chunks_exact(options.batch).enumerate() {
                let step = epoch * n_steps + batch_idx;
                let lr = options.lr * options.schedule.factor(step, n_steps, fit.epochs);
                let at = StepInfo {
                    epoch,
                    step,
                    seed: options.seed,
                };
                let pictures = self.batches.batch(rows, &mut rng)?;
                let targets = self.targets(fit.method.as_ref(), rows)?;
                let logits = fit.model.network.forward(&pictures, true)?;
                let terms = fit.method.loss(&logits, &targets, at)?;
                let total = terms.total()?;
                total.f_backward()?;
                state.optimizer.step(lr)?;
                pictures_since += rows.len();
                steps_here += 1;
                let ends_epoch = batch_idx + 1 == n_steps;
                if !(ends_epoch || (step + 1).is_multiple_of(log_every)) {
                    continue;
                }

                let loss = f64::try_from(&total)?;
                if !loss.is_finite() {
                    return Err(diverged(&format!("the loss is {loss}"), epoch, step, lr));
                }
                last_loss = Some(loss);
                // Before a validation, whose time is not that of training.
                let rate = pictures_since as f64 / logged_at.elapsed().as_secs_f64();
                if ends_epoch {
                    state.check_finite(epoch, step, lr)?;
                }
                let mut validated = None;
                if ends_epoch && let Some(validation) = &fit.validation {
                    validated = validation.measure(epoch, fit, self)?;
                }
                let step_of_run = fit.steps_before + step + 1;
                let s_per_step = fit_start.elapsed().as_secs_f64() / f64::from(steps_here);
                let entry = TrainProgress {
                    stage: fit.name.to_owned(),
                    epoch,
                    epochs: fit.epochs,
                    step: step_of_run,
                    steps: fit.total_steps,
                    loss,
                    terms: TrainProgress::values(&terms)?,
                    accuracy: fit.method.accuracy(&logits, &targets)?,
                    validation: validated,
                    lr,
                    pictures_per_s: rate,
                    seconds: self.start.elapsed().as_secs_f64(),
                    seconds_left: s_per_step * (fit.total_steps - step_of_run) as f64,
                };
                log.write(&entry)?;
                (self.progress)(&entry);
                (logged_at, pictures_since) = (Instant::now(), 0);
                if ends_epoch {
                    log.flush()?;
                    fit.model.config.epochs_done = epoch + 1;
                    let chosen = fit.validation.as_ref().map(|validation| &validation.metric);
                    state.finish_epoch(
                        fit.saves_model,
                        &mut fit.model,
                        chosen,
                        validated,
                        options,
                    )?;
                }
            }
        }
        Ok(Ended {
            epochs_done: fit.model.config.epochs_done,
            loss: last_loss,
            best: state.best,
        })
    }

    /// What the method is told of the pictures `rows`.
    pub fn targets(&self, method: &dyn Method, rows: &[i64]) -> Result<Tensor> {
        let targets = match (method.targets(), &self.label_sets) {
            (TargetKind::Examples, _) => Tensor::f_from_slice(rows)?,
            (TargetKind::Classes, None) => {
                let labels = rows.iter().map(|&row| self.labels[row as usize]);
                Tensor::f_from_slice(&labels.collect::<Vec<i64>>())?
            }
            (TargetKind::Classes, Some(sets)) => {
                let mut indicators = vec![0f32; rows.len() * self.n_classes];
                for (&row, indicators) in rows.iter().zip(indicators.chunks_mut(self.n_classes)) {
                    for class in sets.of(row as usize) {
                        indicators[class as usize] = 1.0;
                    }
                }
                let shape = [rows.len() as i64, self.n_classes as i64];
                Tensor::f_from_slice(&indicators)?.f_view(shape)?
            }
        };
        device::moved(&targets, self.device)
    }

    fn summary(
        &self,
        model_id: String,
        epochs_done: usize,
        steps: usize,
        loss: Option<f64>,
        selection: Option<crate::deep::checkpoint::SelectionRecord>,
    ) -> TrainSummary {
        TrainSummary {
            out: self.options.out.clone(),
            model_id,
            epochs_done,
            steps,
            loss,
            selection,
            seconds: self.start.elapsed().as_secs_f64(),
            device: match self.device {
                tch::Device::Cuda(device_idx) => format!("cuda:{device_idx}"),
                _ => "cpu".to_owned(),
            },
        }
    }
}

pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}

/// What [`train`] does first with [`TrainOptions::freeze`], alone, because it can take hours: computes the
/// features of all pictures of the data set and keeps them where `train` then finds them. Goes on where a
/// killed run stopped. `progress` gets the rows done and all of them. Does nothing without `freeze`.
///
/// # Errors
/// As [`train`].
pub fn prepare_features(
    dataset: &Dataset,
    options: &TrainOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    options.check(dataset)?;
    if options.freeze {
        frozen_features(dataset, options, progress)?;
    }
    Ok(())
}

/// The data set with its pictures replaced by features of the frozen backbone, from the cache where they
/// are there.
fn frozen_features(
    dataset: &Dataset,
    options: &TrainOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Dataset> {
    let weights = options.weights.as_deref().unwrap_or(Path::new(""));
    let extractor = FeatureExtractor::open(
        options.backbone,
        options.picture_side,
        weights,
        options.device,
    )?;
    let mut beside = options.out.as_os_str().to_owned();
    beside.push(".features");
    let beside = PathBuf::from(beside);
    let cache = options.feature_cache.as_deref().unwrap_or(&beside);
    extractor.dataset(dataset, cache, progress)
}

/// The description of the model to be.
fn describe(dataset: &Dataset, options: &TrainOptions, input: InputSpec) -> Result<ModelConfig> {
    let value = |value: serde_json::Result<serde_json::Value>| {
        value.map_err(|error| Error::invalid(format!("options: {error}")))
    };
    let mut training = value(serde_json::to_value(options))?;
    training["augment"] = value(serde_json::to_value(options.augment()))?;
    Ok(ModelConfig {
        format: MODEL_FORMAT,
        library: env!("CARGO_PKG_VERSION").to_owned(),
        model_id: String::new(),
        method: options.method.for_bits(options.code_len.bits()),
        code_len_bits: options.code_len.bits(),
        backbone: options.backbone,
        backbone_weights: None,
        input,
        class_names: dataset.class_names.clone(),
        dataset: dataset.name.clone(),
        protocol: dataset.protocol.clone(),
        seed: options.seed,
        epochs_done: 0,
        selection: None,
        centers: options.centers_name()?,
        adapted: None,
        training,
    })
}

/// Training that can only go wrong from here on: `what` is no longer finite.
pub(crate) fn diverged(what: &str, epoch: usize, step: usize, lr: f64) -> Error {
    ErrorKind::Torch(format!(
        "{what} at step {step} of epoch {epoch} with learning rate {lr:.3e}; lower the rate, or check the data for constant pictures"
    ))
    .into()
}

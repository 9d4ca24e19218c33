//! Training and evaluation as several commands need them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tanhash::centers::{CentersKind, ClassDistances, Codebook};
use tanhash::code::binarize;
use tanhash::data::{self, Dataset, DatasetKind, DatasetSpec, ExampleSet, PictureShape};
use tanhash::deep::method::shc;
use tanhash::deep::{
    Augment, BackboneKind, Device, MethodConfig, Recipe, TorchEncoder, TrainOptions, TrainProgress,
    TrainSummary, device,
};
use tanhash::eval::{Hierarchy, Protocol, QuantizationError, Report, quantization_error};
use tanhash::npy::read_matrix;
use tanhash::{CodeLen, Codes, Encoder};

use crate::cmd::centers::{read_similarity, square};
use crate::cmd::train::Args;
use crate::output;

/// Says why a GPU that the machine seems to have is not used.
pub fn note_unused_gpu() {
    if let Some(reason) = device::unused_gpu() {
        output::note(format!(
            "there is an NVIDIA driver, and no GPU can be used: {reason}; docs/guide/install-libtorch.md says what is needed"
        ));
    }
}

/// A data set for a network that reads pictures of this shape, or of the data set's own.
pub fn load(name: &str, shape: Option<PictureShape>, seed: u64) -> Result<Dataset> {
    let spec: DatasetSpec = name.parse()?;
    let dataset = data::load(&spec, shape, seed)?;
    for (path, reason) in dataset.skipped.iter().take(10) {
        output::note(format!("left out {}: {reason}", path.display()));
    }
    if dataset.skipped.len() > 10 {
        output::note(format!(
            "left out {} pictures in all",
            dataset.skipped.len()
        ));
    }
    note_unasked(&dataset);
    Ok(dataset)
}

/// Names classes without a query: figures are of the others.
fn note_unasked(dataset: &Dataset) {
    let mut asked = vec![false; dataset.class_names.len()];
    let labels = dataset.query.all_labels();
    for class in (0..dataset.query.len()).flat_map(|example| labels.of(example)) {
        if let Some(asked) = asked.get_mut(class as usize) {
            *asked = true;
        }
    }
    let names = dataset.class_names.iter().zip(&asked);
    let unasked: Vec<&str> = names
        .filter(|(_, asked)| !**asked)
        .map(|(name, _)| name.as_str())
        .collect();
    if !unasked.is_empty() {
        let more = if unasked.len() > 5 { ", .." } else { "" };
        output::note(format!(
            "no query is of {} of the {} classes: {}{more}",
            unasked.len(),
            asked.len(),
            unasked[..unasked.len().min(5)].join(", ")
        ));
    }
}

/// The files of a data set of vectors. Those of pictures lie in folders, where nobody writes a result.
pub fn data_files(name: &str) -> Result<Vec<PathBuf>> {
    Ok(match name.parse::<DatasetSpec>()?.kind {
        DatasetKind::Features(files) => [files.features, files.labels]
            .into_iter()
            .chain(files.splits)
            .chain(files.classes)
            .collect(),
        _ => Vec::new(),
    })
}

/// A data set that `encoder` reads. Vectors are no pictures, even of the length of the network's features: they may be
/// another network's.
pub fn load_for(encoder: &TorchEncoder, name: &str, seed: u64) -> Result<Dataset> {
    note_unused_gpu();
    let dataset = load(name, encoder.picture_shape(), seed)?;
    if let (Some(_), Some(found)) = (encoder.picture_shape(), dataset.query.n_features()) {
        bail!(
            "the model {} reads pictures, {name} has vectors of {found} numbers; give it the pictures",
            encoder.config().model_id
        );
    }
    Ok(dataset)
}

/// The method that the command line names, with its settings.
fn method(args: &Args) -> Result<MethodConfig> {
    let mut method = MethodConfig::from_name(&args.method)?;
    if let (MethodConfig::Shc(config), Some(variant)) = (&mut method, &args.variant) {
        *config = config.clone().with_variant(variant.parse()?);
    }
    Ok(method)
}

/// Sets what the command line says of the method. An option that the method does not have is refused.
fn set_method(method: &mut MethodConfig, args: &Args) -> Result<()> {
    let mut unused: Vec<&str> = [
        ("margin", args.margin.is_some()),
        ("margin-kind", args.margin_kind.is_some()),
        ("scale", args.scale.is_some()),
        ("quantization-weight", args.quantization_weight.is_some()),
        ("weakly-supervised", args.weakly_supervised),
        (
            "classification-weight",
            args.classification_weight.is_some(),
        ),
        ("similarity-weight", args.similarity_weight.is_some()),
        ("kl-weight", args.kl_weight.is_some()),
        ("alpha", args.alpha.is_some()),
        ("continuation-epochs", args.continuation_epochs.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, given)| given.then_some(name))
    .collect();
    let mut uses = |names: &[&str]| unused.retain(|name| !names.contains(name));
    let codebook = args.centers.as_deref().and_then(|name| name.parse().ok());
    match method {
        MethodConfig::OrthoHash(config) => {
            uses(&["margin", "margin-kind", "scale", "quantization-weight"]);
            config.margin = args.margin.unwrap_or(config.margin);
            config.quantization_weight = args
                .quantization_weight
                .unwrap_or(config.quantization_weight);
            config.centers = codebook.unwrap_or(config.centers);
            if let Some(kind) = &args.margin_kind {
                config.margin_kind = kind.parse()?;
            }
            if let Some(scale) = &args.scale {
                config.scale = scale.parse()?;
            }
        }
        MethodConfig::Shc(config) => {
            uses(&["quantization-weight"]);
            config.quantization_weight = args
                .quantization_weight
                .unwrap_or(config.quantization_weight);
            set_stages(config, args);
        }
        MethodConfig::Csq(config) => {
            uses(&["quantization-weight"]);
            config.quantization_weight = args
                .quantization_weight
                .unwrap_or(config.quantization_weight);
            config.centers = codebook.unwrap_or(config.centers);
        }
        MethodConfig::Dpn(config) => {
            uses(&["margin"]);
            config.margin = args.margin.unwrap_or(config.margin);
            config.centers = codebook.unwrap_or(config.centers);
        }
        MethodConfig::GreedyHash(config) => {
            uses(&["quantization-weight"]);
            config.penalty = args.quantization_weight.unwrap_or(config.penalty);
        }
        MethodConfig::HashNet(config) => {
            uses(&["alpha", "continuation-epochs"]);
            config.alpha = args.alpha.unwrap_or(config.alpha);
            config.continuation_epochs = args
                .continuation_epochs
                .unwrap_or(config.continuation_epochs);
        }
        MethodConfig::Shrewd(config) => {
            uses(&[
                "weakly-supervised",
                "classification-weight",
                "similarity-weight",
                "kl-weight",
            ]);
            config.weakly_supervised = args.weakly_supervised;
            config.classification_weight = args
                .classification_weight
                .unwrap_or(config.classification_weight);
            config.similarity_weight = args.similarity_weight.or(config.similarity_weight);
            config.kl_weight = args.kl_weight.unwrap_or(config.kl_weight);
        }
        _ => {}
    }
    if let Some(name) = unused.first() {
        bail!("the method {} has no option --{name}", method.name());
    }
    Ok(())
}

/// What `--centers` calls those by class means.
const CLASS_MEANS: &str = "class-means";

/// The options of SHC's first two stages.
fn set_stages(config: &mut shc::Config, args: &Args) {
    if args.centers.as_deref() == Some(CLASS_MEANS) {
        config.similarity_from = shc::SimilarityFrom::ClassMeans;
    }
    config.classifier_epochs = args.classifier_epochs.or(config.classifier_epochs);
    config.warm_start |= args.warm_start;
    config.centers.min_distance = args.min_distance.or(config.centers.min_distance);
    config.centers.refine &= !args.no_refine;
}

/// Sets the matrices and centers that the command line names. Classes have the names of the data set.
fn set_given(options: &mut TrainOptions, args: &Args, class_names: &[String]) -> Result<()> {
    match &args.similarity {
        Some(path) if options.method.has_distances() => {
            let distances = ClassDistances::from_similarity(&read_similarity(path)?);
            options.given.distances = Some(distances.with_context(|| path.display().to_string())?);
        }
        Some(path) => options.given.similarity = Some(read_similarity(path)?),
        None => {}
    }
    if let Some(path) = &args.distances {
        options.given.distances = Some(read_distances(path)?);
    }
    if let Some(path) = &args.hierarchy {
        if !options.method.has_distances() {
            bail!(
                "the method {} has no option --hierarchy, shrewd does; for a method with hash centers make them \
                 with `tanhash centers --hierarchy` and give them as --centers FILE.npy",
                options.method.name()
            );
        }
        let classes = Hierarchy::read(path)?.classes(class_names);
        let classes = classes.with_context(|| path.display().to_string())?;
        let distances = ClassDistances::new(classes.n_classes(), classes.distances());
        options.given.distances = Some(distances.with_context(|| path.display().to_string())?);
    }
    let is_shc = matches!(options.method, MethodConfig::Shc(_));
    match args.centers.as_deref() {
        Some("shc" | CLASS_MEANS) if !is_shc => {
            let mut config = shc::Config::default();
            if let Some(variant) = &args.variant {
                config = config.with_variant(variant.parse()?);
            }
            set_stages(&mut config, args);
            options.semantic_centers = Some(config);
        }
        Some("shc" | CLASS_MEANS) | None => {}
        Some(name) if name.ends_with(".npy") => {
            options.given.centers = Some(Codebook::read_npy(name)?);
        }
        Some(name) => {
            name.parse::<CentersKind>().with_context(|| {
                format!(
                    "expected shc, {CLASS_MEANS}, a .npy file or a kind of codebook, got {name:?}"
                )
            })?;
            if is_shc {
                bail!("the method shc takes shc, {CLASS_MEANS} or a .npy file, got {name}");
            }
            if options.method.centers().is_none() {
                bail!(
                    "the method {} takes no {name} centers; orthohash, csq and dpn do",
                    options.method.name()
                );
            }
        }
    }
    if args.classifier_epochs == Some(0) {
        bail!(
            "--classifier-epochs: expected at least 1, got 0: random weights say nothing of the classes"
        );
    }
    let stages = is_shc || options.semantic_centers.is_some();
    let (shc, semantic) = (
        "the method shc and --centers shc",
        "the method shc, --centers shc and --centers class-means",
    );
    let of_stages = [
        ("variant", args.variant.is_some(), semantic),
        ("classifier-epochs", args.classifier_epochs.is_some(), shc),
        ("min-distance", args.min_distance.is_some(), semantic),
        ("warm-start", args.warm_start, shc),
        ("no-refine", args.no_refine, semantic),
    ];
    if let (Some((name, _, whose)), false) = (of_stages.iter().find(|(_, given, _)| *given), stages)
    {
        bail!("--{name} is of {whose}, got none of them");
    }
    Ok(())
}

/// Distances of a `.npy` file.
fn read_distances(path: &Path) -> Result<ClassDistances> {
    let (rows, columns, entries) = read_matrix(path)?;
    square(path, rows, columns)?;
    let entries = entries.into_iter().map(|entry| entry as f32).collect();
    ClassDistances::new(rows, entries).with_context(|| path.display().to_string())
}

/// Everything the command line says of a run.
fn train_options(dataset: &Dataset, args: &Args, seed: u64) -> Result<TrainOptions> {
    let mut options = TrainOptions::new(method(args)?, CodeLen::new(args.bits)?, &args.out);
    let recipe = args.recipe.parse::<Recipe>()?;
    options.backbone = backbone(args, dataset)?;
    options.freeze = args.freeze;
    options.weights = args.weights.clone();
    options.set_recipe(recipe)?;
    set_method(&mut options.method, args)?;
    set_given(&mut options, args, &dataset.class_names)?;
    options.picture_side = args.picture_side;
    options.feature_cache = args.feature_cache.clone();
    options.backbone_mode.half = args.half;
    options.backbone_mode.running_statistics = args.running_statistics;
    // Options of what is not there.
    let no_backbone = options.backbone == BackboneKind::Identity;
    if no_backbone || options.freeze {
        let why = match no_backbone {
            true => "features of a file are read as they are",
            false => "the features of a backbone that is left as it is are computed once",
        };
        for (name, given) in [
            (
                "augment",
                args.augment.as_ref().is_some_and(|name| name != "none"),
            ),
            ("backbone-lr-scale", args.backbone_lr_scale.is_some()),
        ] {
            if given {
                bail!("--{name}: {why}; leave it out");
            }
        }
    }
    if let Some(name) = &args.augment {
        options.augment = Augment::from_name(name)?;
    }
    options.epochs = args.epochs.unwrap_or(options.epochs);
    let held_back = args.validation_share.unwrap_or(0.0).clamp(0.0, 1.0);
    let n_train = (dataset.train.len() as f64 * (1.0 - held_back)) as usize;
    options.batch = args.batch.unwrap_or(match recipe {
        Recipe::Default => batch_of(n_train).min(options.batch),
        _ => options.batch,
    });
    options.lr = args.lr.unwrap_or(options.lr);
    options.backbone_lr_scale = args.backbone_lr_scale.unwrap_or(options.backbone_lr_scale);
    options.weight_decay = args.weight_decay.unwrap_or(options.weight_decay);
    if let Some(optimizer) = &args.optimizer {
        options.optimizer = optimizer.parse()?;
    }
    if let Some(schedule) = &args.schedule {
        options.schedule = schedule.parse()?;
    }
    let selection = &mut options.selection;
    selection.validation_share = args.validation_share.unwrap_or(selection.validation_share);
    selection.every_epochs = args.validate_every.unwrap_or(selection.every_epochs);
    selection.patience_epochs = args.patience;
    selection.paper_protocol = args.paper_protocol;
    if (args.select.is_some() || args.validate_every.is_some()) && !selection.is_on() {
        bail!("expected --validation-share or --paper-protocol with --select and --validate-every");
    }
    if let Some(by) = &args.select {
        selection.by = by.parse()?;
    }
    options.device = args.device.parse::<Device>()?;
    options.threads = args.threads;
    options.log = args.log.clone();
    options.log_every = args.log_every;
    options.resume = args.resume;
    options.seed = seed;
    Ok(options)
}

/// Pictures a step for so many train pictures: a recipe is for thousands, and of fewer takes too few steps. A sixteenth,
/// rounded down to a power of two, but 16 at least; a quarter of less than 64.
fn batch_of(n_train: usize) -> usize {
    let sixteenth = (n_train / 16).max(1);
    let power = 1 << sixteenth.ilog2();
    power.max(16).min(n_train / 4).max(2)
}

/// Trains as the command line says.
pub fn train(dataset: &Dataset, args: &Args, seed: u64) -> Result<TrainSummary> {
    let options = train_options(dataset, args, seed)?;
    options.check(dataset)?;
    if options.device == Device::Auto {
        note_unused_gpu();
    }
    // What is wrong with them otherwise, the training says.
    if let Ok(Some(centers)) = options.fixed_centers(dataset.class_names.len())
        && centers.n_classes() > 1
        && centers.min_distance() == 0
    {
        output::note(format!(
            "two of {} classes have the same center, codes of {} bits will not tell them apart; \
             --centers max-hd or more bits may",
            centers.n_classes(),
            centers.bits()
        ));
    }
    if options.freeze {
        let bar = output::progress(0, "features");
        let mut first = None;
        tanhash::deep::prepare_features(dataset, &options, &mut |done, all| {
            let first = *first.get_or_insert(done);
            if first < all && done == first {
                bar.suspend(|| {
                    output::note(format!(
                        "features of {all} pictures, {done} are there already"
                    ));
                });
            }
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
    }
    if options.resume && !options.can_resume() {
        output::note(format!(
            "no run to resume beside {}, training from the beginning",
            options.out.display()
        ));
    }
    let bar = output::progress(0, "training");
    let summary = tanhash::deep::train(dataset, &options, &mut |progress: &TrainProgress| {
        bar.set_length(progress.steps as u64);
        bar.set_position(progress.step as u64);
        let accuracy = match progress.accuracy {
            Some(accuracy) => format!(" accuracy {accuracy:.3}"),
            None => String::new(),
        };
        bar.set_message(format!(
            "{} epoch {}/{} loss {:.3}{accuracy} {:.0} pictures/s",
            progress.stage,
            progress.epoch + 1,
            progress.epochs,
            progress.loss,
            progress.pictures_per_s
        ));
    });
    bar.finish_and_clear();
    Ok(summary?)
}

/// The backbone asked for; without a word, none for vectors and the small one for pictures.
fn backbone(args: &Args, dataset: &Dataset) -> Result<BackboneKind> {
    Ok(match (&args.backbone, dataset.train.n_features()) {
        (Some(name), _) => name.parse()?,
        (None, Some(_)) => BackboneKind::Identity,
        (None, None) => BackboneKind::ConvSmall,
    })
}

/// Codes of a set of examples.
pub fn encode(encoder: &TorchEncoder, set: &ExampleSet) -> Result<Codes> {
    let bar = output::progress(set.len() as u64, "encoding");
    let codes = encoder.encode_set(set, &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok(codes)
}

/// Codes of a set of examples, and what binarizing their logits lost.
pub fn encode_measured(
    encoder: &TorchEncoder,
    set: &ExampleSet,
) -> Result<(Codes, QuantizationError)> {
    let bar = output::progress(set.len() as u64, "encoding");
    let logits = encoder.logits_of(set, &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    let len = encoder.code_len();
    let mut codes = Codes::with_capacity(len, set.len());
    for (example, logits) in logits.chunks_exact(len.bits()).enumerate() {
        let code = binarize(len, logits).with_context(|| format!("example {example}"))?;
        codes.push(&code)?;
    }
    Ok((codes, quantization_error(len, &logits)?))
}

/// Encodes both splits once and measures the rankings by each protocol.
pub fn evaluate(
    encoder: &TorchEncoder,
    dataset: &Dataset,
    protocols: &[Protocol],
) -> Result<Vec<Report>> {
    let query = encode(encoder, &dataset.query)?;
    let database = encode(encoder, &dataset.database)?;
    let query_labels = dataset.query.all_labels();
    let database_labels = dataset.database.all_labels();
    let measure = |protocol| -> Result<Report> {
        let mut report =
            tanhash::eval::evaluate(&query, query_labels, &database, database_labels, protocol)?;
        report.notes.extend(notes(encoder, dataset));
        Ok(report)
    };
    protocols.iter().map(measure).collect()
}

/// What the record of a figure needs besides its protocol.
pub fn notes(encoder: &TorchEncoder, dataset: &Dataset) -> Vec<(String, String)> {
    let config = encoder.config();
    let notes = [
        ("data set", dataset.name.clone()),
        ("split", dataset.protocol.clone()),
        ("model", config.model_id.clone()),
        ("backbone", config.backbone.to_string()),
        ("training seed", config.seed.to_string()),
        ("centers", config.centers.clone().unwrap_or_default()),
        (
            "adapted",
            match &config.adapted {
                Some(adapted) => format!(
                    "to {} examples of {} ({})",
                    adapted.n_examples, adapted.dataset, adapted.protocol
                ),
                None => String::new(),
            },
        ),
        (
            "checkpoint",
            match &config.selection {
                Some(selection) => format!(
                    "best by {}, {:.4} after {} epochs",
                    selection.metric, selection.value, selection.epochs_done
                ),
                None => format!("last, after {} epochs", config.epochs_done),
            },
        ),
    ];
    notes
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

pub use crate::report::headline;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;

    use super::*;

    #[test]
    fn small_collections_have_enough_steps() {
        for (n_train, expected) in [
            (2, 2),
            (8, 2),
            (30, 7),
            (63, 15),
            (64, 16),
            (255, 16),
            (400, 16),
            (600, 32),
            (3068, 128),
            (4096, 256),
        ] {
            assert_eq!(batch_of(n_train), expected, "{n_train}");
        }
        assert!(batch_of(50_000) >= 256);
    }

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// What `tanhash train` with these words would do on a few pictures of two classes.
    fn options(words: &str) -> Result<TrainOptions> {
        let shape = PictureShape {
            side: 28,
            channels: 1,
        };
        let labels = [0, 1].repeat(20);
        let train = Arc::new(ExampleSet::from_pixels(
            shape,
            vec![0; labels.len() * 28 * 28],
            labels,
        )?);
        let dataset = Dataset {
            name: "two".into(),
            protocol: String::new(),
            class_names: ["a", "b"].map(String::from).into(),
            database: train.clone(),
            query: train.clone(),
            train,
            leave_one_out: false,
            skipped: Vec::new(),
        };
        let words = format!("train --data x --bits 16 --out model {words}");
        train_options(&dataset, &Line::parse_from(words.split(' ')).args, 1)
    }

    #[test]
    fn a_recipe_has_its_own_rate_of_the_backbone() {
        for (words, expected) in [
            ("--method csq", 1.0),
            ("--method csq --weights w", 0.1),
            ("--method csq --recipe paper --weights w", 0.01),
            ("--method shc --recipe paper --weights w", 1.0),
            ("--method orthohash --recipe paper --weights w", 0.1),
            (
                "--method shc --recipe paper --weights w --backbone-lr-scale 0.5",
                0.5,
            ),
        ] {
            assert_eq!(
                options(words).unwrap().backbone_lr_scale,
                expected,
                "{words}"
            );
        }
    }

    #[test]
    fn a_head_above_features_that_say_something_learns_at_the_full_rate() {
        for (words, expected) in [
            ("--method csq", 1e-3),
            ("--method csq --weights w", 3e-3),
            ("--method csq --weights w --freeze", 3e-3),
            ("--method csq --weights w --freeze --lr 0.01", 1e-2),
            ("--method shrewd", 3e-3),
            ("--method orthohash", 3e-3),
            ("--method shc --recipe paper --weights w --freeze", 7e-5),
        ] {
            assert_eq!(options(words).unwrap().lr, expected, "{words}");
        }
    }

    #[test]
    fn a_small_collection_has_small_batches() {
        assert_eq!(options("--method csq").unwrap().batch, 10);
        assert_eq!(options("--method csq --batch 30").unwrap().batch, 30);
        // A paper's batch is the paper's.
        assert_eq!(options("--method shc --recipe paper").unwrap().batch, 64);
    }

    #[test]
    fn similarities_are_distances_to_shrewd() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("S.npy");
        let bytes = tanhash::npy::float_bytes(2, &[1.0, 0.25, 0.25, 1.0]);
        std::fs::write(&path, bytes).unwrap();
        let words = format!("--method shrewd --similarity {}", path.display());
        let given = options(&words).unwrap().given;
        assert_eq!(given.distances.unwrap().entries(), [0.0, 0.75, 0.75, 0.0]);
        assert!(given.similarity.is_none());
        let words = format!("--method shc --similarity {}", path.display());
        let given = options(&words).unwrap().given;
        assert!(given.distances.is_none() && given.similarity.is_some());
    }

    #[test]
    fn options_without_effect_are_refused() {
        for (words, expected) in [
            ("--method csq --select loss", "--validation-share"),
            ("--method csq --validate-every 2", "--validation-share"),
            ("--method shc --classifier-epochs 0", "at least 1, got 0"),
            ("--method csq --kl-weight 1", "no option --kl-weight"),
            (
                "--method csq --weights w --freeze --augment flip",
                "leave it out",
            ),
            (
                "--method csq --no-refine",
                "--no-refine is of the method shc",
            ),
        ] {
            let error = options(words).unwrap_err().to_string();
            assert!(error.contains(expected), "{words}: {error}");
        }
    }
}

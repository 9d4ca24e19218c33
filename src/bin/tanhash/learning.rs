//! Training and evaluation as several commands need them.

use anyhow::{Result, bail};
use tanhash::CodeLen;
use tanhash::data::{self, Dataset, DatasetSpec, PictureShape};
use tanhash::deep::{
    Augment, BackboneKind, Device, MethodConfig, TorchEncoder, TrainOptions, TrainProgress,
    TrainSummary,
};
use tanhash::eval::{Protocol, Report};

use crate::cmd::train::Args;
use crate::output;

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
    Ok(dataset)
}

/// Trains as the command line says.
pub fn train(dataset: &Dataset, args: &Args, seed: u64) -> Result<TrainSummary> {
    let mut method = MethodConfig::from_name(&args.method)?;
    match &mut method {
        MethodConfig::OrthoHash(config) => {
            config.margin = args.margin.unwrap_or(config.margin);
            config.scale = args.scale.or(config.scale);
        }
        other => {
            if args.margin.is_some() || args.scale.is_some() {
                bail!(
                    "expected a method with a margin and a scale, got {}",
                    other.name()
                );
            }
        }
    }
    let mut options = TrainOptions::new(method, CodeLen::new(args.bits)?, &args.out);
    options.backbone = backbone(args, dataset)?;
    options.weights = args.weights.clone();
    options.freeze = args.freeze;
    options.feature_cache = args.feature_cache.clone();
    options.backbone_mode.half = args.half;
    options.backbone_mode.running_statistics = args.running_statistics;
    if let Some(name) = &args.augment {
        options.augment = Augment::from_name(name)?;
    }
    if args.weights.is_some() {
        // OrthoHash's share for pretrained backbones.
        options.backbone_lr_scale = 0.1;
    }
    options.epochs = args.epochs.unwrap_or(options.epochs);
    options.batch = args.batch.unwrap_or(options.batch);
    options.lr = args.lr.unwrap_or(options.lr);
    options.device = args.device.parse::<Device>()?;
    options.threads = args.threads;
    options.log = args.log.clone();
    options.resume = args.resume;
    options.seed = seed;
    let bar = output::progress(0, "training");
    let summary = tanhash::deep::train(dataset, &options, &mut |progress: &TrainProgress| {
        bar.set_length(progress.steps as u64);
        bar.set_position(progress.step as u64);
        bar.set_message(format!(
            "epoch {}/{} loss {:.3} accuracy {:.3} {:.0} pictures/s",
            progress.epoch + 1,
            progress.epochs,
            progress.loss,
            progress.accuracy,
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

/// Encodes both splits and measures the rankings.
pub fn evaluate(encoder: &TorchEncoder, dataset: &Dataset, protocol: &Protocol) -> Result<Report> {
    let total = dataset.query.len() + dataset.database.len();
    let bar = output::progress(total as u64, "encoding");
    let query = encoder.encode_set(&dataset.query, &mut |done| bar.set_position(done as u64))?;
    let offset = dataset.query.len();
    let database = encoder.encode_set(&dataset.database, &mut |done| {
        bar.set_position((offset + done) as u64)
    })?;
    bar.finish_and_clear();
    let mut report = tanhash::eval::evaluate(
        &query,
        &dataset.query.labels,
        &database,
        &dataset.database.labels,
        protocol,
    )?;
    if dataset.leave_one_out {
        bail!("measuring a split leave-one-out is not offered yet; take another split");
    }
    let config = encoder.config();
    for (name, value) in [
        ("data set", dataset.name.clone()),
        ("split", dataset.protocol.clone()),
        ("model", config.model_id.clone()),
        ("backbone", config.backbone.to_string()),
        ("training seed", config.seed.to_string()),
        (
            "checkpoint",
            format!("last, after {} epochs", config.epochs_done),
        ),
    ] {
        report.notes.insert(name.to_owned(), value);
    }
    Ok(report)
}

/// mAP@R in one line.
pub fn headline(report: &Report) -> String {
    let spread = report
        .map_std
        .map(|std| format!(" ± {std:.5} over orders of ties"))
        .unwrap_or_default();
    format!(
        "{} {:.4}{spread}, {} bits, {} queries, {} pictures",
        report.metric(),
        report.map,
        report.bits,
        report.n_queries,
        report.n_database
    )
}

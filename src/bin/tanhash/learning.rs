//! Training and evaluation as several commands need them.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tanhash::data::{self, Dataset, DatasetSpec, PictureSet, PictureShape};
use tanhash::deep::{
    Device, MethodConfig, TorchEncoder, TrainOptions, TrainProgress, TrainSummary,
};
use tanhash::eval::{Protocol, Report};
use tanhash::{CodeLen, Codes};

use crate::cmd::train::Args;
use crate::output;

/// A data set in its own shape.
pub fn load(name: &str, seed: u64) -> Result<Dataset> {
    load_shaped(name, None, seed)
}

/// A data set in the shape a model reads.
pub fn load_for(name: &str, shape: PictureShape, seed: u64) -> Result<Dataset> {
    load_shaped(name, Some(shape), seed)
}

fn load_shaped(name: &str, shape: Option<PictureShape>, seed: u64) -> Result<Dataset> {
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
    options.backbone = serde_json::from_value(Value::String(args.backbone.clone()))
        .with_context(|| format!("expected the backbone conv-small, got {:?}", args.backbone))?;
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

/// Codes of a set of pictures.
pub fn encode(encoder: &TorchEncoder, set: &PictureSet) -> Result<Codes> {
    let bar = output::progress(set.len() as u64, "encoding");
    let codes = encoder.encode_pixels(set, &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok(codes)
}

/// Encodes both splits and measures the rankings.
pub fn evaluate(encoder: &TorchEncoder, dataset: &Dataset, protocol: &Protocol) -> Result<Report> {
    let query = encode(encoder, &dataset.query)?;
    let database = encode(encoder, &dataset.database)?;
    let (query_labels, database_labels) = (&dataset.query.labels, &dataset.database.labels);
    let mut report =
        tanhash::eval::evaluate(&query, query_labels, &database, database_labels, protocol)?;
    report.notes.extend(notes(encoder, dataset));
    Ok(report)
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
        (
            "checkpoint",
            format!("last, after {} epochs", config.epochs_done),
        ),
    ];
    notes.map(|(name, value)| (name.to_owned(), value)).into()
}

pub use crate::report::headline;

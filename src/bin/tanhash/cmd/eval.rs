//! `tanhash eval`: how well a model's codes find pictures of the same class.

use std::path::PathBuf;

use anyhow::Result;
#[cfg(not(feature = "torch"))]
use anyhow::bail;

use crate::cmd::Common;

/// Measure how well a model's codes find pictures of the same class
#[derive(clap::Args)]
pub struct Args {
    /// The model
    #[arg(long)]
    model: PathBuf,
    /// The data set, named as for training
    #[arg(long)]
    data: String,
    /// What an average precision is divided by
    #[arg(long, value_enum, default_value_t = ProtocolKind::Literature)]
    protocol: ProtocolKind,
    /// R of mAP@R: how much of each ranking counts, a number or `all`
    #[arg(long, default_value = "all")]
    r: String,
    /// Where `train --freeze` kept the features of the pictures
    #[arg(long)]
    feature_cache: Option<PathBuf>,
    /// Write report.json into this directory
    #[arg(long)]
    report: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum ProtocolKind {
    /// The relevant pictures found among the first R
    Literature,
    /// The relevant pictures there are, at most R
    MinRelevantR,
}

#[cfg(not(feature = "torch"))]
pub fn run(args: Args, _common: Common) -> Result<()> {
    bail!(
        "evaluating {} needs a program built with --features cli,torch, this one is built with cli alone",
        args.model.display()
    )
}

#[cfg(feature = "torch")]
pub fn run(args: Args, common: Common) -> Result<()> {
    use anyhow::Context;
    use tanhash::deep::{Device, TorchEncoder, features};
    use tanhash::eval::{Denominator, Protocol};

    use crate::learning;
    use crate::output;

    let encoder = TorchEncoder::open(&args.model, Device::Auto)
        .with_context(|| args.model.display().to_string())?;
    let dataset = learning::load(&args.data, encoder.picture_shape(), common.seed)?;
    let config = encoder.config();
    if config.dataset == dataset.name && config.protocol != dataset.protocol {
        output::note(format!(
            "the model was trained on another split ({}); its queries may be among its training pictures",
            config.protocol
        ));
    }
    let dataset = match &args.feature_cache {
        None => dataset,
        Some(cache) => features::cached(config, &dataset, cache)?.unwrap_or_else(|| {
            output::note(format!(
                "no features of these pictures for this model in {}; the pictures are encoded",
                cache.display()
            ));
            dataset
        }),
    };
    let mut protocol = Protocol::new(args.r.parse()?);
    if let ProtocolKind::MinRelevantR = args.protocol {
        protocol.denominator = Denominator::MinRelevantR;
    }
    let report = learning::evaluate(&encoder, &dataset, &protocol)?;
    if let Some(dir) = &args.report {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let path = dir.join("report.json");
        std::fs::write(&path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| path.display().to_string())?;
    }
    if common.json {
        return output::json(&report);
    }
    output::line(learning::headline(&report))?;
    for (name, value) in &report.notes {
        output::line(format!("{name}: {value}"))?;
    }
    for at in &report.at_k {
        output::line(format!(
            "P@{:<5} {:.4}   recall {:.4}",
            at.k, at.precision, at.recall
        ))?;
    }
    let within = &report.within_radius;
    output::line(format!(
        "within radius {}: precision {:.4}, recall {:.4}, {:.1} pictures",
        within.radius, within.precision, within.recall, within.n_retrieved
    ))?;
    for class in &report.per_class {
        let name = dataset
            .class_names
            .get(class.label as usize)
            .map_or("", String::as_str);
        output::line(format!(
            "{name:<16} {:.4}  ({} queries)",
            class.map, class.n_queries
        ))?;
    }
    Ok(())
}

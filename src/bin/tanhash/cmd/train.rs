//! `tanhash train`: pictures with labels become a model that makes hash codes.

use std::path::PathBuf;

use anyhow::Result;
#[cfg(not(feature = "torch"))]
use anyhow::bail;

use crate::cmd::Common;

/// Train a model that turns pictures into hash codes
#[derive(clap::Args)]
pub struct Args {
    /// The method: orthohash
    #[arg(long, default_value = "orthohash")]
    pub method: String,
    /// fashion-mnist[:DIR], cifar10:DIR, cifar100:DIR, folder:DIR or features:F.npy,labels:L.npy; a split
    /// other than its own is written as in cifar100@shc:DIR
    #[arg(long)]
    pub data: String,
    /// Bits of each code: a multiple of 8 from 16 to 1024
    #[arg(long, default_value_t = 64)]
    pub bits: usize,
    /// The feature network: conv-small, resnet-18-cifar, efficientnet-lite0, resnet-18, resnet-34,
    /// resnet-50 or alexnet for pictures, identity for features; the first or the last if not given
    #[arg(long)]
    pub backbone: Option<String>,
    /// A .safetensors file with weights of the feature network
    #[arg(long)]
    pub weights: Option<PathBuf>,
    /// Leave the feature network as it is and train the hash head on its features
    #[arg(long, requires = "weights")]
    pub freeze: bool,
    /// Keep those features in this directory, for other runs
    #[arg(long, requires = "freeze")]
    pub feature_cache: Option<PathBuf>,
    /// What happens to pictures: none, flip, shift, pad-crop, jitter or resized-crop
    #[arg(long)]
    pub augment: Option<String>,
    /// Compute the feature network in bfloat16
    #[arg(long)]
    pub half: bool,
    /// Leave the running statistics of the feature network's batch normalization as they are
    #[arg(long, requires = "weights")]
    pub running_statistics: bool,
    /// The model file to write, after every epoch
    #[arg(long)]
    pub out: PathBuf,
    /// Go on from the last epoch of an interrupted run
    #[arg(long)]
    pub resume: bool,
    /// Passes over the train split
    #[arg(long)]
    pub epochs: Option<usize>,
    /// Pictures a step
    #[arg(long)]
    pub batch: Option<usize>,
    /// The learning rate of the hash head
    #[arg(long)]
    pub lr: Option<f64>,
    /// The margin m of the cosine
    #[arg(long)]
    pub margin: Option<f64>,
    /// The scale s of the cosine; the square root of the bits if not given
    #[arg(long)]
    pub scale: Option<f64>,
    /// Where to train: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Threads of the CPU; all cores if not given
    #[arg(long)]
    pub threads: Option<usize>,
    /// Write a JSON line a step to this file
    #[arg(long)]
    pub log: Option<PathBuf>,
}

#[cfg(not(feature = "torch"))]
pub fn run(args: Args, _common: Common) -> Result<()> {
    bail!(
        "training on {} needs a program built with --features cli,torch, this one is built with cli alone",
        args.data
    )
}

#[cfg(feature = "torch")]
pub fn run(args: Args, common: Common) -> Result<()> {
    use tanhash::deep::BackboneKind;

    use crate::learning;
    use crate::output;

    let backbone = args
        .backbone
        .as_deref()
        .map(str::parse::<BackboneKind>)
        .transpose()?;
    let shape = backbone.and_then(BackboneKind::picture_shape);
    let dataset = learning::load(&args.data, shape, common.seed)?;
    let summary = learning::train(&dataset, &args, common.seed)?;
    if common.json {
        return output::json(&summary);
    }
    output::line(format!(
        "{} after {} epochs, {} steps, {:.0} s on {}: model {}",
        summary.out.display(),
        summary.epochs_done,
        summary.steps,
        summary.seconds,
        summary.device,
        summary.model_id,
    ))
}

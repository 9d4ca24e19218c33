//! `tanhash train`: pictures with labels become a model that makes hash codes.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::cmd::Common;

/// Train a model that turns pictures into hash codes
#[derive(Default, clap::Args)]
pub struct Args {
    /// The method: orthohash, shc, shrewd, csq, dpn, greedyhash or hashnet
    #[arg(long, default_value = "orthohash")]
    pub method: String,
    /// Whose options: default (ours) or paper (the published ones, for a pretrained backbone)
    #[arg(long, default_value = "default")]
    pub recipe: String,
    /// fashion-mnist[:DIR], cifar10:DIR, cifar100:DIR, folder:DIR or features:F.npy,labels:L.npy; a split
    /// other than its own is written as in cifar100@shc:DIR
    #[arg(long)]
    pub data: String,
    /// Bits of each code: a multiple of 8 from 16 to 1024
    #[arg(long, default_value_t = 64)]
    pub bits: usize,
    /// The feature network: conv-small, resnet-9, resnet-18-cifar, efficientnet-lite0, resnet-18, resnet-34,
    /// resnet-50 or alexnet for pictures, identity for features; the first or the last if not given
    #[arg(long)]
    pub backbone: Option<String>,
    /// A .safetensors file with weights of the feature network: published ones, or a model's
    #[arg(long)]
    pub weights: Option<PathBuf>,
    /// Pixels a side that a network with published weights reads, 64 to 1024: fewer cost less
    /// [default: 224]
    #[arg(long)]
    pub picture_side: Option<usize>,
    /// Leave the feature network as it is and train the hash head on its features
    #[arg(long, requires = "weights")]
    pub freeze: bool,
    /// Keep those features in this directory, for other runs
    #[arg(long, requires = "freeze")]
    pub feature_cache: Option<PathBuf>,
    /// What happens to pictures: none, flip, shift, pad-crop, pad-crop-erase, jitter or
    /// resized-crop
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
    /// The learning rate of the backbone over that of the head
    #[arg(long)]
    pub backbone_lr_scale: Option<f64>,
    /// L2 weight decay
    #[arg(long)]
    pub weight_decay: Option<f64>,
    /// The optimizer: adam, sgd (momentum 0.9) or rmsprop
    #[arg(long)]
    pub optimizer: Option<String>,
    /// The learning rate over the run: constant, cosine, or step:EPOCHS:FACTOR
    #[arg(long)]
    pub schedule: Option<String>,
    /// The margin m (orthohash, dpn)
    #[arg(long)]
    pub margin: Option<f64>,
    /// How the margin of orthohash enters: cos or arc
    #[arg(long)]
    pub margin_kind: Option<String>,
    /// The scale s of orthohash: sqrt-bits, log-classes or a number
    #[arg(long)]
    pub scale: Option<String>,
    /// Weight of the quantization term (orthohash, shc, csq, greedyhash)
    #[arg(long)]
    pub quantization_weight: Option<f64>,
    /// Hash centers: max-hd, bernoulli, hadamard, balanced, shc (semantic, by a classifier), class-means (semantic,
    /// by the features), or a .npy file C x bits of -1 and 1
    #[arg(long)]
    pub centers: Option<String>,
    /// shc: a .npy file C x C with the similarity of the classes; leaves out stage 1. shrewd: the same in the place of
    /// --distances, which are then 1 - similarity
    #[arg(long)]
    pub similarity: Option<PathBuf>,
    /// shc: paper or released, where the paper and its program differ
    #[arg(long)]
    pub variant: Option<String>,
    /// shc: epochs of the classifier of stage 1; as many as --epochs if not given
    #[arg(long)]
    pub classifier_epochs: Option<usize>,
    /// shc: begin stage 3 with the classifier's feature network, not with --weights
    #[arg(long)]
    pub warm_start: bool,
    /// shc: bits in which two centers differ at least; the Gilbert-Varshamov distance if not given, four
    /// fifths of it for class-means
    #[arg(long)]
    pub min_distance: Option<usize>,
    /// shc: leave out the local search after the paper's solver
    #[arg(long)]
    pub no_refine: bool,
    /// shrewd: a .npy file with semantic distances of the classes
    #[arg(long, conflicts_with = "similarity")]
    pub distances: Option<PathBuf>,
    /// shrewd: a tree of the classes that gives their distances, as lines `parent child` or indented names
    #[arg(long, conflicts_with_all = ["distances", "similarity", "weakly_supervised"])]
    pub hierarchy: Option<PathBuf>,
    /// shrewd: --distances are of the train pictures; class labels are not used
    #[arg(long)]
    pub weakly_supervised: bool,
    /// shrewd: weight of the classification term; 0 leaves it out
    #[arg(long)]
    pub classification_weight: Option<f64>,
    /// shrewd: weight of the similarity term
    #[arg(long)]
    pub similarity_weight: Option<f64>,
    /// shrewd: weight of the KL term
    #[arg(long)]
    pub kl_weight: Option<f64>,
    /// hashnet: alpha, the factor of inner products
    #[arg(long)]
    pub alpha: Option<f64>,
    /// hashnet: epochs between two steps of the continuation
    #[arg(long)]
    pub continuation_epochs: Option<usize>,
    /// Hold back this share of the train split and keep the best epoch, not the last
    #[arg(long)]
    pub validation_share: Option<f64>,
    /// What the best epoch is best in: map or loss
    #[arg(long)]
    pub select: Option<String>,
    /// Epochs between two validations
    #[arg(long)]
    pub validate_every: Option<usize>,
    /// Stop after so many epochs without a better validation
    #[arg(long)]
    pub patience: Option<usize>,
    /// Keep the epoch that is best on the test queries, as the papers do; results say so
    #[arg(long)]
    pub paper_protocol: bool,
    /// Where to train: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Threads of the CPU; all cores if not given
    #[arg(long)]
    pub threads: Option<usize>,
    /// Write a JSON line a step to this file, and curves to the same name with .svg
    #[arg(long)]
    pub log: Option<PathBuf>,
    /// Steps between two lines of it, and between two looks at the loss; 1 if not given, 10 on a GPU, which is waited for then
    #[arg(long)]
    pub log_every: Option<usize>,
}

#[cfg(not(feature = "torch"))]
pub fn run(args: Args, _common: Common) -> Result<()> {
    bail!(
        "training on {} needs a program built with --features cli,torch, this one is built with cli alone",
        args.data
    )
}

/// What a run writes is none of the files that it reads, nor are two of them one.
#[cfg(feature = "torch")]
fn keep_inputs(args: &Args) -> Result<()> {
    let data = crate::learning::data_files(&args.data)?;
    let centers = args.centers.as_ref().map(PathBuf::from);
    let options = [
        &args.weights,
        &args.similarity,
        &args.distances,
        &args.hierarchy,
    ];
    let inputs = options.into_iter().flatten().chain(&centers).chain(&data);
    let beside = |ending: &str| {
        let mut name = args.out.clone().into_os_string();
        name.push(ending);
        PathBuf::from(name)
    };
    let own = [
        "",
        ".state",
        ".classifier.state",
        ".similarity.npy",
        ".centers.npy",
    ]
    .map(beside);
    if let Some(log) = args.log.as_ref().filter(|log| own.contains(log)) {
        bail!(
            "--log: expected another name than {}, which the run writes",
            log.display()
        );
    }
    let outputs: Vec<&std::path::Path> =
        own.iter().chain(&args.log).map(PathBuf::as_path).collect();
    crate::files::keep_inputs(&outputs, inputs.map(PathBuf::as_path))
}

#[cfg(feature = "torch")]
pub fn run(args: Args, common: Common) -> Result<()> {
    use tanhash::deep::BackboneKind;

    use crate::{learning, output};

    keep_inputs(&args)?;
    let backbone = args
        .backbone
        .as_deref()
        .map(str::parse::<BackboneKind>)
        .transpose()?;
    let shape = match backbone {
        Some(kind) => kind.picture_shape(args.picture_side)?,
        None => None,
    };
    let dataset = learning::load(&args.data, shape, common.seed)?;
    let summary = learning::train(&dataset, &args, common.seed)?;
    if common.json {
        return output::json(&summary);
    }
    if let Some(selection) = &summary.selection {
        output::note(format!(
            "kept the weights after {} epochs: {} is {:.4}",
            selection.epochs_done, selection.metric, selection.value
        ));
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

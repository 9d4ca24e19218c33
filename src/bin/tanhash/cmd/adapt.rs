//! `tanhash adapt`: a model's bits balanced on another database.

use std::path::PathBuf;

use anyhow::Result;
#[cfg(not(feature = "torch"))]
use anyhow::bail;

use crate::cmd::Common;

/// Measure the normalization of a model's hash head anew on the database split of a data set
#[derive(clap::Args)]
pub struct Args {
    /// The model file to read
    #[arg(long)]
    model: PathBuf,
    /// The data set whose database split is measured; labels are not used
    #[arg(long)]
    data: String,
    /// The model file to write
    #[arg(long)]
    out: PathBuf,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
}

#[cfg(not(feature = "torch"))]
pub fn run(args: Args, _common: Common) -> Result<()> {
    bail!(
        "adapting {} on {} to {} needs a program built with --features cli,torch, this one is built with cli alone (--device {})",
        args.model.display(),
        args.data,
        args.out.display(),
        args.device
    )
}

#[cfg(feature = "torch")]
pub fn run(args: Args, common: Common) -> Result<()> {
    use tanhash::deep::{Device, TorchEncoder, adapt};

    use crate::{files, learning, output};

    files::keep_inputs(
        &[&args.out],
        learning::data_files(&args.data)?
            .iter()
            .map(PathBuf::as_path),
    )?;
    let device = args.device.parse::<Device>()?;
    let encoder = TorchEncoder::open(&args.model, device)?;
    let dataset = learning::load_for(&encoder, &args.data, common.seed)?;
    let model_id = adapt(&args.model, &dataset, &args.out, device)?;
    if common.json {
        return output::json(&serde_json::json!({
            "out": args.out,
            "model_id": model_id,
            "pictures": dataset.database.len(),
        }));
    }
    output::line(format!(
        "{} adapted to {} pictures: model {model_id}",
        args.out.display(),
        dataset.database.len()
    ))
}

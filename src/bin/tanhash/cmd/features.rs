//! `tanhash features`: what a pretrained network says of the pictures of a data set, in `.npy` files.

use std::path::PathBuf;

use anyhow::Result;
#[cfg(not(feature = "torch"))]
use anyhow::bail;

use crate::cmd::Common;

/// Write the features of a data set's pictures by a pretrained network
#[derive(clap::Args)]
pub struct Args {
    /// The feature network: efficientnet-lite0, resnet-18, resnet-34, resnet-50 or alexnet
    #[arg(long)]
    backbone: String,
    /// A .safetensors file with its weights
    #[arg(long)]
    weights: PathBuf,
    /// Pixels a side that it reads, 64 to 1024 [default: 224]
    #[arg(long)]
    picture_side: Option<usize>,
    /// The data set, named as for training
    #[arg(long)]
    data: String,
    /// The directory for features.npy, labels.npy, splits.npy and classes.txt; a killed run goes on there
    #[arg(long)]
    out: PathBuf,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads of the CPU; all cores if not given
    #[arg(long)]
    threads: Option<usize>,
}

#[cfg(not(feature = "torch"))]
pub fn run(args: Args, _common: Common) -> Result<()> {
    bail!(
        "features of {} need a program built with --features cli,torch, this one is built with cli alone",
        args.data
    )
}

#[cfg(feature = "torch")]
pub fn run(args: Args, common: Common) -> Result<()> {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use anyhow::{Context, bail};
    use serde_json::json;
    use tanhash::data::ExampleSet;
    use tanhash::data::split::{DATABASE, QUERY, TRAIN};
    use tanhash::deep::{BackboneKind, Device, FeatureExtractor, device as libtorch};
    use tanhash::npy::{NpyType, write_integers};

    use crate::{files, learning, output};

    if let Some(n_threads) = args.threads {
        libtorch::set_threads(n_threads)?;
    }
    let kind: BackboneKind = args.backbone.parse()?;
    let device = args.device.parse::<Device>()?;
    if device == Device::Auto {
        learning::note_unused_gpu();
    }
    let extractor = FeatureExtractor::open(kind, args.picture_side, &args.weights, device)?;
    let shape = kind.picture_shape(args.picture_side)?;
    let dataset = learning::load(&args.data, shape, common.seed)?;

    // The examples of all splits, each once, in the order of the data set.
    let mut rows: BTreeMap<u32, (u32, u8)> = BTreeMap::new();
    for (set, flag) in [
        (&dataset.train, TRAIN),
        (&dataset.database, DATABASE),
        (&dataset.query, QUERY),
    ] {
        for (&row, &label) in set.rows().iter().zip(&set.labels) {
            rows.entry(row).or_insert((label, 0)).1 |= flag;
        }
    }
    let labels: Vec<i64> = rows.values().map(|(label, _)| i64::from(*label)).collect();
    let flags: Vec<i64> = rows.values().map(|(_, flags)| i64::from(*flags)).collect();
    let set = ExampleSet::new(
        dataset.train.shared_source(),
        rows.keys().copied().collect(),
        rows.values().map(|(label, _)| *label).collect(),
    )?;

    let out = &args.out;
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let mut about = json!({
        "backbone": kind, "weights": extractor.weights(), "data": dataset.name,
        "protocol": dataset.protocol, "seed": common.seed, "rows": set.len(),
        "pictures": dataset.train.source().digest()?,
    });
    if let Some(side) = args.picture_side {
        about["picture_side"] = side.into();
    }
    let about = about.to_string();
    let write = |name: &str, text: String| files::write(&out.join(name), text.as_bytes());
    let about_path = out.join("about.json");
    let found = match about_path.exists() {
        true => Some(
            std::fs::read_to_string(&about_path)
                .with_context(|| about_path.display().to_string())?,
        ),
        false => None,
    };
    match found {
        Some(found) if found != about => bail!(
            "expected features of these pictures by this network in {}, found others; choose another --out or remove it \
             (found {found}, expected {about})",
            out.display()
        ),
        Some(_) => (),
        // What lies there without it may be anybody's.
        None => {
            let own = [
                "features.npy",
                "features.npy.part",
                "labels.npy",
                "splits.npy",
                "classes.txt",
            ];
            if let Some(name) = own.iter().find(|name| out.join(name).exists()) {
                bail!(
                    "expected no {name} in {} without the about.json that says what it is, found one; choose another --out \
                     or remove it",
                    out.display()
                );
            }
            write("about.json", about)?;
        }
    }
    write_integers(out.join("labels.npy"), &labels, NpyType::I64)?;
    write_integers(out.join("splits.npy"), &flags, NpyType::U8)?;
    write("classes.txt", dataset.class_names.join("\n") + "\n")?;

    let started = Instant::now();
    let bar = output::progress(set.len() as u64, "features");
    let mut first = None;
    extractor.write(&set, &out.join("features.npy"), &mut |done| {
        first.get_or_insert(done);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    let n_new = set.len() - first.unwrap_or(0);
    if common.json {
        return output::json(&json!({
            "out": out, "rows": set.len(), "new_rows": n_new, "features": extractor.n_features(),
            "weights": extractor.weights(), "seconds": seconds, "skipped": dataset.skipped.len(),
        }));
    }
    output::line(format!(
        "{} x {} features in {}, {n_new} of them now in {seconds:.0} s; use them as --data features:{}",
        set.len(),
        extractor.n_features(),
        out.display(),
        out.display()
    ))
}

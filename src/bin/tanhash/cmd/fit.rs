//! `tanhash fit`: an encoder learned from vectors without labels, as a file.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;
use tanhash::CodeLen;
use tanhash::encode::{Encoder, Itq};
use tanhash::npy::read_vectors;

use crate::cmd::Common;
use crate::{files, output};

/// Learn an encoder of float vectors, without labels
#[derive(clap::Args)]
pub struct Args {
    /// What is learned
    #[arg(long, value_enum, default_value_t = FitKind::Itq)]
    encoder: FitKind,
    /// A .npy matrix of floats, a row a vector
    #[arg(long)]
    vectors: PathBuf,
    /// Bits of each code, at most as many as a vector has numbers
    #[arg(long)]
    bits: usize,
    /// Rounds of quantizing and rotating
    #[arg(long, default_value_t = 50)]
    iterations: u32,
    /// The file of the encoder
    #[arg(long)]
    out: PathBuf,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum FitKind {
    /// Iterative quantization
    Itq,
}

pub fn run(args: Args, common: Common) -> Result<()> {
    let FitKind::Itq = args.encoder;
    let about = || args.vectors.display().to_string();
    files::keep_inputs(&[&args.out], [args.vectors.as_path()])?;
    let (vectors, dim) = read_vectors(&args.vectors)?;
    let started = Instant::now();
    let len = CodeLen::new(args.bits)?;
    let fit = Itq::fit(&vectors, dim, len, common.seed, args.iterations).with_context(about)?;
    fit.itq.save(&args.out)?;
    let seconds = started.elapsed().as_secs_f64();
    let (first, last) = (fit.errors[0], fit.errors[fit.errors.len() - 1]);
    if common.json {
        return output::json(&json!({
            "out": args.out, "model_id": fit.itq.model_id(), "bits": args.bits, "dim": dim,
            "vectors": vectors.len() / dim, "iterations": args.iterations,
            "quantization_errors": fit.errors, "seconds": seconds,
        }));
    }
    output::line(format!(
        "{}: {} from {} vectors of {dim} numbers, quantization error {first:.4} to {last:.4} in {} iterations, {seconds:.1} s",
        args.out.display(),
        fit.itq.model_id(),
        vectors.len() / dim,
        args.iterations
    ))
}

//! `tanhash encode`: pictures, or the vectors of a matrix, become a file of packed codes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;
use tanhash::encode::{Encoder, Itq, SignLsh};
use tanhash::npy::read_vectors;
use tanhash::{CodeLen, Codes, Payload, PayloadKind};

use crate::catalog::{check_kind, open_itq, open_model};
use crate::cmd::Common;
use crate::files::{self, WholeFile};
use crate::output;
use crate::records::{Body, Entry, Records};
use crate::schema::SchemaFile;

/// Turn pictures or vectors into a file of packed codes
#[derive(clap::Args)]
pub struct Args {
    /// The trained model
    #[arg(long, required_unless_present_any = ["encoder", "encoder_file"])]
    model: Option<PathBuf>,
    /// An encoder of the vectors of a .npy matrix
    #[arg(long, value_enum, conflicts_with = "model", requires = "bits")]
    encoder: Option<VectorEncoder>,
    /// A file that `tanhash fit` wrote, for the vectors of a .npy matrix
    #[arg(long, conflicts_with_all = ["model", "encoder"])]
    encoder_file: Option<PathBuf>,
    /// For itq: learn from this .npy matrix first
    #[arg(long, requires = "encoder")]
    fit: Option<PathBuf>,
    /// For --encoder: bits of each code
    #[arg(long)]
    bits: Option<usize>,
    /// A folder of pictures, a list .txt of paths, a manifest .jsonl, or .tar shards; one .npy matrix of floats
    /// for an encoder of vectors, or for a model that was trained on features
    #[arg(long, num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// The file of packed rows; `<out>.jsonl` says which picture each row is of
    #[arg(long)]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
pub enum VectorEncoder {
    /// Iterative quantization, learned from --fit
    Itq,
    /// Random hyperplanes drawn from --seed
    Lsh,
}

/// Pictures encoded at a time, and the bytes of their files.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 64 << 20;

pub fn run(args: Args, common: Common) -> Result<()> {
    let mut rows_path = args.out.clone().into_os_string();
    rows_path.push(".jsonl");
    let rows_path = PathBuf::from(rows_path);
    let encoder_files = [&args.model, &args.encoder_file, &args.fit];
    let inputs = args.input.iter().chain(encoder_files.into_iter().flatten());
    files::keep_inputs(&[&args.out, &rows_path], inputs.map(PathBuf::as_path))?;
    let is_matrix =
        matches!(&args.input[..], [file] if file.extension().is_some_and(|e| e == "npy"));
    let Some(model) = args.model.as_ref().filter(|_| !is_matrix) else {
        return encode_vectors(&args, common);
    };
    let encoder = model_of(model, args.bits)?;
    let records = Records::open(&args.input, &SchemaFile::default(), 0)?;
    check_kind(&*encoder, records.kind)?;
    let started = Instant::now();
    let mut codes_out = WholeFile::create(&args.out)?;
    let mut rows_out = WholeFile::create(&rows_path)?;
    let bar = output::progress(records.expected.unwrap_or(0), "encoding");
    let (mut n_codes, mut failed) = (0usize, 0usize);
    let mut batch: Vec<(String, Payload)> = Vec::new();
    let mut batch_bytes = 0;
    let mut flush = |batch: &mut Vec<(String, Payload)>,
                     n_codes: &mut usize,
                     failed: &mut usize|
     -> Result<()> {
        let payloads: Vec<Payload> = batch.iter().map(|(_, payload)| payload.clone()).collect();
        let mut codes = Codes::new(encoder.code_len());
        for ((key, _), outcome) in batch.drain(..).zip(encoder.encode(&payloads)?) {
            match outcome {
                Ok(code) => {
                    writeln!(rows_out, "{}", json!({"row": *n_codes, "key": key}))?;
                    *n_codes += 1;
                    codes.push(&code)?;
                }
                Err(error) => {
                    refuse(format!("{key}: {error}"), failed);
                }
            }
        }
        codes_out.write_all(&codes.to_packed())?;
        Ok(())
    };
    for record in records.iter {
        bar.inc(1);
        let record = match record? {
            Entry::Record(record) => record,
            Entry::Damage { name, reason } => {
                refuse(format!("{name}: {reason}"), &mut failed);
                continue;
            }
            Entry::Skipped => continue,
        };
        match record.body {
            Body::Payload(payload) => {
                batch_bytes += payload.size_bytes();
                batch.push((record.key, payload));
            }
            Body::Unreadable(reason) => {
                refuse(format!("{}: {reason}", record.key), &mut failed);
            }
            Body::None | Body::Code(_) => bail!("{}: expected a picture, found none", record.key),
        }
        if batch.len() >= BATCH || batch_bytes >= BATCH_BYTES {
            flush(&mut batch, &mut n_codes, &mut failed)?;
            batch_bytes = 0;
        }
    }
    flush(&mut batch, &mut n_codes, &mut failed)?;
    bar.finish_and_clear();
    if n_codes == 0 {
        bail!("expected pictures, none of {failed} could be encoded");
    }
    codes_out.finish()?;
    rows_out.finish()?;
    let seconds = started.elapsed().as_secs_f64();
    if common.json {
        return output::json(&json!({
            "codes": n_codes, "failed": failed, "bits": encoder.code_len().bits(),
            "model_id": encoder.model_id(), "out": args.out, "seconds": seconds,
        }));
    }
    output::line(format!(
        "{n_codes} codes of {} bits in {}, {failed} pictures refused, {seconds:.1} s",
        encoder.code_len(),
        args.out.display()
    ))
}

/// Names an input that has no code, the first ten of them.
fn refuse(reason: String, failed: &mut usize) {
    *failed += 1;
    match *failed {
        ..=10 => output::note(reason),
        11 => output::note("further ones are counted, not named"),
        _ => {}
    }
}

/// A trained model, which makes codes of `bits` bits if that is given.
fn model_of(path: &Path, bits: Option<usize>) -> Result<Arc<dyn Encoder>> {
    let encoder = open_model(path)?;
    check_bits(path, encoder.code_len(), bits)?;
    Ok(encoder)
}

fn check_bits(path: &Path, found: CodeLen, expected: Option<usize>) -> Result<()> {
    if let Some(bits) = expected.filter(|bits| *bits != found.bits()) {
        bail!(
            "{}: expected codes of {bits} bits, it makes {found}",
            path.display()
        );
    }
    Ok(())
}

/// A .npy matrix, a code for each row.
fn encode_vectors(args: &Args, common: Common) -> Result<()> {
    let [input] = &args.input[..] else {
        bail!(
            "expected one .npy matrix as --input, got {} files",
            args.input.len()
        )
    };
    let about = || input.display().to_string();
    let started = Instant::now();
    let (vectors, dim) = read_vectors(input)?;
    let len = || CodeLen::new(args.bits.unwrap_or_default());
    let encoder: Arc<dyn Encoder> = match (args.encoder, &args.encoder_file, &args.fit) {
        (Some(VectorEncoder::Itq), _, Some(fit)) => {
            let (learned_from, dim) = read_vectors(fit)?;
            let fitted = Itq::fit(&learned_from, dim, len()?, common.seed, 50);
            Arc::new(fitted.with_context(|| fit.display().to_string())?.itq)
        }
        (Some(VectorEncoder::Itq), _, None) => {
            bail!(
                "itq learns from vectors: give --fit FILE.npy, or --encoder-file of `tanhash fit`"
            )
        }
        (Some(VectorEncoder::Lsh), _, Some(_)) => {
            bail!("random hyperplanes learn nothing; leave out --fit")
        }
        (Some(VectorEncoder::Lsh), _, None) => Arc::new(SignLsh::new(len()?, dim, common.seed)?),
        (None, Some(file), _) => {
            let itq = open_itq(file)?;
            check_bits(file, itq.code_len(), args.bits)?;
            Arc::new(itq)
        }
        (None, None, _) => match &args.model {
            Some(model) => model_of(model, args.bits)?,
            None => bail!("expected --model, --encoder or --encoder-file"),
        },
    };
    check_kind(&*encoder, Some(PayloadKind::Vector { dim }))?;
    let mut codes = Codes::with_capacity(encoder.code_len(), vectors.len() / dim);
    for rows in vectors.chunks(BATCH * dim) {
        let payloads: Vec<Payload> = rows
            .chunks(dim)
            .map(|row| Payload::Vector(row.into()))
            .collect();
        for code in encoder.encode(&payloads)? {
            let row = codes.n_codes();
            codes.push(&code.with_context(|| format!("{}: row {row}", about()))?)?;
        }
    }
    files::write(&args.out, &codes.to_packed())?;
    let (n_codes, seconds) = (codes.n_codes(), started.elapsed().as_secs_f64());
    if common.json {
        return output::json(&json!({
            "codes": n_codes, "failed": 0, "bits": encoder.code_len().bits(),
            "model_id": encoder.model_id(), "out": args.out, "seconds": seconds,
        }));
    }
    output::line(format!(
        "{n_codes} codes of {} bits in {} by {}, {seconds:.1} s",
        encoder.code_len(),
        args.out.display(),
        encoder.model_id()
    ))
}

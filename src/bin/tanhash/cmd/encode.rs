//! `tanhash encode`: pictures become a file of packed codes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;
use tanhash::{Codes, Payload};

use crate::catalog::open_model;
use crate::cmd::Common;
use crate::output;
use crate::records::{Body, Entry, Records};
use crate::schema::SchemaFile;

/// Turn pictures into a file of packed codes
#[derive(clap::Args)]
pub struct Args {
    /// The trained model
    #[arg(long)]
    model: PathBuf,
    /// A folder of pictures, a list .txt of paths, a manifest .jsonl, or .tar shards
    #[arg(long, num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// The file of packed rows; `<out>.jsonl` says which picture each row is of
    #[arg(long)]
    out: PathBuf,
}

/// Pictures encoded at a time, and the bytes of their files.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 64 << 20;

pub fn run(args: Args, common: Common) -> Result<()> {
    let encoder = open_model(&args.model)?;
    let records = Records::open(&args.input, &SchemaFile::default(), 0)?;
    let started = Instant::now();
    let mut rows_path = args.out.clone().into_os_string();
    rows_path.push(".jsonl");
    let rows_path = PathBuf::from(rows_path);
    let create = |path: &PathBuf| File::create(path).with_context(|| path.display().to_string());
    let (mut codes_out, mut rows_out) = (
        BufWriter::new(create(&args.out)?),
        BufWriter::new(create(&rows_path)?),
    );
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
                    output::note(format!("{key}: {error}"));
                    *failed += 1;
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
                output::note(format!("{name}: {reason}"));
                failed += 1;
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
                output::note(format!("{}: {reason}", record.key));
                failed += 1;
            }
            Body::None | Body::Code(_) => bail!("{}: expected a picture, found none", record.key),
        }
        if batch.len() >= BATCH || batch_bytes >= BATCH_BYTES {
            flush(&mut batch, &mut n_codes, &mut failed)?;
            batch_bytes = 0;
        }
    }
    flush(&mut batch, &mut n_codes, &mut failed)?;
    codes_out.flush()?;
    rows_out.flush()?;
    bar.finish_and_clear();
    if n_codes == 0 {
        bail!("expected pictures, none of {failed} could be encoded");
    }
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

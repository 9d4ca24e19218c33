//! `tanhash index`: pictures, manifests, tar shards or ready codes become a searchable index.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tanhash::encode::Encoder;
use tanhash::plugin::{HashDocumentExt, HashPlugin, OnBadDocument, WriterOptions};
use tanhash::{CodeLen, Payload};
use tantivy::TantivyDocument;
use tantivy::merge_policy::NoMergePolicy;

use crate::catalog::{Catalog, EncoderSpec, open_model};
use crate::cmd::Common;
use crate::cmd::bench::read_codes;
use crate::output;
use crate::records::{Body, Record, Records};

/// Build an index from pictures, a manifest, tar shards or ready codes
#[derive(clap::Args)]
pub struct Args {
    /// The trained model that turns pictures into codes; it is copied into the index
    #[arg(long, conflicts_with_all = ["encoder", "codes"])]
    model: Option<PathBuf>,
    /// An encoder that needs no training
    #[arg(long, value_enum, conflicts_with = "codes")]
    encoder: Option<EncoderKind>,
    /// A folder of pictures, a manifest .jsonl, or .tar shards
    #[arg(long, num_args = 1.., required_unless_present = "codes")]
    input: Vec<PathBuf>,
    /// Ready codes: packed rows of bits/8 bytes
    #[arg(long, requires = "bits", conflicts_with = "input")]
    codes: Option<PathBuf>,
    /// Bits of each code, for --codes and --encoder
    #[arg(long)]
    bits: Option<usize>,
    /// Length of the vectors of a manifest, for --encoder lsh
    #[arg(long)]
    dim: Option<usize>,
    /// The directory to make the index in
    #[arg(long)]
    index: PathBuf,
    /// What becomes of a document whose picture cannot be encoded
    #[arg(long, value_enum, default_value_t = OnBad::Quarantine)]
    on_bad: OnBad,
    /// Bytes that indexing threads may hold, in MiB
    #[arg(long, default_value_t = 256)]
    memory_mib: usize,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum EncoderKind {
    /// Perceptual hash of the picture: finds near duplicates
    Phash,
    /// Signs of random hyperplanes, for the float vectors of a manifest
    Lsh,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum OnBad {
    /// Index its text without a code
    Quarantine,
    /// Leave it out
    Skip,
    /// Stop
    Fail,
}

/// The file beside the index that names every document without a code, and why.
const QUARANTINE: &str = "quarantine.jsonl";
/// Documents handed to the writer in one call, and the bytes of their pictures.
const BATCH_DOCUMENTS: usize = 512;
const BATCH_BYTES: usize = 64 << 20;

pub fn run(args: Args, common: Common) -> Result<()> {
    let spec = match (&args.model, args.encoder, &args.codes, args.bits) {
        (Some(model), _, _, _) => {
            let model_id = open_model(model)?.model_id().to_owned();
            EncoderSpec::Model { file: model.clone(), model_id }
        }
        (None, Some(EncoderKind::Phash), _, bits) => EncoderSpec::Phash { bits: bits.unwrap_or(64) },
        (None, Some(EncoderKind::Lsh), _, bits) => {
            let dim = args.dim.context("expected --dim, the length of the vectors, beside --encoder lsh")?;
            EncoderSpec::Lsh { bits: bits.unwrap_or(64), dim, seed: common.seed }
        }
        (None, None, Some(_), Some(bits)) => EncoderSpec::None { bits },
        _ => bail!("expected a source of codes: give --model F, --encoder phash, --encoder lsh, or --codes F --bits B"),
    };
    let records: Records = match (&args.codes, args.bits) {
        (Some(path), Some(bits)) => {
            let codes = read_codes(path, CodeLen::new(bits)?)?;
            let rows = (0..codes.n_codes()).map(move |row| {
                Ok(Record { key: row.to_string(), body: Body::Code(codes.get(row)), ..Record::default() })
            });
            Records { expected: None, iter: Box::new(rows) }
        }
        _ => Records::open(&args.input)?,
    };
    let on_bad = match args.on_bad {
        OnBad::Quarantine => OnBadDocument::Quarantine,
        OnBad::Skip => OnBadDocument::Skip,
        OnBad::Fail => OnBadDocument::Fail,
    };
    let made_dir = !args.index.exists();
    let budget = args.memory_mib.saturating_mul(1 << 20);
    let built = Catalog::create(&args.index, spec, plugin)
        .and_then(|catalog| fill(&catalog, records, on_bad, budget, &args.index));
    let summary = match built {
        Ok(summary) => summary,
        Err(error) => {
            // What this run began would only be in the way of the next one.
            if made_dir && std::fs::remove_dir_all(&args.index).is_ok() {
                return Err(error.context(format!("{} was removed again", args.index.display())));
            }
            return Err(error);
        }
    };
    if common.json {
        return output::json(&summary);
    }
    output::line(summary.to_line(&args.index))
}

/// A plugin with this encoder, if any.
pub fn plugin(encoder: Option<Arc<dyn Encoder>>) -> tanhash::Result<HashPlugin> {
    encoder.map_or_else(|| Ok(HashPlugin::new()), HashPlugin::with_encoder)
}

/// What indexing did.
#[derive(serde::Serialize)]
pub struct Summary {
    pub documents: usize,
    pub codes: usize,
    pub failed: usize,
    pub seconds: f64,
    pub quarantine: Option<PathBuf>,
}

impl Summary {
    pub fn to_line(&self, index: &Path) -> String {
        let Summary { documents, codes, failed, seconds, .. } = self;
        let rate = *documents as f64 / seconds.max(1e-9);
        let quarantine = match &self.quarantine {
            Some(path) => format!("; {failed} pictures refused, named in {}", path.display()),
            None => String::new(),
        };
        format!(
            "{documents} documents, {codes} codes in {} after {seconds:.1} s ({rate:.0}/s){quarantine}",
            index.display()
        )
    }
}

/// The list of documents without a code, made when the first one turns up.
struct Quarantine {
    path: PathBuf,
    out: Option<File>,
}

impl Quarantine {
    fn add(&mut self, record: &Record, reason: &str, summary: &mut Summary) -> Result<()> {
        summary.failed += 1;
        let about = || self.path.display().to_string();
        let out = match &mut self.out {
            Some(out) => out,
            None => {
                let file = File::create(&self.path).with_context(about)?;
                summary.quarantine = Some(self.path.clone());
                self.out.insert(file)
            }
        };
        let line = json!({"key": record.key, "reason": reason, "sha256": record.sha256()});
        writeln!(out, "{line}").with_context(about)
    }
}

/// Adds every record to a fresh index, commits, and merges what the writer left in small segments.
pub fn fill(
    catalog: &Catalog,
    records: Records,
    on_bad_document: OnBadDocument,
    memory_budget_bytes: usize,
    dir: &Path,
) -> Result<Summary> {
    ensure!(memory_budget_bytes >= 15 << 20, "expected --memory-mib of at least 15, tantivy's minimum");
    let started = Instant::now();
    let writer =
        catalog.index.writer(WriterOptions { memory_budget_bytes, on_bad_document, ..Default::default() })?;
    // Segments are merged once, at the end.
    writer.set_merge_policy(Box::new(NoMergePolicy))?;
    let bar = output::progress(records.expected.unwrap_or(0) as u64, "indexing");
    let mut summary = Summary { documents: 0, codes: 0, failed: 0, seconds: 0.0, quarantine: None };
    let mut quarantine = Quarantine { path: dir.join(QUARANTINE), out: None };
    let mut batch: Vec<Record> = Vec::new();
    let mut batch_bytes = 0;
    let flush = |batch: &mut Vec<Record>, summary: &mut Summary, quarantine: &mut Quarantine| -> Result<()> {
        let documents = batch.iter().map(|record| to_document(catalog, record)).collect();
        let outcome = writer.add_documents(documents).with_context(|| {
            let (first, last) = (batch.first(), batch.last());
            let key = |record: Option<&Record>| record.map_or(String::new(), |record| record.key.clone());
            format!("among {} to {}", key(first), key(last))
        })?;
        for (record, outcome) in batch.drain(..).zip(&outcome.documents) {
            summary.documents += usize::from(outcome.opstamp.is_some());
            let failure = match &record.body {
                Body::Unreadable(reason) => Some(reason.as_str()),
                _ => outcome.failure(),
            };
            let Some(reason) = failure else {
                summary.codes += outcome.codes.len();
                continue;
            };
            quarantine.add(&record, reason, summary)?;
        }
        Ok(())
    };
    for record in records.iter {
        let record = record?;
        if let (Body::Unreadable(reason), OnBadDocument::Fail) = (&record.body, on_bad_document) {
            bail!("{}: {reason}", record.key);
        }
        if let (Body::Unreadable(reason), OnBadDocument::Skip) = (&record.body, on_bad_document) {
            quarantine.add(&record, reason, &mut summary)?;
            continue;
        }
        batch_bytes += record.size_bytes();
        batch.push(record);
        bar.inc(1);
        if batch.len() >= BATCH_DOCUMENTS || batch_bytes >= BATCH_BYTES {
            flush(&mut batch, &mut summary, &mut quarantine)?;
            batch_bytes = 0;
        }
    }
    if !batch.is_empty() {
        flush(&mut batch, &mut summary, &mut quarantine)?;
    }
    writer.commit()?;
    writer.merge_all()?;
    writer.close()?;
    bar.finish_and_clear();
    summary.seconds = started.elapsed().as_secs_f64();
    Ok(summary)
}

fn to_document(catalog: &Catalog, record: &Record) -> TantivyDocument {
    let fields = catalog.fields;
    let mut document = TantivyDocument::new();
    document.add_text(fields.key, &record.key);
    if !record.label.is_empty() {
        document.add_text(fields.label, &record.label);
    }
    if !record.text.is_empty() {
        document.add_text(fields.text, &record.text);
    }
    if !record.meta.is_empty() {
        let meta = record.meta.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
        document.add_object(fields.meta, meta);
    }
    match &record.body {
        Body::None | Body::Unreadable(_) => {}
        Body::Code(code) => document.add_code(fields.code, code),
        Body::Payload(Payload::Image(bytes)) => document.add_image(fields.code, bytes),
        Body::Payload(Payload::Vector(values)) => document.add_vector(fields.code, values),
        Body::Payload(_) => {}
    }
    document
}

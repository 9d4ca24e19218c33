//! `tanhash index`: pictures, manifests, tables, tar shards, vectors or ready codes become a searchable index.
//!
//! The command finds out what there is to read and where it goes; the building itself is
//! `tanhash::plugin::IndexBuilder`, which commits and resumes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tanhash::plugin::{
    BuildMode, BuildOptions, BuildProgress, BuildRecord, CHECKSUMS_FILE, HashValue, IndexBuilder,
    OnBadDocument, Refusal, SegmentTarget, WriterOptions, write_checksums,
};
use tanhash::{CodeLen, Encoder};
use tantivy::TantivyDocument;

use crate::catalog::{CODE_FIELD, Catalog, EncoderSpec, Layout, Use, open_itq, open_model};
use crate::cmd::Common;
use crate::output;
use crate::records::{Body, Entry, Matrix, Record, Records};
use crate::schema::SchemaFile;

/// Build an index from pictures, manifests, tables, tar shards, vectors or ready codes
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    codes: CodesArgs,
    /// Folders of pictures, lists .txt, manifests .jsonl or .csv, tables .parquet, shards .tar; beside
    /// --codes or --vectors: text for each row
    #[arg(long, num_args = 1.., required_unless_present_any = ["codes_file", "vectors"])]
    input: Vec<PathBuf>,
    /// Ready codes: packed rows of bits/8 bytes
    #[arg(long = "codes", requires = "bits", conflicts_with_all = ["vectors", "model", "encoder", "encoder_file"])]
    codes_file: Option<PathBuf>,
    /// The directory of the index
    #[arg(long)]
    index: PathBuf,
    /// Fields of your own, and which columns they take: a .json or .toml file
    #[arg(long)]
    schema: Option<PathBuf>,
    #[command(flatten)]
    build: BuildArgs,
    /// Go on with a build that was interrupted; begin it if it was not begun
    #[arg(long)]
    resume: bool,
    /// Add to a finished index; a document takes the place of one with the same key
    #[arg(long)]
    append: bool,
}

impl Args {
    /// Whether pictures may go through a model: `--model`, or that of an index which is there already.
    pub fn may_run_a_model(&self) -> bool {
        let codes = &self.codes;
        let without = self.codes_file.is_some()
            || codes.encoder.is_some()
            || codes.encoder_file.is_some()
            || codes.vectors.is_some();
        codes.model.is_some() || !without
    }
}

/// Where codes come from.
#[derive(clap::Args)]
pub struct CodesArgs {
    /// The trained model that turns pictures into codes; it is copied into the index
    #[arg(long, conflicts_with_all = ["encoder"])]
    model: Option<PathBuf>,
    /// An encoder that needs no labels
    #[arg(long, value_enum)]
    encoder: Option<EncoderKind>,
    /// A file that `tanhash fit` wrote, for float vectors; it is copied into the index
    #[arg(long, conflicts_with = "model")]
    encoder_file: Option<PathBuf>,
    /// Bits of each code, for --codes and --encoder; a file of an encoder knows them
    #[arg(long)]
    bits: Option<usize>,
    /// Length of the vectors, for --encoder lsh; --vectors knows it
    #[arg(long)]
    dim: Option<usize>,
    /// Float vectors to encode: a NumPy file .npy of rows
    #[arg(long)]
    vectors: Option<PathBuf>,
}

/// How an index is built.
#[derive(clap::Args)]
pub struct BuildArgs {
    /// What becomes of a document whose picture cannot be encoded
    #[arg(long, value_enum, default_value_t = OnBad::Quarantine)]
    on_bad: OnBad,
    /// Memory for indexing and for pictures that wait, in MiB
    #[arg(long, default_value_t = 256)]
    memory_mib: usize,
    /// Parts the documents are divided into by their keys; each is encoded and added on a thread of its own
    #[arg(long, default_value_t = 2)]
    partitions: usize,
    /// Segments of the finished index
    #[arg(long, default_value_t = 1, conflicts_with = "segment_mib")]
    segments: usize,
    /// Size of each segment of the finished index, in MiB, instead of their number
    #[arg(long)]
    segment_mib: Option<u64>,
    /// Documents between two commits at most; a killed build repeats what came after the last one
    #[arg(long, default_value_t = 100_000)]
    commit_every: u64,
    /// Seconds between two commits at most
    #[arg(long, default_value_t = 60)]
    commit_seconds: u64,
    /// Stop after so many documents in a row without a code; 0 for never
    #[arg(long, default_value_t = 1_000)]
    max_failures: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum EncoderKind {
    /// Perceptual hash of the picture: finds near duplicates
    Phash,
    /// Signs of random hyperplanes, for float vectors
    Lsh,
    /// Iterative quantization from --encoder-file, for float vectors
    Itq,
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

impl From<OnBad> for OnBadDocument {
    fn from(on_bad: OnBad) -> OnBadDocument {
        match on_bad {
            OnBad::Quarantine => OnBadDocument::Quarantine,
            OnBad::Skip => OnBadDocument::Skip,
            OnBad::Fail => OnBadDocument::Fail,
        }
    }
}

/// The file beside the index that names every document without a code, and why.
const QUARANTINE: &str = "quarantine.jsonl";

impl CodesArgs {
    /// The encoder that is asked for; `None` if none is.
    pub fn spec(&self, seed: u64) -> Result<Option<EncoderSpec>> {
        let bits = self.bits.unwrap_or(64);
        if let Some(file) = &self.encoder_file {
            return self.itq(file).map(Some);
        }
        Ok(match (&self.model, self.encoder) {
            (None, Some(EncoderKind::Itq)) => bail!(
                "expected --encoder-file beside --encoder itq; `tanhash fit` writes one from vectors"
            ),
            (Some(model), _) => {
                let model_id = open_model(model)?.model_id().to_owned();
                let file = model.clone();
                Some(EncoderSpec::Model { file, model_id })
            }
            (None, Some(EncoderKind::Phash)) => Some(EncoderSpec::Phash { bits }),
            (None, Some(EncoderKind::Lsh)) => {
                let dim = match (self.dim, &self.vectors) {
                    (Some(dim), _) => dim,
                    (None, Some(path)) => Matrix::npy(path)?.dim(),
                    (None, None) => bail!(
                        "expected --dim, the length of the vectors, beside --encoder lsh without --vectors"
                    ),
                };
                Some(EncoderSpec::Lsh { bits, dim, seed })
            }
            (None, None) => None,
        })
    }

    fn itq(&self, file: &Path) -> Result<EncoderSpec> {
        if let Some(EncoderKind::Phash | EncoderKind::Lsh) = self.encoder {
            bail!("expected --encoder itq or none beside --encoder-file, got another");
        }
        let itq = open_itq(file)?;
        let dim = match &self.vectors {
            Some(path) => Some(Matrix::npy(path)?.dim()),
            None => self.dim,
        };
        let differs = |found: Option<usize>, expected| found.filter(|found| *found != expected);
        if let Some(found) = differs(self.bits, itq.code_len().bits()) {
            let len = itq.code_len();
            bail!(
                "{}: expected codes of {found} bits, it makes {len}",
                file.display()
            );
        }
        if let Some(found) = differs(dim, itq.dim()) {
            let dim = itq.dim();
            bail!(
                "{}: it reads vectors of {dim} numbers, got {found}",
                file.display()
            );
        }
        let (file, model_id) = (file.to_owned(), itq.model_id().to_owned());
        Ok(EncoderSpec::Itq { file, model_id })
    }

    /// The rows of `--vectors`, each beside a record of the input if there is one.
    pub fn records(&self, input: &[PathBuf], schema: &SchemaFile, skip: u64) -> Result<Records> {
        match &self.vectors {
            None => Records::open(input, schema, skip),
            Some(path) => rows(Matrix::npy(path)?, input, schema, skip),
        }
    }
}

fn rows(matrix: Matrix, input: &[PathBuf], schema: &SchemaFile, skip: u64) -> Result<Records> {
    let others = match input {
        [] => None,
        input => Some(Records::open(input, schema, skip)?),
    };
    Records::of_rows(matrix, others, skip)
}

impl BuildArgs {
    /// Choices of the builder. A quarter of the memory is for pictures that wait.
    pub fn options(
        &self,
        catalog: &Catalog,
        dir: &Path,
        mode: BuildMode,
        source: String,
    ) -> Result<BuildOptions> {
        ensure!(
            self.memory_mib >= 20,
            "expected --memory-mib of at least 20, got {}",
            self.memory_mib
        );
        ensure!(
            self.segments >= 1,
            "expected --segments of at least 1, got 0"
        );
        ensure!(
            self.segment_mib != Some(0),
            "expected --segment-mib of at least 1, got 0"
        );
        ensure!(
            (1..=64).contains(&self.partitions),
            "expected --partitions of 1 to 64, got {}",
            self.partitions
        );
        let memory = self.memory_mib.saturating_mul(1 << 20);
        let batches = 2 * self.partitions + 1;
        Ok(BuildOptions {
            writer: WriterOptions {
                memory_budget_bytes: memory / 4 * 3,
                on_bad_document: self.on_bad.into(),
                ..WriterOptions::default()
            },
            mode,
            source,
            key: Some(catalog.fields.key),
            commit_records: self.commit_every,
            commit_interval: Duration::from_secs(self.commit_seconds),
            segments: match self.segment_mib {
                Some(mib) => SegmentTarget::Bytes(mib.saturating_mul(1 << 20)),
                None => SegmentTarget::Count(self.segments),
            },
            partitions: self.partitions,
            batch_bytes: (memory / 4 / batches).clamp(1 << 20, 32 << 20),
            max_failures: self.max_failures,
            quarantine: Some(dir.join(QUARANTINE)),
            ..BuildOptions::default()
        })
    }
}

pub fn run(args: Args, common: Common) -> Result<()> {
    let spec = match (
        args.codes.spec(common.seed)?,
        &args.codes_file,
        args.codes.bits,
    ) {
        (None, Some(_), Some(bits)) => Some(EncoderSpec::None { bits }),
        (spec, _, _) => spec,
    };
    let schema = match &args.schema {
        Some(path) => Some(SchemaFile::open(path)?),
        None => None,
    };
    let exists = args.index.join("meta.json").is_file();
    let made_dir = !args.index.exists();
    let (catalog, records) = match (exists, args.append, args.resume) {
        (true, false, false) | (false, false, _) => {
            let spec = spec.context(
                "expected a source of codes: give --model F, --encoder phash, --encoder lsh, --encoder-file F, or --codes F --bits B",
            )?;
            // The input first: a wrong path leaves no directory behind.
            let schema = schema.unwrap_or_default();
            let records = open_records(&args, &schema, 0)?;
            let layout = Layout::new(spec, schema);
            let catalog = Catalog::create(&args.index, layout, args.resume)?;
            (catalog, records)
        }
        (false, true, _) => bail!(
            "expected an index in {} to append to, found none",
            args.index.display()
        ),
        (true, _, _) => {
            let catalog = Catalog::open(&args.index, Use::Encode, None, CODE_FIELD)?;
            check_same(&catalog, spec.as_ref(), schema.as_ref())?;
            let records = open_records(&args, &catalog.layout.schema, 0)?;
            (catalog, records)
        }
    };
    let started = Instant::now();
    let built = fill_from(&args, &catalog, records, exists);
    let mut summary = match built {
        Ok(summary) => summary,
        Err(error) => return Err(keep_or_remove(error, &catalog, &args.index, made_dir)),
    };
    summary.seconds = started.elapsed().as_secs_f64();
    if made_dir && summary.documents == 0 && summary.damaged > 0 {
        let reason = summary.first_damage.clone().unwrap_or_default();
        drop(catalog);
        fs::remove_dir_all(&args.index).with_context(|| args.index.display().to_string())?;
        bail!(
            "{reason}; nothing else was found, {} was removed again",
            args.index.display()
        );
    }
    summary.print(&args.index, common)?;
    summary.check()
}

fn open_records(args: &Args, schema: &SchemaFile, skip: u64) -> Result<Records> {
    match (&args.codes_file, args.codes.bits) {
        (Some(path), Some(bits)) => rows(
            Matrix::codes(path, CodeLen::new(bits)?)?,
            &args.input,
            schema,
            skip,
        ),
        _ => args.codes.records(&args.input, schema, skip),
    }
}

/// An index is continued with what it was begun with.
fn check_same(
    catalog: &Catalog,
    spec: Option<&EncoderSpec>,
    schema: Option<&SchemaFile>,
) -> Result<()> {
    let same = match (spec, &catalog.spec) {
        (
            Some(EncoderSpec::Model { model_id, .. }),
            EncoderSpec::Model {
                model_id: of_index, ..
            },
        )
        | (
            Some(EncoderSpec::Itq { model_id, .. }),
            EncoderSpec::Itq {
                model_id: of_index, ..
            },
        ) => model_id == of_index,
        (Some(spec), of_index) => spec == of_index,
        (None, _) => true,
    };
    ensure!(
        same,
        "expected the encoder the index was begun with, {:?}, got {:?}; leave the option out",
        catalog.spec,
        spec
    );
    ensure!(
        schema.is_none_or(|schema| *schema == catalog.layout.schema),
        "expected the schema file the index was begun with, got another; leave --schema out"
    );
    Ok(())
}

fn fill_from(args: &Args, catalog: &Catalog, records: Records, exists: bool) -> Result<Summary> {
    let schema = &catalog.layout.schema;
    let found = BuildProgress::of(&catalog.index)?;
    let is_same = |found: &BuildProgress| found.source == records.source;
    let mode = match (exists, &found) {
        (false, _) => BuildMode::Start,
        (true, Some(found)) if args.resume && (!found.finished || is_same(found)) => {
            BuildMode::Resume
        }
        (true, None) if args.resume && !args.append => BuildMode::Resume,
        (true, Some(_)) if !args.append => BuildMode::Resume,
        (true, _) => BuildMode::Append,
    };
    let records = match (mode, &found) {
        (BuildMode::Resume, Some(found)) if found.position > 0 && is_same(found) => {
            open_records(args, schema, found.position)?
        }
        _ => records,
    };
    let options = args
        .build
        .options(catalog, &args.index, mode, records.source.clone())?;
    build(catalog, records, options, &args.index)
}

/// Says how to go on, or removes what would only be in the way of the next run.
pub fn keep_or_remove(
    error: anyhow::Error,
    catalog: &Catalog,
    dir: &Path,
    made_dir: bool,
) -> anyhow::Error {
    let committed = match BuildProgress::of(&catalog.index) {
        Ok(progress) => progress.map_or(0, |progress| progress.position),
        Err(_) => return error,
    };
    if committed > 0 {
        return error.context(format!(
            "{committed} records of the input are committed in {}, --resume goes on from there",
            dir.display()
        ));
    }
    if made_dir && fs::remove_dir_all(dir).is_ok() {
        return error.context(format!("{} was removed again", dir.display()));
    }
    error
}

/// What indexing did.
#[derive(serde::Serialize)]
pub struct Summary {
    /// Added by this build, in all its runs.
    pub documents: u64,
    pub codes: u64,
    /// Without a code: quarantined and skipped ones.
    pub failed: u64,
    pub skipped: u64,
    pub replaced: u64,
    pub damaged: u64,
    pub first_damage: Option<String>,
    /// Documents of the index now.
    pub live: u64,
    pub segments: usize,
    /// The position this run went on from.
    pub resumed_at: u64,
    pub seconds: f64,
    pub quarantine: Option<PathBuf>,
}

impl Summary {
    pub fn to_line(&self, index: &Path) -> String {
        let rate = self.documents as f64 / self.seconds.max(1e-9);
        let mut line = format!(
            "{} documents, {} codes in {} after {:.1} s ({rate:.0}/s)",
            self.documents,
            self.codes,
            index.display(),
            self.seconds
        );
        if self.replaced > 0 {
            line += &format!(
                "; {} took the place of one with the same key",
                self.replaced
            );
        }
        if self.skipped > 0 {
            line += &format!("; {} skipped", self.skipped);
        }
        if let (Some(path), true) = (&self.quarantine, self.failed > 0) {
            line += &format!(
                "; {} pictures refused, named in {}",
                self.failed,
                path.display()
            );
        }
        line
    }

    pub fn print(&self, index: &Path, common: Common) -> Result<()> {
        match common.json {
            true => output::json(self),
            false => output::line(self.to_line(index)),
        }
    }

    /// Input that is no record fails the command, after everything else was indexed.
    pub fn check(&self) -> Result<()> {
        let Some(first) = self.first_damage.as_ref().filter(|_| self.damaged > 0) else {
            return Ok(());
        };
        bail!(
            "damaged input in {} places, left out, the first: {first}; the rest is indexed",
            self.damaged
        )
    }
}

/// Adds every record to a fresh index with usual options.
#[cfg(feature = "torch")]
pub fn fill(
    catalog: &Catalog,
    records: Records,
    on_bad_document: OnBadDocument,
    memory_budget_bytes: usize,
    dir: &Path,
) -> Result<Summary> {
    let options = BuildOptions {
        writer: WriterOptions {
            memory_budget_bytes,
            on_bad_document,
            ..WriterOptions::default()
        },
        source: records.source.clone(),
        key: Some(catalog.fields.key),
        quarantine: Some(dir.join(QUARANTINE)),
        ..BuildOptions::default()
    };
    build(catalog, records, options, dir)
}

fn build(
    catalog: &Catalog,
    records: Records,
    options: BuildOptions,
    dir: &Path,
) -> Result<Summary> {
    let to_record = |record: Record| {
        let values = value_of(&record).map(|value| (catalog.fields.code, value));
        to_build_record(catalog, record, values.into_iter().collect()).map(Some)
    };
    run_build(catalog, records, options, dir, to_record, |_| Ok(()))
}

/// Hands entries to a builder and finishes it; `more` adds what comes after the input.
pub fn run_build(
    catalog: &Catalog,
    records: Records,
    options: BuildOptions,
    dir: &Path,
    mut to_record: impl FnMut(Record) -> Result<Option<BuildRecord>>,
    more: impl FnOnce(&mut IndexBuilder) -> Result<()>,
) -> Result<Summary> {
    let started = Instant::now();
    catalog.check_kind(records.kind)?;
    // What the list says is about to be untrue.
    let checksums = dir.join(CHECKSUMS_FILE);
    let quarantine = options.quarantine.clone();
    let mut builder = IndexBuilder::new(&catalog.index, options)?;
    let resumed_at = builder.progress().position;
    if !builder.progress().finished {
        if checksums.exists() {
            fs::remove_file(&checksums).with_context(|| checksums.display().to_string())?;
        }
        let bar = output::progress(records.expected.unwrap_or(0), "indexing");
        bar.set_position(resumed_at);
        bar.reset_eta();
        for entry in records.iter {
            match entry? {
                Entry::Skipped => continue,
                Entry::Damage { name, reason } => builder.add_damage(&name, &reason)?,
                Entry::Record(record) => match to_record(*record)? {
                    Some(record) => builder.add(record)?,
                    None => builder.pass()?,
                },
            }
            let progress = builder.progress();
            bar.set_position(progress.position);
            if !bar.is_hidden() && progress.position.is_multiple_of(64) {
                bar.set_message(format!(
                    "good {}, quarantined {}, skipped {}",
                    progress.documents - (progress.failed - progress.skipped),
                    progress.failed - progress.skipped,
                    progress.skipped + progress.damaged
                ));
            }
        }
        more(&mut builder)?;
        bar.set_message("merging");
        bar.finish_and_clear();
    }
    let progress = builder.finish()?;
    if !checksums.is_file() {
        write_checksums(dir)?;
    }
    let searcher = catalog.index.searcher()?;
    let quarantine = quarantine.filter(|_| progress.quarantine_bytes > 0);
    Ok(Summary {
        documents: progress.documents,
        codes: progress.codes,
        failed: progress.failed,
        skipped: progress.skipped,
        replaced: progress.replaced,
        damaged: progress.damaged,
        first_damage: progress.first_damage,
        live: searcher.num_docs(),
        segments: searcher.segment_readers().len(),
        resumed_at,
        seconds: started.elapsed().as_secs_f64(),
        quarantine,
    })
}

/// The code or payload of a record.
pub fn value_of(record: &Record) -> Option<HashValue> {
    match &record.body {
        Body::None | Body::Unreadable(_) => None,
        Body::Code(code) => Some(HashValue::Code(code.clone())),
        Body::Payload(payload) => Some(HashValue::Payload(payload.clone())),
    }
}

/// A record as the builder takes it.
pub fn to_build_record(
    catalog: &Catalog,
    mut record: Record,
    values: Vec<(tantivy::schema::Field, HashValue)>,
) -> Result<BuildRecord> {
    let fields = catalog.fields;
    let mut document = TantivyDocument::new();
    catalog
        .layout
        .schema
        .fill(&catalog.index.schema(), &mut record, &mut document)?;
    document.add_text(fields.key, &record.key);
    if !record.label.is_empty() {
        document.add_text(fields.label, &record.label);
    }
    if !record.text.is_empty() {
        document.add_text(fields.text, &record.text);
    }
    if !record.meta.is_empty() {
        let meta = record.meta.into_iter();
        let meta = meta.map(|(name, value)| (name, value.into()));
        document.add_object(fields.meta, meta.collect());
    }
    let refused = match record.body {
        Body::Unreadable(reason) => Some(Refusal {
            stage: "read".to_owned(),
            reason,
            sha256: None,
        }),
        _ => None,
    };
    Ok(BuildRecord {
        name: record.key,
        document,
        values,
        refused,
    })
}

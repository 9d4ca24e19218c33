//! `tanhash dedup`: near duplicates of an index, as groups or as pairs.
//!
//! Works on any index with a hash field, not the program's own kind alone: documents are shown by the
//! stored fields `key`, `label` and `text` as far as there are any, and by segment and number otherwise.

use std::io::{self, BufWriter, Stdout, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::json;
use tanhash::engine::EngineChoice;
use tanhash::plugin::{Dedup, DedupCounts, HashFieldOptions, HashIndex, HashPlugin};
use tantivy::schema::{Field, Value};
use tantivy::{DocAddress, Searcher, TantivyDocument};

use crate::cmd::Common;
use crate::files::WholeFile;
use crate::output;

/// Find near duplicates: documents whose codes differ in few bits
#[derive(clap::Args)]
pub struct Args {
    /// The index
    #[arg(value_name = "INDEX", required_unless_present = "index")]
    directory: Option<PathBuf>,
    /// The index, as other commands name it
    #[arg(long, conflicts_with = "directory")]
    index: Option<PathBuf>,
    /// Bits that near codes may differ in, inclusive. 0 finds equal codes; for perceptual hashes of
    /// pictures begin with a sixteenth of the bits, such as 4 of 64
    #[arg(long, default_value_t = 0)]
    radius: u32,
    /// The hash field, if the index has several
    #[arg(long)]
    field: Option<String>,
    /// Print groups: near documents, those near to them, and so on. The default
    #[arg(long, conflicts_with = "pairs")]
    groups: bool,
    /// Print every pair of near documents, in order of their addresses
    #[arg(long)]
    pairs: bool,
    /// Print the summary alone
    #[arg(long)]
    count: bool,
    /// Threads that search; 0 for as many as there are cores
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// The engine to search with: auto, scan, mih or cluster
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,
    /// Write groups or pairs to this file instead of stdout, where the summary stays
    #[arg(long, conflicts_with = "count")]
    out: Option<PathBuf>,
}

/// The last line.
#[derive(Serialize)]
struct Summary<'a> {
    #[serde(flatten)]
    counts: &'a DedupCounts,
    radius: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<usize>,
    /// Documents that could go, one of each group kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    duplicates: Option<usize>,
    seconds: f64,
}

pub fn run(args: Args, common: Common) -> Result<()> {
    let dir = args.directory.as_ref().or(args.index.as_ref());
    let dir = dir.context("expected an index, got none")?;
    let index = HashIndex::open_in_dir(dir, HashPlugin::new())?;
    let field = field_of(&index, args.field.as_deref())?;
    let searcher = index.searcher()?;
    let shown = Shown::new(&index, &searcher);
    let bar = output::progress(0, "searched");
    let told = bar.clone();
    let dedup = Dedup::new(field, args.radius)
        .engine(args.engine)
        .threads(args.threads)
        .progress(move |progress| {
            told.set_length(progress.codes);
            told.set_position(progress.searched);
        });
    let started = Instant::now();
    let mut lines = Lines::new(&args)?;
    let (mut n_groups, mut duplicates) = (None, None);
    let counts = if args.pairs && !args.count {
        let mut failed = None;
        let counts = dedup.pairs(&searcher, |pair| {
            let written = shown.of(pair.left).and_then(|left| {
                let right = shown.of(pair.right)?;
                let distance = pair.distance;
                match common.json {
                    true => lines.line(json!({"left": left, "right": right, "distance": distance})),
                    false => lines.line(format_args!(
                        "distance {distance}  {}  {}",
                        left.key, right.key
                    )),
                }
            });
            match written {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        counts
    } else if args.pairs {
        dedup.count(&searcher)?
    } else {
        let groups = dedup.groups(&searcher)?;
        n_groups = Some(groups.len());
        duplicates = Some(groups.duplicates());
        for (number, group) in (1..).zip(groups.iter()).filter(|_| !args.count) {
            let mut members = Vec::new();
            for member in group {
                let document = shown.of(member.address)?;
                let distance = member.distance;
                if common.json {
                    members.push(ShownMember { distance, document });
                } else {
                    let (key, label, text) = (document.key, document.label, document.text);
                    lines.line(format_args!(
                        "{number:>3}  distance {distance}  {key}  {label}  {text}"
                    ))?;
                }
            }
            if common.json {
                lines.line(json!({"group": number, "members": members}))?;
            }
        }
        groups.counts().clone()
    };
    lines.finish()?;
    bar.finish_and_clear();
    let summary = Summary {
        counts: &counts,
        radius: args.radius,
        groups: n_groups,
        duplicates,
        seconds: started.elapsed().as_secs_f64(),
    };
    if common.json {
        return output::json(&json!({ "summary": summary }));
    }
    let found = match (n_groups, duplicates) {
        (Some(groups), Some(duplicates)) => {
            format!("{groups} groups, {duplicates} duplicates that could go")
        }
        _ => format!("{} pairs", counts.pairs),
    };
    output::line(format!(
        "{} documents, {} codes, {} distinct, within {} bits: {found}, after {:.1} s",
        counts.documents, counts.codes, counts.distinct, args.radius, summary.seconds
    ))
}

/// The hash field asked for, or the only one.
fn field_of(index: &HashIndex, name: Option<&str>) -> Result<Field> {
    let schema = index.schema();
    let fields = HashFieldOptions::all(&schema)?;
    let names: Vec<&str> = (fields.iter())
        .map(|(field, _)| schema.get_field_name(*field))
        .collect();
    match (name, fields.as_slice()) {
        (Some(name), _) => {
            let place = names.iter().position(|of| *of == name);
            let place = place.with_context(|| {
                format!("expected one of the hash fields {names:?} as --field, got {name:?}")
            })?;
            Ok(fields[place].0)
        }
        (None, [(field, _)]) => Ok(*field),
        (None, _) => {
            ensure!(
                !fields.is_empty(),
                "expected an index with a hash field, found none"
            );
            bail!("expected --field beside several hash fields: one of {names:?}")
        }
    }
}

/// How documents are shown.
struct Shown<'a> {
    searcher: &'a Searcher,
    key: Option<Field>,
    label: Option<Field>,
    text: Option<Field>,
}

/// What is shown of one.
#[derive(Serialize)]
struct Document {
    key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    label: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    text: String,
    segment: u32,
    doc: u32,
}

#[derive(Serialize)]
struct ShownMember {
    distance: u32,
    #[serde(flatten)]
    document: Document,
}

impl<'a> Shown<'a> {
    fn new(index: &HashIndex, searcher: &'a Searcher) -> Shown<'a> {
        let stored = |name| {
            let field = index.schema().get_field(name).ok()?;
            index
                .schema()
                .get_field_entry(field)
                .is_stored()
                .then_some(field)
        };
        Shown {
            searcher,
            key: stored("key"),
            label: stored("label"),
            text: stored("text"),
        }
    }

    fn of(&self, address: DocAddress) -> Result<Document> {
        let stored: Option<TantivyDocument> = match self.key.or(self.label).or(self.text) {
            Some(_) => Some(self.searcher.doc(address)?),
            None => None,
        };
        let value = |field: Option<Field>| {
            let value = stored.as_ref()?.get_first(field?)?;
            let number = || value.as_u64().map(|number| number.to_string());
            value.as_str().map(str::to_owned).or_else(number)
        };
        let (segment, doc) = (address.segment_ord, address.doc_id);
        Ok(Document {
            key: value(self.key).unwrap_or_else(|| format!("{segment}/{doc}")),
            label: value(self.label).unwrap_or_default(),
            text: value(self.text).unwrap_or_default(),
            segment,
            doc,
        })
    }
}

/// Where groups and pairs go, line by line.
enum Lines {
    Stdout(BufWriter<Stdout>),
    File(PathBuf, WholeFile),
}

impl Lines {
    fn new(args: &Args) -> Result<Lines> {
        Ok(match &args.out {
            None => Lines::Stdout(BufWriter::new(io::stdout())),
            Some(path) => Lines::File(path.clone(), WholeFile::create(path)?),
        })
    }

    fn line(&mut self, text: impl std::fmt::Display) -> Result<()> {
        match self {
            Lines::Stdout(out) => writeln!(out, "{text}").context("stdout"),
            Lines::File(path, out) => {
                writeln!(out, "{text}").with_context(|| path.display().to_string())
            }
        }
    }

    fn finish(self) -> Result<()> {
        match self {
            Lines::Stdout(mut out) => out.flush().context("stdout"),
            Lines::File(_, out) => out.finish(),
        }
    }
}

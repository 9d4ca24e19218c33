//! `tanhash merge`: indexes that were built apart become one.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tanhash::plugin::{BuildProgress, HashIndex, HashPlugin, merge_by_key, write_checksums};
use tantivy::Index;
use tantivy::directory::MmapDirectory;

use crate::catalog::Layout;
use crate::cmd::Common;
use crate::output;

/// Make one index of several that were built apart
#[derive(clap::Args)]
pub struct Args {
    /// The directory to make the merged index in
    #[arg(long)]
    index: PathBuf,
    /// Finished indexes of one encoder and one schema; of documents with the same key the last one stays
    #[arg(long, num_args = 1.., required = true)]
    input: Vec<PathBuf>,
}

const QUARANTINE: &str = "quarantine.jsonl";

pub fn run(args: Args, common: Common) -> Result<()> {
    let started = Instant::now();
    ensure!(
        !args.index.exists() || fs::read_dir(&args.index).is_ok_and(|mut dir| dir.next().is_none()),
        "expected no directory {}, or an empty one",
        args.index.display()
    );
    let mut indexes: Vec<Index> = Vec::new();
    let mut first: Option<Layout> = None;
    for input in &args.input {
        let layout = Layout::read(input)?;
        let index = HashIndex::open_in_dir(input, HashPlugin::new())
            .with_context(|| input.display().to_string())?;
        if let Some(progress) = BuildProgress::of(&index)?
            && !progress.finished
        {
            bail!(
                "{}: expected a finished index, found a build that is not; resume it",
                input.display()
            );
        }
        match &first {
            None => first = Some(layout),
            Some(first) => ensure!(
                *first == layout,
                "{}: expected the encoder and the schema of {}, found others",
                input.display(),
                args.input[0].display()
            ),
        }
        indexes.push(Index::clone(&index));
    }
    let layout = first.context("expected indexes to merge, got none")?;

    // Made beside its place and renamed into it, so that a killed merge leaves nothing that looks whole.
    let mut part = args.index.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    ensure!(
        !part.exists(),
        "expected no directory {}, found what an interrupted merge has left; remove it",
        part.display()
    );
    fs::create_dir_all(&part).with_context(|| part.display().to_string())?;
    let merged = merge(&indexes, &args.input, &layout, &part);
    let (documents, replaced) = match merged {
        Ok(counts) => counts,
        Err(error) => {
            // The error at hand says more than a failure to clean up would.
            let _ = fs::remove_dir_all(&part);
            return Err(error);
        }
    };
    if args.index.exists() {
        fs::remove_dir(&args.index).with_context(|| args.index.display().to_string())?;
    }
    fs::rename(&part, &args.index).with_context(|| args.index.display().to_string())?;
    let seconds = started.elapsed().as_secs_f64();
    if common.json {
        return output::json(&json!({
            "inputs": args.input.len(), "documents": documents, "replaced": replaced, "seconds": seconds,
        }));
    }
    output::line(format!(
        "{documents} documents of {} indexes in {} after {seconds:.1} s, {replaced} gave way to one with the same key",
        args.input.len(),
        args.index.display()
    ))
}

fn merge(indexes: &[Index], inputs: &[PathBuf], layout: &Layout, out: &Path) -> Result<(u64, u64)> {
    let directory = MmapDirectory::open(out)?;
    let (merged, replaced) = merge_by_key(indexes, directory, HashPlugin::new(), "key")?;
    for (_, spec) in &layout.codes {
        if let Some(file) = spec.file() {
            let (from, to) = (inputs[0].join(file), out.join(file));
            fs::copy(&from, &to).with_context(|| from.display().to_string())?;
        }
    }
    fs::copy(inputs[0].join("tanhash.json"), out.join("tanhash.json"))?;
    let mut quarantine = None;
    for input in inputs {
        let path = input.join(QUARANTINE);
        if !path.is_file() {
            continue;
        }
        let out = match &mut quarantine {
            Some(out) => out,
            None => quarantine.insert(BufWriter::new(File::create(out.join(QUARANTINE))?)),
        };
        std::io::copy(&mut BufReader::new(File::open(path)?), out)?;
    }
    if let Some(out) = &mut quarantine {
        out.flush()?;
        out.get_ref().sync_all()?;
    }
    let documents = merged.searcher()?.num_docs();
    drop(merged);
    write_checksums(out)?;
    Ok((documents, replaced))
}

//! What `tanhash index`, `encode` and `rehash` read: folders, lists, manifests, tables, tar shards and
//! matrices, as one stream of entries.
//!
//! Every entry has a position: its number in the stream, the same in every run over the same input. A resumed
//! build skips that many without reading their pictures. A file that cannot be read is a record that says so,
//! and a part that is no record is an entry of its own; neither ends the stream.

mod columns;
mod folder;
mod lines;
mod matrix;
mod shards;
mod table;

use std::collections::BTreeMap;
use std::fs::{self, File, FileType};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use tanhash::media::Limits;
use tanhash::{HashCode, Payload, PayloadKind};

pub use columns::Columns;
pub use matrix::Matrix;

use crate::schema::SchemaFile;

/// What becomes a code.
#[derive(Clone, Debug, Default)]
pub enum Body {
    /// Text alone.
    #[default]
    None,
    /// A ready code.
    Code(HashCode),
    /// Something to encode.
    Payload(Payload),
    /// A picture that could not be read, and why.
    Unreadable(String),
}

/// One document to be.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub key: String,
    pub label: String,
    pub text: String,
    /// Every other column.
    pub meta: BTreeMap<String, serde_json::Value>,
    pub body: Body,
}

/// What stands at one position of the input.
#[derive(Debug)]
pub enum Entry {
    Record(Box<Record>),
    /// No record: the name of the place, and what was expected and found there.
    Damage {
        name: String,
        reason: String,
    },
    /// Skipped unread.
    Skipped,
}

impl Entry {
    fn record(record: Record) -> Entry {
        Entry::Record(Box::new(record))
    }

    fn damage(name: impl Into<String>, reason: impl ToString) -> Entry {
        Entry::Damage {
            name: name.into(),
            reason: reason.to_string().replace('\n', " "),
        }
    }
}

/// A stream of entries.
pub struct Records {
    /// How many, where that is known.
    pub expected: Option<u64>,
    /// Names the input, for a resumed run to tell it from another.
    pub source: String,
    /// What there is to encode, where all of it is of one kind.
    pub kind: Option<PayloadKind>,
    pub iter: Box<dyn Iterator<Item = Result<Entry>>>,
}

/// Entries that are still to be skipped, counted down by each source in turn.
#[derive(Clone)]
struct Skip(Arc<AtomicU64>);

impl Skip {
    /// True if the next entry is to be skipped.
    fn next(&self) -> bool {
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(1), Ordering::Relaxed);
        left > 0
    }

    fn left(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn take(&self, count: u64) {
        self.0
            .store(self.left().saturating_sub(count), Ordering::Relaxed);
    }
}

/// A part of the input with a reader of its own.
enum Source {
    Folder(PathBuf, Vec<PathBuf>),
    List(PathBuf),
    Jsonl(PathBuf),
    Csv(PathBuf),
    Parquet(PathBuf),
    Shard(PathBuf),
}

const EXPECTED: &str =
    "expected a folder, a list .txt, a manifest .jsonl or .csv, a table .parquet, or shards .tar";

impl Source {
    /// `is_first`: not opened before to learn where to go on.
    fn of(path: &Path, is_first: bool) -> Result<Source> {
        if path.is_dir() {
            let (paths, links) = folder::walk(path)?;
            if is_first {
                folder::note_links(&links);
            }
            return Ok(Source::Folder(path.to_path_buf(), paths));
        }
        // Opening a pipe would wait for its writer, and no run could go on where another stopped.
        let found = fs::metadata(path).with_context(|| path.display().to_string())?;
        if !found.is_file() {
            let found = kind(found.file_type());
            bail!("{}: {EXPECTED}, found {found}", path.display());
        }
        let path = path.to_path_buf();
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        Ok(match extension.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" => Source::Jsonl(path),
            "csv" | "tsv" => Source::Csv(path),
            "parquet" => Source::Parquet(path),
            "txt" | "lst" => Source::List(path),
            "tar" => Source::Shard(path),
            _ => bail!("{}: {EXPECTED}", path.display()),
        })
    }

    fn expected(&self) -> Option<u64> {
        match self {
            Source::Folder(_, paths) => Some(paths.len() as u64),
            Source::Parquet(path) => table::n_rows(path),
            _ => None,
        }
    }

    /// Whether there is nothing to encode but pictures.
    fn is_of_pictures(&self) -> bool {
        matches!(self, Source::Folder(..) | Source::List(_))
    }

    fn fingerprint(&self) -> Result<String> {
        match self {
            Source::Folder(dir, paths) => {
                let mut hasher = Sha256::new();
                for path in paths {
                    let path = path.strip_prefix(dir).unwrap_or(path);
                    hasher.update(path.as_os_str().as_encoded_bytes());
                    hasher.update([0]);
                }
                let sum = short(hasher);
                Ok(format!("a folder of {} pictures, {sum}", paths.len()))
            }
            Source::List(path)
            | Source::Jsonl(path)
            | Source::Csv(path)
            | Source::Parquet(path)
            | Source::Shard(path) => fingerprint(path),
        }
    }

    fn open(
        self,
        schema: &Arc<SchemaFile>,
        skip: &Skip,
    ) -> Result<Box<dyn Iterator<Item = Result<Entry>>>> {
        let (schema, skip) = (schema.clone(), skip.clone());
        match self {
            Source::Folder(dir, paths) => Ok(Box::new(folder::entries(dir, paths, skip))),
            Source::List(path) => lines::list(&path, skip),
            Source::Jsonl(path) => lines::jsonl(&path, schema, skip),
            Source::Csv(path) => lines::csv(&path, schema, skip),
            Source::Parquet(path) => table::parquet(&path, schema, skip),
            Source::Shard(path) => Ok(Box::new(shards::entries(path, schema, skip))),
        }
    }
}

/// A hash in short, for messages.
fn short(hasher: Sha256) -> String {
    let digest = hasher.finalize();
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A file by its name, its length, and what its first and last 64 KiB hold.
fn fingerprint(path: &Path) -> Result<String> {
    let about = || path.display().to_string();
    let mut hasher = Sha256::new();
    let mut file = File::open(path).with_context(about)?;
    let len = file.metadata().with_context(about)?.len();
    for start in [0, len.saturating_sub(1 << 16)] {
        file.seek(SeekFrom::Start(start)).with_context(about)?;
        let mut part = Vec::new();
        let read = file.by_ref().take(1 << 16).read_to_end(&mut part);
        read.with_context(about)?;
        hasher.update(part);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("{name} of {len} bytes, {}", short(hasher)))
}

impl Records {
    /// Folders, lists, manifests, tables and shards, one after the other, without the first `skip` entries.
    pub fn open(inputs: &[PathBuf], schema: &SchemaFile, skip: u64) -> Result<Records> {
        ensure!(!inputs.is_empty(), "{EXPECTED}, got nothing");
        let sources: Vec<Source> = inputs
            .iter()
            .map(|path| Source::of(path, skip == 0))
            .collect::<Result<_>>()?;
        let names: Vec<String> = sources
            .iter()
            .map(Source::fingerprint)
            .collect::<Result<_>>()?;
        let source = match &names[..] {
            [one] => one.clone(),
            several => {
                let mut hasher = Sha256::new();
                several.iter().for_each(|name| hasher.update(name));
                format!("{} inputs, {}", several.len(), short(hasher))
            }
        };
        let expected = sources.iter().map(Source::expected).sum();
        let of_pictures = sources.iter().all(Source::is_of_pictures);
        let (schema, skip) = (Arc::new(schema.clone()), Skip(Arc::new(skip.into())));
        let iter = sources.into_iter().flat_map(
            move |source| -> Box<dyn Iterator<Item = Result<Entry>>> {
                match source.open(&schema, &skip) {
                    Ok(entries) => entries,
                    Err(error) => Box::new(std::iter::once(Err(error))),
                }
            },
        );
        Ok(Records {
            expected,
            source,
            kind: of_pictures.then_some(PayloadKind::Image),
            iter: Box::new(iter.filter(|entry| !matches!(entry, Ok(Entry::Skipped)))),
        })
    }

    /// Rows of a matrix, alone or each with the entry of the same number.
    pub fn of_rows(matrix: Matrix, others: Option<Records>, skip: u64) -> Result<Records> {
        matrix::zip(matrix, others, skip)
    }
}

/// What an entry of a folder is that is no file.
fn kind(of: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if of.is_fifo() {
            return "a pipe";
        }
        if of.is_socket() {
            return "a socket";
        }
        if of.is_block_device() || of.is_char_device() {
            return "a device";
        }
    }
    if of.is_dir() {
        "a folder"
    } else {
        "something else"
    }
}

/// A picture file, within the decoder's limit on bytes.
pub fn read_picture(path: &Path) -> Body {
    let read = || -> Result<Vec<u8>> {
        // Before it is opened: opening a pipe would wait for its writer.
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            bail!("expected a file, found {}", kind(metadata.file_type()));
        }
        let file = File::open(path)?;
        let max_bytes = Limits::default().max_bytes;
        if metadata.len() > max_bytes as u64 {
            bail!("expected at most {max_bytes} bytes, got {}", metadata.len());
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        file.take(max_bytes as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Body::Payload(Payload::Image(bytes.into())),
        Err(error) => Body::Unreadable(format!("{error:#}")),
    }
}

/// Folder and file names as words: `ankle_boots/red-1.jpg` is `ankle boots red 1`.
fn words(key: &str) -> String {
    let stem = key.rsplit_once('.').map_or(key, |(stem, _)| stem);
    stem.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

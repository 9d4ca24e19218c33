//! What `tanhash index` and `tanhash encode` read: folders, lists, manifests and tar shards, as one stream
//! of records.
//!
//! A file that cannot be read is a record that says so, not the end of the run; a manifest line that is no
//! record ends it with its line number, because everything after it would be guesswork.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tanhash::media::Limits;
use tanhash::{HashCode, Payload};

use crate::output;

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
    pub meta: BTreeMap<String, serde_json::Value>,
    pub body: Body,
}

impl Record {
    /// Bytes waiting in memory.
    pub fn size_bytes(&self) -> usize {
        match &self.body {
            Body::Payload(payload) => payload.size_bytes(),
            _ => 0,
        }
    }

    /// SHA-256 of a picture, to find it again.
    pub fn sha256(&self) -> Option<String> {
        match &self.body {
            Body::Payload(Payload::Image(bytes)) => Some(
                Sha256::digest(bytes)
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect(),
            ),
            _ => None,
        }
    }
}

/// A stream of records.
pub struct Records {
    /// How many, where that is known.
    pub expected: Option<usize>,
    pub iter: Box<dyn Iterator<Item = Result<Record>>>,
}

/// Extensions of what is taken for a picture. TIFF is not read; its files are listed so that they are counted
/// and refused by name rather than overlooked.
const PICTURES: [&str; 9] = [
    "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jfif",
];

impl Records {
    /// A folder, a `.jsonl` manifest, a list of paths (`.txt`), or `.tar` shards.
    pub fn open(inputs: &[PathBuf]) -> Result<Records> {
        let has = |path: &Path, wanted: &str| {
            path.extension()
                .is_some_and(|extension| extension.eq_ignore_ascii_case(wanted))
        };
        match inputs {
            [dir] if dir.is_dir() => folder(dir),
            [file] if has(file, "jsonl") => manifest(file),
            [file] if has(file, "txt") || has(file, "lst") => list(file),
            shards if !shards.is_empty() && shards.iter().all(|shard| has(shard, "tar")) => {
                Ok(self::shards(shards.to_vec()))
            }
            [missing] if !missing.exists() => {
                bail!("{}: no such file or directory", missing.display())
            }
            _ => bail!(
                "expected one folder, one manifest .jsonl, one list .txt, or .tar shards, got {}",
                inputs
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect::<Vec<_>>()
                    .join(" ")
            ),
        }
    }
}

/// A picture file, within the decoder's limit on bytes.
pub fn read_picture(path: &Path) -> Body {
    let read = || -> Result<Vec<u8>> {
        // Before it is opened: opening a pipe would wait for its writer.
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            bail!("expected a file");
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

/// Every picture below a folder, by path; its folder is its label. Symbolic links to folders are not
/// followed, so a loop cannot trap the walk.
fn folder(dir: &Path) -> Result<Records> {
    let mut paths = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if folder == dir => {
                return Err(anyhow!(error).context(dir.display().to_string()));
            }
            Err(_) => {
                // The folder itself becomes a record, so that it is counted and named.
                paths.push(folder);
                continue;
            }
        };
        for entry in entries {
            let entry = entry.with_context(|| folder.display().to_string())?;
            let path = entry.path();
            let kind = entry
                .file_type()
                .with_context(|| path.display().to_string())?;
            if kind.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .and_then(|extension| extension.to_str())
                .is_some_and(|extension| {
                    PICTURES.contains(&extension.to_ascii_lowercase().as_str())
                })
            {
                paths.push(path);
            }
        }
    }
    if paths.is_empty() {
        bail!(
            "{}: expected pictures ({}), found none",
            dir.display(),
            PICTURES.join(", ")
        );
    }
    paths.sort();
    let dir = dir.to_path_buf();
    let expected = Some(paths.len());
    let iter = paths.into_iter().map(move |path| {
        let relative = path.strip_prefix(&dir).unwrap_or(&path);
        let key = relative.to_string_lossy().into_owned();
        let label = relative.parent().and_then(Path::file_name);
        let label = label
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        Ok(Record {
            text: words(&key),
            label,
            key,
            body: read_picture(&path),
            ..Record::default()
        })
    });
    Ok(Records {
        expected,
        iter: Box::new(iter),
    })
}

/// One path a line.
fn list(file: &Path) -> Result<Records> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let base = file.parent().unwrap_or(Path::new("")).to_path_buf();
    let paths: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect();
    let expected = Some(paths.len());
    let iter = paths.into_iter().map(move |path| {
        let body = read_picture(&base.join(&path));
        Ok(Record {
            text: words(&path),
            key: path,
            body,
            ..Record::default()
        })
    });
    Ok(Records {
        expected,
        iter: Box::new(iter),
    })
}

/// A line of a manifest. Fields of other names go to `meta`.
#[derive(Deserialize)]
struct Line {
    #[serde(alias = "path", alias = "file")]
    image: Option<PathBuf>,
    code: Option<String>,
    vector: Option<Vec<f32>>,
    #[serde(alias = "id")]
    key: Option<serde_json::Value>,
    label: Option<serde_json::Value>,
    #[serde(alias = "caption")]
    text: Option<String>,
    #[serde(flatten)]
    meta: BTreeMap<String, serde_json::Value>,
}

fn manifest(file: &Path) -> Result<Records> {
    let reader = BufReader::new(File::open(file).with_context(|| file.display().to_string())?);
    let base = file.parent().unwrap_or(Path::new("")).to_path_buf();
    let name = file.display().to_string();
    let iter = (1..).zip(reader.lines()).filter_map(move |(number, line)| {
        let record = || -> Result<Option<Record>> {
            let line = line?;
            if line.trim().is_empty() {
                return Ok(None);
            }
            let line: Line = serde_json::from_str(&line)?;
            let plain = |value: &serde_json::Value| match value {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let key = match (&line.key, &line.image) {
                (Some(key), _) => plain(key),
                (None, Some(image)) => image.display().to_string(),
                (None, None) => number.to_string(),
            };
            let body = match (&line.code, &line.vector, &line.image) {
                (Some(code), None, None) => Body::Code(HashCode::from_hex(code)?),
                (None, Some(vector), None) => {
                    Body::Payload(Payload::Vector(vector.as_slice().into()))
                }
                (None, None, Some(image)) => read_picture(&base.join(image)),
                (None, None, None) => Body::None,
                _ => bail!("expected one of image, code and vector, got several"),
            };
            let label = line.label.as_ref().map(plain).unwrap_or_default();
            let text = line.text.unwrap_or_default();
            Ok(Some(Record {
                key,
                label,
                text,
                meta: line.meta,
                body,
            }))
        };
        record()
            .with_context(|| format!("{name}, line {number}"))
            .transpose()
    });
    Ok(Records {
        expected: None,
        iter: Box::new(iter),
    })
}

/// Records of a shard that wait to be read further.
const SHARD_AHEAD: usize = 4;

/// Reads shards one after the other on a thread of its own, a few records ahead, so that a shard of any size
/// needs little memory.
fn shards(paths: Vec<PathBuf>) -> Records {
    let (send, receive) = sync_channel(SHARD_AHEAD);
    std::thread::spawn(move || {
        for path in paths {
            if let Err(error) = read_shard(&path, &send) {
                // A receiver that is gone wants no more.
                let _ = send.send(Err(error));
                return;
            }
        }
    });
    Records {
        expected: None,
        iter: Box::new(receive.into_iter()),
    }
}

/// The members of a WebDataset shard: files of one stem, up to the first dot of their name, are one record;
/// `.txt` is its text, `.cls` its label, `.json` its further fields.
fn read_shard(shard: &Path, send: &SyncSender<Result<Record>>) -> Result<()> {
    let name = shard.display().to_string();
    let mut archive = tar::Archive::new(BufReader::new(
        File::open(shard).with_context(|| name.clone())?,
    ));
    let damaged = || format!("{name}: the archive is damaged or ends early");
    let mut record: Option<Record> = None;
    for entry in archive.entries().with_context(damaged)? {
        let mut entry = entry.with_context(damaged)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry
            .path()
            .with_context(damaged)?
            .to_string_lossy()
            .into_owned();
        let base = path.rfind('/').map_or(0, |slash| slash + 1);
        let (stem, extension) = match path[base..].split_once('.') {
            Some((stem, extension)) => (&path[..base + stem.len()], extension.to_ascii_lowercase()),
            None => (path.as_str(), String::new()),
        };
        if record.as_ref().is_some_and(|record| record.key != stem)
            && let Some(whole) = record.take()
            && send.send(Ok(whole)).is_err()
        {
            return Ok(());
        }
        let record = record.get_or_insert_with(|| Record {
            key: stem.to_owned(),
            ..Record::default()
        });
        let picture = PICTURES.contains(&extension.as_str());
        let (max_bytes, size) = (Limits::default().max_bytes as u64, entry.size());
        if size > max_bytes {
            if picture {
                record.body =
                    Body::Unreadable(format!("expected at most {max_bytes} bytes, got {size}"));
            }
            continue;
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).with_context(damaged)?;
        match extension.as_str() {
            _ if picture => record.body = Body::Payload(Payload::Image(bytes.into())),
            "txt" => record.text = String::from_utf8_lossy(&bytes).trim().to_owned(),
            "cls" => record.label = String::from_utf8_lossy(&bytes).trim().to_owned(),
            "json" => match serde_json::from_slice(&bytes) {
                Ok(meta) => record.meta = meta,
                Err(error) => output::note(format!("{name}, {path}: left out, {error}")),
            },
            _ => {}
        }
    }
    if let Some(whole) = record {
        let _ = send.send(Ok(whole));
    }
    Ok(())
}

//! WebDataset shards: `.tar` files whose members of one stem are one record.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use anyhow::{Context, Result};
use tanhash::media::{Limits, is_picture_extension};

use super::{Body, Entry, Record, Skip, columns};
use crate::output;
use crate::schema::SchemaFile;

/// Records of a shard that wait to be read further.
const SHARD_AHEAD: usize = 4;

/// The records of one shard, read on a thread of its own and a few ahead, so that a shard of any size needs
/// little memory. A shard that is damaged or ends early gives what was read before, then the damage.
pub fn entries(
    path: PathBuf,
    schema: Arc<SchemaFile>,
    skip: Skip,
) -> impl Iterator<Item = Result<Entry>> {
    let (send, receive) = sync_channel(SHARD_AHEAD);
    std::thread::spawn(move || {
        let mut n_records = 0;
        if let Err(error) = read(&path, &schema, &skip, &mut n_records, &send) {
            let reason = format!(
                "the archive is damaged or ends early after {n_records} records: {}",
                output::one_line(&error)
            );
            let damage = match skip.next() {
                true => Entry::Skipped,
                false => Entry::damage(path.display().to_string(), reason),
            };
            // A receiver that is gone wants no more.
            let _ = send.send(Ok(damage));
        }
    });
    receive.into_iter()
}

/// Files of one stem, up to the first dot of their name, are one record: a picture, `.txt` its text, `.cls`
/// its label, `.json` its further columns.
fn read(
    shard: &PathBuf,
    schema: &SchemaFile,
    skip: &Skip,
    n_records: &mut u64,
    send: &SyncSender<Result<Entry>>,
) -> Result<()> {
    let mut file = File::open(shard)?;
    // An archive ends with blocks of zeros; one that was cut between two members looks whole otherwise.
    let len = file.metadata()?.len();
    let mut end = [1; 512];
    if len >= 512 {
        file.seek(SeekFrom::Start(len - 512))?;
        file.read_exact(&mut end)?;
        file.rewind()?;
    }
    let is_whole = end == [0; 512];
    let mut current: Option<(Record, bool)> = None;
    let mut send = |record: Record, skipped: bool| {
        *n_records += 1;
        let record = named_columns(record, schema);
        let entry = match (skipped, schema.check(&record)) {
            (true, _) => Entry::Skipped,
            (false, Ok(())) => Entry::record(record),
            (false, Err(error)) => {
                Entry::damage(format!("{}, {}", shard.display(), record.key), error)
            }
        };
        send.send(Ok(entry)).is_ok()
    };
    let outcome = (|| -> Result<()> {
        let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 17, file));
        // Seeking passes over the members of skipped records; it also drops what was read ahead.
        let members = match skip.left() {
            0 => archive.entries()?,
            _ => archive.entries_with_seek()?,
        };
        for member in members {
            let mut member = member?;
            if !member.header().entry_type().is_file() {
                continue;
            }
            let path = member.path()?.to_string_lossy().into_owned();
            let base = path.rfind('/').map_or(0, |slash| slash + 1);
            let (stem, extension) = match path[base..].split_once('.') {
                Some((stem, extension)) => {
                    (&path[..base + stem.len()], extension.to_ascii_lowercase())
                }
                None => (path.as_str(), String::new()),
            };
            if current
                .as_ref()
                .is_some_and(|(record, _)| record.key != stem)
                && let Some((whole, skipped)) = current.take()
                && !send(whole, skipped)
            {
                return Ok(());
            }
            let (record, skipped) = current.get_or_insert_with(|| {
                let record = Record {
                    key: stem.to_owned(),
                    ..Record::default()
                };
                (record, skip.next())
            });
            if *skipped {
                continue;
            }
            let (max_bytes, size) = (Limits::default().max_bytes as u64, member.size());
            if size > max_bytes {
                if is_picture_extension(&extension) {
                    let reason = format!("expected at most {max_bytes} bytes, got {size}");
                    record.body = Body::Unreadable(reason);
                }
                continue;
            }
            let mut bytes = Vec::with_capacity(size as usize);
            member.read_to_end(&mut bytes)?;
            if bytes.len() as u64 != size {
                anyhow::bail!("{path}: expected {size} bytes, found {}", bytes.len());
            }
            match extension.as_str() {
                _ if is_picture_extension(&extension) => record.body = columns::picture(bytes),
                "txt" => record.text = String::from_utf8_lossy(&bytes).trim().to_owned(),
                "cls" => record.label = String::from_utf8_lossy(&bytes).trim().to_owned(),
                "json" => match serde_json::from_slice(&bytes) {
                    Ok(meta) => record.meta = meta,
                    Err(error) => {
                        output::note(format!("{}, {path}: left out, {error}", shard.display()));
                    }
                },
                _ => {}
            }
        }
        Ok(())
    })();
    // The record at hand is whole if the archive is; otherwise it counts if its picture was read.
    let ends_well = outcome.is_ok() && is_whole;
    if let Some((record, skipped)) = current
        && (ends_well || skipped || matches!(record.body, Body::Payload(_)))
    {
        send(record, skipped);
    }
    outcome?;
    is_whole
        .then_some(())
        .context("expected blocks of zeros at its end, found none")
}

/// Columns of the `.json` member that the schema names for the label or the text, or that img2dataset writes.
fn named_columns(mut record: Record, schema: &SchemaFile) -> Record {
    let text_of = |record: &Record, name: Option<&str>| {
        let value = record.meta.get(name?)?;
        value.as_str().map(str::to_owned)
    };
    if let Some(text) = text_of(&record, schema.columns.text.as_deref()) {
        record.text = text;
    } else if record.text.is_empty() {
        record.text = text_of(&record, Some("caption")).unwrap_or_default();
    }
    if let Some(label) = text_of(&record, schema.columns.label.as_deref()) {
        record.label = label;
    }
    record
}

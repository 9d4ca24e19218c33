//! Inputs of one record a line: lists of paths, JSON lines, and comma- or tab-separated tables.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::columns::{self, Cell};
use super::{Entry, Record, Skip, read_picture, words};
use crate::schema::SchemaFile;

type Entries = Box<dyn Iterator<Item = Result<Entry>>>;

/// Longer lines are refused before they fill the memory: a picture within its limit, in base64.
const LINE_BYTES_MAX: usize = 64 << 20;

fn open(path: &Path) -> Result<(BufReader<File>, PathBuf, String)> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let base = path.parent().unwrap_or(Path::new("")).to_path_buf();
    Ok((
        BufReader::with_capacity(1 << 17, file),
        base,
        path.display().to_string(),
    ))
}

/// The lines of a file with their numbers, empty ones left out. A line that is no text or too long is an
/// error of that line alone.
fn lines(
    mut reader: BufReader<File>,
) -> impl Iterator<Item = Result<(u64, Result<String, String>)>> {
    let mut number = 0;
    std::iter::from_fn(move || {
        loop {
            number += 1;
            let mut line = Vec::new();
            match read_line(&mut reader, &mut line) {
                Err(error) => return Some(Err(error.into())),
                Ok(None) => return None,
                Ok(Some(false)) => {
                    let reason = format!("expected at most {LINE_BYTES_MAX} bytes");
                    return Some(Ok((number, Err(reason))));
                }
                Ok(Some(true)) => {}
            }
            match String::from_utf8(line) {
                Ok(line) if line.trim().is_empty() => continue,
                Ok(line) => return Some(Ok((number, Ok(line)))),
                Err(_) => return Some(Ok((number, Err("expected UTF-8".to_owned())))),
            }
        }
    })
}

/// Reads a line; `None` at the end, false if it was too long to keep.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<Option<bool>> {
    let (mut any, mut fits) = (false, true);
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(any.then_some(fits));
        }
        any = true;
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        fits &= line.len() + part.len() <= LINE_BYTES_MAX;
        if fits {
            line.extend_from_slice(part);
        }
        let used = end.map_or(part.len(), |end| end + 1);
        reader.consume(used);
        if end.is_some() {
            return Ok(Some(fits));
        }
    }
}

/// One path a line.
pub fn list(path: &Path, skip: Skip) -> Result<Entries> {
    let (reader, base, name) = open(path)?;
    let entries = lines(reader).map(move |line| {
        let (number, line) = line.with_context(|| name.clone())?;
        if skip.next() {
            return Ok(Entry::Skipped);
        }
        Ok(match line {
            Err(reason) => Entry::damage(format!("{name}, line {number}"), reason),
            Ok(line) => {
                let key = line.trim();
                Entry::record(Record {
                    text: words(key),
                    key: key.to_owned(),
                    body: read_picture(&base.join(key)),
                    ..Record::default()
                })
            }
        })
    });
    Ok(Box::new(entries))
}

/// One JSON object a line.
pub fn jsonl(path: &Path, schema: Arc<SchemaFile>, skip: Skip) -> Result<Entries> {
    let (reader, base, name) = open(path)?;
    let entries = lines(reader).map(move |line| {
        let (number, line) = line.with_context(|| name.clone())?;
        if skip.next() {
            return Ok(Entry::Skipped);
        }
        let record = || -> Result<Record> {
            let line = line.map_err(anyhow::Error::msg)?;
            let cells: Map<String, Value> =
                serde_json::from_str(&line).context("expected a JSON object")?;
            let cells = cells
                .into_iter()
                .map(|(name, value)| (name, Cell::Json(value)));
            let record = columns::record(cells, &schema.columns, &base, number)?;
            schema.check(&record)?;
            Ok(record)
        };
        Ok(entry(record(), || format!("{name}, line {number}")))
    });
    Ok(Box::new(entries))
}

/// A record, or the damage that stands in its place.
pub fn entry(record: Result<Record>, name: impl Fn() -> String) -> Entry {
    match record {
        Ok(record) => Entry::record(record),
        Err(error) => Entry::damage(name(), format!("{error:#}")),
    }
}

/// A table with a line of column names; `.tsv` is separated by tabs.
pub fn csv(path: &Path, schema: Arc<SchemaFile>, skip: Skip) -> Result<Entries> {
    let (reader, base, name) = open(path)?;
    let tabs = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("tsv"));
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(if tabs { b'\t' } else { b',' })
        .from_reader(reader);
    let names: Vec<String> = match reader.headers() {
        Ok(names) => names.iter().map(|name| name.trim().to_owned()).collect(),
        Err(error) => {
            let damage = Entry::damage(format!("{name}, line 1"), error);
            return Ok(Box::new(std::iter::once(Ok(damage))));
        }
    };
    let mut row = csv::StringRecord::new();
    let mut row_number = 0;
    let entries = std::iter::from_fn(move || {
        row_number += 1;
        let line = reader.position().line();
        let read = reader.read_record(&mut row);
        if let Ok(false) = read {
            return None;
        }
        if let Err(error) = &read
            && let csv::ErrorKind::Io(_) = error.kind()
        {
            return Some(read.map(|_| Entry::Skipped).with_context(|| name.clone()));
        }
        if skip.next() {
            return Some(Ok(Entry::Skipped));
        }
        let line = row.position().map_or(line, |position| position.line());
        let record = || -> Result<Record> {
            if let Err(error) = read {
                return match error.kind() {
                    csv::ErrorKind::UnequalLengths {
                        expected_len, len, ..
                    } => Err(anyhow::anyhow!(
                        "expected {expected_len} columns, found {len}"
                    )),
                    csv::ErrorKind::Utf8 { .. } => Err(anyhow::anyhow!("expected UTF-8")),
                    _ => Err(error.into()),
                };
            }
            let cells = names.iter().zip(row.iter());
            let cells = cells.filter(|(_, text)| !text.is_empty());
            let cells = cells.map(|(name, text)| {
                let is_plain = schema.columns.role(name).is_some();
                let value = if is_plain { text.into() } else { value(text) };
                (name.clone(), Cell::Json(value))
            });
            let record = columns::record(cells, &schema.columns, &base, row_number)?;
            schema.check(&record)?;
            Ok(record)
        };
        Some(Ok(entry(record(), || format!("{name}, line {line}"))))
    });
    Ok(Box::new(entries))
}

/// A number if the text is how that number is written, otherwise text: 007 is no number.
fn value(text: &str) -> Value {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Number(number)) if number.to_string() == text => Value::Number(number),
        Ok(Value::Bool(value)) => Value::Bool(value),
        _ => text.into(),
    }
}

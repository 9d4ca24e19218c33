//! Columns of a manifest line or a table row, by their names, become a record.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tanhash::media::Limits;
use tanhash::{HashCode, Payload};

use super::{Body, Record, read_picture};

/// Which column plays which part, where it has another name than the usual one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    /// Usually `key` or `id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Usually `label`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Usually `text` or `caption`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Usually `image`, `path` or `file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Usually `image_base64` or `bytes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
    /// Usually `code`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Usually `vector` or `embedding`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vector: Option<String>,
}

/// The part a column plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Key,
    Label,
    Text,
    Image,
    Bytes,
    Code,
    Vector,
}

impl Columns {
    /// The part a column plays; `None` for one that goes to `meta` or to a field of its own.
    pub fn role(&self, name: &str) -> Option<Role> {
        let parts: [(Role, &Option<String>, &[&str]); 7] = [
            (Role::Key, &self.key, &["key", "id"]),
            (Role::Label, &self.label, &["label"]),
            (Role::Text, &self.text, &["text", "caption"]),
            (Role::Image, &self.image, &["image", "path", "file"]),
            (Role::Bytes, &self.bytes, &["image_base64", "bytes"]),
            (Role::Code, &self.code, &["code"]),
            (Role::Vector, &self.vector, &["vector", "embedding"]),
        ];
        let plays = |given: &Option<String>, usual: &[&str]| match given {
            Some(given) => given == name,
            None => usual.contains(&name),
        };
        let found = parts.iter().find(|(_, given, usual)| plays(given, usual));
        found.map(|(role, _, _)| *role)
    }
}

/// The value of a column.
#[derive(Clone, Debug)]
pub enum Cell {
    Json(Value),
    Bytes(Vec<u8>),
    Floats(Vec<f32>),
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The record of these columns. Paths are relative to `base`; `number` is the key of a record without one.
pub fn record(
    cells: impl IntoIterator<Item = (String, Cell)>,
    columns: &Columns,
    base: &Path,
    number: u64,
) -> Result<Record> {
    let mut record = Record::default();
    let (mut key, mut body) = (None, None);
    let mut set = |found: Body, name: &str| {
        ensure!(
            body.is_none(),
            "expected one of image, bytes, code and vector, got `{name}` as a second"
        );
        body = Some(found);
        Ok(())
    };
    for (name, cell) in cells {
        if matches!(cell, Cell::Json(Value::Null)) {
            continue;
        }
        match (columns.role(&name), cell) {
            (Some(Role::Key), Cell::Json(value)) => key = Some(plain(&value)),
            (Some(Role::Label), Cell::Json(value)) => record.label = plain(&value),
            (Some(Role::Text), Cell::Json(Value::String(text))) => record.text = text,
            (Some(Role::Image), Cell::Json(Value::String(path))) => {
                set(read_picture(&base.join(&path)), &name)?;
                key.get_or_insert(path);
            }
            (Some(Role::Image | Role::Bytes), Cell::Bytes(bytes)) => set(picture(bytes), &name)?,
            (Some(Role::Bytes), Cell::Json(Value::String(text))) => {
                let bytes = STANDARD.decode(text.trim());
                let bytes = bytes.with_context(|| format!("column `{name}`: expected base64"))?;
                set(picture(bytes), &name)?;
            }
            (Some(Role::Code), Cell::Json(Value::String(hex))) => {
                set(Body::Code(HashCode::from_hex(&hex)?), &name)?;
            }
            (Some(Role::Code), Cell::Bytes(bytes)) => {
                set(Body::Code(HashCode::from_bytes(&bytes)?), &name)?;
            }
            (Some(Role::Vector), Cell::Floats(values)) => {
                set(Body::Payload(Payload::Vector(values.into())), &name)?;
            }
            (Some(Role::Vector), Cell::Json(value)) => {
                // A table of text has it as text.
                let value = match &value {
                    Value::String(text) => serde_json::from_str(text).ok(),
                    _ => Some(value),
                };
                let values = value.and_then(|value| serde_json::from_value::<Vec<f32>>(value).ok());
                let values = values
                    .with_context(|| format!("column `{name}`: expected an array of numbers"))?;
                set(Body::Payload(Payload::Vector(values.into())), &name)?;
            }
            (Some(role), cell) => {
                let found = match cell {
                    Cell::Json(value) => format!("{value:.60}"),
                    Cell::Bytes(bytes) => format!("{} bytes", bytes.len()),
                    Cell::Floats(values) => format!("{} numbers", values.len()),
                };
                bail!("column `{name}`: expected text for the {role:?} of a record, got {found}");
            }
            (None, Cell::Json(value)) => {
                record.meta.insert(name, value);
            }
            (None, Cell::Floats(values)) => {
                record.meta.insert(name, values.into());
            }
            // Nobody can search for bytes, and `meta` is stored as JSON.
            (None, Cell::Bytes(_)) => {}
        }
    }
    record.key = key.unwrap_or_else(|| number.to_string());
    record.body = body.unwrap_or_default();
    Ok(record)
}

/// A picture that came as bytes, within the decoder's limit.
pub fn picture(bytes: Vec<u8>) -> Body {
    let max_bytes = Limits::default().max_bytes;
    if bytes.len() > max_bytes {
        let len = bytes.len();
        return Body::Unreadable(format!("expected at most {max_bytes} bytes, got {len}"));
    }
    Body::Payload(Payload::Image(bytes.into()))
}

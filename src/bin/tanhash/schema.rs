//! The schema file: which fields of its own an index has beside the program's, and which columns of the input
//! they take.
//!
//! The program's fields `key`, `label`, `text` and `meta` are always there. A column that a field takes does
//! not go to `meta` as well.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tantivy::schema::{
    DateOptions, FacetOptions, Field, IndexRecordOption, NumericOptions, Schema, SchemaBuilder,
    TextFieldIndexing, TextOptions,
};
use tantivy::time::OffsetDateTime;
use tantivy::time::format_description::well_known::Rfc3339;
use tantivy::{DateTime, TantivyDocument};

use crate::files;
use crate::records::{Columns, Record};

/// `--schema F`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchemaFile {
    /// Columns of the program's own fields, where they have other names than the usual ones.
    #[serde(default)]
    pub columns: Columns,
    /// Further fields.
    #[serde(default)]
    pub fields: Vec<FieldSpec>,
}

/// A field of the user's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldSpec {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The column; the field's name unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default = "yes")]
    pub stored: bool,
    #[serde(default = "yes")]
    pub indexed: bool,
    #[serde(default)]
    pub fast: bool,
    /// For `text`: `default`, `en_stem`, `whitespace` or `raw`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
}

fn yes() -> bool {
    true
}

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Words.
    Text,
    /// One term.
    String,
    /// A path such as `/shoes/boots`.
    Facet,
    U64,
    I64,
    F64,
    /// RFC 3339, a day, or seconds since 1970.
    Date,
    Bool,
}

impl Kind {
    /// What a value of it looks like.
    pub fn expected(self) -> &'static str {
        match self {
            Kind::Text | Kind::String => "text",
            Kind::Facet => "a path that starts with /",
            Kind::U64 => "a whole number of at least 0",
            Kind::I64 => "a whole number",
            Kind::F64 => "a number",
            Kind::Date => "a date as RFC 3339, YYYY-MM-DD, or seconds since 1970",
            Kind::Bool => "true or false",
        }
    }
}

/// A value that fits its field.
enum Fitting {
    Text(String),
    Facet(tantivy::schema::Facet),
    U64(u64),
    I64(i64),
    F64(f64),
    Date(DateTime),
    Bool(bool),
}

/// Fields that the program makes itself.
const TAKEN: [&str; 4] = ["key", "label", "text", "meta"];
const TOKENIZERS: [&str; 4] = ["default", "en_stem", "whitespace", "raw"];

impl SchemaFile {
    /// Reads `schema.json` or `schema.toml`.
    pub fn open(path: &Path) -> Result<SchemaFile> {
        let about = || path.display().to_string();
        let text = files::read_text(path)?;
        let is_toml = path
            .extension()
            .is_some_and(|extension| extension == "toml");
        let schema: SchemaFile = match is_toml {
            true => toml::from_str(&text).map_err(anyhow::Error::from),
            false => serde_json::from_str(&text).map_err(anyhow::Error::from),
        }
        .with_context(about)?;
        schema.check_names().with_context(about)?;
        Ok(schema)
    }

    fn check_names(&self) -> Result<()> {
        for (idx, field) in self.fields.iter().enumerate() {
            let name = &field.name;
            ensure!(
                !name.is_empty() && !name.starts_with('-') && !name.contains(['.', ' ', ':']),
                "field {name:?}: expected a name without dots, blanks and colons"
            );
            ensure!(
                !TAKEN.contains(&name.as_str()),
                "field `{name}`: expected a name other than {}; their columns are named under `columns`",
                TAKEN.join(", ")
            );
            ensure!(
                self.fields[..idx].iter().all(|other| other.name != *name),
                "field `{name}`: expected it once, found it twice"
            );
            if let Some(tokenizer) = &field.tokenizer {
                ensure!(
                    field.kind == Kind::Text && TOKENIZERS.contains(&tokenizer.as_str()),
                    "field `{name}`: expected one of the tokenizers {} for a field of type text, got `{tokenizer}`",
                    TOKENIZERS.join(", ")
                );
            }
        }
        Ok(())
    }

    /// Adds the fields to a schema.
    pub fn add_to(&self, builder: &mut SchemaBuilder) {
        for field in &self.fields {
            let name = &field.name;
            match field.kind {
                Kind::Text | Kind::String => {
                    builder.add_text_field(name, field.text_options());
                }
                Kind::Facet => {
                    let mut options = FacetOptions::default();
                    if field.stored {
                        options = options.set_stored();
                    }
                    builder.add_facet_field(name, options);
                }
                Kind::U64 => {
                    builder.add_u64_field(name, field.numeric_options());
                }
                Kind::I64 => {
                    builder.add_i64_field(name, field.numeric_options());
                }
                Kind::F64 => {
                    builder.add_f64_field(name, field.numeric_options());
                }
                Kind::Bool => {
                    builder.add_bool_field(name, field.numeric_options());
                }
                Kind::Date => {
                    let mut options = DateOptions::default()
                        .set_precision(tantivy::schema::DateTimePrecision::Microseconds);
                    if field.stored {
                        options = options.set_stored();
                    }
                    if field.indexed {
                        options = options.set_indexed();
                    }
                    if field.fast {
                        options = options.set_fast();
                    }
                    builder.add_date_field(name, options);
                }
            }
        }
    }

    /// Whether every column of a record fits its field.
    pub fn check(&self, record: &Record) -> Result<()> {
        for field in &self.fields {
            field.values(record)?;
        }
        Ok(())
    }

    /// Moves columns of a record to the fields they belong to.
    pub fn fill(
        &self,
        schema: &Schema,
        record: &mut Record,
        document: &mut TantivyDocument,
    ) -> Result<()> {
        for spec in &self.fields {
            let field: Field = schema.get_field(&spec.name)?;
            for value in spec.values(record)? {
                match value {
                    Fitting::Text(text) => document.add_text(field, text),
                    Fitting::Facet(facet) => document.add_facet(field, facet),
                    Fitting::U64(value) => document.add_u64(field, value),
                    Fitting::I64(value) => document.add_i64(field, value),
                    Fitting::F64(value) => document.add_f64(field, value),
                    Fitting::Date(value) => document.add_date(field, value),
                    Fitting::Bool(value) => document.add_bool(field, value),
                }
            }
        }
        for spec in &self.fields {
            record.meta.remove(spec.column());
        }
        Ok(())
    }

    /// The fields of words, which a query without a field looks into.
    pub fn texts(&self, schema: &Schema) -> Vec<Field> {
        let texts = self.fields.iter();
        let texts = texts.filter(|field| field.kind == Kind::Text && field.indexed);
        texts
            .filter_map(|field| schema.get_field(&field.name).ok())
            .collect()
    }
}

impl FieldSpec {
    /// The column it takes.
    pub fn column(&self) -> &str {
        self.from.as_deref().unwrap_or(&self.name)
    }

    fn text_options(&self) -> TextOptions {
        let mut options = TextOptions::default();
        if self.stored {
            options = options.set_stored();
        }
        if self.fast {
            options = options.set_fast("raw");
        }
        if self.indexed {
            let tokenizer = match self.kind {
                Kind::String => "raw",
                _ => self.tokenizer.as_deref().unwrap_or("en_stem"),
            };
            let (index, norms) = match self.kind {
                Kind::String => (IndexRecordOption::Basic, false),
                _ => (IndexRecordOption::WithFreqsAndPositions, true),
            };
            options = options.set_indexing_options(
                TextFieldIndexing::default()
                    .set_tokenizer(tokenizer)
                    .set_index_option(index)
                    .set_fieldnorms(norms),
            );
        }
        options
    }

    fn numeric_options(&self) -> NumericOptions {
        let mut options = NumericOptions::default();
        if self.stored {
            options = options.set_stored();
        }
        if self.indexed {
            options = options.set_indexed();
        }
        if self.fast {
            options = options.set_fast();
        }
        options
    }

    /// The values of its column; an array has several.
    fn values(&self, record: &Record) -> Result<Vec<Fitting>> {
        let plain;
        let value = match (self.column(), record.meta.get(self.column())) {
            (_, Some(value)) => value,
            ("label", None) if !record.label.is_empty() => {
                plain = Value::from(record.label.as_str());
                &plain
            }
            ("text" | "caption", None) if !record.text.is_empty() => {
                plain = Value::from(record.text.as_str());
                &plain
            }
            ("key", None) => {
                plain = Value::from(record.key.as_str());
                &plain
            }
            _ => return Ok(Vec::new()),
        };
        let values = match value {
            Value::Array(values) => values.as_slice(),
            Value::Null => &[],
            one => std::slice::from_ref(one),
        };
        values.iter().map(|value| self.value(value)).collect()
    }

    fn value(&self, value: &Value) -> Result<Fitting> {
        let text = value.as_str().map(str::trim);
        // A table of text has numbers as text.
        let parsed = match text {
            Some(text) => serde_json::from_str::<Value>(text).unwrap_or(Value::Null),
            None => value.clone(),
        };
        let fitting = match self.kind {
            Kind::Text | Kind::String => match value {
                Value::String(text) => Some(Fitting::Text(text.clone())),
                Value::Number(_) | Value::Bool(_) => Some(Fitting::Text(value.to_string())),
                _ => None,
            },
            Kind::Facet => text
                .and_then(|text| tantivy::schema::Facet::from_text(text).ok())
                .map(Fitting::Facet),
            Kind::U64 => parsed.as_u64().map(Fitting::U64),
            Kind::I64 => parsed.as_i64().map(Fitting::I64),
            Kind::F64 => parsed.as_f64().map(Fitting::F64),
            Kind::Bool => parsed.as_bool().map(Fitting::Bool),
            Kind::Date => date(&parsed, text).map(Fitting::Date),
        };
        let Some(fitting) = fitting else {
            let mut found = value.to_string();
            if found.chars().count() > 60 {
                found = found.chars().take(60).chain("..".chars()).collect();
            }
            bail!(
                "field `{}`: expected {}, got {found}",
                self.name,
                self.kind.expected()
            );
        };
        Ok(fitting)
    }
}

fn date(parsed: &Value, text: Option<&str>) -> Option<DateTime> {
    if let Some(seconds) = parsed.as_i64() {
        return OffsetDateTime::from_unix_timestamp(seconds)
            .ok()
            .map(DateTime::from_utc);
    }
    let text = text?;
    let day = || format!("{text}T00:00:00Z");
    OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(&day(), &Rfc3339))
        .ok()
        .map(DateTime::from_utc)
}

/// A date as RFC 3339.
pub fn date_text(date: DateTime) -> String {
    date.into_utc().format(&Rfc3339).unwrap_or_default()
}

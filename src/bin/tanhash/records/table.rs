//! Parquet tables. Columns are checked against what they are wanted for before the first row is read.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use parquet::basic::{ConvertedType, Type as Physical};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::Value;
use tantivy::DateTime;

use super::columns::{self, Cell, Role};
use super::lines::entry;
use super::{Entry, Skip};
use crate::schema::{Kind, SchemaFile, date_text};

type Entries = Box<dyn Iterator<Item = Result<Entry>>>;

/// Rows of a file, if it can be read.
pub fn n_rows(path: &Path) -> Option<u64> {
    let reader = SerializedFileReader::new(File::open(path).ok()?).ok()?;
    u64::try_from(reader.metadata().file_metadata().num_rows()).ok()
}

/// The rows of a file. One that is no table, or whose columns are of the wrong type, is one damage.
pub fn parquet(path: &Path, schema: Arc<SchemaFile>, skip: Skip) -> Result<Entries> {
    let name = path.display().to_string();
    let open = || -> Result<SerializedFileReader<File>> {
        let reader = SerializedFileReader::new(File::open(path)?)?;
        let root = reader.metadata().file_metadata().schema();
        for column in root.get_fields() {
            check(column, &schema)?;
        }
        Ok(reader)
    };
    let reader = match open() {
        Ok(reader) => reader,
        Err(_) if skip.next() => return Ok(Box::new(std::iter::once(Ok(Entry::Skipped)))),
        Err(error) => {
            let damage = Entry::damage(name, format!("{error:#}"));
            return Ok(Box::new(std::iter::once(Ok(damage))));
        }
    };
    // Whole row groups are passed over by their counts.
    let n_groups = reader.num_row_groups();
    let mut row_number = 0;
    let mut first_group = 0;
    while first_group < n_groups {
        let rows = reader.metadata().row_group(first_group).num_rows().max(0) as u64;
        if rows > skip.left() {
            break;
        }
        skip.take(rows);
        row_number += rows;
        first_group += 1;
    }
    let base = path.parent().unwrap_or(Path::new("")).to_path_buf();
    let reader = Arc::new(reader);
    let entries = (first_group..n_groups).flat_map(move |group| -> Entries {
        let rows = match rows_of(&reader, group) {
            Ok(rows) => rows,
            Err(error) => {
                let damage =
                    Entry::damage(format!("{name}, row group {group}"), format!("{error:#}"));
                return Box::new(std::iter::once(Ok(damage)));
            }
        };
        let (schema, skip, base, name) = (schema.clone(), skip.clone(), base.clone(), name.clone());
        let first = row_number;
        row_number += reader.metadata().row_group(group).num_rows().max(0) as u64;
        Box::new((first + 1..).zip(rows).map(move |(number, row)| {
            if skip.next() {
                return Ok(Entry::Skipped);
            }
            let record = row.and_then(|row| {
                let cells = row.into_columns().into_iter();
                let cells = cells.map(|(name, field)| {
                    let role = schema.columns.role(&name);
                    let cell = cell(field, role);
                    (name, cell)
                });
                let record = columns::record(cells, &schema.columns, &base, number)?;
                schema.check(&record)?;
                Ok(record)
            });
            Ok(entry(record, || format!("{name}, row {number}")))
        }))
    });
    Ok(Box::new(entries))
}

/// Rows of a group that are decoded at a time.
const ROWS_AHEAD: usize = 64;

/// The rows of one group. The reader of rows borrows the reader of the file, so they are sent from a thread
/// that holds both. The decoder may panic on a damaged page, which ends the group with an error.
fn rows_of(
    reader: &Arc<SerializedFileReader<File>>,
    group: usize,
) -> Result<impl Iterator<Item = Result<Row>> + use<>> {
    let (send, receive) = std::sync::mpsc::sync_channel(ROWS_AHEAD);
    let reader = reader.clone();
    std::thread::Builder::new()
        .name("tanhash-table".to_owned())
        .spawn(move || {
            let work = || -> Result<()> {
                let group = reader.get_row_group(group)?;
                for row in group.get_row_iter(None)? {
                    // A receiver that is gone wants no more.
                    let failed = row.is_err();
                    if send.send(row.map_err(anyhow::Error::from)).is_err() || failed {
                        return Ok(());
                    }
                }
                Ok(())
            };
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            let outcome =
                outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("the decoder gave up on it")));
            if let Err(error) = outcome {
                let _ = send.send(Err(error));
            }
        })?;
    Ok(receive.into_iter())
}

/// Compares a column with the part it plays and the field it goes to.
fn check(column: &Type, schema: &SchemaFile) -> Result<()> {
    let name = column.name();
    let found = describe(column);
    let expect = |fits: bool, expected: &str| -> Result<()> {
        ensure!(fits, "column `{name}`: expected {expected}, found {found}");
        Ok(())
    };
    let physical = column.is_primitive().then(|| column.get_physical_type());
    let is_bytes = matches!(
        physical,
        Some(Physical::BYTE_ARRAY | Physical::FIXED_LEN_BYTE_ARRAY)
    );
    let is_integer = matches!(physical, Some(Physical::INT32 | Physical::INT64));
    let is_float = matches!(physical, Some(Physical::FLOAT | Physical::DOUBLE));
    match schema.columns.role(name) {
        Some(Role::Key) => expect(is_bytes || is_integer, "text or whole numbers")?,
        Some(Role::Label) => expect(physical.is_some(), "text or numbers")?,
        Some(Role::Text) => expect(is_bytes, "text")?,
        Some(Role::Image | Role::Bytes) => expect(
            is_bytes || has_bytes(column),
            "paths, bytes, or a group with `bytes`",
        )?,
        Some(Role::Code) => expect(is_bytes, "codes as hexadecimal text or bytes")?,
        Some(Role::Vector) => expect(
            leaf(column).is_some_and(|leaf| matches!(leaf, Physical::FLOAT | Physical::DOUBLE))
                && !column.is_primitive(),
            "lists of floats",
        )?,
        None => {}
    }
    for field in schema.fields.iter().filter(|field| field.column() == name) {
        let item = leaf(column);
        let expected = format!("{} for the field `{}`", field.kind.expected(), field.name);
        let fits = match field.kind {
            Kind::Text | Kind::String | Kind::Facet => matches!(item, Some(Physical::BYTE_ARRAY)),
            Kind::U64 | Kind::I64 => is_integer,
            Kind::F64 => is_float || is_integer,
            Kind::Bool => physical == Some(Physical::BOOLEAN),
            Kind::Date => is_integer || is_bytes || physical == Some(Physical::INT96),
        };
        expect(fits, &expected)?;
    }
    Ok(())
}

fn describe(column: &Type) -> String {
    if !column.is_primitive() {
        return match leaf(column) {
            Some(leaf) => format!("a group of {leaf}"),
            None => "a group".to_owned(),
        };
    }
    let logical = match column.get_basic_info().logical_type_ref() {
        Some(logical) => format!(" ({logical:?})"),
        None if column.get_basic_info().converted_type() != ConvertedType::NONE => {
            format!(" ({})", column.get_basic_info().converted_type())
        }
        None => String::new(),
    };
    format!("{}{logical}", column.get_physical_type())
}

/// The type of the only primitive column below.
fn leaf(column: &Type) -> Option<Physical> {
    if column.is_primitive() {
        return Some(column.get_physical_type());
    }
    match column.get_fields() {
        [one] => leaf(one),
        _ => None,
    }
}

fn has_bytes(column: &Type) -> bool {
    column.is_group()
        && (column.get_fields().iter()).any(|field| {
            field.name() == "bytes"
                && field.is_primitive()
                && field.get_physical_type() == Physical::BYTE_ARRAY
        })
}

fn cell(field: Field, role: Option<Role>) -> Cell {
    match (field, role) {
        (Field::Bytes(bytes), _) => Cell::Bytes(bytes.data().to_vec()),
        (Field::Group(row), Some(Role::Image | Role::Bytes)) => {
            let bytes = row.into_columns().into_iter().find_map(|(name, field)| {
                match (name.as_str(), field) {
                    ("bytes", Field::Bytes(bytes)) => Some(Cell::Bytes(bytes.data().to_vec())),
                    _ => None,
                }
            });
            bytes.unwrap_or(Cell::Json(Value::Null))
        }
        (Field::ListInternal(list), Some(Role::Vector)) => {
            let numbers = list.elements().iter().map(|field| match field {
                Field::Float(value) => *value,
                Field::Double(value) => *value as f32,
                // Refused by the encoder, which names the number.
                _ => f32::NAN,
            });
            Cell::Floats(numbers.collect())
        }
        (field, _) => Cell::Json(json(field)),
    }
}

fn json(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float16(value) => value.to_f32().into(),
        Field::Float(value) => value.into(),
        Field::Double(value) => value.into(),
        Field::Str(text) => text.into(),
        Field::Date(days) => date(i64::from(days).saturating_mul(86_400_000_000)),
        Field::TimestampMillis(millis) => date(millis.saturating_mul(1_000)),
        Field::TimestampMicros(micros) => date(micros),
        Field::ListInternal(list) => list.elements().iter().cloned().map(json).collect(),
        Field::Group(row) => {
            let columns = row.into_columns().into_iter();
            Value::Object(columns.map(|(name, field)| (name, json(field))).collect())
        }
        other => other.to_string().into(),
    }
}

fn date(micros: i64) -> Value {
    date_text(DateTime::from_timestamp_micros(micros)).into()
}

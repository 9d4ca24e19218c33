//! Rows of packed codes or of floats, alone or each beside a record of a manifest.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tanhash::npy::NpyFile;
use tanhash::{CodeLen, HashCode, Payload, PayloadKind};

use super::{Body, Entry, Record, Records, fingerprint};

/// A file of rows of one length, read one at a time.
pub struct Matrix {
    name: String,
    source: String,
    rows: Rows,
    n_rows: u64,
    /// The row to read next.
    next: u64,
}

enum Rows {
    /// Packed codes of so many bytes.
    Codes(BufReader<File>, usize),
    /// Floats.
    Vectors(NpyFile, usize),
}

impl Matrix {
    /// Packed codes: rows of `bits / 8` bytes and nothing else.
    pub fn codes(path: &Path, len: CodeLen) -> Result<Matrix> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let bytes = file
            .metadata()
            .with_context(|| path.display().to_string())?
            .len();
        let row_bytes = len.bits() / 8;
        ensure!(
            bytes % row_bytes as u64 == 0,
            "{}: expected rows of {row_bytes} bytes, {bytes} bytes are no whole number of rows",
            path.display()
        );
        Ok(Matrix {
            name: path.display().to_string(),
            source: fingerprint(path)?,
            rows: Rows::Codes(BufReader::with_capacity(1 << 17, file), row_bytes),
            n_rows: bytes / row_bytes as u64,
            next: 0,
        })
    }

    /// A NumPy file of two dimensions, floats of any width, in C order.
    pub fn npy(path: &Path) -> Result<Matrix> {
        let file = NpyFile::open(path)?;
        let (n_rows, dim) = file.vectors()?;
        ensure!(
            dim <= 1 << 20,
            "{}: expected vectors of at most {} numbers, found {dim}",
            path.display(),
            1 << 20
        );
        Ok(Matrix {
            source: fingerprint(path)?,
            name: path.display().to_string(),
            rows: Rows::Vectors(file, dim),
            n_rows: n_rows as u64,
            next: 0,
        })
    }

    /// Numbers of a row, for floats.
    pub fn dim(&self) -> usize {
        match self.rows {
            Rows::Codes(..) => 0,
            Rows::Vectors(_, dim) => dim,
        }
    }

    fn skip(&mut self, rows: u64) -> Result<()> {
        self.next = rows.min(self.n_rows);
        if let Rows::Codes(reader, row_bytes) = &mut self.rows {
            reader
                .seek(SeekFrom::Start(self.next * *row_bytes as u64))
                .with_context(|| self.name.clone())?;
        }
        Ok(())
    }

    fn next_row(&mut self) -> Result<Body> {
        let row = self.next;
        self.next += 1;
        Ok(match &mut self.rows {
            Rows::Codes(reader, row_bytes) => {
                let mut row = vec![0; *row_bytes];
                reader
                    .read_exact(&mut row)
                    .with_context(|| self.name.clone())?;
                Body::Code(HashCode::from_bytes(&row)?)
            }
            Rows::Vectors(file, dim) => {
                let mut values = vec![0.0; *dim];
                file.copy_row(row as usize, &mut values)?;
                Body::Payload(Payload::Vector(values.into()))
            }
        })
    }
}

/// Row `i` of the matrix, alone with `i` as its key, or as the body of entry `i` of the other input.
pub fn zip(mut matrix: Matrix, others: Option<Records>, skip: u64) -> Result<Records> {
    matrix.skip(skip)?;
    let kind = match matrix.rows {
        Rows::Codes(..) => None,
        Rows::Vectors(_, dim) => Some(PayloadKind::Vector { dim }),
    };
    let n_rows = matrix.n_rows;
    let Some(others) = others else {
        let source = matrix.source.clone();
        let rows = (skip..n_rows).map(move |row| {
            Ok(Entry::record(Record {
                key: row.to_string(),
                body: matrix.next_row()?,
                ..Record::default()
            }))
        });
        return Ok(Records {
            expected: Some(n_rows),
            source,
            kind,
            iter: Box::new(rows),
        });
    };
    let source = format!("{} beside {}", matrix.source, others.source);
    let name = matrix.name.clone();
    let mut iter = others.iter;
    let mut row = skip.min(n_rows);
    let entries = std::iter::from_fn(move || {
        let entry = iter.next();
        let has_row = row < n_rows;
        row += 1;
        Some(match (entry, has_row) {
            (None, false) => return None,
            (None, true) => Err(anyhow::anyhow!(
                "{name}: expected one row a record, found {n_rows} rows for {} records",
                row - 1
            )),
            (Some(_), false) => Err(anyhow::anyhow!(
                "{name}: expected one row a record, found {n_rows} rows for more records"
            )),
            (Some(Err(error)), true) => Err(error),
            (Some(Ok(entry)), true) => matrix.next_row().and_then(|body| match entry {
                Entry::Record(mut record) => {
                    ensure!(
                        matches!(record.body, Body::None),
                        "{}: expected text alone beside a matrix, found a picture, code or vector of its own",
                        record.key
                    );
                    record.body = body;
                    Ok(Entry::Record(record))
                }
                other => Ok(other),
            }),
        })
    });
    Ok(Records {
        expected: Some(n_rows),
        source,
        kind,
        iter: Box::new(entries),
    })
}

//! Rows of packed codes or of floats, alone or each beside a record of a manifest.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tanhash::{CodeLen, HashCode, Payload};

use super::{Body, Entry, Record, Records, fingerprint};

/// A file of rows of one length, read one at a time.
pub struct Matrix {
    name: String,
    source: String,
    reader: BufReader<File>,
    n_rows: u64,
    row_bytes: usize,
    /// Where the first row starts.
    start: u64,
    kind: Kind,
}

enum Kind {
    Codes,
    F32,
    F16,
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
            reader: BufReader::with_capacity(1 << 17, file),
            n_rows: bytes / row_bytes as u64,
            row_bytes,
            start: 0,
            kind: Kind::Codes,
        })
    }

    /// A NumPy file of two dimensions, `float32` or `float16`, little endian, in C order.
    pub fn npy(path: &Path) -> Result<Matrix> {
        let name = path.display().to_string();
        let mut reader =
            BufReader::with_capacity(1 << 17, File::open(path).with_context(|| name.clone())?);
        let header = npy_header(&mut reader).with_context(|| name.clone())?;
        let value = |key: &str| {
            let (_, rest) = header.split_once(&format!("'{key}':"))?;
            Some(rest.trim_start())
        };
        let descr = value("descr").and_then(|rest| rest.split('\'').nth(1));
        let (kind, number_bytes) = match descr {
            Some("<f4") => (Kind::F32, 4),
            Some("<f2") => (Kind::F16, 2),
            found => bail!(
                "{name}: expected numbers of type '<f4' or '<f2', found {:?}; save it with astype('<f4')",
                found.unwrap_or_default()
            ),
        };
        ensure!(
            value("fortran_order").is_some_and(|rest| rest.starts_with("False")),
            "{name}: expected C order; save it with numpy.ascontiguousarray"
        );
        let shape = value("shape").and_then(|rest| rest.strip_prefix('(')?.split_once(')'));
        let shape: Vec<u64> = shape
            .map(|(shape, _)| shape.split(','))
            .into_iter()
            .flatten()
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .map(|text| text.parse().context("expected a shape of whole numbers"))
            .collect::<Result<_>>()
            .with_context(|| name.clone())?;
        let [n_rows, dim] = shape[..] else {
            bail!("{name}: expected two dimensions, rows and numbers, found {shape:?}");
        };
        let start = reader.stream_position().with_context(|| name.clone())?;
        let found = reader
            .get_ref()
            .metadata()
            .with_context(|| name.clone())?
            .len();
        let expected = n_rows
            .checked_mul(dim)
            .and_then(|numbers| numbers.checked_mul(number_bytes))
            .and_then(|bytes| bytes.checked_add(start));
        ensure!(
            expected == Some(found) && dim > 0 && dim <= 1 << 20,
            "{name}: expected {n_rows} rows of {dim} numbers behind a header of {start} bytes, found {found} bytes"
        );
        Ok(Matrix {
            source: fingerprint(path)?,
            name,
            reader,
            n_rows,
            row_bytes: (dim * number_bytes) as usize,
            start,
            kind,
        })
    }

    /// Numbers of a row, for floats.
    pub fn dim(&self) -> usize {
        match self.kind {
            Kind::Codes => 0,
            Kind::F32 => self.row_bytes / 4,
            Kind::F16 => self.row_bytes / 2,
        }
    }

    fn skip(&mut self, rows: u64) -> Result<()> {
        let at = self.start + rows.min(self.n_rows) * self.row_bytes as u64;
        self.reader
            .seek(SeekFrom::Start(at))
            .with_context(|| self.name.clone())?;
        Ok(())
    }

    fn next_row(&mut self) -> Result<Body> {
        let mut row = vec![0; self.row_bytes];
        self.reader
            .read_exact(&mut row)
            .with_context(|| self.name.clone())?;
        let payload = |values: Vec<f32>| Body::Payload(Payload::Vector(values.into()));
        Ok(match self.kind {
            Kind::Codes => Body::Code(HashCode::from_bytes(&row)?),
            Kind::F32 => {
                let (numbers, _) = row.as_chunks::<4>();
                payload(
                    numbers
                        .iter()
                        .map(|bytes| f32::from_le_bytes(*bytes))
                        .collect(),
                )
            }
            Kind::F16 => {
                let (numbers, _) = row.as_chunks::<2>();
                payload(
                    numbers
                        .iter()
                        .map(|bytes| half(u16::from_le_bytes(*bytes)))
                        .collect(),
                )
            }
        })
    }
}

fn npy_header(reader: &mut impl Read) -> Result<String> {
    let mut magic = [0; 8];
    reader.read_exact(&mut magic)?;
    ensure!(
        &magic[..6] == b"\x93NUMPY",
        "expected a .npy file, found another"
    );
    let len = match magic[6] {
        1 => {
            let mut len = [0; 2];
            reader.read_exact(&mut len)?;
            usize::from(u16::from_le_bytes(len))
        }
        2 | 3 => {
            let mut len = [0; 4];
            reader.read_exact(&mut len)?;
            u32::from_le_bytes(len) as usize
        }
        version => bail!("expected .npy format 1 to 3, found {version}"),
    };
    ensure!(
        len <= 1 << 16,
        "expected a header of at most 65536 bytes, found {len}"
    );
    let mut header = vec![0; len];
    reader.read_exact(&mut header)?;
    String::from_utf8(header).context("expected a header of text")
}

/// An IEEE 754 half as a float, which holds every one of them exactly.
fn half(bits: u16) -> f32 {
    let (exponent, fraction) = (u32::from(bits >> 10 & 31), u32::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => fraction as f32 * 2f32.powi(-24),
        31 => f32::from_bits(0x7f80_0000 | fraction << 13),
        _ => f32::from_bits((exponent + 112) << 23 | fraction << 13),
    };
    if bits >> 15 == 1 {
        -magnitude
    } else {
        magnitude
    }
}

/// Row `i` of the matrix, alone with `i` as its key, or as the body of entry `i` of the other input.
pub fn zip(mut matrix: Matrix, others: Option<Records>, skip: u64) -> Result<Records> {
    matrix.skip(skip)?;
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
        iter: Box::new(entries),
    })
}

#[cfg(test)]
mod tests {
    use super::half;

    #[test]
    fn halves_are_exact() {
        let cases = [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 2f32.powi(-24)),
            (0x03ff, 1023.0 * 2f32.powi(-24)),
            (0x0400, 2f32.powi(-14)),
            (0x3555, 0.333_251_95),
            (0x7c00, f32::INFINITY),
        ];
        for (bits, value) in cases {
            assert_eq!(half(bits), value, "{bits:#06x}");
        }
        assert!(half(0x7e00).is_nan());
    }
}

//! Two-dimensional NumPy `.npy` files, small ones: similarities, distances and centers, in and out.
//!
//! Reads version 1 to 3 with little-endian float32, float64, int8, int32 or int64 in either order; writes
//! version 1, float64 or int8, row-major. Leaves out everything else NumPy can store, and files that are
//! too large to be read at once.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 8 << 30;

const MAGIC: &[u8] = b"\x93NUMPY";

/// A matrix: rows, columns, and its entries, row-major.
pub type Matrix<T> = (usize, usize, Vec<T>);

/// Reads the matrix in `path`.
///
/// # Errors
/// `Io` if the file cannot be read; `Corrupt` if it is not a whole `.npy` file; `Unsupported` for a type
/// or a number of dimensions that is not read.
pub fn read(path: &Path) -> Result<Matrix<f64>> {
    let metadata = fs::metadata(path).map_err(|error| Error::io(path, error))?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(Error::invalid(format!(
            "{}: expected a matrix of at most {FILE_BYTES_MAX} bytes, found {}",
            path.display(),
            metadata.len()
        )));
    }
    let bytes = fs::read(path).map_err(|error| Error::io(path, error))?;
    parse(&bytes).map_err(|reason| Error::corrupt(format!("matrix {}", path.display()), reason))
}

fn parse(bytes: &[u8]) -> Result<Matrix<f64>, String> {
    let cut = || format!("expected a whole .npy file, found {} bytes", bytes.len());
    if !bytes.starts_with(MAGIC) {
        return Err("expected a NumPy .npy file, found another format".into());
    }
    let version = *bytes.get(6).ok_or_else(cut)?;
    let (length, start) = match version {
        1 => {
            let length = bytes.get(8..10).ok_or_else(cut)?;
            (usize::from(u16::from_le_bytes([length[0], length[1]])), 10)
        }
        2 | 3 => {
            let length = bytes.get(8..12).ok_or_else(cut)?;
            let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
            (length as usize, 12)
        }
        _ => return Err(format!("expected .npy version 1 to 3, found {version}")),
    };
    let end = start + length;
    let header = bytes.get(start..end).ok_or_else(cut)?;
    let header = std::str::from_utf8(header).map_err(|error| error.to_string())?;
    let kind = field(header, "descr")?.trim_matches(['\'', '"']);
    let by_columns = field(header, "fortran_order")?.starts_with("True");
    let shape = field(header, "shape")?
        .trim_matches(['(', ')'])
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty())
        .map(|size| {
            size.parse::<usize>()
                .map_err(|error| format!("shape: {error}"))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let [rows, columns] = shape[..] else {
        return Err(format!("expected a matrix, found the shape {shape:?}"));
    };
    let n_entries = rows.checked_mul(columns).ok_or_else(cut)?;
    let data = &bytes[end..];
    let entries: Vec<f64> = match kind {
        "<f8" => numbers(data, n_entries, f64::from_le_bytes)?,
        "<f4" => numbers(data, n_entries, |b| f64::from(f32::from_le_bytes(b)))?,
        "<i8" => numbers(data, n_entries, |b| i64::from_le_bytes(b) as f64)?,
        "<i4" => numbers(data, n_entries, |b| f64::from(i32::from_le_bytes(b)))?,
        "|i1" => numbers(data, n_entries, |b| f64::from(i8::from_le_bytes(b)))?,
        _ => {
            return Err(format!(
                "expected float32, float64, int8, int32 or int64, found {kind}; save it with astype('float64')"
            ));
        }
    };
    let entries = match by_columns {
        true => (0..n_entries)
            .map(|at| entries[at % columns * rows + at / columns])
            .collect(),
        false => entries,
    };
    Ok((rows, columns, entries))
}

/// The value of `name` in the header's dictionary, up to the comma that ends it.
fn field<'a>(header: &'a str, name: &str) -> Result<&'a str, String> {
    let missing = || format!("expected {name} in the header, found {header:?}");
    let after = header
        .split_once(&format!("'{name}':"))
        .ok_or_else(missing)?
        .1;
    let after = after.trim_start();
    let end = match after.starts_with('(') {
        true => after.find(')').ok_or_else(missing)? + 1,
        false => after.find([',', '}']).ok_or_else(missing)?,
    };
    Ok(&after[..end])
}

fn numbers<const N: usize>(
    data: &[u8],
    n_entries: usize,
    number: impl Fn([u8; N]) -> f64,
) -> Result<Vec<f64>, String> {
    if n_entries.checked_mul(N) != Some(data.len()) {
        return Err(format!(
            "expected {n_entries} numbers of {N} bytes, found {} bytes",
            data.len()
        ));
    }
    let (chunks, _) = data.as_chunks::<N>();
    Ok(chunks.iter().map(|chunk| number(*chunk)).collect())
}

fn file(kind: &str, rows: usize, columns: usize, data: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut header =
        format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    // Numbers begin at a multiple of 64, as NumPy has it; a newline ends the header.
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// The bytes of a `.npy` file with a float64 matrix of `columns` columns.
///
/// # Panics
/// If `entries` do not fill whole rows.
pub fn float_bytes(columns: usize, entries: &[f64]) -> Vec<u8> {
    assert!(entries.len().is_multiple_of(columns), "whole rows");
    let data = entries.iter().flat_map(|entry| entry.to_le_bytes());
    file("<f8", entries.len() / columns, columns, data)
}

/// The bytes of a `.npy` file with hash centers, C x K of -1 and 1, int8.
pub fn codebook_bytes(codebook: &super::Codebook) -> Vec<u8> {
    let data = codebook.entries().iter().map(|&entry| (entry as i8) as u8);
    file("|i1", codebook.n_classes(), codebook.bits(), data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::centers::Codebook;

    #[test]
    fn matrices_come_back() {
        let entries = [0.5, -1.0, 1e-300, 4.0, 5.0, 6.0];
        let bytes = float_bytes(3, &entries);
        assert!((bytes.len() - 48).is_multiple_of(64));
        assert_eq!(parse(&bytes).unwrap(), (2, 3, entries.to_vec()));
        let codebook = Codebook::from_entries(2, vec![1.0, -1.0, -1.0, -1.0]).unwrap();
        let (rows, columns, entries) = parse(&codebook_bytes(&codebook)).unwrap();
        assert_eq!((rows, columns), (2, 2));
        assert_eq!(entries, [1.0, -1.0, -1.0, -1.0]);
    }

    #[test]
    fn other_orders_and_types_are_read_or_named() {
        let by_columns = String::from_utf8_lossy(&float_bytes(2, &[])[..10]).into_owned();
        assert!(by_columns.contains("NUMPY"));
        let turned = |kind: &str, data: &[u8]| {
            let mut bytes = file(kind, 2, 2, data.iter().copied());
            let at = bytes.windows(5).position(|w| w == b"False").unwrap();
            bytes.splice(at..at + 5, *b"True ");
            bytes
        };
        assert_eq!(
            parse(&turned("|i1", &[1, 2, 3, 4])).unwrap().2,
            [1.0, 3.0, 2.0, 4.0]
        );
        assert!(
            parse(&turned("<c16", &[0; 64]))
                .unwrap_err()
                .contains("found <c16")
        );
        assert!(
            parse(&turned("<f4", &[0; 15]))
                .unwrap_err()
                .contains("4 numbers of 4 bytes")
        );
        assert!(parse(b"PK\x03\x04").unwrap_err().contains("another format"));
        for length in 6..80 {
            assert!(parse(&float_bytes(2, &[1.0; 4])[..length]).is_err());
        }
    }
}

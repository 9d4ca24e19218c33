//! NumPy's `.npy` files, memory-mapped: rows of numbers, little endian.
//!
//! The format is <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>, versions 1 to 3.
//! Read strictly: the header's shape and type must account for every byte of the file. Everything of the
//! library and the program that reads such a file reads it here. Leaves out big-endian numbers, structured
//! types and pickled objects, and Fortran order but for small matrices; each is refused by name.

mod header;
mod map;
mod write;

use std::fs;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

pub use header::{NpyHeader, NpyType, parse_header};
pub use write::{NpyWriter, float_bytes, i8_bytes, write_integers};

use crate::error::{Error, Result};
use map::map;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// A header longer than this is none that NumPy wrote for plain numbers.
const HEADER_BYTES_MAX: usize = 1 << 16;

/// NumPy aligns the values to this many bytes.
const ALIGN: usize = 64;

/// An array in a memory-mapped file.
#[derive(Debug)]
pub struct NpyFile {
    path: PathBuf,
    map: Mmap,
    header: NpyHeader,
    start: usize,
}

impl NpyFile {
    /// Maps the file at `path`. Reads its header only.
    ///
    /// # Errors
    /// `Io` if it cannot be read; `Corrupt` unless it is a whole `.npy` file of plain little-endian
    /// numbers in row-major order.
    pub fn open(path: impl AsRef<Path>) -> Result<NpyFile> {
        let file = NpyFile::open_either_order(path.as_ref())?;
        match file.header.fortran_order {
            false => Ok(file),
            true => {
                Err(file
                    .corrupt("the values are in Fortran order; save numpy.ascontiguousarray(x)"))
            }
        }
    }

    fn open_either_order(path: &Path) -> Result<NpyFile> {
        let corrupt = |reason| Error::corrupt(path.display().to_string(), reason);
        let length = fs::metadata(path).map_err(|error| Error::io(path, error))?;
        if !length.is_file() {
            return Err(corrupt(
                "expected a .npy file, found a folder or a pipe".into(),
            ));
        }
        if length.len() == 0 {
            return Err(corrupt("expected a .npy file, found 0 bytes".into()));
        }
        let map = map(path)?;
        let (header, start) = parse_header(&map).map_err(corrupt)?;
        let wanted = header
            .n_values()
            .and_then(|n| n.checked_mul(header.dtype.size_bytes()));
        let found = map.len() - start;
        if wanted != Some(found) {
            let wanted = wanted.map_or("more than memory can hold".to_owned(), |n| n.to_string());
            return Err(corrupt(format!(
                "expected {wanted} bytes of values for the shape {:?} of {}, found {found}",
                header.shape,
                header.dtype.descr()
            )));
        }
        Ok(NpyFile {
            path: path.to_owned(),
            map,
            header,
            start,
        })
    }

    /// What its header says.
    pub fn header(&self) -> &NpyHeader {
        &self.header
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about this file.
    pub(crate) fn corrupt(&self, reason: impl Into<String>) -> Error {
        Error::corrupt(self.path.display().to_string(), reason)
    }

    /// The size of the first dimension, 1 for a single number.
    pub fn n_rows(&self) -> usize {
        self.header.shape.first().copied().unwrap_or(1)
    }

    /// Values a row: the product of the other dimensions.
    pub fn row_len(&self) -> usize {
        self.header.shape.iter().skip(1).product()
    }

    /// Rows and numbers a row, where this is a matrix whose rows are vectors.
    ///
    /// # Errors
    /// `Corrupt` unless there are two dimensions, the second above 0, of floating-point numbers.
    pub fn vectors(&self) -> Result<(usize, usize)> {
        match self.header.shape[..] {
            [rows, dim] if dim > 0 && self.header.dtype.is_float() => Ok((rows, dim)),
            _ => Err(self.corrupt(format!(
                "expected a matrix of floats, a row a vector, found the shape {:?} of {}",
                self.header.shape,
                self.header.dtype.descr()
            ))),
        }
    }

    /// The bytes of row `row`. Panics past the end.
    fn row_bytes(&self, row: usize) -> &[u8] {
        let n_bytes = self.row_len() * self.header.dtype.size_bytes();
        assert!(row < self.n_rows(), "row {row} of {}", self.n_rows());
        &self.map[self.start + row * n_bytes..][..n_bytes]
    }

    /// Copies row `row` as float32. Panics past the end or where `out` is not one row long.
    ///
    /// # Errors
    /// `InvalidArgument` for an array of integers.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        let bytes = self.row_bytes(row);
        assert_eq!(out.len(), self.row_len(), "room for one row");
        match self.header.dtype {
            NpyType::F32 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*bytes);
                }
            }
            NpyType::F64 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                    *out = f64::from_le_bytes(*bytes) as f32;
                }
            }
            NpyType::F16 => {
                for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = f32_of_half(u16::from_le_bytes(*bytes));
                }
            }
            other => {
                return Err(Error::invalid(format!(
                    "{}: expected floating-point numbers, found {}",
                    self.path.display(),
                    other.descr()
                )));
            }
        }
        Ok(())
    }

    /// All values of an array of integers or truth values.
    ///
    /// # Errors
    /// `Corrupt` for floating-point numbers, or a number above the largest `i64`.
    pub fn integers(&self) -> Result<Vec<i64>> {
        let bytes = &self.map[self.start..];
        let values = match self.header.dtype {
            NpyType::Bool | NpyType::U8 => bytes.iter().map(|&b| i64::from(b)).collect(),
            NpyType::I8 => bytes.iter().map(|&b| i64::from(b as i8)).collect(),
            NpyType::I16 => map_chunks(bytes, |b| i64::from(i16::from_le_bytes(b))),
            NpyType::U16 => map_chunks(bytes, |b| i64::from(u16::from_le_bytes(b))),
            NpyType::I32 => map_chunks(bytes, |b| i64::from(i32::from_le_bytes(b))),
            NpyType::U32 => map_chunks(bytes, |b| i64::from(u32::from_le_bytes(b))),
            NpyType::I64 => map_chunks(bytes, i64::from_le_bytes),
            NpyType::U64 => {
                let values = map_chunks(bytes, |b| i64::try_from(u64::from_le_bytes(b)).ok());
                let values: Option<Vec<i64>> = values.into_iter().collect();
                values.ok_or_else(|| self.corrupt("a number is above 2^63 - 1"))?
            }
            NpyType::F16 | NpyType::F32 | NpyType::F64 => {
                return Err(self.corrupt(format!(
                    "expected integers, found {}; save x.astype('int64')",
                    self.header.dtype.descr()
                )));
            }
        };
        Ok(values)
    }

    /// All values in double precision, in the order of the file; integers beyond 2^53 are rounded.
    fn doubles(&self) -> Vec<f64> {
        let bytes = &self.map[self.start..];
        match self.header.dtype {
            NpyType::F16 => map_chunks(bytes, |b| f64::from(f32_of_half(u16::from_le_bytes(b)))),
            NpyType::F32 => map_chunks(bytes, |b| f64::from(f32::from_le_bytes(b))),
            NpyType::F64 => map_chunks(bytes, f64::from_le_bytes),
            NpyType::U64 => map_chunks(bytes, |b| u64::from_le_bytes(b) as f64),
            _ => {
                let integers = self.integers().expect("all other types are integers");
                integers.into_iter().map(|value| value as f64).collect()
            }
        }
    }
}

/// A matrix: rows, columns, and its entries, row-major.
pub type Matrix<T> = (usize, usize, Vec<T>);

/// Reads a whole matrix in double precision: numbers of any type, in either order. For small ones, such as
/// similarities, distances and centers of classes.
///
/// # Errors
/// As [`NpyFile::open`], but for the order; `Corrupt` unless there are two dimensions.
pub fn read_matrix(path: impl AsRef<Path>) -> Result<Matrix<f64>> {
    let file = NpyFile::open_either_order(path.as_ref())?;
    let [rows, columns] = file.header.shape[..] else {
        return Err(file.corrupt(format!(
            "expected a matrix, found the shape {:?}",
            file.header.shape
        )));
    };
    let entries = file.doubles();
    let entries = match file.header.fortran_order {
        true => (0..entries.len())
            .map(|at| entries[at % columns * rows + at / columns])
            .collect(),
        false => entries,
    };
    Ok((rows, columns, entries))
}

/// Reads the rows of a whole matrix of floating-point numbers, in single precision: all values, row-major,
/// and the length of a row.
///
/// # Errors
/// As [`NpyFile::open`]; `Corrupt` unless there are two dimensions, both above 0, of floating-point numbers.
pub fn read_vectors(path: impl AsRef<Path>) -> Result<(Vec<f32>, usize)> {
    let file = NpyFile::open(path)?;
    let (rows, dim) = file.vectors()?;
    if rows == 0 {
        return Err(file.corrupt("expected vectors, found no row"));
    }
    let mut values = vec![0.0; rows * dim];
    for (row, out) in values.chunks_exact_mut(dim).enumerate() {
        file.copy_row(row, out)?;
    }
    Ok((values, dim))
}

fn map_chunks<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&b| value(b)).collect()
}

/// A half-precision number (IEEE 754 binary16) in single precision; exact.
fn f32_of_half(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let fraction = u32::from(bits) & 0x3ff;
    match exponent {
        // Zero and subnormals: a multiple of 2^-24.
        0 => f32::from_bits(sign | (fraction as f32 * 2f32.powi(-24)).to_bits()),
        0x1f => f32::from_bits(sign | 0x7f80_0000 | (fraction << 13)),
        _ => f32::from_bits(sign | ((exponent + 112) << 23) | (fraction << 13)),
    }
}

#[cfg(test)]
mod tests;

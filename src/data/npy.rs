//! NumPy's `.npy` files, memory-mapped: rows of numbers, little endian, row-major.
//!
//! The format is <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>, versions 1 to 3.
//! Read strictly: the header's shape and type must account for every byte of the file. Leaves out
//! Fortran order, big-endian numbers, structured types and pickled objects; each is refused by name.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::map::map;
use crate::error::{Error, Result};

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// A header longer than this is none that NumPy wrote for plain numbers.
const HEADER_BYTES_MAX: usize = 1 << 16;

/// NumPy aligns the values to this many bytes.
const ALIGN: usize = 64;

/// The types of numbers that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NpyType {
    /// `<f2`
    F16,
    /// `<f4`
    F32,
    /// `<f8`
    F64,
    /// `|b1`: one byte, 0 or 1.
    Bool,
    /// `|i1`
    I8,
    /// `|u1`
    U8,
    /// `<i2`
    I16,
    /// `<u2`
    U16,
    /// `<i4`
    I32,
    /// `<u4`
    U32,
    /// `<i8`
    I64,
    /// `<u8`
    U64,
}

/// Each type with NumPy's name of it and its bytes.
const TYPES: [(NpyType, &str, usize); 12] = [
    (NpyType::F16, "<f2", 2),
    (NpyType::F32, "<f4", 4),
    (NpyType::F64, "<f8", 8),
    (NpyType::Bool, "|b1", 1),
    (NpyType::I8, "|i1", 1),
    (NpyType::U8, "|u1", 1),
    (NpyType::I16, "<i2", 2),
    (NpyType::U16, "<u2", 2),
    (NpyType::I32, "<i4", 4),
    (NpyType::U32, "<u4", 4),
    (NpyType::I64, "<i8", 8),
    (NpyType::U64, "<u8", 8),
];

impl NpyType {
    fn row(self) -> &'static (NpyType, &'static str, usize) {
        TYPES
            .iter()
            .find(|row| row.0 == self)
            .expect("the table names every type")
    }

    /// NumPy's name, e.g. `<f4`.
    pub fn descr(self) -> &'static str {
        self.row().1
    }

    /// Bytes a value.
    pub fn size_bytes(self) -> usize {
        self.row().2
    }

    /// True for floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, NpyType::F16 | NpyType::F32 | NpyType::F64)
    }
}

/// What the header of a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NpyHeader {
    /// The type of its numbers.
    pub dtype: NpyType,
    /// The size of each dimension, the slowest first.
    pub shape: Vec<usize>,
}

impl NpyHeader {
    /// The number of values, or `None` where no memory could hold them.
    fn n_values(&self) -> Option<usize> {
        self.shape
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size))
    }

    /// The bytes of the header as NumPy 1.0 writes it, padded to a multiple of 64.
    fn to_bytes(&self) -> Vec<u8> {
        let sizes: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        let comma = if sizes.len() == 1 { "," } else { "" };
        let mut text = format!(
            "{{'descr': '{}', 'fortran_order': False, 'shape': ({}{comma}), }}",
            self.dtype.descr(),
            sizes.join(", ")
        );
        let prefix = MAGIC.len() + 4;
        let total = (prefix + text.len() + 1).next_multiple_of(ALIGN);
        text.extend(std::iter::repeat_n(' ', total - prefix - text.len() - 1));
        text.push('\n');
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&[1, 0]);
        bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }
}

/// Reads the header at the start of `bytes`; also gives the offset of the first value.
///
/// # Errors
/// One line: what was expected, what was found, and the remedy where there is one.
pub fn parse_header(bytes: &[u8]) -> Result<(NpyHeader, usize), String> {
    let Some((magic, rest)) = bytes.split_first_chunk::<6>() else {
        return Err(format!("expected a .npy file, found {} bytes", bytes.len()));
    };
    if magic != MAGIC {
        return Err(format!(
            "expected a .npy file, found one that starts with {magic:02x?}"
        ));
    }
    let cut_off = || format!("the header is cut off after {} bytes", bytes.len());
    let (&[major, minor], rest) = rest.split_first_chunk::<2>().ok_or_else(cut_off)?;
    let (length, start, rest) = match (major, minor) {
        (1, 0) => {
            let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(cut_off)?;
            (usize::from(u16::from_le_bytes(*length)), 10, rest)
        }
        (2 | 3, 0) => {
            let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(cut_off)?;
            (u32::from_le_bytes(*length) as usize, 12, rest)
        }
        _ => {
            return Err(format!(
                "expected version 1.0 to 3.0 of the .npy format, found {major}.{minor}"
            ));
        }
    };
    if length > HEADER_BYTES_MAX {
        return Err(format!(
            "expected a header of at most {HEADER_BYTES_MAX} bytes, found {length}"
        ));
    }
    let text = rest.get(..length).ok_or_else(cut_off)?;
    let text = std::str::from_utf8(text).map_err(|_| "the header is not text".to_owned())?;
    Ok((Parser { rest: text }.header()?, start + length))
}

/// A reader of the header's text: a Python dictionary with three keys.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn header(&mut self) -> Result<NpyHeader, String> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect("{")?;
        while !self.eat("}") {
            let key = self.quoted()?;
            self.expect(":")?;
            let twice = match key {
                "descr" if self.next_is('[') => {
                    return Err("expected plain numbers, found a structured type; save the array of one field".into());
                }
                "descr" => descr.replace(self.quoted()?).is_some(),
                "fortran_order" => fortran.replace(self.boolean()?).is_some(),
                "shape" => shape.replace(self.tuple()?).is_some(),
                _ => {
                    return Err(format!(
                        "expected the keys descr, fortran_order and shape, found {key:?}"
                    ));
                }
            };
            if twice {
                return Err(format!("the header has {key} twice"));
            }
            if !self.eat(",") && !self.next_is('}') {
                return Err(self.unexpected("a comma or }"));
            }
        }
        if !self.rest.trim().is_empty() {
            return Err(self.unexpected("nothing after the header's dictionary"));
        }
        let (Some(descr), Some(fortran), Some(shape)) = (descr, fortran, shape) else {
            return Err("the header lacks descr, fortran_order or shape".into());
        };
        let dtype = dtype(descr)?;
        if fortran && shape.len() > 1 {
            return Err("the values are in Fortran order; save numpy.ascontiguousarray(x)".into());
        }
        Ok(NpyHeader { dtype, shape })
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn next_is(&mut self, what: char) -> bool {
        self.skip_blanks();
        self.rest.starts_with(what)
    }

    fn eat(&mut self, what: &str) -> bool {
        self.skip_blanks();
        match self.rest.strip_prefix(what) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, what: &str) -> Result<(), String> {
        match self.eat(what) {
            true => Ok(()),
            false => Err(self.unexpected(what)),
        }
    }

    fn unexpected(&self, what: &str) -> String {
        let found: String = self.rest.chars().take(20).collect();
        format!("expected {what} in the header, found {found:?}")
    }

    fn quoted(&mut self) -> Result<&'a str, String> {
        self.skip_blanks();
        for quote in ['\'', '"'] {
            if let Some(rest) = self.rest.strip_prefix(quote)
                && let Some((text, rest)) = rest.split_once(quote)
            {
                self.rest = rest;
                return Ok(text);
            }
        }
        Err(self.unexpected("a quoted word"))
    }

    fn boolean(&mut self) -> Result<bool, String> {
        if self.eat("True") {
            Ok(true)
        } else if self.eat("False") {
            Ok(false)
        } else {
            Err(self.unexpected("True or False"))
        }
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut sizes = Vec::new();
        self.expect("(")?;
        while !self.eat(")") {
            self.skip_blanks();
            let digits = self.rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, rest) = self.rest.split_at(digits);
            let size = number
                .parse()
                .map_err(|_| self.unexpected("a size of the shape"))?;
            self.rest = rest;
            sizes.push(size);
            if !self.eat(",") && !self.next_is(')') {
                return Err(self.unexpected("a comma or )"));
            }
        }
        Ok(sizes)
    }
}

fn dtype(descr: &str) -> Result<NpyType, String> {
    if let Some((dtype, ..)) = TYPES.iter().find(|row| row.1 == descr) {
        return Ok(*dtype);
    }
    Err(match descr.as_bytes() {
        [b'>', ..] => {
            format!(
                "the numbers are big endian ({descr}); save x.astype(x.dtype.newbyteorder('<'))"
            )
        }
        [b'|', b'O', ..] => {
            "the values are pickled objects, which are not read; save an array of numbers".into()
        }
        _ => format!("expected floats or integers of 1 to 8 bytes, found the type {descr:?}"),
    })
}

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
        let path = path.as_ref();
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
    pub(super) fn corrupt(&self, reason: impl Into<String>) -> Error {
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

/// A float32 array of known shape that is written row after row, and goes on where a killed run stopped.
///
/// Rows go to `PATH.part`, which gets its name when the last row is in it: a file under its final name is
/// always whole.
pub struct NpyWriter {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
    n_rows: usize,
    row_len: usize,
    written: usize,
}

impl NpyWriter {
    /// Begins an `n_rows x row_len` array, or goes on with the whole rows in `PATH.part`.
    ///
    /// # Errors
    /// `Io`; `Corrupt` if `PATH.part` is of another array.
    pub fn resume(path: impl AsRef<Path>, n_rows: usize, row_len: usize) -> Result<NpyWriter> {
        let path = path.as_ref().to_owned();
        let mut part = path.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let header = NpyHeader {
            dtype: NpyType::F32,
            shape: vec![n_rows, row_len],
        }
        .to_bytes();
        let io = |error| Error::io(&part, error);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&part)
            .map_err(io)?;
        let length = file.metadata().map_err(io)?.len() as usize;
        let mut written = 0;
        if length >= header.len() {
            let mut found = vec![0; header.len()];
            file.read_exact(&mut found).map_err(io)?;
            if found != header {
                return Err(Error::corrupt(
                    part.display().to_string(),
                    format!(
                        "expected the start of a float32 array of {n_rows} x {row_len}, found another; remove it"
                    ),
                ));
            }
            written = ((length - header.len()) / (4 * row_len).max(1)).min(n_rows);
        } else {
            file.rewind().map_err(io)?;
            file.write_all(&header).map_err(io)?;
        }
        // A row that was cut off is written anew.
        let end = (header.len() + written * row_len * 4) as u64;
        file.set_len(end).map_err(io)?;
        file.seek(SeekFrom::Start(end)).map_err(io)?;
        Ok(NpyWriter {
            path,
            part,
            file: BufWriter::new(file),
            n_rows,
            row_len,
            written,
        })
    }

    /// Rows that are written.
    pub fn written(&self) -> usize {
        self.written
    }

    /// Appends whole rows and hands them to the operating system.
    ///
    /// # Errors
    /// `InvalidArgument` for part of a row or more rows than announced; `Io`.
    pub fn append(&mut self, values: &[f32]) -> Result<()> {
        let n_new = values.len() / self.row_len.max(1);
        if n_new * self.row_len != values.len() || self.written + n_new > self.n_rows {
            return Err(Error::invalid(format!(
                "expected whole rows of {} numbers, {} at most, got {} numbers",
                self.row_len,
                self.n_rows - self.written,
                values.len()
            )));
        }
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.file
            .write_all(&bytes)
            .and_then(|()| self.file.flush())
            .map_err(|error| Error::io(&self.part, error))?;
        self.written += n_new;
        Ok(())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// `InvalidArgument` if rows are missing; `Io`.
    pub fn finish(self) -> Result<()> {
        if self.written != self.n_rows {
            return Err(Error::invalid(format!(
                "{}: expected {} rows, got {}",
                self.path.display(),
                self.n_rows,
                self.written
            )));
        }
        let io = |error| Error::io(&self.part, error);
        let file = self
            .file
            .into_inner()
            .map_err(|error| io(error.into_error()))?;
        file.sync_all().map_err(io)?;
        fs::rename(&self.part, &self.path).map_err(io)
    }
}

/// Writes a vector of integers, as bytes ([`NpyType::U8`]) or as [`NpyType::I64`].
///
/// # Errors
/// `Io`.
pub fn write_integers(path: impl AsRef<Path>, values: &[i64], dtype: NpyType) -> Result<()> {
    let path = path.as_ref();
    let mut bytes = NpyHeader {
        dtype,
        shape: vec![values.len()],
    }
    .to_bytes();
    for &value in values {
        let outside = || Error::invalid(format!("{value} is no {}", dtype.descr()));
        match dtype {
            NpyType::U8 => bytes.push(u8::try_from(value).map_err(|_| outside())?),
            NpyType::I64 => bytes.extend_from_slice(&value.to_le_bytes()),
            _ => {
                return Err(Error::invalid(format!(
                    "integers are written as |u1 or <i8, not as {}",
                    dtype.descr()
                )));
            }
        }
    }
    fs::write(path, bytes).map_err(|error| Error::io(path, error))
}

#[cfg(test)]
mod tests;

//! Writing `.npy` files: large ones row after row, small ones at once.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{NpyHeader, NpyType};
use crate::error::{Error, Result};
use crate::files::write_whole;

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
    /// `Io`; `Corrupt` if `PATH.part` is of another array; `InvalidArgument` while another writer has it.
    pub fn resume(path: impl AsRef<Path>, n_rows: usize, row_len: usize) -> Result<NpyWriter> {
        let path = path.as_ref().to_owned();
        let mut part = path.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let header = NpyHeader::new(NpyType::F32, vec![n_rows, row_len]).to_bytes();
        let io = |error| Error::io(&part, error);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&part)
            .map_err(io)?;
        // Held until the file is closed. Where locks are not to be had, two writers are not told apart.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::invalid(format!(
                "{}: expected no other process that writes it, found one; wait until it is done, or choose another name",
                part.display()
            )));
        }
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
    let mut bytes = NpyHeader::new(dtype, vec![values.len()]).to_bytes();
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
    write_whole(path.as_ref(), &bytes)
}

/// The bytes of a `.npy` file with a float64 matrix of `columns` columns, row-major.
///
/// # Panics
/// If `entries` do not fill whole rows.
pub fn float_bytes(columns: usize, entries: &[f64]) -> Vec<u8> {
    let mut bytes = matrix_header(NpyType::F64, columns, entries.len());
    bytes.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
    bytes
}

/// The bytes of a `.npy` file with an int8 matrix of `columns` columns, row-major.
///
/// # Panics
/// If `entries` do not fill whole rows.
pub fn i8_bytes(columns: usize, entries: &[i8]) -> Vec<u8> {
    let mut bytes = matrix_header(NpyType::I8, columns, entries.len());
    bytes.extend(entries.iter().map(|&entry| entry as u8));
    bytes
}

fn matrix_header(dtype: NpyType, columns: usize, n_entries: usize) -> Vec<u8> {
    assert!(n_entries.is_multiple_of(columns), "whole rows");
    NpyHeader::new(dtype, vec![n_entries / columns, columns]).to_bytes()
}

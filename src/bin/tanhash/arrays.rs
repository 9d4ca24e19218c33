//! Arrays that other programs wrote: `.npy` files, labels as text or `.npy`, files of packed codes.
//!
//! Reads little-endian C-ordered numbers. Leaves out writing, big-endian files and memory mapping.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tanhash::eval::{LabelSets, Labels};
use tanhash::{CodeLen, Codes};

/// An array of a `.npy` file.
pub struct Array {
    /// Its type as numpy writes it, e.g. `<f4`.
    dtype: String,
    pub shape: Vec<usize>,
    data: Vec<u8>,
}

impl Array {
    pub fn read(path: &Path) -> Result<Array> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        Array::parse(&bytes).with_context(|| path.display().to_string())
    }

    fn parse(bytes: &[u8]) -> Result<Array> {
        let (start, header_len) = match bytes {
            [b'\x93', b'N', b'U', b'M', b'P', b'Y', 1, _, a, b, ..] => {
                (10, usize::from(u16::from_le_bytes([*a, *b])))
            }
            [
                b'\x93',
                b'N',
                b'U',
                b'M',
                b'P',
                b'Y',
                2 | 3,
                _,
                a,
                b,
                c,
                d,
                ..,
            ] => (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize),
            _ => bail!("expected a .npy file of version 1 to 3, found something else"),
        };
        let header = bytes
            .get(start..)
            .and_then(|rest| rest.get(..header_len))
            .context("expected a whole .npy header, the file ends in it")?;
        let header = std::str::from_utf8(header).context("expected a .npy header of text")?;
        let after = |key: &str| {
            let (_, rest) = header.split_once(&format!("'{key}':"))?;
            Some(rest.trim_start())
        };
        let dtype = after("descr")
            .and_then(|rest| rest.strip_prefix('\'')?.split_once('\''))
            .with_context(|| {
                format!("expected a .npy file of plain numbers, its header is {header}")
            })?
            .0
            .to_owned();
        ensure!(
            after("fortran_order").is_some_and(|rest| rest.starts_with("False")),
            "expected rows one after the other, got Fortran order; save it with numpy.ascontiguousarray"
        );
        let shape = after("shape")
            .and_then(|rest| Some(rest.strip_prefix('(')?.split_once(')')?.0))
            .with_context(|| format!("expected a shape in the .npy header {header}"))?;
        let shape: Vec<usize> = shape
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| part.parse().with_context(|| format!("shape ({shape})")))
            .collect::<Result<_>>()?;
        let size: usize = match dtype.get(2..).and_then(|size| size.parse().ok()) {
            Some(size @ 1..=8) if !dtype.starts_with('>') => size,
            _ => bail!("expected little-endian numbers of up to 8 bytes, got type {dtype}"),
        };
        let n_bytes = shape.iter().try_fold(size, |n, &side| n.checked_mul(side));
        let data = &bytes[start + header_len..];
        ensure!(
            n_bytes == Some(data.len()),
            "expected {shape:?} numbers of {size} bytes, found {} bytes",
            data.len()
        );
        Ok(Array {
            dtype,
            shape,
            data: data.to_vec(),
        })
    }

    /// Rows and columns of a matrix of floats.
    pub fn into_vectors(self) -> Result<(Vec<f32>, usize)> {
        let &[n, dim] = &self.shape[..] else {
            bail!(
                "expected a matrix, a row a vector, got shape {:?}",
                self.shape
            )
        };
        ensure!(
            n > 0 && dim > 0,
            "expected vectors, got shape {:?}",
            self.shape
        );
        let values = match self.dtype.as_str() {
            "<f4" => {
                let numbers = self.data.as_chunks::<4>().0.iter();
                numbers.map(|four| f32::from_le_bytes(*four)).collect()
            }
            "<f8" => {
                let numbers = self.data.as_chunks::<8>().0.iter();
                numbers
                    .map(|eight| f64::from_le_bytes(*eight) as f32)
                    .collect()
            }
            other => bail!("expected numbers of type float32 or float64, got {other}"),
        };
        Ok((values, dim))
    }

    fn into_integers(self) -> Result<Vec<i64>> {
        let kind = self.dtype.as_bytes()[1];
        let size = self.dtype.as_bytes()[2] - b'0';
        let wide = |bytes: &[u8], fill: u8| {
            let mut eight = [fill; 8];
            eight[..bytes.len()].copy_from_slice(bytes);
            i64::from_le_bytes(eight)
        };
        match kind {
            b'u' | b'b' | b'i' => Ok(self
                .data
                .chunks_exact(usize::from(size))
                .map(|bytes| {
                    let negative = kind == b'i' && bytes[bytes.len() - 1] >= 0x80;
                    wide(bytes, if negative { 0xff } else { 0 })
                })
                .collect()),
            _ => bail!("expected labels of an integer type, got {}", self.dtype),
        }
    }
}

/// The labels of a set, owned.
pub enum LabelFile {
    Classes(Vec<u32>),
    Sets(LabelSets),
}

impl LabelFile {
    /// A `.npy` file of integers, one an item or a row of 0 and 1 an item; else text, a line an item, with one
    /// label or several.
    pub fn read(path: &Path) -> Result<LabelFile> {
        let about = || path.display().to_string();
        if path.extension().is_some_and(|extension| extension == "npy") {
            return LabelFile::from_array(Array::read(path)?).with_context(about);
        }
        let text = fs::read_to_string(path).with_context(about)?;
        LabelFile::from_text(&text).with_context(about)
    }

    fn from_array(array: Array) -> Result<LabelFile> {
        let shape = array.shape.clone();
        let values = array.into_integers()?;
        match shape[..] {
            [_] => {
                let labels = (0..).zip(values).map(|(row, value)| {
                    u32::try_from(value)
                        .with_context(|| format!("row {row}: a label is 0 or more, got {value}"))
                });
                Ok(LabelFile::Classes(labels.collect::<Result<_>>()?))
            }
            [_, n_classes] => {
                let mut sets = LabelSets::new(n_classes)?;
                for (row, flags) in values.chunks_exact(n_classes).enumerate() {
                    if let Some(wrong) = flags.iter().find(|flag| !(0..=1).contains(*flag)) {
                        bail!("row {row}: expected 0 and 1 for each class, got {wrong}");
                    }
                    let classes: Vec<u32> = (0..)
                        .zip(flags)
                        .filter(|(_, flag)| **flag == 1)
                        .map(|(c, _)| c)
                        .collect();
                    sets.push(&classes)?;
                }
                Ok(LabelFile::Sets(sets))
            }
            _ => bail!("expected one or two dimensions, got shape {shape:?}"),
        }
    }

    fn from_text(text: &str) -> Result<LabelFile> {
        let mut rows: Vec<Vec<u32>> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let words = line.split([' ', '\t', ',']).filter(|word| !word.is_empty());
            let row = words.map(|word| {
                word.parse().with_context(|| {
                    format!("line {number}: a label is a number from 0, got {word:?}")
                })
            });
            rows.push(row.collect::<Result<_>>()?);
        }
        if rows.iter().any(|row| row.len() > 1) {
            let most = rows.iter().flatten().max().copied().unwrap_or(0);
            let mut sets = LabelSets::new(most as usize + 1)?;
            for row in &rows {
                sets.push(row)?;
            }
            return Ok(LabelFile::Sets(sets));
        }
        let labels = (1..).zip(rows).map(|(number, row)| {
            row.first()
                .copied()
                .with_context(|| format!("line {number}: expected a label, got an empty line"))
        });
        Ok(LabelFile::Classes(labels.collect::<Result<_>>()?))
    }

    pub fn labels(&self) -> Labels<'_> {
        match self {
            LabelFile::Classes(classes) => classes.into(),
            LabelFile::Sets(sets) => sets.into(),
        }
    }

    /// One more than the largest label.
    pub fn n_classes(&self) -> usize {
        let labels = self.labels();
        let largest = (0..labels.len())
            .filter_map(|item| labels.of(item).last().copied())
            .max();
        largest.map_or(0, |label| label as usize + 1)
    }
}

/// A file of packed rows, `bits / 8` bytes each.
pub fn read_codes(path: &Path, len: CodeLen) -> Result<Codes> {
    let about = || path.display().to_string();
    let bytes = fs::read(path).with_context(about)?;
    Codes::from_packed(len, &bytes).with_context(about)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn npy_files_are_read_or_refused() {
        let floats: Vec<u8> = [1.5f32, -2.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let array = Array::parse(&npy("<f4", "(1, 2)", &floats)).unwrap();
        assert_eq!(array.into_vectors().unwrap(), (vec![1.5, -2.0], 2));
        let whole = npy("<f4", "(1, 2)", &floats);
        for cut in 0..whole.len() {
            assert!(Array::parse(&whole[..cut]).is_err(), "{cut}");
        }
        let problem = |bytes: Vec<u8>| format!("{:#}", Array::parse(&bytes).err().unwrap());
        assert!(problem(npy(">f4", "(2,)", &floats)).contains("little-endian"));
        assert!(problem(npy("<f4", "(3,)", &floats)).contains("found 8 bytes"));
        assert!(problem(npy("<f4", "(4611686018427387904, 4)", &floats)).contains("found 8"));
        let labels = |descr, data: &[u8]| {
            let n = data.len() / if descr == "<i2" { 2 } else { 1 };
            LabelFile::from_array(Array::parse(&npy(descr, &format!("({n},)"), data)).unwrap())
        };
        let read = labels("<i2", &[3, 0, 1, 1]).unwrap();
        assert_eq!(read.n_classes(), 258);
        let error = format!("{:#}", labels("<i2", &[3, 0, 0xfe, 0xff]).err().unwrap());
        assert!(
            error.contains("row 1: a label is 0 or more, got -2"),
            "{error}"
        );
        assert!(labels("|u1", &[0xfe]).is_ok() && labels("|b1", &[1, 0]).is_ok());
        let flags = Array::parse(&npy("|u1", "(2, 3)", &[1, 0, 1, 0, 0, 0])).unwrap();
        let LabelFile::Sets(sets) = LabelFile::from_array(flags).unwrap() else {
            panic!("rows of 0 and 1 are sets")
        };
        assert_eq!((sets.of(0), sets.of(1)), (vec![0, 2], vec![]));
    }

    #[test]
    fn label_lines_are_numbers() {
        let read = LabelFile::from_text("3\n0\n").unwrap();
        assert!(matches!(&read, LabelFile::Classes(labels) if labels == &[3, 0]));
        let LabelFile::Sets(sets) = LabelFile::from_text("1, 2\n\n0\n").unwrap() else {
            panic!("a line of two labels makes sets")
        };
        assert_eq!(
            (sets.of(0), sets.of(1), sets.of(2)),
            (vec![1, 2], vec![], vec![0])
        );
        for (text, problem) in [
            ("1\n-1\n", "line 2"),
            ("1\n\n", "empty line"),
            ("x\n", "\"x\""),
        ] {
            let error = format!("{:#}", LabelFile::from_text(text).err().unwrap());
            assert!(error.contains(problem), "{error}");
        }
    }
}

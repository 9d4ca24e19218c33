//! Labels and codes that other programs wrote: labels as text or `.npy`, files of packed codes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tanhash::eval::{LabelSets, Labels};
use tanhash::npy::NpyFile;
use tanhash::{CodeLen, Codes};

use crate::files;

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
            let file = NpyFile::open(path)?;
            return LabelFile::from_array(&file.header().shape, file.integers()?)
                .with_context(about);
        }
        let text = files::read_text(path)?;
        LabelFile::from_text(&text).with_context(about)
    }

    fn from_array(shape: &[usize], values: Vec<i64>) -> Result<LabelFile> {
        match *shape {
            [_] => {
                let labels = (0..).zip(values).map(|(row, value)| {
                    u32::try_from(value)
                        .with_context(|| format!("row {row}: a label is 0 or more, got {value}"))
                });
                Ok(LabelFile::Classes(labels.collect::<Result<_>>()?))
            }
            [_, n_classes] => Ok(LabelFile::Sets(LabelSets::from_indicators(
                n_classes, &values,
            )?)),
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

    #[test]
    fn label_arrays_are_classes_or_rows_of_flags() {
        let labels = |values: &[i64]| LabelFile::from_array(&[values.len()], values.to_vec());
        assert_eq!(labels(&[3, 257]).unwrap().n_classes(), 258);
        let error = format!("{:#}", labels(&[3, -2]).err().unwrap());
        assert!(
            error.contains("row 1: a label is 0 or more, got -2"),
            "{error}"
        );
        assert!(labels(&[1 << 32]).is_err());
        let sets = LabelFile::from_array(&[2, 3], vec![1, 0, 1, 0, 0, 0]).unwrap();
        let LabelFile::Sets(sets) = sets else {
            panic!("rows of 0 and 1 are sets")
        };
        assert_eq!((sets.of(0), sets.of(1)), (vec![0, 2], vec![]));
        assert!(LabelFile::from_array(&[1, 2], vec![2, 0]).is_err());
        assert!(LabelFile::from_array(&[1, 1, 2], vec![1, 0]).is_err());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l.npy");
        let read = || LabelFile::read(&path).map(|labels| labels.n_classes());
        std::fs::write(&path, tanhash::npy::i8_bytes(1, &[1, 0])).unwrap();
        assert_eq!(read().unwrap(), 1);
        std::fs::write(&path, tanhash::npy::float_bytes(1, &[1.0, 0.0])).unwrap();
        let error = format!("{:#}", read().unwrap_err());
        assert!(error.contains("expected integers, found <f8"), "{error}");
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

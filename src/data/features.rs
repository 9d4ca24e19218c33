//! Precomputed feature vectors in `.npy` files: what another network said of each example.
//!
//! `features` is n x q of floating-point numbers, `labels` n integers from 0 (a class none has is
//! allowed), `splits` n integers that are sums of flags: 1 train, 2 database, 4 query. Without splits a
//! seed decides, as for a folder of pictures. Labels of n x C numbers 0 and 1 give each row any number of classes.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::Pool;
use super::examples::{Source, first_labels};
use super::split::{DATABASE, QUERY, TRAIN};
use crate::error::{Error, Result};
use crate::files::read_text;
use crate::labels::LabelSets;
use crate::npy::NpyFile;

/// More classes than this are taken for a mistake, such as ids in place of labels.
const CLASSES_MAX: usize = 1 << 20;

/// The files of a feature data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureFiles {
    /// n x q numbers.
    pub features: PathBuf,
    /// n labels, or n x C indicators.
    pub labels: PathBuf,
    /// n sums of flags.
    pub splits: Option<PathBuf>,
    /// One class name a line.
    pub classes: Option<PathBuf>,
}

/// The parts of a name, in the order in which they are written.
const PARTS: [&str; 3] = [",labels:", ",splits:", ",classes:"];

impl FeatureFiles {
    /// The files that `tanhash features` writes into a folder.
    pub fn in_dir(dir: &Path) -> FeatureFiles {
        let (splits, classes) = (dir.join("splits.npy"), dir.join("classes.txt"));
        FeatureFiles {
            features: dir.join("features.npy"),
            labels: dir.join("labels.npy"),
            splits: splits.is_file().then_some(splits),
            classes: classes.is_file().then_some(classes),
        }
    }

    /// Reads what follows `features:` in the name of a data set: `F.npy,labels:L.npy`, then optionally
    /// `,splits:S.npy` and `,classes:C.txt`; or a folder that `tanhash features` wrote.
    pub(super) fn parse(text: &str) -> Result<FeatureFiles> {
        let mut rest = text;
        let mut parts = [None, None, None];
        for (part, found) in PARTS.iter().zip(&mut parts).rev() {
            if let Some((before, path)) = rest.split_once(part) {
                *found = Some(PathBuf::from(path));
                rest = before;
            }
        }
        let [labels, splits, classes] = parts;
        let refuse = || {
            Error::invalid(format!(
                "expected features:F.npy,labels:L.npy[,splits:S.npy][,classes:C.txt] or features:DIR, got \"features:{text}\""
            ))
        };
        match labels {
            Some(labels) if !rest.is_empty() && !labels.as_os_str().is_empty() => {
                Ok(FeatureFiles {
                    features: PathBuf::from(rest),
                    labels,
                    splits,
                    classes,
                })
            }
            None if !rest.is_empty() && rest == text && !text.ends_with(".npy") => {
                Ok(FeatureFiles::in_dir(Path::new(text)))
            }
            _ => Err(refuse()),
        }
    }
}

impl fmt::Display for FeatureFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{},labels:{}",
            self.features.display(),
            self.labels.display()
        )?;
        for (name, path) in [("splits", &self.splits), ("classes", &self.classes)] {
            if let Some(path) = path {
                write!(f, ",{name}:{}", path.display())?;
            }
        }
        Ok(())
    }
}

pub(super) fn load(files: &FeatureFiles) -> Result<Pool> {
    let features = NpyFile::open(&files.features)?;
    let header = features.header();
    if header.shape.len() != 2 || !header.dtype.is_float() || features.row_len() == 0 {
        return Err(features.corrupt(format!(
            "expected an n x q array of floating-point numbers, found the shape {:?} of {}",
            header.shape,
            header.dtype.descr()
        )));
    }
    let n_rows = features.n_rows();
    if n_rows == 0 || u32::try_from(n_rows).is_err() {
        return Err(features.corrupt(format!("expected 1 to 2^32 - 1 rows, found {n_rows}")));
    }
    let class_names = files.classes.as_deref().map(class_names).transpose()?;
    let labels_file = NpyFile::open(&files.labels)?;
    let named = class_names.as_ref().map(Vec::len);
    let (labels, label_sets, n_classes) = match labels_file.header().shape[..] {
        [_, _] => {
            let sets = label_sets(&labels_file, n_rows, named)?;
            let n_classes = sets.n_classes();
            (first_labels(&sets), Some(sets), n_classes)
        }
        _ => {
            let labels = labels(&labels_file, n_rows, named)?;
            let n_classes = labels.iter().max().map_or(0, |&label| label as usize + 1);
            (labels, None, n_classes)
        }
    };
    let class_names =
        class_names.unwrap_or_else(|| (0..n_classes).map(|class| class.to_string()).collect());
    let flags = match &files.splits {
        Some(path) => Some(flags(&NpyFile::open(path)?, n_rows)?),
        None => None,
    };
    Ok(Pool {
        class_names,
        source: Source::Features(features),
        labels,
        label_sets,
        flags,
        skipped: Vec::new(),
    })
}

fn class_names(path: &Path) -> Result<Vec<String>> {
    let text = read_text(path)?;
    let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    let corrupt = |reason: String| Error::corrupt(path.display().to_string(), reason);
    if names.is_empty() {
        return Err(corrupt("expected one class name a line, found none".into()));
    }
    let mut lines = HashMap::new();
    for (number, name) in (1..).zip(&names) {
        if name.is_empty() {
            return Err(corrupt(format!(
                "line {number}: expected a class name, found none"
            )));
        }
        if let Some(first) = lines.insert(name, number) {
            return Err(corrupt(format!(
                "line {number}: expected another name for each class, found {name:?} of line {first} again"
            )));
        }
    }
    Ok(names)
}

/// The integers of a file, one a row.
fn column(file: &NpyFile, n_rows: usize, what: &str) -> Result<Vec<i64>> {
    if file.header().shape != [n_rows] {
        return Err(file.corrupt(format!(
            "expected {n_rows} {what}, one a row of the features, found the shape {:?}",
            file.header().shape
        )));
    }
    file.integers()
}

/// The classes of each row, of a matrix of indicators.
fn label_sets(file: &NpyFile, n_rows: usize, n_classes: Option<usize>) -> Result<LabelSets> {
    let shape = &file.header().shape;
    let expected = [n_rows, n_classes.unwrap_or(shape[1])];
    if shape[..] != expected {
        return Err(file.corrupt(format!(
            "expected {} rows of indicators of {} classes, found the shape {shape:?}",
            expected[0], expected[1]
        )));
    }
    LabelSets::from_indicators(expected[1], &file.integers()?)
        .map_err(|error| file.corrupt(error.to_string()))
}

fn labels(file: &NpyFile, n_rows: usize, n_classes: Option<usize>) -> Result<Vec<u32>> {
    let limit = n_classes.unwrap_or(CLASSES_MAX);
    let values = column(file, n_rows, "labels")?;
    let label = |(row, &value): (usize, &i64)| match usize::try_from(value) {
        Ok(label) if label < limit => Ok(label as u32),
        _ => Err(file.corrupt(format!(
            "expected labels from 0 to {}, row {row} has {value}",
            limit - 1
        ))),
    };
    values.iter().enumerate().map(label).collect()
}

fn flags(file: &NpyFile, n_rows: usize) -> Result<Vec<u8>> {
    let all = i64::from(TRAIN | DATABASE | QUERY);
    let values = column(
        file,
        n_rows,
        "sums of the flags 1 train, 2 database, 4 query",
    )?;
    let flag = |(row, &value): (usize, &i64)| match value {
        value if (0..=all).contains(&value) => Ok(value as u8),
        _ => Err(file.corrupt(format!(
            "expected sums of the flags 1 train, 2 database, 4 query, row {row} has {value}"
        ))),
    };
    values.iter().enumerate().map(flag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DatasetSpec, ExampleSet, load};
    use crate::npy::{NpyType, NpyWriter, i8_bytes, write_integers};

    fn write(dir: &Path, n: usize, dim: usize) {
        let mut writer = NpyWriter::resume(dir.join("features.npy"), n, dim).unwrap();
        let values: Vec<f32> = (0..n * dim).map(|i| i as f32).collect();
        writer.append(&values).unwrap();
        writer.finish().unwrap();
    }

    fn integers(dir: &Path, name: &str, values: &[i64]) {
        write_integers(dir.join(name), values, NpyType::I64).unwrap();
    }

    fn load_text(text: String) -> Result<crate::data::Dataset> {
        load(&text.parse::<DatasetSpec>()?, None, 3)
    }

    #[test]
    fn names_are_read_and_written() {
        for text in [
            "a/f.npy,labels:b,l.npy",
            "f.npy,labels:l.npy,splits:s.npy",
            "f.npy,labels:l.npy,classes:c.txt",
            "f,1.npy,labels:l.npy,splits:s.npy,classes:c.txt",
        ] {
            assert_eq!(FeatureFiles::parse(text).unwrap().to_string(), text);
        }
        // A folder's splits and names are those that are there.
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let in_dir = || FeatureFiles::parse(&at.to_string()).unwrap().to_string();
        let mut expected = format!("{at}/features.npy,labels:{at}/labels.npy");
        assert_eq!(in_dir(), expected);
        for (part, file) in [("splits", "splits.npy"), ("classes", "classes.txt")] {
            std::fs::write(dir.path().join(file), "").unwrap();
            expected += &format!(",{part}:{at}/{file}");
            assert_eq!(in_dir(), expected);
        }
        for text in [
            "",
            "f.npy",
            ",labels:l.npy",
            "f.npy,labels:",
            "d,splits:s.npy",
        ] {
            let error = FeatureFiles::parse(text).unwrap_err().to_string();
            assert!(
                error.contains("expected features:F.npy,labels:L.npy"),
                "{error}"
            );
        }
    }

    /// `labels.npy` of any number of classes a row.
    fn indicators(dir: &Path, n_classes: usize, values: &[i8]) {
        std::fs::write(dir.join("labels.npy"), i8_bytes(n_classes, values)).unwrap();
    }

    #[test]
    fn rows_of_indicators_give_several_classes() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        write(at, 4, 3);
        indicators(at, 3, &[1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 1]);
        integers(at, "splits.npy", &[1, 3, 2, 4]);
        let dataset = load_text(format!("features:{}", at.display())).unwrap();
        assert_eq!(dataset.class_names, ["0", "1", "2"]);
        let of = |set: &ExampleSet, example| set.all_labels().of(example);
        assert_eq!(of(&dataset.train, 0), [0, 2]);
        assert!(of(&dataset.train, 1).is_empty());
        assert_eq!(of(&dataset.database, 1), [1]);
        assert_eq!(of(&dataset.query, 0), [1, 2]);
        assert_eq!(of(&dataset.train.subset(&[1, 0]), 1), [0, 2]);
        assert_eq!(dataset.train.labels, [0, 0]);
        assert_eq!(dataset.query.label_sets().unwrap().n_classes(), 3);
    }

    #[test]
    fn three_files_make_a_data_set() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        write(at, 6, 3);
        integers(at, "labels.npy", &[0, 1, 2, 2, 1, 0]);
        integers(at, "splits.npy", &[3, 1, 2, 0, 4, 6]);
        let dataset = load_text(format!("features:{}", at.display())).unwrap();
        assert_eq!(dataset.train.labels, [0, 1]);
        assert_eq!(dataset.database.labels, [0, 2, 0]);
        assert_eq!(dataset.query.labels, [1, 0]);
        assert_eq!(
            dataset.query.features(&[1, 0]).unwrap(),
            [15., 16., 17., 12., 13., 14.]
        );
        assert_eq!(dataset.train.n_features(), Some(3));
        assert_eq!(dataset.class_names, ["0", "1", "2"]);
        assert!(
            dataset.protocol.ends_with("as marked in the data set"),
            "{}",
            dataset.protocol
        );

        // Without splits a fifth of each class is drawn, the same for the same seed.
        std::fs::write(at.join("classes.txt"), "ant\nbee\ncow\ndog\n").unwrap();
        let text = format!(
            "features:{0}/features.npy,labels:{0}/labels.npy,classes:{0}/classes.txt",
            at.display()
        );
        let dataset = load_text(text.clone()).unwrap_err();
        assert!(
            dataset.to_string().starts_with("class \"dog\" has 0"),
            "{dataset}"
        );
        // As some editors write it: with a byte order mark.
        std::fs::write(at.join("classes.txt"), "\u{feff}ant\r\nbee\r\ncow\r\n").unwrap();
        let dataset = load_text(text.clone()).unwrap();
        assert_eq!(dataset.class_names, ["ant", "bee", "cow"]);
        assert_eq!((dataset.train.len(), dataset.query.len()), (3, 3));
        assert!(dataset.protocol.contains("seed 3"));
        assert_eq!(dataset.query.rows(), load_text(text).unwrap().query.rows());
    }

    #[test]
    fn files_that_do_not_fit_are_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let check = |expected: &str| {
            let text = format!("features:{}", at.display());
            let error = load_text(text).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        };
        check("features.npy");
        write(at, 3, 2);
        check("labels.npy");
        integers(at, "labels.npy", &[0, 1]);
        integers(at, "splits.npy", &[3, 3, 4]);
        check("expected 3 labels, one a row of the features, found the shape [2]");
        integers(at, "labels.npy", &[0, -1, 0]);
        check("expected labels from 0 to 1048575, row 1 has -1");
        integers(at, "labels.npy", &[0, 1 << 40, 0]);
        check("row 1 has 1099511627776");
        integers(at, "labels.npy", &[0, 1, 0]);
        std::fs::write(at.join("classes.txt"), "only").unwrap();
        check("expected labels from 0 to 0, row 1 has 1");
        std::fs::write(at.join("classes.txt"), "one\n\ntwo").unwrap();
        check("line 2: expected a class name, found none");
        std::fs::write(at.join("classes.txt"), "one\ntwo\none").unwrap();
        check("line 3: expected another name for each class, found \"one\" of line 1 again");
        std::fs::remove_file(at.join("classes.txt")).unwrap();
        integers(at, "splits.npy", &[3, 3, 8]);
        check("row 2 has 8");
        integers(at, "splits.npy", &[3, 3, 3]);
        check("the query split is empty");
        std::fs::copy(at.join("features.npy"), at.join("labels.npy")).unwrap();
        check("labels.npy: expected integers");
        indicators(at, 2, &[0, 1, 1, 2, 0, 0]);
        check("row 1: expected 0 or 1 for each class, got 2");
        indicators(at, 3, &[0, 1, 1, 1, 0, 0]);
        check("expected 3 rows of indicators of 3 classes, found the shape [2, 3]");
        std::fs::write(at.join("classes.txt"), "only").unwrap();
        indicators(at, 2, &[0, 1, 1, 1, 0, 0]);
        check("expected 3 rows of indicators of 1 classes, found the shape [3, 2]");
        std::fs::copy(at.join("splits.npy"), at.join("features.npy")).unwrap();
        check("expected an n x q array of floating-point numbers");
    }

    #[test]
    fn numbers_that_are_not_finite_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let mut writer = NpyWriter::resume(at.join("features.npy"), 2, 2).unwrap();
        writer.append(&[0.0, 1.0, f32::NAN, 0.0]).unwrap();
        writer.finish().unwrap();
        integers(at, "labels.npy", &[0, 0]);
        integers(at, "splits.npy", &[3, 4]);
        let dataset = load_text(format!("features:{}", at.display())).unwrap();
        assert!(dataset.train.features(&[0]).is_ok());
        let error = dataset.query.features(&[0]).unwrap_err().to_string();
        assert!(error.ends_with("row 1 has NaN in column 0"), "{error}");
    }
}

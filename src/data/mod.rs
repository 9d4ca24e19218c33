//! Data sets for training and evaluation: pictures or feature vectors with one label each, and how they
//! are split.
//!
//! Pure Rust; knows no network and no index. Leaves augmentation to the training floor.

mod cifar;
mod examples;
mod features;
mod folder;
mod idx;
pub mod split;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

pub use examples::{ExampleSet, Source};
pub use features::FeatureFiles;
pub use split::Split;

pub use crate::media::PictureShape;

use crate::error::{Error, Result};
use crate::labels::LabelSets;

/// A data set with its three splits. Splits that are the same examples share them.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// As it was named by the user, e.g. `fashion-mnist:DIR`.
    pub name: String,
    /// How the splits were made, for the record of a result.
    pub protocol: String,
    /// The classes; a label is an index into them.
    pub class_names: Vec<String>,
    /// What models learn from.
    pub train: Arc<ExampleSet>,
    /// What is searched.
    pub database: Arc<ExampleSet>,
    /// What is searched for; never trained on.
    pub query: Arc<ExampleSet>,
    /// True if each query is to be left out of its own ranking: `query` and `database` are the same.
    pub leave_one_out: bool,
    /// Files that are in the folder and not in the set, each with the reason.
    pub skipped: Vec<(PathBuf, String)>,
}

/// Everything of a data set, before it is split.
struct Pool {
    class_names: Vec<String>,
    source: Source,
    /// The class of each row of the source, the first of several.
    labels: Vec<u32>,
    /// All classes of each row, where a row may have several.
    label_sets: Option<LabelSets>,
    /// The data set's own split: [`split::TRAIN`], [`split::DATABASE`] and [`split::QUERY`] of each row.
    flags: Option<Vec<u8>>,
    skipped: Vec<(PathBuf, String)>,
}

impl Pool {
    /// Pictures of a fixed split: the first `n_train` are train and database, the others queries.
    fn of_pixels(
        class_names: Vec<String>,
        shape: PictureShape,
        bytes: Vec<u8>,
        labels: Vec<u32>,
        n_train: usize,
    ) -> Pool {
        Pool {
            class_names,
            source: Source::Pixels { shape, bytes },
            flags: Some(train_then_query(n_train, labels.len())),
            labels,
            label_sets: None,
            skipped: Vec::new(),
        }
    }

    /// What one example is called.
    fn unit(&self) -> &'static str {
        match self.source {
            Source::Features(_) => "vectors",
            _ => "pictures",
        }
    }

    fn too_few(&self, class: usize, found: usize, min: usize) -> Error {
        let place = match self.source {
            Source::Features(_) => "the class",
            _ => "the folder",
        };
        Error::invalid(format!(
            "class {:?} has {found} readable {}, expected at least {min}; add some or remove {place} \
             ({} files of the data set were skipped)",
            self.class_names[class],
            self.unit(),
            self.skipped.len()
        ))
    }
}

/// Flags where the first `n_train` of `n_rows` rows are train and database, the others queries.
fn train_then_query(n_train: usize, n_rows: usize) -> Vec<u8> {
    let mut flags = vec![split::TRAIN | split::DATABASE; n_train];
    flags.resize(n_rows, split::QUERY);
    flags
}

/// Which data set, where it lies, and how it is split: `KIND[@SPLIT]:PLACE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetSpec {
    /// What and where.
    pub kind: DatasetKind,
    /// Which split of it; [`Split::Official`] is not written.
    pub split: Split,
}

/// The data sets there are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DatasetKind {
    /// `fashion-mnist` or `fashion-mnist:DIR`: four IDX files, gzipped or not. Without a folder, the
    /// usual places are searched.
    FashionMnist(Option<PathBuf>),
    /// `cifar10:DIR`: the official binary files, or class folders in `train/` and `test/`.
    Cifar10(PathBuf),
    /// `cifar100:DIR`: the official binary files (fine labels), or class folders.
    Cifar100(PathBuf),
    /// `folder:DIR`: one folder a class, or `train/` and `test/` with one folder a class in each.
    Folder(PathBuf),
    /// `features:F.npy,labels:L.npy[,splits:S.npy][,classes:C.txt]`, or `features:DIR` with files of
    /// these names: precomputed vectors.
    Features(FeatureFiles),
}

impl FromStr for DatasetSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<DatasetSpec> {
        let (name, place) = match text.split_once(':') {
            Some((name, place)) => (name, Some(place)),
            None => (text, None),
        };
        let (kind, split) = match name.split_once('@') {
            Some((kind, split)) => (kind, split.parse()?),
            None => (name, Split::Official),
        };
        let needed = || match place {
            Some(place) if !place.is_empty() => Ok(PathBuf::from(place)),
            _ => Err(Error::invalid(format!(
                "data set {kind:?} needs a folder, write {name}:DIR"
            ))),
        };
        let kind = match kind {
            "fashion-mnist" if place.is_none() => DatasetKind::FashionMnist(None),
            "fashion-mnist" => DatasetKind::FashionMnist(Some(needed()?)),
            "cifar10" => DatasetKind::Cifar10(needed()?),
            "cifar100" => DatasetKind::Cifar100(needed()?),
            "folder" => DatasetKind::Folder(needed()?),
            "features" => DatasetKind::Features(FeatureFiles::parse(place.unwrap_or_default())?),
            _ => {
                let folder = if Path::new(text).is_dir() {
                    format!("; for class folders write folder:{text}")
                } else {
                    String::new()
                };
                return Err(Error::invalid(format!(
                    "expected a data set fashion-mnist[:DIR], cifar10:DIR, cifar100:DIR, folder:DIR or \
                     features:F.npy,labels:L.npy, got {text:?}{folder}"
                )));
            }
        };
        Ok(DatasetSpec { kind, split })
    }
}

impl fmt::Display for DatasetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, place): (_, Option<&dyn fmt::Display>) = match &self.kind {
            DatasetKind::FashionMnist(None) => ("fashion-mnist", None),
            DatasetKind::FashionMnist(Some(dir)) => ("fashion-mnist", Some(&dir.display())),
            DatasetKind::Cifar10(dir) => ("cifar10", Some(&dir.display())),
            DatasetKind::Cifar100(dir) => ("cifar100", Some(&dir.display())),
            DatasetKind::Folder(dir) => ("folder", Some(&dir.display())),
            DatasetKind::Features(files) => ("features", Some(files)),
        };
        f.write_str(name)?;
        if self.split != Split::Official {
            write!(f, "@{}", self.split)?;
        }
        match place {
            Some(place) => write!(f, ":{place}"),
            None => Ok(()),
        }
    }
}

/// Above this many pixels a side the pictures of a folder stay in their files until they are needed.
pub const IN_MEMORY_SIDE_MAX: usize = 64;

/// Opens a data set.
///
/// Fashion-MNIST (28x28x1) and CIFAR (32x32x3) are read into memory as they are; features stay in their
/// file. The pictures of a folder, for a `shape` of at most [`IN_MEMORY_SIDE_MAX`] pixels, 32x32x3 by
/// default, are brought to that shape and kept in memory; for a larger one each file is decoded once to
/// see that it can be, and again whenever it is needed. `seed` decides what the split leaves to chance.
///
/// # Errors
/// `Io` if a file cannot be read, `Corrupt` if a file contradicts its format, `InvalidArgument` if the
/// folder holds no such data set, it is too small for the split, or the shape is none. A picture of a
/// folder that does not decode is no error: it is left out and named in [`Dataset::skipped`].
pub fn load(spec: &DatasetSpec, shape: Option<PictureShape>, seed: u64) -> Result<Dataset> {
    let pool = match &spec.kind {
        DatasetKind::FashionMnist(dir) => idx::load_fashion_mnist(dir.as_deref())?,
        DatasetKind::Cifar10(dir) => cifar::load(cifar::CIFAR10, dir, shape)?,
        DatasetKind::Cifar100(dir) => cifar::load(cifar::CIFAR100, dir, shape)?,
        DatasetKind::Folder(dir) => folder::load(dir, shape)?,
        DatasetKind::Features(files) => features::load(files)?,
    };
    let mut dataset = split::split(pool, spec.split, seed)?;
    dataset.name = spec.to_string();
    Ok(dataset)
}

fn open(path: &Path) -> Result<std::fs::File> {
    std::fs::File::open(path).map_err(|error| Error::io(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_round_trip_and_say_what_is_missing() {
        for text in [
            "fashion-mnist",
            "fashion-mnist:a/b",
            "cifar10:x",
            "cifar100:x:y",
            "cifar100@95-5:x",
            "cifar10@1:x@y",
            "fashion-mnist@leave-one-out",
            "folder:a@b",
            "features@shc:f.npy,labels:l.npy",
        ] {
            assert_eq!(text.parse::<DatasetSpec>().unwrap().to_string(), text);
        }
        let message = |text: &str| text.parse::<DatasetSpec>().unwrap_err().to_string();
        assert_eq!(
            message("cifar10"),
            "data set \"cifar10\" needs a folder, write cifar10:DIR"
        );
        assert!(message("folder:").ends_with("write folder:DIR"));
        assert!(message("fashion-mnist:").ends_with("write fashion-mnist:DIR"));
        assert!(message("mnist").ends_with("got \"mnist\""));
        assert!(message("cifar10@x:d").ends_with("got \"x\""));
        assert!(message("cifar10@1").ends_with("write cifar10@1:DIR"));
        assert!(message("features").contains("features:F.npy,labels:L.npy"));
    }
}

//! Data sets for training and evaluation: pictures of one shape with one label each, in memory.
//!
//! Pure Rust; knows no network and no index. Leaves augmentation to the training floor.

mod cifar;
mod folder;
mod idx;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rayon::prelude::*;

pub use crate::media::PictureShape;

use crate::error::{Error, Result};
use crate::media::{Picture, to_shape};

/// Labelled pictures: `n x side x side x channels` bytes, row-major, channel last.
#[derive(Clone, Debug)]
pub struct PictureSet {
    /// The shape of each picture.
    pub shape: PictureShape,
    /// `n * side * side * channels` bytes.
    pub pixels: Vec<u8>,
    /// The class of each picture, an index into [`Dataset::class_names`].
    pub labels: Vec<u32>,
}

impl PictureSet {
    /// The number of pictures.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if there is no picture.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Picture `i`: `side x side x channels` bytes. Panics past the end.
    pub fn picture(&self, i: usize) -> &[u8] {
        let n_bytes = picture_bytes(self.shape);
        &self.pixels[i * n_bytes..][..n_bytes]
    }

    /// The pictures `rows`, in that order. Panics if one is past the end.
    pub fn subset(&self, rows: &[usize]) -> PictureSet {
        let mut pixels = Vec::with_capacity(rows.len() * picture_bytes(self.shape));
        for &row in rows {
            pixels.extend_from_slice(self.picture(row));
        }
        PictureSet {
            shape: self.shape,
            pixels,
            labels: rows.iter().map(|&row| self.labels[row]).collect(),
        }
    }

    /// The same pictures in another shape, by the rules of [`to_shape`].
    fn reshaped(self, shape: PictureShape) -> Result<PictureSet> {
        if self.shape == shape {
            return Ok(self);
        }
        let mut pixels = zeroed_pixels(self.len(), shape)?;
        pixels
            .par_chunks_exact_mut(picture_bytes(shape))
            .enumerate()
            .try_for_each(|(i, out)| {
                let bytes = self.picture(i);
                let picture = Picture {
                    width: self.shape.side as u32,
                    height: self.shape.side as u32,
                    rgb: if self.shape.channels == 3 {
                        bytes.to_vec()
                    } else {
                        bytes.iter().flat_map(|&grey| [grey; 3]).collect()
                    },
                };
                let reshaped =
                    to_shape(&picture, shape).map_err(|error| Error::invalid(error.to_string()))?;
                out.copy_from_slice(&reshaped);
                Ok::<(), Error>(())
            })?;
        Ok(PictureSet {
            shape,
            pixels,
            labels: self.labels,
        })
    }
}

fn picture_bytes(shape: PictureShape) -> usize {
    shape.side * shape.side * shape.channels
}

/// Room for `n` pictures, or an error where the shape is none or memory does not suffice.
fn zeroed_pixels(n: usize, shape: PictureShape) -> Result<Vec<u8>> {
    if !(1..=4096).contains(&shape.side) || ![1, 3].contains(&shape.channels) {
        return Err(Error::invalid(format!(
            "a picture shape has 1 to 4096 pixels a side and 1 or 3 channels, got {} and {}",
            shape.side, shape.channels
        )));
    }
    let mut pixels = Vec::new();
    n.checked_mul(picture_bytes(shape))
        .and_then(|n_bytes| {
            pixels.try_reserve_exact(n_bytes).ok()?;
            pixels.resize(n_bytes, 0);
            Some(())
        })
        .ok_or_else(|| {
            Error::invalid(format!(
                "{n} pictures of {0} x {0} x {1} bytes do not fit in memory; take a smaller shape",
                shape.side, shape.channels
            ))
        })?;
    Ok(pixels)
}

/// A data set with its three splits. Splits that are the same pictures share them.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// As it was named by the user, e.g. `fashion-mnist:DIR`.
    pub name: String,
    /// How the splits were made, for the record of a result.
    pub protocol: String,
    /// The classes; a label is an index into them.
    pub class_names: Vec<String>,
    /// What models learn from.
    pub train: Arc<PictureSet>,
    /// What is searched.
    pub database: Arc<PictureSet>,
    /// What is searched for; never trained on.
    pub query: Arc<PictureSet>,
    /// Files that are in the folder and not in the set, each with the reason.
    pub skipped: Vec<(PathBuf, String)>,
}

/// Which data set, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DatasetSpec {
    /// `fashion-mnist` or `fashion-mnist:DIR`: four IDX files, gzipped or not. Without a folder, the
    /// usual places are searched.
    FashionMnist(Option<PathBuf>),
    /// `cifar10:DIR`: the official binary files, or class folders in `train/` and `test/`.
    Cifar10(PathBuf),
    /// `cifar100:DIR`: the official binary files (fine labels), or class folders.
    Cifar100(PathBuf),
    /// `folder:DIR`: one folder a class, or `train/` and `test/` with one folder a class in each.
    Folder(PathBuf),
}

impl FromStr for DatasetSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<DatasetSpec> {
        let (kind, dir) = match text.split_once(':') {
            Some((kind, dir)) => (kind, Some(dir)),
            None => (text, None),
        };
        let needed = || match dir {
            Some(dir) if !dir.is_empty() => Ok(PathBuf::from(dir)),
            _ => Err(Error::invalid(format!(
                "data set {kind:?} needs a folder, write {kind}:DIR"
            ))),
        };
        match kind {
            "fashion-mnist" if dir.is_none() => Ok(DatasetSpec::FashionMnist(None)),
            "fashion-mnist" => needed().map(|dir| DatasetSpec::FashionMnist(Some(dir))),
            "cifar10" => needed().map(DatasetSpec::Cifar10),
            "cifar100" => needed().map(DatasetSpec::Cifar100),
            "folder" => needed().map(DatasetSpec::Folder),
            _ => Err(Error::invalid(format!(
                "expected a data set fashion-mnist[:DIR], cifar10:DIR, cifar100:DIR or folder:DIR, got {text:?}"
            ))),
        }
    }
}

impl fmt::Display for DatasetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DatasetSpec::FashionMnist(None) => f.write_str("fashion-mnist"),
            DatasetSpec::FashionMnist(Some(dir)) => write!(f, "fashion-mnist:{}", dir.display()),
            DatasetSpec::Cifar10(dir) => write!(f, "cifar10:{}", dir.display()),
            DatasetSpec::Cifar100(dir) => write!(f, "cifar100:{}", dir.display()),
            DatasetSpec::Folder(dir) => write!(f, "folder:{}", dir.display()),
        }
    }
}

/// Reads a data set into memory.
///
/// Without a `shape`, pictures keep that of the data set: 28x28x1 for Fashion-MNIST, 32x32x3 for the
/// others. `seed` decides the split of a folder that has no `test/`; the other splits are fixed.
///
/// # Errors
/// `Io` if a file cannot be read, `Corrupt` if a file contradicts its format, `InvalidArgument` if the
/// folder holds no such data set or the shape is none. A picture of a folder that does not decode is no
/// error: it is left out and named in [`Dataset::skipped`].
pub fn load(spec: &DatasetSpec, shape: Option<PictureShape>, seed: u64) -> Result<Dataset> {
    let mut dataset = match spec {
        DatasetSpec::FashionMnist(dir) => idx::load_fashion_mnist(dir.as_deref(), shape)?,
        DatasetSpec::Cifar10(dir) => cifar::load(cifar::CIFAR10, dir, shape, seed)?,
        DatasetSpec::Cifar100(dir) => cifar::load(cifar::CIFAR100, dir, shape, seed)?,
        DatasetSpec::Folder(dir) => folder::load(dir, shape, seed)?,
    };
    dataset.name = spec.to_string();
    Ok(dataset)
}

/// The data set of a fixed split: the train pictures are the database, the test pictures the queries.
fn train_is_database(
    class_names: Vec<String>,
    train: PictureSet,
    query: PictureSet,
    skipped: Vec<(PathBuf, String)>,
) -> Dataset {
    let train = Arc::new(train);
    Dataset {
        name: String::new(),
        protocol: format!(
            "train = database = {} train pictures, query = {} test pictures",
            train.len(),
            query.len()
        ),
        class_names,
        database: Arc::clone(&train),
        train,
        query: Arc::new(query),
        skipped,
    }
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
            "folder:/tmp",
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
    }

    #[test]
    fn sets_hand_out_pictures_and_subsets() {
        let set = PictureSet {
            shape: PictureShape {
                side: 2,
                channels: 1,
            },
            pixels: (0..12).collect(),
            labels: vec![5, 6, 7],
        };
        assert_eq!(set.len(), 3);
        assert_eq!(set.picture(1), [4, 5, 6, 7]);
        let subset = set.subset(&[2, 0]);
        assert_eq!(subset.labels, [7, 5]);
        assert_eq!(subset.pixels, [8, 9, 10, 11, 0, 1, 2, 3]);
        let wide = PictureShape {
            side: 2,
            channels: 3,
        };
        assert_eq!(
            set.reshaped(wide).unwrap().picture(0)[..6],
            [0, 0, 0, 1, 1, 1]
        );
        let huge = PictureShape {
            side: 4096,
            channels: 3,
        };
        assert!(zeroed_pixels(usize::MAX / 2, huge).is_err());
        assert!(zeroed_pixels(1 << 38, huge).is_err());
    }
}

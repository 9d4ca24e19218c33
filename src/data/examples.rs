//! Labelled examples: pictures in memory, picture files, or feature vectors in a mapped file.
//!
//! A set is a choice of rows of a source that several sets share, so splits copy nothing. Pictures are
//! brought to the shape a network reads when they are fetched, a batch at a time: 60,000 small pictures
//! enlarged to 224 pixels would take 9 GB.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::code::hex;
use crate::error::{Error, ErrorKind, Result};
use crate::labels::{LabelSets, Labels};
use crate::media::{Limits, Picture, PictureShape, Resize, decode_to_shape, resize_to_shape};
use crate::npy::NpyFile;

/// Where the examples of a data set are.
#[derive(Debug)]
pub enum Source {
    /// Pictures of one shape: `n x side x side x channels` bytes, row-major, channel last.
    Pixels {
        /// The shape of each picture.
        shape: PictureShape,
        /// `n * side * side * channels` bytes.
        bytes: Vec<u8>,
    },
    /// Picture files, decoded whenever they are fetched.
    Files(Vec<PathBuf>),
    /// Float vectors, n x q.
    Features(NpyFile),
}

/// Examples with one label each, or several.
#[derive(Clone, Debug)]
pub struct ExampleSet {
    source: Arc<Source>,
    /// Row of the source, for each example.
    rows: Vec<u32>,
    /// The class of each example, an index into [`Dataset::class_names`](super::Dataset::class_names). The
    /// first of its classes, or 0 without any, where [`ExampleSet::label_sets`] has them all.
    pub labels: Vec<u32>,
    label_sets: Option<LabelSets>,
}

/// The first class of each item, 0 for one without any.
pub(super) fn first_labels(sets: &LabelSets) -> Vec<u32> {
    let first = |item| sets.of(item).first().copied().unwrap_or(0);
    (0..sets.len()).map(first).collect()
}

impl ExampleSet {
    /// Examples `rows` of a source. `labels` has one entry a row.
    ///
    /// # Errors
    /// `InvalidArgument` if the lengths differ or a row is past the end.
    pub fn new(source: Arc<Source>, rows: Vec<u32>, labels: Vec<u32>) -> Result<ExampleSet> {
        let n_rows = source.n_rows();
        if rows.len() != labels.len() {
            return Err(Error::invalid(format!(
                "expected one label an example, got {} labels for {} examples",
                labels.len(),
                rows.len()
            )));
        }
        if let Some(row) = rows.iter().find(|row| **row as usize >= n_rows) {
            return Err(Error::invalid(format!(
                "expected rows below {n_rows}, got row {row}"
            )));
        }
        Ok(ExampleSet {
            source,
            rows,
            labels,
            label_sets: None,
        })
    }

    /// As [`ExampleSet::new`], with any number of classes an example.
    ///
    /// # Errors
    /// As [`ExampleSet::new`].
    pub fn with_label_sets(
        source: Arc<Source>,
        rows: Vec<u32>,
        label_sets: LabelSets,
    ) -> Result<ExampleSet> {
        let set = ExampleSet::new(source, rows, first_labels(&label_sets))?;
        Ok(ExampleSet {
            label_sets: Some(label_sets),
            ..set
        })
    }

    /// All classes of each example, in a set where an example may have several.
    pub fn label_sets(&self) -> Option<&LabelSets> {
        self.label_sets.as_ref()
    }

    /// The classes of the examples, one each or several: what [`evaluate`](crate::eval::evaluate) reads.
    pub fn all_labels(&self) -> Labels<'_> {
        match &self.label_sets {
            Some(sets) => Labels::Sets(sets),
            None => Labels::Classes(&self.labels),
        }
    }

    /// Pictures of one shape in memory, all of them: `n x side x side x channels` bytes.
    ///
    /// # Errors
    /// `InvalidArgument` unless the bytes are one picture a label.
    pub fn from_pixels(
        shape: PictureShape,
        bytes: Vec<u8>,
        labels: Vec<u32>,
    ) -> Result<ExampleSet> {
        if picture_bytes(shape).checked_mul(labels.len()) != Some(bytes.len()) {
            return Err(Error::invalid(format!(
                "{} pictures of {1} x {1} x {2} do not have {3} bytes",
                labels.len(),
                shape.side,
                shape.channels,
                bytes.len()
            )));
        }
        let rows = (0..labels.len() as u32).collect();
        ExampleSet::new(Arc::new(Source::Pixels { shape, bytes }), rows, labels)
    }

    /// A digest of the examples, their order and their classes, 64 hexadecimal digits, with [`Source::digest`].
    ///
    /// # Errors
    /// As [`Source::digest`].
    pub fn digest(&self) -> Result<String> {
        let mut digest = Sha256::new();
        digest.update(self.source.digest()?);
        for (example, row) in self.rows.iter().enumerate() {
            digest.update(row.to_le_bytes());
            digest.update(format!("{:?}", self.all_labels().of(example)));
        }
        Ok(hex(&digest.finalize()))
    }

    /// The number of examples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if there is no example.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Where the examples are.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Where the examples are, to be shared with another set.
    pub fn shared_source(&self) -> Arc<Source> {
        Arc::clone(&self.source)
    }

    /// The row of the source, for each example: two examples of one data set are the same if these are.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// The same examples and labels, with the row of another source in place of each row.
    ///
    /// # Errors
    /// `InvalidArgument` if a row is past the end of that source.
    pub fn on_source(&self, source: Arc<Source>) -> Result<ExampleSet> {
        let set = ExampleSet::new(source, self.rows.clone(), self.labels.clone())?;
        Ok(ExampleSet {
            label_sets: self.label_sets.clone(),
            ..set
        })
    }

    /// All examples of the source, those of other splits too, row by row. Labels are not known here and
    /// are all 0.
    pub fn whole_source(&self) -> ExampleSet {
        let n_rows = self.source.n_rows();
        ExampleSet {
            source: Arc::clone(&self.source),
            rows: (0..n_rows as u32).collect(),
            labels: vec![0; n_rows],
            label_sets: None,
        }
    }

    /// The examples `chosen`, in that order. Panics if one is past the end.
    pub fn subset(&self, chosen: &[usize]) -> ExampleSet {
        ExampleSet {
            source: Arc::clone(&self.source),
            rows: chosen.iter().map(|&i| self.rows[i]).collect(),
            labels: chosen.iter().map(|&i| self.labels[i]).collect(),
            label_sets: (self.label_sets.as_ref()).map(|sets| sets.subset(chosen.iter().copied())),
        }
    }

    /// The shape in which pictures are stored; `None` for files and features.
    pub fn stored_shape(&self) -> Option<PictureShape> {
        match *self.source {
            Source::Pixels { shape, .. } => Some(shape),
            _ => None,
        }
    }

    /// q, where the examples are feature vectors.
    pub fn n_features(&self) -> Option<usize> {
        match &*self.source {
            Source::Features(file) => Some(file.row_len()),
            _ => None,
        }
    }

    /// Picture `i` as it is stored: `side x side x channels` bytes; `None` for files and features.
    /// Panics past the end.
    pub fn stored_picture(&self, i: usize) -> Option<&[u8]> {
        match &*self.source {
            Source::Pixels { shape, bytes } => {
                let n_bytes = picture_bytes(*shape);
                Some(&bytes[self.rows[i] as usize * n_bytes..][..n_bytes])
            }
            _ => None,
        }
    }

    /// The pictures `chosen` in `shape`: `n x side x side x channels` bytes. On all threads of rayon.
    ///
    /// # Errors
    /// `InvalidArgument` for features, or a shape that is none; `Payload` for a file that can no longer
    /// be read, by name. Panics if an index is past the end.
    pub fn pixels(&self, chosen: &[usize], shape: PictureShape, resize: Resize) -> Result<Vec<u8>> {
        check_shape(shape)?;
        let mut out = vec![0; chosen.len() * picture_bytes(shape)];
        out.par_chunks_exact_mut(picture_bytes(shape))
            .zip(chosen)
            .try_for_each(|(out, &i)| match &*self.source {
                Source::Pixels { shape: stored, .. } => {
                    let bytes = self.stored_picture(i).expect("the source has pixels");
                    if *stored == shape && resize.crop_share == 1.0 {
                        out.copy_from_slice(bytes);
                        return Ok(());
                    }
                    let picture = picture_of(bytes, *stored);
                    let pixels = resize_to_shape(&picture, shape, resize)
                        .map_err(|error| Error::invalid(error.to_string()))?;
                    out.copy_from_slice(&pixels);
                    Ok(())
                }
                Source::Files(paths) => {
                    let path = &paths[self.rows[i] as usize];
                    let pixels = read_picture(path, shape, resize).map_err(|reason| {
                        let text = format!("{}: {reason}", path.display());
                        Error::new(ErrorKind::Payload(text))
                    })?;
                    out.copy_from_slice(&pixels);
                    Ok(())
                }
                Source::Features(_) => Err(Error::invalid(
                    "expected pictures, the data set has feature vectors already",
                )),
            })?;
        Ok(out)
    }

    /// The feature vectors `chosen`, one after the other.
    ///
    /// # Errors
    /// `InvalidArgument` for pictures; `Corrupt` for a number that is not finite. Panics if an index is
    /// past the end.
    pub fn features(&self, chosen: &[usize]) -> Result<Vec<f32>> {
        let Source::Features(file) = &*self.source else {
            return Err(Error::invalid(
                "expected feature vectors, the data set has pictures",
            ));
        };
        let dim = file.row_len();
        let mut out = vec![0.0; chosen.len() * dim];
        for (out, &i) in out.chunks_exact_mut(dim.max(1)).zip(chosen) {
            let row = self.rows[i] as usize;
            file.copy_row(row, out)?;
            if let Some(at) = out.iter().position(|value| !value.is_finite()) {
                return Err(file.corrupt(format!(
                    "expected finite numbers, row {row} has {} in column {at}",
                    out[at]
                )));
            }
        }
        Ok(out)
    }
}

impl Source {
    /// A digest of the examples, 64 hexadecimal digits: of pictures in memory all bytes, of files the folder, name,
    /// size and time of change of each, of vectors 1,024 rows at most, evenly spaced, so that it is had at once.
    ///
    /// # Errors
    /// `Io` for a file that is no longer there; `Corrupt` for vectors that cannot be read.
    pub fn digest(&self) -> Result<String> {
        let mut digest = Sha256::new();
        digest.update((self.n_rows() as u64).to_le_bytes());
        match self {
            Source::Pixels { shape, bytes } => {
                digest.update(format!("{shape:?}"));
                digest.update(bytes);
            }
            Source::Files(paths) => {
                for path in paths {
                    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
                    let folder = path.parent().and_then(Path::file_name);
                    let (name, modified) = (path.file_name(), metadata.modified().ok());
                    let size = metadata.len();
                    digest.update(format!("{folder:?} {name:?} {size} {modified:?}\n"));
                }
            }
            Source::Features(file) => {
                let mut row = vec![0f32; file.row_len()];
                for at in (0..file.n_rows()).step_by(file.n_rows().div_ceil(1024).max(1)) {
                    file.copy_row(at, &mut row)?;
                    for value in &row {
                        digest.update(value.to_bits().to_le_bytes());
                    }
                }
            }
        }
        Ok(hex(&digest.finalize()))
    }

    /// The number of examples.
    pub fn n_rows(&self) -> usize {
        match self {
            Source::Pixels { shape, bytes } => bytes.len() / picture_bytes(*shape).max(1),
            Source::Files(paths) => paths.len(),
            Source::Features(file) => file.n_rows(),
        }
    }
}

pub(super) fn picture_bytes(shape: PictureShape) -> usize {
    shape.side * shape.side * shape.channels
}

/// An error where the shape is none.
pub(super) fn check_shape(shape: PictureShape) -> Result<()> {
    if !(1..=4096).contains(&shape.side) || ![1, 3].contains(&shape.channels) {
        return Err(Error::invalid(format!(
            "a picture shape has 1 to 4096 pixels a side and 1 or 3 channels, got {} and {}",
            shape.side, shape.channels
        )));
    }
    Ok(())
}

/// Stored pixels as a picture.
fn picture_of(bytes: &[u8], shape: PictureShape) -> Picture {
    Picture {
        width: shape.side as u32,
        height: shape.side as u32,
        rgb: match shape.channels {
            3 => bytes.to_vec(),
            _ => bytes.iter().flat_map(|&grey| [grey; 3]).collect(),
        },
    }
}

/// The picture of a file in a shape, as an encoder reads it; else the reason in one line.
pub(super) fn read_picture(
    path: &Path,
    shape: PictureShape,
    resize: Resize,
) -> Result<Vec<u8>, String> {
    let limits = Limits::default();
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    // A pipe would block, and a huge file is refused before it is read.
    if !metadata.is_file() {
        return Err("expected a file, found a pipe, socket or device".to_owned());
    }
    if metadata.len() > limits.max_bytes as u64 {
        return Err(format!(
            "expected a file of at most {} bytes, found {}",
            limits.max_bytes,
            metadata.len()
        ));
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    decode_to_shape(&bytes, &limits, shape, resize).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hand_out_pictures_subsets_and_other_shapes() {
        let shape = PictureShape {
            side: 2,
            channels: 1,
        };
        let set = ExampleSet::from_pixels(shape, (0..12).collect(), vec![5, 6, 7]).unwrap();
        assert_eq!(set.len(), 3);
        assert_eq!(set.stored_picture(1).unwrap(), [4, 5, 6, 7]);
        let subset = set.subset(&[2, 0]);
        assert_eq!(subset.labels, [7, 5]);
        assert_eq!(subset.rows(), [2, 0]);
        let same = subset.pixels(&[0, 1], shape, Resize::default()).unwrap();
        assert_eq!(same, [8, 9, 10, 11, 0, 1, 2, 3]);
        let wide = PictureShape {
            side: 2,
            channels: 3,
        };
        let rgb = set.pixels(&[0], wide, Resize::default()).unwrap();
        assert_eq!(rgb[..6], [0, 0, 0, 1, 1, 1]);
        let large = PictureShape {
            side: 7,
            channels: 1,
        };
        assert_eq!(
            set.pixels(&[1], large, Resize::default()).unwrap().len(),
            49
        );
        let none = PictureShape {
            side: 5000,
            channels: 1,
        };
        assert!(set.pixels(&[0], none, Resize::default()).is_err());
        assert!(set.features(&[0]).is_err());
        assert!(ExampleSet::from_pixels(shape, vec![0; 7], vec![0]).is_err());
        assert!(ExampleSet::new(set.source.clone(), vec![3], vec![0]).is_err());
        assert!(ExampleSet::new(set.source.clone(), vec![1], vec![]).is_err());
    }

    #[test]
    fn a_file_that_went_away_is_named() {
        let gone = Source::Files(vec![PathBuf::from("gone.png")]);
        let set = ExampleSet::new(Arc::new(gone), vec![0], vec![0]).unwrap();
        let shape = PictureShape {
            side: 2,
            channels: 1,
        };
        let error = set.pixels(&[0], shape, Resize::default()).unwrap_err();
        assert!(error.to_string().starts_with("gone.png: "), "{error}");
    }
}

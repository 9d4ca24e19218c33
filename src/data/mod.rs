//! Data sets for training and evaluation: pictures of one shape with one label each, in memory.
//!
//! Pure Rust; knows no network and no index. Leaves augmentation to the training floor.

use std::sync::Arc;

/// The shape every picture of a set is brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureShape {
    /// Rows and columns in pixels; pictures are square.
    pub side: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
}

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
}

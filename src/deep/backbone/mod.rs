//! Backbones: pictures to features. One file each; a table of them is [`BackboneKind`].
//!
//! Networks with published weights keep the names that those weights have, below `backbone.`, and are read
//! from `.safetensors` files with an exact check of names, shapes and types. Leaves out where such files
//! come from: `docs/guide/backbones.md` says how to make one.

mod alexnet;
mod conv_small;
mod efficientnet;
mod layers;
mod resnet;
mod resnet9;

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::Tensor;

pub use alexnet::AlexNet;
pub use conv_small::ConvSmall;
pub use efficientnet::EfficientNetLite0;
pub use resnet::ResNet;
pub use resnet9::ResNet9;

use crate::data::{ExampleSet, PictureShape};
use crate::deep::augment::Normalization;
use crate::deep::checkpoint::{Checkpoint, InputSpec, PictureInput, TensorFile};
use crate::deep::weights::{Group, Weights};
use crate::error::{Error, Result};
use crate::media::{Filter, Resize};

/// A feature network.
pub trait Backbone: Send {
    /// q, the number of features.
    fn features(&self) -> i64;

    /// Features N x q of normalized pictures N x channels x side x side. `train` chooses batch
    /// statistics over running ones. Computes in the type of `pictures`, float32 or bfloat16.
    ///
    /// # Errors
    /// `Torch`, also for pictures of another shape than the network was built for.
    fn forward(&self, pictures: &Tensor, train: bool) -> Result<Tensor>;

    /// Makes passes that do not train faster, for good: normalization by running statistics goes into
    /// the convolutions before it. The network must not be trained or saved afterwards.
    ///
    /// # Errors
    /// `Torch`.
    fn fold(&mut self) -> Result<()>;
}

/// The backbones there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum BackboneKind {
    /// [`ConvSmall`]: 0.3 million weights, for pictures of 28 or 32 pixels, from nothing.
    #[default]
    #[serde(rename = "conv-small")]
    ConvSmall,
    /// [`ResNet9`]: 1.6 million weights, for pictures of 16 to 64 pixels, from nothing: 256 features.
    #[serde(rename = "resnet-9")]
    ResNet9,
    /// None: the examples are feature vectors already.
    #[serde(rename = "identity")]
    Identity,
    /// [`EfficientNetLite0`]: 3.4 million weights, 224 pixels, 1280 features; the fastest pretrained one.
    #[serde(rename = "efficientnet-lite0")]
    EfficientNetLite0,
    /// [`ResNet`] of 18 layers: 11 million weights, 224 pixels, 512 features.
    #[serde(rename = "resnet-18")]
    ResNet18,
    /// [`ResNet`] of 34 layers: 21 million weights, 224 pixels, 512 features.
    #[serde(rename = "resnet-34")]
    ResNet34,
    /// [`ResNet`] of 50 layers: 24 million weights, 224 pixels, 2048 features.
    #[serde(rename = "resnet-50")]
    ResNet50,
    /// [`ResNet`] of 18 layers with a stem for pictures of 32 pixels, from nothing: 512 features.
    #[serde(rename = "resnet-18-cifar")]
    ResNet18Cifar,
    /// [`AlexNet`]: 57 million weights, 224 pixels, 4096 features.
    #[serde(rename = "alexnet")]
    AlexNet,
}

/// Each backbone with its name.
const NAMES: [(BackboneKind, &str); 9] = [
    (BackboneKind::ConvSmall, "conv-small"),
    (BackboneKind::ResNet9, "resnet-9"),
    (BackboneKind::Identity, "identity"),
    (BackboneKind::EfficientNetLite0, "efficientnet-lite0"),
    (BackboneKind::ResNet18, "resnet-18"),
    (BackboneKind::ResNet34, "resnet-34"),
    (BackboneKind::ResNet50, "resnet-50"),
    (BackboneKind::ResNet18Cifar, "resnet-18-cifar"),
    (BackboneKind::AlexNet, "alexnet"),
];

/// What the names of a backbone's tensors begin with, in a network and in a model file.
pub(crate) const PREFIX: &str = "backbone.";

/// Tensors of published weights that are no part of the feature network: the classifier of 1000 classes.
const CLASSIFIERS: [&str; 6] = [
    "fc.weight",
    "fc.bias",
    "_fc.weight",
    "_fc.bias",
    "classifier.6.weight",
    "classifier.6.bias",
];

/// Rows and columns that networks for ImageNet read, unless another number is asked for.
const IMAGENET_SIDE: usize = 224;

/// What can be asked for: below, the last layers have nothing left to see.
const IMAGENET_SIDES: RangeInclusive<usize> = 64..=1024;

/// The share of the shorter side that ImageNet's test pictures keep: 224 of 256.
const IMAGENET_CROP: f64 = 0.875;

impl BackboneKind {
    /// What it reads when it is trained on `set`. Networks for ImageNet read pictures of `side` x `side`
    /// pixels, 224 if `None`, with the statistics and the resizing that their published weights were
    /// trained with; the others read pictures as the set stores them, with the set's own statistics.
    ///
    /// # Errors
    /// `InvalidArgument` for pictures where features are needed, or the reverse, and for a side where the
    /// set decides it.
    pub fn input(self, set: &ExampleSet, side: Option<usize>) -> Result<InputSpec> {
        self.check_side(side)?;
        match (self, set.n_features()) {
            (BackboneKind::Identity, Some(features)) => Ok(InputSpec::Features { features }),
            (BackboneKind::Identity, None) => Err(Error::invalid(
                "the backbone identity takes feature vectors, the data set has pictures; choose another backbone",
            )),
            (_, Some(_)) => Err(Error::invalid(format!(
                "the backbone {self} takes pictures, the data set has feature vectors; use --backbone identity"
            ))),
            (
                BackboneKind::ConvSmall | BackboneKind::ResNet9 | BackboneKind::ResNet18Cifar,
                None,
            ) => {
                let shape = set.stored_shape().ok_or_else(|| {
                    Error::invalid(format!(
                        "the backbone {self} takes small pictures from memory, the data set was opened for large ones"
                    ))
                })?;
                Ok(InputSpec::Pictures(PictureInput {
                    picture_side: shape.side,
                    picture_channels: shape.channels,
                    normalization: Normalization::measure(set)?,
                    resize: Resize::default(),
                }))
            }
            (_, None) => Ok(InputSpec::Pictures(self.imagenet_input(side))),
        }
    }

    /// What the networks for ImageNet read; `side` as in [`BackboneKind::input`].
    pub(crate) fn imagenet_input(self, side: Option<usize>) -> PictureInput {
        let (mean, std, filter) = match self {
            // TensorFlow's: (byte - 127) / 128, and a cubic filter.
            BackboneKind::EfficientNetLite0 => {
                ([127.0 / 255.0; 3], [128.0 / 255.0; 3], Filter::Cubic)
            }
            // torchvision's.
            _ => (
                [0.485, 0.456, 0.406],
                [0.229, 0.224, 0.225],
                Filter::Triangle,
            ),
        };
        PictureInput {
            picture_side: side.unwrap_or(IMAGENET_SIDE),
            picture_channels: 3,
            normalization: Normalization {
                mean: mean.to_vec(),
                std: std.to_vec(),
            },
            resize: Resize {
                filter,
                crop_share: IMAGENET_CROP,
            },
        }
    }

    /// The shape that pictures should be opened for, where it does not depend on the data set; `side` as
    /// in [`BackboneKind::input`].
    ///
    /// # Errors
    /// `InvalidArgument` for a side that the network does not read, or that the data set decides.
    pub fn picture_shape(self, side: Option<usize>) -> Result<Option<PictureShape>> {
        self.check_side(side)?;
        Ok(self.is_for_imagenet().then(|| PictureShape {
            side: side.unwrap_or(IMAGENET_SIDE),
            channels: 3,
        }))
    }

    /// True if published weights and their resizing decide what it reads, not the data set.
    fn is_for_imagenet(self) -> bool {
        !matches!(
            self,
            BackboneKind::ConvSmall
                | BackboneKind::ResNet9
                | BackboneKind::ResNet18Cifar
                | BackboneKind::Identity
        )
    }

    /// `Ok` if the network can be built for pictures of this side.
    fn check_side(self, side: Option<usize>) -> Result<()> {
        match side {
            Some(side) if !self.is_for_imagenet() => Err(Error::invalid(format!(
                "the backbone {self} reads examples as the data set stores them, not with {side} pixels a side; leave the side out, or choose a network with published weights"
            ))),
            Some(side) if !IMAGENET_SIDES.contains(&side) => Err(Error::invalid(format!(
                "the backbone {self} reads pictures of {} to {} pixels a side, got {side}",
                IMAGENET_SIDES.start(),
                IMAGENET_SIDES.end()
            ))),
            _ => Ok(()),
        }
    }

    /// The network, with first values from `rng`, its tensors under `backbone.`.
    ///
    /// # Errors
    /// `InvalidArgument` for an input it does not take; `Torch`.
    pub(crate) fn build(
        self,
        weights: &mut Weights,
        input: &InputSpec,
        rng: &mut ChaCha8Rng,
    ) -> Result<Box<dyn Backbone>> {
        let shape = match (self, input) {
            (BackboneKind::Identity, &InputSpec::Features { features }) if features > 0 => {
                return Ok(Box::new(Identity(features as i64)));
            }
            (BackboneKind::Identity, _) | (_, InputSpec::Features { .. }) => {
                return Err(Error::invalid(format!(
                    "the backbone {self} does not read {input}"
                )));
            }
            (_, InputSpec::Pictures(input)) => input.shape(),
        };
        let resnet = |blocks, bottleneck| resnet::Shape {
            blocks,
            bottleneck,
            small_pictures: self == BackboneKind::ResNet18Cifar,
            channels: shape.channels as i64,
        };
        let fits = match self {
            BackboneKind::ConvSmall => true,
            BackboneKind::ResNet9 | BackboneKind::ResNet18Cifar => (16..=64).contains(&shape.side),
            _ => IMAGENET_SIDES.contains(&shape.side) && shape.channels == 3,
        };
        if !fits {
            return Err(Error::invalid(format!(
                "the backbone {self} does not read {input}"
            )));
        }
        Ok(match self {
            BackboneKind::ConvSmall => Box::new(ConvSmall::new(weights, shape, rng)?),
            BackboneKind::ResNet9 => Box::new(ResNet9::new(weights, shape, rng)?),
            BackboneKind::EfficientNetLite0 => Box::new(EfficientNetLite0::new(weights, rng)?),
            BackboneKind::ResNet18 | BackboneKind::ResNet18Cifar => {
                Box::new(ResNet::new(weights, resnet([2, 2, 2, 2], false), rng)?)
            }
            BackboneKind::ResNet34 => {
                Box::new(ResNet::new(weights, resnet([3, 4, 6, 3], false), rng)?)
            }
            BackboneKind::ResNet50 => {
                Box::new(ResNet::new(weights, resnet([3, 4, 6, 3], true), rng)?)
            }
            BackboneKind::AlexNet => Box::new(AlexNet::new(weights, rng)?),
            BackboneKind::Identity => unreachable!("returned above"),
        })
    }
}

impl fmt::Display for BackboneKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = NAMES.iter().find(|row| row.0 == *self);
        f.write_str(row.expect("the table names every backbone").1)
    }
}

impl FromStr for BackboneKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<BackboneKind> {
        let row = NAMES.iter().find(|row| row.1 == text);
        row.map(|row| row.0).ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|row| row.1).collect();
            Error::invalid(format!(
                "no backbone is called {text:?}; there are {}",
                names.join(", ")
            ))
        })
    }
}

/// The file that a backbone's weights came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightsRecord {
    /// Its name, without the folders.
    pub file: String,
    /// The first 12 hexadecimal digits of the SHA-256 of the file.
    pub sha256: String,
}

/// Copies weights into the backbone of a network built as `kind`: published ones, or those of a model file, whose
/// head is passed over.
///
/// # Errors
/// `Io` if the file cannot be read; `Corrupt` unless it holds exactly the backbone's tensors, float32 and
/// finite. A classifier and torch's counters of batches are passed over.
pub(crate) fn load_weights(
    kind: BackboneKind,
    weights: &Weights,
    path: &Path,
) -> Result<WeightsRecord> {
    let file = TensorFile::read(path)?;
    let names = file.names()?;
    let is_model = names.iter().any(|name| name.starts_with(PREFIX));
    let prefix = if is_model { PREFIX } else { "" };
    let tensors: Vec<(String, Tensor)> = weights
        .entries()
        .iter()
        .filter_map(|entry| {
            let name = entry.name.strip_prefix(PREFIX)?;
            Some((format!("{prefix}{name}"), entry.tensor.shallow_clone()))
        })
        .collect();
    let passed_over = |name: &str| match is_model {
        true => !name.starts_with(PREFIX),
        false => CLASSIFIERS.contains(&name) || name.ends_with(".num_batches_tracked"),
    };
    // A model file is checked as one, digest and all; of bare tensors with a model's names only these are known.
    let own = match is_model && file.metadata::<serde_json::Value>().is_ok() {
        true => Some(Checkpoint::load(path, tch::Device::Cpu)?.config.backbone),
        false => None,
    };
    if let Some((missing, _)) = tensors.iter().find(|(name, _)| !names.contains(name)) {
        let looks_like = match own.or_else(|| looks_like(&names)) {
            Some(other) if other != kind => {
                format!(
                    "; these look like weights of {other}: use --backbone {other}, or other weights"
                )
            }
            _ => "; convert the weights as docs/guide/backbones.md says".to_owned(),
        };
        let found = names.first().map_or("no tensor at all", String::as_str);
        return Err(file.corrupt(format!(
            "expected the tensor {missing} of {kind}, found {} others such as {found}{looks_like}",
            names.len()
        )));
    }
    file.copy_some_into(&tensors, &passed_over)?;
    Ok(WeightsRecord {
        file: path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        sha256: file.digest(),
    })
}

/// The backbone that tensors of these names belong to.
fn looks_like(names: &[String]) -> Option<BackboneKind> {
    // From the most telling tensor to the least.
    [
        ("_conv_stem.weight", BackboneKind::EfficientNetLite0),
        ("layer1.0.conv3.weight", BackboneKind::ResNet50),
        ("layer1.2.conv1.weight", BackboneKind::ResNet34),
        ("layer1.0.conv1.weight", BackboneKind::ResNet18),
        ("features.10.weight", BackboneKind::AlexNet),
    ]
    .into_iter()
    .find(|(name, _)| {
        let without = |found: &String| found.strip_prefix(PREFIX).unwrap_or(found) == *name;
        names.iter().any(without)
    })
    .map(|(_, kind)| kind)
}

/// Marks the backbone's parameters as not trained.
pub(crate) fn freeze(weights: &mut Weights) {
    weights.freeze(Group::Backbone);
}

/// No network: features in, features out.
struct Identity(i64);

impl Backbone for Identity {
    fn features(&self) -> i64 {
        self.0
    }

    fn forward(&self, features: &Tensor, _train: bool) -> Result<Tensor> {
        Ok(features.shallow_clone())
    }

    fn fold(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for (kind, name) in NAMES {
            assert_eq!(name.parse::<BackboneKind>().unwrap(), kind);
            assert_eq!(serde_json::to_value(kind).unwrap(), name);
        }
        let error = "vgg".parse::<BackboneKind>().unwrap_err().to_string();
        assert!(error.contains("conv-small, resnet-9, identity"), "{error}");
    }
}

//! The model file: one `.safetensors` file with the weights, and everything needed to use and judge them
//! in its metadata, under the key `tanhash`, as JSON.
//!
//! Loading trusts nothing: size cap, exact set of tensor names, exact shapes and dtypes (a tensor that
//! would merely broadcast is refused), finite values, and the digest in the model id. Other formats are
//! refused: `.pt` and `.ot` files can carry programs. Writing is atomic: a reader sees the old file or
//! the new one. A run that may be resumed keeps its state in a second file of the same kind beside it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::Tensor;

use crate::code::{CodeLen, hex};
use crate::data::PictureShape;
use crate::deep::augment::Normalization;
use crate::deep::backbone::{BackboneKind, WeightsRecord};
use crate::deep::device::floats;
use crate::deep::method::MethodConfig;
use crate::deep::network::DeepHashNet;
use crate::error::{Error, ErrorKind, Result};
use crate::files::write_whole;
use crate::media::Resize;

/// The metadata's version. One that is not this is refused.
pub const MODEL_FORMAT: u32 = 1;

/// The largest model or state file that is read, in bytes.
pub const FILE_BYTES_MAX: u64 = 4 << 30;

/// The largest safetensors header that is read, in bytes.
const HEADER_BYTES_MAX: u64 = 16 << 20;

/// The longest feature vector that a model reads.
const FEATURES_MAX: usize = 1 << 20;

/// The one metadata key. A single key also keeps the file's bytes reproducible: safetensors writes
/// metadata in the order of a hash map.
const METADATA_KEY: &str = "tanhash";

/// Everything in a model file but the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// [`MODEL_FORMAT`].
    pub format: u32,
    /// The version of this library that wrote the file.
    pub library: String,
    /// `METHOD-BITS-DIGEST`: the digest is the first 12 hexadecimal digits of the SHA-256 of the
    /// weights. Set when the file is written.
    pub model_id: String,
    /// The method and its settings.
    pub method: MethodConfig,
    /// K, the code length in bits.
    pub code_len_bits: usize,
    /// The feature network.
    pub backbone: BackboneKind,
    /// Where the feature network's weights came from; `None` for one trained from nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backbone_weights: Option<WeightsRecord>,
    /// What it reads.
    #[serde(flatten)]
    pub input: InputSpec,
    /// The classes it was trained on.
    pub class_names: Vec<String>,
    /// The data set it was trained on, as it was named.
    pub dataset: String,
    /// How the data set was split.
    pub protocol: String,
    /// The seed of the run.
    pub seed: u64,
    /// Epochs trained so far.
    pub epochs_done: usize,
    /// How these weights were chosen among the epochs; `None` for the last.
    #[serde(default)]
    pub selection: Option<SelectionRecord>,
    /// The hash centers, where the method has any: the codebook's kind, `shc` or `class-means`, or `given` with the digest of
    /// those. Models before this field have the kind in `method` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub centers: Option<String>,
    /// Where the normalization of the head was measured anew; `None` where it was trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapted: Option<AdaptationRecord>,
    /// All options of the run, for the record.
    pub training: serde_json::Value,
}

/// What [`adapt`](crate::deep::adapt()) measured a head's normalization on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdaptationRecord {
    /// The data set, as it was named; its database split was measured.
    pub dataset: String,
    /// How the data set was split.
    pub protocol: String,
    /// Examples.
    pub n_examples: usize,
}

/// Why a model holds the weights of this epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelectionRecord {
    /// What was compared, and on which pictures.
    pub metric: String,
    /// Its value for these weights.
    pub value: f64,
    /// Epochs after which they were taken.
    pub epochs_done: usize,
}

impl ModelConfig {
    /// K as a code length.
    ///
    /// # Errors
    /// `InvalidArgument` for a length no code has.
    pub fn code_len(&self) -> Result<CodeLen> {
        CodeLen::new(self.code_len_bits)
    }

    /// The shape of the pictures it reads; `None` where it reads feature vectors.
    pub fn picture_shape(&self) -> Option<PictureShape> {
        match &self.input {
            InputSpec::Pictures(input) => Some(input.shape()),
            InputSpec::Features { .. } => None,
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.format != MODEL_FORMAT {
            return Err(format!(
                "expected model format {MODEL_FORMAT}, found {}",
                self.format
            ));
        }
        self.code_len().map_err(|error| error.to_string())?;
        match &self.input {
            InputSpec::Pictures(input) => input.check(),
            InputSpec::Features { features } => match (1..=FEATURES_MAX).contains(features) {
                true => Ok(()),
                false => Err(format!(
                    "expected 1 to {FEATURES_MAX} features, found {features}"
                )),
            },
        }
    }
}

/// What a network reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum InputSpec {
    /// Square pictures.
    Pictures(PictureInput),
    /// Feature vectors of another network.
    Features {
        /// q, the numbers in each.
        features: usize,
    },
}

/// Pictures as a network reads them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PictureInput {
    /// Rows and columns, in pixels.
    pub picture_side: usize,
    /// Channels, 1 or 3.
    pub picture_channels: usize,
    /// What pictures are normalized with.
    pub normalization: Normalization,
    /// How pictures of other sizes are brought to this one.
    #[serde(default)]
    pub resize: Resize,
}

impl PictureInput {
    /// The shape of the pictures.
    pub fn shape(&self) -> PictureShape {
        PictureShape {
            side: self.picture_side,
            channels: self.picture_channels,
        }
    }

    fn check(&self) -> Result<(), String> {
        let Normalization { mean, std } = &self.normalization;
        let numbers = mean.iter().all(|mean| mean.is_finite())
            && std.iter().all(|std| std.is_finite() && *std > 0.0);
        if mean.len() != self.picture_channels || std.len() != self.picture_channels || !numbers {
            return Err(format!(
                "expected a finite mean and a positive deviation for each of {} channels, found {mean:?} and {std:?}",
                self.picture_channels
            ));
        }
        let share = self.resize.crop_share;
        if !(share > 0.0 && share <= 1.0) {
            return Err(format!(
                "expected a share of the picture above 0 and at most 1, found {share}"
            ));
        }
        Ok(())
    }
}

impl InputSpec {
    /// Rows and columns of the pictures, in pixels; `None` for feature vectors.
    pub fn picture_side(&self) -> Option<usize> {
        match self {
            InputSpec::Pictures(input) => Some(input.picture_side),
            InputSpec::Features { .. } => None,
        }
    }

    /// As many examples as take the memory of `n` pictures of 224 pixels, `n` at most and 1 at least.
    pub(crate) fn batch(&self, n: usize) -> usize {
        let side = self.picture_side().unwrap_or(0).max(224);
        (n * 224 * 224 / (side * side)).max(1)
    }
}

impl fmt::Display for InputSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InputSpec::Pictures(input) => write!(
                f,
                "pictures of {} pixels with {} channels",
                input.picture_side, input.picture_channels
            ),
            InputSpec::Features { features } => write!(f, "vectors of {features} numbers"),
        }
    }
}

/// A network with the description that its file carries.
pub struct Checkpoint {
    /// What it is.
    pub config: ModelConfig,
    /// The network.
    pub network: DeepHashNet,
}

impl Checkpoint {
    /// Reads a model file onto `device`.
    ///
    /// # Errors
    /// `Io` if it cannot be read; `UnsupportedVersion` for metadata of another version; `Corrupt` where
    /// it is not a safetensors file, is cut short, has no or bad metadata, lacks a tensor, has one too
    /// many, or has one of another shape, dtype or digest: the text names the file, the tensor, what was
    /// expected and what was found.
    pub(crate) fn load(path: &Path, device: tch::Device) -> Result<Checkpoint> {
        let file = TensorFile::read(path)?;
        let version: Version = file.metadata()?;
        if version.format != MODEL_FORMAT {
            return Err(ErrorKind::UnsupportedVersion {
                found: version.format,
                oldest: MODEL_FORMAT,
                newest: MODEL_FORMAT,
            }
            .into());
        }
        let config: ModelConfig = file.metadata()?;
        config.check().map_err(|reason| file.corrupt(reason))?;
        let network = DeepHashNet::new(
            config.backbone,
            &config.input,
            config.code_len()?.bits(),
            config.method.head(),
            0,
            device,
        )?;
        file.copy_into(&weight_handles(&network))?;
        let model_id = model_id(&config, &values_of(&weight_handles(&network))?);
        if model_id != config.model_id {
            return Err(file.corrupt(format!(
                "expected weights of the model {}, found those of {model_id}",
                config.model_id
            )));
        }
        Ok(Checkpoint { config, network })
    }

    /// Sets the model id and writes the file, atomically.
    ///
    /// # Errors
    /// `Io`, `Torch`.
    pub(crate) fn save(&mut self, path: &Path) -> Result<()> {
        let values = values_of(&weight_handles(&self.network))?;
        self.config.model_id = model_id(&self.config, &values);
        write_tensors(path, &values, &self.config)
    }
}

#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// The file that holds the state of the run that writes `model`.
pub fn state_path(model: &Path) -> PathBuf {
    let mut name = model.as_os_str().to_owned();
    name.push(".state");
    PathBuf::from(name)
}

/// Second handles of all tensors of a network, by name.
pub(crate) fn weight_handles(network: &DeepHashNet) -> Vec<(String, Tensor)> {
    let entries = network.weights().entries().iter();
    entries
        .map(|entry| (entry.name.clone(), entry.tensor.shallow_clone()))
        .collect()
}

fn model_id(config: &ModelConfig, weights: &[Values]) -> String {
    let mut digest = Sha256::new();
    for Values { name, shape, bytes } in by_name(weights) {
        digest.update(name.as_bytes());
        digest.update(format!("{shape:?}").as_bytes());
        digest.update(bytes);
    }
    // What happens to a picture before the first weight makes codes as much as the weights do.
    match &config.input {
        InputSpec::Pictures(input) => {
            let (side, channels) = (input.picture_side, input.picture_channels);
            digest.update(format!("{} {side} {channels}", config.backbone).as_bytes());
            let Normalization { mean, std } = &input.normalization;
            for value in mean.iter().chain(std) {
                digest.update(value.to_bits().to_le_bytes());
            }
            // Not for the default: models older than this rule keep their ids.
            if input.resize != Resize::default() {
                let Resize { filter, crop_share } = input.resize;
                digest.update(format!("{filter:?} {crop_share}").as_bytes());
            }
        }
        InputSpec::Features { features } => {
            digest.update(format!("{} {features}", config.backbone).as_bytes());
        }
    }
    format!(
        "{}-{}-{}",
        config.method.name(),
        config.code_len_bits,
        short_hex(&digest.finalize())
    )
}

/// The first 12 hexadecimal digits of a digest.
pub(crate) fn short_hex(digest: &[u8]) -> String {
    hex(&digest[..6])
}

/// A float32 tensor as it stands in a file. Both the digest and the file are made of it: after every epoch a tensor comes from
/// its device once.
pub(crate) struct Values {
    name: String,
    shape: Vec<usize>,
    /// Row-major, little endian.
    bytes: Vec<u8>,
}

/// The values of float32 tensors.
pub(crate) fn values_of(tensors: &[(String, Tensor)]) -> Result<Vec<Values>> {
    let values = |(name, tensor): &(String, Tensor)| {
        let mut values = floats(tensor)?;
        if cfg!(target_endian = "big") {
            for value in &mut values {
                *value = f32::from_bits(value.to_bits().swap_bytes());
            }
        }
        Ok(Values {
            name: name.clone(),
            shape: tensor.size().iter().map(|&size| size as usize).collect(),
            bytes: bytemuck::cast_slice(&values).to_vec(),
        })
    };
    tensors.iter().map(values).collect()
}

/// In the order of names, as digests are made.
fn by_name(values: &[Values]) -> Vec<&Values> {
    let mut sorted: Vec<&Values> = values.iter().collect();
    sorted.sort_unstable_by_key(|values| &values.name);
    sorted
}

/// Writes float32 tensors and `metadata` to `path`, atomically.
pub(crate) fn write_tensors(
    path: &Path,
    tensors: &[Values],
    metadata: &impl Serialize,
) -> Result<()> {
    let failed = |what: String| Error::new(ErrorKind::Io(format!("{}: {what}", path.display())));
    let views = tensors
        .iter()
        .map(|Values { name, shape, bytes }| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
            Ok((name, view.map_err(|error| failed(error.to_string()))?))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata =
        serde_json::to_string(metadata).map_err(|error| failed(format!("metadata: {error}")))?;
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), metadata)]);
    let bytes =
        safetensors::serialize(views, Some(metadata)).map_err(|error| failed(error.to_string()))?;
    write_whole(path, &bytes)
}

/// The first 12 hexadecimal digits of the SHA-256 of `text` and of tensors' bytes with their names, in the order of names.
pub(crate) fn sealed_digest(text: &str, tensors: &[Values]) -> String {
    let tensors = by_name(tensors).into_iter();
    seal(
        text,
        tensors.map(|values| (values.name.as_str(), values.bytes.as_slice())),
    )
}

fn seal<'a>(text: &str, tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut digest = Sha256::new();
    digest.update(text);
    for (name, bytes) in tensors {
        digest.update(name);
        digest.update(bytes);
    }
    short_hex(&digest.finalize())
}

/// A safetensors file in memory.
pub(crate) struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl TensorFile {
    /// Reads the whole file, after checking its size and the start of its header.
    pub fn read(path: &Path) -> Result<TensorFile> {
        let metadata = fs::metadata(path).map_err(|error| Error::io(path, error))?;
        let size = metadata.len();
        let file = TensorFile {
            path: path.to_owned(),
            bytes: Vec::new(),
        };
        if !metadata.is_file() {
            return Err(file.corrupt("expected a file, found a folder or a pipe".into()));
        }
        if size > FILE_BYTES_MAX {
            return Err(file.corrupt(format!(
                "expected at most {FILE_BYTES_MAX} bytes, found {size}"
            )));
        }
        let bytes = fs::read(path).map_err(|error| Error::io(path, error))?;
        let header_bytes = match bytes.first_chunk::<8>() {
            Some(length) => u64::from_le_bytes(*length),
            None => {
                return Err(
                    file.corrupt(format!("expected a safetensors file, found {size} bytes"))
                );
            }
        };
        if header_bytes > HEADER_BYTES_MAX || bytes.get(8) != Some(&b'{') {
            return Err(file.corrupt("expected a safetensors file, found another format".into()));
        }
        Ok(TensorFile { bytes, ..file })
    }

    /// An error about this file.
    pub fn corrupt(&self, reason: String) -> Error {
        Error::corrupt(format!("model file {}", self.path.display()), reason)
    }

    /// The first 12 hexadecimal digits of the file's SHA-256.
    pub fn digest(&self) -> String {
        short_hex(&Sha256::digest(&self.bytes))
    }

    /// [`sealed_digest`] of `text` and this file's tensors.
    pub fn sealed_digest(&self, text: &str) -> Result<String> {
        let parsed = self.parse()?;
        let names = self.names()?;
        let bytes = |name| match parsed.tensor(name) {
            Ok(view) => Ok((name, view.data())),
            Err(error) => Err(self.corrupt(error.to_string())),
        };
        let tensors = names.iter().map(|name| bytes(name.as_str()));
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        Ok(seal(text, tensors.into_iter()))
    }

    /// The names of its tensors, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        let parsed = self.parse()?;
        let mut names: Vec<String> = parsed.names().into_iter().map(|n| n.to_owned()).collect();
        names.sort();
        Ok(names)
    }

    fn parse(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes).map_err(|error| {
            self.corrupt(format!(
                "expected a whole safetensors file, found {} bytes with this fault: {error}",
                self.bytes.len()
            ))
        })
    }

    /// The JSON under our metadata key.
    pub fn metadata<T: DeserializeOwned>(&self) -> Result<T> {
        self.parse()?;
        let (_, header) = SafeTensors::read_metadata(&self.bytes)
            .map_err(|error| self.corrupt(error.to_string()))?;
        let text = header
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(METADATA_KEY))
            .ok_or_else(|| {
                self.corrupt(format!(
                    "expected metadata under the key {METADATA_KEY:?}, found none; only models trained by tanhash are read"
                ))
            })?;
        serde_json::from_str(text).map_err(|error| self.corrupt(format!("metadata: {error}")))
    }

    /// The shape and the values of one float32 tensor.
    ///
    /// # Errors
    /// `Corrupt` where there is none of this name and type.
    pub fn values(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let parsed = self.parse()?;
        let view = parsed
            .tensor(name)
            .ok()
            .filter(|view| view.dtype() == Dtype::F32)
            .ok_or_else(|| self.corrupt(format!("expected a float32 tensor {name}, found none")))?;
        let (chunks, _) = view.data().as_chunks::<4>();
        let values = chunks.iter().map(|bytes| f32::from_le_bytes(*bytes));
        Ok((view.shape().to_vec(), values.collect()))
    }

    /// Copies every tensor of the file into the one of the same name.
    ///
    /// # Errors
    /// `Corrupt` unless names, shapes and dtypes are exactly those of `tensors` and all values finite.
    /// Checked before the first value is copied, so a refused file changes nothing.
    pub fn copy_into(&self, tensors: &[(String, Tensor)]) -> Result<()> {
        self.copy_some_into(tensors, &|_| false)
    }

    /// As [`TensorFile::copy_into`], where tensors of the file that are `passed_over` by name may be more.
    pub fn copy_some_into(
        &self,
        tensors: &[(String, Tensor)],
        passed_over: &dyn Fn(&str) -> bool,
    ) -> Result<()> {
        let parsed = self.parse()?;
        let mut found: BTreeMap<String, TensorView<'_>> = parsed
            .tensors()
            .into_iter()
            .filter(|(name, _)| !passed_over(name))
            .collect();
        let mut values = Vec::with_capacity(tensors.len());
        for (name, tensor) in tensors {
            let view = found
                .remove(name)
                .ok_or_else(|| self.corrupt(format!("expected a tensor {name}, found none")))?;
            let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
            if view.dtype() != Dtype::F32 || shape != tensor.size() {
                return Err(self.corrupt(format!(
                    "tensor {name}: expected {:?} {:?}, found {:?} {shape:?}",
                    Dtype::F32,
                    tensor.size(),
                    view.dtype()
                )));
            }
            let floats: Vec<f32> = view
                .data()
                .chunks_exact(4)
                .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("chunks of four bytes")))
                .collect();
            if let Some(value) = floats.iter().find(|value| !value.is_finite()) {
                return Err(self.corrupt(format!(
                    "tensor {name}: expected finite values, found {value}"
                )));
            }
            values.push(Tensor::f_from_slice(&floats)?.f_view(&shape[..])?);
        }
        if let Some(name) = found.keys().next() {
            return Err(self.corrupt(format!(
                "expected {} tensors, found {} more, among them {name}",
                tensors.len(),
                found.len()
            )));
        }
        let _no_grad = tch::no_grad_guard();
        for ((_, tensor), value) in tensors.iter().zip(&values) {
            tensor.shallow_clone().f_copy_(value)?;
        }
        Ok(())
    }
}

//! A backbone alone: the features of a whole data set, in a memory-mapped file.
//!
//! Heads train on such files in seconds, where the backbone takes minutes or hours. Files are written row
//! by row and go on where a killed run stopped; their names are a digest of everything that decides their
//! values.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::data::{Dataset, ExampleSet, Source};
use crate::deep::augment::bytes_tensor;
use crate::deep::backbone::{self, Backbone, BackboneKind, WeightsRecord};
use crate::deep::checkpoint::{InputSpec, ModelConfig, PictureInput, short_hex};
use crate::deep::device::{self, Device, Stream};
use crate::deep::weights::Weights;
use crate::error::{Error, Result};
use crate::npy::{NpyFile, NpyWriter};

/// Pictures that the network sees at once.
const BATCH: usize = 64;

/// Batches that are decoded ahead of the network.
const AHEAD: usize = 2;

/// A pretrained feature network, ready to be run over data sets.
pub struct FeatureExtractor {
    kind: BackboneKind,
    network: Box<dyn Backbone>,
    input: PictureInput,
    weights: WeightsRecord,
    device: tch::Device,
}

impl FeatureExtractor {
    /// The backbone `kind` with published weights, for pictures of `side` x `side` pixels, 224 if `None`.
    ///
    /// # Errors
    /// `InvalidArgument` for a backbone that does not read pictures of any size, and for a side below 64 or
    /// above 1024; `Io` or `Corrupt` for weights that cannot be read or are not exactly the backbone's;
    /// `Unsupported` for an absent GPU; `Torch`.
    pub fn open(
        kind: BackboneKind,
        side: Option<usize>,
        weights: &Path,
        device: Device,
    ) -> Result<FeatureExtractor> {
        let device = device.resolve()?;
        if kind.picture_shape(side)?.is_none() {
            return Err(Error::invalid(format!(
                "expected a backbone with published weights, such as efficientnet-lite0, got {kind}"
            )));
        }
        let input = kind.imagenet_input(side);
        let mut tensors = Weights::new(device);
        let mut rng = device::rng(0, Stream::Weights);
        let spec = InputSpec::Pictures(input.clone());
        let mut network = kind.build(&mut tensors, &spec, &mut rng)?;
        let weights = backbone::load_weights(kind, &tensors, weights)?;
        network.fold()?;
        Ok(FeatureExtractor {
            kind,
            network,
            input,
            weights,
            device,
        })
    }

    /// q, the number of features.
    pub fn n_features(&self) -> usize {
        self.network.features() as usize
    }

    /// Which weights these are.
    pub fn weights(&self) -> &WeightsRecord {
        &self.weights
    }

    /// Features n x q of the examples `chosen`, row-major.
    ///
    /// # Errors
    /// As [`ExampleSet::pixels`]; `Torch`.
    pub fn features(&self, set: &ExampleSet, chosen: &[usize]) -> Result<Vec<f32>> {
        let pixels = set.pixels(chosen, self.input.shape(), self.input.resize)?;
        self.of_pixels(&pixels)
    }

    fn of_pixels(&self, pixels: &[u8]) -> Result<Vec<f32>> {
        let _no_grad = tch::no_grad_guard();
        let bytes = device::moved(&bytes_tensor(pixels, self.input.shape())?, self.device)?;
        let pictures = self.input.normalization.apply(&bytes)?;
        let features = self.network.forward(&pictures, false)?;
        device::floats(&features)
    }

    /// Writes the features of all examples of `set` to the `.npy` file `path`, going on where a killed
    /// run stopped. A finished file is left as it is. `progress` gets the number of rows done.
    ///
    /// # Errors
    /// As [`FeatureExtractor::features`]; `Io`; `Corrupt` if what is there is of another size.
    pub fn write(
        &self,
        set: &ExampleSet,
        path: &Path,
        progress: &mut dyn FnMut(usize),
    ) -> Result<()> {
        if path.exists() {
            let file = NpyFile::open(path)?;
            if file.header().shape != [set.len(), self.n_features()] {
                return Err(Error::corrupt(
                    path.display().to_string(),
                    format!(
                        "expected {} x {} numbers, found the shape {:?}; remove it or choose another place",
                        set.len(),
                        self.n_features(),
                        file.header().shape
                    ),
                ));
            }
            progress(set.len());
            return Ok(());
        }
        let mut writer = NpyWriter::resume(path, set.len(), self.n_features())?;
        let first = writer.written();
        progress(first);
        let rows: Vec<usize> = (first..set.len()).collect();
        let (shape, resize) = (self.input.shape(), self.input.resize);
        // Pictures are decoded and resized while the network works on those before them.
        std::thread::scope(|scope| {
            let (sender, receiver) = crossbeam_channel::bounded(AHEAD);
            let rows = &rows;
            scope.spawn(move || {
                for chunk in rows.chunks(BATCH) {
                    let pixels = set.pixels(chunk, shape, resize);
                    // The other side is gone after an error, which it reports.
                    if sender.send(pixels).is_err() {
                        return;
                    }
                }
            });
            for pixels in receiver {
                writer.append(&self.of_pixels(&pixels?)?)?;
                progress(writer.written());
            }
            Ok::<(), Error>(())
        })?;
        writer.finish()
    }

    /// The data set with its pictures replaced by their features, which are kept in `cache` under a name
    /// made from the backbone, its weights and the pictures. All pictures of the data set are in the
    /// file, so every split of it shares one.
    ///
    /// # Errors
    /// As [`FeatureExtractor::write`].
    pub fn dataset(
        &self,
        dataset: &Dataset,
        cache: &Path,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Dataset> {
        std::fs::create_dir_all(cache).map_err(|error| Error::io(cache, error))?;
        let source = dataset.train.source();
        let path = cache.join(cache_name(self.kind, &self.weights, &self.input, source)?);
        let all = dataset.train.whole_source();
        self.write(&all, &path, &mut |done| progress(done, all.len()))?;
        with_features(dataset, &path)
    }
}

/// The data set with its pictures replaced by their features in `cache`, where the model `config` was
/// trained on those; `None` where they are not there, or the model's backbone was trained too.
///
/// # Errors
/// `Io`; `Corrupt` for a damaged file.
pub fn cached(config: &ModelConfig, dataset: &Dataset, cache: &Path) -> Result<Option<Dataset>> {
    let frozen = config.training["freeze"] == serde_json::Value::Bool(true);
    let (Some(weights), InputSpec::Pictures(input), true) =
        (&config.backbone_weights, &config.input, frozen)
    else {
        return Ok(None);
    };
    let path = cache.join(cache_name(
        config.backbone,
        weights,
        input,
        dataset.train.source(),
    )?);
    match path.is_file() {
        true => with_features(dataset, &path).map(Some),
        false => Ok(None),
    }
}

/// The data set with row i of its source replaced by row i of the file at `path`.
fn with_features(dataset: &Dataset, path: &Path) -> Result<Dataset> {
    let source = Arc::new(Source::Features(NpyFile::open(path)?));
    let set = |set: &Arc<ExampleSet>| -> Result<Arc<ExampleSet>> {
        Ok(Arc::new(set.on_source(Arc::clone(&source))?))
    };
    let train = set(&dataset.train)?;
    let database = match Arc::ptr_eq(&dataset.database, &dataset.train) {
        true => Arc::clone(&train),
        false => set(&dataset.database)?,
    };
    let query = match Arc::ptr_eq(&dataset.query, &dataset.database) {
        true => Arc::clone(&database),
        false => set(&dataset.query)?,
    };
    Ok(Dataset {
        train,
        database,
        query,
        ..dataset.clone()
    })
}

/// The name of a cache file: backbone, weights, and a digest of the pictures and of what happens to them.
fn cache_name(
    kind: BackboneKind,
    weights: &WeightsRecord,
    input: &PictureInput,
    source: &Source,
) -> Result<PathBuf> {
    let mut digest = Sha256::new();
    digest.update(format!("{input:?}").as_bytes());
    if let Source::Features(_) = source {
        return Err(Error::invalid(
            "expected pictures, the data set has feature vectors already; train on them as they are, without a backbone",
        ));
    }
    digest.update(source.digest()?);
    Ok(PathBuf::from(format!(
        "{kind}-{}-{}.npy",
        weights.sha256,
        short_hex(&digest.finalize())
    )))
}

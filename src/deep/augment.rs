//! Batches: what a network reads, on its device; for training with pictures changed at random.
//!
//! Small pictures stay on the device as bytes and vectors as they are; large pictures are decoded and resized
//! on all cores, a batch at a time. Every change is one tensor operation over the whole batch, so
//! augmentation costs next to nothing on either device.

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::data::{ExampleSet, PictureShape, Source};
use crate::deep::checkpoint::{InputSpec, PictureInput};
use crate::deep::device::moved;
use crate::deep::erase::erase;
use crate::error::{Error, Result};
use crate::media::Resize;

/// What training does to each picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// The picture moves by up to this many pixels along each axis; the edge is black. Only where the
    /// network reads pictures as they are stored.
    pub shift_px: usize,
    /// Half of the pictures are mirrored left to right.
    pub flip: bool,
    /// A part of this area, at least, is cut out and scaled to the network's size: torchvision's
    /// `RandomResizedCrop`, with sides of 3:4 to 4:3. The area is a share of the picture; of a picture
    /// file, of the square in its middle. Linear interpolation.
    pub crop_area_min: Option<f64>,
    /// Bytes are scaled by up to this share, more or less: `ColorJitter(brightness)`.
    pub brightness: f64,
    /// Differences from the picture's mean grey are scaled likewise: `ColorJitter(contrast)`. Always
    /// after the brightness.
    pub contrast: f64,
    /// The probability that a rectangle of 2 to 40 % of the area becomes noise: random erasing (Zhong et
    /// al., AAAI 2020), after everything else.
    pub erase: f64,
}

impl Default for Augment {
    fn default() -> Augment {
        Augment {
            shift_px: 1,
            ..Augment::FLIP
        }
    }
}

impl Augment {
    /// Pictures as they are.
    pub const NONE: Augment = Augment {
        shift_px: 0,
        flip: false,
        crop_area_min: None,
        brightness: 0.0,
        contrast: 0.0,
        erase: 0.0,
    };

    /// Mirroring alone.
    pub const FLIP: Augment = Augment {
        flip: true,
        ..Augment::NONE
    };

    /// OrthoHash's recipe for CIFAR with a network for ImageNet: mirroring and slight changes of light.
    pub const JITTER: Augment = Augment {
        brightness: 0.05,
        contrast: 0.05,
        ..Augment::FLIP
    };

    /// The usual recipe for pictures of 224 pixels: `RandomResizedCrop` of 8 % at least, mirroring.
    pub const RESIZED_CROP: Augment = Augment {
        crop_area_min: Some(0.08),
        ..Augment::FLIP
    };

    /// The usual recipe for CIFAR from nothing: 4 pixels of padding, mirroring.
    pub const PAD_CROP: Augment = Augment {
        shift_px: 4,
        ..Augment::FLIP
    };

    /// The same with random erasing in half of the pictures.
    pub const PAD_CROP_ERASE: Augment = Augment {
        erase: 0.5,
        ..Augment::PAD_CROP
    };

    /// A recipe by name.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown name.
    pub fn from_name(name: &str) -> Result<Augment> {
        Ok(match name {
            "none" => Augment::NONE,
            "flip" => Augment::FLIP,
            "shift" => Augment::default(),
            "pad-crop" => Augment::PAD_CROP,
            "pad-crop-erase" => Augment::PAD_CROP_ERASE,
            "jitter" => Augment::JITTER,
            "resized-crop" => Augment::RESIZED_CROP,
            _ => {
                return Err(Error::invalid(format!(
                    "no augmentation is called {name:?}; there are none, flip, shift, pad-crop, pad-crop-erase, jitter, resized-crop"
                )));
            }
        })
    }

    /// # Errors
    /// `InvalidArgument` for a value out of range.
    pub(crate) fn check(&self) -> Result<()> {
        let area = self.crop_area_min.unwrap_or(1.0);
        let shares = [self.brightness, self.contrast, self.erase];
        if !(area > 0.0 && area <= 1.0) || shares.iter().any(|x| !(0.0..=1.0).contains(x)) {
            return Err(Error::invalid(format!(
                "expected an area above 0 and at most 1, and brightness, contrast and erase from 0 to 1, got {self:?}"
            )));
        }
        Ok(())
    }
}

/// Mean and standard deviation of the train split, per channel, of values from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalization {
    /// One mean a channel.
    pub mean: Vec<f32>,
    /// One standard deviation a channel, above 0.
    pub std: Vec<f32>,
}

impl Normalization {
    /// Measured over all pictures of `set`, which are in memory.
    ///
    /// # Errors
    /// `InvalidArgument` for picture files or features.
    pub fn measure(set: &ExampleSet) -> Result<Normalization> {
        let shape = set.stored_shape().ok_or_else(|| {
            Error::invalid("expected pictures in memory to measure, got files or feature vectors")
        })?;
        let channels = shape.channels;
        // Sums of bytes and of their squares are exact in integers.
        let mut sums = vec![(0u64, 0u64); channels];
        let pictures = (0..set.len()).filter_map(|i| set.stored_picture(i));
        for pixel in pictures.flat_map(|picture| picture.chunks_exact(channels)) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                sum.0 += u64::from(value);
                sum.1 += u64::from(value) * u64::from(value);
            }
        }
        let n_pixels = (set.len() * shape.side * shape.side).max(1) as f64;
        let moments = sums.iter().map(|&(sum, squares)| {
            let mean = sum as f64 / n_pixels;
            let variance = (squares as f64 / n_pixels - mean * mean).max(0.0);
            // A set of one colour has no spread; 1/255 keeps its pictures finite.
            (mean / 255.0, variance.sqrt().max(1.0) / 255.0)
        });
        let (mean, std) = moments.map(|(m, s)| (m as f32, s as f32)).unzip();
        Ok(Normalization { mean, std })
    }

    /// Bytes N x side x side x channels to float32 N x channels x side x side, channels last in memory.
    pub(crate) fn apply(&self, bytes: &Tensor) -> Result<Tensor> {
        let device = bytes.device();
        let scale: Vec<f32> = self.std.iter().map(|std| 1.0 / (255.0 * std)).collect();
        let shift = self.mean.iter().zip(&self.std).map(|(m, std)| -m / std);
        let shift = moved(&Tensor::f_from_slice(&shift.collect::<Vec<f32>>())?, device)?;
        let scale = moved(&Tensor::f_from_slice(&scale)?, device)?;
        let pixels = bytes.f_to_kind(Kind::Float)?.f_mul(&scale)?.f_add(&shift)?;
        Ok(pixels.f_permute([0, 3, 1, 2])?)
    }
}

/// Feature vectors of more values than this stay in their file.
const RESIDENT_VALUES_MAX: usize = 1 << 29;

/// The square that pictures from files are brought to before a part is cut out of it, over the network's
/// size: 256 for 224.
const CROP_MARGIN: f64 = 8.0 / 7.0;

/// The narrowest part that is cut out, as width over height; the widest is its inverse.
const ASPECT_MIN: f64 = 0.75;

/// Examples that a network sees at once where it is asked and not trained.
const PART_EXAMPLES: usize = 256;

/// A split, ready to be cut into batches.
pub(crate) struct Batches {
    set: Arc<ExampleSet>,
    input: InputSpec,
    augment: Augment,
    device: tch::Device,
    store: Store,
}

/// What lies on the device.
enum Store {
    /// Bytes N x (side + 2 shift) x (side + 2 shift) x channels, of the network's side.
    Padded(Tensor),
    /// Bytes N x side x side x channels, of another side.
    Stored(Tensor),
    /// Values N x q.
    Features(Tensor),
    /// Nothing: each batch is fetched.
    Fetched,
}

impl Batches {
    /// Moves what fits of `set` to `device`.
    pub fn new(
        set: Arc<ExampleSet>,
        input: InputSpec,
        augment: Augment,
        device: tch::Device,
    ) -> Result<Batches> {
        augment.check()?;
        let all: Vec<usize> = (0..set.len()).collect();
        let store = match (&input, set.source()) {
            (InputSpec::Features { features }, _) => {
                if set.n_features() != Some(*features) {
                    return Err(Error::invalid(format!(
                        "expected {input}, the data set has others"
                    )));
                }
                match set.len() * features <= RESIDENT_VALUES_MAX {
                    true => Store::Features(feature_tensor(&set, &all)?.f_to_device(device)?),
                    false => Store::Fetched,
                }
            }
            (InputSpec::Pictures(input), &Source::Pixels { shape, .. })
                if shape == input.shape() && augment.crop_area_min.is_none() =>
            {
                let bytes = bytes_tensor(&set.pixels(&all, shape, Resize::default())?, shape)?;
                let shift = augment.shift_px as i64;
                let padded = bytes.f_constant_pad_nd([0, 0, shift, shift, shift, shift])?;
                Store::Padded(padded.f_to_device(device)?)
            }
            (InputSpec::Pictures(input), &Source::Pixels { shape, .. })
                if augment.crop_area_min.is_some() && shape.channels == input.picture_channels =>
            {
                let bytes = bytes_tensor(&set.pixels(&all, shape, Resize::default())?, shape)?;
                Store::Stored(bytes.f_to_device(device)?)
            }
            (InputSpec::Pictures(_), _) => Store::Fetched,
        };
        Ok(Batches {
            set,
            input,
            augment,
            device,
            store,
        })
    }

    /// What the network reads of these rows: pictures N x channels x side x side, augmented, or vectors
    /// N x q.
    pub fn batch(&self, rows: &[i64], rng: &mut ChaCha8Rng) -> Result<Tensor> {
        let input = match &self.input {
            InputSpec::Features { .. } => return self.features(rows),
            InputSpec::Pictures(input) => input,
        };
        let pictures = self.pictures(rows, input, rng)?;
        match self.augment.erase {
            0.0 => Ok(pictures),
            chance => erase(&pictures, chance, &input.normalization, rng),
        }
    }

    /// What the network reads of these rows, in parts, where it is asked and not trained: as they are. For batches without
    /// augmentation.
    pub fn parts<'a>(
        &'a self,
        rows: &'a [i64],
    ) -> impl Iterator<Item = (&'a [i64], Result<Tensor>)> {
        debug_assert!(self.augment == Augment::NONE, "{:?}", self.augment);
        // Nothing is drawn.
        let mut unused = ChaCha8Rng::seed_from_u64(0);
        let parts = rows.chunks(self.input.batch(PART_EXAMPLES));
        parts.map(move |rows| (rows, self.batch(rows, &mut unused)))
    }

    /// Pictures moved, cut, mirrored and relit.
    fn pictures(&self, rows: &[i64], input: &PictureInput, rng: &mut ChaCha8Rng) -> Result<Tensor> {
        match &self.store {
            Store::Padded(padded) => {
                let bytes = self.shifted(padded, rows, input.shape(), rng)?;
                let bytes = self.relit(bytes.f_to_kind(Kind::Float)?, rng)?;
                input.normalization.apply(&bytes)
            }
            Store::Stored(stored) => {
                let index = moved(&Tensor::f_from_slice(rows)?, self.device)?;
                self.cropped(&stored.f_index_select(0, &index)?, input, rng)
            }
            _ if self.augment.crop_area_min.is_some() => {
                let shape = PictureShape {
                    side: (input.picture_side as f64 * CROP_MARGIN).round() as usize,
                    channels: input.picture_channels,
                };
                let resize = Resize {
                    crop_share: 1.0,
                    ..input.resize
                };
                let bytes = self.set.pixels(&indexes(rows), shape, resize)?;
                let bytes = moved(&bytes_tensor(&bytes, shape)?, self.device)?;
                self.cropped(&bytes, input, rng)
            }
            _ => {
                let shape = input.shape();
                let bytes = self.set.pixels(&indexes(rows), shape, input.resize)?;
                let bytes = moved(&bytes_tensor(&bytes, shape)?, self.device)?;
                let bytes = self.relit(bytes.f_to_kind(Kind::Float)?, rng)?;
                self.flipped(&input.normalization.apply(&bytes)?, rng)
            }
        }
    }

    fn features(&self, rows: &[i64]) -> Result<Tensor> {
        match &self.store {
            Store::Features(features) => {
                let index = moved(&Tensor::f_from_slice(rows)?, self.device)?;
                Ok(features.f_index_select(0, &index)?)
            }
            _ => Ok(moved(
                &feature_tensor(&self.set, &indexes(rows))?,
                self.device,
            )?),
        }
    }

    /// One gather picks, shifts and mirrors a whole batch.
    fn shifted(
        &self,
        padded: &Tensor,
        rows: &[i64],
        shape: PictureShape,
        rng: &mut ChaCha8Rng,
    ) -> Result<Tensor> {
        let side = shape.side as i64;
        let n_rows = rows.len() as i64;
        let shift_max = 2 * self.augment.shift_px as i64;
        let mut row_offsets = Vec::with_capacity(rows.len() * shape.side);
        let mut columns = Vec::with_capacity(rows.len() * shape.side);
        for _ in rows {
            let (down, right) = (
                rng.random_range(0..=shift_max),
                rng.random_range(0..=shift_max),
            );
            row_offsets.extend(down..down + side);
            match self.augment.flip && rng.random() {
                true => columns.extend((right..right + side).rev()),
                false => columns.extend(right..right + side),
            }
        }
        let index = |values: &[i64], shape: [i64; 3]| -> Result<Option<Tensor>> {
            let tensor = Tensor::f_from_slice(values)?.f_view(shape)?;
            Ok(Some(moved(&tensor, self.device)?))
        };
        Ok(padded.f_index(&[
            index(rows, [n_rows, 1, 1])?,
            index(&row_offsets, [n_rows, side, 1])?,
            index(&columns, [n_rows, 1, side])?,
        ])?)
    }

    /// Cuts a part out of each picture, scales it to the network's size, mirrors and relights.
    fn cropped(
        &self,
        bytes: &Tensor,
        input: &PictureInput,
        rng: &mut ChaCha8Rng,
    ) -> Result<Tensor> {
        let n_pictures = bytes.size()[0];
        let area_min = self.augment.crop_area_min.unwrap_or(1.0);
        let mut maps: Vec<f32> = Vec::with_capacity(6 * n_pictures as usize);
        for _ in 0..n_pictures {
            let (width, height, across, down) = crop(area_min, rng);
            let mirror = match self.augment.flip && rng.random() {
                true => -1.0,
                false => 1.0,
            };
            // Output coordinates from -1 to 1 to those of the whole picture.
            let map = [width * mirror, 0.0, across, 0.0, height, down];
            maps.extend(map.map(|value| value as f32));
        }
        let maps = moved(
            &Tensor::f_from_slice(&maps)?.f_view([-1, 2, 3])?,
            self.device,
        )?;
        let bytes = self.relit(bytes.f_to_kind(Kind::Float)?, rng)?;
        let pictures = input.normalization.apply(&bytes)?;
        let (channels, side) = (input.picture_channels as i64, input.picture_side as i64);
        let size = [n_pictures, channels, side, side];
        let grid = Tensor::f_affine_grid_generator(&maps, size, false)?;
        // Linear interpolation; at the edge the edge's own value.
        let cropped = pictures.f_grid_sampler(&grid, 0, 1, false)?;
        channels_last(&cropped)
    }

    /// Mirrors half of the pictures N x channels x side x side.
    fn flipped(&self, pictures: &Tensor, rng: &mut ChaCha8Rng) -> Result<Tensor> {
        if !self.augment.flip {
            return Ok(pictures.shallow_clone());
        }
        let mirror: Vec<bool> = (0..pictures.size()[0]).map(|_| rng.random()).collect();
        let mirror = Tensor::f_from_slice(&mirror)?.f_view([-1, 1, 1, 1])?;
        let mirrored = pictures.f_flip([3i64])?;
        channels_last(&mirrored.f_where_self(&moved(&mirror, self.device)?, pictures)?)
    }

    /// Changes brightness and contrast of bytes N x side x side x channels, as torchvision's
    /// `ColorJitter` does in that order.
    fn relit(&self, bytes: Tensor, rng: &mut ChaCha8Rng) -> Result<Tensor> {
        let Augment {
            brightness,
            contrast,
            ..
        } = self.augment;
        if brightness == 0.0 && contrast == 0.0 {
            return Ok(bytes);
        }
        let n_pictures = bytes.size()[0];
        let mut factors = |spread: f64| -> Result<Tensor> {
            let factors: Vec<f32> = (0..n_pictures)
                .map(|_| (1.0 + spread * rng.random_range(-1.0..=1.0)) as f32)
                .collect();
            let factors = Tensor::f_from_slice(&factors)?.f_view([-1, 1, 1, 1])?;
            moved(&factors, self.device)
        };
        let (light, spread) = (factors(brightness)?, factors(contrast)?);
        let lit = bytes.f_mul(&light)?.f_clamp(0.0, 255.0)?;
        let grey = match bytes.size()[3] {
            3 => {
                let weights = Tensor::f_from_slice(&[0.299f32, 0.587, 0.114])?;
                let weights = moved(&weights, self.device)?;
                lit.f_matmul(&weights)?
                    .f_mean_dim([1i64, 2].as_slice(), false, None)?
            }
            _ => lit.f_mean_dim([1i64, 2, 3].as_slice(), false, None)?,
        };
        let grey = grey.f_view([-1, 1, 1, 1])?;
        let far = lit.f_sub(&grey)?.f_mul(&spread)?.f_add(&grey)?;
        Ok(far.f_clamp(0.0, 255.0)?)
    }
}

/// Width, height, and the middle's place across and down, of a random part of a picture, in shares of
/// its half side: torchvision's `RandomResizedCrop` on a square.
fn crop(area_min: f64, rng: &mut ChaCha8Rng) -> (f64, f64, f64, f64) {
    for _ in 0..10 {
        let area: f64 = rng.random_range(area_min..=1.0);
        let aspect = rng.random_range(ASPECT_MIN.ln()..=-ASPECT_MIN.ln()).exp();
        let (width, height) = ((area * aspect).sqrt(), (area / aspect).sqrt());
        if width <= 1.0 && height <= 1.0 {
            let mut offset = |size: f64| (1.0 - size) * rng.random_range(-1.0..=1.0);
            let (across, down) = (offset(width), offset(height));
            return (width, height, across, down);
        }
    }
    (1.0, 1.0, 0.0, 0.0)
}

fn indexes(rows: &[i64]) -> Vec<usize> {
    rows.iter().map(|&row| row as usize).collect()
}

/// Vectors n x q on the CPU.
fn feature_tensor(set: &ExampleSet, rows: &[usize]) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(&set.features(rows)?)?.f_view([rows.len() as i64, -1])?)
}

/// N x C x H x W with the channels last in memory, which convolutions prefer.
fn channels_last(pictures: &Tensor) -> Result<Tensor> {
    let rows = pictures.f_permute([0, 2, 3, 1])?.f_contiguous()?;
    Ok(rows.f_permute([0, 3, 1, 2])?)
}

/// Picture bytes as a tensor N x side x side x channels on the CPU.
pub(crate) fn bytes_tensor(pixels: &[u8], shape: PictureShape) -> Result<Tensor> {
    let picture_bytes = shape.side * shape.side * shape.channels;
    if picture_bytes == 0 || !pixels.len().is_multiple_of(picture_bytes) {
        return Err(Error::invalid(format!(
            "pictures of {0} x {0} x {1} take whole multiples of {picture_bytes} bytes, got {2}",
            shape.side,
            shape.channels,
            pixels.len()
        )));
    }
    let n_pictures = (pixels.len() / picture_bytes) as i64;
    let (side, channels) = (shape.side as i64, shape.channels as i64);
    Ok(Tensor::f_from_data_size(
        pixels,
        &[n_pictures, side, side, channels],
        Kind::Uint8,
    )?)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn set(pixels: Vec<u8>, side: usize, channels: usize) -> Arc<ExampleSet> {
        let labels = vec![0; pixels.len() / (side * side * channels)];
        let shape = PictureShape { side, channels };
        Arc::new(ExampleSet::from_pixels(shape, pixels, labels).unwrap())
    }

    /// Batches of `set` for a network that reads `side` pixels, bytes kept as they are.
    fn batches(set: &Arc<ExampleSet>, side: usize, augment: Augment) -> Batches {
        let channels = set.stored_shape().unwrap().channels;
        let normalization = Normalization {
            mean: vec![0.0; channels],
            std: vec![1.0 / 255.0; channels],
        };
        batches_with(set, side, augment, normalization)
    }

    fn batches_with(
        set: &Arc<ExampleSet>,
        picture_side: usize,
        augment: Augment,
        normalization: Normalization,
    ) -> Batches {
        let input = InputSpec::Pictures(PictureInput {
            picture_side,
            picture_channels: set.stored_shape().unwrap().channels,
            normalization,
            resize: Resize::default(),
        });
        Batches::new(set.clone(), input, augment, tch::Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(&tensor.contiguous().view([-1])).unwrap()
    }

    #[test]
    fn normalized_and_moved_to_channel_first() {
        let set = set(vec![0, 255, 9, 255, 0, 9, 0, 255, 9, 255, 0, 9], 2, 3);
        let normalization = Normalization::measure(&set).unwrap();
        assert_eq!(normalization.mean[..2], [0.5, 0.5]);
        assert_eq!(normalization.std[..2], [0.5, 0.5]);
        assert_eq!(normalization.std[2], 1.0 / 255.0);
        let batches = batches_with(&set, 2, Augment::NONE, normalization);
        let batch = batches
            .batch(&[0], &mut ChaCha8Rng::seed_from_u64(0))
            .unwrap();
        assert_eq!(batch.size(), [1, 3, 2, 2]);
        assert_eq!(values(&batch)[..8], [-1., 1., -1., 1., 1., -1., 1., -1.]);
    }

    #[test]
    fn shifts_and_flips_are_those_of_the_seed_and_stay_in_range() {
        let set = set((1..=18).collect(), 3, 1);
        let batches = batches(&set, 3, Augment::default());
        let rows = [1i64; 64];
        let batch = |seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            values(&batches.batch(&rows, &mut rng).unwrap())
        };
        assert_eq!(batch(3), batch(3));
        assert_ne!(batch(3), batch(4));
        let mut seen = std::collections::BTreeSet::new();
        for picture in batch(3).chunks(9) {
            // The middle of the picture is never lost by a shift of one.
            assert!(picture.iter().any(|value| value.round() == 14.0));
            seen.insert(picture.iter().map(|v| v.round() as u8).collect::<Vec<_>>());
        }
        assert!(
            seen.len() > 9,
            "shifts and flips both occur: {}",
            seen.len()
        );
    }

    #[test]
    fn parts_are_cut_out_and_scaled() {
        // Left half dark, right half light: a part shows one edge at most, and a mirrored one falls.
        let pixels: Vec<u8> = (0..64).map(|i| if i % 8 < 4 { 10 } else { 200 }).collect();
        let set = set(pixels, 8, 1);
        let cut = |augment, seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let batch = batches(&set, 16, augment)
                .batch(&[0; 64], &mut rng)
                .unwrap();
            assert_eq!(batch.size(), [64, 1, 16, 16]);
            values(&batch)
        };
        assert_eq!(cut(Augment::RESIZED_CROP, 1), cut(Augment::RESIZED_CROP, 1));
        assert_ne!(cut(Augment::RESIZED_CROP, 1), cut(Augment::RESIZED_CROP, 2));
        let (mut rising, mut falling, mut flat) = (0, 0, 0);
        for picture in cut(Augment::RESIZED_CROP, 1).chunks(256) {
            assert!(picture.iter().all(|value| (9.9..=200.1).contains(value)));
            match (picture[0], picture[15]) {
                (a, b) if a < b => rising += 1,
                (a, b) if a > b => falling += 1,
                _ => flat += 1,
            }
        }
        assert!(
            rising > 5 && falling > 5 && flat > 0,
            "{rising} {falling} {flat}"
        );
        // All of the picture, not mirrored, is the picture.
        let whole = Augment {
            crop_area_min: Some(1.0),
            ..Augment::NONE
        };
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let same = batches(&set, 8, whole).batch(&[0], &mut rng).unwrap();
        for (found, stored) in values(&same).iter().zip(set.stored_picture(0).unwrap()) {
            assert!((found - f32::from(*stored)).abs() < 0.01);
        }
    }

    #[test]
    fn light_changes_within_its_bounds() {
        let set = set([vec![100; 8], vec![200; 8]].concat(), 4, 1);
        let augment = Augment {
            flip: false,
            ..Augment::JITTER
        };
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let batch = values(&batches(&set, 4, augment).batch(&[0; 32], &mut rng).unwrap());
        let (mut means, mut spreads) = (Vec::new(), Vec::new());
        for picture in batch.chunks(16) {
            means.push((picture[0] + picture[15]) / 2.0);
            spreads.push(picture[15] - picture[0]);
        }
        // Brightness moves the mean 150 by 5 % at most, contrast the difference 100 by 5 % more.
        assert!(
            means.iter().all(|mean| (142.4..=157.6).contains(mean)),
            "{means:?}"
        );
        assert!(
            spreads.iter().all(|s| (90.2..=110.3).contains(s)),
            "{spreads:?}"
        );
        assert!(means.iter().any(|mean| (mean - 150.0).abs() > 3.0));
        assert!(spreads.iter().any(|s| (s - 100.0).abs() > 3.0));
        assert!(Augment::from_name("sepia").is_err());
        let wrong = Augment {
            crop_area_min: Some(0.0),
            ..Augment::NONE
        };
        assert!(wrong.check().is_err());
    }

    #[test]
    fn enlarged_pictures_are_mirrored_whole() {
        let set = set(vec![0, 90, 0, 90], 2, 1);
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let batch = values(
            &batches(&set, 6, Augment::FLIP)
                .batch(&[0; 32], &mut rng)
                .unwrap(),
        );
        let rising = batch
            .chunks(36)
            .filter(|picture| picture[0] < picture[5])
            .count();
        assert!((5..28).contains(&rising), "{rising}");
    }

    #[test]
    fn half_a_picture_is_refused() {
        let shape = PictureShape {
            side: 2,
            channels: 1,
        };
        assert!(bytes_tensor(&[0; 7], shape).is_err());
    }
}

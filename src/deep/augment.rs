//! Batches: normalized pictures on the device, for training shifted and flipped at random.
//!
//! A set stays on the device as bytes. One gather picks, shifts and flips a whole batch, so augmentation
//! costs next to nothing on either device. Leaves out anything that changes colours or scale.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::data::{PictureSet, PictureShape};
use crate::error::{Error, Result};

/// What training does to each picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// The picture moves by up to this many pixels along each axis; the edge is black.
    pub shift_px: usize,
    /// Half of the pictures are mirrored left to right.
    pub flip: bool,
}

impl Default for Augment {
    fn default() -> Augment {
        Augment {
            shift_px: 1,
            flip: true,
        }
    }
}

impl Augment {
    /// Pictures as they are.
    pub const NONE: Augment = Augment {
        shift_px: 0,
        flip: false,
    };
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
    /// Measured over all pictures of `set`.
    pub fn measure(set: &PictureSet) -> Normalization {
        let channels = set.shape.channels;
        // Sums of bytes and of their squares are exact in integers.
        let mut sums = vec![(0u64, 0u64); channels];
        for pixel in set.pixels.chunks_exact(channels) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                sum.0 += u64::from(value);
                sum.1 += u64::from(value) * u64::from(value);
            }
        }
        let n_pixels = (set.pixels.len() / channels.max(1)).max(1) as f64;
        let moments = sums.iter().map(|&(sum, squares)| {
            let mean = sum as f64 / n_pixels;
            let variance = (squares as f64 / n_pixels - mean * mean).max(0.0);
            // A set of one colour has no spread; 1/255 keeps its pictures finite.
            (mean / 255.0, variance.sqrt().max(1.0) / 255.0)
        });
        let (mean, std) = moments.map(|(m, s)| (m as f32, s as f32)).unzip();
        Normalization { mean, std }
    }

    /// Bytes N x side x side x channels to float32 N x channels x side x side, channels last in memory.
    pub(crate) fn apply(&self, bytes: &Tensor) -> Result<Tensor> {
        let device = bytes.device();
        let scale: Vec<f32> = self.std.iter().map(|std| 1.0 / (255.0 * std)).collect();
        let shift = self.mean.iter().zip(&self.std).map(|(m, std)| -m / std);
        let shift = Tensor::f_from_slice(&shift.collect::<Vec<f32>>())?.f_to_device(device)?;
        let scale = Tensor::f_from_slice(&scale)?.f_to_device(device)?;
        let pixels = bytes.f_to_kind(Kind::Float)?.f_mul(&scale)?.f_add(&shift)?;
        Ok(pixels.f_permute([0, 3, 1, 2])?)
    }
}

/// A picture set on the device, ready to be cut into batches.
pub(crate) struct Batches {
    /// N x (side + 2 shift) x (side + 2 shift) x channels bytes.
    padded: Tensor,
    shape: PictureShape,
    augment: Augment,
    normalization: Normalization,
}

impl Batches {
    /// Moves `set` to `device`.
    pub fn new(
        set: &PictureSet,
        augment: Augment,
        normalization: Normalization,
        device: tch::Device,
    ) -> Result<Batches> {
        let bytes = bytes_tensor(&set.pixels, set.shape)?;
        let shift = augment.shift_px as i64;
        let padded = bytes.f_constant_pad_nd([0, 0, shift, shift, shift, shift])?;
        Ok(Batches {
            padded: padded.f_to_device(device)?,
            shape: set.shape,
            augment,
            normalization,
        })
    }

    /// The pictures of these rows, augmented: N x channels x side x side.
    pub fn batch(&self, rows: &[i64], rng: &mut ChaCha8Rng) -> Result<Tensor> {
        let side = self.shape.side as i64;
        let n_rows = rows.len() as i64;
        let shift_max = 2 * self.augment.shift_px as i64;
        let mut row_offsets = Vec::with_capacity(rows.len() * self.shape.side);
        let mut columns = Vec::with_capacity(rows.len() * self.shape.side);
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
        let device = self.padded.device();
        let index = |values: &[i64], shape: [i64; 3]| -> Result<Option<Tensor>> {
            let tensor = Tensor::f_from_slice(values)?.f_view(shape)?;
            Ok(Some(tensor.f_to_device(device)?))
        };
        let bytes = self.padded.f_index(&[
            index(rows, [n_rows, 1, 1])?,
            index(&row_offsets, [n_rows, side, 1])?,
            index(&columns, [n_rows, 1, side])?,
        ])?;
        self.normalization.apply(&bytes)
    }
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

    fn set(pixels: Vec<u8>, side: usize, channels: usize) -> PictureSet {
        let labels = vec![0; pixels.len() / (side * side * channels)];
        PictureSet {
            shape: PictureShape { side, channels },
            pixels,
            labels,
        }
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(&tensor.contiguous().view([-1])).unwrap()
    }

    #[test]
    fn normalized_and_moved_to_channel_first() {
        let set = set(vec![0, 255, 255, 0, 0, 255, 255, 0], 2, 2);
        let normalization = Normalization::measure(&set);
        assert_eq!(normalization.mean, [0.5, 0.5]);
        assert_eq!(normalization.std, [0.5, 0.5]);
        let batches = Batches::new(&set, Augment::NONE, normalization, tch::Device::Cpu).unwrap();
        let batch = batches
            .batch(&[0], &mut ChaCha8Rng::seed_from_u64(0))
            .unwrap();
        assert_eq!(batch.size(), [1, 2, 2, 2]);
        assert_eq!(values(&batch), [-1., 1., -1., 1., 1., -1., 1., -1.]);
    }

    #[test]
    fn shifts_and_flips_are_those_of_the_seed_and_stay_in_range() {
        let set = set((1..=18).collect(), 3, 1);
        let plain = Normalization {
            mean: vec![0.0],
            std: vec![1.0 / 255.0],
        };
        let augment = Augment {
            shift_px: 1,
            flip: true,
        };
        let batches = Batches::new(&set, augment, plain, tch::Device::Cpu).unwrap();
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
    fn half_a_picture_is_refused() {
        let shape = PictureShape {
            side: 2,
            channels: 1,
        };
        assert!(bytes_tensor(&[0; 7], shape).is_err());
    }
}

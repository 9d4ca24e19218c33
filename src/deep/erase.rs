//! Random erasing: a rectangle of a training picture becomes noise, so that no part of it is needed alone.
//!
//! Zhong, Zheng, Kang, Li and Yang, AAAI 2020, algorithm 1, with its variant RE-R (every value drawn anew) and its
//! settings for small pictures. Rectangles are drawn per picture, pixels are changed in one tensor operation
//! over the whole batch.

use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use crate::data::PictureShape;
use crate::deep::augment::{Normalization, bytes_tensor};
use crate::deep::device::moved;
use crate::error::Result;

/// The area that is erased, as a share of the picture.
const AREA: (f64, f64) = (0.02, 0.4);

/// The narrowest and the widest rectangle, as height over width.
const ASPECT: (f64, f64) = (0.3, 1.0 / 0.3);

/// The paper draws until a rectangle lies in the picture; one in three does, so this many draws always suffice.
const DRAWS_MAX: usize = 100;

/// A rectangle of pixels: its first row and the row behind its last one, and its columns likewise.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rectangle {
    rows: (i64, i64),
    columns: (i64, i64),
}

impl Rectangle {
    /// No pixel at all.
    const NONE: Rectangle = Rectangle {
        rows: (0, 0),
        columns: (0, 0),
    };

    /// A random one within a picture of `side` x `side` pixels.
    fn draw(side: i64, rng: &mut ChaCha8Rng) -> Rectangle {
        let length = side as f64;
        for _ in 0..DRAWS_MAX {
            let area = rng.random_range(AREA.0..=AREA.1) * length * length;
            let aspect: f64 = rng.random_range(ASPECT.0..=ASPECT.1);
            let height = (area * aspect).sqrt().round() as i64;
            let width = (area / aspect).sqrt().round() as i64;
            let (top, left) = (rng.random_range(0..side), rng.random_range(0..side));
            if height > 0 && width > 0 && top + height <= side && left + width <= side {
                return Rectangle {
                    rows: (top, top + height),
                    columns: (left, left + width),
                };
            }
        }
        Rectangle::NONE
    }
}

/// Erases a rectangle of each of the normalized pictures N x C x side x side with probability `chance`: bytes drawn
/// uniformly, normalized as the pictures are. The result lies where the pictures do.
pub(super) fn erase(
    pictures: &Tensor,
    chance: f64,
    normalization: &Normalization,
    rng: &mut ChaCha8Rng,
) -> Result<Tensor> {
    let (n_pictures, channels, side, _) = pictures.size4()?;
    let device = pictures.device();
    let rectangles: Vec<Rectangle> = (0..n_pictures)
        .map(|_| match rng.random_bool(chance) {
            true => Rectangle::draw(side, rng),
            false => Rectangle::NONE,
        })
        .collect();
    // Pixels of a picture's row and column ranges, as N x 1 x side x 1 and N x 1 x 1 x side.
    let within = |range: fn(&Rectangle) -> (i64, i64), shape: [i64; 4]| -> Result<Tensor> {
        let inside = |range: (i64, i64)| (0..side).map(move |at| range.0 <= at && at < range.1);
        let flags: Vec<bool> = rectangles.iter().map(range).flat_map(inside).collect();
        moved(&Tensor::f_from_slice(&flags)?.f_view(shape)?, device)
    };
    let rows = within(|rectangle| rectangle.rows, [n_pictures, 1, side, 1])?;
    let columns = within(|rectangle| rectangle.columns, [n_pictures, 1, 1, side])?;
    let erased = rows.f_logical_and(&columns)?;

    let shape = PictureShape {
        side: side as usize,
        channels: channels as usize,
    };
    let mut noise = vec![0; (n_pictures * channels * side * side) as usize];
    rng.fill_bytes(&mut noise);
    let noise = moved(&bytes_tensor(&noise, shape)?, device)?;
    let noise = normalization.apply(&noise)?;
    // Both have the channels last in memory, and so has what is taken from them.
    Ok(noise.f_where_self(&erased, pictures)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::SeedableRng;
    use tch::Kind;

    use super::*;
    use crate::data::ExampleSet;
    use crate::deep::augment::{Augment, Batches};
    use crate::deep::checkpoint::{InputSpec, PictureInput};
    use crate::media::Resize;

    fn rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(5)
    }

    #[test]
    fn rectangles_lie_in_the_picture_and_have_the_sizes_of_the_paper() {
        let mut rng = rng();
        let mut areas = Vec::new();
        for _ in 0..2000 {
            let Rectangle { rows, columns } = Rectangle::draw(100, &mut rng);
            assert!(0 <= rows.0 && rows.1 <= 100 && 0 <= columns.0 && columns.1 <= 100);
            let (height, width) = (rows.1 - rows.0, columns.1 - columns.0);
            // Rounding to pixels moves both ends a little.
            let aspect = height as f64 / width as f64;
            assert!((0.28..=3.6).contains(&aspect), "{height} x {width}");
            areas.push(height * width);
        }
        areas.sort_unstable();
        assert!((150..=300).contains(&areas[0]), "{}", areas[0]);
        assert!((3300..=4150).contains(&areas[1999]), "{}", areas[1999]);
    }

    #[test]
    fn half_of_the_pictures_lose_one_rectangle_to_noise() {
        let (n_pictures, channels, side) = (200, 3, 16);
        let normalization = Normalization {
            mean: vec![0.5; 3],
            std: vec![0.25; 3],
        };
        // No byte has this value.
        let kept = 9.0f32;
        let options = (Kind::Float, tch::Device::Cpu);
        let pictures = Tensor::full([n_pictures, channels, side, side], f64::from(kept), options);
        let found = erase(&pictures, 0.5, &normalization, &mut rng()).unwrap();
        assert_eq!(found.size(), pictures.size());
        let values: Vec<f32> = Vec::try_from(found.contiguous().view([-1])).unwrap();
        let plane = (side * side) as usize;
        let (mut n_erased, mut noise) = (0, Vec::new());
        for picture in values.chunks(plane * 3) {
            let changed: Vec<usize> = (0..plane).filter(|&i| picture[i] != kept).collect();
            for channel in picture.chunks(plane) {
                let same = (0..plane).filter(|&i| channel[i] != kept);
                assert!(same.eq(changed.iter().copied()), "channels differ");
                noise.extend(changed.iter().map(|&i| channel[i]));
            }
            let (Some(first), Some(last)) = (changed.first(), changed.last()) else {
                continue;
            };
            n_erased += 1;
            let side = side as usize;
            let (height, width) = (
                last / side - first / side + 1,
                last % side - first % side + 1,
            );
            assert_eq!(changed.len(), height * width, "not a rectangle");
            // 40 % of 256 pixels are 102; both sides are rounded.
            assert!((2..=115).contains(&changed.len()), "{height} x {width}");
        }
        assert!((80..=120).contains(&n_erased), "{n_erased} of 200");
        // Bytes from 0 to 255, so from -2 to 2, uniformly.
        let mean = noise.iter().sum::<f32>() / noise.len() as f32;
        assert!(noise.iter().all(|x| (-2.001..=2.001).contains(x)) && mean.abs() < 0.05);
        let low = noise.iter().filter(|x| **x < -1.0).count() as f64 / noise.len() as f64;
        assert!((0.22..=0.28).contains(&low), "{low}");
    }

    #[test]
    fn nothing_is_erased_without_a_chance_and_the_seed_decides() {
        let normalization = Normalization {
            mean: vec![0.0],
            std: vec![1.0],
        };
        let pictures = Tensor::zeros([20, 1, 8, 8], (Kind::Float, tch::Device::Cpu)) - 1.0;
        let erased = |chance| erase(&pictures, chance, &normalization, &mut rng()).unwrap();
        assert_eq!(erased(0.0), pictures);
        assert_ne!(erased(1.0), pictures);
        assert_eq!(erased(1.0), erased(1.0));
    }

    #[test]
    fn pictures_of_every_source_are_erased() {
        let shape = PictureShape {
            side: 16,
            channels: 1,
        };
        let grey = ExampleSet::from_pixels(shape, vec![100; 16 * 16], vec![0]).unwrap();
        let grey = Arc::new(grey);
        let erasing = Augment {
            erase: 1.0,
            ..Augment::NONE
        };
        let cut = Augment {
            crop_area_min: Some(0.5),
            ..erasing
        };
        // Kept in memory, cut out of it, and enlarged when fetched.
        for (side, augment) in [(16, erasing), (16, cut), (24, erasing)] {
            let input = InputSpec::Pictures(PictureInput {
                picture_side: side,
                picture_channels: 1,
                normalization: Normalization {
                    mean: vec![0.0],
                    std: vec![1.0 / 255.0],
                },
                resize: Resize::default(),
            });
            let batches = Batches::new(grey.clone(), input, augment, tch::Device::Cpu).unwrap();
            let batch = batches.batch(&[0; 8], &mut rng()).unwrap();
            let values: Vec<f32> = Vec::try_from(batch.contiguous().view([-1])).unwrap();
            for picture in values.chunks(side * side) {
                let noise = picture.iter().filter(|x| (**x - 100.0).abs() > 0.5).count();
                let share = noise as f64 / picture.len() as f64;
                assert!((0.01..=0.45).contains(&share), "{share} at {side} pixels");
            }
        }
        let named = Augment::from_name("pad-crop-erase").unwrap();
        assert_eq!(named, Augment::PAD_CROP_ERASE);
        let wrong = Augment {
            erase: 1.5,
            ..Augment::NONE
        };
        assert!(wrong.check().is_err());
    }
}

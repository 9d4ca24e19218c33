//! A perceptual hash of pictures: near-duplicates get near codes, without a model.
//!
//! The gradient hash (dHash): the picture is made grey and small, and each bit says whether a pixel is
//! brighter than its left neighbour. It compares bytes, where the DCT hash compares floats that may
//! differ from one processor to the next. It finds copies that were scaled, recompressed or recoloured
//! a little; it knows nothing of what the picture shows.

use image_hasher::{HashAlg, Hasher, HasherConfig};
use rayon::prelude::*;

use super::{EncodeError, Encoder, Payload, PayloadKind, Prepared, on_pool};
use crate::code::{CodeLen, HashCode};
use crate::error::{EncodeStage, Error, Result};
use crate::media::{Limits, PictureShape, Resize, decode_reduced, working_bytes};

/// Encodes [`Payload::Image`] by the gradient hash of the crate `image_hasher`.
///
/// Sizes, each exact: 16 bits (4 wide, 4 high), 32 (8 x 4), 64 (8 x 8, the usual one), 128 (16 x 8),
/// 256 (16 x 16), 512 (32 x 16), 1024 (32 x 32). Bits go row by row from the top left. Where a picture
/// is flat its bits say little: a grey level of resampling noise decides them.
pub struct PerceptualHash {
    len: CodeLen,
    model_id: String,
    hasher: Hasher,
    limits: Limits,
}

/// Pixels that a large JPEG file keeps of its shorter side, halved: far more than any hash looks at.
const MIN_SIDE: usize = 128;

impl PerceptualHash {
    /// A hash of this length, named `dhash-<bits>`, with the default limits on pictures.
    ///
    /// # Errors
    /// `InvalidArgument` unless the length is a power of two from 16 to 1024.
    pub fn new(len: CodeLen) -> Result<PerceptualHash> {
        if !len.bits().is_power_of_two() {
            return Err(Error::invalid(format!(
                "a perceptual hash has 16, 32, 64, 128, 256, 512 or 1024 bits, got {len}"
            )));
        }
        let height = 1 << (len.bits().ilog2() / 2);
        Ok(PerceptualHash {
            len,
            model_id: format!("dhash-{len}"),
            hasher: HasherConfig::new()
                .hash_alg(HashAlg::Gradient)
                .hash_size(len.bits() as u32 / height, height)
                .to_hasher(),
            limits: Limits::default(),
        })
    }

    /// The same hash with other limits on pictures.
    pub fn with_limits(mut self, limits: Limits) -> PerceptualHash {
        self.limits = limits;
        self
    }

    fn code(&self, payload: &Payload) -> Result<HashCode, EncodeError> {
        let Payload::Image(bytes) = payload else {
            return Err(EncodeError {
                stage: EncodeStage::Preprocess,
                reason: format!("expected a picture, got {}", payload.kind()),
            });
        };
        let picture = decode_reduced(bytes, &self.limits, MIN_SIDE)?;
        let failed = |reason: String| EncodeError {
            stage: EncodeStage::Encode,
            reason,
        };
        let rgb = image::RgbImage::from_raw(picture.width, picture.height, picture.rgb)
            .ok_or_else(|| failed("the picture's bytes do not match its size".to_owned()))?;
        let hash = self.hasher.hash_image(&rgb);
        HashCode::from_bytes(hash.as_bytes()).map_err(|error| failed(error.to_string()))
    }
}

impl Default for PerceptualHash {
    /// 64 bits.
    fn default() -> PerceptualHash {
        let len = CodeLen::new(64).expect("64 bits is a code length");
        PerceptualHash::new(len).expect("64 is a power of two")
    }
}

impl Encoder for PerceptualHash {
    fn code_len(&self) -> CodeLen {
        self.len
    }

    fn model_id(&self) -> &str {
        &self.model_id
    }

    fn reads(&self) -> Option<PayloadKind> {
        Some(PayloadKind::Image)
    }

    fn encode(&self, batch: &[Payload]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        Ok(on_pool(|| {
            batch.par_iter().map(|payload| self.code(payload)).collect()
        }))
    }

    fn prepares(&self) -> bool {
        true
    }

    /// There is no model, so this is all of the work.
    fn prepare(&self, payload: &Payload) -> Result<Prepared, EncodeError> {
        self.code(payload).map(Prepared::Code)
    }

    fn prepare_bytes(&self, payload: &Payload) -> usize {
        let Payload::Image(bytes) = payload else {
            return 0;
        };
        let shape = PictureShape {
            side: MIN_SIDE,
            channels: 1,
        };
        // A third again for the grey copy of the picture.
        working_bytes(bytes, &self.limits, shape, Resize::default()) / 3 * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32, grey: impl Fn(f32, f32) -> f32) -> Payload {
        let picture = image::GrayImage::from_fn(width, height, |x, y| {
            let (x, y) = (x as f32 / width as f32, y as f32 / height as f32);
            image::Luma([grey(x, y) as u8])
        });
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture
            .write_to(&mut bytes, image::ImageFormat::Png)
            .unwrap();
        Payload::Image(bytes.into_inner().into())
    }

    #[test]
    fn every_size_is_exact_and_copies_are_near() {
        let waves =
            |x: f32, y: f32| 128.0 + 60.0 * (9.0 * x).sin() + 60.0 * (7.0 * y + 5.0 * x).cos();
        let batch = [
            png(200, 150, waves),
            png(120, 90, |x, y| 0.9 * waves(x, y) + 5.0),
            png(200, 150, |x, y| waves(1.0 - x, y)),
        ];
        for bits in [16, 32, 64, 128, 256, 512, 1024] {
            let len = CodeLen::new(bits).unwrap();
            let encoder = PerceptualHash::new(len).unwrap();
            let codes: Vec<HashCode> = encoder
                .encode(&batch)
                .unwrap()
                .into_iter()
                .map(Result::unwrap)
                .collect();
            assert!(codes.iter().all(|code| code.code_len() == len));
            let near = codes[0].distance(&codes[1]).unwrap() as usize;
            let far = codes[0].distance(&codes[2]).unwrap() as usize;
            assert!(near * 4 <= bits && near * 2 <= far, "{bits}: {near}, {far}");
        }
        assert!(PerceptualHash::new(CodeLen::new(48).unwrap()).is_err());
        assert_eq!(PerceptualHash::default().model_id(), "dhash-64");
    }

    #[test]
    fn bits_go_row_by_row() {
        // Brighter to the right: every pixel is brighter than its left neighbour.
        let codes = PerceptualHash::default()
            .encode(&[
                png(90, 80, |x, _| 250.0 * x),
                png(90, 80, |x, _| 250.0 * (1.0 - x)),
                png(90, 80, |x, y| if y < 0.5 { 250.0 * x } else { 0.0 }),
            ])
            .unwrap();
        let hex = |i: usize| codes[i].as_ref().unwrap().to_hex();
        assert_eq!(hex(0), "ffffffffffffffff");
        assert_eq!(hex(1), "0000000000000000");
        // The lower half is flat: there resampling alone decides, by a grey level here and there.
        assert!(hex(2).starts_with("ffffff"), "{}", hex(2));
        let lower = codes[2].as_ref().unwrap().words()[0] >> 40;
        assert!(lower.count_ones() <= 2, "{}", hex(2));
    }

    #[test]
    fn what_is_no_picture_fails_alone() {
        let codes = PerceptualHash::default()
            .encode(&[
                Payload::Image(b"text"[..].into()),
                png(9, 9, |x, _| 100.0 * x),
                Payload::Vector([1.0][..].into()),
            ])
            .unwrap();
        let stage = |i: usize| codes[i].as_ref().unwrap_err().stage;
        assert_eq!(stage(0), EncodeStage::Decode);
        assert!(codes[1].is_ok());
        assert_eq!(stage(2), EncodeStage::Preprocess);
    }
}

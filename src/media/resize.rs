//! Every picture of a set in one square shape.
//!
//! Leaves out what depends on a model: normalization, augmentation.

use std::cell::RefCell;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};
use serde::{Deserialize, Serialize};

use super::{BUFFER_KEPT_BYTES, Picture, PictureShape};
use crate::error::{EncodeError, EncodeStage};

thread_local! {
    /// Holds memory for the pass between rows and columns, nothing of a picture that is read again.
    static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
}

/// How a picture is brought to a square shape.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resize {
    /// The filter, widened when it shrinks a picture.
    pub filter: Filter,
    /// The share of the shorter side that the square in the middle keeps, above 0 and at most 1. A picture
    /// whose shorter side is below the shape's has nothing to give away and keeps all of it.
    pub crop_share: f64,
}

/// The filters for [`Resize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// Straight lines, as `torchvision`'s antialiased bilinear.
    Triangle,
    /// Cubic with a = -0.5 (Catmull-Rom), as Pillow's bicubic.
    Cubic,
}

impl Default for Resize {
    fn default() -> Resize {
        Resize {
            filter: Filter::Triangle,
            crop_share: 1.0,
        }
    }
}

/// Brings a picture to a square shape as [`resize_to_shape`] does by default: all of the shorter side, and
/// a triangle filter.
///
/// # Errors
/// As [`resize_to_shape`].
pub fn to_shape(picture: &Picture, shape: PictureShape) -> Result<Vec<u8>, EncodeError> {
    resize_to_shape(picture, shape, Resize::default())
}

/// Brings a picture to a square shape: `side x side x channels` bytes, rows from the top, channel last.
///
/// A square about the middle, of the shorter side times the share to keep, is scaled to `side`. One
/// channel is luma by BT.601, so a grey picture keeps its values. A picture that already has the size is
/// copied where all of it is kept.
///
/// # Errors
/// [`EncodeStage::Preprocess`] if the shape is none (side 0, channels neither 1 nor 3), the share is not
/// above 0 and at most 1, or the picture's bytes do not match its width and height.
pub fn resize_to_shape(
    picture: &Picture,
    shape: PictureShape,
    resize: Resize,
) -> Result<Vec<u8>, EncodeError> {
    let failed = |reason: String| EncodeError {
        stage: EncodeStage::Preprocess,
        reason,
    };
    let side = u32::try_from(shape.side).unwrap_or(u32::MAX);
    if side == 0 || side > 65_536 || ![1, 3].contains(&shape.channels) {
        return Err(failed(format!(
            "expected a shape of 1 to 65536 pixels a side and 1 or 3 channels, got {} and {}",
            shape.side, shape.channels
        )));
    }
    if !(resize.crop_share > 0.0 && resize.crop_share <= 1.0) {
        return Err(failed(format!(
            "expected a share to keep above 0 and at most 1, got {}",
            resize.crop_share
        )));
    }
    let n_pixels = picture.width as usize * picture.height as usize;
    if n_pixels == 0 || picture.rgb.len() != n_pixels * 3 {
        return Err(failed(format!(
            "expected {} x {} x 3 bytes, got {}",
            picture.width,
            picture.height,
            picture.rgb.len()
        )));
    }

    let grey;
    let pixels = if shape.channels == 1 {
        grey = luma(&picture.rgb);
        &grey
    } else {
        &picture.rgb
    };
    let shorter = picture.width.min(picture.height);
    let kept = match shorter < side {
        true => f64::from(shorter),
        false => f64::from(shorter) * resize.crop_share,
    };
    if picture.width == side && picture.height == side && kept == f64::from(side) {
        return Ok(pixels.clone());
    }
    let size = (picture.width, picture.height);
    let (left, top) = (
        (f64::from(picture.width) - kept) / 2.0,
        (f64::from(picture.height) - kept) / 2.0,
    );
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(match resize.filter {
            Filter::Triangle => FilterType::Bilinear,
            Filter::Cubic => FilterType::CatmullRom,
        }))
        .crop(left, top, kept, kept);
    match shape.channels {
        1 => scaled::<U8>(pixels, size, side, &options),
        _ => scaled::<U8x3>(pixels, size, side, &options),
    }
    .map_err(failed)
}

/// A square of `side` pixels from a picture's bytes. For one type of pixel: for all of them the library
/// has, this would be half of the crate's code.
fn scaled<P: PixelTrait + Default>(
    pixels: &[u8],
    (width, height): (u32, u32),
    side: u32,
    options: &ResizeOptions,
) -> Result<Vec<u8>, String> {
    let source = TypedImageRef::<P>::from_buffer(width, height, pixels);
    let source = source.map_err(|error| error.to_string())?;
    let mut bytes = vec![0; side as usize * side as usize * P::size()];
    let mut target =
        TypedImage::<P>::from_buffer(side, side, &mut bytes).map_err(|error| error.to_string())?;
    RESIZER
        .with_borrow_mut(|resizer| {
            let done = resizer.resize_typed(&source, &mut target, options);
            if resizer.size_of_internal_buffers() > BUFFER_KEPT_BYTES {
                resizer.reset_internal_buffers();
            }
            done
        })
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// BT.601 luma in 16-bit fixed point, rounded: `0.299 R + 0.587 G + 0.114 B`.
fn luma(rgb: &[u8]) -> Vec<u8> {
    rgb.as_chunks::<3>()
        .0
        .iter()
        .map(|&[r, g, b]| {
            let sum = 19_595 * u32::from(r) + 38_470 * u32::from(g) + 7_471 * u32::from(b);
            ((sum + 0x8000) >> 16) as u8
        })
        .collect()
}

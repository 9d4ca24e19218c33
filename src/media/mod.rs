//! Pictures from bytes, safely: bounded memory, no panic, one line of reason where it fails.
//!
//! The header's dimensions are checked before a pixel is decoded, and the formats are allow-listed:
//! JPEG, PNG, WebP, GIF, BMP. TIFF is refused by name: its decoder allocates what a strip asks for,
//! whatever the limits. Files that end too early are refused rather than padded with grey,
//! so a half-written upload never gets a code. Colour profiles are ignored; animation is cut to its
//! first frame. Reads no file and knows no model; time is bounded only through the limits on size.

mod jpeg;
mod resize;
#[cfg(test)]
mod tests;
mod webp;

use std::cell::Cell;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use crate::error::{EncodeError, EncodeStage};

pub use resize::{Filter, Resize, resize_to_shape, to_shape};
use webp::webp_extra_bytes;

/// Extensions of files that are taken for pictures. TIFF is not read; its files are listed so that they are counted and
/// refused by name rather than overlooked.
pub const PICTURE_EXTENSIONS: [&str; 9] = [
    "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jfif",
];

/// True if `extension`, without its dot and in any case, is one of [`PICTURE_EXTENSIONS`].
pub fn is_picture_extension(extension: &str) -> bool {
    PICTURE_EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str())
}

/// What a picture may cost. A picture above any limit is refused with the limit in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file. Default: 32 MB.
    pub max_bytes: usize,
    /// Width and height in pixels. Default: 8192.
    pub max_side: u32,
    /// Width times height. Default: 40 million.
    pub max_pixels: u64,
    /// Bytes the decoder may allocate, its output included. The [`Picture`], 3 bytes a pixel, comes on
    /// top, and once more while it is rotated. Default: 256 MB.
    pub max_alloc: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_bytes: 32_000_000,
            max_side: 8192,
            max_pixels: 40_000_000,
            max_alloc: 256_000_000,
        }
    }
}

/// A decoded picture, upright.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Columns, in pixels; at least 1.
    pub width: u32,
    /// Rows, in pixels; at least 1.
    pub height: u32,
    /// `height x width x 3` bytes: rows from the top, red, green, blue.
    pub rgb: Vec<u8>,
}

/// The shape every picture of a set is brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureShape {
    /// Rows and columns in pixels; pictures are square.
    pub side: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
}

/// Decodes the bytes of a JPEG, PNG, WebP, GIF or BMP file.
///
/// The EXIF orientation is applied. Grey is copied into the three channels, CMYK is converted without
/// its profile, 16 bits are brought to 8. What is transparent is laid on white, as a page
/// would show it, because the colour hidden under a transparent pixel is an accident of the program
/// that saved it. Of an animation the first frame counts.
///
/// # Errors
/// [`EncodeStage::Decode`], with what was expected and what was found in one line.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture, EncodeError> {
    guarded(|| decode_at(bytes, limits, Target::FULL, Vec::new()))
}

/// As [`decode`], but a JPEG file may come out smaller where more would only be thrown away: at 1/2, 1/4
/// or 1/8 of its size, as long as its shorter side keeps `2 * min_side` pixels.
///
/// Twice the wanted size is what a resampling filter needs to hide how the picture was made smaller. The
/// limits are those of the full size. The same bytes always give the same picture.
///
/// # Errors
/// As [`decode`].
pub fn decode_reduced(
    bytes: &[u8],
    limits: &Limits,
    min_side: usize,
) -> Result<Picture, EncodeError> {
    guarded(|| decode_at(bytes, limits, Target::reduced(min_side), Vec::new()))
}

/// [`decode_reduced`], then [`resize_to_shape`]: what a network reads of a file.
///
/// # Errors
/// As [`decode`] and [`resize_to_shape`].
pub fn decode_to_shape(
    bytes: &[u8],
    limits: &Limits,
    shape: PictureShape,
    resize: Resize,
) -> Result<Vec<u8>, EncodeError> {
    let target = Target::reduced_for(shape, resize);
    let picture = guarded(|| decode_at(bytes, limits, target, PIXELS.take()))?;
    let shaped = resize_to_shape(&picture, shape, resize);
    if picture.rgb.capacity() <= BUFFER_KEPT_BYTES {
        PIXELS.set(picture.rgb);
    }
    shaped
}

/// The most memory that [`decode_to_shape`] takes for these bytes, its result included; 0 for a file that
/// is refused before its pixels are decoded. Reads headers only.
pub fn working_bytes(bytes: &[u8], limits: &Limits, shape: PictureShape, resize: Resize) -> usize {
    let target = Target::reduced_for(shape, resize);
    let decoding = guarded(|| working_bytes_unguarded(bytes, limits, target)).unwrap_or(0);
    let shaped = (shape.side * shape.side).saturating_mul(shape.channels);
    match usize::try_from(decoding).unwrap_or(usize::MAX) {
        0 => 0,
        decoding => decoding.saturating_add(shaped),
    }
}

fn working_bytes_unguarded(bytes: &[u8], limits: &Limits, target: Target) -> Result<u64, String> {
    if bytes.len() > limits.max_bytes {
        return Ok(0);
    }
    let format = allowed_format(bytes)?;
    if format == ImageFormat::Jpeg {
        return Ok(jpeg::working_bytes(bytes, target));
    }
    let opened = open(bytes, format, limits)?;
    let (width, height) = opened.decoder.dimensions();
    // The picture, and its copy if it is turned.
    Ok(opened.needed_bytes + 6 * u64::from(width) * u64::from(height))
}

/// Buffers of up to this many bytes stay with their thread.
const BUFFER_KEPT_BYTES: usize = 4 << 20;

thread_local! {
    /// Memory for the pixels of a picture that lives until it is resized. Cleared before each use.
    static PIXELS: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The size a picture is wanted in.
#[derive(Clone, Copy)]
struct Target {
    /// What the shorter side must keep, in pixels.
    min_side: u32,
}

impl Target {
    const FULL: Target = Target { min_side: u32::MAX };

    fn reduced(min_side: usize) -> Target {
        let min_side = u32::try_from(min_side).unwrap_or(u32::MAX);
        Target {
            min_side: min_side.max(1).saturating_mul(2),
        }
    }

    fn reduced_for(shape: PictureShape, resize: Resize) -> Target {
        Target::reduced((shape.side as f64 / resize.crop_share).ceil() as usize)
    }

    /// 8, 4, 2 or 1: the most that both sides can be divided by.
    fn divisor(self, width: u32, height: u32) -> u32 {
        let shorter = width.min(height);
        let fits = |divisor: &u32| shorter / divisor >= self.min_side;
        [8, 4, 2].into_iter().find(fits).unwrap_or(1)
    }
}

/// The decoders are safe Rust; a panic in one leaves nothing behind that is used again.
fn guarded<T>(decode: impl FnOnce() -> Result<T, String>) -> Result<T, EncodeError> {
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err("the decoder panicked on this file".to_owned()))
        .map_err(|reason| EncodeError {
            stage: EncodeStage::Decode,
            reason: one_line(&reason),
        })
}

fn decode_at(
    bytes: &[u8],
    limits: &Limits,
    target: Target,
    buffer: Vec<u8>,
) -> Result<Picture, String> {
    if bytes.len() > limits.max_bytes {
        return Err(format!(
            "expected a file of at most {} bytes, found {}",
            limits.max_bytes,
            bytes.len()
        ));
    }
    let format = allowed_format(bytes)?;
    if format == ImageFormat::Jpeg {
        return jpeg::decode(bytes, limits, target, buffer);
    }
    let failed = |error| format!("expected a sound {} file, found: {error}", name(format));
    let Opened {
        mut decoder,
        mut limits,
        needed_bytes,
    } = open(bytes, format, limits)?;
    limits.max_alloc = limits.max_alloc.map(|most| most - needed_bytes);
    decoder.set_limits(limits).map_err(failed)?;

    // Broken metadata is no reason to lose the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let decoded = DynamicImage::from_decoder(decoder).map_err(failed)?;
    let rgb = if decoded.color().has_alpha() {
        on_white(&decoded.into_rgba8())
    } else {
        decoded.into_rgb8()
    };
    let picture = Picture {
        width: rgb.width(),
        height: rgb.height(),
        rgb: rgb.into_raw(),
    };
    Ok(turn(picture, orientation))
}

/// A file whose header is read and within the limits.
struct Opened<D> {
    decoder: D,
    limits: image::Limits,
    /// What the decoder will allocate, its output included.
    needed_bytes: u64,
}

fn open<'a>(
    bytes: &'a [u8],
    format: ImageFormat,
    limits: &Limits,
) -> Result<Opened<impl ImageDecoder + use<'a>>, String> {
    let failed = |error| format!("expected a sound {} file, found: {error}", name(format));
    // Constructors read headers only. They get the memory limit alone, so that dimensions are refused
    // below, in our own words.
    let mut header_limits = image::Limits::no_limits();
    header_limits.max_alloc = Some(limits.max_alloc);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(header_limits.clone());
    let decoder = reader.into_decoder().map_err(failed)?;

    let (width, height) = decoder.dimensions();
    check_dimensions(width, height, limits)?;
    let color = decoder.color_type();
    let extra_bytes = match format {
        ImageFormat::WebP => webp_extra_bytes(bytes, color.has_alpha())?,
        // The copy with 8 bits a channel that is laid on white.
        _ if color.has_alpha() && color != ColorType::Rgba8 => {
            4 * u64::from(width) * u64::from(height)
        }
        _ => 0,
    };
    let needed_bytes = decoder.total_bytes().saturating_add(extra_bytes);
    check_budget(needed_bytes, (width, height), limits)?;
    Ok(Opened {
        decoder,
        limits: header_limits,
        needed_bytes,
    })
}

fn check_budget(
    needed_bytes: u64,
    (width, height): (u32, u32),
    limits: &Limits,
) -> Result<(), String> {
    if needed_bytes <= limits.max_alloc {
        return Ok(());
    }
    Err(format!(
        "expected a picture that decodes within {} bytes, found one of {width} x {height} that takes {needed_bytes}",
        limits.max_alloc
    ))
}

/// Applies an EXIF orientation.
fn turn(picture: Picture, orientation: Orientation) -> Picture {
    if orientation == Orientation::NoTransforms {
        return picture;
    }
    let Picture { width, height, rgb } = picture;
    let rgb = image::RgbImage::from_raw(width, height, rgb)
        .expect("a picture has three bytes for each of its pixels");
    let mut turned = DynamicImage::ImageRgb8(rgb);
    turned.apply_orientation(orientation);
    let rgb = turned.into_rgb8();
    Picture {
        width: rgb.width(),
        height: rgb.height(),
        rgb: rgb.into_raw(),
    }
}

fn allowed_format(bytes: &[u8]) -> Result<ImageFormat, String> {
    const EXPECTED: &str = "expected a JPEG, PNG, WebP, GIF or BMP file";
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    if bytes.is_empty() {
        return Err(format!("{EXPECTED}, found zero bytes"));
    }
    match image::guess_format(bytes) {
        Ok(format @ (Bmp | Gif | Jpeg | Png | WebP)) => Ok(format),
        Ok(Tiff) => Err(format!(
            "{EXPECTED}, found a TIFF, which is not read; convert it"
        )),
        Ok(other) => Err(format!("{EXPECTED}, found {}", name(other))),
        Err(_) => Err(format!(
            "{EXPECTED}, found {} bytes that start with \"{}\"",
            bytes.len(),
            bytes[..bytes.len().min(12)].escape_ascii()
        )),
    }
}

fn name(format: ImageFormat) -> String {
    match format {
        ImageFormat::WebP => "WebP".to_owned(),
        other => format!("{other:?}").to_uppercase(),
    }
}

fn check_dimensions(width: u32, height: u32, limits: &Limits) -> Result<(), String> {
    if width == 0 || height == 0 {
        return Err(format!(
            "expected at least 1 x 1 pixels, found {width} x {height}"
        ));
    }
    if width > limits.max_side || height > limits.max_side {
        return Err(format!(
            "expected at most {0} x {0} pixels, found {width} x {height}",
            limits.max_side
        ));
    }
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(format!(
            "expected at most {} pixels, found {width} x {height}",
            limits.max_pixels
        ));
    }
    Ok(())
}

fn on_white(rgba: &image::RgbaImage) -> image::RgbImage {
    let mut rgb = image::RgbImage::new(rgba.width(), rgba.height());
    for (to, from) in rgb
        .as_chunks_mut::<3>()
        .0
        .iter_mut()
        .zip(rgba.as_chunks::<4>().0)
    {
        let alpha = u32::from(from[3]);
        for channel in 0..3 {
            let mixed = u32::from(from[channel]) * alpha + 255 * (255 - alpha);
            to[channel] = ((mixed + 127) / 255) as u8;
        }
    }
    rgb
}

/// A decoder's message as one line of at most 300 characters: it may quote bytes of the file.
fn one_line(message: &str) -> String {
    message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect()
}

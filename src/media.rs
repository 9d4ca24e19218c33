//! Pictures from bytes, safely: bounded memory, no panic, one line of reason where it fails.
//!
//! The header's dimensions are checked before a pixel is decoded, and the formats are allow-listed:
//! JPEG, PNG, WebP, GIF, BMP. TIFF is refused by name: its decoder allocates what a strip asks for,
//! whatever the limits. Files that end too early are refused rather than padded with grey,
//! so a half-written upload never gets a code. Colour profiles are ignored; animation is cut to its
//! first frame. Reads no file and knows no model; time is bounded only through the limits on size.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use serde::{Deserialize, Serialize};

use crate::error::{EncodeError, EncodeStage};

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
    // The decoders are safe Rust; a panic in one leaves nothing behind that is used again.
    catch_unwind(AssertUnwindSafe(|| decode_unguarded(bytes, limits)))
        .unwrap_or_else(|_| Err("the decoder panicked on this file".to_owned()))
        .map_err(|reason| EncodeError {
            stage: EncodeStage::Decode,
            reason: one_line(&reason),
        })
}

fn decode_unguarded(bytes: &[u8], limits: &Limits) -> Result<Picture, String> {
    if bytes.len() > limits.max_bytes {
        return Err(format!(
            "expected a file of at most {} bytes, found {}",
            limits.max_bytes,
            bytes.len()
        ));
    }
    let format = allowed_format(bytes)?;
    let failed = |error| format!("expected a sound {} file, found: {error}", name(format));

    // Constructors read headers only. They get the memory limit alone, so that dimensions are refused
    // below, in our own words.
    let mut header_limits = image::Limits::no_limits();
    header_limits.max_alloc = Some(limits.max_alloc);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(header_limits.clone());
    let mut decoder = reader.into_decoder().map_err(failed)?;

    let (width, height) = decoder.dimensions();
    check_dimensions(width, height, limits)?;
    let color = decoder.color_type();
    let extra_bytes = match format {
        ImageFormat::Jpeg => {
            check_jpeg_is_whole(bytes)?;
            jpeg_coefficient_bytes(bytes, (width, height))
        }
        ImageFormat::WebP => webp_extra_bytes(bytes, color.has_alpha())?,
        // The copy with 8 bits a channel that is laid on white.
        _ if color.has_alpha() && color != ColorType::Rgba8 => {
            4 * u64::from(width) * u64::from(height)
        }
        _ => 0,
    };
    let needed_bytes = decoder.total_bytes().saturating_add(extra_bytes);
    if needed_bytes > limits.max_alloc {
        return Err(format!(
            "expected a picture that decodes within {} bytes, found one of {width} x {height} that takes {needed_bytes}",
            limits.max_alloc
        ));
    }
    header_limits.max_alloc = Some(limits.max_alloc - needed_bytes);
    decoder.set_limits(header_limits).map_err(failed)?;

    // Broken metadata is no reason to lose the picture.
    let orientation = decoder
        .orientation()
        .unwrap_or(image::metadata::Orientation::NoTransforms);
    let decoded = DynamicImage::from_decoder(decoder).map_err(failed)?;
    let mut upright = DynamicImage::ImageRgb8(if decoded.color().has_alpha() {
        on_white(&decoded.into_rgba8())
    } else {
        decoded.into_rgb8()
    });
    upright.apply_orientation(orientation);
    let rgb = upright.into_rgb8();
    Ok(Picture {
        width: rgb.width(),
        height: rgb.height(),
        rgb: rgb.into_raw(),
    })
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

/// Walks the markers of a JPEG file to its end marker: a file without one was cut off, and the decoder
/// itself would fill what is missing with grey and say nothing.
fn check_jpeg_is_whole(bytes: &[u8]) -> Result<(), String> {
    let mut in_scans = false;
    let mut n_frames = 0;
    let mut at = 2;
    while let Some(found) = bytes
        .get(at..)
        .and_then(|rest| rest.iter().position(|&b| b == 0xff))
    {
        at += found + 1;
        match bytes.get(at) {
            None => break,
            // A fill byte, or a stuffed 0xff of the entropy-coded data, or a marker without a body. Before
            // the first scan the decoder takes every marker for one with a body, and so does this walk.
            Some(0xff) => continue,
            Some(0x00) => at += 1,
            Some(0x01 | 0xd0..=0xd8) if in_scans => at += 1,
            Some(0xd9) if in_scans => return Ok(()),
            Some(0xd9) => return Err("expected a JPEG with a picture, found its end first".into()),
            Some(marker) => {
                let Some(body_len) = bytes.get(at + 1..at + 3) else {
                    break;
                };
                let body_len = usize::from(body_len[0]) << 8 | usize::from(body_len[1]);
                in_scans |= *marker == 0xda;
                n_frames += usize::from(is_frame(*marker));
                if n_frames > 1 {
                    return Err("expected a JPEG of one frame, found a second".to_owned());
                }
                at += 1 + body_len;
            }
        }
    }
    Err(format!(
        "expected a whole JPEG file, found {} bytes without an end marker; it was cut off",
        bytes.len()
    ))
}

fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc)
}

/// What the coefficients of a JPEG file take, in bytes: 2 each, all kept until the last scan if the file
/// is progressive or a scan leaves components out. The decoder counts them in no limit.
///
/// Looks at every frame header of the decoded size, wherever it stands, and takes the largest: a walk of
/// the markers can be led past the one that the decoder reads (it reads some lengths its own way).
fn jpeg_coefficient_bytes(bytes: &[u8], (width, height): (u32, u32)) -> u64 {
    let side = |bytes: &[u8]| u32::from(bytes[0]) << 8 | u32::from(bytes[1]);
    let mut any = 0;
    let mut progressive = 0;
    let mut n_components = 0;
    let mut smallest_scan = u8::MAX;
    for (at, pair) in bytes.windows(2).enumerate() {
        if pair[0] != 0xff {
            continue;
        }
        let body = &bytes[at + 2..];
        if pair[1] == 0xda && body.len() > 2 && body[2] > 0 {
            smallest_scan = smallest_scan.min(body[2]);
        } else if is_frame(pair[1])
            && body.len() > 7
            && (side(&body[5..]), side(&body[3..])) == (width, height)
        {
            let coefficient_bytes = frame_coefficients(body).unwrap_or(0) * 2;
            any = coefficient_bytes.max(any);
            n_components = body[7].max(n_components);
            if !matches!(pair[1], 0xc0 | 0xc1) {
                progressive = coefficient_bytes.max(progressive);
            }
        }
    }
    if smallest_scan < n_components {
        any
    } else {
        progressive
    }
}

/// Coefficients of a JPEG frame, from its header: each component is sampled down by its own factor.
fn frame_coefficients(header: &[u8]) -> Option<u64> {
    let side = |at: usize| Some(u64::from(*header.get(at)?) << 8 | u64::from(*header.get(at + 1)?));
    let (height, width) = (side(3)?, side(5)?);
    let n_components = usize::from(*header.get(7)?);
    let factors: Vec<(u64, u64)> = header
        .get(8..8 + 3 * n_components)?
        .chunks_exact(3)
        .map(|component| (u64::from(component[1] >> 4), u64::from(component[1] & 15)))
        .collect();
    let horizontal_max = factors.iter().map(|factor| factor.0).max()?.max(1);
    let vertical_max = factors.iter().map(|factor| factor.1).max()?.max(1);
    let mcus = width.div_ceil(8 * horizontal_max) * height.div_ceil(8 * vertical_max);
    Some(factors.iter().map(|(h, v)| mcus * h * v * 64).sum())
}

/// What the WebP decoder allocates besides its output, in bytes: it obeys no limit. Walks the chunks, and
/// refuses bitstreams of another size than the canvas or their frame, because a bitstream is decoded at
/// the size that it states itself.
fn webp_extra_bytes(bytes: &[u8], has_alpha: bool) -> Result<u64, String> {
    let mut parts = WebpParts::default();
    let first = webp_chunk(bytes, 12)?.ok_or("expected a WebP with a picture, found no chunk")?;
    let canvas = if first.kind == *b"VP8X" {
        if first.body.len() < 10 {
            return Err(format!(
                "expected a WebP header of 10 bytes, found {}",
                first.body.len()
            ));
        }
        parts.animated = first.body[0] & 2 != 0;
        let canvas = (u24(&first.body[4..]) + 1, u24(&first.body[7..]) + 1);
        // The decoder's own end of the file, a little after that of the container.
        let riff_len = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let end = first
            .next
            .saturating_add(riff_len.saturating_sub(12) as usize);
        let mut at = first.next;
        while at < end
            && let Some(chunk) = webp_chunk(bytes, at)?
        {
            match &chunk.kind {
                b"ANMF" if parts.animated => parts.frame(chunk.body, canvas)?,
                b"ANMF" => return Err("expected a WebP still, found a frame".to_owned()),
                _ => parts.add(&chunk, canvas)?,
            }
            at = chunk.next;
        }
        canvas
    } else {
        let size = webp_bitstream_size(&first)?.unwrap_or_default();
        parts.add(&first, size)?;
        size
    };
    if !(parts.lossy || parts.lossless) {
        return Err("expected a WebP with a picture, found none".to_owned());
    }
    let (width, height) = (u64::from(canvas.0), u64::from(canvas.1));
    let n_pixels = width * height;
    let mut extra_bytes = 0;
    if parts.lossy {
        // Luma, and chroma at half size, in whole blocks.
        extra_bytes += width.next_multiple_of(16) * height.next_multiple_of(16) * 3 / 2;
    }
    if parts.alpha {
        extra_bytes += 5 * n_pixels;
    }
    if parts.animated {
        extra_bytes += 8 * n_pixels;
    } else if parts.lossless && !has_alpha {
        extra_bytes += 4 * n_pixels;
    }
    Ok(extra_bytes)
}

struct WebpChunk<'a> {
    kind: [u8; 4],
    body: &'a [u8],
    /// Where the next chunk starts: the body is padded to even length.
    next: usize,
}

/// The chunk at an offset, or none if there is no whole header, or an unknown one that leads outside.
fn webp_chunk(bytes: &[u8], at: usize) -> Result<Option<WebpChunk<'_>>, String> {
    let Some((head, rest)) = bytes
        .get(at..)
        .and_then(|rest| rest.split_first_chunk::<8>())
    else {
        return Ok(None);
    };
    let kind = [head[0], head[1], head[2], head[3]];
    let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    let Some(body) = rest.get(..len) else {
        return match &kind {
            b"VP8 " | b"VP8L" | b"VP8X" | b"ALPH" | b"ANIM" | b"ANMF" | b"ICCP" | b"EXIF"
            | b"XMP " | b"RIFF" | b"WEBP" => Err(format!(
                "expected a WebP chunk {} of {len} bytes, found {}; it was cut off",
                kind.escape_ascii(),
                rest.len()
            )),
            _ => Ok(None),
        };
    };
    let next = at + 8 + len + len % 2;
    Ok(Some(WebpChunk { kind, body, next }))
}

/// Width and height that a bitstream states, or none if the chunk is no bitstream.
fn webp_bitstream_size(chunk: &WebpChunk) -> Result<Option<(u32, u32)>, String> {
    let body = chunk.body;
    match &chunk.kind {
        b"VP8 " if body.len() >= 10 && body[0] & 1 == 0 && body[3..6] == [0x9d, 0x01, 0x2a] => {
            let side = |at: usize| u32::from(u16::from_le_bytes([body[at], body[at + 1]]) & 0x3fff);
            Ok(Some((side(6), side(8))))
        }
        b"VP8L" if body.len() >= 5 && body[0] == 0x2f => {
            let header = u32::from_le_bytes([body[1], body[2], body[3], body[4]]);
            Ok(Some(((header & 0x3fff) + 1, (header >> 14 & 0x3fff) + 1)))
        }
        b"VP8 " | b"VP8L" => Err(format!(
            "expected a sound WebP bitstream {}, found {} bytes that start with \"{}\"",
            chunk.kind.escape_ascii(),
            body.len(),
            body[..body.len().min(6)].escape_ascii()
        )),
        _ => Ok(None),
    }
}

/// What stands in a WebP file, in any of its frames.
#[derive(Default)]
struct WebpParts {
    lossy: bool,
    lossless: bool,
    alpha: bool,
    animated: bool,
}

impl WebpParts {
    fn add(&mut self, chunk: &WebpChunk, size: (u32, u32)) -> Result<(), String> {
        if let Some(found) = webp_bitstream_size(chunk)?
            && found != size
        {
            return Err(format!(
                "expected a WebP bitstream of {} x {}, found {} x {}",
                size.0, size.1, found.0, found.1
            ));
        }
        self.lossy |= chunk.kind == *b"VP8 ";
        self.lossless |= chunk.kind == *b"VP8L";
        self.alpha |= chunk.kind == *b"ALPH";
        Ok(())
    }

    fn frame(&mut self, body: &[u8], canvas: (u32, u32)) -> Result<(), String> {
        if body.len() < 24 {
            return Err(format!(
                "expected a WebP frame of at least 24 bytes, found {}",
                body.len()
            ));
        }
        let (x, y) = (u24(body) * 2, u24(&body[3..]) * 2);
        let size = (u24(&body[6..]) + 1, u24(&body[9..]) + 1);
        if x + size.0 > canvas.0 || y + size.1 > canvas.1 {
            return Err(format!(
                "expected a WebP frame within {} x {}, found {} x {} at {x}, {y}",
                canvas.0, canvas.1, size.0, size.1
            ));
        }
        // One bitstream, or an alpha plane and then a lossy one: the decoder takes what follows an alpha
        // plane for lossy, whatever it is called.
        let mut expected: &[&[u8; 4]] = &[b"VP8 ", b"VP8L", b"ALPH"];
        let mut at = 16;
        while !expected.is_empty() {
            let chunk = webp_chunk(body, at)?
                .filter(|chunk| expected.contains(&&chunk.kind))
                .ok_or("expected a WebP frame with a bitstream, found none")?;
            self.add(&chunk, size)?;
            expected = if chunk.kind == *b"ALPH" {
                &[b"VP8 "]
            } else {
                &[]
            };
            at = chunk.next;
        }
        // The decoder may read metadata here.
        while let Some(chunk) = webp_chunk(body, at)? {
            self.add(&chunk, size)?;
            at = chunk.next;
        }
        Ok(())
    }
}

/// The little-endian number in the first three bytes.
fn u24(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0])
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
    let (pixels, pixel_type) = if shape.channels == 1 {
        grey = luma(&picture.rgb);
        (&grey, PixelType::U8)
    } else {
        (&picture.rgb, PixelType::U8x3)
    };
    let shorter = picture.width.min(picture.height);
    let kept = match shorter < side {
        true => f64::from(shorter),
        false => f64::from(shorter) * resize.crop_share,
    };
    if picture.width == side && picture.height == side && kept == f64::from(side) {
        return Ok(pixels.clone());
    }
    let source = ImageRef::new(picture.width, picture.height, pixels, pixel_type)
        .map_err(|error| failed(error.to_string()))?;
    let mut resized = Image::new(side, side, pixel_type);
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
    Resizer::new()
        .resize(&source, &mut resized, &options)
        .map_err(|error| failed(error.to_string()))?;
    Ok(resized.into_vec())
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

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ExtendedColorType, ImageEncoder};

    const FORMATS: [ImageFormat; 5] = [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::WebP,
        ImageFormat::Gif,
        ImageFormat::Bmp,
    ];

    fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// Left half red, right half blue, 40 wide and 20 high.
    fn red_and_blue() -> DynamicImage {
        DynamicImage::ImageRgb8(image::RgbImage::from_fn(40, 20, |x, _| {
            image::Rgb(if x < 20 { [250, 0, 0] } else { [0, 0, 250] })
        }))
    }

    fn reason(bytes: &[u8]) -> String {
        let error = decode(bytes, &Limits::default()).unwrap_err();
        assert_eq!(error.stage, EncodeStage::Decode);
        assert!(!error.reason.contains('\n'), "{error}");
        error.reason
    }

    fn near(a: &[u8], b: &[u8], tolerance: u8) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.abs_diff(*b) <= tolerance)
    }

    #[test]
    fn every_allowed_format() {
        for format in FORMATS {
            let picture = decode(&encoded(&red_and_blue(), format), &Limits::default()).unwrap();
            assert_eq!((picture.width, picture.height), (40, 20), "{format:?}");
            assert!(near(&picture.rgb[..3], &[250, 0, 0], 6), "{format:?}");
            assert!(near(&picture.rgb[117..120], &[0, 0, 250], 6), "{format:?}");
        }
    }

    #[test]
    fn what_is_no_picture_is_refused_with_the_reason() {
        assert_eq!(
            reason(b""),
            "expected a JPEG, PNG, WebP, GIF or BMP file, found zero bytes"
        );
        assert!(
            reason(b"hello\nworld").contains(r#"found 11 bytes that start with "hello\nworld""#)
        );
        for tiff in [b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"] {
            assert_eq!(
                reason(tiff),
                "expected a JPEG, PNG, WebP, GIF or BMP file, found a TIFF, which is not read; convert it"
            );
        }
        assert!(reason(b"P6 1 1 255 abc").ends_with("found PNM"));
        assert!(reason(b"\x00\x00\x01\x00\x01\x00").ends_with("found ICO"));
        let strict = Limits {
            max_bytes: 10,
            ..Limits::default()
        };
        let error = decode(&[0; 11], &strict).unwrap_err();
        assert_eq!(
            error.to_string(),
            "decode: expected a file of at most 10 bytes, found 11"
        );
    }

    #[test]
    fn cut_off_files_are_refused_and_no_length_panics() {
        for format in FORMATS {
            let whole = encoded(&red_and_blue(), format);
            for len in 0..whole.len() {
                let result = decode(&whole[..len], &Limits::default());
                // The last bytes of some formats carry no pixels.
                assert!(
                    result.is_err() || len + 16 > whole.len(),
                    "{format:?} {len}"
                );
            }
        }
    }

    #[test]
    fn flipped_bytes_never_panic() {
        for format in FORMATS {
            let whole = encoded(&red_and_blue(), format);
            for at in 0..whole.len().min(600) {
                for flip in [0x01, 0x80, 0xff] {
                    let mut bytes = whole.clone();
                    bytes[at] ^= flip;
                    if let Ok(picture) = decode(&bytes, &Limits::default()) {
                        let n_bytes = picture.width as usize * picture.height as usize * 3;
                        assert_eq!(picture.rgb.len(), n_bytes);
                    }
                }
            }
        }
    }

    #[test]
    fn dimensions_are_refused_by_the_header_alone() {
        // Each header would take gigabytes if it were believed.
        let mut gif = encoded(&red_and_blue(), ImageFormat::Gif);
        gif[6..10].copy_from_slice(&[0x60, 0xea, 0x60, 0xea]);
        assert_eq!(
            reason(&gif),
            "expected at most 8192 x 8192 pixels, found 60000 x 60000"
        );

        let mut bmp = encoded(&red_and_blue(), ImageFormat::Bmp);
        bmp[18..22].copy_from_slice(&30_000u32.to_le_bytes());
        bmp[22..26].copy_from_slice(&30_000u32.to_le_bytes());
        assert!(reason(&bmp).contains("found 30000 x 30000"));

        let mut jpeg = encoded(&red_and_blue(), ImageFormat::Jpeg);
        let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
        assert!(reason(&jpeg).contains("found 65500 x 65500"));

        let wide = DynamicImage::new_luma8(8193, 1);
        assert!(reason(&encoded(&wide, ImageFormat::Png)).contains("found 8193 x 1"));
        let large = DynamicImage::new_luma8(8000, 5001);
        assert!(reason(&encoded(&large, ImageFormat::Png)).contains("at most 40000000 pixels"));
    }

    #[test]
    fn memory_is_refused_before_it_is_taken() {
        let tight = Limits {
            max_alloc: 2_399,
            ..Limits::default()
        };
        let error = decode(&encoded(&red_and_blue(), ImageFormat::Bmp), &tight).unwrap_err();
        assert!(error.reason.contains("that takes 2400"), "{error}");
        // A progressive frame of three full-size components: 9 bytes a pixel, padded to whole blocks.
        let frame = [0, 17, 8, 0, 8, 0, 8, 3, 1, 0x11, 0, 2, 0x11, 1, 3, 0x11, 1];
        assert_eq!(frame_coefficients(&frame), Some(192));
        // Colour at half size in both directions: one block of 16 x 16 has 6 blocks of coefficients.
        let frame = [0, 17, 8, 0, 9, 0, 9, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1];
        assert_eq!(frame_coefficients(&frame), Some(384));
    }

    #[test]
    fn transparency_is_laid_on_white() {
        let rgba = image::RgbaImage::from_raw(3, 1, vec![9, 9, 9, 0, 0, 0, 0, 128, 7, 8, 9, 255]);
        let bytes = encoded(&DynamicImage::ImageRgba8(rgba.unwrap()), ImageFormat::Png);
        let picture = decode(&bytes, &Limits::default()).unwrap();
        assert_eq!(picture.rgb, [255, 255, 255, 127, 127, 127, 7, 8, 9]);
    }

    #[test]
    fn grey_and_deep_pictures() {
        let grey = DynamicImage::ImageLuma8(image::GrayImage::from_pixel(2, 2, image::Luma([77])));
        let deep = image::ImageBuffer::from_pixel(2, 2, image::Luma([77 * 257u16]));
        for picture in [grey, DynamicImage::ImageLuma16(deep)] {
            let picture = decode(&encoded(&picture, ImageFormat::Png), &Limits::default()).unwrap();
            assert_eq!(picture.rgb, [77; 12]);
            let shape = PictureShape {
                side: 2,
                channels: 1,
            };
            assert_eq!(to_shape(&picture, shape).unwrap(), [77; 4]);
        }
    }

    #[test]
    fn cmyk_becomes_rgb() {
        // Adobe's files hold the complement: full cyan is 0. So this has no cyan and no black: red.
        let picture = decode(&cmyk_jpeg(0xc0, &[]), &Limits::default()).unwrap();
        assert!(near(&picture.rgb[..3], &[255, 1, 1], 2), "{picture:?}");
    }

    fn segment(marker: u8, body: &[u8]) -> Vec<u8> {
        let mut segment = vec![0xff, marker];
        segment.extend_from_slice(&(body.len() as u16 + 2).to_be_bytes());
        segment.extend_from_slice(body);
        segment
    }

    /// 8 x 8 pixels of one colour in four components, with something before the frame.
    fn cmyk_jpeg(frame: u8, before: &[u8]) -> Vec<u8> {
        let mut quantizers = [8; 65];
        quantizers[0] = 0;
        // One code of one bit: the difference has 7 bits, or the block ends.
        let table = |class: u8, symbol: u8| {
            let mut table = [0; 18];
            (table[0], table[1], table[17]) = (class, 1, symbol);
            segment(0xc4, &table)
        };
        [
            vec![0xff, 0xd8],
            before.to_vec(),
            segment(0xee, b"Adobe\0\x64\0\0\0\0\0"),
            segment(0xdb, &quantizers),
            segment(
                frame,
                &[
                    8, 0, 8, 0, 8, 4, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0, 4, 0x11, 0,
                ],
            ),
            table(0x00, 7),
            table(0x10, 0),
            segment(0xda, &[4, 1, 0, 2, 0, 3, 0, 4, 0, 0, 63, 0]),
            vec![0x7f, 0x00, 0x00, 0x0f, 0xef, 0xff, 0xd9],
        ]
        .concat()
    }

    #[test]
    fn jpeg_coefficients_are_counted_wherever_the_frame_hides() {
        let count = |bytes: &[u8]| jpeg_coefficient_bytes(bytes, (8, 8));
        assert_eq!(count(&cmyk_jpeg(0xc0, &[])), 0);
        assert_eq!(count(&cmyk_jpeg(0xc2, &[])), 512);
        // Scans of single components make a baseline file keep them, too.
        let mut baseline = cmyk_jpeg(0xc0, &[]);
        let scan = baseline.windows(2).position(|w| w == [0xff, 0xda]).unwrap();
        baseline[scan + 4] = 1;
        assert_eq!(count(&baseline), 512);
        // The decoder skips a body after each of these; a walk that did not would take the bodies of the
        // segments inside for the picture's.
        let tight = Limits {
            max_alloc: 192 + 511,
            ..Limits::default()
        };
        for marker in [0x01, 0xd0, 0xd7, 0xd8] {
            let hidden = cmyk_jpeg(0xc2, &segment(marker, &[0xff, 0xe5, 0x00, 0xff]));
            let error = decode(&hidden, &tight).unwrap_err();
            assert!(error.reason.contains("takes 704"), "{error}");
            let harmless = cmyk_jpeg(0xc0, &segment(marker, &[0xff, 0xe5, 0x00, 0xff]));
            assert!(decode(&harmless, &Limits::default()).is_ok());
        }
        // The decoder takes 5 bytes of a short APP0, however short.
        let hidden = cmyk_jpeg(0xc2, &[0xff, 0xe0, 0, 6, 1, 2, 3, 4, 0xff, 0xe5, 0, 40]);
        let error = decode(&hidden, &tight).unwrap_err();
        assert!(error.reason.contains("takes 704"), "{error}");

        let mut twice = cmyk_jpeg(0xc2, &[]);
        let end = twice.len() - 2;
        twice.splice(end..end, segment(0xc2, &[8, 0, 1, 0, 1, 1, 1, 0x11, 0]));
        assert!(check_jpeg_is_whole(&twice).unwrap_err().contains("second"));
        assert_eq!(count(&twice), 512);
        let ended = [0xff, 0xd8, 0xff, 0xd9];
        assert!(
            check_jpeg_is_whole(&ended)
                .unwrap_err()
                .contains("end first")
        );
        assert!(!reason(&ended).is_empty());
    }

    fn chunk(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut chunk = kind.to_vec();
        chunk.extend_from_slice(&(body.len() as u32).to_le_bytes());
        chunk.extend_from_slice(body);
        chunk.resize(chunk.len().next_multiple_of(2), 0);
        chunk
    }

    fn riff(chunks: &[Vec<u8>]) -> Vec<u8> {
        chunk(b"RIFF", &[b"WEBP".to_vec(), chunks.concat()].concat())
    }

    /// The header of the extended format; flag 2 is animation, 16 is alpha.
    fn vp8x(flags: u8, width: u32, height: u32) -> Vec<u8> {
        let mut body = vec![flags, 0, 0, 0];
        body.extend_from_slice(&(width - 1).to_le_bytes()[..3]);
        body.extend_from_slice(&(height - 1).to_le_bytes()[..3]);
        chunk(b"VP8X", &body)
    }

    fn anmf(x: u32, width: u32, height: u32, chunks: &[Vec<u8>]) -> Vec<u8> {
        let mut body = Vec::new();
        for number in [x / 2, 0, width - 1, height - 1, 0] {
            body.extend_from_slice(&u32::to_le_bytes(number)[..3]);
        }
        body.push(0);
        body.extend_from_slice(&chunks.concat());
        chunk(b"ANMF", &body)
    }

    /// A red picture of 2 x 2 pixels.
    fn vp8() -> Vec<u8> {
        let body = [
            0xd0, 0x01, 0x00, 0x9d, 0x01, 0x2a, 0x02, 0x00, 0x02, 0x00, 0x02, 0x00, 0x34, 0x25,
            0xa0, 0x02, 0x74, 0xba, 0x01, 0xf8, 0x00, 0x03, 0xb0, 0x00, 0xfe, 0xf0, 0xc4, 0x0b,
            0xff, 0x20, 0xb9, 0x61, 0x75, 0xc8, 0xd7, 0xff, 0x20, 0x3f, 0xe4, 0x07, 0xfc, 0x80,
            0xff, 0xf8, 0xf2, 0x00, 0x00, 0x00,
        ];
        chunk(b"VP8 ", &body)
    }

    fn vp8_header(width: u16, height: u16) -> Vec<u8> {
        let mut body = vec![0xd0, 0x01, 0x00, 0x9d, 0x01, 0x2a];
        body.extend_from_slice(&width.to_le_bytes());
        body.extend_from_slice(&height.to_le_bytes());
        body.extend_from_slice(&[0; 22]);
        chunk(b"VP8 ", &body)
    }

    #[test]
    fn webp_memory_is_counted() {
        let source = red_and_blue();
        let vp8l = encoded(&source, ImageFormat::WebP)[12..].to_vec();
        let alph = chunk(b"ALPH", &[0, 255, 255, 255, 255]);
        let anim = chunk(b"ANIM", &[0; 6]);
        let files = [
            (riff(&[vp8()]), 12 + 384),
            (riff(&[vp8x(0, 2, 2), vp8()]), 12 + 384),
            (riff(&[vp8x(16, 2, 2), alph.clone(), vp8()]), 16 + 384 + 20),
            (riff(std::slice::from_ref(&vp8l)), 2400 + 3200),
            (riff(&[vp8x(0, 40, 20), vp8l.clone()]), 2400 + 3200),
            (riff(&[vp8x(16, 40, 20), vp8l.clone()]), 3200),
            (
                riff(&[vp8x(2, 2, 2), anim.clone(), anmf(0, 2, 2, &[vp8()])]),
                12 + 384 + 32,
            ),
            (
                riff(&[
                    vp8x(18, 4, 2),
                    anim.clone(),
                    anmf(2, 2, 2, &[alph.clone(), vp8()]),
                ]),
                32 + 384 + 40 + 64,
            ),
        ];
        for (file, needed_bytes) in files {
            let limits = |max_alloc| Limits {
                max_alloc,
                ..Limits::default()
            };
            decode(&file, &limits(needed_bytes)).unwrap();
            let error = decode(&file, &limits(needed_bytes - 1)).unwrap_err();
            let within = format!("within {} bytes", needed_bytes - 1);
            assert!(error.reason.contains(&within), "{error}");
            assert!(
                error.reason.ends_with(&format!("takes {needed_bytes}")),
                "{error}"
            );
            for len in 0..file.len() {
                let _ = decode(&file[..len], &Limits::default());
            }
            for at in 0..file.len() {
                for flip in [0x01, 0x80, 0xff] {
                    let mut bytes = file.clone();
                    bytes[at] ^= flip;
                    let _ = webp_extra_bytes(&bytes, false);
                }
            }
        }
    }

    #[test]
    fn webp_bitstreams_of_another_size_are_refused() {
        let anim = chunk(b"ANIM", &[0; 6]);
        let alph = chunk(b"ALPH", &[0, 255, 255, 255, 255]);
        let huge = vp8_header(16_383, 16_383);
        let still = riff(&[vp8x(0, 2, 2), huge.clone()]);
        assert_eq!(
            reason(&still),
            "expected a WebP bitstream of 2 x 2, found 16383 x 16383"
        );
        let animated = |frame| riff(&[vp8x(18, 4, 4), anim.clone(), frame]);
        assert!(
            reason(&animated(anmf(0, 2, 2, std::slice::from_ref(&huge))))
                .ends_with("of 2 x 2, found 16383 x 16383")
        );
        // After an alpha plane the decoder reads a lossy bitstream, whatever the chunk is called.
        let mut unnamed = huge.clone();
        unnamed[..4].copy_from_slice(b"XXXX");
        assert!(
            reason(&animated(anmf(0, 2, 2, &[alph, unnamed]))).ends_with("a bitstream, found none")
        );
        assert!(
            reason(&animated(anmf(4, 2, 2, &[vp8()])))
                .contains("frame within 4 x 4, found 2 x 2 at 4, 0")
        );
        // A frame in a still would be read in place of the still.
        let mixed = riff(&[vp8x(0, 2, 2), vp8(), anmf(0, 2, 2, &[vp8()])]);
        assert!(reason(&mixed).contains("found a frame"));
        let mut claimed = chunk(b"EXIF", &[0; 8]);
        claimed[4..8].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
        let lying = riff(&[vp8x(0, 2, 2), vp8(), claimed]);
        assert!(reason(&lying).contains("EXIF of 4294967280 bytes"));
        assert!(webp_extra_bytes(&riff(&[vp8x(0, 2, 2)]), false).is_err());
        assert!(webp_extra_bytes(&riff(&[chunk(b"ICCP", &[0; 4])]), false).is_err());
        assert!(webp_extra_bytes(b"RIFF", false).is_err());
        let mut damaged = vp8();
        damaged[11] = 0;
        assert!(webp_extra_bytes(&riff(&[vp8x(0, 2, 2), damaged]), false).is_err());
    }

    #[test]
    fn deep_transparency_is_counted() {
        let deep = DynamicImage::ImageRgba16(image::ImageBuffer::new(10, 10));
        let bytes = encoded(&deep, ImageFormat::Png);
        let tight = Limits {
            max_alloc: 1_199,
            ..Limits::default()
        };
        let error = decode(&bytes, &tight).unwrap_err();
        assert!(error.reason.ends_with("takes 1200"), "{error}");
        assert!(decode(&bytes, &Limits::default()).is_ok());
    }

    #[test]
    fn exif_orientation_is_applied() {
        // Orientation 6: the camera was turned, so the picture is rotated by 90 degrees clockwise.
        let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let mut bytes = Vec::new();
        let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95);
        encoder.set_exif_metadata(exif.to_vec()).unwrap();
        let source = red_and_blue().into_rgb8();
        encoder
            .write_image(&source, 40, 20, ExtendedColorType::Rgb8)
            .unwrap();
        let picture = decode(&bytes, &Limits::default()).unwrap();
        assert_eq!((picture.width, picture.height), (20, 40));
        assert!(near(&picture.rgb[..3], &[250, 0, 0], 6));
        assert!(near(&picture.rgb[57..60], &[250, 0, 0], 6));
        assert!(near(
            &picture.rgb[picture.rgb.len() - 60..][..3],
            &[0, 0, 250],
            6
        ));
    }

    #[test]
    fn shapes() {
        let picture = decode(
            &encoded(&red_and_blue(), ImageFormat::Png),
            &Limits::default(),
        )
        .unwrap();
        let shape = |side, channels| PictureShape { side, channels };
        // The middle 20 x 20 of 40 x 20, so still half red and half blue.
        let cropped = to_shape(&picture, shape(20, 3)).unwrap();
        assert_eq!(cropped.len(), 1200);
        assert_eq!(&cropped[27..33], [250, 0, 0, 0, 0, 250]);
        let grey = to_shape(&picture, shape(10, 1)).unwrap();
        assert_eq!(grey.len(), 100);
        assert_eq!((grey[0], grey[9]), (75, 28));
        let square = Picture {
            width: 2,
            height: 2,
            rgb: (0..12).collect(),
        };
        assert_eq!(to_shape(&square, shape(2, 3)).unwrap(), square.rgb);
        assert_eq!(to_shape(&square, shape(64, 3)).unwrap().len(), 64 * 64 * 3);
        for wrong in [shape(0, 3), shape(8, 2), shape(usize::MAX, 1)] {
            let error = to_shape(&square, wrong).unwrap_err();
            assert_eq!(error.stage, EncodeStage::Preprocess);
        }
        let lying = Picture { width: 3, ..square };
        assert!(to_shape(&lying, shape(2, 3)).is_err());
        let thin = Picture {
            width: 8192,
            height: 1,
            rgb: vec![50; 8192 * 3],
        };
        assert_eq!(to_shape(&thin, shape(32, 1)).unwrap(), vec![50; 1024]);
    }
}

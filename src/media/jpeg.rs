//! JPEG files: checked whole, priced before a pixel is decoded, and decoded no larger than they are needed.
//!
//! `zune-jpeg` decodes, and has the last word on what a sound file is. It knows one size only; where a
//! picture is wanted at half its size or less, `jpeg-decoder` leaves out the high frequencies of each
//! block (1/2, 1/4 or 1/8), which takes a third of the time and a fraction of the memory.

use image::metadata::Orientation;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Limits, Picture, Target, check_budget, check_dimensions, turn};

/// A file whose headers are read and within the limits.
struct Opened<'a> {
    decoder: JpegDecoder<ZCursor<&'a [u8]>>,
    width: u32,
    height: u32,
    /// As the file has it; everything but grey is decoded to RGB.
    color: ColorSpace,
    orientation: Orientation,
    /// Of coefficients kept until the last scan; 0 for a file that is decoded as it is read.
    coefficient_bytes: u64,
}

fn failed(error: impl std::fmt::Display) -> String {
    format!("expected a sound JPEG file, found: {error}")
}

fn open<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Opened<'a>, String> {
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        // Dimensions are refused below, in our own words.
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(failed)?;
    let (width, height) = decoder.dimensions().ok_or_else(|| failed("no size"))?;
    let side = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
    let (width, height) = (side(width), side(height));
    check_dimensions(width, height, limits)?;
    check_is_whole(bytes)?;
    let color = decoder.input_colorspace().unwrap_or(ColorSpace::YCbCr);
    let channels = if color == ColorSpace::Luma { 1 } else { 3 };
    let coefficient_bytes = coefficient_bytes(bytes, (width, height));
    let decoded_bytes = channels * u64::from(width) * u64::from(height);
    check_budget(decoded_bytes + coefficient_bytes, (width, height), limits)?;
    // Broken metadata is no reason to lose the picture.
    let orientation = decoder
        .exif()
        .and_then(|exif| Orientation::from_exif_chunk(exif))
        .unwrap_or(Orientation::NoTransforms);
    Ok(Opened {
        decoder,
        width,
        height,
        color,
        orientation,
        coefficient_bytes,
    })
}

/// Decodes a file, upright. `buffer` is only memory to use.
pub(super) fn decode(
    bytes: &[u8],
    limits: &Limits,
    target: Target,
    mut buffer: Vec<u8>,
) -> Result<Picture, String> {
    let opened = open(bytes, limits)?;
    let (width, height) = (opened.width, opened.height);
    let divisor = target.divisor(width, height);
    if divisor > 1
        && opened.coefficient_bytes == 0
        && matches!(opened.color, ColorSpace::YCbCr | ColorSpace::Luma)
        && let Some(picture) = decode_smaller(bytes, &opened, divisor)
    {
        return Ok(turn(picture, opened.orientation));
    }
    let mut decoder = opened.decoder;
    let color = match opened.color {
        ColorSpace::Luma => ColorSpace::Luma,
        _ => ColorSpace::RGB,
    };
    decoder.set_options(decoder.options().jpeg_set_out_colorspace(color));
    let channels = color.num_components();
    // All of it is cleared: a decoder that forgives a damaged file may leave some of it unwritten.
    buffer.clear();
    buffer.resize(width as usize * height as usize * channels, 0);
    decoder.decode_into(&mut buffer).map_err(failed)?;
    let rgb = match color {
        ColorSpace::Luma => on_three_channels(&buffer),
        _ => buffer,
    };
    let picture = Picture { width, height, rgb };
    Ok(turn(picture, opened.orientation))
}

/// The picture with both sides divided, rounded up; `None` if this decoder thinks less of the file than
/// the other.
fn decode_smaller(bytes: &[u8], opened: &Opened<'_>, divisor: u32) -> Option<Picture> {
    use jpeg_decoder::PixelFormat;
    let side = |pixels: u32| u16::try_from(pixels.div_ceil(divisor)).ok();
    let size = (side(opened.width)?, side(opened.height)?);
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    if decoder.scale(size.0, size.1).ok()? != size {
        return None;
    }
    let pixels = decoder.decode().ok()?;
    let (width, height) = (u32::from(size.0), u32::from(size.1));
    let n_pixels = width as usize * height as usize;
    let rgb = match decoder.info()?.pixel_format {
        PixelFormat::RGB24 if pixels.len() == 3 * n_pixels => pixels,
        PixelFormat::L8 if pixels.len() == n_pixels => on_three_channels(&pixels),
        _ => return None,
    };
    Some(Picture { width, height, rgb })
}

fn on_three_channels(luma: &[u8]) -> Vec<u8> {
    luma.iter().flat_map(|&luma| [luma; 3]).collect()
}

/// What [`decode`] holds at most, in bytes, by the first frame header; 0 for a file it will refuse.
pub(super) fn working_bytes(bytes: &[u8], target: Target) -> u64 {
    let Some((width, height)) = frame_size(bytes) else {
        return 0;
    };
    let n_pixels = u64::from(width) * u64::from(height);
    let coefficient_bytes = coefficient_bytes(bytes, (width, height));
    let divisor = match coefficient_bytes {
        0 => u64::from(target.divisor(width, height)),
        _ => 1,
    };
    // The planes or the decoder's lines, the picture, and its copy if it is turned.
    coefficient_bytes + 3 * (3 * n_pixels / (divisor * divisor))
}

/// Width and height by the first frame header that the markers lead to.
fn frame_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut at = 2;
    loop {
        at += memchr::memchr(0xff, bytes.get(at..)?)? + 1;
        match *bytes.get(at)? {
            0xff | 0x00 => {}
            0xd9 | 0xda => return None,
            marker => {
                let body = bytes.get(at + 1..)?;
                let number = |at: usize| {
                    Some(u32::from(*body.get(at)?) << 8 | u32::from(*body.get(at + 1)?))
                };
                if is_frame(marker) {
                    return Some((number(5)?, number(3)?));
                }
                at += 1 + number(0)? as usize;
            }
        }
    }
}

/// Walks the markers of a JPEG file to its end marker: a file without one was cut off, and the decoder
/// itself would fill what is missing with grey and say nothing.
pub(super) fn check_is_whole(bytes: &[u8]) -> Result<(), String> {
    let mut in_scans = false;
    let mut n_frames = 0;
    let mut at = 2;
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr::memchr(0xff, rest)) {
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
pub(super) fn coefficient_bytes(bytes: &[u8], (width, height): (u32, u32)) -> u64 {
    let side = |bytes: &[u8]| u32::from(bytes[0]) << 8 | u32::from(bytes[1]);
    let mut any = 0;
    let mut progressive = 0;
    let mut n_components = 0;
    let mut smallest_scan = u8::MAX;
    for at in memchr::memchr_iter(0xff, bytes) {
        let Some((&marker, body)) = bytes[at + 1..].split_first() else {
            break;
        };
        if marker == 0xda && body.len() > 2 && body[2] > 0 {
            smallest_scan = smallest_scan.min(body[2]);
        } else if is_frame(marker)
            && body.len() > 7
            && (side(&body[5..]), side(&body[3..])) == (width, height)
        {
            let coefficient_bytes = frame_coefficients(body).unwrap_or(0) * 2;
            any = coefficient_bytes.max(any);
            n_components = body[7].max(n_components);
            if !matches!(marker, 0xc0 | 0xc1) {
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
pub(super) fn frame_coefficients(header: &[u8]) -> Option<u64> {
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

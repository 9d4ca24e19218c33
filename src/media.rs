//! Pictures from bytes, safely: bounded memory, no panic, one line of reason where it fails.
//!
//! The header's dimensions are checked before a pixel is decoded, and the formats are allow-listed:
//! JPEG, PNG, WebP, GIF, BMP, TIFF. Files that end too early are refused rather than padded with grey,
//! so a half-written upload never gets a code. Colour profiles are ignored; animation is cut to its
//! first frame. Reads no file and knows no model; time is bounded only through the limits on size.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

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

/// Decodes the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF file.
///
/// The EXIF orientation is applied. Grey is copied into the three channels, CMYK is converted without
/// its profile, 16 bits and floats are brought to 8. What is transparent is laid on white, as a page
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
    let extra_bytes = match format {
        ImageFormat::Jpeg => jpeg_coefficient_bytes(bytes)?,
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
    const EXPECTED: &str = "expected a JPEG, PNG, WebP, GIF, BMP or TIFF file";
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    if bytes.is_empty() {
        return Err(format!("{EXPECTED}, found zero bytes"));
    }
    match image::guess_format(bytes) {
        Ok(format @ (Bmp | Gif | Jpeg | Png | Tiff | WebP)) => Ok(format),
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

/// Walks the markers of a JPEG file: what a progressive one needs for its coefficients (2 bytes each,
/// all kept until the last scan), in bytes, or the finding that the file ends before its end marker.
///
/// The decoder itself fills what is missing with grey and says nothing, and it counts no coefficients.
fn jpeg_coefficient_bytes(bytes: &[u8]) -> Result<u64, String> {
    let u16_at = |at: usize| Some(u64::from(*bytes.get(at)?) << 8 | u64::from(*bytes.get(at + 1)?));
    let mut coefficient_bytes = 0;
    let mut at = 2;
    while let Some(found) = bytes
        .get(at..)
        .and_then(|rest| rest.iter().position(|&b| b == 0xff))
    {
        at += found + 1;
        match bytes.get(at) {
            None => break,
            // A fill byte, or a stuffed 0xff of the entropy-coded data, or a marker without a body.
            Some(0xff) => continue,
            Some(0x00 | 0x01 | 0xd0..=0xd8) => at += 1,
            Some(0xd9) => return Ok(coefficient_bytes),
            Some(marker) => {
                let Some(body_len) = u16_at(at + 1) else {
                    break;
                };
                if matches!(marker, 0xc2 | 0xc6 | 0xca | 0xce) {
                    coefficient_bytes = frame_coefficients(&bytes[at + 1..]).unwrap_or(0) * 2;
                }
                at += 1 + body_len as usize;
            }
        }
    }
    Err(format!(
        "expected a whole JPEG file, found {} bytes without an end marker; it was cut off",
        bytes.len()
    ))
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

/// Brings a picture to a square shape: `side x side x channels` bytes, rows from the top, channel last.
///
/// The shorter side is scaled to `side` and the longer one cropped about its middle, by a triangle
/// filter that is widened when it shrinks (as `torchvision`'s antialiased bilinear). One channel is
/// luma by BT.601, so a grey picture keeps its values. A picture that already has the size is copied.
///
/// # Errors
/// [`EncodeStage::Preprocess`] if the shape is none (side 0, channels neither 1 nor 3) or the
/// picture's bytes do not match its width and height.
pub fn to_shape(picture: &Picture, shape: PictureShape) -> Result<Vec<u8>, EncodeError> {
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
    if picture.width == side && picture.height == side {
        return Ok(pixels.clone());
    }
    let source = ImageRef::new(picture.width, picture.height, pixels, pixel_type)
        .map_err(|error| failed(error.to_string()))?;
    let mut resized = Image::new(side, side, pixel_type);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
        .fit_into_destination(Some((0.5, 0.5)));
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

    const FORMATS: [ImageFormat; 6] = [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::WebP,
        ImageFormat::Gif,
        ImageFormat::Bmp,
        ImageFormat::Tiff,
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
            "expected a JPEG, PNG, WebP, GIF, BMP or TIFF file, found zero bytes"
        );
        assert!(
            reason(b"hello\nworld").contains(r#"found 11 bytes that start with "hello\nworld""#)
        );
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
        // A TIFF of one CMYK pixel (no cyan, full magenta and yellow, no black) is red.
        let mut tiff = b"II*\0\x08\0\0\0".to_vec();
        let entries: [(u16, u16, u32, u32); 9] = [
            (256, 3, 1, 1),
            (257, 3, 1, 1),
            (258, 3, 4, 122),
            (259, 3, 1, 1),
            (262, 3, 1, 5),
            (273, 4, 1, 130),
            (277, 3, 1, 4),
            (278, 3, 1, 1),
            (279, 4, 1, 4),
        ];
        tiff.extend_from_slice(&(entries.len() as u16).to_le_bytes());
        for (tag, kind, count, value) in entries {
            tiff.extend_from_slice(&tag.to_le_bytes());
            tiff.extend_from_slice(&kind.to_le_bytes());
            tiff.extend_from_slice(&count.to_le_bytes());
            tiff.extend_from_slice(&value.to_le_bytes());
        }
        tiff.extend_from_slice(&[0; 4]);
        assert_eq!(tiff.len(), 122);
        tiff.extend_from_slice(&[8, 0, 8, 0, 8, 0, 8, 0, 0, 255, 255, 0]);
        let picture = decode(&tiff, &Limits::default()).unwrap();
        assert_eq!(picture.rgb, [255, 0, 0]);
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

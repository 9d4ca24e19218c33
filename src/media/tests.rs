//! Files that are sound, damaged, hostile and odd.

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
    assert!(reason(b"hello\nworld").contains(r#"found 11 bytes that start with "hello\nworld""#));
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
    assert_eq!(jpeg::frame_coefficients(&frame), Some(192));
    // Colour at half size in both directions: one block of 16 x 16 has 6 blocks of coefficients.
    let frame = [0, 17, 8, 0, 9, 0, 9, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1];
    assert_eq!(jpeg::frame_coefficients(&frame), Some(384));
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
    let count = |bytes: &[u8]| jpeg::coefficient_bytes(bytes, (8, 8));
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
    assert!(jpeg::check_is_whole(&twice).unwrap_err().contains("second"));
    assert_eq!(count(&twice), 512);
    let ended = [0xff, 0xd8, 0xff, 0xd9];
    assert!(
        jpeg::check_is_whole(&ended)
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
        0xd0, 0x01, 0x00, 0x9d, 0x01, 0x2a, 0x02, 0x00, 0x02, 0x00, 0x02, 0x00, 0x34, 0x25, 0xa0,
        0x02, 0x74, 0xba, 0x01, 0xf8, 0x00, 0x03, 0xb0, 0x00, 0xfe, 0xf0, 0xc4, 0x0b, 0xff, 0x20,
        0xb9, 0x61, 0x75, 0xc8, 0xd7, 0xff, 0x20, 0x3f, 0xe4, 0x07, 0xfc, 0x80, 0xff, 0xf8, 0xf2,
        0x00, 0x00, 0x00,
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

/// Smooth in both directions, with an edge, so that a wrong scale or place shows.
fn large_jpeg(width: u32, height: u32, grey: bool) -> Vec<u8> {
    let picture = image::RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (x as f32 / width as f32, y as f32 / height as f32);
        let edge = if x + y > 1.0 { 60.0 } else { 0.0 };
        image::Rgb([
            (180.0 * x + edge) as u8,
            (180.0 * y + edge) as u8,
            edge as u8,
        ])
    });
    match grey {
        false => encoded(&DynamicImage::ImageRgb8(picture), ImageFormat::Jpeg),
        true => encoded(
            &DynamicImage::ImageLuma8(DynamicImage::ImageRgb8(picture).into_luma8()),
            ImageFormat::Jpeg,
        ),
    }
}

#[test]
fn large_jpegs_are_decoded_smaller() {
    let limits = Limits::default();
    let size = |bytes: &[u8], min_side| {
        let picture = decode_reduced(bytes, &limits, min_side).unwrap();
        assert_eq!(
            picture.rgb.len(),
            (picture.width * picture.height * 3) as usize
        );
        (picture.width, picture.height)
    };
    for grey in [false, true] {
        let bytes = large_jpeg(1003, 801, grey);
        // The shorter side keeps twice what is wanted.
        assert_eq!(size(&bytes, 50), (126, 101));
        assert_eq!(size(&bytes, 51), (251, 201));
        assert_eq!(size(&bytes, 100), (251, 201));
        assert_eq!(size(&bytes, 200), (502, 401));
        assert_eq!(size(&bytes, 201), (1003, 801));
        assert_eq!(size(&bytes, usize::MAX), (1003, 801));
        for side in [50, 64, 100, 200] {
            let shape = PictureShape { side, channels: 3 };
            let reduced = decode_to_shape(&bytes, &limits, shape, Resize::default()).unwrap();
            let full = to_shape(&decode(&bytes, &limits).unwrap(), shape).unwrap();
            let off: u64 = { reduced.iter().zip(&full) }
                .map(|(a, b)| u64::from(a.abs_diff(*b)))
                .sum();
            let mean = off as f64 / full.len() as f64;
            assert!(mean < 2.0, "side {side}, grey {grey}: {mean} levels off");
        }
    }
    // Small ones are decoded whole, to the very bytes that `decode` and `to_shape` give.
    let bytes = large_jpeg(300, 255, false);
    let shape = PictureShape {
        side: 64,
        channels: 1,
    };
    assert_eq!(
        decode_to_shape(&bytes, &limits, shape, Resize::default()).unwrap(),
        to_shape(&decode(&bytes, &limits).unwrap(), shape).unwrap()
    );
    // CMYK keeps to the decoder that knows it, and what is cut off is refused all the same.
    assert_eq!(size(&cmyk_jpeg(0xc0, &[]), 1), (8, 8));
    let bytes = large_jpeg(1003, 801, false);
    let error = decode_reduced(&bytes[..bytes.len() / 2], &limits, 10).unwrap_err();
    assert!(error.reason.contains("cut off"), "{error}");
    let tight = Limits {
        max_alloc: 3 * 1003 * 801 - 1,
        ..limits
    };
    assert!(
        decode_reduced(&bytes, &tight, 10).is_err(),
        "limits are those of the full size"
    );
}

/// Buffers stay with their thread; pictures do not.
#[test]
fn nothing_of_a_picture_reaches_the_next() {
    let limits = Limits::default();
    let shape = PictureShape {
        side: 32,
        channels: 3,
    };
    let shaped = |bytes: &[u8]| decode_to_shape(bytes, &limits, shape, Resize::default());
    let (first, second) = (large_jpeg(200, 100, false), large_jpeg(90, 120, true));
    let alone: Vec<_> = [&first, &second]
        .map(|bytes| std::thread::scope(|scope| scope.spawn(|| shaped(bytes)).join().unwrap()))
        .into();
    // A file whose scan ends early, as the decoder forgives: what is missing must not be the last picture's.
    let mut damaged = large_jpeg(200, 100, false);
    let middle = damaged.len() / 2;
    damaged.drain(middle..damaged.len() - 2);
    let damaged_alone =
        std::thread::scope(|scope| scope.spawn(|| shaped(&damaged)).join().unwrap());
    for _ in 0..2 {
        assert_eq!(shaped(&first), alone[0]);
        assert_eq!(shaped(&damaged), damaged_alone);
        assert_eq!(shaped(&second), alone[1]);
        assert_eq!(shaped(&damaged), damaged_alone);
    }
}

#[test]
fn working_memory_is_told_by_headers() {
    let limits = Limits::default();
    let shape = PictureShape {
        side: 32,
        channels: 3,
    };
    let told = |bytes: &[u8]| working_bytes(bytes, &limits, shape, Resize::default());
    assert_eq!(told(&large_jpeg(100, 80, false)), 9 * 8000 + 3072);
    // At 1/4 of each side.
    assert_eq!(told(&large_jpeg(400, 320, false)), 9 * 8000 + 3072);
    let png = encoded(&red_and_blue(), ImageFormat::Png);
    assert_eq!(told(&png), 9 * 800 + 3072);
    for none in [&b""[..], b"text", &png[..20], &[0xff, 0xd8, 0xff, 0xd9]] {
        assert_eq!(told(none), 0);
    }
}

//! Pictures for the examples, made so that they need no files: each motif has a shape of its own, and can be
//! had larger, brighter or compressed harder.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;

/// A JPEG file of `width x height` pixels. Equal motifs look alike, at any size and brightness.
pub fn picture(motif: u32, width: u32, height: u32, brightness: f32) -> Vec<u8> {
    let (a, b) = (1.0 + (motif * 7 % 5) as f32, 1.0 + (motif * 3 % 7) as f32);
    let pixels = image::RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (x as f32 / width as f32, y as f32 / height as f32);
        let wave = (6.0 * a * x + motif as f32).sin() + (6.0 * b * y * (1.0 + x)).cos();
        let grey = (brightness * (120.0 + 55.0 * wave)) as u8;
        image::Rgb([grey, grey / 2, 255 - grey])
    });
    let mut file = Cursor::new(Vec::new());
    JpegEncoder::new_with_quality(&mut file, 80)
        .encode_image(&pixels)
        .expect("writing to memory does not fail");
    file.into_inner()
}

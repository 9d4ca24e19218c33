//! Pictures through a service with a stated budget. Guards that the budget is held, whatever the pictures
//! need and however many threads decode. One test alone in its process, because all bytes allocated at once
//! are what it counts. What the allocator keeps of freed ones is not: see the guide to indexing.

use std::io::Cursor;
use std::sync::Arc;

use tanhash::encode::{EncoderService, Prepared, ServiceOptions};
use tanhash::media::{Limits, PictureShape, Resize, decode_to_shape, working_bytes};
use tanhash::{CodeLen, EncodeError, Encoder, HashCode, Payload, Result};

const SHAPE: PictureShape = PictureShape {
    side: 64,
    channels: 3,
};

/// Decodes, and says nothing about what it saw.
struct Decoder;

impl Encoder for Decoder {
    fn code_len(&self) -> CodeLen {
        CodeLen::new(16).unwrap()
    }

    fn model_id(&self) -> &str {
        "decoder"
    }

    fn encode(&self, _batch: &[Payload]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        unreachable!("the service prepares")
    }

    fn prepares(&self) -> bool {
        true
    }

    fn prepare(&self, payload: &Payload) -> std::result::Result<Prepared, EncodeError> {
        let Payload::Image(bytes) = payload else {
            unreachable!()
        };
        decode_to_shape(bytes, &Limits::default(), SHAPE, Resize::default()).map(Prepared::Pixels)
    }

    fn prepare_bytes(&self, payload: &Payload) -> usize {
        let Payload::Image(bytes) = payload else {
            return 0;
        };
        working_bytes(bytes, &Limits::default(), SHAPE, Resize::default())
    }

    fn encode_prepared(&self, batch: &[Prepared]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        Ok(vec![Ok(HashCode::zeros(self.code_len())); batch.len()])
    }
}

fn file(picture: impl Into<image::DynamicImage>, format: image::ImageFormat) -> Payload {
    let mut bytes = Cursor::new(Vec::new());
    picture.into().write_to(&mut bytes, format).unwrap();
    Payload::Image(bytes.into_inner().into())
}

#[global_allocator]
static ALLOCATED: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

#[test]
fn a_stated_budget_is_held() {
    let rgb = image::RgbImage::from_fn(1600, 1400, |x, y| image::Rgb([x as u8, y as u8, 9]));
    let deep = image::ImageBuffer::from_fn(1100, 1000, |x, y| {
        image::Rgba([x as u16 * 50, y as u16 * 60, 3, 60_000u16])
    });
    let files = [
        file(rgb.clone(), image::ImageFormat::Png),
        file(deep, image::ImageFormat::Png),
        file(rgb.clone(), image::ImageFormat::Jpeg),
        file(rgb, image::ImageFormat::Bmp),
        Payload::Image(b"no picture"[..].into()),
    ];
    let options = ServiceOptions {
        queue_bytes: 30_000_000,
        prepare_bytes: 50_000_000,
        prepare_threads: 12,
        ..ServiceOptions::default()
    };
    let budget = options.queue_bytes + options.prepare_bytes;
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let service = EncoderService::new(Arc::new(Decoder), options).unwrap();
    let payloads: Vec<Payload> = files.iter().cycle().take(100).cloned().collect();
    let answers = service.submit(payloads).unwrap().wait();
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 80);
    let stats = service.stats();
    assert!(stats.max_prepared_bytes <= 50_000_000, "{stats:?}");
    assert!(stats.max_held_bytes <= 30_000_000, "{stats:?}");
    let taken = ALLOCATED.peak_usage() - before;
    println!("{} MB of {} MB", taken >> 20, budget >> 20);
    assert!(taken < budget + budget / 10, "{taken} bytes of {budget}");
    // A bound that is never nearly reached guards nothing.
    assert!(taken > budget / 8, "{taken} bytes of {budget}");
}

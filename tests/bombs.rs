//! Small files that decode to enormous pictures. Guards the promise that such a file is refused within
//! bounded memory. One test alone in its process, because the peak of the whole process is what it reads.

use std::io::Write;

use tanhash::media::{Limits, decode};

/// A whole 1-bit PNG of `side x side` pixels, all white: `side / 8` bytes a row, well compressed.
fn png(side: u32) -> Vec<u8> {
    let mut deflated = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    let row = vec![0u8; 1 + side.div_ceil(8) as usize];
    for _ in 0..side {
        deflated.write_all(&row).unwrap();
    }
    let mut header = Vec::new();
    header.extend_from_slice(&side.to_be_bytes());
    header.extend_from_slice(&side.to_be_bytes());
    header.extend_from_slice(&[1, 0, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, body) in [
        (b"IHDR", header),
        (b"IDAT", deflated.finish().unwrap()),
        (b"IEND", Vec::new()),
    ] {
        file.extend_from_slice(&(body.len() as u32).to_be_bytes());
        let start = file.len();
        file.extend_from_slice(kind);
        file.extend_from_slice(&body);
        let checksum = crc32fast::hash(&file[start..]);
        file.extend_from_slice(&checksum.to_be_bytes());
    }
    file
}

/// A chunk of a WebP file; the bodies here have even lengths.
fn chunk(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let len = (body.len() as u32).to_le_bytes();
    [&kind[..], &len, body].concat()
}

/// A WebP file in the extended format, with a square canvas.
fn webp(flags: u8, side: u16, chunks: &[u8]) -> Vec<u8> {
    let [low, high] = (side - 1).to_le_bytes();
    let header = chunk(b"VP8X", &[flags, 0, 0, 0, low, high, 0, low, high, 0]);
    chunk(b"RIFF", &[b"WEBP", &header[..], chunks].concat())
}

/// The header of a lossy bitstream, and nothing to decode.
fn vp8(side: u16) -> Vec<u8> {
    let [low, high] = side.to_le_bytes();
    let mut body = vec![0xd0, 0x01, 0x00, 0x9d, 0x01, 0x2a, low, high, low, high];
    body.resize(1024, 0);
    chunk(b"VP8 ", &body)
}

/// The headers of a progressive JPEG file with full-size colour, and an empty scan.
fn progressive_jpeg(side: u16) -> Vec<u8> {
    let [high, low] = side.to_be_bytes();
    let mut file = vec![0xff, 0xd8];
    file.extend_from_slice(&[0xff, 0xd0, 0, 6, 0xff, 0xe5, 0, 0xff]);
    file.extend_from_slice(&[0xff, 0xc2, 0, 17, 8, high, low, high, low, 3]);
    file.extend_from_slice(&[1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0]);
    file.extend_from_slice(&[0xff, 0xda, 0, 12, 3, 1, 0, 2, 0, 3, 0, 0, 0, 0]);
    file.extend_from_slice(&[0xff, 0xd9]);
    file
}

/// Peak resident memory of this process in KiB, where the system tells.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn bombs_are_refused_within_64_mib() {
    let bomb = png(20_000);
    assert!(bomb.len() < 2_000_000, "{}", bomb.len());
    let before = peak_kib();
    let error = decode(&bomb, &Limits::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "decode: expected at most 8192 x 8192 pixels, found 20000 x 20000"
    );
    // Within the side's limit, above that of the pixels.
    let error = decode(&png(8_000), &Limits::default()).unwrap_err();
    assert!(error.reason.contains("40000000 pixels"), "{error}");
    // WebP: a lossy bitstream of 16383 x 16383 in a canvas of 16 x 16, and 40 million pixels of animation.
    let error = decode(&webp(0, 16, &vp8(16_383)), &Limits::default()).unwrap_err();
    assert!(error.reason.contains("found 16383 x 16383"), "{error}");
    let mut frames = chunk(b"ANIM", &[0; 6]);
    let mut frame = vec![0; 16];
    frame[6..8].copy_from_slice(&6_299u16.to_le_bytes());
    frame[9..11].copy_from_slice(&6_299u16.to_le_bytes());
    frame.extend_from_slice(&vp8(6_300));
    frames.extend_from_slice(&chunk(b"ANMF", &frame));
    let error = decode(&webp(2, 6_300, &frames), &Limits::default()).unwrap_err();
    assert!(error.reason.contains("within 256000000 bytes"), "{error}");
    // JPEG: a progressive frame of 36 million pixels behind a marker that the decoder takes for a segment.
    let error = decode(&progressive_jpeg(6_000), &Limits::default()).unwrap_err();
    assert!(error.reason.ends_with("that takes 324000000"), "{error}");
    let error = decode(b"II*\0\x08\0\0\0", &Limits::default()).unwrap_err();
    assert!(error.reason.contains("TIFF"), "{error}");
    if let (Some(before), Some(after)) = (before, peak_kib()) {
        assert!(after - before < 64 * 1024, "{before} to {after} KiB");
    }
    assert!(decode(&png(600), &Limits::default()).is_ok());
}

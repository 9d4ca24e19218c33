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

/// Peak resident memory of this process in KiB, where the system tells.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn a_png_of_400_million_pixels_is_refused_within_64_mib() {
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
    if let (Some(before), Some(after)) = (before, peak_kib()) {
        assert!(after - before < 64 * 1024, "{before} to {after} KiB");
    }
    assert!(decode(&png(600), &Limits::default()).is_ok());
}

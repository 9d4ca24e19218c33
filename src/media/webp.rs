//! What a WebP file costs to decode, from its chunks, before its decoder runs: that one obeys no limit.
//! Decodes nothing.

/// What the WebP decoder allocates besides its output, in bytes: it obeys no limit. Walks the chunks, and
/// refuses bitstreams of another size than the canvas or their frame, because a bitstream is decoded at
/// the size that it states itself.
pub(super) fn webp_extra_bytes(bytes: &[u8], has_alpha: bool) -> Result<u64, String> {
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

//! Offsets, the header, the section table and the trailer: the fixed part of the format.
//!
//! The sink of a segment file cannot seek and the sizes of sections are known last, so the table
//! follows the sections and a fixed-size trailer finds it. Every number is checked before it is used,
//! every derived size by checked arithmetic.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};

/// First and last eight bytes of a file.
pub const MAGIC: [u8; 8] = *b"TANHASH\0";
/// The version this build writes.
pub const FORMAT_VERSION: u32 = 1;
/// The oldest version this build reads.
pub const OLDEST_READ_VERSION: u32 = 1;

/// Sections start at multiples of this, so that a page-aligned map can be read as words in place.
pub(crate) const SECTION_ALIGN: usize = 64;
pub(crate) const HEADER_BYTES: usize = 64;
pub(crate) const ENTRY_BYTES: usize = 40;
pub(crate) const TRAILER_BYTES: usize = 40;
/// More sections than any field set needs; a larger count is corruption, not data.
pub(crate) const SECTIONS_MAX: usize = 1 << 16;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SectionKind {
    /// JSON: bits, model id, number of codes, MIH parameters.
    Meta,
    /// Blocked code words.
    Codes,
    /// Code words whose whole chunks lie in planes: instead of `Codes`.
    CodePlanes,
    /// One `u32` document id a row, ascending. Absent when every document has a code.
    DocIds,
    /// `u32` bucket offsets of MIH table `param`.
    MihOffsets,
    /// `u32` rows of MIH table `param`, bucket by bucket.
    MihIds,
    /// Blocked code words of the centroids.
    Centroids,
    /// `u32` extents of the clusters, then `u32` starts of their shells.
    Clusters,
    /// `u32` first rows of the shells.
    Shells,
    /// The rank of each row, bit-packed. Absent when rows ascend by document.
    RowRanks,
    /// The row of each rank, bit-packed.
    RankRows,
    /// Code words of MIH table `param`, bucket by bucket.
    MihCodes,
}

impl SectionKind {
    pub(crate) fn to_u16(self) -> u16 {
        match self {
            SectionKind::Meta => 0,
            SectionKind::Codes => 1,
            SectionKind::DocIds => 2,
            SectionKind::MihOffsets => 3,
            SectionKind::MihIds => 4,
            SectionKind::Centroids => 5,
            SectionKind::Clusters => 6,
            SectionKind::Shells => 7,
            SectionKind::RowRanks => 8,
            SectionKind::RankRows => 9,
            SectionKind::CodePlanes => 10,
            SectionKind::MihCodes => 11,
        }
    }

    fn from_u16(kind: u16) -> Option<SectionKind> {
        [
            Self::Meta,
            Self::Codes,
            Self::DocIds,
            Self::MihOffsets,
            Self::MihIds,
            Self::Centroids,
            Self::Clusters,
            Self::Shells,
            Self::RowRanks,
            Self::RankRows,
            Self::CodePlanes,
            Self::MihCodes,
        ]
        .into_iter()
        .find(|known| known.to_u16() == kind)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            SectionKind::Meta => "meta",
            SectionKind::Codes => "codes",
            SectionKind::DocIds => "document ids",
            SectionKind::MihOffsets => "MIH offsets",
            SectionKind::MihIds => "MIH ids",
            SectionKind::Centroids => "centroids",
            SectionKind::Clusters => "clusters",
            SectionKind::Shells => "shells",
            SectionKind::RowRanks => "row ranks",
            SectionKind::RankRows => "rank rows",
            SectionKind::CodePlanes => "codes in planes",
            SectionKind::MihCodes => "MIH codes",
        }
    }
}

/// One row of the section table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) field_id: u32,
    pub(crate) kind: SectionKind,
    /// Which of several sections of a kind: the number of the MIH table.
    pub(crate) param: u32,
    pub(crate) crc32: u32,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

impl Section {
    pub(crate) fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }

    pub(crate) fn name(&self) -> String {
        let table = match self.kind {
            SectionKind::MihOffsets | SectionKind::MihIds | SectionKind::MihCodes => {
                format!(" {}", self.param)
            }
            _ => String::new(),
        };
        format!("{}{table} of field {}", self.kind.name(), self.field_id)
    }
}

/// Bit 0 of an entry's flags: a reader that does not know the kind must refuse the file.
const MUST_UNDERSTAND: u16 = 1;

/// The header: what the file is and how many documents its segment has.
pub(crate) fn header_bytes(max_doc: u32, n_fields: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[16..20].copy_from_slice(&max_doc.to_le_bytes());
    bytes[20..24].copy_from_slice(&n_fields.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The table and the trailer that ends the file. `table_offset` is where the table will stand.
pub(crate) fn table_bytes(sections: &[Section], table_offset: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(sections.len() * ENTRY_BYTES + TRAILER_BYTES);
    for section in sections {
        bytes.extend_from_slice(&section.field_id.to_le_bytes());
        bytes.extend_from_slice(&section.kind.to_u16().to_le_bytes());
        bytes.extend_from_slice(&MUST_UNDERSTAND.to_le_bytes());
        bytes.extend_from_slice(&section.param.to_le_bytes());
        bytes.extend_from_slice(&section.crc32.to_le_bytes());
        bytes.extend_from_slice(&(section.offset as u64).to_le_bytes());
        bytes.extend_from_slice(&(section.len as u64).to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
    }
    let file_len = table_offset + bytes.len() + TRAILER_BYTES;
    bytes.extend_from_slice(&(table_offset as u64).to_le_bytes());
    bytes.extend_from_slice(&(file_len as u64).to_le_bytes());
    bytes.extend_from_slice(&(sections.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&MAGIC);
    bytes
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn usize_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(
        bytes[at..at + 8].try_into().expect("eight bytes"),
    ))
    .ok()
}

/// What the header and the table say.
pub(crate) struct Layout {
    pub(crate) max_doc: u32,
    pub(crate) n_fields: u32,
    pub(crate) sections: Vec<Section>,
}

/// Reads the first [`HEADER_BYTES`] of a file: documents in the segment, hash fields in the file.
pub(crate) fn read_header(bytes: &[u8]) -> Result<(u32, u32)> {
    let Some(header) = bytes.get(..HEADER_BYTES) else {
        let reason = format!(
            "expected at least {HEADER_BYTES} bytes, found {}",
            bytes.len()
        );
        return Err(Error::corrupt("header", reason));
    };
    if header[..8] != MAGIC {
        return Err(Error::corrupt(
            "header",
            "expected the magic bytes TANHASH, found others",
        ));
    }
    if crc32fast::hash(&header[..60]) != u32_at(header, 60) {
        return Err(Error::corrupt("header", "its checksum does not match"));
    }
    let found = u32_at(header, 8);
    if !(OLDEST_READ_VERSION..=FORMAT_VERSION).contains(&found) {
        let (oldest, newest) = (OLDEST_READ_VERSION, FORMAT_VERSION);
        return Err(ErrorKind::UnsupportedVersion {
            found,
            oldest,
            newest,
        }
        .into());
    }
    Ok((u32_at(header, 16), u32_at(header, 20)))
}

/// Reads header, trailer and table, with their checksums; no section is touched.
pub(crate) fn parse(bytes: &[u8]) -> Result<Layout> {
    let (max_doc, n_fields) = read_header(bytes)?;
    if bytes.len() < HEADER_BYTES + TRAILER_BYTES {
        let least = HEADER_BYTES + TRAILER_BYTES;
        let reason = format!(
            "expected a file of at least {least} bytes, found {}",
            bytes.len()
        );
        return Err(Error::corrupt("trailer", reason));
    }
    let trailer_offset = bytes.len() - TRAILER_BYTES;
    let trailer = &bytes[trailer_offset..];
    if trailer[32..] != MAGIC {
        let reason = "expected the file to end with the magic bytes TANHASH, so it is truncated or overwritten";
        return Err(Error::corrupt("trailer", reason));
    }
    let file_len = usize_at(trailer, 8).unwrap_or(usize::MAX);
    if file_len != bytes.len() {
        let reason = format!("expected a file of {file_len} bytes, found {}", bytes.len());
        return Err(Error::corrupt("trailer", reason));
    }
    let table_offset =
        usize_at(trailer, 0).filter(|&at| at >= HEADER_BYTES && at <= trailer_offset);
    let n_sections = u32_at(trailer, 16) as usize;
    let table = table_offset.map(|at| &bytes[at..]);
    let Some(table) = table.filter(|table| {
        n_sections <= SECTIONS_MAX && table.len() == n_sections * ENTRY_BYTES + TRAILER_BYTES
    }) else {
        let reason =
            format!("{n_sections} entries do not fit between the sections and the trailer");
        return Err(Error::corrupt("section table", reason));
    };
    if crc32fast::hash(&table[..table.len() - 12]) != u32_at(trailer, 28) {
        return Err(Error::corrupt(
            "section table",
            "its checksum does not match",
        ));
    }

    let sections_end = table_offset.unwrap_or(0);
    let mut sections = Vec::with_capacity(n_sections);
    for entry in table[..n_sections * ENTRY_BYTES].chunks_exact(ENTRY_BYTES) {
        let Some(kind) = SectionKind::from_u16(u16_at(entry, 4)) else {
            if u16_at(entry, 6) & MUST_UNDERSTAND == 0 {
                continue;
            }
            let reason = format!(
                "section kind {} is unknown to this build; upgrade",
                u16_at(entry, 4)
            );
            return Err(Error::corrupt("section table", reason));
        };
        let (offset, len) = (usize_at(entry, 16), usize_at(entry, 24));
        let end = offset
            .zip(len)
            .and_then(|(offset, len)| offset.checked_add(len));
        let section = Section {
            field_id: u32_at(entry, 0),
            kind,
            param: u32_at(entry, 8),
            crc32: u32_at(entry, 12),
            offset: offset.unwrap_or(0),
            len: len.unwrap_or(0),
        };
        let inside = end.is_some_and(|end| end <= sections_end) && section.offset >= HEADER_BYTES;
        if !inside || !section.offset.is_multiple_of(SECTION_ALIGN) {
            let reason = format!(
                "{} lies outside the file or off its alignment",
                section.name()
            );
            return Err(Error::corrupt("section table", reason));
        }
        sections.push(section);
    }
    Ok(Layout {
        max_doc,
        n_fields,
        sections,
    })
}

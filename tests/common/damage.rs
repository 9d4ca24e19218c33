//! Segment files taken apart and put together again with right checksums, as `docs/FORMAT.md` says and
//! without the crate's code; and everything a reader can be asked about one.

use std::sync::Arc;

use rand::Rng;
use tanhash::engine::{Allowed, EngineChoice, SearchStats, knn, knn_batch, range, range_batch};
use tanhash::segment::{
    Column, ColumnSpec, HashColumn, HashSegment, Integrity, SegmentWriter, TablePolicy,
};
use tanhash::topk::TopK;
use tanhash::{CodeLen, Error, ErrorKind, HashCode, Result};

use crate::common::near;

pub const META: u16 = 0;
pub const CODES: u16 = 1;
pub const DOC_IDS: u16 = 2;
pub const MIH_OFFSETS: u16 = 3;
pub const MIH_IDS: u16 = 4;
pub const CENTROIDS: u16 = 5;
pub const CLUSTERS: u16 = 6;
pub const SHELLS: u16 = 7;
pub const ROW_RANKS: u16 = 8;
pub const RANK_ROWS: u16 = 9;
pub const CODE_PLANES: u16 = 10;
pub const MIH_CODES: u16 = 11;

/// A section.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub field_id: u32,
    pub kind: u16,
    pub flags: u16,
    pub param: u32,
    pub bytes: Vec<u8>,
}

impl Part {
    pub fn word(&self, idx: usize) -> u32 {
        u32::from_le_bytes(self.bytes[idx * 4..idx * 4 + 4].try_into().unwrap())
    }

    pub fn set_word(&mut self, idx: usize, word: u32) {
        self.bytes[idx * 4..idx * 4 + 4].copy_from_slice(&word.to_le_bytes());
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.bytes).unwrap()
    }
}

/// A segment file in parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    pub max_doc: u32,
    pub n_fields: u32,
    pub sections: Vec<Part>,
}

impl Parts {
    /// Takes a sound file apart.
    pub fn of(bytes: &[u8]) -> Parts {
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let trailer = bytes.len() - 40;
        let sections = (u64_at(trailer)..trailer).step_by(40).map(|at| Part {
            field_id: u32_at(at),
            kind: u16_at(at + 4),
            flags: u16_at(at + 6),
            param: u32_at(at + 8),
            bytes: bytes[u64_at(at + 16)..][..u64_at(at + 24)].to_vec(),
        });
        Parts {
            max_doc: u32_at(16),
            n_fields: u32_at(20),
            sections: sections.collect(),
        }
    }

    /// The first section of a kind.
    pub fn part(&mut self, kind: u16) -> &mut Part {
        let mut sections = self.sections.iter_mut();
        sections.find(|part| part.kind == kind).unwrap()
    }

    /// A file of these parts, every checksum right.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = b"TANHASH\0\x01\0\0\0\0\0\0\0".to_vec();
        bytes.extend(self.max_doc.to_le_bytes());
        bytes.extend(self.n_fields.to_le_bytes());
        bytes.resize(60, 0);
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        let mut table = Vec::new();
        for part in &self.sections {
            bytes.resize(bytes.len().next_multiple_of(64), 0);
            table.extend(part.field_id.to_le_bytes());
            table.extend(part.kind.to_le_bytes());
            table.extend(part.flags.to_le_bytes());
            table.extend(part.param.to_le_bytes());
            table.extend(crc32fast::hash(&part.bytes).to_le_bytes());
            table.extend((bytes.len() as u64).to_le_bytes());
            table.extend((part.bytes.len() as u64).to_le_bytes());
            table.extend([0; 8]);
            bytes.extend(&part.bytes);
        }
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        let table_at = bytes.len();
        bytes.extend(table);
        bytes.extend((table_at as u64).to_le_bytes());
        bytes.extend((bytes.len() as u64 + 32).to_le_bytes());
        bytes.extend((self.sections.len() as u32).to_le_bytes());
        bytes.extend([0; 12]);
        bytes.extend(b"TANHASH\0");
        reseal_table(&mut bytes, table_at);
        bytes
    }
}

/// Makes the checksum of the section table and the trailer right.
pub fn reseal_table(bytes: &mut [u8], table_at: usize) {
    let end = bytes.len();
    let crc = crc32fast::hash(&bytes[table_at..end - 12]);
    bytes[end - 12..end - 8].copy_from_slice(&crc.to_le_bytes());
}

/// A field: its id, the length of its codes, the share of documents with a code, and its tables.
pub type FieldShape = (u32, usize, f64, TablePolicy);

/// A sound segment file. Codes lie near a few centers, some on them.
pub fn segment_file(rng: &mut impl Rng, max_doc: u32, fields: &[FieldShape]) -> Vec<u8> {
    let mut writer = SegmentWriter::new(Vec::new(), max_doc, fields.len() as u32).unwrap();
    for &(field_id, bits, share, policy) in fields {
        let code_len = CodeLen::new(bits).unwrap();
        let centers: Vec<HashCode> = (0..4)
            .map(|_| crate::common::random_code(rng, bits))
            .collect();
        let mut column = Column::new(code_len);
        for doc_id in 0..max_doc {
            if rng.random_bool(share) {
                let spread = rng.random_range(0.0..0.2);
                let code = near(rng, &centers[doc_id as usize % 4], spread);
                column.push(doc_id, &code).unwrap();
            }
        }
        let spec = ColumnSpec {
            field_id,
            code_len,
            model_id: Some("m".to_owned()),
        };
        writer.add_field(&spec, &column, policy).unwrap();
    }
    writer.finish().unwrap()
}

/// A sound segment file of one field whose codes, more than a chunk of them, lie in planes.
pub fn planes_file(rng: &mut impl Rng, max_doc: u32, bits: usize) -> Vec<u8> {
    let code_len = CodeLen::new(bits).unwrap();
    let centers: Vec<HashCode> = (0..40)
        .map(|_| crate::common::random_code(rng, bits))
        .collect();
    let mut column = Column::new(code_len);
    for doc_id in 0..max_doc {
        // Those of one center lie together.
        let center = &centers[(doc_id * 40 / max_doc) as usize];
        column.push(doc_id, &near(rng, center, 0.05)).unwrap();
    }
    let spec = ColumnSpec {
        field_id: 1,
        code_len,
        model_id: None,
    };
    let mut writer = SegmentWriter::new(Vec::new(), max_doc, 1).unwrap();
    writer
        .add_field(&spec, &column, TablePolicy::Never)
        .unwrap();
    writer.finish().unwrap()
}

/// What came of asking.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub opened: bool,
    pub verified: bool,
    pub answers: usize,
    pub errors: usize,
}

impl Outcome {
    fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(answer) => {
                self.answers += 1;
                Some(answer)
            }
            Err(error) => {
                check_error(&error);
                self.errors += 1;
                None
            }
        }
    }
}

/// Fails unless this is an error for a damaged file: one line that names what is damaged.
pub fn check_error(error: &Error) {
    let text = error.to_string();
    let named = matches!(
        error.kind(),
        ErrorKind::Corrupt { .. } | ErrorKind::UnsupportedVersion { .. }
    );
    assert!(named && !text.contains('\n'), "{text}");
}

const ENGINES: [EngineChoice; 4] = [
    EngineChoice::Auto,
    EngineChoice::Scan,
    EngineChoice::Mih,
    EngineChoice::Cluster,
];

/// Searches by every engine under every kind of filter, looks every code up, merges, verifies. Nothing may
/// panic, and whatever fails does so by an error for a damaged file.
pub fn exercise(bytes: &[u8], max_doc: u32, integrity: Integrity, rng: &mut impl Rng) -> Outcome {
    let mut outcome = Outcome::default();
    let opened = HashSegment::open(Arc::new(bytes.to_vec()), max_doc, integrity);
    let Some(segment) = outcome.note(opened) else {
        return outcome;
    };
    outcome.opened = true;
    for column in segment.columns() {
        search(column, max_doc, rng, &mut outcome);
        for doc_id in 0..max_doc + 2 {
            outcome.note(column.code(doc_id));
        }
        if let Some(merged) = outcome.note(merge(column, max_doc)) {
            // It may hold damage of its source, which reading then names.
            let reopened = HashSegment::open(Arc::new(merged), max_doc, integrity);
            if let Some(reopened) = outcome.note(reopened) {
                outcome.note(reopened.verify());
            }
        }
    }
    outcome.verified = outcome.note(segment.verify()).is_some();
    outcome
}

fn search(column: &HashColumn, max_doc: u32, rng: &mut impl Rng, outcome: &mut Outcome) {
    let code_len = column.code_len();
    let bits = code_len.bits() as u32;
    let words: Vec<u64> = (0..code_len.words()).map(|_| rng.random()).collect();
    let mut query = HashCode::from_words(code_len, &words).unwrap();
    // Most often a code of the file, so that the nearest clusters are read.
    if let (Ok(Some(code)), true) = (
        column.code(rng.random_range(0..max_doc.max(1))),
        rng.random_bool(0.8),
    ) {
        query = code;
    }
    let Some(rows) = outcome.note(column.rows(7 << 32, true)) else {
        return;
    };
    let listed: Vec<u32> = (0..max_doc + 3).filter(|_| rng.random_bool(0.4)).collect();
    let even = |doc: u32| doc.is_multiple_of(2);
    let set: Vec<u64> = (0..max_doc.div_ceil(64)).map(|_| rng.random()).collect();
    let filters = [
        Allowed::All,
        Allowed::Where(&even),
        Allowed::Listed(&listed),
        Allowed::Set(&set),
    ];
    let k = [1, 3, 20, 1000][rng.random_range(0..4)];
    let radius = [0, 2, bits / 4, bits][rng.random_range(0..4)];
    for allowed in &filters {
        for engine in ENGINES {
            let mut stats = SearchStats::default();
            let mut top = TopK::new(k, bits);
            let found = knn(&rows, engine, &query, allowed, &mut top, &mut stats);
            outcome.note(found);
            let hits = top.into_sorted();
            assert!(hits.len() <= k && hits.iter().all(|hit| hit.distance <= bits));
            let mut hits = Vec::new();
            let found = range(
                &rows, engine, &query, radius, allowed, &mut hits, &mut stats,
            );
            outcome.note(found);
            assert!(hits.iter().all(|hit| hit.distance <= radius));
        }
        let queries = [query.clone(), HashCode::zeros(code_len)];
        let mut stats = SearchStats::default();
        let mut tops = [TopK::new(k, bits), TopK::new(k, bits)];
        outcome.note(knn_batch(
            &rows,
            EngineChoice::Auto,
            &queries,
            allowed,
            &mut tops,
            &mut stats,
        ));
        let mut found = [Vec::new(), Vec::new()];
        outcome.note(range_batch(
            &rows,
            EngineChoice::Auto,
            &queries,
            radius,
            allowed,
            &mut found,
            &mut stats,
        ));
    }
}

/// The file of a segment that was merged from this column alone, every third document deleted.
fn merge(column: &HashColumn, max_doc: u32) -> Result<Vec<u8>> {
    let source = column.source()?;
    let mut merged = Column::new(column.code_len());
    if let Some(centroids) = source.centroids {
        merged.suggest_centroids(centroids)?;
    }
    for doc_id in (0..max_doc).filter(|doc_id| doc_id % 3 != 1) {
        if let Some(row) = source.row_of(doc_id)? {
            merged.push_row(doc_id, &source.codes, row);
        }
    }
    let mut writer = SegmentWriter::new(Vec::new(), max_doc, 1)?;
    let spec = ColumnSpec {
        field_id: column.field_id(),
        code_len: column.code_len(),
        model_id: None,
    };
    writer.add_field(&spec, &merged, TablePolicy::Always)?;
    writer.finish()
}

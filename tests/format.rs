//! The file format. Guards that today's writer gives the bytes of the golden files, that today's reader
//! reads them, and that both agree with `docs/FORMAT.md`: the decoder below follows that page and shares
//! no code with the crate.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use tanhash::engine::{Allowed, EngineChoice, SearchStats, knn, range};
use tanhash::plugin::{HashFieldOptions, HashValue, SchemaBuilderExt};
use tanhash::segment::{
    Column, ColumnSpec, FORMAT_VERSION, HashSegment, Integrity, MAGIC, OLDEST_READ_VERSION,
    SegmentWriter, TablePolicy,
};
use tanhash::topk::TopK;
use tanhash::{CodeLen, HashCode, Payload};
use tantivy::schema::Schema;

/// A golden file: how it is made again.
struct Golden {
    name: &'static str,
    max_doc: u32,
    fields: &'static [Field],
    /// Whether today's writer gives other bytes: the file is kept to be read.
    is_old: bool,
}

struct Field {
    id: u32,
    bits: usize,
    /// One document in this many has no code; 0 for none.
    gap: u32,
    /// Codes lie near this many centers; 0 for uniform codes.
    centers: usize,
    model_id: Option<&'static str>,
    tables: TablePolicy,
}

/// Of more rows than a chunk of planes has, no multiple of eight.
const WIDE: [Field; 2] = [
    Field {
        id: 1,
        bits: 128,
        gap: 0,
        centers: 40,
        model_id: None,
        tables: TablePolicy::Never,
    },
    Field {
        id: 2,
        bits: 136,
        gap: 200,
        centers: 40,
        model_id: Some("model-d"),
        tables: TablePolicy::Clusters,
    },
];

const GOLDEN: [Golden; 9] = [
    Golden {
        name: "dense-64",
        max_doc: 20,
        fields: &[Field {
            id: 3,
            bits: 64,
            gap: 0,
            centers: 0,
            model_id: Some("model-a"),
            tables: TablePolicy::Mih,
        }],
        is_old: false,
    },
    Golden {
        name: "sparse-24",
        max_doc: 50,
        fields: &[Field {
            id: 0,
            bits: 24,
            gap: 3,
            centers: 0,
            model_id: None,
            tables: TablePolicy::Never,
        }],
        is_old: false,
    },
    Golden {
        name: "two-fields",
        max_doc: 12,
        fields: &[
            Field {
                id: 1,
                bits: 16,
                gap: 0,
                centers: 0,
                model_id: None,
                tables: TablePolicy::Mih,
            },
            Field {
                id: 7,
                bits: 128,
                gap: 2,
                centers: 0,
                model_id: Some("model-b"),
                tables: TablePolicy::Auto,
            },
        ],
        is_old: false,
    },
    Golden {
        name: "empty",
        max_doc: 0,
        fields: &[Field {
            id: 0,
            bits: 64,
            gap: 0,
            centers: 0,
            model_id: None,
            tables: TablePolicy::Mih,
        }],
        is_old: false,
    },
    Golden {
        name: "clustered-64",
        // A power of two: where one more bit a rank would begin.
        max_doc: 128,
        fields: &[Field {
            id: 2,
            bits: 64,
            gap: 0,
            centers: 6,
            model_id: Some("model-c"),
            tables: TablePolicy::Clusters,
        }],
        is_old: false,
    },
    Golden {
        name: "both-24",
        max_doc: 75,
        fields: &[Field {
            id: 5,
            bits: 24,
            gap: 3,
            centers: 4,
            model_id: None,
            tables: TablePolicy::Always,
        }],
        is_old: false,
    },
    Golden {
        name: "blocks-wide",
        max_doc: 2061,
        fields: &WIDE,
        is_old: true,
    },
    Golden {
        name: "planes-wide",
        max_doc: 2061,
        fields: &WIDE,
        is_old: false,
    },
    Golden {
        name: "mih-codes-40",
        max_doc: 65,
        fields: &[Field {
            id: 6,
            bits: 40,
            gap: 4,
            centers: 3,
            model_id: Some("model-d"),
            tables: TablePolicy::MihCopies,
        }],
        is_old: false,
    },
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/format/v1")
}

fn random_code(rng: &mut ChaCha8Rng, bits: usize) -> HashCode {
    let mut bytes = vec![0; bits / 8];
    rng.fill_bytes(&mut bytes);
    HashCode::from_bytes(&bytes).unwrap()
}

/// A code with about one bit in twelve flipped.
fn near(rng: &mut ChaCha8Rng, center: &HashCode) -> HashCode {
    let mut code = center.clone();
    for bit in 0..center.code_len().bits() {
        if rng.next_u32().is_multiple_of(12) {
            code.set_bit(bit, !center.bit(bit));
        }
    }
    code
}

impl Field {
    fn has_mih(&self) -> bool {
        matches!(
            self.tables,
            TablePolicy::Mih | TablePolicy::Always | TablePolicy::MihCopies
        )
    }

    fn has_mih_codes(&self) -> bool {
        self.tables == TablePolicy::MihCopies
    }

    fn has_clusters(&self) -> bool {
        matches!(self.tables, TablePolicy::Clusters | TablePolicy::Always)
    }

    /// The codes of the field with their documents, and a query.
    fn codes(&self, max_doc: u32) -> (Vec<(u32, HashCode)>, HashCode) {
        let mut rng = ChaCha8Rng::seed_from_u64(u64::from(self.id) << 32 | self.bits as u64);
        let centers: Vec<HashCode> = (0..self.centers)
            .map(|_| random_code(&mut rng, self.bits))
            .collect();
        let code = |doc_id: u32| match centers.len() {
            0 => random_code(&mut rng, self.bits),
            n_centers => near(&mut rng, &centers[doc_id as usize % n_centers]),
        };
        let codes: Vec<(u32, HashCode)> = (0..max_doc).zip((0..max_doc).map(code)).collect();
        let codes = codes
            .into_iter()
            .filter(|(doc_id, _)| self.gap == 0 || doc_id % self.gap != 1)
            .collect();
        (codes, random_code(&mut rng, self.bits))
    }
}

impl Golden {
    fn write(&self) -> Vec<u8> {
        let mut writer =
            SegmentWriter::new(Vec::new(), self.max_doc, self.fields.len() as u32).unwrap();
        for field in self.fields {
            let code_len = CodeLen::new(field.bits).unwrap();
            let mut column = Column::new(code_len);
            for (doc_id, code) in field.codes(self.max_doc).0 {
                column.push(doc_id, &code).unwrap();
            }
            let model_id = field.model_id.map(str::to_owned);
            let spec = ColumnSpec {
                field_id: field.id,
                code_len,
                model_id,
            };
            writer.add_field(&spec, &column, field.tables).unwrap();
        }
        writer.finish().unwrap()
    }

    /// The stored bytes, written first if that was asked for.
    fn stored(&self) -> Vec<u8> {
        // Tests run side by side: none reads a file while another writes it.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap();
        let path = folder().join(format!("{}.hcode", self.name));
        if regenerating() && !self.is_old {
            fs::write(&path, self.write()).unwrap();
        }
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

fn regenerating() -> bool {
    std::env::var("TANHASH_REGENERATE_FIXTURES").is_ok_and(|value| value == "1")
}

/// Compares text with a stored file, which is written first if that was asked for.
fn check_text(name: &str, text: &str) {
    let path = folder().join(name);
    if regenerating() {
        fs::write(&path, text).unwrap();
    }
    let stored =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(
        text, stored,
        "{name} changed; if the format was meant to change, see its README"
    );
}

#[test]
fn todays_writer_gives_the_golden_bytes() {
    for golden in GOLDEN.iter().filter(|golden| !golden.is_old) {
        let (written, stored) = (golden.write(), golden.stored());
        let differs = written.iter().zip(&stored).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{}: the first other byte", golden.name);
        assert_eq!(written.len(), stored.len(), "{}: length", golden.name);
    }
}

#[test]
fn golden_files_open_verify_and_answer() {
    let mut answers = String::new();
    for golden in &GOLDEN {
        let bytes = Arc::new(golden.stored());
        let segment = HashSegment::open(bytes, golden.max_doc, Integrity::FirstUse).unwrap();
        segment.verify().unwrap();
        assert_eq!(segment.columns().len(), golden.fields.len());
        for field in golden.fields {
            let (codes, query) = field.codes(golden.max_doc);
            let column = segment.column(field.id).unwrap();
            assert_eq!(column.code_len().bits(), field.bits);
            assert_eq!(column.model_id(), field.model_id);
            assert_eq!(column.n_codes(), codes.len());
            let has_rows = !codes.is_empty();
            assert_eq!(column.mih_params().is_some(), field.has_mih() && has_rows);
            assert_eq!(
                column.n_clusters().is_some(),
                field.has_clusters() && has_rows
            );
            for doc_id in 0..golden.max_doc {
                let expected = codes
                    .iter()
                    .find(|(of, _)| *of == doc_id)
                    .map(|(_, code)| code);
                assert_eq!(column.code(doc_id).unwrap().as_ref(), expected);
            }

            let mut expected: Vec<(u32, u32)> = codes
                .iter()
                .map(|(doc_id, code)| (code.distance(&query).unwrap(), *doc_id))
                .collect();
            expected.sort_unstable();
            let radius = field.bits as u32 / 3;
            let mut within: Vec<(u32, u32)> = expected.clone();
            within.retain(|(distance, _)| *distance <= radius);
            within.sort_unstable_by_key(|(_, doc_id)| *doc_id);
            expected.truncate(5);
            let rows = column.rows(0, true).unwrap();
            for engine in [
                EngineChoice::Auto,
                EngineChoice::Scan,
                EngineChoice::Mih,
                EngineChoice::Cluster,
            ] {
                let mut top = TopK::new(5, field.bits as u32);
                knn(
                    &rows,
                    engine,
                    &query,
                    &Allowed::All,
                    &mut top,
                    &mut SearchStats::default(),
                )
                .unwrap();
                let found: Vec<(u32, u32)> = top
                    .into_sorted()
                    .iter()
                    .map(|hit| (hit.distance, hit.address as u32))
                    .collect();
                assert_eq!(found, expected, "{}, {engine}", golden.name);
                let mut found = Vec::new();
                range(
                    &rows,
                    engine,
                    &query,
                    radius,
                    &Allowed::All,
                    &mut found,
                    &mut SearchStats::default(),
                )
                .unwrap();
                let found: Vec<(u32, u32)> = found
                    .iter()
                    .map(|hit| (hit.distance, hit.address as u32))
                    .collect();
                assert_eq!(found, within, "{}, {engine}, range", golden.name);
            }
            write!(
                answers,
                "{} field {} query {}:",
                golden.name,
                field.id,
                query.to_hex()
            )
            .unwrap();
            for (distance, doc_id) in expected {
                write!(answers, " {doc_id}:{distance}").unwrap();
            }
            answers.push('\n');
        }
    }
    check_text("answers.txt", &answers);
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn usize_at(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

const KIND_NAMES: [(u16, &str); 12] = [
    (0, "meta"),
    (1, "codes"),
    (2, "document ids"),
    (3, "MIH offsets"),
    (4, "MIH ids"),
    (5, "centroids"),
    (6, "clusters"),
    (7, "shells"),
    (8, "row ranks"),
    (9, "rank rows"),
    (10, "codes in planes"),
    (11, "MIH codes"),
];

/// The fixed parts of a file in words, decoded as `docs/FORMAT.md` says and checked against it.
fn dump(name: &str, bytes: &[u8]) -> String {
    let mut text = format!("{name}: {} bytes\n", bytes.len());
    let (header, trailer) = (&bytes[..64], &bytes[bytes.len() - 40..]);
    assert_eq!(&header[..8], b"TANHASH\0");
    assert_eq!(&trailer[32..], b"TANHASH\0");
    assert_eq!(crc32fast::hash(&header[..60]), u32_at(header, 60));
    assert!(
        header[12..16]
            .iter()
            .chain(&header[24..60])
            .chain(&trailer[20..28])
            .all(|&byte| byte == 0)
    );
    let (version, max_doc, n_fields) = (u32_at(header, 8), u32_at(header, 16), u32_at(header, 20));
    writeln!(
        text,
        "  header: version {version}, {max_doc} documents, {n_fields} fields"
    )
    .unwrap();

    let (table_at, file_len, n_sections) = (
        usize_at(trailer, 0),
        usize_at(trailer, 8),
        u32_at(trailer, 16) as usize,
    );
    assert_eq!(file_len, bytes.len());
    assert_eq!(table_at + 40 * n_sections, bytes.len() - 40);
    assert_eq!(
        crc32fast::hash(&bytes[table_at..bytes.len() - 12]),
        u32_at(trailer, 28)
    );
    writeln!(
        text,
        "  trailer: table at {table_at}, {n_sections} sections"
    )
    .unwrap();
    let mut end = 64;
    for entry in bytes[table_at..bytes.len() - 40].chunks_exact(40) {
        let (field_id, kind, flags) = (u32_at(entry, 0), u16_at(entry, 4), u16_at(entry, 6));
        let (param, crc32) = (u32_at(entry, 8), u32_at(entry, 12));
        let (offset, len) = (usize_at(entry, 16), usize_at(entry, 24));
        assert!(entry[32..].iter().all(|&byte| byte == 0));
        assert_eq!(offset, usize::next_multiple_of(end, 64));
        assert!(bytes[end..offset].iter().all(|&byte| byte == 0), "padding");
        let section = &bytes[offset..offset + len];
        assert_eq!(crc32fast::hash(section), crc32);
        let kind_name = KIND_NAMES
            .iter()
            .find(|(known, _)| *known == kind)
            .unwrap()
            .1;
        writeln!(
            text,
            "  field {field_id}, kind {kind} ({kind_name}), param {param}, flags {flags}: \
             {len} bytes at {offset}, CRC {crc32:08x}"
        )
        .unwrap();
        if kind == 0 {
            writeln!(text, "    {}", std::str::from_utf8(section).unwrap()).unwrap();
        }
        end = offset + len;
    }
    assert_eq!(usize::next_multiple_of(end, 64), table_at);
    text
}

#[test]
fn section_tables_are_as_recorded() {
    let dumps: Vec<String> = GOLDEN
        .iter()
        .map(|golden| dump(golden.name, &golden.stored()))
        .collect();
    check_text("sections.txt", &dumps.join("\n"));
}

/// The sections of one field, read as FORMAT.md says.
struct Decoded<'a> {
    bytes: &'a [u8],
    field_id: u32,
}

impl<'a> Decoded<'a> {
    fn section(&self, kind: u16, param: u32) -> Option<&'a [u8]> {
        let bytes = self.bytes;
        let table_at = usize_at(bytes, bytes.len() - 40);
        let mut entries = bytes[table_at..bytes.len() - 40].chunks_exact(40);
        let found = entries.find(|entry| {
            u32_at(entry, 0) == self.field_id
                && u16_at(entry, 4) == kind
                && u32_at(entry, 8) == param
        });
        found.map(|entry| &bytes[usize_at(entry, 16)..][..usize_at(entry, 24)])
    }

    fn meta(&self) -> serde_json::Value {
        serde_json::from_slice(self.section(0, 0).unwrap()).unwrap()
    }

    fn words(&self, kind: u16, param: u32) -> Option<Vec<u32>> {
        let section = self.section(kind, param)?;
        assert_eq!(section.len() % 4, 0);
        Some(
            (0..section.len() / 4)
                .map(|idx| u32_at(section, idx * 4))
                .collect(),
        )
    }

    /// Codes in blocks or in planes; rows that fill up the last block are zero.
    fn codes(&self, kind: u16, n_codes: usize, bits: usize) -> Vec<Vec<u64>> {
        self.codes_of(kind, 0, n_codes, bits)
    }

    fn codes_of(&self, kind: u16, param: u32, n_codes: usize, bits: usize) -> Vec<Vec<u64>> {
        let section = self.section(kind, param).unwrap();
        let words = bits.div_ceil(64);
        assert_eq!(section.len(), n_codes.div_ceil(8) * 8 * words * 8);
        let first = words.div_ceil(2);
        let place = |row: usize, w: usize| match (kind, w < first) {
            (10, true) if row / 2048 < n_codes / 2048 => {
                row / 2048 * 2048 * words + row % 2048 / 8 * 8 * first + w * 8 + row % 8
            }
            (10, false) if row / 2048 < n_codes / 2048 => {
                row / 2048 * 2048 * words
                    + 2048 * first
                    + row % 2048 / 8 * 8 * (words - first)
                    + (w - first) * 8
                    + row % 8
            }
            _ => (row / 8) * 8 * words + w * 8 + row % 8,
        };
        let word = |row: usize, w: usize| usize_at(section, 8 * place(row, w));
        let mut rows: Vec<Vec<u64>> = (0..n_codes.next_multiple_of(8))
            .map(|row| (0..words).map(|w| word(row, w) as u64).collect())
            .collect();
        let padding = rows.split_off(n_codes);
        assert!(padding.iter().flatten().all(|&word| word == 0));
        if !bits.is_multiple_of(64) {
            assert!(rows.iter().all(|row| row[words - 1] >> (bits % 64) == 0));
        }
        rows
    }

    /// Packed numbers, bit by bit; what follows them is zero.
    fn packed(&self, kind: u16, n: usize) -> Option<Vec<usize>> {
        let bytes = self.section(kind, 0)?;
        let mut width = 0;
        while (n - 1) >> width != 0 {
            width += 1;
        }
        assert_eq!(bytes.len(), (n * width).div_ceil(8) + 8);
        let bit = |at: usize| usize::from(bytes[at / 8] >> (at % 8) & 1);
        assert!((n * width..bytes.len() * 8).all(|at| bit(at) == 0));
        let number = |i: usize| (0..width).map(|low| bit(i * width + low) << low).sum();
        Some((0..n).map(number).collect())
    }
}

fn distance(a: &[u64], b: &[u64]) -> usize {
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| (a ^ b).count_ones() as usize).sum()
}

/// Codes, document ids, clusters, row orders and tables are what FORMAT.md says, of every golden file.
#[test]
fn sections_hold_what_the_page_says() {
    for golden in &GOLDEN {
        let bytes = golden.stored();
        for field in golden.fields {
            let decoded = Decoded {
                bytes: &bytes,
                field_id: field.id,
            };
            let (codes, _) = field.codes(golden.max_doc);
            let n_codes = codes.len();
            let in_planes = golden.name == "planes-wide";
            let kind = if in_planes { 10 } else { 1 };
            assert!(decoded.section(11 - kind, 0).is_none());
            let rows = decoded.codes(kind, n_codes, field.bits);
            let doc_ids: Vec<u32> = codes.iter().map(|(doc_id, _)| *doc_id).collect();
            match decoded.words(2, 0) {
                None => assert_eq!(n_codes, golden.max_doc as usize),
                Some(found) => assert_eq!(found, doc_ids),
            }
            let clustered = field.has_clusters() && n_codes > 0;
            for kind in 5..8 {
                assert_eq!(decoded.section(kind, 0).is_some(), clustered);
            }
            for kind in 8..10 {
                assert_eq!(decoded.section(kind, 0).is_some(), clustered);
            }
            let ranks = decoded.packed(8, n_codes).unwrap_or((0..n_codes).collect());
            for (row, &rank) in ranks.iter().enumerate() {
                assert_eq!(rows[row], codes[rank].1.words());
            }
            if clustered {
                let rank_rows = decoded.packed(9, n_codes).unwrap();
                let back: Vec<usize> = rank_rows.iter().map(|&row| ranks[row]).collect();
                assert_eq!(back, (0..n_codes).collect::<Vec<_>>());
            }
            if clustered {
                check_clusters(&decoded, field, &rows, &ranks);
            }
            let has_codes = field.has_mih_codes() && n_codes > 0;
            check_mih(&decoded, &rows, field.bits, has_codes);
        }
    }
}

/// Rows come by (cluster, distance to the centroid, document), as extents, starts and shells say.
fn check_clusters(decoded: &Decoded<'_>, field: &Field, rows: &[Vec<u64>], ranks: &[usize]) {
    let sizes = &decoded.meta()["clusters"];
    let size = |key: &str| sizes[key].as_u64().unwrap() as usize;
    let (n_clusters, n_shells) = (size("n_clusters"), size("n_shells"));
    let centroids = decoded.codes(5, n_clusters, field.bits);
    let table = decoded.words(6, 0).unwrap();
    let shells = decoded.words(7, 0).unwrap();
    assert_eq!(table.len(), 2 * n_clusters + 1);
    assert_eq!(shells.len(), n_shells);
    let (extents, starts) = table.split_at(n_clusters);
    let (mut next_row, mut next_start) = (0, 0);
    for (cluster, centroid) in centroids.iter().enumerate() {
        let extent = extents[cluster] as usize;
        let (nearest, farthest) = (extent & 0xffff, extent >> 16);
        let start = starts[cluster] as usize;
        assert_eq!(start, next_start);
        for shell in nearest..=farthest {
            let first = shells[start + shell - nearest] as usize;
            let past = shells[start + shell - nearest + 1] as usize;
            assert_eq!(first, next_row);
            assert!(shell != nearest && shell != farthest || first < past);
            for row in &rows[first..past] {
                assert_eq!(distance(row, centroid), shell);
            }
            assert!(ranks[first..past].is_sorted_by(|a, b| a < b));
            next_row = past;
        }
        next_start = start + farthest - nearest + 2;
    }
    assert_eq!((next_row, next_start), (rows.len(), n_shells));
    assert_eq!(starts[n_clusters] as usize, n_shells);
}

/// Substrings of a code, by the bits that the meta section lists.
fn substrings(meta: &serde_json::Value) -> Vec<Vec<usize>> {
    let bits = |bits: &serde_json::Value| {
        let bits = bits.as_array().unwrap().iter();
        bits.map(|bit| bit.as_u64().unwrap() as usize).collect()
    };
    let substrings = meta["mih"]["substrings"].as_array().unwrap();
    substrings.iter().map(bits).collect()
}

fn value(row: &[u64], bits: &[usize]) -> usize {
    let places = bits.iter().enumerate();
    places.fold(0, |sum, (i, bit)| {
        sum | ((row[bit / 64] >> (bit % 64) & 1) as usize) << i
    })
}

/// Every row is in the bucket of its substring, once a table, and so is its code where tables have codes.
fn check_mih(decoded: &Decoded<'_>, rows: &[Vec<u64>], code_bits: usize, has_codes: bool) {
    let meta = decoded.meta();
    if meta["mih"].is_null() {
        assert!(decoded.section(3, 0).is_none());
        return;
    }
    for (table, bits) in (0..).zip(substrings(&meta)) {
        let offsets = decoded.words(3, table).unwrap();
        let ids = decoded.words(4, table).unwrap();
        assert_eq!(offsets.len(), (1 << bits.len()) + 1);
        let value = |row: &[u64]| value(row, &bits);
        let mut expected: Vec<u32> = (0..rows.len() as u32).collect();
        expected.sort_by_key(|&row| value(&rows[row as usize]));
        assert_eq!(ids, expected);
        assert_eq!(decoded.section(11, table).is_some(), has_codes);
        if has_codes {
            let codes = decoded.codes_of(11, table, rows.len(), code_bits);
            let expected: Vec<&Vec<u64>> = ids.iter().map(|&row| &rows[row as usize]).collect();
            assert_eq!(codes.iter().collect::<Vec<_>>(), expected);
        }
        for (bucket, pair) in offsets.windows(2).enumerate() {
            let rows_in = &ids[pair[0] as usize..pair[1] as usize];
            assert!(
                rows_in
                    .iter()
                    .all(|&row| value(&rows[row as usize]) == bucket)
            );
        }
    }
}

/// A file as a later version might write it: read past where it may be, refused by name where not.
#[test]
fn other_versions_and_unknown_sections() {
    let resealed = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = GOLDEN[0].stored();
        edit(&mut bytes);
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        let (end, table_at) = (bytes.len(), usize_at(&bytes, bytes.len() - 40));
        let crc = crc32fast::hash(&bytes[table_at..end - 12]);
        bytes[end - 12..end - 8].copy_from_slice(&crc.to_le_bytes());
        HashSegment::open(Arc::new(bytes), GOLDEN[0].max_doc, Integrity::FirstUse)
    };
    for version in [0, FORMAT_VERSION + 1] {
        let error =
            resealed(&|bytes| bytes[8..12].copy_from_slice(&version.to_le_bytes())).unwrap_err();
        let expected = tanhash::ErrorKind::UnsupportedVersion {
            found: version,
            oldest: OLDEST_READ_VERSION,
            newest: FORMAT_VERSION,
        };
        assert_eq!(*error.kind(), expected);
    }
    // The last section, an MIH id list, becomes one of an unknown kind.
    let relabel = |bytes: &mut Vec<u8>, flags: u16| {
        let at = bytes.len() - 80;
        bytes[at + 4..at + 6].copy_from_slice(&99u16.to_le_bytes());
        bytes[at + 6..at + 8].copy_from_slice(&flags.to_le_bytes());
    };
    let error = resealed(&|bytes| relabel(bytes, 1))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("kind 99") && error.contains("upgrade"),
        "{error}"
    );
    // Passed over, so what is missed is the section that it was.
    let error = resealed(&|bytes| relabel(bytes, 0))
        .unwrap_err()
        .to_string();
    assert!(error.contains("MIH ids section is missing"), "{error}");
    // Reserved bytes belong to later versions.
    let segment = resealed(&|bytes| {
        let end = bytes.len();
        bytes[24] = 1;
        bytes[end - 20] = 1;
        bytes[end - 48] = 1;
    });
    segment.unwrap().verify().unwrap();
}

#[test]
fn values_and_schema_parameters_keep_their_bytes() {
    assert_eq!(MAGIC, *b"TANHASH\0");
    let code = HashValue::Code(HashCode::from_hex("0180ff").unwrap());
    assert_eq!(code.to_bytes(), [0, 0x01, 0x80, 0xff]);
    let image = HashValue::Payload(Payload::Image([9, 8].as_slice().into()));
    assert_eq!(image.to_bytes(), [1, 9, 8]);
    let vector = HashValue::Payload(Payload::Vector([1.0, -2.5].as_slice().into()));
    assert_eq!(vector.to_bytes(), [2, 0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0]);

    let mut builder = Schema::builder();
    builder
        .add_hash_field("named", HashFieldOptions::new(64).model_id("m"))
        .unwrap();
    builder
        .add_hash_field("plain", HashFieldOptions::new(1024))
        .unwrap();
    let schema = serde_json::to_value(builder.build()).unwrap();
    let expected = serde_json::json!([
        {"name": "named", "type": "custom", "options":
            {"type_name": "hash_code", "params": {"v": 1, "bits": 64, "model_id": "m"}}},
        {"name": "plain", "type": "custom", "options":
            {"type_name": "hash_code", "params": {"v": 1, "bits": 1024}}},
    ]);
    assert_eq!(schema, expected);
}

//! Damaged files: every truncation and many flips of a segment file, in memory and on disk, and of
//! `meta.json`. Guards that damage gives one clear error or leaves the answer as it was, and never a panic.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::damage::{
    CENTROIDS, CLUSTERS, CODE_PLANES, CODES, DOC_IDS, META, MIH_CODES, MIH_IDS, MIH_OFFSETS,
    Outcome, Parts, RANK_ROWS, ROW_RANKS, SHELLS, exercise, planes_file, segment_file,
};
use common::{Doc, random_code, schema, seeded};
use rand::Rng;
use tanhash::engine::{Allowed, EngineChoice, SearchStats, knn, range};
use tanhash::plugin::{HammingQuery, HashIndex, HashPlugin, KnnQuery, WriterOptions};
use tanhash::segment::{Column, ColumnSpec, HashSegment, Integrity, SegmentWriter, TablePolicy};
use tanhash::topk::{Neighbor, TopK};
use tanhash::{CodeLen, ErrorKind, HashCode, Result};
use tantivy::query::AllQuery;

const DOCS: u32 = 60;

/// A small segment file with every kind of section: two fields, one sparse, both with tables.
fn segment_bytes() -> Vec<u8> {
    let mut rng = seeded("segment_bytes", 11);
    let mut writer = SegmentWriter::new(Vec::new(), DOCS, 2).unwrap();
    for (field_id, bits, share) in [(3, 24, 1.0), (5, 16, 0.4)] {
        let code_len = CodeLen::new(bits).unwrap();
        let mut column = Column::new(code_len);
        for doc_id in 0..DOCS {
            if rng.random_bool(share) {
                column.push(doc_id, &random_code(&mut rng, bits)).unwrap();
            }
        }
        let spec = ColumnSpec {
            field_id,
            code_len,
            model_id: Some("m".to_owned()),
        };
        writer
            .add_field(&spec, &column, TablePolicy::Always)
            .unwrap();
    }
    writer.finish().unwrap()
}

/// Everything a reader can be asked, over all engines.
fn answers(bytes: &[u8], integrity: Integrity) -> Result<Vec<Vec<Neighbor>>> {
    let segment = HashSegment::open(Arc::new(bytes.to_vec()), DOCS, integrity)?;
    let mut answers = Vec::new();
    for column in segment.columns() {
        let query = HashCode::zeros(column.code_len());
        let rows = column.rows(0, true)?;
        for choice in [
            EngineChoice::Auto,
            EngineChoice::Scan,
            EngineChoice::Mih,
            EngineChoice::Cluster,
        ] {
            let mut stats = SearchStats::default();
            let mut top = TopK::new(7, column.code_len().bits() as u32);
            knn(&rows, choice, &query, &Allowed::All, &mut top, &mut stats)?;
            answers.push(top.into_sorted());
            let mut found = Vec::new();
            range(
                &rows,
                choice,
                &query,
                6,
                &Allowed::All,
                &mut found,
                &mut stats,
            )?;
            answers.push(found);
        }
        for doc_id in 0..DOCS {
            column.code(doc_id)?;
        }
    }
    Ok(answers)
}

#[test]
fn every_flip_of_a_segment_file_is_seen_or_harmless() {
    let bytes = segment_bytes();
    let sound = answers(&bytes, Integrity::FirstUse).unwrap();
    HashSegment::open(Arc::new(bytes.clone()), DOCS, Integrity::FirstUse)
        .unwrap()
        .verify()
        .unwrap();
    let (mut seen, mut harmless) = (0, 0);
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            match answers(&damaged, Integrity::FirstUse) {
                Ok(found) => {
                    assert_eq!(
                        found, sound,
                        "byte {at} ^ {flip:#x} changed an answer in silence"
                    );
                    harmless += 1;
                }
                Err(error) => {
                    let text = error.to_string();
                    let named = matches!(
                        error.kind(),
                        ErrorKind::Corrupt { .. } | ErrorKind::UnsupportedVersion { .. }
                    );
                    assert!(named && !text.contains('\n'), "byte {at}: {text}");
                    seen += 1;
                }
            }
            // Without checksums an answer may be wrong, but reading stays inside the file.
            let _ = answers(&damaged, Integrity::Structure);
        }
    }
    // Only padding between sections may change unseen; tantivy's checksum of the file covers it.
    println!(
        "{seen} flips seen, {harmless} in padding, of a file of {} bytes",
        bytes.len()
    );
    assert!(
        harmless < bytes.len(),
        "{harmless} of {} flips unseen",
        3 * bytes.len()
    );
}

#[test]
fn every_truncation_and_extension_is_seen() {
    let bytes = segment_bytes();
    for len in 0..bytes.len() {
        assert!(
            answers(&bytes[..len], Integrity::FirstUse).is_err(),
            "{len} bytes"
        );
    }
    for extra in [1, 8, 64] {
        let mut longer = bytes.clone();
        longer.extend(vec![0; extra]);
        assert!(
            answers(&longer, Integrity::FirstUse).is_err(),
            "{extra} bytes more"
        );
    }
    let error = HashSegment::open(Arc::new(bytes), DOCS + 1, Integrity::FirstUse)
        .unwrap_err()
        .to_string();
    assert!(error.contains("61") && error.contains("60"), "{error}");
}

#[test]
fn unaligned_bytes_are_read_all_the_same() {
    struct Shifted(Vec<u8>);
    impl AsRef<[u8]> for Shifted {
        fn as_ref(&self) -> &[u8] {
            &self.0[1..]
        }
    }
    let bytes = segment_bytes();
    let shifted = Shifted([&[0][..], &bytes].concat());
    let segment = HashSegment::open(Arc::new(shifted), DOCS, Integrity::FirstUse).unwrap();
    segment.verify().unwrap();
}

/// A flipped bit, a section cut short and a lost one are told by name, whichever section it is.
#[test]
fn damage_is_named_by_section() {
    let mut bytes = segment_bytes();
    let segment = HashSegment::open(Arc::new(bytes.clone()), DOCS, Integrity::FirstUse).unwrap();
    let mut sections: Vec<(String, usize, usize)> = Vec::new();
    for column in segment.columns() {
        for (name, range) in column.sections() {
            sections.push((name, range.start, range.end));
        }
    }
    for kind in ["centroids", "clusters", "shells", "row ranks", "rank rows"] {
        for field_id in [3, 5] {
            let name = format!("{kind} of field {field_id}");
            assert!(sections.iter().any(|(of, ..)| *of == name), "{name}");
        }
    }
    for (name, start, end) in &sections {
        for at in [*start, (start + end) / 2, end - 1] {
            bytes[at] ^= 0x10;
            let error = answers(&bytes, Integrity::FirstUse).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Corrupt { .. }));
            assert!(error.to_string().contains(name.as_str()), "{name}: {error}");
            let opened = HashSegment::open(Arc::new(bytes.clone()), DOCS, Integrity::Structure);
            let error = opened.unwrap().verify().unwrap_err().to_string();
            assert!(error.contains(name.as_str()), "{name}: {error}");
            bytes[at] ^= 0x10;
        }
    }
    let parts = Parts::of(&bytes);
    for (idx, part) in parts.sections.iter().enumerate() {
        if part.kind == META {
            continue;
        }
        let at = |len: usize| {
            let mut parts = parts.clone();
            parts.sections[idx].bytes.resize(len, 0);
            answers(&parts.to_bytes(), Integrity::FirstUse).unwrap_err()
        };
        let len = part.bytes.len();
        for other in [0, 1, len / 2, len - 1, len + 1, len + 64] {
            let error = at(other).to_string();
            let bytes_named = format!("expected {len} bytes, found {other}");
            let field = format!("of field {}", part.field_id);
            assert!(
                error.contains(&bytes_named) && error.contains(&field),
                "{error}"
            );
        }
        let mut lost = parts.clone();
        lost.sections.remove(idx);
        let error = answers(&lost.to_bytes(), Integrity::FirstUse).unwrap_err();
        assert!(error.to_string().contains("section is missing"), "{error}");
        let mut twice = parts.clone();
        twice.sections.push(part.clone());
        let error = answers(&twice.to_bytes(), Integrity::FirstUse).unwrap_err();
        assert!(error.to_string().contains("two sections"), "{error}");
    }
}

/// Planes are for wide codes, and instead of blocks.
#[test]
fn planes_are_refused_where_they_cannot_be() {
    let open = |parts: &Parts, max_doc| {
        let bytes = Arc::new(parts.to_bytes());
        HashSegment::open(bytes, max_doc, Integrity::FirstUse).map(|_| ())
    };
    let mut parts = Parts::of(&segment_bytes());
    parts.part(CODES).kind = CODE_PLANES;
    let error = open(&parts, DOCS).unwrap_err().to_string();
    assert!(error.contains("codes of 24 bits in planes"), "{error}");

    let mut rng = seeded("planes_are_refused", 19);
    let n_codes = 2048 + 5;
    let mut parts = Parts::of(&planes_file(&mut rng, n_codes, 128));
    open(&parts, n_codes).unwrap();
    let mut blocks = parts.part(CODE_PLANES).clone();
    parts.sections.push(blocks.clone());
    let error = open(&parts, n_codes).unwrap_err().to_string();
    assert!(
        error.contains("two sections codes in planes of field 1"),
        "{error}"
    );
    blocks.kind = CODES;
    *parts.sections.last_mut().unwrap() = blocks;
    let error = open(&parts, n_codes).unwrap_err().to_string();
    assert!(error.contains("both in blocks and in planes"), "{error}");
}

/// A clustered file with gaps, and MIH tables beside the clusters.
fn clustered() -> Parts {
    let fields = [(4, 40, 0.8, TablePolicy::Always)];
    Parts::of(&segment_file(&mut seeded("clustered", 14), 200, &fields))
}

fn meta(parts: &mut Parts, key: &str) -> usize {
    parts.part(META).json()["clusters"][key].as_u64().unwrap() as usize
}

fn unpack(bytes: &[u8], n: usize) -> Vec<u32> {
    let width = (usize::BITS - (n - 1).leading_zeros()) as usize;
    let bit = |at: usize| u32::from(bytes[at / 8] >> (at % 8) & 1);
    (0..n)
        .map(|idx| (0..width).fold(0, |sum, low| sum | bit(idx * width + low) << low))
        .collect()
}

fn pack(numbers: &[u32]) -> Vec<u8> {
    let width = (usize::BITS - (numbers.len() - 1).leading_zeros()) as usize;
    let mut bytes = vec![0; (numbers.len() * width).div_ceil(8) + 8];
    for (idx, number) in numbers.iter().enumerate() {
        for low in (0..width).filter(|low| number >> low & 1 == 1) {
            bytes[(idx * width + low) / 8] |= 1 << ((idx * width + low) % 8);
        }
    }
    bytes
}

/// The rank of each row, and the row of each rank.
fn orders(parts: &mut Parts) -> (Vec<u32>, Vec<u32>) {
    let n_codes = parts.part(META).json()["n_codes"].as_u64().unwrap() as usize;
    (
        unpack(&parts.part(ROW_RANKS).bytes, n_codes),
        unpack(&parts.part(RANK_ROWS).bytes, n_codes),
    )
}

/// A shell of two rows or more: its first rows.
fn shell_of_two(parts: &mut Parts) -> (usize, usize) {
    let n_clusters = meta(parts, "n_clusters");
    let starts: Vec<usize> = (n_clusters..=2 * n_clusters)
        .map(|idx| parts.part(CLUSTERS).word(idx) as usize)
        .collect();
    let shells = parts.part(SHELLS);
    let mut pairs = starts.windows(2).flat_map(|pair| {
        (pair[0]..pair[1] - 1).map(|idx| (shells.word(idx), shells.word(idx + 1)))
    });
    let (first, _) = pairs.find(|(first, end)| end - first >= 2).unwrap();
    (first as usize, first as usize + 1)
}

/// Damage with right checksums: what each contradicts, and what makes it.
type Damage = (&'static str, fn(&mut Parts));

const DAMAGE: &[Damage] = &[
    ("a centroid bit flipped", |parts| {
        parts.part(CENTROIDS).bytes[3] ^= 4;
    }),
    ("a centroid bit past the length", |parts| {
        parts.part(CENTROIDS).bytes[7] ^= 1;
    }),
    ("a centroid past the last", |parts| {
        let full = meta(parts, "n_clusters").is_multiple_of(8);
        assert!(!full, "another seed: every place for a centroid is taken");
        let len = parts.part(CENTROIDS).bytes.len();
        parts.part(CENTROIDS).bytes[len - 8] ^= 1;
    }),
    ("a code bit flipped", |parts| {
        parts.part(CODES).bytes[0] ^= 1;
    }),
    ("a code bit past the length", |parts| {
        parts.part(CODES).bytes[6] ^= 1;
    }),
    ("a nearest distance lowered", |parts| {
        let word = parts.part(CLUSTERS).word(1);
        parts.part(CLUSTERS).set_word(1, word.wrapping_sub(1));
    }),
    ("a farthest distance raised", |parts| {
        let word = parts.part(CLUSTERS).word(0);
        parts.part(CLUSTERS).set_word(0, word + (1 << 16));
    }),
    ("extents turned round", |parts| {
        parts.part(CLUSTERS).set_word(0, 0x0001_0009);
    }),
    ("a start moved", |parts| {
        let idx = meta(parts, "n_clusters") + 1;
        let word = parts.part(CLUSTERS).word(idx);
        parts.part(CLUSTERS).set_word(idx, word + 1);
    }),
    ("a start past the end", |parts| {
        let idx = meta(parts, "n_clusters") + 1;
        parts.part(CLUSTERS).set_word(idx, u32::MAX);
    }),
    ("a last start past the end", |parts| {
        let idx = 2 * meta(parts, "n_clusters");
        parts.part(CLUSTERS).set_word(idx, u32::MAX);
    }),
    ("numbers before the first start", |parts| {
        let n_clusters = meta(parts, "n_clusters");
        for idx in n_clusters..=2 * n_clusters {
            let word = parts.part(CLUSTERS).word(idx);
            parts.part(CLUSTERS).set_word(idx, word + 1);
        }
        let n_shells = meta(parts, "n_shells");
        parts.part(SHELLS).bytes.splice(0..0, [9, 0, 0, 0]);
        let text = String::from_utf8(parts.part(META).bytes.clone()).unwrap();
        let (was, now) = (
            format!("\"n_shells\":{n_shells}"),
            format!("\"n_shells\":{}", n_shells + 1),
        );
        parts.part(META).bytes = text.replace(&was, &now).into_bytes();
    }),
    ("an empty farthest shell", |parts| {
        let n_clusters = meta(parts, "n_clusters");
        let extent = parts.part(CLUSTERS).word(n_clusters - 1);
        let last = parts.part(CLUSTERS).word(2 * n_clusters);
        parts
            .part(CLUSTERS)
            .set_word(n_clusters - 1, extent + (1 << 16));
        parts.part(CLUSTERS).set_word(2 * n_clusters, last + 1);
        let shells = parts.part(SHELLS);
        let end = shells.word(last as usize - 1);
        shells.bytes.extend(end.to_le_bytes());
        let text = String::from_utf8(parts.part(META).bytes.clone()).unwrap();
        let (was, now) = (
            format!("\"n_shells\":{last}"),
            format!("\"n_shells\":{}", last + 1),
        );
        parts.part(META).bytes = text.replace(&was, &now).into_bytes();
    }),
    ("a row in the wrong shell", |parts| {
        let word = parts.part(SHELLS).word(1);
        parts.part(SHELLS).set_word(1, word + 1);
    }),
    ("shells out of order", |parts| {
        let (first, second) = (parts.part(SHELLS).word(1), parts.part(SHELLS).word(2));
        parts.part(SHELLS).set_word(1, second + 1);
        parts.part(SHELLS).set_word(2, first);
    }),
    ("a shell past the last row", |parts| {
        parts.part(SHELLS).set_word(1, u32::MAX);
    }),
    ("shells that do not begin with row 0", |parts| {
        parts.part(SHELLS).set_word(0, 1);
    }),
    ("shells that do not end with the last row", |parts| {
        let last = meta(parts, "n_shells") - 1;
        let word = parts.part(SHELLS).word(last);
        parts.part(SHELLS).set_word(last, word - 1);
    }),
    ("two ranks exchanged", |parts| {
        let (mut ranks, _) = orders(parts);
        ranks.swap(0, 5);
        parts.part(ROW_RANKS).bytes = pack(&ranks);
    }),
    ("a rank twice", |parts| {
        let (mut ranks, _) = orders(parts);
        ranks[3] = ranks[4];
        parts.part(ROW_RANKS).bytes = pack(&ranks);
    }),
    ("a rank past the end", |parts| {
        let (mut ranks, _) = orders(parts);
        ranks[3] = ranks.len() as u32;
        parts.part(ROW_RANKS).bytes = pack(&ranks);
    }),
    ("a row twice", |parts| {
        let (_, mut rows) = orders(parts);
        rows[3] = rows[4];
        parts.part(RANK_ROWS).bytes = pack(&rows);
    }),
    ("a row past the end", |parts| {
        let (_, mut rows) = orders(parts);
        rows[0] = rows.len() as u32;
        parts.part(RANK_ROWS).bytes = pack(&rows);
    }),
    ("rows of a shell not ascending by document", |parts| {
        let (first, second) = shell_of_two(parts);
        let (mut ranks, mut rows) = orders(parts);
        rows.swap(ranks[first] as usize, ranks[second] as usize);
        ranks.swap(first, second);
        parts.part(ROW_RANKS).bytes = pack(&ranks);
        parts.part(RANK_ROWS).bytes = pack(&rows);
    }),
    ("a bit behind the last rank", |parts| {
        *parts.part(ROW_RANKS).bytes.last_mut().unwrap() = 1;
    }),
    ("a bit behind the last row", |parts| {
        let at = parts.part(RANK_ROWS).bytes.len() - 8;
        parts.part(RANK_ROWS).bytes[at] = 1;
    }),
    ("document ids exchanged", |parts| {
        let (first, second) = (parts.part(DOC_IDS).word(0), parts.part(DOC_IDS).word(1));
        parts.part(DOC_IDS).set_word(0, second);
        parts.part(DOC_IDS).set_word(1, first);
    }),
    ("an MIH row past the end", |parts| {
        parts.part(MIH_IDS).set_word(2, 4000);
    }),
    ("the tables of other rows", |parts| {
        let (first, second) = (parts.part(MIH_IDS).word(0), parts.part(MIH_IDS).word(1));
        parts.part(MIH_IDS).set_word(0, second);
        parts.part(MIH_IDS).set_word(1, first);
    }),
];

/// A file of tables with copies of the codes, with gaps.
fn copied() -> Parts {
    let fields = [(4, 40, 0.8, TablePolicy::MihCopies)];
    Parts::of(&segment_file(&mut seeded("copied", 17), 200, &fields))
}

const DAMAGED_COPIES: &[Damage] = &[
    ("a code bit of a table flipped", |parts| {
        parts.part(MIH_CODES).bytes[41] ^= 1;
    }),
    ("a bit behind a code of a table", |parts| {
        parts.part(MIH_CODES).bytes[47] ^= 1;
    }),
    ("a bit behind the last code of a table", |parts| {
        *parts.part(MIH_CODES).bytes.last_mut().unwrap() = 1;
    }),
    ("a code bit flipped", |parts| {
        parts.part(CODES).bytes[0] ^= 1;
    }),
    ("two entries exchanged but for their codes", |parts| {
        let (first, second) = (parts.part(MIH_IDS).word(0), parts.part(MIH_IDS).word(1));
        parts.part(MIH_IDS).set_word(0, second);
        parts.part(MIH_IDS).set_word(1, first);
    }),
    ("an offset past the end", |parts| {
        parts.part(MIH_OFFSETS).set_word(100, u32::MAX);
    }),
    ("the codes of one table missing", |parts| {
        let mut is_first = true;
        parts
            .sections
            .retain(|part| part.kind != MIH_CODES || !std::mem::replace(&mut is_first, false));
    }),
    ("the codes of a table one block short", |parts| {
        let codes = &mut parts.part(MIH_CODES).bytes;
        codes.truncate(codes.len() - 64);
    }),
];

/// With right checksums, searches end in an error or an answer, and `verify` sees every contradiction.
#[test]
fn verify_sees_damage_behind_right_checksums() {
    check_damage(&clustered(), DAMAGE);
    check_damage(&copied(), DAMAGED_COPIES);
}

fn check_damage(sound: &Parts, damages: &[Damage]) {
    assert_eq!(Parts::of(&sound.to_bytes()), *sound);
    let mut rng = seeded("verify_sees", 15);
    let Outcome {
        verified, errors, ..
    } = exercise(
        &sound.to_bytes(),
        sound.max_doc,
        Integrity::FirstUse,
        &mut rng,
    );
    assert!(verified && errors == 0);
    let mut unseen = Vec::new();
    for (what, damage) in damages {
        let mut parts = sound.clone();
        damage(&mut parts);
        assert_ne!(parts, *sound, "{what}: nothing changed");
        for integrity in [Integrity::FirstUse, Integrity::Structure] {
            for _ in 0..8 {
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    exercise(&parts.to_bytes(), parts.max_doc, integrity, &mut rng)
                }));
                let outcome = outcome.unwrap_or_else(|_| panic!("{what}: a panic"));
                if outcome.verified {
                    unseen.push(*what);
                }
            }
        }
    }
    unseen.dedup();
    assert!(unseen.is_empty(), "verify saw nothing of: {unseen:?}");
}

/// Tables that contradict themselves are an error of the search that reads them, not a shorter answer.
#[test]
fn searches_refuse_tables_that_give_no_rows() {
    let mut refused = 0;
    for (what, damage) in DAMAGE {
        let tells = [
            "a start past the end",
            "a last start past the end",
            "shells out of order",
            "a shell past the last row",
            "shells that do not end with the last row",
            "a rank past the end",
        ];
        if !tells.contains(what) {
            continue;
        }
        let mut parts = clustered();
        damage(&mut parts);
        let bytes = Arc::new(parts.to_bytes());
        let segment = HashSegment::open(bytes, parts.max_doc, Integrity::Structure).unwrap();
        let column = &segment.columns()[0];
        let Ok(rows) = column.rows(0, true) else {
            refused += 1;
            continue;
        };
        // Every code for a query, so that every cluster is the nearest of one.
        let errors = (0..rows.codes.n_codes()).filter_map(|row| {
            let mut top = TopK::new(1000, 40);
            let (query, mut stats) = (rows.codes.get(row), SearchStats::default());
            let choice = EngineChoice::Cluster;
            knn(&rows, choice, &query, &Allowed::All, &mut top, &mut stats).err()
        });
        let errors: Vec<tanhash::Error> = errors.collect();
        assert!(!errors.is_empty(), "{what}: answered");
        for error in errors {
            assert!(
                matches!(error.kind(), ErrorKind::Corrupt { .. }),
                "{what}: {error}"
            );
        }
        refused += 1;
    }
    assert_eq!(refused, 6);
}

/// Every bit of the sections that say where rows are, one at a time: `verify` sees it, searches go on or
/// end in an error.
#[test]
fn every_bit_of_clusters_and_row_order_counts() {
    let fields = [(0, 24, 0.9, TablePolicy::Clusters)];
    let mut rng = seeded("every_bit", 16);
    let sound = Parts::of(&segment_file(&mut rng, 30, &fields));
    for kind in [CENTROIDS, CLUSTERS, SHELLS, ROW_RANKS, RANK_ROWS] {
        for bit in 0..sound.clone().part(kind).bytes.len() * 8 {
            let mut parts = sound.clone();
            parts.part(kind).bytes[bit / 8] ^= 1 << (bit % 8);
            let outcome = exercise(
                &parts.to_bytes(),
                parts.max_doc,
                Integrity::FirstUse,
                &mut rng,
            );
            assert!(!outcome.verified, "kind {kind}, bit {bit}: unseen");
        }
    }
}

struct OnDisk {
    _dir: tempfile::TempDir,
    path: PathBuf,
    files: Vec<(PathBuf, Vec<u8>)>,
    query: HashCode,
}

fn on_disk() -> OnDisk {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let (schema, fields) = schema(64, None);
    let plugin = HashPlugin::builder()
        .tables(TablePolicy::Always)
        .build()
        .unwrap();
    let index = HashIndex::create_in_dir(&path, schema, plugin).unwrap();
    let mut rng = seeded("on_disk", 12);
    let writer = index
        .writer(WriterOptions {
            num_threads: 1,
            ..Default::default()
        })
        .unwrap();
    for key in 0..80 {
        writer
            .add_document(Doc::random(&mut rng, key, 64).to_tantivy(&fields))
            .unwrap();
        if key == 40 {
            writer.commit().unwrap();
        }
    }
    writer
        .delete_term(tantivy::Term::from_field_u64(fields.key, 3))
        .unwrap();
    writer.commit().unwrap();
    writer.close().unwrap();
    let files = std::fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = files.filter(|path| !path.to_string_lossy().ends_with(".lock"));
    let files = files
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    OnDisk {
        _dir: dir,
        path,
        files,
        query: random_code(&mut rng, 64),
    }
}

/// Opens the index anew and asks for codes and documents.
fn ask(path: &Path, query: &HashCode) -> Result<(Vec<u32>, Vec<u32>, usize)> {
    let index = HashIndex::open_in_dir(path, HashPlugin::new())?;
    let searcher = index.searcher()?;
    let field = index.field("image")?;
    let knn = KnnQuery::new(field, query.clone(), 20)
        .filter(Box::new(AllQuery))
        .search(&searcher)?;
    let range = HammingQuery::new(field, query.clone(), 28).search(&searcher, None)?;
    let distances =
        |hits: &[tanhash::plugin::HammingHit]| hits.iter().map(|hit| hit.distance).collect();
    Ok((
        distances(&knn.hits),
        distances(&range.hits),
        searcher.num_docs() as usize,
    ))
}

#[test]
fn damaged_files_of_an_index_give_errors_not_panics() {
    let disk = on_disk();
    let mut rng = seeded("damaged_files", 13);
    let sound = ask(&disk.path, &disk.query).unwrap();
    let mut tried = 0;
    let mut attempt = |path: &Path, damaged: &[u8], what: String, codes: bool| {
        // Never in place: a reader may still have the file mapped.
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, damaged).unwrap();
        tried += 1;
        let outcome = catch_unwind(AssertUnwindSafe(|| ask(&disk.path, &disk.query)));
        let outcome = outcome.unwrap_or_else(|_| panic!("{what}: a panic"));
        match outcome {
            Ok(found) if codes => assert_eq!(found, sound, "{what}: another answer"),
            Ok(_) => {}
            Err(error) => assert!(!error.to_string().contains('\n'), "{what}: {error}"),
        }
        let verified = catch_unwind(AssertUnwindSafe(|| {
            HashIndex::open_in_dir(&disk.path, HashPlugin::new()).and_then(|index| index.verify())
        }));
        assert!(verified.is_ok(), "{what}: a panic in verify");
        if codes {
            let sound = verified.unwrap().is_ok_and(|report| report.is_ok());
            assert!(!sound, "{what}: verify saw nothing");
        }
    };
    for (path, bytes) in &disk.files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let codes = name.ends_with(".hcode");
        let segment_file = !name.ends_with(".json");
        let lens = [
            0,
            1,
            3,
            4,
            5,
            6,
            7,
            8,
            bytes.len() / 2,
            bytes.len().saturating_sub(1),
        ];
        for len in lens
            .into_iter()
            .filter(|&len| segment_file && len < bytes.len())
        {
            attempt(path, &bytes[..len], format!("{name} cut to {len}"), codes);
        }
        for _ in 0..if codes { 60 } else { 6 } {
            // tantivy's footer ends the file; its version digits are checked by nobody.
            let len = if codes {
                bytes.len() - 120
            } else {
                bytes.len()
            };
            let at = rng.random_range(0..len);
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << rng.random_range(0..8);
            if segment_file {
                attempt(path, &damaged, format!("{name} flipped at {at}"), codes);
            }
        }
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, bytes).unwrap();
        if segment_file {
            let moved = path.with_extension("gone");
            std::fs::rename(path, &moved).unwrap();
            let outcome = catch_unwind(AssertUnwindSafe(|| ask(&disk.path, &disk.query)));
            assert!(
                outcome
                    .unwrap_or_else(|_| panic!("{name} missing: a panic"))
                    .is_err(),
                "{name} missing"
            );
            std::fs::rename(&moved, path).unwrap();
        }
    }
    assert_eq!(ask(&disk.path, &disk.query).unwrap(), sound);
    println!("{tried} damaged files");
}

#[test]
fn a_damaged_meta_json_gives_errors_not_panics() {
    let disk = on_disk();
    let path = disk.path.join("meta.json");
    let bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x01;
        std::fs::write(&path, &damaged).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| ask(&disk.path, &disk.query)));
        let was = String::from_utf8_lossy(&bytes[at.saturating_sub(12)..(at + 4).min(bytes.len())])
            .into_owned();
        if let Err(error) =
            outcome.unwrap_or_else(|_| panic!("byte {at} of meta.json, at {was:?}: a panic"))
        {
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
    std::fs::write(&path, &bytes).unwrap();
}

#[test]
fn files_of_another_segment_are_refused() {
    let disk = on_disk();
    let codes: Vec<&(PathBuf, Vec<u8>)> = disk
        .files
        .iter()
        .filter(|(path, _)| path.extension().is_some_and(|ext| ext == "hcode"))
        .collect();
    assert_eq!(codes.len(), 2);
    std::fs::remove_file(&codes[0].0).unwrap();
    std::fs::write(&codes[0].0, &codes[1].1).unwrap();
    let error = ask(&disk.path, &disk.query).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Corrupt { .. }), "{error}");
}

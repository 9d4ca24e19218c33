//! Damaged files: every truncation and many flips of a segment file, in memory and on disk, and of
//! `meta.json`. Guards that damage gives one clear error or leaves the answer as it was, and never a panic.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
        let spec = ColumnSpec { field_id, code_len, model_id: Some("m".to_owned()) };
        writer.add_field(&spec, &column, TablePolicy::Always).unwrap();
    }
    writer.finish().unwrap()
}

/// Everything a reader can be asked, over both engines.
fn answers(bytes: &[u8], integrity: Integrity) -> Result<Vec<Vec<Neighbor>>> {
    let segment = HashSegment::open(Arc::new(bytes.to_vec()), DOCS, integrity)?;
    let mut answers = Vec::new();
    for column in segment.columns() {
        let query = HashCode::zeros(column.code_len());
        let rows = column.rows(0, true)?;
        for choice in [EngineChoice::Scan, EngineChoice::Mih] {
            let mut stats = SearchStats::default();
            let mut top = TopK::new(7, column.code_len().bits() as u32);
            knn(&rows, choice, &query, &Allowed::All, &mut top, &mut stats)?;
            answers.push(top.into_sorted());
            let mut found = Vec::new();
            range(&rows, choice, &query, 6, &Allowed::All, &mut found, &mut stats)?;
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
    HashSegment::open(Arc::new(bytes.clone()), DOCS, Integrity::FirstUse).unwrap().verify().unwrap();
    let (mut seen, mut harmless) = (0, 0);
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            match answers(&damaged, Integrity::FirstUse) {
                Ok(found) => {
                    assert_eq!(found, sound, "byte {at} ^ {flip:#x} changed an answer in silence");
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
    println!("{seen} flips seen, {harmless} in padding, of a file of {} bytes", bytes.len());
    assert!(harmless < bytes.len(), "{harmless} of {} flips unseen", 3 * bytes.len());
}

#[test]
fn every_truncation_and_extension_is_seen() {
    let bytes = segment_bytes();
    for len in 0..bytes.len() {
        assert!(answers(&bytes[..len], Integrity::FirstUse).is_err(), "{len} bytes");
    }
    for extra in [1, 8, 64] {
        let mut longer = bytes.clone();
        longer.extend(vec![0; extra]);
        assert!(answers(&longer, Integrity::FirstUse).is_err(), "{extra} bytes more");
    }
    let error = HashSegment::open(Arc::new(bytes), DOCS + 1, Integrity::FirstUse).unwrap_err().to_string();
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
    let plugin = HashPlugin::builder().tables(TablePolicy::Always).build().unwrap();
    let index = HashIndex::create_in_dir(&path, schema, plugin).unwrap();
    let mut rng = seeded("on_disk", 12);
    let writer = index.writer(WriterOptions { num_threads: 1, ..Default::default() }).unwrap();
    for key in 0..80 {
        writer.add_document(Doc::random(&mut rng, key, 64).to_tantivy(&fields)).unwrap();
        if key == 40 {
            writer.commit().unwrap();
        }
    }
    writer.delete_term(tantivy::Term::from_field_u64(fields.key, 3)).unwrap();
    writer.commit().unwrap();
    writer.close().unwrap();
    let files = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| !path.to_string_lossy().ends_with(".lock"));
    let files = files.map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect();
    OnDisk { _dir: dir, path, files, query: random_code(&mut rng, 64) }
}

/// Opens the index anew and asks for codes and documents.
fn ask(path: &Path, query: &HashCode) -> Result<(Vec<u32>, Vec<u32>, usize)> {
    let index = HashIndex::open_in_dir(path, HashPlugin::new())?;
    let searcher = index.searcher()?;
    let field = index.field("image")?;
    let knn = KnnQuery::new(field, query.clone(), 20).filter(Box::new(AllQuery)).search(&searcher)?;
    let range = HammingQuery::new(field, query.clone(), 28).search(&searcher, None)?;
    let distances = |hits: &[tanhash::plugin::HammingHit]| hits.iter().map(|hit| hit.distance).collect();
    Ok((distances(&knn.hits), distances(&range.hits), searcher.num_docs() as usize))
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
        let lens = [0, 1, 3, 4, 5, 6, 7, 8, bytes.len() / 2, bytes.len().saturating_sub(1)];
        for len in lens.into_iter().filter(|&len| segment_file && len < bytes.len()) {
            attempt(path, &bytes[..len], format!("{name} cut to {len}"), codes);
        }
        for _ in 0..if codes { 60 } else { 6 } {
            // tantivy's footer ends the file; its version digits are checked by nobody.
            let len = if codes { bytes.len() - 120 } else { bytes.len() };
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
            assert!(outcome.unwrap_or_else(|_| panic!("{name} missing: a panic")).is_err(), "{name} missing");
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
        let was = String::from_utf8_lossy(&bytes[at.saturating_sub(12)..(at + 4).min(bytes.len())]).into_owned();
        if let Err(error) = outcome.unwrap_or_else(|_| panic!("byte {at} of meta.json, at {was:?}: a panic")) {
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
    std::fs::write(&path, &bytes).unwrap();
}

#[test]
fn files_of_another_segment_are_refused() {
    let disk = on_disk();
    let codes: Vec<&(PathBuf, Vec<u8>)> =
        disk.files.iter().filter(|(path, _)| path.extension().is_some_and(|ext| ext == "hcode")).collect();
    assert_eq!(codes.len(), 2);
    std::fs::remove_file(&codes[0].0).unwrap();
    std::fs::write(&codes[0].0, &codes[1].1).unwrap();
    let error = ask(&disk.path, &disk.query).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Corrupt { .. }), "{error}");
}

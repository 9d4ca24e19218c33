//! Builds of a long input through `IndexBuilder`, stopped anywhere. Guards that a resumed build ends in the
//! index of one that was never stopped, encodes nothing again that is committed, and says the same counts.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::encoder::Lookup;
use common::{Fields, schema, seeded};
use rand::Rng;
use tanhash::encode::ServiceOptions;
use tanhash::plugin::{
    BuildMode, BuildOptions, BuildProgress, BuildRecord, HashIndex, HashPlugin, HashValue,
    IndexBuilder, OnBadDocument, SegmentTarget, WriterOptions, merge_by_key,
};
use tanhash::{CodeLen, EncodeError, Encoder, ErrorKind, HashCode, Payload, Result};
use tantivy::schema::Value;
use tantivy::{DocAddress, Index, TantivyDocument};

const MODEL: &str = "lookup";
const BITS: usize = 64;

/// What stands at a position: every seventh key comes twice, and some payloads are refused in each of the ways
/// an encoder has.
fn payload(position: u64) -> (u64, String) {
    let key = if position % 7 == 6 {
        position - 3
    } else {
        position
    };
    let payload = match position % 40 {
        11 => format!("bad {position}"),
        23 => format!("panic {position}"),
        37 => format!("batch {position}"),
        _ => format!("picture {position}"),
    };
    (key, payload)
}

fn record(fields: &Fields, position: u64) -> BuildRecord {
    let (key, payload) = payload(position);
    let mut document = TantivyDocument::new();
    document.add_u64(fields.key, key);
    document.add_text(fields.title, format!("position {position}"));
    let payload = Payload::Image(payload.into_bytes().into());
    BuildRecord {
        name: position.to_string(),
        document,
        values: vec![(fields.image, HashValue::Payload(payload))],
        refused: None,
    }
}

/// The last document of each key, with its code.
fn model(positions: std::ops::Range<u64>) -> BTreeMap<u64, (String, Option<HashCode>)> {
    let entry = |position| {
        let (key, payload) = payload(position);
        let good = payload.starts_with("picture");
        let code = good.then(|| Lookup::code(BITS, payload.as_bytes()));
        (key, (format!("position {position}"), code))
    };
    positions.map(entry).collect()
}

fn contents(index: &HashIndex, fields: &Fields) -> BTreeMap<u64, (String, Option<HashCode>)> {
    let searcher = index.searcher().unwrap();
    let mut found = BTreeMap::new();
    for (segment, reader) in (0..).zip(searcher.segment_readers()) {
        for doc in reader.doc_ids_alive() {
            let address = DocAddress::new(segment, doc);
            let document: TantivyDocument = searcher.doc(address).unwrap();
            let key = document.get_first(fields.key).unwrap().as_u64().unwrap();
            let title = document.get_first(fields.title).unwrap();
            let title = title.as_str().unwrap().to_owned();
            let code = index.code(&searcher, fields.image, address).unwrap();
            assert!(
                found.insert(key, (title, code)).is_none(),
                "key {key} twice"
            );
        }
    }
    found
}

fn options(fields: &Fields, mode: BuildMode, dir: &Path) -> BuildOptions {
    BuildOptions {
        writer: WriterOptions {
            num_threads: 2,
            memory_budget_bytes: 30_000_000,
            ..WriterOptions::default()
        },
        mode,
        source: "positions".to_owned(),
        key: Some(fields.key),
        commit_records: 100,
        batch_records: 16,
        quarantine: Some(dir.join("quarantine.jsonl")),
        ..BuildOptions::default()
    }
}

fn plugin() -> HashPlugin {
    HashPlugin::with_encoder(Arc::new(Lookup::new(MODEL, BITS))).unwrap()
}

fn quarantine(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("quarantine.jsonl")).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_build_stopped_anywhere_ends_in_the_same_index() {
    const RECORDS: u64 = 700;
    let mut rng = seeded("a_build_stopped_anywhere", 61);
    let (schema, fields) = schema(BITS, Some(MODEL));
    let straight = tempfile::tempdir().unwrap();
    let index =
        HashIndex::create_in_dir(straight.path().join("i"), schema.clone(), plugin()).unwrap();
    let start = options(&fields, BuildMode::Start, straight.path());
    let mut builder = IndexBuilder::new(&index, start).unwrap();
    for position in 0..RECORDS {
        builder.add(record(&fields, position)).unwrap();
    }
    let expected = builder.finish().unwrap();
    assert_eq!(contents(&index, &fields), model(0..RECORDS));
    let n_bad = (0..RECORDS)
        .filter(|p| [11, 23, 37].contains(&(p % 40)))
        .count() as u64;
    assert_eq!((expected.failed, expected.position), (n_bad, RECORDS));
    assert_eq!(expected.codes + n_bad, RECORDS);
    assert_eq!(
        expected.documents - expected.replaced,
        model(0..RECORDS).len() as u64
    );
    assert_eq!(quarantine(straight.path()).len() as u64, n_bad);

    let mut resumed_late = 0;
    for round in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        let index =
            HashIndex::create_in_dir(dir.path().join("i"), schema.clone(), plugin()).unwrap();
        let partitions = 1 + round % 3;
        for _ in 0..3 {
            let plugin = plugin();
            let index = HashIndex::open_in_dir(dir.path().join("i"), plugin.clone()).unwrap();
            let resume = options(&fields, BuildMode::Resume, dir.path());
            let mut builder = IndexBuilder::new(
                &index,
                BuildOptions {
                    partitions,
                    ..resume
                },
            )
            .unwrap();
            let from = builder.progress().position;
            let stop = rng.random_range(from..=RECORDS);
            for position in from..stop {
                builder.add(record(&fields, position)).unwrap();
            }
            drop(builder);
            // What a writer leaves that died between the file and the commit.
            if let Ok(mut file) = std::fs::OpenOptions::new()
                .append(true)
                .open(dir.path().join("quarantine.jsonl"))
            {
                std::io::Write::write_all(&mut file, b"{\"key\": \"half a li").unwrap();
            }
        }
        drop(index);
        let plugin = plugin();
        let index = HashIndex::open_in_dir(dir.path().join("i"), plugin.clone()).unwrap();
        let resume = options(&fields, BuildMode::Resume, dir.path());
        let mut builder = IndexBuilder::new(
            &index,
            BuildOptions {
                partitions,
                ..resume
            },
        )
        .unwrap();
        let from = builder.progress().position;
        resumed_late += u64::from(from > 0);
        for position in from..RECORDS {
            builder.add(record(&fields, position)).unwrap();
        }
        assert_eq!(builder.finish().unwrap(), expected, "round {round}");
        assert_eq!(
            contents(&index, &fields),
            model(0..RECORDS),
            "round {round}"
        );
        assert_eq!(
            quarantine(dir.path()),
            quarantine(straight.path()),
            "round {round}"
        );
        let report = plugin.ingest_report();
        assert_eq!(
            report.encoded + report.failed,
            RECORDS - from,
            "nothing committed is encoded again"
        );
        assert!(index.verify().unwrap().is_ok());
        assert_eq!(index.searchable_segment_ids().unwrap().len(), 1);
    }
    assert!(
        resumed_late >= 4,
        "{resumed_late} of 6 rounds had something to resume"
    );
}

#[test]
fn a_build_leaves_the_segments_it_was_asked_for() {
    let (schema, fields) = schema(BITS, Some(MODEL));
    for (target, expected) in [
        (SegmentTarget::Count(1), 1..=1),
        (SegmentTarget::Count(3), 3..=3),
        (SegmentTarget::Bytes(60_000), 2..=12),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let index = HashIndex::create_in_ram(schema.clone(), plugin()).unwrap();
        let options = BuildOptions {
            segments: target,
            key: None,
            commit_records: 70,
            ..options(&fields, BuildMode::Start, dir.path())
        };
        let mut builder = IndexBuilder::new(&index, options).unwrap();
        for position in 0..2_000 {
            builder.add(record(&fields, position)).unwrap();
        }
        let progress = builder.finish().unwrap();
        assert_eq!(
            (progress.documents, progress.replaced),
            (2_000, 0),
            "no key, no replacing"
        );
        let metas = index.searchable_segment_metas().unwrap();
        let docs: Vec<u32> = metas.iter().map(|meta| meta.num_docs()).collect();
        assert!(expected.contains(&docs.len()), "{target:?}: {docs:?}");
        let (least, most) = (docs.iter().min().unwrap(), docs.iter().max().unwrap());
        let balanced = matches!(target, SegmentTarget::Bytes(_)) || most - least <= most / 3;
        assert!(balanced, "{target:?}: {docs:?}");
        assert_eq!(docs.iter().sum::<u32>(), 2_000);
    }
}

#[test]
fn modes_refuse_what_they_are_not_for() {
    let (schema, fields) = schema(BITS, Some(MODEL));
    let dir = tempfile::tempdir().unwrap();
    let index = HashIndex::create_in_ram(schema, plugin()).unwrap();
    let refuse = |options: BuildOptions, expected: &str| {
        let error = IndexBuilder::new(&index, options)
            .err()
            .expect("to be refused")
            .to_string();
        assert!(error.contains(expected), "{error}");
    };
    let of = |mode| options(&fields, mode, dir.path());
    let mut builder = IndexBuilder::new(&index, of(BuildMode::Start)).unwrap();
    builder.add(record(&fields, 0)).unwrap();
    builder.commit().unwrap();
    drop(builder);
    refuse(of(BuildMode::Start), "was begun");
    refuse(of(BuildMode::Append), "resume it first");
    let other = BuildOptions {
        source: "others".to_owned(),
        ..of(BuildMode::Resume)
    };
    refuse(other, "the input the build was begun with");
    let builder = IndexBuilder::new(&index, of(BuildMode::Resume)).unwrap();
    assert_eq!(builder.progress().position, 1);
    builder.finish().unwrap();
    let mut builder = IndexBuilder::new(&index, of(BuildMode::Resume)).unwrap();
    let error = builder.add(record(&fields, 1)).unwrap_err().to_string();
    assert!(error.contains("finished"), "{error}");
    drop(builder);
    // An appended document takes the place of the one of its key.
    let mut builder = IndexBuilder::new(&index, of(BuildMode::Append)).unwrap();
    for position in [0, 1] {
        builder.add(record(&fields, position)).unwrap();
    }
    let progress = builder.finish().unwrap();
    assert_eq!((progress.documents, progress.replaced), (2, 1));
    assert_eq!(contents(&index, &fields), model(0..2));
    assert!(BuildProgress::of(&index).unwrap().unwrap().finished);
}

/// An encoder that loses its device while the switch is on.
struct Flaky {
    inner: Lookup,
    lost: Arc<AtomicBool>,
}

impl Encoder for Flaky {
    fn code_len(&self) -> CodeLen {
        self.inner.code_len()
    }
    fn model_id(&self) -> &str {
        self.inner.model_id()
    }
    fn encode(&self, batch: &[Payload]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        match self.lost.load(Ordering::SeqCst) {
            true => Err(ErrorKind::Encoder("device lost".to_owned()).into()),
            false => self.inner.encode(batch),
        }
    }
}

#[test]
fn a_lost_device_stops_the_build_and_it_goes_on_afterwards() {
    let (schema, fields) = schema(BITS, Some(MODEL));
    let dir = tempfile::tempdir().unwrap();
    let lost = Arc::new(AtomicBool::new(false));
    let encoder = Flaky {
        inner: Lookup::new(MODEL, BITS),
        lost: lost.clone(),
    };
    // So few failures that all of them lie after the last commit.
    let service = ServiceOptions {
        max_failures: 8,
        ..ServiceOptions::default()
    };
    let plugin = HashPlugin::builder()
        .encoder(Arc::new(encoder))
        .service(service);
    let plugin = plugin.build().unwrap();
    let index = HashIndex::create_in_ram(schema, plugin.clone()).unwrap();
    let of = |mode| BuildOptions {
        max_failures: 500,
        commit_interval: Duration::from_secs(600),
        ..options(&fields, mode, dir.path())
    };
    let mut builder = IndexBuilder::new(&index, of(BuildMode::Start)).unwrap();
    let add = |builder: &mut IndexBuilder| -> Result<()> {
        for position in builder.progress().position..600 {
            if position == 250 {
                lost.store(true, Ordering::SeqCst);
            }
            builder.add(record(&fields, position))?;
        }
        Ok(())
    };
    let error = add(&mut builder).unwrap_err().to_string();
    assert!(error.contains("device lost"), "{error}");
    drop(builder);
    assert_eq!(
        contents(&index, &fields),
        model(0..200),
        "the last commit, and nothing else"
    );
    lost.store(false, Ordering::SeqCst);
    plugin.reset_encoders();
    let mut builder = IndexBuilder::new(&index, of(BuildMode::Resume)).unwrap();
    for position in builder.progress().position..600 {
        builder.add(record(&fields, position)).unwrap();
    }
    builder.finish().unwrap();
    assert_eq!(contents(&index, &fields), model(0..600));
}

#[test]
fn records_in_a_row_without_a_code_stop_a_build() {
    let (schema, fields) = schema(BITS, Some(MODEL));
    let dir = tempfile::tempdir().unwrap();
    let index = HashIndex::create_in_ram(schema, plugin()).unwrap();
    let bad = |position: u64| {
        let mut record = record(&fields, position);
        let payload = Payload::Image(format!("bad {position}").into_bytes().into());
        record.values = vec![(fields.image, HashValue::Payload(payload))];
        record
    };
    let options = BuildOptions {
        max_failures: 30,
        partitions: 1,
        ..options(&fields, BuildMode::Start, dir.path())
    };
    let mut builder = IndexBuilder::new(&index, options).unwrap();
    for position in 0..300 {
        // 29 in a row are no reason to stop.
        let record = if position % 30 == 29 {
            record(&fields, 280)
        } else {
            bad(position)
        };
        builder.add(record).unwrap();
    }
    let error = (300..400).find_map(|position| builder.add(bad(position)).err());
    let error = error
        .or_else(|| builder.commit().err())
        .unwrap()
        .to_string();
    assert!(
        error.contains("30 records in a row") && error.contains("expected a picture"),
        "{error}"
    );
}

#[test]
fn merged_indexes_keep_the_last_document_of_a_key() {
    let (schema, fields) = schema(BITS, Some(MODEL));
    let build = |positions: std::ops::Range<u64>, finish: bool| -> HashIndex {
        let dir = tempfile::tempdir().unwrap();
        let index = HashIndex::create_in_ram(schema.clone(), plugin()).unwrap();
        let mut builder =
            IndexBuilder::new(&index, options(&fields, BuildMode::Start, dir.path())).unwrap();
        for position in positions {
            builder.add(record(&fields, position)).unwrap();
        }
        match finish {
            true => drop(builder.finish().unwrap()),
            false => builder.commit().unwrap(),
        }
        index
    };
    // Position 6 has the key of position 3, so the parts share keys.
    let parts = [build(0..6, true), build(6..14, true), build(14..20, true)];
    let parts: Vec<Index> = parts.iter().map(|part| Index::clone(part)).collect();
    let ram = || tantivy::directory::RamDirectory::create();
    let (merged, replaced) = merge_by_key(&parts, ram(), plugin(), "key").unwrap();
    assert_eq!(contents(&merged, &fields), model(0..20));
    assert_eq!(
        replaced, 1,
        "within a part the builder has replaced already"
    );
    assert!(merged.verify().unwrap().is_ok());
    let unfinished = [parts[0].clone(), Index::clone(&build(20..30, false))];
    let error = merge_by_key(&unfinished, ram(), plugin(), "key")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("index 1 of 2") && error.contains("resume"),
        "{error}"
    );
    let error = merge_by_key(&parts, ram(), plugin(), "title")
        .unwrap_err()
        .to_string();
    assert!(error.contains("`title`"), "{error}");
}

#[test]
fn damage_and_bad_records_end_a_strict_build() {
    let (schema, fields) = schema(BITS, Some(MODEL));
    let dir = tempfile::tempdir().unwrap();
    let index = HashIndex::create_in_ram(schema, plugin()).unwrap();
    let mut strict = options(&fields, BuildMode::Start, dir.path());
    strict.writer.on_bad_document = OnBadDocument::Fail;
    let mut builder = IndexBuilder::new(&index, strict).unwrap();
    let error = builder
        .add_damage("list, line 3", "expected JSON")
        .unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Payload(_)), "{error}");
    assert!(error.to_string().contains("list, line 3"), "{error}");
    drop(builder);
    let mut builder =
        IndexBuilder::new(&index, options(&fields, BuildMode::Start, dir.path())).unwrap();
    builder.add_damage("list, line 3", "expected JSON").unwrap();
    builder.add(record(&fields, 1)).unwrap();
    builder.pass().unwrap();
    let progress = builder.finish().unwrap();
    assert_eq!(
        (progress.position, progress.damaged, progress.documents),
        (3, 1, 1)
    );
    assert_eq!(
        progress.first_damage.as_deref(),
        Some("list, line 3: expected JSON")
    );
    assert_eq!(quarantine(dir.path()).len(), 1);
}

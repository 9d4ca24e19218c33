//! Documents that bring pictures and vectors: through `HashIndexWriter` and through a plain tantivy writer.
//! Guards that one bad payload never costs another document, that the caller learns what became of each,
//! and that a failed commit loses nothing silently.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::directory::{Hook, Hooked};
use common::encoder::Lookup;
use common::{Doc, Fields, check_against_model, random_code, schema, seeded};
use tanhash::plugin::{
    CodeOutcome, HashDocumentExt, HashIndex, HashPlugin, KnnQuery, OnBadDocument, WriterOptions,
};
use tanhash::{ErrorKind, HashCode};
use tantivy::index::IndexSettings;
use tantivy::{IndexWriter, TantivyDocument, Term};

const MODEL: &str = "lookup";

fn options(on_bad_document: OnBadDocument) -> WriterOptions {
    WriterOptions {
        num_threads: 2,
        memory_budget_bytes: 60_000_000,
        on_bad_document,
    }
}

fn index(bits: usize) -> (HashIndex, Fields) {
    let (schema, fields) = schema(bits, Some(MODEL));
    let plugin = HashPlugin::with_encoder(Arc::new(Lookup::new(MODEL, bits))).unwrap();
    (HashIndex::create_in_ram(schema, plugin).unwrap(), fields)
}

fn picture(fields: &Fields, key: u64, payload: &[u8]) -> TantivyDocument {
    let mut document = Doc {
        key,
        rank: key,
        image: None,
        other: None,
    }
    .to_tantivy(fields);
    document.add_image(fields.image, payload);
    document
}

/// 200 pictures, every tenth of them broken in one of the ways an encoder fails.
fn payloads() -> Vec<(Vec<u8>, bool)> {
    let broken = ["bad", "panic", "batch"];
    let payload = |key: usize| match key % 10 {
        3 => (
            format!("{} {key}", broken[key / 10 % 3]).into_bytes(),
            false,
        ),
        _ => (format!("picture {key}").into_bytes(), true),
    };
    (0..200).map(payload).collect()
}

fn model(payloads: &[(Vec<u8>, bool)], bits: usize) -> BTreeMap<u64, Doc> {
    let doc = |(key, (bytes, good)): (u64, &(Vec<u8>, bool))| {
        let image = good.then(|| Lookup::code(bits, bytes));
        (
            key,
            Doc {
                key,
                rank: key,
                image,
                other: None,
            },
        )
    };
    (0..).zip(payloads).map(doc).collect()
}

#[test]
fn the_writer_encodes_and_reports_each_document() {
    let (index, fields) = index(64);
    let payloads = payloads();
    let writer = index.writer(options(OnBadDocument::Quarantine)).unwrap();
    let documents = (0..)
        .zip(&payloads)
        .map(|(key, (bytes, _))| picture(&fields, key, bytes))
        .collect();
    let outcome = writer.add_documents(documents).unwrap();
    assert_eq!(
        outcome.n_indexed(),
        200,
        "a document without a code is found by its text"
    );
    for (document, (bytes, good)) in outcome.documents.iter().zip(&payloads) {
        let text = String::from_utf8_lossy(bytes);
        match &document.codes[..] {
            [(_, CodeOutcome::Encoded)] => assert!(good, "{text}"),
            [(_, CodeOutcome::Failed(reason))] => {
                assert!(!good && !reason.is_empty(), "{text}: {reason}")
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    writer.commit().unwrap();
    check_against_model(
        &index,
        &fields,
        &model(&payloads, 64),
        &Lookup::code(64, b"x"),
        "writer",
    );
    let report = index.plugin().ingest_report();
    assert_eq!((report.encoded, report.failed), (180, 20));
    assert_eq!(report.failures.len(), 20);
    assert!(
        report
            .failures
            .iter()
            .all(|failure| failure.sha256.len() == 64 && failure.field == "image")
    );
}

#[test]
fn bad_documents_are_skipped_or_fail_the_call_if_asked() {
    let (index, fields) = index(64);
    let good = || picture(&fields, 1, b"good");
    let bad = || picture(&fields, 2, b"bad one");
    let writer = index.writer(options(OnBadDocument::Skip)).unwrap();
    let outcome = writer.add_documents(vec![good(), bad(), good()]).unwrap();
    assert_eq!(outcome.n_indexed(), 2);
    assert_eq!(
        outcome.failures().map(|(idx, _)| idx).collect::<Vec<_>>(),
        [1]
    );
    writer.commit().unwrap();
    drop(writer);
    let writer = index.writer(options(OnBadDocument::Fail)).unwrap();
    let error = writer.add_documents(vec![good(), bad()]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Payload(_)), "{error}");
    assert!(error.to_string().contains("document 1 of 2"), "{error}");
    writer.commit().unwrap();
    assert_eq!(
        index.searcher().unwrap().num_docs(),
        2,
        "nothing of the failed call"
    );
}

/// Small documents go to tantivy several at a time; each has a stamp of its own all the same, at which it is added.
#[test]
fn every_document_has_its_own_stamp() {
    let (index, fields) = index(64);
    let writer = index.writer(options(OnBadDocument::Skip)).unwrap();
    let document = |key: u64| {
        let text = match key % 7 {
            3 => "bad",
            _ => "good",
        };
        let mut document = picture(&fields, key, text.as_bytes());
        if key.is_multiple_of(5) {
            document.add_text(fields.title, "long ".repeat(1_000));
        }
        document
    };
    let outcome = writer
        .add_documents((0..60).map(document).collect())
        .unwrap();
    let stamps: Vec<_> = (outcome.documents.iter())
        .map(|document| document.opstamp)
        .collect();
    for (key, stamp) in stamps.iter().enumerate() {
        assert_eq!(stamp.is_none(), key % 7 == 3, "document {key}");
    }
    let stamps: Vec<u64> = stamps.into_iter().flatten().collect();
    assert!(
        stamps.windows(2).all(|pair| pair[0] < pair[1]),
        "{stamps:?}"
    );
    let committed = writer.commit().unwrap();
    assert!(stamps.last().unwrap() < &committed);

    // A deletion comes after all that was added before it, and before what comes after.
    writer
        .add_documents((60..70).map(document).collect())
        .unwrap();
    let deleted = writer
        .delete_term(Term::from_field_text(fields.title, "long"))
        .unwrap();
    let after = writer.add_documents(vec![document(70)]).unwrap();
    assert_eq!(after.documents[0].opstamp, Some(deleted + 1));
    writer.commit().unwrap();
    let of = |keys: std::ops::Range<u64>| keys.filter(|key| key % 7 != 3 && key % 5 != 0);
    let expected = of(0..70).count() + 1;
    assert_eq!(index.searcher().unwrap().num_docs(), expected as u64);
}

#[test]
fn values_that_make_no_sense_cost_only_the_code() {
    let (index, fields) = index(64);
    let writer = index.writer(options(OnBadDocument::Quarantine)).unwrap();
    let mut short = Doc {
        key: 1,
        rank: 1,
        image: None,
        other: None,
    }
    .to_tantivy(&fields);
    short.add_code(fields.image, &HashCode::from_bytes(&[1; 4]).unwrap());
    let mut twice = picture(&fields, 2, b"first");
    twice.add_image(fields.image, b"second");
    let mut garbage = Doc {
        key: 3,
        rank: 1,
        image: None,
        other: None,
    }
    .to_tantivy(&fields);
    garbage.add_custom(fields.image, &[77, 1, 2]);
    let outcome = writer.add_documents(vec![short, twice, garbage]).unwrap();
    assert_eq!(outcome.n_indexed(), 3);
    let reasons: Vec<String> = outcome
        .failures()
        .map(|(_, reason)| reason.to_owned())
        .collect();
    assert!(reasons[0].contains("64 bits, got 32 bits"), "{reasons:?}");
    assert!(reasons[1].contains("second"), "{reasons:?}");
    writer.commit().unwrap();
    let expected = [
        (
            1,
            Doc {
                key: 1,
                rank: 1,
                image: None,
                other: None,
            },
        ),
        (
            2,
            Doc {
                key: 2,
                rank: 1,
                image: Some(Lookup::code(64, b"first")),
                other: None,
            },
        ),
        (
            3,
            Doc {
                key: 3,
                rank: 1,
                image: None,
                other: None,
            },
        ),
    ];
    check_against_model(
        &index,
        &fields,
        &expected.into(),
        &Lookup::code(64, b"first"),
        "odd values",
    );

    // The second field has no model, so nothing can encode for it.
    let mut document = TantivyDocument::new();
    document.add_image(fields.other, b"picture");
    let error = writer.add_document(document).unwrap_err().to_string();
    assert!(
        error.contains("`other`") && error.contains(MODEL),
        "{error}"
    );
}

#[test]
fn a_plain_tantivy_writer_encodes_through_the_plugin() {
    let (index, fields) = index(128);
    let payloads = payloads();
    let mut writer: IndexWriter = index.writer_with_num_threads(3, 60_000_000).unwrap();
    for (key, (bytes, _)) in (0..).zip(&payloads) {
        writer.add_document(picture(&fields, key, bytes)).unwrap();
    }
    writer.commit().unwrap();
    check_against_model(
        &index,
        &fields,
        &model(&payloads, 128),
        &Lookup::code(128, b"x"),
        "plain writer",
    );
    let report = index.plugin().ingest_report();
    assert_eq!(
        (report.encoded, report.failed),
        (180, 20),
        "{:?}",
        report.failures
    );
    // Merges copy codes and never encode again.
    index.plugin().reset_ingest_report();
    let segments = index.searchable_segment_ids().unwrap();
    writer.merge(&segments).wait().unwrap();
    check_against_model(
        &index,
        &fields,
        &model(&payloads, 128),
        &Lookup::code(128, b"x"),
        "merged",
    );
    assert_eq!(index.plugin().ingest_report().encoded, 0);
}

#[test]
fn threads_share_one_writer() {
    let (index, fields) = index(64);
    let writer = index.writer(options(OnBadDocument::Quarantine)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (writer, fields) = (&writer, &fields);
            scope.spawn(move || {
                for batch in 0..5 {
                    let keys = thread * 100 + batch * 20..thread * 100 + batch * 20 + 20;
                    let documents = keys
                        .clone()
                        .map(|key| picture(fields, key, format!("picture {key}").as_bytes()));
                    let outcome = writer
                        .upsert_documents(fields.key, documents.collect())
                        .unwrap();
                    assert_eq!(outcome.failures().count(), 0);
                    writer
                        .delete_term(Term::from_field_u64(fields.key, keys.start))
                        .unwrap();
                }
            });
        }
        let writer = &writer;
        scope.spawn(move || writer.commit().unwrap());
    });
    writer.commit().unwrap();
    let model: BTreeMap<u64, Doc> = (0..400)
        .filter(|key: &u64| !key.is_multiple_of(20))
        .map(|key| {
            let image = Some(Lookup::code(64, format!("picture {key}").as_bytes()));
            (
                key,
                Doc {
                    key,
                    rank: key,
                    image,
                    other: None,
                },
            )
        })
        .collect();
    check_against_model(
        &index,
        &fields,
        &model,
        &Lookup::code(64, b"x"),
        "four threads",
    );
}

#[test]
fn a_key_must_be_exact() {
    let (index, fields) = index(64);
    let writer = index.writer(options(OnBadDocument::Quarantine)).unwrap();
    let error = writer
        .upsert_documents(fields.title, vec![picture(&fields, 1, b"x")])
        .unwrap_err();
    assert!(error.to_string().contains("`title`"), "{error}");
    let error = writer
        .upsert_documents(fields.key, vec![TantivyDocument::new()])
        .unwrap_err();
    assert!(error.to_string().contains("one key"), "{error}");
    writer
        .upsert_documents(fields.group, vec![picture(&fields, 1, b"x")])
        .unwrap();
}

/// Refuses hash files while the switch is on.
#[derive(Default)]
struct Faulty(AtomicBool);

impl Hook for Faulty {
    fn before_write(&self, path: &Path) -> std::io::Result<()> {
        match self.0.load(Ordering::SeqCst) && path.extension().is_some_and(|ext| ext == "hcode") {
            true => Err(std::io::Error::other("no space left on device")),
            false => Ok(()),
        }
    }
}

#[test]
fn a_failed_commit_is_rolled_back_and_the_writer_goes_on() {
    let (schema, fields) = schema(64, None);
    let directory = Hooked::new(Faulty::default());
    let faulty = Arc::clone(&directory.hook);
    let index = HashIndex::create(
        directory,
        schema,
        IndexSettings::default(),
        HashPlugin::new(),
    )
    .unwrap();
    let mut rng = seeded("a_failed_commit", 6);
    let mut model = BTreeMap::new();
    let writer = index.writer(options(OnBadDocument::Quarantine)).unwrap();
    let mut add = |keys: std::ops::Range<u64>| -> Vec<Doc> {
        let docs: Vec<Doc> = keys.map(|key| Doc::random(&mut rng, key, 64)).collect();
        writer
            .add_documents(docs.iter().map(|doc| doc.to_tantivy(&fields)).collect())
            .unwrap();
        docs
    };
    model.extend(add(0..50).into_iter().map(|doc| (doc.key, doc)));
    writer.commit().unwrap();

    add(50..100);
    faulty.0.store(true, Ordering::SeqCst);
    let error = writer.commit().unwrap_err().to_string();
    assert!(!error.is_empty() && !error.contains('\n'), "{error}");
    faulty.0.store(false, Ordering::SeqCst);

    // tantivy by itself would now accept documents and drop them.
    model.extend(add(100..150).into_iter().map(|doc| (doc.key, doc)));
    writer.commit().unwrap();
    let query = random_code(&mut seeded("query", 7), 64);
    check_against_model(&index, &fields, &model, &query, "after a failed commit");
    assert!(index.verify().unwrap().is_ok());
    let hits = KnnQuery::new(fields.image, query, 1_000)
        .search(&index.searcher().unwrap())
        .unwrap()
        .hits;
    assert_eq!(
        hits.len(),
        model.values().filter(|doc| doc.image.is_some()).count()
    );
}

/// Every thread of the global pool waits for its codes at once; the encoder must not need one of them.
#[test]
fn callers_on_the_global_pool_do_not_starve_the_encoder() {
    use rayon::prelude::*;
    use tanhash::CodeLen;
    use tanhash::encode::{Encoder, SignLsh};
    let encoder = SignLsh::new(CodeLen::new(64).unwrap(), 8, 1).unwrap();
    let (schema, fields) = schema(64, Some(encoder.model_id()));
    let plugin = HashPlugin::with_encoder(Arc::new(encoder)).unwrap();
    let index = HashIndex::create_in_ram(schema, plugin).unwrap();
    let writer = index.writer(options(OnBadDocument::Quarantine)).unwrap();
    (0..4 * rayon::current_num_threads() as u64)
        .into_par_iter()
        .for_each(|batch| {
            let documents = (batch * 20..batch * 20 + 20).map(|key| {
                let doc = Doc {
                    key,
                    rank: key,
                    image: None,
                    other: None,
                };
                let mut document = doc.to_tantivy(&fields);
                document.add_vector(fields.image, &[key as f32 - 3.0; 8]);
                document
            });
            let outcome = writer.add_documents(documents.collect()).unwrap();
            assert_eq!(outcome.failures().count(), 0);
        });
    writer.commit().unwrap();
}

/// tantivy panics on some leaves inside a JSON field.
#[test]
fn objects_with_leaves_that_are_no_json_are_refused() {
    use tantivy::schema::{OwnedValue, STORED, Schema, TEXT};
    let mut builder = Schema::builder();
    let meta = builder.add_json_field("meta", TEXT | STORED);
    let options_of = tanhash::plugin::HashFieldOptions::new(16);
    tanhash::plugin::SchemaBuilderExt::add_hash_field(&mut builder, "image", options_of).unwrap();
    let index = HashIndex::create_in_ram(builder.build(), HashPlugin::new()).unwrap();
    let writer = index.writer(options(OnBadDocument::Quarantine)).unwrap();
    let mut document = TantivyDocument::new();
    document.add_object(
        meta,
        [("thumb".to_owned(), OwnedValue::Bytes(vec![1; 1_000]))].into(),
    );
    let error = writer.add_document(document).unwrap_err().to_string();
    assert!(error.contains("`meta`") && error.len() < 200, "{error}");
    writer.commit().unwrap();
}

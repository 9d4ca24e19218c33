//! What a searcher sees is there as long as the searcher, and what was rolled back never was: with merges
//! and other writers at the worst moment. Guards the files of live searchers, the order of operations
//! after a rollback or re-opening, and the merge policy.

mod common;

use std::collections::BTreeMap;

use common::{Doc, Fields, check_against_model, random_code, schema, seeded};
use tanhash::plugin::{HashIndex, HashIndexWriter, HashPlugin, WriterOptions};
use tantivy::Term;
use tantivy::index::SegmentId;
use tantivy::merge_policy::NoMergePolicy;

const BITS: usize = 64;

fn writer(index: &HashIndex) -> HashIndexWriter {
    let options = WriterOptions {
        num_threads: 1,
        memory_budget_bytes: 20_000_000,
        ..WriterOptions::default()
    };
    let writer = index.writer(options).unwrap();
    writer.set_merge_policy(Box::new(NoMergePolicy)).unwrap();
    writer
}

/// Two segments: the first holds documents 1 and 2, the second 3, as 4 was deleted by the last commit.
fn two_segments(fields: &Fields, index: &HashIndex, docs: &[Doc]) -> Vec<SegmentId> {
    let writer = writer(index);
    for pair in docs.chunks(2) {
        let documents = pair.iter().map(|doc| doc.to_tantivy(fields)).collect();
        writer.add_documents(documents).unwrap();
        writer.commit().unwrap();
    }
    writer
        .delete_term(Term::from_field_u64(fields.key, docs[3].key))
        .unwrap();
    writer.commit().unwrap();
    writer.close().unwrap();
    let metas = index.searchable_segment_metas().unwrap();
    let (mut with_deletes, mut segments): (Vec<_>, Vec<_>) =
        metas.iter().partition(|meta| meta.has_deletes());
    assert_eq!((segments.len(), with_deletes.len()), (1, 1));
    segments.append(&mut with_deletes);
    segments.into_iter().map(|meta| meta.id()).collect()
}

/// The first operation after a rollback, or of a new writer, gets the stamp of the last commit again from
/// tantivy. A merge takes operations up to that stamp for committed, applies them to some of its segments,
/// passes over those that have had deletions in that commit, and lets none hear of them again.
#[test]
fn the_first_deletion_after_a_rollback_is_neither_lost_nor_early() {
    let mut rng = seeded("first_deletion", 5);
    let docs: Vec<Doc> = (1..=4)
        .map(|key| Doc::random(&mut rng, key, BITS))
        .collect();
    let query = random_code(&mut rng, BITS);
    let committed: BTreeMap<u64, Doc> =
        docs[..3].iter().map(|doc| (doc.key, doc.clone())).collect();
    for rolled_back_before in [false, true] {
        for key in [1, 3] {
            for commits in [true, false] {
                let what = format!("{rolled_back_before}, key {key}, {commits}");
                let (schema, fields) = schema(BITS, None);
                let index = HashIndex::create_in_ram(schema, HashPlugin::new()).unwrap();
                let segments = two_segments(&fields, &index, &docs);
                let writer = writer(&index);
                if rolled_back_before {
                    writer.rollback().unwrap();
                }
                let term = Term::from_field_u64(fields.key, key);
                writer.delete_term(term).unwrap();
                writer.merge_segments(&segments).unwrap();
                let mut model = committed.clone();
                check_against_model(&index, &fields, &model, &query, &what);
                if commits {
                    model.remove(&key);
                    writer.commit().unwrap();
                } else {
                    writer.rollback().unwrap();
                }
                check_against_model(&index, &fields, &model, &query, &what);
                writer.close().unwrap();
            }
        }
    }
}

/// A document replaced in the first call after a rollback is there once.
#[test]
fn the_first_replacement_after_a_rollback_leaves_one_document() {
    let mut rng = seeded("first_replacement", 6);
    let docs: Vec<Doc> = (1..=4)
        .map(|key| Doc::random(&mut rng, key, BITS))
        .collect();
    let query = random_code(&mut rng, BITS);
    let (schema, fields) = schema(BITS, None);
    let index = HashIndex::create_in_ram(schema, HashPlugin::new()).unwrap();
    let segments = two_segments(&fields, &index, &docs);
    let writer = writer(&index);
    writer.rollback().unwrap();
    let replacement = Doc::random(&mut rng, 3, BITS);
    let document = replacement.to_tantivy(&fields);
    writer.upsert_documents(fields.key, vec![document]).unwrap();
    writer.merge_segments(&segments).unwrap();
    writer.commit().unwrap();
    let model = [docs[0].clone(), docs[1].clone(), replacement];
    let model = model.into_iter().map(|doc| (doc.key, doc)).collect();
    check_against_model(&index, &fields, &model, &query, "replaced");
}

//! What a searcher sees is there as long as the searcher, and what was rolled back never was: with merges
//! and other writers at the worst moment. Guards the files of live searchers, the order of operations
//! after a rollback or re-opening, and the merge policy.

mod common;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use common::directory::{Hook, Hooked};
use common::{Doc, Fields, check_against_model, key_of, random_code, schema, seeded};
use parking_lot::Mutex;
use tanhash::plugin::{
    HashDirectory, HashIndex, HashIndexWriter, HashPlugin, KnnQuery, WriterOptions,
};
use tantivy::directory::{MmapDirectory, RamDirectory};
use tantivy::index::{Index, IndexSettings, SegmentId};
use tantivy::merge_policy::{MergeCandidate, MergePolicy, NoMergePolicy};
use tantivy::schema::Schema;
use tantivy::{Directory, DocAddress, IndexWriter, ReloadPolicy, Searcher, SegmentMeta, Term};

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

/// Every code and the nearest neighbors, as the searcher saw them when it was made.
fn check_searcher(index: &HashIndex, fields: &Fields, searcher: &Searcher, docs: &[Doc]) {
    let mut found = 0;
    for (segment_ord, reader) in (0..).zip(searcher.segment_readers()) {
        for doc_id in reader.doc_ids_alive() {
            let address = DocAddress {
                segment_ord,
                doc_id,
            };
            let key = key_of(searcher, fields, address);
            let doc = docs.iter().find(|doc| doc.key == key).unwrap();
            let code = index.code(searcher, fields.image, address).unwrap();
            assert_eq!(code, doc.image, "{key}");
            found += 1;
        }
    }
    assert_eq!(found, docs.len());
    let mut coded = docs.iter().filter(|doc| doc.image.is_some());
    let doc = coded.next_back().unwrap();
    let query = KnnQuery::new(fields.image, doc.image.clone().unwrap(), 1);
    let hit = query.search(searcher).unwrap().hits[0];
    assert_eq!(
        (hit.distance, key_of(searcher, fields, hit.address)),
        (0, doc.key)
    );
}

/// Hash files of a folder that are deleted and still mapped into this process.
#[cfg(target_os = "linux")]
fn deleted_and_mapped(folder: &Path) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let folder = folder.to_str().unwrap();
    let mapped = |line: &&str| line.contains(folder) && line.ends_with(".hcode (deleted)");
    maps.lines().filter(mapped).count()
}

/// The searcher is made before and asked only after its segments were merged and their files deleted.
#[test]
fn a_searcher_keeps_the_codes_of_segments_that_are_merged_away() {
    let mut rng = seeded("merged_away", 7);
    let docs: Vec<Doc> = (0..40)
        .map(|key| Doc::random(&mut rng, key, BITS))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let on_disk = MmapDirectory::open(folder.path()).unwrap();
    let directories: [Box<dyn Directory>; 2] = [on_disk.into(), RamDirectory::create().into()];
    for directory in directories {
        let (schema, fields) = schema(BITS, None);
        let settings = IndexSettings::default();
        let index = HashIndex::create(directory.clone(), schema, settings, HashPlugin::new());
        let index = index.unwrap();
        let writer = writer(&index);
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual);
        let reader = reader.try_into().unwrap();
        for part in docs.chunks(10) {
            let documents = part.iter().map(|doc| doc.to_tantivy(&fields)).collect();
            writer.add_documents(documents).unwrap();
            writer.commit().unwrap();
        }
        reader.reload().unwrap();
        let searchers = [index.searcher().unwrap(), reader.searcher()];
        assert_eq!(searchers[0].segment_readers().len(), 4);
        writer.merge_all().unwrap();
        assert_eq!(index.plugin().cached_segments(), 0);
        for searcher in &searchers {
            for segment in searcher.segment_readers() {
                let file = format!("{}.hcode", segment.segment_id().uuid_string());
                assert!(!directory.exists(Path::new(&file)).unwrap(), "{file}");
            }
            // A plugin of its own, as the other searcher may have left something in the first one's cache.
            let other = HashIndex::open(directory.clone(), HashPlugin::new()).unwrap();
            check_searcher(&other, &fields, searcher, &docs);
        }
        writer.close().unwrap();
    }
}

/// The space on the disk is given back with the searcher.
#[cfg(target_os = "linux")]
#[test]
fn a_searcher_that_is_dropped_lets_go_of_its_files() {
    let mut rng = seeded("let_go", 8);
    let folder = tempfile::tempdir().unwrap();
    let (schema, fields) = schema(BITS, None);
    let index = HashIndex::create_in_dir(folder.path(), schema, HashPlugin::new()).unwrap();
    let writer = writer(&index);
    for key in 0..3 {
        let document = Doc::random(&mut rng, key, BITS).to_tantivy(&fields);
        writer.add_document(document).unwrap();
        writer.commit().unwrap();
    }
    let searcher = index.searcher().unwrap();
    writer.merge_all().unwrap();
    assert_eq!(deleted_and_mapped(folder.path()), 3);
    drop(searcher);
    assert_eq!(deleted_and_mapped(folder.path()), 0);
}

/// tantivy's own index, reader and writer, over a [`HashDirectory`].
#[test]
fn a_searcher_of_plain_tantivy_keeps_its_codes_too() {
    let mut rng = seeded("plain_searcher", 9);
    let docs: Vec<Doc> = (0..6).map(|key| Doc::random(&mut rng, key, BITS)).collect();
    let (schema, fields): (Schema, Fields) = schema(BITS, None);
    let plugin = HashPlugin::new();
    let builder = Index::builder()
        .schema(schema)
        .register_plugin(plugin.segment_plugin());
    let directory = HashDirectory::new(RamDirectory::create());
    let index = builder.open_or_create(directory).unwrap();
    let mut writer: IndexWriter = index.writer_with_num_threads(1, 20_000_000).unwrap();
    writer.set_merge_policy(Box::new(NoMergePolicy));
    for pair in docs.chunks(2) {
        for doc in pair {
            writer.add_document(doc.to_tantivy(&fields)).unwrap();
        }
        writer.commit().unwrap();
    }
    let searcher = index.reader().unwrap().searcher();
    let segments = index.searchable_segment_ids().unwrap();
    writer.merge(&segments).wait().unwrap();
    writer.garbage_collect_files().wait().unwrap();
    let index = HashIndex::from_index(index, plugin).unwrap();
    check_searcher(&index, &fields, &searcher, &docs);
}

/// Counts how often it is asked, and has everything merged.
#[derive(Debug)]
struct MergeAlways(Arc<AtomicUsize>);

impl MergePolicy for MergeAlways {
    fn compute_merge_candidates(&self, segments: &[SegmentMeta]) -> Vec<MergeCandidate> {
        self.0.fetch_add(1, Ordering::Relaxed);
        match segments.len() {
            0 | 1 => Vec::new(),
            _ => vec![MergeCandidate(
                segments.iter().map(SegmentMeta::id).collect(),
            )],
        }
    }
}

#[test]
fn the_merge_policy_outlives_a_rollback() {
    let mut rng = seeded("merge_policy", 10);
    let (schema, fields) = schema(BITS, None);
    let index = HashIndex::create_in_ram(schema, HashPlugin::new()).unwrap();
    let writer = writer(&index);
    let n_asked = Arc::new(AtomicUsize::new(0));
    let policy = MergeAlways(n_asked.clone());
    writer.set_merge_policy(Box::new(policy)).unwrap();
    for n_rollbacks in 0..3 {
        let before = n_asked.load(Ordering::Relaxed);
        let document = Doc::random(&mut rng, n_rollbacks, BITS).to_tantivy(&fields);
        writer.add_document(document).unwrap();
        writer.commit().unwrap();
        let asked = n_asked.load(Ordering::Relaxed);
        assert!(asked > before, "after {n_rollbacks} rollbacks");
        writer.merge_all().unwrap();
        writer.rollback().unwrap();
    }
}

/// Writes to let through before the one to stop, what to say then and what to wait for.
type Stop = (usize, Sender<()>, Receiver<()>);

/// Stops a write of `meta.json`.
#[derive(Default)]
struct Gate(Mutex<Option<Stop>>);

impl Hook for Gate {
    fn before_write(&self, path: &Path) -> io::Result<()> {
        if path != Path::new("meta.json") {
            return Ok(());
        }
        let stopped = {
            let mut stop = self.0.lock();
            match &mut *stop {
                Some((left, _, _)) if *left > 0 => {
                    *left -= 1;
                    None
                }
                stop => stop.take(),
            }
        };
        if let Some((_, reached, go_on)) = stopped {
            reached.send(()).unwrap();
            go_on.recv().unwrap();
        }
        Ok(())
    }
}

/// A merge that writes `meta.json` while the writer is rolled back must not be unknown to the writer
/// afterwards: it would delete the merged files, and could not merge what the index is made of.
#[test]
fn a_merge_that_ends_during_a_rollback_is_known_afterwards() {
    let mut rng = seeded("late_merge", 11);
    let docs: Vec<Doc> = (0..2).map(|key| Doc::random(&mut rng, key, BITS)).collect();
    let (schema, fields) = schema(BITS, None);
    let directory = Hooked::new(Gate::default());
    let settings = IndexSettings::default();
    let index = HashIndex::create(directory.clone(), schema, settings, HashPlugin::new()).unwrap();
    let writer = writer(&index);
    for doc in &docs {
        writer.add_document(doc.to_tantivy(&fields)).unwrap();
        writer.commit().unwrap();
    }
    let n_asked = Arc::new(AtomicUsize::new(0));
    writer
        .set_merge_policy(Box::new(MergeAlways(n_asked)))
        .unwrap();
    let ((reached, is_reached), (go_on, goes_on)) = (channel(), channel());
    // The commit's write goes through, the one at the end of the merge does not.
    *directory.hook.0.lock() = Some((1, reached, goes_on));
    writer.commit().unwrap();
    is_reached.recv_timeout(Duration::from_secs(60)).unwrap();
    writer.set_merge_policy(Box::new(NoMergePolicy)).unwrap();
    std::thread::scope(|scope| {
        let rolled_back = scope.spawn(|| writer.rollback().unwrap());
        std::thread::sleep(Duration::from_millis(200));
        go_on.send(()).unwrap();
        rolled_back.join().unwrap();
    });
    let start = Instant::now();
    while index.searchable_segment_ids().unwrap().len() > 1 {
        assert!(start.elapsed() < Duration::from_secs(60), "merged");
        std::thread::sleep(Duration::from_millis(1));
    }
    let merged = index.searchable_segment_ids().unwrap();
    writer.merge_segments(&merged).unwrap();
    let model = docs.iter().map(|doc| (doc.key, doc.clone())).collect();
    let query = random_code(&mut rng, BITS);
    check_against_model(&index, &fields, &model, &query, "merged late");
    writer.close().unwrap();
}

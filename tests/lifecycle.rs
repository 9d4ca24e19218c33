//! The whole life of an index against a model: add, replace, delete, commit, roll back, merge, sort, re-open.
//! Guards that every live document keeps exactly its code, whatever tantivy does to document ids.

mod common;

use std::collections::BTreeMap;

use common::{Doc, Fields, check_against_model, group_query, key_of, random_code, schema, seeded};
use rand::Rng;
use tanhash::plugin::{
    HammingQuery, HashDocumentExt, HashIndex, HashPlugin, KnnQuery, WriterOptions, merge_indices,
};
use tanhash::segment::TablePolicy;
use tanhash::{ErrorKind, HashCode};
use tantivy::collector::{Count, FacetCollector, TopDocs};
use tantivy::directory::{MmapDirectory, RamDirectory};
use tantivy::index::{Index, IndexSettings, IndexSortByField, Order};
use tantivy::merge_policy::NoMergePolicy;
use tantivy::query::{BooleanQuery, BoostQuery, Occur, Query};
use tantivy::schema::{FacetOptions, Schema, TEXT};
use tantivy::{Directory, TantivyDocument, TantivyError, Term};

fn writer_options(num_threads: usize) -> WriterOptions {
    WriterOptions {
        num_threads,
        memory_budget_bytes: 15_000_000 * num_threads,
        ..Default::default()
    }
}

fn plugin() -> HashPlugin {
    plugin_with(TablePolicy::Always)
}

fn plugin_with(tables: TablePolicy) -> HashPlugin {
    HashPlugin::builder().tables(tables).build().unwrap()
}

fn settings(sort: Option<Order>) -> IndexSettings {
    let sort_by_field = sort.map(|order| IndexSortByField {
        field: "rank".to_owned(),
        order,
    });
    IndexSettings {
        sort_by_field,
        ..Default::default()
    }
}

/// Random operations, checked after every commit.
fn live(
    rng: &mut impl Rng,
    directory: Box<dyn Directory>,
    bits: usize,
    sort: Option<Order>,
    threads: usize,
) {
    let (schema, fields) = schema(bits, None);
    // Segments of one index may differ: each opening writes with tables of its own choice.
    let mut tables = [TablePolicy::Always, TablePolicy::MihCopies]
        .into_iter()
        .cycle();
    let mut plugin = || plugin_with(tables.next().unwrap());
    let mut index =
        HashIndex::create(directory.box_clone(), schema, settings(sort), plugin()).unwrap();
    let mut committed: BTreeMap<u64, Doc> = BTreeMap::new();
    let mut next_key = 0;
    for round in 0..8 {
        let what = format!("{bits} bits, {sort:?}, {threads} threads, round {round}");
        let writer = index.writer(writer_options(threads)).unwrap();
        writer.set_merge_policy(Box::new(NoMergePolicy)).unwrap();
        let mut model = committed.clone();
        for _ in 0..rng.random_range(1..6) {
            match rng.random_range(0..10) {
                0..=4 => {
                    let docs: Vec<Doc> = (next_key..next_key + 20)
                        .map(|key| Doc::random(rng, key, bits))
                        .collect();
                    next_key += 20;
                    writer
                        .add_documents(docs.iter().map(|doc| doc.to_tantivy(&fields)).collect())
                        .unwrap();
                    model.extend(docs.into_iter().map(|doc| (doc.key, doc)));
                }
                5 | 6 => {
                    let keys: Vec<u64> = model
                        .keys()
                        .copied()
                        .filter(|_| rng.random_bool(0.3))
                        .collect();
                    let docs: Vec<Doc> = keys
                        .iter()
                        .map(|&key| Doc::random(rng, key, bits))
                        .collect();
                    let documents = docs.iter().map(|doc| doc.to_tantivy(&fields)).collect();
                    writer.upsert_documents(fields.key, documents).unwrap();
                    model.extend(docs.into_iter().map(|doc| (doc.key, doc)));
                }
                7 | 8 => {
                    for key in (0..next_key).filter(|_| rng.random_bool(0.1)) {
                        writer
                            .delete_term(Term::from_field_u64(fields.key, key))
                            .unwrap();
                        model.remove(&key);
                    }
                }
                _ => {
                    writer.rollback().unwrap();
                    model = committed.clone();
                }
            }
        }
        writer.commit().unwrap();
        committed = model;
        let query = random_code(rng, bits);
        check_against_model(&index, &fields, &committed, &query, &what);
        if round % 2 == 1 {
            writer.merge_all().unwrap();
            check_against_model(
                &index,
                &fields,
                &committed,
                &query,
                &format!("{what}, merged"),
            );
            let segments = index.searchable_segment_ids().unwrap().len();
            assert!(
                segments <= 1,
                "{what}: {segments} segments after merging all"
            );
        }
        let report = index.verify().unwrap();
        assert!(report.is_ok(), "{what}: {:?}", report.problems);
        assert_eq!(report.documents, committed.len() as u64);
        writer.close().unwrap();
        index = HashIndex::open(directory.box_clone(), plugin()).unwrap();
    }
}

#[test]
fn a_whole_life_in_memory() {
    let mut rng = seeded("a_whole_life_in_memory", 1);
    for bits in [16, 64, 72, 256, 1024] {
        live(&mut rng, Box::new(RamDirectory::create()), bits, None, 1);
    }
}

#[test]
fn a_whole_life_on_disk_with_threads() {
    let mut rng = seeded("a_whole_life_on_disk_with_threads", 2);
    let dir = tempfile::tempdir().unwrap();
    live(
        &mut rng,
        Box::new(MmapDirectory::open(dir.path()).unwrap()),
        64,
        None,
        3,
    );
}

#[test]
fn a_whole_life_sorted_with_ties() {
    let mut rng = seeded("a_whole_life_sorted_with_ties", 3);
    for order in [Order::Asc, Order::Desc] {
        live(
            &mut rng,
            Box::new(RamDirectory::create()),
            64,
            Some(order),
            2,
        );
    }
}

fn small_index(n: u64) -> (HashIndex, Fields, Vec<HashCode>) {
    let (schema, fields) = schema(64, None);
    let index = HashIndex::create_in_ram(schema, plugin()).unwrap();
    let mut rng = seeded("small_index", 4);
    let codes: Vec<HashCode> = (0..n).map(|_| random_code(&mut rng, 64)).collect();
    let writer = index.writer(writer_options(1)).unwrap();
    for (key, code) in (0..).zip(&codes) {
        let doc = Doc {
            key,
            rank: key,
            image: Some(code.clone()),
            other: None,
        };
        writer.add_document(doc.to_tantivy(&fields)).unwrap();
        if key % 40 == 39 {
            writer.commit().unwrap();
        }
    }
    writer.commit().unwrap();
    (index, fields, codes)
}

#[test]
fn queries_work_inside_tantivys_own() {
    let (index, fields, codes) = small_index(100);
    let searcher = index.searcher().unwrap();
    let knn = KnnQuery::new(fields.image, codes[7].clone(), 10);
    let hits = knn.search(&searcher).unwrap().hits;
    assert_eq!(hits.len(), 10);
    assert_eq!((hits[0].distance, hits[0].score), (0, 1.0));
    assert_eq!(key_of(&searcher, &fields, hits[0].address), 7);

    let top = searcher
        .search(&knn, &TopDocs::with_limit(20).order_by_score())
        .unwrap();
    assert_eq!(top.len(), 10, "the cut to k is global");
    let mut by_score: Vec<_> = hits.iter().map(|hit| (hit.score, hit.address)).collect();
    by_score.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    assert_eq!(top, by_score);
    assert_eq!(searcher.search(&knn, &Count).unwrap(), 10);
    assert_eq!(knn.count(&searcher).unwrap(), 10);

    let both = |query: Box<dyn Query>| {
        let clauses = vec![
            (Occur::Must, query),
            (Occur::Must, group_query(&fields, "third")),
        ];
        searcher
            .search(&BooleanQuery::new(clauses), &Count)
            .unwrap()
    };
    let thirds = hits
        .iter()
        .filter(|hit| key_of(&searcher, &fields, hit.address).is_multiple_of(3))
        .count();
    assert_eq!(
        both(Box::new(knn.clone())),
        thirds,
        "a MUST clause filters after the cut"
    );
    let filtered = knn.clone().filter(group_query(&fields, "third"));
    assert_eq!(
        both(Box::new(filtered)),
        10,
        "a filter is applied before the cut"
    );

    let near = HammingQuery::new(fields.image, codes[7].clone(), 24);
    let within = codes
        .iter()
        .filter(|code| code.distance(&codes[7]).unwrap() <= 24)
        .count();
    assert!(within > 1);
    assert_eq!(searcher.search(&near, &Count).unwrap(), within);
    assert_eq!(near.search(&searcher, None).unwrap().hits.len(), within);
    let not = BooleanQuery::new(vec![
        (
            Occur::Must,
            Box::new(tantivy::query::AllQuery) as Box<dyn Query>,
        ),
        (Occur::MustNot, Box::new(near.clone())),
    ]);
    assert_eq!(searcher.search(&not, &Count).unwrap(), 100 - within);

    let explanation = knn.explain(&searcher, hits[1].address).unwrap();
    assert!((explanation.value() - hits[1].score).abs() < 1e-6);
    assert!(explanation.to_pretty_json().contains("k-NN search"));
    let boosted = BoostQuery::new(Box::new(knn.clone()), 3.0);
    let top = searcher
        .search(&boosted, &TopDocs::with_limit(1).order_by_score())
        .unwrap();
    assert_eq!(top[0].0, 3.0);
    let capped = knn
        .clone()
        .max_distance(hits[3].distance)
        .search(&searcher)
        .unwrap()
        .hits;
    assert_eq!(
        capped.len(),
        hits.iter()
            .filter(|hit| hit.distance <= hits[3].distance)
            .count()
    );
}

#[test]
fn facets_are_counted_over_a_range() {
    use tanhash::plugin::{HashFieldOptions, SchemaBuilderExt};
    let mut builder = Schema::builder();
    let kind = builder.add_facet_field("kind", FacetOptions::default());
    let image = builder
        .add_hash_field("image", HashFieldOptions::new(16))
        .unwrap();
    let index = HashIndex::create_in_ram(builder.build(), plugin()).unwrap();
    let writer = index.writer(writer_options(1)).unwrap();
    for (facet, hex) in [
        ("/a", "0000"),
        ("/a", "0100"),
        ("/b", "0300"),
        ("/b", "ffff"),
    ] {
        let mut document = TantivyDocument::new();
        document.add_facet(kind, facet);
        document.add_code(image, &HashCode::from_hex(hex).unwrap());
        writer.add_document(document).unwrap();
    }
    writer.commit().unwrap();
    let mut facets = FacetCollector::for_field("kind");
    facets.add_facet("/");
    let query = HammingQuery::new(image, HashCode::from_hex("0000").unwrap(), 2);
    let counts = index.searcher().unwrap().search(&query, &facets).unwrap();
    let counts: Vec<(String, u64)> = counts
        .get("/")
        .map(|(facet, n)| (facet.to_string(), n))
        .collect();
    assert_eq!(counts, [("/a".to_owned(), 2), ("/b".to_owned(), 1)]);
}

#[test]
fn deletes_by_range_but_not_by_knn() {
    let (index, fields, codes) = small_index(100);
    let writer = index.writer(writer_options(1)).unwrap();
    let knn = Box::new(KnnQuery::new(fields.image, codes[3].clone(), 5));
    let error = writer.delete_query(knn).unwrap_err().to_string();
    assert!(error.contains("HammingQuery"), "{error}");
    writer
        .delete_query(Box::new(HammingQuery::new(
            fields.image,
            codes[3].clone(),
            26,
        )))
        .unwrap();
    writer.commit().unwrap();
    let searcher = index.searcher().unwrap();
    let left = codes
        .iter()
        .filter(|code| code.distance(&codes[3]).unwrap() > 26)
        .count();
    assert_eq!(searcher.num_docs(), left as u64);
    let hits = KnnQuery::new(fields.image, codes[3].clone(), 1)
        .search(&searcher)
        .unwrap()
        .hits;
    assert!(
        hits[0].distance > 26,
        "deleted documents are skipped before the cut"
    );
}

#[test]
fn indexes_are_merged_only_with_the_plugin() {
    let (first, fields, codes) = small_index(60);
    let (second, _, _) = small_index(50);
    let merged = merge_indices(
        &[(*first).clone(), (*second).clone()],
        RamDirectory::create(),
        plugin(),
    )
    .unwrap();
    let searcher = merged.searcher().unwrap();
    assert_eq!(searcher.segment_readers().len(), 1);
    let hits = KnnQuery::new(fields.image, codes[0].clone(), 2)
        .search(&searcher)
        .unwrap()
        .hits;
    assert_eq!(
        [hits[0].distance, hits[1].distance],
        [0, 0],
        "one from each"
    );
    assert!(merged.verify().unwrap().is_ok());

    let plain = Index::open(first.directory().clone()).unwrap();
    let error = merge_indices(&[plain], RamDirectory::create(), plugin())
        .unwrap_err()
        .to_string();
    assert!(error.contains("codes would be lost"), "{error}");
}

#[test]
fn wrong_plugin_sets_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (schema, fields) = schema(64, Some("model-a"));
    HashIndex::create_in_dir(dir.path(), schema.clone(), HashPlugin::new()).unwrap();
    let again =
        HashIndex::create_in_dir(dir.path(), schema.clone(), HashPlugin::new()).unwrap_err();
    assert!(again.to_string().contains("found one there"), "{again}");

    // Missing: tantivy opens and searches, and refuses to write.
    let mut plain = Index::open_in_dir(dir.path()).unwrap();
    assert!(matches!(
        plain.writer::<TantivyDocument>(15_000_000),
        Err(TantivyError::MissingPlugin(_))
    ));
    let searcher = plain.reader().unwrap().searcher();
    let code = HashCode::from_bytes(&[0; 8]).unwrap();
    assert!(
        KnnQuery::new(fields.image, code, 1)
            .search(&searcher)
            .unwrap()
            .hits
            .is_empty()
    );
    // Conflicting: two plugins on one extension.
    plain.register_plugin(HashPlugin::new().segment_plugin());
    plain.register_plugin(HashPlugin::new().segment_plugin());
    assert!(matches!(
        plain.writer::<TantivyDocument>(15_000_000),
        Err(TantivyError::ConflictingPlugins(_))
    ));
    // Unexpected: an index created without the plugin.
    let bare = Index::create_in_ram(schema.clone());
    let error = HashIndex::from_index(bare, HashPlugin::new())
        .unwrap_err()
        .to_string();
    assert!(error.contains("rebuild"), "{error}");
    let mut builder = Schema::builder();
    builder.add_text_field("title", TEXT);
    let error = HashIndex::from_index(Index::create_in_ram(builder.build()), HashPlugin::new())
        .unwrap_err();
    assert!(error.to_string().contains("hash field"), "{error}");
    // Another model.
    let encoder = std::sync::Arc::new(common::encoder::Lookup::new("model-b", 64));
    let error = HashIndex::open_in_dir(dir.path(), HashPlugin::with_encoder(encoder).unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("model-a") && error.contains("model-b"),
        "{error}"
    );
    // No index.
    let empty = tempfile::tempdir().unwrap();
    let error = HashIndex::open_in_dir(empty.path(), HashPlugin::new()).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::InvalidArgument(_)),
        "{error}"
    );
}

#[test]
fn bad_queries_are_refused_in_one_line() {
    let (index, fields, codes) = small_index(10);
    let searcher = index.searcher().unwrap();
    let code = codes[0].clone();
    let short = HashCode::from_bytes(&[0; 4]).unwrap();
    let cases = [
        (
            KnnQuery::new(fields.image, code.clone(), 0).search(&searcher),
            "at least 1, got 0",
        ),
        (
            KnnQuery::new(fields.image, short.clone(), 1).search(&searcher),
            "64 bits, got 32 bits",
        ),
        (
            KnnQuery::new(fields.title, code.clone(), 1).search(&searcher),
            "`title`",
        ),
        (
            KnnQuery::new(fields.image, code.clone(), 1)
                .max_distance(65)
                .search(&searcher),
            "65",
        ),
        (
            HammingQuery::new(fields.image, code.clone(), 65).search(&searcher, None),
            "64, the bits of a code, got 65",
        ),
        (
            HammingQuery::new(fields.image, short, 1).search(&searcher, None),
            "64 bits, got 32 bits",
        ),
    ];
    for (result, expected) in cases {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    }
    let error = index.field("imgae").unwrap_err().to_string();
    assert!(
        error.contains("imgae") && error.contains("image"),
        "{error}"
    );
    assert_eq!(
        KnnQuery::new(fields.image, code, 99)
            .search(&searcher)
            .unwrap()
            .hits
            .len(),
        10
    );

    let (schema, fields) = schema(64, None);
    let empty = HashIndex::create_in_ram(schema, plugin()).unwrap();
    let searcher = empty.searcher().unwrap();
    assert!(
        KnnQuery::new(fields.image, codes[0].clone(), 3)
            .search(&searcher)
            .unwrap()
            .hits
            .is_empty()
    );
    assert!(empty.verify().unwrap().is_ok());
}

#[test]
fn cached_segments_are_let_go_after_merges() {
    let (schema, fields) = schema(64, None);
    let plugin = plugin();
    let index = HashIndex::create_in_ram(schema, plugin.clone()).unwrap();
    let writer = index.writer(writer_options(1)).unwrap();
    writer.set_merge_policy(Box::new(NoMergePolicy)).unwrap();
    let mut rng = seeded("cached_segments", 5);
    let query = KnnQuery::new(fields.image, random_code(&mut rng, 64), 3);
    for key in 0..100 {
        writer
            .add_document(Doc::random(&mut rng, key, 64).to_tantivy(&fields))
            .unwrap();
        writer.commit().unwrap();
        query.search(&index.searcher().unwrap()).unwrap();
    }
    assert!(plugin.cached_segments() > 60);
    writer.merge_all().unwrap();
    query.search(&index.searcher().unwrap()).unwrap();
    query.search(&index.searcher().unwrap()).unwrap();
    assert!(
        plugin.cached_segments() <= 2,
        "{} cached segments of 1",
        plugin.cached_segments()
    );
}

/// A segment without a single term has text files whose contents are shorter than tantivy's footer; they are
/// sound all the same.
#[test]
fn an_index_without_terms_is_opened_again() {
    use tanhash::plugin::{HashFieldOptions, SchemaBuilderExt};
    let dir = tempfile::tempdir().unwrap();
    let mut builder = Schema::builder();
    let image = builder
        .add_hash_field("image", HashFieldOptions::new(16))
        .unwrap();
    let index = HashIndex::create_in_dir(dir.path(), builder.build(), plugin()).unwrap();
    let writer = index.writer(writer_options(1)).unwrap();
    let mut document = TantivyDocument::new();
    let code = HashCode::from_hex("0123").unwrap();
    document.add_code(image, &code);
    writer.add_document(document).unwrap();
    writer.commit().unwrap();
    drop(writer);
    let index = HashIndex::open_in_dir(dir.path(), plugin()).unwrap();
    assert!(index.verify().unwrap().is_ok());
    let hits = KnnQuery::new(image, code, 1)
        .search(&index.searcher().unwrap())
        .unwrap()
        .hits;
    assert_eq!(hits[0].distance, 0);
}

/// tantivy's indexing threads die of a value of another type, and take every uncommitted document along.
#[test]
fn mistyped_values_are_refused_before_they_cost_anything() {
    let (index, fields, codes) = small_index(10);
    let writer = index.writer(writer_options(1)).unwrap();
    let good = Doc {
        key: 100,
        rank: 1,
        image: Some(codes[0].clone()),
        other: None,
    };
    writer.add_document(good.to_tantivy(&fields)).unwrap();
    let mut bad = good.to_tantivy(&fields);
    bad.add_text(fields.rank, "no number");
    let error = writer.add_document(bad).unwrap_err().to_string();
    assert!(error.contains("`rank`") && error.contains("U64"), "{error}");
    writer.commit().unwrap();
    assert_eq!(index.searcher().unwrap().num_docs(), 11);
    let unindexed = Term::from_field_bytes(fields.image, b"x");
    assert!(writer.delete_term(unindexed).is_err());
}

/// The merged index has the plugin it was given, and accepts documents.
#[test]
fn a_merged_index_can_be_written() {
    let (first, fields, codes) = small_index(20);
    let directory = RamDirectory::create();
    let merged = merge_indices(&[(*first).clone()], directory.clone(), plugin()).unwrap();
    let writer = merged.writer(writer_options(1)).unwrap();
    let doc = Doc {
        key: 500,
        rank: 1,
        image: Some(codes[0].clone()),
        other: None,
    };
    writer.add_document(doc.to_tantivy(&fields)).unwrap();
    writer.commit().unwrap();
    assert_eq!(merged.searcher().unwrap().num_docs(), 21);
    let error = merge_indices(&[(*first).clone()], directory, plugin()).unwrap_err();
    assert!(error.to_string().contains("found one there"), "{error}");
}

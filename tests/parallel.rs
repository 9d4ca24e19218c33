//! Searches by several threads and searches of many codes at once, against one thread and one code. Guards
//! that how work is shared out never shows in an answer. Leaves out what the answers should be.

mod common;

use std::ops::Bound;
use std::sync::Arc;

use common::{near, random_code, seeded};
use rand::Rng;
use tanhash::HashCode;
use tanhash::engine::EngineChoice;
use tanhash::plugin::{
    DocFilter, HammingHit, HammingQuery, HammingResult, HashDocumentExt, HashFieldOptions,
    HashIndex, HashPlugin, KnnQuery, SchemaBuilderExt, WriterOptions,
};
use tantivy::merge_policy::NoMergePolicy;
use tantivy::query::{Query, RangeQuery};
use tantivy::schema::{FAST, Field, INDEXED, Schema};
use tantivy::{DocAddress, Searcher, TantivyDocument, Term};

/// Wide, so that few documents are enough for more than one thread.
const BITS: usize = 1024;
const SEGMENTS: [usize; 4] = [12_000, 39_000, 4_000, 17_000];

/// Documents whose number is from `first` to before `end`.
fn numbers(field: Field, first: u64, end: u64) -> Box<dyn Query> {
    let term = |number| Term::from_field_u64(field, number);
    let (first, end) = (Bound::Included(term(first)), Bound::Excluded(term(end)));
    Box::new(RangeQuery::new(first, end))
}

struct Corpus {
    index: HashIndex,
    code: Field,
    number: Field,
    queries: Vec<HashCode>,
}

impl Corpus {
    fn new(rng: &mut impl Rng) -> Corpus {
        let mut builder = Schema::builder();
        let options = HashFieldOptions::new(BITS);
        let code = builder.add_hash_field("code", options).unwrap();
        let number = builder.add_u64_field("number", FAST | INDEXED);
        let plugin = HashPlugin::builder().build().unwrap();
        let index = HashIndex::create_in_ram(builder.build(), plugin).unwrap();
        let writer = index
            .writer(WriterOptions {
                num_threads: 1,
                memory_budget_bytes: 200_000_000,
                ..Default::default()
            })
            .unwrap();
        writer.set_merge_policy(Box::new(NoMergePolicy)).unwrap();
        let centers: Vec<HashCode> = (0..300).map(|_| random_code(rng, BITS)).collect();
        // Equal codes in every segment, so that ties cross threads.
        let of =
            |rng: &mut _, idx: usize| near(rng, &centers[idx % 300], [0.0, 0.01, 0.1][idx % 3]);
        for n_docs in SEGMENTS {
            let documents = (0..n_docs).map(|idx| {
                let mut document = TantivyDocument::default();
                document.add_code(code, &of(rng, idx));
                document.add_u64(number, idx as u64);
                document
            });
            writer.add_documents(documents.collect()).unwrap();
            writer.commit().unwrap();
        }
        writer.delete_query(numbers(number, 100, 160)).unwrap();
        writer.commit().unwrap();
        writer.close().unwrap();
        let mut queries: Vec<HashCode> = (0..5).map(|idx| of(rng, idx * 7)).collect();
        queries.push(random_code(rng, BITS));
        Corpus {
            index,
            code,
            number,
            queries,
        }
    }
}

fn places(result: &HammingResult) -> Vec<(u32, DocAddress)> {
    let place = |hit: &HammingHit| (hit.distance, hit.address);
    result.hits.iter().map(place).collect()
}

#[test]
fn threads_and_batches_never_show_in_an_answer() {
    let mut rng = seeded("parallel", 5);
    let corpus = Corpus::new(&mut rng);
    let searcher: Searcher = corpus.index.searcher().unwrap();
    assert_eq!(searcher.segment_readers().len(), SEGMENTS.len());
    let some = numbers(corpus.number, 0, 9_000);
    let kept = Arc::new(DocFilter::evaluate(&searcher, &*some).unwrap());
    let mut n_compared = 0;
    for engine in [EngineChoice::Auto, EngineChoice::Scan] {
        for is_filtered in [false, true] {
            for k in [1, 10, 700] {
                let query = |code: &HashCode, threads| {
                    let query = KnnQuery::new(corpus.code, code.clone(), k).engine(engine);
                    let query = query.threads(threads);
                    match is_filtered {
                        true => query.filter(some.box_clone()).doc_filter(kept.clone()),
                        false => query,
                    }
                };
                let single = |code| places(&query(code, 1).search(&searcher).unwrap());
                let singles: Vec<_> = corpus.queries.iter().map(single).collect();
                for threads in 1..=4 {
                    let case =
                        format!("{engine}, filtered {is_filtered}, k {k}, {threads} threads");
                    for (code, single) in corpus.queries.iter().zip(&singles) {
                        let found = query(code, threads).search(&searcher).unwrap();
                        assert_eq!(places(&found), *single, "{case}");
                        assert_eq!(found.stats.segments, SEGMENTS.len() as u64, "{case}");
                        n_compared += single.len();
                    }
                    let batch = query(&corpus.queries[0], threads);
                    let batch = batch.search_batch(&corpus.queries, &searcher).unwrap();
                    let batch: Vec<_> = batch.iter().map(places).collect();
                    assert_eq!(batch, singles, "{case}");
                }
            }
            for radius in [0, 60, 300] {
                let query = |code: &HashCode, threads| {
                    let query = HammingQuery::new(corpus.code, code.clone(), radius);
                    query.engine(engine).threads(threads)
                };
                let filter = is_filtered.then_some(&*some);
                let single = |code| places(&query(code, 1).search(&searcher, filter).unwrap());
                let singles: Vec<_> = corpus.queries.iter().map(single).collect();
                for threads in 1..=4 {
                    let case = format!(
                        "{engine}, filtered {is_filtered}, radius {radius}, {threads} threads"
                    );
                    for (code, single) in corpus.queries.iter().zip(&singles) {
                        let found = query(code, threads).search(&searcher, filter).unwrap();
                        assert_eq!(places(&found), *single, "{case}");
                        n_compared += single.len();
                    }
                    let batch = query(&corpus.queries[0], threads);
                    let batch = batch
                        .search_batch(&corpus.queries, &searcher, filter)
                        .unwrap();
                    let batch: Vec<_> = batch.iter().map(places).collect();
                    assert_eq!(batch, singles, "{case}");
                }
            }
        }
    }
    assert!(n_compared > 50_000, "{n_compared}");
}

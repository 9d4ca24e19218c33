//! Filters, kept and not, against sorting all distances: same documents, same order, ties included.
//!
//! Guards that no form of a filter changes an answer: list, set, or asking it about the nearest alone;
//! over shares from none to all, deletes, several segments, documents without a code, equal codes at the
//! k-th distance, and more asked for than there are. And that a kept filter refuses every searcher but its
//! own. `codes_scanned` tells which way was gone, and the last test that each was.

mod common;

use std::ops::Bound;
use std::sync::Arc;

use common::{Doc, Fields, group_query, near, random_code, schema, seeded};
use rand::Rng;
use tanhash::engine::EngineChoice;
use tanhash::plugin::{
    DocFilter, HammingQuery, HammingResult, HashIndex, HashPlugin, HybridSearch, KnnQuery,
    WriterOptions,
};
use tanhash::segment::TablePolicy;
use tanhash::{ErrorKind, HashCode};
use tantivy::merge_policy::NoMergePolicy;
use tantivy::query::{AllQuery, BooleanQuery, EmptyQuery, Occur, Query, RangeQuery, TermSetQuery};
use tantivy::{DocAddress, Searcher, Term};

/// A name, a query, and what it matches.
type Filter = (String, Box<dyn Query>, Box<dyn Fn(&Doc) -> bool>);

/// An index, and what is in it by address.
struct Corpus {
    index: HashIndex,
    fields: Fields,
    searcher: Searcher,
    docs: Vec<(DocAddress, Doc)>,
}

impl Corpus {
    fn new(
        rng: &mut impl Rng,
        bits: usize,
        n_segments: usize,
        n_docs: usize,
        deleted: f64,
        all_have_codes: bool,
    ) -> Corpus {
        let (schema, fields) = schema(bits, None);
        let tables = [
            TablePolicy::Always,
            TablePolicy::Never,
            TablePolicy::MihCopies,
        ][rng.random_range(0..3)];
        let plugin = HashPlugin::builder().tables(tables).build().unwrap();
        let index = HashIndex::create_in_ram(schema, plugin).unwrap();
        let options = WriterOptions {
            num_threads: 1,
            ..Default::default()
        };
        let writer = index.writer(options).unwrap();
        writer.set_merge_policy(Box::new(NoMergePolicy)).unwrap();
        let centers: Vec<HashCode> = (0..4).map(|_| random_code(rng, bits)).collect();
        let mut docs: Vec<Doc> = Vec::new();
        for segment in 0..n_segments {
            for _ in 0..n_docs {
                let key = docs.len() as u64;
                // Half of the codes are among few, so that ties abound.
                let code = match rng.random_range(0..4) {
                    0 => centers[rng.random_range(0..4)].clone(),
                    1 => near(rng, &centers[segment % 4], 2.0 / bits as f64),
                    _ => random_code(rng, bits),
                };
                let image = (all_have_codes || rng.random_bool(0.8)).then_some(code);
                docs.push(Doc {
                    key,
                    // Long stretches of equal ranks: filters by rank leave whole blocks out.
                    rank: key * 100 / (n_segments * n_docs) as u64,
                    image,
                    other: None,
                });
            }
            let new = &docs[segment * n_docs..];
            writer
                .add_documents(new.iter().map(|doc| doc.to_tantivy(&fields)).collect())
                .unwrap();
            writer.commit().unwrap();
        }
        let mut gone = vec![false; docs.len()];
        for doc in &docs {
            if rng.random_bool(deleted) {
                gone[doc.key as usize] = true;
                writer
                    .delete_term(Term::from_field_u64(fields.key, doc.key))
                    .unwrap();
            }
        }
        writer.commit().unwrap();
        writer.close().unwrap();
        let searcher = index.searcher().unwrap();
        let mut by_address = Vec::new();
        for (segment_ord, reader) in (0..).zip(searcher.segment_readers()) {
            let keys = reader.fast_fields().u64("key").unwrap();
            for doc_id in reader.doc_ids_alive() {
                let doc = &docs[keys.first(doc_id).unwrap() as usize];
                assert!(!gone[doc.key as usize]);
                by_address.push((
                    DocAddress {
                        segment_ord,
                        doc_id,
                    },
                    doc.clone(),
                ));
            }
        }
        assert_eq!(by_address.len(), gone.iter().filter(|gone| !**gone).count());
        Corpus {
            index,
            fields,
            searcher,
            docs: by_address,
        }
    }

    fn expected(&self, code: &HashCode, allowed: impl Fn(&Doc) -> bool) -> Vec<(u32, DocAddress)> {
        let mut all: Vec<(u32, DocAddress)> = (self.docs.iter())
            .filter(|(_, doc)| allowed(doc))
            .filter_map(|(address, doc)| {
                Some((doc.image.as_ref()?.distance(code).unwrap(), *address))
            })
            .collect();
        all.sort();
        all
    }

    fn filters(&self, rng: &mut impl Rng) -> Vec<Filter> {
        let mut filters: Vec<Filter> = vec![
            ("none".into(), Box::new(EmptyQuery), Box::new(|_| false)),
            ("all".into(), Box::new(AllQuery), Box::new(|_| true)),
            (
                "a third".into(),
                group_query(&self.fields, "third"),
                Box::new(|doc| doc.group() == "third"),
            ),
            (
                "two thirds".into(),
                group_query(&self.fields, "rest"),
                Box::new(|doc| doc.group() == "rest"),
            ),
        ];
        let low = rng.random_range(0..100);
        for high in [low, low + 9, low + 60] {
            let term = |rank| Term::from_field_u64(self.fields.rank, rank);
            let range = || -> Box<dyn Query> {
                let low = Bound::Included(term(low));
                Box::new(RangeQuery::new(low, Bound::Included(term(high))))
            };
            let ranks = move |doc: &Doc| (low..=high).contains(&doc.rank);
            let name = format!("ranks {low} to {high}");
            filters.push((name.clone(), range(), Box::new(ranks)));
            let both = vec![
                (Occur::Must, range()),
                (Occur::Must, group_query(&self.fields, "rest")),
            ];
            filters.push((
                format!("{name}, two thirds"),
                Box::new(BooleanQuery::new(both)),
                Box::new(move |doc| ranks(doc) && doc.group() == "rest"),
            ));
            let not = vec![
                (Occur::Must, Box::new(AllQuery) as Box<dyn Query>),
                (Occur::MustNot, range()),
            ];
            filters.push((
                format!("not {name}"),
                Box::new(BooleanQuery::new(not)),
                Box::new(move |doc| !ranks(doc)),
            ));
        }
        let keys: Vec<u64> = (0..5)
            .map(|_| self.docs[rng.random_range(0..self.docs.len())].1.key)
            .collect();
        let terms: Vec<Term> = keys
            .iter()
            .map(|&key| Term::from_field_u64(self.fields.key, key))
            .collect();
        filters.push((
            format!("keys {keys:?}"),
            Box::new(TermSetQuery::new(terms)),
            Box::new(move |doc| keys.contains(&doc.key)),
        ));
        filters
    }
}

fn hits(result: &HammingResult) -> Vec<(u32, DocAddress)> {
    let hits = result.hits.iter();
    hits.map(|hit| (hit.distance, hit.address)).collect()
}

const ENGINES: [EngineChoice; 3] = [EngineChoice::Auto, EngineChoice::Scan, EngineChoice::Mih];

#[test]
fn every_form_of_a_filter_gives_the_same_answer() {
    for case in 0..10 {
        let mut rng = seeded("filters", 300 + case);
        let bits = [16, 64, 200][case as usize % 3];
        let n_segments = rng.random_range(1..4);
        let n_docs = [40, 700, 3000][case as usize % 3] / n_segments;
        let deleted = [0.0, 0.3, 0.9][rng.random_range(0..3)];
        let corpus = Corpus::new(&mut rng, bits, n_segments, n_docs, deleted, case % 2 == 0);
        if corpus.docs.is_empty() {
            continue;
        }
        let image = corpus.fields.image;
        let queries = [
            random_code(&mut rng, bits),
            (corpus.docs.iter())
                .find_map(|(_, doc)| doc.image.clone())
                .unwrap(),
        ];
        let filters = corpus.filters(&mut rng);
        let other = Arc::new(DocFilter::evaluate(&corpus.searcher, &*filters[3].1).unwrap());
        for (name, query, allowed) in &filters {
            let what = format!("case {case}, {bits} bits, {n_segments} of {n_docs}, {name}");
            let kept = Arc::new(DocFilter::evaluate(&corpus.searcher, &**query).unwrap());
            if case % 2 == 0 {
                kept.prepare(&corpus.searcher, image).unwrap();
            }
            let n_allowed = corpus.docs.iter().filter(|(_, doc)| allowed(doc)).count();
            assert_eq!(kept.len(), n_allowed as u64, "{what}");
            for code in &queries {
                let all = corpus.expected(code, allowed);
                let two = corpus.expected(code, |doc| allowed(doc) && doc.group() == "rest");
                for (engine, k) in ENGINES.into_iter().zip([1, 10, 5000]).chain([
                    (EngineChoice::Auto, 10),
                    (EngineChoice::Auto, 5000),
                    (EngineChoice::Scan, 1),
                ]) {
                    let what = format!("{what}, {engine}, k {k}");
                    let knn = || KnnQuery::new(image, code.clone(), k).engine(engine);
                    let search = |knn: KnnQuery| hits(&knn.search(&corpus.searcher).unwrap());
                    let expected = &all[..k.min(all.len())];
                    assert_eq!(search(knn().filter(query.box_clone())), expected, "{what}");
                    assert_eq!(
                        search(knn().doc_filter(kept.clone())),
                        expected,
                        "{what}, kept"
                    );
                    let expected = &two[..k.min(two.len())];
                    let mixed = knn().doc_filter(other.clone()).filter(query.box_clone());
                    assert_eq!(search(mixed), expected, "{what}, kept and not");
                    let both = knn().doc_filter(other.clone()).doc_filter(kept.clone());
                    assert_eq!(search(both), expected, "{what}, two kept");
                }
                for (engine, radius) in ENGINES.into_iter().zip([0, bits / 8, bits]) {
                    let what = format!("{what}, {engine}, radius {radius}");
                    let within = |hit: &&(u32, DocAddress)| hit.0 <= radius as u32;
                    let range =
                        HammingQuery::new(image, code.clone(), radius as u32).engine(engine);
                    let search = |range: &HammingQuery, filter: Option<&dyn Query>| {
                        hits(&range.search(&corpus.searcher, filter).unwrap())
                    };
                    let expected: Vec<_> = all.iter().filter(within).copied().collect();
                    assert_eq!(search(&range, Some(&**query)), expected, "{what}");
                    let range = range.doc_filter(kept.clone());
                    assert_eq!(search(&range, None), expected, "{what}, kept");
                    let in_tantivy = corpus.searcher.search(&range, &tantivy::collector::Count);
                    assert_eq!(in_tantivy.unwrap(), expected.len(), "{what}, in tantivy");
                    let expected: Vec<_> = two.iter().filter(within).copied().collect();
                    let range = range.doc_filter(other.clone());
                    assert_eq!(search(&range, None), expected, "{what}, two kept");
                }
            }
        }
    }
}

/// Large enough for filters to be asked about the nearest alone, in one ring and in more.
#[test]
fn filters_are_asked_about_the_nearest_alone() {
    let mut rng = seeded("rings", 7);
    let corpus = Corpus::new(&mut rng, 16, 1, 60_000, 0.05, true);
    let (mut in_one, mut in_more, mut gave_up) = (0, 0, 0);
    let n_codes = 60_000;
    let filters: Vec<_> = (0..6).flat_map(|_| corpus.filters(&mut rng)).collect();
    for (name, query, allowed) in &filters {
        let code = random_code(&mut rng, 16);
        let all = corpus.expected(&code, allowed);
        for k in [1, 3, 30] {
            let result = KnnQuery::new(corpus.fields.image, code.clone(), k)
                .engine(EngineChoice::Scan)
                .filter(query.box_clone())
                .search(&corpus.searcher)
                .unwrap();
            assert_eq!(hits(&result), all[..k.min(all.len())], "{name}, k {k}");
            let stats = result.stats;
            assert_eq!((stats.segments, stats.segments_scan), (1, 1), "{name}");
            match stats.codes_scanned / n_codes {
                0 if stats.filtered_out == 0 => {}
                1 if stats.codes_scanned == n_codes => in_one += 1,
                scans if stats.codes_scanned == scans * n_codes => in_more += 1,
                _ => gave_up += 1,
            }
        }
    }
    assert!(
        in_one > 0 && in_more > 0 && gave_up > 0,
        "{in_one} searches of one ring, {in_more} of more, {gave_up} gave up"
    );
}

#[test]
fn kept_filters_combine() {
    let mut rng = seeded("combine", 11);
    let corpus = Corpus::new(&mut rng, 64, 3, 100, 0.2, false);
    let searcher = &corpus.searcher;
    let third = DocFilter::evaluate(searcher, &*group_query(&corpus.fields, "third")).unwrap();
    let picked: Vec<&(DocAddress, Doc)> = corpus.docs.iter().step_by(2).collect();
    let half = picked.iter().rev().map(|(address, _)| *address);
    let half = DocFilter::from_addresses(searcher, half).unwrap();
    assert_eq!(half.len(), picked.len() as u64);
    let in_half = |doc: &Doc| picked.iter().any(|(_, one)| one.key == doc.key);
    let check = |filter: DocFilter, holds: &dyn Fn(&Doc) -> bool| {
        for (address, doc) in &corpus.docs {
            assert_eq!(filter.contains(*address), holds(doc), "{}", doc.key);
        }
        let n_docs = corpus.docs.iter().filter(|(_, doc)| holds(doc)).count();
        assert_eq!(filter.len(), n_docs as u64);
        // As a clause of tantivy's own.
        let filter = Arc::new(filter);
        let count = searcher.search(&*filter.query(), &tantivy::collector::Count);
        assert_eq!(count.unwrap(), n_docs);
    };
    check(half.and(&third).unwrap(), &|doc| {
        in_half(doc) && doc.group() == "third"
    });
    check(half.or(&third).unwrap(), &|doc| {
        in_half(doc) || doc.group() == "third"
    });
    check(half.and_not(&third).unwrap(), &|doc| {
        in_half(doc) && doc.group() != "third"
    });
    let none = half.and_not(&half).unwrap();
    assert!(none.is_empty());
    check(none, &|_| false);
    // Deleted documents are left out, unknown ones refused.
    let everything = searcher.segment_readers().iter().enumerate();
    let everything = everything.flat_map(|(segment_ord, reader)| {
        (0..reader.max_doc()).map(move |doc_id| DocAddress::new(segment_ord as u32, doc_id))
    });
    let live = DocFilter::from_addresses(searcher, everything).unwrap();
    assert_eq!(live.len(), searcher.num_docs());
    for address in [DocAddress::new(3, 0), DocAddress::new(0, 100)] {
        let error = DocFilter::from_addresses(searcher, [address]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidArgument(_)));
    }
}

#[test]
fn hybrid_search_takes_kept_filters() {
    let mut rng = seeded("hybrid", 12);
    let corpus = Corpus::new(&mut rng, 64, 2, 100, 0.1, false);
    let code = random_code(&mut rng, 64);
    let search = |filtered: &dyn Fn(HybridSearch) -> HybridSearch| {
        let search = HybridSearch::new()
            .text(group_query(&corpus.fields, "third"))
            .knn(KnnQuery::new(corpus.fields.image, code.clone(), 20))
            .range(HammingQuery::new(corpus.fields.image, code.clone(), 30))
            .limit(1000);
        let search = filtered(search);
        let matches = (corpus.searcher)
            .search(&*search.match_query(), &tantivy::collector::Count)
            .unwrap();
        (search.search(&corpus.searcher).unwrap().hits, matches)
    };
    let term = || {
        let low = Bound::Included(Term::from_field_u64(corpus.fields.rank, 20));
        Box::new(RangeQuery::new(low, Bound::Unbounded))
    };
    let kept = Arc::new(DocFilter::evaluate(&corpus.searcher, &*term()).unwrap());
    let expected = search(&|search| search.filter(term()));
    assert_eq!(search(&|search| search.doc_filter(kept.clone())), expected);
    let twice = search(&|search| search.doc_filter(kept.clone()).filter(term()));
    assert_eq!(twice, expected);
    assert!(!expected.0.is_empty());
}

#[test]
fn a_kept_filter_of_another_searcher_is_refused() {
    let mut rng = seeded("stale", 13);
    let corpus = Corpus::new(&mut rng, 64, 2, 50, 0.0, true);
    let fields = corpus.fields;
    let kept = DocFilter::evaluate(&corpus.searcher, &AllQuery).unwrap();
    let kept = Arc::new(kept);
    let code = random_code(&mut rng, 64);
    let refused = |searcher: &Searcher, what: &str| {
        assert!(!kept.fits(searcher), "{what}");
        let knn = KnnQuery::new(fields.image, code.clone(), 3).doc_filter(kept.clone());
        let range = HammingQuery::new(fields.image, code.clone(), 64).doc_filter(kept.clone());
        let errors = [
            knn.search(searcher).unwrap_err(),
            range.search(searcher, None).unwrap_err(),
            kept.prepare(searcher, fields.image).unwrap_err(),
            kept.and(&DocFilter::evaluate(searcher, &AllQuery).unwrap())
                .unwrap_err(),
        ];
        for error in errors {
            assert!(
                matches!(error.kind(), ErrorKind::InvalidArgument(_)),
                "{what}"
            );
            assert!(error.to_string().contains("evaluate it anew"), "{error}");
        }
        for query in [&knn as &dyn Query, &range, &*kept.query()] {
            assert!(
                searcher.search(query, &tantivy::collector::Count).is_err(),
                "{what}"
            );
        }
    };
    let works = |searcher: &Searcher| {
        let knn = KnnQuery::new(fields.image, code.clone(), 3).doc_filter(kept.clone());
        assert_eq!(knn.search(searcher).unwrap().hits.len(), 3);
    };
    works(&corpus.searcher);
    works(&corpus.index.searcher().unwrap());
    let writer = corpus.index.writer(WriterOptions::default()).unwrap();
    writer.set_merge_policy(Box::new(NoMergePolicy)).unwrap();

    // Kept filters cannot say what to delete.
    let range = HammingQuery::new(fields.image, code.clone(), 64).doc_filter(kept.clone());
    assert!(writer.delete_query(Box::new(range)).is_err());

    writer
        .delete_term(Term::from_field_u64(fields.key, 7))
        .unwrap();
    writer.commit().unwrap();
    refused(&corpus.index.searcher().unwrap(), "a document was deleted");
    works(&corpus.searcher);

    let doc = Doc::random(&mut rng, 1000, 64);
    writer.add_document(doc.to_tantivy(&fields)).unwrap();
    writer.commit().unwrap();
    refused(&corpus.index.searcher().unwrap(), "a segment was added");

    writer.merge_all().unwrap();
    refused(&corpus.index.searcher().unwrap(), "segments were merged");

    let other = Corpus::new(&mut rng, 64, 2, 50, 0.0, true);
    refused(&other.searcher, "another index");
}

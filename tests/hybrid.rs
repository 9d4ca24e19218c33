//! Text and codes in one ranking. Guards that filters act before every cut, that each hit shows where it came
//! from, that thresholds act per leg, and that pages fit together.

mod common;

use common::{Doc, Fields, group_query, key_of, near, random_code, schema, seeded};
use tanhash::HashCode;
use tanhash::plugin::{
    Fusion, HammingQuery, HashIndex, HashPlugin, HybridSearch, KnnQuery, Leg, WriterOptions,
};
use tantivy::collector::Count;
use tantivy::query::{Query, TermQuery};
use tantivy::schema::IndexRecordOption;
use tantivy::{Searcher, TantivyDocument, Term};

/// 300 documents round three codes; documents 0, 10, 20, .. carry the word `red` in a title of growing
/// length, so that their text scores differ.
fn corpus() -> (HashIndex, Fields, Vec<HashCode>) {
    let (schema, fields) = schema(64, None);
    let index = HashIndex::create_in_ram(schema, HashPlugin::new()).unwrap();
    let mut rng = seeded("corpus", 8);
    let centers: Vec<HashCode> = (0..3).map(|_| random_code(&mut rng, 64)).collect();
    let writer = index
        .writer(WriterOptions {
            num_threads: 1,
            ..Default::default()
        })
        .unwrap();
    for key in 0..300u64 {
        let image = Some(near(&mut rng, &centers[key as usize % 3], 0.1));
        let mut document = Doc {
            key,
            rank: key,
            image,
            other: None,
        }
        .to_tantivy(&fields);
        if key.is_multiple_of(10) {
            document.add_text(
                fields.title,
                format!("red {}", "filler ".repeat(key as usize / 10)),
            );
        }
        writer.add_document(document).unwrap();
        if key % 100 == 99 {
            writer.commit().unwrap();
        }
    }
    (index, fields, centers)
}

fn red(fields: &Fields) -> Box<dyn Query> {
    let term = Term::from_field_text(fields.title, "red");
    Box::new(TermQuery::new(term, IndexRecordOption::WithFreqs))
}

fn keys(searcher: &Searcher, fields: &Fields, result: &tanhash::plugin::HybridResult) -> Vec<u64> {
    result
        .hits
        .iter()
        .map(|hit| key_of(searcher, fields, hit.address))
        .collect()
}

#[test]
fn every_hit_shows_its_legs() {
    let (index, fields, centers) = corpus();
    let searcher = index.searcher().unwrap();
    let knn = KnnQuery::new(fields.image, centers[0].clone(), 50);
    let search = HybridSearch::new()
        .text(red(&fields))
        .knn(knn.clone())
        .limit(100);
    let result = search.search(&searcher).unwrap();
    assert_eq!(result.legs[0].n_hits, 30);
    assert_eq!(result.legs[1].n_hits, 50);
    assert!(result.legs[0].stats.is_none() && result.legs[1].stats.is_some());
    assert_eq!(result.total, result.hits.len());
    let nearest = knn.search(&searcher).unwrap().hits;
    for hit in &result.hits {
        let key = key_of(&searcher, &fields, hit.address);
        assert_eq!(hit.legs[0].is_some(), key.is_multiple_of(10));
        let expected = nearest.iter().find(|knn| knn.address == hit.address);
        assert_eq!(
            hit.legs[1].and_then(|leg| leg.distance),
            expected.map(|knn| knn.distance)
        );
        let sum: f32 = hit.legs.iter().flatten().map(|leg| leg.contribution).sum();
        assert!((hit.score - sum).abs() < 1e-6);
        for leg in hit.legs.iter().flatten() {
            assert!((leg.contribution - 1.0 / (60.0 + leg.rank as f32)).abs() < 1e-6);
        }
    }
    // Equal distances share a rank.
    let ranks: Vec<(u32, usize)> = result
        .hits
        .iter()
        .filter_map(|hit| hit.legs[1].map(|leg| (leg.distance.unwrap(), leg.rank)))
        .collect();
    for (distance, rank) in &ranks {
        let nearer = ranks.iter().filter(|(other, _)| other < distance).count();
        assert_eq!(*rank, nearer + 1);
    }
    // Both legs agree on the documents that lead.
    assert!(result.hits[0].legs.iter().all(Option::is_some));
}

#[test]
fn the_filter_acts_inside_every_leg() {
    let (index, fields, centers) = corpus();
    let searcher = index.searcher().unwrap();
    let range = HammingQuery::new(fields.image, centers[0].clone(), 20);
    let search = HybridSearch::new()
        .text(red(&fields))
        .knn(KnnQuery::new(fields.image, centers[1].clone(), 40))
        .range(range)
        .filter(group_query(&fields, "third"))
        .limit(300);
    let result = search.search(&searcher).unwrap();
    assert_eq!(
        result.legs.iter().map(|leg| leg.n_hits).collect::<Vec<_>>(),
        [10, 40, 100]
    );
    assert!(
        keys(&searcher, &fields, &result)
            .iter()
            .all(|key| key.is_multiple_of(3))
    );
    assert_eq!(
        searcher.search(&search.match_query(), &Count).unwrap(),
        result.total
    );
}

#[test]
fn thresholds_act_per_leg_before_fusion() {
    let (index, fields, centers) = corpus();
    let searcher = index.searcher().unwrap();
    let all = HybridSearch::new()
        .text(red(&fields))
        .limit(100)
        .search(&searcher)
        .unwrap();
    let cut = all.hits[9].legs[0].unwrap().score;
    let knn = KnnQuery::new(fields.image, centers[0].clone(), 300).max_distance(12);
    let search = HybridSearch::new()
        .leg(Leg::text(red(&fields)).named("title").min_score(cut))
        .leg(Leg::knn(knn).weight(2.0))
        .limit(300);
    let result = search.search(&searcher).unwrap();
    assert_eq!(result.legs[0].name, "title");
    assert_eq!(result.legs[0].n_hits, 10);
    for hit in &result.hits {
        assert!(hit.legs[0].is_none_or(|leg| leg.score >= cut));
        assert!(hit.legs[1].is_none_or(|leg| leg.distance.unwrap() <= 12));
        assert!(
            hit.legs[1]
                .is_none_or(|leg| (leg.contribution - 2.0 / (60.0 + leg.rank as f32)).abs() < 1e-6)
        );
    }
}

#[test]
fn pages_fit_together() {
    let (index, fields, centers) = corpus();
    let searcher = index.searcher().unwrap();
    for fusion in [Fusion::default(), Fusion::linear()] {
        let search = |limit, offset| {
            let knn = KnnQuery::new(fields.image, centers[2].clone(), 120);
            let search = HybridSearch::new()
                .text(red(&fields))
                .knn(knn)
                .fusion(fusion);
            search
                .limit(limit)
                .offset(offset)
                .search(&searcher)
                .unwrap()
        };
        let whole = keys(&searcher, &fields, &search(1_000, 0));
        let total = search(7, 0).total;
        let pages: Vec<u64> = (0..total)
            .step_by(7)
            .flat_map(|offset| keys(&searcher, &fields, &search(7, offset)))
            .collect();
        assert_eq!(pages, whole);
        let distinct: std::collections::BTreeSet<&u64> = whole.iter().collect();
        assert_eq!(distinct.len(), total);
        assert!(search(7, total + 5).hits.is_empty());
    }
}

#[test]
fn legs_may_find_nothing_and_searches_must_make_sense() {
    let (index, fields, centers) = corpus();
    let searcher = index.searcher().unwrap();
    let term = Term::from_field_text(fields.title, "nowhere");
    let nowhere = Box::new(TermQuery::new(term, IndexRecordOption::WithFreqs));
    let knn = KnnQuery::new(fields.image, centers[0].clone(), 5);
    let with = HybridSearch::new()
        .text(nowhere)
        .knn(knn.clone())
        .search(&searcher)
        .unwrap();
    let without = HybridSearch::new()
        .knn(knn.clone())
        .search(&searcher)
        .unwrap();
    assert_eq!(
        keys(&searcher, &fields, &with),
        keys(&searcher, &fields, &without)
    );
    for bad in [
        HybridSearch::new(),
        HybridSearch::new().knn(knn.clone()).limit(0),
        HybridSearch::new().knn(knn.clone()).rank_window(0),
        HybridSearch::new().leg(Leg::knn(knn.clone()).weight(-1.0)),
        HybridSearch::new().knn(KnnQuery::new(fields.image, centers[0].clone(), 0)),
    ] {
        assert!(bad.search(&searcher).is_err());
    }
    let document: TantivyDocument = searcher.doc(without.hits[0].address).unwrap();
    assert!(document.get_first(fields.key).is_some());
}

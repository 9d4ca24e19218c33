//! What the integration tests share: seeded codes, a small index, and a model of what it must answer.

#![allow(dead_code)]

pub mod damage;
pub mod directory;
pub mod encoder;
#[cfg(feature = "cli")]
pub mod program;

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tanhash::plugin::{HashDocumentExt, HashFieldOptions, HashIndex, SchemaBuilderExt};
use tanhash::{CodeLen, HashCode};
use tantivy::schema::{FAST, Field, INDEXED, STORED, STRING, Schema, TEXT, Value};
use tantivy::{Searcher, TantivyDocument, Term};

/// A generator whose seed is printed, and can be set by `TANHASH_SEED` to repeat a failure.
pub fn seeded(name: &str, default: u64) -> ChaCha8Rng {
    let seed = std::env::var("TANHASH_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(default);
    println!("{name}: TANHASH_SEED={seed}");
    ChaCha8Rng::seed_from_u64(seed)
}

/// A uniform code.
pub fn random_code(rng: &mut impl Rng, bits: usize) -> HashCode {
    let len = CodeLen::new(bits).unwrap();
    let words: Vec<u64> = (0..len.words()).map(|_| rng.random()).collect();
    HashCode::from_words(len, &words).unwrap()
}

/// A code with each bit of another flipped with probability `p`.
pub fn near(rng: &mut impl Rng, center: &HashCode, p: f64) -> HashCode {
    let mut code = center.clone();
    for bit in 0..code.code_len().bits() {
        if rng.random_bool(p) {
            let flipped = !code.bit(bit);
            code.set_bit(bit, flipped);
        }
    }
    code
}

/// The fields of the test schema.
#[derive(Clone, Copy, Debug)]
pub struct Fields {
    pub key: Field,
    pub rank: Field,
    pub title: Field,
    pub group: Field,
    pub image: Field,
    pub other: Field,
}

/// A schema with a key, a number to sort and filter by, text, a group, and two hash fields.
pub fn schema(bits: usize, model_id: Option<&str>) -> (Schema, Fields) {
    let mut builder = Schema::builder();
    let image = HashFieldOptions {
        bits,
        model_id: model_id.map(str::to_owned),
    };
    let fields = Fields {
        key: builder.add_u64_field("key", INDEXED | STORED | FAST),
        rank: builder.add_u64_field("rank", INDEXED | FAST),
        title: builder.add_text_field("title", TEXT | STORED),
        group: builder.add_text_field("group", STRING),
        image: builder.add_hash_field("image", image).unwrap(),
        other: builder
            .add_hash_field("other", HashFieldOptions::new(16))
            .unwrap(),
    };
    (builder.build(), fields)
}

/// A document of the test schema.
#[derive(Clone, Debug, PartialEq)]
pub struct Doc {
    pub key: u64,
    pub rank: u64,
    pub image: Option<HashCode>,
    pub other: Option<HashCode>,
}

impl Doc {
    pub fn random(rng: &mut impl Rng, key: u64, bits: usize) -> Doc {
        let image = rng.random_bool(0.8).then(|| random_code(rng, bits));
        let other = rng.random_bool(0.3).then(|| random_code(rng, 16));
        // Few ranks, so that sorted indexes meet ties.
        Doc {
            key,
            rank: rng.random_range(0..8),
            image,
            other,
        }
    }

    pub fn group(&self) -> &'static str {
        if self.key.is_multiple_of(3) {
            "third"
        } else {
            "rest"
        }
    }

    pub fn to_tantivy(&self, fields: &Fields) -> TantivyDocument {
        let mut document = TantivyDocument::new();
        document.add_u64(fields.key, self.key);
        document.add_u64(fields.rank, self.rank);
        document.add_text(fields.title, format!("document number{}", self.key));
        document.add_text(fields.group, self.group());
        if let Some(code) = &self.image {
            document.add_code(fields.image, code);
        }
        if let Some(code) = &self.other {
            document.add_code(fields.other, code);
        }
        document
    }
}

/// The key of a stored document.
pub fn key_of(searcher: &Searcher, fields: &Fields, address: tantivy::DocAddress) -> u64 {
    let document: TantivyDocument = searcher.doc(address).unwrap();
    document.get_first(fields.key).unwrap().as_u64().unwrap()
}

/// A term query for a group.
pub fn group_query(fields: &Fields, group: &str) -> Box<dyn tantivy::query::Query> {
    let term = Term::from_field_text(fields.group, group);
    Box::new(tantivy::query::TermQuery::new(
        term,
        tantivy::schema::IndexRecordOption::Basic,
    ))
}

/// Fails unless the index holds exactly the model's documents with their codes, and finds their exact
/// neighbors. Ties are ordered by document address, so keys are compared with their distances as sets
/// per distance and the order of addresses is checked by itself.
pub fn check_against_model(
    index: &HashIndex,
    fields: &Fields,
    model: &BTreeMap<u64, Doc>,
    query: &HashCode,
    what: &str,
) {
    use tanhash::plugin::{HammingQuery, KnnQuery};
    let searcher = index.searcher().unwrap();
    let mut found = 0;
    for (segment_ord, reader) in (0..).zip(searcher.segment_readers()) {
        for doc_id in reader.doc_ids_alive() {
            found += 1;
            let address = tantivy::DocAddress {
                segment_ord,
                doc_id,
            };
            let key = key_of(&searcher, fields, address);
            let doc = model
                .get(&key)
                .unwrap_or_else(|| panic!("{what}: {key} resurfaced"));
            assert_eq!(
                index.code(&searcher, fields.image, address).unwrap(),
                doc.image,
                "{what}: {key}"
            );
            assert_eq!(
                index.code(&searcher, fields.other, address).unwrap(),
                doc.other,
                "{what}: {key}"
            );
        }
    }
    assert_eq!(found, model.len(), "{what}: live documents");

    let mut expected: Vec<(u32, u64)> = model
        .values()
        .filter_map(|doc| Some((doc.image.as_ref()?.distance(query).unwrap(), doc.key)))
        .collect();
    expected.sort_unstable();
    for k in [1, 5, expected.len().max(1), expected.len() + 10] {
        for third in [false, true] {
            let wanted: Vec<(u32, u64)> = expected
                .iter()
                .filter(|(_, key)| !third || model[key].group() == "third")
                .take(k)
                .copied()
                .collect();
            let mut knn = KnnQuery::new(fields.image, query.clone(), k);
            if third {
                knn = knn.filter(group_query(fields, "third"));
            }
            let result = knn.search(&searcher).unwrap();
            let distances: Vec<u32> = result.hits.iter().map(|hit| hit.distance).collect();
            assert_eq!(
                distances,
                wanted.iter().map(|hit| hit.0).collect::<Vec<_>>(),
                "{what}: k = {k}"
            );
            assert!(
                result
                    .hits
                    .is_sorted_by_key(|hit| (hit.distance, hit.address)),
                "{what}: ties"
            );
            for hit in &result.hits {
                let key = key_of(&searcher, fields, hit.address);
                let doc = &model[&key];
                assert_eq!(
                    doc.image.as_ref().unwrap().distance(query).unwrap(),
                    hit.distance,
                    "{what}"
                );
                assert!(!third || doc.group() == "third", "{what}: filter");
            }
        }
    }
    let bits = query.code_len().bits() as u32;
    for radius in [0, bits / 4, bits / 2, bits] {
        let wanted: Vec<(u32, u64)> = expected
            .iter()
            .filter(|(distance, _)| *distance <= radius)
            .copied()
            .collect();
        let result = HammingQuery::new(fields.image, query.clone(), radius)
            .search(&searcher, None)
            .unwrap();
        let mut got: Vec<(u32, u64)> = result
            .hits
            .iter()
            .map(|hit| (hit.distance, key_of(&searcher, fields, hit.address)))
            .collect();
        got.sort_unstable();
        assert_eq!(got, wanted, "{what}: radius {radius}");
    }
}

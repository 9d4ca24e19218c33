//! Near duplicates against comparing all pairs one by one: same pairs, same order, same groups, same counts.
//!
//! Guards that no engine, number of threads or way to lay out an index changes what is found: uniform and
//! clustered codes, copies, several segments, deletes, documents without a code, narrow and wide codes.
//! And that copies cost neither quadratic time nor memory, and a caller who stops is obeyed.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use common::{Doc, Fields, near, random_code, schema, seeded};
use rand::Rng;
use tanhash::engine::EngineChoice;
use tanhash::plugin::{Dedup, HashIndex, HashPlugin, Pair, WriterOptions};
use tanhash::segment::TablePolicy;
use tanhash::{ErrorKind, HashCode};
use tantivy::merge_policy::NoMergePolicy;
use tantivy::{DocAddress, Searcher, Term};

const ENGINES: [EngineChoice; 4] = [
    EngineChoice::Auto,
    EngineChoice::Scan,
    EngineChoice::Mih,
    EngineChoice::Cluster,
];

/// An index, and the codes of its live documents by address.
struct Corpus {
    fields: Fields,
    searcher: Searcher,
    codes: Vec<(DocAddress, HashCode)>,
    _index: HashIndex,
}

impl Corpus {
    /// `images` are the codes of each segment's documents; a share of the documents is deleted.
    fn new(
        rng: &mut impl Rng,
        bits: usize,
        tables: TablePolicy,
        segments: &[Vec<Option<HashCode>>],
        deleted: f64,
    ) -> Corpus {
        let (schema, fields) = schema(bits, None);
        let plugin = HashPlugin::builder().tables(tables).build().unwrap();
        let index = HashIndex::create_in_ram(schema, plugin).unwrap();
        let options = WriterOptions {
            num_threads: 1,
            ..Default::default()
        };
        let writer = index.writer(options).unwrap();
        writer.set_merge_policy(Box::new(NoMergePolicy)).unwrap();
        let mut key = 0;
        for images in segments {
            for image in images {
                let doc = Doc {
                    key,
                    rank: 0,
                    image: image.clone(),
                    other: None,
                };
                writer.add_document(doc.to_tantivy(&fields)).unwrap();
                key += 1;
            }
            writer.commit().unwrap();
        }
        for key in 0..key {
            if rng.random_bool(deleted) {
                let term = Term::from_field_u64(fields.key, key);
                writer.delete_term(term).unwrap();
            }
        }
        writer.commit().unwrap();
        writer.close().unwrap();
        let images: Vec<&Option<HashCode>> = segments.iter().flatten().collect();
        let searcher = index.searcher().unwrap();
        let mut codes = Vec::new();
        for (segment_ord, reader) in (0..).zip(searcher.segment_readers()) {
            let keys = reader.fast_fields().u64("key").unwrap();
            for doc_id in reader.doc_ids_alive() {
                let key = keys.first(doc_id).unwrap() as usize;
                if let Some(code) = images[key] {
                    codes.push((DocAddress::new(segment_ord, doc_id), code.clone()));
                }
            }
        }
        codes.sort_unstable_by_key(|(address, _)| *address);
        Corpus {
            fields,
            searcher,
            codes,
            _index: index,
        }
    }

    /// All pairs, by definition.
    fn pairs(&self, radius: u32) -> Vec<Pair> {
        let mut pairs = Vec::new();
        for (place, (left, left_code)) in self.codes.iter().enumerate() {
            for (right, right_code) in &self.codes[place + 1..] {
                let distance = left_code.distance(right_code).unwrap();
                if distance <= radius {
                    pairs.push(Pair {
                        left: *left,
                        right: *right,
                        distance,
                    });
                }
            }
        }
        pairs
    }

    /// The connected components of pairs, by walking them.
    fn groups(&self, pairs: &[Pair]) -> Vec<Vec<(DocAddress, u32)>> {
        let place = |address: DocAddress| {
            let found = self.codes.binary_search_by_key(&address, |(of, _)| *of);
            found.unwrap()
        };
        let mut near = vec![Vec::new(); self.codes.len()];
        for pair in pairs {
            near[place(pair.left)].push(place(pair.right));
            near[place(pair.right)].push(place(pair.left));
        }
        let mut seen = vec![false; self.codes.len()];
        let mut groups = Vec::new();
        for start in 0..self.codes.len() {
            if seen[start] || near[start].is_empty() {
                continue;
            }
            let (mut members, mut open) = (Vec::new(), vec![start]);
            seen[start] = true;
            while let Some(at) = open.pop() {
                members.push(at);
                for &next in &near[at] {
                    if !std::mem::replace(&mut seen[next], true) {
                        open.push(next);
                    }
                }
            }
            members.sort_unstable();
            let distance = |at: usize| self.codes[at].1.distance(&self.codes[start].1).unwrap();
            let members = members.iter().map(|&at| (self.codes[at].0, distance(at)));
            groups.push(members.collect());
        }
        groups
    }

    fn dedup(&self, radius: u32) -> Dedup {
        Dedup::new(self.fields.image, radius)
    }

    /// Compares everything with the definition.
    fn check(&self, radius: u32, what: &str) {
        let pairs = self.pairs(radius);
        let groups = self.groups(&pairs);
        let mut distinct: Vec<&[u64]> = self.codes.iter().map(|(_, code)| code.words()).collect();
        distinct.sort_unstable();
        distinct.dedup();
        for engine in ENGINES {
            for threads in [1, 3] {
                let what = format!("{what}: radius {radius}, {engine}, {threads} threads");
                let dedup = self.dedup(radius).engine(engine).threads(threads);
                let mut found = Vec::new();
                let counts = dedup
                    .pairs(&self.searcher, |pair| {
                        found.push(pair);
                        ControlFlow::Continue(())
                    })
                    .unwrap();
                assert_eq!(found.len(), pairs.len(), "{what}: pairs");
                assert_eq!(found, pairs, "{what}: pairs");
                let found = dedup.groups(&self.searcher).unwrap();
                let as_tuples: Vec<Vec<(DocAddress, u32)>> = found
                    .iter()
                    .map(|group| group.iter().map(|of| (of.address, of.distance)).collect())
                    .collect();
                assert_eq!(as_tuples, groups, "{what}: groups");
                let members: usize = groups.iter().map(Vec::len).sum();
                assert_eq!(found.len(), groups.len(), "{what}");
                assert_eq!(found.duplicates(), members - groups.len(), "{what}");
                for counts in [
                    &counts,
                    found.counts(),
                    &dedup.count(&self.searcher).unwrap(),
                ] {
                    assert_eq!(counts.documents, self.searcher.num_docs(), "{what}");
                    assert_eq!(counts.codes, self.codes.len() as u64, "{what}");
                    assert_eq!(counts.distinct, distinct.len() as u64, "{what}");
                    assert_eq!(counts.pairs, pairs.len() as u64, "{what}");
                }
            }
        }
    }
}

/// What codes are like.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Uniform,
    Clustered,
    Copies,
}

fn image(rng: &mut impl Rng, kind: Kind, centers: &[HashCode]) -> HashCode {
    let bits = centers[0].code_len().bits();
    let center = &centers[rng.random_range(0..centers.len())];
    match kind {
        Kind::Uniform => random_code(rng, bits),
        Kind::Clustered => near(rng, center, 4.0 / bits as f64),
        Kind::Copies if rng.random_bool(0.5) => center.clone(),
        Kind::Copies => near(rng, center, 1.0 / bits as f64),
    }
}

#[test]
fn pairs_and_groups_equal_all_comparisons() {
    let mut rng = seeded("dedup", 51);
    for (bits, kind, tables, n_segments, with_code, deleted) in [
        (64, Kind::Uniform, TablePolicy::Always, 1, 1.0, 0.0),
        (64, Kind::Clustered, TablePolicy::Always, 3, 0.8, 0.2),
        (64, Kind::Copies, TablePolicy::Clusters, 2, 0.9, 0.3),
        (64, Kind::Clustered, TablePolicy::MihCopies, 2, 0.9, 0.3),
        (48, Kind::Copies, TablePolicy::Never, 4, 1.0, 0.0),
        (256, Kind::Clustered, TablePolicy::Clusters, 2, 0.7, 0.5),
        (200, Kind::Copies, TablePolicy::Mih, 1, 1.0, 0.1),
        (16, Kind::Uniform, TablePolicy::Never, 2, 0.5, 0.1),
    ] {
        let centers: Vec<HashCode> = (0..12).map(|_| random_code(&mut rng, bits)).collect();
        let segments: Vec<Vec<Option<HashCode>>> = (0..n_segments)
            .map(|_| {
                let images = (0..420 / n_segments).map(|_| {
                    let has_code = rng.random_bool(with_code);
                    has_code.then(|| image(&mut rng, kind, &centers))
                });
                images.collect()
            })
            .collect();
        let corpus = Corpus::new(&mut rng, bits, tables, &segments, deleted);
        let what = format!("{bits} bits, {kind:?}, {tables:?}, {n_segments} segments");
        for radius in [0, 1, 4, bits as u32 / 4, bits as u32] {
            corpus.check(radius, &what);
        }
    }
}

/// Enough codes for clusters and for several chunks of queries. `Auto` has its choice here.
#[test]
fn larger_sets_are_joined_in_chunks() {
    let mut rng = seeded("dedup_larger", 52);
    for kind in [Kind::Uniform, Kind::Clustered] {
        let centers: Vec<HashCode> = (0..300).map(|_| random_code(&mut rng, 64)).collect();
        let segments: Vec<Vec<Option<HashCode>>> = (0..2)
            .map(|_| {
                let images = (0..2600).map(|_| {
                    let has_code = rng.random_bool(0.97);
                    has_code.then(|| image(&mut rng, kind, &centers))
                });
                images.collect()
            })
            .collect();
        let corpus = Corpus::new(&mut rng, 64, TablePolicy::Auto, &segments, 0.1);
        for radius in [4, 20] {
            corpus.check(radius, &format!("larger, {kind:?}"));
        }
    }
}

#[test]
fn an_index_without_codes_has_no_pairs() {
    let mut rng = seeded("dedup_none", 53);
    for segments in [vec![], vec![vec![None, None]]] {
        let corpus = Corpus::new(&mut rng, 64, TablePolicy::Always, &segments, 0.0);
        corpus.check(3, "no codes");
    }
    let one = vec![vec![None, Some(random_code(&mut rng, 64))]];
    let corpus = Corpus::new(&mut rng, 64, TablePolicy::Always, &one, 0.0);
    corpus.check(64, "one code");
}

#[test]
fn a_hundred_thousand_copies_are_one_search() {
    let mut rng = seeded("dedup_copies", 54);
    let n_copies = 100_000u64;
    let code = random_code(&mut rng, 64);
    let mut images = vec![Some(code.clone()); n_copies as usize];
    let mut other = code;
    (0..3).for_each(|bit| other.set_bit(bit, !other.bit(bit)));
    images.push(Some(other));
    images.push(Some(random_code(&mut rng, 64)));
    let corpus = Corpus::new(&mut rng, 64, TablePolicy::Auto, &[images], 0.0);
    let started = Instant::now();
    for radius in [0, 2, 3] {
        for engine in ENGINES {
            let dedup = corpus.dedup(radius).engine(engine);
            let groups = dedup.groups(&corpus.searcher).unwrap();
            let members = n_copies + u64::from(radius == 3);
            let sizes: Vec<usize> = groups.iter().map(<[_]>::len).collect();
            assert_eq!(sizes, [members as usize]);
            assert_eq!(groups.duplicates() as u64, members - 1);
            let counts = groups.counts();
            assert_eq!(counts.pairs, members * (members - 1) / 2);
            assert_eq!(counts.distinct, 3);
            // What was compared says that no copy was searched for.
            assert!(counts.stats.segments <= 3, "{:?}", counts.stats);
        }
    }
    // Minutes if it were quadratic.
    assert!(started.elapsed().as_secs() < 60);

    // All pairs of them are too many to wait for; the first come at once, in order.
    let mut n_pairs = 0u32;
    let counts = corpus
        .dedup(0)
        .threads(4)
        .pairs(&corpus.searcher, |pair| {
            n_pairs += 1;
            assert_eq!((pair.left.doc_id, pair.right.doc_id), (0, n_pairs));
            match n_pairs == 50_000 {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })
        .unwrap();
    assert_eq!((n_pairs, counts.pairs), (50_000, 50_000));
}

#[test]
fn a_caller_may_panic() {
    let mut rng = seeded("dedup_panic", 57);
    let images = (0..9000).map(|_| Some(random_code(&mut rng, 64))).collect();
    let corpus = Corpus::new(&mut rng, 64, TablePolicy::Never, &[images], 0.0);
    let dedup = corpus.dedup(64).threads(4);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        dedup.pairs(&corpus.searcher, |_| panic!("the caller's own"))
    }));
    let message = panicked.unwrap_err();
    assert_eq!(message.downcast_ref(), Some(&"the caller's own"));
}

#[test]
fn progress_ends_at_all_codes() {
    let mut rng = seeded("dedup_progress", 55);
    let images = (0..3000).map(|_| Some(random_code(&mut rng, 64))).collect();
    let corpus = Corpus::new(&mut rng, 64, TablePolicy::Never, &[images], 0.0);
    let searched = Arc::new(AtomicU64::new(0));
    let told = searched.clone();
    let dedup = corpus.dedup(5).threads(2).progress(move |progress| {
        assert_eq!(progress.codes, 3000);
        let before = told.swap(progress.searched, Ordering::Relaxed);
        assert!(before <= progress.searched);
    });
    dedup.count(&corpus.searcher).unwrap();
    assert_eq!(searched.load(Ordering::Relaxed), 3000);
}

#[test]
fn wrong_questions_are_refused() {
    let mut rng = seeded("dedup_refused", 56);
    let corpus = Corpus::new(&mut rng, 64, TablePolicy::Never, &[vec![None]], 0.0);
    let refused = |dedup: Dedup, expected: &str| {
        for error in [
            dedup.groups(&corpus.searcher).unwrap_err(),
            dedup.count(&corpus.searcher).unwrap_err(),
            dedup
                .pairs(&corpus.searcher, |_| ControlFlow::Continue(()))
                .unwrap_err(),
        ] {
            assert!(matches!(error.kind(), ErrorKind::InvalidArgument(_)));
            assert!(error.to_string().contains(expected), "{error}");
        }
    };
    refused(corpus.dedup(65), "got 65");
    refused(Dedup::new(corpus.fields.title, 3), "title");
}

//! How long an evaluation takes: 10,000 queries in 50,000 codes of 64 bits, 100 classes, every figure of the report,
//! for R = all (expectation over ties) and R = 1000 (five orders), with and without similarities of classes.
//!
//! `cargo bench --bench eval`. Codes are noisy copies of a center for each class (clustered, many ties, as learned
//! codes are) or random (spread); each line gives the mAP, so a faster wrong answer shows. The goal for R = all is
//! 3 s on two cores.

use std::time::Instant;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use tanhash::code::{CodeLen, Codes, HashCode};
use tanhash::eval::{ClassSimilarities, Cutoff, Evaluation, Protocol};

const CLASSES: usize = 100;

fn main() {
    // Classes in groups of ten are half alike.
    let pairs = (0..CLASSES).flat_map(|a| (0..CLASSES).map(move |b| (a, b)));
    let values = pairs.map(|(a, b)| {
        if a == b {
            1.0
        } else if a / 10 == b / 10 {
            0.5
        } else {
            0.0
        }
    });
    let similarities = ClassSimilarities::new(CLASSES, values.collect()).unwrap();
    for (name, noise) in [("clustered", 6), ("spread", 64)] {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let centers: Vec<u64> = (0..CLASSES).map(|_| rng.next_u64()).collect();
        let mut codes = |n: usize| {
            let len = CodeLen::new(64).unwrap();
            let mut codes = Codes::with_capacity(len, n);
            let labels: Vec<u32> = (0..n).map(|i| (i % CLASSES) as u32).collect();
            for &label in &labels {
                let flips = (0..noise).fold(0, |flips, _| flips | 1 << (rng.next_u32() % 64));
                let word = centers[label as usize] ^ flips & rng.next_u64();
                codes
                    .push(&HashCode::from_words(len, &[word]).unwrap())
                    .unwrap();
            }
            (codes, labels)
        };
        let (query, query_labels) = codes(10_000);
        let (database, database_labels) = codes(50_000);
        let plain = Evaluation::new(&query, &query_labels, &database, &database_labels).unwrap();
        let graded = plain.clone().similarities(&similarities).unwrap();
        for (kind, evaluation) in [("relevance", &plain), ("similarities", &graded)] {
            for cutoff in [Cutoff::All, Cutoff::At(1000)] {
                let start = Instant::now();
                let report = evaluation.run(&Protocol::new(cutoff)).unwrap();
                let mahp = report.hierarchical.as_ref().map_or(0.0, |h| h.mahp);
                println!(
                    "{name}, {kind}: {} = {:.6}, mAHP@250 = {mahp:.6}, {:.2} s on {} threads",
                    report.metric(),
                    report.map,
                    start.elapsed().as_secs_f64(),
                    rayon::current_num_threads(),
                );
            }
        }
    }
}

//! How long mAP takes: 10,000 queries in 60,000 codes of 64 bits, 10 classes, by both tie rules.
//!
//! `cargo bench --bench eval`. Codes are noisy copies of ten centers (clustered, many ties, as learned
//! codes are) or random (spread); each line gives the mAP, so a faster wrong answer shows.

use std::time::Instant;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use tanhash::code::{CodeLen, Codes, HashCode};
use tanhash::eval::{Cutoff, Protocol, evaluate};

fn main() {
    for (name, noise) in [("clustered", 6), ("spread", 64)] {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let centers: Vec<u64> = (0..10).map(|_| rng.next_u64()).collect();
        let mut codes = |n: usize| {
            let len = CodeLen::new(64).unwrap();
            let mut codes = Codes::with_capacity(len, n);
            let labels: Vec<u32> = (0..n).map(|i| i as u32 % 10).collect();
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
        let (database, database_labels) = codes(60_000);
        for cutoff in [Cutoff::All, Cutoff::At(1000)] {
            let start = Instant::now();
            let report = evaluate(
                &query,
                &query_labels,
                &database,
                &database_labels,
                &Protocol::new(cutoff),
            )
            .unwrap();
            println!(
                "{name}: {} = {:.6}, {:.2} s on {} threads",
                report.metric(),
                report.map,
                start.elapsed().as_secs_f64(),
                rayon::current_num_threads(),
            );
        }
    }
}

//! What a scanned code and a multi-index search cost, on one thread and warm caches.
//!
//! Run with `cargo bench --bench hamming -- [codes]`; without a number, 10^6 codes. First the scan of
//! every kernel at 64, 128, 256 and 512 bits, k = 10: ns a code and GB/s, so that the distance from the
//! memory's limit shows; beside it ns a code and query of a batch of 32 queries, whose answers are
//! compared with the single ones. Then the nearest of 256 and of 4096 centers, ns a code and center,
//! beside the distances of one query a center. Then k-NN and range search by multi-index hashing beside the linear scan of the same
//! run, on uniform codes and on codes around 1000 centers with each bit flipped at 0.1; every answer is
//! compared with the scan's. Last the constants of the planner, measured: a lookup, a candidate, a
//! gathered row. Times are medians over queries, the best of a few passes.

use std::hint::black_box;
use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tanhash::engine::{self, Allowed, Engine, EngineChoice, SearchStats, SegmentRows};
use tanhash::hamming::{Kernel, Nearest};
use tanhash::mih::{MihParams, MihTable, MihView, MultiIndex};
use tanhash::scan::LinearScan;
use tanhash::topk::TopK;
use tanhash::{CodeLen, Codes, HashCode};

const PASSES: usize = 3;
const BATCH: usize = 32;
const CENTERS: usize = 1000;
const FLIPS: f64 = 0.1;

fn uniform(len: CodeLen, n_codes: usize, rng: &mut ChaCha8Rng) -> Codes {
    let mut bytes = vec![0; n_codes * len.bytes()];
    rng.fill(&mut bytes[..]);
    Codes::from_packed(len, &bytes).expect("whole rows")
}

/// Codes around the centers, every bit flipped with the same probability.
fn clustered(centers: &Codes, n_codes: usize, rng: &mut ChaCha8Rng) -> Codes {
    let len = centers.code_len();
    let mut codes = Codes::with_capacity(len, n_codes);
    for _ in 0..n_codes {
        let mut code = centers.get(rng.random_range(0..CENTERS));
        for bit in 0..len.bits() {
            if rng.random_bool(FLIPS) {
                code.set_bit(bit, !code.bit(bit));
            }
        }
        codes.push(&code).expect("one length");
    }
    codes
}

/// The median over queries of the best time of each, in ns.
fn median_ns(queries: &[HashCode], mut search: impl FnMut(&HashCode)) -> f64 {
    let mut best = vec![f64::INFINITY; queries.len()];
    for _ in 0..PASSES {
        for (query, best) in queries.iter().zip(&mut best) {
            let start = Instant::now();
            search(query);
            *best = best.min(start.elapsed().as_secs_f64() * 1e9);
        }
    }
    best.sort_by(f64::total_cmp);
    best[best.len() / 2]
}

fn bench_scan(n_codes: usize, rng: &mut ChaCha8Rng) {
    println!("scan, k = 10, {n_codes} uniform codes; batches of {BATCH} queries");
    for bits in [64, 128, 256, 512] {
        let len = CodeLen::new(bits).expect("a legal length");
        let codes = uniform(len, n_codes, rng);
        let queries: Vec<HashCode> = (0..BATCH).map(|_| uniform(len, 1, rng).get(0)).collect();
        let rows = SegmentRows::of(codes.as_ref());
        for kernel in Kernel::available() {
            let scan = LinearScan::new(&rows).with_kernel(kernel);
            let single = |query: &HashCode| {
                let mut top = TopK::new(10, u32::MAX);
                let mut stats = SearchStats::default();
                scan.knn(query, &Allowed::All, &mut top, &mut stats)
                    .expect("one length");
                top.into_sorted()
            };
            let batch = || {
                let mut tops = vec![TopK::new(10, u32::MAX); BATCH];
                let mut stats = SearchStats::default();
                scan.knn_batch(&queries, &Allowed::All, &mut tops, &mut stats)
                    .expect("one length, one top a query");
                tops.into_iter().map(TopK::into_sorted).collect::<Vec<_>>()
            };
            assert!(batch().into_iter().eq(queries.iter().map(single)));
            let ns = median_ns(&queries[..15], |query| {
                black_box(single(query));
            });
            let batch_ns = best_ns(|| {
                black_box(batch());
            });
            println!(
                "  {bits:4} bits  {:8}  {:6.3} ns/code  {:6.2} GB/s  {:8.1} us   batch {:6.3} ns/code/query  {:4.1}x",
                kernel.name(),
                ns / n_codes as f64,
                (n_codes * len.bytes()) as f64 / ns,
                ns / 1e3,
                batch_ns / (n_codes * BATCH) as f64,
                ns * BATCH as f64 / batch_ns,
            );
        }
    }
}

/// The best of as many passes as a second holds, in ns: one pass is long enough to be interrupted.
fn best_ns(mut pass: impl FnMut()) -> f64 {
    let (mut best, begun) = (f64::INFINITY, Instant::now());
    for n_passes in 0.. {
        let start = Instant::now();
        pass();
        best = best.min(start.elapsed().as_secs_f64() * 1e9);
        if n_passes >= PASSES && begun.elapsed().as_secs_f64() > 1.0 {
            break;
        }
    }
    best
}

fn bench_nearest(rng: &mut ChaCha8Rng) {
    const CODES: usize = 1 << 13;
    println!("nearest center, {CODES} uniform codes, ns a code and center");
    for bits in [64, 128, 256, 512, 1024] {
        let len = CodeLen::new(bits).expect("a legal length");
        let codes = uniform(len, CODES, rng);
        for n_centers in [256, 4096] {
            let centers = uniform(len, n_centers, rng);
            let centers_alone: Vec<HashCode> = (0..n_centers).map(|row| centers.get(row)).collect();
            for kernel in Kernel::available() {
                // A pass of distances a center, as before there was a loop for it.
                let mut by_distances = vec![Nearest::default(); CODES];
                let mut distances = vec![0; CODES];
                let distances_ns = best_ns(|| {
                    for (center, words) in (0..).zip(&centers_alone) {
                        kernel.distances(codes.as_ref(), words.words(), &mut distances);
                        for (nearest, &distance) in by_distances.iter_mut().zip(&distances) {
                            if center == 0 || distance < nearest.distance {
                                *nearest = Nearest { center, distance };
                            }
                        }
                    }
                });
                let mut nearest = vec![Nearest::default(); CODES];
                let ns = best_ns(|| kernel.nearest(codes.as_ref(), centers.as_ref(), &mut nearest));
                assert!(nearest == by_distances);
                let n_pairs = (CODES * n_centers) as f64;
                println!(
                    "  {bits:4} bits  {n_centers:4} centers  {:8}  {:6.3}  by distances {:6.3}  {:4.1}x",
                    kernel.name(),
                    ns / n_pairs,
                    distances_ns / n_pairs,
                    distances_ns / ns,
                );
            }
        }
    }
}

fn bench_mih(name: &str, codes: &Codes, queries: &[HashCode]) {
    let len = codes.code_len();
    let n_codes = codes.n_codes();
    let params = MihParams::choose(len, n_codes);
    let start = Instant::now();
    let tables: Vec<MihTable> = (0..params.n_substrings())
        .map(|substring_idx| MihTable::build(codes, &params, substring_idx).expect("fits"))
        .collect();
    println!(
        "{name}, {len} bits, {n_codes} codes, m = {}, tables built in {:.2} s",
        params.n_substrings(),
        start.elapsed().as_secs_f64()
    );
    let view = MihView::new(&params, tables.iter().map(MihTable::as_ref)).expect("just built");
    let rows = SegmentRows {
        mih: Some(view.clone()),
        ..SegmentRows::of(codes.as_ref())
    };
    let knn = |choice, k, query: &HashCode, stats: &mut SearchStats| {
        let mut top = TopK::new(k, u32::MAX);
        engine::knn(&rows, choice, query, &Allowed::All, &mut top, stats).expect("sound tables");
        top.into_sorted()
    };
    let range = |choice, radius, query: &HashCode, stats: &mut SearchStats| {
        let mut found = Vec::new();
        let all = Allowed::All;
        engine::range(&rows, choice, query, radius, &all, &mut found, stats).expect("sound tables");
        found
    };
    let report = |what: String, scan_ns: f64, auto_ns: f64, stats: &SearchStats| {
        let per_query = |count: u64| count as f64 / queries.len() as f64;
        println!(
            "  {what:10} scan {:8.1} us  auto {:8.1} us  {:6.1}x  fell back {:3.0}%  \
             lookups {:8.0}  candidates {:8.0}  duplicates {:7.0}  predicted {:.0} / {:.0} us",
            scan_ns / 1e3,
            auto_ns / 1e3,
            scan_ns / auto_ns,
            100.0 * per_query(stats.segments_scan),
            per_query(stats.lookups),
            per_query(stats.candidates),
            per_query(stats.duplicates),
            per_query(stats.predicted_scan_ns) / 1e3,
            per_query(stats.predicted_mih_ns) / 1e3,
        );
    };
    for k in [10, 100] {
        let mut stats = SearchStats::default();
        for query in queries {
            let expected = knn(EngineChoice::Scan, k, query, &mut SearchStats::default());
            assert_eq!(knn(EngineChoice::Auto, k, query, &mut stats), expected);
        }
        let time = |choice| {
            median_ns(queries, |query| {
                black_box(knn(choice, k, query, &mut SearchStats::default()));
            })
        };
        let (scan_ns, auto_ns) = (time(EngineChoice::Scan), time(EngineChoice::Auto));
        report(format!("k = {k}"), scan_ns, auto_ns, &stats);
    }
    for radius in [2, 4, 8, 12, 16, 31] {
        let mut stats = SearchStats::default();
        for query in queries {
            let expected = range(
                EngineChoice::Scan,
                radius,
                query,
                &mut SearchStats::default(),
            );
            assert_eq!(
                range(EngineChoice::Auto, radius, query, &mut stats),
                expected
            );
        }
        let time = |choice| {
            median_ns(queries, |query| {
                black_box(range(choice, radius, query, &mut SearchStats::default()));
            })
        };
        let (scan_ns, auto_ns) = (time(EngineChoice::Scan), time(EngineChoice::Auto));
        report(format!("radius {radius}"), scan_ns, auto_ns, &stats);
    }

    // A small radius on the tables alone, whatever the planner thinks: lookups and candidates apart.
    let mih = MultiIndex::new(&rows, &view).without_fallback();
    let mut stats = SearchStats::default();
    let start = Instant::now();
    for query in queries {
        let radius = 3 * params.n_substrings() as u32;
        let mut found = Vec::new();
        mih.range(query, radius, &Allowed::All, &mut found, &mut stats)
            .expect("sound tables");
        black_box(found);
    }
    let ns = start.elapsed().as_secs_f64() * 1e9;
    println!(
        "  lookups and candidates together: {:.1} ns each ({} and {})",
        ns / (stats.lookups + stats.candidates) as f64,
        stats.lookups,
        stats.candidates
    );
    for every in [1000, 100, 30, 10] {
        let listed: Vec<u32> = (0..n_codes as u32).step_by(every).collect();
        let all_listed = Allowed::Listed(&listed);
        let ns = median_ns(&queries[..15], |query| {
            let mut top = TopK::new(10, u32::MAX);
            LinearScan::new(&rows)
                .knn(query, &all_listed, &mut top, &mut SearchStats::default())
                .expect("one length");
            black_box(top.into_sorted());
        });
        println!(
            "  one in {every} listed: {:.1} us, {:.1} ns each",
            ns / 1e3,
            ns / listed.len() as f64
        );
    }
}

fn main() {
    // `cargo bench` passes `--bench`; the first number among the arguments is ours.
    let n_codes = std::env::args()
        .filter_map(|argument| argument.parse::<usize>().ok())
        .next()
        .unwrap_or(1_000_000);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    println!(
        "kernels: {:?}, best {:?}",
        Kernel::available(),
        Kernel::best()
    );
    bench_scan(n_codes, &mut rng);
    bench_nearest(&mut rng);
    for bits in [64, 256] {
        let len = CodeLen::new(bits).expect("a legal length");
        let codes = uniform(len, n_codes, &mut rng);
        let queries: Vec<HashCode> = (0..60).map(|_| uniform(len, 1, &mut rng).get(0)).collect();
        bench_mih("uniform", &codes, &queries);
        let centers = uniform(len, CENTERS, &mut rng);
        let codes = clustered(&centers, n_codes, &mut rng);
        let queries = clustered(&centers, 60, &mut rng);
        let queries: Vec<HashCode> = (0..60).map(|row| queries.get(row)).collect();
        bench_mih("clustered", &codes, &queries);
    }
}

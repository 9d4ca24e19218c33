//! Every kernel of this CPU equals the scalar one, and the scalar one equals `HashCode::distance`.
//!
//! Guards the tails: every length (the last word is partly used), every count of rows up to five
//! blocks (the last block is partly used), every first row, and bounds that move while the scan runs.
//! Padding rows are all zero, so a query of zeros would report them first of all.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tanhash::hamming::{self, Kernel, Nearest};
use tanhash::{CodeLen, Codes, HashCode};

fn random_code(len: CodeLen, density: f64, rng: &mut ChaCha8Rng) -> HashCode {
    let mut code = HashCode::zeros(len);
    for bit in 0..len.bits() {
        code.set_bit(bit, rng.random_bool(density));
    }
    code
}

fn random_codes(len: CodeLen, n_codes: usize, rng: &mut ChaCha8Rng) -> Codes {
    let mut codes = Codes::with_capacity(len, n_codes);
    for _ in 0..n_codes {
        codes.push(&random_code(len, 0.5, rng)).unwrap();
    }
    codes
}

fn lens() -> impl Iterator<Item = CodeLen> {
    (16..=1024)
        .step_by(8)
        .map(|bits| CodeLen::new(bits).unwrap())
}

#[test]
fn distances_equal_the_naive_ones() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for len in lens() {
        for n_codes in [0, 1, 7, 8, 9, 31, 32, 33, 40] {
            let codes = random_codes(len, n_codes, &mut rng);
            let query = random_code(len, 0.5, &mut rng);
            let expected: Vec<u32> = (0..n_codes)
                .map(|row| codes.get(row).distance(&query).unwrap())
                .collect();
            for kernel in Kernel::available() {
                let mut out = vec![u32::MAX; n_codes];
                kernel.distances(codes.as_ref(), query.words(), &mut out);
                assert_eq!(out, expected, "{kernel:?}, {len} bits, {n_codes} codes");
            }
        }
    }
}

/// The rows a scan must report when each hit lowers the bound by `step`, stopping below zero.
fn expected_hits(
    distances: &[u32],
    rows: std::ops::Range<usize>,
    bound: u32,
    step: u32,
) -> Vec<(usize, u32)> {
    let mut bound = Some(bound);
    let mut hits = Vec::new();
    for row in rows {
        if bound.is_some_and(|bound| distances[row] <= bound) {
            hits.push((row, distances[row]));
            bound = bound.and_then(|bound| bound.checked_sub(step));
        }
    }
    hits
}

#[test]
fn scans_report_the_rows_within_every_bound() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for len in lens() {
        let all = random_codes(len, 40, &mut rng);
        let zeros = HashCode::zeros(len);
        let queries = [zeros, random_code(len, 0.5, &mut rng), all.get(3)];
        for n_codes in 0..=40 {
            let mut codes = Codes::new(len);
            (0..n_codes).for_each(|row| codes.push_row(&all, row));
            let query = &queries[n_codes % 3];
            let mut distances = vec![0; n_codes];
            Kernel::SCALAR.distances(codes.as_ref(), query.words(), &mut distances);
            let middle = len.bits() as u32 / 2;
            let any = rng.random_range(0..=len.bits() as u32);
            for bound in [0, middle - 3, middle, any, len.bits() as u32, u32::MAX] {
                for step in [0, 1, 4] {
                    let start = rng.random_range(0..=n_codes);
                    for rows in [0..n_codes, start..n_codes, 0..start, start..start] {
                        let expected = expected_hits(&distances, rows.clone(), bound, step);
                        for kernel in Kernel::available() {
                            let (mut found, mut bound) = (Vec::new(), bound);
                            kernel.scan(
                                codes.as_ref(),
                                rows.clone(),
                                query.words(),
                                bound,
                                &mut |row, distance| {
                                    found.push((row, distance));
                                    bound = bound.checked_sub(step)?;
                                    Some(bound)
                                },
                            );
                            assert_eq!(
                                found, expected,
                                "{kernel:?}, {len} bits, rows {rows:?} of {n_codes}, bound {bound}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn scans_of_sets_report_their_rows_alone() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for len in lens() {
        for n_codes in [1, 31, 32, 33, 64, 100, 150] {
            let codes = random_codes(len, n_codes, &mut rng);
            let query = random_code(len, 0.5, &mut rng);
            let mut distances = vec![0; n_codes];
            Kernel::SCALAR.distances(codes.as_ref(), query.words(), &mut distances);
            let share = [0.03, 0.5, 1.0][rng.random_range(0..3)];
            let is_set: Vec<bool> = (0..192).map(|_| rng.random_bool(share)).collect();
            let mut set = [0u64; 3];
            for row in (0..192).filter(|&row| is_set[row]) {
                set[row / 64] |= 1 << (row % 64);
            }
            let bound = len.bits() as u32 / 2 + rng.random_range(0..9);
            let rows = rng.random_range(0..=n_codes / 32) * 32..n_codes;
            let expected: Vec<(usize, u32)> = (rows.clone())
                .filter(|&row| is_set[row] && distances[row] <= bound)
                .map(|row| (row, distances[row]))
                .collect();
            for kernel in Kernel::available() {
                let mut found = Vec::new();
                let rows = rows.clone();
                kernel.scan_set(
                    codes.as_ref(),
                    rows.clone(),
                    &set,
                    query.words(),
                    bound,
                    &mut |row, distance| {
                        found.push((row, distance));
                        Some(bound)
                    },
                );
                assert_eq!(found, expected, "{kernel:?}, {len} bits, rows {rows:?}");
            }
        }
    }
}

#[test]
fn every_bound_at_common_lengths() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for bits in [16, 48, 64, 72, 128, 192, 256, 320] {
        let len = CodeLen::new(bits).unwrap();
        let codes = random_codes(len, 200, &mut rng);
        let query = random_code(len, 0.3, &mut rng);
        let mut distances = vec![0; 200];
        Kernel::SCALAR.distances(codes.as_ref(), query.words(), &mut distances);
        for bound in 0..=bits as u32 {
            let expected = expected_hits(&distances, 0..200, bound, 0);
            for kernel in Kernel::available() {
                let mut found = Vec::new();
                let mut sink = |row, distance| {
                    found.push((row, distance));
                    Some(bound)
                };
                kernel.scan(codes.as_ref(), 0..200, query.words(), bound, &mut sink);
                assert_eq!(found, expected, "{kernel:?}, {bits} bits, bound {bound}");
            }
        }
    }
}

#[test]
fn gathers_are_exact_within_the_bound() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for len in lens() {
        let codes = random_codes(len, 37, &mut rng);
        let query = random_code(len, 0.5, &mut rng);
        let rows: Vec<u32> = (0..20).map(|_| rng.random_range(0..37)).collect();
        for bound in [0, len.bits() as u32 / 2, len.bits() as u32] {
            for kernel in Kernel::available() {
                let mut out = vec![0; rows.len()];
                rows.iter()
                    .for_each(|&row| hamming::prefetch(codes.as_ref(), row as usize));
                let is_any_near =
                    kernel.gather(codes.as_ref(), &rows, query.words(), bound, &mut out);
                assert_eq!(is_any_near, out.iter().any(|&distance| distance <= bound));
                for (&row, &distance) in rows.iter().zip(&out) {
                    let exact = codes.distance(row as usize, query.words());
                    let agrees = distance == exact || (distance > bound && exact > bound);
                    assert!(
                        agrees,
                        "{kernel:?}, {len} bits, bound {bound}: {distance}, {exact}"
                    );
                }
            }
        }
    }
}

#[test]
fn batches_equal_the_scans_of_each_query() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for len in lens() {
        // Past the end of a tile, for the wider codes of two.
        let n_codes = rng.random_range(0..600);
        let codes = random_codes(len, n_codes, &mut rng);
        for n_queries in [0, 1, 2, 3, 4, 5, 9, 15, 21] {
            let mut queries: Vec<HashCode> = (0..n_queries)
                .map(|_| random_code(len, 0.5, &mut rng))
                .collect();
            queries
                .iter_mut()
                .take(1)
                .for_each(|query| *query = HashCode::zeros(len));
            let words: Vec<&[u64]> = queries.iter().map(HashCode::words).collect();
            let middle = len.bits() as u32 / 2;
            let bounds: Vec<Option<u32>> = (0..n_queries)
                .map(|_| match rng.random_range(0..6) {
                    0 => None,
                    1 => Some(0),
                    2 => Some(u32::MAX),
                    _ => Some(rng.random_range(middle - middle / 3..=middle)),
                })
                .collect();
            let step = [0, 1, 4][rng.random_range(0..3)];
            let start = rng.random_range(0..=n_codes);
            for rows in [0..n_codes, start..n_codes, 0..start, start..start] {
                let expected: Vec<Vec<(usize, u32)>> = (0..n_queries)
                    .map(|query_idx| {
                        let mut distances = vec![0; n_codes];
                        Kernel::SCALAR.distances(codes.as_ref(), words[query_idx], &mut distances);
                        match bounds[query_idx] {
                            Some(bound) => expected_hits(&distances, rows.clone(), bound, step),
                            None => Vec::new(),
                        }
                    })
                    .collect();
                for kernel in Kernel::available() {
                    let mut found = vec![Vec::new(); n_queries];
                    let (mut current, mut left) = (bounds.clone(), bounds.clone());
                    kernel.scan_batch(
                        codes.as_ref(),
                        rows.clone(),
                        &words,
                        &mut left,
                        &mut |query_idx, row, distance| {
                            found[query_idx].push((row, distance));
                            current[query_idx] = current[query_idx]?.checked_sub(step);
                            current[query_idx]
                        },
                    );
                    let case = format!("{kernel:?}, {len} bits, rows {rows:?} of {n_codes}");
                    assert_eq!(found, expected, "{case}, {bounds:?} less {step}");
                    assert_eq!(left, current, "{case}, {bounds:?} less {step}");
                }
            }
        }
    }
}

/// The nearest center of each code by comparing all of them, the first of equally near ones.
fn expected_nearest(codes: &Codes, centers: &Codes) -> Vec<Nearest> {
    (0..codes.n_codes())
        .map(|row| {
            let code = codes.get(row);
            let nearest = (0..centers.n_codes())
                .map(|center| (centers.distance(center, code.words()), center as u32))
                .min();
            let (distance, center) = nearest.expect("there is a center");
            Nearest { center, distance }
        })
        .collect()
}

#[test]
fn nearest_centers_equal_the_naive_ones() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for len in lens() {
        let all = random_codes(len, 150, &mut rng);
        for n_codes in [0, 1, 7, 8, 9, 33, 64, 65, 131] {
            let mut codes = Codes::new(len);
            (0..n_codes).for_each(|row| codes.push_row(&all, row));
            let n_centers = [1, 2, 7, 8, 9, 20, 65][rng.random_range(0..7)];
            let mut centers = random_codes(len, n_centers, &mut rng);
            if n_codes % 2 == 1 {
                // Centers that come again later, and centers that are codes.
                (0..n_centers).for_each(|row| centers.push_row(&centers.clone(), row));
                (0..10).for_each(|_| centers.push_row(&all, rng.random_range(0..150)));
            }
            let expected = expected_nearest(&codes, &centers);
            for kernel in Kernel::available() {
                let mut out = vec![Nearest::default(); n_codes];
                kernel.nearest(codes.as_ref(), centers.as_ref(), &mut out);
                assert_eq!(out, expected, "{kernel:?}, {len} bits, {n_codes} codes");
            }
        }
    }
}

#[test]
fn nearest_of_the_most_and_the_farthest_centers() {
    // The last index and the greatest distance fill their bits of a key.
    for bits in [64, 1024] {
        let len = CodeLen::new(bits).unwrap();
        let mut far = HashCode::zeros(len);
        (0..bits).for_each(|bit| far.set_bit(bit, true));
        let mut codes = Codes::new(len);
        codes.push(&HashCode::zeros(len)).unwrap();
        codes.push(&far).unwrap();
        let mut centers = Codes::new(len);
        for _ in 0..hamming::MAX_CENTERS - 1 {
            centers.push(&far).unwrap();
        }
        for (last, zeros) in [(far, (0, bits)), (HashCode::zeros(len), (65_535, 0))] {
            let mut centers = centers.clone();
            centers.push(&last).unwrap();
            let expected = [zeros, (0, 0)].map(|(center, distance)| Nearest {
                center,
                distance: distance as u32,
            });
            for kernel in Kernel::available() {
                let mut out = [Nearest::default(); 2];
                kernel.nearest(codes.as_ref(), centers.as_ref(), &mut out);
                assert_eq!(out, expected, "{kernel:?}, {bits} bits");
            }
        }
    }
}

#[test]
fn kernels_have_names_and_the_best_one_runs() {
    let available = Kernel::available();
    assert_eq!(available[0], Kernel::SCALAR);
    assert!(available.contains(&Kernel::best()));
    let mut names: Vec<&str> = available.iter().map(|kernel| kernel.name()).collect();
    names.dedup();
    assert_eq!(names.len(), available.len());
}

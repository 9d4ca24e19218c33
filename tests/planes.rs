//! Codes in planes: every loop over them gives what it gives for the same codes in blocks, and segments with
//! them answer as they did before.
//!
//! Guards the borders of chunks and of the steps inside them, bounds that fall while the scan runs, and the
//! switch between reading all and looking at the first plane, which clustered rows among strange ones cause.

mod common;

use std::ops::Range;
use std::sync::Arc;

use common::seeded;
use rand::seq::SliceRandom;
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;
use tanhash::code::{CHUNK_ROWS, RowOrder};
use tanhash::engine::{Allowed, Engine, EngineChoice, SearchStats, SegmentRows, knn, range};
use tanhash::hamming::{self, Kernel, Nearest};
use tanhash::scan::LinearScan;
use tanhash::segment::{Column, ColumnSpec, HashSegment, Integrity, SegmentWriter, TablePolicy};
use tanhash::topk::TopK;
use tanhash::{CodeLen, Codes, HashCode};

/// Rows about the borders of blocks and chunks.
const COUNTS: [usize; 12] = [
    0,
    1,
    8,
    511,
    CHUNK_ROWS - 1,
    CHUNK_ROWS,
    CHUNK_ROWS + 1,
    CHUNK_ROWS + 7,
    CHUNK_ROWS + 8,
    CHUNK_ROWS + 9,
    2 * CHUNK_ROWS,
    2 * CHUNK_ROWS + 3,
];

fn random_code(rng: &mut ChaCha8Rng, len: CodeLen) -> HashCode {
    let mut bytes = vec![0; len.bytes()];
    rng.fill_bytes(&mut bytes);
    HashCode::from_bytes(&bytes).unwrap()
}

/// A code with some bits of another one flipped.
fn near(rng: &mut ChaCha8Rng, center: &HashCode, n_flips: usize) -> HashCode {
    let mut code = center.clone();
    for _ in 0..n_flips {
        let bit = rng.random_range(0..code.code_len().bits());
        code.set_bit(bit, !code.bit(bit));
    }
    code
}

/// The same codes in blocks and in planes: strange ones, stretches of them near the query, and single ones.
fn both(rng: &mut ChaCha8Rng, query: &HashCode, n_codes: usize) -> (Codes, Codes) {
    let len = query.code_len();
    let mut blocks = Codes::new(len);
    let mut planes = Codes::in_planes(len, rng.random_range(0..=n_codes));
    let stretches: Vec<Range<usize>> = (0..2)
        .map(|_| {
            let start = rng.random_range(0..=n_codes);
            start..start + rng.random_range(0..300)
        })
        .collect();
    for row in 0..n_codes {
        let is_near = stretches.iter().any(|stretch| stretch.contains(&row));
        let code = match is_near || rng.random_bool(0.01) {
            true => near(rng, query, len.bits() / 10),
            false => random_code(rng, len),
        };
        blocks.push(&code).unwrap();
        match rng.random_bool(0.5) {
            true => planes.push(&code).unwrap(),
            false => planes.push_row(&blocks, row),
        }
    }
    (blocks, planes)
}

/// Rows within a bound that each hit lowers by `step`, none below zero.
fn hits(distances: &[u32], rows: Range<usize>, bound: u32, step: u32) -> Vec<(usize, u32)> {
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

/// Every loop of every kernel, on one set.
fn check_kernels(rng: &mut ChaCha8Rng, len: CodeLen, n_codes: usize) {
    let query = random_code(rng, len);
    let (blocks, planes) = both(rng, &query, n_codes);
    let case = format!("{len} bits, {n_codes} codes");
    assert_eq!(blocks, planes, "{case}");
    let in_planes = match len.words() {
        1 => 0,
        _ => n_codes / CHUNK_ROWS * CHUNK_ROWS,
    };
    assert_eq!(planes.rows_in_planes(), in_planes, "{case}");
    assert_eq!(blocks.rows_in_planes(), 0);
    let expected: Vec<u32> = (0..n_codes)
        .map(|row| blocks.distance(row, query.words()))
        .collect();
    let bits = len.bits() as u32;
    let mut set = vec![0u64; n_codes.div_ceil(64)];
    let share = [0.02, 0.5, 1.0][rng.random_range(0..3)];
    for row in 0..n_codes {
        set[row / 64] |= u64::from(rng.random_bool(share)) << (row % 64);
    }
    let is_set = |row: usize| set[row / 64] >> (row % 64) & 1 == 1;
    let start = rng.random_range(0..=n_codes);
    let end = rng.random_range(start..=n_codes);
    let rows: Vec<u32> = (0..60.min(n_codes))
        .map(|_| rng.random_range(0..n_codes) as u32)
        .collect();
    let bounds = [0, bits / 8, rng.random_range(0..bits / 3), bits / 2, bits];
    let others: Vec<HashCode> = (0..5)
        .map(|_| near(rng, &query, bits as usize / 8))
        .collect();
    for kernel in Kernel::available() {
        let case = format!("{kernel:?}, {case}");
        let mut out = vec![u32::MAX; n_codes];
        kernel.distances(planes.as_ref(), query.words(), &mut out);
        assert_eq!(out, expected, "{case}");
        for (bound, step) in bounds.into_iter().zip([0, 0, 1, 3, 1]) {
            for rows in [0..n_codes, start..end] {
                let mut found = Vec::new();
                let mut now = bound;
                let (all, words) = (planes.as_ref(), query.words());
                kernel.scan(all, rows.clone(), words, bound, &mut |row, distance| {
                    found.push((row, distance));
                    now = now.checked_sub(step)?;
                    Some(now)
                });
                let wanted = hits(&expected, rows.clone(), bound, step);
                assert_eq!(
                    found, wanted,
                    "{case}, rows {rows:?}, bound {bound} less {step}"
                );
            }
            let rows_set = start / 32 * 32..end.max(start / 32 * 32);
            let mut found = Vec::new();
            let (all, words) = (planes.as_ref(), query.words());
            kernel.scan_set(
                all,
                rows_set.clone(),
                &set,
                words,
                bound,
                &mut |row, distance| {
                    found.push((row, distance));
                    Some(bound)
                },
            );
            let mut wanted = hits(&expected, rows_set.clone(), bound, 0);
            wanted.retain(|&(row, _)| is_set(row));
            assert_eq!(
                found, wanted,
                "{case}, set of {share}, rows {rows_set:?}, bound {bound}"
            );

            let mut gathered = vec![0; rows.len()];
            let is_any_near = kernel.gather(all, &rows, words, bound, &mut gathered);
            assert_eq!(is_any_near, gathered.iter().any(|&found| found <= bound));
            for (&row, found) in rows.iter().zip(gathered) {
                hamming::prefetch(all, row as usize);
                let distance = expected[row as usize];
                let is_right = found == distance || (found > bound && distance > bound);
                assert!(
                    is_right,
                    "{case}, row {row}: {found}, not {distance}, bound {bound}"
                );
            }
        }
        let queries: Vec<&[u64]> = others.iter().map(HashCode::words).collect();
        let mut left: Vec<Option<u32>> = (0..5)
            .map(|idx| (idx != 3).then_some(bits / 3 + idx))
            .collect();
        let mut now = left.clone();
        let mut found = vec![Vec::new(); queries.len()];
        let mut sink = |idx: usize, row: usize, distance: u32| {
            found[idx].push((row, distance));
            now[idx] = now[idx].and_then(|bound| bound.checked_sub(1));
            now[idx]
        };
        let wanted: Vec<Vec<(usize, u32)>> = queries
            .iter()
            .zip(&left)
            .map(|(query, bound)| match bound {
                Some(bound) => {
                    let distances: Vec<u32> = (0..n_codes)
                        .map(|row| blocks.distance(row, query))
                        .collect();
                    hits(&distances, start..end, *bound, 1)
                }
                None => Vec::new(),
            })
            .collect();
        kernel.scan_batch(planes.as_ref(), start..end, &queries, &mut left, &mut sink);
        assert_eq!(found, wanted, "{case}, batch of rows {start}..{end}");
        assert_eq!(left, now, "{case}");

        let centers = Codes::from_packed(
            len,
            &others
                .iter()
                .flat_map(HashCode::to_bytes)
                .collect::<Vec<u8>>(),
        )
        .unwrap();
        let mut of_blocks = vec![Nearest::default(); n_codes];
        let mut of_planes = of_blocks.clone();
        kernel.nearest(blocks.as_ref(), centers.as_ref(), &mut of_blocks);
        kernel.nearest(planes.as_ref(), centers.as_ref(), &mut of_planes);
        assert_eq!(of_blocks, of_planes, "{case}");
    }
}

#[test]
fn every_loop_over_planes_equals_that_over_blocks() {
    let mut rng = seeded("every_loop_over_planes", 31);
    for (idx, bits) in (16..=1024).step_by(8).enumerate() {
        let len = CodeLen::new(bits).unwrap();
        // Each length meets two counts, each count many lengths; common lengths meet all.
        for (place, &n_codes) in COUNTS.iter().enumerate() {
            if place % 6 == idx % 6 || [128, 192, 256].contains(&bits) {
                check_kernels(&mut rng, len, n_codes);
            }
        }
    }
}

/// Centers may lie in planes, too.
#[test]
fn centers_in_planes_are_the_same_centers() {
    let mut rng = seeded("centers_in_planes", 32);
    let len = CodeLen::new(136).unwrap();
    let query = random_code(&mut rng, len);
    let (blocks, planes) = both(&mut rng, &query, CHUNK_ROWS + 5);
    let (codes, _) = both(&mut rng, &query, 20);
    let mut found = [[Nearest::default(); 20]; 2];
    for (found, centers) in found.iter_mut().zip([&blocks, &planes]) {
        Kernel::best().nearest(codes.as_ref(), centers.as_ref(), found);
    }
    assert_eq!(found[0], found[1]);
}

/// Rows near one of many centers, in any order.
fn clustered(rng: &mut ChaCha8Rng, len: CodeLen, n_codes: usize) -> (Vec<HashCode>, HashCode) {
    let centers: Vec<HashCode> = (0..50).map(|_| random_code(rng, len)).collect();
    let mut codes: Vec<HashCode> = (0..n_codes)
        .map(|row| near(rng, &centers[row % 50], len.bits() / 12))
        .collect();
    codes.shuffle(rng);
    (codes, near(rng, &centers[7], len.bits() / 12))
}

fn written(len: CodeLen, column: &Column, max_doc: u32, tables: TablePolicy) -> HashSegment {
    let mut writer = SegmentWriter::new(Vec::new(), max_doc, 1).unwrap();
    let spec = ColumnSpec {
        field_id: 4,
        code_len: len,
        model_id: None,
    };
    writer.add_field(&spec, column, tables).unwrap();
    let bytes = Arc::new(writer.finish().unwrap());
    let segment = HashSegment::open(bytes, max_doc, Integrity::FirstUse).unwrap();
    segment.verify().unwrap();
    segment
}

fn is_in_planes(segment: &HashSegment) -> bool {
    let (name, _) = &segment.columns()[0].sections()[0];
    assert!(name.starts_with("codes"), "{name}");
    assert_eq!(
        name == "codes in planes of field 4",
        segment.columns()[0].codes().unwrap().rows_in_planes() > 0
    );
    name == "codes in planes of field 4"
}

/// Every engine under every form of a filter, against all distances.
fn check_engines(
    rng: &mut ChaCha8Rng,
    segment: &HashSegment,
    codes: &[(u32, HashCode)],
    query: &HashCode,
) {
    let rows = segment.columns()[0].rows(0, true).unwrap();
    let max_doc = segment.max_doc();
    let share = [0.01, 0.3, 0.9][rng.random_range(0..3)];
    let listed: Vec<u32> = (0..max_doc).filter(|_| rng.random_bool(share)).collect();
    let mut set = vec![0u64; (max_doc as usize).div_ceil(64)];
    for &doc in &listed {
        set[doc as usize / 64] |= 1 << (doc % 64);
    }
    let filters = [
        (Allowed::All, None),
        (Allowed::Listed(&listed), Some(&listed)),
        (Allowed::Set(&set), Some(&listed)),
    ];
    let bits = query.code_len().bits() as u32;
    for (allowed, listed) in &filters {
        let mut expected: Vec<(u32, u32)> = codes
            .iter()
            .filter(|(doc, _)| listed.is_none_or(|listed| listed.binary_search(doc).is_ok()))
            .map(|(doc, code)| (code.distance(query).unwrap(), *doc))
            .collect();
        let radius = bits / 6;
        let mut within = expected.clone();
        within.retain(|&(distance, _)| distance <= radius);
        expected.sort_unstable();
        expected.truncate(10);
        for choice in [
            EngineChoice::Auto,
            EngineChoice::Scan,
            EngineChoice::Mih,
            EngineChoice::Cluster,
        ] {
            let mut stats = SearchStats::default();
            let mut top = TopK::new(10, bits);
            knn(&rows, choice, query, allowed, &mut top, &mut stats).unwrap();
            let found: Vec<(u32, u32)> = top
                .into_sorted()
                .iter()
                .map(|hit| (hit.distance, hit.address as u32))
                .collect();
            assert_eq!(found, expected, "{choice}, share {share}");
            let mut found = Vec::new();
            range(
                &rows, choice, query, radius, allowed, &mut found, &mut stats,
            )
            .unwrap();
            let found: Vec<(u32, u32)> = found
                .iter()
                .map(|hit| (hit.distance, hit.address as u32))
                .collect();
            assert_eq!(found, within, "{choice}, share {share}, range");
        }
    }
}

#[test]
fn segments_in_planes_answer_as_the_codes_do() {
    let mut rng = seeded("segments_in_planes", 33);
    for (bits, n_codes, every, tables) in [
        (128, CHUNK_ROWS + 3, 1, TablePolicy::Never),
        (136, CHUNK_ROWS, 2, TablePolicy::Clusters),
        (256, 2 * CHUNK_ROWS + 9, 1, TablePolicy::Always),
        (192, CHUNK_ROWS + 513, 1, TablePolicy::Mih),
        (1024, CHUNK_ROWS + 70, 1, TablePolicy::Clusters),
    ] {
        let len = CodeLen::new(bits).unwrap();
        let (codes, query) = clustered(&mut rng, len, n_codes);
        let codes: Vec<(u32, HashCode)> = (0..).step_by(every).zip(codes).collect();
        let mut column = Column::new(len);
        for (doc, code) in &codes {
            column.push(*doc, code).unwrap();
        }
        let max_doc = (n_codes * every) as u32;
        let segment = written(len, &column, max_doc, tables);
        assert!(is_in_planes(&segment), "{bits} bits");
        check_engines(&mut rng, &segment, &codes, &query);
        for (doc, code) in codes.iter().step_by(97) {
            assert_eq!(
                segment.columns()[0].code(*doc).unwrap().as_ref(),
                Some(code)
            );
        }
    }
}

/// Planes are for those codes that have something to leave out.
#[test]
fn uniform_codes_and_few_ones_are_written_in_blocks() {
    let mut rng = seeded("uniform_codes_in_blocks", 34);
    let len = CodeLen::new(256).unwrap();
    let mut column = Column::new(len);
    for doc in 0..CHUNK_ROWS as u32 + 1 {
        column.push(doc, &random_code(&mut rng, len)).unwrap();
    }
    assert!(!is_in_planes(&written(
        len,
        &column,
        CHUNK_ROWS as u32 + 1,
        TablePolicy::Clusters
    )));
    let (codes, _) = clustered(&mut rng, len, CHUNK_ROWS - 1);
    let mut column = Column::new(len);
    for (doc, code) in (0..).zip(&codes) {
        column.push(doc, code).unwrap();
    }
    assert!(!is_in_planes(&written(
        len,
        &column,
        CHUNK_ROWS as u32,
        TablePolicy::Never
    )));
}

/// A merge reads rows out of either layout.
#[test]
fn merges_of_blocks_and_planes_keep_every_code() {
    let mut rng = seeded("merges_of_blocks_and_planes", 35);
    let len = CodeLen::new(200).unwrap();
    let (codes, query) = clustered(&mut rng, len, 3 * CHUNK_ROWS - 100);
    let parts = [CHUNK_ROWS + 50, 30, 2 * CHUNK_ROWS - 180];
    let mut segments = Vec::new();
    let mut rest = codes.as_slice();
    for (n_codes, tables) in parts.into_iter().zip([
        TablePolicy::Clusters,
        TablePolicy::Never,
        TablePolicy::Never,
    ]) {
        let mut column = Column::new(len);
        for (doc, code) in (0..).zip(&rest[..n_codes]) {
            column.push(doc, code).unwrap();
        }
        rest = &rest[n_codes..];
        segments.push(written(len, &column, n_codes as u32, tables));
    }
    assert!(rest.is_empty());
    let layouts: Vec<bool> = segments.iter().map(is_in_planes).collect();
    assert_eq!(layouts, [true, false, true]);
    let mut merged = Column::new(len);
    for segment in &segments {
        let source = segment.columns()[0].source().unwrap();
        for doc in 0..segment.max_doc() {
            let row = source.row_of(doc).unwrap().unwrap();
            merged.push_row(merged.doc_ids().len() as u32, &source.codes, row);
        }
    }
    let codes: Vec<(u32, HashCode)> = (0..).zip(codes).collect();
    let segment = written(len, &merged, codes.len() as u32, TablePolicy::Always);
    assert!(is_in_planes(&segment));
    check_engines(&mut rng, &segment, &codes, &query);
}

/// A scan of rows in an order of their own looks at a few of them first, for a bound. What it finds stays the
/// same, ties included, beside what an earlier segment found.
#[test]
fn a_first_bound_from_a_few_rows_changes_no_answer() {
    let mut rng = seeded("first_bound", 34);
    let len = CodeLen::new(128).unwrap();
    let n_codes: usize = 64 * 4096 + 1000;
    // Few distances, so that many rows share the k-th.
    let words: Vec<u64> = (0..40).map(|_| rng.random()).collect();
    let mut planes = Codes::in_planes(len, n_codes);
    for row in 0..n_codes {
        let code = [words[row * 40 / n_codes], 1 << rng.random_range(0..6)];
        planes
            .push(&HashCode::from_words(len, &code).unwrap())
            .unwrap();
    }
    // The last row is the first document.
    let backwards: Vec<u32> = (0..n_codes as u32).rev().collect();
    let packed = RowOrder::pack(&backwards);
    let rows = SegmentRows {
        order: Some(RowOrder::new(&packed, &packed, n_codes).unwrap()),
        ..SegmentRows::of(planes.as_ref())
    };
    for case in 0..12 {
        let query = planes.get(rng.random_range(0..n_codes));
        let k = [1, 10, 700][case % 3];
        let earlier = (case % 2 == 0).then_some((3, u64::MAX));
        let mut expected: Vec<(u32, u64)> = (0..n_codes)
            .map(|row| {
                (
                    planes.distance(row, query.words()),
                    (n_codes - 1 - row) as u64,
                )
            })
            .chain(earlier)
            .collect();
        expected.sort_unstable();
        expected.truncate(k);
        let mut top = TopK::new(k, 128);
        if let Some((distance, address)) = earlier {
            top.push(distance, address);
        }
        let mut stats = SearchStats::default();
        let scan = LinearScan::new(&rows);
        scan.knn(&query, &Allowed::All, &mut top, &mut stats)
            .unwrap();
        let found: Vec<(u32, u64)> = (top.into_sorted().iter())
            .map(|neighbor| (neighbor.distance, neighbor.address))
            .collect();
        assert_eq!(found, expected, "case {case}, k {k}");
    }
}

//! The scan of many queries at once, over the [`Lanes`] of any instruction set.
//!
//! A single scan waits for memory. Here the rows are taken a tile at a time, small enough to stay in the
//! first-level cache while one group of queries after another passes over it, and within a group each
//! word of a row is loaded once for all its queries. Leaves out what the single scan leaves out.

use std::ops::Range;

use super::linear::{AllRows, Ask, Blocks, GROUP, Parts, nth, report, scan_rows, splat};
use super::{BatchSink, Lanes, MAX_WORDS};
use crate::code::{BLOCK_ROWS, CHUNK_ROWS, CodesRef};

/// The size of a tile in 64-bit words, 16 KiB: half of a small first-level cache.
const TILE_WORDS: usize = (16 << 10) / 8;

/// The scan of [`Kernel::scan_batch`](super::Kernel::scan_batch). `WORDS` is the number of words of a
/// code, or 0 to take it from the codes; `QUERIES` pass over a tile together, as many as the registers hold.
///
/// Contract: `rows` lies within the codes, each query has their number of words, there is one bound a query.
#[inline(always)]
pub(super) fn scan_batch_rows<L, const WORDS: usize, const QUERIES: usize>(
    lanes: L,
    codes: CodesRef<'_>,
    rows: Range<usize>,
    queries: &[&[u64]],
    bounds: &mut [Option<u32>],
    sink: BatchSink<'_>,
) where
    L: Lanes,
{
    let words = codes.code_len().words();
    let planes_end = rows.end.min(codes.rows_in_planes()).max(rows.start);
    let in_planes = rows.start..planes_end;
    if WORDS != 1 {
        let blocks = Blocks::<true>(codes.blocks());
        scan_batch_blocks::<L, WORDS, QUERIES, true>(
            lanes, blocks, in_planes, words, queries, bounds, sink,
        );
    }
    let (blocks, rows) = (Blocks::<false>(codes.blocks()), planes_end..rows.end);
    scan_batch_blocks::<L, WORDS, QUERIES, false>(
        lanes, blocks, rows, words, queries, bounds, sink,
    );
}

/// The same of rows that all lie in planes, or in blocks.
#[inline(always)]
fn scan_batch_blocks<L, const WORDS: usize, const QUERIES: usize, const PLANES: bool>(
    lanes: L,
    blocks: Blocks<'_, PLANES>,
    rows: Range<usize>,
    words: usize,
    queries: &[&[u64]],
    bounds: &mut [Option<u32>],
    sink: BatchSink<'_>,
) where
    L: Lanes,
{
    let tile_blocks = (TILE_WORDS / (words * BLOCK_ROWS)).next_multiple_of(GROUP);
    let mut live: Vec<usize> = (0..queries.len()).collect();
    let mut row = rows.start;
    while row < rows.end {
        live.retain(|&query_idx| bounds[query_idx].is_some());
        if live.is_empty() {
            return;
        }
        let tile_end = (row / BLOCK_ROWS + tile_blocks) * BLOCK_ROWS;
        let chunk_end = match PLANES {
            true => (row / CHUNK_ROWS + 1) * CHUNK_ROWS,
            false => usize::MAX,
        };
        let tile = row..tile_end.min(chunk_end).min(rows.end);
        let (groups, rest) = match QUERIES {
            1 => (&[][..], &live[..]),
            _ => live.as_chunks::<QUERIES>(),
        };
        let (fours, singles) = match QUERIES {
            8 => rest.as_chunks::<4>(),
            _ => (&[][..], rest),
        };
        // The first pass over a tile asks for those to come.
        let mut ask = Ask::in_order(rows.end / BLOCK_ROWS);
        for group in groups {
            scan_tile::<L, WORDS, QUERIES, PLANES>(
                lanes, blocks, &tile, ask, words, group, queries, bounds, sink,
            );
            ask = Ask::NOTHING;
        }
        for group in fours {
            scan_tile::<L, WORDS, 4, PLANES>(
                lanes, blocks, &tile, ask, words, group, queries, bounds, sink,
            );
            ask = Ask::NOTHING;
        }
        for &query_idx in singles {
            let Some(bound) = bounds[query_idx] else {
                continue;
            };
            let (rows, query) = (tile.clone(), queries[query_idx]);
            let mut sink = |row, distance| {
                bounds[query_idx] = sink(query_idx, row, distance);
                bounds[query_idx]
            };
            let splat = splat(lanes, query);
            let query = &splat[..words];
            scan_rows::<L, WORDS, PLANES, _>(
                lanes, blocks, rows, ask, AllRows, query, bound, &mut sink,
            );
            ask = Ask::NOTHING;
        }
        row = tile.end;
    }
}

/// One group of queries over one tile. A query without a bound gets nothing.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn scan_tile<L, const WORDS: usize, const N: usize, const PLANES: bool>(
    lanes: L,
    blocks: Blocks<'_, PLANES>,
    rows: &Range<usize>,
    ask: Ask,
    words: usize,
    query_idxs: &[usize; N],
    queries: &[&[u64]],
    bounds: &mut [Option<u32>],
    sink: BatchSink<'_>,
) where
    L: Lanes,
{
    let words = if WORDS == 0 { words } else { WORDS };
    let mut splat = [[lanes.splat(0); MAX_WORDS]; N];
    for (splat, &query_idx) in splat.iter_mut().zip(query_idxs) {
        for (splat, &word) in splat[..words].iter_mut().zip(queries[query_idx]) {
            *splat = lanes.splat(word);
        }
    }
    // A finished query keeps a bound here, which a row in its way may pass; `report_to` asks again.
    let lane_bound = |bound: Option<u32>| lanes.splat(u64::from(bound.unwrap_or(0)));
    let mut lane_bounds = query_idxs.map(|query_idx| lane_bound(bounds[query_idx]));
    let mut report_to = |n: usize, distances, lane_mask, first_row| {
        let query_idx = query_idxs[n];
        if let Some(mut bound) = bounds[query_idx] {
            let mut sink = |row, distance| sink(query_idx, row, distance);
            let reported = report(
                lanes, distances, lane_mask, first_row, &mut bound, &mut sink,
            );
            bounds[query_idx] = reported.ok().map(|()| bound);
        }
        lane_bound(bounds[query_idx])
    };

    let mut block_idx = rows.start / BLOCK_ROWS;
    let mut lane_mask = u8::MAX << (rows.start % BLOCK_ROWS);
    let whole_end = rows.end / BLOCK_ROWS;
    loop {
        // Groups of whole blocks, once the partly wanted first block is behind.
        while lane_mask == u8::MAX && block_idx + GROUP <= whole_end {
            blocks.ask(block_idx, ask, words, true);
            let group = blocks.parts(block_idx, GROUP, words);
            let mut nearest = tile_distances(lanes, nth(group, 0, GROUP), &splat);
            for idx in 1..GROUP {
                let distances = tile_distances(lanes, nth(group, idx, GROUP), &splat);
                for (nearest, distances) in nearest.iter_mut().zip(distances) {
                    *nearest = lanes.min(*nearest, distances);
                }
            }
            let mut hits = 0;
            for (&nearest, &bound) in nearest.iter().zip(&lane_bounds) {
                hits |= lanes.within(nearest, bound);
            }
            if hits != 0 {
                for idx in 0..GROUP {
                    let row = (block_idx + idx) * BLOCK_ROWS;
                    let distances = tile_distances(lanes, nth(group, idx, GROUP), &splat);
                    for (n, distances) in distances.into_iter().enumerate() {
                        if lanes.within(distances, lane_bounds[n]) != 0 {
                            lane_bounds[n] = report_to(n, distances, u8::MAX, row);
                        }
                    }
                }
            }
            block_idx += GROUP;
        }
        if block_idx >= whole_end {
            // Rows past the end, padding among them, are masked off here and nowhere else.
            lane_mask &= (1u8 << (rows.end % BLOCK_ROWS)).wrapping_sub(1);
            if block_idx > whole_end || lane_mask == 0 {
                return;
            }
        }
        let block = blocks.parts(block_idx, 1, words);
        let distances = tile_distances(lanes, block, &splat);
        for (n, distances) in distances.into_iter().enumerate() {
            lane_bounds[n] = report_to(n, distances, lane_mask, block_idx * BLOCK_ROWS);
        }
        block_idx += 1;
        lane_mask = u8::MAX;
    }
}

/// Distances of one block to each query of a group.
#[inline(always)]
fn tile_distances<L: Lanes, const N: usize>(
    lanes: L,
    block: Parts<'_>,
    queries: &[[L::Word; MAX_WORDS]; N],
) -> [L::Distances; N] {
    let mut sums = [lanes.zero(); N];
    let (first, second) = (block.0.as_chunks().0, block.1.as_chunks().0);
    for (word_idx, row_words) in first.iter().chain(second).enumerate() {
        for (sum, query) in sums.iter_mut().zip(queries) {
            *sum = lanes.add(*sum, row_words, query[word_idx]);
        }
    }
    sums.map(|sum| lanes.finish(sum))
}

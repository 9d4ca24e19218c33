//! The nearest of some centers, for every code: each code against each center.
//!
//! Leaves out how centers are chosen.

use super::{INDEX_BITS, Lanes, Nearest};
use crate::code::{BLOCK_ROWS, CHUNK_ROWS, CodesRef};

/// The nearest center of each code, `BLOCKS` blocks at a time: a word of a center is then loaded once
/// for all their rows, and the blocks' own words stay in registers while the centers go by.
#[inline(always)]
pub(super) fn nearest_centers<L: Lanes, const WORDS: usize, const BLOCKS: usize>(
    lanes: L,
    codes: CodesRef<'_>,
    centers: &[u64],
    n_centers: usize,
    out: &mut [Nearest],
) {
    let words = codes.code_len().words();
    let in_planes = codes.rows_in_planes();
    let (of_planes, of_blocks) = out.split_at_mut(in_planes);
    // Chunks are brought into blocks: a copy is nothing beside so many comparisons.
    let mut chunk = vec![0; words * CHUNK_ROWS.min(in_planes)];
    for (chunk_idx, out) in of_planes.chunks_mut(CHUNK_ROWS).enumerate() {
        codes.copy_chunk(chunk_idx, &mut chunk);
        nearest_in_blocks::<L, WORDS, BLOCKS>(lanes, &chunk, centers, n_centers, words, out);
    }
    let blocks = &codes.blocks()[in_planes * words..];
    nearest_in_blocks::<L, WORDS, BLOCKS>(lanes, blocks, centers, n_centers, words, of_blocks);
}

/// The same of codes in blocks.
#[inline(always)]
fn nearest_in_blocks<L: Lanes, const WORDS: usize, const BLOCKS: usize>(
    lanes: L,
    blocks: &[u64],
    centers: &[u64],
    n_centers: usize,
    words: usize,
    out: &mut [Nearest],
) {
    let words = if WORDS == 0 { words } else { WORDS };
    let block_words = words * BLOCK_ROWS;
    let mut groups = blocks.chunks_exact(BLOCKS * block_words);
    let mut outs = out.chunks_mut(BLOCKS * BLOCK_ROWS);
    for (group, out) in groups.by_ref().zip(outs.by_ref()) {
        nearest_of_group::<L, WORDS, BLOCKS>(lanes, group, centers, n_centers, words, out);
    }
    let rest = groups.remainder().chunks_exact(block_words);
    for (block, out) in rest.zip(outs.flat_map(|out| out.chunks_mut(BLOCK_ROWS))) {
        nearest_of_group::<L, WORDS, 1>(lanes, block, centers, n_centers, words, out);
    }
}

/// The nearest centers of `BLOCKS` blocks.
#[inline(always)]
fn nearest_of_group<L: Lanes, const WORDS: usize, const BLOCKS: usize>(
    lanes: L,
    group: &[u64],
    centers: &[u64],
    n_centers: usize,
    words: usize,
    out: &mut [Nearest],
) {
    let words = if WORDS == 0 { words } else { WORDS };
    let block_words = words * BLOCK_ROWS;
    // One load of bounds instead of one a block and word.
    let group = &group[..BLOCKS * block_words];
    let rows = group.as_chunks::<BLOCK_ROWS>().0;
    let mut nearest: [L::Distances; BLOCKS] = [lanes.none(); BLOCKS];
    for (centers_idx, centers) in centers.chunks_exact(block_words).enumerate() {
        let first = centers_idx * BLOCK_ROWS;
        for lane in 0..BLOCK_ROWS.min(n_centers - first) {
            let mut sums: [L::Sum; BLOCKS] = [lanes.zero(); BLOCKS];
            for word_idx in 0..words {
                let center = lanes.splat(centers[word_idx * BLOCK_ROWS + lane]);
                for (block_idx, sum) in sums.iter_mut().enumerate() {
                    *sum = lanes.add(*sum, &rows[block_idx * words + word_idx], center);
                }
            }
            let index = lanes.splat((first + lane) as u64);
            for (nearest, sum) in nearest.iter_mut().zip(sums) {
                *nearest = lanes.min(*nearest, lanes.keys(lanes.finish(sum), index));
            }
        }
    }
    for (out, nearest) in out.chunks_mut(BLOCK_ROWS).zip(nearest) {
        for (out, key) in out.iter_mut().zip(lanes.to_array(nearest)) {
            *out = Nearest {
                center: key & ((1 << INDEX_BITS) - 1),
                distance: key >> INDEX_BITS,
            };
        }
    }
}

//! Which of some words that lie together are near one word: a stretch of short codes, or of sketches.
//!
//! A *sketch* is 32 bits of a code. Beside the scan because a stretch is a few lines long and begins
//! anywhere; a scan of it would spend more on its ends.

use crate::code::BLOCK_ROWS;
use crate::hamming::{Lanes, NUMBERS_AT_ONCE};

/// Bit `i`: whether `sketches[i]` differs from `query` in at most `bound` bits. At most sixteen of them.
#[inline(always)]
pub(super) fn sketches_within(sketches: &[u32], query: u32, bound: u32) -> u16 {
    sketches.iter().rev().fold(0, |near, &sketch| {
        near << 1 | u16::from((sketch ^ query).count_ones() <= bound)
    })
}

/// The places of [`Kernel::near_sketches`](crate::hamming::Kernel::near_sketches).
#[inline(always)]
pub(super) fn near_sketch_places<L: Lanes>(
    lanes: L,
    sketches: &[u32],
    stretches: &[(u32, u32)],
    query: u32,
    bound: u32,
    out: &mut Vec<u32>,
) {
    let within = |sketches: &[u32]| lanes.sketches_within(sketches, query, bound);
    for &(start, end) in stretches {
        let stretch = &sketches[start as usize..end as usize];
        let mut first = start;
        // In long stretches two loads share one branch: nearly all sketches are far. At the end, which may be all of a
        // short one, it would often be predicted wrong.
        let (pairs, rest) = stretch.as_chunks::<{ 2 * NUMBERS_AT_ONCE }>();
        for pair in pairs {
            let (low, high) = pair.split_at(NUMBERS_AT_ONCE);
            let near = [within(low), within(high)];
            if near != [0, 0] {
                keep(lanes, near[0], first, out);
                keep(lanes, near[1], first + NUMBERS_AT_ONCE as u32, out);
            }
            first += pair.len() as u32;
        }
        for chunk in rest.chunks(NUMBERS_AT_ONCE) {
            keep(lanes, within(chunk), first, out);
            first += chunk.len() as u32;
        }
    }
}

/// The places of [`Kernel::near_words`](crate::hamming::Kernel::near_words).
#[inline(always)]
pub(super) fn near_word_places<L: Lanes>(
    lanes: L,
    words: &[u64],
    stretches: &[(u32, u32)],
    query: u64,
    bound: u32,
    out: &mut Vec<u32>,
) {
    let (query, bound) = (lanes.splat(query), lanes.splat(u64::from(bound)));
    let (blocks, _) = words.as_chunks::<BLOCK_ROWS>();
    for &(start, end) in stretches {
        let (start, end) = (start as usize, end as usize);
        // Whole blocks, which are whole cache lines, and then what of them is meant.
        let first_block = start / BLOCK_ROWS;
        let blocks = &blocks[first_block..end.div_ceil(BLOCK_ROWS)];
        let firsts = (first_block * BLOCK_ROWS..).step_by(BLOCK_ROWS);
        for (first, block) in firsts.zip(blocks) {
            let distances = lanes.finish(lanes.add(lanes.zero(), block, query));
            let near = u16::from(lanes.within(distances, bound)) & rows_of(start, end, first);
            if near != 0 {
                keep(lanes, near, first as u32, out);
            }
        }
    }
}

/// Bit `i`: whether row `first + i` of a block is one of `start..end`.
#[inline(always)]
fn rows_of(start: usize, end: usize, first: usize) -> u16 {
    let below = |row: usize| (1u16 << row.saturating_sub(first).min(BLOCK_ROWS)) - 1;
    below(end) & !below(start)
}

/// Appends the places of the set bits, bit 0 being the place `first`.
///
/// All places are copied and those of no meaning dropped: no branch on how many there are.
#[inline(always)]
pub(super) fn keep<L: Lanes>(lanes: L, near: u16, first: u32, out: &mut Vec<u32>) {
    let (places, n_places) = lanes.places(near, first);
    let n_kept = out.len() + n_places;
    out.extend_from_slice(&places);
    out.truncate(n_kept);
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use crate::hamming::Kernel;

    #[test]
    fn every_kernel_finds_the_near_ones_of_every_stretch() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let sketches: Vec<u32> = (0..200).map(|_| rng.random()).collect();
        let words: Vec<u64> = (0..200).map(|_| rng.random()).collect();
        for kernel in Kernel::available() {
            for len in (0..70).chain([127, 128, 129]) {
                let start = rng.random_range(0..200 - len);
                // About half of the words are nearer than half of their bits; none is within 0 of another.
                for share in [0, 8, 15, 16, 17, 32] {
                    let (sketch, word) = (sketches[start], words[start]);
                    let near: Vec<u32> = (start..start + len)
                        .filter(|&i| (sketches[i] ^ sketch).count_ones() <= share)
                        .map(|i| i as u32)
                        .collect();
                    let mut out = Vec::new();
                    // As two stretches that meet, with an empty one between them.
                    let [start_at, middle, end] = [start, start + len / 3, start + len];
                    let [start_at, middle, end] = [start_at, middle, end].map(|at| at as u32);
                    let stretches = [(start_at, middle), (middle, middle), (middle, end)];
                    kernel.near_sketches(&sketches, &stretches, sketch, share, &mut out);
                    assert_eq!(out, near, "{kernel:?}, {len} sketches from {start}");
                    out.clear();
                    kernel.near_sketches(&sketches, &[(start_at, end)], sketch, share, &mut out);
                    assert_eq!(out, near, "{kernel:?}, {len} sketches from {start}");

                    let near: Vec<u32> = (start..start + len)
                        .filter(|&i| (words[i] ^ word).count_ones() <= 2 * share)
                        .map(|i| i as u32)
                        .collect();
                    out.clear();
                    kernel.near_words(&words, &stretches, word, 2 * share, &mut out);
                    assert_eq!(out, near, "{kernel:?}, {len} words from {start}");
                }
            }
        }
    }
}

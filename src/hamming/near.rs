//! Which codes of one word that lie together are near another one.
//!
//! Beside the scan because such a stretch is a few lines long and begins anywhere; a scan of it would spend more on
//! its ends.

use std::array;

use smallvec::SmallVec;

use crate::code::BLOCK_ROWS;
use crate::hamming::{BYTES_AT_ONCE, Lanes};

/// Codes of which the nearest are found at once, and the stretches that those may lie in, without taking memory.
pub(crate) const NEAREST_OF_MAX: usize = 4096;
pub(crate) const NEAREST_STRETCHES_MAX: usize = 32;

/// Of each stretch the first and the last line may be of a code each.
const NEAREST_LINES: usize = NEAREST_OF_MAX / BYTES_AT_ONCE + 2 * NEAREST_STRETCHES_MAX;

/// A code that is near: its place, and its distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Near(u64);

impl Near {
    #[inline]
    pub(crate) fn place(self) -> u32 {
        self.0 as u32
    }

    #[inline]
    pub(crate) fn distance(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What [`Kernel::near_words`](crate::hamming::Kernel::near_words) finds.
#[inline(always)]
pub(super) fn near_words<L: Lanes>(
    lanes: L,
    words: &[u64],
    stretches: &[(u32, u32)],
    query: u64,
    bound: u32,
    out: &mut Vec<Near>,
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
            let near = lanes.within(distances, bound);
            // Most blocks have none, of the rows that are meant or others.
            if near != 0 {
                let meant = near & rows_of(start, end, first);
                // All are copied and those of no meaning dropped: no branch on how many there are.
                let (keys, n_near) = lanes.near_keys(meant, distances, first as u32);
                let n_kept = out.len() + n_near;
                out.extend_from_slice(&keys.map(Near));
                out.truncate(n_kept);
            }
        }
    }
}

/// Bit `i`: whether row `first + i` of a block is one of `start..end`.
#[inline(always)]
fn rows_of(start: usize, end: usize, first: usize) -> u8 {
    let below = |row: usize| (1u16 << row.saturating_sub(first).min(BLOCK_ROWS)) - 1;
    (below(end) & !below(start)) as u8
}

/// What [`Kernel::first_met`](crate::hamming::Kernel::first_met) keeps.
#[inline(always)]
pub(super) fn first_met(
    words: &[u64],
    query: u64,
    masks: &[u64],
    limits: &[u32],
    own: usize,
    near: &mut Vec<Near>,
) -> bool {
    let (mut n_kept, mut is_sound) = (0, true);
    for first in (0..near.len()).step_by(BLOCK_ROWS) {
        // Past the last one, the last one again: whole blocks become instructions for many words at once.
        let last = near.len() - 1;
        let of_block: [Near; BLOCK_ROWS] = array::from_fn(|idx| near[last.min(first + idx)]);
        let differing = of_block.map(|near| words[near.place() as usize] ^ query);
        let distances =
            |mask: u64| differing.map(|differing| u64::from((differing & mask).count_ones()));
        let mut is_met = [false; BLOCK_ROWS];
        for (&mask, &limit) in masks.iter().zip(limits) {
            for (is_met, distance) in is_met.iter_mut().zip(distances(mask)) {
                *is_met |= distance < u64::from(limit);
            }
        }
        let own_limit = u64::from(limits[own]);
        is_sound &= distances(masks[own]) == [own_limit; BLOCK_ROWS];
        // No branch: which of them were met before is anybody's guess.
        let n_of_block = BLOCK_ROWS.min(near.len() - first);
        for (of_block, is_met) in of_block.into_iter().zip(is_met).take(n_of_block) {
            near[n_kept] = of_block;
            n_kept += usize::from(!is_met);
        }
    }
    near.truncate(n_kept);
    is_sound
}

/// What [`Kernel::nearest_words`](crate::hamming::Kernel::nearest_words) finds.
#[inline(always)]
pub(super) fn nearest_words<L: Lanes>(
    lanes: L,
    words: &[u64],
    stretches: &[(u32, u32)],
    query: u64,
    k: usize,
    bound: u32,
    out: &mut Vec<Near>,
) {
    let query = lanes.splat(query);
    let (blocks, _) = words.as_chunks::<BLOCK_ROWS>();
    // Of each stretch whole lines, with the place of each line's first word.
    let mut lines: SmallVec<[[u8; BYTES_AT_ONCE]; NEAREST_LINES]> = SmallVec::new();
    let mut firsts: SmallVec<[usize; NEAREST_LINES]> = SmallVec::new();
    for &(start, end) in stretches {
        let (start, end) = (start as usize, end as usize);
        let (begin, first_line) = (start / BLOCK_ROWS, lines.len());
        let blocks = blocks[begin..end.div_ceil(BLOCK_ROWS)].chunks(BYTES_AT_ONCE / BLOCK_ROWS);
        for (line_idx, blocks) in blocks.enumerate() {
            let mut line = [u8::MAX; BYTES_AT_ONCE];
            let (of_blocks, _) = line.as_chunks_mut::<BLOCK_ROWS>();
            for (distances, block) in of_blocks.iter_mut().zip(blocks) {
                *distances = lanes.to_bytes(lanes.finish(lanes.add(lanes.zero(), block, query)));
            }
            firsts.push(begin * BLOCK_ROWS + line_idx * BYTES_AT_ONCE);
            lines.push(line);
        }
        // Words of the first and the last block that are not meant.
        if let Some(&first) = firsts.get(first_line) {
            let of_stretch = lines[first_line..].as_flattened_mut();
            of_stretch[..start - first].fill(u8::MAX);
            of_stretch[end - first..].fill(u8::MAX);
        }
    }
    // A line is compared in a few instructions, so that halving finds the bound sooner than sorting or a histogram would.
    let n_within = |bound: u32| -> usize {
        let of_line = |line| lanes.within_bytes(line, bound as u8).count_ones() as usize;
        lines.iter().map(of_line).sum()
    };
    let (mut low, mut high) = (0, bound.min(u64::BITS));
    while low < high {
        let middle = (low + high) / 2;
        match n_within(middle) >= k {
            true => high = middle,
            false => low = middle + 1,
        }
    }
    for (line, first) in lines.iter().zip(firsts) {
        let mut near = lanes.within_bytes(line, low as u8);
        while near != 0 {
            let idx = near.trailing_zeros() as usize;
            out.push(Near(u64::from(line[idx]) << 32 | (first + idx) as u64));
            near &= near - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::NEAREST_STRETCHES_MAX;
    use crate::hamming::Kernel;

    #[test]
    fn every_kernel_finds_the_near_ones_of_every_stretch() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let words: Vec<u64> = (0..200).map(|_| rng.random()).collect();
        for kernel in Kernel::available() {
            for len in (0..70).chain([127, 128, 129]) {
                let start = rng.random_range(0..200 - len);
                // About half of the words are nearer than half of their bits; none is within 0 of another.
                for share in [0, 8, 15, 16, 17, 32] {
                    let word = words[start];
                    // As two stretches that meet, with an empty one between them.
                    let [start_at, middle, end] = [start, start + len / 3, start + len];
                    let [start_at, middle, end] = [start_at, middle, end].map(|at| at as u32);
                    let stretches = [(start_at, middle), (middle, middle), (middle, end)];
                    let near: Vec<(u32, u32)> = (start..start + len)
                        .map(|i| (i as u32, (words[i] ^ word).count_ones()))
                        .filter(|&(_, distance)| distance <= 2 * share)
                        .collect();
                    let mut out = Vec::new();
                    kernel.near_words(&words, &stretches, word, 2 * share, &mut out);
                    let out: Vec<(u32, u32)> = out
                        .iter()
                        .map(|near| (near.place(), near.distance()))
                        .collect();
                    assert_eq!(out, near, "{kernel:?}, {len} words from {start}");
                }
            }
        }
    }

    #[test]
    fn every_kernel_finds_the_k_nearest_of_every_stretch() {
        let mut rng = ChaCha8Rng::seed_from_u64(13);
        for case in 0..300 {
            // Some with few distances, so that many are equal.
            let mask = [u64::MAX, 0xff, 0][case % 3];
            let words: Vec<u64> = (0..5000).map(|_| rng.random::<u64>() & mask).collect();
            let query = words[0] ^ [0, u64::MAX][case / 3 % 2];
            let mut stretches = Vec::new();
            let mut end = 0;
            for _ in 0..[1, 1, 3, NEAREST_STRETCHES_MAX][case % 4] {
                let start = end + rng.random_range(0..20);
                end = (start + rng.random_range(0..[4, 100, 1400][case % 3])).min(5000);
                stretches.push((start.min(end) as u32, end as u32));
            }
            let k = [1, 2, 10, 100, 1000, usize::MAX][case % 6];
            let bound = rng.random_range(0..=70);
            let meant = stretches.iter().flat_map(|&(start, end)| start..end);
            let mut near: Vec<(u32, u32)> = meant
                .map(|i| (i, (words[i as usize] ^ query).count_ones()))
                .filter(|&(_, distance)| distance <= bound)
                .collect();
            let mut distances: Vec<u32> = near.iter().map(|&(_, distance)| distance).collect();
            distances.sort_unstable();
            let kth = distances.get(k - 1).copied().unwrap_or(bound);
            near.retain(|&(_, distance)| distance <= kth);
            for kernel in Kernel::available() {
                let mut out = Vec::new();
                kernel.nearest_words(&words, &stretches, query, k, bound, &mut out);
                let out: Vec<(u32, u32)> = out
                    .iter()
                    .map(|near| (near.place(), near.distance()))
                    .collect();
                assert_eq!(out, near, "{kernel:?}, case {case}, {stretches:?}");
            }
        }
    }

    #[test]
    fn every_kernel_keeps_what_is_met_for_the_first_time() {
        let mut rng = ChaCha8Rng::seed_from_u64(12);
        let words: Vec<u64> = (0..4000).map(|_| rng.random()).collect();
        let query: u64 = rng.random();
        let masks = [0x1f << 3, 0x7f << 40, 7, 0xff << 20, 0x3f << 52];
        let distance = |word: u64, mask: u64| ((word ^ query) & mask).count_ones();
        for kernel in Kernel::available() {
            for (radius, own) in [(0, 0), (1, 2), (1, 4), (2, 0), (2, 4)] {
                // Those before `own` one farther; the codes of a shell, which have a distance by their own mask.
                let limits: Vec<u32> = (0..masks.len())
                    .map(|other| radius + u32::from(other < own))
                    .collect();
                let mut shell: Vec<u64> = words.clone();
                shell.retain(|&word| distance(word, masks[own]) == radius);
                let n_words = shell.len() as u32;
                let expected: Vec<u32> = (0..n_words)
                    .filter(|&place| {
                        let before = |other: usize| {
                            (distance(shell[place as usize], masks[other]), other) < (radius, own)
                        };
                        !(0..masks.len()).any(before)
                    })
                    .collect();
                shell.resize(shell.len().next_multiple_of(8), 0);
                let mut near = Vec::new();
                kernel.near_words(&shell, &[(0, n_words)], query, 64, &mut near);
                assert!(kernel.first_met(&shell, query, &masks, &limits, own, &mut near));
                let places: Vec<u32> = near.iter().map(|near| near.place()).collect();
                assert_eq!(places, expected, "{kernel:?}, shell {radius} of {own}");
                // A code of another shell.
                assert!(!near.is_empty());
                shell[near[0].place() as usize] ^= masks[own] & masks[own].wrapping_neg();
                assert!(!kernel.first_met(&shell, query, &masks, &limits, own, &mut near));
            }
        }
    }
}

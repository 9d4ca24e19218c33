//! Which codes of one word that lie together are near another one.
//!
//! Beside the scan because such a stretch is a few lines long and begins anywhere; a scan of it would spend more on
//! its ends.

use crate::code::BLOCK_ROWS;
use crate::hamming::Lanes;

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
    for idx in 0..near.len() {
        let differing = words[near[idx].place() as usize] ^ query;
        let mut is_met = false;
        for (mask, &limit) in masks.iter().zip(limits) {
            is_met |= (differing & mask).count_ones() < limit;
        }
        is_sound &= (differing & masks[own]).count_ones() == limits[own];
        // No branch: which of them were met before is anybody's guess.
        near[n_kept] = near[idx];
        n_kept += usize::from(!is_met);
    }
    near.truncate(n_kept);
    is_sound
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

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

//! The scan of one query over blocks that it reads whole, whether they lie in planes or not.
//!
//! What a scan may leave unread is the concern of `planes`.

use std::ops::Range;

use super::{Lanes, MAX_WORDS, Sink, prefetch_word};
use crate::code::{BLOCK_ROWS, first_words, places};

/// Which rows a scan may report.
pub(super) trait RowMask: Copy {
    /// One bit a row of the [`GROUP`] blocks from `block_idx` on, a multiple of [`GROUP`].
    fn group(self, block_idx: usize) -> u32;
    /// One bit a row of one block.
    fn block(self, block_idx: usize) -> u8;
}

/// Every row.
#[derive(Clone, Copy)]
pub(super) struct AllRows;

impl RowMask for AllRows {
    #[inline(always)]
    fn group(self, _: usize) -> u32 {
        u32::MAX
    }

    #[inline(always)]
    fn block(self, _: usize) -> u8 {
        u8::MAX
    }
}

/// Rows whose bit is set.
#[derive(Clone, Copy)]
pub(super) struct RowSet<'a>(pub(super) &'a [u64]);

impl RowMask for RowSet<'_> {
    #[inline(always)]
    fn group(self, block_idx: usize) -> u32 {
        (self.0[block_idx / BLOCK_ROWS] >> (block_idx % BLOCK_ROWS * BLOCK_ROWS)) as u32
    }

    #[inline(always)]
    fn block(self, block_idx: usize) -> u8 {
        (self.0[block_idx / BLOCK_ROWS] >> (block_idx % BLOCK_ROWS * BLOCK_ROWS)) as u8
    }
}

/// Blocks that share one branch: nearly all groups hold no hit, and one branch then settles 32 rows.
pub(super) const GROUP: usize = 4;

/// How far ahead of the scan memory is asked for, in 64-bit words: eight KiB measured best, the hardware's own
/// prefetcher stops at page ends.
pub(super) const AHEAD_WORDS: usize = 8192 / 8;

/// As many blocks, of so many words each.
#[inline(always)]
pub(super) const fn blocks_ahead(words: usize) -> usize {
    (AHEAD_WORDS / (words * BLOCK_ROWS)).next_multiple_of(GROUP)
}

/// Blocks that lie in planes, all of them, or one after the other.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a, const PLANES: bool>(pub(super) &'a [u64]);

/// The words of some blocks that follow each other: what lies in the first plane and in the second, or all
/// in the first place if there are no planes.
pub(super) type Parts<'a> = (&'a [u64], &'a [u64]);

impl<'a, const PLANES: bool> Blocks<'a, PLANES> {
    /// Words of a code in the first part, of so many in both.
    #[inline(always)]
    fn in_first(words: usize) -> usize {
        match PLANES {
            true => first_words(words),
            false => words,
        }
    }

    /// Where the two parts of a block begin.
    #[inline(always)]
    pub(super) fn starts(block_idx: usize, words: usize) -> (usize, usize) {
        let in_planes = if PLANES { usize::MAX } else { 0 };
        places(words, in_planes, block_idx * BLOCK_ROWS)
    }

    /// Blocks from one on, of one chunk if they lie in planes.
    #[inline(always)]
    pub(super) fn parts(self, block_idx: usize, n_blocks: usize, words: usize) -> Parts<'a> {
        let (first, second) = Self::starts(block_idx, words);
        let n_first = n_blocks * Self::in_first(words) * BLOCK_ROWS;
        let n_second = n_blocks * words * BLOCK_ROWS - n_first;
        let first = &self.0[first..first + n_first];
        match PLANES {
            true => (first, &self.0[second..second + n_second]),
            false => (first, &[]),
        }
    }

    /// Asks for the memory of a group that is read some time after group `block_idx`, if it begins before
    /// block `end`.
    #[inline(always)]
    pub(super) fn ask(self, block_idx: usize, end: usize, words: usize) {
        let ahead = block_idx + blocks_ahead(words);
        if ahead < end {
            let (first, second) = Self::starts(ahead, words);
            let n_first = GROUP * Self::in_first(words);
            for line in 0..n_first {
                prefetch_word(self.0, first + line * BLOCK_ROWS);
            }
            for line in 0..GROUP * words - n_first {
                prefetch_word(self.0, second + line * BLOCK_ROWS);
            }
        }
    }
}

/// One of some blocks, of which each part holds `n_blocks`.
#[inline(always)]
pub(super) fn nth(parts: Parts<'_>, idx: usize, n_blocks: usize) -> Parts<'_> {
    let (first, second) = (parts.0.len() / n_blocks, parts.1.len() / n_blocks);
    let of_first = &parts.0[idx * first..(idx + 1) * first];
    (of_first, &parts.1[idx * second..(idx + 1) * second])
}

/// The words of a query in every lane.
#[inline(always)]
pub(super) fn splat<L: Lanes>(lanes: L, query: &[u64]) -> [L::Word; MAX_WORDS] {
    let mut splat = [lanes.splat(0); MAX_WORDS];
    for (lane_word, &word) in splat.iter_mut().zip(query) {
        *lane_word = lanes.splat(word);
    }
    splat
}

/// The differing bits of one block in some words, added to those before.
#[inline(always)]
pub(super) fn add_words<L: Lanes>(
    lanes: L,
    mut sum: L::Sum,
    words: &[u64],
    query: &[L::Word],
) -> L::Sum {
    for (row_words, &query_word) in words.as_chunks::<BLOCK_ROWS>().0.iter().zip(query) {
        sum = lanes.add(sum, row_words, query_word);
    }
    sum
}

/// Distances of one block, which has as many words a row as `query`.
#[inline(always)]
pub(super) fn block_distances<L: Lanes>(
    lanes: L,
    block: Parts<'_>,
    query: &[L::Word],
) -> L::Distances {
    let (in_first, in_second) = query.split_at(block.0.len() / BLOCK_ROWS);
    let sum = add_words(lanes, lanes.zero(), block.0, in_first);
    lanes.finish(add_words(lanes, sum, block.1, in_second))
}

/// Distances of each block of a group.
#[inline(always)]
pub(super) fn group_distances<L: Lanes>(
    lanes: L,
    group: Parts<'_>,
    query: &[L::Word],
) -> [L::Distances; GROUP] {
    [
        block_distances(lanes, nth(group, 0, GROUP), query),
        block_distances(lanes, nth(group, 1, GROUP), query),
        block_distances(lanes, nth(group, 2, GROUP), query),
        block_distances(lanes, nth(group, 3, GROUP), query),
    ]
}

/// Hands the lanes of one block that pass to the sink. `Err` once the sink has enough.
#[inline(always)]
pub(super) fn report<L: Lanes>(
    lanes: L,
    distances: L::Distances,
    lane_mask: u8,
    first_row: usize,
    bound: &mut u32,
    sink: Sink<'_>,
) -> Result<(), ()> {
    let mut hits = lanes.within(distances, lanes.splat(u64::from(*bound))) & lane_mask;
    if hits == 0 {
        return Ok(());
    }
    let distances = lanes.to_array(distances);
    while hits != 0 {
        let lane = hits.trailing_zeros() as usize;
        hits &= hits - 1;
        if distances[lane] <= *bound {
            *bound = sink(first_row + lane, distances[lane]).ok_or(())?;
        }
    }
    Ok(())
}

/// The scan of some rows, which reads all of their words. `WORDS` is the number of words of a code, or 0 to
/// take it from the query. Gives the bound for rows to come, or `None` once the sink has enough. Memory is
/// asked for as far as block `ask_end`.
///
/// Contract: `rows` is not empty and lies within the blocks and the mask, and in one chunk if they are in
/// planes. Under a mask that leaves rows out, it starts at the first row of a group.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn scan_rows<L: Lanes, const WORDS: usize, const PLANES: bool, M: RowMask>(
    lanes: L,
    blocks: Blocks<'_, PLANES>,
    rows: Range<usize>,
    ask_end: usize,
    mask: M,
    query: &[L::Word],
    mut bound: u32,
    sink: Sink<'_>,
) -> Option<u32> {
    let words = if WORDS == 0 { query.len() } else { WORDS };
    let query = &query[..words];

    let mut block_idx = rows.start / BLOCK_ROWS;
    let mut lane_mask = u8::MAX << (rows.start % BLOCK_ROWS);
    let whole_end = rows.end / BLOCK_ROWS;
    loop {
        // Groups of whole blocks, once the partly wanted first block is behind.
        while lane_mask == u8::MAX && block_idx + GROUP <= whole_end {
            blocks.ask(block_idx, ask_end, words);
            let group = blocks.parts(block_idx, GROUP, words);
            let [d0, d1, d2, d3] = group_distances(lanes, group, query);
            let nearest = lanes.min(lanes.min(d0, d1), lanes.min(d2, d3));
            if lanes.within(nearest, lanes.splat(u64::from(bound))) != 0 {
                // Only now: to mask every group costs more than the near ones of no wanted row.
                let wanted = mask.group(block_idx);
                let mut row = block_idx * BLOCK_ROWS;
                for (wanted, distances) in wanted.to_le_bytes().into_iter().zip([d0, d1, d2, d3]) {
                    report(lanes, distances, wanted, row, &mut bound, sink).ok()?;
                    row += BLOCK_ROWS;
                }
            }
            block_idx += GROUP;
        }
        if block_idx >= whole_end {
            // Rows past the end, padding among them, are masked off here and nowhere else.
            lane_mask &= (1u8 << (rows.end % BLOCK_ROWS)).wrapping_sub(1);
            if block_idx > whole_end || lane_mask == 0 {
                return Some(bound);
            }
        }
        let block = blocks.parts(block_idx, 1, words);
        let distances = block_distances(lanes, block, query);
        let row = block_idx * BLOCK_ROWS;
        lane_mask &= mask.block(block_idx);
        report(lanes, distances, lane_mask, row, &mut bound, sink).ok()?;
        block_idx += 1;
        lane_mask = u8::MAX;
    }
}

/// The scan of rows that lie in blocks.
///
/// Contract: as that of [`scan_rows`].
#[inline(always)]
pub(super) fn scan_blocks<L: Lanes, const WORDS: usize, M: RowMask>(
    lanes: L,
    blocks: &[u64],
    rows: Range<usize>,
    mask: M,
    query: &[u64],
    bound: u32,
    sink: Sink<'_>,
) {
    let words = if WORDS == 0 { query.len() } else { WORDS };
    let splat = splat(lanes, query);
    let (query, end) = (&splat[..words], rows.end / BLOCK_ROWS);
    let blocks = Blocks::<false>(blocks);
    scan_rows::<L, WORDS, false, M>(lanes, blocks, rows, end, mask, query, bound, sink);
}

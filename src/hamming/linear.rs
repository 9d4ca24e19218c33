//! The scan of one query over blocks that it reads whole, whether they lie in planes or not.
//!
//! What a scan may leave unread is the concern of `planes`.

use std::ops::Range;

use super::{Lanes, MAX_WORDS, Sink, prefetch_word};
use crate::code::{BLOCK_ROWS, CHUNK_BLOCKS, first_words, places};

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

/// How far ahead of a short scan memory is asked for, in 64-bit words: eight KiB measured best, the hardware's
/// own prefetcher stops at page ends.
pub(super) const AHEAD_WORDS: usize = 8192 / 8;

/// Of codes of this many words or more, 16 MiB, memory is asked for by pages: fewer may lie in a cache, which
/// gives what it has sooner in the order of addresses.
const BY_PAGES_WORDS_MIN: usize = (16 << 20) / 8;

/// The least of them, 256 KiB, that a scan has to read: the first tile is not asked for.
const BY_PAGES_READ_MIN: usize = (256 << 10) / 8;

/// Cache lines of a page of memory; a line is the words of a block in one place.
const PAGE_LINES: usize = 4096 / 64;

/// Pages that are asked for in turn, or about as many. Chunks of planes have their own number.
const TURN_PAGES: usize = 8;

/// How a scan asks for the memory that it comes to.
///
/// A long one asks by pages: for a line of each of some pages in turn, a tile or chunk ahead. In the order of
/// addresses, what a core gets is limited by how far the hardware's prefetcher runs ahead within a page; it
/// does so in each page that is asked for, and several of them bring 1.2 to 1.5 times as much.
#[derive(Clone, Copy)]
pub(super) struct Ask {
    /// The block at which the scan ends.
    end: usize,
    by_pages: bool,
}

impl Ask {
    /// For memory that an earlier pass has asked for.
    pub(super) const NOTHING: Ask = Ask {
        end: 0,
        by_pages: false,
    };

    /// Of a scan of some rows among `blocks`, with so many words a row.
    #[inline(always)]
    pub(super) fn new(blocks: &[u64], rows: &Range<usize>, words: usize) -> Ask {
        let end = rows.end / BLOCK_ROWS;
        let by_pages =
            blocks.len() >= BY_PAGES_WORDS_MIN && rows.len() * words >= BY_PAGES_READ_MIN;
        Ask { end, by_pages }
    }

    /// In the order of addresses, up to block `end`.
    #[inline(always)]
    pub(super) fn in_order(end: usize) -> Ask {
        let by_pages = false;
        Ask { end, by_pages }
    }
}

/// The lines of a stretch of so many whole pages in the order that gives each page one in turn: `n_lines` of
/// them from the `nth` on.
#[inline(always)]
fn in_turn(n_pages: usize, nth: usize, n_lines: usize) -> impl Iterator<Item = usize> {
    let (mut page, mut in_page) = (nth % n_pages, nth / n_pages);
    (0..n_lines).map(move |_| {
        let line = page * PAGE_LINES + in_page;
        page += 1;
        if page == n_pages {
            (page, in_page) = (0, in_page + 1);
        }
        line
    })
}

/// Asks for the memory of some lines, counted from a word.
#[inline(always)]
fn ask_lines(words: &[u64], start: usize, lines: impl Iterator<Item = usize>) {
    for line in lines {
        prefetch_word(words, start + line * BLOCK_ROWS);
    }
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

    /// Asks for the memory of a group that is read some time after group `block_idx`; of planes, for the
    /// second one where `both`.
    #[inline(always)]
    pub(super) fn ask(self, block_idx: usize, ask: Ask, words: usize, both: bool) {
        if !(ask.by_pages && self.ask_by_pages(block_idx, ask.end, words, both)) {
            self.ask_in_order(block_idx, ask.end, words, both);
        }
    }

    /// Asks for as many lines of the next tile or chunk, if that is whole.
    #[inline(always)]
    fn ask_by_pages(self, block_idx: usize, end: usize, words: usize, both: bool) -> bool {
        // As many blocks as a page has lines take as many pages as a code has words.
        let tile_blocks = match PLANES {
            true => CHUNK_BLOCKS,
            false => PAGE_LINES * (TURN_PAGES / words).max(1),
        };
        let (tile, in_tile) = (block_idx / tile_blocks, block_idx % tile_blocks);
        if (tile + 2) * tile_blocks > end {
            return false;
        }
        let (first, second) = Self::starts((tile + 1) * tile_blocks, words);
        let lines = |words: usize| {
            let n_pages = tile_blocks * words / PAGE_LINES;
            in_turn(n_pages, in_tile * words, GROUP * words)
        };
        let in_first = Self::in_first(words);
        ask_lines(self.0, first, lines(in_first));
        if both && words > in_first {
            ask_lines(self.0, second, lines(words - in_first));
        }
        true
    }

    /// Asks for the group that is a fixed way ahead.
    #[inline(always)]
    fn ask_in_order(self, block_idx: usize, end: usize, words: usize, both: bool) {
        let in_first = Self::in_first(words);
        let read = if both { words } else { in_first };
        let ahead = block_idx + (AHEAD_WORDS / (read * BLOCK_ROWS)).next_multiple_of(GROUP);
        if ahead < end {
            let (first, second) = Self::starts(ahead, words);
            ask_lines(self.0, first, 0..GROUP * in_first);
            if both {
                ask_lines(self.0, second, 0..GROUP * (words - in_first));
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
/// take it from the query. Gives the bound for rows to come, or `None` once the sink has enough.
///
/// Contract: `rows` is not empty and lies within the blocks and the mask, and in one chunk if they are in
/// planes. Under a mask that leaves rows out, it starts at the first row of a group.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn scan_rows<L: Lanes, const WORDS: usize, const PLANES: bool, M: RowMask>(
    lanes: L,
    blocks: Blocks<'_, PLANES>,
    rows: Range<usize>,
    ask: Ask,
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
            blocks.ask(block_idx, ask, words, true);
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
    let query = &splat[..words];
    let ask = Ask::new(blocks, &rows, words);
    let blocks = Blocks::<false>(blocks);
    scan_rows::<L, WORDS, false, M>(lanes, blocks, rows, ask, mask, query, bound, sink);
}

#[cfg(test)]
mod tests {
    use super::{GROUP, PAGE_LINES, in_turn};

    #[test]
    fn every_line_is_asked_for_once_and_neighbors_are_of_different_pages() {
        for n_pages in [1, 4, 8, 12, 20, 32] {
            let n_lines = n_pages * PAGE_LINES;
            let groups = (0..n_lines).step_by(GROUP);
            let order: Vec<usize> = groups
                .flat_map(|nth| in_turn(n_pages, nth, GROUP))
                .collect();
            for pair in order.windows(n_pages.min(2)) {
                assert_eq!(
                    pair[0] / PAGE_LINES == pair[pair.len() - 1] / PAGE_LINES,
                    n_pages == 1
                );
            }
            let mut sorted = order;
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..n_lines), "{n_pages} pages");
        }
    }
}

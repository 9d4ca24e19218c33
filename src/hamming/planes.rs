//! Scans of wide codes that leave the second plane unread where the first one settles it.
//!
//! The distance in some words is a lower limit on the distance. So a scan looks at the first plane alone, and
//! reads the whole of those blocks that have a near row there. Memory is asked for likewise, so that little
//! of the second plane comes into the cache at all. Where most blocks are near in their first words, rows are
//! read as if there were no planes; which of the two it is, the steps before tell.

use std::ops::Range;

use super::linear::{
    Ask, Blocks, GROUP, RowMask, block_distances, group_distances, report, scan_rows, splat,
};
use super::{Lanes, Sink, prefetch_word};
use crate::code::{BLOCK_ROWS, CHUNK_ROWS, CodesRef, first_words};

/// The most blocks that are looked at together, a bit each in a word.
const STEP_BLOCKS_MAX: usize = u64::BITS as usize;

/// A step's words in the first plane, at most: 8 KiB, which is also how far ahead memory is asked for.
const STEP_WORDS: usize = (8 << 10) / 8;

/// The most steps that are read whole before the first plane is tried again.
const WHOLE_STEPS_MAX: u32 = 32;

/// Fewer rows than this are read whole: a search that asks for a short stretch has its reasons to.
const ROWS_MIN: usize = 4 * CHUNK_ROWS;

/// Blocks of a step, which divide a chunk, of codes of so many words.
#[inline(always)]
const fn step_blocks(words: usize) -> usize {
    let blocks = STEP_WORDS / (first_words(words) * BLOCK_ROWS);
    let power = 1 << blocks.ilog2();
    match power < STEP_BLOCKS_MAX {
        true => power,
        false => STEP_BLOCKS_MAX,
    }
}

/// Whether so many near blocks of a step are too many for the next one to be looked at by its first plane:
/// beyond a quarter, what is left out no longer pays for what is read twice.
#[inline(always)]
pub(super) const fn is_crowded(n_near: usize, n_blocks: usize) -> bool {
    n_near > n_blocks / 4
}

/// The scan of rows that all lie in planes. `WORDS` is the number of words of a code, or 0 to take it from the
/// query. Gives the bound for rows to come, or `None` once the sink has enough.
///
/// Contract: as that of [`scan_rows`], but rows may be of several chunks.
#[inline(always)]
pub(super) fn scan_planes<L: Lanes, const WORDS: usize, M: RowMask>(
    lanes: L,
    codes: CodesRef<'_>,
    rows: Range<usize>,
    mask: M,
    query: &[u64],
    mut bound: u32,
    sink: Sink<'_>,
) -> Option<u32> {
    let words = if WORDS == 0 { query.len() } else { WORDS };
    let splat = splat(lanes, query);
    let query = &splat[..words];
    let blocks = Blocks::<true>(codes.blocks());
    let ask = Ask::new(codes.blocks(), &rows, words);
    let n_blocks = step_blocks(words);
    let step_rows = n_blocks * BLOCK_ROWS;
    let is_long = rows.len() >= ROWS_MIN;
    // Strange codes differ in half of their bits, or less: no bound beyond that leaves anything out.
    let far = first_words(words) as u32 * (u64::BITS / 2);
    // Whether the last step was worth it, and how many steps are read whole before another one is tried.
    let (mut in_two, mut wait, mut next_wait) = (false, 0, 1);
    // Near blocks of the step before: their other words are on the way while this step is looked at.
    let mut pending = (0, 0);
    let mut start = rows.start;
    while start < rows.end {
        let step = start..((start / step_rows + 1) * step_rows).min(rows.end);
        start = step.end;
        let is_whole = step.len() == step_rows;
        if is_whole && is_long && bound < far && (in_two || wait == 0) {
            let first = step.start / BLOCK_ROWS;
            let near =
                near_blocks::<L, WORDS, M>(lanes, blocks, first, ask, !in_two, mask, query, bound);
            report_near::<L, WORDS, M>(lanes, blocks, pending, mask, query, &mut bound, sink)?;
            pending = (first, near);
            in_two = !is_crowded(near.count_ones() as usize, n_blocks);
            if in_two {
                next_wait = 1;
            } else {
                wait = next_wait;
                next_wait = WHOLE_STEPS_MAX.min(2 * next_wait);
            }
        } else {
            report_near::<L, WORDS, M>(lanes, blocks, pending, mask, query, &mut bound, sink)?;
            pending = (0, 0);
            wait = wait.saturating_sub(u32::from(is_whole));
            #[cfg(test)]
            tests::count_read(step.len().div_ceil(BLOCK_ROWS));
            bound =
                scan_rows::<L, WORDS, true, M>(lanes, blocks, step, ask, mask, query, bound, sink)?;
        }
    }
    report_near::<L, WORDS, M>(lanes, blocks, pending, mask, query, &mut bound, sink)?;
    Some(bound)
}

/// Looks at the first plane of a step that begins with block `first`: a bit for each block with a wanted row
/// that is near there. Memory of the second plane is asked for of near blocks, and `ask_whole` of all.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn near_blocks<L: Lanes, const WORDS: usize, M: RowMask>(
    lanes: L,
    blocks: Blocks<'_, true>,
    first: usize,
    ask: Ask,
    ask_whole: bool,
    mask: M,
    query: &[L::Word],
    bound: u32,
) -> u64 {
    let words = if WORDS == 0 { query.len() } else { WORDS };
    let (in_first, in_second) = (first_words(words), words - first_words(words));
    let query = &query[..in_first];
    let n_blocks = step_blocks(words);
    let step = blocks.parts(first, n_blocks, words);
    let bound = lanes.splat(u64::from(bound));
    let mut near = 0;
    let groups = step.0.chunks_exact(GROUP * in_first * BLOCK_ROWS);
    for (group_idx, group) in groups.enumerate() {
        blocks.ask(first + group_idx * GROUP, ask, words, ask_whole);
        let [d0, d1, d2, d3] = group_distances(lanes, (group, &[]), query);
        let nearest = lanes.min(lanes.min(d0, d1), lanes.min(d2, d3));
        if lanes.within(nearest, bound) == 0 {
            continue;
        }
        let wanted = mask.group(first + group_idx * GROUP).to_le_bytes();
        for (idx, distances) in [d0, d1, d2, d3].into_iter().enumerate() {
            if lanes.within(distances, bound) & wanted[idx] != 0 {
                let place = group_idx * GROUP + idx;
                near |= 1 << place;
                for line in place * in_second..(place + 1) * in_second {
                    prefetch_word(step.1, line * BLOCK_ROWS);
                }
            }
        }
    }
    near
}

/// Reads the whole of some blocks, a bit each from a first one on, and reports their near rows. `None` once the
/// sink has enough.
#[inline(always)]
fn report_near<L: Lanes, const WORDS: usize, M: RowMask>(
    lanes: L,
    blocks: Blocks<'_, true>,
    (first, mut near): (usize, u64),
    mask: M,
    query: &[L::Word],
    bound: &mut u32,
    sink: Sink<'_>,
) -> Option<()> {
    let words = if WORDS == 0 { query.len() } else { WORDS };
    #[cfg(test)]
    tests::count_read(near.count_ones() as usize);
    while near != 0 {
        let block_idx = first + near.trailing_zeros() as usize;
        near &= near - 1;
        let block = blocks.parts(block_idx, 1, words);
        let distances = block_distances(lanes, block, &query[..words]);
        let (wanted, row) = (mask.block(block_idx), block_idx * BLOCK_ROWS);
        report(lanes, distances, wanted, row, bound, sink).ok()?;
    }
    Some(())
}

/// Every distance, padding excepted.
#[inline(always)]
pub(super) fn all_distances<L: Lanes, const WORDS: usize>(
    lanes: L,
    codes: CodesRef<'_>,
    query: &[u64],
    out: &mut [u32],
) {
    let words = if WORDS == 0 { query.len() } else { WORDS };
    let splat = splat(lanes, query);
    let query = &splat[..words];
    let in_planes = codes.rows_in_planes();
    let (of_planes, of_blocks) = out.split_at_mut(in_planes);
    for (block_idx, out) in of_planes
        .as_chunks_mut::<BLOCK_ROWS>()
        .0
        .iter_mut()
        .enumerate()
    {
        let block = Blocks::<true>(codes.blocks()).parts(block_idx, 1, words);
        *out = lanes.to_array(block_distances(lanes, block, query));
    }
    let mut blocks = codes.blocks()[in_planes * words..].chunks_exact(words * BLOCK_ROWS);
    let of_block = |block| lanes.to_array(block_distances(lanes, (block, &[]), query));
    let (whole, rest) = of_blocks.as_chunks_mut::<BLOCK_ROWS>();
    for (out, block) in whole.iter_mut().zip(&mut blocks) {
        *out = of_block(block);
    }
    if let (Some(block), false) = (blocks.next(), rest.is_empty()) {
        rest.copy_from_slice(&of_block(block)[..rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use crate::code::{BLOCK_ROWS, CHUNK_ROWS, CodeLen, Codes, HashCode};
    use crate::hamming::Kernel;

    thread_local! {
        /// Blocks in planes whose second plane was read by this thread.
        static SECOND_READ: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn count_read(n_blocks: usize) {
        SECOND_READ.set(SECOND_READ.get() + n_blocks);
    }

    fn random_code(rng: &mut ChaCha8Rng, len: CodeLen) -> HashCode {
        let mut code = HashCode::zeros(len);
        (0..len.bits()).for_each(|bit| code.set_bit(bit, rng.random_bool(0.5)));
        code
    }

    /// Codes in planes near one of some centers in turn, and the share of blocks that a search for the 10
    /// nearest reads whole.
    fn share_read(kernel: Kernel, len: CodeLen, n_centers: usize, flip: f64) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(len.bits() as u64);
        let centers: Vec<HashCode> = (0..n_centers).map(|_| random_code(&mut rng, len)).collect();
        let n_codes = 4 * CHUNK_ROWS;
        let mut codes = Codes::in_planes(len, n_codes);
        // Rows near one center lie together, as most blocks would have a near row otherwise.
        for row in 0..n_codes {
            let mut code = centers[row * n_centers / n_codes].clone();
            for bit in 0..len.bits() {
                if rng.random_bool(flip) {
                    code.set_bit(bit, !code.bit(bit));
                }
            }
            codes.push(&code).unwrap();
        }
        let query = codes.get(5);
        let mut nearest: Vec<u32> = Vec::new();
        SECOND_READ.set(0);
        let (rows, bits) = (0..n_codes, len.bits() as u32);
        kernel.scan(
            codes.as_ref(),
            rows,
            query.words(),
            bits,
            &mut |_, distance| {
                nearest.push(distance);
                nearest.sort_unstable();
                nearest.truncate(10);
                Some(if nearest.len() < 10 { bits } else { nearest[9] })
            },
        );
        SECOND_READ.get() as f64 / (n_codes / BLOCK_ROWS) as f64
    }

    #[test]
    fn most_of_the_second_plane_is_left_unread_where_codes_are_clustered() {
        for bits in [128, 192, 256, 512, 1024] {
            let len = CodeLen::new(bits).unwrap();
            for kernel in Kernel::available() {
                let clustered = share_read(kernel, len, 64, 0.1);
                assert!(clustered < 0.2, "{kernel:?}, {bits} bits: {clustered}");
                // And none is read twice where nothing can be left out.
                let uniform = share_read(kernel, len, 1, 0.5);
                assert!(uniform == 1.0, "{kernel:?}, {bits} bits: {uniform}");
            }
        }
    }
}

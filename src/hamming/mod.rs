//! Hamming distances over the blocked layout, on the best instructions this CPU has.
//!
//! The loops are written once, here, over the small trait `Lanes`: one word of the eight rows of a
//! block at a time. Each instruction set only says how to xor, count, add and compare eight lanes, and
//! instantiates the loops under its `target_feature`. [`Kernel`] is the only dispatch; it is decided once.
//! Leaves out: top-k, filters, doc ids. Planes that let a scan stop half way through wide codes would be
//! further loops beside these.

use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;

use crate::code::{BLOCK_ROWS, CodeLen, CodesRef};

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod batch;
mod near;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use scalar::Scalar;

/// Words of the widest code.
const MAX_WORDS: usize = CodeLen::MAX_BITS / 64;

/// Bits of a key that hold the index of a center; its distance stands above them.
const INDEX_BITS: u32 = 16;

/// The most centers that [`Kernel::nearest`] takes.
pub const MAX_CENTERS: usize = 1 << INDEX_BITS;

/// The center nearest to a code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nearest {
    /// Row of the center; of equally near centers, the first.
    pub center: u32,
    /// Differing bits.
    pub distance: u32,
}

/// What a scan calls with a row and its distance; it returns the bound for the rows to come, `None` to stop.
/// Few rows are near enough, so it is not worth a copy of the loops for each caller.
pub type Sink<'a> = &'a mut dyn FnMut(usize, u32) -> Option<u32>;

/// A [`Sink`] of many queries, which gets the place of the query first.
pub type BatchSink<'a> = &'a mut dyn FnMut(usize, usize, u32) -> Option<u32>;

/// A set of distance loops that this CPU can run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kernel(Isa);

/// Each variant carries the proof that the CPU has its instructions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Isa {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86_64::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(x86_64::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(aarch64::Neon),
}

/// Runs one loop on the instruction set of a kernel.
macro_rules! dispatch {
    ($kernel:expr, $lanes:ident => $body:expr) => {
        match $kernel.0 {
            Isa::Scalar($lanes) => $body,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2($lanes) => $body,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512($lanes) => $body,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon($lanes) => $body,
        }
    };
}

static BEST: LazyLock<Kernel> = LazyLock::new(|| {
    let available = Kernel::available();
    *available.last().expect("the scalar kernel runs everywhere")
});

impl Kernel {
    /// Portable 64-bit population counts: the reference for all others.
    pub const SCALAR: Kernel = Kernel(Isa::Scalar(Scalar));

    /// Every kernel this CPU runs, slowest first.
    pub fn available() -> Vec<Kernel> {
        #[allow(unused_mut)]
        let mut kernels = vec![Kernel::SCALAR];
        #[cfg(target_arch = "x86_64")]
        {
            kernels.extend(x86_64::Avx2::detect().map(|lanes| Kernel(Isa::Avx2(lanes))));
            kernels.extend(x86_64::Avx512::detect().map(|lanes| Kernel(Isa::Avx512(lanes))));
        }
        #[cfg(target_arch = "aarch64")]
        kernels.extend(aarch64::Neon::detect().map(|lanes| Kernel(Isa::Neon(lanes))));
        kernels
    }

    /// The fastest available kernel. Detected once.
    #[inline]
    pub fn best() -> Kernel {
        *BEST
    }

    /// A short name: `scalar`, `avx2`, `avx512` or `neon`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Isa::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
        }
    }

    /// Calls `sink(row, distance)`, in ascending row order, for each of `rows` whose distance to
    /// `query` is at most the bound.
    ///
    /// `bound` starts it; afterwards each call returns the bound for the rows to come, or `None` to
    /// stop. Raising the bound takes effect for later rows only. Panics if `rows` reach past the
    /// codes or `query` has another number of words.
    #[inline]
    pub fn scan(
        self,
        codes: CodesRef<'_>,
        rows: Range<usize>,
        query: &[u64],
        bound: u32,
        sink: Sink<'_>,
    ) {
        self.scan_masked(codes, rows, AllRows, query, bound, sink);
    }

    /// As [`scan`](Kernel::scan), for those of `rows` whose bit is set: bit `row % 64` of word `row / 64`.
    ///
    /// Panics, too, if the set does not reach to the end of `rows` or they do not start at a multiple of
    /// 32.
    #[inline]
    pub fn scan_set(
        self,
        codes: CodesRef<'_>,
        rows: Range<usize>,
        set: &[u64],
        query: &[u64],
        bound: u32,
        sink: Sink<'_>,
    ) {
        assert!(
            rows.start.is_multiple_of(GROUP * BLOCK_ROWS) && rows.end <= set.len() * 64,
            "rows {rows:?} under a set of {} words",
            set.len()
        );
        self.scan_masked(codes, rows, RowSet(set), query, bound, sink);
    }

    #[inline]
    fn scan_masked<M: RowMask>(
        self,
        codes: CodesRef<'_>,
        rows: Range<usize>,
        mask: M,
        query: &[u64],
        bound: u32,
        sink: Sink<'_>,
    ) {
        check(codes, query);
        assert!(
            rows.end <= codes.n_codes(),
            "rows up to {} of {} codes",
            rows.end,
            codes.n_codes()
        );
        if rows.is_empty() {
            return;
        }
        dispatch!(self, lanes => lanes.scan(codes.blocks(), rows, mask, query, bound, sink));
    }

    /// The [`scan`](Kernel::scan) of many queries over the same rows, which are read from memory once
    /// for all of them.
    ///
    /// Calls `sink(query_idx, row, distance)`, for each query in ascending row order, but with the calls
    /// of several queries mixed. `bounds` has the bound each query starts from, `None` for a query that
    /// wants nothing; afterwards each call returns the bound for the rows to come of that query, or `None`
    /// if it wants no more. `bounds` is left as the last calls returned.
    ///
    /// Panics if `rows` reach past the codes, a query has another number of words, or `bounds` is not
    /// as long as `queries`.
    pub fn scan_batch(
        self,
        codes: CodesRef<'_>,
        rows: Range<usize>,
        queries: &[&[u64]],
        bounds: &mut [Option<u32>],
        sink: BatchSink<'_>,
    ) {
        queries.iter().for_each(|query| check(codes, query));
        assert_eq!(queries.len(), bounds.len(), "one bound a query");
        assert!(
            rows.end <= codes.n_codes(),
            "rows up to {} of {} codes",
            rows.end,
            codes.n_codes()
        );
        let words = codes.code_len().words();
        dispatch!(self, lanes => {
            lanes.scan_batch(codes.blocks(), rows, words, queries, bounds, sink)
        });
    }

    /// Writes the distance from each code to `query`, in bits. Panics unless `out` has one place a
    /// code and `query` the codes' number of words.
    pub fn distances(self, codes: CodesRef<'_>, query: &[u64], out: &mut [u32]) {
        check(codes, query);
        assert_eq!(out.len(), codes.n_codes(), "one distance a code");
        dispatch!(self, lanes => lanes.distances(codes.blocks(), query, out));
    }

    /// The place of the smallest of these numbers, the first of equal ones; 0 without any.
    pub(crate) fn least(self, numbers: &[u32]) -> usize {
        dispatch!(self, lanes => lanes.least(numbers))
    }

    /// Appends to `out` the places where `distances[i]` is within `bound` of the stretch `extents[i]`, which
    /// begins with the number in its lower 16 bits and ends with that in its upper 16. Ascending.
    pub(crate) fn near_extents(
        self,
        distances: &[u32],
        extents: &[u32],
        bound: u32,
        out: &mut Vec<u32>,
    ) {
        dispatch!(self, lanes => lanes.near_extents(distances, extents, bound, out));
    }

    /// Appends to `out` the place of each of `sketches` that differs from `query` in at most `bound` bits,
    /// counted from `first`. Ascending.
    #[inline]
    pub(crate) fn near_sketches(
        self,
        sketches: &[u32],
        query: u32,
        bound: u32,
        first: u32,
        out: &mut Vec<u32>,
    ) {
        dispatch!(self, lanes => lanes.near_sketches(sketches, query, bound, first, out));
    }

    /// As [`near_sketches`](Kernel::near_sketches), for codes of one word.
    #[inline]
    pub(crate) fn near_words(
        self,
        words: &[u64],
        query: u64,
        bound: u32,
        first: u32,
        out: &mut Vec<u32>,
    ) {
        dispatch!(self, lanes => lanes.near_words(words, query, bound, first, out));
    }

    /// Writes the distance from each of `rows` to `query` where it is at most `bound`, and some value
    /// above `bound` where it is not. For rows all over the set, [`prefetch`] them a while before.
    ///
    /// Panics on a row past the last block, or unless `out` is as long as `rows`.
    #[inline]
    pub fn gather(
        self,
        codes: CodesRef<'_>,
        rows: &[u32],
        query: &[u64],
        bound: u32,
        out: &mut [u32],
    ) {
        check(codes, query);
        assert_eq!(out.len(), rows.len(), "one distance a row");
        dispatch!(self, lanes => lanes.gather(codes.blocks(), rows, query, bound, out));
    }

    /// Writes the nearest of `centers` to each code; of equally near ones, the first.
    ///
    /// Costs a comparison of every code with every center. One thread; threads may share the work by
    /// taking whole blocks each. Panics unless the lengths agree, there are 1 to [`MAX_CENTERS`]
    /// centers and `out` has one place a code.
    pub fn nearest(self, codes: CodesRef<'_>, centers: CodesRef<'_>, out: &mut [Nearest]) {
        assert_eq!(
            codes.code_len(),
            centers.code_len(),
            "lengths of the codes and of the centers"
        );
        let n_centers = centers.n_codes();
        assert!(
            (1..=MAX_CENTERS).contains(&n_centers),
            "1 to {MAX_CENTERS} centers, got {n_centers}"
        );
        assert_eq!(out.len(), codes.n_codes(), "one nearest center a code");
        let words = codes.code_len().words();
        dispatch!(self, lanes => {
            lanes.nearest(codes.blocks(), centers.blocks(), n_centers, words, out)
        });
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel({})", self.name())
    }
}

fn check(codes: CodesRef<'_>, query: &[u64]) {
    assert_eq!(
        codes.code_len().words(),
        query.len(),
        "words of the codes and of the query"
    );
}

/// Asks for the memory of row `row`, to be read soon. Harmless for a row past the end.
#[inline]
pub fn prefetch(codes: CodesRef<'_>, row: usize) {
    let words = codes.code_len().words();
    let first = row / BLOCK_ROWS * BLOCK_ROWS * words + row % BLOCK_ROWS;
    // Each word of a row lies on a cache line of its own; a gather seldom gets past the first few.
    for word_idx in 0..words.min(GATHER_STEP) {
        prefetch_word(codes.blocks(), first + word_idx * BLOCK_ROWS);
    }
}

/// Asks for the memory of some rows that lie together, as much of it as caches take up at a time.
#[inline]
pub(crate) fn prefetch_rows(codes: CodesRef<'_>, rows: Range<usize>) {
    let block_words = BLOCK_ROWS * codes.code_len().words();
    let first = rows.start / BLOCK_ROWS * block_words;
    let end = rows.end.div_ceil(BLOCK_ROWS) * block_words;
    for word in (first..end.min(first + PREFETCH_WORDS)).step_by(8) {
        prefetch_word(codes.blocks(), word);
    }
}

/// Asks for the cache line of `words[idx]`. Harmless past the end: a prefetch never faults.
#[inline(always)]
pub(crate) fn prefetch_word<T>(words: &[T], idx: usize) {
    let address = words.as_ptr().wrapping_add(idx);
    #[cfg(target_arch = "x86_64")]
    x86_64::prefetch(address);
    #[cfg(target_arch = "aarch64")]
    aarch64::prefetch(address);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// Eight lanes, one a row of a block. A value of the type proves that the CPU has the instructions,
/// which is what makes its methods safe to call. All are `#[inline(always)]`, so that they end up
/// inside the function that enables the instructions.
trait Lanes: Copy {
    /// A query word in every lane.
    type Word: Copy;
    /// Differing bits so far, in whatever form is cheapest to add to.
    type Sum: Copy;
    /// A distance in every lane.
    type Distances: Copy;

    fn splat(self, word: u64) -> Self::Word;
    fn zero(self) -> Self::Sum;
    /// Adds the bits in which `row_words` differ from `query`.
    fn add(self, sum: Self::Sum, row_words: &[u64; BLOCK_ROWS], query: Self::Word) -> Self::Sum;
    fn finish(self, sum: Self::Sum) -> Self::Distances;
    /// More than any key: what a minimum starts from.
    fn none(self) -> Self::Distances;
    fn min(self, a: Self::Distances, b: Self::Distances) -> Self::Distances;
    /// The distances, with `index` in the [`INDEX_BITS`] below them: `min` of such keys prefers the
    /// smaller distance, then the smaller index.
    fn keys(self, distances: Self::Distances, index: Self::Word) -> Self::Distances;
    /// Bit `lane` is set where the distance is at most `bound`.
    fn within(self, distances: Self::Distances, bound: Self::Word) -> u8;
    fn to_array(self, distances: Self::Distances) -> [u32; BLOCK_ROWS];

    /// Bit `i`: whether `distances[i]` is within `bound` of the stretch `extents[i]`.
    #[inline(always)]
    fn near(
        self,
        distances: &[u32; NUMBERS_AT_ONCE],
        extents: &[u32; NUMBERS_AT_ONCE],
        bound: u32,
    ) -> u16 {
        let pairs = distances.iter().zip(extents);
        pairs.rev().fold(0, |near, (&distance, &extent)| {
            near << 1 | u16::from(is_near(distance, extent, bound))
        })
    }

    /// Bit `i`: whether `sketches[i]` differs from `query` in at most `bound` bits. At most
    /// [`NUMBERS_AT_ONCE`] sketches.
    #[inline(always)]
    fn sketches_within(self, sketches: &[u32], query: u32, bound: u32) -> u16 {
        near::sketches_within(sketches, query, bound)
    }
}

/// Which rows a scan may report.
trait RowMask: Copy {
    /// One bit a row of the [`GROUP`] blocks from `block_idx` on, a multiple of [`GROUP`].
    fn group(self, block_idx: usize) -> u32;
    /// One bit a row of one block.
    fn block(self, block_idx: usize) -> u8;
}

/// Every row.
#[derive(Clone, Copy)]
struct AllRows;

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
struct RowSet<'a>(&'a [u64]);

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
const GROUP: usize = 4;

/// How far ahead of the scan memory is asked for, in 64-bit words. Two to four KiB measured best: the
/// hardware's own prefetcher stops at page ends.
const PREFETCH_WORDS: usize = 4096 / 8;

/// Words a gather reads before it asks whether the bound is already passed.
const GATHER_STEP: usize = 4;

/// Distances of one block. `block` holds as many groups of eight words as `query` has words.
#[inline(always)]
fn block_distances<L: Lanes>(lanes: L, block: &[u64], query: &[L::Word]) -> L::Distances {
    let mut sum = lanes.zero();
    for (row_words, &query_word) in block.as_chunks::<BLOCK_ROWS>().0.iter().zip(query) {
        sum = lanes.add(sum, row_words, query_word);
    }
    lanes.finish(sum)
}

/// Hands the lanes of one block that pass to the sink. `Err` once the sink has enough.
#[inline(always)]
fn report<L: Lanes>(
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

/// The scan. `WORDS` is the number of words of a code, or 0 to take it from the query.
///
/// Contract: `rows` is not empty and lies within the blocks and the mask. Under a mask that leaves rows
/// out, it starts at the first row of a group.
#[inline(always)]
fn scan_rows<L: Lanes, const WORDS: usize, M: RowMask>(
    lanes: L,
    blocks: &[u64],
    rows: Range<usize>,
    mask: M,
    query: &[u64],
    mut bound: u32,
    sink: Sink<'_>,
) {
    let words = if WORDS == 0 { query.len() } else { WORDS };
    let mut splat = [lanes.splat(0); MAX_WORDS];
    for (lane_word, &word) in splat.iter_mut().zip(query) {
        *lane_word = lanes.splat(word);
    }
    let query = &splat[..words];
    let block_words = words * BLOCK_ROWS;

    let mut block_idx = rows.start / BLOCK_ROWS;
    let mut lane_mask = u8::MAX << (rows.start % BLOCK_ROWS);
    let whole_end = rows.end / BLOCK_ROWS;
    let end_word = whole_end * block_words;
    loop {
        // Groups of whole blocks, once the partly wanted first block is behind.
        while lane_mask == u8::MAX && block_idx + GROUP <= whole_end {
            let start = block_idx * block_words;
            let group = &blocks[start..start + GROUP * block_words];
            // Never past the rows asked for: a short stretch would double its traffic.
            if start + PREFETCH_WORDS < end_word {
                for line in 0..GROUP * words {
                    prefetch_word(blocks, start + PREFETCH_WORDS + line * BLOCK_ROWS);
                }
            }
            let d0 = block_distances(lanes, &group[..block_words], query);
            let d1 = block_distances(lanes, &group[block_words..2 * block_words], query);
            let d2 = block_distances(lanes, &group[2 * block_words..3 * block_words], query);
            let d3 = block_distances(lanes, &group[3 * block_words..4 * block_words], query);
            let nearest = lanes.min(lanes.min(d0, d1), lanes.min(d2, d3));
            if lanes.within(nearest, lanes.splat(u64::from(bound))) != 0 {
                // Only now: to mask every group costs more than the near ones of no wanted row.
                let wanted = mask.group(block_idx);
                let mut row = block_idx * BLOCK_ROWS;
                for (wanted, distances) in wanted.to_le_bytes().into_iter().zip([d0, d1, d2, d3]) {
                    let reported = report(lanes, distances, wanted, row, &mut bound, sink);
                    if reported.is_err() {
                        return;
                    }
                    row += BLOCK_ROWS;
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
        let block = &blocks[block_idx * block_words..(block_idx + 1) * block_words];
        let distances = block_distances(lanes, block, query);
        let row = block_idx * BLOCK_ROWS;
        lane_mask &= mask.block(block_idx);
        if report(lanes, distances, lane_mask, row, &mut bound, sink).is_err() {
            return;
        }
        block_idx += 1;
        lane_mask = u8::MAX;
    }
}

/// Every distance, padding excepted.
#[inline(always)]
fn all_distances<L: Lanes, const WORDS: usize>(
    lanes: L,
    blocks: &[u64],
    query: &[u64],
    out: &mut [u32],
) {
    let words = if WORDS == 0 { query.len() } else { WORDS };
    let mut splat = [lanes.splat(0); MAX_WORDS];
    for (lane_word, &word) in splat.iter_mut().zip(query) {
        *lane_word = lanes.splat(word);
    }
    for (block, out) in blocks
        .chunks_exact(words * BLOCK_ROWS)
        .zip(out.chunks_mut(BLOCK_ROWS))
    {
        let distances = lanes.to_array(block_distances(lanes, block, &splat[..words]));
        out.copy_from_slice(&distances[..out.len()]);
    }
}

/// Distances of single rows, given up once they pass `bound`.
#[inline(always)]
fn gather_rows<const WORDS: usize>(
    blocks: &[u64],
    rows: &[u32],
    query: &[u64],
    bound: u32,
    out: &mut [u32],
) {
    let words = if WORDS == 0 { query.len() } else { WORDS };
    for (&row, out) in rows.iter().zip(out) {
        let row = row as usize;
        let first = row / BLOCK_ROWS * BLOCK_ROWS * words + row % BLOCK_ROWS;
        let mut distance = 0;
        for start in (0..words).step_by(GATHER_STEP) {
            for word_idx in start..words.min(start + GATHER_STEP) {
                let word = blocks[first + word_idx * BLOCK_ROWS];
                distance += (word ^ query[word_idx]).count_ones();
            }
            if distance > bound {
                break;
            }
        }
        *out = distance;
    }
}

/// Numbers that share one branch.
const NUMBERS: usize = 64;

/// 32-bit numbers that are compared together.
const NUMBERS_AT_ONCE: usize = 16;

/// The place of the smallest number. Plain loops, which become instructions of the set they are compiled for.
#[inline(always)]
fn least_place(numbers: &[u32]) -> usize {
    let (mut least, mut start) = (u32::MAX, 0);
    for (idx, chunk) in numbers.chunks(NUMBERS).enumerate() {
        let of_chunk = chunk.iter().copied().fold(u32::MAX, u32::min);
        if of_chunk < least {
            (least, start) = (of_chunk, idx * NUMBERS);
        }
    }
    let chunk = numbers[start..].iter();
    start + chunk.take_while(|&&number| number != least).count()
}

/// Whether a distance is within `bound` of the stretch `extent`, see [`Kernel::near_extents`].
#[inline(always)]
fn is_near(distance: u32, extent: u32, bound: u32) -> bool {
    // Signed: the one comparison of vectors that every instruction set has.
    let (distance, bound) = (distance as i32, bound as i32);
    let (nearest, farthest) = ((extent & 0xffff) as i32, (extent >> 16) as i32);
    (distance - farthest <= bound) & (nearest - distance <= bound)
}

/// The places of [`Kernel::near_extents`].
#[inline(always)]
fn near_extent_places<L: Lanes>(
    lanes: L,
    distances: &[u32],
    extents: &[u32],
    bound: u32,
    out: &mut Vec<u32>,
) {
    let (of_distances, last_distances) = distances.as_chunks::<NUMBERS_AT_ONCE>();
    let (of_extents, last_extents) = extents.as_chunks::<NUMBERS_AT_ONCE>();
    for (idx, (distances, extents)) in of_distances.iter().zip(of_extents).enumerate() {
        let mut near = lanes.near(distances, extents, bound);
        while near != 0 {
            out.push((idx * NUMBERS_AT_ONCE) as u32 + near.trailing_zeros());
            near &= near - 1;
        }
    }
    let last = last_distances.iter().zip(last_extents);
    for (place, (&distance, &extent)) in last.enumerate() {
        if is_near(distance, extent, bound) {
            out.push((of_distances.len() * NUMBERS_AT_ONCE + place) as u32);
        }
    }
}

/// The nearest center of each code, `BLOCKS` blocks at a time: a word of a center is then loaded once
/// for all their rows, and the blocks' own words stay in registers while the centers go by.
#[inline(always)]
fn nearest_centers<L: Lanes, const WORDS: usize, const BLOCKS: usize>(
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

/// The loops of one instruction set: the specialised widths, then any width. With a list
/// of CPU features the functions enable them, and are unsafe to call from functions that do not.
macro_rules! loops {
    ($lanes:ty, queries = $queries:literal $(, $features:literal)?) => {
        #[inline]
        $(#[target_feature(enable = $features)])?
        pub(super) fn scan<M: crate::hamming::RowMask>(
            lanes: $lanes,
            blocks: &[u64],
            rows: std::ops::Range<usize>,
            mask: M,
            query: &[u64],
            bound: u32,
            sink: crate::hamming::Sink<'_>,
        ) {
            use crate::hamming::scan_rows;
            match query.len() {
                1 => scan_rows::<_, 1, M>(lanes, blocks, rows, mask, query, bound, sink),
                2 => scan_rows::<_, 2, M>(lanes, blocks, rows, mask, query, bound, sink),
                4 => scan_rows::<_, 4, M>(lanes, blocks, rows, mask, query, bound, sink),
                _ => scan_rows::<_, 0, M>(lanes, blocks, rows, mask, query, bound, sink),
            }
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn scan_batch(
            lanes: $lanes,
            blocks: &[u64],
            rows: std::ops::Range<usize>,
            words: usize,
            queries: &[&[u64]],
            bounds: &mut [Option<u32>],
            sink: crate::hamming::BatchSink<'_>,
        ) {
            use crate::hamming::batch::scan_batch_rows as scan;
            match words {
                1 => scan::<_, 1, $queries>(lanes, blocks, rows, words, queries, bounds, sink),
                2 => scan::<_, 2, $queries>(lanes, blocks, rows, words, queries, bounds, sink),
                3 => scan::<_, 3, $queries>(lanes, blocks, rows, words, queries, bounds, sink),
                4 => scan::<_, 4, $queries>(lanes, blocks, rows, words, queries, bounds, sink),
                8 => scan::<_, 8, $queries>(lanes, blocks, rows, words, queries, bounds, sink),
                _ => scan::<_, 0, $queries>(lanes, blocks, rows, words, queries, bounds, sink),
            }
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn distances(lanes: $lanes, blocks: &[u64], query: &[u64], out: &mut [u32]) {
            use crate::hamming::all_distances;
            match query.len() {
                1 => all_distances::<_, 1>(lanes, blocks, query, out),
                2 => all_distances::<_, 2>(lanes, blocks, query, out),
                3 => all_distances::<_, 3>(lanes, blocks, query, out),
                4 => all_distances::<_, 4>(lanes, blocks, query, out),
                8 => all_distances::<_, 8>(lanes, blocks, query, out),
                _ => all_distances::<_, 0>(lanes, blocks, query, out),
            }
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn least(numbers: &[u32]) -> usize {
            crate::hamming::least_place(numbers)
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn near_extents(
            lanes: $lanes,
            distances: &[u32],
            extents: &[u32],
            bound: u32,
            out: &mut Vec<u32>,
        ) {
            crate::hamming::near_extent_places(lanes, distances, extents, bound, out);
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn near_sketches(
            lanes: $lanes,
            sketches: &[u32],
            query: u32,
            bound: u32,
            first: u32,
            out: &mut Vec<u32>,
        ) {
            crate::hamming::near::near_sketch_places(lanes, sketches, query, bound, first, out);
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn near_words(
            lanes: $lanes,
            words: &[u64],
            query: u64,
            bound: u32,
            first: u32,
            out: &mut Vec<u32>,
        ) {
            crate::hamming::near::near_word_places(lanes, words, query, bound, first, out);
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn gather(blocks: &[u64], rows: &[u32], query: &[u64], bound: u32, out: &mut [u32]) {
            use crate::hamming::gather_rows;
            match query.len() {
                1 => gather_rows::<1>(blocks, rows, query, bound, out),
                2 => gather_rows::<2>(blocks, rows, query, bound, out),
                4 => gather_rows::<4>(blocks, rows, query, bound, out),
                _ => gather_rows::<0>(blocks, rows, query, bound, out),
            }
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn nearest(
            lanes: $lanes,
            blocks: &[u64],
            centers: &[u64],
            n_centers: usize,
            words: usize,
            out: &mut [crate::hamming::Nearest],
        ) {
            use crate::hamming::nearest_centers;
            match words {
                1 => nearest_centers::<_, 1, 8>(lanes, blocks, centers, n_centers, words, out),
                2 => nearest_centers::<_, 2, 8>(lanes, blocks, centers, n_centers, words, out),
                3 => nearest_centers::<_, 3, 4>(lanes, blocks, centers, n_centers, words, out),
                4 => nearest_centers::<_, 4, 4>(lanes, blocks, centers, n_centers, words, out),
                8 => nearest_centers::<_, 8, 4>(lanes, blocks, centers, n_centers, words, out),
                16 => nearest_centers::<_, 16, 4>(lanes, blocks, centers, n_centers, words, out),
                _ => nearest_centers::<_, 0, 4>(lanes, blocks, centers, n_centers, words, out),
            }
        }
    };
}
use loops;

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn least_and_near_extents_equal_the_naive_ones() {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        for n in [0, 1, 2, 63, 64, 65, 127, 128, 129, 1000] {
            for greatest in [1, 30, 1024] {
                let distances: Vec<u32> = (0..n).map(|_| rng.random_range(0..=greatest)).collect();
                let extents: Vec<u32> = (0..n)
                    .map(|_| {
                        let nearest = rng.random_range(0..=greatest);
                        nearest | rng.random_range(nearest..=greatest) << 16
                    })
                    .collect();
                let bound = rng.random_range(0..=greatest / 2);
                let least = distances.iter().min();
                let place = least.and_then(|least| distances.iter().position(|d| d == least));
                let near: Vec<u32> = (0..n as u32)
                    .filter(|&i| {
                        let (distance, extent) = (distances[i as usize], extents[i as usize]);
                        let (nearest, farthest) = (extent & 0xffff, extent >> 16);
                        (nearest..=farthest).any(|e| e.abs_diff(distance) <= bound)
                    })
                    .collect();
                for kernel in Kernel::available() {
                    assert_eq!(
                        kernel.least(&distances),
                        place.unwrap_or(0),
                        "{kernel:?}, {n}"
                    );
                    let mut out = vec![7];
                    kernel.near_extents(&distances, &extents, bound, &mut out);
                    assert_eq!(out[1..], near, "{kernel:?}, {n}");
                    assert_eq!(out[0], 7);
                }
            }
        }
    }
}

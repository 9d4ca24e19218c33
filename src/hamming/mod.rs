//! Hamming distances over the blocked layout, on the best instructions this CPU has.
//!
//! The loops are written once, here, over the small trait `Lanes`: one word of the eight rows of a
//! block at a time. Each instruction set only says how to xor, count, add and compare eight lanes, and
//! instantiates the loops under its `target_feature`. [`Kernel`] is the only dispatch; it is decided once.
//! Leaves out: top-k, filters, doc ids.

use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;

use crate::code::{BLOCK_ROWS, CodeLen, CodesRef, first_words, places};

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod batch;
mod linear;
mod near;
mod nearest;
mod planes;
mod scalar;
mod trial;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use linear::{AHEAD_WORDS, AllRows, GROUP, RowMask, RowSet};
pub(crate) use near::{NEAREST_OF_MAX, NEAREST_STRETCHES_MAX, Near};
use scalar::Scalar;
pub(crate) use trial::planes_pay;

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
        let mut bound = bound;
        let planes = rows.start..rows.end.min(codes.rows_in_planes());
        let rows = rows.start.max(planes.end)..rows.end;
        if !planes.is_empty() {
            let sink = &mut *sink;
            let left = dispatch!(self, lanes => {
                lanes.scan_planes(codes, planes, mask, query, bound, sink)
            });
            match left {
                Some(left) => bound = left,
                None => return,
            }
        }
        if !rows.is_empty() {
            dispatch!(self, lanes => lanes.scan(codes.blocks(), rows, mask, query, bound, sink));
        }
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
        dispatch!(self, lanes => lanes.scan_batch(codes, rows, queries, bounds, sink));
    }

    /// Writes the distance from each code to `query`, in bits. Panics unless `out` has one place a
    /// code and `query` the codes' number of words.
    pub fn distances(self, codes: CodesRef<'_>, query: &[u64], out: &mut [u32]) {
        check(codes, query);
        assert_eq!(out.len(), codes.n_codes(), "one distance a code");
        dispatch!(self, lanes => lanes.distances(codes, query, out));
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

    /// Appends to `out` each of `words` within these stretches, from one place to before another, that differs from
    /// `query` in at most `bound` bits. In the order of the stretches, ascending in each. The words are whole blocks.
    ///
    /// Panics if a stretch does not lie within the words.
    #[inline]
    pub(crate) fn near_words(
        self,
        words: &[u64],
        stretches: &[(u32, u32)],
        query: u64,
        bound: u32,
        out: &mut Vec<Near>,
    ) {
        dispatch!(self, lanes => lanes.near_words(words, stretches, query, bound, out));
    }

    /// As [`near_words`](Kernel::near_words), those that are no farther than the k-th nearest of them either. Meant for at
    /// most [`NEAREST_OF_MAX`] words in [`NEAREST_STRETCHES_MAX`] stretches: of more it takes memory.
    pub(crate) fn nearest_words(
        self,
        words: &[u64],
        stretches: &[(u32, u32)],
        query: u64,
        k: usize,
        bound: u32,
        out: &mut Vec<Near>,
    ) {
        dispatch!(self, lanes => lanes.nearest_words(words, stretches, query, k, bound, out));
    }

    /// Keeps those of these codes that differ from the query by each of the masks in as many bits as its limit or more. By
    /// `masks[own]` all should differ in as many; false if one does not.
    ///
    /// Panics for a place past the words.
    #[inline]
    pub(crate) fn first_met(
        self,
        words: &[u64],
        query: u64,
        masks: &[u64],
        limits: &[u32],
        own: usize,
        near: &mut Vec<Near>,
    ) -> bool {
        dispatch!(self, lanes => lanes.first_met(words, query, masks, limits, own, near))
    }

    /// Writes the distance from each of `rows` to `query` where it is at most `bound`, and some value
    /// above `bound` where it is not. True if any is within the bound. For rows all over the set, [`prefetch`]
    /// them a while before.
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
    ) -> bool {
        check(codes, query);
        assert_eq!(out.len(), rows.len(), "one distance a row");
        dispatch!(self, lanes => lanes.gather(codes, rows, query, bound, out))
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
        let centers = centers.in_blocks();
        dispatch!(self, lanes => lanes.nearest(codes, &centers, n_centers, out));
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

/// How many rows ahead of a loop over scattered rows to ask for their memory.
pub(crate) const ROWS_AHEAD: usize = 16;

/// Asks for the memory of row `row`, to be read soon. Harmless for a row past the end.
#[inline]
pub fn prefetch(codes: CodesRef<'_>, row: usize) {
    let words = codes.code_len().words();
    if words == 1 {
        return prefetch_word(codes.blocks(), row);
    }
    let (first, second) = codes.places(row);
    // Each word of a row lies on a cache line of its own; a gather seldom gets past the first few.
    let asked = words.min(GATHER_STEP);
    let in_first = match row < codes.rows_in_planes() {
        true => asked.min(first_words(words)),
        false => asked,
    };
    for word_idx in 0..in_first {
        prefetch_word(codes.blocks(), first + word_idx * BLOCK_ROWS);
    }
    for word_idx in 0..asked - in_first {
        prefetch_word(codes.blocks(), second + word_idx * BLOCK_ROWS);
    }
}

/// Asks for the memory of some rows that lie together, as far as a scan of them does not ask for it itself.
#[inline]
pub(crate) fn prefetch_rows(codes: CodesRef<'_>, rows: Range<usize>) {
    let block_words = codes.code_len().words() * BLOCK_ROWS;
    let first_row = rows.start / BLOCK_ROWS * BLOCK_ROWS;
    let n_blocks = (rows.end - first_row).div_ceil(BLOCK_ROWS);
    let n_words = (n_blocks * block_words).min(AHEAD_WORDS);
    let (first, second) = codes.places(first_row);
    let in_first = match first_row < codes.rows_in_planes() {
        // To whole lines. At the end of a chunk this asks for others, to no harm.
        true => (n_words / 2).next_multiple_of(BLOCK_ROWS),
        false => n_words,
    };
    for word in (0..in_first).step_by(BLOCK_ROWS) {
        prefetch_word(codes.blocks(), first + word);
    }
    for word in (0..n_words - in_first).step_by(BLOCK_ROWS) {
        prefetch_word(codes.blocks(), second + word);
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

    /// Distances below 256, a byte each.
    #[inline(always)]
    fn to_bytes(self, distances: Self::Distances) -> [u8; BLOCK_ROWS] {
        self.to_array(distances).map(|distance| distance as u8)
    }

    /// Bit `i`: whether `distances[i]` is at most `bound`.
    #[inline(always)]
    fn within_bytes(self, distances: &[u8; BYTES_AT_ONCE], bound: u8) -> u64 {
        let distances = distances.iter().rev();
        distances.fold(0, |within, &of| within << 1 | u64::from(of <= bound))
    }

    /// For each lane whose bit is set its distance above the 32 bits of its place, lane 0 being the place `first`; before
    /// others of no meaning. And how many there are.
    #[inline(always)]
    fn near_keys(
        self,
        mut set: u8,
        distances: Self::Distances,
        first: u32,
    ) -> ([u64; BLOCK_ROWS], usize) {
        let (distances, n_keys) = (self.to_array(distances), set.count_ones() as usize);
        let mut keys = [0; BLOCK_ROWS];
        for key in &mut keys[..n_keys] {
            let lane = set.trailing_zeros();
            *key = u64::from(distances[lane as usize]) << 32 | u64::from(first + lane);
            set &= set - 1;
        }
        (keys, n_keys)
    }

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

    /// The places of the set bits, bit 0 being the place `first`, before others of no meaning; and how many
    /// there are.
    #[inline(always)]
    fn places(self, mut set: u16, first: u32) -> ([u32; NUMBERS_AT_ONCE], usize) {
        let mut places = [0; NUMBERS_AT_ONCE];
        let n_places = set.count_ones() as usize;
        for place in &mut places[..n_places] {
            *place = first + set.trailing_zeros();
            set &= set - 1;
        }
        (places, n_places)
    }
}

/// Words a gather reads before it asks whether the bound is already passed.
const GATHER_STEP: usize = 4;

/// Distances of single rows, given up once they pass `bound`, and whether any is within. `PLANES` says whether
/// some rows lie in planes.
#[inline(always)]
fn gather_rows<const WORDS: usize, const PLANES: bool>(
    codes: CodesRef<'_>,
    rows: &[u32],
    query: &[u64],
    bound: u32,
    out: &mut [u32],
) -> bool {
    let words = if WORDS == 0 { query.len() } else { WORDS };
    let in_planes = if PLANES { codes.rows_in_planes() } else { 0 };
    let blocks = codes.blocks();
    let mut is_any_near = false;
    for (&row, out) in rows.iter().zip(out) {
        let (first, second) = places(words, in_planes, row as usize);
        let mut distance = 0;
        for start in (0..words).step_by(GATHER_STEP) {
            let end = words.min(start + GATHER_STEP);
            for (word_idx, word) in (start..end).zip(&query[start..end]) {
                let place = match word_idx.checked_sub(first_words(words)) {
                    Some(rest) if PLANES => second + rest * BLOCK_ROWS,
                    _ => first + word_idx * BLOCK_ROWS,
                };
                distance += (blocks[place] ^ word).count_ones();
            }
            if distance > bound {
                break;
            }
        }
        *out = distance;
        is_any_near |= distance <= bound;
    }
    is_any_near
}

/// Numbers that share one branch.
const NUMBERS: usize = 64;

/// Distances of a byte that are compared together: a cache line.
const BYTES_AT_ONCE: usize = 64;

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
    let mut first = 0;
    for (distances, extents) in of_distances.iter().zip(of_extents) {
        // Which of them are near is anybody's guess, so nothing branches on it where `places` does not.
        let near = lanes.near(distances, extents, bound);
        let (places, n_places) = lanes.places(near, first);
        let n_kept = out.len() + n_places;
        out.extend_from_slice(&places);
        out.truncate(n_kept);
        first += NUMBERS_AT_ONCE as u32;
    }
    let last = last_distances.iter().zip(last_extents);
    for (place, (&distance, &extent)) in last.enumerate() {
        if is_near(distance, extent, bound) {
            out.push((of_distances.len() * NUMBERS_AT_ONCE + place) as u32);
        }
    }
}

/// The loops of one instruction set: the specialised widths, then any width. `queries` are those of a batch that
/// the registers hold, of one word or of more. With a list of CPU features the functions enable them, and are
/// unsafe to call from functions that do not.
macro_rules! loops {
    ($lanes:ty, queries = $of_one_word:literal or $queries:literal $(, $features:literal)?) => {
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
            use crate::hamming::linear::scan_blocks as scan;
            match query.len() {
                1 => scan::<_, 1, M>(lanes, blocks, rows, mask, query, bound, sink),
                2 => scan::<_, 2, M>(lanes, blocks, rows, mask, query, bound, sink),
                4 => scan::<_, 4, M>(lanes, blocks, rows, mask, query, bound, sink),
                _ => scan::<_, 0, M>(lanes, blocks, rows, mask, query, bound, sink),
            }
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn scan_planes<M: crate::hamming::RowMask>(
            lanes: $lanes,
            codes: crate::code::CodesRef<'_>,
            rows: std::ops::Range<usize>,
            mask: M,
            query: &[u64],
            bound: u32,
            sink: crate::hamming::Sink<'_>,
        ) -> Option<u32> {
            use crate::hamming::planes::scan_planes as scan;
            match query.len() {
                2 => scan::<_, 2, M>(lanes, codes, rows, mask, query, bound, sink),
                4 => scan::<_, 4, M>(lanes, codes, rows, mask, query, bound, sink),
                _ => scan::<_, 0, M>(lanes, codes, rows, mask, query, bound, sink),
            }
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn scan_batch(
            lanes: $lanes,
            codes: crate::code::CodesRef<'_>,
            rows: std::ops::Range<usize>,
            queries: &[&[u64]],
            bounds: &mut [Option<u32>],
            sink: crate::hamming::BatchSink<'_>,
        ) {
            use crate::hamming::batch::scan_batch_rows as scan;
            match codes.code_len().words() {
                1 => scan::<_, 1, $of_one_word>(lanes, codes, rows, queries, bounds, sink),
                2 => scan::<_, 2, $queries>(lanes, codes, rows, queries, bounds, sink),
                3 => scan::<_, 3, $queries>(lanes, codes, rows, queries, bounds, sink),
                4 => scan::<_, 4, $queries>(lanes, codes, rows, queries, bounds, sink),
                8 => scan::<_, 8, $queries>(lanes, codes, rows, queries, bounds, sink),
                _ => scan::<_, 0, $queries>(lanes, codes, rows, queries, bounds, sink),
            }
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn distances(lanes: $lanes, codes: crate::code::CodesRef<'_>, query: &[u64], out: &mut [u32]) {
            use crate::hamming::planes::all_distances;
            match query.len() {
                1 => all_distances::<_, 1>(lanes, codes, query, out),
                2 => all_distances::<_, 2>(lanes, codes, query, out),
                3 => all_distances::<_, 3>(lanes, codes, query, out),
                4 => all_distances::<_, 4>(lanes, codes, query, out),
                8 => all_distances::<_, 8>(lanes, codes, query, out),
                _ => all_distances::<_, 0>(lanes, codes, query, out),
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
        pub(super) fn near_words(
            lanes: $lanes,
            words: &[u64],
            stretches: &[(u32, u32)],
            query: u64,
            bound: u32,
            out: &mut Vec<crate::hamming::Near>,
        ) {
            crate::hamming::near::near_words(lanes, words, stretches, query, bound, out);
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn nearest_words(
            lanes: $lanes,
            words: &[u64],
            stretches: &[(u32, u32)],
            query: u64,
            k: usize,
            bound: u32,
            out: &mut Vec<crate::hamming::Near>,
        ) {
            crate::hamming::near::nearest_words(lanes, words, stretches, query, k, bound, out);
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn first_met(
            words: &[u64],
            query: u64,
            masks: &[u64],
            limits: &[u32],
            own: usize,
            near: &mut Vec<crate::hamming::Near>,
        ) -> bool {
            crate::hamming::near::first_met(words, query, masks, limits, own, near)
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn gather(codes: crate::code::CodesRef<'_>, rows: &[u32], query: &[u64], bound: u32, out: &mut [u32]) -> bool {
            use crate::hamming::gather_rows as gather;
            match (query.len(), codes.rows_in_planes()) {
                (1, _) => gather::<1, false>(codes, rows, query, bound, out),
                (2, 0) => gather::<2, false>(codes, rows, query, bound, out),
                (4, 0) => gather::<4, false>(codes, rows, query, bound, out),
                (_, 0) => gather::<0, false>(codes, rows, query, bound, out),
                (2, _) => gather::<2, true>(codes, rows, query, bound, out),
                (4, _) => gather::<4, true>(codes, rows, query, bound, out),
                _ => gather::<0, true>(codes, rows, query, bound, out),
            }
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn nearest(
            lanes: $lanes,
            codes: crate::code::CodesRef<'_>,
            centers: &[u64],
            n_centers: usize,
            out: &mut [crate::hamming::Nearest],
        ) {
            use crate::hamming::nearest::nearest_centers;
            match codes.code_len().words() {
                1 => nearest_centers::<_, 1, 8>(lanes, codes, centers, n_centers, out),
                2 => nearest_centers::<_, 2, 8>(lanes, codes, centers, n_centers, out),
                3 => nearest_centers::<_, 3, 4>(lanes, codes, centers, n_centers, out),
                4 => nearest_centers::<_, 4, 4>(lanes, codes, centers, n_centers, out),
                8 => nearest_centers::<_, 8, 4>(lanes, codes, centers, n_centers, out),
                16 => nearest_centers::<_, 16, 4>(lanes, codes, centers, n_centers, out),
                _ => nearest_centers::<_, 0, 4>(lanes, codes, centers, n_centers, out),
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

//! Eight lanes in plain 64-bit arithmetic: the reference every kernel is tested against, and the
//! kernel of CPUs with nothing better.

use std::ops::Range;

use crate::code::{BLOCK_ROWS, CodesRef};
use crate::hamming::{BatchSink, INDEX_BITS, Lanes, Near, Nearest, RowMask, Sink};

/// Needs no instruction that any CPU lacks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Scalar;

impl Lanes for Scalar {
    type Word = u64;
    type Sum = [u32; BLOCK_ROWS];
    type Distances = [u32; BLOCK_ROWS];

    #[inline(always)]
    fn splat(self, word: u64) -> u64 {
        word
    }

    #[inline(always)]
    fn zero(self) -> Self::Sum {
        [0; BLOCK_ROWS]
    }

    #[inline(always)]
    fn add(self, mut sum: Self::Sum, row_words: &[u64; BLOCK_ROWS], query: u64) -> Self::Sum {
        for (sum, word) in sum.iter_mut().zip(row_words) {
            *sum += (word ^ query).count_ones();
        }
        sum
    }

    #[inline(always)]
    fn finish(self, sum: Self::Sum) -> Self::Distances {
        sum
    }

    #[inline(always)]
    fn none(self) -> Self::Distances {
        [u32::MAX; BLOCK_ROWS]
    }

    #[inline(always)]
    fn keys(self, distances: Self::Distances, index: u64) -> Self::Distances {
        distances.map(|distance| distance << INDEX_BITS | index as u32)
    }

    #[inline(always)]
    fn min(self, mut a: Self::Distances, b: Self::Distances) -> Self::Distances {
        for (a, b) in a.iter_mut().zip(b) {
            *a = b.min(*a);
        }
        a
    }

    #[inline(always)]
    fn within(self, distances: Self::Distances, bound: u64) -> u8 {
        let mut mask = 0;
        for (lane, &distance) in distances.iter().enumerate() {
            mask |= u8::from(u64::from(distance) <= bound) << lane;
        }
        mask
    }

    #[inline(always)]
    fn to_array(self, distances: Self::Distances) -> [u32; BLOCK_ROWS] {
        distances
    }
}

impl Scalar {
    #[inline]
    pub(super) fn scan<M: RowMask>(
        self,
        blocks: &[u64],
        rows: Range<usize>,
        mask: M,
        query: &[u64],
        bound: u32,
        sink: Sink<'_>,
    ) {
        plain::scan(self, blocks, rows, mask, query, bound, sink);
    }

    pub(super) fn scan_planes<M: RowMask>(
        self,
        codes: CodesRef<'_>,
        rows: Range<usize>,
        mask: M,
        query: &[u64],
        bound: u32,
        sink: Sink<'_>,
    ) -> Option<u32> {
        plain::scan_planes(self, codes, rows, mask, query, bound, sink)
    }

    pub(super) fn scan_batch(
        self,
        codes: CodesRef<'_>,
        rows: Range<usize>,
        queries: &[&[u64]],
        bounds: &mut [Option<u32>],
        sink: BatchSink<'_>,
    ) {
        plain::scan_batch(self, codes, rows, queries, bounds, sink);
    }

    pub(super) fn distances(self, codes: CodesRef<'_>, query: &[u64], out: &mut [u32]) {
        plain::distances(self, codes, query, out);
    }

    pub(super) fn least(self, numbers: &[u32]) -> usize {
        plain::least(numbers)
    }

    pub(super) fn near_extents(
        self,
        distances: &[u32],
        extents: &[u32],
        bound: u32,
        out: &mut Vec<u32>,
    ) {
        plain::near_extents(self, distances, extents, bound, out);
    }

    pub(super) fn near_words(
        self,
        words: &[u64],
        stretches: &[(u32, u32)],
        query: u64,
        bound: u32,
        out: &mut Vec<Near>,
    ) {
        plain::near_words(self, words, stretches, query, bound, out);
    }

    pub(super) fn nearest_words(
        self,
        words: &[u64],
        stretches: &[(u32, u32)],
        query: u64,
        k: usize,
        bound: u32,
        out: &mut Vec<Near>,
    ) {
        plain::nearest_words(self, words, stretches, query, k, bound, out)
    }

    pub(super) fn first_met(
        self,
        words: &[u64],
        query: u64,
        masks: &[u64],
        limits: &[u32],
        own: usize,
        near: &mut Vec<Near>,
    ) -> bool {
        plain::first_met(words, query, masks, limits, own, near)
    }

    pub(super) fn gather(
        self,
        codes: CodesRef<'_>,
        rows: &[u32],
        query: &[u64],
        bound: u32,
        out: &mut [u32],
    ) -> bool {
        plain::gather(codes, rows, query, bound, out)
    }

    pub(super) fn nearest(
        self,
        codes: CodesRef<'_>,
        centers: &[u64],
        n_centers: usize,
        out: &mut [Nearest],
    ) {
        plain::nearest(self, codes, centers, n_centers, out);
    }
}

/// The loops, with no instruction enabled.
mod plain {
    crate::hamming::loops!(super::Scalar, queries = 1 or 1);
}

//! Eight lanes on 64-bit ARM: NEON counts bits by byte.
//!
//! The other of the two files where `unsafe` is allowed, for the reasons told in `x86_64.rs`: a value
//! of [`Neon`] comes from `detect` alone, which saw the instructions on this CPU.
#![allow(unsafe_code)]

use std::arch::aarch64::*;
use std::ops::Range;

use crate::code::{BLOCK_ROWS, CodesRef};
use crate::hamming::{BatchSink, INDEX_BITS, Lanes, Near, Nearest, RowMask, Sink};

/// Asks for the cache line at `address`, which may be anywhere.
#[inline(always)]
pub(super) fn prefetch<T>(address: *const T) {
    // SAFETY: a prefetch faults on no address, writes nothing and touches no flag.
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{address}]",
            address = in(reg) address,
            options(nostack, preserves_flags, readonly)
        );
    }
}

/// Proof that this CPU has NEON.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Neon> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }

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
        // SAFETY: `self` proves NEON.
        unsafe { neon::scan(self, blocks, rows, mask, query, bound, sink) }
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
        // SAFETY: `self` proves NEON.
        unsafe { neon::scan_planes(self, codes, rows, mask, query, bound, sink) }
    }

    pub(super) fn scan_batch(
        self,
        codes: CodesRef<'_>,
        rows: Range<usize>,
        queries: &[&[u64]],
        bounds: &mut [Option<u32>],
        sink: BatchSink<'_>,
    ) {
        // SAFETY: `self` proves NEON.
        unsafe { neon::scan_batch(self, codes, rows, queries, bounds, sink) }
    }

    pub(super) fn distances(self, codes: CodesRef<'_>, query: &[u64], out: &mut [u32]) {
        // SAFETY: `self` proves NEON.
        unsafe { neon::distances(self, codes, query, out) }
    }

    pub(super) fn least(self, numbers: &[u32]) -> usize {
        // SAFETY: `self` proves NEON.
        unsafe { neon::least(numbers) }
    }

    pub(super) fn near_extents(
        self,
        distances: &[u32],
        extents: &[u32],
        bound: u32,
        out: &mut Vec<u32>,
    ) {
        // SAFETY: `self` proves NEON.
        unsafe { neon::near_extents(self, distances, extents, bound, out) }
    }

    #[inline]
    pub(super) fn near_words(
        self,
        words: &[u64],
        stretches: &[(u32, u32)],
        query: u64,
        bound: u32,
        out: &mut Vec<Near>,
    ) {
        // SAFETY: `self` proves NEON.
        unsafe { neon::near_words(self, words, stretches, query, bound, out) }
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
        // SAFETY: `self` proves NEON.
        unsafe { neon::nearest_words(self, words, stretches, query, k, bound, out) }
    }

    #[inline]
    pub(super) fn first_met(
        self,
        words: &[u64],
        query: u64,
        masks: &[u64],
        limits: &[u32],
        own: usize,
        near: &mut Vec<Near>,
    ) -> bool {
        // SAFETY: `self` proves NEON.
        unsafe { neon::first_met(words, query, masks, limits, own, near) }
    }

    #[inline]
    pub(super) fn gather(
        self,
        codes: CodesRef<'_>,
        rows: &[u32],
        query: &[u64],
        bound: u32,
        out: &mut [u32],
    ) -> bool {
        // SAFETY: `self` proves NEON.
        unsafe { neon::gather(codes, rows, query, bound, out) }
    }

    pub(super) fn nearest(
        self,
        codes: CodesRef<'_>,
        centers: &[u64],
        n_centers: usize,
        out: &mut [Nearest],
    ) {
        // SAFETY: `self` proves NEON.
        unsafe { neon::nearest(self, codes, centers, n_centers, out) }
    }
}

/// Two rows a register.
const REGISTERS: usize = BLOCK_ROWS / 2;

impl Lanes for Neon {
    type Word = uint64x2_t;
    /// Counts by byte. A code has at most 16 words, so no byte passes 128.
    type Sum = [uint8x16_t; REGISTERS];
    /// 64-bit lanes; the upper halves are zero.
    type Distances = [uint64x2_t; REGISTERS];

    #[inline(always)]
    fn splat(self, word: u64) -> uint64x2_t {
        // SAFETY: `self` proves NEON.
        unsafe { vdupq_n_u64(word) }
    }

    #[inline(always)]
    fn zero(self) -> Self::Sum {
        // SAFETY: `self` proves NEON.
        unsafe { [vdupq_n_u8(0); REGISTERS] }
    }

    #[inline(always)]
    fn add(
        self,
        mut sum: Self::Sum,
        row_words: &[u64; BLOCK_ROWS],
        query: uint64x2_t,
    ) -> Self::Sum {
        for (register, sum) in sum.iter_mut().enumerate() {
            // SAFETY: `self` proves NEON; register r loads words 2r and 2r + 1 of an array of eight.
            unsafe {
                let words = vld1q_u64(row_words.as_ptr().add(2 * register));
                let differing = vreinterpretq_u8_u64(veorq_u64(words, query));
                *sum = vaddq_u8(*sum, vcntq_u8(differing));
            }
        }
        sum
    }

    #[inline(always)]
    fn finish(self, sum: Self::Sum) -> Self::Distances {
        let mut distances = [self.splat(0); REGISTERS];
        for (distances, sum) in distances.iter_mut().zip(sum) {
            // SAFETY: `self` proves NEON.
            unsafe { *distances = vpaddlq_u32(vpaddlq_u16(vpaddlq_u8(sum))) };
        }
        distances
    }

    #[inline(always)]
    fn none(self) -> Self::Distances {
        [self.splat(u64::from(u32::MAX)); REGISTERS]
    }

    #[inline(always)]
    fn keys(self, mut distances: Self::Distances, index: uint64x2_t) -> Self::Distances {
        for distances in &mut distances {
            // SAFETY: `self` proves NEON.
            unsafe {
                let shifted = vshlq_n_u64::<{ INDEX_BITS as i32 }>(*distances);
                *distances = vorrq_u64(shifted, index);
            }
        }
        distances
    }

    #[inline(always)]
    fn min(self, mut a: Self::Distances, b: Self::Distances) -> Self::Distances {
        for (a, b) in a.iter_mut().zip(b) {
            // SAFETY: `self` proves NEON. 32-bit minima do, as the upper halves are zero.
            unsafe {
                let nearer = vminq_u32(vreinterpretq_u32_u64(*a), vreinterpretq_u32_u64(b));
                *a = vreinterpretq_u64_u32(nearer);
            }
        }
        a
    }

    #[inline(always)]
    fn within(self, distances: Self::Distances, bound: uint64x2_t) -> u8 {
        let mut mask = 0;
        for (register, distances) in distances.into_iter().enumerate() {
            // SAFETY: `self` proves NEON.
            let (first, second) = unsafe {
                let near = vcleq_u64(distances, bound);
                (vgetq_lane_u64::<0>(near), vgetq_lane_u64::<1>(near))
            };
            let pair = ((first & 1) | (second & 2)) as u8;
            mask |= pair << (2 * register);
        }
        mask
    }

    #[inline(always)]
    fn to_array(self, distances: Self::Distances) -> [u32; BLOCK_ROWS] {
        let mut lanes = [0; BLOCK_ROWS];
        for (lanes, distances) in lanes.chunks_exact_mut(2).zip(distances) {
            // SAFETY: `self` proves NEON.
            unsafe {
                lanes[0] = vgetq_lane_u64::<0>(distances) as u32;
                lanes[1] = vgetq_lane_u64::<1>(distances) as u32;
            }
        }
        lanes
    }
}

/// The loops under NEON.
mod neon {
    crate::hamming::loops!(super::Neon, queries = 2 or 2, "neon");
}

//! Eight lanes on x86-64: AVX2 with a byte-wise table of counts, AVX-512 with VPOPCNTDQ.
//!
//! One of the two files where `unsafe` is allowed. It is needed for three things: calling intrinsics
//! from methods that cannot enable the instructions themselves, loading from an array, and entering a
//! function that enables them. The first and last rest on the same fact: a value of [`Avx2`] or
//! [`Avx512`] comes from `detect` alone, which saw the instructions on this CPU.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::Range;

use crate::code::{BLOCK_ROWS, CodesRef};
use crate::hamming::{
    BYTES_AT_ONCE, BatchSink, INDEX_BITS, Lanes, NUMBERS_AT_ONCE, Near, Nearest, RowMask, Sink,
};

/// Asks for the cache line at `address`, which may be anywhere.
#[inline(always)]
pub(super) fn prefetch<T>(address: *const T) {
    // SAFETY: SSE is part of x86-64, and a prefetch faults on no address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

/// Proof that this CPU has AVX2 and POPCNT.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Avx2> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt")).then_some(Avx2(()))
    }
}

/// Proof that this CPU has AVX-512 F, BW and VPOPCNTDQ, and POPCNT.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Avx512> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vpopcntdq")
            && is_x86_feature_detected!("popcnt"))
        .then_some(Avx512(()))
    }
}

/// Four rows a register: rows 0 to 3, rows 4 to 7.
type Pair = [__m256i; 2];

impl Lanes for Avx2 {
    type Word = __m256i;
    /// Counts by byte. A code has at most 16 words, so no byte passes 128.
    type Sum = Pair;
    /// 64-bit lanes; the upper halves are zero.
    type Distances = Pair;

    #[inline(always)]
    fn splat(self, word: u64) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_set1_epi64x(word as i64) }
    }

    #[inline(always)]
    fn zero(self) -> Pair {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    fn add(self, sum: Pair, row_words: &[u64; BLOCK_ROWS], query: __m256i) -> Pair {
        // SAFETY: `self` proves AVX2; the two unaligned loads read words 0 to 3 and 4 to 7 of an
        // array of eight.
        unsafe {
            let loads = [
                _mm256_loadu_si256(row_words.as_ptr().cast()),
                _mm256_loadu_si256(row_words.as_ptr().add(4).cast()),
            ];
            let mut sum = sum;
            for (sum, load) in sum.iter_mut().zip(loads) {
                *sum = _mm256_add_epi8(*sum, byte_counts(_mm256_xor_si256(load, query)));
            }
            sum
        }
    }

    #[inline(always)]
    fn finish(self, sum: Pair) -> Pair {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let zero = _mm256_setzero_si256();
            [_mm256_sad_epu8(sum[0], zero), _mm256_sad_epu8(sum[1], zero)]
        }
    }

    #[inline(always)]
    fn none(self) -> Pair {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_set1_epi64x(i64::from(u32::MAX)); 2] }
    }

    #[inline(always)]
    fn keys(self, distances: Pair, index: __m256i) -> Pair {
        // SAFETY: `self` proves AVX2.
        distances.map(|distances| unsafe {
            let shifted = _mm256_slli_epi64::<{ INDEX_BITS as i32 }>(distances);
            _mm256_or_si256(shifted, index)
        })
    }

    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: `self` proves AVX2. 32-bit minima do, as the upper halves are zero.
        unsafe { [_mm256_min_epu32(a[0], b[0]), _mm256_min_epu32(a[1], b[1])] }
    }

    #[inline(always)]
    fn within(self, distances: Pair, bound: __m256i) -> u8 {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let beyond = [
                _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(distances[0], bound))),
                _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(distances[1], bound))),
            ];
            !(beyond[0] | beyond[1] << 4) as u8
        }
    }

    #[inline(always)]
    fn to_array(self, distances: Pair) -> [u32; BLOCK_ROWS] {
        let mut lanes = [0u64; BLOCK_ROWS];
        // SAFETY: `self` proves AVX2; the two unaligned stores fill words 0 to 3 and 4 to 7 of an
        // array of eight.
        unsafe {
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), distances[0]);
            _mm256_storeu_si256(lanes.as_mut_ptr().add(4).cast(), distances[1]);
        }
        lanes.map(|distance| distance as u32)
    }

    #[inline(always)]
    fn near(
        self,
        distances: &[u32; NUMBERS_AT_ONCE],
        extents: &[u32; NUMBERS_AT_ONCE],
        bound: u32,
    ) -> u16 {
        let half = |start: usize| {
            // SAFETY: `self` proves AVX2; `start` is 0 or 8, so that the two unaligned loads read eight
            // numbers of an array of sixteen.
            unsafe {
                let distances = _mm256_loadu_si256(distances.as_ptr().add(start).cast());
                let extents = _mm256_loadu_si256(extents.as_ptr().add(start).cast());
                let nearest = _mm256_and_si256(extents, _mm256_set1_epi32(0xffff));
                let farthest = _mm256_srli_epi32::<16>(extents);
                let bound = _mm256_set1_epi32(bound as i32);
                let beyond = _mm256_or_si256(
                    _mm256_cmpgt_epi32(_mm256_sub_epi32(distances, farthest), bound),
                    _mm256_cmpgt_epi32(_mm256_sub_epi32(nearest, distances), bound),
                );
                !_mm256_movemask_ps(_mm256_castsi256_ps(beyond)) as u8
            }
        };
        u16::from_le_bytes([half(0), half(8)])
    }

    #[inline(always)]
    fn within_bytes(self, distances: &[u8; BYTES_AT_ONCE], bound: u8) -> u64 {
        let half = |start: usize| {
            // SAFETY: `self` proves AVX2; `start` is 0 or 32, so that the unaligned load reads 32 bytes of an array of 64.
            unsafe {
                let distances = _mm256_loadu_si256(distances.as_ptr().add(start).cast());
                let least = _mm256_min_epu8(distances, _mm256_set1_epi8(bound as i8));
                _mm256_movemask_epi8(_mm256_cmpeq_epi8(least, distances)) as u32
            }
        };
        u64::from(half(32)) << 32 | u64::from(half(0))
    }
}

/// The bits of each byte that are set.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn byte_counts(bytes: __m256i) -> __m256i {
    // SAFETY: the caller's contract.
    unsafe {
        let nibble_counts = _mm256_setr_epi8(
            0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, //
            0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
        );
        let low_nibble = _mm256_set1_epi8(0x0f);
        let low = _mm256_and_si256(bytes, low_nibble);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low_nibble);
        _mm256_add_epi8(
            _mm256_shuffle_epi8(nibble_counts, low),
            _mm256_shuffle_epi8(nibble_counts, high),
        )
    }
}

impl Lanes for Avx512 {
    type Word = __m512i;
    type Sum = __m512i;
    type Distances = __m512i;

    #[inline(always)]
    fn splat(self, word: u64) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_set1_epi64(word as i64) }
    }

    #[inline(always)]
    fn zero(self) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn add(self, sum: __m512i, row_words: &[u64; BLOCK_ROWS], query: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 F and VPOPCNTDQ; the unaligned load reads the eight words of
        // the array.
        unsafe {
            let words = _mm512_loadu_si512(row_words.as_ptr().cast());
            let differing = _mm512_xor_si512(words, query);
            _mm512_add_epi64(sum, _mm512_popcnt_epi64(differing))
        }
    }

    #[inline(always)]
    fn finish(self, sum: __m512i) -> __m512i {
        sum
    }

    #[inline(always)]
    fn none(self) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_set1_epi64(i64::from(u32::MAX)) }
    }

    #[inline(always)]
    fn keys(self, distances: __m512i, index: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_or_si512(_mm512_slli_epi64::<{ INDEX_BITS }>(distances), index) }
    }

    #[inline(always)]
    fn min(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 F. 32-bit minima do, as the upper halves are zero, and many CPUs take
        // twice as long over 64 bits.
        unsafe { _mm512_min_epu32(a, b) }
    }

    #[inline(always)]
    fn within(self, distances: __m512i, bound: __m512i) -> u8 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_cmple_epu64_mask(distances, bound) }
    }

    #[inline(always)]
    fn to_array(self, distances: __m512i) -> [u32; BLOCK_ROWS] {
        let mut lanes = [0u64; BLOCK_ROWS];
        // SAFETY: `self` proves AVX-512 F; the unaligned store fills the eight words of the array.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), distances) };
        lanes.map(|distance| distance as u32)
    }

    #[inline(always)]
    fn near(
        self,
        distances: &[u32; NUMBERS_AT_ONCE],
        extents: &[u32; NUMBERS_AT_ONCE],
        bound: u32,
    ) -> u16 {
        // SAFETY: `self` proves AVX-512 F; each unaligned load reads the sixteen numbers of an array.
        unsafe {
            let distances = _mm512_loadu_si512(distances.as_ptr().cast());
            let extents = _mm512_loadu_si512(extents.as_ptr().cast());
            let nearest = _mm512_and_si512(extents, _mm512_set1_epi32(0xffff));
            let farthest = _mm512_srli_epi32::<16>(extents);
            let bound = _mm512_set1_epi32(bound as i32);
            let reaches = _mm512_cmple_epi32_mask(_mm512_sub_epi32(distances, farthest), bound);
            let begins = _mm512_sub_epi32(nearest, distances);
            _mm512_mask_cmple_epi32_mask(reaches, begins, bound)
        }
    }

    #[inline(always)]
    fn to_bytes(self, distances: __m512i) -> [u8; BLOCK_ROWS] {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm_cvtsi128_si64(_mm512_cvtepi64_epi8(distances)) }.to_le_bytes()
    }

    #[inline(always)]
    fn within_bytes(self, distances: &[u8; BYTES_AT_ONCE], bound: u8) -> u64 {
        // SAFETY: `self` proves AVX-512 BW; the unaligned load reads the 64 bytes of the array.
        unsafe {
            let line = _mm512_loadu_si512(distances.as_ptr().cast());
            _mm512_cmple_epu8_mask(line, _mm512_set1_epi8(bound as i8))
        }
    }

    #[inline(always)]
    fn near_keys(self, set: u8, distances: __m512i, first: u32) -> ([u64; BLOCK_ROWS], usize) {
        let mut keys = [0; BLOCK_ROWS];
        // SAFETY: `self` proves AVX-512 F; the unaligned store fills the eight words of the array.
        unsafe {
            let lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
            let places = _mm512_add_epi64(lanes, _mm512_set1_epi64(i64::from(first)));
            let all = _mm512_or_si512(_mm512_slli_epi64::<32>(distances), places);
            _mm512_storeu_si512(
                keys.as_mut_ptr().cast(),
                _mm512_maskz_compress_epi64(set, all),
            );
        }
        (keys, set.count_ones() as usize)
    }

    #[inline(always)]
    fn places(self, set: u16, first: u32) -> ([u32; NUMBERS_AT_ONCE], usize) {
        let mut places = [0; NUMBERS_AT_ONCE];
        // SAFETY: `self` proves AVX-512 F; the unaligned store fills the sixteen numbers of the array.
        unsafe {
            let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
            let all = _mm512_add_epi32(lanes, _mm512_set1_epi32(first as i32));
            let kept = _mm512_maskz_compress_epi32(set, all);
            _mm512_storeu_si512(places.as_mut_ptr().cast(), kept);
        }
        (places, set.count_ones() as usize)
    }
}

/// The safe face of the loops that enable instructions.
macro_rules! face {
    ($lanes:ident, $loops:ident) => {
        impl $lanes {
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
                // SAFETY: `self` proves the instructions that the function enables.
                unsafe { $loops::scan(self, blocks, rows, mask, query, bound, sink) }
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
                // SAFETY: `self` proves the instructions that the function enables.
                unsafe { $loops::scan_planes(self, codes, rows, mask, query, bound, sink) }
            }

            pub(super) fn scan_batch(
                self,
                codes: CodesRef<'_>,
                rows: Range<usize>,
                queries: &[&[u64]],
                bounds: &mut [Option<u32>],
                sink: BatchSink<'_>,
            ) {
                // SAFETY: `self` proves the instructions that the function enables.
                unsafe { $loops::scan_batch(self, codes, rows, queries, bounds, sink) }
            }

            pub(super) fn distances(self, codes: CodesRef<'_>, query: &[u64], out: &mut [u32]) {
                // SAFETY: `self` proves the instructions that the function enables.
                unsafe { $loops::distances(self, codes, query, out) }
            }

            pub(super) fn least(self, numbers: &[u32]) -> usize {
                // SAFETY: `self` proves the instructions that the function enables.
                unsafe { $loops::least(numbers) }
            }

            pub(super) fn near_extents(
                self,
                distances: &[u32],
                extents: &[u32],
                bound: u32,
                out: &mut Vec<u32>,
            ) {
                // SAFETY: `self` proves the instructions that the function enables.
                unsafe { $loops::near_extents(self, distances, extents, bound, out) }
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
                // SAFETY: `self` proves the instructions that the function enables.
                unsafe { $loops::near_words(self, words, stretches, query, bound, out) }
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
                // SAFETY: `self` proves the instructions that the function enables.
                unsafe { $loops::nearest_words(self, words, stretches, query, k, bound, out) }
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
                // SAFETY: `self` proves the instructions that the function enables.
                unsafe { $loops::first_met(words, query, masks, limits, own, near) }
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
                // SAFETY: `self` proves the instructions that the function enables.
                unsafe { $loops::gather(codes, rows, query, bound, out) }
            }

            pub(super) fn nearest(
                self,
                codes: CodesRef<'_>,
                centers: &[u64],
                n_centers: usize,
                out: &mut [Nearest],
            ) {
                // SAFETY: `self` proves the instructions that the function enables.
                unsafe { $loops::nearest(self, codes, centers, n_centers, out) }
            }
        }
    };
}

face!(Avx2, avx2);
face!(Avx512, avx512);

/// The loops under AVX2.
mod avx2 {
    crate::hamming::loops!(super::Avx2, queries = 2 or 2, "avx2,popcnt");
}

/// The loops under AVX-512.
mod avx512 {
    crate::hamming::loops!(super::Avx512, queries = 8 or 4, "avx512f,avx512bw,avx512vpopcntdq,popcnt");
}

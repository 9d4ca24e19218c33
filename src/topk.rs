//! The k nearest codes seen so far, and the crate's one ordering: (distance, address).
//!
//! Distances are small integers, so the running bound comes from counting how many codes lie at each
//! distance; a heap would sift for every code. Which of the codes at the bound stay is settled by
//! selection each time a buffer of O(k) fills, so 100,000 equal codes cost no more memory than k.
//! Exact in any visiting order. Knows nothing of codes or segments.

use std::ops::Range;

use crate::code::CodeLen;

/// A code found by a search. Ordered by (distance, address).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbor {
    /// Differing bits.
    pub distance: u32,
    /// Segment ordinal in the upper 32 bits, doc id in the lower 32.
    pub address: u64,
}

/// The distance of the k-th nearest of the codes seen so far, by how many lie at each distance.
#[derive(Clone, Debug)]
pub(crate) struct KthDistance {
    k: usize,
    bound: u32,
    /// Invariant: `counts[d]` codes have distance `d`, for every `d <= bound`.
    counts: Vec<u32>,
    /// The sum of `counts[..=bound]`.
    n_within: usize,
}

impl KthDistance {
    /// Of codes no farther than `max_distance`. `k` is 1 or more.
    pub(crate) fn new(k: usize, max_distance: u32) -> KthDistance {
        let bound = max_distance.min(CodeLen::MAX_BITS as u32);
        KthDistance {
            k,
            bound,
            counts: vec![0; bound as usize + 1],
            n_within: 0,
        }
    }

    /// The k.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// The k-th distance, or the greatest that was asked for while fewer than k codes are that near.
    #[inline]
    pub(crate) fn bound(&self) -> u32 {
        self.bound
    }

    /// True if `k` codes are known.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.n_within >= self.k
    }

    /// Takes a code.
    #[inline]
    pub(crate) fn add(&mut self, distance: u32) {
        if distance <= self.bound {
            self.count(distance);
            self.fall();
        }
    }

    /// Takes a code within the bound, which may then be too high.
    #[inline]
    fn count(&mut self, distance: u32) {
        self.counts[distance as usize] += 1;
        self.n_within += 1;
    }

    /// The bound falls while k codes lie strictly below it.
    #[inline]
    fn fall(&mut self) {
        while self.n_within - self.counts[self.bound as usize] as usize >= self.k {
            self.n_within -= self.counts[self.bound as usize] as usize;
            self.bound -= 1;
        }
    }

    /// What is farther than this counts no more.
    fn lower(&mut self, bound: u32) {
        self.bound = bound;
        let within = &self.counts[..=bound as usize];
        self.n_within = within.iter().map(|&count| count as usize).sum();
    }
}

/// Collects the `k` smallest [`Neighbor`]s within a greatest distance.
#[derive(Clone, Debug)]
pub struct TopK {
    /// The neighbors in the buffer by their distance.
    kth: KthDistance,
    /// Nothing at or above this enters: the k-th neighbor when the buffer was last cut, one past
    /// the greatest distance before that.
    threshold: Neighbor,
    /// Every neighbor that may belong to the answer, and some that no longer do.
    buffer: Vec<Neighbor>,
    buffer_max: usize,
}

/// Room beyond `k` in the buffer of a small `k`, so that it is not cut at every push.
const BUFFER_SLACK: usize = 32;

/// The neighbors that there is room for from the start.
const BUFFER_ROOM: usize = 1024;

impl TopK {
    /// Room for the `k` nearest codes no farther than `max_distance` bits.
    ///
    /// Takes memory as neighbors come in, never for a large `k` in advance. Distances are those of codes, at
    /// most [`CodeLen::MAX_BITS`].
    pub fn new(k: usize, max_distance: u32) -> TopK {
        let kth = KthDistance::new(k, max_distance);
        let limit = if k == 0 { 0 } else { kth.bound + 1 };
        let buffer_max = k.saturating_add(k.max(BUFFER_SLACK));
        TopK {
            kth,
            threshold: Neighbor {
                distance: limit,
                address: 0,
            },
            buffer: Vec::with_capacity(buffer_max.min(BUFFER_ROOM)),
            buffer_max,
        }
    }

    /// The number of neighbors wanted.
    pub fn k(&self) -> usize {
        self.kth.k
    }

    /// The largest distance that may still enter, 0 if [`is_closed`](TopK::is_closed).
    #[inline]
    pub fn bound(&self) -> u32 {
        if self.is_closed() { 0 } else { self.kth.bound }
    }

    /// The largest distance at which `address` or a greater one may still enter; `None` if there is
    /// none. Lower than [`bound`](TopK::bound) when the places at the bound went to smaller
    /// addresses, which lets a search in ascending order skip later ties.
    #[inline]
    pub fn bound_from(&self, address: u64) -> Option<u32> {
        if address < self.threshold.address {
            return Some(self.kth.bound);
        }
        Some(self.kth.bound.min(self.threshold.distance.checked_sub(1)?))
    }

    /// The distances of the neighbors within this one, which is at most [`bound`](TopK::bound).
    pub(crate) fn kth_within(&self, distance: u32) -> KthDistance {
        let mut kth = self.kth.clone();
        kth.lower(distance);
        kth
    }

    /// True if nothing may enter, whatever its distance and address.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.threshold
            == Neighbor {
                distance: 0,
                address: 0,
            }
    }

    /// True if `k` neighbors are known: from here on the bound is the k-th distance.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.kth.is_full()
    }

    /// Offers a code. Contract: every address is offered at most once.
    #[inline]
    pub fn push(&mut self, distance: u32, address: u64) {
        let neighbor = Neighbor { distance, address };
        if distance > self.kth.bound || neighbor >= self.threshold {
            return;
        }
        self.buffer.push(neighbor);
        self.kth.count(distance);
        self.kth.fall();
        if self.buffer.len() >= self.buffer_max {
            self.cut();
        }
    }

    /// Takes the first neighbors of all, which are those that `kth` counts within its bound. It began as
    /// [`kth_within`](TopK::kth_within).
    pub(crate) fn fill(&mut self, kth: KthDistance, neighbors: impl Iterator<Item = Neighbor>) {
        debug_assert!(self.is_empty());
        self.kth = kth;
        self.buffer.extend(neighbors);
        if self.buffer.len() >= self.buffer_max {
            self.cut();
        }
    }

    /// Offers each of these, as [`push`](TopK::push) would.
    pub(crate) fn extend(&mut self, neighbors: impl ExactSizeIterator<Item = Neighbor>) {
        if self.is_closed() || self.buffer.len() + neighbors.len() >= self.buffer_max {
            return neighbors.for_each(|of| self.push(of.distance, of.address));
        }
        // There is room for all, so that the bound may fall once.
        for neighbor in neighbors {
            if neighbor.distance <= self.kth.bound && neighbor < self.threshold {
                self.buffer.push(neighbor);
                self.kth.count(neighbor.distance);
            }
        }
        self.kth.fall();
    }

    /// Keeps the k smallest neighbors of a buffer that holds more.
    fn cut(&mut self) {
        let (_, kth, _) = self.buffer.select_nth_unstable(self.kth.k - 1);
        self.threshold = *kth;
        self.buffer.truncate(self.kth.k);
        let (bound, n_cut) = (self.kth.bound as usize, self.kth.n_within - self.kth.k);
        self.kth.counts[bound] -= n_cut as u32;
        self.kth.n_within = self.kth.k;
    }

    /// Nothing farther than this enters any more, and what is farther leaves.
    pub(crate) fn lower(&mut self, bound: u32) {
        if bound >= self.kth.bound || self.is_closed() {
            return;
        }
        self.kth.lower(bound);
        let limit = Neighbor {
            distance: bound + 1,
            address: 0,
        };
        self.threshold = self.threshold.min(limit);
        self.buffer.retain(|neighbor| neighbor.distance <= bound);
    }

    /// Offers every neighbor of `other`, which saw other addresses.
    pub fn merge(&mut self, other: TopK) {
        for neighbor in other.buffer {
            self.push(neighbor.distance, neighbor.address);
        }
    }

    /// The addresses in this range that are in the buffer, ascending. Any other address of the range
    /// was never offered, or would be refused if it were offered again.
    pub(crate) fn addresses_in(&self, range: Range<u64>) -> Vec<u64> {
        let mut addresses: Vec<u64> = self
            .buffer
            .iter()
            .map(|neighbor| neighbor.address)
            .filter(|address| range.contains(address))
            .collect();
        addresses.sort_unstable();
        addresses
    }

    /// The number of neighbors in the answer, at most `k`.
    pub fn len(&self) -> usize {
        self.buffer.len().min(self.kth.k)
    }

    /// True if no neighbor is known.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The answer, in (distance, address) order.
    pub fn into_sorted(mut self) -> Vec<Neighbor> {
        // How many there are at each distance is known, so each goes to its group at once, and groups are of
        // plain numbers.
        let counts = &self.kth.counts[..=self.kth.bound as usize];
        let mut ends = Vec::with_capacity(counts.len());
        let mut start = 0;
        for &count in counts {
            ends.push(start);
            start += count as usize;
        }
        let mut addresses = vec![0u64; start];
        for neighbor in &self.buffer {
            if let Some(end) = ends.get_mut(neighbor.distance as usize) {
                addresses[*end] = neighbor.address;
                *end += 1;
            }
        }
        let mut sorted = std::mem::take(&mut self.buffer);
        sorted.clear();
        let mut start = 0;
        for (distance, end) in (0..).zip(ends) {
            let mut group = &mut addresses[start..end];
            // Of those at the k-th distance only the first are wanted.
            let n_wanted = self.kth.k - sorted.len();
            if n_wanted < group.len() {
                group = group.select_nth_unstable(n_wanted).0;
            }
            group.sort_unstable();
            let of_group = group.iter().map(|&address| Neighbor { distance, address });
            sorted.extend(of_group);
            start = end;
        }
        sorted
    }
}

#[cfg(test)]
mod tests {
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn naive(offered: &[(u32, u64)], k: usize, max_distance: u32) -> Vec<Neighbor> {
        let mut all: Vec<Neighbor> = offered
            .iter()
            .map(|&(distance, address)| Neighbor { distance, address })
            .filter(|neighbor| neighbor.distance <= max_distance)
            .collect();
        all.sort();
        all.truncate(k);
        all
    }

    #[test]
    fn equals_sorting_everything_in_any_order() {
        for seed in 0..400 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let n = rng.random_range(0..600);
            let spread = rng.random_range(1..40);
            let mut offered: Vec<(u32, u64)> = (0..n)
                .map(|address| (rng.random_range(0..spread), address))
                .collect();
            if seed % 2 == 0 {
                offered.shuffle(&mut rng);
            }
            let k = [0, 1, 2, 10, 100, 599, 1000][rng.random_range(0..7)];
            let max_distance = rng.random_range(0..45);
            let mut top = TopK::new(k, max_distance);
            for &(distance, address) in &offered {
                // A code that the bound excludes must not change the answer.
                let refused = top.bound_from(address).is_none_or(|bound| distance > bound);
                let before = refused.then(|| top.clone().into_sorted());
                top.push(distance, address);
                if let Some(before) = before {
                    assert_eq!(top.clone().into_sorted(), before, "seed {seed}");
                }
                assert!(top.buffer.len() <= 2 * k + BUFFER_SLACK, "seed {seed}");
            }
            let expected = naive(&offered, k, max_distance);
            assert_eq!(top.len(), expected.len(), "seed {seed}");
            assert_eq!(top.into_sorted(), expected, "seed {seed}");
        }
    }

    #[test]
    fn later_ties_are_refused_by_the_bound() {
        let mut top = TopK::new(10, 64);
        for address in 0..100_000 {
            top.push(7, address);
        }
        assert_eq!((top.bound(), top.bound_from(100_000)), (7, Some(6)));
        assert!(top.buffer.capacity() < 200);
        let mut top = TopK::new(3, 64);
        (0..50).for_each(|address| top.push(0, address));
        assert_eq!(top.bound_from(50), None);
        assert_eq!(top.bound_from(0), Some(0));
    }

    #[test]
    fn nothing_enters_when_nothing_is_wanted() {
        let mut top = TopK::new(0, 64);
        assert!(top.is_closed() && top.is_full() && top.bound_from(0).is_none());
        top.push(0, 0);
        assert!(top.is_empty() && top.into_sorted().is_empty());
    }

    #[test]
    fn a_huge_k_takes_no_memory_in_advance() {
        let mut top = TopK::new(usize::MAX, u32::MAX);
        top.push(1024, 5);
        top.push(3, 9);
        assert!(!top.is_full() && top.len() == 2);
        assert_eq!(top.into_sorted()[0].address, 9);
    }

    #[test]
    fn filling_equals_offering() {
        for seed in 0..200 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let k = rng.random_range(1..60);
            let mut top = TopK::new(k, 64);
            // The neighbors within a bound that was known before, and some that are farther than the k-th.
            let mut kth = top.kth_within(rng.random_range(3..64));
            let first = kth.bound();
            let offered: Vec<(u32, u64)> = (0..rng.random_range(0..200))
                .map(|address| (rng.random_range(0..=20.min(first)), address * 7 % 200))
                .collect();
            offered.iter().for_each(|&(distance, _)| kth.add(distance));
            let bound = kth.bound();
            let near = offered.iter().filter(|(distance, _)| *distance <= bound);
            top.fill(
                kth,
                near.map(|&(distance, address)| Neighbor { distance, address }),
            );
            // And more afterwards.
            let later: Vec<(u32, u64)> = (300..340)
                .map(|address| (rng.random_range(0..20), address))
                .collect();
            let within = later.iter().filter(|(distance, _)| *distance <= first);
            within
                .clone()
                .for_each(|&(distance, address)| top.push(distance, address));
            let all: Vec<(u32, u64)> = offered.iter().chain(within).copied().collect();
            assert_eq!(top.into_sorted(), naive(&all, k, 64), "seed {seed}");
        }
    }

    #[test]
    fn merging_equals_one_collector() {
        let (mut left, mut right) = (TopK::new(5, 64), TopK::new(5, 64));
        let mut both = TopK::new(5, 64);
        for address in 0..200u64 {
            let distance = (address * 37 % 11) as u32;
            both.push(distance, address);
            if address % 3 == 0 {
                &mut left
            } else {
                &mut right
            }
            .push(distance, address);
        }
        left.merge(right);
        assert_eq!(left.into_sorted(), both.into_sorted());
    }
}

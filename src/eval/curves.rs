//! Precision and recall at k and within a Hamming radius, from counts by distance alone.
//!
//! At k the ranking may cut through items at one distance; the share of them that is relevant then
//! counts, which is the expectation over tie orders and needs no seed.

use serde::Serialize;

/// The first k of each ranking, mean over queries.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct AtK {
    /// Items retrieved. Where the database is smaller, what is missing counts as not relevant.
    pub k: usize,
    /// Relevant items among the first k, over k.
    pub precision: f64,
    /// Relevant items among the first k, over all that are relevant; 0 where there is none.
    pub recall: f64,
    /// Normalized discounted cumulative gain: the sum of gain / log2(rank + 1) over the first k, over the largest
    /// such sum of any ranking; 0 where that is 0. The gain is the similarity of the classes where similarities
    /// are given, else 1 for a relevant item.
    pub ndcg: f64,
    /// HP@k, see [`Hierarchical`](super::Hierarchical); none without similarities.
    pub hierarchical_precision: Option<f64>,
}

/// Everything within a Hamming radius, mean over queries.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WithinRadius {
    /// In bits; the radius itself is within.
    pub radius: u32,
    /// Relevant items within the radius, over the items within it; 0 where there is none.
    pub precision: f64,
    /// Relevant items within the radius, over all that are relevant; 0 where there is none.
    pub recall: f64,
    /// Items within the radius.
    pub n_retrieved: f64,
    /// Queries that find nothing within the radius, as a share of all.
    pub empty: f64,
}

/// Sums over queries.
pub(super) struct CurveSums {
    /// One a k: precision, recall.
    at_k: Vec<[f64; 2]>,
    /// One a radius from 0 to the code length: precision, recall, items, empty queries.
    within: Vec<[f64; 4]>,
}

impl CurveSums {
    pub(super) fn new(bits: usize, n_ks: usize) -> CurveSums {
        CurveSums {
            at_k: vec![[0.0; 2]; n_ks],
            within: vec![[0.0; 4]; bits + 1],
        }
    }

    /// Adds a query that sees `all` items, `relevant` ones among them, at each distance.
    pub(super) fn add(&mut self, all: &[u32], relevant: &[u32], ks: &[usize]) {
        let m: u64 = relevant.iter().map(|&n| u64::from(n)).sum();
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        for (sums, &k) in self.at_k.iter_mut().zip(ks) {
            let found = expected_relevant(all, relevant, k);
            sums[0] += found / k as f64;
            sums[1] += share(found, m as f64);
        }
        let (mut items, mut found) = (0u64, 0u64);
        for ((sums, &n), &g) in self.within.iter_mut().zip(all).zip(relevant) {
            items += u64::from(n);
            found += u64::from(g);
            sums[0] += share(found as f64, items as f64);
            sums[1] += share(found as f64, m as f64);
            sums[2] += items as f64;
            sums[3] += f64::from(u8::from(items == 0));
        }
    }

    pub(super) fn merge(&mut self, other: &CurveSums) {
        for (to, from) in self.at_k.iter_mut().zip(&other.at_k) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
        for (to, from) in self.within.iter_mut().zip(&other.within) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }

    /// Precision and recall at each k.
    pub(super) fn at_k(&self, n_queries: usize) -> Vec<[f64; 2]> {
        let n = n_queries as f64;
        self.at_k
            .iter()
            .map(|sums| [sums[0] / n, sums[1] / n])
            .collect()
    }

    pub(super) fn within(&self, n_queries: usize) -> Vec<WithinRadius> {
        let n = n_queries as f64;
        self.within
            .iter()
            .zip(0..)
            .map(|(sums, radius)| WithinRadius {
                radius,
                precision: sums[0] / n,
                recall: sums[1] / n,
                n_retrieved: sums[2] / n,
                empty: sums[3] / n,
            })
            .collect()
    }
}

/// Relevant items expected among the first `k`.
fn expected_relevant(all: &[u32], relevant: &[u32], k: usize) -> f64 {
    let (mut left, mut found) = (k as f64, 0.0);
    for (&n, &g) in all.iter().zip(relevant).filter(|(n, _)| **n > 0) {
        let taken = left.min(f64::from(n));
        found += f64::from(g) * taken / f64::from(n);
        left -= taken;
        if left == 0.0 {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_hand() {
        // Distance 0: 1 item, relevant; distance 2: 4 items, 2 relevant; distance 3: 1 relevant item.
        let (all, relevant) = ([1, 0, 4, 1], [1, 0, 2, 1]);
        for (k, found) in [(1, 1.0), (2, 1.5), (3, 2.0), (5, 3.0), (6, 4.0), (9, 4.0)] {
            assert_eq!(expected_relevant(&all, &relevant, k), found, "{k}");
        }
        let mut sums = CurveSums::new(3, 2);
        sums.add(&all, &relevant, &[1, 10]);
        sums.add(&[0, 0, 0, 5], &[0; 4], &[1, 10]);
        assert_eq!(sums.at_k(2), [[0.5, 0.125], [0.2, 0.5]]);
        let within = sums.within(2);
        assert_eq!((within[2].precision, within[2].recall), (0.3, 0.375));
        assert_eq!((within[2].n_retrieved, within[2].empty), (2.5, 0.5));
        assert_eq!(within[3].recall, 0.5);
    }
}

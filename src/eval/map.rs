//! Average precision at R: over a ranking, and in expectation over tied rankings.
//!
//! `AP@R = (sum over k <= R of P(k) rel(k)) / denominator`, P(k) being the share of relevant items
//! among the first k.

use super::scratch::Scratch;
use super::{Cutoff, Denominator, Labels, Protocol, Ties};
use crate::random;

/// What ranks every query alike: the tie orders of the database, and the harmonic numbers that stand
/// for all of them.
pub(super) struct Ranker {
    ties: TieRule,
    denominator: Denominator,
    /// `harmonic[n] = 1 + 1/2 + .. + 1/n`, for n up to the items of a ranking.
    harmonic: Vec<f64>,
    /// At most the items of a ranking.
    r: usize,
}

enum TieRule {
    Expected,
    Orders(Vec<Order>),
}

/// The database in the order that decides among ties.
struct Order {
    rows: Vec<u32>,
    /// Where each row stands in `rows`.
    ranks: Vec<u32>,
}

impl Order {
    fn new(rows: Vec<u32>) -> Order {
        let mut ranks = vec![0; rows.len()];
        for (&row, rank) in rows.iter().zip(0..) {
            ranks[row as usize] = rank;
        }
        Order { rows, ranks }
    }
}

/// The average precision at R of one query under one tie order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct AveragePrecision {
    /// Over the relevant items among the first R: none where there is none, or the expectation has no closed form.
    pub(super) relevant_in_top_r: Option<f64>,
    /// Over the relevant items there are, at most R: none where there is none.
    pub(super) min_relevant_r: Option<f64>,
}

impl AveragePrecision {
    /// With this denominator: none for an empty query.
    pub(super) fn over(&self, denominator: Denominator) -> Option<f64> {
        match denominator {
            Denominator::RelevantInTopR => self.relevant_in_top_r,
            Denominator::MinRelevantR => self.min_relevant_r,
        }
    }
}

impl Ranker {
    /// For a database with these labels, of which a ranking holds `n_ranked`.
    pub(super) fn new(database: &Labels<'_>, n_ranked: usize, protocol: &Protocol) -> Ranker {
        let n_codes = database.len();
        let ties = match protocol.ties {
            Ties::Expected => TieRule::Expected,
            Ties::Permutations { n_orders, seed } => TieRule::Orders(
                (0..n_orders)
                    .map(|stream| Order::new(random::permutation(n_codes, seed, stream as u64)))
                    .collect(),
            ),
            Ties::DatabaseOrder => TieRule::Orders(vec![Order::new((0..n_codes as u32).collect())]),
            Ties::ClassOrder => {
                let mut rows: Vec<u32> = (0..n_codes as u32).collect();
                rows.sort_by_cached_key(|&row| database.of(row as usize).first().copied());
                TieRule::Orders(vec![Order::new(rows)])
            }
        };
        let r = match protocol.cutoff {
            Cutoff::All => n_ranked,
            Cutoff::At(r) => r.min(n_ranked),
        };
        let harmonic = std::iter::once(0.0).chain((1..=n_ranked).scan(0.0, |sum, n| {
            *sum += 1.0 / n as f64;
            Some(*sum)
        }));
        Ranker {
            ties,
            denominator: protocol.denominator,
            harmonic: harmonic.collect(),
            r,
        }
    }

    /// True if R is all of a ranking.
    pub(super) fn is_at_all(&self) -> bool {
        self.r + 1 == self.harmonic.len()
    }

    pub(super) fn denominator(&self) -> Denominator {
        self.denominator
    }

    /// The expected average precision over the whole database: none where nothing is relevant.
    pub(super) fn expected_at_all(&self, scratch: &Scratch) -> Option<f64> {
        let m = scratch.n_relevant();
        let n_ranked = self.harmonic.len() - 1;
        let sum = expected_sum(&scratch.all, &scratch.relevant, n_ranked, &self.harmonic);
        (m > 0).then(|| sum / m as f64)
    }

    /// The average precision at R of one query under each tie order (one figure in expectation mode).
    pub(super) fn average_precisions(&self, scratch: &Scratch) -> Vec<AveragePrecision> {
        let m = scratch.n_relevant();
        let m_at_most_r = m.min(self.r as u64) as f64;
        match &self.ties {
            TieRule::Expected => {
                let sum = expected_sum(&scratch.all, &scratch.relevant, self.r, &self.harmonic);
                let precision = (m > 0).then(|| sum / m_at_most_r);
                vec![AveragePrecision {
                    relevant_in_top_r: precision.filter(|_| self.is_at_all()),
                    min_relevant_r: precision,
                }]
            }
            TieRule::Orders(orders) if m == 0 => vec![AveragePrecision::default(); orders.len()],
            TieRule::Orders(orders) => {
                let top = TopR::new(scratch, self.r);
                orders
                    .iter()
                    .map(|order| {
                        let (sum, n_relevant) = precision_sum(&top.ranking(order));
                        AveragePrecision {
                            relevant_in_top_r: (n_relevant > 0).then(|| sum / n_relevant as f64),
                            min_relevant_r: Some(sum / m_at_most_r),
                        }
                    })
                    .collect()
            }
        }
    }
}

/// The first R of one query, under any tie order.
struct TopR<'a> {
    scratch: &'a Scratch,
    r: usize,
    /// Where each distance starts in the ranking, as far as R.
    starts: Vec<usize>,
    /// Rows near enough to be among the first R, if they are few.
    candidates: Option<Vec<u32>>,
}

impl<'a> TopR<'a> {
    fn new(scratch: &'a Scratch, r: usize) -> TopR<'a> {
        let mut starts = Vec::with_capacity(scratch.all.len());
        let mut n_near = 0;
        for &count in &scratch.all {
            if n_near >= r {
                break;
            }
            starts.push(n_near);
            n_near += count as usize;
        }
        // Sorting a candidate costs about as much as scanning ten rows.
        let distances = scratch.rows();
        let candidates = (n_near < distances.len() / 10).then(|| {
            let mut rows = Vec::with_capacity(n_near);
            for (distance, row) in distances.iter().zip(0..) {
                if (*distance as usize) < starts.len() {
                    rows.push(row);
                }
            }
            rows
        });
        TopR {
            scratch,
            r,
            starts,
            candidates,
        }
    }

    /// Relevance of the first R.
    fn ranking(&self, order: &Order) -> Vec<bool> {
        match &self.candidates {
            Some(candidates) => self.sort(candidates, order),
            None => self.counting_sort(order),
        }
    }

    /// A stable counting sort by distance of the whole database in `order`.
    fn counting_sort(&self, order: &Order) -> Vec<bool> {
        let mut next = self.starts.clone();
        let distances = self.scratch.rows();
        let mut relevant = vec![false; self.r];
        for &row in &order.rows {
            let distance = distances[row as usize] as usize;
            if let Some(position) = next.get_mut(distance) {
                if let Some(slot) = relevant.get_mut(*position) {
                    *slot = self.scratch.is_relevant(row);
                }
                *position += 1;
            }
        }
        relevant
    }

    /// The same ranking from the candidates alone.
    fn sort(&self, candidates: &[u32], order: &Order) -> Vec<bool> {
        let distances = self.scratch.rows();
        let mut keys: Vec<u64> = candidates
            .iter()
            .map(|&row| {
                let distance = u64::from(distances[row as usize]);
                distance << 32 | u64::from(order.ranks[row as usize])
            })
            .collect();
        if self.r < keys.len() {
            keys.select_nth_unstable(self.r);
            keys.truncate(self.r);
        }
        keys.sort_unstable();
        keys.iter()
            .map(|&key| self.scratch.is_relevant(order.rows[key as u32 as usize]))
            .collect()
    }
}

/// The sum of P(k) rel(k) over a ranking, and its relevant items.
fn precision_sum(ranking: &[bool]) -> (f64, usize) {
    let (mut sum, mut n_relevant) = (0.0, 0);
    for (i, _) in ranking.iter().enumerate().filter(|(_, rel)| **rel) {
        n_relevant += 1;
        sum += n_relevant as f64 / (i + 1) as f64;
    }
    (sum, n_relevant)
}

/// The expectation of the sum of P(k) rel(k), k <= r, when every order of the items at one distance is
/// equally likely (McSherry and Najork, ECIR 2008).
///
/// Let a bucket of n items, g of them relevant, follow N items with G relevant. Its i-th position is
/// relevant with probability g/n, and then G + 1 + (i - 1)(g - 1)/(n - 1) relevant items are expected up
/// to it. With A = G + 1 and B = (g - 1)/(n - 1) the sum over i = 1..t of that, over N + i, is
/// B t + (A - B (N + 1)) (H(N + t) - H(N)), H being the harmonic numbers.
fn expected_sum(all: &[u32], relevant: &[u32], r: usize, harmonic: &[f64]) -> f64 {
    let (mut sum, mut before, mut relevant_before) = (0.0, 0usize, 0usize);
    for (&n, &g) in all.iter().zip(relevant) {
        if before >= r {
            break;
        }
        let (n, g) = (n as usize, g as usize);
        if g > 0 {
            let taken = n.min(r - before);
            let a = (relevant_before + 1) as f64;
            let b = if n > 1 {
                (g - 1) as f64 / (n - 1) as f64
            } else {
                0.0
            };
            let steps = harmonic[before + taken] - harmonic[before];
            sum += g as f64 / n as f64 * (b * taken as f64 + (a - b * (before + 1) as f64) * steps);
        }
        before += n;
        relevant_before += g;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn average_precision_by_hand() {
        // Ranks + - + - -: (1/1 + 2/3) / 2.
        let (sum, n) = precision_sum(&[true, false, true, false, false]);
        assert_eq!((sum, n), (1.0 + 2.0 / 3.0, 2));
        assert_eq!(precision_sum(&[false; 4]), (0.0, 0));
        assert_eq!(precision_sum(&[true; 4]), (4.0, 4));
    }

    #[test]
    fn one_bucket_of_two_by_hand() {
        // One of two tied items is relevant: first with probability 1/2 (sum 1), else second (1/2).
        let harmonic = [0.0, 1.0, 1.5];
        let sum = expected_sum(&[2], &[1], 2, &harmonic);
        assert!((sum - 0.75).abs() < 1e-12);
        // Of the first position alone: relevant half of the time.
        assert!((expected_sum(&[2], &[1], 1, &harmonic) - 0.5).abs() < 1e-12);
    }
}

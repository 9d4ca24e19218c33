//! Graded relevance: normalized discounted cumulative gain, and hierarchical precision.
//!
//! The gain of an item is the similarity of its class to the query's, or 1 and 0 where only relevance is known.
//! Both measures are linear in the gains, so their expectation over tie orders is exact: every place among
//! tied items counts their mean gain. Leaves out gains of several labels an item.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use super::Protocol;
use crate::error::{Error, Result};

/// How similar each two of C classes are, from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassSimilarities {
    n_classes: usize,
    /// C x C, row-major; a row is a query's class.
    values: Vec<f64>,
}

impl ClassSimilarities {
    /// From a C x C matrix, row-major, a row for each query class.
    ///
    /// # Errors
    /// `InvalidArgument` for another number of values, or a value outside 0 to 1.
    pub fn new(n_classes: usize, values: Vec<f64>) -> Result<ClassSimilarities> {
        if n_classes == 0 || n_classes.checked_mul(n_classes) != Some(values.len()) {
            return Err(Error::invalid(format!(
                "similarities of {n_classes} classes are a square matrix of at least one class, got {} values",
                values.len()
            )));
        }
        if let Some(at) = values.iter().position(|v| !(0.0..=1.0).contains(v)) {
            return Err(Error::invalid(format!(
                "a similarity is from 0 to 1, got {} for classes {} and {}",
                values[at],
                at / n_classes,
                at % n_classes
            )));
        }
        Ok(ClassSimilarities { n_classes, values })
    }

    /// C.
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// The similarity of class `item` to the query's class. Panics past the end.
    pub fn get(&self, query: u32, item: u32) -> f64 {
        self.row(query)[item as usize]
    }

    pub(super) fn row(&self, query: u32) -> &[f64] {
        &self.values[query as usize * self.n_classes..][..self.n_classes]
    }
}

/// How well rankings follow the similarities of classes, mean over queries.
///
/// `HP@k = sum of the similarities of the first k / the largest such sum of any ranking` (Deng et al., CVPR
/// 2011), expected over ties; where the database is smaller than k, both sums end with it. A query whose largest
/// sum is 0 has HP 0.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hierarchical {
    /// K of mAHP@K.
    pub k: usize,
    /// The mean area under HP@1 to HP@K by the trapezoid rule, ranks being 1/K apart, so that a perfect
    /// ranking has (K - 1) / K: .996 for 250 (Barz and Denzler, WACV 2019, as their code has it since 2020).
    pub mahp: f64,
    /// What a perfect ranking has.
    pub mahp_perfect: f64,
    /// HP@1 to HP@K.
    pub hp: Vec<f64>,
}

/// What every query of one class is measured against.
struct Ideal {
    /// The largest sum of gains of the first 1, 2, .. K.
    sums: Vec<f64>,
    /// The same at each k of the protocol, and the largest discounted sum.
    at_k: Vec<(f64, f64)>,
}

/// What is the same for all queries.
pub(super) struct Graded<'a> {
    similarities: Option<&'a ClassSimilarities>,
    database_labels: &'a [u32],
    ideals: BTreeMap<u32, Ideal>,
    /// `discounts[n]`: the sum of `1 / log2(i + 1)` over the first n ranks i.
    discounts: Vec<f64>,
    /// Ranks that count at most.
    n_ranks: usize,
}

impl<'a> Graded<'a> {
    /// With relevance alone as gain.
    pub(super) fn binary(n_items: usize, protocol: &Protocol) -> Graded<'a> {
        Graded::new(None, &[], n_items, protocol)
    }

    /// With similarities as gains, for queries of the classes `query_classes`.
    pub(super) fn of_classes(
        similarities: &'a ClassSimilarities,
        query_classes: &[u32],
        database_labels: &'a [u32],
        protocol: &Protocol,
    ) -> Graded<'a> {
        let n_items = database_labels.len() - usize::from(protocol.leave_one_out);
        let mut graded = Graded::new(Some(similarities), database_labels, n_items, protocol);
        let mut n_items_of = vec![0usize; similarities.n_classes()];
        for &class in database_labels {
            n_items_of[class as usize] += 1;
        }
        let mut classes = query_classes.to_vec();
        classes.sort_unstable();
        classes.dedup();
        let ideals: Vec<(u32, Ideal)> = classes
            .into_par_iter()
            .map(|class| {
                let mut n_items_of = n_items_of.clone();
                n_items_of[class as usize] -= usize::from(protocol.leave_one_out);
                let row = similarities.row(class);
                let mut gains: Vec<(f64, usize)> = row.iter().copied().zip(n_items_of).collect();
                gains.sort_by(|a, b| b.0.total_cmp(&a.0));
                (class, graded.ideal(&gains, protocol))
            })
            .collect();
        graded.ideals = ideals.into_iter().collect();
        graded
    }

    fn new(
        similarities: Option<&'a ClassSimilarities>,
        database_labels: &'a [u32],
        n_items: usize,
        protocol: &Protocol,
    ) -> Graded<'a> {
        let most = protocol.ks.iter().copied().max().unwrap_or(1);
        let n_ranks = most.max(protocol.hierarchy_k).min(n_items);
        let mut discounts = vec![0.0];
        discounts.extend((1..=n_ranks).scan(0.0, |sum, i| {
            *sum += 1.0 / ((i + 1) as f64).log2();
            Some(*sum)
        }));
        Graded {
            similarities,
            database_labels,
            ideals: BTreeMap::new(),
            discounts,
            n_ranks,
        }
    }

    /// The best ranking there can be, from gains in descending order and how many items have each.
    fn ideal(&self, gains: &[(f64, usize)], protocol: &Protocol) -> Ideal {
        let up_to = |k: usize| {
            let (mut rank, mut sum, mut discounted) = (0, 0.0, 0.0);
            for &(gain, n) in gains {
                let end = (rank + n).min(k).min(self.n_ranks);
                sum += gain * (end - rank) as f64;
                discounted += gain * (self.discounts[end] - self.discounts[rank]);
                rank = end;
            }
            (sum, discounted)
        };
        let mut each = gains
            .iter()
            .flat_map(|&(gain, n)| std::iter::repeat_n(gain, n))
            .scan(0.0, |sum, gain| {
                *sum += gain;
                Some(*sum)
            });
        let mut last = 0.0;
        let sums = (0..protocol.hierarchy_k)
            .map(|_| {
                last = each.next().unwrap_or(last);
                last
            })
            .collect();
        Ideal {
            sums,
            at_k: protocol.ks.iter().map(|&k| up_to(k)).collect(),
        }
    }

    /// The sum of gains at each distance, as far as the ranks that count reach. `distances` may hold values
    /// past the last distance, for items that are left out.
    pub(super) fn gains(&self, class: u32, distances: &[u32], all: &[u32], out: &mut Vec<f64>) {
        out.clear();
        let Some(similarities) = self.similarities else {
            return;
        };
        let mut n_near = 0;
        let n_distances = all
            .iter()
            .take_while(|&&n| {
                let counts = n_near < self.n_ranks;
                n_near += n as usize;
                counts
            })
            .count();
        let row = similarities.row(class);
        // Neighbouring items add to sums of their own, as in the counts by distance.
        let mut sums = vec![[0.0; 4]; n_distances];
        let rows = distances.chunks(4).zip(self.database_labels.chunks(4));
        for (distances, labels) in rows {
            for (lane, (&distance, &item)) in distances.iter().zip(labels).enumerate() {
                if let Some(sums) = sums.get_mut(distance as usize) {
                    sums[lane] += row[item as usize];
                }
            }
        }
        out.extend(sums.iter().map(|lanes| lanes.iter().sum::<f64>()));
    }
}

/// Sums over queries.
pub(super) struct GradedSums {
    /// One a k of the protocol: nDCG, HP.
    at_k: Vec<(f64, f64)>,
    /// HP@1 to HP@K; empty without similarities.
    hp: Vec<f64>,
}

impl GradedSums {
    pub(super) fn new(protocol: &Protocol, has_similarities: bool) -> GradedSums {
        GradedSums {
            at_k: vec![(0.0, 0.0); protocol.ks.len()],
            hp: vec![
                0.0;
                if has_similarities {
                    protocol.hierarchy_k
                } else {
                    0
                }
            ],
        }
    }

    /// Adds a query that sees `all` items at each distance, `relevant` of them relevant, with these sums of
    /// gains (without similarities: none).
    pub(super) fn add(
        &mut self,
        graded: &Graded<'_>,
        class: u32,
        all: &[u32],
        relevant: &[u32],
        gains: &[f64],
        ks: &[usize],
    ) {
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        match graded.ideals.get(&class) {
            None => {
                let m: usize = relevant.iter().map(|&n| n as usize).sum();
                for (sums, &k) in self.at_k.iter_mut().zip(ks) {
                    let (_, discounted) =
                        up_to(k, graded, all, relevant.iter().map(|&g| f64::from(g)));
                    sums.0 += share(discounted, graded.discounts[m.min(k).min(graded.n_ranks)]);
                }
            }
            Some(ideal) => {
                for ((sums, &k), ideal) in self.at_k.iter_mut().zip(ks).zip(&ideal.at_k) {
                    let (sum, discounted) = up_to(k, graded, all, gains.iter().copied());
                    sums.0 += share(discounted, ideal.1);
                    sums.1 += share(sum, ideal.0);
                }
                let (mut rank, mut sum) = (0, 0.0);
                let buckets = all.iter().zip(gains).filter(|(n, _)| **n > 0);
                let each = buckets
                    .flat_map(|(&n, &gain)| std::iter::repeat_n(gain / f64::from(n), n as usize));
                for gain in each.take(self.hp.len()) {
                    sum += gain;
                    self.hp[rank] += share(sum, ideal.sums[rank]);
                    rank += 1;
                }
                for rank in rank..self.hp.len() {
                    self.hp[rank] += share(sum, ideal.sums[rank]);
                }
            }
        }
    }

    pub(super) fn merge(&mut self, other: &GradedSums) {
        for (to, from) in self.at_k.iter_mut().zip(&other.at_k) {
            to.0 += from.0;
            to.1 += from.1;
        }
        self.hp
            .iter_mut()
            .zip(&other.hp)
            .for_each(|(to, from)| *to += from);
    }

    /// nDCG and HP at each k of the protocol; HP means nothing without similarities.
    pub(super) fn at_k(&self, n_queries: usize) -> Vec<(f64, f64)> {
        let n = n_queries as f64;
        self.at_k
            .iter()
            .map(|sums| (sums.0 / n, sums.1 / n))
            .collect()
    }

    pub(super) fn hierarchical(&self, n_queries: usize) -> Option<Hierarchical> {
        let k = self.hp.len();
        if k == 0 {
            return None;
        }
        let hp: Vec<f64> = self.hp.iter().map(|sum| sum / n_queries as f64).collect();
        Some(Hierarchical {
            k,
            mahp: hp
                .windows(2)
                .map(|pair| (pair[0] + pair[1]) / 2.0)
                .sum::<f64>()
                / k as f64,
            mahp_perfect: (k - 1) as f64 / k as f64,
            hp,
        })
    }
}

/// The expected sum of gains, and of discounted gains, of the first k.
fn up_to(
    k: usize,
    graded: &Graded<'_>,
    all: &[u32],
    gains: impl Iterator<Item = f64>,
) -> (f64, f64) {
    let (mut rank, mut sum, mut discounted) = (0, 0.0, 0.0);
    let k = k.min(graded.n_ranks);
    for (&n, gain) in all.iter().zip(gains).filter(|(n, _)| **n > 0) {
        let end = (rank + n as usize).min(k);
        let mean = gain / f64::from(n);
        sum += mean * (end - rank) as f64;
        discounted += mean * (graded.discounts[end] - graded.discounts[rank]);
        rank = end;
        if rank == k {
            break;
        }
    }
    (sum, discounted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Cutoff;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} and {b}");
    }

    #[test]
    fn hierarchical_precision_by_hand() {
        // Similarities to the query's class 0: 1, .5 and 0; items of classes 2, 0, 1, 0 at distances 0, 1, 1, 2.
        let values = vec![1.0, 0.5, 0.0, 0.5, 1.0, 0.0, 0.0, 0.0, 1.0];
        let similarities = ClassSimilarities::new(3, values).unwrap();
        let protocol = Protocol {
            ks: vec![1, 2, 9],
            hierarchy_k: 5,
            ..Protocol::new(Cutoff::All)
        };
        let labels = [2, 0, 1, 0];
        let graded = Graded::of_classes(&similarities, &[0, 0], &labels, &protocol);
        let mut gains = Vec::new();
        let all = [1, 2, 1];
        graded.gains(0, &[0, 1, 1, 2], &all, &mut gains);
        assert_eq!(gains, [0.0, 1.5, 1.0]);
        let mut sums = GradedSums::new(&protocol, true);
        sums.add(&graded, 0, &all, &[], &gains, &protocol.ks);
        // Expected gains by rank: 0, .75, .75, 1; ideal: 1, 1, .5, 0.
        let hp = [0.0, 0.75 / 2.0, 1.5 / 2.5, 1.0, 1.0];
        let found = sums.hierarchical(1).unwrap();
        found.hp.iter().zip(hp).for_each(|(a, b)| near(*a, b));
        near(
            found.mahp,
            (hp[1] + hp[2] + hp[3] + (hp[0] + hp[4]) / 2.0) / 5.0,
        );
        near(found.mahp_perfect, 0.8);
        let discount = |i: f64| 1.0 / (i + 1.0).log2();
        let at_k = sums.at_k(1);
        near(at_k[0].1, 0.0);
        near(at_k[1].1, 0.375);
        near(at_k[1].0, 0.75 * discount(2.0) / (1.0 + discount(2.0)));
        let dcg = 0.75 * (discount(2.0) + discount(3.0)) + discount(4.0);
        near(at_k[2].0, dcg / (1.0 + discount(2.0) + 0.5 * discount(3.0)));
        near(at_k[2].1, 1.0);
    }

    #[test]
    fn wrong_matrices_are_refused() {
        assert!(ClassSimilarities::new(2, vec![1.0; 3]).is_err());
        assert!(ClassSimilarities::new(0, vec![]).is_err());
        let error = ClassSimilarities::new(2, vec![1.0, 0.0, 1.5, 1.0]).unwrap_err();
        assert!(error.to_string().contains("classes 1 and 0"), "{error}");
        assert!(ClassSimilarities::new(1, vec![f64::NAN]).is_err());
    }
}

//! How good codes are: mAP@R, precision and recall, graded measures, distances and bits, with everything that
//! decides a number on record.
//!
//! An item is relevant to a query if they share a class. Items at one Hamming distance tie, and how ties are
//! broken decides published figures by whole points, so [`Ties`] is part of the [`Protocol`] and the [`Report`]
//! repeats it; every figure but mAP@R is an expectation over ties. Similarities of classes, most often from a
//! [`Hierarchy`], add graded relevance. Knows neither pictures nor models: codes and labels in, numbers out.

mod bits;
mod curves;
mod distances;
mod graded;
mod hierarchy;
mod map;
mod protocol;
mod relevance;
mod scratch;

use std::collections::BTreeMap;
use std::ops::Deref;

use rayon::prelude::*;
use serde::Serialize;

pub use crate::labels::{LabelSets, Labels};
pub use bits::{BitBalance, BitCorrelation, QuantizationError, bit_statistics, quantization_error};
pub use curves::{AtK, WithinRadius};
pub use distances::Distances;
pub use graded::{ClassSimilarities, Hierarchical};
pub use hierarchy::{ClassHierarchy, Hierarchy};
pub use protocol::{Cutoff, Denominator, EmptyQueries, Protocol, Ties};

use crate::code::{Codes, CodesRef};
use crate::error::{Error, Result};
use graded::{Graded, GradedSums};
use relevance::Relevance;
use scratch::Scratch;

/// The result of an [`Evaluation`]. Precisions, recalls and means are shares from 0 to 1.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// mAP@R by the protocol; over several orders, their mean.
    pub map: f64,
    /// Standard deviation of mAP@R over the orders (n - 1 in the denominator); none for fewer than two.
    pub map_std: Option<f64>,
    /// mAP@R of each order of [`Ties::Permutations`]; a single figure otherwise.
    pub map_per_order: Vec<f64>,
    /// mAP@R with either denominator, the mean over orders; else as the protocol says.
    pub map_by_denominator: MapByDenominator,
    /// mAP@all, expected over ties: needs no seed, and no choice of denominator.
    pub map_all_expected: f64,
    /// How it was measured.
    pub protocol: Protocol,
    /// Queries.
    pub n_queries: usize,
    /// Items searched; with leave-one-out, the query among them, which its own ranking leaves out.
    pub n_database: usize,
    /// Bits of a code.
    pub bits: usize,
    /// Queries with nothing relevant, as [`EmptyQueries`] has it for the protocol's denominator: in the database, or
    /// among the first R in at least one order.
    pub n_empty_queries: usize,
    /// mAP@R of each class of queries, by label. A query of several classes counts in each.
    pub per_class: Vec<ClassReport>,
    /// Precision, recall and nDCG at each k of the protocol, expected over ties.
    pub at_k: Vec<AtK>,
    /// Precision and recall within the protocol's radius.
    pub within_radius: WithinRadius,
    /// The same within every radius from 0 to the length of the codes: the precision-recall curve.
    pub curve: Vec<WithinRadius>,
    /// mAHP@K and hierarchical precision, where similarities of classes are given.
    pub hierarchical: Option<Hierarchical>,
    /// Distances of relevant and of other pairs.
    pub distances: Distances,
    /// Balance of the bits of the database.
    pub bit_balance: BitBalance,
    /// Correlation of the bits of the database.
    pub bit_correlation: BitCorrelation,
    /// What binarizing lost, where the caller has the logits; see [`quantization_error`].
    pub quantization: Option<QuantizationError>,
    /// The average precision at R of each query, the mean over orders, 0 for an empty one. Not serialized.
    #[serde(skip)]
    pub ap_per_query: Vec<f64>,
    /// Whatever else the record of the figure needs, filled in by the caller: the data set's protocol,
    /// seeds of split, codebook and training, the checkpoint rule.
    pub notes: BTreeMap<String, String>,
}

impl Report {
    /// The metric's name with its R: `mAP@all`, `mAP@1000`.
    pub fn metric(&self) -> String {
        format!("mAP@{}", self.protocol.cutoff)
    }
}

/// mAP@R with either denominator.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MapByDenominator {
    /// [`Denominator::RelevantInTopR`]; none where the expectation over ties has no closed form.
    pub relevant_in_top_r: Option<f64>,
    /// [`Denominator::MinRelevantR`].
    pub min_relevant_r: f64,
}

/// The queries of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassReport {
    /// The label.
    pub label: u32,
    /// Queries with this label.
    pub n_queries: usize,
    /// Their mAP@R, over all orders. 0 if the protocol skips every one of them.
    pub map: f64,
}

/// Searches the database for every query, on all threads, and measures the rankings:
/// [`Evaluation::new`] and [`Evaluation::run`] in one.
///
/// # Errors
/// As these two.
pub fn evaluate<'a, Q, D>(
    query: &'a Codes<Q>,
    query_labels: impl Into<Labels<'a>>,
    database: &'a Codes<D>,
    database_labels: impl Into<Labels<'a>>,
    protocol: &Protocol,
) -> Result<Report>
where
    Q: Deref<Target = [u64]>,
    D: Deref<Target = [u64]>,
{
    Evaluation::new(query, query_labels, database, database_labels)?.run(protocol)
}

/// What is measured: two sets of codes with their labels, and what more is known of the classes.
#[derive(Clone, Debug)]
pub struct Evaluation<'a> {
    query: CodesRef<'a>,
    query_labels: Labels<'a>,
    database: CodesRef<'a>,
    database_labels: Labels<'a>,
    similarities: Option<&'a ClassSimilarities>,
}

impl<'a> Evaluation<'a> {
    /// Queries and database, with the labels of each code.
    ///
    /// # Errors
    /// `CodeLenMismatch` if the two sets differ in length; `InvalidArgument` if a set is empty or labels are
    /// not one entry a code.
    pub fn new<Q, D>(
        query: &'a Codes<Q>,
        query_labels: impl Into<Labels<'a>>,
        database: &'a Codes<D>,
        database_labels: impl Into<Labels<'a>>,
    ) -> Result<Evaluation<'a>>
    where
        Q: Deref<Target = [u64]>,
        D: Deref<Target = [u64]>,
    {
        let (query, database) = (query.as_ref(), database.as_ref());
        let (query_labels, database_labels) = (query_labels.into(), database_labels.into());
        database.code_len().check(query.code_len())?;
        for (name, codes, labels) in [
            ("query", query, query_labels),
            ("database", database, database_labels),
        ] {
            if codes.is_empty() || codes.n_codes() != labels.len() {
                return Err(Error::invalid(format!(
                    "the {name} set needs at least one code and one label a code, got {} codes and {} labels",
                    codes.n_codes(),
                    labels.len()
                )));
            }
        }
        Ok(Evaluation {
            query,
            query_labels,
            database,
            database_labels,
            similarities: None,
        })
    }

    /// Measures graded relevance, too, by these similarities of the classes.
    ///
    /// # Errors
    /// `InvalidArgument` if items have sets of classes, or a label is none of the similarities' classes.
    pub fn similarities(mut self, similarities: &'a ClassSimilarities) -> Result<Evaluation<'a>> {
        for (name, labels) in [
            ("query", self.query_labels),
            ("database", self.database_labels),
        ] {
            let Labels::Classes(classes) = labels else {
                return Err(Error::invalid(
                    "similarities of classes need one class an item, got sets of classes",
                ));
            };
            let n_classes = similarities.n_classes();
            if let Some(row) = classes.iter().position(|&c| c as usize >= n_classes) {
                return Err(Error::invalid(format!(
                    "{name} {row} has label {}, and there are similarities of {n_classes} classes only",
                    classes[row]
                )));
            }
        }
        self.similarities = Some(similarities);
        Ok(self)
    }

    /// Searches the database for every query, on all threads, and measures the rankings. The answer does not
    /// depend on the number of threads.
    ///
    /// # Errors
    /// `InvalidArgument` if the protocol contradicts itself, or if it leaves out the query and the two sets are not one
    /// set of at least two codes.
    pub fn run(&self, protocol: &Protocol) -> Result<Report> {
        let bits = self.database.code_len().bits();
        protocol.check(bits)?;
        let relevance = Relevance::new(self.query_labels, self.database_labels);
        if protocol.leave_one_out {
            self.check_is_one_set()?;
        }
        let n_codes = self.database.n_codes();
        let n_ranked = n_codes - usize::from(protocol.leave_one_out);
        let ranker = map::Ranker::new(&self.database_labels, n_ranked, protocol);
        let graded = match (self.similarities, self.query_labels, self.database_labels) {
            (Some(similarities), Labels::Classes(query), Labels::Classes(database)) => {
                Graded::of_classes(similarities, query, database, protocol)
            }
            _ => Graded::binary(n_ranked, protocol),
        };
        let rows: Vec<usize> = (0..self.query.n_codes()).collect();
        let empty_sums = || Sums::new(bits, protocol, &ranker, self.similarities.is_some());
        // Sums are taken query by query within a chunk and chunk by chunk after: the same on any machine.
        let chunks: Vec<Sums> = rows
            .par_chunks(QUERIES_IN_CHUNK)
            .map(|rows| {
                let mut sums = empty_sums();
                let mut scratch = Scratch::new(&self.database);
                for &row in rows {
                    scratch.measure(&self.database, &relevance, &self.query, row, protocol);
                    sums.add(
                        &mut scratch,
                        &self.query_labels.of(row),
                        &ranker,
                        &graded,
                        protocol,
                    );
                }
                sums
            })
            .collect();
        let mut sums = empty_sums();
        for chunk in &chunks {
            sums.merge(chunk);
        }
        sums.report(self, protocol)
    }

    fn check_is_one_set(&self) -> Result<()> {
        let (query, database) = (&self.query, &self.database);
        let one_set = query == database && self.query_labels.same_as(&self.database_labels);
        if !one_set || query.n_codes() < 2 {
            return Err(Error::invalid(format!(
                "leave-one-out takes one set of at least two codes as queries and as database, got {}",
                match one_set {
                    true => "one code".to_owned(),
                    false => format!(
                        "two sets, of {} and {} codes",
                        query.n_codes(),
                        database.n_codes()
                    ),
                }
            )));
        }
        Ok(())
    }
}

const QUERIES_IN_CHUNK: usize = 32;

/// Sums over queries.
struct Sums {
    /// One a tie order.
    map: Vec<OrderSums>,
    /// False where the expectation has no closed form for [`Denominator::RelevantInTopR`].
    has_both: bool,
    /// Expected average precisions over the whole database.
    expected: Mean,
    n_empty: usize,
    /// By label: queries, and average precisions over queries and orders.
    classes: BTreeMap<u32, (usize, Mean)>,
    curves: curves::CurveSums,
    graded: GradedSums,
    /// Pairs at each distance.
    all: Vec<u64>,
    relevant: Vec<u64>,
    ap_per_query: Vec<f64>,
}

/// A sum and how many are in it.
#[derive(Clone, Copy, Default)]
struct Mean {
    sum: f64,
    n: usize,
}

impl Mean {
    /// Nothing, where an empty query is left out, or a 0 for it.
    fn add(&mut self, value: Option<f64>, skip: bool) {
        self.sum += value.unwrap_or(0.0);
        self.n += usize::from(value.is_some() || !skip);
    }

    fn merge(&mut self, other: Mean) {
        self.sum += other.sum;
        self.n += other.n;
    }

    /// 0 of none.
    fn value(self) -> f64 {
        if self.n == 0 {
            0.0
        } else {
            self.sum / self.n as f64
        }
    }
}

/// Average precisions with either denominator.
#[derive(Clone, Copy, Default)]
struct OrderSums {
    relevant_in_top_r: Mean,
    min_relevant_r: Mean,
}

impl OrderSums {
    fn over(&self, denominator: Denominator) -> Mean {
        match denominator {
            Denominator::RelevantInTopR => self.relevant_in_top_r,
            Denominator::MinRelevantR => self.min_relevant_r,
        }
    }
}

impl Sums {
    fn new(bits: usize, protocol: &Protocol, ranker: &map::Ranker, has_similarities: bool) -> Sums {
        let n_orders = match protocol.ties {
            Ties::Permutations { n_orders, .. } => n_orders,
            Ties::Expected | Ties::DatabaseOrder | Ties::ClassOrder => 1,
        };
        Sums {
            map: vec![OrderSums::default(); n_orders],
            has_both: protocol.ties != Ties::Expected || ranker.is_at_all(),
            expected: Mean::default(),
            n_empty: 0,
            classes: BTreeMap::new(),
            curves: curves::CurveSums::new(bits, protocol.ks.len()),
            graded: GradedSums::new(protocol, has_similarities),
            all: vec![0; bits + 1],
            relevant: vec![0; bits + 1],
            ap_per_query: Vec::new(),
        }
    }

    fn add(
        &mut self,
        scratch: &mut Scratch,
        labels: &[u32],
        ranker: &map::Ranker,
        graded: &Graded<'_>,
        protocol: &Protocol,
    ) {
        let skip = protocol.empty_queries == EmptyQueries::Skip;
        let (mut of_query, mut empty) = (Mean::default(), false);
        let precisions = ranker.average_precisions(scratch);
        let n_orders = precisions.len() as f64;
        for (sums, precision) in self.map.iter_mut().zip(precisions) {
            let in_top_r = precision.relevant_in_top_r;
            sums.relevant_in_top_r.add(in_top_r, skip);
            sums.min_relevant_r.add(precision.min_relevant_r, skip);
            let precision = precision.over(ranker.denominator());
            of_query.add(precision, skip);
            empty |= precision.is_none();
        }
        self.ap_per_query.push(of_query.sum / n_orders);
        self.n_empty += usize::from(empty);
        for &label in labels {
            let class = self.classes.entry(label).or_default();
            class.0 += 1;
            class.1.merge(of_query);
        }
        self.expected.add(ranker.expected_at_all(scratch), skip);
        let (all, relevant) = (&scratch.all, &scratch.relevant);
        self.curves.add(all, relevant, &protocol.ks);
        for (sums, counts) in [(&mut self.all, all), (&mut self.relevant, relevant)] {
            for (sum, &count) in sums.iter_mut().zip(counts) {
                *sum += u64::from(count);
            }
        }
        // With similarities there is exactly one class an item; without, the class does not matter.
        let class = labels.first().copied().unwrap_or(0);
        let mut gains = std::mem::take(&mut scratch.gains);
        graded.gains(class, scratch.rows(), &scratch.all, &mut gains);
        let (all, relevant) = (&scratch.all, &scratch.relevant);
        self.graded
            .add(graded, class, all, relevant, &gains, &protocol.ks);
        scratch.gains = gains;
    }

    fn merge(&mut self, other: &Sums) {
        for (to, from) in self.map.iter_mut().zip(&other.map) {
            to.relevant_in_top_r.merge(from.relevant_in_top_r);
            to.min_relevant_r.merge(from.min_relevant_r);
        }
        self.expected.merge(other.expected);
        self.n_empty += other.n_empty;
        for (&label, from) in &other.classes {
            let to = self.classes.entry(label).or_default();
            to.0 += from.0;
            to.1.merge(from.1);
        }
        self.curves.merge(&other.curves);
        self.graded.merge(&other.graded);
        for (to, from) in [
            (&mut self.all, &other.all),
            (&mut self.relevant, &other.relevant),
        ] {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
        self.ap_per_query.extend_from_slice(&other.ap_per_query);
    }

    fn report(self, sets: &Evaluation<'_>, protocol: &Protocol) -> Result<Report> {
        let n_queries = sets.query.n_codes();
        let per_order = |denominator| {
            self.map
                .iter()
                .map(move |sums| sums.over(denominator).value())
        };
        let map_per_order: Vec<f64> = per_order(protocol.denominator).collect();
        let n_orders = map_per_order.len() as f64;
        let over_orders = |denominator| per_order(denominator).sum::<f64>() / n_orders;
        let map = map_per_order.iter().sum::<f64>() / n_orders;
        let squares: f64 = map_per_order.iter().map(|m| (m - map).powi(2)).sum();
        let hierarchical = self.graded.hierarchical(n_queries);
        let at_k = protocol.ks.iter().zip(self.curves.at_k(n_queries));
        let at_k = at_k.zip(self.graded.at_k(n_queries));
        let curve = self.curves.within(n_queries);
        let (bit_balance, bit_correlation) = bit_statistics(&sets.database)?;
        Ok(Report {
            map,
            map_std: (n_orders > 1.0).then(|| (squares / (n_orders - 1.0)).sqrt()),
            map_by_denominator: MapByDenominator {
                relevant_in_top_r: self
                    .has_both
                    .then(|| over_orders(Denominator::RelevantInTopR)),
                min_relevant_r: over_orders(Denominator::MinRelevantR),
            },
            map_all_expected: self.expected.value(),
            map_per_order,
            protocol: protocol.clone(),
            n_queries,
            n_database: sets.database.n_codes(),
            bits: sets.database.code_len().bits(),
            n_empty_queries: self.n_empty,
            per_class: self
                .classes
                .iter()
                .map(|(&label, &(n_queries, precisions))| ClassReport {
                    label,
                    n_queries,
                    map: precisions.value(),
                })
                .collect(),
            at_k: at_k
                .map(|((&k, [precision, recall]), (ndcg, hp))| AtK {
                    k,
                    precision,
                    recall,
                    ndcg,
                    hierarchical_precision: hierarchical.as_ref().map(|_| hp),
                })
                .collect(),
            within_radius: curve[protocol.radius as usize],
            curve,
            hierarchical,
            distances: Distances::new(&self.all, self.relevant),
            bit_balance,
            bit_correlation,
            quantization: None,
            ap_per_query: self.ap_per_query,
            notes: BTreeMap::new(),
        })
    }
}

#[cfg(test)]
mod tests;

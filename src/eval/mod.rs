//! How good codes are: mAP@R, precision and recall, with everything that decides the number on record.
//!
//! An item is relevant to a query if it has the query's label. Items at one Hamming distance tie, and
//! how ties are broken decides published figures by whole points, so [`Ties`] is part of the
//! [`Protocol`] and the [`Report`] repeats it. Knows neither pictures nor models: codes and labels in,
//! numbers out. Leaves out graded relevance and queries that are also in the database.

mod curves;
mod map;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use rayon::prelude::*;
use serde::{Serialize, Serializer};

pub use curves::{AtK, WithinRadius};

use crate::code::{Codes, CodesRef};
use crate::error::{Error, Result};
use crate::hamming::Kernel;
use crate::random;

/// R of mAP@R: how much of the ranking counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cutoff {
    /// The whole database.
    All,
    /// The first so many; at least 1.
    At(usize),
}

impl fmt::Display for Cutoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cutoff::All => f.write_str("all"),
            Cutoff::At(r) => write!(f, "{r}"),
        }
    }
}

impl FromStr for Cutoff {
    type Err = Error;

    fn from_str(text: &str) -> Result<Cutoff> {
        match text.parse() {
            _ if text == "all" => Ok(Cutoff::All),
            Ok(r) if r > 0 => Ok(Cutoff::At(r)),
            _ => Err(Error::invalid(format!(
                "R is `all` or a number above 0, got {text:?}"
            ))),
        }
    }
}

impl Serialize for Cutoff {
    /// `"all"` or the number.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match *self {
            Cutoff::All => serializer.serialize_str("all"),
            Cutoff::At(r) => serializer.serialize_u64(r as u64),
        }
    }
}

/// What the sum of an average precision is divided by. The two agree where R is the whole database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Denominator {
    /// The relevant items among the first R: the literature's rule for hashing. It can reward finding
    /// less: ranks `+ - -` give 1, ranks `+ - +` give 0.83.
    RelevantInTopR,
    /// The relevant items there are, at most R: no such reward.
    MinRelevantR,
}

/// How items at one distance from the query are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ties {
    /// The expectation over all orders, in closed form (McSherry and Najork, ECIR 2008). Exact where
    /// the denominator does not depend on the order: R is the whole database, or
    /// [`Denominator::MinRelevantR`]. Refused otherwise.
    Expected,
    /// A stable sort after each of so many random orders of the database; mean and spread over them.
    Permutations {
        /// How many orders; at least 1.
        n_orders: usize,
        /// Decides the orders.
        seed: u64,
    },
    /// By row of the database, as a search answers. With rows grouped by class this is no fair figure.
    DatabaseOrder,
}

/// What becomes of a query with nothing relevant among the first R.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EmptyQueries {
    /// Its average precision is 0.
    CountAsZero,
    /// It is left out of the mean, as HashNet's and CSQ's published code does. The figure can only rise.
    Skip,
}

/// Everything that decides a figure, the codes and labels apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Protocol {
    /// R.
    pub cutoff: Cutoff,
    /// The denominator of the average precision.
    pub denominator: Denominator,
    /// The tie rule of the average precision. All else is an expectation over ties.
    pub ties: Ties,
    /// Queries with nothing relevant among the first R.
    pub empty_queries: EmptyQueries,
    /// The k of precision and recall at k.
    pub ks: Vec<usize>,
    /// The Hamming radius whose precision and recall are reported, in bits.
    pub radius: u32,
}

impl Protocol {
    /// The literature's protocol at this R: empty queries count as zero, the denominator is what was
    /// found; ties by expectation for all, by 5 permutations of seed 0 for less; k of 1, 10, 100 and
    /// 1000; radius 2.
    pub fn new(cutoff: Cutoff) -> Protocol {
        Protocol {
            cutoff,
            denominator: Denominator::RelevantInTopR,
            ties: match cutoff {
                Cutoff::All => Ties::Expected,
                Cutoff::At(_) => Ties::Permutations {
                    n_orders: 5,
                    seed: 0,
                },
            },
            empty_queries: EmptyQueries::CountAsZero,
            ks: vec![1, 10, 100, 1000],
            radius: 2,
        }
    }

    fn check(&self, bits: usize) -> Result<()> {
        let problem = if self.cutoff == Cutoff::At(0) {
            "R is at least 1, got 0; write `all` for the whole database".to_owned()
        } else if self.ks.contains(&0) {
            "k is at least 1, got 0".to_owned()
        } else if self.radius as usize > bits {
            format!("a radius is at most {bits} bits here, got {}", self.radius)
        } else if matches!(self.ties, Ties::Permutations { n_orders: 0, .. }) {
            "ties need at least 1 permutation, got 0".to_owned()
        } else if self.ties == Ties::Expected
            && self.cutoff != Cutoff::All
            && self.denominator == Denominator::RelevantInTopR
        {
            "the expectation over ties has no closed form for this R and denominator; \
             take permutations, R = all, or the denominator min(relevant, R)"
                .to_owned()
        } else {
            return Ok(());
        };
        Err(Error::invalid(problem))
    }
}

/// The result of [`evaluate`]. Precisions, recalls and means are shares from 0 to 1.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// mAP@R; over several orders, their mean.
    pub map: f64,
    /// Standard deviation of mAP@R over the orders (n - 1 in the denominator); none for fewer than two.
    pub map_std: Option<f64>,
    /// mAP@R of each order of [`Ties::Permutations`]; a single figure otherwise.
    pub map_per_order: Vec<f64>,
    /// How it was measured.
    pub protocol: Protocol,
    /// Queries.
    pub n_queries: usize,
    /// Items searched.
    pub n_database: usize,
    /// Bits of a code.
    pub bits: usize,
    /// Queries with nothing relevant among the first R, in at least one order.
    pub n_empty_queries: usize,
    /// mAP@R of each class of queries, by label.
    pub per_class: Vec<ClassReport>,
    /// Precision and recall at each k of the protocol, expected over ties.
    pub at_k: Vec<AtK>,
    /// Precision and recall within the protocol's radius.
    pub within_radius: WithinRadius,
    /// The same within every radius from 0 to the length of the codes: the precision-recall curve.
    pub curve: Vec<WithinRadius>,
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

/// Searches the database for every query, on all threads, and measures the rankings.
///
/// `query_labels` and `database_labels` have one label a code. The answer does not depend on the
/// number of threads.
///
/// # Errors
/// `CodeLenMismatch` if the two sets differ in length; `InvalidArgument` if a set is empty, labels are
/// not one a code, or the protocol contradicts itself.
pub fn evaluate<Q, D>(
    query: &Codes<Q>,
    query_labels: &[u32],
    database: &Codes<D>,
    database_labels: &[u32],
    protocol: &Protocol,
) -> Result<Report>
where
    Q: Deref<Target = [u64]>,
    D: Deref<Target = [u64]>,
{
    let (query, database) = (&query.as_ref(), &database.as_ref());
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
    let bits = database.code_len().bits();
    protocol.check(bits)?;

    let ranker = map::Ranker::new(database_labels, protocol);
    let rows: Vec<usize> = (0..query.n_codes()).collect();
    // Sums are taken query by query within a chunk and chunk by chunk after: the same on any machine.
    let chunks: Vec<Sums> = rows
        .par_chunks(QUERIES_IN_CHUNK)
        .map(|rows| {
            let mut sums = Sums::new(bits, protocol);
            let mut scratch = Scratch::new(database);
            for &row in rows {
                let label = query_labels[row];
                scratch.measure(database, database_labels, query, row, label);
                sums.add(&scratch, label, &ranker, protocol);
            }
            sums
        })
        .collect();

    let mut sums = Sums::new(bits, protocol);
    for chunk in &chunks {
        sums.merge(chunk);
    }
    Ok(sums.report(query.n_codes(), database.n_codes(), bits, protocol))
}

const QUERIES_IN_CHUNK: usize = 32;

/// Distances from one query to the whole database, and how many items, and how many relevant ones,
/// there are at each distance.
struct Scratch {
    /// One a row.
    distances: Vec<u32>,
    /// `bits + 1` counts.
    all: Vec<u32>,
    relevant: Vec<u32>,
}

impl Scratch {
    fn new(database: &CodesRef<'_>) -> Scratch {
        let bits = database.code_len().bits();
        Scratch {
            distances: vec![0; database.n_codes()],
            all: vec![0; bits + 1],
            relevant: vec![0; bits + 1],
        }
    }

    fn rows(&self) -> &[u32] {
        &self.distances
    }

    fn measure(
        &mut self,
        database: &CodesRef<'_>,
        database_labels: &[u32],
        query: &CodesRef<'_>,
        row: usize,
        label: u32,
    ) {
        Kernel::best().distances(*database, query.get(row).words(), &mut self.distances);
        // Both counts in one u64, and neighbouring rows in tables of their own: equal distances in a row
        // are common in learned codes, and would each wait for the count before.
        let mut counts = vec![[0u64; 4]; self.all.len()];
        let rows = self.distances.chunks(4);
        for (distances, labels) in rows.zip(database_labels.chunks(4)) {
            for (lane, (&distance, &item)) in distances.iter().zip(labels).enumerate() {
                counts[distance as usize][lane] += 1 + (u64::from(item == label) << 32);
            }
        }
        for (distance, lanes) in counts.iter().enumerate() {
            let sum: u64 = lanes.iter().sum();
            self.all[distance] = sum as u32;
            self.relevant[distance] = (sum >> 32) as u32;
        }
    }
}

/// Sums over queries.
struct Sums {
    /// One a tie order: the sum of average precisions, and how many queries are in it.
    map: Vec<(f64, usize)>,
    n_empty: usize,
    /// By label: queries, sum of average precisions over queries and orders, and how many are in it.
    classes: BTreeMap<u32, (usize, f64, usize)>,
    curves: curves::CurveSums,
}

impl Sums {
    fn new(bits: usize, protocol: &Protocol) -> Sums {
        let n_orders = match protocol.ties {
            Ties::Permutations { n_orders, .. } => n_orders,
            Ties::Expected | Ties::DatabaseOrder => 1,
        };
        Sums {
            map: vec![(0.0, 0); n_orders],
            n_empty: 0,
            classes: BTreeMap::new(),
            curves: curves::CurveSums::new(bits, protocol.ks.len()),
        }
    }

    fn add(&mut self, scratch: &Scratch, label: u32, ranker: &map::Ranker, protocol: &Protocol) {
        let class = self.classes.entry(label).or_default();
        class.0 += 1;
        let mut empty = false;
        let precisions = ranker.average_precisions(scratch, label);
        for ((sum, n), precision) in self.map.iter_mut().zip(precisions) {
            empty |= precision.is_none();
            if precision.is_none() && protocol.empty_queries == EmptyQueries::Skip {
                continue;
            }
            let precision = precision.unwrap_or(0.0);
            *sum += precision;
            *n += 1;
            class.1 += precision;
            class.2 += 1;
        }
        self.n_empty += usize::from(empty);
        self.curves
            .add(&scratch.all, &scratch.relevant, &protocol.ks);
    }

    fn merge(&mut self, other: &Sums) {
        for (to, from) in self.map.iter_mut().zip(&other.map) {
            to.0 += from.0;
            to.1 += from.1;
        }
        self.n_empty += other.n_empty;
        for (&label, from) in &other.classes {
            let to = self.classes.entry(label).or_default();
            to.0 += from.0;
            to.1 += from.1;
            to.2 += from.2;
        }
        self.curves.merge(&other.curves);
    }

    fn report(
        self,
        n_queries: usize,
        n_database: usize,
        bits: usize,
        protocol: &Protocol,
    ) -> Report {
        let mean = |sum: f64, n: usize| if n == 0 { 0.0 } else { sum / n as f64 };
        let map_per_order: Vec<f64> = self.map.iter().map(|&(sum, n)| mean(sum, n)).collect();
        let n_orders = map_per_order.len() as f64;
        let map = map_per_order.iter().sum::<f64>() / n_orders;
        let squares: f64 = map_per_order.iter().map(|m| (m - map).powi(2)).sum();
        let curve = self.curves.within(n_queries);
        Report {
            map,
            map_std: (n_orders > 1.0).then(|| (squares / (n_orders - 1.0)).sqrt()),
            map_per_order,
            protocol: protocol.clone(),
            n_queries,
            n_database,
            bits,
            n_empty_queries: self.n_empty,
            per_class: self
                .classes
                .iter()
                .map(|(&label, &(n_queries, sum, n))| ClassReport {
                    label,
                    n_queries,
                    map: mean(sum, n),
                })
                .collect(),
            at_k: self.curves.at_k(n_queries, &protocol.ks),
            within_radius: curve[protocol.radius as usize],
            curve,
            notes: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests;

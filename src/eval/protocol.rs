//! What decides a figure, the codes and labels apart: R, denominator, ties, queries left out.
//!
//! Two papers' "mAP" differ by whole points through these choices alone, so a [`Report`](super::Report)
//! repeats its protocol. Leaves out the splits of the data: whoever made them writes them into the report's notes.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};

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
    /// By class, the first of several, then by row: the unfair figure that a database grouped by class gets.
    ClassOrder,
}

/// What becomes of an empty query: one with nothing relevant among the first R, where those are the denominator, or
/// in the database, where [`Denominator::MinRelevantR`] is.
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
    /// What becomes of queries with nothing relevant.
    pub empty_queries: EmptyQueries,
    /// The k of precision and recall at k.
    pub ks: Vec<usize>,
    /// The Hamming radius whose precision and recall are reported, in bits.
    pub radius: u32,
    /// The K of mAHP@K, which is measured where similarities of classes are given; at least 2.
    pub hierarchy_k: usize,
    /// Query set and database are one set, and each item is left out of its own ranking, of the ideal
    /// ranking, and of every count.
    pub leave_one_out: bool,
}

/// The most orders of ties that are drawn. Their mean is known to a hundredth of one order's deviation by then.
const ORDERS_MAX: usize = 10_000;

impl Protocol {
    /// The literature's protocol at this R: empty queries count as zero, the denominator is what was
    /// found; ties by expectation for all, by 5 permutations of seed 0 for less; k of 1, 10, 100 and
    /// 1000; radius 2; mAHP@250; queries and database are two sets.
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
            hierarchy_k: 250,
            leave_one_out: false,
        }
    }

    pub(super) fn check(&self, bits: usize) -> Result<()> {
        let problem = if self.cutoff == Cutoff::At(0) {
            "R is at least 1, got 0; write `all` for the whole database".to_owned()
        } else if self.ks.contains(&0) {
            "k is at least 1, got 0".to_owned()
        } else if self.radius as usize > bits {
            format!("a radius is at most {bits} bits here, got {}", self.radius)
        } else if self.hierarchy_k < 2 {
            format!("the K of mAHP@K is at least 2, got {}", self.hierarchy_k)
        } else if let Ties::Permutations { n_orders, .. } = self.ties
            && !(1..=ORDERS_MAX).contains(&n_orders)
        {
            format!("ties take 1 to {ORDERS_MAX} permutations, got {n_orders}")
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

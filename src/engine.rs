//! One segment, one query, one answer: what the search engines share, and the two calls above them.
//!
//! Every engine is exact and gives the same answer, ties included, so the choice among them is a
//! matter of time only and [`plan`] makes it. Knows no file, no thread and no index: rows,
//! tables and the set of allowed documents are lent by the caller.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::code::{CodesRef, HashCode};
use crate::error::{Error, Result};
use crate::mih::{MihView, MultiIndex};
use crate::plan;
use crate::scan::LinearScan;
use crate::topk::{Neighbor, TopK};

/// An engine that answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum EngineKind {
    /// The linear scan: every code is compared.
    Scan,
    /// Multi-index hashing: the codes in nearby buckets are compared.
    Mih,
}

/// The engine a caller asks for. Never changes an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EngineChoice {
    /// Whichever the planner expects to be faster.
    #[default]
    Auto,
    /// The linear scan.
    Scan,
    /// Multi-index hashing; the linear scan in segments without tables, and where the buckets to look up
    /// outnumber the codes. `SearchStats` counts both.
    Mih,
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineChoice::Auto => "auto",
            EngineChoice::Scan => "scan",
            EngineChoice::Mih => "mih",
        })
    }
}

impl FromStr for EngineChoice {
    type Err = Error;

    fn from_str(name: &str) -> Result<EngineChoice> {
        match name {
            "auto" => Ok(EngineChoice::Auto),
            "scan" => Ok(EngineChoice::Scan),
            "mih" => Ok(EngineChoice::Mih),
            _ => Err(Error::invalid(format!(
                "an engine is auto, scan or mih, got {name:?}"
            ))),
        }
    }
}

/// Which documents of a segment may be answered.
#[derive(Clone, Copy, Default)]
pub enum Allowed<'a> {
    /// All of them.
    #[default]
    All,
    /// Those for which the function is true. It is called only for codes near enough to be answered,
    /// and only with doc ids of the segment's rows.
    Where(&'a (dyn Fn(u32) -> bool + Sync)),
    /// These doc ids. Contract: strictly ascending. Documents without a code are passed over.
    Listed(&'a [u32]),
    /// Those whose bit is set: bit `doc % 64` of word `doc / 64`. Documents past the last word are not.
    Set(&'a [u64]),
}

/// Whether a document's bit is set.
#[inline]
pub(crate) fn in_set(words: &[u64], doc: u32) -> bool {
    words
        .get(doc as usize / 64)
        .is_some_and(|word| word >> (doc % 64) & 1 != 0)
}

impl fmt::Debug for Allowed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Allowed::All => f.write_str("All"),
            Allowed::Where(_) => f.write_str("Where(..)"),
            Allowed::Listed(docs) => write!(f, "Listed({} docs)", docs.len()),
            Allowed::Set(words) => {
                let n_docs: u32 = words.iter().map(|word| word.count_ones()).sum();
                write!(f, "Set({n_docs} docs)")
            }
        }
    }
}

/// Asks whether one document after another is allowed; remembers its place in a list, so that asking
/// in ascending order walks the list once.
pub(crate) struct Membership<'a> {
    allowed: Allowed<'a>,
    /// Every listed doc before this place is smaller than the doc last asked for.
    place: usize,
}

impl<'a> Membership<'a> {
    pub(crate) fn new(allowed: &Allowed<'a>) -> Membership<'a> {
        Membership {
            allowed: *allowed,
            place: 0,
        }
    }

    #[inline]
    pub(crate) fn contains(&mut self, doc: u32) -> bool {
        match self.allowed {
            Allowed::All => true,
            Allowed::Where(is_allowed) => is_allowed(doc),
            Allowed::Listed(docs) => self.seek(docs, doc),
            Allowed::Set(words) => in_set(words, doc),
        }
    }

    /// Where the doc last asked for is in the list, or would be.
    pub(crate) fn place(&self) -> usize {
        self.place
    }

    fn seek(&mut self, docs: &[u32], doc: u32) -> bool {
        if self.place > 0 && docs[self.place - 1] >= doc {
            self.place = 0;
        }
        // Doubling steps from the last place, then a binary search within the last step.
        let mut step = 1;
        while self.place + step < docs.len() && docs[self.place + step] < doc {
            self.place += step;
            step *= 2;
        }
        let end = (self.place + step + 1).min(docs.len());
        self.place += docs[self.place..end].partition_point(|&listed| listed < doc);
        docs.get(self.place) == Some(&doc)
    }
}

/// One segment's rows, borrowed.
#[derive(Clone, Debug)]
pub struct SegmentRows<'a> {
    /// The codes, one a row.
    pub codes: CodesRef<'a>,
    /// The doc id of each row; `None` if row and doc id are the same number. Contract: strictly
    /// ascending, one a row.
    pub doc_ids: Option<&'a [u32]>,
    /// The substring tables, if the segment has them.
    pub mih: Option<MihView<'a>>,
    /// Added to a doc id to make an address: the segment ordinal times 2^32.
    pub address_base: u64,
}

impl SegmentRows<'_> {
    /// The doc id of row `row`. Panics past the end.
    #[inline]
    pub fn doc_id(&self, row: usize) -> u32 {
        match self.doc_ids {
            Some(doc_ids) => doc_ids[row],
            None => row as u32,
        }
    }

    /// True if row and doc id are the same number, so that a set of documents is a set of rows.
    #[inline]
    pub(crate) fn rows_are_docs(&self) -> bool {
        self.doc_ids.is_none()
    }

    /// The address of a document.
    #[inline]
    pub fn address(&self, doc: u32) -> u64 {
        self.address_base + u64::from(doc)
    }

    /// `Ok` if the parts fit each other and the query.
    fn check(&self, query: &HashCode) -> Result<()> {
        self.codes.code_len().check(query.code_len())?;
        if let Some(doc_ids) = self.doc_ids
            && doc_ids.len() != self.codes.n_codes()
        {
            return Err(Error::corrupt(
                "doc ids",
                format!(
                    "{} doc ids for {} codes",
                    doc_ids.len(),
                    self.codes.n_codes()
                ),
            ));
        }
        match &self.mih {
            Some(view) => view.check(self.codes),
            None => Ok(()),
        }
    }
}

/// A way to search one segment. Exact: engines differ in time, never in answers.
pub trait Engine {
    /// Which one it is.
    fn kind(&self) -> EngineKind;

    /// Offers `top` every allowed code that may enter it.
    ///
    /// # Errors
    /// `Corrupt` if the tables contradict the codes; `top` is then of no use.
    fn knn(
        &self,
        query: &HashCode,
        allowed: &Allowed<'_>,
        top: &mut TopK,
        stats: &mut SearchStats,
    ) -> Result<()>;

    /// Appends every allowed code within `radius` bits, the radius included, in ascending address.
    ///
    /// # Errors
    /// `Corrupt` if the tables contradict the codes; what was appended is then of no use.
    fn range(
        &self,
        query: &HashCode,
        radius: u32,
        allowed: &Allowed<'_>,
        found: &mut Vec<Neighbor>,
        stats: &mut SearchStats,
    ) -> Result<()>;
}

/// k-NN search of one segment: offers `top` every allowed code that may enter it.
///
/// # Errors
/// `CodeLenMismatch` if the query has another length than the codes; `Corrupt` if rows, doc ids and
/// tables contradict each other.
pub fn knn(
    rows: &SegmentRows<'_>,
    choice: EngineChoice,
    query: &HashCode,
    allowed: &Allowed<'_>,
    top: &mut TopK,
    stats: &mut SearchStats,
) -> Result<()> {
    rows.check(query)?;
    let costs = plan::knn_costs(rows, allowed, top.k());
    stats.begin(rows, choice, &costs);
    match (plan::choose(choice, &costs), &rows.mih) {
        (EngineKind::Mih, Some(view)) => {
            let mut engine = MultiIndex::new(rows, view);
            if choice == EngineChoice::Mih {
                engine = engine.determined();
            }
            engine.knn(query, allowed, top, stats)
        }
        _ => LinearScan::new(rows).knn(query, allowed, top, stats),
    }
}

/// Range search of one segment: appends every allowed code within `radius` bits, the radius included,
/// in ascending address.
///
/// # Errors
/// As [`knn`].
pub fn range(
    rows: &SegmentRows<'_>,
    choice: EngineChoice,
    query: &HashCode,
    radius: u32,
    allowed: &Allowed<'_>,
    found: &mut Vec<Neighbor>,
    stats: &mut SearchStats,
) -> Result<()> {
    rows.check(query)?;
    let costs = plan::range_costs(rows, allowed, radius);
    stats.begin(rows, choice, &costs);
    match (plan::choose(choice, &costs), &rows.mih) {
        (EngineKind::Mih, Some(view)) => {
            MultiIndex::new(rows, view).range(query, radius, allowed, found, stats)
        }
        _ => LinearScan::new(rows).range(query, radius, allowed, found, stats),
    }
}

/// What a search did. Adds up over segments and queries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SearchStats {
    /// Segments searched.
    pub segments: u64,
    /// Segments answered by the linear scan, those where multi-index hashing gave up included.
    pub segments_scan: u64,
    /// Segments answered by multi-index hashing.
    pub segments_mih: u64,
    /// Segments where multi-index hashing was asked for and there were no tables.
    pub segments_without_tables: u64,
    /// Segments where multi-index hashing gave up and the linear scan answered.
    pub fell_back: u64,
    /// Codes whose distance the linear scan computed.
    pub codes_scanned: u64,
    /// Buckets looked up.
    pub lookups: u64,
    /// Rows found in those buckets, repeats included: distances multi-index hashing computed.
    pub candidates: u64,
    /// Candidates within the bound that an earlier bucket had already given. Repeats beyond the bound
    /// are not told apart.
    pub duplicates: u64,
    /// Codes within the bound whose document turned out not to be allowed. Those that were never looked
    /// at, because only the rows of a list or set were, are not counted.
    pub filtered_out: u64,
    /// True if every answer is exact, which all engines of this version are.
    pub exact: bool,
    /// What the planner expected the linear scan to take, in ns.
    pub predicted_scan_ns: u64,
    /// What the planner expected multi-index hashing to take, in ns, over the segments that have
    /// tables. For k-NN search this supposes uniformly random codes; clustered codes take less.
    pub predicted_mih_ns: u64,
}

impl Default for SearchStats {
    fn default() -> SearchStats {
        SearchStats {
            segments: 0,
            segments_scan: 0,
            segments_mih: 0,
            segments_without_tables: 0,
            fell_back: 0,
            codes_scanned: 0,
            lookups: 0,
            candidates: 0,
            duplicates: 0,
            filtered_out: 0,
            exact: true,
            predicted_scan_ns: 0,
            predicted_mih_ns: 0,
        }
    }
}

impl SearchStats {
    /// Adds the counts of another search.
    pub fn add(&mut self, other: &SearchStats) {
        self.segments += other.segments;
        self.segments_scan += other.segments_scan;
        self.segments_mih += other.segments_mih;
        self.segments_without_tables += other.segments_without_tables;
        self.fell_back += other.fell_back;
        self.codes_scanned += other.codes_scanned;
        self.lookups += other.lookups;
        self.candidates += other.candidates;
        self.duplicates += other.duplicates;
        self.filtered_out += other.filtered_out;
        self.exact &= other.exact;
        self.predicted_scan_ns += other.predicted_scan_ns;
        self.predicted_mih_ns += other.predicted_mih_ns;
    }

    fn begin(&mut self, rows: &SegmentRows<'_>, choice: EngineChoice, costs: &plan::Costs) {
        self.segments += 1;
        self.predicted_scan_ns += costs.scan_ns as u64;
        self.predicted_mih_ns += costs.mih_ns.unwrap_or(0.0) as u64;
        let without = choice == EngineChoice::Mih && rows.mih.is_none();
        self.segments_without_tables += u64::from(without);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_in_a_list_in_any_order() {
        let docs = [0, 3, 4, 9, 10, 11, 40, 41, 1000, u32::MAX];
        let mut membership = Membership::new(&Allowed::Listed(&docs));
        let asked: Vec<u32> = (0..50).chain([1000, 999, 1001, u32::MAX]).collect();
        for &doc in asked.iter().chain(asked.iter().rev()) {
            assert_eq!(membership.contains(doc), docs.contains(&doc), "{doc}");
        }
        assert!(!Membership::new(&Allowed::Listed(&[])).contains(0));
    }

    #[test]
    fn choices_have_names() {
        for choice in [EngineChoice::Auto, EngineChoice::Scan, EngineChoice::Mih] {
            assert_eq!(choice.to_string().parse::<EngineChoice>().unwrap(), choice);
        }
        assert!("fast".parse::<EngineChoice>().is_err());
    }

    #[test]
    fn stats_add_up() {
        let mut sum = SearchStats::default();
        let one = SearchStats {
            segments: 1,
            lookups: 5,
            ..SearchStats::default()
        };
        sum.add(&one);
        sum.add(&one);
        assert_eq!((sum.segments, sum.lookups, sum.exact), (2, 10, true));
    }
}

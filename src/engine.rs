//! One segment, one query, one answer: what the search engines share, and the two calls above them.
//!
//! Every engine is exact and gives the same answer, ties included, so the choice among them is a
//! matter of time only and [`plan`] makes it. Knows no file, no thread and no index: rows,
//! tables and the set of allowed documents are lent by the caller.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::cluster::{ClusterSearch, ClusterView};
use crate::code::{CodesRef, HashCode, RowOrder};
use crate::error::{Error, Result};
use crate::hamming::prefetch_word;
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
    /// Cluster-pruned search: the codes of clusters that can hold an answer are compared.
    Cluster,
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
    /// Cluster-pruned search; the linear scan in segments without clusters, and where nearly all clusters
    /// would have to be read. `SearchStats` counts both.
    Cluster,
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineChoice::Auto => "auto",
            EngineChoice::Scan => "scan",
            EngineChoice::Mih => "mih",
            EngineChoice::Cluster => "cluster",
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
            "cluster" => Ok(EngineChoice::Cluster),
            _ => Err(Error::invalid(format!(
                "an engine is auto, scan, mih or cluster, got {name:?}"
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
    /// Those of these rows, whatever their documents: what a filter becomes that is asked again and again.
    Rows(AllowedRows<'a>),
}

/// Rows of one segment.
#[derive(Clone, Copy, Default)]
pub struct AllowedRows<'a> {
    set: &'a [u64],
    list: Option<&'a [u32]>,
    n_rows: usize,
}

impl<'a> AllowedRows<'a> {
    /// The rows whose bit is set: bit `row % 64` of word `row / 64`. Rows past the last word are not
    /// allowed, bits past the last row mean nothing. `list`, which a search among few rows needs, has the
    /// same rows. Contract: strictly ascending, all of them rows of the segment.
    pub fn new(set: &'a [u64], list: Option<&'a [u32]>) -> AllowedRows<'a> {
        let n_rows = match list {
            Some(list) => list.len(),
            None => set.iter().map(|word| word.count_ones() as usize).sum(),
        };
        AllowedRows::counted(set, list, n_rows)
    }

    /// As [`new`](AllowedRows::new), where the rows were counted before.
    pub(crate) fn counted(
        set: &'a [u64],
        list: Option<&'a [u32]>,
        n_rows: usize,
    ) -> AllowedRows<'a> {
        AllowedRows { set, list, n_rows }
    }

    /// The rows as a set.
    pub fn set(&self) -> &'a [u64] {
        self.set
    }

    /// The rows as a list, if there is one.
    pub fn list(&self) -> Option<&'a [u32]> {
        self.list
    }

    /// How many there are.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }
}

impl Allowed<'_> {
    /// How many rows or documents there are at most, where that is known without counting.
    pub(crate) fn n_at_most(&self) -> Option<usize> {
        match self {
            Allowed::Listed(docs) => Some(docs.len()),
            Allowed::Rows(rows) => Some(rows.n_rows),
            Allowed::All | Allowed::Where(_) | Allowed::Set(_) => None,
        }
    }

    /// How many rows there are to compare, where they can be compared one by one.
    pub(crate) fn n_listed(&self) -> Option<usize> {
        match self {
            Allowed::Listed(docs) => Some(docs.len()),
            Allowed::Rows(rows) => rows.list.map(<[u32]>::len),
            Allowed::All | Allowed::Where(_) | Allowed::Set(_) => None,
        }
    }
}

/// Whether a document's or row's bit is set.
#[inline]
pub(crate) fn in_set(words: &[u64], idx: u32) -> bool {
    words
        .get(idx as usize / 64)
        .is_some_and(|word| word >> (idx % 64) & 1 != 0)
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
            Allowed::Rows(rows) => write!(f, "Rows({} rows)", rows.n_rows),
        }
    }
}

/// Asks whether one row and its document after another are allowed; remembers its place in a list, so that
/// asking in ascending order walks the list once.
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

    /// True if [`has_row`](Membership::has_row) alone decides.
    pub(crate) fn is_by_row(&self) -> bool {
        matches!(self.allowed, Allowed::All | Allowed::Rows(_))
    }

    /// False if everything is allowed.
    pub(crate) fn is_filter(&self) -> bool {
        !matches!(self.allowed, Allowed::All)
    }

    /// False if the row is not allowed; true also where its document decides.
    #[inline]
    pub(crate) fn has_row(&self, row: usize) -> bool {
        match self.allowed {
            Allowed::Rows(rows) => in_set(rows.set, row as u32),
            _ => true,
        }
    }

    /// False if the document is not allowed; true also where its row decides.
    #[inline]
    pub(crate) fn contains(&mut self, doc: u32) -> bool {
        match self.allowed {
            Allowed::All | Allowed::Rows(_) => true,
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
    /// The documents with a code; `None` if every document up to the number of rows has one. Contract:
    /// strictly ascending, one a row. The place of a document in this list is its *rank*.
    pub doc_ids: Option<&'a [u32]>,
    /// The rank of each row; `None` if row and rank are the same number, so that rows ascend by document.
    pub order: Option<RowOrder<'a>>,
    /// The substring tables, if the segment has them.
    pub mih: Option<MihView<'a>>,
    /// The clusters, if rows are in order of clusters.
    pub clusters: Option<ClusterView<'a>>,
    /// Added to a doc id to make an address: the segment ordinal times 2^32.
    pub address_base: u64,
    /// Threads that a long linear scan of these rows may take, at least 1.
    pub threads: usize,
}

impl<'a> SegmentRows<'a> {
    /// Rows that are documents 0, 1, 2, ..., without tables.
    pub fn of(codes: CodesRef<'a>) -> SegmentRows<'a> {
        SegmentRows {
            codes,
            doc_ids: None,
            order: None,
            mih: None,
            clusters: None,
            address_base: 0,
            threads: 1,
        }
    }

    /// The doc id of row `row`; `None` past the end, and where the row order of a damaged file gives
    /// none.
    #[inline]
    pub fn doc_id(&self, row: usize) -> Option<u32> {
        let rank = match &self.order {
            Some(order) => order.rank(row)? as usize,
            None => row,
        };
        match self.doc_ids {
            Some(doc_ids) => doc_ids.get(rank).copied(),
            None => Some(rank as u32),
        }
    }

    /// Asks for the memory that says which document row `row` is of.
    #[inline]
    pub(crate) fn prefetch_doc(&self, row: usize) {
        if let Some(order) = &self.order {
            prefetch_word(order.rank_bytes(row), 0);
        }
    }

    /// True if rows ascend by document.
    #[inline]
    pub fn ascend(&self) -> bool {
        self.order.is_none()
    }

    /// True if row and doc id are the same number, so that a set of documents is a set of rows.
    #[inline]
    pub(crate) fn rows_are_docs(&self) -> bool {
        self.doc_ids.is_none() && self.order.is_none()
    }

    /// The rows of listed documents, in the order of the list; documents without a code are left out.
    ///
    /// # Errors
    /// `Corrupt` if a damaged file's order of rows gives none.
    pub(crate) fn rows_of<'l>(&self, docs: &'l [u32]) -> Result<Cow<'l, [u32]>> {
        let ranks = match self.doc_ids {
            None => {
                let n_rows = self.codes.n_codes();
                let end = docs.partition_point(|&doc| (doc as usize) < n_rows);
                Cow::Borrowed(&docs[..end])
            }
            Some(doc_ids) => {
                let mut ranks = Membership::new(&Allowed::Listed(doc_ids));
                let ranks = docs.iter().filter_map(|&doc| {
                    let has_code = ranks.contains(doc);
                    has_code.then(|| ranks.place() as u32)
                });
                Cow::Owned(ranks.collect())
            }
        };
        let Some(order) = &self.order else {
            return Ok(ranks);
        };
        let mut rows = ranks.into_owned();
        order.rows_of(&mut rows)?;
        Ok(Cow::Owned(rows))
    }

    /// The address of a document.
    #[inline]
    pub fn address(&self, doc: u32) -> u64 {
        self.address_base + u64::from(doc)
    }

    /// The addresses of these rows that `top` holds, ascending. Offering one again would count it twice;
    /// any other was never offered, or would be refused.
    pub(crate) fn held_by(&self, top: &TopK) -> Vec<u64> {
        let first = self.address_base;
        top.addresses_in(first..first.saturating_add(1 << 32))
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
        if let Some(order) = &self.order
            && order.n_rows() != self.codes.n_codes()
        {
            return Err(RowOrder::damaged());
        }
        if let Some(view) = &self.clusters {
            view.check(self.codes)?;
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
    let scan_ns = plan::scan_ns(rows.codes, allowed);
    if knn_but_scan(rows, choice, query, allowed, scan_ns, top, stats)? {
        return Ok(());
    }
    if let (Some(view), EngineChoice::Auto) = (&rows.mih, choice) {
        plan::forget_walk(rows.codes, view.form());
    }
    let held = rows.held_by(top);
    LinearScan::new(rows).knn_except(query, allowed, &held, top, stats)
}

/// k-NN search by an engine other than the linear scan. False if it is, or has become, a case for the
/// scan, which takes `scan_ns`; what `top` holds by then must not be offered again.
fn knn_but_scan(
    rows: &SegmentRows<'_>,
    choice: EngineChoice,
    query: &HashCode,
    allowed: &Allowed<'_>,
    scan_ns: f64,
    top: &mut TopK,
    stats: &mut SearchStats,
) -> Result<bool> {
    let mut costs = plan::knn_costs(rows, allowed, top.k());
    costs.scan_ns = scan_ns;
    stats.begin(rows, choice, &costs);
    match (plan::choose(choice, &costs), &rows.mih, &rows.clusters) {
        (EngineKind::Cluster, mih, Some(view)) => {
            let engine = ClusterSearch::new(rows, view);
            if choice == EngineChoice::Cluster {
                engine.knn(query, allowed, top, stats)?;
                return Ok(true);
            }
            // The own cluster gives the bound at which the engines can be priced.
            let mut mih_ns = f64::INFINITY;
            let limit_ns = |bound| {
                if let Some(view) = mih {
                    mih_ns = plan::bounded_mih_ns(rows.codes, view, bound);
                }
                scan_ns.min(mih_ns)
            };
            if engine.knn_within(query, allowed, limit_ns, top, stats)? {
                return Ok(true);
            }
            match mih {
                Some(view) if mih_ns < scan_ns => {
                    MultiIndex::new(rows, view).knn_but_scan(query, allowed, scan_ns, top, stats)
                }
                _ => Ok(false),
            }
        }
        (EngineKind::Mih, Some(view), _) => {
            let mut engine = MultiIndex::new(rows, view);
            if choice == EngineChoice::Mih {
                engine = engine.determined();
            }
            engine.knn_but_scan(query, allowed, scan_ns, top, stats)
        }
        _ => Ok(false),
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
    let scan_ns = plan::scan_ns(rows.codes, allowed);
    if range_but_scan(rows, choice, query, radius, allowed, scan_ns, found, stats)? {
        return Ok(());
    }
    if let (Some(view), EngineChoice::Auto) = (&rows.mih, choice) {
        plan::forget_walk(rows.codes, view.form());
    }
    LinearScan::new(rows).range(query, radius, allowed, found, stats)
}

/// Range search by an engine other than the linear scan. False if it is, or has become, a case for the
/// scan, which takes `scan_ns`; nothing is found then.
#[allow(clippy::too_many_arguments)]
fn range_but_scan(
    rows: &SegmentRows<'_>,
    choice: EngineChoice,
    query: &HashCode,
    radius: u32,
    allowed: &Allowed<'_>,
    scan_ns: f64,
    found: &mut Vec<Neighbor>,
    stats: &mut SearchStats,
) -> Result<bool> {
    let mut costs = plan::range_costs(rows, allowed, radius);
    costs.scan_ns = scan_ns;
    stats.begin(rows, choice, &costs);
    match (plan::choose(choice, &costs), &rows.mih, &rows.clusters) {
        (EngineKind::Cluster, mih, Some(view)) => {
            let engine = ClusterSearch::new(rows, view);
            if choice == EngineChoice::Cluster {
                engine.range(query, radius, allowed, found, stats)?;
                return Ok(true);
            }
            let mih_ns = costs.mih_ns.unwrap_or(f64::INFINITY);
            let limit_ns = scan_ns.min(mih_ns);
            if engine.range_within(query, radius, allowed, limit_ns, found, stats)? {
                return Ok(true);
            }
            match mih {
                Some(view) if mih_ns < scan_ns => MultiIndex::new(rows, view)
                    .range_but_scan(query, radius, allowed, scan_ns, found, stats),
                _ => Ok(false),
            }
        }
        (EngineKind::Mih, Some(view), _) => MultiIndex::new(rows, view)
            .range_but_scan(query, radius, allowed, scan_ns, found, stats),
        _ => Ok(false),
    }
}

/// k-NN search of one segment for many queries at once: offers `tops[i]` every allowed code that may
/// enter it for `queries[i]`, as [`knn`] does.
///
/// The queries that the linear scan is to answer are answered together, from one reading of the codes,
/// which makes a scan several times cheaper than [`knn`] takes it to be.
///
/// # Errors
/// As [`knn`], and `InvalidArgument` unless there is one `TopK` a query.
pub fn knn_batch(
    rows: &SegmentRows<'_>,
    choice: EngineChoice,
    queries: &[HashCode],
    allowed: &Allowed<'_>,
    tops: &mut [TopK],
    stats: &mut SearchStats,
) -> Result<()> {
    check_batch(rows, queries, tops.len())?;
    let scan_ns = plan::batch_ns(rows.codes, allowed, queries.len()) / queries.len().max(1) as f64;
    let mut left = Vec::new();
    for (query_idx, (query, top)) in queries.iter().zip(&mut *tops).enumerate() {
        if !knn_but_scan(rows, choice, query, allowed, scan_ns, top, stats)? {
            left.push(query_idx);
        }
    }
    if left.len() == queries.len() {
        return LinearScan::new(rows).knn_batch(queries, allowed, tops, stats);
    }
    let left_queries: Vec<HashCode> = left.iter().map(|&idx| queries[idx].clone()).collect();
    let mut left_tops: Vec<TopK> = left
        .iter()
        .map(|&idx| std::mem::replace(&mut tops[idx], TopK::new(0, 0)))
        .collect();
    let scan = LinearScan::new(rows);
    let result = scan.knn_batch(&left_queries, allowed, &mut left_tops, stats);
    for (&idx, top) in left.iter().zip(left_tops) {
        tops[idx] = top;
    }
    result
}

/// Range search of one segment for many queries at once: appends to `found[i]` every allowed code within
/// `radius` bits of `queries[i]`, as [`range`] does.
///
/// The queries that the linear scan is to answer are answered together, as by [`knn_batch`].
///
/// # Errors
/// As [`range`], and `InvalidArgument` unless there is one list a query.
pub fn range_batch(
    rows: &SegmentRows<'_>,
    choice: EngineChoice,
    queries: &[HashCode],
    radius: u32,
    allowed: &Allowed<'_>,
    found: &mut [Vec<Neighbor>],
    stats: &mut SearchStats,
) -> Result<()> {
    check_batch(rows, queries, found.len())?;
    let scan_ns = plan::batch_ns(rows.codes, allowed, queries.len()) / queries.len().max(1) as f64;
    let mut left = Vec::new();
    for (query_idx, (query, found)) in queries.iter().zip(&mut *found).enumerate() {
        if !range_but_scan(rows, choice, query, radius, allowed, scan_ns, found, stats)? {
            left.push(query_idx);
        }
    }
    let scan = LinearScan::new(rows);
    if left.len() == queries.len() {
        return scan.range_batch(queries, radius, allowed, found, stats);
    }
    let left_queries: Vec<HashCode> = left.iter().map(|&idx| queries[idx].clone()).collect();
    let mut left_found: Vec<Vec<Neighbor>> = left
        .iter()
        .map(|&idx| std::mem::take(&mut found[idx]))
        .collect();
    let result = scan.range_batch(&left_queries, radius, allowed, &mut left_found, stats);
    for (&idx, left_found) in left.iter().zip(left_found) {
        found[idx] = left_found;
    }
    result
}

fn check_batch(rows: &SegmentRows<'_>, queries: &[HashCode], n_answers: usize) -> Result<()> {
    if queries.len() != n_answers {
        return Err(Error::invalid(format!(
            "a batch needs one place for answers a query, got {n_answers} for {}",
            queries.len()
        )));
    }
    queries.iter().try_for_each(|query| rows.check(query))
}

/// What a search did. Adds up over segments and queries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SearchStats {
    /// Segments searched.
    pub segments: u64,
    /// Segments answered by the linear scan, those included where another engine left the rest to it.
    pub segments_scan: u64,
    /// Segments answered by multi-index hashing.
    pub segments_mih: u64,
    /// Segments answered by cluster-pruned search.
    pub segments_cluster: u64,
    /// Segments that lack what the engine asked for needs: substring tables, or clusters.
    pub segments_without_tables: u64,
    /// Segments where the engine that began left the rest to another.
    pub fell_back: u64,
    /// Codes whose distance the linear scan computed.
    pub codes_scanned: u64,
    /// Distances to centroids that cluster-pruned search computed.
    pub centroids: u64,
    /// Codes whose distance cluster-pruned search computed.
    pub cluster_codes: u64,
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
    /// What the planner expected cluster-pruned search to take, in ns, once it knew the query's own
    /// cluster, over the segments where it came to that.
    pub predicted_cluster_ns: u64,
}

impl Default for SearchStats {
    fn default() -> SearchStats {
        SearchStats {
            segments: 0,
            segments_scan: 0,
            segments_mih: 0,
            segments_cluster: 0,
            segments_without_tables: 0,
            fell_back: 0,
            codes_scanned: 0,
            centroids: 0,
            cluster_codes: 0,
            lookups: 0,
            candidates: 0,
            duplicates: 0,
            filtered_out: 0,
            exact: true,
            predicted_scan_ns: 0,
            predicted_mih_ns: 0,
            predicted_cluster_ns: 0,
        }
    }
}

impl SearchStats {
    /// Adds the counts of another search.
    pub fn add(&mut self, other: &SearchStats) {
        self.segments += other.segments;
        self.segments_scan += other.segments_scan;
        self.segments_mih += other.segments_mih;
        self.segments_cluster += other.segments_cluster;
        self.segments_without_tables += other.segments_without_tables;
        self.fell_back += other.fell_back;
        self.codes_scanned += other.codes_scanned;
        self.centroids += other.centroids;
        self.cluster_codes += other.cluster_codes;
        self.lookups += other.lookups;
        self.candidates += other.candidates;
        self.duplicates += other.duplicates;
        self.filtered_out += other.filtered_out;
        self.exact &= other.exact;
        self.predicted_scan_ns += other.predicted_scan_ns;
        self.predicted_mih_ns += other.predicted_mih_ns;
        self.predicted_cluster_ns += other.predicted_cluster_ns;
    }

    fn begin(&mut self, rows: &SegmentRows<'_>, choice: EngineChoice, costs: &plan::Costs) {
        self.segments += 1;
        self.predicted_scan_ns += costs.scan_ns as u64;
        self.predicted_mih_ns += costs.mih_ns.unwrap_or(0.0) as u64;
        let without = match choice {
            EngineChoice::Mih => rows.mih.is_none(),
            EngineChoice::Cluster => rows.clusters.is_none(),
            EngineChoice::Auto | EngineChoice::Scan => false,
        };
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
        for choice in [
            EngineChoice::Auto,
            EngineChoice::Scan,
            EngineChoice::Mih,
            EngineChoice::Cluster,
        ] {
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

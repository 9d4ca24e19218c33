//! The linear scan: compares every code, or every listed one. The baseline, and the oracle of the tests.
//!
//! A batch of queries is answered together, from one reading of the codes. Leaves out the choice among
//! engines, and threads.

use crate::code::{Codes, HashCode};
use crate::engine::{Allowed, Engine, EngineKind, Membership, SearchStats, SegmentRows};
use crate::error::{Error, Result};
use crate::hamming::{Kernel, prefetch};
use crate::plan;
use crate::topk::{Neighbor, TopK};

/// Compares every code of a segment.
#[derive(Clone, Copy, Debug)]
pub struct LinearScan<'a> {
    rows: &'a SegmentRows<'a>,
    kernel: Kernel,
}

/// Rows compared in one step of a gather; the next step's are fetched from memory meanwhile.
const GATHER_ROWS: usize = 32;

/// Listed rows that a batch copies side by side, to compare them with all its queries.
const COPY_ROWS: usize = 1024;

/// How many rows ahead of the copy memory is asked for.
const COPY_AHEAD: usize = 16;

impl<'a> LinearScan<'a> {
    /// Scans these rows with the best kernel.
    pub fn new(rows: &'a SegmentRows<'a>) -> LinearScan<'a> {
        LinearScan {
            rows,
            kernel: Kernel::best(),
        }
    }

    /// Uses this kernel instead.
    pub fn with_kernel(mut self, kernel: Kernel) -> LinearScan<'a> {
        self.kernel = kernel;
        self
    }

    /// Hands `hit(distance, doc)` every allowed code within the bound, in ascending row order; it
    /// returns the bound for the rows to come, `None` to stop.
    fn visit(
        &self,
        query: &HashCode,
        allowed: &Allowed<'_>,
        bound: u32,
        stats: &mut SearchStats,
        mut hit: impl FnMut(u32, u32) -> Option<u32>,
    ) {
        let codes = self.rows.codes;
        if let Allowed::Listed(docs) = allowed
            && plan::gather_ns(codes, docs.len()) < plan::full_scan_ns(codes)
        {
            return self.gather(query, docs, bound, stats, hit);
        }
        let mut membership = Membership::new(allowed);
        let mut current = bound;
        let mut filtered_out = 0;
        let mut sink = |row, distance| {
            let doc = self.rows.doc_id(row);
            if membership.contains(doc) {
                current = hit(distance, doc)?;
            } else {
                filtered_out += 1;
            }
            Some(current)
        };
        let all = 0..codes.n_codes();
        self.kernel
            .scan(codes, all, query.words(), bound, &mut sink);
        stats.codes_scanned += codes.n_codes() as u64;
        stats.filtered_out += filtered_out;
    }

    /// Compares the listed documents alone.
    fn gather(
        &self,
        query: &HashCode,
        docs: &[u32],
        mut bound: u32,
        stats: &mut SearchStats,
        mut hit: impl FnMut(u32, u32) -> Option<u32>,
    ) {
        let mut gathered = Gathered::default();
        let mut next = Gathered::default();
        let mut rows = ListedRows::new(self.rows, docs);
        let mut distances = [0; GATHER_ROWS];
        gathered.fill(self.rows, &mut rows);
        while gathered.len > 0 {
            next.fill(self.rows, &mut rows);
            let listed = &gathered.rows[..gathered.len];
            self.kernel.gather(
                self.rows.codes,
                listed,
                query.words(),
                bound,
                &mut distances[..gathered.len],
            );
            stats.codes_scanned += gathered.len as u64;
            for (&row, &distance) in listed.iter().zip(&distances) {
                if distance <= bound {
                    match hit(distance, self.rows.doc_id(row as usize)) {
                        Some(lower) => bound = lower,
                        None => return,
                    }
                }
            }
            std::mem::swap(&mut gathered, &mut next);
        }
    }

    /// k-NN search of many queries from one reading of the codes: `tops[i]` is offered what
    /// [`knn`](Engine::knn) offers it for `queries[i]`.
    ///
    /// The statistics count every query as a search.
    ///
    /// # Errors
    /// `CodeLenMismatch` if a query has another length than the codes; `InvalidArgument` unless there is
    /// one `TopK` a query.
    pub fn knn_batch(
        &self,
        queries: &[HashCode],
        allowed: &Allowed<'_>,
        tops: &mut [TopK],
        stats: &mut SearchStats,
    ) -> Result<()> {
        self.begin_batch(queries, tops.len(), stats)?;
        let mut bounds: Vec<Option<u32>> = tops
            .iter()
            .map(|top| top.bound_from(self.rows.address_base))
            .collect();
        self.visit_batch(
            queries,
            allowed,
            &mut bounds,
            stats,
            |query_idx, distance, doc| {
                let address = self.rows.address(doc);
                tops[query_idx].push(distance, address);
                // Addresses ascend from here on.
                tops[query_idx].bound_from(address.saturating_add(1))
            },
        );
        Ok(())
    }

    /// Range search of many queries from one reading of the codes: `found[i]` gets what
    /// [`range`](Engine::range) appends for `queries[i]`.
    ///
    /// # Errors
    /// As [`knn_batch`](LinearScan::knn_batch).
    pub fn range_batch(
        &self,
        queries: &[HashCode],
        radius: u32,
        allowed: &Allowed<'_>,
        found: &mut [Vec<Neighbor>],
        stats: &mut SearchStats,
    ) -> Result<()> {
        self.begin_batch(queries, found.len(), stats)?;
        let mut bounds = vec![Some(radius); queries.len()];
        self.visit_batch(
            queries,
            allowed,
            &mut bounds,
            stats,
            |query_idx, distance, doc| {
                let address = self.rows.address(doc);
                found[query_idx].push(Neighbor { distance, address });
                Some(radius)
            },
        );
        Ok(())
    }

    fn begin_batch(
        &self,
        queries: &[HashCode],
        n_answers: usize,
        stats: &mut SearchStats,
    ) -> Result<()> {
        for query in queries {
            self.rows.codes.code_len().check(query.code_len())?;
        }
        if queries.len() != n_answers {
            return Err(Error::invalid(format!(
                "a batch needs one place for answers a query, got {n_answers} for {}",
                queries.len()
            )));
        }
        stats.segments_scan += queries.len() as u64;
        Ok(())
    }

    /// Hands `hit(query_idx, distance, doc)` every allowed code within the bound of the query, for each
    /// query in the order of [`visit`](LinearScan::visit); it returns the query's bound for the rows to
    /// come, `None` if the query is done.
    fn visit_batch(
        &self,
        queries: &[HashCode],
        allowed: &Allowed<'_>,
        bounds: &mut [Option<u32>],
        stats: &mut SearchStats,
        mut hit: impl FnMut(usize, u32, u32) -> Option<u32>,
    ) {
        let codes = self.rows.codes;
        let n_live = bounds.iter().flatten().count();
        let words: Vec<&[u64]> = queries.iter().map(HashCode::words).collect();
        if let Allowed::Listed(docs) = allowed
            && plan::gather_batch_ns(codes, docs.len(), n_live) < plan::scan_batch_ns(codes, n_live)
        {
            let mut listed = ListedRows::new(self.rows, docs);
            loop {
                let n_live = bounds.iter().flatten().count();
                let rows: Vec<u32> = listed.by_ref().take(COPY_ROWS).collect();
                if n_live == 0 || rows.is_empty() {
                    return;
                }
                let mut copy = Codes::with_capacity(codes.code_len(), rows.len());
                for (place, &row) in rows.iter().enumerate() {
                    if let Some(&ahead) = rows.get(place + COPY_AHEAD) {
                        prefetch(codes, ahead as usize);
                    }
                    copy.push_row(&codes, row as usize);
                }
                let mut sink = |query_idx, place: usize, distance| {
                    hit(query_idx, distance, self.rows.doc_id(rows[place] as usize))
                };
                let all = 0..rows.len();
                self.kernel
                    .scan_batch(copy.as_ref(), all, &words, bounds, &mut sink);
                stats.codes_scanned += (rows.len() * n_live) as u64;
            }
        }
        let mut memberships: Vec<Membership<'_>> =
            queries.iter().map(|_| Membership::new(allowed)).collect();
        let mut current = bounds.to_vec();
        let mut filtered_out = 0;
        let mut sink = |query_idx: usize, row, distance| {
            let doc = self.rows.doc_id(row);
            if memberships[query_idx].contains(doc) {
                current[query_idx] = hit(query_idx, distance, doc);
            } else {
                filtered_out += 1;
            }
            current[query_idx]
        };
        let all = 0..codes.n_codes();
        self.kernel
            .scan_batch(codes, all, &words, bounds, &mut sink);
        stats.codes_scanned += (codes.n_codes() * n_live) as u64;
        stats.filtered_out += filtered_out;
    }
}

/// Rows whose memory has been asked for.
#[derive(Default)]
struct Gathered {
    rows: [u32; GATHER_ROWS],
    len: usize,
}

impl Gathered {
    fn fill(&mut self, rows: &SegmentRows<'_>, listed: &mut ListedRows<'_, '_>) {
        self.len = 0;
        for row in listed.take(GATHER_ROWS) {
            prefetch(rows.codes, row as usize);
            self.rows[self.len] = row;
            self.len += 1;
        }
    }
}

/// The rows of listed documents, both ascending.
struct ListedRows<'d, 'a> {
    docs: std::slice::Iter<'d, u32>,
    n_rows: usize,
    /// Where doc ids are not row numbers: the list to look them up in, and the row reached.
    row_docs: Option<Membership<'a>>,
}

impl<'d, 'a> ListedRows<'d, 'a> {
    fn new(rows: &SegmentRows<'a>, docs: &'d [u32]) -> ListedRows<'d, 'a> {
        ListedRows {
            docs: docs.iter(),
            n_rows: rows.codes.n_codes(),
            row_docs: rows
                .doc_ids
                .map(|doc_ids| Membership::new(&Allowed::Listed(doc_ids))),
        }
    }
}

impl Iterator for ListedRows<'_, '_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        loop {
            let doc = *self.docs.next()?;
            let row = match &mut self.row_docs {
                Some(row_docs) => row_docs.contains(doc).then(|| row_docs.place()),
                None => Some(doc as usize).filter(|&row| row < self.n_rows),
            };
            if let Some(row) = row {
                return Some(row as u32);
            }
        }
    }
}

impl Engine for LinearScan<'_> {
    fn kind(&self) -> EngineKind {
        EngineKind::Scan
    }

    fn knn(
        &self,
        query: &HashCode,
        allowed: &Allowed<'_>,
        top: &mut TopK,
        stats: &mut SearchStats,
    ) -> Result<()> {
        self.knn_except(query, allowed, &[], top, stats)
    }

    fn range(
        &self,
        query: &HashCode,
        radius: u32,
        allowed: &Allowed<'_>,
        found: &mut Vec<Neighbor>,
        stats: &mut SearchStats,
    ) -> Result<()> {
        self.rows.codes.code_len().check(query.code_len())?;
        stats.segments_scan += 1;
        self.visit(query, allowed, radius, stats, |distance, doc| {
            let address = self.rows.address(doc);
            found.push(Neighbor { distance, address });
            Some(radius)
        });
        Ok(())
    }
}

impl LinearScan<'_> {
    /// k-NN search that leaves out some addresses, ascending, that `top` already holds.
    pub(crate) fn knn_except(
        &self,
        query: &HashCode,
        allowed: &Allowed<'_>,
        held: &[u64],
        top: &mut TopK,
        stats: &mut SearchStats,
    ) -> Result<()> {
        self.rows.codes.code_len().check(query.code_len())?;
        stats.segments_scan += 1;
        let Some(bound) = top.bound_from(self.rows.address_base) else {
            return Ok(());
        };
        self.visit(query, allowed, bound, stats, |distance, doc| {
            let address = self.rows.address(doc);
            if held.is_empty() || held.binary_search(&address).is_err() {
                top.push(distance, address);
            }
            // Addresses ascend from here on.
            top.bound_from(address.saturating_add(1))
        });
        Ok(())
    }
}

//! The linear scan: compares every code, or every listed one. The baseline, and the oracle of the tests.

use std::borrow::Cow;
use std::ops::Range;

use crate::code::HashCode;
use crate::engine::{Allowed, Engine, EngineKind, Membership, SearchStats, SegmentRows};
use crate::error::Result;
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
            && plan::gathers(codes, docs.len())
        {
            return self.gather(query, docs, bound, stats, hit);
        }
        if let Allowed::Set(set) = allowed
            && self.rows.rows_are_docs()
        {
            return self.scan_set(query, set, bound, stats, hit);
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

    /// Compares every row but those of long stretches without a document of the set, which are rows too.
    fn scan_set(
        &self,
        query: &HashCode,
        set: &[u64],
        bound: u32,
        stats: &mut SearchStats,
        mut hit: impl FnMut(u32, u32) -> Option<u32>,
    ) {
        let codes = self.rows.codes;
        let mut current = Some(bound);
        let mut spans = Spans::new(set, codes.n_codes());
        while let (Some(bound), Some(span)) = (current, spans.next()) {
            stats.codes_scanned += span.len() as u64;
            let mut sink = |row, distance| {
                current = hit(distance, row as u32);
                current
            };
            self.kernel
                .scan_set(codes, span, set, query.words(), bound, &mut sink);
        }
    }

    /// Compares the listed documents alone.
    fn gather(
        &self,
        query: &HashCode,
        docs: &[u32],
        bound: u32,
        stats: &mut SearchStats,
        hit: impl FnMut(u32, u32) -> Option<u32>,
    ) {
        let rows: Cow<'_, [u32]> = match self.rows.doc_ids {
            None => {
                let n_rows = self.rows.codes.n_codes();
                let end = docs.partition_point(|&doc| (doc as usize) < n_rows);
                Cow::Borrowed(&docs[..end])
            }
            Some(doc_ids) => {
                let mut row_docs = Membership::new(&Allowed::Listed(doc_ids));
                let rows = docs.iter().filter_map(|&doc| {
                    let has_code = row_docs.contains(doc);
                    has_code.then(|| row_docs.place() as u32)
                });
                Cow::Owned(rows.collect())
            }
        };
        self.gather_rows(query, &rows, bound, stats, hit);
    }

    fn gather_rows(
        &self,
        query: &HashCode,
        rows: &[u32],
        mut bound: u32,
        stats: &mut SearchStats,
        mut hit: impl FnMut(u32, u32) -> Option<u32>,
    ) {
        let codes = self.rows.codes;
        let ask = |rows: &[u32]| {
            for &row in rows {
                prefetch(codes, row as usize);
            }
        };
        let mut distances = [0; GATHER_ROWS];
        let mut batches = rows.chunks(GATHER_ROWS).peekable();
        batches.peek().copied().into_iter().for_each(ask);
        while let Some(batch) = batches.next() {
            batches.peek().copied().into_iter().for_each(ask);
            let distances = &mut distances[..batch.len()];
            self.kernel
                .gather(codes, batch, query.words(), bound, distances);
            stats.codes_scanned += batch.len() as u64;
            for (&row, &mut distance) in batch.iter().zip(distances) {
                if distance <= bound {
                    match hit(distance, self.rows.doc_id(row as usize)) {
                        Some(lower) => bound = lower,
                        None => return,
                    }
                }
            }
        }
    }
}

/// Ranges of rows that hold every row of a set, and leave out long stretches without one. The words
/// are looked at some cache lines at a time.
struct Spans<'a> {
    words: &'a [u64],
    next: usize,
    end: usize,
}

/// Words of a set that are looked at together: few enough looks to cost nothing where none is empty.
const SPAN_WORDS: usize = 32;
const SPAN_ROWS: usize = SPAN_WORDS * 64;

impl<'a> Spans<'a> {
    fn new(words: &'a [u64], n_rows: usize) -> Spans<'a> {
        Spans {
            words,
            next: 0,
            end: n_rows.min(words.len() * 64),
        }
    }

    /// Whether the rows from `row`, a multiple of [`SPAN_ROWS`], to the next are all left out.
    fn is_void(&self, row: usize) -> bool {
        let words = &self.words[row / 64..];
        words.iter().take(SPAN_WORDS).all(|&word| word == 0)
    }
}

impl Iterator for Spans<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        while self.next < self.end && self.is_void(self.next) {
            self.next += SPAN_ROWS;
        }
        let start = self.next;
        while self.next < self.end && !self.is_void(self.next) {
            self.next += SPAN_ROWS;
        }
        (start < self.end).then(|| start..self.next.min(self.end))
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

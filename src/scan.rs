//! The linear scan: compares every code, or every listed one. The baseline, and the oracle of the tests.

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
        let mut spans = match allowed {
            Allowed::Set(words) if self.rows.rows_are_docs() => Spans::of(words, codes.n_codes()),
            _ => Spans::all(codes.n_codes()),
        };
        let mut membership = Membership::new(allowed);
        let mut current = Some(bound);
        let mut filtered_out = 0;
        while let (Some(bound), Some(span)) = (current, spans.next()) {
            stats.codes_scanned += span.len() as u64;
            let mut sink = |row, distance| {
                let doc = self.rows.doc_id(row);
                if membership.contains(doc) {
                    current = hit(distance, doc);
                } else {
                    filtered_out += 1;
                }
                current
            };
            self.kernel
                .scan(codes, span, query.words(), bound, &mut sink);
        }
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
        let mut batch = Batch::default();
        let mut next = Batch::default();
        let mut rows = ListedRows::new(self.rows, docs);
        let mut distances = [0; GATHER_ROWS];
        batch.fill(self.rows, &mut rows);
        while batch.len > 0 {
            next.fill(self.rows, &mut rows);
            let listed = &batch.rows[..batch.len];
            self.kernel.gather(
                self.rows.codes,
                listed,
                query.words(),
                bound,
                &mut distances[..batch.len],
            );
            stats.codes_scanned += batch.len as u64;
            for (&row, &distance) in listed.iter().zip(&distances) {
                if distance <= bound {
                    match hit(distance, self.rows.doc_id(row as usize)) {
                        Some(lower) => bound = lower,
                        None => return,
                    }
                }
            }
            std::mem::swap(&mut batch, &mut next);
        }
    }
}

/// Ranges of rows that hold every row of a set, and leave out long stretches without one. The words
/// are read a cache line at a time, long before most of the codes beneath them would be.
struct Spans<'a> {
    words: &'a [u64],
    next: usize,
    end: usize,
}

/// Words of a set that are looked at together.
const SPAN_WORDS: usize = 8;
const SPAN_ROWS: usize = SPAN_WORDS * 64;

impl<'a> Spans<'a> {
    fn all(n_rows: usize) -> Spans<'a> {
        Spans {
            words: &[],
            next: 0,
            end: n_rows,
        }
    }

    fn of(words: &'a [u64], n_rows: usize) -> Spans<'a> {
        Spans {
            words,
            next: 0,
            end: n_rows.min(words.len() * 64),
        }
    }

    /// Whether the rows from `row` to the next multiple of [`SPAN_ROWS`] are all left out.
    fn is_void(&self, row: usize) -> bool {
        let words = self.words.get(row / 64..).unwrap_or_default();
        !words.is_empty() && words.iter().take(SPAN_WORDS).all(|&word| word == 0)
    }
}

impl Iterator for Spans<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        while self.next < self.end && self.is_void(self.next) {
            self.next += SPAN_ROWS;
        }
        if self.next >= self.end {
            return None;
        }
        let start = self.next;
        self.next = match self.words {
            [] => self.end,
            _ => start + SPAN_ROWS,
        };
        while self.next < self.end && !self.is_void(self.next) {
            self.next += SPAN_ROWS;
        }
        self.next = self.next.min(self.end);
        Some(start..self.next)
    }
}

/// Rows whose memory has been asked for.
#[derive(Default)]
struct Batch {
    rows: [u32; GATHER_ROWS],
    len: usize,
}

impl Batch {
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

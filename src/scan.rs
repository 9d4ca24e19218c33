//! The linear scan: compares every code, or every listed one. The baseline, and the oracle of the tests.
//!
//! A batch of queries is answered together, from one reading of the codes. Leaves out the choice among
//! engines, and threads.

use crate::code::{Codes, HashCode, RowOrder};
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

    /// The listed documents, if comparing them alone is cheaper than scanning.
    fn gathered<'l>(&self, allowed: &Allowed<'l>) -> Option<&'l [u32]> {
        match allowed {
            Allowed::Listed(docs)
                if plan::gather_ns(self.rows.codes, docs.len())
                    < plan::full_scan_ns(self.rows.codes) =>
            {
                Some(docs)
            }
            _ => None,
        }
    }

    /// Hands `hit(distance, doc)` every allowed code within the bound; it returns the bound for those to
    /// come, `None` to stop. They come in ascending row order, those of a short list in ascending
    /// document order.
    fn visit(
        &self,
        query: &HashCode,
        allowed: &Allowed<'_>,
        bound: u32,
        stats: &mut SearchStats,
        mut hit: impl FnMut(u32, u32) -> Option<u32>,
    ) -> Result<()> {
        if let Some(docs) = self.gathered(allowed) {
            return self.gather(query, docs, bound, stats, hit);
        }
        let codes = self.rows.codes;
        let mut membership = Membership::new(allowed);
        let mut current = bound;
        let mut filtered_out = 0;
        let mut damaged = false;
        let mut sink = |row, distance| {
            let Some(doc) = self.rows.doc_id(row) else {
                damaged = true;
                return None;
            };
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
        match damaged {
            true => Err(RowOrder::damaged()),
            false => Ok(()),
        }
    }

    /// Compares the listed documents alone.
    fn gather(
        &self,
        query: &HashCode,
        docs: &[u32],
        mut bound: u32,
        stats: &mut SearchStats,
        mut hit: impl FnMut(u32, u32) -> Option<u32>,
    ) -> Result<()> {
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
                    let doc = self
                        .rows
                        .doc_id(row as usize)
                        .ok_or_else(RowOrder::damaged)?;
                    match hit(distance, doc) {
                        Some(lower) => bound = lower,
                        None => return Ok(()),
                    }
                }
            }
            std::mem::swap(&mut gathered, &mut next);
        }
        match rows.damaged {
            true => Err(RowOrder::damaged()),
            false => Ok(()),
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
        let base = self.rows.address_base;
        let mut bounds: Vec<Option<u32>> = tops.iter().map(|top| top.bound_from(base)).collect();
        let ascending = self.rows.ascend();
        self.visit_batch(
            queries,
            allowed,
            &mut bounds,
            stats,
            |query_idx, distance, doc| {
                let address = self.rows.address(doc);
                tops[query_idx].push(distance, address);
                tops[query_idx].bound_from(if ascending {
                    address.saturating_add(1)
                } else {
                    base
                })
            },
        )
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
        let starts: Vec<usize> = found.iter().map(Vec::len).collect();
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
        )?;
        if !self.rows.ascend() {
            for (found, start) in found.iter_mut().zip(starts) {
                found[start..].sort_unstable_by_key(|neighbor| neighbor.address);
            }
        }
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
    ) -> Result<()> {
        let mut damaged = false;
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
                if listed.damaged || damaged {
                    return Err(RowOrder::damaged());
                }
                if n_live == 0 || rows.is_empty() {
                    return Ok(());
                }
                let mut copy = Codes::with_capacity(codes.code_len(), rows.len());
                for (place, &row) in rows.iter().enumerate() {
                    if let Some(&ahead) = rows.get(place + COPY_AHEAD) {
                        prefetch(codes, ahead as usize);
                    }
                    copy.push_row(&codes, row as usize);
                }
                let mut sink = |query_idx, place: usize, distance| {
                    let Some(doc) = self.rows.doc_id(rows[place] as usize) else {
                        damaged = true;
                        return None;
                    };
                    hit(query_idx, distance, doc)
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
            let Some(doc) = self.rows.doc_id(row) else {
                damaged = true;
                return None;
            };
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
        match damaged {
            true => Err(RowOrder::damaged()),
            false => Ok(()),
        }
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

/// The rows of listed documents, in the order of the list.
struct ListedRows<'d, 'a> {
    docs: std::slice::Iter<'d, u32>,
    n_rows: usize,
    /// Where ranks are not doc ids: the list to look them up in, and the rank reached.
    ranks: Option<Membership<'a>>,
    order: Option<RowOrder<'a>>,
    /// A rank had no row.
    damaged: bool,
}

impl<'d, 'a> ListedRows<'d, 'a> {
    fn new(rows: &SegmentRows<'a>, docs: &'d [u32]) -> ListedRows<'d, 'a> {
        ListedRows {
            docs: docs.iter(),
            n_rows: rows.codes.n_codes(),
            ranks: rows
                .doc_ids
                .map(|doc_ids| Membership::new(&Allowed::Listed(doc_ids))),
            order: rows.order,
            damaged: false,
        }
    }
}

impl Iterator for ListedRows<'_, '_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        loop {
            let doc = *self.docs.next()?;
            let rank = match &mut self.ranks {
                Some(ranks) => ranks.contains(doc).then(|| ranks.place()),
                None => Some(doc as usize).filter(|&rank| rank < self.n_rows),
            };
            let Some(rank) = rank else { continue };
            match &self.order {
                None => return Some(rank as u32),
                Some(order) => match order.row(rank) {
                    Some(row) => return Some(row),
                    None => self.damaged = true,
                },
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
        let start = found.len();
        self.visit(query, allowed, radius, stats, |distance, doc| {
            let address = self.rows.address(doc);
            found.push(Neighbor { distance, address });
            Some(radius)
        })?;
        if !self.rows.ascend() {
            found[start..].sort_unstable_by_key(|neighbor| neighbor.address);
        }
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
        let base = self.rows.address_base;
        let ascending = self.rows.ascend() || self.gathered(allowed).is_some();
        self.visit(query, allowed, bound, stats, |distance, doc| {
            let address = self.rows.address(doc);
            if held.is_empty() || held.binary_search(&address).is_err() {
                top.push(distance, address);
            }
            top.bound_from(if ascending {
                address.saturating_add(1)
            } else {
                base
            })
        })
    }
}

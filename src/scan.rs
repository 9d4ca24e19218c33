//! The linear scan: compares every code, or every listed one. The baseline, and the oracle of the tests.
//!
//! A batch of queries is answered together, from one reading of the codes. Leaves out the choice among
//! engines, and threads.

use std::borrow::Cow;
use std::cell::Cell;
use std::ops::Range;
use std::time::Instant;

use crate::code::{BLOCK_ROWS, Codes, HashCode, RowOrder};
use crate::engine::{Allowed, Engine, EngineKind, Membership, SearchStats, SegmentRows};
use crate::error::{Error, Result};
use crate::finds::Finds;
use crate::hamming::{Kernel, ROWS_AHEAD, prefetch};
use crate::plan;
use crate::topk::{Neighbor, TopK};

/// Compares every code of a segment.
#[derive(Clone, Copy, Debug)]
pub struct LinearScan<'a> {
    rows: &'a SegmentRows<'a>,
    kernel: Kernel,
    /// The rows that this scan compares, from one to before the other: all, or a thread's part.
    part: (usize, usize),
}

/// Rows compared in one step of a gather; the next step's are fetched from memory meanwhile.
const GATHER_ROWS: usize = 32;

/// Listed rows that a batch copies side by side, to compare them with all its queries.
const COPY_ROWS: usize = 1024;

/// What a filter lists.
#[derive(Clone, Copy)]
enum Listed<'a> {
    /// Ascending.
    Docs(&'a [u32]),
    /// Ascending.
    Rows(&'a [u32]),
}

impl<'a> Listed<'a> {
    fn of(allowed: &Allowed<'a>) -> Option<Listed<'a>> {
        match allowed {
            Allowed::Listed(docs) => Some(Listed::Docs(docs)),
            Allowed::Rows(rows) => rows.list().map(Listed::Rows),
            Allowed::All | Allowed::Where(_) | Allowed::Set(_) => None,
        }
    }

    fn len(self) -> usize {
        match self {
            Listed::Docs(list) | Listed::Rows(list) => list.len(),
        }
    }

    fn rows(self, rows: &SegmentRows<'_>) -> Result<Cow<'a, [u32]>> {
        match self {
            Listed::Docs(docs) => rows.rows_of(docs),
            Listed::Rows(list) => {
                // Ascending, so the last tells.
                match list
                    .last()
                    .is_none_or(|&last| (last as usize) < rows.codes.n_codes())
                {
                    true => Ok(Cow::Borrowed(list)),
                    false => Err(Error::invalid("allowed rows reach past the last code")),
                }
            }
        }
    }
}

impl<'a> LinearScan<'a> {
    /// Scans these rows with the best kernel.
    pub fn new(rows: &'a SegmentRows<'a>) -> LinearScan<'a> {
        LinearScan {
            rows,
            kernel: Kernel::best(),
            part: (0, rows.codes.n_codes()),
        }
    }

    /// Uses this kernel instead.
    pub fn with_kernel(mut self, kernel: Kernel) -> LinearScan<'a> {
        self.kernel = kernel;
        self
    }

    /// What is listed, if comparing it alone is cheaper than scanning.
    fn gathered<'l>(&self, allowed: &Allowed<'l>) -> Option<Listed<'l>> {
        Listed::of(allowed).filter(|listed| plan::gathers(self.rows.codes, listed.len()))
    }

    /// Hands `hit(distance, doc)` every allowed code within the bound; it returns the bound for those to
    /// come, `None` to stop. They come in ascending row order, listed documents in ascending document
    /// order. `listed` is what [`gathered`](LinearScan::gathered) gave, once a search: what the planner
    /// knows changes meanwhile.
    fn visit(
        &self,
        query: &HashCode,
        allowed: &Allowed<'_>,
        listed: Option<Listed<'_>>,
        bound: u32,
        stats: &mut SearchStats,
        mut hit: impl FnMut(u32, u32) -> Option<u32>,
    ) -> Result<()> {
        let mut membership = match listed.is_some() || self.set_of(allowed).is_some() {
            true => Membership::new(&Allowed::All),
            false => Membership::new(allowed),
        };
        let mut current = bound;
        let mut filtered_out = 0;
        let mut damaged = false;
        self.visit_rows(query, allowed, listed, bound, stats, |row, distance| {
            let Some(doc) = self.rows.doc_id(row) else {
                damaged = true;
                return None;
            };
            match membership.contains(doc) {
                true => current = hit(distance, doc)?,
                false => filtered_out += 1,
            }
            Some(current)
        })?;
        stats.filtered_out += filtered_out;
        match damaged {
            true => Err(RowOrder::damaged()),
            false => Ok(()),
        }
    }

    /// What is allowed as a set of rows, where it is one.
    fn set_of<'l>(&self, allowed: &Allowed<'l>) -> Option<&'l [u64]> {
        match *allowed {
            Allowed::Set(set) if self.rows.rows_are_docs() => Some(set),
            Allowed::Rows(rows) => Some(rows.set()),
            _ => None,
        }
    }

    /// Hands `hit(row, distance)` every row within the bound, of those listed or of the set that is allowed, if
    /// there are such; it returns the bound for those to come, `None` to stop. Of a set, long stretches
    /// without any are not read.
    fn visit_rows(
        &self,
        query: &HashCode,
        allowed: &Allowed<'_>,
        listed: Option<Listed<'_>>,
        bound: u32,
        stats: &mut SearchStats,
        mut hit: impl FnMut(usize, u32) -> Option<u32>,
    ) -> Result<()> {
        let codes = self.rows.codes;
        if let Some(listed) = listed {
            let rows = listed.rows(self.rows)?;
            self.gather_rows(query, &rows, bound, stats, hit);
            return Ok(());
        }
        let current = Cell::new(Some(bound));
        let mut sink = |row, distance| {
            current.set(hit(row, distance));
            current.get()
        };
        let is_timed = self.is_all() && plan::is_worth_timing(codes);
        let started = is_timed.then(Instant::now);
        let mut n_scanned = 0;
        match self.set_of(allowed) {
            Some(set) => {
                let mut spans = Spans::new(set, self.part);
                while let (Some(bound), Some(span)) = (current.get(), spans.next()) {
                    n_scanned += span.len();
                    self.kernel
                        .scan_set(codes, span, set, query.words(), bound, &mut sink);
                }
            }
            None => {
                let part = self.part.0..self.part.1;
                n_scanned = part.len();
                self.kernel
                    .scan(codes, part, query.words(), bound, &mut sink);
            }
        }
        stats.codes_scanned += n_scanned as u64;
        if let Some(started) = started
            && n_scanned == codes.n_codes()
            && current.get().is_some()
        {
            plan::observe_scan(codes, started.elapsed());
        }
        Ok(())
    }

    /// Compares these rows alone.
    fn gather_rows(
        &self,
        query: &HashCode,
        rows: &[u32],
        mut bound: u32,
        stats: &mut SearchStats,
        mut hit: impl FnMut(usize, u32) -> Option<u32>,
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
            stats.codes_scanned += batch.len() as u64;
            if !self
                .kernel
                .gather(codes, batch, query.words(), bound, distances)
            {
                continue;
            }
            for (&row, &mut distance) in batch.iter().zip(distances) {
                if distance <= bound {
                    match hit(row as usize, distance) {
                        Some(lower) => bound = lower,
                        None => return,
                    }
                }
            }
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
        // What another engine left in the tops before this one began.
        let held: Vec<Vec<u64>> = tops.iter().map(|top| self.rows.held_by(top)).collect();
        let ascending = self.rows.ascend();
        self.visit_batch(
            queries,
            allowed,
            &mut bounds,
            stats,
            |query_idx, distance, doc| {
                let address = self.rows.address(doc);
                let held = &held[query_idx];
                if held.is_empty() || held.binary_search(&address).is_err() {
                    tops[query_idx].push(distance, address);
                }
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
        if let Some(listed) = Listed::of(allowed)
            && plan::gather_batch_ns(codes, listed.len(), n_live)
                < plan::scan_batch_ns(codes, n_live)
        {
            let listed = listed.rows(self.rows)?;
            let mut parts = listed.chunks(COPY_ROWS);
            loop {
                let n_live = bounds.iter().flatten().count();
                if damaged {
                    return Err(RowOrder::damaged());
                }
                let Some(rows) = parts.next().filter(|_| n_live > 0) else {
                    return Ok(());
                };
                let mut copy = Codes::with_capacity(codes.code_len(), rows.len());
                for (place, &row) in rows.iter().enumerate() {
                    if let Some(&ahead) = rows.get(place + ROWS_AHEAD) {
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
            if !memberships[query_idx].has_row(row) {
                filtered_out += 1;
                return current[query_idx];
            }
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
    /// The spans of a part of the rows that begins at a multiple of [`SPAN_ROWS`].
    fn new(words: &'a [u64], (start, end): (usize, usize)) -> Spans<'a> {
        Spans {
            words,
            next: start,
            end: end.min(words.len() * 64),
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
        let start = found.len();
        let listed = self.gathered(allowed);
        let parts = self.in_parts(listed, stats, |part, stats| {
            let mut found = Vec::new();
            part.visit(query, allowed, listed, radius, stats, |distance, doc| {
                let address = self.rows.address(doc);
                found.push(Neighbor { distance, address });
                Some(radius)
            })?;
            Ok(found)
        })?;
        parts
            .into_iter()
            .for_each(|mut part| found.append(&mut part));
        if !self.rows.ascend() {
            found[start..].sort_unstable_by_key(|neighbor| neighbor.address);
        }
        Ok(())
    }
}

/// One block in so many rows is looked at for a first bound, where there are this many rows.
const LOWERING_STEP: usize = 4096;
const LOWERING_ROWS_MIN: usize = 64 * LOWERING_STEP;

/// Codes of fewer bytes than this are scanned by one thread: to start another takes as long.
pub(crate) const THREAD_BYTES: usize = 4 << 20;

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
        let base = self.rows.address_base;
        if top.bound_from(base).is_none() {
            return Ok(());
        }
        let listed = self.gathered(allowed);
        if listed.is_none() && matches!(allowed, Allowed::All) {
            self.lower(query, top);
        }
        let ascending = self.rows.ascend() || matches!(listed, Some(Listed::Docs(_)));
        // Where a document costs a look, rows wait for it.
        let by_row = !ascending && held.is_empty() && Membership::new(allowed).is_by_row();
        let (k, max_distance, shared) = (top.k(), top.bound(), &*top);
        let parts = self.in_parts(listed, stats, |part, stats| {
            // What came before bounds a part through its distance alone; ties are settled when parts meet.
            let mut top = match part.is_all() {
                true => shared.clone(),
                false => TopK::new(k, max_distance),
            };
            let Some(bound) = top.bound_from(base) else {
                return Ok(top);
            };
            if by_row {
                part.knn_by_row(query, allowed, listed, bound, &mut top, stats)?;
                return Ok(top);
            }
            part.visit(query, allowed, listed, bound, stats, |distance, doc| {
                let address = self.rows.address(doc);
                if held.is_empty() || held.binary_search(&address).is_err() {
                    top.push(distance, address);
                }
                top.bound_from(if ascending {
                    address.saturating_add(1)
                } else {
                    base
                })
            })?;
            Ok(top)
        })?;
        let is_whole = parts.len() == 1;
        for part in parts {
            match is_whole {
                true => *top = part,
                false => top.merge(part),
            }
        }
        Ok(())
    }

    /// k-NN search where rows alone decide what is allowed, and not all ascend by document.
    fn knn_by_row(
        &self,
        query: &HashCode,
        allowed: &Allowed<'_>,
        listed: Option<Listed<'_>>,
        bound: u32,
        top: &mut TopK,
        stats: &mut SearchStats,
    ) -> Result<()> {
        let mut finds = Finds::by_row(top, self.rows);
        let mut failed = None;
        self.visit_rows(query, allowed, listed, bound, stats, |row, distance| {
            let taken = finds.take(self.rows, row, distance);
            taken.unwrap_or_else(|error| {
                failed = Some(error);
                None
            })
        })?;
        match failed {
            Some(error) => Err(error),
            None => finds.end(self.rows),
        }
    }

    /// Lowers the bound of `top` to what a few rows from everywhere allow. Where rows are in the order of
    /// clusters, a scan meets the nearest ones late, and until then it can leave no second plane unread.
    fn lower(&self, query: &HashCode, top: &mut TopK) {
        let codes = self.rows.codes;
        if self.rows.ascend() || codes.rows_in_planes() < LOWERING_ROWS_MIN {
            return;
        }
        let mut nearest = TopK::new(top.k(), top.bound());
        for first in (0..codes.rows_in_planes()).step_by(LOWERING_STEP) {
            let (rows, bound) = (first..first + BLOCK_ROWS, nearest.bound());
            self.kernel
                .scan(codes, rows, query.words(), bound, &mut |row, distance| {
                    nearest.push(distance, row as u64);
                    Some(nearest.bound())
                });
        }
        // All rows are allowed, so k of this segment are so near.
        if nearest.is_full() {
            top.lower(nearest.bound());
        }
    }

    fn is_all(&self) -> bool {
        self.part == (0, self.rows.codes.n_codes())
    }

    /// Runs a search of all rows, or of parts of them by as many threads as the rows allow, in the order
    /// of the parts.
    fn in_parts<T: Send>(
        &self,
        listed: Option<Listed<'_>>,
        stats: &mut SearchStats,
        search: impl Fn(&LinearScan<'_>, &mut SearchStats) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let n_rows = self.rows.codes.n_codes();
        let bytes = self.rows.codes.blocks().len() * 8;
        let n_parts = self.rows.threads.min(bytes / THREAD_BYTES);
        if n_parts < 2 || listed.is_some() {
            return Ok(vec![search(self, stats)?]);
        }
        let part_rows = n_rows.div_ceil(n_parts).next_multiple_of(SPAN_ROWS);
        let parts: Vec<LinearScan<'_>> = (0..n_rows)
            .step_by(part_rows)
            .map(|start| LinearScan {
                part: (start, n_rows.min(start + part_rows)),
                ..*self
            })
            .collect();
        let results = on_threads(parts, |part| {
            let mut stats = SearchStats::default();
            (search(&part, &mut stats), stats)
        });
        results
            .into_iter()
            .map(|(result, part_stats)| {
                stats.add(&part_stats);
                result
            })
            .collect()
    }
}

/// Runs `work` on each part, on a thread each but the first, which the caller's takes. Results in the
/// order of the parts; a panic goes on in the caller.
pub(crate) fn on_threads<P: Send, T: Send>(parts: Vec<P>, work: impl Fn(P) -> T + Sync) -> Vec<T> {
    let mut parts = parts.into_iter();
    let Some(first) = parts.next() else {
        return Vec::new();
    };
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || work(part))).collect();
        let first = work(first);
        let others = threads.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        [first].into_iter().chain(others).collect()
    })
}

//! k-NN and range search over substring tables, and when to give them up for the linear scan.
//!
//! Lookups are pipelined because nearly every one misses the cache: the offsets of the next batch of
//! buckets, the rows of the current one and the codes of the last are on their way at the same time.

use std::time::Instant;

use smallvec::SmallVec;

use crate::code::{CodeLen, CodesRef, HashCode, RowOrder};
use crate::engine::{Allowed, Engine, EngineKind, Membership, SearchStats, SegmentRows};
use crate::error::{Error, Result};
use crate::hamming::{Kernel, prefetch, prefetch_word};
use crate::mih::table::SECTION;
use crate::mih::{MihView, Shell, shell_size};
use crate::plan;
use crate::scan::LinearScan;
use crate::topk::{Neighbor, TopK};

/// Multi-index hashing over one segment.
///
/// Exact: the same answers as [`LinearScan`], usually sooner. A search that turns out dearer than the
/// linear scan becomes one, at a loss of a small part of it for k-NN search as planned.
#[derive(Clone, Copy, Debug)]
pub struct MultiIndex<'a> {
    rows: &'a SegmentRows<'a>,
    view: &'a MihView<'a>,
    kernel: Kernel,
    patience: Patience,
}

/// How long to go on before the linear scan takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// As long as it is expected to pay.
    Planned,
    /// Until it has cost as much as the scan.
    Determined,
    /// To the end.
    Endless,
}

/// The part of a scan's cost that a k-NN search may spend before its radius is known well enough to
/// say what the rest will cost.
const GAMBLE: f64 = 0.10;

/// The part of a scan's cost that the whole search may be expected to take: its price is known less well
/// than that of a scan, and where both take about as long, giving up half way costs most.
const ASSURED: f64 = 0.7;

/// Buckets looked up together.
const LOOKUP_BATCH: usize = 16;

/// Candidates compared together.
const CANDIDATE_BATCH: usize = 64;

impl<'a> MultiIndex<'a> {
    /// Searches these rows through these tables.
    pub fn new(rows: &'a SegmentRows<'a>, view: &'a MihView<'a>) -> MultiIndex<'a> {
        MultiIndex {
            rows,
            view,
            kernel: Kernel::best(),
            patience: Patience::Planned,
        }
    }

    /// Goes on until it has cost as much as a scan, whether or not that is likely to pay.
    pub fn determined(mut self) -> MultiIndex<'a> {
        self.patience = Patience::Determined;
        self
    }

    /// Never gives up, however much it costs. For tests and measurements: a search may then look up
    /// every bucket of a table.
    pub fn without_fallback(mut self) -> MultiIndex<'a> {
        self.patience = Patience::Endless;
        self
    }

    /// Uses this kernel instead of the best.
    pub fn with_kernel(mut self, kernel: Kernel) -> MultiIndex<'a> {
        self.kernel = kernel;
        self
    }

    fn walk<'s>(&'s self, query: &'s HashCode, bound: u32, scan_ns: f64) -> Walk<'s> {
        let params = self.view.params();
        let n_substrings = params.n_substrings();
        let values: SmallVec<[u32; 16]> = (0..n_substrings)
            .map(|substring_idx| params.substring(substring_idx, query.words()))
            .collect();
        for (table, &value) in self.view.tables().iter().zip(&values) {
            table.prefetch_bucket(value);
        }
        Walk {
            codes: self.rows.codes,
            view: self.view,
            kernel: self.kernel,
            query: query.words(),
            values,
            bound,
            pending: [0; CANDIDATE_BATCH],
            n_pending: 0,
            lookups: 0,
            candidates: 0,
            step_ns: plan::step_ns(self.rows.codes),
            started: Instant::now(),
            spent_ns: 0.0,
            spent_ns_max: match self.patience {
                Patience::Endless => f64::INFINITY,
                Patience::Planned | Patience::Determined => scan_ns,
            },
        }
    }

    /// Whether to visit the next shell rather than scan. `prices[s]` is the cost of the shells of
    /// radius `s` in all tables; `expected` is the k-th distance if codes are spread evenly; `met` has the
    /// nearest codes met, allowed or not.
    #[allow(clippy::too_many_arguments)]
    fn goes_on(
        &self,
        prices: &[f64],
        shell: (usize, usize),
        spent_ns: f64,
        scan_ns: f64,
        expected: usize,
        top: &TopK,
        met: &TopK,
    ) -> bool {
        let (substring_radius, substring_idx) = shell;
        let n_substrings = self.view.params().n_substrings();
        // From this shell until every code within `bound` is met.
        let rest_ns = |bound: usize| {
            let (last, past) = (bound / n_substrings, bound % n_substrings + 1);
            let mut ns = -prices[substring_radius] * substring_idx as f64 / n_substrings as f64;
            for (radius, price) in prices.iter().enumerate().skip(substring_radius) {
                if radius < last {
                    ns += price;
                } else if radius == last {
                    ns += price * past as f64 / n_substrings as f64;
                }
            }
            ns
        };
        let bound = top.bound() as usize;
        let next_ns = prices[substring_radius] / n_substrings as f64;
        match self.patience {
            Patience::Endless => true,
            Patience::Determined => spent_ns + next_ns <= scan_ns,
            Patience::Planned => {
                // If the k-th distance is not what codes that are spread evenly have, it shows once those
                // shells are visited.
                let covered = substring_radius * n_substrings + substring_idx;
                let likely = bound.min(expected.max(covered));
                if spent_ns + rest_ns(likely) <= ASSURED * scan_ns {
                    return true;
                }
                // The k-th distance will still fall, but hardly by more than a quarter, and that of allowed
                // codes is no smaller.
                let is_hopeless = met.is_full() && rest_ns(met.bound() as usize / 4 * 3) > scan_ns;
                !is_hopeless && spent_ns + next_ns <= GAMBLE * scan_ns
            }
        }
    }

    /// True if no shell visited before (`substring_radius`, `substring_idx`) holds the row, given the
    /// radius that each other table was visited up to.
    fn is_first_meeting(
        &self,
        row: u32,
        query: &[u64],
        substring_idx: usize,
        substring_radius: usize,
        visited: impl Fn(usize) -> Option<usize>,
    ) -> Result<bool> {
        let mut differing = [0u64; CodeLen::MAX_BITS / 64];
        let differing = &mut differing[..query.len()];
        for (word_idx, differing) in differing.iter_mut().enumerate() {
            *differing = self.rows.codes.word(row as usize, word_idx) ^ query[word_idx];
        }
        let params = self.view.params();
        if params.substring_distance(substring_idx, differing) as usize != substring_radius {
            return Err(Error::corrupt(
                SECTION,
                format!(
                    "row {row} is in a bucket of substring {substring_idx} that is not its own"
                ),
            ));
        }
        let met_before = (0..params.n_substrings())
            .filter(|&other| other != substring_idx)
            .any(|other| {
                visited(other).is_some_and(|radius| {
                    params.substring_distance(other, differing) as usize <= radius
                })
            });
        Ok(!met_before)
    }

    /// k-NN search without the final word: `false` if it gave up.
    fn grow(
        &self,
        walk: &mut Walk<'_>,
        allowed: &Allowed<'_>,
        scan_ns: f64,
        top: &mut TopK,
        stats: &mut SearchStats,
    ) -> Result<bool> {
        let params = self.view.params();
        let n_substrings = params.n_substrings();
        let widths = (0..n_substrings).map(|substring_idx| params.width(substring_idx));
        let narrowest = widths.min().unwrap_or(0);
        let prices: SmallVec<[f64; 24]> = (0..=narrowest)
            .map(|radius| {
                (0..n_substrings)
                    .map(|substring_idx| {
                        plan::shell_ns(self.rows.codes, params, substring_idx, radius)
                    })
                    .sum()
            })
            .collect();
        let query = walk.query;
        let mut membership = Membership::new(allowed);
        // What another engine left in the top before this one began.
        let held = self.rows.held_by(top);
        let is_filtered = !matches!(allowed, Allowed::All);
        let mut met = TopK::new(top.k(), top.bound());
        let expected = plan::expected_distance(self.rows.codes, allowed, top.k());
        for radius in 0..=narrowest {
            for substring_idx in 0..n_substrings {
                let shell = (radius, substring_idx);
                let nearest = if is_filtered { &met } else { &*top };
                let spent_ns = walk.spent_ns;
                if !self.goes_on(&prices, shell, spent_ns, scan_ns, expected, top, nearest) {
                    return Ok(false);
                }
                // Tables before this one have been visited up to `radius`, those after it up to one less.
                let visited = |other| match other < substring_idx {
                    true => Some(radius),
                    false => radius.checked_sub(1),
                };
                let finished = walk.shell(substring_idx, radius, &mut |row, distance| {
                    if self.is_first_meeting(row, query, substring_idx, radius, visited)? {
                        let doc = self.rows.doc_id(row as usize);
                        let doc = doc.ok_or_else(RowOrder::damaged)?;
                        let address = self.rows.address(doc);
                        if is_filtered {
                            met.push(distance, address);
                        }
                        if !membership.has_row(row as usize) || !membership.contains(doc) {
                            stats.filtered_out += 1;
                        } else if held.is_empty() || held.binary_search(&address).is_err() {
                            top.push(distance, address);
                        }
                    } else {
                        stats.duplicates += 1;
                    }
                    Ok(top.bound())
                })?;
                if !finished {
                    return Ok(false);
                }
                // A code not met so far differs in at least radius + 1 bits of each substring up to
                // this one, and in at least radius bits of each later one.
                if top.bound() as usize <= radius * n_substrings + substring_idx
                    || radius == params.width(substring_idx)
                {
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }

    /// Range search without the final word: `false` if it gave up.
    fn visit_balls(
        &self,
        walk: &mut Walk<'_>,
        radius: usize,
        allowed: &Allowed<'_>,
        found: &mut Vec<Neighbor>,
        stats: &mut SearchStats,
    ) -> Result<bool> {
        let params = self.view.params();
        let ball_radius = |substring_idx| params.substring_radius(substring_idx, radius);
        let lookups: f64 = (0..params.n_substrings())
            .filter_map(|substring_idx| Some((substring_idx, ball_radius(substring_idx)?)))
            .flat_map(|(substring_idx, ball)| {
                (0..=ball).map(move |radius| shell_size(params.width(substring_idx), radius))
            })
            .map(f64::from)
            .sum();
        if lookups * walk.step_ns.0 > walk.spent_ns_max {
            return Ok(false);
        }
        let query = walk.query;
        let bound = walk.bound;
        let mut membership = Membership::new(allowed);
        for substring_idx in 0..params.n_substrings() {
            let Some(ball) = ball_radius(substring_idx) else {
                continue;
            };
            // Earlier tables have been visited to the end of their balls, later ones not at all.
            let visited = |other| match other < substring_idx {
                true => ball_radius(other),
                false => None,
            };
            for shell in 0..=ball {
                let finished = walk.shell(substring_idx, shell, &mut |row, distance| {
                    if self.is_first_meeting(row, query, substring_idx, shell, visited)? {
                        let doc = self.rows.doc_id(row as usize);
                        let doc = doc.ok_or_else(RowOrder::damaged)?;
                        if membership.has_row(row as usize) && membership.contains(doc) {
                            let address = self.rows.address(doc);
                            found.push(Neighbor { distance, address });
                        } else {
                            stats.filtered_out += 1;
                        }
                    } else {
                        stats.duplicates += 1;
                    }
                    Ok(bound)
                })?;
                if !finished {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// k-NN search that gives up once the linear scan, which takes `scan_ns`, is cheaper: false then, and
    /// what `top` holds must not be offered again.
    pub(crate) fn knn_but_scan(
        &self,
        query: &HashCode,
        allowed: &Allowed<'_>,
        scan_ns: f64,
        top: &mut TopK,
        stats: &mut SearchStats,
    ) -> Result<bool> {
        self.check(query)?;
        if top.is_closed() || self.rows.codes.is_empty() {
            stats.segments_mih += 1;
            return Ok(true);
        }
        let mut walk = self.walk(query, top.bound(), scan_ns);
        let finished = self.grow(&mut walk, allowed, scan_ns, top, stats)?;
        walk.end(stats);
        match finished {
            true => stats.segments_mih += 1,
            false => stats.fell_back += 1,
        }
        Ok(finished)
    }

    /// Range search that gives up once the linear scan, which takes `scan_ns`, is cheaper: false then, and
    /// nothing is found.
    pub(crate) fn range_but_scan(
        &self,
        query: &HashCode,
        radius: u32,
        allowed: &Allowed<'_>,
        scan_ns: f64,
        found: &mut Vec<Neighbor>,
        stats: &mut SearchStats,
    ) -> Result<bool> {
        self.check(query)?;
        let start = found.len();
        let radius = radius.min(query.code_len().bits() as u32);
        let mut walk = self.walk(query, radius, scan_ns);
        let finished = self.visit_balls(&mut walk, radius as usize, allowed, found, stats)?;
        walk.end(stats);
        match finished {
            true => {
                stats.segments_mih += 1;
                found[start..].sort_unstable_by_key(|neighbor| neighbor.address);
            }
            false => {
                stats.fell_back += 1;
                found.truncate(start);
            }
        }
        Ok(finished)
    }

    fn check(&self, query: &HashCode) -> Result<()> {
        self.rows.codes.code_len().check(query.code_len())?;
        self.view.check(self.rows.codes)
    }
}

impl Engine for MultiIndex<'_> {
    fn kind(&self) -> EngineKind {
        EngineKind::Mih
    }

    fn knn(
        &self,
        query: &HashCode,
        allowed: &Allowed<'_>,
        top: &mut TopK,
        stats: &mut SearchStats,
    ) -> Result<()> {
        let scan_ns = plan::scan_ns(self.rows.codes, allowed);
        if self.knn_but_scan(query, allowed, scan_ns, top, stats)? {
            return Ok(());
        }
        let held = self.rows.held_by(top);
        LinearScan::new(self.rows)
            .with_kernel(self.kernel)
            .knn_except(query, allowed, &held, top, stats)
    }

    fn range(
        &self,
        query: &HashCode,
        radius: u32,
        allowed: &Allowed<'_>,
        found: &mut Vec<Neighbor>,
        stats: &mut SearchStats,
    ) -> Result<()> {
        let scan_ns = plan::scan_ns(self.rows.codes, allowed);
        if self.range_but_scan(query, radius, allowed, scan_ns, found, stats)? {
            return Ok(());
        }
        LinearScan::new(self.rows)
            .with_kernel(self.kernel)
            .range(query, radius, allowed, found, stats)
    }
}

/// A walk from bucket to bucket, and the batch of candidates it has collected.
struct Walk<'a> {
    codes: CodesRef<'a>,
    view: &'a MihView<'a>,
    kernel: Kernel,
    query: &'a [u64],
    /// The query's substrings.
    values: SmallVec<[u32; 16]>,
    /// Candidates farther than this are of no interest.
    bound: u32,
    pending: [u32; CANDIDATE_BATCH],
    n_pending: usize,
    lookups: u64,
    candidates: u64,
    /// What the planner expects of a lookup and of a candidate.
    step_ns: (f64, f64),
    started: Instant,
    /// The cost so far by the planner's constants; the walk stops when it would pass the limit.
    spent_ns: f64,
    spent_ns_max: f64,
}

impl<'a> Walk<'a> {
    /// Visits one shell of one table and hands `hit(row, distance)` each candidate within the bound;
    /// it returns the bound for those to come. `false` if the limit was reached on the way.
    fn shell(
        &mut self,
        substring_idx: usize,
        substring_radius: usize,
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<bool> {
        let table = self.view.tables()[substring_idx];
        let value = self.values[substring_idx];
        let width = self.view.params().width(substring_idx);
        let mut masks = Shell::new(width, substring_radius);
        let mut coming: SmallVec<[u32; LOOKUP_BATCH]> = SmallVec::new();
        let mut buckets: SmallVec<[&'a [u32]; LOOKUP_BATCH]> = SmallVec::new();
        let mut last_buckets: SmallVec<[&'a [u32]; LOOKUP_BATCH]> = SmallVec::new();
        loop {
            // The offsets of these were asked for one turn ago, the row numbers of `last_buckets` too.
            let mut n_rows = 0;
            for &value in &coming {
                let rows = table.rows(value)?;
                if !rows.is_empty() {
                    prefetch_word(rows, 0);
                    n_rows += rows.len();
                    buckets.push(rows);
                }
            }
            self.lookups += coming.len() as u64;
            self.spent_ns += coming.len() as f64 * self.step_ns.0;
            self.spent_ns += n_rows as f64 * self.step_ns.1;
            if self.spent_ns > self.spent_ns_max {
                self.n_pending = 0;
                return Ok(false);
            }
            coming.clear();
            for mask in masks.by_ref().take(LOOKUP_BATCH) {
                table.prefetch_bucket(value ^ mask);
                coming.push(value ^ mask);
            }
            for rows in last_buckets.drain(..) {
                self.collect(rows, hit)?;
            }
            if coming.is_empty() && buckets.is_empty() {
                break;
            }
            std::mem::swap(&mut buckets, &mut last_buckets);
        }
        self.compare(hit)?;
        Ok(true)
    }

    fn collect(
        &mut self,
        rows: &[u32],
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<()> {
        for &row in rows {
            if row as usize >= self.codes.n_codes() {
                return Err(Error::corrupt(
                    SECTION,
                    format!("a bucket holds row {row} of {} codes", self.codes.n_codes()),
                ));
            }
            prefetch(self.codes, row as usize);
            self.pending[self.n_pending] = row;
            self.n_pending += 1;
            if self.n_pending == CANDIDATE_BATCH {
                self.compare(hit)?;
            }
        }
        Ok(())
    }

    /// Compares the pending candidates.
    fn compare(&mut self, hit: &mut impl FnMut(u32, u32) -> Result<u32>) -> Result<()> {
        let pending = &self.pending[..self.n_pending];
        let mut distances = [0; CANDIDATE_BATCH];
        let distances = &mut distances[..self.n_pending];
        self.kernel
            .gather(self.codes, pending, self.query, self.bound, distances);
        self.candidates += self.n_pending as u64;
        self.n_pending = 0;
        for (&row, &distance) in pending.iter().zip(&*distances) {
            if distance <= self.bound {
                self.bound = hit(row, distance)?;
            }
        }
        Ok(())
    }

    fn end(&self, stats: &mut SearchStats) {
        stats.lookups += self.lookups;
        stats.candidates += self.candidates;
        let steps = (self.lookups, self.candidates);
        plan::observe_walk(self.codes, steps, self.started.elapsed());
    }
}

//! A walk from bucket to bucket: the candidates that lie in one shell of one table.
//!
//! Lookups are pipelined because nearly every one misses the cache: the offsets of the next batch of
//! buckets, the rows of the current one and the codes of the last are on their way at the same time. Knows
//! nothing of documents, filters and the k nearest: who walks says how near is near enough.

use std::ops::Range;
use std::time::Instant;

use smallvec::SmallVec;

use crate::code::CodesRef;
use crate::engine::SearchStats;
use crate::error::{Error, Result};
use crate::hamming::{Kernel, prefetch, prefetch_word};
use crate::mih::sketch::SketchView;
use crate::mih::table::{MihTable, SECTION, Tables};
use crate::mih::{MihView, Shell};
use crate::plan;
use crate::topk::TopK;

/// Buckets looked up together.
const LOOKUP_BATCH: usize = 16;

/// Candidates compared together.
pub(super) const CANDIDATE_BATCH: usize = 64;

/// Sketches compared together, and the buckets that they may be of.
const SKETCHES_AT_ONCE: usize = 1024;
const BUCKETS_AT_ONCE_MIN: usize = 2;
const BUCKETS_AT_ONCE_MAX: usize = 32;

/// How far from the query's own bucket the first bound is looked for.
const SEED_RADIUS: usize = 1;

/// The buckets that are on their way there.
const SEED_BUCKETS_AHEAD: usize = 4;

/// What the rows nearest by one substring say of the k nearest.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seed {
    /// No less than the k-th distance, if enough of those rows are allowed.
    pub(super) bound: Option<u32>,
    /// True if they lie, allowed or not, as codes do that are spread evenly: those that are allowed are no nearer.
    pub(super) is_even: bool,
}

/// Asks for the memory of words that lie together, and for that up to a whole number of lines behind their
/// first: a comparison of the last ones reads so far, whatever its mask leaves of it.
#[inline]
fn prefetch_words<T>(words: &[T]) {
    let line = 64 / size_of::<T>();
    // Two lines whether or not they are two: a branch would often be predicted wrong.
    prefetch_word(words, 0);
    for idx in (line..words.len()).step_by(line) {
        prefetch_word(words, idx);
    }
    prefetch_word(words, words.len().max(1).next_multiple_of(line) - 1);
}

/// A walk from bucket to bucket, and the batch of candidates it has collected.
pub(super) struct Walk<'a> {
    codes: CodesRef<'a>,
    view: &'a MihView<'a>,
    kernel: Kernel,
    pub(super) query: &'a [u64],
    /// The query's substrings.
    values: SmallVec<[u32; 16]>,
    /// Candidates farther than this are of no interest.
    pub(super) bound: u32,
    pending: [u32; CANDIDATE_BATCH],
    n_pending: usize,
    /// Places that were found near.
    near: Vec<u32>,
    lookups: u64,
    candidates: u64,
    /// What the planner expects of a lookup and of a candidate.
    pub(super) step_ns: (f64, f64),
    started: Instant,
    /// The cost so far by the planner's constants; the walk stops when it would pass the limit.
    pub(super) spent_ns: f64,
    pub(super) spent_ns_max: f64,
}

impl<'a> Walk<'a> {
    /// Stands at the query's own buckets.
    pub(super) fn new(
        codes: CodesRef<'a>,
        view: &'a MihView<'a>,
        kernel: Kernel,
        query: &'a [u64],
        bound: u32,
        spent_ns_max: f64,
    ) -> Walk<'a> {
        let params = view.params();
        let values: SmallVec<[u32; 16]> = (0..params.n_substrings())
            .map(|substring_idx| params.substring(substring_idx, query))
            .collect();
        for (substring_idx, &value) in values.iter().enumerate() {
            match view.tables() {
                Tables::Rows(tables) => tables[substring_idx].prefetch_bucket(value),
                Tables::Sketches(tables) => tables.prefetch_bucket(substring_idx, value),
            }
        }
        Walk {
            codes,
            view,
            kernel,
            query,
            values,
            bound,
            pending: [0; CANDIDATE_BATCH],
            n_pending: 0,
            near: Vec::new(),
            lookups: 0,
            candidates: 0,
            step_ns: plan::step_ns(codes, view.form()),
            started: Instant::now(),
            spent_ns: 0.0,
            spent_ns_max,
        }
    }

    /// Visits one shell of one table and hands `hit(row, distance)` each candidate within the bound;
    /// it returns the bound for those to come. `false` if the limit was reached on the way.
    ///
    /// Candidates that an earlier shell held may be left out. Contract: shells come by their radius, those
    /// of one radius in the order of the tables, none is left out, and the bound never rises.
    pub(super) fn shell(
        &mut self,
        substring_idx: usize,
        substring_radius: usize,
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<bool> {
        match self.view.tables() {
            Tables::Rows(tables) => {
                self.shell_of_rows(tables[substring_idx], substring_idx, substring_radius, hit)
            }
            Tables::Sketches(tables) => {
                self.shell_of_sketches(tables, substring_idx, substring_radius, hit)
            }
        }
    }

    /// Counts lookups and candidates. False once they have cost as much as they may.
    fn spend(&mut self, n_lookups: usize, n_candidates: usize) -> bool {
        self.lookups += n_lookups as u64;
        self.spent_ns += n_lookups as f64 * self.step_ns.0;
        self.spent_ns += n_candidates as f64 * self.step_ns.1;
        self.spent_ns <= self.spent_ns_max
    }

    fn shell_of_rows(
        &mut self,
        table: MihTable<&'a [u32]>,
        substring_idx: usize,
        substring_radius: usize,
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<bool> {
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
            if !self.spend(coming.len(), n_rows) {
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
        let is_any_near = self
            .kernel
            .gather(self.codes, pending, self.query, self.bound, distances);
        self.candidates += self.n_pending as u64;
        self.n_pending = 0;
        if !is_any_near {
            return Ok(());
        }
        for (&row, &distance) in pending.iter().zip(&*distances) {
            if distance <= self.bound {
                self.bound = hit(row, distance)?;
            }
        }
        Ok(())
    }

    fn shell_of_sketches(
        &mut self,
        tables: &SketchView<'a>,
        substring_idx: usize,
        substring_radius: usize,
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<bool> {
        let width = self.view.params().width(substring_idx);
        let value = self.values[substring_idx];
        let sketches = tables.sketches(substring_idx);
        let bits = tables.bits(substring_idx);
        let query = bits.sketch(|substring_idx| self.values[substring_idx]);
        // Beside its sketch a code differs in this table's substring, by its radius, and in those that the
        // sketch has nothing of: by that much or more, or an earlier shell held it.
        let outside = bits.outside.iter();
        let elsewhere: usize = outside
            .map(|&other| substring_radius + usize::from(other < substring_idx))
            .sum();
        let beside = substring_radius + elsewhere;
        let mut masks = Shell::new(width, substring_radius);
        // The sketches of as many buckets are on their way while those before them are compared: enough to keep
        // memory busy, and few enough to stay in the first-level cache.
        let mean = self.codes.n_codes() >> width;
        let at_once =
            (SKETCHES_AT_ONCE / (mean + 1)).clamp(BUCKETS_AT_ONCE_MIN, BUCKETS_AT_ONCE_MAX);
        // The offsets of those after them are asked for too.
        let mut coming = [0; BUCKETS_AT_ONCE_MAX];
        let mut n_coming = 0;
        let mut open = |buckets: &mut [(u32, u32); BUCKETS_AT_ONCE_MAX]| -> Result<usize> {
            let n_open = n_coming;
            for (bucket, &value) in buckets.iter_mut().zip(&coming[..n_open]) {
                let entries = tables.bucket(substring_idx, value)?;
                *bucket = (entries.start as u32, entries.end as u32);
                prefetch_words(&sketches[entries]);
            }
            n_coming = 0;
            for (coming, mask) in coming[..at_once].iter_mut().zip(&mut masks) {
                *coming = value ^ mask;
                tables.prefetch_bucket(substring_idx, *coming);
                n_coming += 1;
            }
            Ok(n_open)
        };
        let mut buckets = [[(0, 0); BUCKETS_AT_ONCE_MAX]; 2];
        let [mut now, mut next] = buckets.each_mut();
        open(now)?;
        let mut n_now = open(now)?;
        while n_now > 0 {
            let n_next = open(next)?;
            let opened = &now[..n_now];
            let n_entries: usize = opened
                .iter()
                .map(|(start, end)| (end - start) as usize)
                .sum();
            self.candidates += n_entries as u64;
            if !self.spend(n_now, n_entries) {
                self.near.clear();
                return Ok(false);
            }
            self.compare_sketches(tables, substring_idx, (query, beside), opened, hit)?;
            std::mem::swap(&mut now, &mut next);
            n_now = n_next;
        }
        self.look_up(tables, substring_idx, self.near.len(), hit)?;
        Ok(true)
    }

    /// What can be said of the k nearest from the rows nearest by one substring: nothing without sketches, which
    /// tell little until the bound is low. The walk keeps to the bound.
    pub(super) fn seed(
        &mut self,
        k: usize,
        is_filtered: bool,
        is_allowed: impl Fn(usize) -> bool,
    ) -> Result<Seed> {
        let Tables::Sketches(tables) = self.view.tables() else {
            return Ok(Seed::default());
        };
        let table_idx = tables.last();
        let (words, query) = (self.codes.blocks(), self.query[0]);
        let width = self.view.params().width(table_idx);
        let mut nearest = TopK::new(k, self.bound);
        let mut of_all = is_filtered.then(|| TopK::new(k, self.bound));
        let mut n_rows = 0;
        for radius in 0..=SEED_RADIUS {
            let masks = Shell::new(width, radius);
            let value = self.values[table_idx];
            let buckets = masks.map(|mask| tables.bucket(table_idx, value ^ mask));
            let buckets: SmallVec<[Range<usize>; 17]> = buckets.collect::<Result<_>>()?;
            for (idx, rows) in buckets.iter().enumerate() {
                if let Some(next) = buckets.get(idx + SEED_BUCKETS_AHEAD) {
                    prefetch_words(&words[next.clone()]);
                }
                let rows = [(rows.start as u32, rows.end as u32)];
                self.kernel
                    .near_words(words, &rows, query, nearest.bound(), &mut self.near);
                for row in self.near.drain(..) {
                    let distance = (words[row as usize] ^ query).count_ones();
                    if is_allowed(row as usize) {
                        nearest.push(distance, u64::from(row));
                    }
                    if let Some(of_all) = &mut of_all {
                        of_all.push(distance, u64::from(row));
                    }
                }
            }
            n_rows += buckets.iter().map(Range::len).sum::<usize>();
            self.lookups += buckets.len() as u64;
        }
        self.candidates += n_rows as u64;
        // These rows agree in one substring but for a bit. The k-th of evenly spread ones is hardly two bits nearer
        // than expected.
        let bits = self.codes.code_len().bits() - width;
        let expected = plan::kth_random_distance(bits, n_rows, k) + SEED_RADIUS;
        let of_all = of_all.as_ref().unwrap_or(&nearest);
        let is_even = of_all.is_full() && of_all.bound() as usize + 2 >= expected;
        let bound = nearest.is_full().then(|| nearest.bound());
        self.bound = bound.unwrap_or(self.bound);
        Ok(Seed { bound, is_even })
    }

    /// Compares the sketches of these buckets with that of the query, and looks up codes once many are near. A code
    /// of an entry differs in `beside` bits more than its sketch.
    fn compare_sketches(
        &mut self,
        tables: &SketchView<'a>,
        substring_idx: usize,
        (query, beside): (u32, usize),
        buckets: &[(u32, u32)],
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<()> {
        let sketches = tables.sketches(substring_idx);
        let Some(bound) = (self.bound as usize).checked_sub(beside) else {
            return Ok(());
        };
        let bound = bound.min(u32::BITS as usize) as u32;
        let before = self.near.len();
        self.kernel
            .near_sketches(sketches, buckets, query, bound, &mut self.near);
        for &entry in &self.near[before..] {
            tables.prefetch_entry(substring_idx, entry as usize);
        }
        // What was asked for last is not there yet.
        match before < CANDIDATE_BATCH {
            true => Ok(()),
            false => self.look_up(tables, substring_idx, before, hit),
        }
    }

    /// Compares the codes of the first `n_entries` entries whose sketches are near.
    fn look_up(
        &mut self,
        tables: &SketchView<'a>,
        substring_idx: usize,
        n_entries: usize,
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<()> {
        let (words, query) = (self.codes.blocks(), self.query[0]);
        let entries = &mut self.near[..n_entries];
        for entry in &mut *entries {
            let row = tables.row(substring_idx, *entry as usize)?;
            prefetch_word(words, row);
            *entry = row as u32;
        }
        for &mut row in entries {
            let distance = (words[row as usize] ^ query).count_ones();
            if distance <= self.bound {
                self.bound = hit(row, distance)?;
            }
        }
        self.near.drain(..n_entries);
        Ok(())
    }

    /// Counts what was done, and lets the planner learn from it.
    pub(super) fn end(&self, stats: &mut SearchStats) {
        stats.lookups += self.lookups;
        stats.candidates += self.candidates;
        let steps = (self.lookups, self.candidates);
        let form = self.view.form();
        plan::observe_walk(self.codes, form, steps, self.started.elapsed());
    }
}

//! A walk from bucket to bucket: the candidates that lie in one shell of one table.
//!
//! Lookups are pipelined because nearly every one misses the cache: the offsets of the next batch of
//! buckets, the rows of the current one and the codes of the last are on their way at the same time. Knows
//! nothing of documents, filters and the k nearest: who walks says how near is near enough.

use std::time::Instant;

use smallvec::SmallVec;

use crate::code::{CodeLen, CodesRef};
use crate::engine::SearchStats;
use crate::error::{Error, Result};
use crate::hamming::{Kernel, Near, prefetch, prefetch_word};
use crate::mih::table::{MihTable, SECTION};
use crate::mih::{MihView, Shell};
use crate::plan;
use crate::topk::KthDistance;

/// Buckets looked up together.
const LOOKUP_BATCH: usize = 16;

/// Candidates compared together.
pub(super) const CANDIDATE_BATCH: usize = 64;

/// Codes in buckets compared together, and how many buckets those may be.
const WORDS_AT_ONCE: usize = 256;
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
    query: &'a [u64],
    /// The query's substrings.
    values: SmallVec<[u32; 16]>,
    /// Candidates farther than this are of no interest.
    pub(super) bound: u32,
    pending: [u32; CANDIDATE_BATCH],
    n_pending: usize,
    /// Entries that were found near.
    near: Vec<Near>,
    /// Those whose rows are on their way.
    waiting: Vec<Near>,
    lookups: u64,
    candidates: u64,
    duplicates: u64,
    /// What the planner expects of a lookup and of a candidate.
    pub(super) step_ns: (f64, f64),
    started: Instant,
    /// The cost so far by the planner's constants; the walk stops when it would pass the limit.
    pub(super) spent_ns: f64,
    pub(super) spent_ns_max: f64,
}

#[cold]
fn foreign((_, substring_idx): (usize, usize)) -> Error {
    Error::corrupt(
        SECTION,
        format!("a bucket of substring {substring_idx} holds a code that is not its own"),
    )
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
            view.table(substring_idx).prefetch_bucket(value);
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
            waiting: Vec::new(),
            lookups: 0,
            candidates: 0,
            duplicates: 0,
            step_ns: plan::step_ns(codes, view.form()),
            started: Instant::now(),
            spent_ns: 0.0,
            spent_ns_max,
        }
    }

    /// Visits one shell of one table, given as (radius, table), and hands `hit(row, distance)` each candidate within
    /// the bound that no earlier shell held; it returns the bound for those to come. `false` if the limit was reached
    /// on the way.
    ///
    /// Contract: shells come by their radius, those of one radius in the order of the tables, and the bound never
    /// rises.
    pub(super) fn shell(
        &mut self,
        shell: (usize, usize),
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<bool> {
        match self.view.copy(shell.1) {
            None => self.shell_of_rows(shell, hit),
            Some(words) => self.shell_of_codes(words, shell, hit),
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
        shell: (usize, usize),
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<bool> {
        let (substring_radius, substring_idx) = shell;
        let table = self.view.table(substring_idx);
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
                self.collect(rows, shell, hit)?;
            }
            if coming.is_empty() && buckets.is_empty() {
                break;
            }
            std::mem::swap(&mut buckets, &mut last_buckets);
        }
        self.compare(shell, hit)?;
        Ok(true)
    }

    fn collect(
        &mut self,
        rows: &[u32],
        shell: (usize, usize),
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<()> {
        for &row in rows {
            self.check_row(row)?;
            prefetch(self.codes, row as usize);
            self.pending[self.n_pending] = row;
            self.n_pending += 1;
            if self.n_pending == CANDIDATE_BATCH {
                self.compare(shell, hit)?;
            }
        }
        Ok(())
    }

    /// Compares the pending candidates.
    fn compare(
        &mut self,
        shell: (usize, usize),
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<()> {
        let pending = self.pending;
        let pending = &pending[..self.n_pending];
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
            if distance <= self.bound && self.is_first_meeting(row, shell)? {
                self.bound = hit(row, distance)?;
            }
        }
        Ok(())
    }

    fn shell_of_codes(
        &mut self,
        words: &'a [u64],
        shell: (usize, usize),
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<bool> {
        let (substring_radius, substring_idx) = shell;
        let table = self.view.table(substring_idx);
        let width = self.view.params().width(substring_idx);
        let value = self.values[substring_idx];
        let mut masks = Shell::new(width, substring_radius);
        // The codes of as many buckets are on their way while those before them are compared: enough to keep
        // memory busy, and few enough to stay in the first-level cache.
        let mean = self.codes.n_codes() >> width;
        let at_once = (WORDS_AT_ONCE / (mean + 1)).clamp(BUCKETS_AT_ONCE_MIN, BUCKETS_AT_ONCE_MAX);
        // The offsets of those after them are asked for too.
        let mut coming = [0; BUCKETS_AT_ONCE_MAX];
        let mut n_coming = 0;
        let mut open = |buckets: &mut [(u32, u32); BUCKETS_AT_ONCE_MAX]| -> Result<usize> {
            let n_open = n_coming;
            for (bucket, &value) in buckets.iter_mut().zip(&coming[..n_open]) {
                *bucket = table.entries(value)?;
                prefetch_words(&words[bucket.0 as usize..bucket.1 as usize]);
            }
            n_coming = 0;
            for (coming, mask) in coming[..at_once].iter_mut().zip(&mut masks) {
                *coming = value ^ mask;
                table.prefetch_bucket(*coming);
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
                self.waiting.clear();
                return Ok(false);
            }
            self.compare_codes(words, shell, opened, hit)?;
            std::mem::swap(&mut now, &mut next);
            n_now = n_next;
        }
        self.look_up(table, self.waiting.len(), hit)?;
        Ok(true)
    }

    /// Compares the codes of these buckets with the query. What is near and met for the first time waits until its row
    /// is there; the rows of those that waited are looked up.
    fn compare_codes(
        &mut self,
        words: &'a [u64],
        shell: (usize, usize),
        buckets: &[(u32, u32)],
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<()> {
        let (query, table) = (self.query[0], self.view.table(shell.1));
        let masks = self.view.params().word_masks();
        self.kernel
            .near_words(words, buckets, query, self.bound, &mut self.near);
        let n_near = self.near.len();
        if !(self.kernel).first_met(words, query, masks, shell, &mut self.near) {
            return Err(foreign(shell));
        }
        self.duplicates += (n_near - self.near.len()) as u64;
        for near in &self.near {
            table.prefetch_row(near.place());
        }
        let n_waiting = self.waiting.len();
        self.waiting.append(&mut self.near);
        self.look_up(table, n_waiting, hit)
    }

    /// Hands on the rows of the first `n_entries` entries that wait.
    fn look_up(
        &mut self,
        table: MihTable<&'a [u32]>,
        n_entries: usize,
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<()> {
        for near in &self.waiting[..n_entries] {
            if near.distance() <= self.bound {
                let row = table.row(near.place());
                self.check_row(row)?;
                self.bound = hit(row, near.distance())?;
            }
        }
        self.waiting.drain(..n_entries);
        Ok(())
    }

    /// True if no shell visited before this one holds the row. Shells are visited by their radius, those of one
    /// radius in the order of the tables.
    fn is_first_meeting(&mut self, row: u32, shell: (usize, usize)) -> Result<bool> {
        let (substring_radius, substring_idx) = shell;
        let mut differing = [0u64; CodeLen::MAX_BITS / 64];
        let differing = &mut differing[..self.query.len()];
        for (word_idx, differing) in differing.iter_mut().enumerate() {
            *differing = self.codes.word(row as usize, word_idx) ^ self.query[word_idx];
        }
        let params = self.view.params();
        if params.substring_distance(substring_idx, differing) as usize != substring_radius {
            return Err(foreign(shell));
        }
        let met_before = (0..params.n_substrings()).any(|other| {
            let distance = params.substring_distance(other, differing) as usize;
            distance < substring_radius || distance == substring_radius && other < substring_idx
        });
        self.duplicates += u64::from(met_before);
        Ok(!met_before)
    }

    fn check_row(&self, row: u32) -> Result<()> {
        match (row as usize) < self.codes.n_codes() {
            true => Ok(()),
            false => Err(Error::corrupt(
                SECTION,
                format!("a bucket holds row {row} of {} codes", self.codes.n_codes()),
            )),
        }
    }

    /// What can be said of the k nearest from the rows nearest by one substring: nothing without copies of the codes,
    /// where each row is a miss. The walk keeps to the bound.
    pub(super) fn seed(
        &mut self,
        k: usize,
        is_filtered: bool,
        is_allowed: impl Fn(usize) -> bool,
    ) -> Result<Seed> {
        let last = self.values.len() - 1;
        let Some(words) = self.view.copy(last) else {
            return Ok(Seed::default());
        };
        let (table, query) = (self.view.table(last), self.query[0]);
        let width = self.view.params().width(last);
        let mut nearest = KthDistance::new(k, self.bound);
        let mut of_all = is_filtered.then(|| KthDistance::new(k, self.bound));
        let mut n_rows = 0;
        for radius in 0..=SEED_RADIUS {
            let masks = Shell::new(width, radius);
            let value = self.values[last];
            let buckets = masks.map(|mask| table.entries(value ^ mask));
            let buckets: SmallVec<[(u32, u32); 17]> = buckets.collect::<Result<_>>()?;
            for (idx, bucket) in buckets.iter().enumerate() {
                if let Some((start, end)) = buckets.get(idx + SEED_BUCKETS_AHEAD) {
                    prefetch_words(&words[*start as usize..*end as usize]);
                }
                self.kernel
                    .near_words(words, &[*bucket], query, nearest.bound(), &mut self.near);
                for near in self.near.drain(..) {
                    if !is_filtered || is_allowed(table.row(near.place()) as usize) {
                        nearest.add(near.distance());
                    }
                    if let Some(of_all) = &mut of_all {
                        of_all.add(near.distance());
                    }
                }
                n_rows += (bucket.1 - bucket.0) as usize;
            }
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

    /// Counts what was done, and lets the planner learn from it.
    pub(super) fn end(&self, stats: &mut SearchStats) {
        stats.lookups += self.lookups;
        stats.candidates += self.candidates;
        stats.duplicates += self.duplicates;
        let steps = (self.lookups, self.candidates);
        let form = self.view.form();
        plan::observe_walk(self.codes, form, steps, self.started.elapsed());
    }
}

//! A walk from bucket to bucket: the candidates that lie in one shell of one table after the other.
//!
//! Lookups are pipelined because nearly every one misses the cache: the offsets of the next batch of
//! buckets, the rows of the current one and the codes of the last are on their way at the same time. Knows
//! nothing of documents and filters: who walks says what becomes of a candidate, and which shell is next.

use std::time::Instant;

use smallvec::{SmallVec, smallvec};

use crate::code::{BLOCK_ROWS, CodeLen, CodesRef};
use crate::engine::SearchStats;
use crate::error::{Error, Result};
use crate::hamming::{
    Kernel, NEAREST_OF_MAX, NEAREST_STRETCHES_MAX, Near, prefetch, prefetch_word,
};
use crate::mih::table::SECTION;
use crate::mih::{MihView, Shell};
use crate::plan;
use crate::topk::KthDistance;

/// Buckets looked up together.
const LOOKUP_BATCH: usize = 16;

/// Candidates compared together.
pub(super) const CANDIDATE_BATCH: usize = 64;

/// Codes in buckets compared together, and how many buckets those may be.
const WORDS_AT_ONCE: usize = 1024;
const BUCKETS_AT_ONCE_MIN: usize = 2;
const BUCKETS_AT_ONCE_MAX: usize = NEAREST_STRETCHES_MAX;

/// As many of them as are near are looked at together, and those of a shell at its end.
const NEAR_AT_ONCE: usize = 32;

/// Asks for the memory of the blocks that some buckets of codes lie in, each of which is a cache line: for the first line
/// of each bucket, then for the second of each. The hardware then runs ahead in all of them, as it does in the pages of a
/// long scan; bucket after bucket it would do so in one at a time.
#[inline]
fn prefetch_in_turns(words: &[u64], buckets: &[(u32, u32)]) {
    let first = |start: u32| start as usize / BLOCK_ROWS * BLOCK_ROWS;
    let spans = buckets
        .iter()
        .map(|&(start, end)| end as usize - first(start).min(end as usize));
    for offset in (0..spans.max().unwrap_or(0)).step_by(BLOCK_ROWS) {
        for &(start, end) in buckets {
            let idx = first(start) + offset;
            if idx < end as usize {
                prefetch_word(words, idx);
            }
        }
    }
}

/// What a walk is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sought {
    /// Codes farther than this are of no interest.
    pub(super) bound: u32,
    /// How many of the nearest are wanted; all of them if `None`.
    pub(super) k: Option<usize>,
    /// True if some rows are not allowed.
    pub(super) is_filtered: bool,
}

/// A walk from bucket to bucket, and the batch of candidates it has collected.
pub(super) struct Walk<'a> {
    codes: CodesRef<'a>,
    view: &'a MihView<'a>,
    kernel: Kernel,
    query: &'a [u64],
    /// The query's substrings.
    values: SmallVec<[u32; 16]>,
    /// For each table the radius of its next shell.
    limits: SmallVec<[u32; 16]>,
    /// The k-th distance of all codes met, allowed or not.
    met: KthDistance,
    /// If not, that is a bound.
    is_filtered: bool,
    /// Candidates farther than this are of no interest.
    bound: u32,
    pending: [u32; CANDIDATE_BATCH],
    n_pending: usize,
    /// Entries that were found near.
    near: Vec<Near>,
    /// Those whose rows were not looked up yet, with their table.
    waiting: Vec<(Near, usize)>,
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
fn foreign(substring_idx: usize) -> Error {
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
        sought: Sought,
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
            limits: smallvec![0; values.len()],
            values,
            met: KthDistance::new(sought.k.unwrap_or(usize::MAX), sought.bound),
            is_filtered: sought.is_filtered,
            bound: sought.bound,
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

    /// Visits the next shell of a table and hands `hit(row, distance)` each candidate within the bound that no
    /// earlier shell held; it returns the bound for those to come, which never rises. Some wait until
    /// [`finish`](Walk::finish). `false` if the limit was reached on the way.
    pub(super) fn shell(
        &mut self,
        substring_idx: usize,
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<bool> {
        let finished = match self.view.copy(substring_idx) {
            None => self.shell_of_rows(substring_idx, hit)?,
            Some(words) => self.shell_of_codes(words, substring_idx, hit)?,
        };
        self.limits[substring_idx] += 1;
        Ok(finished)
    }

    /// The radius of the next shell of each table.
    pub(super) fn limits(&self) -> &[u32] {
        &self.limits
    }

    /// The table whose next shell is the nearest, the first of several.
    pub(super) fn next_table(&self) -> usize {
        let nearest =
            (0..self.limits.len()).min_by_key(|&substring_idx| self.limits[substring_idx]);
        nearest.unwrap_or_default()
    }

    /// The bits by which a code that no shell held so far differs at least.
    pub(super) fn covered(&self) -> usize {
        self.limits.iter().map(|&limit| limit as usize).sum()
    }

    /// Codes farther than this are of no interest.
    pub(super) fn bound(&self) -> u32 {
        self.bound
    }

    /// Of all codes met, allowed or not, the k-th distance.
    pub(super) fn met(&self) -> &KthDistance {
        &self.met
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
        substring_idx: usize,
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<bool> {
        let table = self.view.table(substring_idx);
        let value = self.values[substring_idx];
        let width = self.view.params().width(substring_idx);
        let mut masks = Shell::new(width, self.limits[substring_idx] as usize);
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
                self.collect(rows, substring_idx, hit)?;
            }
            if coming.is_empty() && buckets.is_empty() {
                break;
            }
            std::mem::swap(&mut buckets, &mut last_buckets);
        }
        self.compare(substring_idx, hit)?;
        Ok(true)
    }

    fn collect(
        &mut self,
        rows: &[u32],
        substring_idx: usize,
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<()> {
        for &row in rows {
            self.check_row(row)?;
            prefetch(self.codes, row as usize);
            self.pending[self.n_pending] = row;
            self.n_pending += 1;
            if self.n_pending == CANDIDATE_BATCH {
                self.compare(substring_idx, hit)?;
            }
        }
        Ok(())
    }

    /// Compares the pending candidates.
    fn compare(
        &mut self,
        substring_idx: usize,
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
            if distance <= self.bound && self.is_first_meeting(row, substring_idx)? {
                self.met.add(distance);
                self.bound = hit(row, distance)?;
            }
        }
        Ok(())
    }

    fn shell_of_codes(
        &mut self,
        words: &'a [u64],
        substring_idx: usize,
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<bool> {
        let table = self.view.table(substring_idx);
        let width = self.view.params().width(substring_idx);
        let value = self.values[substring_idx];
        let mut masks = Shell::new(width, self.limits[substring_idx] as usize);
        // The codes of as many buckets are on their way while those before them are compared: enough to keep
        // memory busy, and few enough to stay in the first-level cache.
        let mean = self.codes.n_codes() >> width;
        // Of the first ones, of which nearly all would be near, the nearest are taken.
        let is_first = self.candidates < NEAREST_OF_MAX as u64 && !self.is_filtered;
        let words_at_once = if is_first {
            NEAREST_OF_MAX
        } else {
            WORDS_AT_ONCE
        };
        let at_once = (words_at_once / (mean + 1)).clamp(BUCKETS_AT_ONCE_MIN, BUCKETS_AT_ONCE_MAX);
        // The offsets of those after them are asked for too.
        let mut coming = [0; BUCKETS_AT_ONCE_MAX];
        let mut n_coming = 0;
        let mut open = |buckets: &mut [(u32, u32); BUCKETS_AT_ONCE_MAX]| -> Result<usize> {
            let n_open = n_coming;
            for (bucket, &value) in buckets.iter_mut().zip(&coming[..n_open]) {
                *bucket = table.entries(value)?;
            }
            prefetch_in_turns(words, &buckets[..n_open]);
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
                self.near.clear();
                self.waiting.clear();
                return Ok(false);
            }
            let (query, bound, near) = (self.query[0], self.bound, &mut self.near);
            match is_first && n_entries <= NEAREST_OF_MAX {
                true => self
                    .kernel
                    .nearest_words(words, opened, query, self.met.k(), bound, near),
                false => self.kernel.near_words(words, opened, query, bound, near),
            }
            // A loop over the few of each batch would often be predicted wrong.
            if near.len() >= NEAR_AT_ONCE {
                self.take_near(words, substring_idx, hit)?;
            }
            std::mem::swap(&mut now, &mut next);
            n_now = n_next;
        }
        self.take_near(words, substring_idx, hit)?;
        if self.is_filtered {
            self.look_up(self.waiting.len(), hit)?;
        }
        Ok(true)
    }

    /// Hands on what still waits, after the last shell.
    pub(super) fn finish(&mut self, hit: &mut impl FnMut(u32, u32) -> Result<u32>) -> Result<()> {
        let bound = self.bound;
        self.waiting.retain(|(near, _)| near.distance() <= bound);
        self.ask_rows(0);
        self.look_up(self.waiting.len(), hit)
    }

    /// Of what is near, lets wait for its row what is met for the first time: where all rows are allowed, until the
    /// bound has fallen to the end of the walk.
    fn take_near(
        &mut self,
        words: &'a [u64],
        substring_idx: usize,
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<()> {
        let query = self.query[0];
        let masks = self.view.params().word_masks();
        let (near, limits) = (&mut self.near, &self.limits);
        let n_near = near.len();
        if !(self.kernel).first_met(words, query, masks, limits, substring_idx, near) {
            return Err(foreign(substring_idx));
        }
        self.duplicates += (n_near - near.len()) as u64;
        near.iter().for_each(|near| self.met.add(near.distance()));
        let n_waiting = self.waiting.len();
        self.waiting
            .extend(self.near.drain(..).map(|near| (near, substring_idx)));
        if self.is_filtered {
            self.ask_rows(n_waiting);
            return self.look_up(n_waiting, hit);
        }
        self.bound = self.bound.min(self.met.bound());
        Ok(())
    }

    /// Asks for the rows of the entries that wait, from one of them on.
    fn ask_rows(&self, first: usize) {
        for &(near, substring_idx) in &self.waiting[first..] {
            self.view.table(substring_idx).prefetch_row(near.place());
        }
    }

    /// Hands on the rows of the first `n_entries` entries that wait.
    fn look_up(
        &mut self,
        n_entries: usize,
        hit: &mut impl FnMut(u32, u32) -> Result<u32>,
    ) -> Result<()> {
        for &(near, substring_idx) in &self.waiting[..n_entries] {
            if near.distance() <= self.bound {
                let row = self.view.table(substring_idx).row(near.place());
                self.check_row(row)?;
                self.bound = self.bound.min(hit(row, near.distance())?);
            }
        }
        self.waiting.drain(..n_entries);
        Ok(())
    }

    /// True if no shell visited before holds the row.
    fn is_first_meeting(&mut self, row: u32, substring_idx: usize) -> Result<bool> {
        let mut differing = [0u64; CodeLen::MAX_BITS / 64];
        let differing = &mut differing[..self.query.len()];
        for (word_idx, differing) in differing.iter_mut().enumerate() {
            *differing = self.codes.word(row as usize, word_idx) ^ self.query[word_idx];
        }
        let distance = |idx| self.view.params().substring_distance(idx, differing);
        if distance(substring_idx) != self.limits[substring_idx] {
            return Err(foreign(substring_idx));
        }
        let mut limits = self.limits.iter().enumerate();
        let met_before = limits.any(|(idx, &limit)| distance(idx) < limit);
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

    /// True if the codes met so far lie as codes do that are spread evenly, to be asked after the nearest shells of one
    /// table: those that are allowed are then no nearer.
    pub(super) fn is_even(&self, substring_idx: usize) -> bool {
        // These codes agree in one substring but for a bit. The k-th of evenly spread ones is hardly two bits nearer
        // than expected.
        let bits = self.codes.code_len().bits() - self.view.params().width(substring_idx);
        let radius = self.limits[substring_idx] as usize - 1;
        let (n_rows, k) = (self.candidates as usize, self.met.k());
        let expected = plan::kth_random_distance(bits, n_rows, k) + radius;
        self.met.is_full() && self.met.bound() as usize + 2 >= expected
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

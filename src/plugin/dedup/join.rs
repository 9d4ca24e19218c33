//! A self-join in memory: every two of a set of codes that lie within a radius, each pair once.
//!
//! The codes of all segments are gathered into one set with one clustering or one set of tables, so that
//! an index of many small segments joins as fast as one of a single segment, and deleted documents and
//! copies are out of the way. Every code is then a range search. Knows codes by their place in the set;
//! documents are the caller's.

use std::ops::{ControlFlow, Range};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::cluster::{ClusterParams, Clusters};
use crate::code::{Codes, CodesRef, HashCode, RowOrder};
use crate::engine::{self, Allowed, EngineChoice, SearchStats, SegmentRows};
use crate::error::Result;
use crate::mih::{MihForm, MihParams, MihTable, MihView, shell_size};
use crate::plan;
use crate::topk::Neighbor;

/// Two codes of the set by their places, `left < right`, and the bits in which they differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Near {
    pub(crate) left: u32,
    pub(crate) right: u32,
    pub(crate) distance: u32,
}

/// Below this many codes, all pairs are compared before clusters would be found.
const TABLES_CODES_MIN: usize = 4096;

/// Searches by which the ways to search are compared.
const TRIAL_QUERIES: usize = 48;

/// Queries that a thread takes at a time.
const CHUNK_QUERIES: usize = 1024;

/// Queries of a batched scan.
const BATCH_QUERIES_MAX: usize = 128;
const BATCH_QUERIES_MIN: usize = 4;

/// Codes found by one batch from which on batches become smaller: what is found waits in memory.
const BATCH_FOUND_MAX: usize = 1 << 18;

/// Pairs handed over together, and such pieces that wait for the caller, of each chunk.
const PIECE_PAIRS: usize = 1 << 14;
const PIECES_WAITING: usize = 4;

/// How the codes near each code are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A linear scan for a batch of queries.
    Batch,
    /// A range search of its own for each query.
    Single(EngineChoice),
}

/// Codes in memory, as a segment holds them.
pub(crate) struct CodeSet {
    /// In the order of the clusters, if there are any.
    codes: Codes,
    clusters: Option<Clusters>,
    /// The place of each row and the row of each place, packed, where codes are not in order of place.
    order: Option<[Vec<u8>; 2]>,
    mih: Option<(MihParams, Vec<MihTable>)>,
}

impl CodeSet {
    /// Builds what `choice` searches with; for [`EngineChoice::Auto`], what should pay at this radius.
    pub(crate) fn build(codes: Codes, choice: EngineChoice, radius: u32) -> Result<CodeSet> {
        let n_codes = codes.n_codes();
        let params = ClusterParams::choose(n_codes);
        let tries = choice == EngineChoice::Auto && n_codes >= TABLES_CODES_MIN;
        let clusters = match choice {
            _ if n_codes == 0 => None,
            EngineChoice::Cluster => Some(Clusters::build(codes.as_ref(), None, &params)?),
            EngineChoice::Auto if tries => {
                Clusters::build_if_useful(codes.as_ref(), None, &params)?
            }
            _ => None,
        };
        let mih = match choice {
            _ if n_codes == 0 => false,
            EngineChoice::Mih => true,
            _ => tries && clusters.is_none() && tables_may_pay(codes.as_ref(), radius),
        };
        let mut set = CodeSet {
            codes,
            clusters: None,
            order: None,
            mih: None,
        };
        if let Some(clusters) = clusters {
            let places = clusters.order();
            let mut rows = vec![0; places.len()];
            let mut reordered = Codes::with_capacity(set.codes.code_len(), n_codes);
            for (row, &place) in (0..).zip(places) {
                rows[place as usize] = row;
                reordered.push_row(&set.codes, place as usize);
            }
            set.order = Some([RowOrder::pack(places), RowOrder::pack(&rows)]);
            set.codes = reordered;
            set.clusters = Some(clusters);
        }
        if mih {
            let params = MihParams::fit(set.codes.as_ref());
            let tables = (0..params.n_substrings())
                .map(|substring_idx| MihTable::build(&set.codes, &params, substring_idx))
                .collect::<Result<_>>()?;
            set.mih = Some((params, tables));
        }
        Ok(set)
    }

    /// What engines search. Addresses are places.
    pub(crate) fn rows(&self) -> Result<SegmentRows<'_>> {
        let order = match &self.order {
            Some([places, rows]) => Some(RowOrder::new(places, rows, self.codes.n_codes())?),
            None => None,
        };
        let mih = match &self.mih {
            Some((params, tables)) => {
                Some(MihView::new(params, tables.iter().map(MihTable::as_ref))?)
            }
            None => None,
        };
        Ok(SegmentRows {
            order,
            mih,
            clusters: self.clusters.as_ref().map(Clusters::view),
            ..SegmentRows::of(self.codes.as_ref())
        })
    }
}

/// The row of a place.
pub(crate) fn row_of(rows: &SegmentRows<'_>, place: usize) -> Result<usize> {
    match &rows.order {
        Some(order) => {
            let row = order.row(place).ok_or_else(RowOrder::damaged)?;
            Ok(row as usize)
        }
        None => Ok(place),
    }
}

/// Whether the lookups of a search by multi-index hashing alone cost less than its part of a batched scan.
fn tables_may_pay(codes: CodesRef<'_>, radius: u32) -> bool {
    let params = MihParams::choose(codes.code_len(), codes.n_codes());
    let lookups: f64 = (0..params.n_substrings())
        .filter_map(|substring_idx| {
            let ball = params.substring_radius(substring_idx, radius as usize)?;
            Some((params.width(substring_idx), ball))
        })
        .flat_map(|(width, ball)| (0..=ball).map(move |shell| f64::from(shell_size(width, shell))))
        .sum();
    let scan_ns = plan::scan_batch_ns(codes, BATCH_QUERIES_MAX) / BATCH_QUERIES_MAX as f64;
    lookups * plan::step_ns(codes, MihForm::Rows).0 < scan_ns
}

/// All pairs of a set within a radius.
pub(crate) struct SelfJoin<'a> {
    rows: &'a SegmentRows<'a>,
    radius: u32,
    way: Way,
    /// Whether codes are taken row by row, which finds the clusters in the cache, not place by place.
    by_rows: bool,
    n_threads: usize,
}

/// What a thread has found.
struct Piece {
    pairs: Vec<Near>,
    /// Queries finished since the last piece.
    n_queries: usize,
}

/// Where a thread puts what it finds. `Err` once nobody reads any more.
struct Outlet {
    piece: Piece,
    sender: Sender<Result<Piece>>,
}

/// The caller has stopped.
struct Stopped;

impl Outlet {
    fn push(&mut self, pair: Near) -> Result<(), Stopped> {
        self.piece.pairs.push(pair);
        match self.piece.pairs.len() >= PIECE_PAIRS {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), Stopped> {
        let piece = Piece {
            pairs: std::mem::take(&mut self.piece.pairs),
            n_queries: std::mem::take(&mut self.piece.n_queries),
        };
        self.sender.send(Ok(piece)).map_err(|_| Stopped)
    }
}

impl<'a> SelfJoin<'a> {
    /// A join by one engine, or by whichever way a trial finds fastest. Every way finds the same pairs.
    ///
    /// Pairs come in ascending order of (left, right) if `ordered`, in any order otherwise.
    pub(crate) fn new(
        rows: &'a SegmentRows<'a>,
        choice: EngineChoice,
        radius: u32,
        ordered: bool,
        n_threads: usize,
    ) -> Result<SelfJoin<'a>> {
        let mut join = SelfJoin {
            rows,
            radius,
            way: Way::Batch,
            by_rows: !ordered,
            n_threads,
        };
        join.way = match choice {
            EngineChoice::Scan => Way::Batch,
            EngineChoice::Auto if rows.mih.is_none() && rows.clusters.is_none() => Way::Batch,
            EngineChoice::Auto => join.fastest()?,
            choice => Way::Single(choice),
        };
        Ok(join)
    }

    /// Measured, because the planner prices one search by itself and not those of a batch. The answers
    /// are the same, so the clock decides about time alone.
    fn fastest(&self) -> Result<Way> {
        let n_codes = self.rows.codes.n_codes();
        let n_queries = TRIAL_QUERIES.min(n_codes);
        let queries: Vec<HashCode> = (0..n_queries)
            .map(|idx| self.rows.codes.get(idx * n_codes / n_queries))
            .collect();
        let (mut found, mut stats) = (Vec::new(), SearchStats::default());
        let choice = EngineChoice::Auto;
        let all = Allowed::All;
        let started = Instant::now();
        for query in &queries {
            found.clear();
            let radius = self.radius;
            engine::range(
                self.rows, choice, query, radius, &all, &mut found, &mut stats,
            )?;
        }
        let single = started.elapsed();
        let started = Instant::now();
        // Few at a time, so that a wide radius finds no more than fits.
        for queries in queries.chunks(TRIAL_QUERIES / 3) {
            self.scan(self.rows, queries, &mut stats)?;
            if started.elapsed() > single {
                return Ok(Way::Single(choice));
            }
        }
        Ok(Way::Batch)
    }

    /// What the linear scan finds of these rows for each query.
    fn scan(
        &self,
        rows: &SegmentRows<'_>,
        queries: &[HashCode],
        stats: &mut SearchStats,
    ) -> Result<Vec<Vec<Neighbor>>> {
        let mut found = vec![Vec::new(); queries.len()];
        let (scan, all) = (EngineChoice::Scan, Allowed::All);
        engine::range_batch(rows, scan, queries, self.radius, &all, &mut found, stats)?;
        Ok(found)
    }

    /// Hands `each(pairs, queries finished since)` the pairs on the calling thread, until it breaks.
    ///
    /// At most a few pieces of pairs a thread wait for the caller, and what one batch of searches found.
    pub(crate) fn run(
        &self,
        mut each: impl FnMut(&[Near], usize) -> ControlFlow<()>,
    ) -> Result<SearchStats> {
        let n_codes = self.rows.codes.n_codes();
        let n_threads = self
            .n_threads
            .clamp(1, n_codes.div_ceil(CHUNK_QUERIES).max(1));
        let (sender, chunks) = bounded::<Receiver<Result<Piece>>>(n_threads);
        // Taking a chunk and queueing its channel are one step, so channels queue in the order of chunks.
        let next: Next = Mutex::new((0, sender));
        let take = || {
            let mut next = next.lock();
            let start = next.0;
            if start >= n_codes {
                return None;
            }
            next.0 = start + CHUNK_QUERIES;
            let (sender, receiver) = bounded(PIECES_WAITING);
            next.1.send(receiver).ok()?;
            Some((start..(start + CHUNK_QUERIES).min(n_codes), sender))
        };
        let take = &take;
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..n_threads)
                .map(|_| {
                    scope.spawn(move || {
                        let mut stats = SearchStats::default();
                        while let Some((chunk, sender)) = take() {
                            let piece = Piece {
                                pairs: Vec::new(),
                                n_queries: 0,
                            };
                            let mut outlet = Outlet { piece, sender };
                            match self.search(chunk, &mut outlet, &mut stats) {
                                Ok(Ok(())) => {}
                                Ok(Err(Stopped)) => break,
                                Err(error) => {
                                    // If nobody reads any more, nobody needs to know.
                                    let _ = outlet.sender.send(Err(error));
                                    break;
                                }
                            }
                        }
                        stats
                    })
                })
                .collect();
            let stop = Stop {
                next: &next,
                chunks: &chunks,
            };
            let outcome = receive(&chunks, n_codes, &mut each);
            drop(stop);
            let mut stats = SearchStats::default();
            for worker in workers {
                let done = worker.join();
                stats.add(&done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            outcome.map(|()| stats)
        })
    }

    fn search(
        &self,
        chunk: Range<usize>,
        outlet: &mut Outlet,
        stats: &mut SearchStats,
    ) -> Result<Result<(), Stopped>> {
        let done = match self.way {
            Way::Batch => self.search_batches(chunk, outlet, stats)?,
            Way::Single(choice) => self.search_singly(chunk, choice, outlet, stats)?,
        };
        Ok(done.and_then(|()| outlet.flush()))
    }

    /// The place and the code of a query.
    fn query(&self, number: usize) -> Result<(u32, HashCode)> {
        let (place, row) = match self.by_rows {
            true => (
                self.rows.doc_id(number).ok_or_else(RowOrder::damaged)?,
                number,
            ),
            false => (number as u32, row_of(self.rows, number)?),
        };
        Ok((place, self.rows.codes.get(row)))
    }

    fn search_singly(
        &self,
        chunk: Range<usize>,
        choice: EngineChoice,
        outlet: &mut Outlet,
        stats: &mut SearchStats,
    ) -> Result<Result<(), Stopped>> {
        let mut found = Vec::new();
        for number in chunk {
            let (place, query) = self.query(number)?;
            found.clear();
            let all = Allowed::All;
            engine::range(
                self.rows,
                choice,
                &query,
                self.radius,
                &all,
                &mut found,
                stats,
            )?;
            outlet.piece.n_queries += 1;
            if emit(place, &found, outlet).is_err() {
                return Ok(Err(Stopped));
            }
        }
        Ok(Ok(()))
    }

    fn search_batches(
        &self,
        chunk: Range<usize>,
        outlet: &mut Outlet,
        stats: &mut SearchStats,
    ) -> Result<Result<(), Stopped>> {
        let codes = self.rows.codes;
        let mut batch_queries = BATCH_QUERIES_MIN * 4;
        let mut start = chunk.start;
        while start < chunk.end {
            let batch = start..(start + batch_queries).min(chunk.end);
            start = batch.end;
            let queries = batch
                .clone()
                .map(|number| self.query(number))
                .collect::<Result<Vec<_>>>()?;
            let (places, queries): (Vec<u32>, Vec<HashCode>) = queries.into_iter().unzip();
            let found = if self.rows.ascend() {
                // Codes before the batch were its left, and need no second look.
                let (first, rest) = codes.starting_by(batch.start);
                let rows = SegmentRows {
                    address_base: first as u64,
                    ..SegmentRows::of(rest)
                };
                self.scan(&rows, &queries, stats)?
            } else {
                self.scan(self.rows, &queries, stats)?
            };
            outlet.piece.n_queries += queries.len();
            for (place, found) in places.into_iter().zip(&found) {
                if emit(place, found, outlet).is_err() {
                    return Ok(Err(Stopped));
                }
            }
            let n_found: usize = found.iter().map(Vec::len).sum();
            batch_queries = match n_found > BATCH_FOUND_MAX {
                true => (batch_queries / 2).max(BATCH_QUERIES_MIN),
                false => (batch_queries * 2).min(BATCH_QUERIES_MAX),
            };
        }
        Ok(Ok(()))
    }
}

/// Puts out the pairs of one code with later ones, which were found in ascending order.
fn emit(place: u32, found: &[Neighbor], outlet: &mut Outlet) -> Result<(), Stopped> {
    let later = found.partition_point(|neighbor| neighbor.address <= u64::from(place));
    for neighbor in &found[later..] {
        outlet.push(Near {
            left: place,
            right: neighbor.address as u32,
            distance: neighbor.distance,
        })?;
    }
    Ok(())
}

/// The first query not taken, and where the channels of taken chunks queue.
type Next = Mutex<(usize, Sender<Receiver<Result<Piece>>>)>;

/// Stops the threads when dropped, also where the caller's closure panics: no chunk is left to take, and
/// nobody reads those that were taken.
struct Stop<'a> {
    next: &'a Next,
    chunks: &'a Receiver<Receiver<Result<Piece>>>,
}

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        loop {
            // A thread may hold the lock and wait for room in the queue.
            let next = self.next.try_lock();
            while self.chunks.try_recv().is_ok() {}
            if let Some(mut next) = next {
                next.0 = usize::MAX;
                return;
            }
            std::thread::yield_now();
        }
    }
}

/// Reads the channels of the chunks one after the other.
fn receive(
    chunks: &Receiver<Receiver<Result<Piece>>>,
    n_queries: usize,
    each: &mut impl FnMut(&[Near], usize) -> ControlFlow<()>,
) -> Result<()> {
    for start in (0..n_queries).step_by(CHUNK_QUERIES) {
        let Ok(pieces) = chunks.recv() else {
            return Ok(());
        };
        let mut left = CHUNK_QUERIES.min(n_queries - start);
        for piece in pieces {
            let piece = piece?;
            left -= piece.n_queries;
            if each(&piece.pairs, piece.n_queries).is_break() {
                return Ok(());
            }
        }
        // A thread ends in the middle of a chunk only if it panics, which joining it passes on.
        if left > 0 {
            return Ok(());
        }
    }
    Ok(())
}

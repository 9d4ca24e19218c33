//! k-NN and range search over clusters, and when to leave the rest to another engine.
//!
//! A k-NN search reads the query's own cluster first. The k-th distance found there is an upper limit
//! on the final one, so everything left to read is known exactly from the shells, and priced, before it
//! is read. Clusters are taken in ascending order of the least distance they can hold.

use std::cell::Cell;
use std::ops::Range;

use smallvec::SmallVec;

use crate::cluster::{ClusterView, SECTION};
use crate::code::{HashCode, RowOrder};
use crate::engine::{Allowed, Engine, EngineKind, Membership, SearchStats, SegmentRows};
use crate::error::{Error, Result};
use crate::finds::Finds;
use crate::hamming::{Kernel, NEAREST_OF_MAX, Near, prefetch_rows};
use crate::plan;
use crate::scan::LinearScan;
use crate::topk::{Neighbor, TopK};

/// Cluster-pruned search over one segment.
///
/// Exact: the same answers as [`LinearScan`], sooner where codes have clusters.
#[derive(Clone, Copy, Debug)]
pub struct ClusterSearch<'a> {
    rows: &'a SegmentRows<'a>,
    view: &'a ClusterView<'a>,
    kernel: Kernel,
    fallback: bool,
}

/// A shell of at least this many rows is read on its own: its rows ascend by document, so that once k
/// of them are equally near, the rest need no look.
const LARGE_SHELL: usize = 4096;

/// In place of the distance to a cluster that was read, so that it is near nothing: the farthest there is
/// in numbers with a sign.
const READ: u32 = i32::MAX as u32;

/// Rows read for each neighbor asked for before what is left is listed.
const ROWS_PER_NEIGHBOR: usize = 6;

/// A stretch of at least this many rows is cut down to the bound of the moment before it is read.
const LONG_STRETCH: usize = 512;

/// Stretches read together, and the rows of each that are asked for ahead: where there are more, the hardware sees it.
const STRETCHES_AT_ONCE: usize = 16;
const ASKED_ROWS: usize = 64;

/// Rows wanted in the first reading of the query's own cluster, for each neighbor asked for.
const FIRST_ROWS_PER_NEIGHBOR: usize = 16;
const FIRST_ROWS_MIN: usize = 1024;

/// Clusters read before the rest is priced, where the first alone leaves much to read.
pub(crate) const SEED_CLUSTERS: usize = 8;

/// "Much": this many times the least number of rows in the first reading.
const MUCH_LEFT: usize = 24;

thread_local! {
    /// Memory for the distances to all centroids, which is more than everything else that a search takes.
    static DISTANCES: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
    /// And for the rows that are near.
    static NEAR: Cell<Vec<Near>> = const { Cell::new(Vec::new()) };
}

/// What a k-NN search knows once it has read the query's own cluster, and what it has left to read.
struct Seeded {
    /// The query's distance to each centroid, or [`READ`].
    distances: Vec<u32>,
    /// What is left to read, in ascending order of the least distance it can hold.
    left: Vec<Stretch>,
    /// Rows in those stretches.
    n_rows: usize,
}

/// The rows of a cluster within a bound.
#[derive(Clone, Copy, Default)]
struct Stretch {
    cluster: u32,
    /// No row is nearer than this.
    least: u32,
    start: u32,
    end: u32,
}

impl Stretch {
    fn rows(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

impl<'a> ClusterSearch<'a> {
    /// Searches these rows through these clusters.
    pub fn new(rows: &'a SegmentRows<'a>, view: &'a ClusterView<'a>) -> ClusterSearch<'a> {
        ClusterSearch {
            rows,
            view,
            kernel: Kernel::best(),
            fallback: true,
        }
    }

    /// Never leaves the rest to the linear scan, however much of it there is. For tests and measurements.
    pub fn without_fallback(mut self) -> ClusterSearch<'a> {
        self.fallback = false;
        self
    }

    /// Uses this kernel instead of the best.
    pub fn with_kernel(mut self, kernel: Kernel) -> ClusterSearch<'a> {
        self.kernel = kernel;
        self
    }

    fn check(&self, query: &HashCode) -> Result<()> {
        self.rows.codes.code_len().check(query.code_len())?;
        self.view.check(self.rows.codes)
    }

    fn centroid_distances(&self, query: &HashCode, stats: &mut SearchStats) -> Vec<u32> {
        // Every place is written, so that what the last search left there is no matter.
        let mut distances = DISTANCES.take();
        distances.resize(self.view.n_clusters(), 0);
        self.kernel
            .distances(self.view.centroids(), query.words(), &mut distances);
        stats.centroids += distances.len() as u64;
        distances
    }

    /// The rows of a cluster at these distances from its centroid.
    #[inline]
    fn shell_rows(&self, cluster: usize, nearest: u32, farthest: u32) -> Result<Range<usize>> {
        let rows = self.view.rows(cluster, nearest, farthest)?;
        if rows.end > self.rows.codes.n_codes() {
            return Err(Error::corrupt(
                SECTION,
                format!(
                    "cluster {cluster} has rows {rows:?} of {} codes",
                    self.rows.codes.n_codes()
                ),
            ));
        }
        Ok(rows)
    }

    /// Fills `seeded` with the clusters that may hold codes within `bound`, nearest possible first.
    fn find_left(&self, seeded: &mut Seeded, bound: u32) -> Result<()> {
        // Sorted by counting: a least distance is at most `bound`, and that at most the bits of a code.
        let clusters = self.view.within(self.kernel, &seeded.distances, bound);
        let mut within: Vec<Stretch> = Vec::with_capacity(clusters.len());
        let mut places = vec![0u32; bound as usize + 2];
        seeded.n_rows = 0;
        for cluster in clusters {
            let cluster = cluster as usize;
            let distance = seeded.distances[cluster];
            let (nearest, farthest) = self.view.extent(cluster);
            let least = distance
                .saturating_sub(farthest)
                .max(nearest.saturating_sub(distance));
            let (low, high) = (distance.saturating_sub(bound), distance + bound);
            let rows = self.shell_rows(cluster, low, high)?;
            seeded.n_rows += rows.len();
            let stretch = Stretch {
                cluster: cluster as u32,
                least,
                start: rows.start as u32,
                end: rows.end as u32,
            };
            within.push(stretch);
            places[least as usize + 1] += 1;
        }
        for least in 1..places.len() {
            places[least] += places[least - 1];
        }
        seeded.left.clear();
        seeded.left.resize(within.len(), Stretch::default());
        for stretch in within {
            let place = &mut places[stretch.least as usize];
            seeded.left[*place as usize] = stretch;
            *place += 1;
        }
        Ok(())
    }

    /// Hands `hit(distance, doc)` each allowed row within the bound; it returns the bound for the rows to
    /// come.
    fn read(
        &self,
        query: &HashCode,
        rows: Range<usize>,
        mut bound: u32,
        membership: &mut Membership<'_>,
        stats: &mut SearchStats,
        hit: &mut impl FnMut(u32, u32) -> Option<u32>,
    ) -> Result<()> {
        stats.cluster_codes += rows.len() as u64;
        let mut damaged = false;
        let mut filtered_out = 0;
        let first = bound;
        let mut sink = |row, distance| {
            if !membership.has_row(row) {
                filtered_out += 1;
                return Some(bound);
            }
            let Some(doc) = self.rows.doc_id(row) else {
                damaged = true;
                return None;
            };
            match membership.contains(doc) {
                true => bound = hit(distance, doc)?,
                false => filtered_out += 1,
            }
            Some(bound)
        };
        self.kernel
            .scan(self.rows.codes, rows, query.words(), first, &mut sink);
        stats.filtered_out += filtered_out;
        match damaged {
            true => Err(RowOrder::damaged()),
            false => Ok(()),
        }
    }

    /// Takes the rows of one cluster from one shell to another.
    fn offer(
        &self,
        query: &HashCode,
        cluster: usize,
        shells: (u32, u32),
        membership: &mut Membership<'_>,
        finds: &mut Finds<'_>,
        stats: &mut SearchStats,
    ) -> Result<()> {
        let (first, last) = self.view.extent(cluster);
        let (mut shell, last) = (shells.0.max(first), shells.1.min(last));
        while shell <= last {
            // Small shells are read together, a large one alone.
            let mut rows = self.shell_rows(cluster, shell, last)?;
            let mut ascending = false;
            let mut end = last;
            if rows.len() >= LARGE_SHELL {
                rows = self.shell_rows(cluster, shell, shell)?;
                ascending = rows.len() >= LARGE_SHELL;
                end = shell;
                while !ascending && end < last {
                    let next = self.shell_rows(cluster, end + 1, end + 1)?;
                    if next.len() >= LARGE_SHELL {
                        break;
                    }
                    rows.end = next.end.max(rows.end);
                    end += 1;
                }
            }
            shell = end + 1;
            if finds.bound_from(self.rows).is_none() {
                return Ok(());
            }
            match ascending {
                true => self.offer_ascending(query, rows, membership, finds, stats)?,
                false => self.offer_rows(query, rows, membership, finds, stats)?,
            }
        }
        Ok(())
    }

    /// Takes these rows.
    fn offer_rows(
        &self,
        query: &HashCode,
        rows: Range<usize>,
        membership: &mut Membership<'_>,
        finds: &mut Finds<'_>,
        stats: &mut SearchStats,
    ) -> Result<()> {
        let Some(bound) = finds.bound_from(self.rows) else {
            return Ok(());
        };
        let is_listed = self.lists_near(finds) && rows.len() <= NEAREST_OF_MAX;
        let Finds { top, late } = finds;
        let Some(late) = late else {
            let base = self.rows.address_base;
            return self.read(
                query,
                rows,
                bound,
                membership,
                stats,
                &mut |distance, doc| {
                    top.push(distance, self.rows.address(doc));
                    top.bound_from(base)
                },
            );
        };
        if is_listed {
            let rows = (rows.start as u32, rows.end as u32);
            return self.offer_short(query, &[rows], membership, finds, stats);
        }
        stats.cluster_codes += rows.len() as u64;
        let mut filtered_out = 0;
        let mut sink = |row, distance| {
            if !membership.has_row(row) {
                filtered_out += 1;
                return Some(late.bound());
            }
            self.rows.prefetch_doc(row);
            Some(late.push(row, distance))
        };
        self.kernel
            .scan(self.rows.codes, rows, query.words(), bound, &mut sink);
        stats.filtered_out += filtered_out;
        finds.settle_if_many(self.rows)
    }

    /// Takes these rows, which ascend by document.
    fn offer_ascending(
        &self,
        query: &HashCode,
        rows: Range<usize>,
        membership: &mut Membership<'_>,
        finds: &mut Finds<'_>,
        stats: &mut SearchStats,
    ) -> Result<()> {
        finds.settle(self.rows)?;
        let top = &mut *finds.top;
        if let Some(bound) = top.bound_from(self.rows.address_base) {
            self.read(
                query,
                rows,
                bound,
                membership,
                stats,
                &mut |distance, doc| {
                    let address = self.rows.address(doc);
                    top.push(distance, address);
                    top.bound_from(address.saturating_add(1))
                },
            )?;
        }
        finds.renew(self.rows);
        Ok(())
    }

    /// Reads what one cluster can hold, from the shells the query lies among outwards. Gives the cluster's
    /// number of rows.
    fn offer_cluster(
        &self,
        query: &HashCode,
        cluster: usize,
        seeded: &mut Seeded,
        membership: &mut Membership<'_>,
        finds: &mut Finds<'_>,
        stats: &mut SearchStats,
    ) -> Result<usize> {
        let distance = seeded.distances[cluster];
        let (nearest, farthest) = self.view.extent(cluster);
        let per_neighbor = finds.top.k().saturating_mul(FIRST_ROWS_PER_NEIGHBOR);
        let wanted = per_neighbor.max(FIRST_ROWS_MIN);
        // The narrowest band of shells about the query's own distance with enough rows in it.
        let mut reach = (nearest.saturating_sub(distance)).max(distance.saturating_sub(farthest));
        let (mut low, mut high) = (distance.saturating_sub(reach), distance + reach);
        while (low > nearest || high < farthest)
            && self.shell_rows(cluster, low, high)?.len() < wanted
        {
            reach += 1;
            (low, high) = (distance.saturating_sub(reach), distance + reach);
        }
        prefetch_rows(self.rows.codes, self.shell_rows(cluster, low, high)?);
        self.offer(query, cluster, (low, high), membership, finds, stats)?;
        // Then whatever else of it may hold a neighbor.
        let inner = (
            distance.saturating_sub(finds.bound()),
            low.saturating_sub(1),
        );
        let outer = (high + 1, distance + finds.bound());
        let [has_inner, has_outer] = [
            low > nearest && inner.0 < low,
            high < farthest && outer.1 > high,
        ];
        for (shells, has) in [(inner, has_inner), (outer, has_outer)] {
            if has {
                prefetch_rows(
                    self.rows.codes,
                    self.shell_rows(cluster, shells.0, shells.1)?,
                );
            }
        }
        if has_inner {
            self.offer(query, cluster, inner, membership, finds, stats)?;
        }
        let outer = (outer.0, distance + finds.bound());
        if has_outer && outer.1 > high {
            self.offer(query, cluster, outer, membership, finds, stats)?;
        }
        seeded.distances[cluster] = READ;
        Ok(self.shell_rows(cluster, nearest, farthest)?.len())
    }

    /// Reads the query's own cluster, and further near ones if that is not enough, and finds what is left.
    fn seed(
        &self,
        query: &HashCode,
        membership: &mut Membership<'_>,
        finds: &mut Finds<'_>,
        stats: &mut SearchStats,
    ) -> Result<Seeded> {
        let mut seeded = self.begin(query, stats);
        let own = self.kernel.least(&seeded.distances);
        let mut n_read = self.offer_cluster(query, own, &mut seeded, membership, finds, stats)?;
        // Few rows for many neighbors make a wide bound, which leaves much to read; the next clusters are read
        // sooner.
        let wanted = finds.top.k().saturating_mul(ROWS_PER_NEIGHBOR);
        let most = SEED_CLUSTERS.min(self.view.n_clusters());
        for _ in 1..most {
            if n_read >= wanted {
                break;
            }
            let next = self.kernel.least(&seeded.distances);
            n_read += self.offer_cluster(query, next, &mut seeded, membership, finds, stats)?;
        }
        if finds.is_full() {
            self.find_left(&mut seeded, finds.bound())?;
            if seeded.n_rows <= MUCH_LEFT * FIRST_ROWS_MIN {
                return Ok(seeded);
            }
        }
        // Clusters near the query, as many as should hold k neighbors several times over.
        let mean_rows = self.rows.codes.n_codes() / self.view.n_clusters() + 1;
        let n_near = SEED_CLUSTERS.max(finds.top.k().saturating_mul(4) / mean_rows);
        let n_near = n_near.min(self.view.n_clusters());
        let mut by_distance: Vec<(u32, u32)> = seeded.distances.iter().copied().zip(0..).collect();
        by_distance.select_nth_unstable(n_near - 1);
        by_distance[..n_near].sort_unstable();
        for (idx, &(distance, cluster)) in by_distance[..n_near].iter().enumerate() {
            if distance == READ || (idx >= SEED_CLUSTERS && finds.is_full()) {
                continue;
            }
            self.offer_cluster(
                query,
                cluster as usize,
                &mut seeded,
                membership,
                finds,
                stats,
            )?;
        }
        self.find_left(&mut seeded, finds.bound())?;
        Ok(seeded)
    }

    /// Reads what is left, as far as the falling bound asks for it.
    fn finish(
        &self,
        query: &HashCode,
        membership: &mut Membership<'_>,
        seeded: &Seeded,
        finds: &mut Finds<'_>,
        stats: &mut SearchStats,
    ) -> Result<()> {
        let codes = self.rows.codes;
        let ask = |stretches: &[Stretch]| {
            for stretch in stretches {
                let start = stretch.start as usize;
                prefetch_rows(codes, start..stretch.rows().end.min(start + ASKED_ROWS));
            }
        };
        let mut batches = seeded.left.chunks(STRETCHES_AT_ONCE).peekable();
        batches.peek().copied().into_iter().for_each(ask);
        while let Some(batch) = batches.next() {
            batches.peek().copied().into_iter().for_each(ask);
            let bound = finds.bound();
            let n_within = batch.partition_point(|stretch| stretch.least <= bound);
            let within = &batch[..n_within];
            let short = |stretch: &Stretch| stretch.rows().len() < LONG_STRETCH;
            if self.lists_near(finds) && within.iter().all(short) {
                let rows: SmallVec<[(u32, u32); STRETCHES_AT_ONCE]> = within
                    .iter()
                    .map(|stretch| (stretch.start, stretch.end))
                    .collect();
                self.offer_short(query, &rows, membership, finds, stats)?;
            } else {
                for &stretch in within {
                    self.offer_stretch(query, stretch, membership, seeded, finds, stats)?;
                }
            }
            if n_within < batch.len() {
                break;
            }
        }
        Ok(())
    }

    /// Takes what a stretch can hold.
    fn offer_stretch(
        &self,
        query: &HashCode,
        stretch: Stretch,
        membership: &mut Membership<'_>,
        seeded: &Seeded,
        finds: &mut Finds<'_>,
        stats: &mut SearchStats,
    ) -> Result<()> {
        if stretch.least > finds.bound() {
            return Ok(());
        }
        // A short stretch is read as it was found, however far the bound has fallen since.
        if stretch.rows().len() < LONG_STRETCH {
            return self.offer_rows(query, stretch.rows(), membership, finds, stats);
        }
        let cluster = stretch.cluster as usize;
        let (distance, bound) = (seeded.distances[cluster], finds.bound());
        let shells = (distance.saturating_sub(bound), distance + bound);
        self.offer(query, cluster, shells, membership, finds, stats)
    }

    /// True if one call can list what is near in short stretches: of codes of one word, where rows wait.
    fn lists_near(&self, finds: &Finds<'_>) -> bool {
        self.rows.codes.code_len().words() == 1 && finds.late.is_some()
    }

    /// Takes the rows of short stretches, as far as one call [lists](ClusterSearch::lists_near) what is near.
    fn offer_short(
        &self,
        query: &HashCode,
        stretches: &[(u32, u32)],
        membership: &mut Membership<'_>,
        finds: &mut Finds<'_>,
        stats: &mut SearchStats,
    ) -> Result<()> {
        let (words, query) = (self.rows.codes.blocks(), query.words()[0]);
        for &(start, end) in stretches {
            stats.cluster_codes += u64::from(end - start);
        }
        let (k, bound) = (finds.top.k(), finds.bound());
        let mut near = NEAR.take();
        match *stretches {
            // While fewer than k rows are known, everything would be near.
            [_] if !finds.is_full() && !membership.is_filter() => {
                self.kernel
                    .nearest_words(words, stretches, query, k, bound, &mut near);
            }
            _ => self
                .kernel
                .near_words(words, stretches, query, bound, &mut near),
        }
        if let Some(late) = &mut finds.late {
            for near in near.drain(..) {
                let row = near.place() as usize;
                if near.distance() > late.bound() {
                    continue;
                }
                if !membership.has_row(row) {
                    stats.filtered_out += 1;
                    continue;
                }
                self.rows.prefetch_doc(row);
                late.push(row, near.distance());
            }
        }
        NEAR.set(near);
        finds.settle_if_many(self.rows)
    }

    /// k-NN search, unless reading what is left after the query's own cluster takes longer than
    /// `limit_ns` of the bound which that cluster gave. False then, and `top` holds what was found.
    pub(crate) fn knn_within(
        &self,
        query: &HashCode,
        allowed: &Allowed<'_>,
        limit_ns: impl FnOnce(u32) -> f64,
        top: &mut TopK,
        stats: &mut SearchStats,
    ) -> Result<bool> {
        self.check(query)?;
        if top.is_closed() || self.rows.codes.is_empty() {
            stats.segments_cluster += 1;
            return Ok(true);
        }
        let mut membership = Membership::new(allowed);
        let mut finds = Finds::new(top, self.rows, &membership);
        let seeded = self.seed(query, &mut membership, &mut finds, stats)?;
        let left_ns = self.price(&seeded, stats);
        let goes_on = left_ns <= limit_ns(finds.bound());
        match goes_on {
            true => {
                stats.segments_cluster += 1;
                self.finish(query, &mut membership, &seeded, &mut finds, stats)?;
            }
            false => stats.fell_back += 1,
        }
        DISTANCES.set(seeded.distances);
        finds.end(self.rows)?;
        Ok(goes_on)
    }

    /// Range search, unless it takes longer than `limit_ns`. False then, and nothing is found.
    pub(crate) fn range_within(
        &self,
        query: &HashCode,
        radius: u32,
        allowed: &Allowed<'_>,
        limit_ns: f64,
        found: &mut Vec<Neighbor>,
        stats: &mut SearchStats,
    ) -> Result<bool> {
        self.check(query)?;
        let radius = radius.min(query.code_len().bits() as u32);
        let mut seeded = self.begin(query, stats);
        self.find_left(&mut seeded, radius)?;
        if self.price(&seeded, stats) > limit_ns {
            stats.fell_back += 1;
            return Ok(false);
        }
        stats.segments_cluster += 1;
        self.read_range(query, radius, allowed, &seeded, found, stats)?;
        DISTANCES.set(seeded.distances);
        Ok(true)
    }

    fn begin(&self, query: &HashCode, stats: &mut SearchStats) -> Seeded {
        Seeded {
            distances: self.centroid_distances(query, stats),
            left: Vec::new(),
            n_rows: 0,
        }
    }

    /// What reading the rest takes, in ns.
    fn price(&self, seeded: &Seeded, stats: &mut SearchStats) -> f64 {
        let left_ns = plan::stretches_ns(self.rows.codes, (seeded.left.len(), seeded.n_rows));
        stats.predicted_cluster_ns += left_ns as u64;
        left_ns
    }

    /// What the scan takes, at which an engine that was asked for by name gives up.
    fn fallback_ns(&self) -> f64 {
        match self.fallback {
            true => plan::full_scan_ns(self.rows.codes),
            false => f64::INFINITY,
        }
    }

    /// Range search of the clusters that were found.
    fn read_range(
        &self,
        query: &HashCode,
        radius: u32,
        allowed: &Allowed<'_>,
        seeded: &Seeded,
        found: &mut Vec<Neighbor>,
        stats: &mut SearchStats,
    ) -> Result<()> {
        let mut membership = Membership::new(allowed);
        let start = found.len();
        for (idx, &stretch) in seeded.left.iter().enumerate() {
            if let Some(next) = seeded.left.get(idx + PREFETCH_CLUSTERS) {
                prefetch_rows(self.rows.codes, next.rows());
            }
            let rows = stretch.rows();
            self.read(
                query,
                rows,
                radius,
                &mut membership,
                stats,
                &mut |distance, doc| {
                    let address = self.rows.address(doc);
                    found.push(Neighbor { distance, address });
                    Some(radius)
                },
            )?;
        }
        found[start..].sort_unstable_by_key(|neighbor| neighbor.address);
        Ok(())
    }
}

/// How many clusters ahead the codes are asked for.
const PREFETCH_CLUSTERS: usize = 2;

impl Engine for ClusterSearch<'_> {
    fn kind(&self) -> EngineKind {
        EngineKind::Cluster
    }

    fn knn(
        &self,
        query: &HashCode,
        allowed: &Allowed<'_>,
        top: &mut TopK,
        stats: &mut SearchStats,
    ) -> Result<()> {
        let limit_ns = self.fallback_ns();
        if self.knn_within(query, allowed, |_| limit_ns, top, stats)? {
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
        if self.range_within(query, radius, allowed, self.fallback_ns(), found, stats)? {
            return Ok(());
        }
        LinearScan::new(self.rows)
            .with_kernel(self.kernel)
            .range(query, radius, allowed, found, stats)
    }
}

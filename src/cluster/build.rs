//! Clusters from codes: k-majority, which is k-means for bits.
//!
//! Centroids are learned from a sample, then every code goes to its nearest. A code that a coarser
//! assignment put elsewhere would lie in a far shell of a strange cluster, where nearly every search
//! would meet it: with two levels of centers a fifth of the codes did, and searches read six times as
//! much. So each code is compared with each centroid, which the kernel makes cheap enough. The number of
//! clusters grows with the square root of the codes, where the distances to all centroids and the codes
//! of one cluster take about equally long.

use std::ops::Deref;

use crate::cluster::ClusterView;
use crate::code::{CodeLen, Codes, CodesRef, HashCode};
use crate::engine::{Allowed, SearchStats, SegmentRows};
use crate::error::{ErrorKind, Result};
use crate::hamming::{Kernel, Nearest};
use crate::mih::{MihParams, suits_copies};
use crate::plan;
use crate::random;
use crate::scan::LinearScan;
use crate::topk::TopK;

/// How clusters are made. The defaults suit; tests and experiments differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterParams {
    /// The number of clusters wanted; fewer come out where codes coincide.
    pub n_clusters: usize,
    /// Codes looked at to learn the centroids.
    pub sample_size: usize,
    /// Rounds of assigning the sample and moving the centroids.
    pub n_rounds: usize,
    /// Seed of the sample.
    pub seed: u64,
}

/// The most clusters: 16 bits would number more, but distances to all centroids are part of every search.
const CLUSTERS_MAX: usize = 1 << 14;

/// Sampled codes for each cluster.
const SAMPLE_PER_CLUSTER: usize = 48;

/// Codes tried as queries to see which clusters pay, and whether any do.
const TRIAL_QUERIES: usize = 64;

/// Clusters are kept if a search for the ten nearest is expected to take at most this share of the
/// time of a linear scan.
const TRIAL_COST_MAX: f64 = 0.40;

/// The nearest codes a trial asks for; one more than a search does, as the query itself is among them.
const TRIAL_K: usize = 11;

impl ClusterParams {
    /// The parameters for `n_codes` codes.
    pub fn choose(n_codes: usize) -> ClusterParams {
        let n_clusters = (2.0 * (n_codes as f64).sqrt()) as usize;
        let n_clusters = n_clusters.clamp(1, CLUSTERS_MAX);
        ClusterParams {
            n_clusters,
            sample_size: n_clusters * SAMPLE_PER_CLUSTER,
            n_rounds: 4,
            seed: 3141592653589793238,
        }
    }
}

/// Clusters, and the order of rows that they ask for.
#[derive(Clone, Debug)]
pub struct Clusters {
    centroids: Codes,
    extents: Vec<u32>,
    starts: Vec<u32>,
    shells: Vec<u32>,
    /// For each row to be, the row it is now.
    order: Vec<u32>,
}

impl Clusters {
    /// Clusters of `codes`. `first_centroids`, if there are any, are where learning starts: the centers
    /// of a model, or of the segments that are merged.
    ///
    /// Takes about 24 bytes a code beside the codes while it works.
    ///
    /// # Errors
    /// `CodeLenMismatch` for first centroids of another length; `Unsupported` for 2^32 codes or more.
    pub fn build(
        codes: CodesRef<'_>,
        first_centroids: Option<CodesRef<'_>>,
        params: &ClusterParams,
    ) -> Result<Clusters> {
        let centroids = learn(codes, first_centroids, params)?;
        Ok(Clusters::from_centroids(codes, &centroids))
    }

    /// Clusters of `codes` in the number that suits them best: as many as `params` says, a half or a
    /// quarter. `None` if no number promises to make searches faster than the linear scan and multi-index
    /// hashing: uniformly random codes, for one, have no clusters to find.
    ///
    /// # Errors
    /// As `build`.
    pub fn build_if_useful(
        codes: CodesRef<'_>,
        first_centroids: Option<CodesRef<'_>>,
        params: &ClusterParams,
    ) -> Result<Option<Clusters>> {
        let trial = Trial::new(codes, params)?;
        let mut best: Option<(f64, Codes)> = None;
        for share in [4, 2, 1] {
            let params = ClusterParams {
                n_clusters: (params.n_clusters / share).max(1),
                sample_size: params.sample_size / share,
                ..params.clone()
            };
            let centroids = learn(codes, first_centroids, &params)?;
            let cost_ns = trial.cost_ns(codes, &centroids);
            if best
                .as_ref()
                .is_none_or(|&(least_ns, _)| cost_ns < least_ns)
            {
                best = Some((cost_ns, centroids));
            }
        }
        let best = best.filter(|&(cost_ns, _)| cost_ns <= trial.other_ns);
        Ok(best.map(|(_, centroids)| Clusters::from_centroids(codes, &centroids)))
    }

    /// Assigns every code to one of these centroids and sorts.
    fn from_centroids(codes: CodesRef<'_>, centroids: &Codes) -> Clusters {
        let len = codes.code_len();
        let assigned = assign(codes, centroids.as_ref());
        // Rows are counted and placed by (cluster, distance); they keep their order within a shell.
        let n_shells = len.bits() + 1;
        let mut counts = vec![0u32; centroids.n_codes() * n_shells];
        // Codes of a damaged file may have bits past their length, and be farther than any code can be.
        let slot = |nearest: &Nearest| {
            nearest.center as usize * n_shells + (nearest.distance as usize).min(len.bits())
        };
        for nearest in &assigned {
            counts[slot(nearest)] += 1;
        }
        let mut clusters = Clusters {
            centroids: Codes::new(len),
            extents: Vec::new(),
            starts: vec![0],
            shells: Vec::new(),
            order: vec![0; codes.n_codes()],
        };
        let mut next_row = 0;
        for (cluster, counts) in counts.chunks_exact_mut(n_shells).enumerate() {
            let Some(first) = counts.iter().position(|&count| count > 0) else {
                continue;
            };
            let last = counts.iter().rposition(|&count| count > 0).unwrap_or(first);
            clusters.centroids.push_row(centroids, cluster);
            clusters.extents.push(first as u32 | (last as u32) << 16);
            for count in &mut counts[first..=last] {
                clusters.shells.push(next_row);
                // From here on the count is the place of the shell's next row.
                next_row += std::mem::replace(count, next_row);
            }
            clusters.shells.push(next_row);
            clusters.starts.push(clusters.shells.len() as u32);
        }
        for (row, nearest) in (0..).zip(&assigned) {
            let place = &mut counts[slot(nearest)];
            clusters.order[*place as usize] = row;
            *place += 1;
        }
        clusters
    }

    /// The tables, borrowed.
    pub fn view(&self) -> ClusterView<'_> {
        ClusterView::new(
            self.centroids.as_ref(),
            &self.extents,
            &self.starts,
            &self.shells,
        )
        .expect("as many extents and starts as centroids")
    }

    /// The extents, the starts and the shells, as [`ClusterView::new`] takes them.
    pub fn tables(&self) -> [&[u32]; 3] {
        [&self.extents, &self.starts, &self.shells]
    }

    /// For each row to be, the row it is now.
    pub fn order(&self) -> &[u32] {
        &self.order
    }
}

/// Some of the codes as queries, to foresee what searches of all codes will cost.
struct Trial {
    queries: Vec<HashCode>,
    /// The distance of each query's k-th nearest of all codes.
    bounds: Vec<u32>,
    sample: Codes,
    /// What a search costs at most for clusters to be worth it, in ns.
    other_ns: f64,
}

impl Trial {
    fn new(codes: CodesRef<'_>, params: &ClusterParams) -> Result<Trial> {
        let rows = random::sample(codes.n_codes(), TRIAL_QUERIES, params.seed, 20);
        let queries: Vec<HashCode> = rows.iter().map(|&row| codes.get(row as usize)).collect();
        let mut tops = vec![TopK::new(TRIAL_K, u32::MAX); queries.len()];
        let mut stats = SearchStats::default();
        LinearScan::new(&SegmentRows::of(codes)).knn_batch(
            &queries,
            &Allowed::All,
            &mut tops,
            &mut stats,
        )?;
        let bounds: Vec<u32> = tops.iter().map(TopK::bound).collect();
        let sample = sample(codes, params.sample_size / 2, params.seed, 21);
        let mih_ns = match suits_copies(codes.code_len()) {
            true => copies_ns(codes, &sample, &queries, &bounds),
            false => {
                let mih = MihParams::choose(codes.code_len(), codes.n_codes());
                let of_bound = |&bound| plan::uniform_mih_ns(&mih, codes.n_codes(), bound);
                bounds.iter().map(of_bound).sum::<f64>() / bounds.len().max(1) as f64
            }
        };
        Ok(Trial {
            queries,
            bounds,
            sample,
            other_ns: mih_ns.min(TRIAL_COST_MAX * plan::nominal_scan_ns(codes)),
        })
    }

    /// The mean cost of a k-NN search by clusters about these centroids, in ns.
    fn cost_ns(&self, codes: CodesRef<'_>, centroids: &Codes) -> f64 {
        let clusters = Clusters::from_centroids(self.sample.as_ref(), centroids);
        let view = clusters.view();
        let mut distances = vec![0; view.n_clusters()];
        let (mut n_stretches, mut n_rows) = (0, 0);
        for (query, &bound) in self.queries.iter().zip(&self.bounds) {
            Kernel::best().distances(view.centroids(), query.words(), &mut distances);
            for cluster in view.within(Kernel::best(), &distances, bound) {
                let distance = distances[cluster as usize];
                let rows = view.rows(
                    cluster as usize,
                    distance.saturating_sub(bound),
                    distance + bound,
                );
                n_stretches += 1;
                n_rows += rows.map_or(0, |rows| rows.len());
            }
        }
        let n_queries = self.queries.len().max(1);
        let per_sample = codes.n_codes() as f64 / self.sample.n_codes().max(1) as f64;
        let n_rows = n_rows as f64 * per_sample / n_queries as f64;
        let left = (n_stretches / n_queries, n_rows as usize);
        plan::nominal_cluster_ns(codes, view.centroids(), left)
    }
}

/// The mean cost of a k-NN search by multi-index hashing with copies of the codes, in ns.
fn copies_ns(codes: CodesRef<'_>, sample: &Codes, queries: &[HashCode], bounds: &[u32]) -> f64 {
    let params = MihParams::fit_copies(codes);
    let (mut n_lookups, mut n_met) = (0, 0);
    for (query, &bound) in queries.iter().zip(bounds) {
        n_lookups += u64::from(params.n_lookups(bound));
        for row in 0..sample.n_codes() {
            let differing = sample.word(row, 0) ^ query.words()[0];
            n_met += u64::from(params.n_meetings(&[differing], bound));
        }
    }
    let per_query = 1.0 / queries.len().max(1) as f64;
    let per_sample = codes.n_codes() as f64 / sample.n_codes().max(1) as f64 * per_query;
    plan::nominal_copies_ns(n_lookups as f64 * per_query, n_met as f64 * per_sample)
}

/// A random sample, in row order; everything if there is no more.
fn sample(codes: CodesRef<'_>, size: usize, seed: u64, stream: u64) -> Codes {
    gather(codes, random::sample(codes.n_codes(), size, seed, stream))
}

fn gather<D: Deref<Target = [u64]>>(codes: Codes<D>, rows: impl IntoIterator<Item = u32>) -> Codes {
    let rows = rows.into_iter();
    let mut gathered = Codes::with_capacity(codes.code_len(), rows.size_hint().0);
    rows.for_each(|row| gathered.push_row(&codes, row as usize));
    gathered
}

/// Centroids from a sample of the codes.
fn learn(
    codes: CodesRef<'_>,
    first_centroids: Option<CodesRef<'_>>,
    params: &ClusterParams,
) -> Result<Codes> {
    if u32::try_from(codes.n_codes()).is_err() {
        return Err(ErrorKind::Unsupported(format!(
            "clusters number rows in 32 bits, got {} codes; use more segments",
            codes.n_codes()
        ))
        .into());
    }
    let sample = sample(codes, params.sample_size, params.seed, 0);
    let n_clusters = params
        .n_clusters
        .clamp(1, CLUSTERS_MAX)
        .min(sample.n_codes());
    let mut centroids = Codes::new(codes.code_len());
    if sample.is_empty() {
        return Ok(centroids);
    }
    if let Some(first) = first_centroids {
        codes.code_len().check(first.code_len())?;
        // Of more than are wanted those are taken that lie well apart.
        seed_centers(first, &mut centroids, n_clusters, params.seed);
    }
    // Centroids that were learned before need little more than to be told of what is new.
    let n_rounds = match centroids.n_codes() < n_clusters {
        true => params.n_rounds,
        false => params.n_rounds.min(2),
    };
    seed_centers(sample.as_ref(), &mut centroids, n_clusters, params.seed);
    for _ in 0..n_rounds {
        let assigned = assign(sample.as_ref(), centroids.as_ref());
        centroids = majorities(sample.as_ref(), &assigned, centroids.n_codes());
    }
    Ok(centroids)
}

/// Batches in which first centers are drawn.
const SEED_BATCHES: usize = 5;

/// Draws centers from the codes until there are `n_centers`: in batches, a code as likely as the square
/// of its distance to the nearest center so far. Bahmani et al., *Scalable K-Means++*, 2012. Drawn all at
/// once, they would miss every seventh of the clusters that are half as many as they.
fn seed_centers(codes: CodesRef<'_>, centers: &mut Codes, n_centers: usize, seed: u64) {
    if codes.n_codes() <= n_centers && centers.is_empty() {
        *centers = gather(codes, 0..codes.n_codes() as u32);
        return;
    }
    if centers.is_empty() {
        *centers = sample(codes, n_centers.div_ceil(SEED_BATCHES), seed, 3);
    }
    for batch in 0..SEED_BATCHES {
        let missing = n_centers - centers.n_codes();
        if missing == 0 {
            break;
        }
        let n_drawn = missing.div_ceil(SEED_BATCHES - batch);
        let assigned = assign(codes, centers.as_ref());
        let weight = |nearest: &Nearest| u64::from(nearest.distance).pow(2);
        let total: u64 = assigned.iter().map(weight).sum();
        if total == 0 {
            break;
        }
        // Points at even distances along all weights end to end, from a random start.
        let step = total as f64 / n_drawn as f64;
        let start = random::uniform(seed, 4 + batch as u64) * step;
        let (mut drawn, mut sum) = (0, 0);
        for (row, nearest) in assigned.iter().enumerate() {
            sum += weight(nearest);
            if sum as f64 > start + drawn as f64 * step && drawn < n_drawn {
                centers.push_row(&codes, row);
                while drawn < n_drawn && sum as f64 > start + drawn as f64 * step {
                    drawn += 1;
                }
            }
        }
    }
}

/// The majority of the codes assigned to each center, bit by bit; a tie gives 0. A center with no code
/// moves to the code that is farthest from its own.
fn majorities(codes: CodesRef<'_>, assigned: &[Nearest], n_centers: usize) -> Codes {
    let len = codes.code_len();
    let words = len.words();
    let mut members = vec![0u32; n_centers + 1];
    for nearest in assigned {
        members[nearest.center as usize + 1] += 1;
    }
    for center in 0..n_centers {
        members[center + 1] += members[center];
    }
    let mut rows = vec![0u32; assigned.len()];
    let mut places = members.clone();
    for (row, nearest) in (0..).zip(assigned) {
        let place = &mut places[nearest.center as usize];
        rows[*place as usize] = row;
        *place += 1;
    }
    let mut outliers: Vec<u32> = Vec::new();
    let n_empty = members.windows(2).filter(|pair| pair[0] == pair[1]).count();
    if n_empty > 0 {
        outliers = (0..assigned.len() as u32).collect();
        let farthest_first = |&row: &u32| std::cmp::Reverse(assigned[row as usize].distance);
        if n_empty < outliers.len() {
            outliers.select_nth_unstable_by_key(n_empty, farthest_first);
            outliers.truncate(n_empty);
        }
    }
    let mut outliers = outliers.into_iter();
    let mut counter = BitCounter::new(len);
    let mut centers = Codes::with_capacity(len, n_centers);
    for center in 0..n_centers {
        let rows = &rows[members[center] as usize..members[center + 1] as usize];
        if rows.is_empty() {
            match outliers.next() {
                Some(row) => centers.push_row(&codes, row as usize),
                None => centers.push_words(&vec![0; words]),
            }
            continue;
        }
        for &row in rows {
            counter.add(|word_idx| codes.word(row as usize, word_idx));
        }
        centers.push_words(counter.majority());
        counter.clear();
    }
    centers
}

/// Counts set bits by place.
struct BitCounter {
    totals: Vec<u32>,
    n_codes: u32,
    majority: Vec<u64>,
}

impl BitCounter {
    fn new(len: CodeLen) -> BitCounter {
        BitCounter {
            totals: vec![0; len.words() * 64],
            n_codes: 0,
            majority: vec![0; len.words()],
        }
    }

    fn add(&mut self, word: impl Fn(usize) -> u64) {
        self.n_codes += 1;
        for (word_idx, totals) in self.totals.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            let word = word(word_idx);
            for (bit, total) in totals.iter_mut().enumerate() {
                *total += (word >> bit & 1) as u32;
            }
        }
    }

    fn majority(&mut self) -> &[u64] {
        for (word_idx, totals) in self.totals.as_chunks::<64>().0.iter().enumerate() {
            self.majority[word_idx] = (0..64)
                .filter(|&bit| 2 * totals[bit] > self.n_codes)
                .fold(0, |word, bit| word | 1 << bit);
        }
        &self.majority
    }

    fn clear(&mut self) {
        self.totals.fill(0);
        self.n_codes = 0;
    }
}

/// The center nearest to each code.
fn assign(codes: CodesRef<'_>, centers: CodesRef<'_>) -> Vec<Nearest> {
    let none = Nearest {
        center: 0,
        distance: 0,
    };
    let mut assigned = vec![none; codes.n_codes()];
    Kernel::best().nearest(codes, centers, &mut assigned);
    assigned
}

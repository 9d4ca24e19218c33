//! Which engine will be faster: a cost model of a few constants, in nanoseconds.
//!
//! A wrong number here costs time, never an answer. The constants were measured on one core of a server
//! CPU (`benches/hamming.rs` prints them anew); what scans and walks through tables take is remembered from
//! those of this process, because machines differ most in their memory. Range search is priced before it starts:
//! by clusters exactly, from the tables of shells. k-NN search cannot be, as its radius is what is sought:
//! where there are clusters the query's own gives a radius to price everything at, and multi-index hashing
//! alone starts and is priced as it goes ([`MultiIndex`](crate::mih::MultiIndex)).

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::cluster::SEED_CLUSTERS;
use crate::code::CodesRef;
use crate::engine::{Allowed, EngineChoice, EngineKind, SegmentRows};
use crate::hamming::Kernel;
use crate::mih::{MihForm, MihParams, MihView, shell_size};

/// Scanning one 64-bit word of a code with AVX-512, by the size of all codes in bytes, up to which
/// they are taken to lie in the second-level cache, in a near or a far part of the third, in memory.
/// Servers differ by a factor of four in the middle rows; these lie between those measured.
const SCAN_NS_PER_WORD: [(usize, f64); 4] = [
    (1 << 20, 0.06),
    (16 << 20, 0.11),
    (64 << 20, 0.18),
    (usize::MAX, 0.28),
];

/// The least an instruction set needs for one word, whatever the memory.
const AVX2_NS_PER_WORD: f64 = 0.18;
const SCALAR_NS_PER_WORD: f64 = 0.60;

/// One word for each query of a batch, once the word is in the first-level cache.
const AVX512_BATCH_NS_PER_WORD: f64 = 0.04;
const AVX2_BATCH_NS_PER_WORD: f64 = 0.17;

/// Copying a listed row, beside fetching it.
const COPY_NS: f64 = 6.0;

/// Work that no scan avoids.
const SCAN_NS: f64 = 100.0;

/// Comparing a word of a row on its own: its cache line is asked for in time, but it needs its own.
const GATHER_NS_PER_WORD: f64 = 1.3;

/// Looking at one cluster's extent, beside the distance to its centroid.
const CENTROID_NS: f64 = 0.4;

/// Asking whether a row of a cluster is in a list: its rank, and a search of the list.
const ASK_LISTED_NS: f64 = 60.0;

/// Asking whether a row is in a set of rows.
const ASK_ROW_NS: f64 = 3.0;

/// A stretch of rows at a place of its own: finding it, and the wait for its first cache lines.
const STRETCH_NS: f64 = 45.0;

/// One lookup: an offset pair and the start of a list of rows, each a cache miss in a large table.
const LOOKUP_NS: f64 = 13.0;

/// One candidate: a row number out of a bucket, and the row.
const CANDIDATE_NS: f64 = 14.0;
const CANDIDATE_NS_PER_WORD: f64 = 1.0;

/// One lookup in a table with copies of the codes: an offset pair of a table that lies in a cache, the start of a
/// stretch of codes, and its end. One of those codes, in sequence.
const COPIED_LOOKUP_NS: f64 = 20.0;
const COPIED_NS: f64 = 0.6;

/// One match read out of a filter's scorer; one of a single term, whose postings come in blocks, into a
/// list and into a set.
const MATCH_NS: f64 = 2.2;
const TERM_LIST_NS: f64 = 0.3;
const TERM_SET_NS: f64 = 0.9;

/// One near row that a filter's scorer is asked about: its place in a longer list, and a block of
/// postings to decode.
const ASK_NS: f64 = 300.0;

/// What the planner expects, in ns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// The linear scan, or the comparison of the listed rows alone if that is less.
    pub scan_ns: f64,
    /// Multi-index hashing, where the segment has tables. For k-NN search this supposes uniformly
    /// random codes.
    pub mih_ns: Option<f64>,
    /// A lower limit on multi-index hashing: what it takes whatever the codes are.
    pub mih_least_ns: f64,
    /// What cluster-pruned search takes before it can be priced, where the segment has clusters: the
    /// distances to the centroids, and a cluster.
    pub cluster_least_ns: Option<f64>,
}

/// Words of a code that a gather or a candidate reads: it stops early in wide codes.
fn words_read(words: usize) -> f64 {
    words.min(8) as f64
}

/// What something took in this process, by the rows of [`SCAN_NS_PER_WORD`]: each an `f32`'s bits, 0 until
/// it was done once.
struct Observed([AtomicU32; SCAN_NS_PER_WORD.len()]);

impl Observed {
    const fn nothing() -> Observed {
        Observed([const { AtomicU32::new(0) }; SCAN_NS_PER_WORD.len()])
    }

    fn get(&self, level: usize) -> Option<f64> {
        let value = f32::from_bits(self.0[level].load(Ordering::Relaxed));
        (value > 0.0).then_some(f64::from(value))
    }

    fn set(&self, level: usize, value: f64) {
        self.0[level].store((value as f32).to_bits(), Ordering::Relaxed);
    }

    /// Moves what is remembered towards this, or remembers it; `untried` was expected until then. Lost updates do no
    /// harm.
    fn add(&self, level: usize, value: f64, untried: f64) {
        // One that met cold memory, or was held up by other work, must not count for too much.
        let before = self.get(level);
        let value = value.min(before.unwrap_or(untried) * OUTLIER);
        let moved = before.map_or(value, |before| before + NEWEST * (value - before));
        self.set(level, moved);
    }
}

/// Linear scans, in ns a word.
static SCANS: Observed = Observed::nothing();

/// Walks through the tables of multi-index hashing, as shares of what the constants say.
static WALKS: Observed = Observed::nothing();

/// Those through tables with copies of the codes.
static COPY_WALKS: Observed = Observed::nothing();

/// The share of the newest in what is remembered.
const NEWEST: f64 = 0.25;

/// What is remembered moves as if the newest had taken no more than this many times as long.
const OUTLIER: f64 = 3.0;

/// Until there was a walk, one is taken to cost this share of what the constants say: too little rather than
/// too much, for a walk that is never taken teaches nothing.
const WALK_UNTRIED: f64 = 0.5;

/// Each time that a walk is not worth it, what is remembered falls by this share, so that it is tried
/// again some day: the last one may have met cold memory.
const WALK_FORGETS: f64 = 0.004;

/// What is remembered is not believed beyond this many times what the constants say: it would come from cold memory
/// or other work, and what is taken to be dear is not tried, so not corrected. A server was seen that takes more
/// than four times.
const BELIEVED: f64 = 16.0;

/// A walk of fewer lookups and candidates than this is over too soon to be timed; one among copies of codes
/// that takes fewer lookups.
const OBSERVED_STEPS_MIN: u64 = 8192;
const OBSERVED_LOOKUPS_MIN: u64 = 256;

/// Scans of fewer words than this are over too soon to be timed.
const OBSERVED_WORDS_MIN: usize = 1 << 14;

fn memory_level(codes: CodesRef<'_>) -> usize {
    let bytes = codes.blocks().len() * 8;
    SCAN_NS_PER_WORD
        .iter()
        .position(|(bytes_max, _)| bytes <= *bytes_max)
        .unwrap_or(SCAN_NS_PER_WORD.len() - 1)
}

/// True if [`observe_scan`] would learn from a scan of all these codes.
pub(crate) fn is_worth_timing(codes: CodesRef<'_>) -> bool {
    codes.blocks().len() >= OBSERVED_WORDS_MIN
}

/// Remembers what a scan of all codes took, so that later plans know this machine.
pub(crate) fn observe_scan(codes: CodesRef<'_>, elapsed: Duration) {
    let per_word = elapsed.as_nanos() as f64 / codes.blocks().len() as f64;
    let level = memory_level(codes);
    SCANS.add(level, per_word, untried_scan_ns_per_word(level));
}

fn walks(form: MihForm) -> &'static Observed {
    match form {
        MihForm::Rows => &WALKS,
        MihForm::Codes => &COPY_WALKS,
    }
}

/// Remembers what a walk took.
pub(crate) fn observe_walk(
    codes: CodesRef<'_>,
    form: MihForm,
    (lookups, candidates): (u64, u64),
    elapsed: Duration,
) {
    let is_short = match form {
        MihForm::Rows => lookups + candidates < OBSERVED_STEPS_MIN,
        MihForm::Codes => lookups < OBSERVED_LOOKUPS_MIN,
    };
    if is_short {
        return;
    }
    let (lookup_ns, candidate_ns) = nominal_step_ns(codes.code_len().words(), form);
    let expected = lookups as f64 * lookup_ns + candidates as f64 * candidate_ns;
    let share = elapsed.as_nanos() as f64 / expected;
    walks(form).add(memory_level(codes), share, WALK_UNTRIED);
}

/// To be told where a walk was thought of and not taken.
pub(crate) fn forget_walk(codes: CodesRef<'_>, form: MihForm) {
    let level = memory_level(codes);
    if let Some(share) = walks(form).get(level)
        && share > WALK_UNTRIED
    {
        walks(form).set(level, share * (1.0 - WALK_FORGETS));
    }
}

/// What a walk among these codes takes, as a share of what the constants say.
fn walk_share(codes: CodesRef<'_>, form: MihForm) -> f64 {
    let share = walks(form).get(memory_level(codes)).unwrap_or(WALK_UNTRIED);
    share.clamp(1.0 / BELIEVED, BELIEVED)
}

/// The linear scan of one word by the constants, on this CPU.
fn untried_scan_ns_per_word(level: usize) -> f64 {
    let least = match Kernel::best().name() {
        "avx512" => 0.0,
        "avx2" | "neon" => AVX2_NS_PER_WORD,
        _ => SCALAR_NS_PER_WORD,
    };
    SCAN_NS_PER_WORD[level].1.max(least)
}

/// The linear scan over all rows.
pub(crate) fn full_scan_ns(codes: CodesRef<'_>) -> f64 {
    let level = memory_level(codes);
    let untried = untried_scan_ns_per_word(level);
    let per_word = match SCANS.get(level) {
        Some(observed) => observed.clamp(untried / BELIEVED, untried * BELIEVED),
        None => untried,
    };
    SCAN_NS + codes.blocks().len() as f64 * per_word
}

/// Comparing one word with each query of a batch, memory apart.
fn batch_ns_per_word() -> f64 {
    match Kernel::best().name() {
        "avx512" => AVX512_BATCH_NS_PER_WORD,
        "avx2" | "neon" => AVX2_BATCH_NS_PER_WORD,
        _ => SCALAR_NS_PER_WORD,
    }
}

/// The linear scan over all rows by `n_queries` queries at once.
pub(crate) fn scan_batch_ns(codes: CodesRef<'_>, n_queries: usize) -> f64 {
    let words = (codes.blocks().len() * n_queries) as f64;
    full_scan_ns(codes).max(SCAN_NS + words * batch_ns_per_word())
}

/// The comparison of `n_rows` rows, copied side by side, by `n_queries` queries at once.
pub(crate) fn gather_batch_ns(codes: CodesRef<'_>, n_rows: usize, n_queries: usize) -> f64 {
    let words = (codes.code_len().words() * n_rows * n_queries) as f64;
    gather_ns(codes, n_rows) + COPY_NS * n_rows as f64 + words * batch_ns_per_word()
}

/// The comparison of `n_rows` rows one by one.
pub(crate) fn gather_ns(codes: CodesRef<'_>, n_rows: usize) -> f64 {
    let n_words = n_rows as f64 * words_read(codes.code_len().words());
    SCAN_NS + n_words * GATHER_NS_PER_WORD
}

/// The scan engine under a filter, for `n_queries` queries at once.
pub(crate) fn batch_ns(codes: CodesRef<'_>, allowed: &Allowed<'_>, n_queries: usize) -> f64 {
    let scan_ns = scan_batch_ns(codes, n_queries);
    match allowed.n_listed() {
        Some(n_rows) => scan_ns.min(gather_batch_ns(codes, n_rows, n_queries)),
        None => scan_ns,
    }
}

/// Comparing the rows of scattered stretches: how many of those, and rows in all of them.
pub(crate) fn stretches_ns(codes: CodesRef<'_>, (n_stretches, n_rows): (usize, usize)) -> f64 {
    let row_ns = (full_scan_ns(codes) - SCAN_NS) / codes.n_codes().max(1) as f64;
    n_stretches as f64 * STRETCH_NS + n_rows as f64 * row_ns
}

/// The distances to all centroids, and the choice among them.
fn centroids_ns(centroids: CodesRef<'_>) -> f64 {
    full_scan_ns(centroids) + centroids.n_codes() as f64 * CENTROID_NS
}

/// The linear scan by the constants alone, the same on every machine: what is stored in files must not
/// depend on the one that writes them.
pub(crate) fn nominal_scan_ns(codes: CodesRef<'_>) -> f64 {
    SCAN_NS + codes.blocks().len() as f64 * SCAN_NS_PER_WORD[memory_level(codes)].1
}

/// Cluster-pruned search by the constants alone, given the stretches it reads.
pub(crate) fn nominal_cluster_ns(
    codes: CodesRef<'_>,
    centroids: CodesRef<'_>,
    (n_stretches, n_rows): (usize, usize),
) -> f64 {
    let row_ns = nominal_scan_ns(codes) / codes.n_codes().max(1) as f64;
    nominal_scan_ns(centroids)
        + centroids.n_codes() as f64 * CENTROID_NS
        + n_stretches as f64 * STRETCH_NS
        + n_rows as f64 * row_ns
}

/// Multi-index hashing within a bound, of codes that are spread evenly.
pub(crate) fn uniform_mih_ns(params: &MihParams, n_codes: usize, bound: u32) -> f64 {
    balls_of_ns(params, MihForm::Rows, n_codes, bound as usize)
}

/// Multi-index hashing with copies of the codes, given the buckets it looks up and the codes it compares.
pub(crate) fn nominal_copies_ns(n_lookups: f64, n_candidates: f64) -> f64 {
    n_lookups * COPIED_LOOKUP_NS + n_candidates * COPIED_NS
}

/// Multi-index hashing within a bound that is already known to hold enough codes.
pub(crate) fn bounded_mih_ns(codes: CodesRef<'_>, view: &MihView<'_>, bound: u32) -> f64 {
    balls_ns(codes, view, bound as usize)
}

/// Whether the scan engine compares `n_rows` rows one by one rather than all of them.
pub(crate) fn gathers(codes: CodesRef<'_>, n_rows: usize) -> bool {
    gather_ns(codes, n_rows) < full_scan_ns(codes)
}

/// Reading out a filter of about `n_docs` documents and searching among them. `cost` is what reading
/// them out is like, in documents of a term read one by one.
pub(crate) fn read_out_ns(codes: CodesRef<'_>, n_docs: usize, cost: u64, is_term: bool) -> f64 {
    let match_ns = match is_term {
        false => MATCH_NS,
        true if gathers(codes, n_docs) => TERM_LIST_NS,
        true => TERM_SET_NS,
    };
    cost as f64 * match_ns + full_scan_ns(codes).min(gather_ns(codes, n_docs))
}

/// Searching without a filter and asking it about the nearest `n_rows`.
pub(crate) fn ask_ns(codes: CodesRef<'_>, n_rows: usize) -> f64 {
    full_scan_ns(codes) + n_rows as f64 * ASK_NS
}

/// How many of the nearest rows to ask a filter about that lets this share pass, so that k pass: the mean
/// and three standard deviations.
pub(crate) fn ring(k: usize, share: f64) -> usize {
    let k = k as f64;
    let deviation = (k * (1.0 - share).max(0.0)).sqrt();
    // A cast saturates: where nothing passes, all rows are asked about.
    ((k + 3.0 * deviation + 1.0) / share.max(0.0)) as usize
}

/// One lookup in the tables of these codes, and one candidate, in ns.
pub(crate) fn step_ns(codes: CodesRef<'_>, form: MihForm) -> (f64, f64) {
    let share = walk_share(codes, form);
    let (lookup_ns, candidate_ns) = nominal_step_ns(codes.code_len().words(), form);
    (share * lookup_ns, share * candidate_ns)
}

fn nominal_step_ns(words: usize, form: MihForm) -> (f64, f64) {
    match form {
        MihForm::Rows => {
            let candidate_ns = CANDIDATE_NS + CANDIDATE_NS_PER_WORD * words_read(words);
            (LOOKUP_NS, candidate_ns)
        }
        MihForm::Codes => (COPIED_LOOKUP_NS, COPIED_NS),
    }
}

/// The scan engine under a filter: a short list is gathered.
pub(crate) fn scan_ns(codes: CodesRef<'_>, allowed: &Allowed<'_>) -> f64 {
    match allowed.n_listed() {
        Some(n_rows) => full_scan_ns(codes).min(gather_ns(codes, n_rows)),
        None => full_scan_ns(codes),
    }
}

/// One shell of one table if codes are spread evenly: its lookups and the candidates they bring.
pub(crate) fn shell_ns(
    codes: CodesRef<'_>,
    view: &MihView<'_>,
    substring_idx: usize,
    substring_radius: usize,
) -> f64 {
    let (params, form) = (view.params(), view.form());
    let shell = (substring_idx, substring_radius);
    walk_share(codes, form) * shell_of_ns(params, form, codes.n_codes(), shell)
}

/// Asking whether each code of a shell is allowed, where copies of the codes tell nothing of their rows.
pub(crate) fn ask_shell_ns(
    view: &MihView<'_>,
    substring_idx: usize,
    substring_radius: usize,
) -> f64 {
    let width = view.params().width(substring_idx);
    let bucket_size = view.n_codes() as f64 / (1u64 << width) as f64;
    match view.form() {
        MihForm::Rows => 0.0,
        MihForm::Codes => {
            f64::from(shell_size(width, substring_radius)) * bucket_size * CANDIDATE_NS
        }
    }
}

fn shell_of_ns(
    params: &MihParams,
    form: MihForm,
    n_codes: usize,
    (substring_idx, substring_radius): (usize, usize),
) -> f64 {
    let width = params.width(substring_idx);
    let bucket_size = n_codes as f64 / (1u64 << width) as f64;
    let (lookup_ns, candidate_ns) = nominal_step_ns(params.code_len().words(), form);
    f64::from(shell_size(width, substring_radius)) * (lookup_ns + bucket_size * candidate_ns)
}

/// All balls that a range search of `radius` visits.
fn balls_ns(codes: CodesRef<'_>, view: &MihView<'_>, radius: usize) -> f64 {
    let form = view.form();
    walk_share(codes, form) * balls_of_ns(view.params(), form, view.n_codes(), radius)
}

fn balls_of_ns(params: &MihParams, form: MihForm, n_codes: usize, radius: usize) -> f64 {
    let mut ns = 0.0;
    for substring_idx in 0..params.n_substrings() {
        if let Some(ball_radius) = params.substring_radius(substring_idx, radius) {
            ns += (0..=ball_radius)
                .map(|shell| shell_of_ns(params, form, n_codes, (substring_idx, shell)))
                .sum::<f64>();
        }
    }
    ns
}

/// The least distance within which k of n uniformly random codes are expected, so that in about half of the draws or
/// more the k-th is no farther; at most half of the bits.
pub(crate) fn kth_random_distance(bits: usize, n_codes: usize, k: usize) -> usize {
    let wanted = k.max(1) as f64 / n_codes.max(1) as f64;
    // The shares of codes at one distance after the other. At 1,024 bits the first is below what numbers
    // of full precision reach, but is a power of two.
    let mut share = 0.5f64.powi(bits as i32);
    let mut within = share;
    let mut distance = 0;
    while within < wanted && distance < bits / 2 {
        share *= (bits - distance) as f64 / (distance + 1) as f64;
        distance += 1;
        within += share;
    }
    distance
}

/// The distance of the k-th allowed code if codes are spread evenly.
pub(crate) fn expected_distance(codes: CodesRef<'_>, allowed: &Allowed<'_>, k: usize) -> usize {
    let n_allowed = allowed.n_at_most().unwrap_or(codes.n_codes());
    kth_random_distance(codes.code_len().bits(), n_allowed, k)
}

/// Prices a k-NN search of one segment.
pub fn knn_costs(rows: &SegmentRows<'_>, allowed: &Allowed<'_>, k: usize) -> Costs {
    let codes = rows.codes;
    let mut costs = Costs {
        scan_ns: scan_ns(codes, allowed),
        mih_ns: None,
        mih_least_ns: f64::INFINITY,
        cluster_least_ns: cluster_least_ns(rows),
    };
    if let (Some(view), Some(least_ns), Some(n_allowed)) = (
        &rows.clusters,
        &mut costs.cluster_least_ns,
        allowed.n_at_most(),
    ) {
        // Until k allowed rows are met, every row is near enough to be asked about.
        let share = n_allowed.max(1) as f64 / codes.n_codes().max(1) as f64;
        let mut n_asked = k as f64 / share;
        let cluster_rows = codes.n_codes() as f64 / view.n_clusters().max(1) as f64;
        let is_doubtful = n_asked > cluster_rows / 2.0;
        if is_doubtful {
            n_asked = n_asked.max(SEED_CLUSTERS as f64 * cluster_rows);
        }
        let ask_ns = match allowed {
            Allowed::Rows(_) => ASK_ROW_NS,
            _ => ASK_LISTED_NS,
        };
        *least_ns += ask_ns * n_asked.min(codes.n_codes() as f64);
        // Another engine may have the last word, and this one's time is lost.
        if is_doubtful {
            *least_ns *= 2.0;
        }
    }
    if let Some(view) = &rows.mih {
        let bits = codes.code_len().bits();
        let radius = kth_random_distance(bits, codes.n_codes(), k);
        // Candidates are met whether or not they are allowed.
        let n_allowed = allowed.n_at_most().unwrap_or(codes.n_codes());
        let n_allowed = n_allowed.clamp(1, codes.n_codes().max(1));
        let candidates_each = codes.n_codes() as f64 / n_allowed.max(1) as f64;
        let wanted = k.min(n_allowed) as f64 * candidates_each;
        let (lookup_ns, candidate_ns) = step_ns(codes, view.form());
        let least = lookup_ns + wanted * candidate_ns;
        costs.mih_ns = Some(balls_ns(codes, view, radius).max(least));
        costs.mih_least_ns = least;
    }
    costs
}

/// Prices a range search of one segment.
pub fn range_costs(rows: &SegmentRows<'_>, allowed: &Allowed<'_>, radius: u32) -> Costs {
    let codes = rows.codes;
    let mih_ns = rows
        .mih
        .as_ref()
        .map(|view| balls_ns(codes, view, codes.code_len().bits().min(radius as usize)));
    Costs {
        scan_ns: scan_ns(codes, allowed),
        mih_ns,
        mih_least_ns: mih_ns.unwrap_or(f64::INFINITY),
        cluster_least_ns: cluster_least_ns(rows),
    }
}

fn cluster_least_ns(rows: &SegmentRows<'_>) -> Option<f64> {
    let view = rows.clusters.as_ref()?;
    let n_rows = rows.codes.n_codes() / view.n_clusters().max(1);
    Some(centroids_ns(view.centroids()) + stretches_ns(rows.codes, (1, n_rows)))
}

/// The engine to start with.
pub fn choose(choice: EngineChoice, costs: &Costs) -> EngineKind {
    let cluster_ns = costs.cluster_least_ns.unwrap_or(f64::INFINITY);
    match choice {
        EngineChoice::Mih if costs.mih_ns.is_some() => EngineKind::Mih,
        EngineChoice::Cluster if costs.cluster_least_ns.is_some() => EngineKind::Cluster,
        EngineChoice::Auto if cluster_ns < costs.scan_ns => EngineKind::Cluster,
        EngineChoice::Auto if costs.mih_least_ns < costs.scan_ns => EngineKind::Mih,
        _ => EngineKind::Scan,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::{CodeLen, Codes};
    use crate::mih::{MihParams, MihTable};

    #[test]
    fn random_distances_are_those_of_the_binomial_distribution() {
        // From the binomial distribution in exact arithmetic: the least d with n F(d) >= k.
        assert_eq!(kth_random_distance(64, 500_000, 10), 16);
        assert_eq!(kth_random_distance(64, 1_000_000, 10), 15);
        assert_eq!(kth_random_distance(64, 10_000_000, 10), 14);
        assert_eq!(kth_random_distance(256, 10_000_000, 10), 90);
        assert_eq!(kth_random_distance(1024, 1_000_000, 10), 444);
        assert_eq!(kth_random_distance(64, 10, 100), 32);
    }

    #[test]
    fn what_was_observed_moves_slowly_and_no_outlier_counts_whole() {
        let observed = Observed::nothing();
        assert_eq!(observed.get(1), None);
        // Cold memory at first, and again: each counts as three times what was expected.
        observed.add(1, 100.0, 2.0);
        assert_eq!(observed.get(1), Some(6.0));
        observed.add(1, 100.0, 2.0);
        assert_eq!(observed.get(1), Some(9.0));
        for _ in 0..40 {
            observed.add(1, 5.0, 2.0);
        }
        assert!((observed.get(1).unwrap() - 5.0).abs() < 0.01);
        assert_eq!(observed.get(0), None);
    }

    #[test]
    fn small_radii_use_the_tables_and_large_ones_the_scan() {
        let len = CodeLen::new(64).unwrap();
        let n_codes = 100_000;
        let bytes: Vec<u8> = (0..n_codes as u64)
            .flat_map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect();
        let codes = Codes::from_packed(len, &bytes).unwrap();
        let params = MihParams::choose(len, n_codes);
        let tables: Vec<MihTable> = (0..params.n_substrings())
            .map(|substring_idx| MihTable::build(&codes, &params, substring_idx).unwrap())
            .collect();
        let view = MihView::new(&params, tables.iter().map(MihTable::as_ref)).unwrap();
        let rows = SegmentRows {
            mih: Some(view),
            ..SegmentRows::of(codes.as_ref())
        };
        let chosen = |radius, allowed: &Allowed<'_>| {
            choose(EngineChoice::Auto, &range_costs(&rows, allowed, radius))
        };
        assert_eq!(chosen(4, &Allowed::All), EngineKind::Mih);
        assert_eq!(chosen(24, &Allowed::All), EngineKind::Scan);
        assert_eq!(chosen(4, &Allowed::Listed(&[1, 2, 3])), EngineKind::Scan);
        let all = knn_costs(&rows, &Allowed::All, n_codes);
        assert_eq!(choose(EngineChoice::Auto, &all), EngineKind::Scan);
    }
}

//! k-NN and range search over substring tables, and when to give them up for the linear scan.

use smallvec::SmallVec;

use crate::code::{HashCode, RowOrder};
use crate::engine::{Allowed, Engine, EngineKind, Membership, SearchStats, SegmentRows};
use crate::error::Result;
use crate::finds::Finds;
use crate::hamming::Kernel;
use crate::mih::walk::{CANDIDATE_BATCH, Sought, Walk};
use crate::mih::{MihForm, MihView};
use crate::plan;
use crate::scan::LinearScan;
use crate::topk::{Neighbor, TopK};

/// Multi-index hashing over one segment.
///
/// Exact: the same answers as [`LinearScan`], usually sooner. A search that turns out dearer than the
/// linear scan becomes one, mostly at a loss of a small part of it for k-NN search as planned.
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

/// What a k-NN search knows of the k-th distance on its way.
struct Sights {
    /// True if some rows are not allowed, and so few that are were met that nothing is too far yet.
    asks_all: bool,
    /// What it is if codes are spread evenly.
    expected: usize,
    /// What it is so far.
    bound: u32,
    /// What it is among all codes met, allowed or not, if those are enough.
    nearest: Option<u32>,
    /// True if codes are known to be spread evenly.
    is_even: bool,
}

/// The part of a scan's cost that a k-NN search may spend before its radius is known well enough to
/// say what the rest will cost.
const GAMBLE: f64 = 0.10;

/// The part of a scan's cost that the whole search may be expected to take: its price is known less well
/// than that of a scan, and where both take about as long, giving up half way costs most.
const ASSURED: f64 = 0.8;

/// How many times a scan's cost a search may take that is planned: one that knows how near its end is goes on when it
/// has cost more than foreseen.
const SPENT_MAX: f64 = 1.5;

/// The shells of one table that are visited first, where its codes need no lookup each.
const SEED_SHELLS: usize = 2;

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

    fn walk<'s>(&'s self, query: &'s HashCode, sought: Sought, limit_ns: f64) -> Walk<'s> {
        let spent_ns_max = match self.patience {
            Patience::Endless => f64::INFINITY,
            Patience::Planned | Patience::Determined => limit_ns,
        };
        let (codes, query) = (self.rows.codes, query.words());
        Walk::new(codes, self.view, self.kernel, query, sought, spent_ns_max)
    }

    /// Whether to visit the next shell, of this table, rather than scan. `prices[s]` is the cost of the shells of
    /// radius `s` in all tables.
    fn goes_on(
        &self,
        prices: &[f64],
        walk: &Walk<'_>,
        substring_idx: usize,
        scan_ns: f64,
        sights: &Sights,
    ) -> bool {
        let n_substrings = self.view.params().n_substrings();
        let part = |radius: usize, n_tables: usize| {
            let price = prices.get(radius).copied().unwrap_or_default();
            price * n_tables as f64 / n_substrings as f64
        };
        let visited_ns: f64 = walk
            .limits()
            .iter()
            .map(|&limit| {
                (0..limit as usize)
                    .map(|radius| part(radius, 1))
                    .sum::<f64>()
            })
            .sum();
        // From this shell until every code within `bound` is met.
        let rest_ns = |bound: usize| {
            let (radius, n_tables) = ((bound + 1) / n_substrings, (bound + 1) % n_substrings);
            let whole = (0..radius).map(|radius| part(radius, n_substrings));
            (whole.sum::<f64>() + part(radius, n_tables) - visited_ns).max(0.0)
        };
        let (spent_ns, bound) = (walk.spent_ns, sights.bound as usize);
        let radius = walk.limits()[substring_idx] as usize;
        let mut next_ns = plan::shell_ns(self.rows.codes, self.view, substring_idx, radius);
        if sights.asks_all {
            next_ns += plan::ask_shell_ns(self.view, substring_idx, radius);
        }
        match self.patience {
            Patience::Endless => true,
            Patience::Determined => spent_ns + next_ns <= scan_ns,
            Patience::Planned => {
                // If the k-th distance is not what codes that are spread evenly have, it shows once those
                // shells are visited.
                let likely = bound.min(sights.expected.max(walk.covered()));
                if spent_ns + rest_ns(likely) <= ASSURED * scan_ns {
                    return true;
                }
                // What was spent is lost either way, and to finish for sure may be the cheaper end.
                let sure_ns = rest_ns(bound);
                if sure_ns <= ASSURED * scan_ns && spent_ns + sure_ns <= SPENT_MAX * scan_ns {
                    return true;
                }
                // The k-th distance will still fall, but hardly by more than a quarter, and that of allowed
                // codes is no smaller.
                let nearest = sights.nearest.map(|bound| bound as usize / 4 * 3);
                let is_hopeless =
                    sights.is_even || nearest.is_some_and(|least| rest_ns(least) > scan_ns);
                !is_hopeless && spent_ns + next_ns <= GAMBLE * scan_ns
            }
        }
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
                        plan::shell_ns(self.rows.codes, self.view, substring_idx, radius)
                    })
                    .sum()
            })
            .collect();
        let mut membership = Membership::new(allowed);
        // What another engine left in the top before this one began.
        let held = self.rows.held_by(top);
        let is_filtered = !matches!(allowed, Allowed::All);
        let expected = plan::expected_distance(self.rows.codes, allowed, top.k());
        // Where rows alone decide, their documents can wait.
        let mut finds = match held.is_empty() {
            true => Finds::new(top, self.rows, &membership),
            false => Finds::at_once(top),
        };
        // The nearest shells of one table say most of the k nearest for the least, if its codes need no lookup each.
        let last = n_substrings - 1;
        let n_seeds = match self.view.form() {
            MihForm::Rows => 0,
            MihForm::Codes => SEED_SHELLS.min(params.width(last)),
        };
        let mut is_even = false;
        for n_visited in 0.. {
            let substring_idx = match n_visited < n_seeds {
                true => last,
                false => walk.next_table(),
            };
            is_even |= n_seeds > 0 && n_visited == n_seeds && walk.is_even(last);
            let bound = walk.bound().min(finds.bound());
            let nearest = match is_filtered {
                true => walk.met().is_full().then(|| walk.met().bound()),
                false => (finds.is_full() || walk.met().is_full()).then_some(bound),
            };
            let sights = Sights {
                asks_all: is_filtered && !finds.is_full(),
                expected,
                bound,
                nearest,
                is_even,
            };
            let goes_on = self.goes_on(&prices, walk, substring_idx, scan_ns, &sights)
                && walk.shell(substring_idx, &mut |row, distance| {
                    self.offer(row, distance, &held, &mut membership, &mut finds, stats)
                })?;
            if !goes_on {
                finds.forget();
                if !is_filtered && walk.met().is_full() {
                    top.lower(walk.met().bound());
                }
                return Ok(false);
            }
            let bound = walk.bound().min(finds.bound()) as usize;
            let radius = walk.limits()[substring_idx] as usize;
            if bound < walk.covered() || radius > params.width(substring_idx) {
                break;
            }
        }
        walk.finish(&mut |row, distance| {
            self.offer(row, distance, &held, &mut membership, &mut finds, stats)
        })?;
        finds.end(self.rows)?;
        Ok(true)
    }

    /// Takes a row that a walk hands on, if it is allowed and not among the addresses `held`; gives the bound.
    fn offer(
        &self,
        row: u32,
        distance: u32,
        held: &[u64],
        membership: &mut Membership<'_>,
        finds: &mut Finds<'_>,
        stats: &mut SearchStats,
    ) -> Result<u32> {
        let row = row as usize;
        if !membership.has_row(row) {
            stats.filtered_out += 1;
        } else if let Some(late) = &mut finds.late {
            self.rows.prefetch_doc(row);
            late.push(row, distance);
            finds.settle_if_many(self.rows)?;
        } else {
            let doc = self.rows.doc_id(row).ok_or_else(RowOrder::damaged)?;
            let address = self.rows.address(doc);
            if !membership.contains(doc) {
                stats.filtered_out += 1;
            } else if held.is_empty() || held.binary_search(&address).is_err() {
                finds.top.push(distance, address);
            }
        }
        Ok(finds.bound())
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
        let n_lookups = f64::from(params.n_lookups(radius as u32));
        if n_lookups * walk.step_ns.0 > walk.spent_ns_max {
            return Ok(false);
        }
        let largest = ball_radius(0).unwrap_or(0);
        // Rows first, documents afterwards: where they take a lookup, all lookups are under way at once.
        let mut near: Vec<(u32, u32)> = Vec::new();
        let shells = (0..=largest).flat_map(|shell| {
            let tables = 0..params.n_substrings();
            tables.map(move |substring_idx| (shell, substring_idx))
        });
        for (shell, substring_idx) in shells {
            if ball_radius(substring_idx).is_none_or(|ball| ball < shell) {
                continue;
            }
            let finished = walk.shell(substring_idx, &mut |row, distance| {
                near.push((row, distance));
                Ok(radius as u32)
            })?;
            if !finished {
                return Ok(false);
            }
        }
        walk.finish(&mut |row, distance| {
            near.push((row, distance));
            Ok(radius as u32)
        })?;
        let mut membership = Membership::new(allowed);
        for (idx, &(row, distance)) in near.iter().enumerate() {
            if let Some(&(later, _)) = near.get(idx + CANDIDATE_BATCH) {
                self.rows.prefetch_doc(later as usize);
            }
            let doc = self.rows.doc_id(row as usize);
            let doc = doc.ok_or_else(RowOrder::damaged)?;
            if membership.has_row(row as usize) && membership.contains(doc) {
                let address = self.rows.address(doc);
                found.push(Neighbor { distance, address });
            } else {
                stats.filtered_out += 1;
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
        let limit_ns = match self.patience == Patience::Planned {
            true => SPENT_MAX * scan_ns,
            false => scan_ns,
        };
        let sought = Sought {
            bound: top.bound(),
            k: Some(top.k()),
            is_filtered: !matches!(allowed, Allowed::All),
        };
        let mut walk = self.walk(query, sought, limit_ns);
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
        let sought = Sought {
            bound: radius,
            k: None,
            is_filtered: !matches!(allowed, Allowed::All),
        };
        let mut walk = self.walk(query, sought, scan_ns);
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

//! Semantic hash centers: stage 2 of SHC, *Deep Hashing with Semantic Hash Centers for Image
//! Retrieval*, ACM TOIS 2025 (arXiv 2507.08404), section 3.2.
//!
//! Centers `H` (K x C here as in the paper, columns `h_i`) whose products follow a class similarity `S`
//! and any two of which differ in at least `d` bits:
//!
//! ```text
//! min |S - H^T H / K|_F^2 + mu sum_i sum_{j != i} h_i^T h_j                              (22)
//! s.t. h_i^T h_j <= K - 2d  for j != i,   H of -1 and +1
//! ```
//!
//! by an augmented Lagrangian with a proxy `M` of `H` and slacks `Z` (the paper's K_ij), multipliers
//! `Lambda`, `alpha` and penalties `rho`, `beta`. A cycle is
//!
//! ```text
//! M = (2/K^2 H H^T + rho I)^-1 (2/K H S + Lambda + rho H)                                (29)
//! Z = max(K - 2d - H^T H + alpha / beta, 0)                                              (33)
//! for each i, three times:
//!   g = 2/K^2 M M^T h_i - 2/K M s_i + 2 mu sum_{j != i} h_j + lambda_i + rho (h_i - m_i)
//!     - 2 sum_j alpha_ij h_j + beta sum_j [2 h_j h_j^T h_i - 2 (K - 2d - Z_ij) h_j]       (35)
//!   h_i = sign(h_i - g / eta)                                                            (36)
//!   lambda_i += rho (h_i - m_i)                                                          (37)
//!   alpha_ij += beta (K - 2d - h_i^T h_j - Z_ij)                                         (38)
//! ```
//!
//! The paper prints `2 mu` before the sum over alpha in Eq. 35; the derivative of its Lagrangian has 2,
//! and so has this. Multipliers follow once a column, after its three steps. The start is a random
//! codebook that keeps `d` (the paper's comes from another paper's solver). After every column the
//! codebook is judged, and the best by semantic loss among those that keep `d` is the result, the start
//! included: with the printed constants the projected steps themselves promise neither. Several starts
//! are tried.
//!
//! [`Variant::Released`] is what the authors' program does instead, read from its source: 30 cycles; the
//! terms of mu, alpha and beta are summed and divided by 10,000; `h_j h_j^T h_i` is `(h_j^T h_j) h_i`;
//! alpha stays 0; a column is kept only if the smallest distance of the codebook stays at least `d`; the
//! best of the cycles and of the start is the result.
//!
//! [`refine`](super::refine) follows in both, unless it is turned off; the figures of both are reported.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::refine::refine;
use super::separation::{gilbert_varshamov, separated};
use super::{ClassSimilarity, Codebook};
use crate::error::{Error, Result};

/// Which description of SHC is followed where its paper and its program differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// The paper.
    #[default]
    Paper,
    /// The authors' released program.
    Released,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Variant::Paper => "paper",
            Variant::Released => "released",
        })
    }
}

impl FromStr for Variant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Variant> {
        match text {
            "paper" => Ok(Variant::Paper),
            "released" => Ok(Variant::Released),
            _ => Err(Error::invalid(format!(
                "a variant is paper or released, got {text:?}"
            ))),
        }
    }
}

/// Settings of stage 2. The defaults are the paper's (section 4.4), but for `restarts` and `refine`,
/// which it does not have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SemanticOptions {
    /// Paper or program.
    pub variant: Variant,
    /// d; `None` is the distance of Gilbert and Varshamov.
    pub min_distance: Option<usize>,
    /// T, the cycles; `None` is 20 for the paper and 30 for the program.
    pub cycles: Option<usize>,
    /// Steps of one column in a cycle.
    pub inner: usize,
    /// The weight of balance, mu.
    pub mu: f64,
    /// The penalty of the proxy, rho.
    pub rho: f64,
    /// The penalty of the distances, beta, above 0.
    pub beta: f64,
    /// The inverse step, eta, above 0.
    pub eta: f64,
    /// The first multiplier of the proxy, every entry.
    pub lambda: f64,
    /// Starts that are tried, at least 1.
    pub restarts: usize,
    /// Whether the local search follows.
    pub refine: bool,
}

impl Default for SemanticOptions {
    fn default() -> SemanticOptions {
        SemanticOptions {
            variant: Variant::Paper,
            min_distance: None,
            cycles: None,
            inner: 3,
            mu: 0.625,
            rho: 0.2,
            beta: 1e-6,
            eta: 0.5,
            lambda: 0.1,
            restarts: 4,
            refine: true,
        }
    }
}

impl SemanticOptions {
    /// d for `n_classes` centers of `bits` bits.
    pub fn min_distance(&self, n_classes: usize, bits: usize) -> usize {
        self.min_distance
            .unwrap_or_else(|| gilbert_varshamov(n_classes, bits))
    }

    /// Settings, checked.
    ///
    /// # Errors
    /// `InvalidArgument` naming the setting.
    pub fn check(&self) -> Result<()> {
        for (name, value, positive) in [
            ("mu", self.mu, false),
            ("rho", self.rho, true),
            ("beta", self.beta, true),
            ("eta", self.eta, true),
            ("lambda", self.lambda, false),
        ] {
            if !value.is_finite() || value < 0.0 || (positive && value == 0.0) {
                return Err(Error::invalid(format!(
                    "{name} of semantic centers is a number from 0{}, got {value}",
                    if positive { ", not 0 itself" } else { "" }
                )));
            }
        }
        if self.restarts == 0 || self.inner == 0 {
            return Err(Error::invalid(
                "semantic centers take at least one start and one inner step",
            ));
        }
        Ok(())
    }
}

/// Centers and how good they are.
#[derive(Clone, Debug, PartialEq)]
pub struct SemanticCenters {
    /// The centers.
    pub codebook: Codebook,
    /// What to report of them.
    pub report: SemanticReport,
}

/// How good semantic centers are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SemanticReport {
    /// C.
    pub n_classes: usize,
    /// K.
    pub bits: usize,
    /// The distance of Gilbert and Varshamov.
    pub gv_distance: usize,
    /// The distance that was asked for.
    pub wished_distance: usize,
    /// The smallest distance of two centers.
    pub d_min: usize,
    /// Mean over all i, j of (S_ij - h_i^T h_j / K)^2.
    pub s_loss: f64,
    /// The same before the local search: what the method itself reached.
    pub s_loss_before_refine: f64,
    /// The same of the start that led there.
    pub s_loss_start: f64,
    /// Seconds it took.
    pub seconds: f64,
}

/// Semantic hash centers of `bits` bits for the classes of `similarity`. A function of its arguments.
///
/// # Errors
/// `InvalidArgument` for a setting out of range, or where the bits are too few for so many centers at
/// the wished distance.
pub fn semantic_centers(
    similarity: &ClassSimilarity,
    bits: usize,
    options: &SemanticOptions,
    seed: u64,
) -> Result<SemanticCenters> {
    options.check()?;
    let started = Instant::now();
    let n_classes = similarity.n_classes();
    let gv_distance = gilbert_varshamov(n_classes, bits);
    let min_distance = options.min_distance(n_classes, bits);

    let tried = (0..options.restarts).into_par_iter().map(|restart| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(restart as u64);
        let start = separated(n_classes, bits, min_distance, &mut rng)?;
        let solved = Solver::new(similarity, &start, min_distance, options).solve();
        let refined = match options.refine {
            true => refine(&solved, similarity, min_distance, &mut rng),
            false => solved.clone(),
        };
        Ok((start, solved, refined))
    });
    let tried = tried.collect::<Result<Vec<_>>>()?;
    let (start, solved, codebook) = tried
        .into_iter()
        .min_by(|a, b| s_loss(similarity, &a.2).total_cmp(&s_loss(similarity, &b.2)))
        .expect("at least one start");
    let report = SemanticReport {
        n_classes,
        bits,
        gv_distance,
        wished_distance: min_distance,
        d_min: codebook.min_distance(),
        s_loss: s_loss(similarity, &codebook),
        s_loss_before_refine: s_loss(similarity, &solved),
        s_loss_start: s_loss(similarity, &start),
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok(SemanticCenters { codebook, report })
}

/// Mean over all i, j of (S_ij - h_i^T h_j / K)^2.
///
/// # Panics
/// If the numbers of classes differ.
pub fn s_loss(similarity: &ClassSimilarity, codebook: &Codebook) -> f64 {
    let n = codebook.n_classes();
    assert_eq!(similarity.n_classes(), n, "one center a class");
    let k = codebook.bits() as f64;
    let mut sum = 0.0;
    for i in 0..n {
        for j in 0..n {
            let product = product(codebook.center(i), codebook.center(j));
            sum += (similarity.get(i, j) - product / k).powi(2);
        }
    }
    sum / (n * n) as f64
}

/// h_i^T h_j of two centers.
fn product(a: &[f32], b: &[f32]) -> f64 {
    f64::from(a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>())
}

/// The state of the augmented Lagrangian. Matrices K x C are kept column by column: row i of `h` is h_i.
struct Solver<'a> {
    similarity: &'a ClassSimilarity,
    options: &'a SemanticOptions,
    n: usize,
    bits: usize,
    /// K - 2d.
    bound: f64,
    h: Vec<f64>,
    m: Vec<f64>,
    lambda: Vec<f64>,
    /// C x C.
    alpha: Vec<f64>,
    /// C x C, Z.
    slack: Vec<f64>,
    /// C x C, H^T H as it is now.
    gram: Vec<f64>,
    /// The semantic loss of now, but for what rounding adds up to from column to column.
    loss: f64,
}

/// What the running loss may be off by, as a share: the sum itself is taken only where this could matter.
const LOSS_ROUNDING: f64 = 1e-9;

impl<'a> Solver<'a> {
    fn new(
        similarity: &'a ClassSimilarity,
        start: &Codebook,
        min_distance: usize,
        options: &'a SemanticOptions,
    ) -> Solver<'a> {
        let (n, bits) = (start.n_classes(), start.bits());
        let mut solver = Solver {
            similarity,
            options,
            n,
            bits,
            bound: bits as f64 - 2.0 * min_distance as f64,
            h: start
                .entries()
                .iter()
                .map(|&entry| f64::from(entry))
                .collect(),
            m: vec![0.0; n * bits],
            lambda: vec![options.lambda; n * bits],
            alpha: vec![0.0; n * n],
            slack: vec![0.0; n * n],
            gram: (0..n * n)
                .map(|at| product(start.center(at / n), start.center(at % n)))
                .collect(),
            loss: 0.0,
        };
        solver.loss = solver.semantic_loss();
        solver
    }

    /// The best codebook on the way that keeps the distance.
    fn solve(mut self) -> Codebook {
        let released = self.options.variant == Variant::Released;
        let n_cycles = self
            .options
            .cycles
            .unwrap_or(if released { 30 } else { 20 });
        let mut best = (self.semantic_loss(), self.h.clone());
        for _ in 0..n_cycles {
            self.cycle(Some(&mut best));
        }
        let entries = best.1.iter().map(|&entry| entry as f32).collect();
        Codebook::from_entries(self.bits, entries).expect("every entry is a sign")
    }

    /// One cycle. `best` is kept up after every column, in the program after the cycle.
    fn cycle(&mut self, mut best: Option<&mut (f64, Vec<f64>)>) {
        let released = self.options.variant == Variant::Released;
        self.update_proxy();
        self.update_slack();
        for i in 0..self.n {
            let before = self.column(i).to_vec();
            let loss_before = self.loss_of(i);
            for _ in 0..self.options.inner {
                self.step_column(i);
            }
            // The program looks at the distances after the steps of a column.
            if released && !self.keeps_distance(i) {
                self.h[i * self.bits..][..self.bits].copy_from_slice(&before);
                self.update_gram(i);
            }
            self.loss += self.loss_of(i) - loss_before;
            self.update_multipliers(i);
            // A column that stayed has been judged.
            let judged = match released {
                false => self.column(i) != before,
                true => i + 1 == self.n,
            };
            if let (true, Some(best)) = (judged, best.as_deref_mut()) {
                self.judge(best);
            }
        }
    }

    /// Keeps the codebook of now in `best` if it is feasible and better.
    fn judge(&self, best: &mut (f64, Vec<f64>)) {
        // What costs least first: a codebook that does not keep the distance shows it early.
        let may_be_better = self.loss <= best.0 * (1.0 + LOSS_ROUNDING);
        if may_be_better && (0..self.n).all(|i| self.keeps_distance(i)) {
            let loss = self.semantic_loss();
            if loss < best.0 {
                *best = (loss, self.h.clone());
            }
        }
    }

    fn column(&self, i: usize) -> &[f64] {
        &self.h[i * self.bits..][..self.bits]
    }

    fn product(&self, i: usize, j: usize) -> f64 {
        self.gram[i * self.n + j]
    }

    /// After a change of column i.
    fn update_gram(&mut self, i: usize) {
        for j in 0..self.n {
            let product = dot_of_signs(self.column(i), self.column(j));
            self.gram[i * self.n + j] = product;
            self.gram[j * self.n + i] = product;
        }
    }

    fn keeps_distance(&self, i: usize) -> bool {
        (0..self.n).all(|j| j == i || self.product(i, j) <= self.bound)
    }

    /// The part of the semantic loss that row and column i have.
    fn loss_of(&self, i: usize) -> f64 {
        let of_pair = |a: usize, b: usize| {
            let product = self.product(i, if a == i { b } else { a }) / self.bits as f64;
            (self.similarity.get(a, b) - product).powi(2)
        };
        let others = (0..self.n).filter(|&j| j != i);
        others.map(|j| of_pair(i, j) + of_pair(j, i)).sum::<f64>() + of_pair(i, i)
    }

    fn semantic_loss(&self) -> f64 {
        let mut sum = 0.0;
        for i in 0..self.n {
            for j in 0..self.n {
                let product = self.product(i, j) / self.bits as f64;
                sum += (self.similarity.get(i, j) - product).powi(2);
            }
        }
        sum
    }

    /// Eq. 29. One system for all columns, by Cholesky: the matrix is positive definite, since rho is.
    fn update_proxy(&mut self) {
        let (n, bits, k) = (self.n, self.bits, self.bits as f64);
        let rho = self.options.rho;
        let mut matrix = vec![0.0; bits * bits];
        for i in 0..n {
            let column = &self.h[i * bits..][..bits];
            for (a, row) in matrix.chunks_exact_mut(bits).enumerate() {
                axpy(row, 2.0 / (k * k) * column[a], column);
            }
        }
        for a in 0..bits {
            matrix[a * bits + a] += rho;
        }
        cholesky(&mut matrix, bits);
        for i in 0..n {
            let mut right = self.lambda[i * bits..][..bits].to_vec();
            axpy(&mut right, rho, &self.h[i * bits..][..bits]);
            for j in 0..n {
                let weight = 2.0 / k * self.similarity.get(j, i);
                axpy(&mut right, weight, &self.h[j * bits..][..bits]);
            }
            solve_cholesky(&matrix, &mut right);
            self.m[i * bits..][..bits].copy_from_slice(&right);
        }
    }

    /// Eq. 33.
    fn update_slack(&mut self) {
        for i in 0..self.n {
            for j in 0..self.n {
                let at = i * self.n + j;
                let free = self.bound - self.product(i, j) + self.alpha[at] / self.options.beta;
                self.slack[at] = free.max(0.0);
            }
        }
    }

    /// Eq. 35 and 36.
    fn step_column(&mut self, i: usize) {
        let (n, bits, k) = (self.n, self.bits, self.bits as f64);
        let SemanticOptions { mu, rho, beta, .. } = *self.options;
        let released = self.options.variant == Variant::Released;
        let mut gradient = vec![0.0; bits];
        // The terms that the program divides by 10,000.
        let mut distances = vec![0.0; bits];
        for j in 0..n {
            let m = &self.m[j * bits..][..bits];
            let weight =
                2.0 / (k * k) * dot(m, self.column(i)) - 2.0 / k * self.similarity.get(j, i);
            axpy(&mut gradient, weight, m);
            if j == i {
                continue;
            }
            let at = i * n + j;
            let mut weight =
                2.0 * mu - 2.0 * self.alpha[at] - 2.0 * beta * (self.bound - self.slack[at]);
            if released {
                axpy(&mut distances, 2.0 * beta * k, self.column(i));
            } else {
                weight += 2.0 * beta * self.product(i, j);
            }
            axpy(&mut distances, weight, self.column(j));
        }
        axpy(&mut gradient, if released { 1e-4 } else { 1.0 }, &distances);
        for (at, gradient) in (i * bits..).zip(gradient) {
            let g = gradient + self.lambda[at] + rho * (self.h[at] - self.m[at]);
            let moved = self.h[at] - g / self.options.eta;
            // sign(0) is no code; the entry stays.
            if moved != 0.0 {
                self.h[at] = moved.signum();
            }
        }
        self.update_gram(i);
    }

    /// Eq. 37 and 38.
    fn update_multipliers(&mut self, i: usize) {
        for at in i * self.bits..(i + 1) * self.bits {
            self.lambda[at] += self.options.rho * (self.h[at] - self.m[at]);
        }
        if self.options.variant == Variant::Released {
            return;
        }
        for j in (0..self.n).filter(|&j| j != i) {
            let at = i * self.n + j;
            let lack = self.bound - self.product(i, j) - self.slack[at];
            self.alpha[at] += self.options.beta * lack;
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The same of entries -1 and 1, whose sums are exact in any order: in eight of them at a time.
fn dot_of_signs(a: &[f64], b: &[f64]) -> f64 {
    let (a, rest_a) = a.as_chunks::<8>();
    let (b, rest_b) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f64>() + dot(rest_a, rest_b)
}

fn axpy(to: &mut [f64], weight: f64, from: &[f64]) {
    to.iter_mut()
        .zip(from)
        .for_each(|(to, from)| *to += weight * from);
}

/// The lower factor L of a positive definite `n x n` matrix, in place.
fn cholesky(matrix: &mut [f64], n: usize) {
    for a in 0..n {
        for b in 0..=a {
            let (upper, lower) = matrix.split_at(a * n);
            let row_a = &lower[..b];
            let row_b = if a == b { row_a } else { &upper[b * n..][..b] };
            let rest = matrix[a * n + b] - dot(row_a, row_b);
            matrix[a * n + b] = match a == b {
                true => rest.sqrt(),
                false => rest / matrix[b * n + b],
            };
        }
    }
}

/// Solves L L^T x = `right`, in place.
fn solve_cholesky(factor: &[f64], right: &mut [f64]) {
    let n = right.len();
    for a in 0..n {
        let known = dot(&factor[a * n..][..a], &right[..a]);
        right[a] = (right[a] - known) / factor[a * n + a];
    }
    for a in (0..n).rev() {
        right[a] /= factor[a * n + a];
        let value = right[a];
        let (before, _) = right.split_at_mut(a);
        axpy(before, -value, &factor[a * n..][..a]);
    }
}

#[cfg(test)]
mod tests;

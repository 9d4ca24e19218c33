//! A local search that lowers the semantic loss of hash centers and keeps their minimum distance.
//!
//! Not in any paper: an added last step of [`semantic`](super::semantic), which can be left out. Single
//! bits are flipped, by simulated annealing; a flip that would bring two centers closer than the minimum
//! distance is refused. The best codebook seen is returned, so the result is never worse than the start.

use rand::Rng;
use rand::seq::SliceRandom;

use super::{ClassSimilarity, Codebook};

/// Work of one search, in products; sets the number of sweeps.
const PRODUCTS: usize = 600_000_000;
/// Sweeps, at least and at most.
const SWEEPS: (usize, usize) = (40, 1500);
/// First and last temperature, in units of the mean change that a flip makes at the start.
const TEMPERATURES: (f64, f64) = (2.0, 0.02);

/// The codebook after the search. `min_distance` is kept where `start` keeps it.
///
/// With `G = H^T H`, `R = S - G / K` (S symmetrized) and `h_ik` the bit to flip, the sum of squared
/// errors changes by
///
/// ```text
/// (8 / K) (h_ik sum over j != i of h_jk R_ij + (C - 1) / K)
/// ```
pub fn refine(
    start: &Codebook,
    similarity: &ClassSimilarity,
    min_distance: usize,
    rng: &mut impl Rng,
) -> Codebook {
    let (n, bits) = (start.n_classes(), start.bits());
    if n < 2 {
        return start.clone();
    }
    let k = bits as f64;
    // Bit by bit, so that the sums below run over neighbouring numbers.
    let mut columns: Vec<Vec<f64>> = (0..bits)
        .map(|bit| (0..n).map(|i| f64::from(start.center(i)[bit])).collect())
        .collect();
    let mut gram = vec![0i64; n * n];
    let mut residual = similarity.symmetrized();
    for i in 0..n {
        for j in 0..n {
            let product: f64 = columns.iter().map(|column| column[i] * column[j]).sum();
            gram[i * n + j] = product as i64;
            residual[i * n + j] -= product / k;
        }
        // The diagonal is the same for all codebooks.
        residual[i * n + i] = 0.0;
    }
    let gram_max = bits as i64 - 2 * min_distance as i64;
    let step = |columns: &[Vec<f64>], residual: &[f64], i: usize, bit: usize| -> f64 {
        let column = &columns[bit];
        let products = column.iter().zip(&residual[i * n..][..n]);
        let pull: f64 = products.map(|(h, r)| h * r).sum();
        8.0 / k * (column[i] * pull + (n - 1) as f64 / k)
    };

    let mut order: Vec<usize> = (0..n * bits).collect();
    let changes = order
        .iter()
        .map(|at| step(&columns, &residual, at / bits, at % bits).abs());
    let unit = changes.sum::<f64>() / order.len() as f64;
    let n_sweeps = (PRODUCTS / (n * n * bits).max(1)).clamp(SWEEPS.0, SWEEPS.1);
    let (mut change, mut best_change) = (0.0, 0.0);
    let mut best = columns.clone();
    // The codebook of now is the best, and `best` an earlier one: copied once it is left, since a copy costs as much as
    // many flips.
    let mut is_ahead = false;
    for sweep in 0..n_sweeps {
        let share = sweep as f64 / (n_sweeps - 1) as f64;
        let temperature = unit * TEMPERATURES.0 * (TEMPERATURES.1 / TEMPERATURES.0).powf(share);
        // The last sweep only goes down.
        let last = sweep + 1 == n_sweeps;
        order.shuffle(rng);
        for &at in &order {
            let (i, bit) = (at / bits, at % bits);
            let worse = step(&columns, &residual, i, bit);
            if worse >= 0.0 && (last || rng.random::<f64>() >= (-worse / temperature).exp()) {
                continue;
            }
            let sign = columns[bit][i];
            let near = (0..n)
                .any(|j| j != i && sign * columns[bit][j] < 0.0 && gram[i * n + j] + 2 > gram_max);
            if near {
                continue;
            }
            let is_better = change + worse < best_change - 1e-9;
            if is_ahead && !is_better {
                best.clone_from(&columns);
                is_ahead = false;
            }
            for j in (0..n).filter(|&j| j != i) {
                let product = sign * columns[bit][j];
                for at in [i * n + j, j * n + i] {
                    gram[at] -= 2 * product as i64;
                    residual[at] += 2.0 * product / k;
                }
            }
            columns[bit][i] = -sign;
            change += worse;
            if is_better {
                best_change = change;
                is_ahead = true;
            }
        }
    }
    if is_ahead {
        best = columns;
    }
    let entries = (0..n * bits).map(|at| best[at % bits][at / bits] as f32);
    Codebook::from_entries(bits, entries.collect()).expect("entries are the signs they started as")
}

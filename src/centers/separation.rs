//! How far apart C codes of K bits can be kept, and sets of codes that are.
//!
//! Gilbert and Varshamov's bound as SHC uses it (Eq. 13), and starting codebooks that respect a minimum
//! distance: drawn at random and kept when far from those kept before, or, where that runs dry, rows of a
//! Hadamard matrix, or a random set whose violations are annealed away. Knows nothing of similarity.

use rand::Rng;
use rand::seq::SliceRandom;

use super::{Codebook, bernoulli, distance, hadamard};
use crate::error::{Error, Result};

/// Random codes that are drawn before another way is tried.
const DRAWS_MAX: usize = 300_000;

/// Sweeps of one repair, and how many sets are repaired.
const REPAIR_SWEEPS: usize = 400;
const REPAIRS: usize = 4;

/// The distance of Gilbert and Varshamov: the smallest d with `sum over i < d of C(bits, i) >= 2^bits /
/// n_classes` (SHC, Eq. 13). `bits` for a single class.
pub fn gilbert_varshamov(n_classes: usize, bits: usize) -> usize {
    // Shares of all codes, in logarithms: the counts themselves overflow from 1024 bits on.
    let mut log_share = -(bits as f64) * std::f64::consts::LN_2;
    let mut within = 0.0;
    for d in 1..=bits {
        within += log_share.exp();
        // A sum that equals the bound in exact arithmetic may fall short of it by rounding.
        if within * n_classes as f64 >= 1.0 - 1e-12 {
            return d;
        }
        log_share += ((bits - d + 1) as f64 / d as f64).ln();
    }
    bits
}

/// A codebook in which any two centers differ in at least `min_distance` bits.
///
/// # Errors
/// `InvalidArgument` where none was found, or none can exist.
pub fn separated(
    n_classes: usize,
    bits: usize,
    min_distance: usize,
    rng: &mut impl Rng,
) -> Result<Codebook> {
    if n_classes == 0 || bits == 0 {
        return Err(Error::invalid(format!(
            "a codebook has at least one class and one bit, got {n_classes} and {bits}"
        )));
    }
    let rows = match fits(n_classes, bits, min_distance) {
        true => drawn(n_classes, bits, min_distance, rng)
            .or_else(|| from_hadamard(n_classes, bits, min_distance, rng))
            .or_else(|| repaired(n_classes, bits, min_distance, rng)),
        false => None,
    };
    let rows = rows.ok_or_else(|| {
        let shorter = match gilbert_varshamov(n_classes, bits) {
            known if known < min_distance => format!(", or a minimum distance of about {known}"),
            _ if min_distance > 1 => {
                format!(", or a minimum distance of at most {}", min_distance - 1)
            }
            _ => String::new(),
        };
        Error::invalid(format!(
            "found no {n_classes} centers of {bits} bits that differ in at least {min_distance}; use more bits{shorter}"
        ))
    })?;
    Codebook::from_entries(bits, rows.concat())
}

/// False where Singleton's or Plotkin's bound says that no such code exists.
fn fits(n_classes: usize, bits: usize, min_distance: usize) -> bool {
    if n_classes == 1 || min_distance == 0 {
        return true;
    }
    if min_distance > bits {
        return false;
    }
    let dimensions = bits - min_distance + 1;
    if dimensions < usize::BITS as usize - 1 && n_classes > 1 << dimensions {
        return false;
    }
    // A code of odd distance d and K bits is as large as one of d + 1 and K + 1.
    let (d, k) = (min_distance.next_multiple_of(2), bits + min_distance % 2);
    match (2 * d).cmp(&k) {
        std::cmp::Ordering::Greater => n_classes <= 2 * (d / (2 * d - k)),
        std::cmp::Ordering::Equal => n_classes <= 4 * d,
        std::cmp::Ordering::Less => true,
    }
}

fn drawn(
    n_classes: usize,
    bits: usize,
    min_distance: usize,
    rng: &mut impl Rng,
) -> Option<Vec<Vec<f32>>> {
    let mut rows: Vec<Vec<f32>> = Vec::with_capacity(n_classes);
    for _ in 0..DRAWS_MAX {
        if rows.len() == n_classes {
            break;
        }
        let row = super::coins(bits, rng);
        if rows.iter().all(|kept| distance(kept, &row) >= min_distance) {
            rows.push(row);
        }
    }
    (rows.len() == n_classes).then_some(rows)
}

/// Rows of a Hadamard matrix and of its negative, half of all bits apart, with random columns negated.
fn from_hadamard(
    n_classes: usize,
    bits: usize,
    min_distance: usize,
    rng: &mut impl Rng,
) -> Option<Vec<Vec<f32>>> {
    if n_classes > 2 * bits || 2 * min_distance > bits {
        return None;
    }
    let mut rows = hadamard(2 * bits, bits, rng).ok()?;
    rows.truncate(n_classes);
    let signs = super::coins(bits, rng);
    for row in &mut rows {
        row.iter_mut()
            .zip(&signs)
            .for_each(|(entry, sign)| *entry *= sign);
    }
    Some(rows)
}

/// Random codes whose violations `sum of max(0, d - distance)^2` are annealed away, bit by bit.
fn repaired(
    n_classes: usize,
    bits: usize,
    min_distance: usize,
    rng: &mut impl Rng,
) -> Option<Vec<Vec<f32>>> {
    let lack = |apart: i64| {
        let lack = (min_distance as i64 - apart).max(0);
        lack * lack
    };
    for _ in 0..REPAIRS {
        let mut rows = bernoulli(n_classes, bits, rng);
        let mut apart: Vec<Vec<i64>> = rows
            .iter()
            .map(|a| rows.iter().map(|b| distance(a, b) as i64).collect())
            .collect();
        let pairs = (0..n_classes).flat_map(|a| (0..a).map(move |b| (a, b)));
        let mut total: i64 = pairs.map(|(a, b)| lack(apart[a][b])).sum();
        let mut order: Vec<usize> = (0..n_classes * bits).collect();
        for sweep in 0..REPAIR_SWEEPS {
            if total == 0 {
                return Some(rows);
            }
            let temperature = 2.0 * (1.0 - sweep as f64 / REPAIR_SWEEPS as f64).powi(2);
            order.shuffle(rng);
            for &at in &order {
                let (a, bit) = (at / bits, at % bits);
                let change = |b: usize| match rows[a][bit] == rows[b][bit] {
                    true => 1,
                    false => -1,
                };
                let others = || (0..n_classes).filter(|&b| b != a);
                let worse: i64 = others()
                    .map(|b| lack(apart[a][b] + change(b)) - lack(apart[a][b]))
                    .sum();
                if worse > 0 && rng.random::<f64>() >= (-(worse as f64) / temperature).exp() {
                    continue;
                }
                let changes: Vec<(usize, i64)> = others().map(|b| (b, change(b))).collect();
                for (b, change) in changes {
                    apart[a][b] += change;
                    apart[b][a] += change;
                }
                rows[a][bit] = -rows[a][bit];
                total += worse;
            }
        }
        if total == 0 {
            return Some(rows);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn the_bound_is_that_of_exact_arithmetic() {
        // From SHC's Table 3 and the formula with exact integers.
        for (n_classes, row) in [
            (10, [3, 5, 6, 10, 13, 21, 28, 43, 58, 119]),
            (100, [2, 3, 4, 7, 10, 17, 24, 38, 52, 110]),
            (196, [2, 3, 4, 7, 10, 16, 23, 36, 51, 108]),
            (555, [1, 2, 3, 6, 9, 15, 21, 35, 49, 106]),
        ] {
            for (bits, d) in [8, 12, 16, 24, 32, 48, 64, 96, 128, 256]
                .into_iter()
                .zip(row)
            {
                assert_eq!(
                    gilbert_varshamov(n_classes, bits),
                    d,
                    "{n_classes} x {bits}"
                );
            }
        }
        // 1 + 4 = 5 codes within distance 1 of 16: 3.2 classes; equality at 2^4 / 16.
        assert_eq!(gilbert_varshamov(16, 4), 1);
        assert_eq!(gilbert_varshamov(15, 4), 2);
        assert_eq!(gilbert_varshamov(1, 16), 16);
        assert!(gilbert_varshamov(100, 1024) > 450);
    }

    #[test]
    fn codebooks_keep_the_distance_or_say_that_they_cannot() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        // By rejection, by Hadamard rows, by repair.
        for (n_classes, bits, d) in [(100, 16, 4), (100, 64, 32), (10, 48, 24), (2, 16, 16)] {
            let book = separated(n_classes, bits, d, &mut rng).unwrap();
            assert_eq!((book.n_classes(), book.bits()), (n_classes, bits));
            assert!(book.min_distance() >= d, "{} < {d}", book.min_distance());
        }
        for (n_classes, bits, d) in [(100, 16, 9), (10, 8, 6), (5, 16, 17), (300, 8, 1)] {
            let error = separated(n_classes, bits, d, &mut rng)
                .unwrap_err()
                .to_string();
            assert!(error.contains("use more bits"), "{error}");
        }
    }
}

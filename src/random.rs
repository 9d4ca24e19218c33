//! Seeded draws that stay the same for ever: ChaCha8, and integer arithmetic of our own on top.
//!
//! A split or a tie order belongs to a published number, so none hangs on how a release of `rand`
//! happens to shuffle.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// The generator of `seed`; `stream` tells apart draws that share a seed.
pub(crate) fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// A random order of `0..n`.
pub(crate) fn permutation(n: usize, seed: u64, stream: u64) -> Vec<u32> {
    let n = u32::try_from(n).expect("fewer than 2^32 rows");
    let mut rng = generator(seed, stream);
    let mut order: Vec<u32> = (0..n).collect();
    for last in (1..order.len()).rev() {
        // The high half of a 64-bit product: below `last + 1`, biased by less than 2^-31.
        let draw = (u128::from(rng.next_u64()) * (last as u128 + 1)) >> 64;
        order.swap(last, draw as usize);
    }
    order
}

/// A number from 0 to 1, 1 excluded.
pub(crate) fn uniform(seed: u64, stream: u64) -> f64 {
    (generator(seed, stream).next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A number of mean 0 and deviation 1. The sum of twelve uniform numbers is normal to within what hashing can
/// notice, and exact in integers, where a logarithm would differ from one mathematics library to the next.
/// An f32 holds it exactly.
pub(crate) fn near_normal(rng: &mut ChaCha8Rng) -> f64 {
    let sum: i64 = (0..12).map(|_| i64::from(rng.next_u32() >> 12)).sum();
    (sum - 6 * ((1 << 20) - 1)) as f64 / f64::from(1 << 20)
}

/// A random sample of `size` numbers below `n`, ascending: one from each of `size` equal stretches.
/// All numbers if `size` is not less than `n`.
pub(crate) fn sample(n: usize, size: usize, seed: u64, stream: u64) -> Vec<u32> {
    let n = u32::try_from(n).expect("fewer than 2^32 rows");
    if size >= n as usize {
        return (0..n).collect();
    }
    let mut rng = generator(seed, stream);
    let start = |stretch: usize| (u128::from(n) * stretch as u128 / size as u128) as u64;
    (0..size)
        .map(|stretch| {
            let (first, end) = (start(stretch), start(stretch + 1));
            let draw = (u128::from(rng.next_u64()) * u128::from(end - first)) >> 64;
            first as u32 + draw as u32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_permutations_and_never_change() {
        for n in [0, 1, 2, 100] {
            let mut order = permutation(n, 7, 0);
            order.sort_unstable();
            assert_eq!(order, (0..n as u32).collect::<Vec<_>>());
        }
        assert_ne!(permutation(50, 7, 0), permutation(50, 7, 1));
        assert_ne!(permutation(50, 7, 0), permutation(50, 8, 0));
        assert_eq!(permutation(8, 7, 3), [6, 2, 3, 4, 7, 5, 0, 1]);
        assert_eq!(sample(1000, 4, 7, 3), [45, 273, 744, 833]);
        assert_eq!(uniform(7, 3), 0.18154186395125538);
        assert_eq!(near_normal(&mut generator(7, 3)), -1.4944038391113281);
    }

    #[test]
    fn near_normal_numbers_are_exact_and_have_the_moments() {
        let mut rng = generator(7, 0);
        let drawn: Vec<f64> = (0..20_000).map(|_| near_normal(&mut rng)).collect();
        let moment = |power| drawn.iter().map(|x: &f64| x.powi(power)).sum::<f64>() / 20_000.0;
        assert!(moment(1).abs() < 0.02, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.03, "{}", moment(2));
        // 3 for a normal distribution, 2.9 for this sum.
        assert!((moment(4) - 2.9).abs() < 0.15, "{}", moment(4));
        assert!(drawn.iter().all(|&x| f64::from(x as f32) == x));
    }

    #[test]
    fn samples_ascend_and_stay_below_n() {
        for (n, size) in [
            (0, 0),
            (0, 5),
            (1, 1),
            (10, 3),
            (10, 10),
            (10, 99),
            (1000, 999),
        ] {
            let drawn = sample(n, size, 7, 0);
            assert_eq!(drawn.len(), size.min(n));
            assert!(drawn.is_sorted_by(|a, b| a < b) && drawn.iter().all(|&x| (x as usize) < n));
        }
        assert_ne!(sample(1000, 50, 7, 0), sample(1000, 50, 8, 0));
    }
}

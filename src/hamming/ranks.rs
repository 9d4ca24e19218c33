//! Sorting few numbers by how many are smaller than each.
//!
//! Not for many: it takes the square of their number.

/// More numbers than this are sorted in another way.
pub(super) const LEN_MAX: usize = 128;

/// Sorts few numbers that all differ: each goes where as many are smaller. Plain loops without a branch that depends
/// on the numbers, which is what makes them several times as fast as others with vectors, and no slower without.
#[inline(always)]
pub(super) fn sort(numbers: &mut [u64]) {
    const AT_ONCE: usize = 8;
    let mut unsorted = [u64::MAX; LEN_MAX];
    let (others, _) = unsorted.split_at_mut(numbers.len());
    others.copy_from_slice(numbers);
    let some = unsorted[..numbers.len().next_multiple_of(AT_ONCE)].as_chunks::<AT_ONCE>();
    for some in some.0 {
        let mut ranks = [0u64; AT_ONCE];
        for other in &unsorted[..numbers.len()] {
            for (rank, number) in ranks.iter_mut().zip(some) {
                *rank += u64::from(other < number);
            }
        }
        for (&rank, &number) in ranks.iter().zip(some) {
            // Those past the last are greater than all.
            if let Some(place) = numbers.get_mut(rank as usize) {
                *place = number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::hamming::Kernel;

    #[test]
    fn every_kernel_sorts_as_the_library_does() {
        let mut rng = ChaCha8Rng::seed_from_u64(12);
        for kernel in Kernel::available() {
            for len in 0..=LEN_MAX + 2 {
                // The highest bit too, which comparisons of vectors may take for a sign.
                let mut numbers: Vec<u64> = (0..len).map(|_| rng.random()).collect();
                if let Some(number) = numbers.first_mut() {
                    *number = u64::MAX;
                }
                let mut expected = numbers.clone();
                expected.sort_unstable();
                kernel.ascend(&mut numbers);
                assert_eq!(numbers, expected, "{kernel:?}, {len} numbers");
            }
        }
    }
}

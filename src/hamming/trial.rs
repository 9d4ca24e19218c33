//! Whether it pays to lay codes in planes: a trial with some of the codes as queries.
//!
//! Depends on the codes alone, not on the machine: what it says goes into files. Leaves out what a search of
//! planes costs; that was measured once.

use super::Kernel;
use super::planes::is_crowded;
use crate::code::{BLOCK_ROWS, CHUNK_ROWS, CodesRef, HashCode, first_words};

/// Codes that are searched for.
const QUERIES: usize = 8;

/// The nearest that each asks for; one more than a search does, as the query itself is among them.
const TRIAL_K: usize = 11;

/// Blocks whose first words are compared with the distance of the last of those.
const BLOCKS: usize = 256;

/// Whether a search for the ten nearest of these codes leaves most of a second plane unread, for most queries.
pub(crate) fn planes_pay(codes: CodesRef<'_>) -> bool {
    let n_codes = codes.n_codes();
    if codes.code_len().words() == 1 || n_codes < CHUNK_ROWS {
        return false;
    }
    let n_paying = (0..QUERIES).filter(|idx| {
        let query = codes.get((2 * idx + 1) * n_codes / (2 * QUERIES));
        !is_crowded(
            n_near_blocks(codes, &query, kth_distance(codes, &query)),
            BLOCKS,
        )
    });
    n_paying.count() > QUERIES / 2
}

/// The distance of the last of the nearest.
fn kth_distance(codes: CodesRef<'_>, query: &HashCode) -> u32 {
    let bits = codes.code_len().bits() as u32;
    let mut nearest: Vec<u32> = Vec::with_capacity(TRIAL_K + 1);
    let mut sink = |_, distance| {
        let place = nearest.partition_point(|&other| other <= distance);
        nearest.insert(place, distance);
        nearest.truncate(TRIAL_K);
        match nearest.len() < TRIAL_K {
            true => Some(bits),
            false => nearest[TRIAL_K - 1].checked_sub(1),
        }
    };
    Kernel::best().scan(codes, 0..codes.n_codes(), query.words(), bits, &mut sink);
    nearest[TRIAL_K - 1]
}

/// Of some blocks from everywhere, those with a row within the bound in the first words alone.
fn n_near_blocks(codes: CodesRef<'_>, query: &HashCode, bound: u32) -> usize {
    let n_blocks = codes.n_codes() / BLOCK_ROWS;
    let in_first = |row: usize| -> u32 {
        (0..first_words(query.words().len()))
            .map(|idx| (codes.word(row, idx) ^ query.words()[idx]).count_ones())
            .sum()
    };
    let is_near = |block: usize| {
        let first = block * BLOCK_ROWS;
        (first..first + BLOCK_ROWS).any(|row| in_first(row) <= bound)
    };
    (0..BLOCKS)
        .filter(|idx| is_near(idx * n_blocks / BLOCKS))
        .count()
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::code::{CodeLen, Codes};

    #[test]
    fn planes_pay_for_clustered_wide_codes_alone() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        for (bits, n_centers, flip, n_codes, pays) in [
            (256, 40, 0.1, CHUNK_ROWS + 9, true),
            (128, 40, 0.1, CHUNK_ROWS, true),
            (1024, 40, 0.1, CHUNK_ROWS, true),
            (256, 40, 0.1, CHUNK_ROWS - 1, false),
            (64, 40, 0.1, CHUNK_ROWS, false),
            (256, 1, 0.5, CHUNK_ROWS, false),
            (128, 1, 0.5, 4 * CHUNK_ROWS, false),
        ] {
            let len = CodeLen::new(bits).unwrap();
            let centers: Vec<Vec<bool>> = (0..n_centers)
                .map(|_| (0..bits).map(|_| rng.random()).collect())
                .collect();
            let mut codes = Codes::new(len);
            for row in 0..n_codes {
                let mut code = HashCode::zeros(len);
                for (bit, &is_set) in centers[row % n_centers].iter().enumerate() {
                    code.set_bit(bit, is_set ^ rng.random_bool(flip));
                }
                codes.push(&code).unwrap();
            }
            assert_eq!(
                planes_pay(codes.as_ref()),
                pays,
                "{bits} bits, {n_codes} codes"
            );
        }
        // Codes that are all equal are all near, however small the bound.
        let len = CodeLen::new(128).unwrap();
        let equal = Codes::from_packed(len, &vec![7; 16 * CHUNK_ROWS]).unwrap();
        assert!(!planes_pay(equal.as_ref()));
    }
}

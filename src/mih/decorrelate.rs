//! Which bits go into which substring where bits are correlated: apart from those they say the same as.
//!
//! Norouzi et al., TPAMI 2014, section 5: a substring of correlated bits has few values, and its buckets
//! crowd. Bits are dealt in turn, so that each substring takes the bit least correlated with those it
//! has. A sample of the codes is looked at; codes of independent bits keep the order that all share.

use crate::code::CodesRef;

/// Codes looked at. Twice as many change no choice that matters.
const SAMPLE_CODES: usize = 16_384;

/// Fewer codes than this are not looked at: they say little, and no bucket of theirs crowds.
const SAMPLE_CODES_MIN: usize = 1024;

/// Correlations up to this many standard deviations of independent bits are noise.
const NOISE_DEVIATIONS: f64 = 6.0;

/// The correlation of every pair of bits, from -1 to 1 without the sign: the share of codes in which
/// the two agree, or disagree if that is more, stretched from [1/2, 1] to [0, 1].
pub(super) struct Correlations {
    bits: usize,
    values: Vec<f32>,
    is_noise: bool,
}

impl Correlations {
    /// Of rows at even distances; `None` for too few codes.
    pub(super) fn measure(codes: CodesRef<'_>) -> Option<Correlations> {
        if codes.n_codes() < SAMPLE_CODES_MIN {
            return None;
        }
        let bits = codes.code_len().bits();
        let n_sampled = codes.n_codes().min(SAMPLE_CODES);
        let words = n_sampled.div_ceil(64);
        // One row of `words` words a bit: bit `i` of it is that bit of sampled code `i`.
        let mut columns = vec![0u64; bits * words];
        for idx in 0..n_sampled {
            let row = (idx as u64 * codes.n_codes() as u64 / n_sampled as u64) as usize;
            for word_idx in 0..codes.code_len().words() {
                let mut rest = codes.word(row, word_idx);
                while rest != 0 {
                    let bit = word_idx * 64 + rest.trailing_zeros() as usize;
                    // A merge may read these out of a damaged file.
                    if bit >= bits {
                        break;
                    }
                    columns[bit * words + idx / 64] |= 1 << (idx % 64);
                    rest &= rest - 1;
                }
            }
        }
        let mut values = vec![1.0; bits * bits];
        let mut greatest = 0f32;
        for a in 0..bits {
            for b in 0..a {
                let (left, right) = (&columns[a * words..], &columns[b * words..]);
                let differing: u32 = (left[..words].iter().zip(right))
                    .map(|(left, right)| (left ^ right).count_ones())
                    .sum();
                let agreement = 1.0 - 2.0 * f64::from(differing) / n_sampled as f64;
                let value = agreement.abs() as f32;
                values[a * bits + b] = value;
                values[b * bits + a] = value;
                greatest = greatest.max(value);
            }
        }
        let noise = NOISE_DEVIATIONS / (n_sampled as f64).sqrt();
        Some(Correlations {
            bits,
            values,
            is_noise: f64::from(greatest) <= noise,
        })
    }

    /// True if independent bits would look the same.
    pub(super) fn is_noise(&self) -> bool {
        self.is_noise
    }

    fn between(&self, a: u16, b: u16) -> f32 {
        self.values[usize::from(a) * self.bits + usize::from(b)]
    }

    /// The strongest correlation of `bit` with any of `bits`, 0 without any.
    fn strongest(&self, bit: u16, bits: &[u16]) -> f32 {
        bits.iter()
            .map(|&other| self.between(bit, other))
            .fold(0.0, f32::max)
    }

    /// Deals all bits to substrings of these widths, one bit at a time in turn. The first bit of a
    /// substring is the one that is most like those the substring before it has begun with; of bits
    /// that are equally good the lowest is taken.
    pub(super) fn deal(&self, widths: &[usize]) -> Vec<Vec<u16>> {
        let mut free: Vec<u16> = (0..self.bits as u16).collect();
        let mut substrings: Vec<Vec<u16>> = widths.iter().map(|_| Vec::new()).collect();
        while !free.is_empty() {
            for substring_idx in 0..widths.len() {
                if substrings[substring_idx].len() == widths[substring_idx] {
                    continue;
                }
                let is_first = substrings[substring_idx].is_empty();
                let score = |bit: u16| match (is_first, substring_idx) {
                    (true, 0) => 0.0,
                    (true, _) => -self.strongest(bit, &substrings[substring_idx - 1]),
                    (false, _) => self.strongest(bit, &substrings[substring_idx]),
                };
                let best = (0..free.len())
                    .min_by(|&a, &b| score(free[a]).total_cmp(&score(free[b])).then(a.cmp(&b)));
                let Some(place) = best else { break };
                substrings[substring_idx].push(free.remove(place));
            }
        }
        for substring in &mut substrings {
            substring.sort_unstable();
        }
        substrings
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::code::{CodeLen, Codes};
    use crate::mih::MihParams;

    /// Codes whose bit `i` repeats bit `i - 1`, one time in five not.
    fn chained(n_codes: usize, bits: usize, seed: u64) -> Codes {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let len = CodeLen::new(bits).unwrap();
        let bytes: Vec<u8> = (0..n_codes)
            .flat_map(|_| {
                let mut bit = rng.random::<bool>();
                let mut code = vec![0u8; bits / 8];
                for idx in 0..bits {
                    bit ^= rng.random_bool(0.2);
                    code[idx / 8] |= u8::from(bit) << (idx % 8);
                }
                code
            })
            .collect();
        Codes::from_packed(len, &bytes).unwrap()
    }

    /// Pairs of equal substrings among the codes, over all substrings: what crowds buckets.
    fn crowding(codes: &Codes, params: &MihParams) -> usize {
        let mut pairs = 0;
        for substring_idx in 0..params.n_substrings() {
            let mut values: Vec<u32> = (0..codes.n_codes())
                .map(|row| params.substring(substring_idx, codes.get(row).words()))
                .collect();
            values.sort_unstable();
            pairs += values
                .chunk_by(|a, b| a == b)
                .map(|run| run.len() * (run.len() - 1))
                .sum::<usize>();
        }
        pairs
    }

    #[test]
    fn correlated_bits_part_and_buckets_are_less_crowded() {
        for (bits, seed) in [(64, 1), (128, 2)] {
            let codes = chained(4000, bits, seed);
            let fitted = MihParams::fit(codes.as_ref());
            let shared = MihParams::choose(codes.code_len(), codes.n_codes());
            assert_eq!(fitted.n_substrings(), shared.n_substrings());
            let (after, before) = (crowding(&codes, &fitted), crowding(&codes, &shared));
            assert!(
                after * 10 < before * 9,
                "{bits} bits: {after} of {before} pairs"
            );
            assert_eq!(fitted, MihParams::fit(codes.as_ref()));
        }
    }

    #[test]
    fn agreement_and_its_opposite_count_alike() {
        // Bits 0 and 1 agree always, 0 and 2 never, 0 and 3 half the time.
        let len = CodeLen::new(16).unwrap();
        let bytes: Vec<u8> = (0..2048u16)
            .flat_map(|i| {
                [
                    [0b0011, 0b0100][usize::from(i % 2)] | (i as u8 / 2 % 2) << 3,
                    0,
                ]
            })
            .collect();
        let codes = Codes::from_packed(len, &bytes).unwrap();
        let measured = Correlations::measure(codes.as_ref()).unwrap();
        assert_eq!(measured.between(0, 1), 1.0);
        assert_eq!(measured.between(2, 0), 1.0);
        assert_eq!(measured.between(0, 3), 0.0);
    }

    #[test]
    fn independent_bits_keep_the_shared_order() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let len = CodeLen::new(64).unwrap();
        let bytes: Vec<u8> = (0..20_000 * 8).map(|_| rng.random()).collect();
        let codes = Codes::from_packed(len, &bytes).unwrap();
        assert_eq!(
            MihParams::fit(codes.as_ref()),
            MihParams::choose(len, 20_000)
        );
        let none = Codes::new(len);
        assert_eq!(MihParams::fit(none.as_ref()), MihParams::choose(len, 0));
    }

    #[test]
    fn every_width_is_dealt_in_full() {
        for bits in (16..=200).step_by(8) {
            for n_codes in [3, 1500] {
                let codes = chained(n_codes, bits, bits as u64);
                // `MihParams::new` refuses a bit that is missing or dealt twice.
                let fitted = MihParams::fit(codes.as_ref());
                let shared = MihParams::choose(codes.code_len(), n_codes);
                for idx in 0..shared.n_substrings() {
                    assert_eq!(fitted.width(idx), shared.width(idx));
                }
            }
        }
    }
}

//! How a code is cut into substrings. The bit positions of each substring are listed one by one, so a
//! bit permutation is data: a file keeps the one it was built with, whatever later builds prefer.

use serde::{Deserialize, Serialize};

use crate::code::{CodeLen, CodesRef};
use crate::error::{Error, Result};
use crate::mih::decorrelate::Correlations;
use crate::mih::shell_size;

/// The longest substring, in bits: its table has 2^22 + 1 offsets, 16 MiB.
pub const MAX_SUBSTRING_BITS: usize = 22;

/// The shortest substring that [`MihParams::choose`] makes, in bits.
const CHOSEN_BITS_MIN: f64 = 8.0;

/// The longest substring of tables with copies of the codes, in bits: 2^16 + 1 offsets stay in the second-level cache.
const COPIED_BITS_MAX: usize = 16;

/// The entries of a bucket that those tables are made for: a few cache lines of codes, so that to get there is not most
/// of the work, and not so many that most of it is in vain.
const COPIED_BUCKET: f64 = 128.0;

/// The seed of the bit permutation. Any number does; this one is the digits of pi.
const PERMUTATION_SEED: u64 = 3141592653589793238;

/// The substrings of a multi-index: which bits each one takes. Valid by construction, from JSON too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawParams", into = "RawParams")]
pub struct MihParams {
    code_len: CodeLen,
    substrings: Vec<Vec<u16>>,
    /// The bits of each substring as a mask over the words of a code, substring after substring.
    masks: Vec<u64>,
}

/// The stored form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawParams {
    code_len_bits: usize,
    substrings: Vec<Vec<u16>>,
}

impl From<MihParams> for RawParams {
    fn from(params: MihParams) -> RawParams {
        RawParams {
            code_len_bits: params.code_len.bits(),
            substrings: params.substrings,
        }
    }
}

impl TryFrom<RawParams> for MihParams {
    type Error = Error;

    fn try_from(raw: RawParams) -> Result<MihParams> {
        MihParams::new(CodeLen::new(raw.code_len_bits)?, raw.substrings)
    }
}

impl MihParams {
    /// Cuts codes of `code_len` so that bit `i` of substring `k` is bit `substrings[k][i]` of the code.
    ///
    /// # Errors
    /// `InvalidArgument` unless every bit occurs exactly once and every substring has 1 to
    /// [`MAX_SUBSTRING_BITS`] bits.
    pub fn new(code_len: CodeLen, substrings: Vec<Vec<u16>>) -> Result<MihParams> {
        let words = code_len.words();
        let mut seen = vec![false; code_len.bits()];
        let mut masks = Vec::with_capacity(substrings.len().min(code_len.bits()) * words);
        for (substring_idx, bits) in substrings.iter().enumerate() {
            if !(1..=MAX_SUBSTRING_BITS).contains(&bits.len()) {
                return Err(Error::invalid(format!(
                    "a substring has 1 to {MAX_SUBSTRING_BITS} bits, substring {substring_idx} has {}",
                    bits.len()
                )));
            }
            let mut mask = [0u64; CodeLen::MAX_BITS / 64];
            for &bit in bits {
                let bit = usize::from(bit);
                match seen.get_mut(bit) {
                    Some(seen) if !*seen => *seen = true,
                    Some(_) => {
                        return Err(Error::invalid(format!(
                            "bit {bit} is in more than one place of the substrings"
                        )));
                    }
                    None => {
                        return Err(Error::invalid(format!(
                            "substring {substring_idx} takes bit {bit} of a code of {code_len} bits"
                        )));
                    }
                }
                mask[bit / 64] |= 1 << (bit % 64);
            }
            masks.extend_from_slice(&mask[..words]);
        }
        if let Some(bit) = seen.iter().position(|seen| !seen) {
            return Err(Error::invalid(format!("no substring takes bit {bit}")));
        }
        Ok(MihParams {
            code_len,
            substrings,
            masks,
        })
    }

    /// The substrings for about `n_codes` codes: as many as make each close to log2(n) bits, where a
    /// bucket holds about one code (Norouzi et al., section 4), the bits dealt at random but always alike.
    pub fn choose(code_len: CodeLen, n_codes: usize) -> MihParams {
        MihParams::shuffled(code_len, &widths(code_len, n_codes))
    }

    /// Substrings of these widths, the bits dealt at random but always alike.
    fn shuffled(code_len: CodeLen, widths: &[usize]) -> MihParams {
        let mut order: Vec<u16> = (0..code_len.bits() as u16).collect();
        shuffle(&mut order, PERMUTATION_SEED);
        let mut substrings = Vec::new();
        let mut rest = &order[..];
        for &width in widths {
            let (taken, left) = rest.split_at(width);
            let mut taken = taken.to_vec();
            taken.sort_unstable();
            substrings.push(taken);
            rest = left;
        }
        MihParams::new(code_len, substrings).expect("a permutation cut into pieces of legal width")
    }

    /// The substrings for these codes: as [`choose`](MihParams::choose), but where bits are correlated
    /// those of one substring are as little so as a greedy choice can make them (Norouzi et al., section
    /// 5). A function of the codes alone.
    pub fn fit(codes: CodesRef<'_>) -> MihParams {
        MihParams::dealt(codes, &widths(codes.code_len(), codes.n_codes()))
    }

    /// As [`fit`](MihParams::fit), for tables with [copies](crate::mih::MihView::with_copies) of the codes: shorter
    /// substrings, of at most 16 bits, so that a bucket holds about 128 of evenly spread codes.
    pub fn fit_copies(codes: CodesRef<'_>) -> MihParams {
        let bits = codes.code_len().bits();
        let m = n_substrings(bits, codes.n_codes() as f64 / COPIED_BUCKET);
        MihParams::dealt(
            codes,
            &even_widths(bits, m.max(bits.div_ceil(COPIED_BITS_MAX))),
        )
    }

    fn dealt(codes: CodesRef<'_>, widths: &[usize]) -> MihParams {
        let code_len = codes.code_len();
        match Correlations::measure(codes) {
            Some(correlations) if !correlations.is_noise() => {
                MihParams::new(code_len, correlations.deal(widths))
                    .expect("each bit dealt once, in pieces of legal width")
            }
            _ => MihParams::shuffled(code_len, widths),
        }
    }

    /// The length of the codes.
    pub fn code_len(&self) -> CodeLen {
        self.code_len
    }

    /// The number of substrings, the paper's m.
    pub fn n_substrings(&self) -> usize {
        self.substrings.len()
    }

    /// The bit positions of each substring.
    pub fn substrings(&self) -> &[Vec<u16>] {
        &self.substrings
    }

    /// The number of bits of substring `substring_idx`. Panics past the last.
    #[inline]
    pub fn width(&self, substring_idx: usize) -> usize {
        self.substrings[substring_idx].len()
    }

    /// Substring `substring_idx` of a code given by its words. Panics past the last or on too few words.
    pub fn substring(&self, substring_idx: usize, code: &[u64]) -> u32 {
        let mut value = 0;
        for (i, &bit) in self.substrings[substring_idx].iter().enumerate() {
            value |= ((code[usize::from(bit) / 64] >> (bit % 64) & 1) as u32) << i;
        }
        value
    }

    /// The bits of each substring as a mask, of codes of one word.
    #[inline]
    pub(crate) fn word_masks(&self) -> &[u64] {
        debug_assert_eq!(self.code_len.words(), 1);
        &self.masks
    }

    /// Differing bits within substring `substring_idx`, where `differing` is the xor of two codes.
    #[inline]
    pub(crate) fn substring_distance(&self, substring_idx: usize, differing: &[u64]) -> u32 {
        let words = differing.len();
        self.masks[substring_idx * words..(substring_idx + 1) * words]
            .iter()
            .zip(differing)
            .map(|(mask, word)| (mask & word).count_ones())
            .sum()
    }

    /// The buckets that a search looks up that meets every code within `bound`.
    pub(crate) fn n_lookups(&self, bound: u32) -> u32 {
        let shells = |(idx, ball): (usize, usize)| {
            let width = self.width(idx);
            (0..=ball).map(move |radius| shell_size(width, radius))
        };
        self.balls(bound).flat_map(shells).sum()
    }

    /// In how many of those buckets a code with these differing bits is.
    pub(crate) fn n_meetings(&self, differing: &[u64], bound: u32) -> u32 {
        let is_met = |&(idx, ball): &(usize, usize)| {
            self.substring_distance(idx, differing) as usize <= ball
        };
        self.balls(bound).filter(is_met).count() as u32
    }

    /// Each substring that is looked into for codes within `bound`, and how far.
    fn balls(&self, bound: u32) -> impl Iterator<Item = (usize, usize)> {
        let ball = move |idx| Some((idx, self.substring_radius(idx, bound as usize)?));
        (0..self.n_substrings()).filter_map(ball)
    }

    /// The radius within which substring `substring_idx` must be searched so that, all together, no
    /// code within `radius` is missed; `None` if it need not be searched at all.
    #[inline]
    pub fn substring_radius(&self, substring_idx: usize, radius: usize) -> Option<usize> {
        let rest = radius.checked_sub(substring_idx)?;
        Some((rest / self.n_substrings()).min(self.width(substring_idx)))
    }
}

/// The widths of the substrings for about `n_codes` codes, longer ones first.
fn widths(code_len: CodeLen, n_codes: usize) -> Vec<usize> {
    let bits = code_len.bits();
    let m = n_substrings(bits, n_codes as f64);
    even_widths(bits, m.max(bits.div_ceil(MAX_SUBSTRING_BITS)))
}

/// How many substrings make each about as long as the logarithm of `n_buckets`.
fn n_substrings(bits: usize, n_buckets: f64) -> usize {
    let substring_bits = n_buckets.max(1.0).log2().max(CHOSEN_BITS_MIN);
    ((bits as f64 / substring_bits).round() as usize).max(1)
}

/// `bits` cut into `m` pieces, longer ones first.
fn even_widths(bits: usize, m: usize) -> Vec<usize> {
    (0..m)
        .map(|substring_idx| bits / m + usize::from(substring_idx < bits % m))
        .collect()
}

/// Fisher-Yates over SplitMix64, spelled out because stored files must not depend on what a random
/// number crate does in its next version.
fn shuffle(order: &mut [u16], seed: u64) {
    let mut state = seed;
    for last in (1..order.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        order.swap(last, (z % (last as u64 + 1)) as usize);
    }
}

/// One substring of many codes: a table of 256 contributions for each byte that holds any of its bits.
pub(crate) struct Extractor {
    bytes: Vec<(usize, [u32; 256])>,
}

impl Extractor {
    pub(crate) fn new(params: &MihParams, substring_idx: usize) -> Extractor {
        let mut bytes: Vec<(usize, [u32; 256])> = Vec::new();
        for (i, &bit) in params.substrings[substring_idx].iter().enumerate() {
            let byte_idx = usize::from(bit) / 8;
            let position = bytes.iter().position(|(idx, _)| *idx == byte_idx);
            let position = position.unwrap_or_else(|| {
                bytes.push((byte_idx, [0; 256]));
                bytes.len() - 1
            });
            for (byte, contribution) in bytes[position].1.iter_mut().enumerate() {
                *contribution |= ((byte >> (bit % 8) & 1) as u32) << i;
            }
        }
        bytes.sort_unstable_by_key(|(byte_idx, _)| *byte_idx);
        Extractor { bytes }
    }

    /// The substring of the code whose word `i` is `word(i)`.
    #[inline]
    pub(crate) fn extract(&self, word: impl Fn(usize) -> u64) -> u32 {
        self.bytes
            .iter()
            .map(|(byte_idx, contributions)| {
                contributions[(word(byte_idx / 8) >> (byte_idx % 8 * 8)) as usize & 0xff]
            })
            .fold(0, |value, contribution| value | contribution)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::HashCode;

    fn len(bits: usize) -> CodeLen {
        CodeLen::new(bits).unwrap()
    }

    #[test]
    fn chosen_params_cover_every_length_and_size() {
        for bits in (16..=1024).step_by(8) {
            for n_codes in [0, 1, 1000, 1_000_000, usize::MAX] {
                let params = MihParams::choose(len(bits), n_codes);
                let widths: Vec<usize> = (0..params.n_substrings())
                    .map(|substring_idx| params.width(substring_idx))
                    .collect();
                assert_eq!(widths.iter().sum::<usize>(), bits);
                assert!(widths.iter().max().unwrap() - widths.iter().min().unwrap() <= 1);
                let json = serde_json::to_string(&params).unwrap();
                assert_eq!(serde_json::from_str::<MihParams>(&json).unwrap(), params);
            }
        }
        assert_eq!(MihParams::choose(len(64), 1_000_000).n_substrings(), 3);
        assert_eq!(MihParams::choose(len(256), 1_000_000).n_substrings(), 13);
    }

    #[test]
    fn the_permutation_never_changes() {
        let params = MihParams::choose(len(16), 1000);
        assert_eq!(
            params.substrings(),
            [[0, 4, 7, 8, 9, 10, 13, 15], [1, 2, 3, 5, 6, 11, 12, 14]],
            "another permutation writes other files"
        );
    }

    #[test]
    fn invalid_params_are_refused() {
        let all: Vec<u16> = (0..16).collect();
        assert!(MihParams::new(len(16), vec![all.clone()]).is_ok());
        assert!(MihParams::new(len(24), vec![all.clone()]).is_err());
        assert!(MihParams::new(len(16), vec![all.clone(), vec![]]).is_err());
        assert!(MihParams::new(len(16), vec![all.clone(), vec![3]]).is_err());
        assert!(MihParams::new(len(16), vec![all.clone(), vec![16]]).is_err());
        assert!(MihParams::new(len(24), vec![(0..24).collect()]).is_err());
        assert!(MihParams::new(len(16), vec![]).is_err());
        let json = r#"{"code_len_bits":16,"substrings":[[0,1,1]]}"#;
        assert!(serde_json::from_str::<MihParams>(json).is_err());
        let json = r#"{"code_len_bits":17,"substrings":[]}"#;
        assert!(serde_json::from_str::<MihParams>(json).is_err());
    }

    #[test]
    fn both_ways_of_cutting_agree() {
        for bits in [16, 40, 64, 200, 1024] {
            let params = MihParams::choose(len(bits), 5000);
            let bytes: Vec<u8> = (0..bits / 8).map(|i| (i * 151 + 7) as u8).collect();
            let code = HashCode::from_bytes(&bytes).unwrap();
            let mut sum = 0;
            for substring_idx in 0..params.n_substrings() {
                let substring = params.substring(substring_idx, code.words());
                let extractor = Extractor::new(&params, substring_idx);
                assert_eq!(extractor.extract(|i| code.words()[i]), substring);
                let distance = params.substring_distance(substring_idx, code.words());
                assert_eq!(substring.count_ones(), distance);
                sum += distance;
            }
            assert_eq!(code.distance(&HashCode::zeros(len(bits))).unwrap(), sum);
        }
    }

    /// The theorem itself: a code farther than the radius of each substring is farther in total.
    #[test]
    fn substring_radii_leave_no_gap() {
        for bits in [16, 64, 104] {
            let params = MihParams::choose(len(bits), 1000);
            for radius in 0..=bits {
                let mut nearest_missed = 0;
                let mut all_covered = false;
                for substring_idx in 0..params.n_substrings() {
                    match params.substring_radius(substring_idx, radius) {
                        Some(s) if s == params.width(substring_idx) => all_covered = true,
                        Some(s) => nearest_missed += s + 1,
                        None => {}
                    }
                }
                assert!(
                    all_covered || nearest_missed > radius,
                    "{bits} bits, {radius}"
                );
            }
        }
    }
}

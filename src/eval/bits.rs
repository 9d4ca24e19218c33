//! How well a set of codes uses its bits: balance, correlation, and what binarizing loses.

use std::ops::Deref;

use rayon::prelude::*;
use serde::Serialize;

use crate::code::{CodeLen, Codes};
use crate::error::{Error, Result};

/// How often each bit is one. Half of the time is best: such a bit says most.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BitBalance {
    /// The share of codes in which each bit is one.
    pub ones: Vec<f64>,
    /// The mean of |2p - 1| over bits, p being the share of ones: 0 for balanced bits, 1 for constant ones.
    pub bias: f64,
    /// Bits that are the same in every code.
    pub n_constant: usize,
}

/// Pearson's correlation of each two bits. Bits that follow each other repeat what is known.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BitCorrelation {
    /// The mean of |correlation| over pairs of two bits; a pair with a constant bit is left out.
    pub mean: f64,
    /// The largest |correlation| of two bits.
    pub max: f64,
    /// The two bits that have it, the first such pair; none if there is no pair to compare.
    pub max_pair: Option<[usize; 2]>,
    /// All correlations, bits x bits, row-major; 0 for a constant bit, with itself too. Not serialized.
    #[serde(skip)]
    pub matrix: Vec<f32>,
}

/// Bit planes: for each bit, one bit a code.
struct Planes {
    n_codes: usize,
    /// Words of a plane.
    width: usize,
    words: Vec<u64>,
}

impl Planes {
    fn new<D: Deref<Target = [u64]>>(codes: &Codes<D>) -> Planes {
        let codes = codes.as_ref();
        let width = codes.n_codes().div_ceil(64).max(1);
        let mut words = vec![0u64; codes.code_len().words() * 64 * width];
        // Each word of the codes fills 64 planes of its own.
        words
            .par_chunks_mut(64 * width)
            .enumerate()
            .for_each(|(word_idx, planes)| {
                for row in 0..codes.n_codes() {
                    let mut left = codes.word(row, word_idx);
                    while left != 0 {
                        let bit = left.trailing_zeros() as usize;
                        planes[bit * width + row / 64] |= 1 << (row % 64);
                        left &= left - 1;
                    }
                }
            });
        Planes {
            n_codes: codes.n_codes(),
            width,
            words,
        }
    }

    fn plane(&self, bit: usize) -> &[u64] {
        &self.words[bit * self.width..][..self.width]
    }

    fn ones(&self, bit: usize) -> u64 {
        self.plane(bit)
            .iter()
            .map(|w| u64::from(w.count_ones()))
            .sum()
    }

    fn both_ones(&self, a: usize, b: usize) -> u64 {
        let pairs = self.plane(a).iter().zip(self.plane(b));
        pairs.map(|(a, b)| u64::from((a & b).count_ones())).sum()
    }
}

/// Balance and correlation of the bits of a set of codes.
///
/// # Errors
/// `InvalidArgument` for an empty set.
pub fn bit_statistics<D: Deref<Target = [u64]>>(
    codes: &Codes<D>,
) -> Result<(BitBalance, BitCorrelation)> {
    if codes.is_empty() {
        return Err(Error::invalid("expected at least one code, got none"));
    }
    let bits = codes.code_len().bits();
    let planes = Planes::new(codes);
    let n = planes.n_codes as f64;
    let counts: Vec<u64> = (0..bits).map(|bit| planes.ones(bit)).collect();
    let ones: Vec<f64> = counts.iter().map(|&count| count as f64 / n).collect();
    let balance = BitBalance {
        bias: ones.iter().map(|p| (2.0 * p - 1.0).abs()).sum::<f64>() / bits as f64,
        n_constant: ones.iter().filter(|&&p| p == 0.0 || p == 1.0).count(),
        ones,
    };
    // n^2 times the covariance, and the variances, are exact in f64 up to 2^26 codes.
    let spread = |bit: usize| {
        let c = counts[bit] as f64;
        (c * (n - c)).sqrt()
    };
    let correlation = |a: usize, b: usize| {
        let scale = spread(a) * spread(b);
        let covariance = n * planes.both_ones(a, b) as f64 - counts[a] as f64 * counts[b] as f64;
        (scale > 0.0).then(|| (covariance / scale).clamp(-1.0, 1.0))
    };
    let rows: Vec<Vec<Option<f64>>> = (0..bits)
        .into_par_iter()
        .map(|a| (a..bits).map(|b| correlation(a, b)).collect())
        .collect();
    let mut found = BitCorrelation {
        mean: 0.0,
        max: 0.0,
        max_pair: None,
        matrix: vec![0.0; bits * bits],
    };
    let mut n_pairs = 0usize;
    for (a, row) in rows.iter().enumerate() {
        for (b, value) in (a..).zip(row) {
            let Some(value) = *value else { continue };
            found.matrix[a * bits + b] = value as f32;
            found.matrix[b * bits + a] = value as f32;
            if a == b {
                continue;
            }
            n_pairs += 1;
            found.mean += value.abs();
            if found.max_pair.is_none() || value.abs() > found.max {
                (found.max, found.max_pair) = (value.abs(), Some([a, b]));
            }
        }
    }
    found.mean /= n_pairs.max(1) as f64;
    Ok((balance, found))
}

/// What binarizing loses: the distance from code logits to their signs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct QuantizationError {
    /// The mean of `(v - sign v)^2` over all logits v. Depends on their scale.
    pub squared: f64,
    /// The mean over items of 1 - cos(v, sign v), v being all logits of an item. Independent of scale.
    pub cosine: f64,
}

/// The quantization error of N x K logits, row-major; zero has the sign -1, as in
/// [`binarize`](crate::code::binarize). An item of zeros alone has cosine 0.
///
/// # Errors
/// `InvalidArgument` unless there are whole rows, at least one, of finite numbers.
pub fn quantization_error(len: CodeLen, logits: &[f32]) -> Result<QuantizationError> {
    let bits = len.bits();
    if logits.is_empty() || !logits.len().is_multiple_of(bits) {
        return Err(Error::invalid(format!(
            "expected rows of {bits} logits, at least one, got {} numbers",
            logits.len()
        )));
    }
    if let Some(at) = logits.iter().position(|v| !v.is_finite()) {
        return Err(Error::invalid(format!(
            "expected finite logits, number {} of row {} is {}",
            at % bits,
            at / bits,
            logits[at]
        )));
    }
    let (mut squared, mut cosine) = (0.0, 0.0);
    for row in logits.chunks_exact(bits) {
        let row = row.iter().map(|&v| f64::from(v));
        squared += row
            .clone()
            .map(|v| (v - if v > 0.0 { 1.0 } else { -1.0 }).powi(2))
            .sum::<f64>();
        // v times its sign is |v|, and the signs have length sqrt(K).
        let (sum, norm) = row.fold((0.0, 0.0), |(sum, norm), v| (sum + v.abs(), norm + v * v));
        cosine += 1.0
            - if norm > 0.0 {
                sum / (norm * bits as f64).sqrt()
            } else {
                0.0
            };
    }
    let n = (logits.len() / bits) as f64;
    Ok(QuantizationError {
        squared: squared / logits.len() as f64,
        cosine: cosine / n,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_codes_by_hand() {
        // Bits 0 and 1 equal, bit 2 their opposite, bit 3 independent of them, bit 4 always one, the rest zero.
        let rows: [u16; 4] = [0b11011, 0b10011, 0b11100, 0b10100];
        let bytes: Vec<u8> = rows.iter().flat_map(|row| row.to_le_bytes()).collect();
        let codes = Codes::from_packed(CodeLen::new(16).unwrap(), &bytes).unwrap();
        let (balance, correlation) = bit_statistics(&codes).unwrap();
        assert_eq!(balance.ones[..6], [0.5, 0.5, 0.5, 0.5, 1.0, 0.0]);
        assert_eq!((balance.n_constant, balance.bias), (12, 12.0 / 16.0));
        // Of the six pairs of bits 0 to 3, three have correlation 1 or -1 and three 0.
        assert_eq!((correlation.mean, correlation.max), (0.5, 1.0));
        assert_eq!(correlation.max_pair, Some([0, 1]));
        let at = |a: usize, b: usize| correlation.matrix[a * 16 + b];
        assert_eq!((at(0, 1), at(2, 0), at(3, 1)), (1.0, -1.0, 0.0));
        assert_eq!((at(4, 4), at(3, 3)), (0.0, 1.0));
        assert!(bit_statistics(&Codes::new(codes.code_len())).is_err());
    }

    #[test]
    fn one_code_has_only_constant_bits() {
        let codes = Codes::from_packed(CodeLen::new(72).unwrap(), &[7; 9]).unwrap();
        let (balance, correlation) = bit_statistics(&codes).unwrap();
        assert_eq!((balance.n_constant, balance.bias), (72, 1.0));
        assert_eq!(
            (correlation.mean, correlation.max, correlation.max_pair),
            (0.0, 0.0, None)
        );
    }

    #[test]
    fn quantization_by_hand() {
        let len = CodeLen::new(16).unwrap();
        let mut logits = [1.0f32; 16];
        logits[3] = -1.0;
        let exact = quantization_error(len, &logits).unwrap();
        assert_eq!(exact.squared, 0.0);
        assert!(exact.cosine.abs() < 1e-12);
        let mut two = logits.map(|v| 3.0 * v).to_vec();
        two.extend([0.0; 16]);
        let found = quantization_error(len, &two).unwrap();
        // 4 for each logit of the first row, 1 for each of the second; cosines 1 and 0.
        assert_eq!(found.squared, 2.5);
        assert!((found.cosine - 0.5).abs() < 1e-12);
        assert!(quantization_error(len, &two[1..]).is_err());
        two[17] = f32::NAN;
        let error = quantization_error(len, &two).unwrap_err().to_string();
        assert!(error.contains("number 1 of row 1"), "{error}");
    }
}

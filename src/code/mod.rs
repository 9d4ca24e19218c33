//! Hash codes: one ([`HashCode`]) and many ([`Codes`]).
//!
//! Bit `j` of a code is bit `j % 64` of word `j / 64`; as bytes, bit `j % 8` of byte `j / 8`. This is
//! the order of a FAISS `uint8` matrix, so code files travel between the two unchanged. Bits past the
//! length are zero in every word this module hands out, which lets every distance loop ignore the length.
//! Knows no file, thread or index.

mod order;
mod pack;
mod set;

pub use order::RowOrder;
pub use pack::{binarize, signs};
pub use set::{BLOCK_ROWS, CHUNK_ROWS, Codes, CodesRef};
pub(crate) use set::{CHUNK_BLOCKS, first_words, places};

use std::fmt;

use smallvec::SmallVec;

use crate::error::{Error, ErrorKind, Result};

/// The length of a hash code in bits: a multiple of 8 from 16 to 1024.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CodeLen(u16);

impl CodeLen {
    /// The shortest code, in bits.
    pub const MIN_BITS: usize = 16;
    /// The longest code, in bits.
    pub const MAX_BITS: usize = 1024;

    /// A length of `bits` bits.
    ///
    /// # Errors
    /// `InvalidArgument` unless `bits` is a multiple of 8 from 16 to 1024.
    pub fn new(bits: usize) -> Result<CodeLen> {
        if !bits.is_multiple_of(8) || !(Self::MIN_BITS..=Self::MAX_BITS).contains(&bits) {
            return Err(Error::invalid(format!(
                "a hash code has 16 to 1024 bits in steps of 8, got {bits}"
            )));
        }
        Ok(CodeLen(bits as u16))
    }

    /// Length in bits.
    pub fn bits(self) -> usize {
        usize::from(self.0)
    }

    /// Length in bytes.
    pub fn bytes(self) -> usize {
        self.bits() / 8
    }

    /// Length in 64-bit words, the last one padded with zero bits.
    pub fn words(self) -> usize {
        self.bits().div_ceil(64)
    }

    /// `(bits - distance) / bits`: 1 for equal codes, 0 for opposite ones. The only place where a
    /// distance becomes a score.
    pub fn score(self, distance: u32) -> f32 {
        (self.bits() as f32 - distance as f32) / self.bits() as f32
    }

    /// `Ok` if `got` is this length.
    pub fn check(self, got: CodeLen) -> Result<()> {
        if self == got {
            return Ok(());
        }
        Err(ErrorKind::CodeLenMismatch {
            expected: self.bits(),
            got: got.bits(),
        }
        .into())
    }
}

impl fmt::Debug for CodeLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bits", self.0)
    }
}

impl fmt::Display for CodeLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One hash code, owned. Up to 256 bits without an allocation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashCode {
    len: CodeLen,
    words: SmallVec<[u64; 4]>,
}

impl HashCode {
    /// All bits zero.
    pub fn zeros(len: CodeLen) -> HashCode {
        HashCode {
            len,
            words: SmallVec::from_elem(0, len.words()),
        }
    }

    /// From `len.words()` words. Bits past the length are cleared.
    ///
    /// # Errors
    /// `CodeLenMismatch` if the number of words differs.
    pub fn from_words(len: CodeLen, words: &[u64]) -> Result<HashCode> {
        if words.len() != len.words() {
            let (expected, got) = (len.bits(), words.len() * 64);
            return Err(ErrorKind::CodeLenMismatch { expected, got }.into());
        }
        let mut code = HashCode {
            len,
            words: SmallVec::from_slice(words),
        };
        if !len.bits().is_multiple_of(64) {
            let last = code.words.len() - 1;
            code.words[last] &= (1 << (len.bits() % 64)) - 1;
        }
        Ok(code)
    }

    /// From packed bytes; the length is 8 bits a byte.
    ///
    /// # Errors
    /// `InvalidArgument` unless there are 2 to 128 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<HashCode> {
        let len = CodeLen::new(bytes.len() * 8)?;
        let (whole, rest) = bytes.as_chunks::<8>();
        let mut words: SmallVec<[u64; 4]> = SmallVec::with_capacity(len.words());
        words.extend(whole.iter().map(|word| u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            words.push(u64::from_le_bytes(word));
        }
        Ok(HashCode { len, words })
    }

    /// From hexadecimal digits, two a byte, first byte first.
    ///
    /// # Errors
    /// `InvalidArgument` on another character, an odd count, or a length no code has.
    pub fn from_hex(hex: &str) -> Result<HashCode> {
        let digits = hex.trim().as_bytes();
        let bytes: Option<Vec<u8>> = digits
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => {
                    let digit = |c: u8| (c as char).to_digit(16);
                    Some((digit(*high)? << 4 | digit(*low)?) as u8)
                }
                _ => None,
            })
            .collect();
        let bytes = bytes.ok_or_else(|| {
            Error::invalid(format!(
                "a hash code is written as hexadecimal digits, two a byte, got {hex:?}"
            ))
        })?;
        HashCode::from_bytes(&bytes)
    }

    /// The packed bytes, [`CodeLen::bytes`] of them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.words.len() * 8);
        for word in &self.words {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.truncate(self.len.bytes());
        bytes
    }

    /// Lower-case hexadecimal digits, two a byte, first byte first.
    pub fn to_hex(&self) -> String {
        hex(&self.to_bytes())
    }

    /// The length.
    pub fn code_len(&self) -> CodeLen {
        self.len
    }

    /// The words; bits past the length are zero.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Bit `bit_idx`. Panics past the length.
    pub fn bit(&self, bit_idx: usize) -> bool {
        assert!(
            bit_idx < self.len.bits(),
            "bit {bit_idx} of a code of {} bits",
            self.len
        );
        self.words[bit_idx / 64] >> (bit_idx % 64) & 1 == 1
    }

    /// Sets bit `bit_idx` to `value`. Panics past the length.
    pub fn set_bit(&mut self, bit_idx: usize, value: bool) {
        assert!(
            bit_idx < self.len.bits(),
            "bit {bit_idx} of a code of {} bits",
            self.len
        );
        let mask = 1 << (bit_idx % 64);
        if value {
            self.words[bit_idx / 64] |= mask;
        } else {
            self.words[bit_idx / 64] &= !mask;
        }
    }

    /// The number of bits that differ.
    ///
    /// # Errors
    /// `CodeLenMismatch`.
    pub fn distance(&self, other: &HashCode) -> Result<u32> {
        self.len.check(other.len)?;
        Ok(self
            .words
            .iter()
            .zip(&other.words)
            .map(|(a, b)| (a ^ b).count_ones())
            .sum())
    }
}

impl fmt::Debug for HashCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashCode({}: {})", self.len, self.to_hex())
    }
}

/// Lower-case hexadecimal digits, two a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        for bits in 0..1200 {
            let allowed = (16..=1024).contains(&bits) && bits % 8 == 0;
            assert_eq!(CodeLen::new(bits).is_ok(), allowed, "{bits}");
        }
    }

    #[test]
    fn bytes_hex_and_bits_agree() {
        let code = HashCode::from_hex("0180ff0000000000a5").unwrap();
        assert_eq!(code.code_len().bits(), 72);
        assert!(code.bit(0) && code.bit(15) && code.bit(16) && !code.bit(1) && code.bit(64));
        assert_eq!(code.to_hex(), "0180ff0000000000a5");
        assert_eq!(HashCode::from_bytes(&code.to_bytes()).unwrap(), code);
        assert!(HashCode::from_hex("012").is_err() && HashCode::from_hex("zz00").is_err());
        assert!(HashCode::from_hex("é0").is_err());
    }

    #[test]
    fn bits_past_the_length_are_cleared() {
        let len = CodeLen::new(72).unwrap();
        let code = HashCode::from_words(len, &[0, u64::MAX]).unwrap();
        assert_eq!(code.words(), [0, 0xff]);
        assert_eq!(code.distance(&HashCode::zeros(len)).unwrap(), 8);
    }
}

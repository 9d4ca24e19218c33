//! Many codes of one length, in the blocked layout that the kernels read.
//!
//! Rows are grouped in blocks of eight. A block holds word 0 of its eight rows, then word 1 of its
//! eight rows, and so on; the last block is padded with zero rows. One 512-bit load then brings the same
//! word of eight codes, and no width needs a horizontal sum. Codes of up to 64 bits come out row-major.
//! Generic over its words, so the same type owns a vector or borrows a memory map.

use std::ops::Deref;

use smallvec::SmallVec;

use crate::code::{CodeLen, HashCode};
use crate::error::{Error, Result};

/// Rows in a block.
pub const BLOCK_ROWS: usize = 8;

/// Packed codes, all of one length: `n_codes` rows in blocks of [`BLOCK_ROWS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes<D = Vec<u64>> {
    len: CodeLen,
    n_codes: usize,
    /// Invariant: `words_for(len, n_codes)` words; padding rows and bits past the length are zero.
    words: D,
}

/// Borrowed [`Codes`].
pub type CodesRef<'a> = Codes<&'a [u64]>;

/// Words that hold `n_codes` codes, or `None` where that overflows.
fn words_for(len: CodeLen, n_codes: usize) -> Option<usize> {
    n_codes
        .div_ceil(BLOCK_ROWS)
        .checked_mul(BLOCK_ROWS)?
        .checked_mul(len.words())
}

impl<D: Deref<Target = [u64]>> Codes<D> {
    /// Takes words that are already in the blocked layout.
    ///
    /// # Errors
    /// `InvalidArgument` if the number of words is not that of `n_codes` codes. The zero padding is
    /// the caller's contract: `verify` checks it for files.
    pub fn from_blocks(len: CodeLen, n_codes: usize, words: D) -> Result<Codes<D>> {
        if words_for(len, n_codes) != Some(words.len()) {
            return Err(Error::invalid(format!(
                "{n_codes} codes of {len} bits take {:?} words, got {}",
                words_for(len, n_codes).unwrap_or(usize::MAX),
                words.len()
            )));
        }
        Ok(Codes {
            len,
            n_codes,
            words,
        })
    }

    /// The length of each code.
    pub fn code_len(&self) -> CodeLen {
        self.len
    }

    /// The number of codes.
    pub fn n_codes(&self) -> usize {
        self.n_codes
    }

    /// True if there is no code.
    pub fn is_empty(&self) -> bool {
        self.n_codes == 0
    }

    /// All words, block after block.
    pub fn blocks(&self) -> &[u64] {
        &self.words
    }

    /// Word `word_idx` of row `row`. Panics past the end.
    #[inline]
    pub fn word(&self, row: usize, word_idx: usize) -> u64 {
        let block = row / BLOCK_ROWS * BLOCK_ROWS * self.len.words();
        self.words[block + word_idx * BLOCK_ROWS + row % BLOCK_ROWS]
    }

    /// Row `row` as a code of its own. Panics past the end.
    pub fn get(&self, row: usize) -> HashCode {
        assert!(row < self.n_codes, "row {row} of {} codes", self.n_codes);
        let words: SmallVec<[u64; 16]> = (0..self.len.words())
            .map(|word_idx| self.word(row, word_idx))
            .collect();
        HashCode::from_words(self.len, &words).expect("as many words as the length says")
    }

    /// The distance from row `row` to `query`, which has the same number of words. Panics past the end.
    #[inline]
    pub fn distance(&self, row: usize, query: &[u64]) -> u32 {
        let block = row / BLOCK_ROWS * BLOCK_ROWS * self.len.words() + row % BLOCK_ROWS;
        (0..self.len.words())
            .map(|word_idx| {
                (self.words[block + word_idx * BLOCK_ROWS] ^ query[word_idx]).count_ones()
            })
            .sum()
    }

    /// True if no bit is set past the length of a code or past the last row, as every reader supposes.
    pub(crate) fn is_padded_with_zeros(&self) -> bool {
        let last = self.len.words() - 1;
        let in_last = self.len.bits() - 64 * last;
        let mut past_the_end = self.n_codes..self.n_codes.next_multiple_of(BLOCK_ROWS);
        past_the_end.all(|row| (0..=last).all(|word_idx| self.word(row, word_idx) == 0))
            && (in_last == 64 || (0..self.n_codes).all(|row| self.word(row, last) >> in_last == 0))
    }

    /// The same codes, borrowed.
    pub fn as_ref(&self) -> CodesRef<'_> {
        Codes {
            len: self.len,
            n_codes: self.n_codes,
            words: &self.words,
        }
    }

    /// The same codes in another order: row `i` becomes what row `order[i]` is. Panics on a row past the end.
    pub(crate) fn reordered(&self, order: &[u32]) -> Codes {
        let mut codes = Codes::with_capacity(self.len, order.len());
        order
            .iter()
            .for_each(|&row| codes.push_row(self, row as usize));
        codes
    }

    /// Row-major packed bytes, `bits / 8` a row: a FAISS `uint8` matrix.
    pub fn to_packed(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.n_codes * self.len.bytes());
        for row in 0..self.n_codes {
            bytes.extend_from_slice(&self.get(row).to_bytes());
        }
        bytes
    }
}

impl Codes<Vec<u64>> {
    /// No codes yet.
    pub fn new(len: CodeLen) -> Codes {
        Codes {
            len,
            n_codes: 0,
            words: Vec::new(),
        }
    }

    /// No codes yet, with room for `n_codes`.
    pub fn with_capacity(len: CodeLen, n_codes: usize) -> Codes {
        Codes {
            len,
            n_codes: 0,
            words: Vec::with_capacity(words_for(len, n_codes).unwrap_or(0)),
        }
    }

    /// From row-major packed bytes, `bits / 8` a row: a FAISS `uint8` matrix.
    ///
    /// # Errors
    /// `InvalidArgument` unless the bytes are whole rows.
    pub fn from_packed(len: CodeLen, bytes: &[u8]) -> Result<Codes> {
        if !bytes.len().is_multiple_of(len.bytes()) {
            return Err(Error::invalid(format!(
                "codes of {len} bits are {} bytes a row, got {} bytes, which is no whole number of rows",
                len.bytes(),
                bytes.len()
            )));
        }
        let mut codes = Codes::with_capacity(len, bytes.len() / len.bytes());
        let mut words: SmallVec<[u64; 16]> = SmallVec::from_elem(0, len.words());
        for row in bytes.chunks_exact(len.bytes()) {
            for (word, chunk) in words.iter_mut().zip(row.chunks(8)) {
                let mut buffer = [0; 8];
                buffer[..chunk.len()].copy_from_slice(chunk);
                *word = u64::from_le_bytes(buffer);
            }
            codes.push_words(&words);
        }
        Ok(codes)
    }

    /// Appends a code.
    ///
    /// # Errors
    /// `CodeLenMismatch`.
    pub fn push(&mut self, code: &HashCode) -> Result<()> {
        self.len.check(code.code_len())?;
        self.push_words(code.words());
        Ok(())
    }

    /// Appends row `row` of `other`. Panics if the lengths differ.
    pub fn push_row<D: Deref<Target = [u64]>>(&mut self, other: &Codes<D>, row: usize) {
        assert_eq!(
            self.len, other.len,
            "rows move between sets of one code length"
        );
        let words: SmallVec<[u64; 16]> = (0..self.len.words())
            .map(|word_idx| other.word(row, word_idx))
            .collect();
        self.push_words(&words);
    }

    /// Drops every code and keeps the memory.
    pub fn clear(&mut self) {
        self.words.clear();
        self.n_codes = 0;
    }

    /// Appends a code given by its words, which has no bits past the length.
    pub(crate) fn push_words(&mut self, words: &[u64]) {
        if self.n_codes.is_multiple_of(BLOCK_ROWS) {
            self.words
                .resize(self.words.len() + BLOCK_ROWS * self.len.words(), 0);
        }
        let block = self.n_codes / BLOCK_ROWS * BLOCK_ROWS * self.len.words();
        for (word_idx, &word) in words.iter().enumerate() {
            self.words[block + word_idx * BLOCK_ROWS + self.n_codes % BLOCK_ROWS] = word;
        }
        self.n_codes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_bytes_round_trip_at_every_width() {
        for bits in (16..=1024).step_by(8) {
            let len = CodeLen::new(bits).unwrap();
            for n_codes in [0, 1, 7, 8, 9, 20] {
                let bytes: Vec<u8> = (0..n_codes * len.bytes())
                    .map(|i| (i as u32).wrapping_mul(2654435761) as u8)
                    .collect();
                let codes = Codes::from_packed(len, &bytes).unwrap();
                assert_eq!(codes.n_codes(), n_codes);
                assert_eq!(codes.to_packed(), bytes);
                for row in 0..n_codes {
                    let code =
                        HashCode::from_bytes(&bytes[row * len.bytes()..][..len.bytes()]).unwrap();
                    assert_eq!(codes.get(row), code);
                    let query = codes.get(0);
                    assert_eq!(
                        codes.distance(row, query.words()),
                        code.distance(&query).unwrap()
                    );
                }
            }
        }
        assert!(Codes::from_packed(CodeLen::new(64).unwrap(), &[0; 9]).is_err());
    }
}

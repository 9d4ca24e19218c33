//! Many codes of one length, in the blocked layout that the kernels read.
//!
//! Rows are grouped in blocks of eight. A block holds word 0 of its eight rows, then word 1 of its
//! eight rows, and so on; the last block is padded with zero rows. One 512-bit load then brings the same
//! word of eight codes, and no width needs a horizontal sum. Codes of up to 64 bits come out row-major.
//!
//! Wide codes may lie in planes: in each whole chunk of [`CHUNK_ROWS`] rows the first words of all blocks
//! stand before the other words of all blocks, so that a scan can leave the others unread. The
//! rows behind the last whole chunk lie in plain blocks.
//! Generic over its words, so the same type owns a vector or borrows a memory map.

use std::borrow::Cow;
use std::ops::Deref;

use smallvec::SmallVec;

use crate::code::{CodeLen, HashCode};
use crate::error::{Error, Result};

/// Rows in a block.
pub const BLOCK_ROWS: usize = 8;

/// Blocks in a chunk of planes: enough for the hardware's prefetcher not to run into the second plane too
/// often.
pub(crate) const CHUNK_BLOCKS: usize = 256;

/// Rows in a chunk of planes.
pub const CHUNK_ROWS: usize = CHUNK_BLOCKS * BLOCK_ROWS;

/// Packed codes, all of one length: `n_codes` rows in blocks of [`BLOCK_ROWS`], or in planes.
///
/// Equal sets have equal rows, however these lie.
#[derive(Clone, Copy, Debug)]
pub struct Codes<D = Vec<u64>> {
    len: CodeLen,
    n_codes: usize,
    /// Whether whole chunks lie in planes. Invariant: never for codes of one word.
    planes: bool,
    /// Invariant: `words_for(len, n_codes)` words; padding rows and bits past the length are zero.
    words: D,
}

/// Borrowed [`Codes`].
pub type CodesRef<'a> = Codes<&'a [u64]>;

/// Words of a code that stand in the first plane, of codes of so many words: half of them, and the middle
/// one. A bound is seldom below what a smaller part of two strange codes differs in.
#[inline(always)]
pub(crate) const fn first_words(words: usize) -> usize {
    words.div_ceil(2)
}

/// Where the first word of row `row` stands, and the first of those past [`first_words`], in a set whose first
/// `in_planes` rows lie in planes. Further words of either follow at distances of [`BLOCK_ROWS`]. The one
/// place that knows this.
#[inline(always)]
pub(crate) fn places(words: usize, in_planes: usize, row: usize) -> (usize, usize) {
    let first = first_words(words);
    let (block, lane) = (row / BLOCK_ROWS, row % BLOCK_ROWS);
    if row >= in_planes {
        let place = block * BLOCK_ROWS * words + lane;
        return (place, place + first * BLOCK_ROWS);
    }
    let chunk = row / CHUNK_ROWS * CHUNK_ROWS * words + lane;
    let rows_before = block % CHUNK_BLOCKS * BLOCK_ROWS;
    let second = chunk + CHUNK_ROWS * first + rows_before * (words - first);
    (chunk + rows_before * first, second)
}

/// Words that hold `n_codes` codes, or `None` where that overflows.
fn words_for(len: CodeLen, n_codes: usize) -> Option<usize> {
    n_codes
        .div_ceil(BLOCK_ROWS)
        .checked_mul(BLOCK_ROWS)?
        .checked_mul(len.words())
}

impl<D: Deref<Target = [u64]>> Codes<D> {
    /// Takes words that are already in the blocked layout, without planes.
    ///
    /// # Errors
    /// `InvalidArgument` if the number of words is not that of `n_codes` codes. The zero padding is
    /// the caller's contract: `verify` checks it for files.
    pub fn from_blocks(len: CodeLen, n_codes: usize, words: D) -> Result<Codes<D>> {
        Codes::from_words(len, n_codes, false, words)
    }

    /// Takes words that already lie in planes; those of codes of one word lie in blocks.
    ///
    /// # Errors
    /// As [`from_blocks`](Codes::from_blocks).
    pub fn from_planes(len: CodeLen, n_codes: usize, words: D) -> Result<Codes<D>> {
        Codes::from_words(len, n_codes, true, words)
    }

    fn from_words(len: CodeLen, n_codes: usize, planes: bool, words: D) -> Result<Codes<D>> {
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
            planes: planes && len.words() > 1,
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

    /// All words, as they lie: block after block behind the [rows in planes](Codes::rows_in_planes).
    pub fn blocks(&self) -> &[u64] {
        &self.words
    }

    /// How many rows lie in planes: those of whole chunks, or none.
    #[inline]
    pub fn rows_in_planes(&self) -> usize {
        match self.planes {
            true => self.n_codes / CHUNK_ROWS * CHUNK_ROWS,
            false => 0,
        }
    }

    /// [`places`] of a row of this set.
    #[inline(always)]
    pub(crate) fn places(&self, row: usize) -> (usize, usize) {
        places(self.len.words(), self.rows_in_planes(), row)
    }

    /// Copies a chunk out of its planes into blocks. Panics unless `out` has room for just that.
    pub(crate) fn copy_chunk(&self, chunk_idx: usize, out: &mut [u64]) {
        let words = self.len.words();
        let in_first = first_words(words) * BLOCK_ROWS;
        let chunk = &self.words[chunk_idx * CHUNK_ROWS * words..][..CHUNK_ROWS * words];
        let (first, second) = chunk.split_at(CHUNK_BLOCKS * in_first);
        let parts = first
            .chunks(in_first)
            .zip(second.chunks(BLOCK_ROWS * words - in_first));
        for (block, (first, second)) in out.chunks_exact_mut(BLOCK_ROWS * words).zip(parts) {
            block[..in_first].copy_from_slice(first);
            block[in_first..].copy_from_slice(second);
        }
    }

    /// All words, block after block, whether or not they lie so here.
    pub(crate) fn in_blocks(&self) -> Cow<'_, [u64]> {
        let n_rows = self.rows_in_planes();
        if n_rows == 0 {
            return Cow::Borrowed(&self.words);
        }
        let mut words = self.words.to_vec();
        let chunks = words.chunks_exact_mut(CHUNK_ROWS * self.len.words());
        for (chunk_idx, chunk) in chunks.take(n_rows / CHUNK_ROWS).enumerate() {
            self.copy_chunk(chunk_idx, chunk);
        }
        Cow::Owned(words)
    }

    /// Word `word_idx` of row `row`. Panics past the end.
    #[inline]
    pub fn word(&self, row: usize, word_idx: usize) -> u64 {
        let first = first_words(self.len.words());
        let places = self.places(row);
        match word_idx.checked_sub(first) {
            None => self.words[places.0 + word_idx * BLOCK_ROWS],
            Some(rest) => self.words[places.1 + rest * BLOCK_ROWS],
        }
    }

    /// The rows from the last one on, at or before `row`, at which a set may begin, and which row that is.
    /// Panics past the end.
    pub(crate) fn starting_by(&self, row: usize) -> (usize, CodesRef<'_>) {
        let step = match row < self.rows_in_planes() {
            true => CHUNK_ROWS,
            false => BLOCK_ROWS,
        };
        let first = row / step * step;
        let rest = Codes {
            len: self.len,
            n_codes: self.n_codes - first,
            planes: self.planes,
            words: &self.words[first * self.len.words()..],
        };
        (first, rest)
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
        let (first, second) = self.places(row);
        let (in_first, in_second) = query.split_at(first_words(self.len.words()));
        let differing = |place: usize, query: &[u64]| -> u32 {
            let words = (place..).step_by(BLOCK_ROWS).zip(query);
            words
                .map(|(place, word)| (self.words[place] ^ word).count_ones())
                .sum()
        };
        differing(first, in_first) + differing(second, in_second)
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
            planes: self.planes,
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

impl<D, E> PartialEq<Codes<E>> for Codes<D>
where
    D: Deref<Target = [u64]>,
    E: Deref<Target = [u64]>,
{
    fn eq(&self, other: &Codes<E>) -> bool {
        if (self.len, self.n_codes) != (other.len, other.n_codes) {
            return false;
        }
        if self.rows_in_planes() == other.rows_in_planes() {
            return *self.words == *other.words;
        }
        let mut words = (0..self.n_codes).flat_map(|row| {
            let of_row = 0..self.len.words();
            of_row.map(move |word_idx| (row, word_idx))
        });
        words.all(|(row, word_idx)| self.word(row, word_idx) == other.word(row, word_idx))
    }
}

impl<D: Deref<Target = [u64]>> Eq for Codes<D> {}

impl Codes<Vec<u64>> {
    /// No codes yet, in blocks.
    pub fn new(len: CodeLen) -> Codes {
        Codes::with_capacity(len, 0)
    }

    /// No codes yet, with room for `n_codes` in blocks.
    pub fn with_capacity(len: CodeLen, n_codes: usize) -> Codes {
        Codes {
            len,
            n_codes: 0,
            planes: false,
            words: Vec::with_capacity(words_for(len, n_codes).unwrap_or(0)),
        }
    }

    /// No codes yet, with room for `n_codes`, in planes if they have more than one word: for sets of clustered
    /// codes that are searched by linear scans.
    pub fn in_planes(len: CodeLen, n_codes: usize) -> Codes {
        Codes {
            planes: len.words() > 1,
            ..Codes::with_capacity(len, n_codes)
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
        // The chunk that a row joins is not whole yet, so it lies in blocks.
        let block = self.n_codes / BLOCK_ROWS * BLOCK_ROWS * self.len.words();
        for (word_idx, &word) in words.iter().enumerate() {
            self.words[block + word_idx * BLOCK_ROWS + self.n_codes % BLOCK_ROWS] = word;
        }
        self.n_codes += 1;
        if self.planes && self.n_codes.is_multiple_of(CHUNK_ROWS) {
            self.part_last_chunk();
        }
    }

    /// Brings the last chunk from blocks into planes.
    fn part_last_chunk(&mut self) {
        let words = self.len.words();
        let in_first = first_words(words) * BLOCK_ROWS;
        let start = self.words.len() - CHUNK_ROWS * words;
        let chunk = &mut self.words[start..];
        let mut second = Vec::with_capacity(chunk.len() / 2);
        for (block_idx, block) in (0..chunk.len()).step_by(BLOCK_ROWS * words).enumerate() {
            second.extend_from_slice(&chunk[block + in_first..block + BLOCK_ROWS * words]);
            chunk.copy_within(block..block + in_first, block_idx * in_first);
        }
        chunk[CHUNK_BLOCKS * in_first..].copy_from_slice(&second);
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

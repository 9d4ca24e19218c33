//! Bucket tables: where in a list of rows each substring value has its rows.
//!
//! `offsets` has 2^b + 1 entries and bucket `v` is `ids[offsets[v]..offsets[v + 1]]`. Both arrays are
//! plain `u32`s, owned or borrowed from a memory map. Opening checks lengths only; a bucket is checked
//! as it is read, because bytes from disk must not be able to cause a panic or a wrong address.

use std::ops::Deref;

use crate::code::{BLOCK_ROWS, CodeLen, Codes, CodesRef};
use crate::error::{Error, Result};
use crate::hamming::prefetch_word;
use crate::mih::MihParams;
use crate::mih::params::Extractor;

/// The section named by errors about tables.
pub(crate) const SECTION: &str = "substring table";

/// The table of one substring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MihTable<D = Vec<u32>> {
    offsets: D,
    ids: D,
}

impl MihTable<Vec<u32>> {
    /// Counts and places every code by its substring `substring_idx`; rows ascend in each bucket.
    ///
    /// Takes 12 bytes a code and 4 a bucket while it works, a third of the former afterwards.
    ///
    /// # Errors
    /// `CodeLenMismatch` if the parameters are for another length; `Unsupported` for 2^32 codes or more.
    pub fn build<C: Deref<Target = [u64]>>(
        codes: &Codes<C>,
        params: &MihParams,
        substring_idx: usize,
    ) -> Result<MihTable> {
        let (offsets, ids) = place_by_value(codes, params, substring_idx)?;
        Ok(MihTable { offsets, ids })
    }
}

/// Counts and places every code by its substring `substring_idx`: where each value begins, and the rows,
/// ascending in each.
fn place_by_value<C: Deref<Target = [u64]>>(
    codes: &Codes<C>,
    params: &MihParams,
    substring_idx: usize,
) -> Result<(Vec<u32>, Vec<u32>)> {
    params.code_len().check(codes.code_len())?;
    if u32::try_from(codes.n_codes()).is_err() {
        return Err(crate::error::ErrorKind::Unsupported(format!(
            "substring tables number rows in 32 bits, got {} codes; use more segments",
            codes.n_codes()
        ))
        .into());
    }
    let width = params.width(substring_idx);
    let extractor = Extractor::new(params, substring_idx);
    let value_of = |row: usize| extractor.extract(|word_idx| codes.word(row, word_idx));

    // Rows go to parts by the upper bits of their value first: a part's rows and offsets stay in the second-level
    // cache while they are placed, where all of them would cost a miss a row. Values are taken from the codes twice,
    // which costs less than to keep them.
    let part_bits = width.saturating_sub(PART_WIDTH);
    let shift = width - part_bits;
    let mut part_ends = vec![0; 1 << part_bits];
    for row in 0..codes.n_codes() {
        part_ends[value_of(row) as usize >> shift] += 1;
    }
    to_starts(&mut part_ends, 0);
    let mut placed = vec![(0u32, 0u32); codes.n_codes()];
    for row in 0..codes.n_codes() {
        let value = value_of(row);
        let place = &mut part_ends[value as usize >> shift];
        placed[*place as usize] = (value, row as u32);
        *place += 1;
    }

    let mut offsets = vec![0u32; (1 << width) + 1];
    let mut ids = vec![0u32; codes.n_codes()];
    let mut start = 0;
    for (part, &end) in part_ends.iter().enumerate() {
        let rows = &placed[start as usize..end as usize];
        // `ends[v]` holds the size of the part's bucket v; make it the start, which placing the rows then advances to
        // its end, the start of bucket v + 1.
        let first = part << shift;
        let ends = &mut offsets[first + 1..][..1 << shift];
        for (value, _) in rows {
            ends[*value as usize - first] += 1;
        }
        to_starts(ends, start);
        for &(value, row) in rows {
            let place = &mut ends[value as usize - first];
            ids[*place as usize] = row;
            *place += 1;
        }
        start = end;
    }
    Ok((offsets, ids))
}

/// Bits that the values of a part differ in: 4,096 offsets, and the rows of as many buckets.
const PART_WIDTH: usize = 12;

/// Makes sizes of what follows each other the places where each begins, the first at `start`.
fn to_starts(sizes: &mut [u32], mut start: u32) {
    for size in sizes {
        start += std::mem::replace(size, start);
    }
}

/// `Ok` if these can be the offsets of `n_codes` codes by a substring of `width` bits, by their number and
/// the last of them.
fn check_offsets(offsets: &[u32], n_codes: usize, width: usize) -> Result<()> {
    if offsets.len() != (1 << width) + 1 {
        return Err(Error::corrupt(
            SECTION,
            format!(
                "{} offsets for a substring of {width} bits, expected {}",
                offsets.len(),
                (1usize << width) + 1
            ),
        ));
    }
    if offsets.last().is_some_and(|&last| last as usize != n_codes) {
        return Err(Error::corrupt(
            SECTION,
            format!(
                "the last offset is {}, expected {n_codes}",
                offsets[offsets.len() - 1]
            ),
        ));
    }
    Ok(())
}

impl<D: Deref<Target = [u32]>> MihTable<D> {
    /// Takes arrays that are already a table of `n_codes` codes by a substring of `width` bits.
    ///
    /// # Errors
    /// `Corrupt` if a length or the last offset contradicts the counts. Looks at nothing else:
    /// [`verify`](MihTable::verify) does.
    pub fn from_parts(offsets: D, ids: D, n_codes: usize, width: usize) -> Result<MihTable<D>> {
        check_offsets(&offsets, n_codes, width)?;
        if ids.len() != n_codes {
            return Err(Error::corrupt(
                SECTION,
                format!("{} row ids for {n_codes} codes", ids.len()),
            ));
        }
        Ok(MihTable { offsets, ids })
    }

    /// The start of each bucket in [`ids`](MihTable::ids), and the end of the last.
    pub fn offsets(&self) -> &[u32] {
        &self.offsets
    }

    /// Row numbers, bucket after bucket.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The rows whose substring is `value`; empty past the last value. Row numbers of a file that was
    /// not verified may be past the last row.
    ///
    /// # Errors
    /// `Corrupt` if the offsets are no range of the ids.
    #[inline]
    pub fn bucket(&self, value: u32) -> Result<&[u32]> {
        bucket(&self.offsets, &self.ids, value)
    }

    /// Asks for the memory that says where bucket `value` is.
    #[inline]
    pub(crate) fn prefetch_bucket(&self, value: u32) {
        prefetch_word(&self.offsets, value as usize);
    }

    /// The same table, borrowed.
    pub fn as_ref(&self) -> MihTable<&[u32]> {
        MihTable {
            offsets: &self.offsets,
            ids: &self.ids,
        }
    }

    /// Reads everything: offsets ascend, every row occurs once, in the bucket of its substring, rows
    /// of a bucket ascend. One pass over the codes' words in table order.
    ///
    /// # Errors
    /// `Corrupt` naming the first contradiction.
    pub fn verify<C: Deref<Target = [u64]>>(
        &self,
        codes: &Codes<C>,
        params: &MihParams,
        substring_idx: usize,
    ) -> Result<()> {
        params.code_len().check(codes.code_len())?;
        MihTable::from_parts(
            self.offsets(),
            self.ids(),
            codes.n_codes(),
            params.width(substring_idx),
        )?;
        let corrupt =
            |reason: String| Error::corrupt(format!("substring table {substring_idx}"), reason);
        if self.offsets[0] != 0 {
            return Err(corrupt(format!(
                "the first offset is {}, expected 0",
                self.offsets[0]
            )));
        }
        let extractor = Extractor::new(params, substring_idx);
        for value in 0..self.offsets.len() - 1 {
            let rows = self.bucket(value as u32)?;
            // Every row is in its own bucket and no bucket repeats one, so n rows are all rows.
            if let Some(pair) = rows.windows(2).find(|pair| pair[0] >= pair[1]) {
                return Err(corrupt(format!(
                    "bucket {value} has row {} before row {}, expected ascending rows",
                    pair[0], pair[1]
                )));
            }
            for &row in rows {
                if row as usize >= codes.n_codes() {
                    return Err(corrupt(format!(
                        "bucket {value} has row {row} of {} codes",
                        codes.n_codes()
                    )));
                }
                let expected = extractor.extract(|word_idx| codes.word(row as usize, word_idx));
                if expected as usize != value {
                    return Err(corrupt(format!(
                        "bucket {value} has row {row}, which belongs in bucket {expected}"
                    )));
                }
            }
        }
        Ok(())
    }
}

impl<'a> MihTable<&'a [u32]> {
    /// [`bucket`](MihTable::bucket), for as long as the arrays are lent.
    #[inline]
    pub(crate) fn rows(&self, value: u32) -> Result<&'a [u32]> {
        bucket(self.offsets, self.ids, value)
    }

    /// The row of an entry; past the last row for none, as rows of a file that was not verified may be.
    #[inline]
    pub(crate) fn row(&self, entry: u32) -> u32 {
        self.ids.get(entry as usize).copied().unwrap_or(u32::MAX)
    }

    /// Asks for the memory that says which row an entry is.
    #[inline]
    pub(crate) fn prefetch_row(&self, entry: u32) {
        prefetch_word(self.ids, entry as usize);
    }

    /// The entries of bucket `value`, from one to before another; those of no entry past the last value.
    ///
    /// # Errors
    /// `Corrupt` if the offsets are no range of the ids.
    #[inline]
    pub(crate) fn entries(&self, value: u32) -> Result<(u32, u32)> {
        entries(self.offsets, self.ids.len(), value)
    }
}

#[inline]
fn entries(offsets: &[u32], n_ids: usize, value: u32) -> Result<(u32, u32)> {
    let value = value as usize;
    let (Some(&start), Some(&end)) = (offsets.get(value), offsets.get(value + 1)) else {
        return Ok((0, 0));
    };
    match start <= end && end as usize <= n_ids {
        true => Ok((start, end)),
        false => Err(bad_bucket(value, start, end, n_ids)),
    }
}

#[inline]
fn bucket<'a>(offsets: &[u32], ids: &'a [u32], value: u32) -> Result<&'a [u32]> {
    let (start, end) = entries(offsets, ids.len(), value)?;
    Ok(&ids[start as usize..end as usize])
}

#[cold]
fn bad_bucket(value: usize, start: u32, end: u32, n_ids: usize) -> Error {
    Error::corrupt(
        SECTION,
        format!("bucket {value} is {start}..{end} of {n_ids} row ids"),
    )
}

/// What an entry of a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MihForm {
    /// A row number.
    Rows,
    /// A row number and the row's code.
    Codes,
}

/// True if entries of tables of codes of this length may have those codes beside them: codes of one word.
pub fn suits_copies(code_len: CodeLen) -> bool {
    code_len.words() == 1
}

/// All tables of one segment, borrowed, with the parameters they were built with.
#[derive(Clone, Debug)]
pub struct MihView<'a> {
    params: &'a MihParams,
    tables: Vec<MihTable<&'a [u32]>>,
    /// For each table the words of the codes in the order of its entries, if they are there.
    copies: Option<Vec<&'a [u64]>>,
}

impl<'a> MihView<'a> {
    /// One table a substring, in order.
    ///
    /// # Errors
    /// `Corrupt` if there are more or fewer tables than substrings, if a table is of another width, or
    /// if two tables differ in the number of codes.
    pub fn new(
        params: &'a MihParams,
        tables: impl IntoIterator<Item = MihTable<&'a [u32]>>,
    ) -> Result<MihView<'a>> {
        let tables: Vec<MihTable<&'a [u32]>> = tables.into_iter().collect();
        if tables.len() != params.n_substrings() {
            return Err(Error::corrupt(
                SECTION,
                format!(
                    "{} tables for {} substrings",
                    tables.len(),
                    params.n_substrings()
                ),
            ));
        }
        let n_codes = tables.first().map_or(0, |table| table.ids.len());
        for (substring_idx, table) in tables.iter().enumerate() {
            let width = params.width(substring_idx);
            MihTable::from_parts(table.offsets, table.ids, n_codes, width)?;
        }
        Ok(MihView {
            params,
            tables,
            copies: None,
        })
    }

    /// The same tables with the codes themselves beside the row numbers: for each table the words of all codes, of one
    /// word each, in the order of its entries, filled up to whole blocks.
    ///
    /// # Errors
    /// `Corrupt` if there are more or fewer copies than tables, if one is of another size, or for longer codes.
    pub fn with_copies(
        mut self,
        copies: impl IntoIterator<Item = &'a [u64]>,
    ) -> Result<MihView<'a>> {
        let copies: Vec<&'a [u64]> = copies.into_iter().collect();
        let n_words = self.n_codes().next_multiple_of(BLOCK_ROWS);
        let lens = || copies.iter().map(|copy| copy.len());
        let fits = suits_copies(self.params.code_len()) && copies.len() == self.tables.len();
        if !fits || lens().any(|len| len != n_words) {
            return Err(Error::corrupt(
                SECTION,
                format!(
                    "copies of {:?} words beside {} tables of {} codes of {} bits",
                    lens().collect::<Vec<_>>(),
                    self.tables.len(),
                    self.n_codes(),
                    self.params.code_len()
                ),
            ));
        }
        self.copies = Some(copies);
        Ok(self)
    }

    /// The parameters of the tables.
    pub fn params(&self) -> &'a MihParams {
        self.params
    }

    /// What their entries are.
    pub fn form(&self) -> MihForm {
        match &self.copies {
            None => MihForm::Rows,
            Some(_) => MihForm::Codes,
        }
    }

    /// The table of a substring.
    #[inline]
    pub(super) fn table(&self, substring_idx: usize) -> MihTable<&'a [u32]> {
        self.tables[substring_idx]
    }

    /// The codes in the order of a table's entries, if they are there.
    #[inline]
    pub(super) fn copy(&self, substring_idx: usize) -> Option<&'a [u64]> {
        self.copies.as_ref().map(|copies| copies[substring_idx])
    }

    /// The number of codes in each table.
    pub fn n_codes(&self) -> usize {
        self.tables[0].ids.len()
    }

    /// Reads every table, as [`MihTable::verify`] does, and that each copy of a code is that code.
    ///
    /// # Errors
    /// `Corrupt` naming the first contradiction.
    pub(crate) fn verify(&self, codes: CodesRef<'_>) -> Result<()> {
        for (substring_idx, table) in self.tables.iter().enumerate() {
            table.verify(&codes, self.params, substring_idx)?;
            let Some(copy) = self.copy(substring_idx) else {
                continue;
            };
            let expected = table.ids.iter().map(|&row| codes.word(row as usize, 0));
            // Words that fill up the last block are zero.
            let expected = expected.chain(std::iter::repeat(0));
            if let Some(entry) = copy.iter().zip(expected).position(|(a, b)| *a != b) {
                return Err(Error::corrupt(
                    format!("substring table {substring_idx}"),
                    format!("entry {entry} has another code than its row"),
                ));
            }
        }
        Ok(())
    }

    /// `Ok` if the tables can be those of `codes`, by length and count.
    pub(crate) fn check(&self, codes: CodesRef<'_>) -> Result<()> {
        self.params.code_len().check(codes.code_len())?;
        if self.n_codes() != codes.n_codes() {
            return Err(Error::corrupt(
                SECTION,
                format!(
                    "tables of {} codes beside {} codes",
                    self.n_codes(),
                    codes.n_codes()
                ),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::code::CodeLen;

    fn random(bits: usize, n_codes: usize) -> (Codes, MihParams) {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let bytes: Vec<u8> = (0..n_codes * bits / 8).map(|_| rng.random()).collect();
        let len = CodeLen::new(bits).unwrap();
        (
            Codes::from_packed(len, &bytes).unwrap(),
            MihParams::choose(len, n_codes),
        )
    }

    #[test]
    fn every_row_is_in_its_bucket() {
        for (bits, n_codes) in [(16, 0), (16, 1), (24, 3000), (64, 500), (136, 100)] {
            let (codes, params) = random(bits, n_codes);
            for substring_idx in 0..params.n_substrings() {
                let table = MihTable::build(&codes, &params, substring_idx).unwrap();
                table.verify(&codes, &params, substring_idx).unwrap();
                for row in 0..n_codes {
                    let value = params.substring(substring_idx, codes.get(row).words());
                    assert!(table.bucket(value).unwrap().contains(&(row as u32)));
                }
            }
        }
    }

    #[test]
    fn verify_finds_every_damaged_word() {
        let (codes, params) = random(24, 300);
        let table = MihTable::build(&codes, &params, 0).unwrap();
        for idx in 0..table.offsets.len() {
            for damage in [1, 1 << 31] {
                let mut damaged = table.clone();
                damaged.offsets[idx] ^= damage;
                assert!(damaged.verify(&codes, &params, 0).is_err(), "offset {idx}");
                for value in 0..damaged.offsets.len() as u32 + 2 {
                    let _ = damaged.bucket(value);
                }
            }
        }
        for idx in 0..table.ids.len() {
            for damage in [1, 1 << 31] {
                let mut damaged = table.clone();
                damaged.ids[idx] ^= damage;
                assert!(damaged.verify(&codes, &params, 0).is_err(), "id {idx}");
            }
        }
    }

    #[test]
    fn copies_are_compared_with_the_codes() {
        let (codes, params) = random(40, 300);
        let tables: Vec<MihTable> = (0..params.n_substrings())
            .map(|idx| MihTable::build(&codes, &params, idx).unwrap())
            .collect();
        let copies: Vec<Vec<u64>> = tables
            .iter()
            .map(|table| codes.as_ref().reordered(table.ids()).blocks().to_vec())
            .collect();
        let view = |copies: &[Vec<u64>]| {
            let view = MihView::new(&params, tables.iter().map(MihTable::as_ref)).unwrap();
            let verified = view.with_copies(copies.iter().map(Vec::as_slice));
            verified.and_then(|view| view.verify(codes.as_ref()))
        };
        view(&copies).unwrap();
        let n_words = copies[0].len();
        for (idx, at) in [(0, 0), (1, 299), (copies.len() - 1, n_words - 1)] {
            let mut damaged = copies.clone();
            damaged[idx][at] ^= 1 << 39;
            assert!(view(&damaged).is_err(), "word {at} of copy {idx}");
        }
        assert!(view(&copies[1..]).is_err());
        let mut short = copies.clone();
        short[1].truncate(300);
        assert!(view(&short).is_err());
        // Codes of two words.
        let (codes, params) = random(72, 8);
        let tables: Vec<MihTable> = (0..params.n_substrings())
            .map(|idx| MihTable::build(&codes, &params, idx).unwrap())
            .collect();
        let copies = vec![vec![0; 8]; tables.len()];
        let view = MihView::new(&params, tables.iter().map(MihTable::as_ref)).unwrap();
        assert!(view.with_copies(copies.iter().map(Vec::as_slice)).is_err());
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let (codes, params) = random(24, 300);
        let table = MihTable::build(&codes, &params, 0).unwrap();
        let (offsets, ids) = (table.offsets(), table.ids());
        let width = params.width(0);
        assert!(MihTable::from_parts(offsets, ids, 300, width).is_ok());
        assert!(MihTable::from_parts(offsets, ids, 299, width).is_err());
        assert!(MihTable::from_parts(offsets, ids, 300, width + 1).is_err());
        assert!(MihTable::from_parts(&offsets[1..], ids, 300, width).is_err());
        assert!(MihTable::from_parts(offsets, &ids[1..], 299, width).is_err());
        assert!(MihView::new(&params, [table.as_ref()]).is_err());
    }
}

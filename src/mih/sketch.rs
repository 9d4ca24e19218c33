//! Tables whose entries have a *sketch*, 32 bits of the code, so that a bucket is searched where it lies.
//!
//! A row number is a promise of two cache misses: the number's and the code's. Where the nearest codes are
//! far, a search looks up thousands of buckets, nearly every row in them is too far, and those misses are
//! all it does. Here each entry has 32 bits of its code beside it, read in sequence, sixteen at a time, and
//! few entries are near enough for a look at their code. Buckets may then be large and few:
//! substrings of at most 16 bits. Rows are in the order of the last substring, so that an entry of its table is
//! the row of the same number; an entry of another one names its row by that substring's value, which the
//! sketch begins with, and by the row's place among those that have it, a number of one or two bytes.
//!
//! For codes of 33 to 64 bits: shorter ones have nothing to leave out, of longer ones 32 bits say too little.
//! Not from the paper.

use std::ops::Deref;

use smallvec::SmallVec;

use crate::code::{CodeLen, Codes, CodesRef, RowOrder};
use crate::error::{Error, Result};
use crate::hamming::{ROWS_AHEAD, prefetch_word};
use crate::mih::params::Extractor;
use crate::mih::table::{SECTION, check_offsets, place_by_value};
use crate::mih::{MihParams, shell_size};

/// The longest substring under sketches, in bits: a table of 2^16 + 1 offsets stays in the second-level cache.
pub(super) const SUBSTRING_BITS_MAX: usize = 16;

/// Bits of a sketch.
const SKETCH_BITS: usize = 32;

/// True if codes of this length may have sketches.
pub fn suits_sketches(code_len: CodeLen) -> bool {
    (SKETCH_BITS + 1..=64).contains(&code_len.bits())
}

/// Sketches of one table: which substrings they take, the last one first, then the others in order, the
/// table's own left out, until they have 32 bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SketchBits {
    /// A substring, and the bit of the sketch that it begins at.
    parts: SmallVec<[(usize, usize); 4]>,
    /// Substrings that no bit of a sketch is of.
    pub(super) outside: SmallVec<[usize; 4]>,
}

/// What k-NN searches take with sketches, foreseen from some codes as queries and a sample of all codes.
pub(crate) struct SketchTrial<'a> {
    params: &'a MihParams,
    bits: Vec<SketchBits>,
}

impl SketchTrial<'_> {
    /// For tables with these parameters.
    pub(crate) fn new(params: &MihParams) -> SketchTrial<'_> {
        let tables = 0..params.n_substrings();
        SketchTrial {
            params,
            bits: tables.map(|idx| SketchBits::of(params, idx)).collect(),
        }
    }

    /// The buckets that a search looks up whose k-th distance is `bound`.
    pub(crate) fn n_lookups(&self, bound: u32) -> u32 {
        let shells = |(idx, ball): (usize, usize)| {
            let width = self.params.width(idx);
            (0..=ball).map(move |radius| shell_size(width, radius))
        };
        self.balls(bound).flat_map(shells).sum()
    }

    /// Of how many entries of a code with these differing bits such a search sees the sketch, and of how
    /// many of those the code.
    pub(crate) fn n_met(&self, differing: u64, bound: u32) -> (u32, u32) {
        let distance = |idx: usize| self.params.substring_distance(idx, &[differing]);
        let total = differing.count_ones();
        let (mut n_seen, mut n_near) = (0, 0);
        for (idx, ball) in self.balls(bound) {
            if distance(idx) as usize <= ball {
                n_seen += 1;
                let outside: u32 = self.bits[idx]
                    .outside
                    .iter()
                    .map(|&other| distance(other))
                    .sum();
                n_near += u32::from(total - outside <= bound);
            }
        }
        (n_seen, n_near)
    }

    /// Each substring that is looked into for codes within `bound`, and how far.
    fn balls(&self, bound: u32) -> impl Iterator<Item = (usize, usize)> {
        let radius = move |idx| self.params.substring_radius(idx, bound as usize);
        (0..self.params.n_substrings()).filter_map(move |idx| Some((idx, radius(idx)?)))
    }
}

impl SketchBits {
    pub(super) fn of(params: &MihParams, table_idx: usize) -> SketchBits {
        let (mut parts, mut outside) = (SmallVec::new(), SmallVec::new());
        let mut at = 0;
        let last = params.n_substrings() - 1;
        let all = [last].into_iter().chain(0..last);
        for substring_idx in all.filter(|&idx| idx != table_idx) {
            match at < SKETCH_BITS {
                true => parts.push((substring_idx, at)),
                false => outside.push(substring_idx),
            }
            at += params.width(substring_idx);
        }
        SketchBits { parts, outside }
    }

    /// The sketch of a code with these substrings.
    #[inline]
    pub(super) fn sketch(&self, substring: impl Fn(usize) -> u32) -> u32 {
        let parts = self.parts.iter();
        // What does not fit is cut off at the top.
        parts.fold(0, |sketch, &(substring_idx, at)| {
            sketch | substring(substring_idx) << at
        })
    }
}

/// The order of rows that sketches ask for: those with value `v` in their last substring are the rows
/// `offsets[v]..offsets[v + 1]`.
#[derive(Clone, Debug)]
pub struct SketchOrder {
    offsets: Vec<u32>,
    order: Vec<u32>,
    place_bytes: usize,
}

impl SketchOrder {
    /// Sorts codes by their last substring, and by their place among equal ones. `None` where sketches do not
    /// apply: for codes of another length than 33 to 64 bits, for substrings of more than 16 bits, and where
    /// more than 65,536 codes share a last substring.
    ///
    /// # Errors
    /// `CodeLenMismatch`; `Unsupported` for 2^32 codes or more.
    pub fn build(codes: CodesRef<'_>, params: &MihParams) -> Result<Option<SketchOrder>> {
        params.code_len().check(codes.code_len())?;
        let widths = (0..params.n_substrings()).map(|substring_idx| params.width(substring_idx));
        let is_narrow = widths
            .max()
            .is_some_and(|width| width <= SUBSTRING_BITS_MAX);
        if !suits_sketches(codes.code_len()) || !is_narrow {
            return Ok(None);
        }
        let (offsets, order) = place_by_value(&codes, params, params.n_substrings() - 1)?;
        let sizes = offsets.windows(2).map(|pair| pair[1] - pair[0]);
        let place_bytes = match sizes.max() {
            None | Some(0..=0x100) => 1,
            Some(0x101..=0x1_0000) => 2,
            Some(_) => return Ok(None),
        };
        Ok(Some(SketchOrder {
            offsets,
            order,
            place_bytes,
        }))
    }

    /// The first row of each bucket, and the number of rows.
    pub fn offsets(&self) -> &[u32] {
        &self.offsets
    }

    /// For each row to be, the row it is now.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// Bytes of each place in the other tables: 1 or 2.
    pub fn place_bytes(&self) -> usize {
        self.place_bytes
    }
}

/// The table of a substring: bucket `v` is the entries `offsets[v]..offsets[v + 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SketchTable<D = Vec<u32>, B = Vec<u8>> {
    offsets: D,
    sketches: D,
    /// Little endian, 1 or 2 bytes each; none in the table of the last substring.
    places: B,
}

impl SketchTable {
    /// The table of substring `table_idx` of codes that are in this order. Rows ascend in each bucket.
    ///
    /// Takes 8 bytes a code while it works beside what it makes.
    ///
    /// # Errors
    /// `CodeLenMismatch`; `Unsupported` for 2^32 codes or more.
    pub fn build(
        codes: CodesRef<'_>,
        params: &MihParams,
        order: &SketchOrder,
        table_idx: usize,
    ) -> Result<SketchTable> {
        params.code_len().check(codes.code_len())?;
        let last = params.n_substrings() - 1;
        let (offsets, mut entries) = match table_idx == last {
            true => (order.offsets.clone(), (0..codes.n_codes() as u32).collect()),
            false => place_by_value(&codes, params, table_idx)?,
        };
        let extractors: Vec<Extractor> = (0..=last)
            .map(|substring_idx| Extractor::new(params, substring_idx))
            .collect();
        let bits = SketchBits::of(params, table_idx);
        let mut places = Vec::new();
        if table_idx < last {
            places.reserve_exact(entries.len() * order.place_bytes);
        }
        for at in 0..entries.len() {
            if let Some(&ahead) = entries.get(at + ROWS_AHEAD) {
                prefetch_word(codes.blocks(), ahead as usize);
            }
            let entry = &mut entries[at];
            let word = codes.word(*entry as usize, 0);
            if table_idx < last {
                let value = extractors[last].extract(|_| word);
                let place = *entry - order.offsets[value as usize];
                places.extend_from_slice(&place.to_le_bytes()[..order.place_bytes]);
            }
            *entry = bits.sketch(|substring_idx| extractors[substring_idx].extract(|_| word));
        }
        Ok(SketchTable {
            offsets,
            sketches: entries,
            places,
        })
    }
}

impl<D: Deref<Target = [u32]>, B: Deref<Target = [u8]>> SketchTable<D, B> {
    /// Takes parts that are already a table.
    pub fn from_parts(offsets: D, sketches: D, places: B) -> SketchTable<D, B> {
        SketchTable {
            offsets,
            sketches,
            places,
        }
    }

    /// The first entry of each bucket, and the number of entries.
    pub fn offsets(&self) -> &[u32] {
        &self.offsets
    }

    /// 32 bits of the code of each entry.
    pub fn sketches(&self) -> &[u32] {
        &self.sketches
    }

    /// The place of each entry's row among those with its last substring; empty in that substring's table.
    pub fn places(&self) -> &[u8] {
        &self.places
    }

    /// The same table, borrowed.
    pub fn as_ref(&self) -> SketchTable<&[u32], &[u8]> {
        SketchTable::from_parts(&self.offsets, &self.sketches, &self.places)
    }
}

/// All tables of one segment whose entries have sketches, borrowed.
#[derive(Clone, Debug)]
pub struct SketchView<'a> {
    tables: Vec<SketchTable<&'a [u32], &'a [u8]>>,
    bits: Vec<SketchBits>,
    place_bytes: usize,
    n_codes: usize,
}

impl<'a> SketchView<'a> {
    /// One table a substring, in order. Looks at lengths and last offsets only: `verify` reads the rest.
    ///
    /// # Errors
    /// `Corrupt` if a length or last offset contradicts the parameters or the number of codes.
    pub fn new(
        params: &MihParams,
        n_codes: usize,
        tables: impl IntoIterator<Item = SketchTable<&'a [u32], &'a [u8]>>,
        place_bytes: usize,
    ) -> Result<SketchView<'a>> {
        let tables: Vec<_> = tables.into_iter().collect();
        let n_substrings = params.n_substrings();
        let corrupt = |reason: String| Err(Error::corrupt(SECTION, reason));
        if !suits_sketches(params.code_len()) || !(1..=2).contains(&place_bytes) {
            return corrupt(format!(
                "sketches of codes of {} bits with places of {place_bytes} bytes",
                params.code_len()
            ));
        }
        if tables.len() != n_substrings {
            return corrupt(format!(
                "{} tables for {n_substrings} substrings",
                tables.len()
            ));
        }
        let bits = (0..n_substrings).map(|table_idx| SketchBits::of(params, table_idx));
        for (table_idx, table) in tables.iter().enumerate() {
            let width = params.width(table_idx);
            if width > SUBSTRING_BITS_MAX {
                return corrupt(format!("sketches beside a substring of {width} bits"));
            }
            check_offsets(table.offsets, n_codes, width)?;
            let place_bytes = match table_idx == n_substrings - 1 {
                true => 0,
                false => place_bytes,
            };
            let lens = (table.sketches.len(), table.places.len());
            if lens != (n_codes, n_codes * place_bytes) {
                return corrupt(format!(
                    "{} sketches and {} bytes of places for {n_codes} codes",
                    lens.0, lens.1
                ));
            }
        }
        Ok(SketchView {
            bits: bits.collect(),
            tables,
            place_bytes,
            n_codes,
        })
    }

    /// The number of codes.
    pub fn n_codes(&self) -> usize {
        self.n_codes
    }

    fn offsets(&self, table_idx: usize) -> &'a [u32] {
        self.tables[table_idx].offsets
    }

    /// The table of the last substring, whose entries are the rows of the same number.
    #[inline]
    pub(super) fn last(&self) -> usize {
        self.tables.len() - 1
    }

    /// The entries of bucket `value` of a table.
    ///
    /// # Errors
    /// `Corrupt` if the offsets are no range of entries.
    #[inline]
    pub(super) fn bucket(&self, table_idx: usize, value: u32) -> Result<std::ops::Range<usize>> {
        let offsets = self.offsets(table_idx);
        let value = value as usize;
        let (Some(&start), Some(&end)) = (offsets.get(value), offsets.get(value + 1)) else {
            return Ok(0..0);
        };
        match start <= end && end as usize <= self.n_codes {
            true => Ok(start as usize..end as usize),
            false => Err(self.no_bucket(value, start, end)),
        }
    }

    #[cold]
    fn no_bucket(&self, value: usize, start: u32, end: u32) -> Error {
        let n_codes = self.n_codes;
        Error::corrupt(
            SECTION,
            format!("bucket {value} is {start}..{end} of {n_codes} entries"),
        )
    }

    /// Asks for the memory that says where bucket `value` is.
    #[inline]
    pub(super) fn prefetch_bucket(&self, table_idx: usize, value: u32) {
        prefetch_word(self.offsets(table_idx), value as usize);
    }

    /// The sketches of a table.
    #[inline]
    pub(super) fn sketches(&self, table_idx: usize) -> &'a [u32] {
        self.tables[table_idx].sketches
    }

    /// What its sketches are of.
    #[inline]
    pub(super) fn bits(&self, table_idx: usize) -> &SketchBits {
        &self.bits[table_idx]
    }

    /// Asks for the memory that [`row`](SketchView::row) reads of an entry.
    #[inline]
    pub(super) fn prefetch_entry(&self, table_idx: usize, entry: usize) {
        if table_idx != self.last() {
            prefetch_word(self.tables[table_idx].places, entry * self.place_bytes);
            let value = self.last_substring(table_idx, entry);
            self.prefetch_bucket(self.last(), value as u32);
        }
    }

    /// The last substring of an entry of another table: the lowest bits of its sketch.
    #[inline]
    fn last_substring(&self, table_idx: usize, entry: usize) -> usize {
        let n_values = self.offsets(self.last()).len() - 1;
        self.tables[table_idx].sketches[entry] as usize & (n_values - 1)
    }

    /// The row of an entry.
    ///
    /// # Errors
    /// `Corrupt` if there is no such row.
    #[inline(always)]
    pub(super) fn row(&self, table_idx: usize, entry: usize) -> Result<usize> {
        if table_idx == self.last() {
            return Ok(entry);
        }
        let places = self.tables[table_idx].places;
        let at = entry * self.place_bytes;
        let place = match self.place_bytes {
            1 => places.get(at).map(|&place| u32::from(place)),
            _ => places
                .get(at..at + 2)
                .map(|place| u32::from(u16::from_le_bytes([place[0], place[1]]))),
        };
        let first = self.offsets(self.last())[self.last_substring(table_idx, entry)];
        let row = place.map_or(usize::MAX, |place| first as usize + place as usize);
        match row < self.n_codes {
            true => Ok(row),
            false => Err(self.no_row(entry, row)),
        }
    }

    #[cold]
    fn no_row(&self, entry: usize, row: usize) -> Error {
        Error::corrupt(
            SECTION,
            format!("entry {entry} is of row {row} of {} codes", self.n_codes),
        )
    }

    /// Reads everything: offsets ascend, rows are in the order of the last substring, every row occurs once
    /// in each table, in the bucket of its substring, with its sketch, and rows of a bucket ascend.
    ///
    /// # Errors
    /// `Corrupt` naming the first contradiction.
    pub fn verify(&self, codes: CodesRef<'_>, params: &MihParams) -> Result<()> {
        params.code_len().check(codes.code_len())?;
        let corrupt = |table_idx: usize, reason: String| {
            Err(Error::corrupt(
                format!("substring table {table_idx}"),
                reason,
            ))
        };
        if self.n_codes != codes.n_codes() {
            let reason = format!("{} entries for {} codes", self.n_codes, codes.n_codes());
            return corrupt(0, reason);
        }
        let extractors: Vec<Extractor> = (0..params.n_substrings())
            .map(|substring_idx| Extractor::new(params, substring_idx))
            .collect();
        let substring = |row: usize, substring_idx: usize| {
            extractors[substring_idx].extract(|word_idx| codes.word(row, word_idx))
        };
        for table_idx in 0..params.n_substrings() {
            let offsets = self.offsets(table_idx);
            if offsets[0] != 0 {
                let reason = format!("the first offset is {}, expected 0", offsets[0]);
                return corrupt(table_idx, reason);
            }
            for value in 0..offsets.len() as u32 - 1 {
                let mut last_row = None;
                for entry in self.bucket(table_idx, value)? {
                    let row = self.row(table_idx, entry)?;
                    // Every row is in its own bucket and no bucket repeats one, so n rows are all rows.
                    if last_row.is_some_and(|last_row| last_row >= row) {
                        let reason =
                            format!("bucket {value} has row {row} late, expected ascending rows");
                        return corrupt(table_idx, reason);
                    }
                    last_row = Some(row);
                    let expected = substring(row, table_idx);
                    if expected != value {
                        let reason = format!(
                            "bucket {value} has row {row}, which belongs in bucket {expected}"
                        );
                        return corrupt(table_idx, reason);
                    }
                    let bits = self.bits(table_idx);
                    let expected = bits.sketch(|substring_idx| substring(row, substring_idx));
                    let found = self.sketches(table_idx)[entry];
                    if found != expected {
                        let reason = format!(
                            "expected sketch {expected:08x} of row {row}, found {found:08x}"
                        );
                        return corrupt(table_idx, reason);
                    }
                }
            }
        }
        Ok(())
    }
}

impl SketchView<'_> {
    /// Reads which row is whose: the documents of a bucket of the last table ascend.
    ///
    /// # Errors
    /// `Corrupt` naming the first bucket where they do not.
    pub(super) fn verify_order(&self, order: &RowOrder<'_>) -> Result<()> {
        for value in 0..self.offsets(self.last()).len() as u32 - 1 {
            let ranks = self.bucket(self.last(), value)?.map(|row| order.rank(row));
            if !ranks.is_sorted_by(|a, b| a < b) {
                return Err(Error::corrupt(
                    format!("substring table {}", self.last()),
                    format!("the documents of bucket {value} do not ascend"),
                ));
            }
        }
        Ok(())
    }
}

/// All tables of some codes, in memory: for tests, and for searches of codes that are in no file.
#[derive(Clone, Debug)]
pub struct Sketches {
    codes: Codes,
    order: SketchOrder,
    tables: Vec<SketchTable>,
}

impl Sketches {
    /// Sorts the codes and builds all tables; `None` as [`SketchOrder::build`].
    ///
    /// # Errors
    /// As [`SketchOrder::build`].
    pub fn build(codes: CodesRef<'_>, params: &MihParams) -> Result<Option<Sketches>> {
        let Some(order) = SketchOrder::build(codes, params)? else {
            return Ok(None);
        };
        let codes = codes.reordered(order.order());
        let tables = (0..params.n_substrings())
            .map(|table_idx| SketchTable::build(codes.as_ref(), params, &order, table_idx))
            .collect::<Result<_>>()?;
        Ok(Some(Sketches {
            codes,
            order,
            tables,
        }))
    }

    /// The codes in the order of rows.
    pub fn codes(&self) -> CodesRef<'_> {
        self.codes.as_ref()
    }

    /// For each row, the row it was.
    pub fn order(&self) -> &[u32] {
        self.order.order()
    }

    /// The tables, borrowed.
    ///
    /// # Errors
    /// `Corrupt` for other parameters than they were built with.
    pub fn view(&self, params: &MihParams) -> Result<SketchView<'_>> {
        SketchView::new(
            params,
            self.codes.n_codes(),
            self.tables.iter().map(SketchTable::as_ref),
            self.order.place_bytes(),
        )
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn random(bits: usize, n_codes: usize) -> (Codes, MihParams) {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        // Many share a substring, so that places differ from 0.
        let bytes: Vec<u8> = (0..n_codes * bits / 8)
            .map(|_| rng.random::<u8>() & rng.random::<u8>() & rng.random::<u8>())
            .collect();
        let codes = Codes::from_packed(CodeLen::new(bits).unwrap(), &bytes).unwrap();
        let params = MihParams::fit_sketches(codes.as_ref());
        (codes, params)
    }

    #[test]
    fn every_length_is_built_and_verified() {
        for bits in (40..=64).step_by(8) {
            for n_codes in [0, 1, 9, 3000] {
                let (codes, params) = random(bits, n_codes);
                let sketches = Sketches::build(codes.as_ref(), &params).unwrap().unwrap();
                let view = sketches.view(&params).unwrap();
                view.verify(sketches.codes(), &params).unwrap();
                assert_eq!(sketches.order().len(), n_codes);
                for (row, &was) in sketches.order().iter().enumerate() {
                    assert_eq!(sketches.codes().get(row), codes.get(was as usize));
                }
                // Entries lead to their rows, and outside of a sketch is what none of its bits is of.
                let last = params.n_substrings() - 1;
                for table_idx in 0..=last {
                    let covered: usize = (0..=last)
                        .filter(|idx| *idx != table_idx)
                        .filter(|idx| !view.bits(table_idx).outside.contains(idx))
                        .map(|idx| params.width(idx))
                        .sum();
                    assert!(covered >= SKETCH_BITS.min(bits - params.width(table_idx)));
                    for entry in 0..n_codes {
                        let code = sketches.codes().get(view.row(table_idx, entry).unwrap());
                        let sketch = view
                            .bits(table_idx)
                            .sketch(|substring_idx| params.substring(substring_idx, code.words()));
                        assert_eq!(view.sketches(table_idx)[entry], sketch);
                    }
                }
            }
        }
        for bits in [16, 32, 72, 256] {
            let (codes, params) = (
                Codes::new(CodeLen::new(bits).unwrap()),
                MihParams::choose(CodeLen::new(bits).unwrap(), 9),
            );
            assert!(Sketches::build(codes.as_ref(), &params).unwrap().is_none());
        }
    }

    #[test]
    fn places_take_two_bytes_where_one_is_too_few_and_none_where_two_are() {
        let len = CodeLen::new(64).unwrap();
        for (n_equal, place_bytes) in [
            (256, Some(1)),
            (257, Some(2)),
            (65_536, Some(2)),
            (65_537, None),
        ] {
            let mut codes = Codes::new(len);
            (0..n_equal).for_each(|_| codes.push_words(&[0x0123_4567_89ab_cdef]));
            codes.push_words(&[0]);
            let params = MihParams::fit_sketches(codes.as_ref());
            let sketches = Sketches::build(codes.as_ref(), &params).unwrap();
            assert_eq!(
                sketches.as_ref().map(|s| s.order.place_bytes()),
                place_bytes
            );
            if let Some(sketches) = sketches {
                sketches
                    .view(&params)
                    .unwrap()
                    .verify(sketches.codes(), &params)
                    .unwrap();
            }
        }
    }

    #[test]
    fn verify_finds_every_damaged_number() {
        let (codes, params) = random(48, 400);
        let sketches = Sketches::build(codes.as_ref(), &params).unwrap().unwrap();
        let is_found = |damaged: &Sketches| {
            let view = damaged.view(&params);
            view.and_then(|view| view.verify(damaged.codes(), &params))
                .is_err()
        };
        assert!(!is_found(&sketches));
        let mut rng = ChaCha8Rng::seed_from_u64(10);
        for _ in 0..300 {
            let mut damaged = sketches.clone();
            let bit = 1u32 << rng.random_range(0..32);
            let table = &mut damaged.tables[rng.random_range(0..3)];
            match rng.random_range(0..3) {
                0 => {
                    let at = rng.random_range(0..table.offsets.len());
                    table.offsets[at] ^= bit;
                }
                1 => {
                    let at = rng.random_range(0..table.sketches.len());
                    table.sketches[at] ^= bit;
                }
                _ if table.places.is_empty() => continue,
                _ => {
                    let at = rng.random_range(0..table.places.len());
                    table.places[at] ^= 1 << rng.random_range(0..8);
                }
            }
            assert!(is_found(&damaged));
        }
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let (codes, params) = random(64, 300);
        let sketches = Sketches::build(codes.as_ref(), &params).unwrap().unwrap();
        let tables = || sketches.tables.iter().map(SketchTable::as_ref);
        assert!(SketchView::new(&params, 300, tables(), 1).is_ok());
        assert!(SketchView::new(&params, 299, tables(), 1).is_err());
        assert!(SketchView::new(&params, 300, tables().chain(tables()), 1).is_err());
        assert!(SketchView::new(&params, 300, tables(), 2).is_err());
        assert!(SketchView::new(&params, 300, tables(), 0).is_err());
        assert!(SketchView::new(&params, 300, tables().take(3), 1).is_err());
        let wide = MihParams::choose(params.code_len(), 1 << 22);
        assert!(SketchView::new(&wide, 300, tables().take(3), 1).is_err());
    }
}

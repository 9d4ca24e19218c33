//! Which rank each row has where rows do not follow their documents: a permutation, both ways, in as
//! few bits as the number of rows needs.
//!
//! The rank of a row is its place among the rows in ascending document order. A segment whose rows are
//! sorted by cluster keeps this map beside them. Reads in place; whether the two halves are inverse to
//! each other is a question for `verify`, so every number read is compared with the number of rows.

use std::fmt;

use crate::error::{Error, Result};

/// The section named by errors about row orders.
const SECTION: &str = "row order";

/// Bytes past the last number, so that eight bytes can be read at each one.
const PAD_BYTES: usize = 8;

/// Numbers below some `n`, in the fewest bits each that hold `n - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PackedInts<'a> {
    bytes: &'a [u8],
    n: usize,
    width: usize,
}

/// Bits that hold every number below `n`.
fn width_for(n: usize) -> usize {
    (usize::BITS - n.saturating_sub(1).leading_zeros()) as usize
}

impl<'a> PackedInts<'a> {
    fn new(bytes: &'a [u8], n: usize) -> Result<PackedInts<'a>> {
        if bytes.len() != RowOrder::packed_bytes(n) {
            return Err(Error::corrupt(
                SECTION,
                format!(
                    "{} bytes for {n} rows, expected {}",
                    bytes.len(),
                    RowOrder::packed_bytes(n)
                ),
            ));
        }
        let width = width_for(n);
        Ok(PackedInts { bytes, n, width })
    }

    /// Number `idx`; `None` past the last, or if what is stored there is no number below `n`.
    #[inline]
    fn get(&self, idx: usize) -> Option<u32> {
        if idx >= self.n {
            return None;
        }
        let bit = idx * self.width;
        let bytes = self.bytes.get(bit / 8..bit / 8 + 8)?;
        let word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let value = word >> (bit % 8) & ((1 << self.width) - 1);
        ((value as usize) < self.n).then_some(value as u32)
    }

    /// Replaces each place in `idxs` by the number there. False if a place is past the last, or what is
    /// stored at one is no number below `n`: one test for all of them, in place of two a number.
    fn get_all(&self, idxs: &mut [u32]) -> bool {
        let mask = (1u64 << self.width) - 1;
        let mut greatest = 0;
        for idx in idxs.iter_mut() {
            let bit = *idx as usize * self.width;
            let Some(bytes) = self.bytes.get(bit / 8..bit / 8 + 8) else {
                return false;
            };
            let word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
            let value = match (*idx as usize) < self.n {
                true => (word >> (bit % 8) & mask) as u32,
                false => u32::MAX,
            };
            greatest = greatest.max(value);
            *idx = value;
        }
        idxs.is_empty() || (greatest as usize) < self.n
    }

    /// True if every bit behind the last number is 0.
    fn is_padded_with_zeros(&self) -> bool {
        let end = self.n * self.width;
        let rest = &self.bytes[end / 8..];
        rest[0] >> (end % 8) == 0 && rest[1..].iter().all(|&byte| byte == 0)
    }
}

/// A permutation of rows in both directions, borrowed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RowOrder<'a> {
    ranks: PackedInts<'a>,
    rows: PackedInts<'a>,
}

impl fmt::Debug for RowOrder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RowOrder({} rows)", self.ranks.n)
    }
}

impl<'a> RowOrder<'a> {
    /// Bytes of each direction for `n_rows` rows.
    pub fn packed_bytes(n_rows: usize) -> usize {
        (n_rows * width_for(n_rows)).div_ceil(8) + PAD_BYTES
    }

    /// Takes the rank of each row and the row of each rank, as [`pack`](RowOrder::pack) made them.
    ///
    /// # Errors
    /// `Corrupt` if a length is not that of `n_rows` rows.
    pub fn new(ranks: &'a [u8], rows: &'a [u8], n_rows: usize) -> Result<RowOrder<'a>> {
        Ok(RowOrder {
            ranks: PackedInts::new(ranks, n_rows)?,
            rows: PackedInts::new(rows, n_rows)?,
        })
    }

    /// Packs numbers that are all below their count.
    pub fn pack(numbers: &[u32]) -> Vec<u8> {
        let width = width_for(numbers.len());
        let mut bytes = vec![0; RowOrder::packed_bytes(numbers.len())];
        for (idx, &number) in numbers.iter().enumerate() {
            debug_assert!((number as usize) < numbers.len());
            let bit = idx * width;
            let place: &mut [u8; 8] = (&mut bytes[bit / 8..bit / 8 + 8])
                .try_into()
                .expect("eight bytes");
            let word = u64::from_le_bytes(*place) | u64::from(number) << (bit % 8);
            *place = word.to_le_bytes();
        }
        bytes
    }

    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.ranks.n
    }

    /// The rank of a row; `None` past the last row, and where a damaged file holds no rank.
    #[inline]
    pub fn rank(&self, row: usize) -> Option<u32> {
        self.ranks.get(row)
    }

    /// The bytes from the rank of a row on, to be asked for ahead of [`rank`](RowOrder::rank).
    #[inline]
    pub(crate) fn rank_bytes(&self, row: usize) -> &'a [u8] {
        let ranks = &self.ranks;
        ranks.bytes.get(row * ranks.width / 8..).unwrap_or_default()
    }

    /// The row of a rank; `None` past the last rank, and where a damaged file holds no row.
    #[inline]
    pub fn row(&self, rank: usize) -> Option<u32> {
        self.rows.get(rank)
    }

    /// Replaces each of `ranks` by its row.
    ///
    /// # Errors
    /// `Corrupt` for a rank past the last, and where a damaged file holds no row.
    pub(crate) fn rows_of(&self, ranks: &mut [u32]) -> Result<()> {
        match self.rows.get_all(ranks) {
            true => Ok(()),
            false => Err(RowOrder::damaged()),
        }
    }

    /// The error for a row or rank that came back as `None`.
    #[cold]
    pub(crate) fn damaged() -> Error {
        Error::corrupt(SECTION, "a number is past the last row")
    }

    /// Reads everything: each direction is the other's inverse, and nothing follows the last number.
    ///
    /// # Errors
    /// `Corrupt` naming the first contradiction.
    pub fn verify(&self) -> Result<()> {
        if !self.ranks.is_padded_with_zeros() || !self.rows.is_padded_with_zeros() {
            return Err(Error::corrupt(
                SECTION,
                "expected zeros behind the last number",
            ));
        }
        for row in 0..self.n_rows() {
            let rank = self.rank(row).ok_or_else(RowOrder::damaged)?;
            let back = self.row(rank as usize).ok_or_else(RowOrder::damaged)?;
            if back as usize != row {
                return Err(Error::corrupt(
                    SECTION,
                    format!("row {row} has rank {rank}, whose row is {back}"),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::seq::SliceRandom;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn both_directions_round_trip_at_every_size() {
        for n in (0..70).chain([127, 128, 129, 255, 256, 257, 1000, 65_535, 65_536, 65_537]) {
            let mut ranks: Vec<u32> = (0..n as u32).collect();
            ranks.shuffle(&mut ChaCha8Rng::seed_from_u64(5));
            let mut rows = vec![0; n];
            for (row, &rank) in ranks.iter().enumerate() {
                rows[rank as usize] = row as u32;
            }
            let (packed_ranks, packed_rows) = (RowOrder::pack(&ranks), RowOrder::pack(&rows));
            let order = RowOrder::new(&packed_ranks, &packed_rows, n).unwrap();
            order.verify().unwrap();
            for (row, &rank) in ranks.iter().enumerate() {
                assert_eq!(order.rank(row), Some(rank), "{n}");
                assert_eq!(order.row(rank as usize), Some(row as u32), "{n}");
            }
            assert_eq!((order.rank(n), order.row(n)), (None, None));
            let mut all: Vec<u32> = (0..n as u32).collect();
            order.rows_of(&mut all).unwrap();
            assert_eq!(all, rows, "{n}");
            assert!(order.rows_of(&mut [n as u32]).is_err(), "{n}");
            assert!(order.rows_of(&mut [u32::MAX]).is_err(), "{n}");
        }
    }

    #[test]
    fn damage_is_found_and_never_read_past_the_end() {
        let n = 100;
        let identity: Vec<u32> = (0..n).collect();
        let packed = RowOrder::pack(&identity);
        let n = n as usize;
        assert!(RowOrder::new(&packed[1..], &packed, n).is_err());
        assert!(RowOrder::new(&packed, &packed, n + 20).is_err());
        for bit in 0..n * width_for(n) {
            let mut damaged = packed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let order = RowOrder::new(&damaged, &packed, n).unwrap();
            assert!(order.verify().is_err(), "bit {bit}");
            assert!((0..n).all(|row| order.rank(row).is_none_or(|rank| (rank as usize) < n)));
            let order = RowOrder::new(&packed, &damaged, n).unwrap();
            let mut all = identity.clone();
            let read = order.rows_of(&mut all);
            assert_eq!(
                read.is_ok(),
                all.iter().all(|&row| (row as usize) < n),
                "bit {bit}"
            );
        }
    }
}

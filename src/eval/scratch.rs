//! One query against the whole database: distances, relevance, and counts by distance.

use super::Protocol;
use super::relevance::Relevance;
use crate::code::CodesRef;
use crate::hamming::Kernel;

/// The distance of an item that is left out of the ranking.
const LEFT_OUT: u32 = u32::MAX;

/// Distances from one query to the whole database, and how many items, and how many relevant ones,
/// there are at each distance.
pub(super) struct Scratch {
    /// One a row; past every distance for an item that is left out.
    distances: Vec<u32>,
    /// One a row: 1 for a relevant item.
    flags: Vec<u8>,
    /// `bits + 1` counts.
    pub(super) all: Vec<u32>,
    pub(super) relevant: Vec<u32>,
    /// The sum of gains at each distance, where similarities are given.
    pub(super) gains: Vec<f64>,
}

impl Scratch {
    pub(super) fn new(database: &CodesRef<'_>) -> Scratch {
        let bits = database.code_len().bits();
        Scratch {
            distances: vec![0; database.n_codes()],
            flags: vec![0; database.n_codes()],
            all: vec![0; bits + 1],
            relevant: vec![0; bits + 1],
            gains: Vec::new(),
        }
    }

    pub(super) fn rows(&self) -> &[u32] {
        &self.distances
    }

    pub(super) fn is_relevant(&self, row: u32) -> bool {
        self.flags[row as usize] != 0
    }

    /// Relevant items that are ranked.
    pub(super) fn n_relevant(&self) -> u64 {
        self.relevant.iter().map(|&n| u64::from(n)).sum()
    }

    pub(super) fn measure(
        &mut self,
        database: &CodesRef<'_>,
        relevance: &Relevance<'_>,
        query: &CodesRef<'_>,
        row: usize,
        protocol: &Protocol,
    ) {
        Kernel::best().distances(*database, query.get(row).words(), &mut self.distances);
        relevance.flags(row, &mut self.flags);
        // Both counts in one u64, and neighbouring rows in tables of their own: equal distances in a row
        // are common in learned codes, and would each wait for the count before.
        let mut counts = vec![[0u64; 4]; self.all.len()];
        let rows = self.distances.chunks(4);
        for (distances, flags) in rows.zip(self.flags.chunks(4)) {
            for (lane, (&distance, &flag)) in distances.iter().zip(flags).enumerate() {
                counts[distance as usize][lane] += 1 + (u64::from(flag) << 32);
            }
        }
        for (distance, lanes) in counts.iter().enumerate() {
            let sum: u64 = lanes.iter().sum();
            self.all[distance] = sum as u32;
            self.relevant[distance] = (sum >> 32) as u32;
        }
        if protocol.leave_one_out {
            // The query itself, at distance 0.
            self.all[0] -= 1;
            self.relevant[0] -= u32::from(self.flags[row]);
            self.distances[row] = LEFT_OUT;
            self.flags[row] = 0;
        }
    }
}

//! Cluster-pruned search: exact answers from the few clusters that can hold them.
//!
//! Rows are stored in order of (cluster, distance to the cluster's centroid, document). The rows of one
//! cluster at one distance are a *shell*. A query at distance `D` from a centroid is at least `|D - e|`
//! from every code of shell `e`: the triangle inequality of the Hamming distance. So a search within `r`
//! reads of each cluster the shells from `D - r` to `D + r`, most often none, and what it will read is
//! known from the table of shells before any of it is read. Nothing is approximate: a poor clustering
//! costs time, never an answer. `build` makes clusters from codes, `search` is the engine.

mod build;
mod search;

pub use build::{ClusterParams, Clusters};
pub use search::ClusterSearch;
pub(crate) use search::SEED_CLUSTERS;

use std::ops::Range;

use crate::code::{CodesRef, RowOrder};
use crate::error::{Error, Result};
use crate::hamming::Kernel;

/// The section named by errors about clusters.
pub(crate) const SECTION: &str = "cluster table";

/// The clusters of one segment, borrowed.
///
/// `extents` has one number a cluster: the distance of its nearest shell in the lower 16 bits, of its
/// farthest in the upper 16. `starts` has one more entry than there are clusters: where the cluster's
/// numbers begin in `shells`. Those are the first row of each shell from the nearest to the farthest,
/// and the row past the last.
#[derive(Clone, Copy, Debug)]
pub struct ClusterView<'a> {
    centroids: CodesRef<'a>,
    extents: &'a [u32],
    starts: &'a [u32],
    shells: &'a [u32],
}

impl<'a> ClusterView<'a> {
    /// Takes tables that were written before.
    ///
    /// # Errors
    /// `Corrupt` if a length contradicts the number of centroids. Looks at nothing else:
    /// [`verify`](ClusterView::verify) does.
    pub fn new(
        centroids: CodesRef<'a>,
        extents: &'a [u32],
        starts: &'a [u32],
        shells: &'a [u32],
    ) -> Result<ClusterView<'a>> {
        let n_clusters = centroids.n_codes();
        if n_clusters == 0 || extents.len() != n_clusters || starts.len() != n_clusters + 1 {
            return Err(Error::corrupt(
                SECTION,
                format!(
                    "{} extents and {} starts for {n_clusters} centroids",
                    extents.len(),
                    starts.len()
                ),
            ));
        }
        if starts[n_clusters] as usize != shells.len() {
            return Err(Error::corrupt(
                SECTION,
                format!(
                    "the last start is {}, expected {}",
                    starts[n_clusters],
                    shells.len()
                ),
            ));
        }
        Ok(ClusterView {
            centroids,
            extents,
            starts,
            shells,
        })
    }

    /// The center of each cluster: the majority of its codes, bit by bit.
    pub fn centroids(&self) -> CodesRef<'a> {
        self.centroids
    }

    /// The number of clusters.
    pub fn n_clusters(&self) -> usize {
        self.extents.len()
    }

    /// The distances of a cluster's nearest and farthest shell. Panics past the last cluster.
    #[inline]
    pub fn extent(&self, cluster: usize) -> (u32, u32) {
        let extent = self.extents[cluster];
        (extent & 0xffff, extent >> 16)
    }

    /// The rows of a cluster whose distance to the centroid is from `nearest` to `farthest`, both
    /// included. Panics past the last cluster.
    ///
    /// # Errors
    /// `Corrupt` if the tables give no range of rows.
    #[inline]
    pub fn rows(&self, cluster: usize, nearest: u32, farthest: u32) -> Result<Range<usize>> {
        let (first, last) = self.extent(cluster);
        let (nearest, farthest) = (nearest.max(first), farthest.min(last));
        if nearest > farthest {
            return Ok(0..0);
        }
        let start = self.starts[cluster] as usize + (nearest - first) as usize;
        let end = self.starts[cluster] as usize + (farthest - first) as usize + 1;
        match (self.shells.get(start), self.shells.get(end)) {
            (Some(&start), Some(&end)) if start <= end => Ok(start as usize..end as usize),
            _ => Err(Error::corrupt(
                SECTION,
                format!("cluster {cluster} has no rows at distances {nearest} to {farthest}"),
            )),
        }
    }

    /// The clusters with a shell within `bound` of a query at these distances from the centroids.
    pub(crate) fn within(&self, kernel: Kernel, distances: &[u32], bound: u32) -> Vec<u32> {
        let mut within = Vec::with_capacity(64);
        kernel.near_extents(distances, self.extents, bound, &mut within);
        within
    }

    /// `Ok` if these can be the clusters of `codes`, by length and count.
    pub(crate) fn check(&self, codes: CodesRef<'_>) -> Result<()> {
        self.centroids.code_len().check(codes.code_len())?;
        let n_rows = self.shells.last().map_or(0, |&last| last as usize);
        if n_rows != codes.n_codes() {
            return Err(Error::corrupt(
                SECTION,
                format!("clusters of {n_rows} rows beside {} codes", codes.n_codes()),
            ));
        }
        Ok(())
    }

    /// Reads everything: shells follow one another from row 0 to the last, the outer ones of a cluster
    /// are not empty, and every row is as far from its centroid as its shell says.
    ///
    /// # Errors
    /// `Corrupt` naming the first contradiction.
    pub fn verify(&self, codes: CodesRef<'_>) -> Result<()> {
        self.check(codes)?;
        let corrupt = |reason: String| Error::corrupt(SECTION, reason);
        if !self.centroids.is_padded_with_zeros() {
            return Err(corrupt(
                "expected zero padding of centroids, found set bits".to_owned(),
            ));
        }
        if self.starts[0] != 0 {
            return Err(corrupt(format!(
                "the first start is {}, expected 0",
                self.starts[0]
            )));
        }
        let mut next_row = 0;
        for cluster in 0..self.n_clusters() {
            let (first, last) = self.extent(cluster);
            let start = self.starts[cluster] as usize;
            let n_entries = (last + 2).saturating_sub(first) as usize;
            if n_entries < 2 || self.starts[cluster + 1] as usize != start + n_entries {
                return Err(corrupt(format!(
                    "cluster {cluster} has shells {first} to {last} in entries {start} to {}",
                    self.starts[cluster + 1]
                )));
            }
            let centroid = self.centroids.get(cluster);
            for shell in first..=last {
                let rows = self.rows(cluster, shell, shell)?;
                if rows.start != next_row || rows.end > codes.n_codes() {
                    return Err(corrupt(format!(
                        "shell {shell} of cluster {cluster} has rows {rows:?}, expected them from {next_row}"
                    )));
                }
                if rows.is_empty() && (shell == first || shell == last) {
                    return Err(corrupt(format!(
                        "cluster {cluster} ends with shell {shell}, which is empty"
                    )));
                }
                for row in rows.clone() {
                    let distance = codes.distance(row, centroid.words());
                    if distance != shell {
                        return Err(corrupt(format!(
                            "row {row} is in shell {shell} of cluster {cluster}, expected {distance}"
                        )));
                    }
                }
                next_row = rows.end;
            }
        }
        if next_row != codes.n_codes() {
            return Err(corrupt(format!(
                "the shells end at row {next_row} of {}",
                codes.n_codes()
            )));
        }
        Ok(())
    }

    /// Reads the ranks of all rows of tables that passed [`verify`](ClusterView::verify): the documents of
    /// a shell ascend, which lets a search stop in the middle of one.
    ///
    /// # Errors
    /// `Corrupt` naming the first row out of order.
    pub fn verify_order(&self, order: &RowOrder<'_>) -> Result<()> {
        for cluster in 0..self.n_clusters() {
            let (first, last) = self.extent(cluster);
            for shell in first..=last {
                let rows = self.rows(cluster, shell, shell)?;
                for row in rows.start + 1..rows.end {
                    if order.rank(row - 1) >= order.rank(row) {
                        return Err(Error::corrupt(
                            SECTION,
                            format!(
                                "row {row} of shell {shell} of cluster {cluster} is out of document order"
                            ),
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

//! A hash field of one segment in memory: codes, and the documents they belong to.
//!
//! The form in which codes wait to be written, and in which merges collect them. Rows ascend by
//! document id; a document without a code has no row.

use std::ops::Deref;

use crate::code::{CodeLen, Codes, CodesRef, HashCode, RowOrder};
use crate::error::Result;

/// Codes with the ascending ids of their documents.
#[derive(Clone, Debug)]
pub struct Column {
    codes: Codes,
    /// Invariant: as many as codes, strictly ascending once `sort` has run.
    doc_ids: Vec<u32>,
    /// Where the search for clusters may start.
    first_centroids: Option<Codes>,
}

impl Column {
    /// No codes yet.
    pub fn new(len: CodeLen) -> Column {
        Column {
            codes: Codes::new(len),
            doc_ids: Vec::new(),
            first_centroids: None,
        }
    }

    /// Lets the search for clusters start from these centroids: those of merged segments, say.
    ///
    /// # Errors
    /// `CodeLenMismatch`.
    pub fn suggest_centroids(&mut self, centroids: CodesRef<'_>) -> Result<()> {
        self.codes.code_len().check(centroids.code_len())?;
        let suggested = self
            .first_centroids
            .get_or_insert_with(|| Codes::new(centroids.code_len()));
        (0..centroids.n_codes()).for_each(|row| suggested.push_row(&centroids, row));
        Ok(())
    }

    /// The centroids that were suggested.
    pub fn first_centroids(&self) -> Option<CodesRef<'_>> {
        self.first_centroids.as_ref().map(Codes::as_ref)
    }

    /// Adds the code of a document. Documents may come in any order, each at most once.
    ///
    /// # Errors
    /// `CodeLenMismatch`.
    pub fn push(&mut self, doc_id: u32, code: &HashCode) -> Result<()> {
        self.codes.push(code)?;
        self.doc_ids.push(doc_id);
        Ok(())
    }

    /// Adds row `row` of `codes` as the code of a document. Panics if the lengths differ.
    pub fn push_row<D: Deref<Target = [u64]>>(
        &mut self,
        doc_id: u32,
        codes: &Codes<D>,
        row: usize,
    ) {
        self.codes.push_row(codes, row);
        self.doc_ids.push(doc_id);
    }

    /// The codes, row by row.
    pub fn codes(&self) -> CodesRef<'_> {
        self.codes.as_ref()
    }

    /// The document of each row.
    pub fn doc_ids(&self) -> &[u32] {
        &self.doc_ids
    }

    /// Heap bytes in use, for the writer's memory budget.
    pub fn mem_usage(&self) -> usize {
        self.codes.blocks().len() * 8 + self.doc_ids.capacity() * 4
    }

    /// Renumbers every document by `new_id` and restores the ascending order of rows.
    pub fn renumber(&mut self, new_id: impl Fn(u32) -> u32) {
        self.doc_ids
            .iter_mut()
            .for_each(|doc_id| *doc_id = new_id(*doc_id));
        self.sort();
    }

    /// Restores the ascending order of rows.
    pub fn sort(&mut self) {
        if self.doc_ids.is_sorted() {
            return;
        }
        let mut rows: Vec<u32> = (0..self.doc_ids.len() as u32).collect();
        rows.sort_unstable_by_key(|&row| self.doc_ids[row as usize]);
        self.codes = self.codes.reordered(&rows);
        self.doc_ids = rows.iter().map(|&row| self.doc_ids[row as usize]).collect();
    }
}

/// Where a merge reads a field from: one source segment's rows.
#[derive(Clone, Copy)]
pub struct RowSource<'a> {
    /// The rows of the source.
    pub codes: CodesRef<'a>,
    /// The documents with a code, ascending; `None` when all have one.
    pub doc_ids: Option<&'a [u32]>,
    /// The rank of each row; `None` when rows ascend by document.
    pub order: Option<RowOrder<'a>>,
    /// The centers of the source's clusters, if it has any.
    pub centroids: Option<CodesRef<'a>>,
}

impl RowSource<'_> {
    /// The row of a document, or `None` if it has no code.
    ///
    /// # Errors
    /// `Corrupt` where the row order of a damaged file gives no row.
    pub fn row_of(&self, doc_id: u32) -> Result<Option<usize>> {
        let rank = match self.doc_ids {
            None => Some(doc_id as usize).filter(|&rank| rank < self.codes.n_codes()),
            Some(doc_ids) => doc_ids.binary_search(&doc_id).ok(),
        };
        match (rank, &self.order) {
            (Some(rank), Some(order)) => match order.row(rank) {
                Some(row) => Ok(Some(row as usize)),
                None => Err(RowOrder::damaged()),
            },
            (rank, _) => Ok(rank),
        }
    }
}

//! A hash field of one segment in memory: codes, and the documents they belong to.
//!
//! The form in which codes wait to be written, and in which merges collect them. Rows ascend by
//! document id; a document without a code has no row.

use std::ops::Deref;

use crate::code::{CodeLen, Codes, CodesRef, HashCode};
use crate::error::Result;

/// Codes with the ascending ids of their documents.
#[derive(Clone, Debug)]
pub struct Column {
    codes: Codes,
    /// Invariant: as many as codes, strictly ascending once `sort` has run.
    doc_ids: Vec<u32>,
}

impl Column {
    /// No codes yet.
    pub fn new(len: CodeLen) -> Column {
        Column {
            codes: Codes::new(len),
            doc_ids: Vec::new(),
        }
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
        let mut codes = Codes::with_capacity(self.codes.code_len(), rows.len());
        rows.iter()
            .for_each(|&row| codes.push_row(&self.codes, row as usize));
        self.doc_ids = rows.iter().map(|&row| self.doc_ids[row as usize]).collect();
        self.codes = codes;
    }
}

/// Where a merge reads a field from: one source segment's rows.
#[derive(Clone, Copy)]
pub struct RowSource<'a> {
    /// The rows of the source.
    pub codes: CodesRef<'a>,
    /// The document of each row, ascending; `None` when row and document id are the same.
    pub doc_ids: Option<&'a [u32]>,
}

impl RowSource<'_> {
    /// The row of a document, or `None` if it has no code.
    pub fn row_of(&self, doc_id: u32) -> Option<usize> {
        match self.doc_ids {
            None => Some(doc_id as usize).filter(|&row| row < self.codes.n_codes()),
            Some(doc_ids) => doc_ids.binary_search(&doc_id).ok(),
        }
    }
}

//! What engines find in rows that do not ascend by document, until it is known which documents they are of.
//!
//! Knows no engine; all three keep their finds here.

use crate::code::RowOrder;
use crate::engine::{Membership, SegmentRows};
use crate::error::Result;
use crate::topk::{KthDistance, Neighbor, TopK};

/// What a k-NN search has found: a `TopK`, and rows on their way into it.
///
/// Each lookup of a row's document is a cache miss, and most rows that are near enough when they come are
/// not in the end. So where no filter asks for documents, rows wait until the bound has fallen.
pub(crate) struct Finds<'t> {
    pub(crate) top: &'t mut TopK,
    /// Rows that wait, where rows alone decide what is allowed.
    pub(crate) late: Option<NearRows>,
}

/// Rows that wait in most searches: some for each neighbor that is wanted, and some anyway.
const NEAR_ROWS_EACH: usize = 4;
const NEAR_ROWS: usize = 128;

/// As many rows wait: those at the k-th distance may be any number.
const LATE_ROWS_MAX: usize = 4096;

impl<'t> Finds<'t> {
    /// Rows do not wait.
    pub(crate) fn at_once(top: &'t mut TopK) -> Finds<'t> {
        Finds { top, late: None }
    }

    /// Rows wait unless a filter asks for documents.
    pub(crate) fn new(
        top: &'t mut TopK,
        rows: &SegmentRows<'_>,
        membership: &Membership<'_>,
    ) -> Finds<'t> {
        match membership.is_by_row() {
            true => Finds::by_row(top, rows),
            false => Finds::at_once(top),
        }
    }

    /// Rows wait, since they alone decide what is allowed.
    pub(crate) fn by_row(top: &'t mut TopK, rows: &SegmentRows<'_>) -> Finds<'t> {
        let late = NearRows::of(top, rows);
        Finds { top, late }
    }

    /// Takes a row within the bound, of those that wait, and gives the bound for those to come, `None` if
    /// nothing more may enter.
    #[inline]
    pub(crate) fn take(
        &mut self,
        rows: &SegmentRows<'_>,
        row: usize,
        distance: u32,
    ) -> Result<Option<u32>> {
        let Some(late) = &mut self.late else {
            return Ok(None);
        };
        rows.prefetch_doc(row);
        late.push(row, distance);
        self.settle_if_many(rows)?;
        Ok(self.late.as_ref().map(|late| late.bound()))
    }

    /// The largest distance that may still enter.
    pub(crate) fn bound(&self) -> u32 {
        match &self.late {
            Some(late) => late.bound(),
            None => self.top.bound(),
        }
    }

    /// The largest distance at which a row of these may still enter, `None` if none may.
    pub(crate) fn bound_from(&self, rows: &SegmentRows<'_>) -> Option<u32> {
        match &self.late {
            Some(late) => Some(late.bound()),
            None => self.top.bound_from(rows.address_base),
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        match &self.late {
            Some(late) => late.kth.is_full(),
            None => self.top.is_full(),
        }
    }

    /// Looks up the documents of the rows that are still near enough, and offers them to the top. More rows may
    /// come.
    pub(crate) fn settle(&mut self, rows: &SegmentRows<'_>) -> Result<()> {
        if self.late.is_some() {
            self.offer_late(rows)?;
            self.late = NearRows::of(self.top, rows);
        }
        Ok(())
    }

    /// As [`settle`](Finds::settle), of a search that is over.
    pub(crate) fn end(mut self, rows: &SegmentRows<'_>) -> Result<()> {
        self.offer_late(rows)
    }

    fn offer_late(&mut self, rows: &SegmentRows<'_>) -> Result<()> {
        let Some(mut late) = self.late.take() else {
            return Ok(());
        };
        let bound = late.bound();
        // As `retain` does, without a branch on each distance, which would often be predicted wrong.
        let mut n_near = 0;
        for idx in 0..late.rows.len() {
            let row = late.rows[idx];
            late.rows[n_near] = row;
            n_near += usize::from(row.1 <= bound);
        }
        late.rows.truncate(n_near);
        for (row, _) in &mut late.rows {
            *row = rows.doc_id(*row as usize).ok_or_else(RowOrder::damaged)?;
        }
        let neighbors = late.rows.into_iter().map(|(doc, distance)| Neighbor {
            distance,
            address: rows.address(doc),
        });
        match self.top.is_empty() {
            true => self.top.fill(late.kth, neighbors),
            false => self.top.extend(neighbors),
        }
        Ok(())
    }

    /// As [`settle`](Finds::settle), once so many rows wait that they take room.
    pub(crate) fn settle_if_many(&mut self, rows: &SegmentRows<'_>) -> Result<()> {
        match &self.late {
            Some(late) if late.rows.len() > LATE_ROWS_MAX => self.settle(rows),
            _ => Ok(()),
        }
    }

    /// Drops the rows that wait, for an engine that will meet them again, and keeps what is known of the k-th distance.
    pub(crate) fn forget(&mut self) {
        if let Some(late) = self.late.take()
            && late.kth.is_full()
        {
            self.top.lower(late.bound());
        }
    }

    /// To be called when the top has changed.
    pub(crate) fn renew(&mut self, rows: &SegmentRows<'_>) {
        if let Some(late) = self.late.take() {
            debug_assert!(late.rows.is_empty());
            self.late = NearRows::of(self.top, rows);
        }
    }
}

/// Rows that are no farther than the k-th nearest of them and of a `TopK`, and some that were when they
/// came. Unlike in a `TopK` all rows at the k-th distance stay: which of them count, their documents will
/// say.
pub(crate) struct NearRows {
    kth: KthDistance,
    rows: Vec<(u32, u32)>,
}

impl NearRows {
    /// `None` if nothing of these rows may enter the top.
    fn of(top: &TopK, rows: &SegmentRows<'_>) -> Option<NearRows> {
        let n_rows = NEAR_ROWS_EACH.saturating_mul(top.k());
        Some(NearRows {
            kth: top.kth_within(top.bound_from(rows.address_base)?),
            rows: Vec::with_capacity(n_rows.clamp(NEAR_ROWS, LATE_ROWS_MAX)),
        })
    }

    /// The largest distance that may still enter.
    #[inline]
    pub(crate) fn bound(&self) -> u32 {
        self.kth.bound()
    }

    /// Takes a row within the bound and gives the bound for those to come.
    #[inline]
    pub(crate) fn push(&mut self, row: usize, distance: u32) -> u32 {
        self.rows.push((row as u32, distance));
        self.kth.add(distance);
        self.kth.bound()
    }
}

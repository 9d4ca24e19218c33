//! Filters that are kept: evaluated once, used by any number of searches.
//!
//! A [`DocFilter`] belongs to the searcher it was made for. It knows the segments and their deletes, and
//! refuses to filter others: doc ids mean nothing there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use roaring::RoaringBitmap;
use tantivy::index::{SegmentId, SegmentReader};
use tantivy::query::{ConstScorer, EmptyScorer, EnableScoring, Explanation, Query, Scorer, Weight};
use tantivy::schema::Field;
use tantivy::{DocAddress, DocId, DocSet, Opstamp, Score, Searcher, TERMINATED, TantivyError};

use crate::code::CodesRef;
use crate::engine::{Allowed, AllowedRows, SegmentRows};
use crate::error::{Error, Result};
use crate::plan;
use crate::plugin::field::HashFieldOptions;
use crate::plugin::query::filter::FilterQuery;
use crate::plugin::{OpenColumn, contained, plugin_of};

/// A set of live documents of one searcher, to search among.
///
/// [`KnnQuery::doc_filter`](crate::plugin::KnnQuery::doc_filter) and
/// [`HammingQuery::doc_filter`](crate::plugin::HammingQuery::doc_filter) take it in an `Arc`, so that many
/// queries and threads share one. Deleted documents are left out when it is made. After a commit or a
/// merge make it anew: a search by a searcher of other segments or deletes refuses it.
///
/// Takes a compressed bit a document, and from the second search of a field on a bit a document and up to
/// four bytes for each document that it holds.
#[derive(Clone)]
pub struct DocFilter {
    /// One a segment, in the searcher's order.
    segments: Vec<Arc<SegmentDocs>>,
}

impl fmt::Debug for DocFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DocFilter")
            .field("documents", &self.len())
            .field("segments", &self.segments.len())
            .finish()
    }
}

impl DocFilter {
    /// The live documents that match a query.
    ///
    /// # Errors
    /// Those of the query.
    pub fn evaluate(searcher: &Searcher, query: &dyn Query) -> Result<DocFilter> {
        let query = FilterQuery::new(query, searcher)?;
        let mut segments = Vec::with_capacity(searcher.segment_readers().len());
        for reader in searcher.segment_readers() {
            let docs = contained("index", || {
                let mut docs = RoaringBitmap::new();
                let mut batches = query.batches(reader)?;
                loop {
                    let batch = batches.next();
                    if batch.is_empty() {
                        return Ok(docs);
                    }
                    let live = batch.iter().copied();
                    docs.extend(live.filter(|&doc_id| is_live(reader, doc_id)));
                }
            })?;
            segments.push(Arc::new(SegmentDocs::new(State::of(reader), docs)));
        }
        Ok(DocFilter { segments })
    }

    /// Documents by their addresses, in any order. Deleted ones are left out.
    ///
    /// # Errors
    /// `InvalidArgument` for an address that the searcher has not.
    pub fn from_addresses(
        searcher: &Searcher,
        addresses: impl IntoIterator<Item = DocAddress>,
    ) -> Result<DocFilter> {
        let readers = searcher.segment_readers();
        let mut docs = vec![RoaringBitmap::new(); readers.len()];
        for DocAddress {
            segment_ord,
            doc_id,
        } in addresses
        {
            let reader = readers.get(segment_ord as usize);
            let Some(reader) = reader.filter(|reader| doc_id < reader.max_doc()) else {
                return Err(Error::invalid(format!(
                    "expected addresses of the searcher's documents, got document {doc_id} of segment {segment_ord}"
                )));
            };
            if !reader.is_deleted(doc_id) {
                docs[segment_ord as usize].insert(doc_id);
            }
        }
        let segments = readers
            .iter()
            .zip(docs)
            .map(|(reader, docs)| Arc::new(SegmentDocs::new(State::of(reader), docs)));
        Ok(DocFilter {
            segments: segments.collect(),
        })
    }

    /// Looks up now what the second search of a hash field would, so that no search is held up: where the
    /// documents are among the field's codes. Takes some ns a document.
    ///
    /// # Errors
    /// `InvalidArgument` for another searcher than the filter was made for, or a field that holds no codes;
    /// `Corrupt`.
    pub fn prepare(&self, searcher: &Searcher, field: Field) -> Result<()> {
        self.check(searcher)?;
        let options = HashFieldOptions::of(searcher.schema(), field)?;
        let plugin = plugin_of(searcher.index());
        for (reader, docs) in searcher.segment_readers().iter().zip(&self.segments) {
            let column = OpenColumn::open(plugin.as_deref(), reader, field, &options)?;
            if column.n_codes() > 0 {
                let rows = column.rows(0, false).map_err(OpenColumn::about(reader))?;
                docs.prepare(field, &rows)?;
            }
        }
        Ok(())
    }

    /// Documents in both.
    ///
    /// # Errors
    /// `InvalidArgument` if the filters were made for different segments or deletes. So do `or` and
    /// `and_not`.
    pub fn and(&self, other: &DocFilter) -> Result<DocFilter> {
        self.combine(other, |mine, theirs| mine & theirs)
    }

    /// Documents in either.
    ///
    /// # Errors
    /// As [`and`](Self::and).
    pub fn or(&self, other: &DocFilter) -> Result<DocFilter> {
        self.combine(other, |mine, theirs| mine | theirs)
    }

    /// Documents in this one and not in the other.
    ///
    /// # Errors
    /// As [`and`](Self::and).
    pub fn and_not(&self, other: &DocFilter) -> Result<DocFilter> {
        self.combine(other, |mine, theirs| mine - theirs)
    }

    fn combine(
        &self,
        other: &DocFilter,
        combined: impl Fn(&RoaringBitmap, &RoaringBitmap) -> RoaringBitmap,
    ) -> Result<DocFilter> {
        let states = |filter: &DocFilter| -> Vec<State> {
            filter.segments.iter().map(|docs| docs.state).collect()
        };
        if states(self) != states(other) {
            return Err(stale());
        }
        let segments = self.segments.iter().zip(&other.segments);
        let segments = segments.map(|(mine, theirs)| {
            let docs = combined(&mine.docs, &theirs.docs);
            Arc::new(SegmentDocs::new(mine.state, docs))
        });
        Ok(DocFilter {
            segments: segments.collect(),
        })
    }

    /// How many documents it holds.
    pub fn len(&self) -> u64 {
        self.segments.iter().map(|docs| docs.len as u64).sum()
    }

    /// True if it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it holds a document.
    pub fn contains(&self, address: DocAddress) -> bool {
        self.segments
            .get(address.segment_ord as usize)
            .is_some_and(|docs| docs.docs.contains(address.doc_id))
    }

    /// True if a searcher has the segments and deletes that the filter was made for.
    pub fn fits(&self, searcher: &Searcher) -> bool {
        let readers = searcher.segment_readers();
        readers.len() == self.segments.len()
            && (readers.iter().zip(&self.segments))
                .all(|(reader, docs)| docs.state == State::of(reader))
    }

    /// The filter as a clause of tantivy's queries, each document scored 1. It needs a searcher that
    /// [fits](Self::fits).
    pub fn query(self: &Arc<DocFilter>) -> Box<dyn Query> {
        Box::new(KeptQuery(self.clone()))
    }

    pub(crate) fn check(&self, searcher: &Searcher) -> Result<()> {
        match self.fits(searcher) {
            true => Ok(()),
            false => Err(stale()),
        }
    }

    /// What it holds of a segment.
    pub(crate) fn of_segment(&self, reader: &SegmentReader) -> Result<&Arc<SegmentDocs>> {
        let state = State::of(reader);
        let mut segments = self.segments.iter();
        segments.find(|docs| docs.state == state).ok_or_else(stale)
    }
}

fn stale() -> Error {
    Error::invalid(
        "expected a filter made for the segments and deletes of this searcher, got one made for others; evaluate it anew",
    )
}

fn is_live(reader: &SegmentReader, doc_id: DocId) -> bool {
    doc_id < reader.max_doc() && !reader.is_deleted(doc_id)
}

/// What makes doc ids of a segment mean what they mean.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    segment_id: SegmentId,
    delete_opstamp: Option<Opstamp>,
    n_deleted: u32,
    max_doc: u32,
}

impl State {
    fn of(reader: &SegmentReader) -> State {
        State {
            segment_id: reader.segment_id(),
            delete_opstamp: reader.delete_opstamp(),
            n_deleted: reader.num_deleted_docs(),
            max_doc: reader.max_doc(),
        }
    }
}

/// The documents of one segment, in the forms that engines take made when first needed.
pub(crate) struct SegmentDocs {
    state: State,
    docs: RoaringBitmap,
    len: usize,
    list: OnceLock<Vec<DocId>>,
    set: OnceLock<Vec<u64>>,
    /// For each hash field that was searched and whose rows are not the documents; `None` after its first
    /// search.
    rows: Mutex<BTreeMap<u32, Option<Arc<FieldRows>>>>,
}

/// The rows that documents have in one hash field.
pub(crate) struct FieldRows {
    n_rows: usize,
    set: Vec<u64>,
    /// Ascending. None where most rows are in, which nobody would go through one by one.
    list: Option<Vec<u32>>,
}

/// A list is kept where it has at most one row in this many.
const LISTED_SHARE: usize = 4;

impl FieldRows {
    fn new(docs: &[DocId], rows: &SegmentRows<'_>) -> Result<FieldRows> {
        let n_rows = rows.codes.n_codes();
        let of_docs = rows.rows_of(docs)?;
        let mut set = vec![0; n_rows.div_ceil(64)];
        for &row in &*of_docs {
            set[row as usize / 64] |= 1 << (row % 64);
        }
        // Read out of the set rather than sorted.
        let list = (of_docs.len() <= n_rows / LISTED_SHARE).then(|| {
            let mut list = Vec::with_capacity(of_docs.len());
            for (word_idx, &word) in (0..).zip(&set) {
                let mut rest: u64 = word;
                while rest != 0 {
                    list.push(word_idx * 64 + rest.trailing_zeros());
                    rest &= rest - 1;
                }
            }
            list
        });
        Ok(FieldRows {
            n_rows: of_docs.len(),
            set,
            list,
        })
    }
}

impl SegmentDocs {
    fn new(state: State, mut docs: RoaringBitmap) -> SegmentDocs {
        docs.optimize();
        SegmentDocs {
            state,
            len: docs.len() as usize,
            docs,
            list: OnceLock::new(),
            set: OnceLock::new(),
            rows: Mutex::default(),
        }
    }

    /// Documents in both, which are of one segment.
    pub(crate) fn and(&self, other: &SegmentDocs) -> SegmentDocs {
        SegmentDocs::new(self.state, &self.docs & &other.docs)
    }

    pub(crate) fn contains(&self, doc_id: DocId) -> bool {
        self.docs.contains(doc_id)
    }

    /// Ascending.
    pub(crate) fn list(&self) -> &[DocId] {
        self.list.get_or_init(|| self.docs.iter().collect())
    }

    /// One bit a document.
    pub(crate) fn set(&self) -> &[u64] {
        self.set.get_or_init(|| {
            let mut words = vec![0; (self.state.max_doc as usize).div_ceil(64)];
            for doc_id in &self.docs {
                words[doc_id as usize / 64] |= 1 << (doc_id % 64);
            }
            words
        })
    }

    /// In the form that suits one search of these codes.
    pub(crate) fn allowed(&self, codes: CodesRef<'_>) -> Allowed<'_> {
        match plan::gathers(codes, self.len) {
            true => Allowed::Listed(self.list()),
            false => Allowed::Set(self.set()),
        }
    }

    fn prepare(&self, field: Field, rows: &SegmentRows<'_>) -> Result<()> {
        match rows.rows_are_docs() {
            true => drop(self.set()),
            false => drop(self.of_field(field, rows, true)?),
        }
        Ok(())
    }

    /// Their rows in a field; `None` in its first search, unless they are wanted `now`.
    fn of_field(
        &self,
        field: Field,
        rows: &SegmentRows<'_>,
        now: bool,
    ) -> Result<Option<Arc<FieldRows>>> {
        let mut kept = self.rows.lock();
        match kept.get(&field.field_id()) {
            Some(Some(of_field)) => return Ok(Some(of_field.clone())),
            None if !now => {
                kept.insert(field.field_id(), None);
                return Ok(None);
            }
            _ => {}
        }
        let of_field = Arc::new(FieldRows::new(self.list(), rows)?);
        kept.insert(field.field_id(), Some(of_field.clone()));
        Ok(Some(of_field))
    }

    /// Calls `search` with them in the form that suits many searches of one field: as rows. Where those
    /// have to be looked up, that is for the second search to do, as there may be none.
    pub(crate) fn with_rows<T>(
        &self,
        field: Field,
        rows: &SegmentRows<'_>,
        search: impl FnOnce(&Allowed<'_>) -> Result<T>,
    ) -> Result<T> {
        if rows.rows_are_docs() {
            let is_short = self.len <= rows.codes.n_codes() / LISTED_SHARE;
            let list = is_short.then(|| self.list());
            let allowed = AllowedRows::counted(self.set(), list, self.len);
            return search(&Allowed::Rows(allowed));
        }
        match self.of_field(field, rows, false)? {
            None => search(&self.allowed(rows.codes)),
            Some(of_field) => {
                let FieldRows { n_rows, set, list } = &*of_field;
                let allowed = AllowedRows::counted(set, list.as_deref(), *n_rows);
                search(&Allowed::Rows(allowed))
            }
        }
    }
}

#[derive(Clone, Debug)]
struct KeptQuery(Arc<DocFilter>);

impl Query for KeptQuery {
    fn weight(&self, scoring: EnableScoring<'_>) -> tantivy::Result<Box<dyn Weight>> {
        let searcher = scoring.searcher().ok_or_else(|| {
            Error::invalid("a kept filter needs a searcher, so it cannot delete documents")
        })?;
        self.0.check(searcher)?;
        Ok(Box::new(KeptWeight(self.0.clone())))
    }
}

struct KeptWeight(Arc<DocFilter>);

impl Weight for KeptWeight {
    fn scorer(&self, reader: &SegmentReader, boost: Score) -> tantivy::Result<Box<dyn Scorer>> {
        let docs = self.0.of_segment(reader)?.clone();
        if docs.len == 0 {
            return Ok(Box::new(EmptyScorer));
        }
        Ok(Box::new(ConstScorer::new(
            KeptDocs { docs, position: 0 },
            boost,
        )))
    }

    fn explain(&self, reader: &SegmentReader, doc_id: DocId) -> tantivy::Result<Explanation> {
        if !self.0.of_segment(reader)?.contains(doc_id) {
            return Err(TantivyError::InvalidArgument(format!(
                "document {doc_id} is not in the kept filter"
            )));
        }
        Ok(Explanation::new("kept filter", 1.0))
    }
}

/// Walks the documents of one segment.
struct KeptDocs {
    docs: Arc<SegmentDocs>,
    position: usize,
}

impl DocSet for KeptDocs {
    fn advance(&mut self) -> DocId {
        self.position = (self.position + 1).min(self.docs.len);
        self.doc()
    }

    fn seek(&mut self, target: DocId) -> DocId {
        let rest = &self.docs.list()[self.position..];
        self.position += rest.partition_point(|&doc_id| doc_id < target);
        self.doc()
    }

    fn doc(&self) -> DocId {
        let list = self.docs.list();
        list.get(self.position).copied().unwrap_or(TERMINATED)
    }

    fn size_hint(&self) -> u32 {
        self.docs.len as u32
    }
}

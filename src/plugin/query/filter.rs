//! Which documents of a segment a search may answer: alive, and matching the filter.
//!
//! A short filter becomes a list of documents, which engines gather by; a long one becomes a bitset,
//! which they look into only for rows that are near enough.

use tantivy::query::Weight;
use tantivy::{BitSet, DocId, SegmentReader};

use crate::engine::Allowed;

/// Documents a segment may answer with.
pub(crate) enum SegmentFilter {
    /// All that are alive.
    Alive,
    /// These, alive ones only, ascending.
    Listed(Vec<DocId>),
    /// Those in the set that are alive.
    Set(BitSet),
}

/// A filter of at least one document in this many is kept as a set.
const LIST_SHARE: u32 = 16;

impl SegmentFilter {
    /// Evaluates a filter on a segment.
    pub(crate) fn evaluate(
        filter: Option<&dyn Weight>,
        reader: &SegmentReader,
    ) -> tantivy::Result<SegmentFilter> {
        let Some(filter) = filter else {
            return Ok(SegmentFilter::Alive);
        };
        let list_max = (reader.max_doc() / LIST_SHARE) as usize;
        let mut list: Vec<DocId> = Vec::new();
        let mut set: Option<BitSet> = None;
        filter.for_each_no_score(reader, &mut |documents| {
            if let Some(set) = &mut set {
                for &doc_id in documents {
                    set.insert(doc_id);
                }
                return;
            }
            list.extend_from_slice(documents);
            if list.len() > list_max {
                let mut full = BitSet::with_max_value(reader.max_doc());
                for doc_id in list.drain(..) {
                    full.insert(doc_id);
                }
                set = Some(full);
            }
        })?;
        Ok(match set {
            Some(set) => SegmentFilter::Set(set),
            None => {
                list.retain(|&doc_id| !reader.is_deleted(doc_id));
                SegmentFilter::Listed(list)
            }
        })
    }

    /// Calls `search` with the filter in the form that engines take.
    pub(crate) fn with_allowed<T>(
        &self,
        reader: &SegmentReader,
        search: impl FnOnce(&Allowed<'_>) -> T,
    ) -> T {
        let max_doc = reader.max_doc();
        match (self, reader.alive_bitset()) {
            (SegmentFilter::Alive, None) => search(&Allowed::All),
            (SegmentFilter::Alive, Some(alive)) => search(&Allowed::Where(&|doc_id| {
                doc_id < max_doc && alive.is_alive(doc_id)
            })),
            (SegmentFilter::Listed(list), _) => search(&Allowed::Listed(list)),
            (SegmentFilter::Set(set), None) => search(&Allowed::Where(&|doc_id| {
                doc_id < max_doc && set.contains(doc_id)
            })),
            (SegmentFilter::Set(set), Some(alive)) => search(&Allowed::Where(&|doc_id| {
                doc_id < max_doc && set.contains(doc_id) && alive.is_alive(doc_id)
            })),
        }
    }
}

//! Indexes that were built apart become one, with one document a key.

use std::sync::Arc;

use tantivy::index::{Index, SegmentId, SegmentReader};
use tantivy::merge_policy::NoMergePolicy;
use tantivy::query::{ConstScorer, EmptyScorer, EnableScoring, Explanation, Query, Scorer, Weight};
use tantivy::schema::IndexRecordOption;
use tantivy::{Directory, DocId, DocSet, Score, TERMINATED, TantivyError};

use crate::error::{Error, Result};
use crate::plugin::HashPlugin;
use crate::plugin::index::{HashIndex, merge_indices};
use crate::plugin::index_writer::WriterOptions;

use super::BuildProgress;

/// Merges indexes of one schema into a new one with a single segment, as
/// [`merge_indices`](crate::plugin::merge_indices) does; of documents with the same value of the field `key`
/// the last one stays, in the order of the indexes. Also returns how many gave way.
///
/// # Errors
/// As [`merge_indices`](crate::plugin::merge_indices); `InvalidArgument` if the field cannot be a key or an
/// index holds an unfinished build.
pub fn merge_by_key(
    indexes: &[Index],
    directory: impl Into<Box<dyn Directory>>,
    plugin: HashPlugin,
    key: &str,
) -> Result<(HashIndex, u64)> {
    for (position, index) in indexes.iter().enumerate() {
        let progress = BuildProgress::of(index)?;
        if progress.is_some_and(|progress| !progress.finished) {
            return Err(Error::invalid(format!(
                "expected finished indexes, index {position} of {} holds a build that is not; resume it",
                indexes.len()
            )));
        }
    }
    let merged = merge_indices(indexes, directory, plugin)?;
    let key = merged.field(key)?;
    let searcher = merged.searcher()?;
    let [reader] = searcher.segment_readers() else {
        // Nothing but empty indexes.
        return Ok((merged, 0));
    };
    let writer = merged.writer(WriterOptions::default())?;
    writer.set_merge_policy(Box::new(NoMergePolicy))?;
    writer.check_key(key)?;
    let earlier = earlier_documents(reader, key)?;
    let replaced = earlier.len() as u64;
    if replaced > 0 {
        writer.delete_query(Box::new(Documents {
            segment: reader.segment_id(),
            docs: earlier.into(),
        }))?;
    }
    // In the place of tantivy's own words about the merge.
    let progress = BuildProgress {
        source: "a merge".to_owned(),
        finished: true,
        documents: u64::from(reader.max_doc()),
        replaced,
        ..BuildProgress::default()
    };
    writer.commit_with_payload(&progress.to_payload()?)?;
    if replaced > 0 {
        writer.merge_all()?;
    }
    writer.close()?;
    Ok((merged, replaced))
}

/// All but the last document of each key. A merged segment holds the documents of one source after the other,
/// so the last one is of the last source.
fn earlier_documents(reader: &SegmentReader, key: tantivy::schema::Field) -> Result<Vec<DocId>> {
    let mut docs = Vec::new();
    let io = |error| Error::io("terms of the key", error);
    let terms = reader.inverted_index(key)?;
    let mut stream = terms.terms().stream().map_err(io)?;
    while stream.advance() {
        let info = stream.value();
        if info.doc_freq < 2 {
            continue;
        }
        let postings = terms.read_postings_from_terminfo(info, IndexRecordOption::Basic);
        let mut postings = postings.map_err(io)?;
        let mut last = None;
        while postings.doc() != TERMINATED {
            docs.extend(last.replace(postings.doc()));
            postings.advance();
        }
    }
    docs.sort_unstable();
    Ok(docs)
}

/// Matches these documents of one segment, in ascending order. Needs no searcher, so it can delete.
#[derive(Clone, Debug)]
struct Documents {
    segment: SegmentId,
    docs: Arc<[DocId]>,
}

impl Query for Documents {
    fn weight(&self, _: EnableScoring<'_>) -> tantivy::Result<Box<dyn Weight>> {
        Ok(Box::new(self.clone()))
    }
}

impl Weight for Documents {
    fn scorer(&self, reader: &SegmentReader, boost: Score) -> tantivy::Result<Box<dyn Scorer>> {
        if reader.segment_id() != self.segment || self.docs.is_empty() {
            return Ok(Box::new(EmptyScorer));
        }
        let docs = Walk {
            docs: self.docs.clone(),
            at: 0,
        };
        Ok(Box::new(ConstScorer::new(docs, boost)))
    }

    fn explain(&self, _: &SegmentReader, doc: DocId) -> tantivy::Result<Explanation> {
        let message = format!("document {doc} is chosen by its id, which explains nothing");
        Err(TantivyError::InvalidArgument(message))
    }
}

struct Walk {
    docs: Arc<[DocId]>,
    at: usize,
}

impl DocSet for Walk {
    fn advance(&mut self) -> DocId {
        self.at += 1;
        self.doc()
    }

    fn doc(&self) -> DocId {
        self.docs.get(self.at).copied().unwrap_or(TERMINATED)
    }

    fn size_hint(&self) -> u32 {
        self.docs.len() as u32
    }
}

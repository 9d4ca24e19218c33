//! Hits of a Hamming search: as a result of their own, and as a scorer inside tantivy.

use tantivy::query::{EmptyScorer, Explanation, Scorer};
use tantivy::{DocAddress, DocId, DocSet, Score, TERMINATED, TantivyError};

use crate::code::CodeLen;
use crate::engine::SearchStats;
use crate::topk::Neighbor;

/// One hit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HammingHit {
    /// The document, valid with the searcher that was asked.
    pub address: DocAddress,
    /// Bits that differ from the query; lower is nearer.
    pub distance: u32,
    /// `(bits - distance) / bits`; higher is nearer.
    pub score: Score,
}

/// All hits, nearest first, equal distances by document address; and what the search touched.
#[derive(Clone, Debug)]
pub struct HammingResult {
    /// The hits.
    pub hits: Vec<HammingHit>,
    /// Engines chosen, codes and candidates touched.
    pub stats: SearchStats,
}

impl HammingResult {
    pub(crate) fn new(
        code_len: CodeLen,
        neighbors: &[Neighbor],
        stats: SearchStats,
    ) -> HammingResult {
        let hits = neighbors.iter().map(|neighbor| HammingHit {
            address: address(neighbor),
            distance: neighbor.distance,
            score: code_len.score(neighbor.distance),
        });
        HammingResult {
            hits: hits.collect(),
            stats,
        }
    }
}

/// The first address of a segment: ordinals are the high half of an address.
pub(crate) fn address_base(segment_ord: u32) -> u64 {
    u64::from(segment_ord) << 32
}

pub(crate) fn address(neighbor: &Neighbor) -> DocAddress {
    DocAddress {
        segment_ord: (neighbor.address >> 32) as u32,
        doc_id: neighbor.address as u32,
    }
}

/// Documents of one segment with their distances, ascending by document.
pub(crate) type DocDistances = Vec<(DocId, u32)>;

/// Walks a finished list of documents.
pub(crate) struct HitScorer {
    hits: DocDistances,
    position: usize,
    code_len: CodeLen,
    boost: Score,
}

impl HitScorer {
    /// A scorer over hits that ascend by document.
    pub(crate) fn boxed(hits: DocDistances, code_len: CodeLen, boost: Score) -> Box<dyn Scorer> {
        if hits.is_empty() {
            return Box::new(EmptyScorer);
        }
        Box::new(HitScorer {
            hits,
            position: 0,
            code_len,
            boost,
        })
    }
}

impl DocSet for HitScorer {
    fn advance(&mut self) -> DocId {
        self.position = (self.position + 1).min(self.hits.len());
        self.doc()
    }

    fn seek(&mut self, target: DocId) -> DocId {
        if self.doc() < target {
            self.position +=
                self.hits[self.position..].partition_point(|&(doc_id, _)| doc_id < target);
        }
        self.doc()
    }

    fn doc(&self) -> DocId {
        self.hits
            .get(self.position)
            .map_or(TERMINATED, |&(doc_id, _)| doc_id)
    }

    fn size_hint(&self) -> u32 {
        self.hits.len() as u32
    }
}

impl Scorer for HitScorer {
    fn score(&mut self) -> Score {
        self.hits.get(self.position).map_or(0.0, |&(_, distance)| {
            self.code_len.score(distance) * self.boost
        })
    }
}

/// Explains the score of one of these documents.
pub(crate) fn explain(
    hits: &[(DocId, u32)],
    doc_id: DocId,
    code_len: CodeLen,
    what: &str,
) -> tantivy::Result<Explanation> {
    let found = hits.binary_search_by_key(&doc_id, |&(doc_id, _)| doc_id);
    let Ok(position) = found else {
        return Err(TantivyError::InvalidArgument(format!(
            "document {doc_id} is not a hit of {what}"
        )));
    };
    let (distance, bits) = (hits[position].1, code_len.bits());
    let description = format!("{what}, ({bits} bits - distance {distance}) / {bits}");
    Ok(Explanation::new_with_string(
        description,
        code_len.score(distance),
    ))
}

//! Which documents of a segment a search may answer: alive, in the kept filters, and matching the query
//! that filters this one search.
//!
//! That query is either read out before the search, as a list or a set that engines take, or asked about
//! the nearest documents after it: a search for more than k, whose results the scorer is sought to. The
//! planner prices both. Neither changes an answer.

use std::sync::Arc;

use tantivy::postings::BlockSegmentPostings;
use tantivy::query::{EnableScoring, Query, Scorer, TermQuery, Weight};
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::{
    BitSet, COLLECT_BLOCK_BUFFER_LEN, DocId, DocSet, Searcher, SeekDangerResult, SegmentReader,
    Term,
};

use crate::code::{CodesRef, HashCode};
use crate::engine::{self, Allowed, EngineChoice, SearchStats, SegmentRows};
use crate::error::Result;
use crate::plan;
use crate::plugin::query::doc_filter::{DocFilter, SegmentDocs};
use crate::plugin::{OpenColumn, contained};
use crate::topk::{Neighbor, TopK};

/// All filters of one search.
pub(crate) struct Filters<'q> {
    field: Field,
    kept: &'q [Arc<DocFilter>],
    query: Option<FilterQuery>,
}

impl<'q> Filters<'q> {
    /// On searches of a hash field. `InvalidArgument` if a kept filter was made for another searcher.
    pub(crate) fn new(
        field: Field,
        kept: &'q [Arc<DocFilter>],
        query: Option<&dyn Query>,
        searcher: &Searcher,
    ) -> Result<Filters<'q>> {
        for filter in kept {
            filter.check(searcher)?;
        }
        let query = query.map(|query| FilterQuery::new(query, searcher));
        let query = query.transpose()?;
        Ok(Filters { field, kept, query })
    }

    /// The filters on one segment.
    pub(crate) fn on<'a>(&'a self, reader: &'a SegmentReader) -> Result<SegmentFilter<'a>> {
        SegmentFilter::new(self.field, self.kept, self.query.as_ref(), reader)
    }
}

/// All filters of one search on one segment.
pub(crate) struct SegmentFilter<'a> {
    field: Field,
    reader: &'a SegmentReader,
    /// Alive ones only. Without it, all that are alive.
    kept: Option<Arc<SegmentDocs>>,
    /// Whether `kept` outlives the search.
    is_reused: bool,
    query: Option<&'a FilterQuery>,
}

impl<'a> SegmentFilter<'a> {
    pub(crate) fn new(
        field: Field,
        kept: &[Arc<DocFilter>],
        query: Option<&'a FilterQuery>,
        reader: &'a SegmentReader,
    ) -> Result<SegmentFilter<'a>> {
        let mut all: Option<Arc<SegmentDocs>> = None;
        for filter in kept {
            let docs = filter.of_segment(reader)?;
            all = Some(match all {
                None => docs.clone(),
                Some(all) => Arc::new(all.and(docs)),
            });
        }
        Ok(SegmentFilter {
            field,
            reader,
            kept: all,
            is_reused: kept.len() == 1,
            query,
        })
    }

    /// k-NN search of the segment for many codes. No filter query is left to be asked, only kept ones.
    pub(crate) fn knn_batch(
        &self,
        rows: &SegmentRows<'_>,
        choice: EngineChoice,
        codes: &[HashCode],
        tops: &mut [TopK],
        stats: &mut SearchStats,
    ) -> Result<()> {
        debug_assert!(self.query.is_none());
        self.with_base(rows, |base| {
            engine::knn_batch(rows, choice, codes, base, tops, stats)
                .map_err(OpenColumn::about(self.reader))
        })
    }

    /// Range search of the segment for many codes, each found in ascending address. No filter query is left
    /// to be asked, only kept ones.
    pub(crate) fn range_batch(
        &self,
        rows: &SegmentRows<'_>,
        choice: EngineChoice,
        codes: &[HashCode],
        radius: u32,
        found: &mut [Vec<Neighbor>],
        stats: &mut SearchStats,
    ) -> Result<()> {
        debug_assert!(self.query.is_none());
        self.with_base(rows, |base| {
            engine::range_batch(rows, choice, codes, radius, base, found, stats)
                .map_err(OpenColumn::about(self.reader))
        })
    }

    /// k-NN search of the segment.
    pub(crate) fn knn(
        &self,
        rows: &SegmentRows<'_>,
        choice: EngineChoice,
        code: &HashCode,
        top: &mut TopK,
        stats: &mut SearchStats,
    ) -> Result<()> {
        let search = |allowed: &Allowed<'_>, top: &mut TopK, stats: &mut SearchStats| {
            engine::knn(rows, choice, code, allowed, top, stats)
                .map_err(OpenColumn::about(self.reader))
        };
        let Some(query) = self.query else {
            return self.with_base(rows, |base| search(base, top, stats));
        };
        let Some(bound) = top.bound_from(rows.address_base) else {
            return search(&Allowed::Listed(&[]), top, stats);
        };
        let mut matches = query.matches(self.reader)?;
        let max_doc = f64::from(self.reader.max_doc().max(1));
        let read_out_ns = plan::read_out_ns(
            rows.codes,
            matches.n_docs,
            matches.cost,
            query.term.is_some(),
        );
        // Of the nearest rows, how many the filter was asked about; and those it let pass.
        let mut n_asked = 0;
        let mut passed: Vec<Neighbor> = Vec::new();
        let mut share = matches.n_docs as f64 / max_doc;
        loop {
            let n_wanted = plan::ring(top.k(), share).max(4 * n_asked);
            if plan::ask_ns(rows.codes, n_wanted) >= read_out_ns {
                break;
            }
            let mut ring = TopK::new(n_wanted, bound);
            let mut ring_stats = SearchStats::default();
            self.with_base(rows, |base| search(base, &mut ring, &mut ring_stats))?;
            let nearest = ring.into_sorted();
            let mut asked: Vec<Neighbor> = nearest.get(n_asked..).unwrap_or_default().to_vec();
            asked.sort_unstable_by_key(|neighbor| neighbor.address);
            let n_new = asked.len();
            contained("index", || {
                asked.retain(|neighbor| matches.contains(neighbor.address as DocId));
                Ok(())
            })?;
            ring_stats.filtered_out += (n_new - asked.len()) as u64;
            passed.append(&mut asked);
            // Whatever was not asked about comes after all that was.
            let is_last = passed.len() >= top.k() || nearest.len() < n_wanted;
            if !is_last {
                // The search that has the last word counts the segment.
                (ring_stats.segments, ring_stats.segments_without_tables) = (0, 0);
                (ring_stats.segments_scan, ring_stats.segments_mih) = (0, 0);
            }
            stats.add(&ring_stats);
            if is_last {
                for neighbor in passed {
                    top.push(neighbor.distance, neighbor.address);
                }
                return Ok(());
            }
            n_asked = nearest.len();
            share = (passed.len() + 1) as f64 / n_asked as f64;
            matches = query.matches(self.reader)?;
        }
        let docs = self.read_out(query, matches.n_docs, rows.codes)?;
        search(&docs.allowed(), top, stats)
    }

    /// Range search of the segment, in ascending address.
    pub(crate) fn range(
        &self,
        rows: &SegmentRows<'_>,
        choice: EngineChoice,
        code: &HashCode,
        radius: u32,
        found: &mut Vec<Neighbor>,
        stats: &mut SearchStats,
    ) -> Result<()> {
        let search = |allowed: &Allowed<'_>, found: &mut Vec<Neighbor>, stats: &mut SearchStats| {
            engine::range(rows, choice, code, radius, allowed, found, stats)
                .map_err(OpenColumn::about(self.reader))
        };
        let Some(query) = self.query else {
            return self.with_base(rows, |base| search(base, found, stats));
        };
        let mut matches = query.matches(self.reader)?;
        if plan::gathers(rows.codes, matches.n_docs) {
            let docs = self.read_out(query, matches.n_docs, rows.codes)?;
            return search(&docs.allowed(), found, stats);
        }
        let mut near = Vec::new();
        self.with_base(rows, |base| search(base, &mut near, stats))?;
        let n_near = near.len();
        contained("index", || {
            near.retain(|neighbor| matches.contains(neighbor.address as DocId));
            Ok(())
        })?;
        stats.filtered_out += (n_near - near.len()) as u64;
        found.append(&mut near);
        Ok(())
    }

    /// Calls `search` with all filters but the query.
    fn with_base<T>(
        &self,
        rows: &SegmentRows<'_>,
        search: impl FnOnce(&Allowed<'_>) -> Result<T>,
    ) -> Result<T> {
        let max_doc = self.reader.max_doc();
        match (&self.kept, self.reader.alive_bitset()) {
            (Some(kept), _) if self.is_reused => kept.with_rows(self.field, rows, search),
            (Some(kept), _) => search(&kept.allowed(rows.codes)),
            (None, None) => search(&Allowed::All),
            (None, Some(alive)) => search(&Allowed::Where(&|doc_id| {
                doc_id < max_doc && alive.is_alive(doc_id)
            })),
        }
    }

    /// Reads all matches of the query that the other filters allow.
    fn read_out(&self, query: &FilterQuery, n_docs: usize, codes: CodesRef<'_>) -> Result<Docs> {
        let max_doc = self.reader.max_doc();
        let mut docs = contained("index", || {
            Ok(Docs::read(
                query.batches(self.reader)?,
                n_docs,
                max_doc,
                codes,
            ))
        })?;
        match (&mut docs, &self.kept, self.reader.alive_bitset()) {
            (Docs::Listed(list), Some(kept), _) => list.retain(|&doc_id| kept.contains(doc_id)),
            (Docs::Listed(list), None, Some(alive)) => {
                list.retain(|&doc_id| doc_id < max_doc && alive.is_alive(doc_id));
            }
            (Docs::Set(words), Some(kept), _) => {
                (words.iter_mut().zip(kept.set())).for_each(|(word, kept)| *word &= kept);
            }
            (Docs::Set(words), None, Some(alive)) => {
                // The one way to an alive bit set's words.
                let mut live = BitSet::with_max_value_and_full(max_doc);
                live.intersect_update(alive.bitset());
                for (bucket, word) in (0..).zip(words) {
                    *word &= u64::from_le_bytes(live.tinyset(bucket).into_bytes());
                }
            }
            (_, None, None) => {}
        }
        Ok(docs)
    }
}

/// Documents that a query matches, read out.
enum Docs {
    /// Ascending.
    Listed(Vec<DocId>),
    /// One bit a document.
    Set(Vec<u64>),
}

impl Docs {
    fn allowed(&self) -> Allowed<'_> {
        match self {
            Docs::Listed(list) => Allowed::Listed(list),
            Docs::Set(words) => Allowed::Set(words),
        }
    }

    /// A list where comparing its documents one by one is cheaper than scanning the codes. `n_docs` is a
    /// guess of how many there are.
    fn read(mut batches: Batches, n_docs: usize, max_doc: u32, codes: CodesRef<'_>) -> Docs {
        let mut list: Vec<DocId> = Vec::new();
        if plan::gathers(codes, n_docs) {
            list.reserve(n_docs + 1);
            loop {
                let batch = batches.next();
                if batch.is_empty() {
                    return Docs::Listed(list);
                }
                list.extend_from_slice(batch);
                if !plan::gathers(codes, list.len()) {
                    break;
                }
            }
        }
        let mut words = vec![0u64; (max_doc as usize).div_ceil(64)];
        let mut n_docs = 0;
        let mut batch = &list[..];
        loop {
            n_docs += batch.len();
            // Bits of one word come one after the other.
            let mut word_idx = 0;
            let mut bits = 0u64;
            for &doc_id in batch {
                if doc_id as usize / 64 != word_idx {
                    words[word_idx] |= bits;
                    (word_idx, bits) = (doc_id as usize / 64, 0);
                }
                bits |= 1 << (doc_id % 64);
            }
            if bits != 0 {
                words[word_idx] |= bits;
            }
            batch = batches.next();
            if batch.is_empty() {
                break;
            }
        }
        if !plan::gathers(codes, n_docs) {
            return Docs::Set(words);
        }
        // Fewer than the scorer let hope for.
        list.clear();
        for (word_idx, &word) in (0..).zip(&words) {
            let mut rest = word;
            while rest != 0 {
                list.push(word_idx * 64 + rest.trailing_zeros());
                rest &= rest - 1;
            }
        }
        Docs::Listed(list)
    }
}

/// A query that filters.
pub(crate) struct FilterQuery {
    weight: Box<dyn Weight>,
    /// If the query is for this one indexed term.
    term: Option<Term>,
}

impl FilterQuery {
    pub(crate) fn new(query: &dyn Query, searcher: &Searcher) -> Result<FilterQuery> {
        let schema = searcher.schema();
        let term = query.downcast_ref::<TermQuery>().map(TermQuery::term);
        let term = term.filter(|term| schema.get_field_entry(term.field()).is_indexed());
        Ok(FilterQuery {
            weight: query.weight(EnableScoring::disabled_from_searcher(searcher))?,
            term: term.cloned(),
        })
    }

    /// Its scorer on a segment, to ask.
    fn matches(&self, reader: &SegmentReader) -> Result<Matches> {
        contained("index", || {
            let scorer = self.weight.scorer(reader, 1.0)?;
            Ok(Matches {
                n_docs: scorer.size_hint().min(reader.max_doc()) as usize,
                cost: scorer.cost(),
                next: scorer.doc(),
                at_match: true,
                scorer,
            })
        })
    }

    /// All its documents in a segment.
    pub(crate) fn batches(&self, reader: &SegmentReader) -> tantivy::Result<Batches> {
        let Some(term) = &self.term else {
            return Ok(Batches::Scorer {
                scorer: self.weight.scorer(reader, 1.0)?,
                buffer: [0; COLLECT_BLOCK_BUFFER_LEN],
                ended: false,
            });
        };
        let inverted = reader.inverted_index(term.field())?;
        let postings = inverted.read_block_postings(term, IndexRecordOption::Basic)?;
        Ok(Batches::Term {
            postings: postings.unwrap_or_else(BlockSegmentPostings::empty),
            started: false,
        })
    }
}

/// Documents of one segment in ascending order, some at a time.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Batches {
    Scorer {
        scorer: Box<dyn Scorer>,
        buffer: [DocId; COLLECT_BLOCK_BUFFER_LEN],
        ended: bool,
    },
    /// Decoded by the block, several times as fast.
    Term {
        postings: BlockSegmentPostings,
        started: bool,
    },
}

impl Batches {
    /// The next of them, empty at the end.
    pub(crate) fn next(&mut self) -> &[DocId] {
        match self {
            Batches::Scorer { ended: true, .. } => &[],
            Batches::Scorer {
                scorer,
                buffer,
                ended,
            } => {
                let filled = scorer.fill_buffer(buffer);
                *ended = filled < buffer.len();
                &buffer[..filled]
            }
            Batches::Term { postings, started } => {
                if *started {
                    postings.advance();
                }
                *started = true;
                postings.docs()
            }
        }
    }
}

/// The scorer of a filtering query on one segment, at its start.
struct Matches {
    scorer: Box<dyn Scorer>,
    /// About how many documents match.
    n_docs: usize,
    /// About what it takes to read them out, in documents of a single term.
    cost: u64,
    /// No document from the last one asked about up to this one matches.
    next: DocId,
    /// Whether `next` itself is known to match.
    at_match: bool,
}

impl Matches {
    /// Whether a document matches. Contract: documents ascend from call to call.
    fn contains(&mut self, doc_id: DocId) -> bool {
        if doc_id < self.next || self.at_match && doc_id == self.next {
            return doc_id == self.next;
        }
        // Some scorers answer for one document at a fraction of what finding the next match takes.
        (self.next, self.at_match) = match self.scorer.seek_danger(doc_id) {
            SeekDangerResult::Found => (doc_id, true),
            SeekDangerResult::SeekLowerBound(next) => (next, false),
        };
        self.at_match
    }
}

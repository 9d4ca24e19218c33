//! k-NN search as a tantivy query.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use tantivy::index::SegmentId;
use tantivy::query::{EnableScoring, Explanation, Query, Scorer, Weight};
use tantivy::schema::Field;
use tantivy::{DocId, Score, Searcher, SegmentReader};

use crate::code::{CodeLen, HashCode};
use crate::engine::{EngineChoice, SearchStats, SegmentRows};
use crate::error::{Error, Result};
use crate::plugin::field::HashFieldOptions;
use crate::plugin::query::doc_filter::DocFilter;
use crate::plugin::query::filter::Filters;
use crate::plugin::query::hits::{
    DocDistances, HammingResult, HitScorer, address, address_base, explain,
};
use crate::plugin::query::share::{SharedBound, Shares};
use crate::plugin::{OpenColumn, plugin_of};
use crate::scan::on_threads;
use crate::topk::{Neighbor, TopK};

/// The `k` documents whose codes are nearest to a code, over all segments, deleted documents skipped.
///
/// Equal distances are ordered by document address. Fewer than `k` documents come back only when fewer
/// have a code, match the filter and lie within the maximum distance. As a clause of a `BooleanQuery`
/// the query matches those `k` documents and no others, so restrict it with [`filter`](Self::filter)
/// rather than with a second `MUST` clause.
pub struct KnnQuery {
    field: Field,
    code: HashCode,
    k: usize,
    filter: Option<Box<dyn Query>>,
    doc_filters: Vec<Arc<DocFilter>>,
    max_distance: Option<u32>,
    engine: EngineChoice,
    threads: usize,
}

impl Clone for KnnQuery {
    fn clone(&self) -> KnnQuery {
        KnnQuery {
            field: self.field,
            code: self.code.clone(),
            k: self.k,
            filter: self.filter.as_ref().map(|filter| filter.box_clone()),
            doc_filters: self.doc_filters.clone(),
            max_distance: self.max_distance,
            engine: self.engine,
            threads: self.threads,
        }
    }
}

impl fmt::Debug for KnnQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KnnQuery")
            .field("field", &self.field)
            .field("code", &self.code)
            .field("k", &self.k)
            .field("filter", &self.filter)
            .field("doc_filters", &self.doc_filters)
            .field("max_distance", &self.max_distance)
            .field("engine", &self.engine)
            .finish()
    }
}

impl KnnQuery {
    /// The `k` nearest to `code` in a hash field. `k` is at least 1 and may exceed the number of documents.
    pub fn new(field: Field, code: HashCode, k: usize) -> KnnQuery {
        KnnQuery {
            field,
            code,
            k,
            filter: None,
            doc_filters: Vec::new(),
            max_distance: None,
            engine: EngineChoice::default(),
            threads: 1,
        }
    }

    /// Only documents that match `filter` count, before the cut to `k`. A second filter is added to the
    /// first.
    pub fn filter(mut self, filter: Box<dyn Query>) -> KnnQuery {
        self.filter = Some(match self.filter.take() {
            None => filter,
            Some(first) => Box::new(tantivy::query::BooleanQuery::intersection(vec![
                first, filter,
            ])),
        });
        self
    }

    /// Only documents in a kept filter count, before the cut to `k`. A second one, or a
    /// [`filter`](Self::filter), is added to the first.
    pub fn doc_filter(mut self, filter: Arc<DocFilter>) -> KnnQuery {
        self.doc_filters.push(filter);
        self
    }

    /// Only documents within this distance, inclusive, count.
    pub fn max_distance(mut self, distance: u32) -> KnnQuery {
        self.max_distance = Some(distance);
        self
    }

    /// The engine to search with. Every engine gives the same answer.
    pub fn engine(mut self, engine: EngineChoice) -> KnnQuery {
        self.engine = engine;
        self
    }

    /// Threads that a search may take, 1 by default: a batch is shared out among them, and one query by
    /// segments, or by parts of a long linear scan. The answer is the same.
    pub fn threads(mut self, threads: usize) -> KnnQuery {
        self.threads = threads.max(1);
        self
    }

    /// The hash field.
    pub fn field(&self) -> Field {
        self.field
    }

    /// How many documents are asked for.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Searches, with distances and statistics.
    ///
    /// # Errors
    /// `InvalidArgument` for `k` 0, a distance past the length, a field that holds no codes or a kept filter
    /// made for other segments or deletes than this searcher's;
    /// `CodeLenMismatch`; `Corrupt`.
    pub fn search(&self, searcher: &Searcher) -> Result<HammingResult> {
        let (neighbors, stats) = self.neighbors(searcher)?;
        Ok(HammingResult::new(self.code.code_len(), &neighbors, stats))
    }

    /// Searches for each of `codes` in place of this query's own, as [`search`](Self::search) does, one
    /// result a code. Where the linear scan answers, the stored codes are read once for all of them; a
    /// filter is evaluated once. The statistics of the first result are those of the whole batch.
    ///
    /// # Errors
    /// As `search`.
    pub fn search_batch(
        &self,
        codes: &[HashCode],
        searcher: &Searcher,
    ) -> Result<Vec<HammingResult>> {
        let (options, max_distance) = self.check(searcher)?;
        let code_len = options.code_len()?;
        for code in codes {
            code_len.check(code.code_len())?;
        }
        let mut kept = self.doc_filters.clone();
        if let Some(filter) = &self.filter {
            kept.push(Arc::new(DocFilter::evaluate(searcher, filter.as_ref())?));
        }
        let filters = Filters::new(self.field, &kept, None, searcher)?;
        let mut tops = vec![TopK::new(self.k, max_distance); codes.len()];
        let mut stats = SearchStats::default();
        let all = 0..searcher.segment_readers().len() as u32;
        self.each_segment(searcher, &options, all, 1, |reader, rows| {
            let filter = filters.on(reader)?;
            let size = codes.len().div_ceil(self.threads).max(1);
            let shares = codes.chunks(size).zip(tops.chunks_mut(size)).collect();
            let searched = on_threads(shares, |(codes, tops): (&[HashCode], &mut [TopK])| {
                let mut stats = SearchStats::default();
                let result = filter.knn_batch(rows, self.engine, codes, tops, &mut stats);
                result.map(|()| stats)
            });
            for share in searched {
                stats.add(&share?);
            }
            Ok(())
        })?;
        tracing::debug!(k = self.k, queries = codes.len(), ?stats, "k-NN search");
        Ok(tops
            .into_iter()
            .map(|top| {
                let stats = std::mem::take(&mut stats);
                HammingResult::new(code_len, &top.into_sorted(), stats)
            })
            .collect())
    }

    /// The field's options, and the greatest distance wanted.
    fn check(&self, searcher: &Searcher) -> Result<(HashFieldOptions, u32)> {
        let options = HashFieldOptions::of(searcher.schema(), self.field)?;
        let code_len = options.code_len()?;
        if self.k == 0 {
            return Err(Error::invalid("expected k of at least 1, got 0"));
        }
        let max_distance = self.max_distance.unwrap_or(code_len.bits() as u32);
        check_distance(code_len, max_distance)?;
        Ok((options, max_distance))
    }

    /// Calls `search` with the rows of each of these segments that has any.
    fn each_segment(
        &self,
        searcher: &Searcher,
        options: &HashFieldOptions,
        segments: impl IntoIterator<Item = u32>,
        threads: usize,
        mut search: impl FnMut(&SegmentReader, &SegmentRows<'_>) -> Result<()>,
    ) -> Result<()> {
        let plugin = plugin_of(searcher.index());
        if let Some(plugin) = &plugin {
            plugin.prune(searcher.segment_readers());
        }
        for segment_ord in segments {
            let reader = searcher.segment_reader(segment_ord);
            let column = OpenColumn::open(plugin.as_deref(), reader, self.field, options)?;
            if column.n_codes() == 0 {
                continue;
            }
            let mut rows = column
                .rows(address_base(segment_ord), self.engine != EngineChoice::Scan)
                .map_err(OpenColumn::about(reader))?;
            rows.threads = threads;
            search(reader, &rows)?;
        }
        Ok(())
    }

    fn neighbors(&self, searcher: &Searcher) -> Result<(Vec<Neighbor>, SearchStats)> {
        let (options, max_distance) = self.check(searcher)?;
        options.code_len()?.check(self.code.code_len())?;
        let filters = Filters::new(
            self.field,
            &self.doc_filters,
            self.filter.as_deref(),
            searcher,
        )?;
        // One bound for all segments: no segment works past what the earlier ones have found, nor, but for
        // the segment it is at, past what other threads have.
        let shares = Shares::new(searcher, self.code.code_len(), self.threads);
        let threads = shares.threads_each;
        let bound = SharedBound::new(max_distance);
        let parts = shares.search(|segments| {
            let mut top = TopK::new(self.k, max_distance);
            let mut stats = SearchStats::default();
            let segments = segments.iter().copied();
            self.each_segment(searcher, &options, segments, threads, |reader, rows| {
                let filter = filters.on(reader)?;
                filter.knn(rows, self.engine, &self.code, &mut top, &mut stats)?;
                bound.meet(&mut top);
                Ok(())
            })?;
            Ok((top, stats))
        })?;
        let (top, stats) = parts
            .into_iter()
            .reduce(|(mut top, mut stats), (part, part_stats)| {
                top.merge(part);
                stats.add(&part_stats);
                (top, stats)
            })
            .expect("at least one share");
        tracing::debug!(k = self.k, ?stats, "k-NN search");
        Ok((top.into_sorted(), stats))
    }
}

pub(crate) fn check_distance(code_len: CodeLen, distance: u32) -> Result<()> {
    if distance as usize > code_len.bits() {
        return Err(Error::invalid(format!(
            "expected a distance of at most {code_len}, the bits of a code, got {distance}"
        )));
    }
    Ok(())
}

impl Query for KnnQuery {
    fn weight(&self, scoring: EnableScoring<'_>) -> tantivy::Result<Box<dyn Weight>> {
        let searcher = scoring.searcher().ok_or_else(|| {
            Error::invalid(
                "a k-NN query needs a searcher, so it cannot delete documents; delete by a HammingQuery or by key",
            )
        })?;
        let (neighbors, _) = self.neighbors(searcher)?;
        let mut hits: HashMap<SegmentId, DocDistances> = HashMap::new();
        for neighbor in &neighbors {
            let address = address(neighbor);
            let segment_id = searcher.segment_reader(address.segment_ord).segment_id();
            hits.entry(segment_id)
                .or_default()
                .push((address.doc_id, neighbor.distance));
        }
        hits.values_mut().for_each(|hits| hits.sort_unstable());
        Ok(Box::new(KnnWeight {
            hits,
            code_len: self.code.code_len(),
        }))
    }
}

/// A finished k-NN search.
struct KnnWeight {
    hits: HashMap<SegmentId, DocDistances>,
    code_len: CodeLen,
}

impl KnnWeight {
    fn of(&self, reader: &SegmentReader) -> &[(DocId, u32)] {
        self.hits.get(&reader.segment_id()).map_or(&[], |hits| hits)
    }
}

impl Weight for KnnWeight {
    fn scorer(&self, reader: &SegmentReader, boost: Score) -> tantivy::Result<Box<dyn Scorer>> {
        Ok(HitScorer::boxed(
            self.of(reader).to_vec(),
            self.code_len,
            boost,
        ))
    }

    fn explain(&self, reader: &SegmentReader, doc_id: DocId) -> tantivy::Result<Explanation> {
        explain(self.of(reader), doc_id, self.code_len, "k-NN search")
    }
}

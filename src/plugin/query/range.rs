//! Range search as a tantivy query.

use std::sync::Arc;

use tantivy::query::{EnableScoring, Explanation, Query, Scorer, Weight};
use tantivy::schema::{Field, Schema};
use tantivy::{DocId, Score, Searcher, SegmentReader};

use crate::code::{CodeLen, HashCode};
use crate::engine::{EngineChoice, SearchStats, SegmentRows};
use crate::error::{Error, Result};
use crate::plugin::field::HashFieldOptions;
use crate::plugin::query::doc_filter::DocFilter;
use crate::plugin::query::filter::{Filters, SegmentFilter};
use crate::plugin::query::hits::{DocDistances, HammingResult, HitScorer, address_base, explain};
use crate::plugin::query::knn::check_distance;
use crate::plugin::query::share::Shares;
use crate::plugin::{OpenColumn, PluginState, plugin_of};
use crate::scan::on_threads;
use crate::topk::Neighbor;

/// Every document whose code lies within a radius of a code: `distance <= radius`, so radius 0 finds
/// equal codes.
///
/// Works wherever a tantivy query works: in a `BooleanQuery`, with `Count` and facets, in `delete_query`.
#[derive(Clone, Debug)]
pub struct HammingQuery {
    field: Field,
    code: HashCode,
    radius: u32,
    engine: EngineChoice,
    threads: usize,
    doc_filters: Vec<Arc<DocFilter>>,
}

impl HammingQuery {
    /// All within `radius` of `code` in a hash field.
    pub fn new(field: Field, code: HashCode, radius: u32) -> HammingQuery {
        HammingQuery {
            field,
            code,
            radius,
            engine: EngineChoice::default(),
            threads: 1,
            doc_filters: Vec::new(),
        }
    }

    /// The engine to search with. Every engine gives the same answer.
    pub fn engine(mut self, engine: EngineChoice) -> HammingQuery {
        self.engine = engine;
        self
    }

    /// Only documents in a kept filter count. A second one is added to the first. The query then needs a
    /// searcher, so it cannot delete documents.
    pub fn doc_filter(mut self, filter: Arc<DocFilter>) -> HammingQuery {
        self.doc_filters.push(filter);
        self
    }

    /// Threads that a search may take, 1 by default: a batch is shared out among them, and one query by
    /// segments, or by parts of a long linear scan. The answer is the same.
    pub fn threads(mut self, threads: usize) -> HammingQuery {
        self.threads = threads.max(1);
        self
    }

    /// The hash field.
    pub fn field(&self) -> Field {
        self.field
    }

    /// Searches, with distances and statistics, live documents only; `filter` restricts them further.
    ///
    /// # Errors
    /// `InvalidArgument` for a radius past the length, a field that holds no codes or a kept filter made for
    /// other segments or deletes than this searcher's; `CodeLenMismatch`; `Corrupt`.
    pub fn search(&self, searcher: &Searcher, filter: Option<&dyn Query>) -> Result<HammingResult> {
        let weight = self.weight_of(searcher.schema(), plugin_of(searcher.index()))?;
        if let Some(plugin) = &weight.plugin {
            plugin.prune(searcher.segment_readers());
        }
        let filters = Filters::new(self.field, &self.doc_filters, filter, searcher)?;
        let shares = Shares::new(searcher, weight.code_len(), self.threads);
        let threads = shares.threads_each;
        let parts = shares.search(|segments| {
            let (mut found, mut stats) = (Vec::new(), SearchStats::default());
            for &segment_ord in segments {
                let reader = searcher.segment_reader(segment_ord);
                let filter = filters.on(reader)?;
                weight.with_rows(reader, address_base(segment_ord), threads, |rows| {
                    weight.search_segment(rows, &filter, &mut found, &mut stats)
                })?;
            }
            Ok((found, stats))
        })?;
        let (mut found, stats) = parts
            .into_iter()
            .reduce(|(mut found, mut stats), (mut part, part_stats)| {
                found.append(&mut part);
                stats.add(&part_stats);
                (found, stats)
            })
            .expect("at least one share");
        found.sort_unstable();
        Ok(HammingResult::new(weight.code_len(), &found, stats))
    }

    /// Searches for each of `codes` in place of this query's own, as [`search`](Self::search) does, one
    /// result a code. Where the linear scan answers, the stored codes are read once for all of them; the
    /// filter is evaluated once. The statistics of the first result are those of the whole batch.
    ///
    /// # Errors
    /// As `search`.
    pub fn search_batch(
        &self,
        codes: &[HashCode],
        searcher: &Searcher,
        filter: Option<&dyn Query>,
    ) -> Result<Vec<HammingResult>> {
        let weight = self.weight_of(searcher.schema(), plugin_of(searcher.index()))?;
        for code in codes {
            weight.code_len().check(code.code_len())?;
        }
        if let Some(plugin) = &weight.plugin {
            plugin.prune(searcher.segment_readers());
        }
        let mut kept = self.doc_filters.clone();
        if let Some(filter) = filter {
            kept.push(Arc::new(DocFilter::evaluate(searcher, filter)?));
        }
        let filters = Filters::new(self.field, &kept, None, searcher)?;
        let mut found = vec![Vec::new(); codes.len()];
        let mut stats = SearchStats::default();
        for (segment_ord, reader) in (0..).zip(searcher.segment_readers()) {
            let filter = filters.on(reader)?;
            weight.with_rows(reader, address_base(segment_ord), 1, |rows| {
                let size = codes.len().div_ceil(self.threads).max(1);
                let shares = codes.chunks(size).zip(found.chunks_mut(size)).collect();
                let searched = on_threads(shares, |(codes, found): (&[HashCode], &mut [_])| {
                    let mut stats = SearchStats::default();
                    let (engine, radius) = (self.engine, self.radius);
                    let result = filter.range_batch(rows, engine, codes, radius, found, &mut stats);
                    result.map(|()| stats)
                });
                for share in searched {
                    stats.add(&share?);
                }
                Ok(())
            })?;
        }
        Ok(found
            .into_iter()
            .map(|mut found: Vec<Neighbor>| {
                found.sort_unstable();
                let stats = std::mem::take(&mut stats);
                HammingResult::new(weight.code_len(), &found, stats)
            })
            .collect())
    }

    fn weight_of(
        &self,
        schema: &Schema,
        plugin: Option<Arc<PluginState>>,
    ) -> Result<HammingWeight> {
        let options = HashFieldOptions::of(schema, self.field)?;
        let code_len = options.code_len()?;
        code_len.check(self.code.code_len())?;
        check_distance(code_len, self.radius)?;
        let HammingQuery {
            field,
            code,
            radius,
            engine,
            threads,
            doc_filters,
        } = self.clone();
        Ok(HammingWeight {
            field,
            options,
            code,
            radius,
            engine,
            threads,
            doc_filters,
            plugin,
        })
    }
}

impl Query for HammingQuery {
    fn weight(&self, scoring: EnableScoring<'_>) -> tantivy::Result<Box<dyn Weight>> {
        match scoring.searcher() {
            Some(searcher) => {
                Filters::new(self.field, &self.doc_filters, None, searcher).map(drop)?
            }
            None if self.doc_filters.is_empty() => {}
            None => Err(Error::invalid(
                "a range query with a kept filter needs a searcher, so it cannot delete documents",
            ))?,
        }
        let plugin = scoring
            .searcher()
            .and_then(|searcher| plugin_of(searcher.index()));
        Ok(Box::new(self.weight_of(scoring.schema(), plugin)?))
    }
}

/// A range search, checked against the schema.
struct HammingWeight {
    field: Field,
    options: HashFieldOptions,
    code: HashCode,
    radius: u32,
    engine: EngineChoice,
    threads: usize,
    doc_filters: Vec<Arc<DocFilter>>,
    plugin: Option<Arc<PluginState>>,
}

impl HammingWeight {
    /// Calls `search` with the rows of a segment, if it has any.
    fn with_rows(
        &self,
        reader: &SegmentReader,
        address_base: u64,
        threads: usize,
        search: impl FnOnce(&SegmentRows<'_>) -> Result<()>,
    ) -> Result<()> {
        // Where tantivy deletes by query there is no searcher to find the plugin by.
        let plugin = self.plugin.clone().or_else(|| plugin_of(reader.index()));
        let column = OpenColumn::open(plugin.as_deref(), reader, self.field, &self.options)?;
        if column.n_codes() == 0 {
            return Ok(());
        }
        let mut rows = column
            .rows(address_base, self.engine != EngineChoice::Scan)
            .map_err(OpenColumn::about(reader))?;
        rows.threads = threads;
        search(&rows)
    }

    fn search_segment(
        &self,
        rows: &SegmentRows<'_>,
        filter: &SegmentFilter<'_>,
        found: &mut Vec<Neighbor>,
        stats: &mut SearchStats,
    ) -> Result<()> {
        filter.range(rows, self.engine, &self.code, self.radius, found, stats)
    }

    fn code_len(&self) -> CodeLen {
        self.code.code_len()
    }

    /// The live documents within the radius, ascending.
    fn hits(&self, reader: &SegmentReader) -> Result<DocDistances> {
        let (mut found, mut stats) = (Vec::new(), SearchStats::default());
        let filter = SegmentFilter::new(self.field, &self.doc_filters, None, reader)?;
        self.with_rows(reader, 0, self.threads, |rows| {
            self.search_segment(rows, &filter, &mut found, &mut stats)
        })?;
        let mut hits: DocDistances = found
            .iter()
            .map(|neighbor| (neighbor.address as DocId, neighbor.distance))
            .collect();
        hits.sort_unstable();
        Ok(hits)
    }
}

impl Weight for HammingWeight {
    fn scorer(&self, reader: &SegmentReader, boost: Score) -> tantivy::Result<Box<dyn Scorer>> {
        Ok(HitScorer::boxed(self.hits(reader)?, self.code_len(), boost))
    }

    fn explain(&self, reader: &SegmentReader, doc_id: DocId) -> tantivy::Result<Explanation> {
        explain(&self.hits(reader)?, doc_id, self.code_len(), "range search")
    }
}

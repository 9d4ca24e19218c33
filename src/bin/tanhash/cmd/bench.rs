//! `tanhash bench`: a real index on disk, opened memory-mapped, queried through the public query API.
//!
//! One JSON line on stdout for each operation and engine. The index lives in a temporary directory unless
//! `--keep` names one, which a later run measures again with `--open`. Nothing here knows how engines
//! work; it times `KnnQuery::search` and `HammingQuery::search`, filter evaluation included unless the
//! filter is kept.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tanhash::engine::{EngineChoice, SearchStats};
use tanhash::plugin::{
    DocFilter, HammingQuery, HammingResult, HashDocumentExt, HashFieldOptions, HashIndex,
    HashPlugin, KnnQuery, SchemaBuilderExt, WriterOptions,
};
use tanhash::segment::{Column, ColumnSpec, EXTENSION, SegmentWriter, TablePolicy};
use tanhash::{CodeLen, Codes, HashCode};
use tantivy::columnar;
use tantivy::merge_policy::NoMergePolicy;
use tantivy::query::{Query, TermQuery};
use tantivy::schema::{FAST, Field, IndexRecordOption, STRING, Schema};
use tantivy::{Searcher, TantivyDocument, Term};

use crate::output;

/// Measure search on packed codes
#[derive(clap::Args)]
pub struct Args {
    /// Codes to index: packed rows of bits/8 bytes, as a FAISS uint8 matrix
    #[arg(long, required_unless_present = "open")]
    codes: Option<PathBuf>,
    /// Codes to search for, in the same form
    #[arg(long)]
    queries: PathBuf,
    /// Bits of each code
    #[arg(long)]
    bits: usize,
    /// Numbers of nearest codes to ask for
    #[arg(long, value_delimiter = ',')]
    k: Vec<usize>,
    /// Radii to search within
    #[arg(long, value_delimiter = ',')]
    radius: Vec<u32>,
    /// Engines to measure
    #[arg(long, value_delimiter = ',', default_value = "auto,scan,mih,cluster")]
    engine: Vec<EngineChoice>,
    /// Index structures to build: auto, cluster, mih, mih-copies, all or none. By default those of the engines named,
    /// or what an index would build by itself if only auto and scan are
    #[arg(long)]
    tables: Option<TablePolicy>,
    /// Also time the structures alone, from codes in memory to the bytes of a segment file: one line each
    /// for clusters and multi-index hashing tables
    #[arg(long, requires = "codes")]
    structures: bool,
    /// Queries timed together; a time is then the mean of the batch
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Threads that share the queries
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Threads for each query, or each batch of them
    #[arg(long, default_value_t = 1)]
    query_threads: usize,
    /// Shares of rows that an indexed filter allows; without it, no filter
    #[arg(long, value_delimiter = ',')]
    filter_share: Vec<f64>,
    /// Evaluate each filter once, before the timing, and keep it for all searches
    #[arg(long, requires = "filter_share")]
    kept_filter: bool,
    /// Share of rows to delete before searching
    #[arg(long)]
    delete_share: Option<f64>,
    /// Segments to spread the rows over
    #[arg(long, default_value_t = 1)]
    segments: usize,
    /// Write every answer to this file, one JSON line each
    #[arg(long)]
    out_distances: Option<PathBuf>,
    /// Use only the first queries
    #[arg(long)]
    max_queries: Option<usize>,
    /// Keep the index in this directory, which must not hold one
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Measure the index that --keep left in this directory instead of building one
    #[arg(long, conflicts_with_all = ["codes", "keep", "segments", "delete_share"])]
    open: Option<PathBuf>,
}

/// What `--open` cannot read off the index itself, left beside it by `--keep`.
#[derive(Serialize, Deserialize)]
struct Built {
    build_s: f64,
    n: usize,
    filter_share: Vec<f64>,
    delete_share: Option<f64>,
}

const BUILT_FILE: &str = "bench.json";

/// The bench's own index: a code, the row it came from, and which filters allow it.
struct Bench {
    searcher: Searcher,
    code: Field,
    allowed: Field,
    query_threads: usize,
    rows: Vec<columnar::Column<u64>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Op {
    Knn(usize),
    Radius(u32),
}

#[derive(Serialize)]
struct Answer<'a> {
    op: &'static str,
    k: Option<usize>,
    radius: Option<u32>,
    engine: String,
    filter_share: Option<f64>,
    query: usize,
    ids: Vec<u64>,
    distances: &'a [u32],
}

/// `(row * multiplier mod 2^32) / 2^32 < share`: a fixed pseudo-random share of the rows.
fn in_share(row: u64, multiplier: u64, share: f64) -> bool {
    ((row.wrapping_mul(multiplier) & 0xffff_ffff) as f64) / 4_294_967_296.0 < share
}

pub fn run(args: Args) -> Result<()> {
    let len = CodeLen::new(args.bits)?;
    ensure!(
        args.batch > 0 && args.threads > 0 && args.segments > 0,
        "expected batch, threads and segments of at least 1"
    );
    for share in args.filter_share.iter().chain(&args.delete_share) {
        ensure!(
            (0.0..=1.0).contains(share),
            "expected shares from 0 to 1, got {share}"
        );
    }
    if args.k.is_empty() && args.radius.is_empty() {
        bail!("expected something to measure: give --k, --radius or both");
    }
    ensure!(
        args.k.iter().all(|&k| k > 0),
        "expected --k of at least 1, got 0"
    );
    if let Some(radius) = args
        .radius
        .iter()
        .find(|&&radius| radius as usize > args.bits)
    {
        bail!(
            "expected --radius of at most {}, the bits of a code, got {radius}",
            args.bits
        );
    }
    let queries = read_codes(&args.queries, len)?;
    let n_queries = args
        .max_queries
        .unwrap_or(usize::MAX)
        .min(queries.n_codes());
    ensure!(
        n_queries > 0,
        "{}: expected at least one query, got none",
        args.queries.display()
    );
    let queries: Vec<HashCode> = (0..n_queries).map(|row| queries.get(row)).collect();

    let temporary = tempfile::tempdir()?;
    let dir = args.open.as_ref().or(args.keep.as_ref());
    let dir = dir.map_or(temporary.path(), PathBuf::as_path);
    let built = match &args.codes {
        Some(codes) => build_from(&args, codes, len, dir)?,
        None => read_built(&args, dir)?,
    };

    let started = Instant::now();
    let bench = Bench::open(dir, len, args.query_threads)?;
    let open_ms = started.elapsed().as_secs_f64() * 1e3;
    let index_bytes = index_bytes(dir)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .build()?;
    let mut answers = match &args.out_distances {
        Some(path) => Some(BufWriter::new(
            File::create(path).with_context(|| path.display().to_string())?,
        )),
        None => None,
    };

    let ops = args
        .k
        .iter()
        .map(|&k| Op::Knn(k))
        .chain(args.radius.iter().map(|&radius| Op::Radius(radius)));
    let shares: Vec<Option<f64>> = match args.filter_share.is_empty() {
        true => vec![None],
        false => args.filter_share.iter().map(|&share| Some(share)).collect(),
    };
    for op in ops {
        for &share in &shares {
            let kept = share.filter(|_| args.kept_filter);
            let kept = kept.map(|share| bench.kept_filter(share)).transpose()?;
            for &engine in &args.engine {
                let search =
                    |query: &HashCode| bench.search(op, engine, share, kept.as_ref(), query);
                search(&queries[0])?;
                let keep = answers.is_some();
                let batches: Vec<(f64, SearchStats, Vec<HammingResult>)> = pool.install(|| {
                    queries
                        .par_chunks(args.batch)
                        .map(|batch| {
                            let started = Instant::now();
                            let results = match op {
                                Op::Knn(k) if batch.len() > 1 => {
                                    bench.search_batch(k, engine, share, kept.as_ref(), batch)?
                                }
                                _ => batch.iter().map(search).collect::<Result<Vec<_>>>()?,
                            };
                            let ms = started.elapsed().as_secs_f64() * 1e3 / batch.len() as f64;
                            let mut stats = SearchStats::default();
                            results.iter().for_each(|result| stats.add(&result.stats));
                            Ok((ms, stats, if keep { results } else { Vec::new() }))
                        })
                        .collect::<Result<_>>()
                })?;
                let mut times: Vec<f64> = batches.iter().map(|(ms, _, _)| *ms).collect();
                times.sort_by(f64::total_cmp);
                let mut stats = SearchStats::default();
                batches.iter().for_each(|(_, batch, _)| stats.add(batch));
                let sizes = queries.chunks(args.batch).map(<[_]>::len);
                let total_ms: f64 = batches
                    .iter()
                    .zip(sizes)
                    .map(|((ms, _, _), size)| ms * size as f64)
                    .sum();
                let (name, k, radius) = match op {
                    Op::Knn(k) => ("knn", Some(k), None),
                    Op::Radius(radius) => ("radius", None, Some(radius)),
                };
                let quantile = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
                output::json(&json!({
                    "op": name, "k": k, "radius": radius, "engine": engine.to_string(), "n": built.n,
                    "bits": args.bits, "queries": n_queries, "threads": args.threads,
                    "query_threads": args.query_threads, "batch": args.batch,
                    "filter_share": share,
                    "filter": share.map(|_| if args.kept_filter { "kept" } else { "query" }),
                    "delete_share": built.delete_share,
                    "segments": bench.searcher.segment_readers().len(),
                    "ms_mean": total_ms / n_queries as f64,
                    "ms_p50": quantile(0.5), "ms_p99": quantile(0.99),
                    "build_s": built.build_s, "open_ms": open_ms, "index_bytes": index_bytes,
                    "exact": stats.exact, "stats": stats,
                }))?;
                if let Some(out) = &mut answers {
                    let results = batches.iter().flat_map(|(_, _, results)| results);
                    for (query, result) in results.enumerate() {
                        let distances: Vec<u32> =
                            result.hits.iter().map(|hit| hit.distance).collect();
                        let (op, engine) = (name, engine.to_string());
                        let (ids, distances) = (bench.ids(result), &distances[..]);
                        let answer = Answer {
                            op,
                            k,
                            radius,
                            engine,
                            filter_share: share,
                            query,
                            ids,
                            distances,
                        };
                        serde_json::to_writer(&mut *out, &answer)?;
                        out.write_all(b"\n")?;
                    }
                }
            }
        }
    }
    if let Some(mut out) = answers {
        out.flush()?;
    }
    Ok(())
}

/// Packed rows from a file.
pub fn read_codes(path: &Path, len: CodeLen) -> Result<Codes> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    Codes::from_packed(len, &bytes).with_context(|| path.display().to_string())
}

fn index_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == EXTENSION)
        {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

fn share_term(field: Field, share: f64) -> Term {
    Term::from_field_text(field, &share.to_string())
}

const DELETED: &str = "deleted";
/// Documents handed to the writer in one call.
const CHUNK_ROWS: usize = 10_000;

/// Times what a segment file costs beyond the documents: clusters found or tables built, checksums, bytes.
fn time_structures(codes: &Codes) -> Result<()> {
    let code_len = codes.code_len();
    let mut column = Column::new(code_len);
    for row in 0..codes.n_codes() {
        column.push(row as u32, &codes.get(row))?;
    }
    let spec = ColumnSpec {
        field_id: 0,
        code_len,
        model_id: None,
    };
    for (name, policy) in [
        ("cluster", TablePolicy::Clusters),
        ("mih", TablePolicy::Mih),
        ("mih-copies", TablePolicy::MihCopies),
        ("auto", TablePolicy::Auto),
    ] {
        let started = Instant::now();
        let mut writer = SegmentWriter::new(std::io::sink(), codes.n_codes() as u32, 1)?;
        writer.add_field(&spec, &column, policy)?;
        writer.finish()?;
        output::json(&json!({
            "op": "structures", "tables": name, "n": codes.n_codes(), "bits": code_len.bits(),
            "structures_s": started.elapsed().as_secs_f64(),
        }))?;
    }
    Ok(())
}

fn build_from(args: &Args, codes: &Path, len: CodeLen, dir: &Path) -> Result<Built> {
    let codes = read_codes(codes, len)?;
    if args.structures {
        time_structures(&codes)?;
    }
    let started = Instant::now();
    build(args, &codes, dir)?;
    let built = Built {
        build_s: started.elapsed().as_secs_f64(),
        n: codes.n_codes(),
        filter_share: args.filter_share.clone(),
        delete_share: args.delete_share,
    };
    std::fs::write(dir.join(BUILT_FILE), serde_json::to_vec(&built)?)?;
    Ok(built)
}

fn read_built(args: &Args, dir: &Path) -> Result<Built> {
    let path = dir.join(BUILT_FILE);
    let bytes = std::fs::read(&path)
        .with_context(|| format!("{}: expected what --keep leaves there", path.display()))?;
    let built: Built =
        serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
    for share in &args.filter_share {
        ensure!(
            built.filter_share.contains(share),
            "{}: expected --filter-share as built, {:?}, got {share}",
            dir.display(),
            built.filter_share
        );
    }
    Ok(built)
}

fn build(args: &Args, codes: &Codes, dir: &Path) -> Result<()> {
    let mut builder = Schema::builder();
    let code = builder.add_hash_field("code", HashFieldOptions::new(args.bits))?;
    let row_field = builder.add_u64_field("row", FAST);
    let allowed = builder.add_text_field("allowed", STRING);
    // Engines asked for by name get their tables at every size.
    let wants = |engine| args.engine.contains(&engine);
    let tables = match (wants(EngineChoice::Mih), wants(EngineChoice::Cluster)) {
        _ if args.tables.is_some() => args.tables.unwrap_or_default(),
        (true, true) => TablePolicy::Always,
        (true, false) => TablePolicy::Mih,
        (false, true) => TablePolicy::Clusters,
        (false, false) => TablePolicy::Auto,
    };
    let plugin = HashPlugin::builder().tables(tables).build()?;
    let index = HashIndex::create_in_dir(dir, builder.build(), plugin)?;
    let writer = index.writer(WriterOptions {
        num_threads: 1,
        memory_budget_bytes: 3 << 30,
        ..Default::default()
    })?;
    writer.set_merge_policy(Box::new(NoMergePolicy))?;
    let n = codes.n_codes();
    let bar = output::progress(n as u64, "indexing");
    for segment in 0..args.segments {
        let rows = segment * n / args.segments..(segment + 1) * n / args.segments;
        for start in rows.clone().step_by(CHUNK_ROWS) {
            let chunk = start..(start + CHUNK_ROWS).min(rows.end);
            let documents = chunk.clone().map(|row| {
                let mut document = TantivyDocument::new();
                document.add_u64(row_field, row as u64);
                document.add_code(code, &codes.get(row));
                for &share in &args.filter_share {
                    if in_share(row as u64, 2_654_435_761, share) {
                        document.add_text(allowed, share.to_string());
                    }
                }
                if args
                    .delete_share
                    .is_some_and(|share| in_share(row as u64, 2_246_822_519, share))
                {
                    document.add_text(allowed, DELETED);
                }
                document
            });
            writer.add_documents(documents.collect())?;
            bar.inc(chunk.len() as u64);
        }
        writer.commit()?;
    }
    if args.segments == 1 && index.searchable_segment_ids()?.len() > 1 {
        writer.merge_all()?;
    }
    if args.delete_share.is_some() {
        writer.delete_term(Term::from_field_text(allowed, DELETED))?;
        writer.commit()?;
    }
    bar.finish_and_clear();
    writer.close()?;
    Ok(())
}

impl Bench {
    fn open(dir: &Path, len: CodeLen, query_threads: usize) -> Result<Bench> {
        let index = HashIndex::open_in_dir(dir, HashPlugin::new())?;
        let searcher = index.searcher()?;
        let (code, allowed) = (index.field("code")?, index.field("allowed")?);
        let bits = HashFieldOptions::of(searcher.schema(), code)?
            .code_len()?
            .bits();
        ensure!(
            bits == len.bits(),
            "{}: expected --bits {bits} as built, got {}",
            dir.display(),
            len.bits()
        );
        index.columns(&searcher)?;
        let rows = searcher
            .segment_readers()
            .iter()
            .map(|reader| reader.fast_fields().u64("row"));
        let rows = rows.collect::<tantivy::Result<_>>()?;
        Ok(Bench {
            searcher,
            code,
            allowed,
            query_threads,
            rows,
        })
    }

    fn filter(&self, share: f64) -> Box<dyn Query> {
        let term = share_term(self.allowed, share);
        Box::new(TermQuery::new(term, IndexRecordOption::Basic))
    }

    fn kept_filter(&self, share: f64) -> Result<Arc<DocFilter>> {
        let filter = DocFilter::evaluate(&self.searcher, &*self.filter(share))?;
        filter.prepare(&self.searcher, self.code)?;
        Ok(Arc::new(filter))
    }

    fn search(
        &self,
        op: Op,
        engine: EngineChoice,
        share: Option<f64>,
        kept: Option<&Arc<DocFilter>>,
        query: &HashCode,
    ) -> Result<HammingResult> {
        let filter = share.filter(|_| kept.is_none());
        let filter = filter.map(|share| self.filter(share));
        let kept = kept.cloned().into_iter();
        Ok(match op {
            Op::Knn(k) => {
                let knn = KnnQuery::new(self.code, query.clone(), k)
                    .engine(engine)
                    .threads(self.query_threads);
                let knn = kept.fold(knn, KnnQuery::doc_filter);
                let knn = filter.into_iter().fold(knn, KnnQuery::filter);
                knn.search(&self.searcher)?
            }
            Op::Radius(radius) => {
                let range = HammingQuery::new(self.code, query.clone(), radius)
                    .engine(engine)
                    .threads(self.query_threads);
                let range = kept.fold(range, HammingQuery::doc_filter);
                range.search(&self.searcher, filter.as_deref())?
            }
        })
    }

    fn search_batch(
        &self,
        k: usize,
        engine: EngineChoice,
        share: Option<f64>,
        kept: Option<&Arc<DocFilter>>,
        queries: &[HashCode],
    ) -> Result<Vec<HammingResult>> {
        let knn = KnnQuery::new(self.code, queries[0].clone(), k)
            .engine(engine)
            .threads(self.query_threads);
        let knn = kept.cloned().into_iter().fold(knn, KnnQuery::doc_filter);
        let filter = share.filter(|_| kept.is_none());
        let filter = filter.map(|share| self.filter(share));
        let knn = filter.into_iter().fold(knn, KnnQuery::filter);
        Ok(knn.search_batch(queries, &self.searcher)?)
    }

    fn ids(&self, result: &HammingResult) -> Vec<u64> {
        let row = |hit: &tanhash::plugin::HammingHit| {
            self.rows[hit.address.segment_ord as usize]
                .first(hit.address.doc_id)
                .unwrap_or(u64::MAX)
        };
        result.hits.iter().map(row).collect()
    }
}

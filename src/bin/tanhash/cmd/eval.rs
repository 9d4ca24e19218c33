//! `tanhash eval`: how well codes find items of the same class.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tanhash::eval::{
    ClassSimilarities, Cutoff, Denominator, EmptyQueries, Evaluation, Hierarchy, Protocol,
    QuantizationError, Report, Ties, quantization_error,
};
use tanhash::npy::read_vectors;
use tanhash::{CodeLen, Codes};

use crate::arrays::{LabelFile, read_codes};
use crate::cmd::Common;
use crate::cmd::centers::{numbers, read_names};
use crate::output;
use crate::report::{self, class_name, figures, headline};

/// Measure how well codes find items of the same class: a model's on a data set, or files of codes
#[derive(clap::Args)]
pub struct Args {
    /// The model
    #[arg(long, requires = "data", required_unless_present = "query_codes")]
    model: Option<PathBuf>,
    /// The data set, named as for training
    #[arg(long, requires = "model", conflicts_with = "query_codes")]
    data: Option<String>,
    /// Packed codes of the queries, bits / 8 bytes a row
    #[arg(long, conflicts_with = "model", requires_all = ["query_labels", "bits"])]
    query_codes: Option<PathBuf>,
    /// Labels of the queries: text, a line a row, with one label or several; or .npy integers, one a row or a row
    /// of 0 and 1
    #[arg(long, requires = "query_codes")]
    query_labels: Option<PathBuf>,
    /// Packed codes that are searched
    #[arg(long, requires_all = ["query_codes", "database_labels"])]
    database_codes: Option<PathBuf>,
    /// Labels of what is searched
    #[arg(long, requires = "database_codes")]
    database_labels: Option<PathBuf>,
    /// Bits of each code
    #[arg(long, requires = "query_codes")]
    bits: Option<usize>,
    /// A name a line, the first for label 0; to look up classes in the hierarchy and to show
    #[arg(long, requires = "query_codes")]
    class_names: Option<PathBuf>,
    /// The logits of the database codes before binarizing, a .npy matrix: reports the quantization error
    #[arg(long, requires = "query_codes")]
    database_logits: Option<PathBuf>,
    /// What an average precision is divided by
    #[arg(long, value_enum, default_value_t = ProtocolKind::Literature)]
    protocol: ProtocolKind,
    /// R of mAP@R: how much of each ranking counts, a number or `all`
    #[arg(long, default_value = "all")]
    r: String,
    /// Break ties by so many random orders of the database, drawn from --seed. Without it: the expectation over
    /// all orders, or 5 orders for a number R with `literature`, which has no closed form
    #[arg(long)]
    orders: Option<usize>,
    /// Break ties by the row of the database, as a search answers; unfair where rows are grouped by class
    #[arg(long, conflicts_with = "orders")]
    database_order: bool,
    /// Break ties by class, then by the row of the database: how far grouping rows by class can move a figure
    #[arg(long, conflicts_with_all = ["orders", "database_order"])]
    class_order: bool,
    /// Leave queries out of mAP@R that have nothing relevant in their ranking, in the place of counting 0
    #[arg(long)]
    skip_empty: bool,
    /// A tree of the classes, as lines `parent child` or indented names: adds mAHP@250 and graded nDCG
    #[arg(long)]
    hierarchy: Option<PathBuf>,
    /// Search the queries among themselves, each left out of its own ranking
    #[arg(long)]
    leave_one_out: bool,
    /// Where `train --freeze` kept the features of the pictures
    #[arg(long, conflicts_with = "query_codes")]
    feature_cache: Option<PathBuf>,
    /// Write report.html and report.json into this directory
    #[arg(long)]
    report: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum ProtocolKind {
    /// The relevant items found among the first R
    Literature,
    /// The relevant items there are, at most R
    MinRelevantR,
}

/// A report, and what its page needs besides.
struct Measured {
    report: Report,
    class_names: Vec<String>,
    /// Markup.
    examples: String,
}

pub fn run(args: Args, common: Common) -> Result<()> {
    let mut protocol = Protocol::new(args.r.parse()?);
    if let ProtocolKind::MinRelevantR = args.protocol {
        protocol.denominator = Denominator::MinRelevantR;
    }
    protocol.leave_one_out = args.leave_one_out;
    if args.skip_empty {
        protocol.empty_queries = EmptyQueries::Skip;
    }
    // The expectation where it has a closed form.
    let n_orders = match (protocol.cutoff, args.protocol) {
        (Cutoff::At(_), ProtocolKind::Literature) => args.orders.or(Some(5)),
        (Cutoff::All, _) | (_, ProtocolKind::MinRelevantR) => args.orders,
    };
    protocol.ties = match n_orders {
        _ if args.database_order => Ties::DatabaseOrder,
        _ if args.class_order => Ties::ClassOrder,
        None => Ties::Expected,
        Some(n_orders) => Ties::Permutations {
            n_orders,
            seed: common.seed,
        },
    };
    if let Some(dir) = &args.report {
        ensure!(
            dir.is_dir() || !dir.exists(),
            "{}: expected the name of a folder for the page, found a file; choose another name",
            dir.display()
        );
        // Enough of them for a line.
        protocol.ks = vec![1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
    }
    let measured = match (&args.query_codes, &args.model) {
        (Some(codes), _) => from_codes(codes, &args, &protocol)?,
        (None, Some(model)) => from_pictures(model, &args, &protocol, common)?,
        (None, None) => bail!("expected --model or --query-codes"),
    };
    let report = &measured.report;
    if let Some(dir) = &args.report {
        report::write(dir, report, &measured.class_names, &measured.examples)?;
    }
    if common.json {
        return output::json(report);
    }
    output::line(headline(report))?;
    for (name, value) in &report.notes {
        output::line(format!("{name}: {value}"))?;
    }
    for at in &report.at_k {
        let hp = at.hierarchical_precision;
        let hp = hp
            .map(|hp| format!("   hierarchical precision {hp:.4}"))
            .unwrap_or_default();
        output::line(format!(
            "P@{:<5} {:.4}   recall {:.4}   nDCG {:.4}{hp}",
            at.k, at.precision, at.recall, at.ndcg
        ))?;
    }
    for (name, value) in figures(report).iter().skip(1) {
        output::line(format!("{name:<42} {value:.4}"))?;
    }
    for class in &report.per_class {
        output::line(format!(
            "{:<16} {:.4}  ({} queries)",
            class_name(&measured.class_names, class.label),
            class.map,
            class.n_queries
        ))?;
    }
    Ok(())
}

/// The similarities of classes that have these names, or these numbers.
fn similarities(path: &Path, class_names: &[String]) -> Result<ClassSimilarities> {
    let classes = Hierarchy::read(path)?.classes(class_names);
    Ok(classes
        .with_context(|| path.display().to_string())?
        .similarities())
}

/// What binarizing these logits to these codes lost.
fn quantization_of(path: &Path, codes: &Codes) -> Result<QuantizationError> {
    let about = || path.display().to_string();
    let (logits, dim) = read_vectors(path)?;
    let len = codes.code_len();
    ensure!(
        dim == len.bits() && logits.len() / dim == codes.n_codes(),
        "{}: expected {} rows of {} logits, got {} rows of {dim}",
        about(),
        codes.n_codes(),
        len.bits(),
        logits.len() / dim
    );
    for (row, logits) in logits.chunks_exact(dim).enumerate() {
        let code = codes.get(row);
        let other = |(bit, &logit): (usize, &f32)| logit != 0.0 && code.bit(bit) != (logit > 0.0);
        if let Some(bit) = logits.iter().enumerate().position(other) {
            bail!(
                "{}: row {row}: expected logits above 0 where the code has a 1, got {} and {} at bit {bit}; give those of \
                 the database codes",
                about(),
                logits[bit],
                u8::from(code.bit(bit))
            );
        }
    }
    quantization_error(len, &logits).with_context(about)
}

/// Codes and labels from files.
fn from_codes(query_codes: &Path, args: &Args, protocol: &Protocol) -> Result<Measured> {
    let (Some(bits), Some(query_labels)) = (args.bits, &args.query_labels) else {
        bail!("expected --query-labels and --bits beside --query-codes")
    };
    let len = CodeLen::new(bits)?;
    let query = (
        read_codes(query_codes, len)?,
        LabelFile::read(query_labels)?,
    );
    let database = match (&args.database_codes, &args.database_labels) {
        (Some(codes), Some(labels)) => Some((read_codes(codes, len)?, LabelFile::read(labels)?)),
        _ if args.leave_one_out => None,
        _ => bail!("expected --database-codes and --database-labels, or --leave-one-out"),
    };
    let (query, database) = (&query, database.as_ref().unwrap_or(&query));
    let n_classes = query.1.n_classes().max(database.1.n_classes());
    let class_names = match &args.class_names {
        None => Vec::new(),
        Some(path) => {
            let names = read_names(path)?;
            ensure!(
                names.len() >= n_classes,
                "{}: expected a name for each of {n_classes} classes, got {} lines",
                path.display(),
                names.len()
            );
            names
        }
    };
    let (query_labels, database_labels) = (query.1.labels(), database.1.labels());
    // Codes read at the wrong length are another number of them.
    let about = || {
        let database = args.database_codes.as_deref().unwrap_or(query_codes);
        format!(
            "codes of {bits} bits in {} and {}",
            query_codes.display(),
            database.display()
        )
    };
    let mut evaluation = Evaluation::new(&query.0, query_labels, &database.0, database_labels)
        .with_context(about)?;
    let similarities = match &args.hierarchy {
        None => None,
        Some(path) if class_names.is_empty() => {
            let found = similarities(path, &numbers(n_classes));
            Some(found.context("labels are looked up as numbers; give names with --class-names")?)
        }
        Some(path) => Some(similarities(path, &class_names)?),
    };
    if let Some(similarities) = &similarities {
        evaluation = evaluation.similarities(similarities)?;
    }
    // Found wrong before the codes are compared rather than after.
    let quantization = match &args.database_logits {
        Some(path) => Some(quantization_of(path, &database.0)?),
        None => None,
    };
    let mut report = evaluation.run(protocol)?;
    report.quantization = quantization;
    let files = [
        ("query codes", Some(query_codes)),
        ("query labels", args.query_labels.as_deref()),
        ("database codes", args.database_codes.as_deref()),
        ("database labels", args.database_labels.as_deref()),
        ("hierarchy", args.hierarchy.as_deref()),
    ];
    for (name, path) in files {
        let path = path.map(|path| path.display().to_string());
        report
            .notes
            .extend(path.map(|path| (name.to_owned(), path)));
    }
    Ok(Measured {
        report,
        class_names,
        examples: String::new(),
    })
}

#[cfg(not(feature = "torch"))]
fn from_pictures(model: &Path, args: &Args, _: &Protocol, _: Common) -> Result<Measured> {
    bail!(
        "evaluating {} on {} needs a program built with --features cli,torch, this one is built with cli alone; \
         it measures files of codes",
        model.display(),
        args.data.as_deref().unwrap_or("a data set")
    )
}

#[cfg(feature = "torch")]
use pictures::from_pictures;

#[cfg(feature = "torch")]
mod pictures {
    use std::path::Path;

    use anyhow::{Context, Result};
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};
    use tanhash::data::{Dataset, ExampleSet};
    use tanhash::deep::{Device, TorchEncoder, features};
    use tanhash::eval::{Evaluation, Protocol, Report};
    use tanhash::hamming::Kernel;
    use tanhash::{Codes, HashCode};

    use super::{Args, Measured, similarities};
    use crate::cmd::Common;
    use crate::page::{LEGEND, Tile, png, row};
    use crate::report::class_name;
    use crate::{learning, output};

    /// Hits of an example.
    const HITS: usize = 10;

    /// A model on a data set.
    pub fn from_pictures(
        model: &Path,
        args: &Args,
        protocol: &Protocol,
        common: Common,
    ) -> Result<Measured> {
        let encoder =
            TorchEncoder::open(model, Device::Auto).with_context(|| model.display().to_string())?;
        let data = args
            .data
            .as_deref()
            .context("expected --data beside --model")?;
        let dataset = learning::load_for(&encoder, data, common.seed)?;
        let config = encoder.config();
        if config.dataset == dataset.name && config.protocol != dataset.protocol {
            output::note(format!(
                "the model was trained on another split ({}); its queries may be among its training pictures",
                config.protocol
            ));
        }
        // Found wrong before minutes of encoding rather than after.
        let similarities = match &args.hierarchy {
            None => None,
            Some(path) => Some(similarities(path, &dataset.class_names)?),
        };
        let read = match &args.feature_cache {
            None => None,
            Some(cache) => {
                let read = features::cached(config, &dataset, cache)?;
                if read.is_none() {
                    output::note(format!(
                        "no features of these pictures for this model in {}; the pictures are encoded",
                        cache.display()
                    ));
                }
                read
            }
        };
        let read = read.as_ref().unwrap_or(&dataset);
        let mut protocol = protocol.clone();
        protocol.leave_one_out |= dataset.leave_one_out;
        let (query, searched, quantization) = match protocol.leave_one_out {
            true => {
                let (codes, quantization) = learning::encode_measured(&encoder, &read.query)?;
                (codes, None, quantization)
            }
            false => {
                let query = learning::encode(&encoder, &read.query)?;
                let (codes, quantization) = learning::encode_measured(&encoder, &read.database)?;
                (query, Some(codes), quantization)
            }
        };
        let (database, database_set) = match &searched {
            Some(codes) => (codes, &dataset.database),
            None => (&query, &dataset.query),
        };
        let mut evaluation = Evaluation::new(
            &query,
            dataset.query.all_labels(),
            database,
            database_set.all_labels(),
        )?;
        if let Some(similarities) = &similarities {
            evaluation = evaluation.similarities(similarities)?;
        }
        let mut report = evaluation.run(&protocol)?;
        report.quantization = Some(quantization);
        report.notes.extend(learning::notes(&encoder, &dataset));
        if protocol.leave_one_out && !dataset.leave_one_out {
            let split = format!(
                "query = database = {} queries, each left out of its own ranking; before: {}",
                dataset.query.len(),
                dataset.protocol
            );
            report.notes.insert("split".to_owned(), split);
        }
        report
            .notes
            .insert("seed".to_owned(), common.seed.to_string());
        if let Some(path) = &args.hierarchy {
            report
                .notes
                .insert("hierarchy".to_owned(), path.display().to_string());
        }
        let examples = match args.report {
            // Vectors have no picture to show.
            _ if dataset.query.n_features().is_some() => String::new(),
            None => String::new(),
            Some(_) => examples(
                &report,
                &dataset,
                &query,
                database,
                database_set,
                common.seed,
            )?,
        };
        Ok(Measured {
            report,
            class_names: dataset.class_names,
            examples,
        })
    }

    /// Some best, worst and random queries with their nearest pictures, as markup.
    fn examples(
        report: &Report,
        dataset: &Dataset,
        query: &Codes,
        database: &Codes,
        database_set: &ExampleSet,
        seed: u64,
    ) -> Result<String> {
        let ap = &report.ap_per_query;
        let (labels, of_database) = (dataset.query.all_labels(), database_set.all_labels());
        let names = |classes: &[u32]| {
            let names: Vec<_> = classes
                .iter()
                .map(|&class| class_name(&dataset.class_names, class))
                .collect();
            names.join(", ")
        };
        let mut order: Vec<usize> = (0..ap.len()).collect();
        order.sort_by(|&a, &b| ap[b].total_cmp(&ap[a]));
        // At most one query a class, so that they show more than one thing.
        let first_of_classes = |rows: &mut dyn Iterator<Item = usize>| -> Vec<usize> {
            let mut classes = Vec::new();
            rows.filter(|&row| {
                let new = !classes.contains(&labels.of(row));
                if new {
                    classes.push(labels.of(row));
                }
                new
            })
            .take(4)
            .collect()
        };
        let best = first_of_classes(&mut order.iter().copied());
        let worst = first_of_classes(&mut order.iter().rev().copied());
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut random = (0..ap.len()).map(|_| (rng.next_u64() % ap.len() as u64) as usize);
        let random = first_of_classes(&mut random);
        let mut html = LEGEND.to_owned();
        for (kind, rows) in [("Random", random), ("Best", best), ("Worst", worst)] {
            for query_row in rows {
                let code = query.get(query_row);
                let leave_out = report.protocol.leave_one_out.then_some(query_row);
                let hits = nearest(database, &code, leave_out);
                let wanted = labels.of(query_row);
                let tiles: Vec<Tile> = hits
                    .into_iter()
                    .map(|(distance, hit)| {
                        let found = of_database.of(hit);
                        let truth = found.iter().any(|class| wanted.contains(class));
                        let name = names(&found);
                        let mark = if truth { '✓' } else { '✗' };
                        Ok(Tile {
                            png: png(database_set, hit)?,
                            caption: format!("{mark} {name}, distance {distance}"),
                            detail: format!("picture {hit} of the database"),
                            truth: Some(truth),
                        })
                    })
                    .collect::<Result<_>>()?;
                let name = names(&wanted);
                let tile = Tile {
                    png: png(&dataset.query, query_row)?,
                    caption: format!("query: {name}"),
                    detail: format!("query {query_row}"),
                    truth: None,
                };
                let title = format!("{kind} query: {name}");
                let note = format!("Query {query_row}, average precision {:.4}.", ap[query_row]);
                html += &row(&title, &note, Some(&tile), &tiles);
            }
        }
        Ok(html)
    }

    /// Distance and row of the nearest codes, ties by row.
    fn nearest(database: &Codes, code: &HashCode, leave_out: Option<usize>) -> Vec<(u32, usize)> {
        let mut distances = vec![0; database.n_codes()];
        Kernel::best().distances(database.as_ref(), code.words(), &mut distances);
        let mut hits: Vec<(u32, usize)> = distances.into_iter().zip(0..).collect();
        hits.retain(|(_, row)| Some(*row) != leave_out);
        hits.sort_unstable();
        hits.truncate(HITS);
        hits
    }
}

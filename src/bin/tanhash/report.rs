//! The page of an evaluation: figures, plots, example retrievals and everything that decides the figures.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use tanhash::eval::{Cutoff, Denominator, EmptyQueries, Report, Ties};

use crate::files;
use crate::page::{document, escape};
use crate::plot::{Axis, BLUE, GREEN, Line, RED, bars, columns, heat_map, lines};

/// Classes whose bars fit on a page; of more, the worst and the best are shown.
const BARS_MAX: usize = 120;

/// Writes `report.json` and `report.html` into a directory, which is made if it is not there. `examples` is
/// markup.
pub fn write(dir: &Path, report: &Report, class_names: &[String], examples: &str) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let json = serde_json::to_vec_pretty(report)?;
    files::write(&dir.join("report.json"), &json)?;
    let html = html(report, class_names, examples);
    files::write(&dir.join("report.html"), html.as_bytes())
}

fn html(report: &Report, class_names: &[String], examples: &str) -> String {
    let mut facts = vec![rules(report)];
    let notes = report.notes.iter();
    facts.extend(notes.map(|(name, value)| format!("{name}: {value}")));
    facts.push(format!("command: {}", command()));
    let plots: String = plots(report, class_names)
        .into_iter()
        .map(|(svg, note)| {
            format!(
                "<figure>\n{svg}<figcaption>{}</figcaption></figure>\n",
                escape(note)
            )
        })
        .collect();
    let body = format!(
        "<section>\n{}</section>\n<section>\n<div class=\"plots\">\n{plots}</div>\n</section>\n{examples}",
        tables(report)
    );
    let title = format!(
        "{} {:.4}, {} bits",
        report.metric(),
        report.map,
        report.bits
    );
    document(&title, &facts, &body)
}

/// The protocol in a sentence.
pub fn rules(report: &Report) -> String {
    let protocol = &report.protocol;
    let denominator = match (protocol.cutoff, protocol.denominator) {
        (Cutoff::All, _) => "the relevant items".to_owned(),
        (Cutoff::At(r), Denominator::RelevantInTopR) => {
            format!("the relevant items found among the first {r}")
        }
        (Cutoff::At(r), Denominator::MinRelevantR) => format!("the relevant items, at most {r}"),
    };
    let ties = match protocol.ties {
        Ties::Expected => "by expectation over all orders, in closed form".to_owned(),
        Ties::Permutations { n_orders, seed } => {
            format!("by {n_orders} random orders of the database, seed {seed}")
        }
        Ties::DatabaseOrder => "in the order of the database".to_owned(),
        Ties::ClassOrder => "in the order of the classes".to_owned(),
    };
    let empty = match protocol.empty_queries {
        EmptyQueries::CountAsZero => "count as 0",
        EmptyQueries::Skip => "are left out",
    };
    let nothing = match (protocol.cutoff, protocol.denominator) {
        (Cutoff::At(r), Denominator::RelevantInTopR) => {
            let orders = matches!(protocol.ties, Ties::Permutations { n_orders: 2.., .. });
            let when = if orders {
                ", in one order or more,"
            } else {
                ""
            };
            format!("with nothing relevant among the first {r}{when}")
        }
        _ => "with nothing relevant in the database".to_owned(),
    };
    let set = match protocol.leave_one_out {
        true => "; queries and database are one set, each item left out of its own ranking",
        false => "",
    };
    format!(
        "{}: {} queries, {} items searched; average precision over {denominator}; ties {ties}; {} queries \
         {nothing} {empty}{set}",
        report.metric(),
        report.n_queries,
        report.n_database,
        report.n_empty_queries
    )
}

/// The command line, as a shell reads it.
fn command() -> String {
    let words = std::env::args().map(|word| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+@".contains(c);
        match !word.is_empty() && word.chars().all(plain) {
            true => word,
            false => format!("'{}'", word.replace('\'', "'\\''")),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Every single figure, by name.
pub fn figures(report: &Report) -> Vec<(String, f64)> {
    let metric = report.metric();
    let mut figures = vec![(metric.clone(), report.map)];
    let mut add = |name: String, value: Option<f64>| figures.extend(value.map(|v| (name, v)));
    add("spread over orders of ties".into(), report.map_std);
    if report.protocol.cutoff != Cutoff::All {
        let by = &report.map_by_denominator;
        add(
            format!("{metric} over relevant items found"),
            by.relevant_in_top_r,
        );
        add(
            format!("{metric} over min(relevant, R)"),
            Some(by.min_relevant_r),
        );
    }
    add(
        "mAP@all, expected over ties".into(),
        Some(report.map_all_expected),
    );
    if let Some(hierarchical) = &report.hierarchical {
        let (k, best) = (hierarchical.k, hierarchical.mahp_perfect);
        add(
            format!("mAHP@{k} (perfect {best:.3})"),
            Some(hierarchical.mahp),
        );
    }
    let within = &report.within_radius;
    add(
        format!("precision within radius {}", within.radius),
        Some(within.precision),
    );
    add(
        format!("recall within radius {}", within.radius),
        Some(within.recall),
    );
    add("queries that find nothing there".into(), Some(within.empty));
    let distances = &report.distances;
    add(
        "mean distance of relevant pairs".into(),
        distances.relevant_mean,
    );
    add("mean distance of other pairs".into(), distances.other_mean);
    add("separability d'".into(), distances.separability);
    add("share of pairs in right order".into(), distances.auc);
    add(
        "bit bias, mean |2p - 1|".into(),
        Some(report.bit_balance.bias),
    );
    add(
        "constant bits".into(),
        Some(report.bit_balance.n_constant as f64),
    );
    add(
        "mean |correlation| of bits".into(),
        Some(report.bit_correlation.mean),
    );
    add(
        "largest |correlation| of bits".into(),
        Some(report.bit_correlation.max),
    );
    if let Some(quantization) = &report.quantization {
        add(
            "quantization error, squared".into(),
            Some(quantization.squared),
        );
        add(
            "quantization error, 1 - cosine".into(),
            Some(quantization.cosine),
        );
    }
    figures
}

fn tables(report: &Report) -> String {
    let rows: String = figures(report)
        .iter()
        .map(|(name, value)| format!("<tr><td>{}</td><td>{value:.4}</td></tr>\n", escape(name)))
        .collect();
    let graded = report.hierarchical.is_some();
    let at_k: String = report
        .at_k
        .iter()
        .map(|at| {
            let hp = at.hierarchical_precision;
            let hp = hp.map(|hp| format!("<td>{hp:.4}</td>")).unwrap_or_default();
            format!(
                "<tr><td>{}</td><td>{:.4}</td><td>{:.4}</td><td>{:.4}</td>{hp}</tr>\n",
                at.k, at.precision, at.recall, at.ndcg
            )
        })
        .collect();
    format!(
        "<div class=\"row\">\n<table>\n{rows}</table>\n<table>\n<tr><th>k</th><th>precision</th><th>recall</th><th>nDCG</th>{}</tr>\n{at_k}</table>\n</div>\n",
        if graded {
            "<th>hierarchical precision</th>"
        } else {
            ""
        }
    )
}

/// Each plot with a sentence about it.
fn plots(report: &Report, class_names: &[String]) -> Vec<(String, &'static str)> {
    let share = |label: &str| Axis::new(label, 0.0, 1.0);
    let mut plots = Vec::new();

    let curve = report
        .curve
        .iter()
        .filter(|within| within.n_retrieved > 0.0);
    let curve = Line {
        name: "",
        color: BLUE,
        points: curve
            .map(|within| (within.recall, within.precision))
            .collect(),
        fill: false,
        dots: true,
    };
    plots.push((
        lines("Precision and recall by radius", &share("recall"), &share("precision"), &[curve]),
        "A dot is a Hamming radius, from 0 at the left. A query that finds nothing within a radius counts as \
         precision 0.",
    ));

    let line = |name, color, value: &dyn Fn(&tanhash::eval::AtK) -> Option<f64>| Line {
        name,
        color,
        points: report
            .at_k
            .iter()
            .filter(|at| at.k <= report.n_database)
            .filter_map(|at| Some((at.k as f64, value(at)?)))
            .collect(),
        fill: false,
        dots: true,
    };
    let mut at_k = vec![
        line("precision", BLUE, &|at| Some(at.precision)),
        line("nDCG", GREEN, &|at| Some(at.ndcg)),
    ];
    if report.hierarchical.is_some() {
        at_k.push(line("hierarchical p.", RED, &|at| {
            at.hierarchical_precision
        }));
    }
    let largest = report
        .at_k
        .iter()
        .map(|at| at.k)
        .filter(|k| *k <= report.n_database)
        .max();
    let k = Axis {
        log: true,
        ..Axis::new("k, logarithmic", 1.0, largest.unwrap_or(10).max(10) as f64)
    };
    plots.push((
        lines("The first k", &k, &share("mean over queries"), &at_k),
        "Expected over ties.",
    ));

    let shares = |counts: &[u64]| -> Vec<(f64, f64)> {
        let total = counts.iter().sum::<u64>().max(1) as f64;
        (0..)
            .zip(counts)
            .map(|(d, &n)| (f64::from(d), n as f64 / total))
            .collect()
    };
    let (near, far) = (
        shares(&report.distances.relevant),
        shares(&report.distances.other),
    );
    let most = near
        .iter()
        .chain(&far)
        .map(|point| point.1)
        .fold(0.0, f64::max);
    let both = [
        Line {
            name: "relevant",
            color: GREEN,
            points: near,
            fill: true,
            dots: false,
        },
        Line {
            name: "other",
            color: RED,
            points: far,
            fill: true,
            dots: false,
        },
    ];
    let bits = report.bits as f64;
    plots.push((
        lines(
            "Distances of pairs",
            &Axis::new("Hamming distance, bits", 0.0, bits),
            &Axis::new("share of pairs", 0.0, most * 1.05),
            &both,
        ),
        "Pairs of a query and an item that share a class (intra-class), and all others (inter-class).",
    ));

    plots.push((
        columns(
            "Balance of bits",
            "bit",
            &share("share of ones"),
            &report.bit_balance.ones,
            0.5,
        ),
        "Over the database. At one half a bit says most; at 0 or 1 it says nothing.",
    ));
    plots.push((
        heat_map(
            "Correlation of bits",
            "bit",
            &report.bit_correlation.matrix,
            report.bits,
        ),
        "Over the database. Color follows the root of the correlation, so that small ones show.",
    ));

    let mut classes: Vec<(String, f64)> = report
        .per_class
        .iter()
        .map(|class| (class_name(class_names, class.label), class.map))
        .collect();
    classes.sort_by(|a, b| a.1.total_cmp(&b.1));
    let n_classes = classes.len();
    let title = match n_classes > BARS_MAX {
        true => {
            classes.drain(BARS_MAX / 2..n_classes - BARS_MAX / 2);
            format!(
                "{} of the worst and best of {n_classes} classes",
                report.metric()
            )
        }
        false => format!("{} of each class", report.metric()),
    };
    plots.push((
        bars(&title, &classes),
        "Mean over the queries of a class, worst first.",
    ));
    plots
}

/// A class by name, or by number where it has none.
pub fn class_name(class_names: &[String], label: u32) -> String {
    let name = class_names.get(label as usize).cloned();
    name.unwrap_or_else(|| format!("class {label}"))
}

/// mAP@R in one line.
pub fn headline(report: &Report) -> String {
    let spread = report
        .map_std
        .map(|std| format!(" ± {std:.5} over orders of ties"))
        .unwrap_or_default();
    format!(
        "{} {:.4}{spread}, {} bits, {} queries, {} items",
        report.metric(),
        report.map,
        report.bits,
        report.n_queries,
        report.n_database
    )
}

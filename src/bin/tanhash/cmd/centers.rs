//! `tanhash centers`: hash centers alone, made and judged without training.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;
use tanhash::centers::semantic::{SemanticOptions, Variant, s_loss, semantic_centers};
use tanhash::centers::separation::gilbert_varshamov;
use tanhash::centers::{CentersKind, ClassSimilarity, Codebook};
use tanhash::eval::{ClassHierarchy, Hierarchy};
use tanhash::npy::read_matrix;

use crate::cmd::Common;
use crate::files;
use crate::output;

/// Make hash centers, one target code a class, and print how good they are
#[derive(clap::Args)]
pub struct Args {
    /// A C x C matrix in a .npy file: how alike two classes are, 1 on the diagonal
    #[arg(long)]
    similarity: Option<PathBuf>,
    /// A tree of the classes, as lines `parent child` or indented names: two classes are alike by 1 minus the
    /// height of their lowest common ancestor over that of the root
    #[arg(long, conflicts_with = "similarity")]
    hierarchy: Option<PathBuf>,
    /// The names to look up in the tree, a line each, the first for label 0; without it the classes are its
    /// leaves named 0, 1 and so on
    #[arg(long, requires = "hierarchy")]
    class_names: Option<PathBuf>,
    /// The number of classes, where no similarity is given
    #[arg(long)]
    classes: Option<usize>,
    /// Bits of each center
    #[arg(long)]
    bits: usize,
    /// How they are made: shc, max-hd, bernoulli, hadamard or balanced
    #[arg(long, default_value = "shc")]
    method: String,
    /// Which description of SHC: paper, if not given, or released
    #[arg(long)]
    variant: Option<Variant>,
    /// Bits in which two centers differ at least, for shc; the Gilbert-Varshamov distance if not given
    #[arg(long)]
    min_distance: Option<usize>,
    /// Starts that shc tries
    #[arg(long)]
    restarts: Option<usize>,
    /// Leave out the local search after shc: the method's own result
    #[arg(long)]
    no_refine: bool,
    /// The .npy file to write: C x bits of -1 and 1, int8
    #[arg(long)]
    out: Option<PathBuf>,
}

pub fn run(args: Args, common: Common) -> Result<()> {
    if let Some(out) = &args.out {
        let inputs = [&args.similarity, &args.hierarchy, &args.class_names];
        files::keep_inputs(&[out], inputs.into_iter().flatten().map(PathBuf::as_path))?;
    }
    let similarity = match (&args.similarity, &args.hierarchy) {
        (Some(path), _) => Some(read_similarity(path)?),
        (None, Some(path)) => {
            let tree = Hierarchy::read(path)?;
            let names = match (&args.class_names, args.classes) {
                (Some(names), _) => read_names(names)?,
                (None, n_classes) => numbers(n_classes.unwrap_or_else(|| tree.leaves().count())),
            };
            let classes = tree.classes(&names).with_context(|| {
                let hint = match args.class_names {
                    Some(_) => "",
                    None => ": classes are looked up as numbers; give names with --class-names",
                };
                format!("{}{hint}", path.display())
            })?;
            Some(similarity_of(&classes)?)
        }
        (None, None) => None,
    };
    let n_classes = match (&similarity, args.classes) {
        (Some(similarity), None) => similarity.n_classes(),
        (None, Some(n_classes)) => n_classes,
        (Some(similarity), Some(n_classes)) if similarity.n_classes() == n_classes => n_classes,
        (Some(similarity), Some(n_classes)) => bail!(
            "expected a similarity of {n_classes} classes, found {}",
            similarity.n_classes()
        ),
        (None, None) => {
            bail!("expected --similarity FILE, --hierarchy FILE or --classes N, got none of them")
        }
    };
    let started = Instant::now();
    let (codebook, semantic) = if args.method == "shc" {
        let similarity = similarity.as_ref().context(
            "expected --similarity or --hierarchy, one of which shc needs; max-hd does without",
        )?;
        let defaults = SemanticOptions::default();
        let options = SemanticOptions {
            variant: args.variant.unwrap_or(defaults.variant),
            min_distance: args.min_distance,
            restarts: args.restarts.unwrap_or(defaults.restarts),
            refine: !args.no_refine,
            ..defaults
        };
        let made = semantic_centers(similarity, args.bits, &options, common.seed)?;
        (made.codebook, Some(made.report))
    } else {
        let kind: CentersKind = args.method.parse().with_context(|| {
            format!(
                "expected the method shc or a kind of codebook, got {:?}",
                args.method
            )
        })?;
        let of_shc = [
            ("variant", args.variant.is_some()),
            ("min-distance", args.min_distance.is_some()),
            ("restarts", args.restarts.is_some()),
            ("no-refine", args.no_refine),
        ];
        if let Some((name, _)) = of_shc.iter().find(|(_, given)| *given) {
            bail!("--{name} is of the method shc, got {kind}");
        }
        (
            Codebook::seeded(kind, n_classes, args.bits, common.seed)?,
            None,
        )
    };
    if let Some(out) = &args.out {
        files::write(out, &codebook.to_npy())?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let loss = similarity
        .as_ref()
        .map(|similarity| s_loss(similarity, &codebook));
    let gv_distance = gilbert_varshamov(n_classes, args.bits);
    if common.json {
        return output::json(&json!({
            "method": args.method,
            "variant": semantic.is_some().then(|| args.variant.unwrap_or_default().to_string()),
            "seed": common.seed,
            "n_classes": n_classes,
            "bits": args.bits,
            "d_min": codebook.min_distance(),
            "gv_distance": gv_distance,
            "wished_distance": semantic.as_ref().map(|report| report.wished_distance),
            "s_loss": loss,
            "s_loss_before_refine": semantic.as_ref().map(|report| report.s_loss_before_refine),
            "s_loss_start": semantic.as_ref().map(|report| report.s_loss_start),
            "seconds": seconds,
            "out": args.out,
        }));
    }
    let mut text = format!(
        "{n_classes} centers of {} bits by {}: smallest distance {} (Gilbert-Varshamov {gv_distance})",
        args.bits,
        args.method,
        codebook.min_distance(),
    );
    if let Some(loss) = loss {
        text += &format!(", semantic loss {loss:.4}");
    }
    if let Some(report) = &semantic {
        text += &format!(
            " ({:.4} before the local search, {:.4} at the start)",
            report.s_loss_before_refine, report.s_loss_start
        );
    }
    output::line(format!("{text}, {seconds:.1} s"))
}

/// S of the classes of a tree.
fn similarity_of(classes: &ClassHierarchy) -> Result<ClassSimilarity> {
    let n = classes.n_classes() as u32;
    let pairs = (0..n).flat_map(|a| (0..n).map(move |b| (a, b)));
    let entries = pairs.map(|(a, b)| classes.similarity(a, b)).collect();
    Ok(ClassSimilarity::new(n as usize, entries)?)
}

/// A name a line, the first for label 0.
pub fn read_names(path: &Path) -> Result<Vec<String>> {
    let text = files::read_text(path)?;
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

/// The names of classes that have none.
pub fn numbers(n_classes: usize) -> Vec<String> {
    (0..n_classes).map(|class| class.to_string()).collect()
}

/// S of a `.npy` file.
pub fn read_similarity(path: &Path) -> Result<ClassSimilarity> {
    let (rows, columns, entries) = read_matrix(path)?;
    square(path, rows, columns)?;
    ClassSimilarity::new(rows, entries).with_context(|| path.display().to_string())
}

/// `Ok` if a matrix is square.
pub fn square(path: &Path, rows: usize, columns: usize) -> Result<()> {
    if rows != columns {
        bail!(
            "{}: expected as many rows as columns, found {rows} x {columns}",
            path.display()
        );
    }
    Ok(())
}

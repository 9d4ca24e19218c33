//! `tanhash search`: by words, by picture, by code, or by several at once.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::json;
use tanhash::HashCode;
use tanhash::plugin::{
    Fusion, HammingQuery, HybridSearch, KnnQuery, Leg, LegHit, verify_segment_checksums,
};

use crate::catalog::{CODE_FIELD, Catalog, EncoderSpec, Stored, Use};
use crate::cmd::Common;
use crate::output;
use crate::records::{Body, read_picture};

/// Search an index by text, picture or code
#[derive(clap::Args)]
pub struct Args {
    /// The index
    #[arg(long)]
    index: PathBuf,
    /// Words to look for, in tantivy's query language
    #[arg(long)]
    text: Option<String>,
    /// A picture to find the like of
    #[arg(long)]
    image: Option<PathBuf>,
    /// A code in hexadecimal to find the like of
    #[arg(long, conflicts_with = "image")]
    code: Option<String>,
    /// The hash field to search, for an index with several
    #[arg(long, default_value = CODE_FIELD)]
    field: String,
    /// Hits to show; 10, or all within the radius if one is given
    #[arg(long)]
    k: Option<usize>,
    /// All codes within this distance, inclusive, instead of the nearest ones
    #[arg(long)]
    radius: Option<u32>,
    /// Only documents that match, such as label:"Ankle boot" or meta.price:[10 TO 20]
    #[arg(long)]
    filter: Option<String>,
    /// How text and codes are combined
    #[arg(long, value_enum, default_value_t = FusionKind::Rrf)]
    fusion: FusionKind,
    /// Hits to skip
    #[arg(long, default_value_t = 0)]
    offset: usize,
    /// Show where each hit stands in each leg, and what the search touched
    #[arg(long)]
    explain: bool,
    /// Encode the picture with this model instead of the index's own copy
    #[arg(long)]
    model: Option<PathBuf>,
    /// Do not compare the checksums of the whole index before answering
    #[arg(long)]
    trust: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum FusionKind {
    /// Reciprocal rank fusion
    Rrf,
    /// Weighted sum of normalized scores
    Linear,
}

/// A hit as it is printed.
#[derive(Serialize)]
pub struct Hit {
    rank: usize,
    score: f32,
    distance: Option<u32>,
    #[serde(flatten)]
    stored: Stored,
    segment: u32,
    doc: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    legs: Option<Vec<Option<LegHit>>>,
}

/// The shortest list that a leg of a hybrid search contributes, so that fusion has something to combine.
const LEG_HITS_MIN: usize = 1_000;

pub fn run(args: Args, common: Common) -> Result<()> {
    if args.text.is_none() && args.image.is_none() && args.code.is_none() {
        bail!("expected something to search for: give --text, --image or --code");
    }
    ensure!(args.k != Some(0), "expected --k of at least 1, got 0");
    let hashes = args.image.is_some() || args.code.is_some();
    ensure!(
        args.radius.is_none() || hashes,
        "expected --image or --code beside --radius, got neither"
    );
    let purpose = if args.image.is_some() {
        Use::Encode
    } else {
        Use::SearchOnly
    };
    let catalog = Catalog::open(&args.index, purpose, args.model.as_deref(), &args.field)?;
    if !args.trust {
        let mut problems = catalog.index.verify()?.problems;
        problems.extend(verify_segment_checksums(&args.index)?);
        if let Some(problem) = problems.first() {
            bail!("{problem}; restore or rebuild {}", args.index.display());
        }
    }
    if let (Some(path), EncoderSpec::None { .. }) = (&args.image, &catalog.spec) {
        bail!(
            "{}: the index was made from ready codes, so it has no encoder for pictures; search by --code",
            path.display()
        );
    }
    let fields = catalog.fields;
    let code = match (&args.image, &args.code) {
        (Some(path), _) => {
            let code = match read_picture(path) {
                Body::Payload(payload) => catalog.index.encode(fields.code, payload),
                Body::Unreadable(reason) => bail!("{}: {reason}", path.display()),
                _ => bail!("{}: expected a picture", path.display()),
            };
            Some(code.with_context(|| path.display().to_string())?)
        }
        (None, Some(hex)) => Some(HashCode::from_hex(hex)?),
        (None, None) => None,
    };
    let searcher = catalog.index.searcher()?;
    if searcher.num_docs() == 0 {
        output::note(format!(
            "expected documents in {}, found none",
            args.index.display()
        ));
    }
    let all = (searcher.num_docs() as usize).max(1);
    let limit = args
        .k
        .unwrap_or(if args.radius.is_some() { all } else { 10 });
    let window = limit.saturating_add(args.offset).max(LEG_HITS_MIN).min(all);
    let fusion = match args.fusion {
        FusionKind::Rrf => Fusion::default(),
        FusionKind::Linear => Fusion::linear(),
    };
    let mut search = HybridSearch::new()
        .limit(limit)
        .offset(args.offset)
        .fusion(fusion)
        .rank_window(window);
    if let Some(text) = &args.text {
        search = search.leg(Leg::text(catalog.parse(text, catalog.text_fields())?));
    }
    match (&code, args.radius) {
        (Some(code), Some(radius)) => {
            let range = HammingQuery::new(fields.code, code.clone(), radius);
            search = search.rank_window(all).leg(Leg::range(range));
        }
        (Some(code), None) => {
            let k = if args.text.is_some() {
                window
            } else {
                limit.saturating_add(args.offset)
            };
            search = search.leg(Leg::knn(KnnQuery::new(fields.code, code.clone(), k)));
        }
        (None, _) => {}
    }
    if let Some(filter) = &args.filter {
        search = search.filter(catalog.parse(filter, catalog.text_fields())?);
    }
    let result = search.search(&searcher)?;
    let single = result.legs.len() == 1;
    let hits = (args.offset.saturating_add(1)..)
        .zip(&result.hits)
        .map(|(rank, hit)| {
            let leg = hit.legs.iter().flatten().next();
            Ok(Hit {
                rank,
                // One leg needs no fusion: its own score says more than a reciprocal rank.
                score: leg.filter(|_| single).map_or(hit.score, |leg| leg.score),
                distance: hit.legs.iter().flatten().find_map(|leg| leg.distance),
                stored: catalog.record(&searcher, hit.address)?,
                segment: hit.address.segment_ord,
                doc: hit.address.doc_id,
                legs: args.explain.then(|| hit.legs.clone()),
            })
        })
        .collect::<Result<Vec<Hit>>>()?;
    if let Some(k) = args
        .k
        .filter(|&k| result.total < k && result.total < window.max(k))
    {
        output::note(format!(
            "expected {k} hits, found {}: no more documents match",
            result.total
        ));
    }
    let legs: Vec<_> = result
        .legs
        .iter()
        .map(|leg| json!({"name": leg.name, "hits": leg.n_hits, "stats": leg.stats}))
        .collect();
    if common.json {
        let code = code.map(|code| code.to_hex());
        return output::json(
            &json!({"hits": hits, "total": result.total, "legs": legs, "code": code}),
        );
    }
    for hit in &hits {
        let distance = hit
            .distance
            .map(|distance| format!("  distance {distance}"))
            .unwrap_or_default();
        let Stored {
            key, label, text, ..
        } = &hit.stored;
        output::line(format!(
            "{:>3}  {:.4}{distance}  {key}  {label}  {text}",
            hit.rank, hit.score
        ))?;
        for (leg_hit, leg) in hit.legs.iter().flatten().zip(&result.legs) {
            match leg_hit {
                Some(leg_hit) => output::line(format!(
                    "       {}: rank {}, score {:.4}, adds {:.5}",
                    leg.name, leg_hit.rank, leg_hit.score, leg_hit.contribution
                ))?,
                None => output::line(format!("       {}: not found", leg.name))?,
            }
        }
    }
    if args.explain {
        for leg in legs {
            output::line(leg.to_string())?;
        }
    }
    Ok(())
}

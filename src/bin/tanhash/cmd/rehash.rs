//! `tanhash rehash`: an index gets a further hash field, filled by another model.
//!
//! tantivy fixes the schema of an index, so a new index is made: every stored field and every code is copied,
//! and the new field is encoded from the pictures, which an index does not keep and which are read again from
//! where they came from. Documents whose picture is not found there are copied without a new code.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use tanhash::plugin::{
    BuildMode, BuildProgress, BuildRecord, HashIndex, HashPlugin, HashValue, IndexBuilder, Refusal,
};
use tantivy::collector::TopDocs;
use tantivy::query::TermQuery;
use tantivy::schema::{Field, IndexRecordOption, Schema, Value};
use tantivy::{DocAddress, Searcher, TantivyDocument, Term};

use crate::catalog::{Catalog, Layout, Use};
use crate::cmd::Common;
use crate::cmd::index::{BuildArgs, CodesArgs, Summary, keep_or_remove, run_build, value_of};
use crate::records::{Body, Record, Records};

/// Make a new index of an old one, with a further field of codes by another model
#[derive(clap::Args)]
pub struct Args {
    /// The index to start from; it stays as it is
    #[arg(long)]
    index: PathBuf,
    /// What the index was made from: its pictures or vectors are read again, and found by their keys
    #[arg(long, num_args = 1.., required_unless_present = "vectors")]
    input: Vec<PathBuf>,
    #[command(flatten)]
    codes: CodesArgs,
    /// The name of the new hash field
    #[arg(long)]
    field: String,
    /// The directory to make the new index in
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    build: BuildArgs,
    /// Go on with a run that was interrupted
    #[arg(long)]
    resume: bool,
}

/// The old index, and where its fields are in the new one.
struct Old {
    index: HashIndex,
    searcher: Searcher,
    key: Field,
    /// Ordinary fields, old and new.
    fields: Vec<(Field, Field)>,
    /// Hash fields, old and new.
    codes: Vec<(Field, Field)>,
}

impl Old {
    fn open(args: &Args, layout: &Layout, new: &Schema) -> Result<Old> {
        let index = HashIndex::open_in_dir(&args.index, HashPlugin::new())?;
        let schema = index.schema();
        let (mut fields, mut codes) = (Vec::new(), Vec::new());
        for (field, entry) in schema.fields() {
            let name = entry.name();
            let of_new = new.get_field(name)?;
            if layout.codes.iter().any(|(of, _)| of == name) {
                codes.push((field, of_new));
                continue;
            }
            ensure!(
                entry.is_stored(),
                "field `{name}`: expected a stored field, found one whose values are gone; build the index anew \
                 from its input"
            );
            fields.push((field, of_new));
        }
        Ok(Old {
            searcher: index.searcher()?,
            key: index.field("key")?,
            index,
            fields,
            codes,
        })
    }

    /// The live document of a key.
    fn find(searcher: &Searcher, key: Field, name: &str) -> Result<Option<DocAddress>> {
        let query = TermQuery::new(Term::from_field_text(key, name), IndexRecordOption::Basic);
        let top = searcher.search(&query, &TopDocs::with_limit(1).order_by_score())?;
        Ok(top.first().map(|(_, address)| *address))
    }

    /// The stored fields and codes of a document.
    fn copy(&self, address: DocAddress) -> Result<(TantivyDocument, Vec<(Field, HashValue)>)> {
        let old: TantivyDocument = self.searcher.doc(address)?;
        let mut document = TantivyDocument::new();
        for &(from, to) in &self.fields {
            for value in old.get_all(from) {
                document.add_field_value(to, value);
            }
        }
        let mut codes = Vec::new();
        for &(from, to) in &self.codes {
            let code = self.index.code(&self.searcher, from, address)?;
            codes.extend(code.map(|code| (to, HashValue::Code(code))));
        }
        Ok((document, codes))
    }
}

pub fn run(args: Args, common: Common) -> Result<()> {
    let old_layout = Layout::read(&args.index)?;
    let spec = args.codes.spec(common.seed)?;
    let exists = args.out.join("meta.json").is_file();
    let made_dir = !args.out.exists();
    ensure!(
        old_layout.codes.iter().all(|(name, _)| *name != args.field),
        "expected a new name for --field, the index has `{}` already",
        args.field
    );
    let schema = &old_layout.schema;
    // The input is opened before anything is made, so that a wrong path leaves nothing behind.
    let all = args.codes.records(&args.input, schema, 0)?;
    let catalog = if exists && args.resume {
        Catalog::open(&args.out, Use::Encode, None, &args.field)?
    } else {
        let spec =
            spec.context("expected an encoder: give --model F, --encoder phash, --encoder lsh or --encoder-file F")?;
        let mut layout = old_layout.clone();
        for (_, spec) in &mut layout.codes {
            if let Some(file) = spec.file_mut() {
                *file = args.index.join(&file);
            }
        }
        layout.codes.push((args.field.clone(), spec));
        Catalog::create(&args.out, layout, args.resume)?
    };
    let summary = match fill_from(&args, &catalog, &old_layout, all) {
        Ok(summary) => summary,
        Err(error) => return Err(keep_or_remove(error, &catalog, &args.out, made_dir)),
    };
    summary.print(&args.out, common)?;
    summary.check()
}

/// Copies the old index, with the codes of what `all` has of it.
fn fill_from(args: &Args, catalog: &Catalog, old_layout: &Layout, all: Records) -> Result<Summary> {
    let schema = &old_layout.schema;
    let old = Old::open(args, old_layout, &catalog.index.schema())?;
    if let Some(progress) = BuildProgress::of(&old.index)? {
        ensure!(
            progress.finished,
            "{}: expected a finished index, found a build that is not; resume it",
            args.index.display()
        );
    }
    let found = BuildProgress::of(&catalog.index)?;
    let name = |source: &str| format!("{source} for `{}`", args.field);
    let (mode, skip) = match found {
        Some(found) if args.resume && found.source == name(&all.source) => {
            (BuildMode::Resume, found.position)
        }
        Some(_) if args.resume => bail!(
            "expected the input the run was begun with, got another ({})",
            all.source
        ),
        _ if args.resume => (BuildMode::Resume, 0),
        _ => (BuildMode::Start, 0),
    };
    // Entries that are in no old document are passed over, and take a position all the same.
    let records = match skip {
        0 => all,
        skip => args.codes.records(&args.input, schema, skip)?,
    };
    let source = name(&records.source);
    let options = args.build.options(catalog, &args.out, mode, source)?;
    let field = catalog.fields.code;
    let to_record = |record: Record| -> Result<Option<BuildRecord>> {
        let value = value_of(&record);
        let Some(address) = Old::find(&old.searcher, old.key, &record.key)? else {
            return Ok(None);
        };
        let (document, mut values) = old.copy(address)?;
        let has_value = value.is_some();
        values.extend(value.map(|value| (field, value)));
        let refused = match record.body {
            Body::Unreadable(reason) => Some(("read", reason)),
            _ if has_value => None,
            _ => Some((
                "read",
                "expected a picture or a vector, found none".to_owned(),
            )),
        };
        Ok(Some(BuildRecord {
            name: record.key,
            document,
            values,
            refused: refused.map(|(stage, reason)| Refusal {
                stage: stage.to_owned(),
                reason,
                sha256: None,
            }),
        }))
    };
    let rest = |builder: &mut IndexBuilder| add_rest(catalog, &old, builder);
    run_build(catalog, records, options, &args.out, to_record, rest)
}

/// Documents of the old index that the input does not have.
fn add_rest(catalog: &Catalog, old: &Old, builder: &mut IndexBuilder) -> Result<()> {
    // What the input brought is committed here, so that it can be looked up.
    builder.commit()?;
    let (searcher, key) = (catalog.index.searcher()?, catalog.fields.key);
    for (segment, reader) in (0..).zip(old.searcher.segment_readers()) {
        for doc_id in reader.doc_ids_alive() {
            let address = DocAddress::new(segment, doc_id);
            let (document, values) = old.copy(address)?;
            let name = document
                .get_first(key)
                .and_then(|value| value.as_str().map(str::to_owned));
            let name = name.unwrap_or_default();
            if Old::find(&searcher, key, &name)?.is_some() {
                continue;
            }
            builder.add(BuildRecord {
                name,
                document,
                values,
                refused: Some(Refusal {
                    stage: "input".to_owned(),
                    reason: "expected its picture or vector in the input, found none".to_owned(),
                    sha256: None,
                }),
            })?;
        }
    }
    Ok(())
}

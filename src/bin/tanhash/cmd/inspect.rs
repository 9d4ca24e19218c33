//! `tanhash inspect`: what an index is made of.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;
use tanhash::plugin::{HashIndex, HashPlugin};

use crate::cmd::Common;
use crate::output;

/// Show what an index is made of
#[derive(clap::Args)]
pub struct Args {
    /// The index
    #[arg(long)]
    index: PathBuf,
}

pub fn run(args: Args, common: Common) -> Result<()> {
    let index = HashIndex::open_in_dir(&args.index, HashPlugin::new())?;
    let searcher = index.searcher()?;
    let columns = index.columns(&searcher)?;
    let schema = index.schema();
    if common.json {
        return output::json(&json!({
            "index": args.index, "documents": searcher.num_docs(), "schema": schema, "columns": columns,
        }));
    }
    output::line(format!(
        "{} documents in {} segments",
        searcher.num_docs(),
        searcher.segment_readers().len()
    ))?;
    for (_, entry) in schema.fields() {
        output::line(format!(
            "field {:<10} {:?}",
            entry.name(),
            entry.field_type().value_type()
        ))?;
    }
    for column in columns {
        let bytes =
            column.codes_bytes + column.doc_ids_bytes + column.clusters_bytes + column.tables_bytes;
        output::line(format!(
            "segment {} field {}: {} codes of {} bits from {}, {} of {} documents deleted, {bytes} bytes \
             (codes {}, document ids {}, {} clusters {}, {} MIH tables {})",
            column.segment,
            column.field,
            column.n_codes,
            column.bits,
            column.model_id.as_deref().unwrap_or("no named model"),
            column.deleted,
            column.documents,
            column.codes_bytes,
            column.doc_ids_bytes,
            column.clusters.unwrap_or(0),
            column.clusters_bytes,
            column.mih_tables.unwrap_or(0),
            column.tables_bytes,
        ))?;
    }
    Ok(())
}

//! Which document became which, when tantivy renumbers them.
//!
//! tantivy hands its plugins a mapping at merge time, and at flush time of a sorted index, but its
//! contents are private to tantivy. Two ways lead round that, both exact and both by public API:
//! a stacked merge is by definition the live documents of the readers, one reader after the other; any
//! other mapping is read off a scratch column of document addresses that tantivy's own fast fields
//! reorder by the mapping.

use tantivy::columnar::ColumnarReader;
use tantivy::directory::{FileSlice, RamDirectory};
use tantivy::fastfield::{FastFieldsPlugin, FastFieldsWriter};
use tantivy::index::{Index, SegmentComponent, SegmentReader};
use tantivy::indexer::DocIdMapping;
use tantivy::indexer::doc_id_mapping::MappingType;
use tantivy::schema::{FAST, Field, Schema};
use tantivy::tokenizer::TokenizerManager;
use tantivy::{
    DocAddress, PluginMergeContext, SegmentPlugin, SingleSegmentIndexWriter, TantivyDocument,
    TantivyError,
};

const COLUMN: &str = "address";

/// The smallest budget tantivy accepts for a writer.
const SCRATCH_BUDGET_BYTES: usize = 15_000_000;

fn scratch_schema() -> (Schema, Field) {
    let mut builder = Schema::builder();
    let field = builder.add_u64_field(COLUMN, FAST);
    (builder.build(), field)
}

/// The source of each document of the merged segment, in the order of the new ids. Segment ordinals are
/// positions in `ctx.readers`.
pub(crate) fn merge_order(ctx: &PluginMergeContext) -> tantivy::Result<Vec<DocAddress>> {
    match ctx.doc_id_mapping.mapping_type() {
        MappingType::Stacked | MappingType::StackedWithDeletes => {
            let live = (0..).zip(ctx.readers).flat_map(|(segment_ord, reader)| {
                reader.doc_ids_alive().map(move |doc_id| DocAddress {
                    segment_ord,
                    doc_id,
                })
            });
            Ok(live.collect())
        }
        MappingType::Shuffled => shuffled_merge_order(ctx),
    }
}

fn shuffled_merge_order(ctx: &PluginMergeContext) -> tantivy::Result<Vec<DocAddress>> {
    let (schema, field) = scratch_schema();
    // One scratch segment a source, each of as many documents, whose only column says where they are.
    let scratch = (0u64..)
        .zip(ctx.readers)
        .map(|(segment_ord, reader)| {
            let mut writer: SingleSegmentIndexWriter = Index::builder()
                .schema(schema.clone())
                .single_segment_index_writer(RamDirectory::create(), SCRATCH_BUDGET_BYTES)?;
            for doc_id in 0..u64::from(reader.max_doc()) {
                let mut document = TantivyDocument::new();
                document.add_u64(field, segment_ord << 32 | doc_id);
                writer.add_document(document)?;
            }
            let segments = writer.finalize()?.searchable_segments()?;
            let segment = segments.first().ok_or_else(|| {
                TantivyError::InternalError(
                    "a source segment without a document in a merge".to_owned(),
                )
            })?;
            SegmentReader::open(segment)
        })
        .collect::<tantivy::Result<Vec<_>>>()?;
    let target = Index::create_in_ram(schema.clone());
    let target_segment = target.new_segment();
    FastFieldsPlugin.merge(PluginMergeContext {
        readers: &scratch,
        doc_id_mapping: ctx.doc_id_mapping,
        target_segment: &target_segment,
        schema: &schema,
        settings: target.settings(),
    })?;
    let addresses = read_column(target_segment.open_read(SegmentComponent::FastFields)?)?;
    Ok(addresses
        .into_iter()
        .map(|address| DocAddress {
            segment_ord: (address >> 32) as u32,
            doc_id: address as u32,
        })
        .collect())
}

/// The old id of each document of a segment that tantivy sorts while it flushes, by new id.
pub(crate) fn flush_order(max_doc: u32, mapping: &DocIdMapping) -> tantivy::Result<Vec<u32>> {
    let (schema, field) = scratch_schema();
    let mut writer =
        FastFieldsWriter::from_schema_and_tokenizer_manager(&schema, TokenizerManager::new())?;
    for doc_id in 0..u64::from(max_doc) {
        let mut document = TantivyDocument::new();
        document.add_u64(field, doc_id);
        writer.add_document(&document)?;
    }
    let mut bytes = Vec::new();
    writer.serialize(&mut bytes, Some(mapping))?;
    let old_ids = read_column(FileSlice::from(bytes))?;
    if old_ids.len() != max_doc as usize
        || old_ids.iter().any(|&old_id| old_id >= u64::from(max_doc))
    {
        let reason = format!("{} sorted documents of {max_doc}", old_ids.len());
        return Err(TantivyError::InternalError(reason));
    }
    Ok(old_ids.into_iter().map(|old_id| old_id as u32).collect())
}

fn read_column(file: FileSlice) -> tantivy::Result<Vec<u64>> {
    let columnar = ColumnarReader::open(file)?;
    let handles = columnar.read_columns(COLUMN)?;
    let column = handles
        .first()
        .map(|handle| handle.open_u64_lenient())
        .transpose()?
        .flatten();
    let Some(column) = column else {
        if columnar.num_docs() == 0 {
            return Ok(Vec::new());
        }
        return Err(TantivyError::InternalError(
            "the scratch column of addresses is missing".to_owned(),
        ));
    };
    let values: Vec<u64> = (0..columnar.num_docs())
        .filter_map(|row| column.first(row))
        .collect();
    if values.len() != columnar.num_docs() as usize {
        let reason = format!(
            "{} addresses for {} documents",
            values.len(),
            columnar.num_docs()
        );
        return Err(TantivyError::InternalError(reason));
    }
    Ok(values)
}

//! tantivy's side of the plugin: collect the hash fields of a segment, write its file, merge files.
//!
//! An error from a plugin's writer kills tantivy's indexing thread and with it every document since the
//! last commit. So nothing about one document is an error here: a bad value leaves its document without
//! a code and a line in the [report](crate::plugin::IngestReport). Only I/O fails.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;

use tantivy::directory::TerminatingWrite;
use tantivy::index::{Segment, SegmentComponent};
use tantivy::indexer::DocIdMapping;
use tantivy::schema::document::{ErasedDocument, ErasedValue, ReferenceValueLeaf};
use tantivy::schema::{Field, Schema};
use tantivy::{DocId, PluginMergeContext, PluginWriter, PluginWriterContext, SegmentPlugin};

use crate::code::HashCode;
use crate::encode::{EncodeError, Payload, Ticket};
use crate::error::Result;
use crate::plugin::doc_order::{flush_order, merge_order};
use crate::plugin::field::HashFieldOptions;
use crate::plugin::value::{HashValue, TAG_ENCODED};
use crate::plugin::{OpenColumn, PluginState, payload_sha256, plugin_of, refusal, sha256_hex};
use crate::segment::{Column, ColumnSpec, EXTENSION, SegmentWriter};

impl SegmentPlugin for PluginState {
    fn extensions(&self) -> &[&str] {
        &[EXTENSION]
    }

    fn create_writer(&self, ctx: &PluginWriterContext) -> tantivy::Result<Box<dyn PluginWriter>> {
        // The address that was registered with the index leads back to the `Arc` that this is in.
        let plugin = plugin_of(ctx.segment.index()).ok_or_else(|| {
            tantivy::TantivyError::InternalError("the hash plugin of this index is gone".to_owned())
        })?;
        let schema = ctx.segment.schema();
        let fields = HashFieldOptions::all(&schema)?
            .into_iter()
            .map(|(field, options)| FieldWriter::new(&schema, field, options))
            .collect::<Result<Vec<_>>>()?;
        Ok(Box::new(HashPluginWriter {
            plugin,
            fields,
            max_doc: 0,
        }))
    }

    fn merge(&self, ctx: PluginMergeContext) -> tantivy::Result<()> {
        let order = merge_order(&ctx)?;
        let mut columns = Vec::new();
        for (field, options) in HashFieldOptions::all(ctx.schema)? {
            let sources = ctx
                .readers
                .iter()
                .map(|reader| OpenColumn::open_once(self, reader, field, &options))
                .collect::<Result<Vec<_>>>()?;
            let rows = sources
                .iter()
                .map(|source| source.source())
                .collect::<Result<Vec<_>>>()?;
            let mut column = Column::new(options.code_len()?);
            for centroids in rows.iter().filter_map(|source| source.centroids) {
                column.suggest_centroids(centroids)?;
            }
            for (new_id, old) in (0..).zip(&order) {
                let source = &rows[old.segment_ord as usize];
                if let Some(row) = source.row_of(old.doc_id)? {
                    column.push_row(new_id, &source.codes, row);
                }
            }
            columns.push((spec(field, &options)?, column));
        }
        self.write_segment(ctx.target_segment, order.len() as u32, &columns)
    }
}

fn spec(field: Field, options: &HashFieldOptions) -> Result<ColumnSpec> {
    let (code_len, model_id) = (options.code_len()?, options.model_id.clone());
    Ok(ColumnSpec {
        field_id: field.field_id(),
        code_len,
        model_id,
    })
}

impl PluginState {
    fn write_segment(
        &self,
        segment: &Segment,
        max_doc: u32,
        columns: &[(ColumnSpec, Column)],
    ) -> tantivy::Result<()> {
        let out = segment.open_write(SegmentComponent::Custom(EXTENSION.to_owned()))?;
        let mut writer = SegmentWriter::new(out, max_doc, columns.len() as u32)?;
        for (spec, column) in columns {
            writer.add_field(spec, column, self.tables)?;
        }
        // Without `terminate` the file has no footer and cannot be opened.
        writer.finish()?.terminate()?;
        Ok(())
    }
}

/// Collects the hash fields of one segment while tantivy's indexing thread fills it.
struct HashPluginWriter {
    plugin: Arc<PluginState>,
    fields: Vec<FieldWriter>,
    max_doc: u32,
}

/// One hash field of one segment being written.
struct FieldWriter {
    field: Field,
    name: String,
    options: HashFieldOptions,
    spec: ColumnSpec,
    column: Column,
    last_doc: Option<DocId>,
    /// Payloads not yet sent to the encoder, with their documents.
    pending: Vec<(DocId, Payload)>,
    pending_bytes: usize,
    /// Batches at the encoder, oldest first.
    in_flight: VecDeque<InFlight>,
}

struct InFlight {
    documents: Vec<(DocId, Payload)>,
    size_bytes: usize,
    ticket: Ticket,
}

/// Batches a segment keeps at the encoder before it waits: one encoding, one ready to follow.
const BATCHES_IN_FLIGHT: usize = 2;

impl FieldWriter {
    fn new(schema: &Schema, field: Field, options: HashFieldOptions) -> Result<FieldWriter> {
        let spec = spec(field, &options)?;
        Ok(FieldWriter {
            field,
            name: schema.get_field_name(field).to_owned(),
            column: Column::new(spec.code_len),
            options,
            spec,
            last_doc: None,
            pending: Vec::new(),
            pending_bytes: 0,
            in_flight: VecDeque::new(),
        })
    }

    fn add(&mut self, plugin: &PluginState, doc_id: DocId, bytes: &[u8]) {
        let fail = |reason: String| {
            plugin
                .report
                .lock()
                .fail(&self.name, reason, sha256_hex(bytes))
        };
        if self.last_doc == Some(doc_id) {
            return fail(
                "expected one value a document, got a second one, which is ignored".to_owned(),
            );
        }
        self.last_doc = Some(doc_id);
        match HashValue::from_bytes(bytes) {
            Err(error) => fail(error.to_string()),
            Ok(HashValue::Code(code)) => match self.column.push(doc_id, &code) {
                Ok(()) if bytes.first() == Some(&TAG_ENCODED) => plugin.report.lock().encoded += 1,
                Ok(()) => plugin.report.lock().ready += 1,
                Err(error) => fail(error.to_string()),
            },
            Ok(HashValue::Payload(payload)) => {
                let Some(entry) = plugin.entry_for(&self.options) else {
                    let model = self.options.model_id.as_deref().unwrap_or("(none named)");
                    return fail(format!(
                        "expected an encoder of model {model} in the plugin, found none"
                    ));
                };
                self.pending_bytes += payload.size_bytes();
                self.pending.push((doc_id, payload));
                if self.pending.len() >= entry.encoder.max_batch() {
                    self.send(plugin);
                }
            }
        }
    }

    fn send(&mut self, plugin: &PluginState) {
        let documents = std::mem::take(&mut self.pending);
        let size_bytes = std::mem::take(&mut self.pending_bytes);
        let Some(entry) = plugin
            .entry_for(&self.options)
            .filter(|_| !documents.is_empty())
        else {
            return;
        };
        let payloads = documents
            .iter()
            .map(|(_, payload)| payload.clone())
            .collect();
        match entry.service.submit(payloads) {
            Ok(ticket) => self.in_flight.push_back(InFlight {
                documents,
                size_bytes,
                ticket,
            }),
            Err(error) => self.refuse(plugin, &documents, &error.to_string()),
        }
        while self.in_flight.len() > BATCHES_IN_FLIGHT {
            self.receive(plugin);
        }
    }

    /// Waits for the oldest batch.
    fn receive(&mut self, plugin: &PluginState) {
        let Some(InFlight {
            documents, ticket, ..
        }) = self.in_flight.pop_front()
        else {
            return;
        };
        let outcomes = ticket.wait();
        for ((doc_id, payload), outcome) in documents.iter().zip(outcomes) {
            let stored = outcome.and_then(|code: HashCode| {
                self.column
                    .push(*doc_id, &code)
                    .map_err(|error| EncodeError {
                        stage: crate::encode::EncodeStage::Encode,
                        reason: error.to_string(),
                    })
            });
            let mut report = plugin.report.lock();
            match stored {
                Ok(()) => report.encoded += 1,
                Err(error) => report.fail(&self.name, refusal(&error), payload_sha256(payload)),
            }
        }
    }

    fn refuse(&self, plugin: &PluginState, documents: &[(DocId, Payload)], reason: &str) {
        let mut report = plugin.report.lock();
        for (_, payload) in documents {
            report.fail(&self.name, reason.to_owned(), payload_sha256(payload));
        }
    }

    /// Everything encoded, rows in document order.
    fn finish(mut self, plugin: &PluginState) -> (ColumnSpec, Column) {
        self.send(plugin);
        while !self.in_flight.is_empty() {
            self.receive(plugin);
        }
        self.column.sort();
        (self.spec, self.column)
    }
}

impl PluginWriter for HashPluginWriter {
    fn add_document(
        &mut self,
        doc_id: DocId,
        document: &dyn ErasedDocument,
        _schema: &Schema,
    ) -> tantivy::Result<()> {
        self.max_doc = doc_id + 1;
        for (field, value) in document.erased_fields() {
            let Some(writer) = self.fields.iter_mut().find(|writer| writer.field == field) else {
                continue;
            };
            match value {
                ErasedValue::Leaf(ReferenceValueLeaf::Custom(bytes)) => {
                    writer.add(&self.plugin, doc_id, bytes)
                }
                _ => self.plugin.report.lock().fail(
                    &writer.name,
                    "expected a value made by add_code, add_image or add_vector, got another type"
                        .to_owned(),
                    String::new(),
                ),
            }
        }
        Ok(())
    }

    fn serialize(
        self: Box<Self>,
        segment: &Segment,
        mapping: Option<&DocIdMapping>,
    ) -> tantivy::Result<()> {
        let HashPluginWriter {
            plugin,
            fields,
            max_doc,
        } = *self;
        let mut columns: Vec<_> = fields
            .into_iter()
            .map(|field| field.finish(&plugin))
            .collect();
        if let Some(mapping) = mapping {
            let mut new_ids = vec![0; max_doc as usize];
            for (new_id, old_id) in (0..).zip(flush_order(max_doc, mapping)?) {
                new_ids[old_id as usize] = new_id;
            }
            for (_, column) in &mut columns {
                column.renumber(|old_id| new_ids[old_id as usize]);
            }
        }
        plugin.write_segment(segment, max_doc, &columns)
    }

    fn mem_usage(&self) -> usize {
        let in_flight = |field: &FieldWriter| -> usize {
            field.in_flight.iter().map(|batch| batch.size_bytes).sum()
        };
        self.fields
            .iter()
            .map(|field| field.column.mem_usage() + field.pending_bytes + in_flight(field))
            .sum()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

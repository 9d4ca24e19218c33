//! The tantivy plugin: a hash field type, its segment file, its queries, and writers that encode.
//!
//! The only folder that imports tantivy. A [`HashPlugin`] is registered with an index before it is
//! written to; [`HashIndex`] does so by itself. Codes are added with [`HashDocumentExt`], searched with
//! [`KnnQuery`] and [`HammingQuery`], and combined with text by [`HybridSearch`].

mod build;
mod checksums;
mod convert;
mod dedup;
mod directory;
mod doc_order;
mod field;
mod hybrid;
mod index;
mod index_writer;
mod query;
mod segment_plugin;
mod value;

pub use build::{
    BuildMode, BuildOptions, BuildProgress, BuildRecord, IndexBuilder, Refusal, SegmentTarget,
    merge_by_key,
};
pub use checksums::{CHECKSUMS_FILE, verify_checksums, verify_segment_checksums, write_checksums};
pub use dedup::{Dedup, DedupCounts, DedupProgress, Groups, Member, Pair};
pub use directory::HashDirectory;
pub use field::{FIELD_TYPE, HashFieldOptions, SchemaBuilderExt};
pub use hybrid::{
    Fused, Fusion, HybridHit, HybridResult, HybridSearch, Leg, LegHit, LegReport, Missing,
    Normalizer, fuse,
};
pub use index::{ColumnInfo, HashIndex, VerifyReport, merge_indices};
pub use index_writer::{
    BatchOutcome, CodeOutcome, CodeOutcomes, DocumentOutcome, HashIndexWriter, OnBadDocument,
    WriterOptions,
};
pub use query::{DocFilter, HammingHit, HammingQuery, HammingResult, KnnQuery};
pub use value::{HashDocumentExt, HashValue};

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tantivy::SegmentPlugin;
use tantivy::directory::error::OpenReadError;
use tantivy::index::{Index, SegmentComponent, SegmentId, SegmentReader};
use tantivy::schema::{Field, Schema};

use crate::code::hex;
use crate::encode::{EncodeError, Encoder, EncoderService, Payload, ServiceOptions};
use crate::error::{Error, Result};
use crate::segment::{EXTENSION, HashColumn, HashSegment, Integrity, TablePolicy};

/// A handle to the plugin: what is registered with an index, its encoders, its cache of open segments
/// and its report. Clones are the same plugin. One plugin may serve several indexes.
#[derive(Clone)]
pub struct HashPlugin(Arc<PluginState>);

impl fmt::Debug for HashPlugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let models: Vec<&str> = self
            .0
            .encoders
            .iter()
            .map(|entry| entry.encoder.model_id())
            .collect();
        f.debug_struct("HashPlugin")
            .field("encoders", &models)
            .finish_non_exhaustive()
    }
}

impl Default for HashPlugin {
    fn default() -> HashPlugin {
        HashPlugin::new()
    }
}

/// Choices of a [`HashPlugin`]. None changes an answer.
#[derive(Default)]
pub struct HashPluginBuilder {
    encoders: Vec<Arc<dyn Encoder>>,
    tables: TablePolicy,
    integrity: Integrity,
    service: ServiceOptions,
}

impl HashPluginBuilder {
    /// Adds an encoder. It serves every field whose `model_id` is the encoder's.
    pub fn encoder(mut self, encoder: Arc<dyn Encoder>) -> HashPluginBuilder {
        self.encoders.push(encoder);
        self
    }

    /// Which clusters and tables segments are written with.
    pub fn tables(mut self, policy: TablePolicy) -> HashPluginBuilder {
        self.tables = policy;
        self
    }

    /// When checksums of large sections are compared.
    pub fn integrity(mut self, integrity: Integrity) -> HashPluginBuilder {
        self.integrity = integrity;
        self
    }

    /// Batch size, delay and queue bound of each encoder's service.
    pub fn service(mut self, options: ServiceOptions) -> HashPluginBuilder {
        self.service = options;
        self
    }

    /// The plugin, with the service of each encoder running.
    ///
    /// # Errors
    /// `InvalidArgument` for service options that make no sense; `Io` if no thread can be started.
    pub fn build(self) -> Result<HashPlugin> {
        let encoders = self.encoders.into_iter().map(|encoder| {
            let service = EncoderService::new(encoder.clone(), self.service.clone())?;
            Ok(EncoderEntry { service, encoder })
        });
        let state = Arc::new(PluginState {
            encoders: encoders.collect::<Result<_>>()?,
            tables: self.tables,
            integrity: self.integrity,
            segments: Mutex::default(),
            report: Mutex::default(),
        });
        let mut live = LIVE_PLUGINS.lock();
        live.retain(|plugin| plugin.strong_count() > 0);
        live.push(Arc::downgrade(&state));
        Ok(HashPlugin(state))
    }
}

/// Whether an opened segment file stays open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Cached,
    /// For the sources of a merge: their files are about to go, and holding them would keep the disk full.
    Once,
}

pub(crate) struct EncoderEntry {
    pub(crate) encoder: Arc<dyn Encoder>,
    pub(crate) service: EncoderService,
}

pub(crate) struct PluginState {
    encoders: Vec<EncoderEntry>,
    tables: TablePolicy,
    integrity: Integrity,
    /// Open segment files. Re-opening one costs a map and a checksum, so this is speed alone.
    segments: Mutex<HashMap<SegmentId, Arc<HashSegment>>>,
    report: Mutex<IngestReport>,
}

/// tantivy gives a query no way back to the plugin of its index: `SegmentPlugin` cannot be downcast. The
/// address of a registered plugin can be compared with those of the living ones, though, and that finds
/// the cache without asking users to carry a handle into every query.
static LIVE_PLUGINS: Mutex<Vec<Weak<PluginState>>> = Mutex::new(Vec::new());

fn plugin_of(index: &Index) -> Option<Arc<PluginState>> {
    let live = LIVE_PLUGINS.lock();
    index.custom_plugins().iter().find_map(|plugin| {
        let address = Arc::as_ptr(plugin).cast::<()>();
        live.iter()
            .find(|state| state.as_ptr().cast::<()>() == address)
            .and_then(Weak::upgrade)
    })
}

impl HashPlugin {
    /// A plugin without encoders: documents bring ready codes.
    pub fn new() -> HashPlugin {
        HashPlugin::builder()
            .build()
            .expect("a plugin without encoders starts nothing that can fail")
    }

    /// A plugin that encodes pictures and vectors with this encoder.
    ///
    /// # Errors
    /// `Io` if the encoder's thread cannot be started.
    pub fn with_encoder(encoder: Arc<dyn Encoder>) -> Result<HashPlugin> {
        HashPlugin::builder().encoder(encoder).build()
    }

    /// A plugin with choices.
    pub fn builder() -> HashPluginBuilder {
        HashPluginBuilder::default()
    }

    /// What plain tantivy users register: `Index::builder().register_plugin(..)` before creating an index,
    /// `index.register_plugin(..)` after opening one. In a [`HashDirectory`], or searchers may lose the codes
    /// of segments that are merged away.
    pub fn segment_plugin(&self) -> Arc<dyn SegmentPlugin> {
        self.0.clone()
    }

    /// What the plugin has encoded and refused since it was made or last asked to forget.
    pub fn ingest_report(&self) -> IngestReport {
        self.0.report.lock().clone()
    }

    /// Forgets what was reported so far.
    pub fn reset_ingest_report(&self) {
        *self.0.report.lock() = IngestReport::default();
    }

    /// Lets encoders try again that have stopped after failing over and over.
    pub fn reset_encoders(&self) {
        self.0
            .encoders
            .iter()
            .for_each(|entry| entry.service.reset());
    }

    /// The encoder whose model a field names.
    pub fn encoder_for(&self, options: &HashFieldOptions) -> Option<Arc<dyn Encoder>> {
        self.0.entry_for(options).map(|entry| entry.encoder.clone())
    }

    /// Encodes one payload with the encoder of a field, as queries by picture do.
    ///
    /// # Errors
    /// `InvalidArgument` if no encoder serves the field; `Payload` if the payload cannot be encoded.
    pub fn encode(
        &self,
        schema: &Schema,
        field: Field,
        payload: Payload,
    ) -> Result<crate::HashCode> {
        let options = HashFieldOptions::of(schema, field)?;
        let entry = self.0.require_entry(schema, field, &options)?;
        let outcomes = entry.service.submit(vec![payload])?.wait();
        let outcome = outcomes.into_iter().next();
        let outcome = outcome
            .ok_or_else(|| Error::invalid("the encoder answered nothing for one payload"))?;
        outcome.map_err(|error| crate::ErrorKind::Payload(error.to_string()).into())
    }

    /// Open segment files the plugin holds on to.
    pub fn cached_segments(&self) -> usize {
        self.0.segments.lock().len()
    }

    pub(crate) fn state(&self) -> &Arc<PluginState> {
        &self.0
    }
}

impl PluginState {
    pub(crate) fn entry_for(&self, options: &HashFieldOptions) -> Option<&EncoderEntry> {
        let model_id = options.model_id.as_deref()?;
        self.encoders
            .iter()
            .find(|entry| entry.encoder.model_id() == model_id)
    }

    pub(crate) fn require_entry(
        &self,
        schema: &Schema,
        field: Field,
        options: &HashFieldOptions,
    ) -> Result<&EncoderEntry> {
        self.entry_for(options).ok_or_else(|| {
            let models: Vec<&str> = self
                .encoders
                .iter()
                .map(|entry| entry.encoder.model_id())
                .collect();
            Error::invalid(format!(
                "field `{}`: expected an encoder of model {:?}, the plugin has {models:?}",
                schema.get_field_name(field),
                options.model_id.as_deref().unwrap_or("(none named)"),
            ))
        })
    }

    /// The schema's hash fields, and whether this plugin's encoders fit them.
    pub(crate) fn check_schema(&self, schema: &Schema) -> Result<Vec<(Field, HashFieldOptions)>> {
        let fields = HashFieldOptions::all(schema)?;
        for (field, options) in &fields {
            if options.model_id.is_none() || self.encoders.is_empty() {
                continue;
            }
            let entry = self.require_entry(schema, *field, options)?;
            let (expected, got) = (options.code_len()?, entry.encoder.code_len());
            if expected != got {
                return Err(Error::invalid(format!(
                    "field `{}`: expected codes of {expected} bits, model {:?} makes {got}",
                    schema.get_field_name(*field),
                    entry.encoder.model_id(),
                )));
            }
        }
        Ok(fields)
    }

    /// The open segment file of a reader, from the cache or the directory.
    fn segment(&self, reader: &SegmentReader, keep: Keep) -> Result<Arc<HashSegment>> {
        if let Some(segment) = self.segments.lock().get(&reader.segment_id()) {
            return Ok(segment.clone());
        }
        let segment = Arc::new(open_segment(reader, self.integrity)?);
        if keep == Keep::Cached {
            self.segments
                .lock()
                .insert(reader.segment_id(), segment.clone());
        }
        Ok(segment)
    }

    /// Drops cached segments when they outnumber those in use, so that merged-away files are let go.
    pub(crate) fn prune(&self, in_use: &[SegmentReader]) {
        let mut segments = self.segments.lock();
        if segments.len() > 2 * in_use.len() + 64 {
            segments.retain(|id, _| in_use.iter().any(|reader| reader.segment_id() == *id));
        }
    }
}

fn open_segment(reader: &SegmentReader, integrity: Integrity) -> Result<HashSegment> {
    let component = SegmentComponent::Custom(EXTENSION.to_owned());
    let name = format!("{}.{EXTENSION}", reader.segment_id().uuid_string());
    let file = contained(&name, || Ok(reader.open_read(component)))?.map_err(|error| {
        let reason = match &error {
            OpenReadError::FileDoesNotExist(_) => {
                "expected the file, found none; if the segment was merged meanwhile, make a new searcher, and \
                 open the index in a HashDirectory"
                    .to_owned()
            }
            _ => error.to_string(),
        };
        Error::corrupt(name.clone(), reason)
    })?;
    let bytes = file.read_bytes().map_err(|error| Error::io(&name, error))?;
    HashSegment::open(Arc::new(bytes), reader.max_doc(), integrity)
        .map_err(|error| in_file(&name, error))
}

/// Puts the file's name before the section of a `Corrupt` error.
pub(crate) fn in_file(name: &str, error: Error) -> Error {
    match error.kind() {
        crate::ErrorKind::Corrupt { section, reason } if !section.starts_with(name) => {
            Error::corrupt(format!("{name}, {section}"), reason.clone())
        }
        _ => error,
    }
}

/// Runs a call into tantivy that reads files. tantivy 0.27 panics on some damaged ones, such as a file cut
/// to 4 to 7 bytes; here that is an error like any other damage.
pub(crate) fn contained<T>(what: &str, call: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).unwrap_or_else(|_| {
        Err(Error::corrupt(
            what,
            "tantivy gave up on reading it; restore or rebuild it",
        ))
    })
}

/// A segment's hash field, checked against the schema that asks for it.
pub(crate) struct OpenColumn {
    segment: Arc<HashSegment>,
    field_id: u32,
}

impl OpenColumn {
    pub(crate) fn open(
        plugin: Option<&PluginState>,
        reader: &SegmentReader,
        field: Field,
        options: &HashFieldOptions,
    ) -> Result<OpenColumn> {
        let segment = match plugin {
            Some(plugin) => plugin.segment(reader, Keep::Cached)?,
            None => Arc::new(open_segment(reader, Integrity::default())?),
        };
        OpenColumn::of(segment, reader, field, options)
    }

    /// For a merge: does not keep the source open afterwards.
    pub(crate) fn open_once(
        plugin: &PluginState,
        reader: &SegmentReader,
        field: Field,
        options: &HashFieldOptions,
    ) -> Result<OpenColumn> {
        OpenColumn::of(plugin.segment(reader, Keep::Once)?, reader, field, options)
    }

    fn of(
        segment: Arc<HashSegment>,
        reader: &SegmentReader,
        field: Field,
        options: &HashFieldOptions,
    ) -> Result<OpenColumn> {
        let field_id = field.field_id();
        let section = || {
            format!(
                "{}.{EXTENSION}, meta of field {field_id}",
                reader.segment_id().uuid_string()
            )
        };
        let column = segment
            .column(field_id)
            .ok_or_else(|| Error::corrupt(section(), "the field is missing from the segment"))?;
        let (expected, got) = (options.code_len()?, column.code_len());
        if expected != got {
            let reason =
                format!("expected codes of {expected} bits as the schema says, found {got}");
            return Err(Error::corrupt(section(), reason));
        }
        if options.model_id.as_deref() != column.model_id() {
            let (expected, found) = (&options.model_id, column.model_id());
            let reason =
                format!("expected codes of model {expected:?} as the schema says, found {found:?}");
            return Err(Error::corrupt(section(), reason));
        }
        Ok(OpenColumn { segment, field_id })
    }
}

impl OpenColumn {
    /// Says in an error of this column which file it is about.
    pub(crate) fn about(reader: &SegmentReader) -> impl Fn(Error) -> Error {
        move |error| {
            let name = format!("{}.{EXTENSION}", reader.segment_id().uuid_string());
            in_file(&name, error)
        }
    }
}

impl std::ops::Deref for OpenColumn {
    type Target = HashColumn;

    fn deref(&self) -> &HashColumn {
        self.segment
            .column(self.field_id)
            .expect("checked when it was opened")
    }
}

/// What became of the values of hash fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IngestReport {
    /// Ready codes stored.
    pub ready: u64,
    /// Payloads encoded and stored.
    pub encoded: u64,
    /// Values refused; their documents are indexed without a code.
    pub failed: u64,
    /// The first [`IngestReport::FAILURES_KEPT`] refusals.
    pub failures: Vec<IngestFailure>,
}

/// One refused value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IngestFailure {
    /// The hash field.
    pub field: String,
    /// What was expected and what was found.
    pub reason: String,
    /// SHA-256 of the payload in hexadecimal, to find it again.
    pub sha256: String,
}

impl IngestReport {
    /// Refusals kept with their reason; later ones are only counted.
    pub const FAILURES_KEPT: usize = 100;

    pub(crate) fn fail(&mut self, field: &str, reason: String, sha256: String) {
        self.failed += 1;
        if self.failures.len() < Self::FAILURES_KEPT {
            self.failures.push(IngestFailure {
                field: field.to_owned(),
                reason,
                sha256,
            });
        }
    }
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn payload_sha256(payload: &Payload) -> String {
    match payload {
        Payload::Image(bytes) => sha256_hex(bytes),
        Payload::Vector(values) => {
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            sha256_hex(&bytes)
        }
    }
}

/// One line for an encoder's refusal.
pub(crate) fn refusal(error: &EncodeError) -> String {
    error.to_string()
}

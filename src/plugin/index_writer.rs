//! A writer that encodes: pictures and vectors become codes before tantivy's queue sees the document.
//!
//! The difference to handing payloads to `tantivy::IndexWriter`: the caller learns at once what became of
//! each document, eight bytes wait in the queue instead of a picture, a failed commit is rolled back
//! instead of silently losing what follows, and a commit is on disk, directory included, when it returns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockUpgradableReadGuard};
use smallvec::SmallVec;
use tantivy::index::SegmentId;
use tantivy::indexer::UserOperation;
use tantivy::merge_policy::{MergeCandidate, MergePolicy, NoMergePolicy};
use tantivy::query::Query;
use tantivy::schema::document::{OwnedValue, Value};
use tantivy::schema::{Field, FieldEntry, FieldType, Schema};
use tantivy::{Directory, IndexWriter, Opstamp, SegmentMeta, TantivyDocument, Term};

use crate::code::HashCode;
use crate::encode::{EncodeError, EncodeStage, Payload, Ticket};
use crate::error::{Error, ErrorKind, Result};
use crate::plugin::field::HashFieldOptions;
use crate::plugin::index::HashIndex;
use crate::plugin::value::{HashDocumentExt, HashValue, add_encoded, ready_len};
use crate::plugin::{HashPlugin, payload_sha256, refusal, sha256_hex};

/// Threads, memory and what to do with bad documents.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// Indexing threads of tantivy. 0 means one a core, at most 8.
    pub num_threads: usize,
    /// Bytes all indexing threads together may hold before they write a segment.
    pub memory_budget_bytes: usize,
    /// What becomes of a document whose picture or vector cannot be encoded.
    pub on_bad_document: OnBadDocument,
}

impl Default for WriterOptions {
    fn default() -> WriterOptions {
        WriterOptions {
            num_threads: 0,
            memory_budget_bytes: 256 << 20,
            on_bad_document: OnBadDocument::default(),
        }
    }
}

/// What becomes of a document with a value that cannot be encoded or stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnBadDocument {
    /// It is indexed without a code, found by text, and reported.
    #[default]
    Quarantine,
    /// It is not indexed, and reported.
    Skip,
    /// Nothing of the call is indexed, and the call fails.
    Fail,
}

/// What became of one value of a hash field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CodeOutcome {
    /// A ready code was taken.
    Ready,
    /// A payload was encoded.
    Encoded,
    /// There is no code; the text says what was expected and what was found.
    Failed(String),
}

/// What became of one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentOutcome {
    /// tantivy's stamp, or `None` if the document was not indexed.
    pub opstamp: Option<Opstamp>,
    /// One entry a value of a hash field.
    pub codes: CodeOutcomes,
}

/// What became of the values of a document's hash fields. A slice of pairs, which for one field needs no
/// allocation.
pub type CodeOutcomes = SmallVec<[(Field, CodeOutcome); 1]>;

impl DocumentOutcome {
    /// The first reason why a value has no code.
    pub fn failure(&self) -> Option<&str> {
        self.codes.iter().find_map(|(_, outcome)| match outcome {
            CodeOutcome::Failed(reason) => Some(reason.as_str()),
            _ => None,
        })
    }
}

/// What became of the documents of one call, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchOutcome {
    /// One entry a document.
    pub documents: Vec<DocumentOutcome>,
}

impl BatchOutcome {
    /// Documents that are indexed, with or without a code.
    pub fn n_indexed(&self) -> usize {
        self.documents
            .iter()
            .filter(|document| document.opstamp.is_some())
            .count()
    }

    /// Positions and reasons of the documents that lack a code.
    pub fn failures(&self) -> impl Iterator<Item = (usize, &str)> {
        let failure = |(idx, document)| Some((idx, DocumentOutcome::failure(document)?));
        self.documents.iter().enumerate().filter_map(failure)
    }
}

enum State {
    Open(IndexWriter),
    /// A call failed in a way that lost documents since the last commit; `rollback` repairs it.
    Failed(IndexWriter, String),
    /// A rollback failed as well; the writer's lock is gone.
    Closed(String),
}

/// Adds, replaces and deletes documents. Shared by reference between threads; `commit` waits for calls
/// that began before it.
pub struct HashIndexWriter {
    state: RwLock<State>,
    /// tantivy takes its stamps before it queues a deletion, and applies queued deletions in their order:
    /// two threads between those steps could delete what was added after. One call at a time keeps the
    /// order of stamps and queue the same.
    order: Mutex<()>,
    /// tantivy forgets it in a rollback.
    merge_policy: Mutex<Arc<dyn MergePolicy>>,
    schema: Schema,
    plugin: HashPlugin,
    fields: Vec<(Field, HashFieldOptions)>,
    on_bad_document: OnBadDocument,
}

impl std::fmt::Debug for HashIndexWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HashIndexWriter")
            .field("fields", &self.fields)
            .finish_non_exhaustive()
    }
}

/// A document whose payloads are with the encoder.
struct Prepared {
    document: TantivyDocument,
    codes: PreparedCodes,
    /// What its values take, about.
    size_bytes: usize,
}

enum PreparedCodes {
    /// The document still holds its codes, each of them ready.
    InPlace(CodeOutcomes),
    /// The document holds everything but the values of hash fields.
    Taken(Vec<(Field, PreparedCode)>),
}

enum PreparedCode {
    Code(HashCode),
    /// Position among the payloads sent for the field.
    Payload(usize),
    Refused(String),
}

/// A field, its payloads, and what became of each.
type Encoded = (
    Field,
    Vec<Payload>,
    Vec<std::result::Result<HashCode, EncodeError>>,
);

/// A document that is ready for tantivy.
struct Finished {
    document: TantivyDocument,
    outcomes: CodeOutcomes,
    size_bytes: usize,
}

/// Documents that go to tantivy in one call.
#[derive(Default)]
struct Call {
    /// Positions among the outcomes of the batch, one a document.
    positions: SmallVec<[usize; CALL_DOCUMENTS]>,
    documents: SmallVec<[UserOperation; CALL_DOCUMENTS]>,
    size_bytes: usize,
}

impl Call {
    fn has_room(&self, size_bytes: usize) -> bool {
        self.documents.len() < CALL_DOCUMENTS && self.size_bytes + size_bytes <= CALL_BYTES
    }

    fn push(&mut self, position: usize, document: TantivyDocument, size_bytes: usize) {
        self.positions.push(position);
        self.documents.push(UserOperation::Add(document));
        self.size_bytes += size_bytes;
    }

    /// Adds the documents, and notes their stamps, which come one after the other before the one that
    /// tantivy returns.
    fn run(
        &mut self,
        writer: &IndexWriter,
        outcomes: &mut [DocumentOutcome],
    ) -> tantivy::Result<()> {
        if self.documents.is_empty() {
            return Ok(());
        }
        self.size_bytes = 0;
        let n = self.documents.len() as Opstamp;
        let end = writer.run(std::mem::take(&mut self.documents))?;
        for (stamp, position) in (end - n..end).zip(self.positions.drain(..)) {
            outcomes[position].opstamp = Some(stamp);
        }
        Ok(())
    }
}

/// Documents whose payloads are with the encoder.
struct Submitted {
    prepared: Vec<Prepared>,
    /// One entry a document.
    keys: Vec<Option<Term>>,
    tickets: Vec<(Field, Vec<Payload>, Ticket)>,
}

/// Documents, and bytes of payloads, that [`HashIndexWriter::add_stream`] adds at once.
const GROUP_DOCUMENTS: usize = 512;
const GROUP_BYTES: usize = 8_000_000;

/// tantivy bounds its queue by 10,000 calls, whatever comes in each. A call wakes an indexing thread, so small
/// documents go together, as many as a call carries without an allocation, and the queue stays below 10 MB.
const CALL_DOCUMENTS: usize = 4;
const CALL_BYTES: usize = 1_000;

/// The payloads of one field of one call.
struct FieldBatch {
    field: Field,
    payloads: Vec<Payload>,
}

impl HashIndexWriter {
    pub(crate) fn new(index: &HashIndex, options: WriterOptions) -> Result<HashIndexWriter> {
        let schema = index.schema();
        let fields = index.plugin().state().check_schema(&schema)?;
        let available = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        let num_threads = match options.num_threads {
            0 => available.min(8),
            threads => threads,
        };
        // tantivy refuses less than 15 MB a thread, so fewer threads share a small budget.
        let num_threads = num_threads.min((options.memory_budget_bytes / 15_000_000).max(1));
        // Nor does it take more than 4 GB a thread.
        let budget = options
            .memory_budget_bytes
            .min(num_threads.saturating_mul((4 << 30) - (2 << 20)));
        let writer: IndexWriter = index.writer_with_num_threads(num_threads, budget)?;
        pass_last_stamp(&writer)?;
        Ok(HashIndexWriter {
            merge_policy: Mutex::new(writer.get_merge_policy()),
            state: RwLock::new(State::Open(writer)),
            order: Mutex::new(()),
            schema,
            plugin: index.plugin().clone(),
            fields,
            on_bad_document: options.on_bad_document,
        })
    }

    /// Adds a document.
    ///
    /// # Errors
    /// As [`add_documents`](Self::add_documents).
    pub fn add_document(&self, document: TantivyDocument) -> Result<DocumentOutcome> {
        let mut outcome = self.add_documents(vec![document])?;
        outcome
            .documents
            .pop()
            .ok_or_else(|| Error::invalid("one document has one outcome"))
    }

    /// Adds documents; their pictures and vectors are encoded in batches first. One bad value never costs
    /// another document.
    ///
    /// # Errors
    /// `InvalidArgument` if a value needs an encoder that the plugin lacks or an ordinary field gets a value
    /// of another type; `Payload` under [`OnBadDocument::Fail`]; in all three cases nothing is indexed.
    /// `Tantivy` or `Io` if tantivy lost
    /// documents, after which the writer refuses calls until [`rollback`](Self::rollback).
    pub fn add_documents(&self, documents: Vec<TantivyDocument>) -> Result<BatchOutcome> {
        self.add(documents, None)
    }

    /// Adds documents, each in place of those with the same key: the value of `key`, an indexed field
    /// that every document has once. Replacing is one step: no reader sees both or neither.
    ///
    /// # Errors
    /// As [`add_documents`](Self::add_documents); `InvalidArgument` if the field cannot be a key or a
    /// document lacks it.
    pub fn upsert_documents(
        &self,
        key: Field,
        documents: Vec<TantivyDocument>,
    ) -> Result<BatchOutcome> {
        self.check_key(key)?;
        self.add(documents, Some(key))
    }

    /// Adds documents as they come: while some are indexed, the next are at the encoder and the ones after
    /// are read. Each group of documents is added as by [`add_documents`](Self::add_documents), or by
    /// [`upsert_documents`](Self::upsert_documents) where there is a `key`, and `done` gets its outcome, in
    /// order. A group has at most 512 documents and 8 MB of payloads, so a stream of any length takes the
    /// memory of three groups. Returns the number of documents that are indexed.
    ///
    /// A document is added when `done` hears of it, so a `commit` on another thread may leave out some that
    /// were taken from the iterator.
    ///
    /// # Errors
    /// As the calls it stands for, with what went before added; and the first error of `done`.
    pub fn add_stream(
        &self,
        key: Option<Field>,
        documents: impl IntoIterator<Item = TantivyDocument>,
        mut done: impl FnMut(BatchOutcome) -> Result<()>,
    ) -> Result<u64> {
        if let Some(key) = key {
            self.check_key(key)?;
        }
        let mut documents = documents.into_iter();
        let mut n_indexed = 0;
        let mut waiting: Option<Submitted> = None;
        loop {
            let group = self.group(&mut documents);
            let submitted = match group.is_empty() {
                true => None,
                false => Some(self.submit(group, key)),
            };
            let ended = submitted.is_none();
            if let Some(earlier) = waiting.take() {
                let outcome = self.finish(earlier)?;
                n_indexed += outcome.n_indexed() as u64;
                done(outcome)?;
            }
            if ended {
                return Ok(n_indexed);
            }
            waiting = submitted.transpose()?;
        }
    }

    fn group(&self, documents: &mut impl Iterator<Item = TantivyDocument>) -> Vec<TantivyDocument> {
        let mut group = Vec::new();
        let mut payload_bytes = 0;
        while group.len() < GROUP_DOCUMENTS && payload_bytes < GROUP_BYTES {
            let Some(document) = documents.next() else {
                break;
            };
            for (field, _) in &self.fields {
                let values = document.get_all(*field);
                payload_bytes += values
                    .filter_map(|value| value.as_custom())
                    .map(<[u8]>::len)
                    .sum::<usize>();
            }
            group.push(document);
        }
        group
    }

    fn add(&self, documents: Vec<TantivyDocument>, key: Option<Field>) -> Result<BatchOutcome> {
        self.finish(self.submit(documents, key)?)
    }

    /// Looks through documents and hands their payloads to the encoder.
    fn submit(&self, documents: Vec<TantivyDocument>, key: Option<Field>) -> Result<Submitted> {
        let mut sizes = Vec::with_capacity(documents.len());
        for (idx, document) in documents.iter().enumerate() {
            let size_bytes = self.check_types(document).map_err(|reason| {
                let n = documents.len();
                Error::invalid(format!(
                    "document {idx} of {n}: {reason}; nothing was added"
                ))
            })?;
            sizes.push(size_bytes);
        }
        let keys = match key {
            None => vec![None; documents.len()],
            Some(key) => {
                let terms = documents
                    .iter()
                    .map(|document| self.key_of(key, document).map(Some));
                terms.collect::<Result<_>>()?
            }
        };
        let mut batches: Vec<FieldBatch> = Vec::new();
        let prepared = documents
            .into_iter()
            .zip(sizes)
            .map(|(document, size_bytes)| self.prepare(document, size_bytes, &mut batches))
            .collect::<Result<Vec<_>>>()?;
        let tickets = batches
            .into_iter()
            .map(|FieldBatch { field, payloads }| {
                let (_, options) = self.field_options(field)?;
                let entry = self
                    .plugin
                    .state()
                    .require_entry(&self.schema, field, options)?;
                Ok((field, payloads.clone(), entry.service.submit(payloads)?))
            })
            .collect::<Result<Vec<(Field, Vec<Payload>, Ticket)>>>()?;
        Ok(Submitted {
            prepared,
            keys,
            tickets,
        })
    }

    /// Waits for the codes, and indexes.
    fn finish(&self, submitted: Submitted) -> Result<BatchOutcome> {
        let Submitted {
            prepared,
            keys,
            tickets,
        } = submitted;
        let mut encoded = Vec::new();
        for (field, payloads, ticket) in tickets {
            let outcomes = ticket.wait();
            // Not tried is not bad: nothing may be replaced by a document without its code on that ground.
            let stopped = outcomes.iter().flat_map(|outcome| outcome.as_ref().err());
            if let Some(error) = { stopped }.find(|error| error.stage == EncodeStage::Stopped) {
                let message = format!("{error}; nothing was added");
                return Err(ErrorKind::Encoder(message).into());
            }
            encoded.push((field, payloads, outcomes));
        }
        let finished: Vec<Finished> = prepared
            .into_iter()
            .map(|prepared| self.take_codes(prepared, &encoded))
            .collect();

        if self.on_bad_document == OnBadDocument::Fail {
            let reason = |codes: &[(Field, CodeOutcome)]| {
                codes.iter().find_map(|(_, outcome)| match outcome {
                    CodeOutcome::Failed(reason) => Some(reason.clone()),
                    _ => None,
                })
            };
            let bad = finished
                .iter()
                .enumerate()
                .find_map(|(idx, finished)| Some((idx, reason(&finished.outcomes)?)));
            if let Some((idx, reason)) = bad {
                let message = format!(
                    "document {idx} of {}: {reason}; nothing was added",
                    finished.len()
                );
                return Err(ErrorKind::Payload(message).into());
            }
        }
        let skip_bad = self.on_bad_document == OnBadDocument::Skip;
        let mut batch = BatchOutcome {
            documents: Vec::with_capacity(finished.len()),
        };
        self.with_writer(|writer| {
            let mut call = Call::default();
            for (finished, term) in finished.into_iter().zip(keys) {
                let mut outcome = DocumentOutcome {
                    opstamp: None,
                    codes: finished.outcomes,
                };
                let is_added = !skip_bad || outcome.failure().is_none();
                match term {
                    _ if !is_added => {}
                    None => {
                        if !call.has_room(finished.size_bytes) {
                            call.run(writer, &mut batch.documents)?;
                        }
                        call.push(
                            batch.documents.len(),
                            finished.document,
                            finished.size_bytes,
                        );
                    }
                    Some(term) => {
                        let replace = [
                            UserOperation::Delete(term),
                            UserOperation::Add(finished.document),
                        ];
                        outcome.opstamp = Some(writer.run(replace)?);
                    }
                }
                batch.documents.push(outcome);
            }
            call.run(writer, &mut batch.documents)
        })?;
        Ok(batch)
    }

    /// Puts the codes into a document whose payloads are encoded.
    fn take_codes(&self, prepared: Prepared, encoded: &[Encoded]) -> Finished {
        let mut document = prepared.document;
        let taken = match prepared.codes {
            PreparedCodes::Taken(taken) => taken,
            PreparedCodes::InPlace(outcomes) => {
                return Finished {
                    document,
                    outcomes,
                    size_bytes: prepared.size_bytes,
                };
            }
        };
        let mut outcomes = CodeOutcomes::new();
        for (field, code) in taken {
            let outcome = match code {
                PreparedCode::Code(code) => {
                    document.add_code(field, &code);
                    CodeOutcome::Ready
                }
                PreparedCode::Refused(reason) => CodeOutcome::Failed(reason),
                PreparedCode::Payload(position) => {
                    let found = encoded.iter().find(|(of, _, _)| *of == field);
                    let found = found.and_then(|(_, payloads, codes)| {
                        Some((payloads.get(position)?, codes.get(position)?))
                    });
                    match found {
                        Some((_, Ok(code))) => {
                            add_encoded(&mut document, field, code);
                            CodeOutcome::Encoded
                        }
                        Some((payload, Err(error))) => {
                            let sha256 = payload_sha256(payload);
                            self.report_failure(field, refusal(error), sha256);
                            CodeOutcome::Failed(refusal(error))
                        }
                        None => CodeOutcome::Failed("the encoder gave no answer".to_owned()),
                    }
                }
            };
            outcomes.push((field, outcome));
        }
        Finished {
            document,
            outcomes,
            size_bytes: prepared.size_bytes,
        }
    }

    /// The bytes that the values of a document take, about.
    ///
    /// A value of another type than its field would kill tantivy's indexing thread, and with it every
    /// document since the last commit, so it is refused before tantivy sees it.
    fn check_types(&self, document: &TantivyDocument) -> std::result::Result<usize, String> {
        let mut size_bytes = 0;
        for (field, value) in document.field_values() {
            if field.field_id() as usize >= self.schema.num_fields() {
                return Err(format!(
                    "expected fields of the schema, got field {}",
                    field.field_id()
                ));
            }
            let entry = self.schema.get_field_entry(field);
            let small = |fits: bool| fits.then_some(8);
            // Nobody counts what is in these.
            let large = |fits: bool| fits.then_some(CALL_BYTES);
            let found = match entry.field_type() {
                FieldType::Str(_) => match value.as_str() {
                    Some(text) => Some(text.len()),
                    None => large(value.as_pre_tokenized_text().is_some()),
                },
                FieldType::U64(_) => small(value.as_u64().is_some()),
                FieldType::I64(_) => small(value.as_i64().is_some()),
                FieldType::F64(_) => small(value.as_f64().is_some()),
                FieldType::Bool(_) => small(value.as_bool().is_some()),
                FieldType::Date(_) => small(value.as_datetime().is_some()),
                FieldType::Facet(_) => large(value.as_facet().is_some()),
                FieldType::Bytes(_) => value.as_bytes().map(<[u8]>::len),
                FieldType::IpAddr(_) => small(value.as_ip_addr().is_some()),
                FieldType::JsonObject(_) => {
                    large(value.as_object().is_some() && json_fits(&value.as_value().into(), 0))
                }
                FieldType::Custom(_) => value.as_custom().map(<[u8]>::len),
                _ => large(true),
            };
            size_bytes += found.ok_or_else(|| {
                let (name, expected) = (entry.name(), entry.field_type().value_type());
                let got = kind_of(&value.as_value().into());
                format!("field `{name}`: expected a value of type {expected:?}, got {got}")
            })?;
        }
        Ok(size_bytes)
    }

    fn field_options(&self, field: Field) -> Result<&(Field, HashFieldOptions)> {
        let found = self.fields.iter().find(|(of, _)| *of == field);
        found.ok_or_else(|| Error::invalid(format!("field {} is no hash field", field.field_id())))
    }

    /// Takes the values of hash fields out of a document.
    fn prepare(
        &self,
        document: TantivyDocument,
        size_bytes: usize,
        batches: &mut Vec<FieldBatch>,
    ) -> Result<Prepared> {
        let is_hash = |field: Field| self.fields.iter().any(|(of, _)| *of == field);
        // Nothing is copied where nothing is to be replaced.
        if let Some(outcomes) = self.ready_codes(&document) {
            return Ok(Prepared {
                document,
                codes: PreparedCodes::InPlace(outcomes),
                size_bytes,
            });
        }
        let mut rest = TantivyDocument::new();
        let mut codes: Vec<(Field, PreparedCode)> = Vec::new();
        for (field, value) in document.field_values() {
            if !is_hash(field) {
                rest.add_field_value(field, value);
                continue;
            }
            let bytes = value.as_custom().unwrap_or_default();
            let code = self.prepare_value(field, bytes, &codes, batches)?;
            if let PreparedCode::Refused(reason) = &code {
                self.report_failure(field, reason.clone(), sha256_hex(bytes));
            }
            codes.push((field, code));
        }
        Ok(Prepared {
            document: rest,
            codes: PreparedCodes::Taken(codes),
            size_bytes,
        })
    }

    /// The hash fields of a document, if each has one ready code of the right length.
    fn ready_codes(&self, document: &TantivyDocument) -> Option<CodeOutcomes> {
        let mut codes = CodeOutcomes::new();
        for (field, value) in document.field_values() {
            let Some((_, options)) = self.fields.iter().find(|(of, _)| *of == field) else {
                continue;
            };
            let is_ready = ready_len(value.as_custom()?)?.bits() == options.bits;
            if !is_ready || codes.iter().any(|(of, _)| *of == field) {
                return None;
            }
            codes.push((field, CodeOutcome::Ready));
        }
        Some(codes)
    }

    fn prepare_value(
        &self,
        field: Field,
        bytes: &[u8],
        earlier: &[(Field, PreparedCode)],
        batches: &mut Vec<FieldBatch>,
    ) -> Result<PreparedCode> {
        let (_, options) = self.field_options(field)?;
        if earlier.iter().any(|(of, _)| *of == field) {
            let reason = "expected one value a document, got a second one, which is ignored";
            return Ok(PreparedCode::Refused(reason.to_owned()));
        }
        match HashValue::from_bytes(bytes) {
            Err(error) => Ok(PreparedCode::Refused(error.to_string())),
            Ok(HashValue::Code(code)) => match options.code_len()?.check(code.code_len()) {
                Ok(()) => Ok(PreparedCode::Code(code)),
                Err(error) => Ok(PreparedCode::Refused(error.to_string())),
            },
            Ok(HashValue::Payload(payload)) => {
                self.plugin
                    .state()
                    .require_entry(&self.schema, field, options)?;
                let batch = match batches.iter_mut().position(|batch| batch.field == field) {
                    Some(position) => &mut batches[position],
                    None => {
                        batches.push(FieldBatch {
                            field,
                            payloads: Vec::new(),
                        });
                        batches.last_mut().expect("just pushed")
                    }
                };
                batch.payloads.push(payload);
                Ok(PreparedCode::Payload(batch.payloads.len() - 1))
            }
        }
    }

    fn report_failure(&self, field: Field, reason: String, sha256: String) {
        let name = self.schema.get_field_name(field);
        self.plugin.state().report.lock().fail(name, reason, sha256);
    }

    /// A key is looked up as one exact term.
    pub(crate) fn check_key(&self, key: Field) -> Result<()> {
        if key.field_id() as usize >= self.schema.num_fields() {
            return Err(Error::invalid(format!(
                "field {} is not in the schema",
                key.field_id()
            )));
        }
        let entry = self.schema.get_field_entry(key);
        let exact = match entry.field_type() {
            FieldType::Str(options) => options
                .get_indexing_options()
                .is_some_and(|indexing| indexing.tokenizer() == "raw"),
            FieldType::U64(_) | FieldType::I64(_) | FieldType::Bytes(_) => entry.is_indexed(),
            // A facet is found by its ancestors too, so it names no single document.
            _ => false,
        };
        if exact {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "field `{}`: expected a key, that is an indexed u64, i64, bytes or untokenized (STRING) field",
            entry.name()
        )))
    }

    pub(crate) fn key_of(&self, key: Field, document: &TantivyDocument) -> Result<Term> {
        let mut values = document.get_all(key);
        let name = self.schema.get_field_name(key);
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(Error::invalid(format!(
                "field `{name}`: expected one key in every document"
            )));
        };
        let value: OwnedValue = value.as_value().into();
        match value {
            // tantivy drops longer terms in silence.
            OwnedValue::Str(text) if text.len() > KEY_BYTES_MAX => Err(Error::invalid(format!(
                "field `{name}`: expected a key of at most {KEY_BYTES_MAX} bytes, got {}",
                text.len()
            ))),
            OwnedValue::Bytes(bytes) if bytes.len() > KEY_BYTES_MAX => {
                Err(Error::invalid(format!(
                    "field `{name}`: expected a key of at most {KEY_BYTES_MAX} bytes, got {}",
                    bytes.len()
                )))
            }
            OwnedValue::Str(text) => Ok(Term::from_field_text(key, &text)),
            OwnedValue::U64(value) => Ok(Term::from_field_u64(key, value)),
            OwnedValue::I64(value) => Ok(Term::from_field_i64(key, value)),
            OwnedValue::Bytes(bytes) => Ok(Term::from_field_bytes(key, &bytes)),
            other => Err(Error::invalid(format!(
                "field `{name}`: expected a key, got {}",
                kind_of(&other)
            ))),
        }
    }

    /// Deletes the documents with a term.
    ///
    /// # Errors
    /// `InvalidArgument` for a field whose terms are not indexed, where tantivy would delete nothing;
    /// `Tantivy` if the writer must be rolled back first.
    pub fn delete_term(&self, term: Term) -> Result<Opstamp> {
        let entry = (self.schema.fields())
            .find(|(field, _)| *field == term.field())
            .map(|(_, entry)| entry);
        if !entry.is_some_and(FieldEntry::is_indexed) {
            let name = entry.map_or("of another schema", FieldEntry::name);
            return Err(Error::invalid(format!(
                "expected a term of an indexed field, got field `{name}`"
            )));
        }
        self.with_writer(|writer| Ok(writer.delete_term(term)))
    }

    /// Deletes the documents that match a query, such as a [`HammingQuery`](crate::plugin::HammingQuery).
    ///
    /// # Errors
    /// `InvalidArgument` for a query that needs a searcher, as k-NN does; as
    /// [`delete_term`](Self::delete_term).
    pub fn delete_query(&self, query: Box<dyn Query>) -> Result<Opstamp> {
        let state = self.state.read();
        match &*state {
            State::Open(writer) => {
                let _order = self.order.lock();
                Ok(writer.delete_query(query)?)
            }
            State::Failed(_, reason) | State::Closed(reason) => Err(failed(reason)),
        }
    }

    /// Runs a call on the open writer. If tantivy fails there, it has lost documents, and the writer is
    /// closed for everything but a rollback.
    fn with_writer<T>(&self, call: impl FnOnce(&IndexWriter) -> tantivy::Result<T>) -> Result<T> {
        // Upgradable, so that nobody rolls back between the failure and the mark it leaves.
        let state = self.state.upgradable_read();
        let error = match &*state {
            State::Open(writer) => {
                let _order = self.order.lock();
                match call(writer) {
                    Ok(value) => return Ok(value),
                    Err(error) => error,
                }
            }
            State::Failed(_, reason) | State::Closed(reason) => return Err(failed(reason)),
        };
        let mut state = RwLockUpgradableReadGuard::upgrade(state);
        *state = match std::mem::replace(&mut *state, State::Closed(error.to_string())) {
            State::Open(writer) => State::Failed(writer, error.to_string()),
            other => other,
        };
        Err(error.into())
    }

    /// Makes everything added and deleted so far visible and durable: the data and the directory are
    /// synced when it returns. If it fails, everything since the last commit is rolled back and the
    /// writer goes on from the last commit.
    ///
    /// # Errors
    /// What failed. `Io` if only the last sync did: the commit is visible, and may not survive a power
    /// loss.
    pub fn commit(&self) -> Result<Opstamp> {
        self.commit_with(None)
    }

    /// As [`commit`](Self::commit), with a text that is stored with the commit: both are there, or
    /// neither. tantivy keeps it through merges, until the next commit; `Index::load_metas` reads it.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn commit_with_payload(&self, payload: &str) -> Result<Opstamp> {
        self.commit_with(Some(payload))
    }

    fn commit_with(&self, payload: Option<&str>) -> Result<Opstamp> {
        let commit = |writer: &mut IndexWriter| {
            let mut prepared = writer.prepare_commit()?;
            if let Some(payload) = payload {
                prepared.set_payload(payload);
            }
            prepared.commit()
        };
        let mut state = self.state.write();
        match &mut *state {
            State::Open(writer) => match commit(writer) {
                Ok(opstamp) => {
                    // tantivy syncs the directory before it renames meta.json, not after.
                    let directory = writer.index().directory();
                    directory.sync_directory().map_err(|error| {
                        let message = format!(
                            "commit {opstamp} is visible, syncing its directory failed: {error}"
                        );
                        Error::new(ErrorKind::Io(message)).with_source(error)
                    })?;
                    Ok(opstamp)
                }
                Err(error) => {
                    let reason = error.to_string();
                    self.roll_back(&mut state, &reason)?;
                    Err(Error::from(error))
                }
            },
            State::Failed(_, reason) => {
                let reason = reason.clone();
                self.roll_back(&mut state, &reason)?;
                let message = format!(
                    "{reason}; everything since the last commit was rolled back, add it again"
                );
                Err(ErrorKind::Tantivy(message).into())
            }
            State::Closed(reason) => Err(failed(reason)),
        }
    }

    /// Forgets everything since the last commit. Waits for merges in the background; what they have merged
    /// stays merged.
    ///
    /// # Errors
    /// `Tantivy`, after which the writer is closed.
    pub fn rollback(&self) -> Result<Opstamp> {
        self.roll_back(&mut self.state.write(), "rolled back")
    }

    fn roll_back(&self, state: &mut State, reason: &str) -> Result<Opstamp> {
        let taken = std::mem::replace(state, State::Closed(reason.to_owned()));
        let (State::Open(mut writer) | State::Failed(mut writer, _)) = taken else {
            let State::Closed(reason) = taken else {
                unreachable!("the two other states are taken above")
            };
            let error = failed(&reason);
            *state = State::Closed(reason);
            return Err(error);
        };
        // A failed rollback has dropped tantivy's lock, and a second one would panic.
        match roll_back_and_settle(&mut writer) {
            Ok(opstamp) => {
                let policy = SharedPolicy(self.merge_policy.lock().clone());
                writer.set_merge_policy(Box::new(policy));
                *state = State::Open(writer);
                Ok(opstamp)
            }
            Err(error) => {
                *state = State::Closed(format!("{reason}; rolling back failed as well: {error}"));
                Err(error.into())
            }
        }
    }

    /// Replaces tantivy's policy of which segments to merge in the background, for as long as the writer
    /// lives, rollbacks included.
    ///
    /// # Errors
    /// `Tantivy` if the writer must be rolled back first.
    pub fn set_merge_policy(&self, policy: Box<dyn MergePolicy>) -> Result<()> {
        let policy: Arc<dyn MergePolicy> = Arc::from(policy);
        self.with_writer(|writer| {
            *self.merge_policy.lock() = policy.clone();
            writer.set_merge_policy(Box::new(SharedPolicy(policy)));
            Ok(())
        })
    }

    /// Merges all committed segments into one, and waits.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Tantivy`; the segments stay as they were.
    pub fn merge_all(&self) -> Result<()> {
        let mut state = self.state.write();
        match &mut *state {
            State::Open(writer) => {
                writer.set_merge_policy(Box::new(NoMergePolicy));
                let merged = Self::merge_into_one(writer);
                let policy = SharedPolicy(self.merge_policy.lock().clone());
                writer.set_merge_policy(Box::new(policy));
                merged?;
                writer.garbage_collect_files().wait()?;
                let directory = writer.index().directory();
                directory
                    .sync_directory()
                    .map_err(|error| Error::io("index directory", error))
            }
            State::Failed(_, reason) | State::Closed(reason) => Err(failed(reason)),
        }
    }

    /// A merge in the background may hold some of the segments; then this one fails at its end, and is
    /// tried again once the other has changed what there is to merge.
    fn merge_into_one(writer: &mut IndexWriter) -> Result<()> {
        loop {
            let segments = writer.index().searchable_segment_ids()?;
            if segments.len() <= 1 && !Self::has_deletes(writer)? {
                return Ok(());
            }
            let Err(error) = writer.merge(&segments).wait() else {
                return Ok(());
            };
            let failed_at = Instant::now();
            while writer.index().searchable_segment_ids()? == segments {
                if failed_at.elapsed() > BACKGROUND_MERGE_MAX {
                    return Err(error.into());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Merges these committed segments into one, and waits. The others stay as they are.
    ///
    /// For callers who have set `NoMergePolicy`: a merge in the background may hold one of the segments.
    ///
    /// # Errors
    /// `InvalidArgument` if no segment is named; `Corrupt`, `Io`, `Tantivy`; the segments stay as they
    /// were.
    pub fn merge_segments(&self, segments: &[SegmentId]) -> Result<()> {
        if segments.is_empty() {
            return Err(Error::invalid("expected segments to merge, got none"));
        }
        let mut state = self.state.write();
        match &mut *state {
            State::Open(writer) => {
                writer.merge(segments).wait()?;
                writer.garbage_collect_files().wait()?;
                let directory = writer.index().directory();
                directory
                    .sync_directory()
                    .map_err(|error| Error::io("index directory", error))
            }
            State::Failed(_, reason) | State::Closed(reason) => Err(failed(reason)),
        }
    }

    fn has_deletes(writer: &IndexWriter) -> Result<bool> {
        Ok(writer
            .index()
            .searchable_segment_metas()?
            .iter()
            .any(|segment| segment.has_deletes()))
    }

    /// Waits for merges in the background and closes the writer. What was not committed is lost.
    ///
    /// # Errors
    /// `Tantivy`.
    pub fn close(self) -> Result<()> {
        match self.state.into_inner() {
            State::Open(writer) | State::Failed(writer, _) => Ok(writer.wait_merging_threads()?),
            State::Closed(_) => Ok(()),
        }
    }
}

/// tantivy 0.27 gives the first operation of a writer, new or rolled back, the stamp of the last commit once
/// more. A merge of committed segments applies deletions up to that stamp, and takes those segments for done
/// that had deletions in that commit: there the deletion would be lost, elsewhere it would come before its
/// commit. So nothing gets that stamp.
fn pass_last_stamp(writer: &IndexWriter) -> tantivy::Result<()> {
    writer.run(Vec::<UserOperation>::new())?;
    Ok(())
}

/// Rolls tantivy's writer back to what `meta.json` says when nothing changes it any more.
///
/// tantivy 0.27 neither ends nor awaits the merges of the writer it replaces. One that is about to end may
/// put its result into `meta.json` after the new writer has read it; the new one then takes the result's
/// files for garbage, and the index for made of files that are gone.
fn roll_back_and_settle(writer: &mut IndexWriter) -> tantivy::Result<Opstamp> {
    // Nothing merges any more once the old policy is dropped, as the threads that merge share it.
    writer.set_merge_policy(Box::new(NoMergePolicy));
    let merging = Arc::downgrade(&writer.get_merge_policy());
    let before = writer.index().searchable_segment_ids()?;
    let mut opstamp = writer.rollback()?;
    while merging.strong_count() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    if writer.index().searchable_segment_ids()? != before {
        opstamp = writer.rollback()?;
    }
    pass_last_stamp(writer)?;
    Ok(opstamp)
}

/// Objects nested deeper than this are refused.
const JSON_DEPTH_MAX: usize = 32;

/// Whether tantivy can index every leaf of a JSON value: 0.27 panics on some that its own documents carry.
fn json_fits(value: &OwnedValue, depth: usize) -> bool {
    match value {
        _ if depth > JSON_DEPTH_MAX => false,
        OwnedValue::Object(fields) => fields.iter().all(|(_, value)| json_fits(value, depth + 1)),
        OwnedValue::Array(values) => values.iter().all(|value| json_fits(value, depth + 1)),
        OwnedValue::Null
        | OwnedValue::Str(_)
        | OwnedValue::U64(_)
        | OwnedValue::I64(_)
        | OwnedValue::F64(_)
        | OwnedValue::Bool(_)
        | OwnedValue::Date(_) => true,
        _ => false,
    }
}

/// A value in a few words, whatever its size.
fn kind_of(value: &OwnedValue) -> String {
    match value {
        OwnedValue::Str(text) => format!("text of {} bytes", text.len()),
        OwnedValue::Bytes(bytes) | OwnedValue::Custom(bytes) => format!("{} bytes", bytes.len()),
        OwnedValue::Object(_) => "an object, or one with leaves that are no JSON".to_owned(),
        OwnedValue::Array(values) => format!("an array of {} values", values.len()),
        OwnedValue::PreTokStr(_) => "tokenized text".to_owned(),
        small => format!("{small:?}"),
    }
}

/// How long a failed merge waits for one in the background before it gives up.
const BACKGROUND_MERGE_MAX: Duration = Duration::from_secs(5);

/// The longest text that tantivy indexes as one term.
const KEY_BYTES_MAX: usize = 65_530;

/// Puts a policy back that tantivy lends out as an `Arc`.
#[derive(Debug)]
struct SharedPolicy(Arc<dyn MergePolicy>);

impl MergePolicy for SharedPolicy {
    fn compute_merge_candidates(&self, segments: &[SegmentMeta]) -> Vec<MergeCandidate> {
        self.0.compute_merge_candidates(segments)
    }
}

fn failed(reason: &str) -> Error {
    let message = format!("the writer failed and accepts nothing before a rollback: {reason}");
    ErrorKind::Tantivy(message).into()
}

//! Building an index from a long input: commits that remember how far the input was read, a list of what
//! was refused, and a stated number of segments at the end.
//!
//! The position in the input, the counts and the length of the quarantine file are the payload of each
//! commit, so index and progress cannot disagree: a build that was killed goes on after its last commit and
//! encodes nothing again that is committed. Reads no pictures and knows no input format; the caller hands in
//! records in the same order every time.

mod lane;
mod merge;
mod segments;

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hasher};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tantivy::merge_policy::NoMergePolicy;
use tantivy::schema::Field;
use tantivy::{Index, TantivyDocument};

use crate::error::{Error, ErrorKind, Result};
use crate::plugin::index::HashIndex;
use crate::plugin::index_writer::{HashIndexWriter, OnBadDocument, WriterOptions};
use crate::plugin::value::HashValue;

use lane::{Done, Item, work};
pub use merge::merge_by_key;

/// What a build begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BuildMode {
    /// An index without documents.
    #[default]
    Start,
    /// What an unfinished build has committed; an index without documents will do as well.
    Resume,
    /// A finished index, to which this build adds.
    Append,
}

/// How many segments a finished build leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentTarget {
    /// This many, of about the same number of documents; fewer for a small input.
    Count(usize),
    /// As many as it takes for each to be about this many bytes.
    Bytes(u64),
}

/// Choices of an [`IndexBuilder`].
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Threads, memory, and what becomes of bad documents.
    pub writer: WriterOptions,
    /// What is there already.
    pub mode: BuildMode,
    /// Names the input. A build is resumed with the same input only.
    pub source: String,
    /// The field that names a document: of several with one value the last one added stays. `None`: all
    /// stay.
    pub key: Option<Field>,
    /// Records between two commits at most. Default: 100,000.
    pub commit_records: u64,
    /// Time between two commits at most. Default: 60 s.
    pub commit_interval: Duration,
    /// Default: one.
    pub segments: SegmentTarget,
    /// Threads that hand documents to the encoder, so that it is not idle while the input is read. Records
    /// of one key always go through the same one. Default: 2.
    pub partitions: usize,
    /// Records handed to the encoder in one call at most. Default: 512.
    pub batch_records: usize,
    /// Bytes of their payloads at most; about `2 * partitions + 1` batches are held. Default: 32 MiB.
    pub batch_bytes: usize,
    /// Records in a row without a code after which the build stops; 0 for never. A wrong model or a missing
    /// disk refuses everything, and that is no fault of the documents. Default: 1,000.
    pub max_failures: u64,
    /// Where refused records are listed, a JSON object a line: `key`, `stage`, `reason`, `sha256`.
    pub quarantine: Option<PathBuf>,
}

impl Default for BuildOptions {
    fn default() -> BuildOptions {
        BuildOptions {
            writer: WriterOptions::default(),
            mode: BuildMode::default(),
            source: String::new(),
            key: None,
            commit_records: 100_000,
            commit_interval: Duration::from_secs(60),
            segments: SegmentTarget::Count(1),
            partitions: 2,
            batch_records: 512,
            batch_bytes: 32 << 20,
            max_failures: 1_000,
            quarantine: None,
        }
    }
}

/// A document to be.
#[derive(Clone, Debug, Default)]
pub struct BuildRecord {
    /// Names the record in the quarantine file.
    pub name: String,
    /// Every field but the hash fields.
    pub document: TantivyDocument,
    /// Codes, and payloads to encode.
    pub values: Vec<(Field, HashValue)>,
    /// Why there is no payload, for a record whose picture could not be read.
    pub refused: Option<Refusal>,
}

/// Why a record has no code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// `input`, `read`, `decode`, `preprocess`, `encode` or `index`.
    pub stage: String,
    /// What was expected and what was found.
    pub reason: String,
    /// SHA-256 of the payload in hexadecimal, where there is one.
    pub sha256: Option<String>,
}

/// How far a build is. Stored with every commit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildProgress {
    /// [`BuildOptions::source`].
    pub source: String,
    /// Records of the input that are done with.
    pub position: u64,
    /// True once the input was read to its end and the segments were merged.
    pub finished: bool,
    /// Documents added by this build.
    pub documents: u64,
    /// Codes stored with them.
    pub codes: u64,
    /// Records without a code: quarantined and skipped ones.
    pub failed: u64,
    /// Those of them that were left out.
    pub skipped: u64,
    /// Documents that took the place of one with the same key.
    pub replaced: u64,
    /// Parts of the input that are no record.
    pub damaged: u64,
    /// The first of them, in words.
    pub first_damage: Option<String>,
    /// Bytes of the quarantine file that belong to this commit.
    pub quarantine_bytes: u64,
}

/// The payload of a commit.
#[derive(Serialize, Deserialize)]
struct CommitPayload {
    tanhash_build: BuildProgress,
}

impl BuildProgress {
    /// What the last commit of an index says of its build; `None` if no build wrote it.
    ///
    /// # Errors
    /// `Tantivy` or `Io` if the index cannot be read.
    pub fn of(index: &Index) -> Result<Option<BuildProgress>> {
        let payload = index.load_metas()?.payload;
        let parsed = payload.and_then(|text| serde_json::from_str::<CommitPayload>(&text).ok());
        Ok(parsed.map(|payload| payload.tanhash_build))
    }

    fn to_payload(&self) -> Result<String> {
        let payload = CommitPayload {
            tanhash_build: self.clone(),
        };
        serde_json::to_string(&payload).map_err(|error| Error::invalid(error.to_string()))
    }
}

/// A thread that adds documents, and what waits for it.
struct Lane {
    pending: Vec<Item>,
    pending_bytes: usize,
    jobs: SyncSender<Vec<Item>>,
}

/// Adds the records of a long input to an index. See the module's words on what survives a kill.
///
/// After any error the builder is of no further use: drop it, and resume with a new one. What the last
/// commit holds is safe.
pub struct IndexBuilder {
    index: HashIndex,
    writer: Arc<HashIndexWriter>,
    options: BuildOptions,
    progress: BuildProgress,
    lanes: Vec<Lane>,
    threads: Vec<JoinHandle<()>>,
    results: Receiver<Result<Vec<Done>>>,
    in_flight: usize,
    /// Hashes of the keys that were added. Two keys of one hash cost a deletion that deletes nothing.
    seen: HashSet<u64>,
    quarantine: Option<File>,
    /// Lines since the last commit, by position.
    refused: Vec<(u64, String)>,
    failures_in_a_row: u64,
    committed_at: (u64, Instant),
    commit_every: u64,
}

impl IndexBuilder {
    /// Opens the writer and reads how far the index is.
    ///
    /// # Errors
    /// `InvalidArgument` if the mode does not fit the index, if a build is resumed with another source, or
    /// if the key is no key; `Tantivy` if another writer holds the lock; `Io` for the quarantine file.
    pub fn new(index: &HashIndex, options: BuildOptions) -> Result<IndexBuilder> {
        let found = BuildProgress::of(index)?;
        let progress = Self::begin(index, &options, found)?;
        let writer = index.writer(options.writer.clone())?;
        writer.set_merge_policy(Box::new(NoMergePolicy))?;
        let seen = match options.key {
            None => HashSet::new(),
            Some(key) => {
                writer.check_key(key)?;
                keys_of(index, key)?
            }
        };
        let quarantine = match &options.quarantine {
            None => None,
            Some(path) => Some(open_quarantine(path, &progress, options.mode)?),
        };
        let mut progress = progress;
        if let (BuildMode::Append, Some(file)) = (options.mode, &quarantine) {
            let metadata = file.metadata();
            let metadata = metadata.map_err(|error| Error::io("quarantine", error))?;
            progress.quarantine_bytes = metadata.len();
        }
        let writer = Arc::new(writer);
        let (done, results) = channel();
        let mut lanes = Vec::new();
        let mut threads = Vec::new();
        for number in 0..options.partitions.max(1) {
            let (jobs, queue) = sync_channel(1);
            let (writer, done, key) = (writer.clone(), done.clone(), options.key);
            let lane = std::thread::Builder::new().name(format!("tanhash-build-{number}"));
            let on_bad = options.writer.on_bad_document;
            let thread = lane.spawn(move || work(&writer, key, on_bad, &queue, &done));
            threads.push(thread.map_err(|error| Error::io("build thread", error))?);
            lanes.push(Lane {
                pending: Vec::new(),
                pending_bytes: 0,
                jobs,
            });
        }
        let mut builder = IndexBuilder {
            index: index.clone(),
            writer,
            committed_at: (progress.position, Instant::now()),
            options,
            progress,
            lanes,
            threads,
            results,
            in_flight: 0,
            seen,
            quarantine,
            refused: Vec::new(),
            failures_in_a_row: 0,
            commit_every: 0,
        };
        builder.commit_every = builder.records_a_commit()?;
        Ok(builder)
    }

    fn begin(
        index: &HashIndex,
        options: &BuildOptions,
        found: Option<BuildProgress>,
    ) -> Result<BuildProgress> {
        let fresh = BuildProgress {
            source: options.source.clone(),
            ..BuildProgress::default()
        };
        let n_docs: u64 = index
            .load_metas()?
            .segments
            .iter()
            .map(|segment| u64::from(segment.num_docs()))
            .sum();
        match (options.mode, found) {
            (BuildMode::Start, found) if n_docs > 0 || found.is_some() => {
                let message = "expected an index without documents to start a build, found one that was begun; \
                               resume it or append to it";
                Err(Error::invalid(message))
            }
            (BuildMode::Start, _) => Ok(fresh),
            (BuildMode::Resume, Some(found)) if found.source != options.source => {
                Err(Error::invalid(format!(
                    "expected the input the build was begun with ({}), got another ({}); give that one again, \
                     or build anew",
                    found.source, options.source
                )))
            }
            (BuildMode::Resume, Some(found)) => Ok(found),
            (BuildMode::Resume, None) if n_docs == 0 => Ok(fresh),
            (BuildMode::Resume, None) => Err(Error::invalid(
                "expected an index whose last commit is a build's, found another's; append to it instead",
            )),
            (BuildMode::Append, Some(found)) if !found.finished => Err(Error::invalid(
                "expected a finished index to append to, found a build that is not; resume it first",
            )),
            (BuildMode::Append, _) => Ok(fresh),
        }
    }

    /// How far the build is. Counts run ahead of the last commit, and behind the records handed in.
    pub fn progress(&self) -> &BuildProgress {
        &self.progress
    }

    /// Takes the next record of the input.
    ///
    /// # Errors
    /// As [`HashIndexWriter::add_documents`], also for a record handed in earlier; `Payload` under
    /// [`OnBadDocument::Fail`] and after [`BuildOptions::max_failures`] refusals in a row; as
    /// [`HashIndexWriter::commit`].
    pub fn add(&mut self, record: BuildRecord) -> Result<()> {
        let position = self.advance()?;
        if let (Some(refusal), OnBadDocument::Fail) =
            (&record.refused, self.options.writer.on_bad_document)
        {
            let message = format!("{}: {}", record.name, refusal.reason);
            return Err(ErrorKind::Payload(message).into());
        }
        let (mut replaces, mut number) = (false, 0);
        if let Some(key) = self.options.key {
            let term = self.writer.key_of(key, &record.document)?;
            let bytes = term.serialized_value_bytes();
            replaces = !self.seen.insert(hash(bytes));
            number = crc32fast::hash(bytes) as usize % self.lanes.len();
        }
        let bytes: usize = record.values.iter().map(|(_, value)| size(value)).sum();
        let lane = &mut self.lanes[number];
        lane.pending_bytes += bytes;
        lane.pending.push(Item {
            position,
            replaces,
            record,
        });
        if lane.pending.len() >= self.options.batch_records
            || lane.pending_bytes >= self.options.batch_bytes
        {
            self.send(number)?;
        }
        self.commit_if_due()
    }

    /// Takes the next part of the input, which turned out to be no record: it is counted and named.
    ///
    /// # Errors
    /// `Payload` under [`OnBadDocument::Fail`]; as [`add`](Self::add).
    pub fn add_damage(&mut self, name: &str, reason: &str) -> Result<()> {
        let position = self.advance()?;
        if self.options.writer.on_bad_document == OnBadDocument::Fail {
            return Err(ErrorKind::Payload(format!("{name}: {reason}")).into());
        }
        self.progress.damaged += 1;
        let first = &mut self.progress.first_damage;
        first.get_or_insert_with(|| format!("{name}: {reason}"));
        let refusal = Refusal {
            stage: "input".to_owned(),
            reason: reason.to_owned(),
            sha256: None,
        };
        self.refuse(position, name, &refusal)?;
        self.commit_if_due()
    }

    /// Takes the next record of the input without adding it, for one that belongs to another build.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn pass(&mut self) -> Result<()> {
        self.advance()?;
        self.commit_if_due()
    }

    /// Merges into the stated number of segments and marks the build as finished.
    ///
    /// # Errors
    /// As [`add`](Self::add); `Corrupt`, `Io` and `Tantivy` of the merges, which a resumed build repeats.
    pub fn finish(mut self) -> Result<BuildProgress> {
        if !self.progress.finished {
            self.commit()?;
            self.merge_to_target()?;
            if let (Some(path), 0) = (&self.options.quarantine, self.progress.quarantine_bytes) {
                // Nobody was refused. A file that cannot be removed is empty and does no harm.
                let _ = std::fs::remove_file(path);
            }
            self.progress.finished = true;
            let payload = self.progress.to_payload()?;
            self.writer.commit_with_payload(&payload)?;
        }
        let progress = self.progress.clone();
        let writer = self.writer.clone();
        drop(self);
        // The lanes have ended, so this is the last handle.
        if let Some(writer) = Arc::into_inner(writer) {
            writer.close()?;
        }
        Ok(progress)
    }

    fn advance(&mut self) -> Result<u64> {
        if self.progress.finished {
            return Err(Error::invalid(
                "expected an unfinished build, this one is finished; append to it",
            ));
        }
        while let Ok(result) = self.results.try_recv() {
            self.take(result)?;
        }
        let position = self.progress.position;
        self.progress.position += 1;
        Ok(position)
    }

    fn send(&mut self, lane: usize) -> Result<()> {
        let lane = &mut self.lanes[lane];
        lane.pending_bytes = 0;
        let items = std::mem::take(&mut lane.pending);
        if items.is_empty() {
            return Ok(());
        }
        if lane.jobs.send(items).is_err() {
            // The lane has said why before it ended.
            while let Ok(result) = self.results.try_recv() {
                self.take(result)?;
            }
            return Err(ErrorKind::Tantivy("a thread that adds documents has ended".into()).into());
        }
        self.in_flight += 1;
        Ok(())
    }

    fn take(&mut self, result: Result<Vec<Done>>) -> Result<()> {
        self.in_flight -= 1;
        for done in result? {
            self.progress.documents += u64::from(done.indexed);
            self.progress.codes += done.codes;
            self.progress.replaced += u64::from(done.indexed && done.replaces);
            match done.refusal {
                None => self.failures_in_a_row = 0,
                Some(refusal) => {
                    self.progress.failed += 1;
                    self.progress.skipped += u64::from(!done.indexed);
                    self.refuse(done.position, &done.name, &refusal)?;
                }
            }
        }
        Ok(())
    }

    fn refuse(&mut self, position: u64, name: &str, refusal: &Refusal) -> Result<()> {
        let Refusal {
            stage,
            reason,
            sha256,
        } = refusal;
        let line = serde_json::json!({
            "key": name, "stage": stage, "reason": reason, "sha256": sha256,
        });
        self.refused.push((position, line.to_string()));
        self.failures_in_a_row += 1;
        let max_failures = self.options.max_failures;
        if max_failures > 0 && self.failures_in_a_row >= max_failures {
            let message = format!(
                "stopped after {max_failures} records in a row without a code, the last one {name}: {reason}; \
                 repair the cause and resume"
            );
            return Err(ErrorKind::Payload(message).into());
        }
        Ok(())
    }

    fn commit_if_due(&mut self) -> Result<()> {
        let (position, at) = self.committed_at;
        let due = self.progress.position - position >= self.commit_every
            || at.elapsed() >= self.options.commit_interval;
        if due { self.commit() } else { Ok(()) }
    }

    /// Waits for everything handed in, then commits it with its position. The builder does so by itself from
    /// time to time.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn commit(&mut self) -> Result<()> {
        for lane in 0..self.lanes.len() {
            self.send(lane)?;
        }
        while self.in_flight > 0 {
            let result = self.results.recv().map_err(|_| {
                Error::new(ErrorKind::Tantivy(
                    "the threads that add documents have ended".into(),
                ))
            })?;
            self.take(result)?;
        }
        self.write_quarantine()?;
        let payload = self.progress.to_payload()?;
        self.writer.commit_with_payload(&payload)?;
        self.compact()?;
        self.committed_at = (self.progress.position, Instant::now());
        self.commit_every = self.records_a_commit()?;
        Ok(())
    }

    fn write_quarantine(&mut self) -> Result<()> {
        let mut refused = std::mem::take(&mut self.refused);
        let (Some(file), false) = (&mut self.quarantine, refused.is_empty()) else {
            return Ok(());
        };
        refused.sort_by_key(|(position, _)| *position);
        let mut text = String::new();
        for (_, line) in refused {
            text.push_str(&line);
            text.push('\n');
        }
        let path = self.options.quarantine.as_deref();
        let about = |error| Error::io(path.unwrap_or("quarantine".as_ref()), error);
        file.write_all(text.as_bytes()).map_err(about)?;
        file.sync_data().map_err(about)?;
        self.progress.quarantine_bytes += text.len() as u64;
        Ok(())
    }
}

impl Drop for IndexBuilder {
    fn drop(&mut self) {
        self.lanes.clear();
        for thread in self.threads.drain(..) {
            // A lane that panicked has answered nothing, which `commit` reports.
            let _ = thread.join();
        }
    }
}

fn size(value: &HashValue) -> usize {
    match value {
        HashValue::Payload(payload) => payload.size_bytes(),
        HashValue::Code(code) => code.to_bytes().len(),
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Hashes of every key of the index, those of deleted documents included.
fn keys_of(index: &HashIndex, key: Field) -> Result<HashSet<u64>> {
    let mut keys = HashSet::new();
    for reader in index.searcher()?.segment_readers() {
        let terms = reader.inverted_index(key)?;
        let mut stream = terms
            .terms()
            .stream()
            .map_err(|error| Error::io("terms of the key", error))?;
        while stream.advance() {
            keys.insert(hash(stream.key()));
        }
    }
    Ok(keys)
}

/// Opens the file at the length that the last commit knows of.
fn open_quarantine(path: &PathBuf, progress: &BuildProgress, mode: BuildMode) -> Result<File> {
    let about = |error| Error::io(path, error);
    let file = OpenOptions::new().create(true).append(true).open(path);
    let file = file.map_err(about)?;
    let len = file.metadata().map_err(about)?.len();
    match mode {
        BuildMode::Append => {}
        _ if len < progress.quarantine_bytes => {
            return Err(Error::corrupt(
                path.display().to_string(),
                format!(
                    "expected at least {} bytes as the last commit says, found {len}",
                    progress.quarantine_bytes
                ),
            ));
        }
        _ => file.set_len(progress.quarantine_bytes).map_err(about)?,
    }
    Ok(file)
}

//! An index with the plugin registered, opened with care.
//!
//! tantivy leaves three things to its user that this wrapper does: the plugin is registered on every
//! handle, files are looked at before tantivy trusts them, and indexes are merged only where the plugin
//! is there to carry the codes over.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tantivy::directory::{DirectoryLock, META_LOCK, MmapDirectory};
use tantivy::index::{Index, IndexSettings, SegmentComponent, SegmentReader};
use tantivy::schema::{Field, Schema};
use tantivy::{Directory, DocAddress, IndexReader, Searcher};

use crate::code::HashCode;
use crate::encode::Payload;
use crate::error::{Error, Result};
use crate::plugin::directory::HashDirectory;
use crate::plugin::field::HashFieldOptions;
use crate::plugin::index_writer::{HashIndexWriter, WriterOptions};
use crate::plugin::{HashPlugin, OpenColumn, contained, in_file, plugin_of};
use crate::segment::{EXTENSION, HEADER_BYTES, read_header};

/// A tantivy index whose hash fields are written, merged and searched. Derefs to [`Index`].
#[derive(Clone)]
pub struct HashIndex {
    index: Index,
    plugin: HashPlugin,
}

impl std::fmt::Debug for HashIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HashIndex")
            .field("index", &self.index)
            .field("plugin", &self.plugin)
            .finish()
    }
}

impl Deref for HashIndex {
    type Target = Index;

    fn deref(&self) -> &Index {
        &self.index
    }
}

impl HashIndex {
    /// Creates an index in memory, for tests and short-lived data.
    ///
    /// # Errors
    /// `InvalidArgument` if an encoder of the plugin does not fit the schema.
    pub fn create_in_ram(schema: Schema, plugin: HashPlugin) -> Result<HashIndex> {
        HashIndex::create(
            tantivy::directory::RamDirectory::create(),
            schema,
            IndexSettings::default(),
            plugin,
        )
    }

    /// Creates an index in a directory, which is made if it is missing and must hold no index.
    ///
    /// # Errors
    /// `InvalidArgument` if an encoder of the plugin does not fit the schema or there is an index already;
    /// `Io`.
    pub fn create_in_dir(
        path: impl AsRef<Path>,
        schema: Schema,
        plugin: HashPlugin,
    ) -> Result<HashIndex> {
        let path = path.as_ref();
        std::fs::create_dir_all(path).map_err(|error| Error::io(path, error))?;
        HashIndex::create(
            open_directory(path)?,
            schema,
            IndexSettings::default(),
            plugin,
        )
    }

    /// Creates an index in any tantivy directory, with settings. A sorted index is supported.
    ///
    /// # Errors
    /// As [`create_in_dir`](Self::create_in_dir).
    pub fn create(
        directory: impl Into<Box<dyn Directory>>,
        schema: Schema,
        settings: IndexSettings,
        plugin: HashPlugin,
    ) -> Result<HashIndex> {
        plugin.state().check_schema(&schema)?;
        let directory: Box<dyn Directory> = directory.into();
        if Index::exists(&*directory).map_err(tantivy::TantivyError::from)? {
            return Err(Error::invalid(
                "expected a directory without an index, found one there; open it",
            ));
        }
        let builder = Index::builder().schema(schema).settings(settings);
        let index = builder
            .register_plugin(plugin.segment_plugin())
            .open_or_create(HashDirectory::new(directory))?;
        Ok(HashIndex { index, plugin })
    }

    /// Opens the index in a directory.
    ///
    /// # Errors
    /// `InvalidArgument` if there is none, if it has no hash field, or if an encoder of the plugin does not
    /// fit it; `Corrupt` if a file is missing, truncated or of another segment; `Io`.
    pub fn open_in_dir(path: impl AsRef<Path>, plugin: HashPlugin) -> Result<HashIndex> {
        let path = path.as_ref();
        if !path.join("meta.json").is_file() {
            return Err(Error::invalid(format!(
                "expected a tantivy index in {}, found none",
                path.display()
            )));
        }
        HashIndex::open(open_directory(path)?, plugin)
    }

    /// Opens the index in any tantivy directory.
    ///
    /// # Errors
    /// As [`open_in_dir`](Self::open_in_dir).
    pub fn open(directory: impl Into<Box<dyn Directory>>, plugin: HashPlugin) -> Result<HashIndex> {
        let directory: Box<dyn Directory> = directory.into();
        let raw = directory.box_clone();
        let index = contained("meta.json", || {
            Ok(Index::open(HashDirectory::new(directory))?)
        })?;
        {
            let _lock = lock_files(&index)?;
            check_lengths(&index, &*raw)?;
        }
        HashIndex::from_index(index, plugin)
    }

    /// Registers the plugin with an index that was opened by tantivy, best in a [`HashDirectory`].
    ///
    /// # Errors
    /// As [`open_in_dir`](Self::open_in_dir).
    pub fn from_index(mut index: Index, plugin: HashPlugin) -> Result<HashIndex> {
        if plugin.state().check_schema(&index.schema())?.is_empty() {
            return Err(Error::invalid(
                "expected an index with a hash field, found none in its schema",
            ));
        }
        let meta = index.load_metas()?;
        if !meta
            .persisted_custom_extensions
            .iter()
            .any(|extension| extension == EXTENSION)
        {
            return Err(Error::invalid(
                "expected an index created with the hash plugin registered, found one that drops its codes; rebuild it",
            ));
        }
        {
            // Other processes collect garbage under this lock, as tantivy's own readers know.
            let _lock = lock_files(&index)?;
            check_counts(&index)?;
        }
        let registered = plugin.segment_plugin();
        let claimed = index
            .custom_plugins()
            .iter()
            .find(|other| other.extensions().contains(&EXTENSION));
        match claimed {
            None => index.register_plugin(registered),
            Some(other) if std::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(&registered)) => {}
            Some(_) => {
                return Err(Error::invalid(format!(
                    "expected an index without a plugin for .{EXTENSION} files, found another one registered; \
                     open the index anew"
                )));
            }
        }
        Ok(HashIndex { index, plugin })
    }

    /// The plugin.
    pub fn plugin(&self) -> &HashPlugin {
        &self.plugin
    }

    /// A field by its name.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the fields there are.
    pub fn field(&self, name: &str) -> Result<Field> {
        let schema = self.index.schema();
        schema.get_field(name).map_err(|_| {
            let names: Vec<&str> = schema.fields().map(|(_, entry)| entry.name()).collect();
            Error::invalid(format!(
                "expected one of the fields {names:?}, got `{name}`"
            ))
        })
    }

    /// A writer. There is at most one at a time for an index.
    ///
    /// # Errors
    /// `Tantivy` if another writer holds the lock or a plugin of the index is missing.
    pub fn writer(&self, options: WriterOptions) -> Result<HashIndexWriter> {
        HashIndexWriter::new(self, options)
    }

    /// A reader that reloads after commits.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Tantivy`.
    pub fn reader(&self) -> Result<IndexReader> {
        contained("index", || Ok(self.index.reader()?))
    }

    /// A searcher over the last commit.
    ///
    /// # Errors
    /// As [`reader`](Self::reader).
    pub fn searcher(&self) -> Result<Searcher> {
        Ok(self.reader()?.searcher())
    }

    /// Encodes a payload with the encoder of a field, for a query.
    ///
    /// # Errors
    /// `InvalidArgument` if no encoder serves the field; `Payload` if the payload cannot be encoded.
    pub fn encode(&self, field: Field, payload: Payload) -> Result<HashCode> {
        self.plugin.encode(&self.index.schema(), field, payload)
    }

    /// The stored code of a document, or `None` if it has none.
    ///
    /// # Errors
    /// `InvalidArgument` for another type of field or an address of another searcher; `Corrupt`.
    pub fn code(
        &self,
        searcher: &Searcher,
        field: Field,
        address: DocAddress,
    ) -> Result<Option<HashCode>> {
        let options = HashFieldOptions::of(searcher.schema(), field)?;
        let reader = searcher.segment_readers().get(address.segment_ord as usize);
        let reader = reader
            .filter(|reader| address.doc_id < reader.max_doc())
            .ok_or_else(|| {
                Error::invalid(format!(
                    "expected a document of this searcher, got {address:?}"
                ))
            })?;
        let column = OpenColumn::open(Some(self.plugin.state()), reader, field, &options)?;
        column
            .code(address.doc_id)
            .map_err(OpenColumn::about(reader))
    }

    /// What the segments hold, field by field. Opens every segment file, and reads no codes.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn columns(&self, searcher: &Searcher) -> Result<Vec<ColumnInfo>> {
        let schema = searcher.schema();
        let mut columns = Vec::new();
        for reader in searcher.segment_readers() {
            for (field, options) in HashFieldOptions::all(schema)? {
                let column = OpenColumn::open(Some(self.plugin.state()), reader, field, &options)?;
                let bytes = column.size_bytes();
                columns.push(ColumnInfo {
                    segment: reader.segment_id().uuid_string(),
                    field: schema.get_field_name(field).to_owned(),
                    bits: options.bits,
                    model_id: options.model_id.clone(),
                    documents: reader.max_doc(),
                    deleted: reader.num_deleted_docs(),
                    n_codes: column.n_codes(),
                    mih_tables: column.mih_params().map(|params| params.n_substrings()),
                    clusters: column.n_clusters(),
                    codes_bytes: bytes.codes,
                    doc_ids_bytes: bytes.doc_ids,
                    clusters_bytes: bytes.clusters,
                    tables_bytes: bytes.mih,
                });
            }
        }
        Ok(columns)
    }

    /// Compares every checksum of every file, every table with its codes, and the counts with each other.
    /// Reads the whole index.
    ///
    /// # Errors
    /// Only where the index cannot be listed; damage is in the report.
    pub fn verify(&self) -> Result<VerifyReport> {
        verify(&self.index)
    }
}

fn open_directory(path: &Path) -> Result<MmapDirectory> {
    MmapDirectory::open(path).map_err(|error| Error::invalid(error.to_string()))
}

/// Holds off garbage collection, by this process and others, while files are listed and opened.
fn lock_files(index: &Index) -> Result<DirectoryLock> {
    index
        .directory()
        .acquire_lock(&META_LOCK)
        .map_err(|error| Error::from(tantivy::TantivyError::from(error)))
}

/// The shortest file that can carry tantivy's footer.
const FOOTER_BYTES_MIN: usize = 8;

/// Looks at the lengths of files before tantivy does: 0.27 panics on those of 4 to 7 bytes.
fn check_lengths(index: &Index, raw: &dyn Directory) -> Result<()> {
    for path in files_of(index)? {
        let handle = raw
            .get_file_handle(&path)
            .map_err(|error| Error::corrupt(path.display().to_string(), error.to_string()))?;
        let len = handle.len();
        if len < FOOTER_BYTES_MIN {
            let reason =
                format!("expected at least {FOOTER_BYTES_MIN} bytes, found {len}: it is truncated");
            return Err(Error::corrupt(path.display().to_string(), reason));
        }
    }
    Ok(())
}

/// Compares `meta.json`, which has no checksum, with the segment files: tantivy panics on some wrong
/// document counts.
fn check_counts(index: &Index) -> Result<()> {
    let meta = index.load_metas()?;
    for segment in &meta.segments {
        let path = segment.relative_path(SegmentComponent::Custom(EXTENSION.to_owned()));
        let name = path.display().to_string();
        let handle = contained(&name, || Ok(index.directory().get_file_handle(&path)))?
            .map_err(|error| Error::corrupt(name.clone(), error.to_string()))?;
        let len = handle.len();
        let header = handle
            .read_bytes(0..len.min(HEADER_BYTES))
            .map_err(|error| Error::io(&path, error))?;
        let (max_doc, _) = read_header(&header).map_err(|error| in_file(&name, error))?;
        if max_doc != segment.max_doc() {
            let reason = format!(
                "meta.json says {} documents, the segment has {max_doc}",
                segment.max_doc()
            );
            return Err(Error::corrupt(name, reason));
        }
        if segment.num_deleted_docs() > max_doc {
            let reason = format!(
                "meta.json says {} deleted of {max_doc}",
                segment.num_deleted_docs()
            );
            return Err(Error::corrupt("meta.json", reason));
        }
    }
    Ok(())
}

/// The files of the live segments. tantivy lists candidates: the doc store's temporary file exists only
/// while a segment is written, the file of deleted documents only when there are some.
fn files_of(index: &Index) -> Result<Vec<PathBuf>> {
    let meta = index.load_metas()?;
    let deletes: Vec<PathBuf> = (meta.segments.iter())
        .filter(|segment| segment.has_deletes())
        .map(|segment| segment.relative_path(SegmentComponent::Delete))
        .collect();
    let mut files: Vec<PathBuf> = meta
        .list_segment_files()
        .into_iter()
        .filter(|path| match path.to_string_lossy() {
            name if name.ends_with(".store.temp") => false,
            name if name.ends_with(".del") => deletes.contains(path),
            _ => true,
        })
        .collect();
    files.sort();
    Ok(files)
}

/// A hash field of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ColumnInfo {
    /// The segment's id, the stem of its file names.
    pub segment: String,
    /// The field's name.
    pub field: String,
    /// Bits of each code.
    pub bits: usize,
    /// The model the field names.
    pub model_id: Option<String>,
    /// Documents of the segment, deleted ones included.
    pub documents: u32,
    /// Deleted documents.
    pub deleted: u32,
    /// Documents with a code, deleted ones included.
    pub n_codes: usize,
    /// Tables of multi-index hashing, if the segment has them.
    pub mih_tables: Option<usize>,
    /// Clusters, if the segment has them.
    pub clusters: Option<usize>,
    /// Bytes of codes.
    pub codes_bytes: usize,
    /// Bytes of document ids; 0 if every document has a code.
    pub doc_ids_bytes: usize,
    /// Bytes of clusters: centroids, shells, the order of rows.
    pub clusters_bytes: usize,
    /// Bytes of multi-index hashing tables.
    pub tables_bytes: usize,
}

/// What a full check of an index found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Files of live segments, checksums compared.
    pub files: usize,
    /// Live segments.
    pub segments: usize,
    /// Live documents.
    pub documents: u64,
    /// Codes of each hash field, those of deleted documents included.
    pub codes: Vec<(String, u64)>,
    /// One line for each damage found; empty if the index is sound.
    pub problems: Vec<String>,
}

impl VerifyReport {
    /// True if nothing is damaged.
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }
}

fn verify(index: &Index) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    // Once open, a file stays readable and its name resolves to it, whatever is merged meanwhile.
    let (files, segments, _open) = {
        let _lock = lock_files(index)?;
        let files = files_of(index)?;
        let open: Vec<_> = files
            .iter()
            .map(|path| contained("file", || Ok(index.directory().get_file_handle(path).ok())))
            .collect();
        (files, index.searchable_segments()?, open)
    };
    // tantivy's own `validate_checksum` passes over files that `.managed.json` does not name.
    for path in files {
        report.files += 1;
        let name = path.display().to_string();
        let outcome = contained(&name, || {
            let checked = index.directory().validate_checksum(&path);
            checked.map_err(|error| Error::corrupt(name.clone(), error.to_string()))
        });
        match outcome {
            Ok(true) => {}
            Ok(false) => report.problems.push(format!(
                "corrupt {}: its checksum does not match",
                path.display()
            )),
            Err(error) => report.problems.push(error.to_string()),
        }
    }
    let schema = index.schema();
    let fields = HashFieldOptions::all(&schema)?;
    report.codes = fields
        .iter()
        .map(|(field, _)| (schema.get_field_name(*field).to_owned(), 0))
        .collect();
    if !report.is_ok() {
        return Ok(report);
    }
    let plugin = plugin_of(index);
    for segment in segments {
        report.segments += 1;
        let reader = match contained("segment", || Ok(SegmentReader::open(&segment)?)) {
            Ok(reader) => reader,
            Err(error) => {
                report
                    .problems
                    .push(format!("segment {}: {error}", segment.id()));
                continue;
            }
        };
        let alive = reader.doc_ids_alive().count() as u64;
        report.documents += alive;
        if alive != u64::from(reader.num_docs()) {
            report.problems.push(format!(
                "segment {}: expected {} live documents as meta.json says, found {alive}",
                segment.id(),
                reader.num_docs()
            ));
        }
        for ((field, options), (_, codes)) in fields.iter().zip(&mut report.codes) {
            let column = OpenColumn::open(plugin.as_deref(), &reader, *field, options);
            let checked = column.and_then(|column| column.verify().map(|()| column.n_codes()));
            match checked.map_err(OpenColumn::about(&reader)) {
                Ok(n_codes) => *codes += n_codes as u64,
                Err(error) => report.problems.push(error.to_string()),
            }
        }
    }
    Ok(report)
}

/// Merges indexes of one schema into a new one with a single segment, codes included.
///
/// tantivy's own `merge_indices` drops the codes without a word when the plugin is registered on none of
/// the indexes; this one refuses.
///
/// # Errors
/// `InvalidArgument` if the plugin is not registered on each of the indexes, or as tantivy does for
/// differing schemas.
pub fn merge_indices(
    indexes: &[Index],
    directory: impl Into<Box<dyn Directory>>,
    plugin: HashPlugin,
) -> Result<HashIndex> {
    for (position, index) in indexes.iter().enumerate() {
        if plugin_of(index).is_none() {
            return Err(Error::invalid(format!(
                "expected every index to be opened with the hash plugin, index {position} of {} is not, \
                 and its codes would be lost; open it with HashIndex or call register_plugin",
                indexes.len()
            )));
        }
    }
    let directory: Box<dyn Directory> = directory.into();
    if Index::exists(&*directory).map_err(tantivy::TantivyError::from)? {
        return Err(Error::invalid(
            "expected a directory without an index to merge into, found one there",
        ));
    }
    // The merged handle carries the sources' plugin; the one given belongs to the index opened anew.
    let merged = tantivy::indexer::merge_indices(indexes, directory.box_clone())?;
    merged
        .directory()
        .sync_directory()
        .map_err(|error| Error::io("merged index", error))?;
    drop(merged);
    HashIndex::open(directory, plugin)
}

//! A tantivy directory that opens a segment's hash file together with the segment.
//!
//! tantivy deletes the files of segments that were merged while searchers still look at them: it counts on
//! a searcher having opened all files when it was made, as open files stay readable. The files of plugins
//! it leaves for later, when they may be gone. Nothing else about the directory wrapped is changed.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    DirectoryLock, FileHandle, Lock, OwnedBytes, WatchCallback, WatchHandle, WritePtr,
};
use tantivy::{Directory, HasLen};

use crate::segment::EXTENSION;

/// The file whose handle a `SegmentReader` keeps from the moment it is opened until it is dropped.
const KEPT_BY_READERS: &str = "store";

/// A directory whose searchers keep the codes they were made with, whatever is merged and deleted
/// meanwhile, in this process or another. [`HashIndex`](crate::plugin::HashIndex) wraps the directories it
/// is given; applications that open a [`tantivy::Index`] by themselves wrap theirs:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tanhash::plugin::{HashDirectory, HashFieldOptions, HashPlugin, SchemaBuilderExt};
/// use tantivy::directory::RamDirectory;
/// use tantivy::schema::Schema;
///
/// let mut schema = Schema::builder();
/// schema.add_hash_field("image", HashFieldOptions::new(64))?;
/// let plugin = HashPlugin::new();
/// let index = tantivy::Index::builder()
///     .schema(schema.build())
///     .register_plugin(plugin.segment_plugin())
///     .open_or_create(HashDirectory::new(RamDirectory::create()))?;
/// # Ok(())
/// # }
/// ```
///
/// Over any other directory a search fails with `Corrupt` if it is the first to ask an older searcher for
/// the codes of a segment that was merged away; a new searcher then answers.
#[derive(Clone, Debug)]
pub struct HashDirectory {
    inner: Box<dyn Directory>,
    /// Hash files that are open, so that a deleted one is found as long as somebody keeps it.
    open: Arc<Mutex<HashMap<PathBuf, Weak<dyn FileHandle>>>>,
}

impl HashDirectory {
    /// Wraps a directory. Clones share what is open.
    pub fn new(directory: impl Into<Box<dyn Directory>>) -> HashDirectory {
        HashDirectory {
            inner: directory.into(),
            open: Arc::default(),
        }
    }

    fn hash_file(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        let mut open = self.open.lock();
        if let Some(file) = open.get(path).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let file = self.inner.get_file_handle(path)?;
        open.retain(|_, file| file.strong_count() > 0);
        open.insert(path.to_owned(), Arc::downgrade(&file));
        Ok(file)
    }
}

/// A file that keeps the hash file of its segment open.
#[derive(Debug)]
struct WithHashFile {
    file: Arc<dyn FileHandle>,
    _hash_file: Arc<dyn FileHandle>,
}

impl HasLen for WithHashFile {
    fn len(&self) -> usize {
        self.file.len()
    }
}

impl FileHandle for WithHashFile {
    fn read_bytes(&self, range: Range<usize>) -> io::Result<OwnedBytes> {
        self.file.read_bytes(range)
    }

    fn read_bytes_async<'file, 'future>(
        &'file self,
        range: Range<usize>,
    ) -> Pin<Box<dyn Future<Output = io::Result<OwnedBytes>> + Send + 'future>>
    where
        'file: 'future,
        Self: 'future,
    {
        self.file.read_bytes_async(range)
    }
}

impl Directory for HashDirectory {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        let has_extension = |extension| path.extension().is_some_and(|found| found == extension);
        if has_extension(EXTENSION) {
            return self.hash_file(path);
        }
        let file = self.inner.get_file_handle(path)?;
        if !has_extension(KEPT_BY_READERS) {
            return Ok(file);
        }
        // Without the hash file everything else is readable, and who asks for codes is told what is wrong.
        Ok(match self.hash_file(&path.with_extension(EXTENSION)) {
            Ok(hash_file) => Arc::new(WithHashFile {
                file,
                _hash_file: hash_file,
            }),
            Err(_) => file,
        })
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        self.inner.delete(path)
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        self.inner.exists(path)
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        self.inner.open_write(path)
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        self.inner.atomic_read(path)
    }

    fn atomic_write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        self.inner.atomic_write(path, data)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.inner.sync_directory()
    }

    fn acquire_lock(&self, lock: &Lock) -> Result<DirectoryLock, LockError> {
        self.inner.acquire_lock(lock)
    }

    fn watch(&self, callback: WatchCallback) -> tantivy::Result<WatchHandle> {
        self.inner.watch(callback)
    }
}

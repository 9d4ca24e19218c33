//! A directory in memory under a test's hand: told of each write before it happens, and of what became of
//! it. Leaves out reading.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tantivy::Directory;
use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    AntiCallToken, DirectoryLock, FileHandle, Lock, RamDirectory, TerminatingWrite, WatchCallback,
    WatchHandle, WritePtr,
};

/// What a test has to say about the changes of a directory.
pub trait Hook: Send + Sync + 'static {
    /// A file is about to be created or replaced. An error is what the writer gets.
    fn before_write(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    /// A file is whole; its writer does not know yet.
    fn written(&self, _path: &Path, _bytes: &[u8]) {}

    /// A file is about to be deleted.
    fn deleted(&self, _path: &Path) {}

    /// The directory is about to be synced.
    fn synced(&self) {}
}

/// A [`RamDirectory`] with a [`Hook`]. Clones share both.
pub struct Hooked<H> {
    pub live: RamDirectory,
    pub hook: Arc<H>,
}

impl<H> Hooked<H> {
    pub fn new(hook: H) -> Hooked<H> {
        Hooked {
            live: RamDirectory::create(),
            hook: Arc::new(hook),
        }
    }
}

impl<H> Clone for Hooked<H> {
    fn clone(&self) -> Hooked<H> {
        Hooked {
            live: self.live.clone(),
            hook: Arc::clone(&self.hook),
        }
    }
}

impl<H> std::fmt::Debug for Hooked<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.live.fmt(f)
    }
}

/// A file being written.
struct Recorder<H> {
    live: WritePtr,
    bytes: Vec<u8>,
    path: PathBuf,
    hook: Arc<H>,
}

impl<H: Hook> Write for Recorder<H> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.live.write_all(bytes)?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.live.flush()
    }
}

impl<H: Hook> TerminatingWrite for Recorder<H> {
    fn terminate_ref(&mut self, token: AntiCallToken) -> io::Result<()> {
        self.hook.written(&self.path, &self.bytes);
        self.live.terminate_ref(token)
    }
}

impl<H: Hook> Directory for Hooked<H> {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        self.live.get_file_handle(path)
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        self.hook.deleted(path);
        self.live.delete(path)
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        self.live.exists(path)
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        let refused = self.hook.before_write(path);
        refused.map_err(|error| OpenWriteError::wrap_io_error(error, path.to_owned()))?;
        let recorder = Recorder {
            live: self.live.open_write(path)?,
            bytes: Vec::new(),
            path: path.to_owned(),
            hook: Arc::clone(&self.hook),
        };
        Ok(WritePtr::new(Box::new(recorder)))
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        self.live.atomic_read(path)
    }

    fn atomic_write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        self.hook.before_write(path)?;
        self.hook.written(path, data);
        self.live.atomic_write(path, data)
    }

    fn acquire_lock(&self, lock: &Lock) -> Result<DirectoryLock, LockError> {
        self.live.acquire_lock(lock)
    }

    fn watch(&self, callback: WatchCallback) -> tantivy::Result<WatchHandle> {
        self.live.watch(callback)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.hook.synced();
        self.live.sync_directory()
    }
}

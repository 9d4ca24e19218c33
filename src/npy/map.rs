//! A file as memory. The one place of this module with `unsafe`, because mapping a file is.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Maps a whole file, read-only.
///
/// # Errors
/// `Io` where it cannot be opened or is no file.
pub(super) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    // SAFETY: the map is private to this process and read-only. Another process that cuts the file short
    // while it is mapped makes reads fail with a signal; every reader of maps has that contract, and
    // the files are finished before they get their names. Nothing relies on bytes staying the same:
    // they are copied out and checked as values.
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file) };
    map.map_err(|error| Error::io(path, error))
}

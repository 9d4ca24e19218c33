//! Files that are whole or absent: written beside their place and renamed into it; and files of text. Not here: arrays that grow
//! row by row and are resumed ([`npy`](crate::npy)), and tantivy's own files.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The text of a file, without the byte order mark that some editors begin it with.
///
/// # Errors
/// `Io`; `Corrupt` if it is not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|error| Error::io(path, error))?;
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    String::from_utf8(bytes.to_vec())
        .map_err(|_| Error::corrupt(path.display().to_string(), "expected UTF-8 text"))
}

/// Writes to a temporary file beside `path`, syncs it and renames it over `path`. A reader sees the old file
/// or the new one. A killed process may leave the temporary file, `<path>.<process>.part`.
///
/// # Errors
/// `Io`, and then `path` is as it was.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(part);
    let written = File::create(&part)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&part, path));
    if let Err(error) = written {
        // The first error is the one to report.
        let _ = fs::remove_file(&part);
        return Err(Error::io(path, error));
    }
    // Not every file system can sync a folder. The file itself is safe; only its name could be lost.
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if let Ok(folder) = File::open(folder.unwrap_or(Path::new("."))) {
        let _ = folder.sync_all();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        for bytes in [&b"first"[..], b"", b"second"] {
            write_whole(&path, bytes).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
        // A folder is not replaced by a file.
        fs::create_dir(dir.path().join("b")).unwrap();
        let error = write_whole(&dir.path().join("b"), b"third").unwrap_err();
        assert!(error.to_string().contains("b: "), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}

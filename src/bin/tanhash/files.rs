//! Result files: whole under their names or not there, and never in the place of what is read; files of text. Not
//! here: what an index and a data set of features resume by themselves.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

/// A file that is written beside its place, and renamed into it by [`finish`](WholeFile::finish). Dropped before
/// that, it is removed, and what had the name is as it was.
pub struct WholeFile {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
}

impl WholeFile {
    /// Begins a file. Fails now, not after the work, where `path` cannot be written.
    pub fn create(path: &Path) -> Result<WholeFile> {
        let about = || path.display().to_string();
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            bail!(
                "{}: expected the name of a file, found a folder, a device or a pipe; choose another name",
                about()
            );
        }
        let (Some(name), folder) = (path.file_name(), path.parent()) else {
            bail!("expected the name of a file, got {:?}", about());
        };
        let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            bail!(
                "{}: expected a folder {}, found none; make it or choose another name",
                about(),
                folder.display()
            );
        }
        let mut prefix = name.to_owned();
        prefix.push(".");
        let mut options = tempfile::Builder::new();
        options.prefix(&prefix).suffix(".part");
        // As of any new file. Otherwise only its owner could read it.
        #[cfg(unix)]
        options.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = options
            .tempfile_in(folder.unwrap_or(Path::new(".")))
            .with_context(about)?;
        Ok(WholeFile {
            path: path.to_owned(),
            out: BufWriter::new(file),
        })
    }

    /// Gives the file its name.
    pub fn finish(self) -> Result<()> {
        let WholeFile { path, out } = self;
        out.into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| {
                file.as_file().sync_all()?;
                Ok(file.persist(&path)?)
            })
            .map(drop)
            .with_context(|| path.display().to_string())
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The text of a file, without the byte order mark that some editors begin it with.
pub fn read_text(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// Refuses an output in the place of a file that the command reads, which would be lost.
pub fn keep_inputs<'a>(
    outputs: &[&Path],
    inputs: impl IntoIterator<Item = &'a Path>,
) -> Result<()> {
    for input in inputs {
        // What does not exist is no input that could be lost.
        let Ok(found) = fs::canonicalize(input) else {
            continue;
        };
        let is_it = |output: &&&Path| fs::canonicalize(output).is_ok_and(|output| output == found);
        if let Some(output) = outputs.iter().find(is_it) {
            bail!(
                "{}: expected another name for what is written, this file is read; choose one",
                output.display()
            );
        }
    }
    Ok(())
}

/// Writes a whole file.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = WholeFile::create(path)?;
    file.write_all(bytes)
        .with_context(|| path.display().to_string())?;
    file.finish()
}

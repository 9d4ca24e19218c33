//! A folder of pictures. Its files are listed and sorted before the first is read, so that they have the
//! same positions in every run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use tanhash::media::{PICTURE_EXTENSIONS, is_picture_extension};

use super::{Entry, Record, Skip, read_picture, words};
use crate::output;

/// Every picture below a folder, by path. Symbolic links to folders are not followed, so a loop cannot trap
/// the walk; they are returned as well. A folder that cannot be read is listed itself, so that it is counted
/// and named too.
pub fn walk(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let mut paths = Vec::new();
    let mut links: Vec<PathBuf> = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if folder == dir => {
                return Err(anyhow!(error).context(dir.display().to_string()));
            }
            Err(_) => {
                paths.push(folder);
                continue;
            }
        };
        for entry in entries {
            let Ok(entry) = entry else {
                paths.push(folder.clone());
                break;
            };
            let path = entry.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            let is_listed = extension.is_some_and(is_picture_extension);
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                _ if is_listed => paths.push(path),
                Ok(kind) if kind.is_symlink() && path.is_dir() => links.push(path),
                _ => {}
            }
        }
    }
    if paths.is_empty() {
        bail!(
            "{}: expected pictures ({}), found none",
            dir.display(),
            PICTURE_EXTENSIONS.join(", ")
        );
    }
    paths.sort();
    links.sort();
    Ok((paths, links))
}

/// Says which links were not followed.
pub fn note_links(links: &[PathBuf]) {
    if let Some(first) = links.first() {
        output::note(format!(
            "{} links to folders are not followed, the first: {}; name their targets as inputs to read them",
            links.len(),
            first.display()
        ));
    }
}

/// The path below the folder is the key and, cut into words, the text; the last folder of it is the label.
pub fn entries(
    dir: PathBuf,
    paths: Vec<PathBuf>,
    skip: Skip,
) -> impl Iterator<Item = Result<Entry>> {
    paths.into_iter().map(move |path| {
        if skip.next() {
            return Ok(Entry::Skipped);
        }
        let relative = path.strip_prefix(&dir).unwrap_or(&path);
        let key = relative.to_string_lossy().into_owned();
        let label = relative.parent().and_then(Path::file_name);
        let label = label.map(|name| name.to_string_lossy().into_owned());
        Ok(Entry::record(Record {
            text: words(&key),
            label: label.unwrap_or_default(),
            key,
            body: read_picture(&path),
            ..Record::default()
        }))
    })
}

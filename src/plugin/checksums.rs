//! `SHA256SUMS`: the SHA-256 of every file of a finished index, in the form that `sha256sum -c` reads.
//!
//! The segment files have checksums of their own, which find accidents; this list also notices a file that
//! was exchanged for a sound one, and it can be signed. It covers the files of one directory, none below.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::code::hex;
use crate::error::{Error, Result};
use crate::files::write_whole;

/// The name of the list.
pub const CHECKSUMS_FILE: &str = "SHA256SUMS";

/// The list is this long at most.
const LIST_BYTES_MAX: u64 = 64 << 20;

/// Writes the list anew, over every file of the directory but itself and lock files.
///
/// # Errors
/// `Io`; `InvalidArgument` for a file whose name is no plain text.
pub fn write_checksums(dir: impl AsRef<Path>) -> Result<usize> {
    let dir = dir.as_ref();
    let mut text = String::new();
    let names = file_names(dir)?;
    for name in &names {
        if name.contains(['\n', '\\']) {
            return Err(Error::invalid(format!(
                "{}: expected file names of one line without backslashes, got {name:?}",
                dir.display()
            )));
        }
        text.push_str(&format!("{}  {name}\n", sha256_of(&dir.join(name))?));
    }
    write_whole(&dir.join(CHECKSUMS_FILE), text.as_bytes())?;
    Ok(names.len())
}

/// Compares the directory with its list: one line for each difference; `None` if there is no list.
///
/// # Errors
/// `Io` if the directory or the list cannot be read.
pub fn verify_checksums(dir: impl AsRef<Path>) -> Result<Option<Vec<String>>> {
    let dir = dir.as_ref();
    let Some((listed, mut problems)) = read_list(dir)? else {
        return Ok(None);
    };
    let present = file_names(dir)?;
    for (name, expected) in &listed {
        match present.contains(name) {
            true => problems.extend(difference(dir, name, expected)?),
            false => problems.push(format!("{name}: in {CHECKSUMS_FILE}, and missing")),
        }
    }
    let unlisted = present.iter().filter(|name| !listed.contains_key(*name));
    problems.extend(unlisted.map(|name| format!("{name}: not in {CHECKSUMS_FILE}")));
    Ok(Some(problems))
}

/// Compares the segments' files with the list, if there is one: one line for each that differs. Those never
/// change, so that a list is good for them also when the index was changed after it was written; files that
/// came or went since are no difference.
///
/// # Errors
/// `Io` if the directory, the list or a file cannot be read.
pub fn verify_segment_checksums(dir: impl AsRef<Path>) -> Result<Vec<String>> {
    let dir = dir.as_ref();
    let Some((listed, _)) = read_list(dir)? else {
        return Ok(Vec::new());
    };
    let present = file_names(dir)?;
    let mut problems = Vec::new();
    for (name, expected) in &listed {
        if is_of_segment(name) && present.contains(name) {
            problems.extend(difference(dir, name, expected)?);
        }
    }
    Ok(problems)
}

/// Whether tantivy names files of segments so: 32 hexadecimal digits and an extension.
fn is_of_segment(name: &str) -> bool {
    let (stem, extension) = name.split_once('.').unwrap_or((name, ""));
    stem.len() == 32 && stem.bytes().all(|b| b.is_ascii_hexdigit()) && !extension.is_empty()
}

fn difference(dir: &Path, name: &str, expected: &str) -> Result<Option<String>> {
    let found = sha256_of(&dir.join(name))?;
    Ok((found != expected).then(|| {
        format!("{name}: expected SHA-256 {expected} as {CHECKSUMS_FILE} says, found {found}")
    }))
}

/// File names and their sums.
type Listed = BTreeMap<String, String>;

/// The list, and its lines that are none; `None` if there is no list.
fn read_list(dir: &Path) -> Result<Option<(Listed, Vec<String>)>> {
    let path = dir.join(CHECKSUMS_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(&path, error)),
    };
    let mut text = Vec::new();
    let read = file.take(LIST_BYTES_MAX).read_to_end(&mut text);
    read.map_err(|error| Error::io(&path, error))?;
    let text = String::from_utf8_lossy(&text);
    let mut problems = Vec::new();
    let mut listed = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        match line.split_once("  ") {
            // A name with a separator could lead out of the directory.
            Some((sum, name)) if sum.len() == 64 && !name.contains(['/', '\\']) => {
                listed.insert(name.to_owned(), sum.to_owned());
            }
            _ => problems.push(format!(
                "{CHECKSUMS_FILE}, line {number}: expected a SHA-256 and a file name"
            )),
        }
    }
    Ok(Some((listed, problems)))
}

/// The files of a directory, sorted. Lock files, and what is about to be renamed, are nobody's data.
fn file_names(dir: &Path) -> Result<Vec<String>> {
    let about = |error| Error::io(dir, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(about)? {
        let entry = entry.map_err(about)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let passing = name.ends_with(".lock") || name.ends_with(".part") || name == CHECKSUMS_FILE;
        if !passing && entry.file_type().map_err(about)?.is_file() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn sha256_of(path: &Path) -> Result<String> {
    let about = |error| Error::io(path, error);
    let mut file = File::open(path).map_err(about)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(about)? {
            0 => break,
            len => hasher.update(&buffer[..len]),
        }
    }
    Ok(hex(&hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_has_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["a", "b", "c"] {
            fs::write(at(name), name).unwrap();
        }
        assert_eq!(verify_checksums(dir.path()).unwrap(), None);
        fs::write(at("x.lock"), "").unwrap();
        assert_eq!(write_checksums(dir.path()).unwrap(), 3);
        assert_eq!(verify_checksums(dir.path()).unwrap(), Some(Vec::new()));
        // The SHA-256 of "a" is a published test value of many tools.
        let list = fs::read_to_string(at(CHECKSUMS_FILE)).unwrap();
        let a = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb  a\n";
        assert!(list.starts_with(a), "{list}");
        fs::write(at("a"), "other").unwrap();
        fs::remove_file(at("b")).unwrap();
        fs::write(at("d"), "new").unwrap();
        let problems = verify_checksums(dir.path()).unwrap().unwrap();
        assert_eq!(problems.len(), 3, "{problems:?}");
        for (problem, name) in problems.iter().zip(["a: expected", "b: in", "d: not"]) {
            assert!(problem.starts_with(name), "{problem}");
        }
        fs::write(
            at(CHECKSUMS_FILE),
            format!("{list}{}  ../etc\n", "0".repeat(64)),
        )
        .unwrap();
        let problems = verify_checksums(dir.path()).unwrap().unwrap();
        assert!(problems[0].contains("line 4"), "{problems:?}");
    }

    #[test]
    fn segment_files_are_compared_whatever_else_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let names = [
            "0123456789abcdef0123456789abcdef.pos",
            "0123456789abcdef0123456789abcde0.term",
        ];
        for name in ["meta.json", names[0], names[1]] {
            fs::write(at(name), name).unwrap();
        }
        assert!(verify_segment_checksums(dir.path()).unwrap().is_empty());
        write_checksums(dir.path()).unwrap();
        // A commit: another list of segments, one that is gone and one that is new.
        fs::write(at("meta.json"), "other").unwrap();
        fs::remove_file(at(names[1])).unwrap();
        fs::write(at("00000000000000000000000000000000.term"), "new").unwrap();
        assert!(verify_segment_checksums(dir.path()).unwrap().is_empty());
        fs::write(at(names[0]), names[1]).unwrap();
        let problems = verify_segment_checksums(dir.path()).unwrap();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(names[0]), "{problems:?}");
    }
}

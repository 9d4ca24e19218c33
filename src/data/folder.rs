//! Pictures in folders: one folder a class, split by `train/` and `test/` or by a seed.
//!
//! Every file of a class folder is taken for a picture; one that is none is left out and named. Names
//! that start with a dot are passed over. A symbolic link to a file is read, one to a folder is not
//! followed, so no loop can catch us. Pictures come class after class, by name within a class.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{Dataset, PictureSet, PictureShape, picture_bytes, train_is_database, zeroed_pixels};
use crate::error::{Error, Result};
use crate::media::{Limits, decode, to_shape};
use crate::random;

const DEFAULT_SHAPE: PictureShape = PictureShape {
    side: 32,
    channels: 3,
};

type Skipped = Vec<(PathBuf, String)>;

pub(super) fn load(dir: &Path, shape: Option<PictureShape>, seed: u64) -> Result<Dataset> {
    let shape = shape.unwrap_or(DEFAULT_SHAPE);
    let mut skipped = Skipped::new();
    let (train_dir, test_dir) = (dir.join("train"), dir.join("test"));
    if train_dir.is_dir() && test_dir.is_dir() {
        let class_names = class_names(&train_dir, &mut skipped)?;
        for name in self::class_names(&test_dir, &mut skipped)? {
            if !class_names.contains(&name) {
                return Err(Error::invalid(format!(
                    "class {name:?} is in {} and not in {}; every class needs train pictures",
                    test_dir.display(),
                    train_dir.display()
                )));
            }
        }
        let train = read_classes(&train_dir, &class_names, shape, &mut skipped)?;
        check_counts(&train, &class_names, 1, &skipped)?;
        let query = read_classes(&test_dir, &class_names, shape, &mut skipped)?;
        if query.is_empty() {
            return Err(Error::invalid(format!(
                "no picture in {}; it needs at least one",
                test_dir.display()
            )));
        }
        return Ok(train_is_database(class_names, train, query, skipped));
    }

    let class_names = class_names(dir, &mut skipped)?;
    let all = read_classes(dir, &class_names, shape, &mut skipped)?;
    check_counts(&all, &class_names, 2, &skipped)?;
    let (train_rows, query_rows) = stratified_split(&all.labels, class_names.len(), seed);
    let (train, query) = (all.subset(&train_rows), all.subset(&query_rows));
    let mut dataset = train_is_database(class_names, train, query, skipped);
    dataset.protocol = format!(
        "query = {} pictures, a fifth of each class (at least 1) drawn with seed {seed}; train = database = the other {}",
        dataset.query.len(),
        dataset.train.len()
    );
    Ok(dataset)
}

/// The names of the class folders, sorted.
fn class_names(dir: &Path, skipped: &mut Skipped) -> Result<Vec<String>> {
    let mut names = BTreeSet::new();
    for path in entries(dir)? {
        let kind = path.symlink_metadata().map_err(|e| Error::io(&path, e))?;
        if kind.is_dir() {
            let name = path.file_name().unwrap_or_default().to_str();
            let name = name.ok_or_else(|| {
                Error::invalid(format!(
                    "the name of {} is not UTF-8; rename the class folder",
                    path.display()
                ))
            })?;
            names.insert(name.to_owned());
        } else if kind.is_symlink() && path.is_dir() {
            skipped.push((
                path,
                "a symbolic link to a folder is not followed".to_owned(),
            ));
        }
    }
    if names.is_empty() {
        return Err(Error::invalid(format!(
            "expected one folder a class in {}, found no folder",
            dir.display()
        )));
    }
    Ok(names.into_iter().collect())
}

/// What lies in a folder, sorted by name, without names that start with a dot.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|error| Error::io(dir, error))? {
        let entry = entry.map_err(|error| Error::io(dir, error))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Reads and decodes the pictures of all classes, on all threads. A class without a folder has none.
fn read_classes(
    dir: &Path,
    class_names: &[String],
    shape: PictureShape,
    skipped: &mut Skipped,
) -> Result<PictureSet> {
    let mut files = Vec::new();
    for (label, name) in class_names.iter().enumerate() {
        let class_dir = dir.join(name);
        if !class_dir.is_dir() {
            continue;
        }
        for path in entries(&class_dir)? {
            if path.is_dir() {
                let reason = "a folder inside a class folder is not read".to_owned();
                skipped.push((path, reason));
            } else {
                files.push((path, label as u32));
            }
        }
    }

    let n_bytes = picture_bytes(shape);
    let mut pixels = zeroed_pixels(files.len(), shape)?;
    let failures: Vec<Option<String>> = pixels
        .par_chunks_exact_mut(n_bytes)
        .zip(&files)
        .map(|(out, (path, _))| read_picture(path, shape, out).err())
        .collect();

    // Close the gaps that failed pictures left.
    let mut labels = Vec::with_capacity(files.len());
    for (i, ((path, label), failure)) in files.into_iter().zip(failures).enumerate() {
        match failure {
            Some(reason) => skipped.push((path, reason)),
            None => {
                pixels.copy_within(i * n_bytes..(i + 1) * n_bytes, labels.len() * n_bytes);
                labels.push(label);
            }
        }
    }
    pixels.truncate(labels.len() * n_bytes);
    pixels.shrink_to_fit();
    Ok(PictureSet {
        shape,
        pixels,
        labels,
    })
}

fn read_picture(path: &Path, shape: PictureShape, out: &mut [u8]) -> Result<(), String> {
    let limits = Limits::default();
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    // A pipe would block, and a huge file is refused before it is read.
    if !metadata.is_file() {
        return Err("expected a file, found a pipe, socket or device".to_owned());
    }
    if metadata.len() > limits.max_bytes as u64 {
        return Err(format!(
            "expected a file of at most {} bytes, found {}",
            limits.max_bytes,
            metadata.len()
        ));
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let picture = decode(&bytes, &limits).map_err(|error| error.to_string())?;
    let shaped = to_shape(&picture, shape).map_err(|error| error.to_string())?;
    out.copy_from_slice(&shaped);
    Ok(())
}

fn check_counts(
    set: &PictureSet,
    class_names: &[String],
    min: usize,
    skipped: &Skipped,
) -> Result<()> {
    let mut counts = vec![0; class_names.len()];
    for &label in &set.labels {
        counts[label as usize] += 1;
    }
    match counts.iter().position(|&count| count < min) {
        None => Ok(()),
        Some(class) => Err(Error::invalid(format!(
            "class {:?} has {} readable pictures, expected at least {min}; add some or remove the \
             folder ({} files of the data set were skipped)",
            class_names[class],
            counts[class],
            skipped.len()
        ))),
    }
}

/// Rows to train on and rows to query with, both ascending: a fifth of each class, at least one, is
/// drawn for the query. Contract: every class has at least two rows.
fn stratified_split(labels: &[u32], n_classes: usize, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut of_class = vec![Vec::new(); n_classes];
    for (row, &label) in labels.iter().enumerate() {
        of_class[label as usize].push(row);
    }
    let mut is_query = vec![false; labels.len()];
    for (class, rows) in of_class.iter().enumerate() {
        // A stream a class: adding a class leaves the split of the others alone.
        let order = random::permutation(rows.len(), seed, class as u64);
        for &i in &order[..(rows.len() / 5).max(1)] {
            is_query[rows[i as usize]] = true;
        }
    }
    (0..labels.len()).partition(|&row| !is_query[row])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_picture(path: &Path, grey: u8) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::from_pixel(8, 6, image::Rgb([grey; 3]))
            .save_with_format(path, image::ImageFormat::Png)
            .unwrap();
    }

    #[test]
    fn a_seeded_split_of_class_folders() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..10 {
            write_picture(&dir.path().join(format!("dog/{i}.png")), i);
        }
        for i in 0..3 {
            write_picture(&dir.path().join(format!("cat/{i}.png")), 100 + i);
        }
        std::fs::write(dir.path().join("cat/broken.jpg"), b"no picture").unwrap();
        std::fs::write(dir.path().join("cat/.hidden"), b"no picture").unwrap();
        std::fs::write(dir.path().join("README"), b"not in a class").unwrap();
        std::fs::create_dir(dir.path().join("dog/inner")).unwrap();

        let dataset = load(dir.path(), None, 1).unwrap();
        assert_eq!(dataset.class_names, ["cat", "dog"]);
        assert_eq!(dataset.query.labels, [0, 1, 1]);
        assert_eq!(dataset.train.len(), 10);
        assert_eq!(dataset.train.picture(0).len(), 32 * 32 * 3);
        let mut greys: Vec<u8> = (0..dataset.train.len())
            .map(|i| dataset.train.picture(i)[0])
            .chain((0..dataset.query.len()).map(|i| dataset.query.picture(i)[0]))
            .collect();
        greys.sort_unstable();
        assert_eq!(greys, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 100, 101, 102]);
        assert_eq!(dataset.skipped.len(), 2, "{:?}", dataset.skipped);
        let (path, reason) = dataset
            .skipped
            .iter()
            .find(|(path, _)| path.ends_with("cat/broken.jpg"))
            .unwrap();
        assert!(
            reason.starts_with("decode: expected a JPEG"),
            "{path:?} {reason}"
        );

        let again = load(dir.path(), None, 1).unwrap();
        assert_eq!(again.query.pixels, dataset.query.pixels);
        let seeds: BTreeSet<Vec<u8>> = (0..8)
            .map(|seed| load(dir.path(), None, seed).unwrap().query.pixels.clone())
            .collect();
        assert!(seeds.len() > 1);
    }

    #[test]
    fn train_and_test_trees() {
        let dir = tempfile::tempdir().unwrap();
        write_picture(&dir.path().join("train/a/1.png"), 1);
        write_picture(&dir.path().join("train/b/1.png"), 2);
        write_picture(&dir.path().join("test/b/1.png"), 3);
        let shape = PictureShape {
            side: 6,
            channels: 1,
        };
        let dataset = load(dir.path(), Some(shape), 0).unwrap();
        assert_eq!(dataset.train.labels, [0, 1]);
        assert_eq!(dataset.query.labels, [1]);
        assert_eq!(dataset.query.picture(0), [3; 36]);
        write_picture(&dir.path().join("test/c/1.png"), 3);
        let error = load(dir.path(), None, 0).unwrap_err();
        assert!(
            error.to_string().starts_with("class \"c\" is in"),
            "{error}"
        );
    }

    #[test]
    fn a_class_that_cannot_be_split_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path(), None, 0).is_err());
        write_picture(&dir.path().join("many/1.png"), 1);
        write_picture(&dir.path().join("many/2.png"), 1);
        write_picture(&dir.path().join("single/1.png"), 1);
        let error = load(dir.path(), None, 0).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("class \"single\" has 1 readable pictures"),
            "{error}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_to_folders_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..3 {
            write_picture(&dir.path().join(format!("a/{i}.png")), i);
        }
        std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("a/loop")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("a/0.png"), dir.path().join("a/link.png"))
            .unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("a/dangling")).unwrap();
        let dataset = load(dir.path(), None, 0).unwrap();
        assert_eq!(dataset.class_names, ["a"]);
        assert_eq!(dataset.train.len() + dataset.query.len(), 4);
        assert_eq!(dataset.skipped.len(), 3, "{:?}", dataset.skipped);
    }
}

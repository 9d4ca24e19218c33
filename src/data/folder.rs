//! Pictures in folders: one folder a class, split by `train/` and `test/` or by a seed.
//!
//! Every file of a class folder is taken for a picture; one that is none is left out and named. Names
//! that start with a dot are passed over. A symbolic link to a file is read, one to a folder is not
//! followed, so no loop can catch us. Pictures come class after class, by name within a class.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::examples::{check_shape, picture_bytes, read_picture};
use super::{IN_MEMORY_SIDE_MAX, PictureShape, Pool, Source, train_then_query};
use crate::error::{Error, Result};
use crate::media::{Resize, is_picture_extension};

const DEFAULT_SHAPE: PictureShape = PictureShape {
    side: 32,
    channels: 3,
};

type Skipped = Vec<(PathBuf, String)>;

const OUTSIDE: &str = "a picture outside of the class folders";

pub(super) fn load(dir: &Path, shape: Option<PictureShape>) -> Result<Pool> {
    let shape = shape.unwrap_or(DEFAULT_SHAPE);
    check_shape(shape)?;
    let mut skipped = Skipped::new();
    let (train_dir, test_dir) = (dir.join("train"), dir.join("test"));
    if train_dir.is_dir() != test_dir.is_dir() && holds_folders(&train_dir, &test_dir)? {
        let (found, missing) = match train_dir.is_dir() {
            true => (&train_dir, &test_dir),
            false => (&test_dir, &train_dir),
        };
        return Err(Error::invalid(format!(
            "expected {} beside {}; add it, or give {} as the data set, whose pictures are then split by the seed",
            missing.display(),
            found.display(),
            found.display()
        )));
    }
    if !(train_dir.is_dir() && test_dir.is_dir()) {
        let class_names = class_names(dir, &mut skipped)?;
        let files = files(dir, &class_names, &mut skipped)?;
        let (source, labels) = read(files, shape, &mut skipped)?;
        return pool(class_names, source, labels, None, skipped);
    }
    for path in entries(dir)? {
        if path.is_dir() && path != train_dir && path != test_dir {
            let reason = "beside train/ and test/ no other folder is read".to_owned();
            skipped.push((path, reason));
        } else if is_picture_name(&path) {
            skipped.push((path, OUTSIDE.to_owned()));
        }
    }
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
    let mut files = files(&train_dir, &class_names, &mut skipped)?;
    files.extend(self::files(&test_dir, &class_names, &mut skipped)?);
    let n_unread = skipped.len();
    let n_train_files = files
        .iter()
        .filter(|(path, _)| path.starts_with(&train_dir))
        .count();
    let (source, labels) = read(files, shape, &mut skipped)?;
    let refused = skipped[n_unread..].iter();
    let n_train = n_train_files
        - refused
            .filter(|(path, _)| path.starts_with(&train_dir))
            .count();
    if n_train == labels.len() {
        return Err(Error::invalid(format!(
            "no picture in {}; it needs at least one",
            test_dir.display()
        )));
    }
    pool(class_names, source, labels, Some(n_train), skipped)
}

/// The pool, where every class has train pictures; without a test split of its own, at least two.
fn pool(
    class_names: Vec<String>,
    source: Source,
    labels: Vec<u32>,
    n_train: Option<usize>,
    skipped: Skipped,
) -> Result<Pool> {
    let mut counts = vec![0; class_names.len()];
    for &label in &labels[..n_train.unwrap_or(labels.len())] {
        counts[label as usize] += 1;
    }
    let min = if n_train.is_some() { 1 } else { 2 };
    let pool = Pool {
        class_names,
        source,
        flags: n_train.map(|n_train| train_then_query(n_train, labels.len())),
        labels,
        label_sets: None,
        skipped,
    };
    match counts.iter().position(|&count| count < min) {
        None => Ok(pool),
        Some(class) => Err(pool.too_few(class, counts[class], min)),
    }
}

/// True if one of two folders, the one that is there, has class folders in it.
fn holds_folders(one: &Path, other: &Path) -> Result<bool> {
    let dir = if one.is_dir() { one } else { other };
    Ok(entries(dir)?.iter().any(|path| path.is_dir()))
}

/// True if a file is named as pictures are.
fn is_picture_name(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    !path.is_dir() && extension.is_some_and(is_picture_extension)
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
            if name.contains(['\n', '\r']) {
                return Err(Error::invalid(format!(
                    "the name of the class folder {name:?} in {} has a line break; rename it",
                    dir.display()
                )));
            }
            names.insert(name.to_owned());
        } else if kind.is_symlink() && path.is_dir() {
            skipped.push((
                path,
                "a symbolic link to a folder is not followed".to_owned(),
            ));
        } else if is_picture_name(&path) {
            skipped.push((path, OUTSIDE.to_owned()));
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

/// The files of all classes, each with its label. A class without a folder has none.
fn files(dir: &Path, class_names: &[String], skipped: &mut Skipped) -> Result<Vec<(PathBuf, u32)>> {
    let mut files = Vec::new();
    for (label, name) in class_names.iter().enumerate() {
        let class_dir = dir.join(name);
        // A link was named by `class_names`.
        if class_dir.is_symlink() || !class_dir.is_dir() {
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
    Ok(files)
}

/// Decodes all files, on all threads, and leaves out those that cannot be. Small pictures are kept, of
/// large ones the paths.
fn read(
    files: Vec<(PathBuf, u32)>,
    shape: PictureShape,
    skipped: &mut Skipped,
) -> Result<(Source, Vec<u32>)> {
    if shape.side > IN_MEMORY_SIDE_MAX {
        let failures: Vec<Option<String>> = files
            .par_iter()
            .map(|(path, _)| read_picture(path, shape, Resize::default()).err())
            .collect();
        let (mut paths, mut labels) = (Vec::new(), Vec::new());
        for ((path, label), failure) in files.into_iter().zip(failures) {
            match failure {
                Some(reason) => skipped.push((path, reason)),
                None => {
                    paths.push(path);
                    labels.push(label);
                }
            }
        }
        return Ok((Source::Files(paths), labels));
    }

    let n_bytes = picture_bytes(shape);
    let mut bytes = vec![0; files.len() * n_bytes];
    let failures: Vec<Option<String>> = bytes
        .par_chunks_exact_mut(n_bytes)
        .zip(&files)
        .map(|(out, (path, _))| {
            let pixels = read_picture(path, shape, Resize::default());
            pixels.map(|pixels| out.copy_from_slice(&pixels)).err()
        })
        .collect();

    // Close the gaps that failed pictures left.
    let mut labels = Vec::with_capacity(files.len());
    for (i, ((path, label), failure)) in files.into_iter().zip(failures).enumerate() {
        match failure {
            Some(reason) => skipped.push((path, reason)),
            None => {
                bytes.copy_within(i * n_bytes..(i + 1) * n_bytes, labels.len() * n_bytes);
                labels.push(label);
            }
        }
    }
    bytes.truncate(labels.len() * n_bytes);
    bytes.shrink_to_fit();
    Ok((Source::Pixels { shape, bytes }, labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Dataset, Split, split};

    fn load(dir: &Path, shape: Option<PictureShape>, seed: u64) -> Result<Dataset> {
        split::split(super::load(dir, shape)?, Split::Official, seed)
    }

    /// The queries' first pixels, which tell the pictures apart.
    fn query_greys(dataset: &Dataset) -> Vec<u8> {
        let greys = (0..dataset.query.len()).map(|i| dataset.query.stored_picture(i).unwrap()[0]);
        greys.collect()
    }

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
        assert_eq!(dataset.train.stored_picture(0).unwrap().len(), 32 * 32 * 3);
        let learned: Vec<u8> = (0..dataset.train.len())
            .map(|i| dataset.train.stored_picture(i).unwrap()[0])
            .collect();
        // The cats, 100 and up, come first, and each class by name.
        let (cats, dogs) = learned.split_at(2);
        assert!(cats.is_sorted() && dogs.is_sorted() && cats[0] >= 100 && dogs[7] < 10);
        let mut greys: Vec<u8> = (learned.into_iter())
            .chain((0..dataset.query.len()).map(|i| dataset.query.stored_picture(i).unwrap()[0]))
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
        assert_eq!(query_greys(&again), query_greys(&dataset));
        let seeds: BTreeSet<Vec<u8>> = (0..8)
            .map(|seed| query_greys(&load(dir.path(), None, seed).unwrap()))
            .collect();
        assert!(seeds.len() > 1);

        // For a network that reads large pictures the files are kept, the broken one still left out.
        let large = PictureShape {
            side: 100,
            channels: 3,
        };
        let files = load(dir.path(), Some(large), 1).unwrap();
        assert_eq!(files.query.labels, [0, 1, 1]);
        assert_eq!(files.skipped.len(), 2);
        let pixels = files
            .query
            .pixels(&[0, 2], large, Default::default())
            .unwrap();
        let greys = query_greys(&dataset);
        assert_eq!(
            (pixels.len(), pixels[0], pixels[30_000]),
            (60_000, greys[0], greys[2])
        );
    }

    #[test]
    fn train_and_test_trees() {
        let dir = tempfile::tempdir().unwrap();
        write_picture(&dir.path().join("train/a/1.png"), 1);
        write_picture(&dir.path().join("train/b/1.png"), 2);
        write_picture(&dir.path().join("test/b/1.png"), 3);
        // Left out, and in neither split.
        std::fs::write(dir.path().join("train/a/0.png"), b"no picture").unwrap();
        let shape = PictureShape {
            side: 6,
            channels: 1,
        };
        let dataset = load(dir.path(), Some(shape), 0).unwrap();
        assert_eq!(dataset.train.labels, [0, 1]);
        assert_eq!(dataset.query.labels, [1]);
        assert_eq!(dataset.train.stored_picture(0).unwrap(), [1; 36]);
        assert_eq!(dataset.query.stored_picture(0).unwrap(), [3; 36]);
        assert_eq!(dataset.skipped.len(), 1);
        write_picture(&dir.path().join("test/c/1.png"), 3);
        let error = load(dir.path(), None, 0).unwrap_err();
        assert!(
            error.to_string().starts_with("class \"c\" is in"),
            "{error}"
        );
        std::fs::remove_dir_all(dir.path().join("test")).unwrap();
        std::fs::create_dir_all(dir.path().join("test/b")).unwrap();
        let error = load(dir.path(), None, 0).unwrap_err().to_string();
        assert!(error.starts_with("no picture in"), "{error}");
    }

    #[test]
    fn what_lies_beside_the_classes_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for split in ["train", "test", "validation"] {
            write_picture(&dir.path().join(split).join("a/1.png"), 1);
        }
        write_picture(&dir.path().join("train/loose.png"), 1);
        write_picture(&dir.path().join("outside.PNG"), 1);
        let dataset = load(dir.path(), None, 0).unwrap();
        let skipped = |name: &str| {
            let mut paths = dataset.skipped.iter().map(|(path, _)| path);
            paths.any(|path| path.ends_with(name))
        };
        assert!(skipped("validation") && skipped("train/loose.png") && skipped("outside.PNG"));
        assert_eq!(dataset.skipped.len(), 3);
        for name in ["test", "train"] {
            let other = tempfile::tempdir().unwrap();
            std::fs::rename(dir.path().join(name), other.path().join(name)).unwrap();
            let error = load(other.path(), None, 0).unwrap_err().to_string();
            assert!(
                error.contains("beside") && error.contains("add it"),
                "{error}"
            );
        }
        // Names are lines of text files.
        #[cfg(unix)]
        {
            let dir = tempfile::tempdir().unwrap();
            write_picture(&dir.path().join("two\nlines/1.png"), 1);
            let error = load(dir.path(), None, 0).unwrap_err().to_string();
            assert!(error.contains("has a line break; rename it"), "{error}");
        }
        // A class of trains.
        let dir = tempfile::tempdir().unwrap();
        for class in ["train", "ship"] {
            for i in 0..2 {
                write_picture(&dir.path().join(format!("{class}/{i}.png")), i);
            }
        }
        let dataset = load(dir.path(), None, 0).unwrap();
        assert_eq!(dataset.class_names, ["ship", "train"]);
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

    /// Nobody writes into the pipe and nothing ends the device: opening the one, or reading the other, would
    /// never end.
    #[cfg(unix)]
    #[test]
    fn pipes_and_devices_are_left_out_unopened() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..3 {
            write_picture(&dir.path().join(format!("a/{i}.png")), i);
        }
        let pipe = dir.path().join("a/pipe.png");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("a/zero.png")).unwrap();
        for side in [6, 100] {
            let shape = PictureShape { side, channels: 3 };
            let dataset = load(dir.path(), Some(shape), 0).unwrap();
            assert_eq!(dataset.train.len() + dataset.query.len(), 3);
            let reasons: Vec<&str> = dataset.skipped.iter().map(|(_, why)| &why[..]).collect();
            assert_eq!(
                reasons,
                ["expected a file, found a pipe, socket or device"; 2]
            );
        }
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
        // A link in the place of a class of the test split.
        let dir = tempfile::tempdir().unwrap();
        for (at, name) in (0..).zip(["train/a/1", "train/b/1", "test/a/1", "elsewhere/1"]) {
            write_picture(&dir.path().join(format!("{name}.png")), at);
        }
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join("test/b"))
            .unwrap();
        let dataset = load(dir.path(), None, 0).unwrap();
        assert_eq!(dataset.query.labels, [0]);
        let is_link = |(path, _): &(PathBuf, String)| path.ends_with("test/b");
        assert!(dataset.skipped.iter().any(is_link));
    }
}

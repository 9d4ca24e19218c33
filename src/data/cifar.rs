//! CIFAR-10 and CIFAR-100, from the official binary files or from class folders.
//!
//! A record is the label (CIFAR-100: the coarse label, then the fine one) and 3072 bytes, the 32x32
//! red plane first, then green, then blue. <https://www.cs.toronto.edu/~kriz/cifar.html>

use std::path::{Path, PathBuf};

use super::{PictureShape, Pool, folder};
use crate::error::{Error, Result};

const SHAPE: PictureShape = PictureShape {
    side: 32,
    channels: 3,
};
const PLANE: usize = 32 * 32;

/// What tells one of the two data sets from the other.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    train_files: &'static [&'static str],
    test_files: &'static [&'static str],
    /// The folder in the official archive.
    archive_dir: &'static str,
    /// Bytes before the pixels; the last of them is the label.
    label_bytes: usize,
    /// Separated by spaces.
    class_names: &'static str,
}

pub(super) const CIFAR10: Kind = Kind {
    train_files: &[
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
    ],
    test_files: &["test_batch.bin"],
    archive_dir: "cifar-10-batches-bin",
    label_bytes: 1,
    class_names: "airplane automobile bird cat deer dog frog horse ship truck",
};

pub(super) const CIFAR100: Kind = Kind {
    train_files: &["train.bin"],
    test_files: &["test.bin"],
    archive_dir: "cifar-100-binary",
    label_bytes: 2,
    class_names: "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge \
        bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch \
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo \
        keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse \
        mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy \
        porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper \
        snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television \
        tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm",
};

pub(super) fn load(kind: Kind, dir: &Path, shape: Option<PictureShape>) -> Result<Pool> {
    let first = kind.train_files[0];
    let Some(binary_dir) = [dir.to_owned(), dir.join(kind.archive_dir)]
        .into_iter()
        .find(|dir| dir.join(first).is_file())
    else {
        if dir.join("train").is_dir() && dir.join("test").is_dir() {
            // Pictures of 32 pixels are kept as they are, whatever a network reads.
            let pool = folder::load(dir, shape.filter(|shape| shape.side <= SHAPE.side))?;
            let expected = kind.class_names.split_whitespace().count();
            if pool.class_names.len() != expected {
                return Err(Error::invalid(format!(
                    "expected the class folders of {expected} classes under {}, found {}; for other pictures write folder:{}",
                    dir.display(),
                    pool.class_names.len(),
                    dir.display()
                )));
            }
            return Ok(pool);
        }
        return Err(Error::invalid(format!(
            "expected {first} (official binary files) or class folders in train/ and test/ under {}, found neither",
            dir.display()
        )));
    };
    let class_names: Vec<String> = kind
        .class_names
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    let mut append = |files: &[&str]| -> Result<usize> {
        for file in files {
            let path = binary_dir.join(file);
            append_file(
                &mut pixels,
                &mut labels,
                &path,
                kind.label_bytes,
                class_names.len(),
            )?;
        }
        Ok(labels.len())
    };
    let n_train = append(kind.train_files)?;
    append(kind.test_files)?;
    Ok(Pool::of_pixels(class_names, SHAPE, pixels, labels, n_train))
}

fn append_file(
    pixels: &mut Vec<u8>,
    labels: &mut Vec<u32>,
    path: &PathBuf,
    label_bytes: usize,
    n_classes: usize,
) -> Result<()> {
    let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
    let record = label_bytes + 3 * PLANE;
    let corrupt = |reason| Error::corrupt(path.display().to_string(), reason);
    if bytes.is_empty() || !bytes.len().is_multiple_of(record) {
        return Err(corrupt(format!(
            "expected whole records of {record} bytes, got {} bytes",
            bytes.len()
        )));
    }
    for (i, record) in bytes.chunks_exact(record).enumerate() {
        let (label, planes) = record.split_at(label_bytes);
        let label = label[label_bytes - 1];
        if usize::from(label) >= n_classes {
            return Err(corrupt(format!(
                "expected labels below {n_classes}, record {i} has {label}"
            )));
        }
        labels.push(u32::from(label));
        for at in 0..PLANE {
            let pixel = [planes[at], planes[PLANE + at], planes[2 * PLANE + at]];
            pixels.extend_from_slice(&pixel);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Dataset, Split, split};

    fn load(kind: Kind, dir: &Path) -> Result<Dataset> {
        split::split(super::load(kind, dir, None)?, Split::Official, 0)
    }

    fn record(labels: &[u8], rgb: [u8; 3]) -> Vec<u8> {
        let mut bytes = labels.to_vec();
        for value in rgb {
            bytes.extend_from_slice(&[value; PLANE]);
        }
        bytes
    }

    #[test]
    fn class_folders_are_those_of_the_data_set() {
        let dir = tempfile::tempdir().unwrap();
        for class in 0..9 {
            for split in ["train", "test"] {
                let folder = dir.path().join(split).join(class.to_string());
                std::fs::create_dir_all(&folder).unwrap();
                let picture = image::RgbImage::from_pixel(4, 4, image::Rgb([class; 3]));
                picture.save(folder.join("0.png")).unwrap();
            }
        }
        let error = load(CIFAR10, dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("class folders of 10 classes") && error.contains("found 9"),
            "{error}"
        );
    }

    #[test]
    fn binary_files() {
        assert_eq!(CIFAR10.class_names.split_whitespace().count(), 10);
        assert_eq!(CIFAR100.class_names.split_whitespace().count(), 100);
        let dir = tempfile::tempdir().unwrap();
        let ten = dir.path().join("cifar-10-batches-bin");
        std::fs::create_dir(&ten).unwrap();
        for (i, file) in CIFAR10.train_files.iter().enumerate() {
            std::fs::write(ten.join(file), record(&[i as u8], [i as u8, 100, 200])).unwrap();
        }
        let error = load(CIFAR10, dir.path()).unwrap_err();
        assert!(error.to_string().contains("test_batch.bin"), "{error}");
        std::fs::write(ten.join("test_batch.bin"), record(&[9], [1, 2, 3])).unwrap();
        let dataset = load(CIFAR10, dir.path()).unwrap();
        assert_eq!(dataset.train.labels, [0, 1, 2, 3, 4]);
        assert_eq!(
            dataset.train.stored_picture(3).unwrap()[..6],
            [3, 100, 200, 3, 100, 200]
        );
        assert_eq!(dataset.class_names[9], "truck");

        std::fs::write(dir.path().join("train.bin"), record(&[3, 99], [4, 5, 6])).unwrap();
        std::fs::write(dir.path().join("test.bin"), record(&[19, 98], [7, 8, 9])).unwrap();
        let dataset = load(CIFAR100, dir.path()).unwrap();
        assert_eq!(dataset.train.labels, [99]);
        assert_eq!(dataset.query.stored_picture(0).unwrap().len(), 3 * PLANE);
        assert_eq!(dataset.class_names[99], "worm");
    }

    #[test]
    fn damaged_and_missing_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = load(CIFAR100, dir.path()).unwrap_err();
        assert!(
            error.to_string().starts_with("expected train.bin"),
            "{error}"
        );
        std::fs::write(dir.path().join("train.bin"), [0; 3000]).unwrap();
        let error = load(CIFAR100, dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("got 3000 bytes"), "{error}");
        std::fs::write(dir.path().join("train.bin"), record(&[0, 100], [0; 3])).unwrap();
        let error = load(CIFAR100, dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("record 0 has 100"), "{error}");
    }
}

//! IDX files (MNIST and its kin), gzipped or not, and Fashion-MNIST made of four of them.
//!
//! Layout: two zero bytes, the type 0x08 (unsigned byte), the number of dimensions, then each
//! dimension as a big-endian u32, then the values. <http://yann.lecun.com/exdb/mnist/>

use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use super::{PictureShape, Pool, open};
use crate::error::{Error, Result};

const CLASS_NAMES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

/// Where the data set is looked for when no folder is named; the second is Debian's package.
const USUAL_DIRS: [&str; 3] = [
    ".data/fashion-mnist",
    "/usr/share/datasets/fashion-mnist",
    "/usr/share/dataset-fashion-mnist",
];

/// More values than this are no data set that this module is for.
const MAX_VALUES: usize = 1 << 31;

pub(super) fn load_fashion_mnist(dir: Option<&Path>) -> Result<Pool> {
    let dir = fashion_mnist_dir(dir)?;
    let part = |images: &str, labels: &str| -> Result<(PictureShape, Vec<u8>, Vec<u32>)> {
        pictures(&idx_file(&dir, images)?, &idx_file(&dir, labels)?)
    };
    let (shape, mut pixels, mut labels) =
        part("train-images-idx3-ubyte", "train-labels-idx1-ubyte")?;
    let (test_shape, test_pixels, test_labels) =
        part("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")?;
    if shape != test_shape {
        return Err(corrupt(
            &dir,
            format!(
                "expected train and test pictures of one size, found {} and {} pixels",
                shape.side, test_shape.side
            ),
        ));
    }
    let n_train = labels.len();
    pixels.extend_from_slice(&test_pixels);
    labels.extend_from_slice(&test_labels);
    let class_names = CLASS_NAMES.map(str::to_owned).to_vec();
    Ok(Pool::of_pixels(class_names, shape, pixels, labels, n_train))
}

/// The folder that holds the train pictures: the one named, or a usual one; or, in either, the path
/// that Debian's package unpacks to.
fn fashion_mnist_dir(dir: Option<&Path>) -> Result<PathBuf> {
    let candidates: Vec<PathBuf> = match dir {
        Some(dir) => vec![dir.to_owned()],
        None => USUAL_DIRS.iter().map(PathBuf::from).collect(),
    };
    candidates
        .iter()
        .flat_map(|dir| [dir.clone(), dir.join("usr/share/datasets/fashion-mnist")])
        .find(|dir| idx_file(dir, "train-images-idx3-ubyte").is_ok())
        .ok_or_else(|| {
            let searched: Vec<String> = candidates
                .iter()
                .map(|dir| dir.display().to_string())
                .collect();
            Error::invalid(format!(
                "no fashion-mnist in {}; get it by `apt-get download dataset-fashion-mnist && \
                 dpkg -x dataset-fashion-mnist_*.deb .data/fashion-mnist`, or name the folder of its \
                 four IDX files as fashion-mnist:DIR",
                searched.join(", ")
            ))
        })
}

fn idx_file(dir: &Path, name: &str) -> Result<PathBuf> {
    [format!("{name}.gz"), name.to_owned()]
        .iter()
        .map(|name| dir.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Error::invalid(format!(
                "expected {name} or {name}.gz in {}, found neither",
                dir.display()
            ))
        })
}

/// A file of square pictures with its file of labels.
fn pictures(images: &Path, labels: &Path) -> Result<(PictureShape, Vec<u8>, Vec<u32>)> {
    let (dims, pixels) = read_idx(images, 3)?;
    let (label_dims, label_bytes) = read_idx(labels, 1)?;
    if dims[1] != dims[2] {
        return Err(corrupt(
            images,
            format!("expected square pictures, got {} x {}", dims[1], dims[2]),
        ));
    }
    if label_dims[0] != dims[0] {
        return Err(corrupt(
            labels,
            format!(
                "expected {} labels, one a picture, got {}",
                dims[0], label_dims[0]
            ),
        ));
    }
    if let Some(&label) = label_bytes
        .iter()
        .find(|&&label| usize::from(label) >= CLASS_NAMES.len())
    {
        return Err(corrupt(
            labels,
            format!("expected labels 0 to 9, got {label}"),
        ));
    }
    let shape = PictureShape {
        side: dims[1],
        channels: 1,
    };
    Ok((
        shape,
        pixels,
        label_bytes.into_iter().map(u32::from).collect(),
    ))
}

fn corrupt(path: &Path, reason: impl Into<String>) -> Error {
    Error::corrupt(path.display().to_string(), reason)
}

/// The dimensions and the values of an IDX file of unsigned bytes with `n_dims` dimensions.
fn read_idx(path: &Path, n_dims: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let mut file = std::io::BufReader::new(open(path)?);
    let mut magic = Vec::new();
    file.by_ref()
        .take(2)
        .read_to_end(&mut magic)
        .map_err(|error| Error::io(path, error))?;
    let gzipped = magic == [0x1f, 0x8b];
    let rest = std::io::Cursor::new(magic).chain(file);
    if gzipped {
        parse_idx(path, GzDecoder::new(rest), n_dims)
    } else {
        parse_idx(path, rest, n_dims)
    }
}

fn parse_idx(path: &Path, mut input: impl Read, n_dims: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let mut header = vec![0; 4 + 4 * n_dims];
    let cut_off = |error| corrupt(path, format!("cut off or not a gzip file: {error}"));
    input.read_exact(&mut header).map_err(cut_off)?;
    let expected = [0, 0, 8, n_dims as u8];
    if header[..4] != expected {
        return Err(corrupt(
            path,
            format!(
                "expected an IDX file of unsigned bytes in {n_dims} dimensions (magic {expected:02x?}), got magic {:02x?}",
                &header[..4]
            ),
        ));
    }
    let dims: Vec<usize> = header[4..]
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&bytes| u32::from_be_bytes(bytes) as usize)
        .collect();
    let n_values = dims
        .iter()
        .try_fold(1usize, |product, &dim| product.checked_mul(dim))
        .filter(|&n_values| n_values > 0 && n_values <= MAX_VALUES)
        .ok_or_else(|| {
            corrupt(
                path,
                format!("expected 1 to {MAX_VALUES} values, the header says {dims:?}"),
            )
        })?;
    // Memory grows with what the file holds, not with what its header claims.
    let mut values = Vec::new();
    input
        .take(n_values as u64 + 1)
        .read_to_end(&mut values)
        .map_err(cut_off)?;
    if values.len() != n_values {
        let found = if values.len() > n_values {
            "more".to_owned()
        } else {
            values.len().to_string()
        };
        return Err(corrupt(
            path,
            format!("expected {n_values} values as the header says, got {found}"),
        ));
    }
    Ok((dims, values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Split, split};
    use std::io::Write;

    fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, dims.len() as u8];
        for dim in dims {
            bytes.extend_from_slice(&dim.to_be_bytes());
        }
        bytes.extend_from_slice(values);
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn fixture(dir: &Path) {
        let pixels: Vec<u8> = (0..27).collect();
        for (name, bytes) in [
            (
                "train-images-idx3-ubyte.gz",
                gzip(&idx(&[3, 3, 3], &pixels)),
            ),
            ("train-labels-idx1-ubyte.gz", gzip(&idx(&[3], &[9, 0, 4]))),
            ("t10k-images-idx3-ubyte", idx(&[2, 3, 3], &pixels[..18])),
            ("t10k-labels-idx1-ubyte", idx(&[2], &[1, 2])),
        ] {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    }

    #[test]
    fn four_files_make_a_data_set() {
        let dir = tempfile::tempdir().unwrap();
        fixture(dir.path());
        let load = |dir: &Path| {
            let pool = load_fashion_mnist(Some(dir))?;
            split::split(pool, Split::Official, 0)
        };
        let dataset = load(dir.path()).unwrap();
        assert_eq!(dataset.train.labels, [9, 0, 4]);
        assert_eq!(dataset.train.stored_picture(1).unwrap()[0], 9);
        assert_eq!(dataset.query.labels, [1, 2]);
        assert_eq!(dataset.class_names[9], "Ankle boot");
        assert_eq!(
            dataset.protocol,
            "train = database = 3 train pictures, query = 2 test pictures"
        );
        let unpacked = dir.path().join("deb/usr/share/datasets/fashion-mnist");
        std::fs::create_dir_all(&unpacked).unwrap();
        fixture(&unpacked);
        assert!(load(&dir.path().join("deb")).is_ok());

        let error = load(&dir.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("apt-get download"), "{error}");
    }

    #[test]
    fn headers_are_checked() {
        let check = |bytes: &[u8], n_dims| {
            let message = parse_idx(Path::new("f"), bytes, n_dims).unwrap_err();
            message.to_string()
        };
        assert!(check(&[0, 0, 8], 1).contains("cut off"));
        assert!(check(&idx(&[2, 2], &[0; 4]), 1).contains("got magic [00, 00, 08, 02]"));
        assert!(check(&[0, 0, 9, 1, 0, 0, 0, 1, 0], 1).contains("got magic"));
        assert!(
            check(&idx(&[3], &[0; 2]), 1).ends_with("expected 3 values as the header says, got 2")
        );
        assert!(check(&idx(&[3], &[0; 4]), 1).ends_with("got more"));
        assert!(check(&idx(&[0], &[]), 1).contains("the header says [0]"));
        let most = u32::MAX;
        assert!(check(&idx(&[most, most, most], &[0; 4]), 3).contains("the header says"));
        // The header claims 2 GiB; the few bytes that are there are all that is read.
        assert!(check(&idx(&[1 << 31], &[0; 4]), 1).ends_with("got 4"));
        let cut = gzip(&idx(&[1000], &[7; 1000]));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.gz");
        std::fs::write(&path, &cut[..cut.len() - 12]).unwrap();
        assert!(read_idx(&path, 1).is_err());
    }

    #[test]
    fn counts_and_labels_must_agree() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: Vec<u8>| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let images = write("images", idx(&[2, 1, 1], &[1, 2]));
        let error = pictures(&images, &write("few", idx(&[1], &[0]))).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("expected 2 labels, one a picture, got 1")
        );
        let error = pictures(&images, &write("high", idx(&[2], &[0, 10]))).unwrap_err();
        assert!(error.to_string().ends_with("got 10"));
        let oblong = write("oblong", idx(&[1, 2, 1], &[1, 2]));
        assert!(pictures(&oblong, &write("one", idx(&[1], &[0]))).is_err());
    }
}

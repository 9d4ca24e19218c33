//! Iterative quantization: a rotation of the principal components that loses least when only signs are kept.
//!
//! Gong and Lazebnik, CVPR 2011 (Gong et al., TPAMI 2013, section 3): centered vectors are projected on their
//! `bits` principal directions W, V = X W; then B = sign(V R) and the rotation R that minimizes |B - V R|^2 (the
//! orthogonal Procrustes problem, by an SVD of B^T V) are found in turns. Needs no labels. Bit j of a code is
//! the sign of column j of `(x - mean) W R`. Leaves out the supervised variant (CCA-ITQ).

use std::fs;
use std::path::Path;

use nalgebra::DMatrix;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{EncodeError, Encoder, Payload, PayloadKind, products, sign_codes};
use crate::code::{CodeLen, HashCode, hex};
use crate::error::{Error, ErrorKind, Result};
use crate::files::write_whole;
use crate::random;

const MAX_DIM: usize = 1 << 16;

/// Parts that sums over vectors are made of: a fixed number, so that they do not depend on the threads.
const PARTS: usize = 8;

/// Vectors that are widened to f64 at a time.
const CHUNK: usize = 512;

const MAGIC: &[u8; 8] = b"tanhITQ\n";
const VERSION: u32 = 1;
/// Magic, version, bits, dimension, iterations, seed.
const HEADER_BYTES: usize = 8 + 4 * 4 + 8;
const DIGEST_BYTES: usize = 32;

/// Encodes [`Payload::Vector`] of one dimension by a rotation learned from vectors of the same kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Itq {
    len: CodeLen,
    dim: usize,
    seed: u64,
    iterations: u32,
    model_id: String,
    mean: Vec<f32>,
    /// `bits x dim`: a row is a column of W R.
    projection: Vec<f32>,
}

/// What [`Itq::fit_from`] found.
#[derive(Clone, Debug)]
pub struct ItqFit {
    /// The encoder.
    pub itq: Itq,
    /// The mean of `(B - V R)^2` over all n x bits numbers, for the start rotation and after each iteration. It
    /// never rises.
    pub errors: Vec<f64>,
}

impl Itq {
    /// Learns from `n x dim` numbers, row-major. 50 iterations are the paper's choice. The start rotation follows
    /// from the seed: the left singular vectors of a normal random matrix, as in the authors' code.
    ///
    /// Takes `dim^2` numbers of 8 bytes a few times over, and `n x bits` of them. Sums round differently from
    /// machine to machine, so a fit on another one may differ in its last digits and then has another model id;
    /// the codes of one fitted encoder are the same everywhere.
    ///
    /// # Errors
    /// `InvalidArgument` unless the numbers are finite whole rows, more than `bits` of them, and `dim` is from
    /// `bits` to 65536.
    pub fn fit(
        vectors: &[f32],
        dim: usize,
        len: CodeLen,
        seed: u64,
        iterations: u32,
    ) -> Result<ItqFit> {
        let bits = len.bits();
        let mut rng = random::generator(seed, 1);
        let normal = DMatrix::from_fn(bits, bits, |_, _| random::near_normal(&mut rng));
        let svd = normal.svd(true, false);
        let start = svd.u.expect("U was asked for");
        let rows: Vec<f64> = start.transpose().as_slice().to_vec();
        let mut fit = Itq::fit_from(vectors, dim, len, &rows, iterations)?;
        fit.itq.seed = seed;
        fit.itq.model_id = fit.itq.digest_id();
        Ok(fit)
    }

    /// As [`fit`](Itq::fit), from a given start rotation: bits x bits, row-major, orthogonal. The seed of the
    /// encoder is then 0. Principal directions are in descending order of variance, each with its
    /// largest component (by absolute value, the first of equal ones) positive.
    ///
    /// # Errors
    /// As [`fit`](Itq::fit), and `InvalidArgument` if the start is not orthogonal to within 1e-6.
    pub fn fit_from(
        vectors: &[f32],
        dim: usize,
        len: CodeLen,
        start: &[f64],
        iterations: u32,
    ) -> Result<ItqFit> {
        let bits = len.bits();
        check_vectors(vectors, dim, bits)?;
        if start.len() != bits * bits {
            return Err(Error::invalid(format!(
                "a start rotation for {bits} bits has {} numbers, got {}",
                bits * bits,
                start.len()
            )));
        }
        let mut rotation = DMatrix::from_row_slice(bits, bits, start);
        let off = (rotation.transpose() * &rotation - DMatrix::identity(bits, bits)).amax();
        if off.is_nan() || off > 1e-6 {
            return Err(Error::invalid(format!(
                "a start rotation is orthogonal, got R^T R that is off by {off:.1e}"
            )));
        }
        let n = vectors.len() / dim;
        let rows_in_part = n.div_ceil(PARTS);
        let parts: Vec<&[f32]> = vectors.chunks(rows_in_part * dim).collect();

        let mean = mean(&parts, dim, n);
        let directions = principal_directions(&parts, &mean, bits);
        let projected: Vec<DMatrix<f64>> = parts
            .par_iter()
            .map(|part| {
                let n_rows = part.len() / dim;
                let mut projected = DMatrix::zeros(n_rows, bits);
                for (first, chunk) in (0..).step_by(CHUNK).zip(part.chunks(CHUNK * dim)) {
                    let centered = centered(chunk, &mean);
                    let mut rows = projected.rows_mut(first, centered.ncols());
                    rows.gemm(1.0, &centered.transpose(), &directions, 0.0);
                }
                projected
            })
            .collect();
        let squares: f64 = projected.iter().map(DMatrix::norm_squared).sum();
        let n_numbers = (n * bits) as f64;
        let mut errors = Vec::with_capacity(iterations as usize + 1);
        for iteration in 0..=iterations {
            let signs_by_projected = signs_by_projected(&projected, &rotation);
            // |B - V R|^2 = |B|^2 - 2 tr(B^T V R) + |V|^2.
            let trace = (&signs_by_projected * &rotation).trace();
            errors.push((n_numbers - 2.0 * trace + squares) / n_numbers);
            if iteration < iterations {
                let svd = signs_by_projected.svd(true, true);
                let u = svd.u.expect("U was asked for");
                let v_t = svd.v_t.expect("V was asked for");
                rotation = (u * v_t).transpose();
            }
        }
        // Column-major dim x bits is row-major bits x dim.
        let projection = directions * rotation;
        let mut itq = Itq {
            len,
            dim,
            seed: 0,
            iterations,
            model_id: String::new(),
            mean: mean.iter().map(|&v| v as f32).collect(),
            projection: projection.iter().map(|&v| v as f32).collect(),
        };
        itq.model_id = itq.digest_id();
        Ok(ItqFit { itq, errors })
    }

    /// Numbers of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Iterations of the fit.
    pub fn iterations(&self) -> u32 {
        self.iterations
    }

    /// The code logits of one vector: `(x - mean) W R`.
    ///
    /// # Errors
    /// `InvalidArgument` unless it has [`dim`](Itq::dim) numbers.
    pub fn logits(&self, vector: &[f32]) -> Result<Vec<f32>> {
        if vector.len() != self.dim {
            return Err(Error::invalid(format!(
                "expected a vector of {} numbers, got {}",
                self.dim,
                vector.len()
            )));
        }
        Ok(self.logits_of(vector))
    }

    fn logits_of(&self, vector: &[f32]) -> Vec<f32> {
        let centered: Vec<f32> = vector.iter().zip(&self.mean).map(|(x, m)| x - m).collect();
        products(&self.projection, &centered)
    }

    /// The encoder as a file: little-endian header, mean, projection, and the SHA-256 of all that.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + 4 * self.projection.len());
        bytes.extend_from_slice(MAGIC);
        for number in [
            VERSION,
            self.len.bits() as u32,
            self.dim as u32,
            self.iterations,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.seed.to_le_bytes());
        for value in self.mean.iter().chain(&self.projection) {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        let digest = Sha256::digest(&bytes);
        bytes.extend_from_slice(&digest);
        bytes
    }

    /// Reads what [`to_bytes`](Itq::to_bytes) wrote.
    ///
    /// # Errors
    /// `Corrupt` for anything but exactly such a file; `UnsupportedVersion`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Itq> {
        let corrupt = |reason: String| Error::corrupt("ITQ file", reason);
        if bytes.len() < HEADER_BYTES + DIGEST_BYTES || !bytes.starts_with(MAGIC) {
            return Err(corrupt(format!(
                "expected a header of {HEADER_BYTES} bytes that starts with tanhITQ, got {} bytes of something else",
                bytes.len()
            )));
        }
        let number = |idx: usize| {
            let at = MAGIC.len() + 4 * idx;
            u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
        };
        if number(0) != VERSION {
            return Err(Error::new(ErrorKind::UnsupportedVersion {
                found: number(0),
                oldest: VERSION,
                newest: VERSION,
            }));
        }
        let (bits, dim) = (number(1) as usize, number(2) as usize);
        let len = CodeLen::new(bits).map_err(|error| corrupt(error.to_string()))?;
        if !(bits..=MAX_DIM).contains(&dim) {
            return Err(corrupt(format!(
                "expected vectors of {bits} to {MAX_DIM} numbers, got {dim}"
            )));
        }
        let n_bytes = HEADER_BYTES + 4 * dim * (bits + 1) + DIGEST_BYTES;
        if bytes.len() != n_bytes {
            return Err(corrupt(format!(
                "{bits} bits of {dim} numbers take {n_bytes} bytes, got {}",
                bytes.len()
            )));
        }
        let (body, digest) = bytes.split_at(bytes.len() - DIGEST_BYTES);
        if Sha256::digest(body)[..] != *digest {
            return Err(corrupt("the bytes contradict their SHA-256".to_owned()));
        }
        let mut values = body[HEADER_BYTES..]
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes(four.try_into().expect("four bytes")));
        let mean: Vec<f32> = values.by_ref().take(dim).collect();
        let projection: Vec<f32> = values.collect();
        if !mean
            .iter()
            .chain(&projection)
            .all(|value| value.is_finite())
        {
            return Err(corrupt("expected finite numbers".to_owned()));
        }
        let seed = &body[HEADER_BYTES - 8..HEADER_BYTES];
        let mut itq = Itq {
            len,
            dim,
            seed: u64::from_le_bytes(seed.try_into().expect("eight bytes")),
            iterations: number(3),
            model_id: String::new(),
            mean,
            projection,
        };
        itq.model_id = itq.digest_id();
        Ok(itq)
    }

    /// Writes a file, first beside `path` and then over it, so that no half of one is ever there.
    ///
    /// # Errors
    /// `Io`.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_whole(path.as_ref(), &self.to_bytes())
    }

    /// Opens a file.
    ///
    /// # Errors
    /// `Io`, and as [`from_bytes`](Itq::from_bytes).
    pub fn open(path: impl AsRef<Path>) -> Result<Itq> {
        let path = path.as_ref();
        Itq::from_bytes(&fs::read(path).map_err(|error| Error::io(path, error))?)
    }

    /// `itq-BITS-DIGEST`, of the first 12 hexadecimal digits of the file's SHA-256.
    fn digest_id(&self) -> String {
        let bytes = self.to_bytes();
        let digest = &bytes[bytes.len() - DIGEST_BYTES..];
        format!("itq-{}-{}", self.len, hex(&digest[..6]))
    }
}

impl Encoder for Itq {
    fn code_len(&self) -> CodeLen {
        self.len
    }

    fn model_id(&self) -> &str {
        &self.model_id
    }

    fn reads(&self) -> Option<PayloadKind> {
        let dim = self.dim;
        Some(PayloadKind::Vector { dim })
    }

    fn encode(&self, batch: &[Payload]) -> Result<Vec<Result<HashCode, EncodeError>>> {
        let logits = |vector: &[f32]| self.logits_of(vector);
        Ok(sign_codes(self.len, self.dim, batch, logits))
    }
}

fn check_vectors(vectors: &[f32], dim: usize, bits: usize) -> Result<()> {
    if !(bits..=MAX_DIM).contains(&dim) {
        return Err(Error::invalid(format!(
            "ITQ makes at most as many bits as a vector has numbers, {bits} bits need vectors of {bits} to \
             {MAX_DIM} numbers, got {dim}; take fewer bits, or random hyperplanes"
        )));
    }
    if !vectors.len().is_multiple_of(dim) || vectors.len() / dim <= bits {
        return Err(Error::invalid(format!(
            "ITQ of {bits} bits learns from more than {bits} vectors of {dim} numbers, got {} numbers, which make {} vectors",
            vectors.len(),
            vectors.len() as f64 / dim as f64
        )));
    }
    match vectors.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::invalid(format!(
            "expected finite numbers, number {} of vector {} is {}",
            at % dim,
            at / dim,
            vectors[at]
        ))),
    }
}

/// The mean vector.
fn mean(parts: &[&[f32]], dim: usize, n: usize) -> Vec<f64> {
    let sums: Vec<Vec<f64>> = parts
        .par_iter()
        .map(|part| {
            let mut sums = vec![0.0; dim];
            for row in part.chunks_exact(dim) {
                sums.iter_mut()
                    .zip(row)
                    .for_each(|(sum, &v)| *sum += f64::from(v));
            }
            sums
        })
        .collect();
    (0..dim)
        .map(|i| sums.iter().map(|sums| sums[i]).sum::<f64>() / n as f64)
        .collect()
}

/// Rows less the mean, as the columns of a dim x rows matrix.
fn centered(rows: &[f32], mean: &[f64]) -> DMatrix<f64> {
    let dim = mean.len();
    DMatrix::from_fn(dim, rows.len() / dim, |i, row| {
        f64::from(rows[row * dim + i]) - mean[i]
    })
}

/// The `bits` eigenvectors of the covariance with the largest eigenvalues, as columns.
fn principal_directions(parts: &[&[f32]], mean: &[f64], bits: usize) -> DMatrix<f64> {
    let dim = mean.len();
    let sums: Vec<DMatrix<f64>> = parts
        .par_iter()
        .map(|part| {
            let mut sum = DMatrix::zeros(dim, dim);
            for chunk in part.chunks(CHUNK * dim) {
                let centered = centered(chunk, mean);
                sum.gemm(1.0, &centered, &centered.transpose(), 1.0);
            }
            sum
        })
        .collect();
    let covariance = sums
        .into_iter()
        .reduce(|a, b| a + b)
        .expect("there is at least one vector");
    let eigen = covariance.symmetric_eigen();
    let mut order: Vec<usize> = (0..dim).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    let mut directions = eigen.eigenvectors.select_columns(&order[..bits]);
    for mut direction in directions.column_iter_mut() {
        let largest =
            direction.iter().fold(
                0.0f64,
                |largest, &v| if v.abs() > largest.abs() { v } else { largest },
            );
        if largest < 0.0 {
            direction.neg_mut();
        }
    }
    directions
}

/// `B^T V`, bits x bits, with B = sign(V R).
fn signs_by_projected(projected: &[DMatrix<f64>], rotation: &DMatrix<f64>) -> DMatrix<f64> {
    let products: Vec<DMatrix<f64>> = projected
        .par_iter()
        .map(|part| {
            let mut signs = part * rotation;
            signs.apply(|v| *v = if *v > 0.0 { 1.0 } else { -1.0 });
            signs.tr_mul(part)
        })
        .collect();
    products
        .into_iter()
        .reduce(|a, b| a + b)
        .expect("there is at least one vector")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::RngCore;

    /// `n` vectors of `dim` numbers round four centers.
    fn vectors(n: usize, dim: usize, seed: u64) -> Vec<f32> {
        let mut rng = random::generator(seed, 0);
        let mut number = || (rng.next_u32() % 2001) as f32 / 1000.0 - 1.0;
        let centers: Vec<f32> = (0..4 * dim).map(|_| 3.0 * number()).collect();
        (0..n * dim)
            .map(|i| centers[i / dim % 4 * dim + i % dim] + number())
            .collect()
    }

    fn payload(row: &[f32]) -> Payload {
        Payload::Vector(row.into())
    }

    #[test]
    fn the_error_never_rises_and_files_round_trip() {
        let (len, dim) = (CodeLen::new(16).unwrap(), 24);
        let vectors = vectors(300, dim, 5);
        let fit = Itq::fit(&vectors, dim, len, 7, 30).unwrap();
        assert_eq!(fit.errors.len(), 31);
        assert!(
            fit.errors.windows(2).all(|pair| pair[1] <= pair[0] + 1e-12),
            "{:?}",
            fit.errors
        );
        assert!(fit.errors[30] < fit.errors[0]);
        let again = Itq::fit(&vectors, dim, len, 7, 30).unwrap();
        assert_eq!(again.itq, fit.itq);
        assert_ne!(
            Itq::fit(&vectors, dim, len, 8, 30).unwrap().itq.model_id(),
            fit.itq.model_id()
        );

        let bytes = fit.itq.to_bytes();
        let read = Itq::from_bytes(&bytes).unwrap();
        assert_eq!(read, fit.itq);
        let batch: Vec<Payload> = vectors.chunks(dim).map(payload).collect();
        let codes = |itq: &Itq| -> Vec<HashCode> {
            itq.encode(&batch)
                .unwrap()
                .into_iter()
                .map(Result::unwrap)
                .collect()
        };
        assert_eq!(codes(&read), codes(&fit.itq));
        // Every flipped bit and every cut is noticed.
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            assert!(Itq::from_bytes(&damaged).is_err(), "byte {at}");
            assert!(Itq::from_bytes(&bytes[..at]).is_err(), "{at} bytes");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("itq.bin");
        fit.itq.save(&path).unwrap();
        assert_eq!(Itq::open(&path).unwrap(), fit.itq);
        assert!(Itq::open(dir.path().join("none")).is_err());
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        let len = CodeLen::new(16).unwrap();
        let problem =
            |vectors: &[f32], dim| Itq::fit(vectors, dim, len, 0, 1).unwrap_err().to_string();
        let mut good = vectors(40, 20, 1);
        assert!(problem(&good, 15).contains("need vectors of 16 to"));
        assert!(problem(&good[..16 * 20], 20).contains("more than 16 vectors"));
        assert!(problem(&good[1..], 20).contains("got 799 numbers"));
        good[45] = f32::INFINITY;
        assert!(problem(&good, 20).contains("number 5 of vector 2 is inf"));
        good[45] = 0.0;
        let skewed = vec![0.1; 256];
        let error = Itq::fit_from(&good, 20, len, &skewed, 1).unwrap_err();
        assert!(error.to_string().contains("orthogonal"), "{error}");
        let itq = Itq::fit(&good, 20, len, 0, 3).unwrap().itq;
        let codes = itq
            .encode(&[payload(&good[..19]), payload(&good[..20])])
            .unwrap();
        assert!(codes[0].is_err() && codes[1].is_ok());
        // Vectors that are all equal have no direction, and codes all the same.
        let equal = Itq::fit(&[1.0; 400], 20, len, 0, 3).unwrap().itq;
        assert!(equal.encode(&[payload(&[1.0; 20])]).unwrap()[0].is_ok());
    }
}

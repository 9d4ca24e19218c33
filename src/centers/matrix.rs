//! What is known of the classes as pairs: how alike, or how far apart, each two of them are.
//!
//! Two types, because the methods read them the other way round: [`ClassSimilarity`] is SHC's S (1 on
//! the diagonal, larger is more alike), [`ClassDistances`] is SHREWD's d (0 on the diagonal, larger is
//! farther). Both are square and row-major. Leaves out where they come from: a trained classifier, a
//! hierarchy, the user's own file.

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::code::hex;
use crate::error::{Error, Result};

/// Entries that should be equal may differ by this much, so that float32 files pass.
const TOLERANCE: f64 = 1e-5;

/// S, C x C: how alike two classes are, from about -1 to 1, and 1 for a class and itself.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassSimilarity {
    n_classes: usize,
    entries: Vec<f64>,
}

impl ClassSimilarity {
    /// From C x C entries, row-major. It need not be symmetric: the released code of SHC makes one that
    /// is not.
    ///
    /// # Errors
    /// `InvalidArgument` unless there are C x C finite entries between -1 and 1 with 1 on the diagonal.
    pub fn new(n_classes: usize, entries: Vec<f64>) -> Result<ClassSimilarity> {
        check_square("a class similarity", n_classes, &entries)?;
        for (at, &entry) in entries.iter().enumerate() {
            let (a, b) = (at / n_classes, at % n_classes);
            let good = match a == b {
                true => (entry - 1.0).abs() <= TOLERANCE,
                false => entry.abs() <= 1.0 + TOLERANCE,
            };
            if !good {
                return Err(Error::invalid(format!(
                    "a class similarity is 1 for a class and itself and from -1 to 1 for two classes, got {entry} for classes {a} and {b}; scale it, or give distances to a method that reads them"
                )));
            }
        }
        Ok(ClassSimilarity { n_classes, entries })
    }

    /// C.
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// All entries, row-major.
    pub fn entries(&self) -> &[f64] {
        &self.entries
    }

    /// S of `a` and `b`. Panics past the last class.
    pub fn get(&self, a: usize, b: usize) -> f64 {
        assert!(b < self.n_classes, "class {b} of {}", self.n_classes);
        self.entries[a * self.n_classes + b]
    }

    /// (S + S^T) / 2, row-major.
    pub fn symmetrized(&self) -> Vec<f64> {
        symmetrized(self.n_classes, &self.entries)
    }
}

/// (S + S^T) / 2 of n x n entries, row-major.
pub(crate) fn symmetrized(n: usize, entries: &[f64]) -> Vec<f64> {
    let turned = |at: usize| entries[at % n * n + at / n];
    (0..n * n)
        .map(|at| (entries[at] + turned(at)) / 2.0)
        .collect()
}

/// d, n x n: how far apart two classes, or two training examples, are; symmetric, not negative, and 0 for
/// one and itself.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassDistances {
    n: usize,
    entries: Vec<f32>,
}

impl ClassDistances {
    /// From n x n entries, row-major.
    ///
    /// # Errors
    /// `InvalidArgument` unless there are n x n finite entries, none negative, symmetric to within
    /// 0.00001 and, as nearly, 0 on the diagonal, and not all of them are 0.
    pub fn new(n: usize, mut entries: Vec<f32>) -> Result<ClassDistances> {
        check_square("a distance matrix", n, &entries)?;
        for a in 0..n {
            let own = &mut entries[a * n + a];
            if f64::from(own.abs()) <= TOLERANCE {
                *own = 0.0;
            }
        }
        let mut farthest = 0f32;
        for a in 0..n {
            for b in 0..=a {
                let (one, other) = (entries[a * n + b], entries[b * n + a]);
                let apart = f64::from(one - other).abs();
                let bound = TOLERANCE * f64::from(one).abs().max(1.0);
                if one < 0.0 || apart > bound || (a == b && one != 0.0) {
                    return Err(Error::invalid(format!(
                        "a distance matrix is symmetric, not negative, and 0 on the diagonal, got {one} for {a} to {b} and {other} for {b} to {a}"
                    )));
                }
                farthest = farthest.max(one);
            }
        }
        if n > 1 && farthest == 0.0 {
            return Err(Error::invalid(
                "a distance matrix says something only where two differ, got 0 everywhere",
            ));
        }
        Ok(ClassDistances { n, entries })
    }

    /// `1 - S` of a similarity, symmetrized first.
    ///
    /// # Errors
    /// As [`ClassDistances::new`].
    pub fn from_similarity(similarity: &ClassSimilarity) -> Result<ClassDistances> {
        let n = similarity.n_classes;
        let entries = similarity.symmetrized().into_iter();
        ClassDistances::new(n, entries.map(|s| (1.0 - s).max(0.0) as f32).collect())
    }

    /// The number of classes, or of examples.
    pub fn n(&self) -> usize {
        self.n
    }

    /// All entries, row-major.
    pub fn entries(&self) -> &[f32] {
        &self.entries
    }
}

fn check_square<T: Copy + Into<f64>>(what: &str, n: usize, entries: &[T]) -> Result<()> {
    if n == 0 {
        return Err(Error::invalid(format!(
            "{what} has at least one class, got none"
        )));
    }
    if n.checked_mul(n) != Some(entries.len()) {
        return Err(Error::invalid(format!(
            "{what} is square: expected {n} x {n} entries, got {}",
            entries.len()
        )));
    }
    match entries.iter().position(|&entry| !entry.into().is_finite()) {
        Some(at) => Err(Error::invalid(format!(
            "{what} has finite entries, got {} at row {}, column {}",
            entries[at].into(),
            at / n,
            at % n
        ))),
        None => Ok(()),
    }
}

/// The first 12 hexadecimal digits of the SHA-256 of numbers: what a record of options keeps of a matrix.
fn digest(n: usize, bytes: impl Iterator<Item = [u8; 8]>) -> String {
    let mut digest = Sha256::new();
    digest.update((n as u64).to_le_bytes());
    for number in bytes {
        digest.update(number);
    }
    hex(&digest.finalize()[..6])
}

/// As its digest: options are recorded in every model, and a matrix would fill it.
impl Serialize for ClassSimilarity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = self.entries.iter().map(|entry| entry.to_le_bytes());
        serializer.serialize_str(&digest(self.n_classes, bytes))
    }
}

/// As its digest: options are recorded in every model, and a matrix would fill it.
impl Serialize for ClassDistances {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = self
            .entries
            .iter()
            .map(|&entry| f64::from(entry).to_le_bytes());
        serializer.serialize_str(&digest(self.n, bytes))
    }
}

/// As its digest: options are recorded in every model, and a codebook would fill it.
impl Serialize for super::Codebook {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let entries = self.entries().iter();
        let bytes = entries.map(|&entry| f64::from(entry).to_le_bytes());
        serializer.serialize_str(&digest(self.n_classes(), bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_checked() {
        let text = |result: Result<ClassDistances>| result.unwrap_err().to_string();
        assert!(text(ClassDistances::new(2, vec![0.0; 3])).contains("2 x 2 entries, got 3"));
        assert!(text(ClassDistances::new(2, vec![0.0, 1.0, 0.5, 0.0])).contains("symmetric"));
        assert!(text(ClassDistances::new(2, vec![0.0, -1.0, -1.0, 0.0])).contains("not negative"));
        assert!(text(ClassDistances::new(2, vec![0.1, 1.0, 1.0, 0.0])).contains("diagonal"));
        assert!(text(ClassDistances::new(2, vec![0.0; 4])).contains("everywhere"));
        assert!(text(ClassDistances::new(2, vec![0.0, f32::NAN, 1.0, 0.0])).contains("column 1"));
        assert!(ClassSimilarity::new(2, vec![1.0, 0.5, 0.5, 0.9]).is_err());
        assert!(ClassSimilarity::new(2, vec![1.0, 1.5, 0.5, 1.0]).is_err());
        let similarity = ClassSimilarity::new(2, vec![1.0, 0.25, 0.75, 1.0]).unwrap();
        assert_eq!(similarity.symmetrized(), [1.0, 0.5, 0.5, 1.0]);
        let distances = ClassDistances::from_similarity(&similarity).unwrap();
        assert_eq!(distances.entries(), [0.0, 0.5, 0.5, 0.0]);
    }

    #[test]
    fn records_tell_matrices_apart() {
        let json = |value: f32| {
            let distances = ClassDistances::new(2, vec![0.0, value, value, 0.0]).unwrap();
            serde_json::to_string(&distances).unwrap()
        };
        assert_eq!(json(0.5), json(0.5));
        assert_ne!(json(0.5), json(0.25));
    }
}

//! SHC: Deep Hashing with Semantic Hash Centers for Image Retrieval, ACM TOIS 2025 (arXiv 2507.08404).
//!
//! Three stages, one run:
//!
//! 1. A [classifier](super::classifier) on the run's backbone gives a similarity of the classes (below).
//! 2. [Semantic hash centers](crate::centers::semantic) follow that similarity and keep a distance.
//! 3. The [central loss](super::central) of CSQ pulls codes to them, with the weight below (Eq. 41, whose
//!    printed form lacks the minus sign of the cross entropy).
//!
//! Stage 1, for every train picture with logits `p0` and class m:
//!
//! ```text
//! p0[argmax p0] = -infinity,  p' = softmax(p0)                                            (5), (6)
//! s_m  = mean of p' over class m                                                          (7)
//! s_m  = (s_m - mean(s_m)) / max(|max s_m - mean(s_m)|, |min s_m - mean(s_m)|)            (8)
//! S    = (S + S^T) / 2,  s_ii = 1
//! ```
//!
//! [`Variant::Released`] is what the authors' program does instead: the logit of the true class is
//! masked, not the largest; sums instead of means; S is symmetrized first and normalized by rows after,
//! so that it is not exactly symmetric; and the classifier's cross entropy sees probabilities.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::centers::matrix::symmetrized;
use crate::centers::semantic::{SemanticOptions, Variant};
use crate::centers::{ClassSimilarity, class_means};
use crate::error::{Error, Result};

/// Where the similarity of the classes comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SimilarityFrom {
    /// Stage 1: a classifier is trained first.
    #[default]
    Classifier,
    /// Ours: the [class means](crate::centers::class_means) of the features that training begins with. Without
    /// a training of its own, but with features that say something of the classes.
    ClassMeans,
}

/// Settings of SHC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Paper or program, for stage 1. Stage 2 has its own in `centers`.
    pub variant: Variant,
    /// What stage 2 follows.
    pub similarity_from: SimilarityFrom,
    /// Epochs of stage 1; `None` trains as long as stage 3, as the paper does.
    pub classifier_epochs: Option<usize>,
    /// Stage 3 begins with the backbone of stage 1's classifier. Ours: in the paper both stages begin with
    /// the published weights.
    pub warm_start: bool,
    /// Stage 2.
    pub centers: SemanticOptions,
    /// gamma of stage 3, the weight of `mean (|u| - 1)^2`; 0.0001 in the paper.
    pub quantization_weight: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            variant: Variant::Paper,
            similarity_from: SimilarityFrom::Classifier,
            classifier_epochs: None,
            warm_start: false,
            centers: SemanticOptions::default(),
            quantization_weight: 1e-4,
        }
    }
}

impl Config {
    /// Both stages by `variant`.
    #[must_use]
    pub fn with_variant(mut self, variant: Variant) -> Config {
        self.variant = variant;
        self.centers.variant = variant;
        self
    }

    /// The settings of stage 2 for `n_classes` centers of `bits` bits.
    pub(crate) fn centers_of(&self, n_classes: usize, bits: usize) -> SemanticOptions {
        let mut options = self.centers.clone();
        if self.similarity_from == SimilarityFrom::ClassMeans {
            let own = || class_means::min_distance(n_classes, bits);
            options.min_distance = Some(options.min_distance.unwrap_or_else(own));
        }
        options
    }
}

/// Gathers S from the logits of a trained classifier, batch by batch.
pub struct SimilarityBuilder {
    variant: Variant,
    n_classes: usize,
    /// C x C sums of p', row m for class m.
    sums: Vec<f64>,
    counts: Vec<u64>,
}

impl SimilarityBuilder {
    /// No pictures yet.
    pub fn new(n_classes: usize, variant: Variant) -> SimilarityBuilder {
        SimilarityBuilder {
            variant,
            n_classes,
            sums: vec![0.0; n_classes * n_classes],
            counts: vec![0; n_classes],
        }
    }

    /// Adds N pictures: their logits N x C and their classes.
    ///
    /// # Errors
    /// `InvalidArgument` where shapes do not fit; `Torch`.
    pub fn add(&mut self, logits: &Tensor, classes: &[i64]) -> Result<()> {
        let n = self.n_classes;
        let expected = [classes.len() as i64, n as i64];
        let known = |class: &i64| usize::try_from(*class).is_ok_and(|class| class < n);
        if logits.size() != expected || !classes.iter().all(known) {
            return Err(Error::invalid(format!(
                "expected logits {expected:?} and classes below {n}, got {:?}",
                logits.size()
            )));
        }
        let logits = logits.f_detach()?.f_to_kind(Kind::Double)?;
        let masked = match self.variant {
            Variant::Paper => logits.f_argmax(1, true)?,
            Variant::Released => Tensor::f_from_slice(classes)?
                .f_to_device(logits.device())?
                .f_unsqueeze(1)?,
        };
        let shares = logits
            .f_scatter_value(1, &masked, f64::NEG_INFINITY)?
            .f_softmax(1, Kind::Double)?;
        let mut values = vec![0f64; classes.len() * n];
        let n_values = values.len();
        shares.f_copy_data(&mut values, n_values)?;
        for (row, &class) in values.chunks_exact(n).zip(classes) {
            let class = class as usize;
            self.counts[class] += 1;
            let sums = &mut self.sums[class * n..][..n];
            sums.iter_mut()
                .zip(row)
                .for_each(|(sum, share)| *sum += share);
        }
        Ok(())
    }

    /// S.
    ///
    /// # Errors
    /// `InvalidArgument` for fewer than three classes, where p' says nothing, or a class without a
    /// picture.
    pub fn finish(self) -> Result<ClassSimilarity> {
        let n = self.n_classes;
        check_counts(&self.counts)?;
        let mut s = self.sums;
        match self.variant {
            Variant::Paper => {
                for (row, &count) in s.chunks_exact_mut(n).zip(&self.counts) {
                    row.iter_mut().for_each(|sum| *sum /= count as f64);
                    normalize(row);
                }
                s = symmetrized(n, &s);
            }
            Variant::Released => {
                s = symmetrized(n, &s);
                s.chunks_exact_mut(n).for_each(normalize);
            }
        }
        for m in 0..n {
            s[m * n + m] = 1.0;
        }
        ClassSimilarity::new(n, s)
    }
}

/// `Ok` if so many pictures of each class make a similarity of all.
///
/// # Errors
/// As [`SimilarityBuilder::finish`].
pub(crate) fn check_counts(counts: &[u64]) -> Result<()> {
    if counts.len() < 3 {
        return Err(Error::invalid(format!(
            "the similarity of shc takes at least 3 classes, got {}; use csq, or give a similarity",
            counts.len()
        )));
    }
    match counts.iter().position(|&count| count == 0) {
        Some(class) => Err(Error::invalid(format!(
            "class {class} has no train picture, so it has no similarity; add pictures or leave the class out"
        ))),
        None => Ok(()),
    }
}

/// Eq. 8. A row of equal entries says nothing and becomes 0.
fn normalize(row: &mut [f64]) {
    let mean = row.iter().sum::<f64>() / row.len() as f64;
    let widest = row
        .iter()
        .fold(0.0, |widest: f64, s| widest.max((s - mean).abs()));
    for s in row {
        *s = if widest > 0.0 {
            (*s - mean) / widest
        } else {
            0.0
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_means_ask_for_a_shorter_distance_unless_told() {
        let config = |similarity_from, min_distance| Config {
            similarity_from,
            centers: SemanticOptions {
                min_distance,
                ..SemanticOptions::default()
            },
            ..Config::default()
        };
        for (from, given, expected) in [
            (SimilarityFrom::Classifier, None, 10),
            (SimilarityFrom::ClassMeans, None, 8),
            (SimilarityFrom::ClassMeans, Some(12), 12),
        ] {
            let options = config(from, given).centers_of(100, 32);
            assert_eq!(options.min_distance(100, 32), expected, "{from:?}");
        }
    }
}

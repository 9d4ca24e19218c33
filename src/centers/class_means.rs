//! A similarity of the classes from their mean features: the cosine of the means, after every feature is
//! standardized over all examples.
//!
//! ```text
//! z   = (x - mean x) / deviation x                 each feature, over the examples
//! m_c = mean of z over class c
//! S   = <m_a, m_b> / (|m_a| |m_b|),  s_cc = 1
//! ```
//!
//! [Semantic centers](super::semantic) of this S need no classifier, unlike SHC's: one pass over the features
//! gives it. The split of the classes by a bit is then one that a linear layer on these features makes easily.
//! Mean features as what a class is are the prototypes of Snell et al. (NeurIPS 2017); making hash centers of
//! them is ours. Pure Rust. Leaves out where features come from.

use super::ClassSimilarity;
use super::separation::gilbert_varshamov;
use crate::error::{Error, Result};

/// Sums of features, class by class.
pub struct ClassMeans {
    n_classes: usize,
    n_features: usize,
    /// Of each example.
    sums: Vec<f64>,
    squares: Vec<f64>,
    n_examples: u64,
    /// C x q, of the examples of each class.
    class_sums: Vec<f64>,
    class_counts: Vec<u64>,
}

impl ClassMeans {
    /// No examples yet, of so many features each.
    pub fn new(n_classes: usize, n_features: usize) -> ClassMeans {
        ClassMeans {
            n_classes,
            n_features,
            sums: vec![0.0; n_features],
            squares: vec![0.0; n_features],
            n_examples: 0,
            class_sums: vec![0.0; n_classes * n_features],
            class_counts: vec![0; n_classes],
        }
    }

    /// Adds an example: its features and its classes, of which there may be several or none.
    ///
    /// # Errors
    /// `InvalidArgument` for another number of features, one that is not finite, or a class out of range; the
    /// example is not added.
    pub fn add(&mut self, features: &[f32], classes: &[u32]) -> Result<()> {
        if features.len() != self.n_features {
            return Err(Error::invalid(format!(
                "expected {} features an example, got {}",
                self.n_features,
                features.len()
            )));
        }
        if let Some(feature) = features.iter().find(|feature| !feature.is_finite()) {
            return Err(Error::invalid(format!(
                "expected finite features, got {feature} in example {}",
                self.n_examples
            )));
        }
        if let Some(class) = classes.iter().find(|&&c| c as usize >= self.n_classes) {
            return Err(Error::invalid(format!(
                "expected classes below {}, got {class} in example {}",
                self.n_classes, self.n_examples
            )));
        }
        self.n_examples += 1;
        let sums = self.sums.iter_mut().zip(&mut self.squares);
        for ((sum, square), &feature) in sums.zip(features) {
            *sum += f64::from(feature);
            *square += f64::from(feature).powi(2);
        }
        for &class in classes {
            let class = class as usize;
            self.class_counts[class] += 1;
            let sums = &mut self.class_sums[class * self.n_features..][..self.n_features];
            for (sum, &feature) in sums.iter_mut().zip(features) {
                *sum += f64::from(feature);
            }
        }
        Ok(())
    }

    /// S. A feature that is the same everywhere counts for nothing; a class with the mean of all examples is
    /// like no other.
    ///
    /// # Errors
    /// `InvalidArgument` for a class without an example.
    pub fn similarity(&self) -> Result<ClassSimilarity> {
        if let Some(class) = self.class_counts.iter().position(|&count| count == 0) {
            return Err(Error::invalid(format!(
                "class {class} has no train example, so it has no mean; add some or leave the class out"
            )));
        }
        let n = self.n_examples as f64;
        let means: Vec<f64> = self.sums.iter().map(|sum| sum / n).collect();
        let scales: Vec<f64> = (self.squares.iter().zip(&means))
            .map(|(square, mean)| {
                let variance = square / n - mean * mean;
                match variance > 0.0 {
                    true => variance.sqrt().recip(),
                    false => 0.0,
                }
            })
            .collect();
        let unit: Vec<Vec<f64>> = (0..self.n_classes)
            .map(|class| {
                let sums = &self.class_sums[class * self.n_features..][..self.n_features];
                let count = self.class_counts[class] as f64;
                let standard = (sums.iter().zip(means.iter().zip(&scales)))
                    .map(|(sum, (mean, scale))| (sum / count - mean) * scale);
                let standard: Vec<f64> = standard.collect();
                let norm = standard.iter().map(|z| z * z).sum::<f64>().sqrt();
                let scale = if norm > 0.0 { norm.recip() } else { 0.0 };
                standard.iter().map(|z| z * scale).collect()
            })
            .collect();
        let mut entries = vec![1.0; self.n_classes * self.n_classes];
        for a in 0..self.n_classes {
            for b in 0..a {
                let cosine: f64 = unit[a].iter().zip(&unit[b]).map(|(a, b)| a * b).sum();
                entries[a * self.n_classes + b] = cosine.clamp(-1.0, 1.0);
                entries[b * self.n_classes + a] = cosine.clamp(-1.0, 1.0);
            }
        }
        ClassSimilarity::new(self.n_classes, entries)
    }
}

/// The bits in which two centers of this S differ at least, if nothing else is asked: four fifths of the
/// distance of Gilbert and Varshamov. Classes that are nearly the same to the features need not be further
/// apart, and the others gain; chosen on held-back pictures, see `docs/RESULTS.md`.
pub fn min_distance(n_classes: usize, bits: usize) -> usize {
    gilbert_varshamov(n_classes, bits) * 4 / 5
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means(examples: &[([f32; 2], &[u32])], n_classes: usize) -> ClassMeans {
        let mut means = ClassMeans::new(n_classes, 2);
        for (features, classes) in examples {
            means.add(features, classes).unwrap();
        }
        means
    }

    #[test]
    fn similarity_is_the_cosine_of_standardized_means() {
        // The last example is of two classes; the expected cosines are computed from the columns.
        let made = means(
            &[
                ([-1.0, 14.0], &[0]),
                ([1.0, 12.0], &[0]),
                ([5.0, 14.0], &[2]),
                ([7.0, 8.0], &[1, 2]),
            ],
            3,
        );
        let n = 4.0f64;
        let columns = [[-1.0, 1.0, 5.0, 7.0], [14.0, 12.0, 14.0, 8.0]];
        let standard = columns.map(|column: [f64; 4]| {
            let mean = column.iter().sum::<f64>() / n;
            let variance = column.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            column.map(|x| (x - mean) / variance.sqrt())
        });
        let of = |rows: &[usize]| {
            standard.map(|column| rows.iter().map(|&r| column[r]).sum::<f64>() / rows.len() as f64)
        };
        let expected = [of(&[0, 1]), of(&[3]), of(&[2, 3])];
        let found = made.similarity().unwrap();
        for (a, x) in expected.iter().enumerate() {
            for (b, y) in expected.iter().enumerate() {
                let dot = |x: &[f64; 2], y: &[f64; 2]| x[0] * y[0] + x[1] * y[1];
                let cosine = dot(x, y) / (dot(x, x) * dot(y, y)).sqrt();
                assert!((found.get(a, b) - cosine).abs() < 1e-9, "{a}, {b}");
            }
        }
        assert!(found.get(0, 1) < -0.2 && found.get(1, 2) > 0.2);
    }

    #[test]
    fn what_says_nothing_counts_for_nothing() {
        // The second feature is the same everywhere, and class 2 is in the middle.
        let made = means(
            &[([0.0, 0.1], &[0]), ([2.0, 0.1], &[1]), ([1.0, 0.1], &[2])],
            3,
        );
        let found = made.similarity().unwrap();
        assert_eq!(found.entries(), [1., -1., 0., -1., 1., 0., 0., 0., 1.]);
    }

    #[test]
    fn bad_examples_are_refused_and_change_nothing() {
        let mut made = means(&[([0.0, 0.0], &[0]), ([1.0, 1.0], &[1])], 2);
        let before = made.similarity().unwrap();
        for (features, classes, expected) in [
            (&[1.0][..], &[0][..], "expected 2 features"),
            (
                &[1.0, f32::NAN],
                &[0],
                "expected finite features, got NaN in example 2",
            ),
            (&[1.0, 2.0], &[2], "expected classes below 2, got 2"),
        ] {
            let error = made.add(features, classes).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(made.similarity().unwrap(), before);
        let none = means(&[([0.0, 0.0], &[0])], 2).similarity().unwrap_err();
        assert!(none.to_string().contains("class 1 has no train example"));
    }
}

//! How far apart relevant and other items are: histograms of distances, and how well they separate.

use serde::Serialize;

/// Distances of all pairs of a query and an item of the database.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distances {
    /// Pairs of a query and a relevant item, by distance from 0 to the length of the codes.
    pub relevant: Vec<u64>,
    /// All other pairs, by distance.
    pub other: Vec<u64>,
    /// Mean distance of relevant pairs in bits; none without such pairs.
    pub relevant_mean: Option<f64>,
    /// Standard deviation of the distance of relevant pairs.
    pub relevant_std: Option<f64>,
    /// Mean distance of other pairs in bits; none without such pairs.
    pub other_mean: Option<f64>,
    /// Standard deviation of the distance of other pairs.
    pub other_std: Option<f64>,
    /// d': the difference of the means over the root of the mean variance; none where that root is 0.
    pub separability: Option<f64>,
    /// How often a relevant pair is nearer than another pair, of any queries, equal ones counting half: the area
    /// under the ROC curve of one radius for all queries.
    pub auc: Option<f64>,
}

impl Distances {
    pub(super) fn new(all: &[u64], relevant: Vec<u64>) -> Distances {
        let other: Vec<u64> = all.iter().zip(&relevant).map(|(a, r)| a - r).collect();
        let (near, far) = (moments(&relevant), moments(&other));
        let both = near.zip(far);
        Distances {
            relevant_mean: near.map(|m| m.0),
            relevant_std: near.map(|m| m.1.sqrt()),
            other_mean: far.map(|m| m.0),
            other_std: far.map(|m| m.1.sqrt()),
            separability: both.and_then(|(near, far)| {
                let spread = ((near.1 + far.1) / 2.0).sqrt();
                (spread > 0.0).then(|| (far.0 - near.0) / spread)
            }),
            auc: both.map(|_| auc(&relevant, &other)),
            relevant,
            other,
        }
    }
}

/// Mean and variance of a histogram, none if it is empty.
fn moments(counts: &[u64]) -> Option<(f64, f64)> {
    let n: f64 = counts.iter().map(|&c| c as f64).sum();
    let mean = |f: &dyn Fn(f64) -> f64| -> f64 {
        let sum: f64 = (0..)
            .zip(counts)
            .map(|(d, &c)| f(f64::from(d)) * c as f64)
            .sum();
        sum / n
    };
    (n > 0.0).then(|| {
        let center = mean(&|d| d);
        (center, mean(&|d| (d - center).powi(2)))
    })
}

fn auc(near: &[u64], far: &[u64]) -> f64 {
    let total = |counts: &[u64]| counts.iter().map(|&c| c as f64).sum::<f64>();
    let (mut wins, mut farther) = (0.0, total(far));
    for (&near, &far) in near.iter().zip(far) {
        farther -= far as f64;
        wins += near as f64 * (farther + far as f64 / 2.0);
    }
    wins / (total(near) * total(far))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_histograms_by_hand() {
        // Relevant at 0, 0, 2; others at 2, 2, 4, 4.
        let found = Distances::new(&[2, 0, 3, 0, 2], vec![2, 0, 1, 0, 0]);
        assert_eq!(found.other, [0, 0, 2, 0, 2]);
        assert!((found.relevant_mean.unwrap() - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!((found.other_mean, found.other_std), (Some(3.0), Some(1.0)));
        // 2 x 4 wins, and of the third: 2 wins and 2 draws.
        assert!((found.auc.unwrap() - 11.0 / 12.0).abs() < 1e-12);
        let spread = ((8.0 / 9.0 + 1.0) / 2.0f64).sqrt();
        assert!((found.separability.unwrap() - (7.0 / 3.0) / spread).abs() < 1e-12);
        let alone = Distances::new(&[0, 3], vec![0, 0]);
        assert_eq!(
            (alone.relevant_mean, alone.auc, alone.separability),
            (None, None, None)
        );
        assert_eq!(alone.other_mean, Some(1.0));
        let equal = Distances::new(&[0, 4], vec![0, 2]);
        assert_eq!((equal.auc, equal.separability), (Some(0.5), None));
    }
}

//! Learning-rate schedules: pure functions of the step, each a factor of the base rate.
//!
//! Knows no optimizer.

use std::f64::consts::PI;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How the learning rate changes during a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// The base rate throughout.
    Constant,
    /// Multiplied by `gamma` after every `every_epochs` epochs.
    Step {
        /// Epochs between two drops.
        every_epochs: usize,
        /// The factor of a drop.
        gamma: f64,
    },
    /// A linear rise over the first `warmup` share of the run, then half a cosine down to `floor`.
    Cosine {
        /// Share of the run that rises, from 0 to 1.
        warmup: f64,
        /// The factor that the end would have.
        floor: f64,
    },
}

/// `constant`, `cosine` (half a cosine down to 0, without warm-up), or `step:EPOCHS:FACTOR`.
impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Schedule> {
        let step = |rest: &str| {
            let (epochs, gamma) = rest.split_once(':')?;
            Some(Schedule::Step {
                every_epochs: epochs.parse().ok().filter(|&epochs| epochs > 0)?,
                gamma: gamma
                    .parse()
                    .ok()
                    .filter(|gamma| (0.0..=1.0).contains(gamma))?,
            })
        };
        match text {
            "constant" => Some(Schedule::Constant),
            "cosine" => Some(Schedule::Cosine {
                warmup: 0.0,
                floor: 0.0,
            }),
            _ => text.strip_prefix("step:").and_then(step),
        }
        .ok_or_else(|| {
            Error::invalid(format!(
                "a schedule is constant, cosine or step:EPOCHS:FACTOR, got {text:?}"
            ))
        })
    }
}

impl Schedule {
    /// The factor of the base rate at `step`, counted from 0, of a run of `epochs` epochs of
    /// `steps_per_epoch` steps.
    pub fn factor(self, step: usize, steps_per_epoch: usize, epochs: usize) -> f64 {
        let steps = (steps_per_epoch * epochs).max(1);
        match self {
            Schedule::Constant => 1.0,
            Schedule::Step {
                every_epochs,
                gamma,
            } => step_decay(step / steps_per_epoch.max(1), every_epochs, gamma),
            Schedule::Cosine { warmup, floor } => {
                let rising = (steps as f64 * warmup).round() as usize;
                if step < rising {
                    warm_up(step, rising)
                } else {
                    cosine(step - rising, steps - rising, floor)
                }
            }
        }
    }
}

/// `gamma` to the number of drops before `epoch`.
pub fn step_decay(epoch: usize, every_epochs: usize, gamma: f64) -> f64 {
    gamma.powf((epoch / every_epochs.max(1)) as f64)
}

/// Rises from `1 / steps` at step 0 to 1 at the last of `steps` steps.
pub fn warm_up(step: usize, steps: usize) -> f64 {
    (step + 1) as f64 / steps.max(1) as f64
}

/// `floor + (1 - floor) (1 + cos(pi step / steps)) / 2`: 1 at step 0, `floor` at `steps`.
pub fn cosine(step: usize, steps: usize, floor: f64) -> f64 {
    floor + (1.0 - floor) * 0.5 * (1.0 + (PI * step as f64 / steps.max(1) as f64).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_at_the_ends() {
        let step = Schedule::Step {
            every_epochs: 80,
            gamma: 0.1,
        };
        assert_eq!(step.factor(79 * 5 + 4, 5, 100), 1.0);
        assert_eq!(step.factor(80 * 5, 5, 100), 0.1);
        let cosine = Schedule::Cosine {
            warmup: 0.1,
            floor: 0.0,
        };
        assert_eq!(cosine.factor(0, 10, 10), 0.1);
        assert_eq!(cosine.factor(9, 10, 10), 1.0);
        assert_eq!(cosine.factor(10, 10, 10), 1.0);
        assert!((cosine.factor(55, 10, 10) - 0.5).abs() < 1e-12);
        assert!(cosine.factor(99, 10, 10) < 1e-3);
        assert_eq!(Schedule::Constant.factor(7, 0, 0), 1.0);
    }
}

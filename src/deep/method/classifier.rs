//! The first stage of [SHC](super::shc): a classifier on the run's own backbone.
//!
//! `logits` are N x C, one a class. The paper minimizes their cross entropy. The released program applies
//! the cross entropy to outputs that are probabilities already, which makes a softer classifier:
//!
//! ```text
//! paper     L = CE(p0, y)                 p0 the logits
//! released  L = CE(softmax(p0), y)
//! ```

use tch::{Kind, Reduction, Tensor};

use super::{LossTerms, Method, StepInfo};
use crate::centers::semantic::Variant;
use crate::error::Result;

/// A classifier of `n_classes`.
pub struct Classifier {
    n_classes: i64,
    variant: Variant,
}

impl Classifier {
    /// A classifier; `variant` chooses the loss.
    pub fn new(n_classes: usize, variant: Variant) -> Classifier {
        Classifier {
            n_classes: n_classes as i64,
            variant,
        }
    }
}

impl Method for Classifier {
    fn name(&self) -> &'static str {
        "classifier"
    }

    fn loss(&self, logits: &Tensor, targets: &Tensor, _at: StepInfo) -> Result<LossTerms> {
        super::check_single("shc", logits, targets, self.n_classes, self.n_classes)?;
        let outputs = match self.variant {
            Variant::Paper => logits.shallow_clone(),
            Variant::Released => logits.f_softmax(1, Kind::Float)?,
        };
        let loss =
            outputs.f_cross_entropy_loss::<Tensor>(targets, None, Reduction::Mean, -100, 0.0)?;
        LossTerms::new().with("classification", 1.0, &loss)
    }

    fn accuracy(&self, logits: &Tensor, targets: &Tensor) -> Result<Option<f64>> {
        Ok(Some(super::top_share(logits, targets)?))
    }
}

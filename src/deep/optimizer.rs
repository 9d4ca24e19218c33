//! Optimizers with torch's semantics: Adam, SGD with momentum, RMSprop; weight decay is coupled (L2 added
//! to the gradient), so Adam is torch's `Adam`, not `AdamW`.
//!
//! Own code because a run must be resumable bit for bit and tch does not hand out the optimizer's state.
//! Checked against torch's values in `fixtures/methods/optimizers/`. Leaves
//! out what no recipe here uses: Nesterov momentum, dampening, centered RMSprop, AMSGrad.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::deep::weights::{Group, Weights};
use crate::error::{Error, Result};

/// Keeps a step finite where gradients vanish; torch's default.
const EPS: f64 = 1e-8;

/// A rule that turns gradients into steps, with torch's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum OptimizerKind {
    /// Kingma and Ba, ICLR 2015.
    Adam {
        /// Decay of the mean of gradients.
        beta1: f64,
        /// Decay of the mean of squared gradients.
        beta2: f64,
    },
    /// Stochastic gradient descent with momentum.
    Sgd {
        /// Decay of the sum of gradients.
        momentum: f64,
    },
    /// RMSprop without momentum, not centered.
    RmsProp {
        /// Decay of the mean of squared gradients.
        alpha: f64,
    },
}

impl Default for OptimizerKind {
    fn default() -> OptimizerKind {
        OptimizerKind::ADAM
    }
}

impl OptimizerKind {
    /// Adam with beta 0.9 and 0.999.
    pub const ADAM: OptimizerKind = OptimizerKind::Adam {
        beta1: 0.9,
        beta2: 0.999,
    };
    /// SGD with momentum 0.9.
    pub const SGD: OptimizerKind = OptimizerKind::Sgd { momentum: 0.9 };
    /// RMSprop with alpha 0.99.
    pub const RMSPROP: OptimizerKind = OptimizerKind::RmsProp { alpha: 0.99 };

    /// The settings, checked.
    ///
    /// # Errors
    /// `InvalidArgument` for a decay outside of 0 to 1.
    pub fn check(self) -> Result<()> {
        let decays = match self {
            OptimizerKind::Adam { beta1, beta2 } => vec![beta1, beta2],
            OptimizerKind::Sgd { momentum } => vec![momentum],
            OptimizerKind::RmsProp { alpha } => vec![alpha],
        };
        match decays.iter().find(|decay| !(0.0..1.0).contains(*decay)) {
            Some(decay) => Err(Error::invalid(format!(
                "a decay of {self} is at least 0 and below 1, got {decay}"
            ))),
            None => Ok(()),
        }
    }

    /// The names of the tensors it keeps for each parameter.
    fn moments(self) -> &'static [&'static str] {
        match self {
            OptimizerKind::Adam { .. } => &["mean", "square"],
            OptimizerKind::Sgd { .. } => &["momentum"],
            OptimizerKind::RmsProp { .. } => &["square"],
        }
    }
}

impl fmt::Display for OptimizerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OptimizerKind::Adam { .. } => "adam",
            OptimizerKind::Sgd { .. } => "sgd",
            OptimizerKind::RmsProp { .. } => "rmsprop",
        })
    }
}

impl FromStr for OptimizerKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<OptimizerKind> {
        match text {
            "adam" => Ok(OptimizerKind::ADAM),
            "sgd" => Ok(OptimizerKind::SGD),
            "rmsprop" => Ok(OptimizerKind::RMSPROP),
            _ => Err(Error::invalid(format!(
                "an optimizer is adam, sgd or rmsprop, got {text:?}"
            ))),
        }
    }
}

/// An optimizer over trained tensors.
pub struct Optimizer {
    kind: OptimizerKind,
    /// Parameters in the order of [`Weights::entries`], one set of weights after the other.
    slots: Vec<Slot>,
    weight_decay: f64,
    backbone_lr_scale: f64,
    /// Steps taken, t in the papers.
    step: u64,
}

/// One parameter and its moments, which have its shape.
struct Slot {
    name: String,
    group: Group,
    parameter: Tensor,
    /// In the order of [`OptimizerKind::moments`].
    moments: Vec<Tensor>,
}

impl Optimizer {
    /// An optimizer of the trained tensors in all of `weights`, with zero moments. The learning rate of
    /// the backbone is `backbone_lr_scale` times the head's.
    ///
    /// # Errors
    /// `InvalidArgument` for a setting out of range; `Torch`.
    pub fn new(
        kind: OptimizerKind,
        weights: &[&Weights],
        weight_decay: f64,
        backbone_lr_scale: f64,
    ) -> Result<Optimizer> {
        kind.check()?;
        let trained = weights.iter().flat_map(|weights| weights.entries());
        let slots = trained
            .filter_map(|entry| Some((entry, entry.trained?)))
            .map(|(entry, group)| {
                let zeros = || entry.tensor.f_detach()?.f_zeros_like();
                let moments = kind.moments().iter().map(|_| zeros());
                Ok(Slot {
                    name: entry.name.clone(),
                    group,
                    parameter: entry.tensor.shallow_clone(),
                    moments: moments.collect::<Result<_, _>>()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Optimizer {
            kind,
            slots,
            weight_decay,
            backbone_lr_scale,
            step: 0,
        })
    }

    /// One step against the gradients that `backward` left, which are cleared. `lr` is that of the head.
    ///
    /// ```text
    /// g = grad + weight_decay w
    /// adam     m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
    ///          w = w - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
    /// sgd      b = momentum b + g                   w = w - lr b
    /// rmsprop  v = alpha v + (1 - alpha) g^2        w = w - lr g / (sqrt(v) + eps)
    /// ```
    ///
    /// # Errors
    /// `Torch`.
    pub fn step(&mut self, lr: f64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.step += 1;
        for slot in &mut self.slots {
            let mut gradient = slot.parameter.grad();
            if !gradient.defined() {
                continue;
            }
            let decayed = match self.weight_decay {
                0.0 => gradient.shallow_clone(),
                decay => gradient.f_add(&slot.parameter.f_mul_scalar(decay)?)?,
            };
            let rate = lr
                * match slot.group {
                    Group::Backbone => self.backbone_lr_scale,
                    Group::Head => 1.0,
                };
            let change = change(self.kind, self.step, &mut slot.moments, &decayed, rate)?;
            let _ = slot.parameter.f_add_(&change)?;
            let _ = gradient.f_zero_()?;
        }
        Ok(())
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// All moments by name, e.g. `NAME.mean` and `NAME.square`: with [`Optimizer::steps`], the whole
    /// state.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let names = self.kind.moments();
        self.slots
            .iter()
            .flat_map(|slot| {
                let moments = names.iter().zip(&slot.moments);
                moments.map(|(moment, tensor)| {
                    (format!("{}.{moment}", slot.name), tensor.shallow_clone())
                })
            })
            .collect()
    }

    /// Goes on after `steps` steps; the moments were written through the handles of
    /// [`Optimizer::state`].
    pub fn set_steps(&mut self, steps: u64) {
        self.step = steps;
    }
}

/// Updates the moments of a parameter with its gradient and returns what is added to it.
fn change(
    kind: OptimizerKind,
    step: u64,
    moments: &mut [Tensor],
    gradient: &Tensor,
    rate: f64,
) -> Result<Tensor> {
    Ok(match (kind, moments) {
        (OptimizerKind::Adam { beta1, beta2 }, [mean, square]) => {
            let correction1 = 1.0 - beta1.powf(step as f64);
            let correction2 = 1.0 - beta2.powf(step as f64);
            let _ = mean.f_mul_scalar_(beta1)?;
            let _ = mean.f_add_(&gradient.f_mul_scalar(1.0 - beta1)?)?;
            add_square(square, gradient, beta2)?;
            let length = square
                .f_sqrt()?
                .f_div_scalar_(correction2.sqrt())?
                .f_add_scalar_(EPS)?;
            mean.f_div(&length)?.f_mul_scalar_(-rate / correction1)?
        }
        (OptimizerKind::Sgd { momentum }, [sum]) => {
            let _ = sum.f_mul_scalar_(momentum)?;
            let _ = sum.f_add_(gradient)?;
            sum.f_mul_scalar(-rate)?
        }
        (OptimizerKind::RmsProp { alpha }, [square]) => {
            add_square(square, gradient, alpha)?;
            let length = square.f_sqrt()?.f_add_scalar_(EPS)?;
            gradient.f_div(&length)?.f_mul_scalar_(-rate)?
        }
        _ => unreachable!("moments are made by the same kind"),
    })
}

/// `square = decay square + (1 - decay) gradient^2`.
fn add_square(square: &mut Tensor, gradient: &Tensor, decay: f64) -> Result<()> {
    let _ = square.f_mul_scalar_(decay)?;
    let new = gradient.f_mul(gradient)?.f_mul_scalar_(1.0 - decay)?;
    let _ = square.f_add_(&new)?;
    Ok(())
}

//! Adam (Kingma and Ba, ICLR 2015) with coupled L2 weight decay: torch's `Adam`, not `AdamW`.
//!
//! Own code because a run must be resumable bit for bit and tch does not hand out the optimizer's state.
//! Checked against torch's values in `fixtures/methods/adam/`.

use tch::Tensor;

use crate::deep::weights::{Group, Weights};
use crate::error::Result;

/// Decay of the mean of gradients.
const BETA1: f64 = 0.9;
/// Decay of the mean of squared gradients.
const BETA2: f64 = 0.999;
/// Keeps the step finite where gradients vanish.
const EPS: f64 = 1e-8;

/// Adam over the trained tensors of a network.
pub struct Adam {
    /// Parameters in the order of [`Weights::entries`].
    slots: Vec<Slot>,
    weight_decay: f64,
    backbone_lr_scale: f64,
    /// Steps taken, t in the paper.
    step: u64,
}

/// One parameter and its moments, which have its shape.
struct Slot {
    name: String,
    group: Group,
    parameter: Tensor,
    /// m, the mean of gradients.
    mean: Tensor,
    /// v, the mean of squared gradients.
    square: Tensor,
}

impl Adam {
    /// Adam with zero moments. The learning rate of the backbone is `backbone_lr_scale` times the head's.
    ///
    /// # Errors
    /// `Torch`.
    pub fn new(weights: &Weights, weight_decay: f64, backbone_lr_scale: f64) -> Result<Adam> {
        let trained = weights.entries().iter();
        let slots = trained
            .filter_map(|entry| Some((entry, entry.trained?)))
            .map(|(entry, group)| {
                Ok(Slot {
                    name: entry.name.clone(),
                    group,
                    parameter: entry.tensor.shallow_clone(),
                    mean: entry.tensor.f_detach()?.f_zeros_like()?,
                    square: entry.tensor.f_detach()?.f_zeros_like()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Adam {
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
    /// m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
    /// w = w - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
    /// ```
    ///
    /// # Errors
    /// `Torch`.
    pub fn step(&mut self, lr: f64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.step += 1;
        let correction1 = 1.0 - BETA1.powf(self.step as f64);
        let correction2 = 1.0 - BETA2.powf(self.step as f64);
        for slot in &mut self.slots {
            let mut gradient = slot.parameter.grad();
            if !gradient.defined() {
                continue;
            }
            let decay = slot.parameter.f_mul_scalar(self.weight_decay)?;
            let decayed = gradient.f_add(&decay)?;
            let _ = slot.mean.f_mul_scalar_(BETA1)?;
            let _ = slot.mean.f_add_(&decayed.f_mul_scalar(1.0 - BETA1)?)?;
            let _ = slot.square.f_mul_scalar_(BETA2)?;
            let square = decayed.f_mul(&decayed)?.f_mul_scalar_(1.0 - BETA2)?;
            let _ = slot.square.f_add_(&square)?;
            let scale = match slot.group {
                Group::Backbone => self.backbone_lr_scale,
                Group::Head => 1.0,
            };
            let length = slot
                .square
                .f_sqrt()?
                .f_div_scalar_(correction2.sqrt())?
                .f_add_scalar_(EPS)?;
            let change = slot
                .mean
                .f_div(&length)?
                .f_mul_scalar_(-lr * scale / correction1)?;
            let _ = slot.parameter.f_add_(&change)?;
            let _ = gradient.f_zero_()?;
        }
        Ok(())
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// All moments by name, `NAME.mean` and `NAME.square`: with [`Adam::steps`], the whole state.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.slots
            .iter()
            .flat_map(|slot| {
                [
                    (format!("{}.mean", slot.name), slot.mean.shallow_clone()),
                    (format!("{}.square", slot.name), slot.square.shallow_clone()),
                ]
            })
            .collect()
    }

    /// Goes on after `steps` steps; the moments were written through the handles of [`Adam::state`].
    pub fn set_steps(&mut self, steps: u64) {
        self.step = steps;
    }
}

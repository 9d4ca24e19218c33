//! The named tensors of a network, in the order in which its layers were built.
//!
//! Own code instead of `tch::nn::VarStore`: first values come from the run's seed rather than from a
//! process-wide generator, the order is fixed, and nothing can be loaded without the exact check of
//! [`checkpoint`](crate::deep::checkpoint).

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};

/// Which learning rate a parameter follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The feature network; its rate is scaled by `backbone_lr_scale`.
    Backbone,
    /// The hash head.
    Head,
}

/// One tensor of a network.
pub struct Weight {
    /// Dotted path, e.g. `backbone.1.conv.weight`.
    pub name: String,
    /// The values, float32.
    pub tensor: Tensor,
    /// `None` for running statistics, which no gradient reaches.
    pub trained: Option<Group>,
}

/// All tensors of a network.
pub struct Weights {
    entries: Vec<Weight>,
    device: tch::Device,
}

/// Where the first values come from.
#[derive(Clone, Copy, Debug)]
pub enum Init {
    /// All the same.
    Const(f64),
    /// Normal around zero with this standard deviation.
    Normal(f64),
}

impl Weights {
    /// No tensors yet; those to come live on `device`.
    pub fn new(device: tch::Device) -> Weights {
        Weights {
            entries: Vec::new(),
            device,
        }
    }

    /// All tensors, in order.
    pub fn entries(&self) -> &[Weight] {
        &self.entries
    }

    /// The device all of them live on.
    pub fn device(&self) -> tch::Device {
        self.device
    }

    /// Takes the parameters of a group out of training.
    pub fn freeze(&mut self, group: Group) {
        for entry in &mut self.entries {
            if entry.trained == Some(group) {
                entry.trained = None;
                entry.tensor = entry.tensor.set_requires_grad(false);
            }
        }
    }

    /// Adds a trained parameter and returns a second handle of it.
    pub fn parameter(
        &mut self,
        name: String,
        group: Group,
        shape: &[i64],
        init: Init,
        rng: &mut ChaCha8Rng,
    ) -> Result<Tensor> {
        let mut tensor = self.filled(shape, init, rng)?;
        if let [outputs, inputs, height, width] = *shape {
            // Channels last in memory: the convolutions of a CPU run a quarter faster that way.
            let rows_last = tensor
                .f_permute([0, 2, 3, 1])?
                .f_contiguous()?
                .f_view([outputs, height, width, inputs])?;
            tensor = rows_last.f_permute([0, 3, 1, 2])?;
        }
        self.add(name, tensor.f_set_requires_grad(true)?, Some(group))
    }

    /// Adds running statistics and returns a second handle of them.
    pub fn buffer(&mut self, name: String, shape: &[i64], value: f64) -> Result<Tensor> {
        let tensor = Tensor::f_full(shape, value, (Kind::Float, self.device))?;
        self.add(name, tensor, None)
    }

    fn add(&mut self, name: String, tensor: Tensor, trained: Option<Group>) -> Result<Tensor> {
        if self.entries.iter().any(|entry| entry.name == name) {
            return Err(Error::invalid(format!("two weights are called {name}")));
        }
        let handle = tensor.shallow_clone();
        self.entries.push(Weight {
            name,
            tensor,
            trained,
        });
        Ok(handle)
    }

    fn filled(&self, shape: &[i64], init: Init, rng: &mut ChaCha8Rng) -> Result<Tensor> {
        let n_values: i64 = shape.iter().product();
        Ok(match init {
            Init::Const(value) => Tensor::f_full(shape, value, (Kind::Float, self.device))?,
            Init::Normal(deviation) => {
                let normal = Normal::new(0.0, deviation as f32)
                    .map_err(|error| Error::invalid(format!("deviation {deviation}: {error}")))?;
                let values: Vec<f32> = (0..n_values).map(|_| normal.sample(rng)).collect();
                Tensor::f_from_slice(&values)?
                    .f_view(shape)?
                    .f_to_device(self.device)?
            }
        })
    }
}

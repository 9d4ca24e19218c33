//! AlexNet in one column (Krizhevsky, arXiv 1404.5997) as torchvision has it and names its tensors, up to
//! `classifier.5`: 4096 features, both dropouts kept. The backbone of OrthoHash's own tables.
//!
//! Dropout is the one place of this floor that reads libtorch's generator; training seeds it every epoch.

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::Backbone;
use super::layers::{convolve, he, in_kind_of};
use crate::deep::weights::{Group, Init, Weights};
use crate::error::Result;

/// Number in `features`, inputs, outputs, kernel, stride, padding, pooling after it.
const CONVOLUTIONS: [(usize, i64, i64, i64, i64, i64, bool); 5] = [
    (0, 3, 64, 11, 4, 2, true),
    (3, 64, 192, 5, 1, 2, true),
    (6, 192, 384, 3, 1, 1, false),
    (8, 384, 256, 3, 1, 1, false),
    (10, 256, 256, 3, 1, 1, true),
];

/// Number in `classifier`, inputs, outputs.
const LINEARS: [(usize, i64, i64); 2] = [(1, 256 * 6 * 6, 4096), (4, 4096, 4096)];

const DROPOUT: f64 = 0.5;

/// The feature network of AlexNet.
pub struct AlexNet {
    /// Kernel and bias of each convolution.
    convolutions: Vec<(Tensor, Tensor)>,
    /// Matrix and bias of each linear layer.
    linears: Vec<(Tensor, Tensor)>,
}

impl AlexNet {
    pub(super) fn new(weights: &mut Weights, rng: &mut ChaCha8Rng) -> Result<AlexNet> {
        let mut pair = |path: String, shape: &[i64]| -> Result<(Tensor, Tensor)> {
            let fan_in = shape[1..].iter().product();
            let mut add = |name: &str, shape: &[i64], init| {
                weights.parameter(
                    format!("backbone.{path}.{name}"),
                    Group::Backbone,
                    shape,
                    init,
                    rng,
                )
            };
            let weight = add("weight", shape, Init::Normal(he(fan_in)))?;
            Ok((weight, add("bias", &shape[..1], Init::Const(0.0))?))
        };
        let convolutions = CONVOLUTIONS
            .into_iter()
            .map(|(i, inputs, outputs, kernel, ..)| {
                pair(format!("features.{i}"), &[outputs, inputs, kernel, kernel])
            })
            .collect::<Result<_>>()?;
        let linears = LINEARS
            .into_iter()
            .map(|(i, inputs, outputs)| pair(format!("classifier.{i}"), &[outputs, inputs]))
            .collect::<Result<_>>()?;
        Ok(AlexNet {
            convolutions,
            linears,
        })
    }
}

impl Backbone for AlexNet {
    fn features(&self) -> i64 {
        LINEARS[LINEARS.len() - 1].2
    }

    fn forward(&self, pictures: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = pictures.shallow_clone();
        for ((kernel, bias), (_, _, _, _, stride, padding, pool)) in
            self.convolutions.iter().zip(CONVOLUTIONS)
        {
            let (kernel, bias) = (in_kind_of(kernel, &xs)?, in_kind_of(bias, &xs)?);
            xs = convolve(&xs, &kernel, Some(&bias), [stride, padding, 1])?.f_relu_()?;
            if pool {
                xs = xs.f_max_pool2d([3i64, 3], [2i64, 2], [0i64, 0], [1i64, 1], false)?;
            }
        }
        // Rows of the first matrix count channels first, whatever the memory's order.
        xs = xs
            .f_adaptive_avg_pool2d([6i64, 6])?
            .f_contiguous()?
            .f_flatten(1, -1)?;
        for (matrix, bias) in &self.linears {
            let (matrix, bias) = (in_kind_of(matrix, &xs)?, in_kind_of(bias, &xs)?);
            xs = xs
                .f_dropout(DROPOUT, train)?
                .f_linear(&matrix, Some(bias))?
                .f_relu_()?;
        }
        Ok(xs)
    }

    fn fold(&mut self) -> Result<()> {
        // Nothing is normalized.
        Ok(())
    }
}

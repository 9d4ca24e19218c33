//! The hash head: features to code logits.
//!
//! Two kinds, `W` K x q drawn from N(0, 0.01^2) in both:
//!
//! - `v = BatchNorm(f W^T)`, without a bias, since the normalization brings one (OrthoHash, Hoe et al.
//!   2021, supplement, Algorithm 1). It balances every bit over the set: each is on for about half of the
//!   pictures.
//! - `v = f W^T + b`, with `b` 0 at first: the other methods, which put a tanh or a sigmoid after it in
//!   their losses.

use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::deep::device::floats;
use crate::deep::weights::{Group, Init, Weights};
use crate::error::{Error, ErrorKind, Result};

/// Momentum of running statistics, torch's default and the paper's.
const MOMENTUM: f64 = 0.1;
/// Keeps a bit of no variance finite, torch's default and the paper's.
const EPS: f64 = 1e-5;

/// Batch normalization over the first axis (N x C, or N x C x H x W).
pub(crate) struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl BatchNorm {
    pub fn new(
        weights: &mut Weights,
        path: &str,
        group: Group,
        channels: i64,
        rng: &mut ChaCha8Rng,
    ) -> Result<BatchNorm> {
        let mut parameter = |name: &str, value: f64| {
            let name = format!("{path}.{name}");
            weights.parameter(name, group, &[channels], Init::Const(value), rng)
        };
        Ok(BatchNorm {
            weight: parameter("weight", 1.0)?,
            bias: parameter("bias", 0.0)?,
            running_mean: weights.buffer(format!("{path}.running_mean"), &[channels], 0.0)?,
            running_var: weights.buffer(format!("{path}.running_var"), &[channels], 1.0)?,
        })
    }

    /// Batch statistics in training, running statistics otherwise.
    pub fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        Ok(xs.f_batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            train,
            MOMENTUM,
            EPS,
            true,
        )?)
    }
}

/// Which layers a hash head has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadKind {
    /// The linear layer has a bias.
    pub bias: bool,
    /// Batch normalization follows.
    pub norm: bool,
}

impl HeadKind {
    /// A linear layer without a bias, then batch normalization.
    pub const NORM: HeadKind = HeadKind {
        bias: false,
        norm: true,
    };
    /// A linear layer with a bias.
    pub const LINEAR: HeadKind = HeadKind {
        bias: true,
        norm: false,
    };
}

/// Features N x q to code logits N x K.
pub struct HashHead {
    weight: Tensor,
    bias: Option<Tensor>,
    norm: Option<BatchNorm>,
}

impl HashHead {
    /// A head of `bits` outputs over `features` inputs, its tensors under `head.`.
    ///
    /// # Errors
    /// `Torch`.
    pub fn new(
        weights: &mut Weights,
        kind: HeadKind,
        features: i64,
        bits: i64,
        rng: &mut ChaCha8Rng,
    ) -> Result<HashHead> {
        let mut linear = |name: &str, shape: &[i64], init| {
            weights.parameter(name.into(), Group::Head, shape, init, rng)
        };
        let weight = linear("head.linear.weight", &[bits, features], Init::Normal(0.01))?;
        let bias = match kind.bias {
            true => Some(linear("head.linear.bias", &[bits], Init::Const(0.0))?),
            false => None,
        };
        let norm = match kind.norm {
            true => Some(BatchNorm::new(
                weights,
                "head.norm",
                Group::Head,
                bits,
                rng,
            )?),
            false => None,
        };
        Ok(HashHead { weight, bias, norm })
    }

    /// Code logits N x K of features N x q.
    ///
    /// # Errors
    /// `Torch`.
    pub fn forward(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        let outputs = features.f_linear(&self.weight, self.bias.as_ref())?;
        match &self.norm {
            Some(norm) => norm.forward(&outputs, train),
            None => Ok(outputs),
        }
    }

    /// Measures the normalization anew on a target database, as OrthoHash does at instance level
    /// (supplement, C.1 and D.5): mean and variance of the linear layer's outputs over all `features`
    /// (batches N x q), the latter unbiased as torch's running variance; scale 1 and shift 0. Returns the
    /// number of rows.
    ///
    /// # Errors
    /// `Unsupported` for a head without normalization; `InvalidArgument` for fewer than two rows; an
    /// error of `features`; `Torch`. The head is unchanged then.
    pub fn adapt(&mut self, features: &mut dyn Iterator<Item = Result<Tensor>>) -> Result<usize> {
        let _no_grad = tch::no_grad_guard();
        let Some(norm) = &mut self.norm else {
            return Err(ErrorKind::Unsupported(
                "the hash head has no batch normalization to adapt; orthohash models have".into(),
            )
            .into());
        };
        // Sums in double precision, around the first batch's mean: no cancellation at any size.
        let mut n_rows = 0;
        let mut sums: Option<(Tensor, Tensor, Tensor)> = None;
        for batch in features {
            let outputs = batch?
                .f_linear(&self.weight, self.bias.as_ref())?
                .f_to_kind(Kind::Double)?;
            n_rows += outputs.size()[0];
            let sum = |values: &Tensor| values.f_sum_dim_intlist(&[0i64][..], false, Kind::Double);
            let (origin, sum_before, squares_before) = match sums.take() {
                Some(sums) => sums,
                None => {
                    let zeros = outputs.f_select(0, 0)?.f_zeros_like()?;
                    let origin = outputs.f_mean_dim(&[0i64][..], false, Kind::Double)?;
                    (origin, zeros.shallow_clone(), zeros)
                }
            };
            let apart = outputs.f_sub(&origin)?;
            let squares = sum(&apart.f_mul(&apart)?)?;
            let (sum, squares) = (
                sum_before.f_add(&sum(&apart)?)?,
                squares_before.f_add(&squares)?,
            );
            sums = Some((origin, sum, squares));
        }
        let (Some((origin, sum, squares)), true) = (sums, n_rows > 1) else {
            return Err(Error::invalid(format!(
                "a variance takes at least 2 rows of features, got {n_rows}"
            )));
        };
        let mean = sum.f_div_scalar(n_rows as f64)?;
        let spread = squares.f_sub(&mean.f_mul(&sum)?)?.f_clamp_min(0.0)?;
        let variance = spread
            .f_div_scalar((n_rows - 1) as f64)?
            .f_to_kind(Kind::Float)?;
        let mean = origin.f_add(&mean)?.f_to_kind(Kind::Float)?;
        for (bit, (mean, variance)) in floats(&mean)?
            .into_iter()
            .zip(floats(&variance)?)
            .enumerate()
        {
            if !mean.is_finite() || !variance.is_finite() || variance <= 0.0 {
                return Err(Error::invalid(format!(
                    "expected logits that differ, and a finite mean and variance, got {mean} and {variance} at bit {bit} over \
                     {n_rows} examples; look for constant or huge values among them"
                )));
            }
        }
        norm.running_mean.f_copy_(&mean)?;
        norm.running_var.f_copy_(&variance)?;
        let _ = norm.weight.f_fill_(1.0)?;
        let _ = norm.bias.f_fill_(0.0)?;
        Ok(n_rows as usize)
    }
}

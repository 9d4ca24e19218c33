//! What backbones are made of: convolution with batch normalization and activation, and folding the one
//! into the other for inference.

use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use crate::deep::weights::{Group, Init, Weights};
use crate::error::Result;

/// What follows a normalized convolution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Activation {
    None,
    Relu,
    /// ReLU cut at 6.
    Relu6,
}

impl Activation {
    /// In place.
    fn apply(self, mut xs: Tensor) -> Result<Tensor> {
        Ok(match self {
            Activation::None => xs,
            Activation::Relu => xs.f_relu_()?,
            Activation::Relu6 => xs.f_relu6_()?,
        })
    }
}

/// How the edge is filled up with zeros.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Padding {
    /// As many on each side, as torchvision's networks have it.
    Both(i64),
    /// TensorFlow's `SAME`: as many as the output size `ceil(input / stride)` needs, the odd one at the
    /// right and bottom.
    Same,
}

/// The sizes of a convolution with square kernel and without bias.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConvSpec {
    pub inputs: i64,
    pub outputs: i64,
    pub kernel: i64,
    pub stride: i64,
    pub padding: Padding,
    /// 1, or `inputs` for a depthwise convolution.
    pub groups: i64,
}

/// The constants of batch normalization.
#[derive(Clone, Copy, Debug)]
pub(super) struct NormSpec {
    /// Momentum of the running statistics, as torch counts it: the share of the new ones.
    pub momentum: f64,
    /// Added to the variance.
    pub eps: f64,
}

/// torch's defaults.
pub(super) const TORCH_NORM: NormSpec = NormSpec {
    momentum: 0.1,
    eps: 1e-5,
};

/// Makes the layers of one network: what all of them have in common, and where their values come from.
pub(super) struct Layers<'a> {
    pub weights: &'a mut Weights,
    pub rng: &'a mut ChaCha8Rng,
    pub norm: NormSpec,
    /// The padding of a kernel of this side.
    pub padding: fn(i64) -> Padding,
}

impl Layers<'_> {
    /// A layer by its names; `sizes` are inputs, outputs, kernel, stride and groups. The kernel is drawn by
    /// [`he`], from the outputs that one number meets.
    pub fn conv_norm(
        &mut self,
        conv: &str,
        norm_name: &str,
        sizes: [i64; 5],
        activation: Activation,
    ) -> Result<ConvNorm> {
        let [inputs, outputs, kernel, stride, groups] = sizes;
        let spec = ConvSpec {
            inputs,
            outputs,
            kernel,
            stride,
            padding: (self.padding)(kernel),
            groups,
        };
        ConvNorm::new(
            self.weights,
            conv,
            norm_name,
            spec,
            self.norm,
            activation,
            he(kernel * kernel * outputs / groups),
            self.rng,
        )
    }
}

/// A layer of the networks for small pictures: a 3 x 3 convolution that keeps the size at stride 1, its
/// kernel drawn by [`he`] from the inputs that one number comes of, normalization and ReLU, at `path.conv` and
/// `path.norm`.
pub(super) fn small_layer(
    weights: &mut Weights,
    path: &str,
    (inputs, outputs): (i64, i64),
    stride: i64,
    rng: &mut ChaCha8Rng,
) -> Result<ConvNorm> {
    let spec = ConvSpec {
        inputs,
        outputs,
        kernel: 3,
        stride,
        padding: Padding::Both(1),
        groups: 1,
    };
    ConvNorm::new(
        weights,
        &format!("{path}.conv"),
        &format!("{path}.norm"),
        spec,
        TORCH_NORM,
        Activation::Relu,
        he(inputs * 9),
        rng,
    )
}

/// Convolution, batch normalization, activation.
pub(super) struct ConvNorm {
    spec: ConvSpec,
    norm: NormSpec,
    activation: Activation,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    /// Kernel and bias with the normalization by running statistics in them.
    folded: Option<(Tensor, Tensor)>,
}

impl ConvNorm {
    /// The convolution's kernel is called `{conv}.weight`, the normalization's tensors
    /// `{norm_name}.weight`, `.bias`, `.running_mean` and `.running_var`. The kernel is drawn with
    /// `deviation`.
    #[expect(
        clippy::too_many_arguments,
        reason = "two names, two specs, and where values come from"
    )]
    pub fn new(
        weights: &mut Weights,
        conv: &str,
        norm_name: &str,
        spec: ConvSpec,
        norm: NormSpec,
        activation: Activation,
        deviation: f64,
        rng: &mut ChaCha8Rng,
    ) -> Result<ConvNorm> {
        let shape = [
            spec.outputs,
            spec.inputs / spec.groups,
            spec.kernel,
            spec.kernel,
        ];
        let init = Init::Normal(deviation);
        let name = |what: &str| format!("backbone.{norm_name}.{what}");
        let channels = [spec.outputs];
        let weight = format!("backbone.{conv}.weight");
        let mut parameter = |name: String, shape: &[i64], init: Init| {
            weights.parameter(name, Group::Backbone, shape, init, rng)
        };
        let weight = parameter(weight, &shape, init)?;
        let gamma = parameter(name("weight"), &channels, Init::Const(1.0))?;
        let beta = parameter(name("bias"), &channels, Init::Const(0.0))?;
        Ok(ConvNorm {
            spec,
            norm,
            activation,
            weight,
            gamma,
            beta,
            running_mean: weights.buffer(name("running_mean"), &channels, 0.0)?,
            running_var: weights.buffer(name("running_var"), &channels, 1.0)?,
            folded: None,
        })
    }

    /// `train` chooses batch statistics over running ones. Computes in the type of `xs`.
    pub fn forward(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        if !train {
            // Also where running statistics are trained with: gradients reach the kernel, gamma and beta through
            // the fold, and a pass over the kernel is less than one over the outputs.
            let (kernel, bias) = match &self.folded {
                Some((kernel, bias)) => (kernel.shallow_clone(), bias.shallow_clone()),
                None => self.fold_in()?,
            };
            return self
                .activation
                .apply(self.convolve(xs, &kernel, Some(&bias))?);
        }
        let outputs = self.convolve(xs, &self.weight, None)?;
        let normalized = outputs.f_batch_norm(
            Some(&self.gamma),
            Some(&self.beta),
            Some(&self.running_mean),
            Some(&self.running_var),
            true,
            self.norm.momentum,
            self.norm.eps,
            true,
        )?;
        self.activation.apply(normalized)
    }

    fn convolve(&self, xs: &Tensor, kernel: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        // oneDNN has no kernels for the gradients of most depthwise convolutions in bfloat16 and takes
        // them for dense ones, at a multiple of the price of float32 (see with ONEDNN_VERBOSE=1).
        let kind = xs.f_kind()?;
        if kind == Kind::BFloat16 && self.spec.groups > 1 && !xs.device().is_cuda() {
            let wide = self.convolve(&xs.f_to_kind(Kind::Float)?, kernel, bias)?;
            return Ok(wide.f_to_kind(kind)?);
        }
        let ConvSpec {
            kernel: size,
            stride,
            groups,
            ..
        } = self.spec;
        let kernel = in_kind_of(kernel, xs)?;
        let bias = bias.map(|bias| in_kind_of(bias, xs)).transpose()?;
        let symmetric = |xs: &Tensor, kernel: &Tensor, padding: i64| {
            convolve(xs, kernel, bias.as_ref(), [stride, padding, groups])
        };
        let (_, _, height, width) = xs.size4()?;
        let (before, after) = match self.spec.padding {
            Padding::Both(padding) => return symmetric(xs, &kernel, padding),
            Padding::Same => {
                let missing = |length: i64| {
                    ((length + stride - 1) / stride * stride - stride + size - length).max(0)
                };
                let (down, across) = (missing(height), missing(width));
                (
                    [across / 2, down / 2],
                    [across - across / 2, down - down / 2],
                )
            }
        };
        if before == after && before[0] == before[1] {
            return symmetric(xs, &kernel, before[0]);
        }
        // One more at the right and bottom, where torch knows none but the same at all sides: with a first row and
        // column of zeros in the kernel that is the same, and no copy of the pictures. A GPU has kernels for the usual sizes, and
        // copies fast.
        if after == before.map(|n| n + 1) && after[0] == after[1] && !xs.device().is_cuda() {
            let kernel = kernel.f_constant_pad_nd([1, 0, 1, 0])?;
            return symmetric(xs, &kernel, after[0]);
        }
        let padded = xs.f_constant_pad_nd([before[0], after[0], before[1], after[1]])?;
        symmetric(&padded, &kernel, 0)
    }

    /// Puts the normalization by running statistics into kernel and bias. From then on a pass that does
    /// not train uses those, so training must not go on.
    pub fn fold(&mut self) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.folded = Some(self.fold_in()?);
        Ok(())
    }

    /// The kernel and bias that do what convolution and normalization by running statistics do.
    fn fold_in(&self) -> Result<(Tensor, Tensor)> {
        let deviation = self.running_var.f_add_scalar(self.norm.eps)?.f_sqrt()?;
        let scale = self.gamma.f_div(&deviation)?;
        let kernel = self.weight.f_mul(&scale.f_view([-1, 1, 1, 1])?)?;
        let bias = self.beta.f_sub(&self.running_mean.f_mul(&scale)?)?;
        Ok((kernel, bias))
    }
}

/// A convolution with the same stride and padding on both axes. Where nothing is learned through it float32 stays what it is
/// on a GPU too: torch's default cuts the factors to the 10 bits of TF32, which turns bits whose logits are near 0, and the codes
/// of a CPU and a GPU are to be the same.
pub(super) fn convolve(
    xs: &Tensor,
    kernel: &Tensor,
    bias: Option<&Tensor>,
    [stride, padding, groups]: [i64; 3],
) -> Result<Tensor> {
    // A view, since a parameter itself says that it is learned where gradients are off, too.
    let learned = |tensor: &Tensor| -> Result<bool> { Ok(tensor.f_alias()?.requires_grad()) };
    let bias_learned = bias.map(learned).transpose()?.unwrap_or(false);
    let exact = !(learned(xs)? || learned(kernel)? || bias_learned);
    let (stride, padding, dilation) = ([stride; 2], [padding; 2], [1i64; 2]);
    Ok(match exact {
        false => xs.f_conv2d(kernel, bias, stride, padding, dilation, groups)?,
        true => {
            let (transposed, output_padding) = (false, [0i64; 2]);
            let (benchmark, deterministic, cudnn, tf32) = (false, false, true, false);
            xs.f_internal_convolution(
                kernel,
                bias,
                stride,
                padding,
                dilation,
                transposed,
                output_padding,
                groups,
                benchmark,
                deterministic,
                cudnn,
                tf32,
            )?
        }
    })
}

/// A weight in the type of the activations: float32, or bfloat16 in mixed precision.
pub(super) fn in_kind_of(weight: &Tensor, xs: &Tensor) -> Result<Tensor> {
    let kind = xs.f_kind()?;
    Ok(match weight.f_kind()? == kind {
        true => weight.shallow_clone(),
        false => weight.f_to_kind(kind)?,
    })
}

/// The mean over the plane: N x C x H x W to N x C.
pub(super) fn plane_mean(xs: &Tensor) -> Result<Tensor> {
    Ok(xs.f_mean_dim([2i64, 3].as_slice(), false, None)?)
}

/// He et al. 2015: the deviation that keeps the variance through a ReLU, by the inputs or outputs of a
/// layer that one number meets.
pub(super) fn he(fan: i64) -> f64 {
    (2.0 / fan as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    /// With and without gradients a convolution is the same, and gradients reach a kernel wherever they are on.
    #[test]
    fn a_convolution_is_the_same_where_nothing_is_learned() {
        tch::manual_seed(3);
        let normal = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, tch::Device::Cpu));
        let (xs, bias) = (normal(&[2, 4, 9, 9]), normal(&[6]));
        let kernel = normal(&[6, 2, 3, 3]).set_requires_grad(true);
        let run = || convolve(&xs, &kernel, Some(&bias), [2, 1, 2]).unwrap();
        let asked = {
            let _no_grad = tch::no_grad_guard();
            run()
        };
        assert!(!asked.requires_grad());
        let learned = run();
        assert_eq!(learned.size(), [2, 6, 5, 5]);
        assert!(asked.equal(&learned));
        learned.sum(Kind::Float).backward();
        assert!(kernel.grad().defined());
    }

    /// Against torch's own normalization by running statistics: outputs, and gradients of what is trained.
    #[test]
    fn running_statistics_are_trained_with_as_torch_does() {
        let seed = 7;
        println!("seed {seed}");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        tch::manual_seed(seed as i64);
        let mut weights = Weights::new(tch::Device::Cpu);
        let layer = small_layer(&mut weights, "one", (3, 5), 2, &mut rng).unwrap();
        let float = (Kind::Float, tch::Device::Cpu);
        {
            let _no_grad = tch::no_grad_guard();
            for tensor in [&layer.gamma, &layer.beta, &layer.running_mean] {
                tensor
                    .shallow_clone()
                    .copy_(&(Tensor::randn([5], float) * 0.5));
            }
            let mut variance = layer.running_var.shallow_clone();
            variance.copy_(&(Tensor::rand([5], float) + 0.5));
        }
        let pictures = Tensor::randn([4, 3, 8, 8], float);
        let towards = Tensor::randn([4, 5, 4, 4], float);
        let trained = [&layer.weight, &layer.gamma, &layer.beta];
        let gradients = |outputs: &Tensor| -> Vec<Tensor> {
            (outputs * &towards).sum(Kind::Float).backward();
            let take = |tensor: &&Tensor| {
                let gradient = tensor.grad().copy();
                tensor.shallow_clone().zero_grad();
                gradient
            };
            trained.iter().map(take).collect()
        };

        let ours = layer.forward(&pictures, false).unwrap();
        let convolved = layer.convolve(&pictures, &layer.weight, None).unwrap();
        let theirs = convolved.batch_norm(
            Some(&layer.gamma),
            Some(&layer.beta),
            Some(&layer.running_mean),
            Some(&layer.running_var),
            false,
            TORCH_NORM.momentum,
            TORCH_NORM.eps,
            true,
        );
        assert!(ours.allclose(&theirs.relu(), 1e-4, 1e-5, false));
        let pairs = gradients(&ours).into_iter().zip(gradients(&theirs.relu()));
        for (name, (ours, theirs)) in ["kernel", "gamma", "beta"].iter().zip(pairs) {
            assert!(ours.abs().max().double_value(&[]) > 0.1, "{name}");
            assert!(ours.allclose(&theirs, 1e-3, 1e-4, false), "{name}");
        }
    }

    /// Against pictures that are padded as TensorFlow's documentation of `SAME` has it.
    #[test]
    fn same_padding_is_tensorflows() {
        tch::manual_seed(7);
        let float = (Kind::Float, tch::Device::Cpu);
        for (height, width) in [(8, 8), (7, 7), (8, 7), (5, 6), (1, 2)] {
            for (size, stride, groups) in [(3, 1, 1), (3, 2, 4), (5, 2, 1), (5, 3, 4), (4, 1, 1)] {
                let spec = ConvSpec {
                    inputs: 4,
                    outputs: 4,
                    kernel: size,
                    stride,
                    padding: Padding::Same,
                    groups,
                };
                let case = format!("{spec:?} of {height} x {width}");
                let mut weights = Weights::new(tch::Device::Cpu);
                let mut rng = ChaCha8Rng::seed_from_u64(7);
                let relu = Activation::Relu;
                let layer = ConvNorm::new(
                    &mut weights,
                    "c",
                    "n",
                    spec,
                    TORCH_NORM,
                    relu,
                    1.0,
                    &mut rng,
                );
                let layer = layer.unwrap();
                let pictures = Tensor::randn([2, 4, height, width], float);
                let ends = |length: i64| {
                    let outputs = (length as f64 / stride as f64).ceil() as i64;
                    let all = ((outputs - 1) * stride + size - length).max(0);
                    (outputs, [all / 2, all - all / 2])
                };
                let ((rows, [top, bottom]), (columns, [left, right])) = (ends(height), ends(width));
                let expected = pictures.constant_pad_nd([left, right, top, bottom]).conv2d(
                    &layer.weight,
                    None::<Tensor>,
                    [stride; 2],
                    [0; 2],
                    [1; 2],
                    groups,
                );
                assert_eq!(expected.size(), [2, 4, rows, columns], "{case}");
                let ours = layer.convolve(&pictures, &layer.weight, None).unwrap();
                assert_eq!(ours.size(), expected.size(), "{case}");
                assert!(ours.allclose(&expected, 1e-4, 1e-5, false), "{case}");
            }
        }
    }
}

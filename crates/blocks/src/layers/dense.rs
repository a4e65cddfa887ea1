use sepal_autograd::fused;
use sepal_core::Activation;
use tch::{Kind, TchError, Tensor};

use crate::layers::linear::Linear;

/// Two linear layers with an activation between them.
#[derive(Debug)]
pub(crate) struct Dense {
    pub(crate) activation: Activate,
    /// `[hidden, inner]`, or `[hidden, 2 inner]` with the gate first.
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// Activation between the two layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Activate {
    pub(crate) function: Activation,
    /// True to multiply the function of the first half by the second half (arXiv 2002.05202).
    pub(crate) is_gated: bool,
}

impl Dense {
    pub(crate) fn with_varying_rows(self) -> Self {
        Self { up: self.up.with_varying_rows(), down: self.down.with_varying_rows(), ..self }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.up.bytes() + self.down.bytes()
    }

    /// Bytes of the input of the activation for each position.
    pub(crate) fn saved_per_position(&self) -> usize {
        usize::try_from(self.up.outputs()).unwrap_or(0) * self.up.compute().elt_size_in_bytes()
    }
}

impl Activate {
    /// Returns the output `[n, width]` for `inner [n, width]`, or `[n, 2 width]` if gated: computed in fp32, and of the same
    /// kind as `inner`.
    pub(crate) fn forward(self, inner: &Tensor) -> Result<Tensor, TchError> {
        match (self.is_gated, self.function) {
            (true, Activation::Silu) => fused::silu_mul(inner),
            (true, _) => {
                let (gate, up) = halves(inner)?;
                let gate = gate.f_to_kind(Kind::Float)?;
                self.apply(&gate)?.f_mul_(&self.other_half(&up)?)?.f_to_kind(inner.kind())
            }
            (false, _) => self.apply(&inner.f_to_kind(Kind::Float)?)?.f_to_kind(inner.kind()),
        }
    }

    /// Writes the gradient of `inner` into `grad_inner`, all of any kind; it is computed in fp32.
    pub(crate) fn backward(self, grad_inner: &mut Tensor, grad: &Tensor, inner: &Tensor) -> Result<(), TchError> {
        if self.is_gated && self.function == Activation::Silu {
            return fused::silu_mul_grad(grad_inner, grad, inner);
        }
        let grad = &grad.f_to_kind(Kind::Float)?;
        if self.is_gated {
            let (gate, up) = halves(inner)?;
            let gate = gate.f_to_kind(Kind::Float)?;
            let (mut grad_gate, mut grad_up) = halves(grad_inner)?;
            grad_gate.f_copy_(&self.apply_backward(&grad.f_mul(&self.other_half(&up)?)?, &gate)?)?;
            return grad_up.f_copy_(&self.other_half_backward(self.apply(&gate)?.f_mul_(grad)?, &up)?);
        }
        let inner = &inner.f_to_kind(Kind::Float)?;
        match self.function {
            // Without a temporary.
            Activation::Gelu | Activation::GeluTanh if grad_inner.kind() == Kind::Float => {
                let approximate = if self.function == Activation::Gelu { "none" } else { "tanh" };
                inner.f_gelu_backward_grad_input(grad_inner, grad, approximate).map(drop)
            }
            _ => grad_inner.f_copy_(&self.apply_backward(grad, inner)?),
        }
    }

    fn apply(self, x: &Tensor) -> Result<Tensor, TchError> {
        match self.function {
            Activation::Silu => x.f_silu(),
            Activation::Gelu => x.f_gelu("none"),
            Activation::GeluTanh => x.f_gelu("tanh"),
            Activation::Relu => x.f_relu(),
            Activation::ClampedSwiglu { alpha, limit } => {
                let x = x.f_clamp_max(limit)?;
                let sigmoid = x.f_mul_scalar(alpha)?.f_sigmoid()?;
                x.f_mul(&sigmoid)
            }
        }
    }

    /// Factor of the function of the first half, given the second half: in fp32, or the second half itself.
    fn other_half(self, up: &Tensor) -> Result<Tensor, TchError> {
        match self.function {
            Activation::ClampedSwiglu { limit, .. } => {
                up.f_to_kind(Kind::Float)?.f_clamp(-limit, limit)?.f_add_scalar_(1.0)
            }
            _ => Ok(up.shallow_clone()),
        }
    }

    /// Returns the gradient of the second half, given that of the factor, in fp32.
    fn other_half_backward(self, mut grad: Tensor, up: &Tensor) -> Result<Tensor, TchError> {
        match self.function {
            Activation::ClampedSwiglu { limit, .. } => grad.f_mul_(&up.f_to_kind(Kind::Float)?.f_abs()?.f_le(limit)?),
            _ => Ok(grad),
        }
    }

    fn apply_backward(self, grad: &Tensor, x: &Tensor) -> Result<Tensor, TchError> {
        match self.function {
            Activation::Silu => x.f_silu_backward(grad),
            Activation::Gelu => x.f_gelu_backward(grad, "none"),
            Activation::GeluTanh => x.f_gelu_backward(grad, "tanh"),
            Activation::Relu => x.f_threshold_backward(grad, 0.0),
            Activation::ClampedSwiglu { alpha, limit } => {
                let scaled = x.f_clamp_max(limit)?.f_mul_scalar_(alpha)?;
                let sigmoid = scaled.f_sigmoid()?;
                // d(x s) = s (1 + alpha x (1 - s)) for s = sigmoid(alpha x)
                let slope = scaled.f_sub(&scaled.f_mul(&sigmoid)?)?.f_add_scalar_(1.0)?.f_mul_(&sigmoid)?;
                grad.f_mul(&slope)?.f_mul_(&x.f_le(limit)?)
            }
        }
    }
}

fn halves(gate_up: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let width = gate_up.size()[1] / 2;
    Ok((gate_up.f_narrow(1, 0, width)?, gate_up.f_narrow(1, width, width)?))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    // Limits that some of the numbers exceed.
    const CLAMPED: Activation = Activation::ClampedSwiglu { alpha: 1.5, limit: 0.75 };
    const FUNCTIONS: [Activation; 5] =
        [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, CLAMPED];

    #[test]
    fn forward_and_backward_equal_autograd() {
        for (function, is_gated) in FUNCTIONS.into_iter().flat_map(|function| [(function, false), (function, true)]) {
            let activation = Activate { function, is_gated };
            let inner = Tensor::randn([5, 6], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let plain = |x: &Tensor| match function {
                Activation::Silu => x * x.sigmoid(),
                Activation::Gelu => x * ((x / 2_f64.sqrt()).erf() + 1.0) * 0.5,
                Activation::GeluTanh => {
                    let scaled = (x + x.pow_tensor_scalar(3) * 0.044_715) * (2.0 / std::f64::consts::PI).sqrt();
                    x * (scaled.tanh() + 1.0) * 0.5
                }
                Activation::Relu => x.clamp_min(0.0),
                Activation::ClampedSwiglu { alpha, limit } => {
                    x.clamp_max(limit) * (x.clamp_max(limit) * alpha).sigmoid()
                }
            };
            let up = inner.narrow(1, 3, 3);
            let up = if function == CLAMPED { up.clamp(-0.75, 0.75) + 1.0 } else { up };
            let expected = match is_gated {
                true => plain(&inner.narrow(1, 0, 3)) * up,
                false => plain(&inner),
            };
            let grad = Tensor::randn(expected.size(), (Kind::Float, Device::Cpu));
            (&expected * &grad).sum(Kind::Float).backward();
            let found = activation.forward(&inner.detach()).expect("an activation");
            let mut grad_inner = inner.detach().empty_like();
            activation.backward(&mut grad_inner, &grad, &inner.detach()).expect("a gradient");
            for (found, expected) in [(found, expected.detach()), (grad_inner, inner.grad())] {
                let off = f64::try_from((found - expected).abs().max()).expect("a number");
                assert!(off < 1e-5, "{activation:?}: off by {off}");
            }
        }
    }

    #[test]
    fn forward_and_backward_of_16_bits_round_the_result_in_fp32() {
        for (function, is_gated) in FUNCTIONS.into_iter().flat_map(|function| [(function, false), (function, true)]) {
            let activation = Activate { function, is_gated };
            for kind in [Kind::BFloat16, Kind::Half] {
                let inner = Tensor::randn([5, 6], (Kind::Float, Device::Cpu)).to_kind(kind);
                let wide = inner.to_kind(Kind::Float);
                // Both are computed in fp32, of which vectorized kernels may give other last bits: one more rounding apart.
                let unit = if kind == Kind::Half { 1e-3 } else { 8e-3 };
                let is_close = |found: &Tensor, expected: &Tensor| {
                    let expected = expected.to_kind(kind).to_kind(Kind::Float);
                    found.to_kind(Kind::Float).allclose(&expected, unit, 1e-6, false)
                };
                let output = activation.forward(&inner).expect("an activation");
                assert_eq!(output.kind(), kind);
                assert!(is_close(&output, &activation.forward(&wide).expect("an activation")), "{activation:?}");
                let grad = Tensor::randn(output.size(), (Kind::Float, Device::Cpu)).to_kind(kind);
                let (mut found, mut expected) = (inner.empty_like(), wide.empty_like());
                activation.backward(&mut found, &grad, &inner).expect("a gradient");
                activation.backward(&mut expected, &grad.to_kind(Kind::Float), &wide).expect("a gradient");
                assert!(is_close(&found, &expected), "{activation:?}");
            }
        }
    }
}

use sepal_autograd::fused;
use sepal_core::Activation;
use tch::{TchError, Tensor};

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
}

impl Activate {
    /// Returns the output `[n, width]` for `inner [n, width]`, or `[n, 2 width]` if gated.
    pub(crate) fn forward(self, inner: &Tensor) -> Result<Tensor, TchError> {
        match (self.is_gated, self.function) {
            (true, Activation::Silu) => fused::silu_mul(inner),
            (true, _) => {
                let (gate, up) = halves(inner)?;
                self.apply(&gate)?.f_mul_(&up)
            }
            (false, _) => self.apply(inner),
        }
    }

    /// Writes the gradient of `inner` into `grad_inner`.
    pub(crate) fn backward(self, grad_inner: &mut Tensor, grad: &Tensor, inner: &Tensor) -> Result<(), TchError> {
        match (self.is_gated, self.function) {
            (true, Activation::Silu) => fused::silu_mul_grad(grad_inner, grad, inner),
            (true, _) => {
                let (gate, up) = halves(inner)?;
                let (mut grad_gate, mut grad_up) = halves(grad_inner)?;
                grad_gate.f_copy_(&self.apply_backward(&grad.f_mul(&up)?, &gate)?)?;
                grad_up.f_copy_(&self.apply(&gate)?.f_mul_(grad)?)
            }
            (false, Activation::Gelu) => inner.f_gelu_backward_grad_input(grad_inner, grad, "none").map(drop),
            (false, Activation::GeluTanh) => inner.f_gelu_backward_grad_input(grad_inner, grad, "tanh").map(drop),
            (false, _) => grad_inner.f_copy_(&self.apply_backward(grad, inner)?),
        }
    }

    fn apply(self, x: &Tensor) -> Result<Tensor, TchError> {
        match self.function {
            Activation::Silu => x.f_silu(),
            Activation::Gelu => x.f_gelu("none"),
            Activation::GeluTanh => x.f_gelu("tanh"),
            Activation::Relu => x.f_relu(),
        }
    }

    fn apply_backward(self, grad: &Tensor, x: &Tensor) -> Result<Tensor, TchError> {
        match self.function {
            Activation::Silu => x.f_silu_backward(grad),
            Activation::Gelu => x.f_gelu_backward(grad, "none"),
            Activation::GeluTanh => x.f_gelu_backward(grad, "tanh"),
            Activation::Relu => x.f_threshold_backward(grad, 0.0),
        }
    }
}

fn halves(gate_up: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let width = gate_up.size()[1] / 2;
    Ok((gate_up.f_narrow(1, 0, width)?, gate_up.f_narrow(1, width, width)?))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn forward_and_backward_equal_autograd() {
        let functions = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];
        for (function, is_gated) in functions.into_iter().flat_map(|function| [(function, false), (function, true)]) {
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
            };
            let expected = match is_gated {
                true => plain(&inner.narrow(1, 0, 3)) * inner.narrow(1, 3, 3),
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
}

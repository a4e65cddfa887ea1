use sepal_autograd::fused;
use sepal_core::Activation;
use tch::{TchError, Tensor};

use crate::experts::{Routed, Router};
use crate::linear::Linear;
use crate::run::{Share, of};

/// What a block does with each position by itself.
#[derive(Debug)]
pub(crate) enum Mlp {
    Dense(Dense),
    /// A mixture of experts.
    Routed(Router),
}

/// Two linear layers with an activation between them.
#[derive(Debug)]
pub(crate) struct Dense {
    pub(crate) activation: Activate,
    /// `[hidden, inner]`, or `[hidden, 2 inner]` with the gate first.
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// What stands between the layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Activate {
    pub(crate) function: Activation,
    /// The function of the first half times the second half (arXiv 2002.05202).
    pub(crate) is_gated: bool,
}

/// What the MLP keeps of one part.
#[derive(Debug)]
pub(crate) enum Inner {
    /// What went into the activation.
    Dense(Tensor),
    Routed(Routed),
}

impl Mlp {
    /// The output for `y [n, hidden]`, plus `residual [n, hidden]` if there is one, and what is kept of each part.
    pub(crate) fn forward(
        &self,
        y: &Tensor,
        residual: Option<&Tensor>,
        shares: &[Share],
    ) -> Result<(Tensor, Vec<Inner>), TchError> {
        match self {
            Mlp::Dense(dense) => {
                let inner = dense.up.forward(y)?;
                let active = dense.activation.forward(&inner)?;
                let result = match residual {
                    Some(residual) => dense.down.add_to(residual, &active)?,
                    None => dense.down.forward(&active)?,
                };
                Ok((result, parts(&inner, shares)?))
            }
            Mlp::Routed(router) => {
                let result = residual.map_or_else(|| y.f_zeros_like(), Tensor::f_detach_copy)?;
                let route = |&share| router.forward(&of(y, share)?, &mut of(&result, share)?).map(Inner::Routed);
                let inner = shares.iter().map(route).collect::<Result<_, _>>()?;
                Ok((result, inner))
            }
        }
    }

    /// From the gradient of the output, `[n, hidden]`, to that of `y`; `kept` is what is kept of each part.
    pub(crate) fn backward<'a>(
        &self,
        grad: &Tensor,
        kept: impl Iterator<Item = (&'a Inner, Share)>,
    ) -> Result<Tensor, TchError> {
        match self {
            Mlp::Dense(dense) => {
                let of_down = dense.down.backward(grad)?;
                let width = [of_down.size()[0], dense.up.outputs()];
                let of_up = of_down.f_new_empty(width, (of_down.kind(), of_down.device()))?;
                for (inner, share) in kept {
                    let Inner::Dense(inner) = inner else { return Err(another()) };
                    dense.activation.backward(&mut of(&of_up, share)?, &of(&of_down, share)?, inner)?;
                }
                dense.up.backward(&of_up)
            }
            Mlp::Routed(router) => {
                let result = grad.f_zeros_like()?;
                for (inner, share) in kept {
                    let Inner::Routed(inner) = inner else { return Err(another()) };
                    router.backward(&of(grad, share)?, inner, &mut of(&result, share)?)?;
                }
                Ok(result)
            }
        }
    }

    /// Numbers that are kept for each position.
    pub(crate) fn kept(&self) -> usize {
        match self {
            Mlp::Dense(dense) => usize::try_from(dense.up.outputs()).unwrap_or(0),
            Mlp::Routed(router) => router.kept(),
        }
    }

    /// Memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Mlp::Dense(dense) => dense.bytes(),
            Mlp::Routed(router) => router.bytes(),
        }
    }
}

impl Dense {
    /// Of as many rows as a router sends here.
    pub(crate) fn of_varying_rows(self) -> Self {
        Self { up: self.up.of_varying_rows(), down: self.down.of_varying_rows(), ..self }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.up.bytes() + self.down.bytes()
    }
}

fn parts(inner: &Tensor, shares: &[Share]) -> Result<Vec<Inner>, TchError> {
    shares.iter().map(|&share| Ok(Inner::Dense(of(inner, share)?))).collect()
}

fn another() -> TchError {
    TchError::Kind("an MLP with what another one kept".to_owned())
}

impl Inner {
    /// With memory of its own.
    pub(crate) fn alone(self) -> Result<Self, TchError> {
        match self {
            Inner::Dense(inner) => Ok(Inner::Dense(inner.f_detach_copy()?)),
            // Made for its part alone.
            routed @ Inner::Routed(_) => Ok(routed),
        }
    }

    /// Numbers held.
    pub(crate) fn numel(&self) -> usize {
        match self {
            Inner::Dense(inner) => inner.numel(),
            Inner::Routed(routed) => routed.numel(),
        }
    }
}

impl Activate {
    /// `inner [n, width]`, or `[n, 2 width]` if gated, to `[n, width]`.
    pub(crate) fn forward(self, inner: &Tensor) -> Result<Tensor, TchError> {
        match (self.is_gated, self.function) {
            (true, Activation::Silu) => fused::silu_mul(inner),
            (true, _) => {
                let (gate, up) = halves(inner)?;
                self.of(&gate)?.f_mul_(&up)
            }
            (false, _) => self.of(inner),
        }
    }

    /// Writes the gradient of `inner` into `out`.
    pub(crate) fn backward(self, out: &mut Tensor, grad: &Tensor, inner: &Tensor) -> Result<(), TchError> {
        match (self.is_gated, self.function) {
            (true, Activation::Silu) => fused::silu_mul_grad(out, grad, inner),
            (true, _) => {
                let (gate, up) = halves(inner)?;
                let (mut of_gate, mut of_up) = halves(out)?;
                of_gate.f_copy_(&self.grad_of(&grad.f_mul(&up)?, &gate)?)?;
                of_up.f_copy_(&self.of(&gate)?.f_mul_(grad)?)
            }
            (false, Activation::Gelu) => inner.f_gelu_backward_grad_input(out, grad, "none").map(drop),
            (false, Activation::GeluTanh) => inner.f_gelu_backward_grad_input(out, grad, "tanh").map(drop),
            (false, _) => out.f_copy_(&self.grad_of(grad, inner)?),
        }
    }

    fn of(self, x: &Tensor) -> Result<Tensor, TchError> {
        match self.function {
            Activation::Silu => x.f_silu(),
            Activation::Gelu => x.f_gelu("none"),
            Activation::GeluTanh => x.f_gelu("tanh"),
            Activation::Relu => x.f_relu(),
        }
    }

    fn grad_of(self, grad: &Tensor, x: &Tensor) -> Result<Tensor, TchError> {
        match self.function {
            Activation::Silu => x.f_silu_backward(grad),
            Activation::Gelu => x.f_gelu_backward(grad, "none"),
            Activation::GeluTanh => x.f_gelu_backward(grad, "tanh"),
            Activation::Relu => x.f_threshold_backward(grad, 0.0),
        }
    }
}

fn halves(both: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let width = both.size()[1] / 2;
    Ok((both.f_narrow(1, 0, width)?, both.f_narrow(1, width, width)?))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn gradients_equal_autograds() {
        let functions = [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];
        for (function, is_gated) in functions.into_iter().flat_map(|function| [(function, false), (function, true)]) {
            let activation = Activate { function, is_gated };
            let inner = Tensor::randn([5, 6], (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let plain = |x: &Tensor| match function {
                Activation::Silu => x * x.sigmoid(),
                Activation::Gelu => x * ((x / 2_f64.sqrt()).erf() + 1.0) * 0.5,
                Activation::GeluTanh => {
                    x * (((x + x.pow_tensor_scalar(3) * 0.044_715) * (2.0 / std::f64::consts::PI).sqrt()).tanh() + 1.0)
                        * 0.5
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
            let mut out = inner.detach().empty_like();
            activation.backward(&mut out, &grad, &inner.detach()).expect("a gradient");
            for (found, expected) in [(found, expected.detach()), (out, inner.grad())] {
                let off = f64::try_from((found - expected).abs().max()).expect("a number");
                assert!(off < 1e-5, "{activation:?}: off by {off}");
            }
        }
    }
}

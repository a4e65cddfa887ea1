use tch::{TchError, Tensor};

use crate::layers::dense::Dense;
use crate::layers::experts::{Router, SavedRouting};
use crate::segment::Segment;

/// MLP of a block.
#[derive(Debug)]
pub(crate) enum Mlp {
    Dense(Dense),
    Routed(Router),
}

/// Tensors of one batch that the backward pass of an MLP needs.
#[derive(Debug)]
pub(crate) enum SavedMlp {
    /// Input of the activation.
    Dense(Tensor),
    Routed(SavedRouting),
}

impl Mlp {
    /// Returns the output for `y [n, hidden]`, plus `residual [n, hidden]` if given, and the saved tensors of each batch.
    pub(crate) fn forward(
        &self,
        y: &Tensor,
        residual: Option<&Tensor>,
        segments: &[Segment],
    ) -> Result<(Tensor, Vec<SavedMlp>), TchError> {
        match self {
            Mlp::Dense(dense) => {
                let inner = dense.up.forward(y)?;
                let active = dense.activation.forward(&inner)?;
                let result = match residual {
                    Some(residual) => dense.down.forward_add(residual, &active)?,
                    None => dense.down.forward(&active)?,
                };
                let saved = segments.iter().map(|segment| segment.narrow(&inner).map(SavedMlp::Dense));
                Ok((result, saved.collect::<Result<_, _>>()?))
            }
            Mlp::Routed(router) => {
                let result = residual.map_or_else(|| y.f_zeros_like(), Tensor::f_detach_copy)?;
                let route = |segment: &Segment| router.forward(&segment.narrow(y)?, &mut segment.narrow(&result)?);
                let saved = segments.iter().map(|segment| route(segment).map(SavedMlp::Routed));
                let saved = saved.collect::<Result<_, _>>()?;
                Ok((result, saved))
            }
        }
    }

    /// Returns the gradient of `y`, given that of the output, `grad [n, hidden]`.
    pub(crate) fn backward<'a>(
        &self,
        grad: &Tensor,
        saved: impl Iterator<Item = (&'a SavedMlp, Segment)>,
    ) -> Result<Tensor, TchError> {
        match self {
            Mlp::Dense(dense) => {
                let grad_active = dense.down.backward(grad)?;
                let shape = [grad_active.size()[0], dense.up.outputs()];
                let grad_inner = grad_active.f_new_empty(shape, (grad_active.kind(), grad_active.device()))?;
                for (saved, segment) in saved {
                    let SavedMlp::Dense(inner) = saved else { return Err(mismatch()) };
                    let (mut grad_inner, grad) = (segment.narrow(&grad_inner)?, segment.narrow(&grad_active)?);
                    dense.activation.backward(&mut grad_inner, &grad, inner)?;
                }
                dense.up.backward(&grad_inner)
            }
            Mlp::Routed(router) => {
                let result = grad.f_zeros_like()?;
                for (saved, segment) in saved {
                    let SavedMlp::Routed(saved) = saved else { return Err(mismatch()) };
                    router.backward(&segment.narrow(grad)?, saved, &mut segment.narrow(&result)?)?;
                }
                Ok(result)
            }
        }
    }

    /// Numbers saved for each position.
    pub(crate) fn saved_per_position(&self) -> usize {
        match self {
            Mlp::Dense(dense) => usize::try_from(dense.up.outputs()).unwrap_or(0),
            Mlp::Routed(router) => router.saved_per_position(),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Mlp::Dense(dense) => dense.bytes(),
            Mlp::Routed(router) => router.bytes(),
        }
    }
}

fn mismatch() -> TchError {
    TchError::Kind("saved tensors of another kind of MLP".to_owned())
}

impl SavedMlp {
    pub(crate) fn into_owned(self) -> Result<Self, TchError> {
        match self {
            SavedMlp::Dense(inner) => Ok(SavedMlp::Dense(inner.f_detach_copy()?)),
            // Routed tensors are computed for one batch only.
            routed @ SavedMlp::Routed(_) => Ok(routed),
        }
    }

    pub(crate) fn numel(&self) -> usize {
        match self {
            SavedMlp::Dense(inner) => inner.numel(),
            SavedMlp::Routed(saved) => saved.numel(),
        }
    }
}

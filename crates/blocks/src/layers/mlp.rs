use tch::{Kind, TchError, Tensor};

use crate::adapters::{self, AdapterBackward, LayerInput, Site};
use crate::layers::dense::Dense;
use crate::layers::experts::{Router, SavedRouting};
use crate::segment::Segment;
use crate::tensor_bytes::tensor_bytes;

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
    /// Returns the output for `y [n, hidden]`, plus `residual [n, hidden]` if given, and the saved tensors of each batch. `y`
    /// is of any kind, and `residual` is fp32. The output is fp32 if it includes the residual, or if it is one of experts.
    pub(crate) fn forward(
        &self,
        y: &Tensor,
        residual: Option<&Tensor>,
        segments: &[Segment],
        adapters: &mut adapters::Forward<'_>,
    ) -> Result<(Tensor, Vec<SavedMlp>), TchError> {
        match self {
            Mlp::Dense(dense) => {
                let y = &y.f_to_kind(dense.up.compute())?;
                let inner = dense.up.forward(y)?;
                adapters.apply(Site::MlpInput, segments, Some(y), &inner)?;
                let active = dense.activation.forward(&inner)?;
                adapters.apply(Site::MlpActive, segments, None, &active)?;
                let is_summed = adapters.are_additive(Site::MlpOutput);
                let result = dense.down.forward_to(residual.filter(|_| is_summed), &active)?;
                adapters.apply(Site::MlpOutput, segments, Some(&active), &result)?;
                let result = match residual {
                    Some(residual) if !is_summed => residual.f_add(&result)?,
                    _ => result,
                };
                let saved = segments.iter().map(|segment| segment.narrow(&inner).map(SavedMlp::Dense));
                Ok((result, saved.collect::<Result<_, _>>()?))
            }
            Mlp::Routed(router) => {
                let zeros = || y.f_new_zeros(y.size(), (Kind::Float, y.device()));
                let result = residual.map_or_else(zeros, Tensor::f_detach_copy)?;
                let route = |segment: &Segment| router.forward(&segment.narrow(y)?, &mut segment.narrow(&result)?);
                let saved = segments.iter().map(|segment| route(segment).map(SavedMlp::Routed));
                let saved = saved.collect::<Result<_, _>>()?;
                Ok((result, saved))
            }
        }
    }

    /// Returns the gradient of `y`, given that of the output, `grad [n, hidden]` in fp32. `normed` returns `y` for a batch.
    pub(crate) fn backward(
        &self,
        grad: &Tensor,
        saved: &[&SavedMlp],
        segments: &[Segment],
        adapters: &mut AdapterBackward<'_>,
        normed: impl Fn(usize) -> Result<Option<LayerInput>, TchError>,
    ) -> Result<Tensor, TchError> {
        match self {
            Mlp::Dense(dense) => {
                let grad_active = dense.output_backward(grad, saved, segments, adapters)?;
                let shape = [grad_active.size()[0], dense.up.outputs()];
                let grad_inner = grad_active.f_new_empty(shape, (grad_active.kind(), grad_active.device()))?;
                for (saved, segment) in saved.iter().zip(segments) {
                    let (mut grad_inner, grad) = (segment.narrow(&grad_inner)?, segment.narrow(&grad_active)?);
                    dense.activation.backward(&mut grad_inner, &grad, saved.inner()?)?;
                }
                let inner_grads = adapters.run(Site::MlpInput, segments, &grad_inner, normed)?;
                let grad_y = dense.up.backward(&grad_inner)?;
                inner_grads.add_to(&grad_y, segments)?;
                Ok(grad_y)
            }
            Mlp::Routed(router) => {
                let result = grad.f_zeros_like()?;
                for (saved, segment) in saved.iter().zip(segments) {
                    let SavedMlp::Routed(saved) = saved else { return Err(mismatch()) };
                    router.backward(&segment.narrow(grad)?, saved, &mut segment.narrow(&result)?)?;
                }
                Ok(result)
            }
        }
    }

    /// The layers, unless they are those of experts.
    pub(crate) fn dense(&self) -> Option<&Dense> {
        match self {
            Mlp::Dense(dense) => Some(dense),
            Mlp::Routed(_) => None,
        }
    }

    /// Bytes saved for each position.
    pub(crate) fn saved_per_position(&self) -> usize {
        match self {
            Mlp::Dense(dense) => dense.saved_per_position(),
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

impl Dense {
    /// Backward pass of the last layer: returns the gradient of its input, before adapters.
    fn output_backward(
        &self,
        grad: &Tensor,
        saved: &[&SavedMlp],
        segments: &[Segment],
        adapters: &mut AdapterBackward<'_>,
    ) -> Result<Tensor, TchError> {
        let active = |batch: usize| self.activation.forward(saved[batch].inner()?);
        let scaled = |batch: usize| {
            let active = active(batch)?;
            adapters.repeat(Site::MlpActive, batch, &active)?;
            Ok(active)
        };
        let batches = if adapters.has(Site::MlpOutput) { saved.len() } else { 0 };
        let inputs: Vec<Tensor> = (0..batches).map(scaled).collect::<Result<_, TchError>>()?;
        let grad = adapters.writable(Site::MlpOutput, grad)?;
        let input = |batch: usize| Ok(inputs.get(batch).map(|input| LayerInput::Plain(input.shallow_clone())));
        let inner_grads = adapters.run(Site::MlpOutput, segments, &grad, input)?;
        let grad_active = self.down.backward(&grad)?;
        inner_grads.add_to(&grad_active, segments)?;
        let input = |batch: usize| Ok(Some(LayerInput::Plain(active(batch)?)));
        adapters.run(Site::MlpActive, segments, &grad_active, input)?;
        Ok(grad_active)
    }
}

impl SavedMlp {
    /// Input of the activation.
    fn inner(&self) -> Result<&Tensor, TchError> {
        match self {
            SavedMlp::Dense(inner) => Ok(inner),
            SavedMlp::Routed(_) => Err(mismatch()),
        }
    }

    pub(crate) fn into_owned(self) -> Result<Self, TchError> {
        match self {
            SavedMlp::Dense(inner) => Ok(SavedMlp::Dense(inner.f_detach_copy()?)),
            // Routed tensors are computed for one batch only.
            routed @ SavedMlp::Routed(_) => Ok(routed),
        }
    }

    /// Memory in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            SavedMlp::Dense(inner) => tensor_bytes(inner),
            SavedMlp::Routed(saved) => saved.bytes(),
        }
    }
}

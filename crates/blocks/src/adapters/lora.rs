use tch::{Kind, TchError, Tensor};

use super::{Adapter, SiteBackward, SiteGrads, mismatch};
use crate::layers::origin::{InputMap, SitePart};

/// Low-rank addition to a part of a layer's outputs (LoRA, arXiv 2106.09685): `y += B A x`.
///
/// The layer in memory differs from the checkpoint's: its outputs are reordered or stacked with others', and its input
/// lacks the weights of the norm before it. Both factors are converted once, and their gradients back.
#[derive(Debug)]
pub(super) struct Lora {
    /// Tunables of A and B.
    pub(super) tunables: [usize; 2],
    /// `[rank, inputs]`, for the layer's input in memory.
    a: Tensor,
    /// `[rank]`, the product of A and the shift of the norm.
    shift: Option<Tensor>,
    /// `[part.len, rank]`
    b: Tensor,
    part: SitePart,
    input: InputMap,
}

impl Lora {
    /// Converts `a [rank, inputs]` and `b [outputs, rank]` of the checkpoint's layer.
    pub(super) fn new(
        tunables: [usize; 2],
        [a, b]: [&Tensor; 2],
        part: &SitePart,
        input: &InputMap,
    ) -> Result<Self, TchError> {
        let shift = input.shift.as_ref().map(|shift| a.f_mv(shift)).transpose()?;
        let b = part.select(b)?;
        Ok(Self { tunables, a: input.convert(a)?, shift, b, part: part.share(), input: input.share() })
    }

    /// Gradient of A in the checkpoint's order, given that of `A x`.
    fn grad_a(&self, grad: &Tensor, pass: &SiteBackward<'_>) -> Result<Tensor, TchError> {
        let product = pass.input.ok_or_else(mismatch)?.product(grad)?; // [rank, inputs]
        self.input.convert_grad(product, || grad.f_sum_dim_intlist(0, false, Kind::Float))
    }
}

impl Adapter for Lora {
    fn forward(&self, input: Option<&Tensor>, output: &Tensor) -> Result<Option<Tensor>, TchError> {
        let inner = input.ok_or_else(mismatch)?.f_linear(&self.a, self.shift.as_ref())?; // [n, rank]
        let _ = self.part.columns(output)?.f_addmm_(&inner, &self.b.f_transpose(0, 1)?)?;
        Ok(Some(inner))
    }

    fn backward(&self, pass: SiteBackward<'_>) -> Result<SiteGrads, TchError> {
        let grad = self.part.columns(pass.grad)?; // [n, part.len]
        let inner = grad.f_mm(&self.b)?; // [n, rank]
        let mut tensors = Vec::new();
        if pass.wants_tensors {
            let saved = pass.saved.ok_or_else(mismatch)?;
            let grad_b = self.part.expand(&grad.f_transpose(0, 1)?.f_mm(saved)?)?;
            tensors.extend([(self.tunables[0], self.grad_a(&inner, &pass)?), (self.tunables[1], grad_b)]);
        }
        Ok(SiteGrads { tensors, inner: Some(inner) })
    }

    fn add_input_grad(&self, inner: &Tensor, grad_input: &Tensor) -> Result<(), TchError> {
        let _ = grad_input.shallow_clone().f_addmm_(inner, &self.a)?;
        Ok(())
    }

    fn share(&self) -> Box<dyn Adapter> {
        Box::new(Self {
            tunables: self.tunables,
            a: self.a.shallow_clone(),
            shift: self.shift.as_ref().map(Tensor::shallow_clone),
            b: self.b.shallow_clone(),
            part: self.part.share(),
            input: self.input.share(),
        })
    }
}

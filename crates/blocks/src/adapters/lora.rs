use tch::{Kind, TchError, Tensor};

use super::{Adapter, SiteBackward, SiteGrads, mismatch};
use crate::layers::origin::{InputMap, SitePart};

/// First factor A of a low-rank addition, for the input of the layer in memory.
#[derive(Debug)]
pub(super) struct FirstFactor {
    /// `[rank, inputs]`
    a: Tensor,
    /// `[rank]`, the product of A and the shift of the norm.
    shift: Option<Tensor>,
    input: InputMap,
}

impl FirstFactor {
    /// Converts `a [rank, inputs]` of the checkpoint's layer.
    pub(super) fn new(a: &Tensor, input: &InputMap) -> Result<Self, TchError> {
        let shift = input.shift.as_ref().map(|shift| a.f_mv(shift)).transpose()?;
        Ok(Self { a: input.convert(a)?, shift, input: input.share() })
    }

    /// Returns a factor with the same memory.
    pub(super) fn share(&self) -> Self {
        let shift = self.shift.as_ref().map(Tensor::shallow_clone);
        Self { a: self.a.shallow_clone(), shift, input: self.input.share() }
    }

    /// Returns `A x`, `[n, rank]`.
    fn product(&self, input: &Tensor) -> Result<Tensor, TchError> {
        input.f_to_kind(Kind::Float)?.f_linear(&self.a, self.shift.as_ref())
    }

    /// Gradient of A in the checkpoint's order, given that of `A x`.
    fn grad(&self, grad: &Tensor, pass: &SiteBackward<'_>) -> Result<Tensor, TchError> {
        let product = pass.input.ok_or_else(mismatch)?.product(grad)?; // [rank, inputs]
        self.input.convert_grad(product, || grad.f_sum_dim_intlist(0, false, Kind::Float))
    }
}

/// Low-rank addition to a part of a layer's outputs (LoRA, arXiv 2106.09685): `y += B A x`.
///
/// The layer in memory differs from the checkpoint's: its outputs are reordered or stacked with others', and its input
/// lacks the weights of the norm before it. Both factors are converted once, and their gradients back.
#[derive(Debug)]
pub(super) struct Lora {
    /// Tunables of A and B.
    tunables: [usize; 2],
    first: FirstFactor,
    /// `[part.len, rank]`
    b: Tensor,
    part: SitePart,
}

impl Lora {
    /// Converts `b [outputs, rank]` of the checkpoint's layer.
    pub(super) fn new(tunables: [usize; 2], first: FirstFactor, b: &Tensor, part: &SitePart) -> Result<Self, TchError> {
        Ok(Self { tunables, first, b: part.select(b)?, part: part.share() })
    }
}

impl Adapter for Lora {
    fn forward(&self, input: Option<&Tensor>, output: &Tensor) -> Result<Option<Tensor>, TchError> {
        let inner = self.first.product(input.ok_or_else(mismatch)?)?; // [n, rank]
        add_product(&self.part.columns(output)?, &inner, &self.b.f_transpose(0, 1)?)?;
        Ok(Some(inner))
    }

    fn backward(&self, pass: SiteBackward<'_>) -> Result<SiteGrads, TchError> {
        let grad = self.part.columns(pass.grad)?.f_to_kind(Kind::Float)?; // [n, part.len]
        let inner = grad.f_mm(&self.b)?; // [n, rank]
        let mut tensors = Vec::new();
        if pass.wants_tensors {
            let saved = pass.saved.ok_or_else(mismatch)?;
            let grad_b = self.part.expand(&grad.f_transpose(0, 1)?.f_mm(saved)?)?;
            tensors.extend([(self.tunables[0], self.first.grad(&inner, &pass)?), (self.tunables[1], grad_b)]);
        }
        Ok(SiteGrads { tensors, inner: Some(inner) })
    }

    fn add_input_grad(&self, inner: &Tensor, grad_input: &Tensor) -> Result<(), TchError> {
        add_product(grad_input, inner, &self.first.a)
    }

    fn share(&self) -> Box<dyn Adapter> {
        let (first, b) = (self.first.share(), self.b.shallow_clone());
        Box::new(Self { tunables: self.tunables, first, b, part: self.part.share() })
    }
}

/// Adds `left right`, computed in fp32, to `sum` in place.
fn add_product(sum: &Tensor, left: &Tensor, right: &Tensor) -> Result<(), TchError> {
    let mut sum = sum.shallow_clone();
    match sum.kind() {
        Kind::Float => sum.f_addmm_(left, right),
        _ => sum.f_add_(&left.f_mm(right)?),
    }
    .map(drop)
}

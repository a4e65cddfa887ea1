use tch::{Kind, TchError, Tensor};

use super::{Adapter, LayerInput, SiteBackward, SiteGrads, mismatch};
use crate::layers::origin::SitePart;

/// Factors of a part of a layer's outputs (IA3, arXiv 2205.05638), the bias included.
#[derive(Debug)]
pub(super) struct ScaleOutput {
    tunable: usize,
    /// `[part.len]`
    factors: Tensor,
    part: SitePart,
}

impl ScaleOutput {
    /// Converts the factors `[outputs]` of the checkpoint's layer.
    pub(super) fn new(tunable: usize, factors: &Tensor, part: &SitePart) -> Result<Self, TchError> {
        Ok(Self { tunable, factors: part.select(factors)?, part: part.share() })
    }
}

impl Adapter for ScaleOutput {
    fn forward(&self, _: Option<&Tensor>, output: &Tensor) -> Result<Option<Tensor>, TchError> {
        let mut columns = self.part.columns(output)?;
        let unscaled = columns.f_detach_copy()?;
        let _ = columns.f_mul_(&self.factors)?;
        Ok(Some(unscaled))
    }

    fn backward(&self, pass: SiteBackward<'_>) -> Result<SiteGrads, TchError> {
        let mut grad = self.part.columns(pass.grad)?;
        let mut tensors = Vec::new();
        if pass.wants_tensors {
            let product = grad.f_to_kind(Kind::Float)?.f_mul(pass.saved.ok_or_else(mismatch)?)?;
            tensors.push((self.tunable, self.part.expand(&product.f_sum_dim_intlist(0, false, Kind::Float)?)?));
        }
        let _ = grad.f_mul_(&self.factors)?;
        Ok(SiteGrads { tensors, inner: None })
    }

    fn is_additive(&self) -> bool {
        false
    }

    fn share(&self) -> Box<dyn Adapter> {
        Box::new(Self { tunable: self.tunable, factors: self.factors.shallow_clone(), part: self.part.share() })
    }
}

/// Factors of the inputs of the MLP's last layer, `[inputs]`.
#[derive(Debug)]
pub(super) struct ScaleInput {
    pub(super) tunable: usize,
    pub(super) factors: Tensor,
}

impl Adapter for ScaleInput {
    fn forward(&self, _: Option<&Tensor>, output: &Tensor) -> Result<Option<Tensor>, TchError> {
        let _ = output.shallow_clone().f_mul_(&self.factors)?;
        Ok(None)
    }

    /// The unscaled input is computed again by the caller.
    fn backward(&self, pass: SiteBackward<'_>) -> Result<SiteGrads, TchError> {
        let mut tensors = Vec::new();
        if pass.wants_tensors {
            let Some(LayerInput::Plain(unscaled)) = pass.input else { return Err(mismatch()) };
            let product = pass.grad.f_to_kind(Kind::Float)?.f_mul(unscaled)?;
            let product = product.f_sum_dim_intlist(0, false, Kind::Float)?;
            tensors.push((self.tunable, product));
        }
        let _ = pass.grad.shallow_clone().f_mul_(&self.factors)?;
        Ok(SiteGrads { tensors, inner: None })
    }

    fn share(&self) -> Box<dyn Adapter> {
        Box::new(Self { tunable: self.tunable, factors: self.factors.shallow_clone() })
    }
}

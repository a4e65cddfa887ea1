use tch::{Kind, TchError, Tensor};

use crate::layers::norm::SavedNorm;

/// Input of a linear layer in a backward pass.
#[derive(Debug)]
pub(crate) enum LayerInput {
    /// Output of a norm without weights, of which the input is saved.
    Normed(SavedNorm),
    /// `[n, inputs]`
    Plain(Tensor),
}

impl LayerInput {
    /// Returns `leftᵀ input`, `[k, inputs]`, for `left [n, k]`, both fp32. The output of a norm is not computed again.
    pub(super) fn product(&self, left: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Plain(input) => left.f_transpose(0, 1)?.f_mm(&input.f_to_kind(Kind::Float)?),
            Self::Normed(saved) => saved.transposed_product(left),
        }
    }
}

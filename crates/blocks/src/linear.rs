use tch::{TchError, Tensor};

/// A frozen linear layer. It keeps nothing of its input for the backward pass.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[in, out]`, as a product reads it.
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// From a checkpoint's `[out, in]`.
    pub(crate) fn new(weight: &Tensor, bias: Option<Tensor>) -> Result<Self, TchError> {
        Ok(Self { weight: weight.f_transpose(0, 1)?.f_contiguous()?, bias })
    }

    /// The layer on a norm without weights does what `weight` does on the norm with weight `scale` and bias
    /// `shift`: both are linear and frozen, so one pass over the hidden states is saved.
    pub(crate) fn after_norm(
        weight: &Tensor,
        bias: Option<Tensor>,
        scale: &Tensor,
        shift: Option<&Tensor>,
    ) -> Result<Self, TchError> {
        let bias = match (bias, shift) {
            (Some(bias), Some(shift)) => Some(weight.f_mv(shift)?.f_add(&bias)?),
            (None, Some(shift)) => Some(weight.f_mv(shift)?),
            (bias, None) => bias,
        };
        Self::new(&weight.f_mul(scale)?, bias)
    }

    /// `[n, in]` to `[n, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        match &self.bias {
            Some(bias) => bias.f_addmm(x, &self.weight),
            None => x.f_mm(&self.weight),
        }
    }

    /// `residual [n, out]` plus the layer's output.
    pub(crate) fn add_to(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor, TchError> {
        let mut sum = residual.f_addmm(x, &self.weight)?;
        match &self.bias {
            // In place: nothing that is kept for the backward pass reads the sum.
            Some(bias) => sum.f_add_(bias),
            None => Ok(sum),
        }
    }

    /// From the gradient of the output `[n, out]` to that of the input `[n, in]`.
    pub(crate) fn backward(&self, grad: &Tensor) -> Result<Tensor, TchError> {
        grad.f_mm(&self.weight.f_transpose(0, 1)?)
    }

    /// `sum [n, in]` plus the gradient of the input.
    pub(crate) fn add_backward(&self, mut sum: Tensor, grad: &Tensor) -> Result<Tensor, TchError> {
        sum.f_addmm_(grad, &self.weight.f_transpose(0, 1)?)
    }

    /// Numbers of the output of a position.
    pub(crate) fn outputs(&self) -> i64 {
        self.weight.size()[1]
    }
}

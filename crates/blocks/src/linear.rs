use sepal_autograd::linear::{Rows, linear};
use sepal_core::WeightFormat;
use tch::{TchError, Tensor};

use crate::matrix::Matrix;
use crate::norm::NormWeights;

/// A linear layer as a checkpoint has it, on its way to a [`Linear`].
pub(crate) struct Layer {
    /// `[out, in]`
    pub(crate) weight: Tensor,
    /// `[out]`
    pub(crate) bias: Option<Tensor>,
    /// Factors of the inputs, `[in]`.
    pub(crate) inputs: Option<Tensor>,
}

impl Layer {
    /// The outputs of all layers, none of which is behind a norm, one after another. A bias that is missing among others is zero.
    pub(crate) fn stacked(layers: &[Layer]) -> Result<Self, TchError> {
        let weights: Vec<&Tensor> = layers.iter().map(|layer| &layer.weight).collect();
        let weight = Tensor::f_cat(&weights, 0)?;
        if layers.iter().all(|layer| layer.bias.is_none()) {
            return Ok(Self { weight, bias: None, inputs: None });
        }
        let bias = |Layer { weight, bias, .. }: &Layer| match bias {
            Some(bias) => Ok(bias.shallow_clone()),
            None => weight.f_new_zeros([weight.size()[0]], (weight.kind(), weight.device())),
        };
        let biases: Vec<Tensor> = layers.iter().map(bias).collect::<Result<_, TchError>>()?;
        Ok(Self { weight, bias: Some(Tensor::f_cat(&biases, 0)?), inputs: None })
    }

    /// With the rows, and entries of the bias, that `pick` makes of them.
    pub(crate) fn map_rows(&self, pick: impl Fn(&Tensor) -> Result<Tensor, TchError>) -> Result<Self, TchError> {
        let bias = self.bias.as_ref().map(&pick).transpose()?;
        Ok(Self { weight: pick(&self.weight)?, bias, inputs: self.inputs.as_ref().map(Tensor::shallow_clone) })
    }

    /// The outputs `start..start + len`.
    pub(crate) fn part(&self, start: usize, len: usize) -> Result<Self, TchError> {
        self.map_rows(|rows| rows.f_narrow(0, start as i64, len as i64))
    }

    /// The layer on a norm without weights does what this one does on the norm with `norm`: both are linear and frozen,
    /// so one pass over the hidden states is saved.
    pub(crate) fn after(self, norm: &NormWeights) -> Result<Self, TchError> {
        let bias = match (self.bias, &norm.shift) {
            (Some(bias), Some(shift)) => Some(self.weight.f_mv(shift)?.f_add(&bias)?),
            (None, Some(shift)) => Some(self.weight.f_mv(shift)?),
            (bias, None) => bias,
        };
        Ok(Self { bias, inputs: Some(norm.scale.shallow_clone()), ..self })
    }

    pub(crate) fn frozen(self, format: WeightFormat) -> Result<Linear, TchError> {
        let weight = Matrix::new(&self.weight, self.inputs.as_ref(), format)?;
        Ok(Linear { weight, bias: self.bias, rows: Rows::Steady })
    }
}

/// A frozen linear layer. It keeps nothing of its input for the backward pass.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[in, out]`, as a product reads it.
    weight: Matrix,
    bias: Option<Tensor>,
    rows: Rows,
}

impl Linear {
    /// Of as many rows as somebody else decides, block by block.
    pub(crate) fn of_varying_rows(self) -> Self {
        Self { rows: Rows::Varying, ..self }
    }

    /// `[n, in]` to `[n, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        linear(x, &*self.weight.numbers()?, self.bias.as_ref(), None, self.rows)
    }

    /// `residual [n, out]` plus the layer's output.
    pub(crate) fn add_to(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor, TchError> {
        linear(x, &*self.weight.numbers()?, self.bias.as_ref(), Some(residual), self.rows)
    }

    /// From the gradient of the output `[n, out]` to that of the input `[n, in]`.
    pub(crate) fn backward(&self, grad: &Tensor) -> Result<Tensor, TchError> {
        linear(grad, &self.weight.numbers()?.f_transpose(0, 1)?, None, None, self.rows)
    }

    /// `sum [n, in]` plus the gradient of the input.
    pub(crate) fn add_backward(&self, sum: &Tensor, grad: &Tensor) -> Result<Tensor, TchError> {
        linear(grad, &self.weight.numbers()?.f_transpose(0, 1)?, None, Some(sum), self.rows)
    }

    /// Numbers of the output of a position.
    pub(crate) fn outputs(&self) -> i64 {
        self.weight.shape()[1]
    }

    /// Memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.as_ref().map_or(0, |bias| bias.numel() * size_of::<f32>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_bias_among_others_is_zero() {
        let ones = || Tensor::ones([2, 3], (tch::Kind::Float, tch::Device::Cpu));
        let layer = |bias| Layer { weight: ones(), bias, inputs: None };
        let bias = Tensor::from_slice(&[5.0_f32, 6.0]);
        let both = Layer::stacked(&[layer(Some(bias)), layer(None)]).expect("stacked");
        assert_eq!(both.weight.size(), [4, 3]);
        assert_eq!(Vec::<f32>::try_from(both.bias.expect("a bias")).expect("numbers"), [5.0, 6.0, 0.0, 0.0]);
        assert!(Layer::stacked(&[layer(None)]).expect("stacked").bias.is_none());
    }
}

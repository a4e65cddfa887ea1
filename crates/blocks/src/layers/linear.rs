use sepal_autograd::linear::{RowCount, linear};
use sepal_core::WeightFormat;
use tch::{TchError, Tensor};

use crate::layers::matrix::Matrix;
use crate::layers::norm::NormWeights;

/// Linear layer of a checkpoint, to be frozen into a [`Linear`].
pub(crate) struct Layer {
    /// `[out, in]`
    pub(crate) weight: Tensor,
    /// `[out]`
    pub(crate) bias: Option<Tensor>,
    /// Factors of the inputs, `[in]`.
    pub(crate) inputs: Option<Tensor>,
}

impl Layer {
    /// Layer with the outputs of all `layers`, which must have no factors of inputs. A missing bias among others is zero.
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

    /// Applies `map` to the weight and the bias.
    pub(crate) fn map_rows(&self, map: impl Fn(&Tensor) -> Result<Tensor, TchError>) -> Result<Self, TchError> {
        let bias = self.bias.as_ref().map(&map).transpose()?;
        Ok(Self { weight: map(&self.weight)?, bias, inputs: self.inputs.as_ref().map(Tensor::shallow_clone) })
    }

    /// Layer of the outputs `start..start + len`.
    pub(crate) fn part(&self, start: usize, len: usize) -> Result<Self, TchError> {
        self.map_rows(|rows| rows.f_narrow(0, start as i64, len as i64))
    }

    /// Includes the weights of the norm before the layer. Both are linear and frozen, which saves one pass over the
    /// hidden states.
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
        Ok(Linear { weight, bias: self.bias, row_count: RowCount::Repeated })
    }
}

/// Frozen linear layer. Its backward pass needs no saved tensors.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[in, out]`
    weight: Matrix,
    bias: Option<Tensor>,
    row_count: RowCount,
}

impl Linear {
    /// Layer whose number of input rows varies from block to block.
    pub(crate) fn with_varying_rows(self) -> Self {
        Self { row_count: RowCount::Varying, ..self }
    }

    /// Returns the output `[n, out]` for `x [n, in]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        linear(x, &self.weight.to_f32()?, self.bias.as_ref(), None, self.row_count)
    }

    /// Returns `residual [n, out]` plus the output.
    pub(crate) fn forward_add(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor, TchError> {
        linear(x, &self.weight.to_f32()?, self.bias.as_ref(), Some(residual), self.row_count)
    }

    /// Returns the gradient of the input `[n, in]`, given that of the output `[n, out]`.
    pub(crate) fn backward(&self, grad: &Tensor) -> Result<Tensor, TchError> {
        linear(grad, &self.weight.to_f32()?.f_transpose(0, 1)?, None, None, self.row_count)
    }

    /// Returns `sum [n, in]` plus the gradient of the input.
    pub(crate) fn backward_add(&self, sum: &Tensor, grad: &Tensor) -> Result<Tensor, TchError> {
        linear(grad, &self.weight.to_f32()?.f_transpose(0, 1)?, None, Some(sum), self.row_count)
    }

    /// Width of the output.
    pub(crate) fn outputs(&self) -> i64 {
        self.weight.shape()[1]
    }

    /// Memory of weight and bias, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.as_ref().map_or(0, |bias| bias.numel() * size_of::<f32>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacked_missing_bias_is_zero() {
        let ones = || Tensor::ones([2, 3], (tch::Kind::Float, tch::Device::Cpu));
        let layer = |bias| Layer { weight: ones(), bias, inputs: None };
        let bias = Tensor::from_slice(&[5.0_f32, 6.0]);
        let stacked = Layer::stacked(&[layer(Some(bias)), layer(None)]).expect("stacked");
        assert_eq!(stacked.weight.size(), [4, 3]);
        assert_eq!(Vec::<f32>::try_from(stacked.bias.expect("a bias")).expect("numbers"), [5.0, 6.0, 0.0, 0.0]);
        assert!(Layer::stacked(&[layer(None)]).expect("stacked").bias.is_none());
    }
}

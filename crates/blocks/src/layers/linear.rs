use sepal_autograd::linear::{RowCount, linear};
use sepal_core::WeightFormat;
use tch::{TchError, Tensor};

use crate::layers::matrix::Matrix;
use crate::layers::norm::NormWeights;
use crate::layers::origin::{InputMap, Origin, SitePart};

/// Linear layer of a checkpoint, to be frozen into a [`Linear`].
pub(crate) struct Layer {
    /// `[out, in]`
    pub(crate) weight: Tensor,
    /// `[out]`
    pub(crate) bias: Option<Tensor>,
    /// Factors of the inputs, `[in]`.
    pub(crate) inputs: Option<Tensor>,
    pub(crate) origin: Origin,
}

impl Layer {
    /// Layer `name` of a checkpoint.
    pub(crate) fn new(name: &str, weight: Tensor, bias: Option<Tensor>) -> Result<Self, TchError> {
        let origin = Origin::new(name, weight.size()[0])?;
        Ok(Self { weight, bias, inputs: None, origin })
    }

    /// Layer with the outputs of all `layers`, which must have no factors of inputs. A missing bias among others is zero.
    pub(crate) fn stacked(layers: &[Layer]) -> Result<Self, TchError> {
        let weights: Vec<&Tensor> = layers.iter().map(|layer| &layer.weight).collect();
        let weight = Tensor::f_cat(&weights, 0)?;
        let origin = Origin::stacked(layers.iter().map(|layer| &layer.origin));
        if layers.iter().all(|layer| layer.bias.is_none()) {
            return Ok(Self { weight, bias: None, inputs: None, origin });
        }
        let bias = |Layer { weight, bias, .. }: &Layer| match bias {
            Some(bias) => Ok(bias.shallow_clone()),
            None => weight.f_new_zeros([weight.size()[0]], (weight.kind(), weight.device())),
        };
        let biases: Vec<Tensor> = layers.iter().map(bias).collect::<Result<_, TchError>>()?;
        Ok(Self { weight, bias: Some(Tensor::f_cat(&biases, 0)?), inputs: None, origin })
    }

    /// Applies `map`, which reorders or selects rows, to the weight and the bias.
    pub(crate) fn map_rows(&self, map: impl Fn(&Tensor) -> Result<Tensor, TchError>) -> Result<Self, TchError> {
        let bias = self.bias.as_ref().map(&map).transpose()?;
        let inputs = self.inputs.as_ref().map(Tensor::shallow_clone);
        Ok(Self { weight: map(&self.weight)?, bias, inputs, origin: self.origin.map_rows(map)? })
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
        let origin = Origin { shift: norm.shift.as_ref().map(Tensor::shallow_clone), ..self.origin };
        Ok(Self { weight: self.weight, bias, inputs: Some(norm.scale.shallow_clone()), origin })
    }

    /// As [`after`](Self::after), where there may be no norm before the layer.
    pub(crate) fn after_optional(self, norm: Option<&NormWeights>) -> Result<Self, TchError> {
        match norm {
            Some(norm) => self.after(norm),
            None => Ok(self),
        }
    }

    pub(crate) fn frozen(self, format: WeightFormat) -> Result<Linear, TchError> {
        let weight = Matrix::new(&self.weight, self.inputs.as_ref(), format)?;
        let parts = self.origin.parts(self.weight.device())?;
        let Origin { order, shift, .. } = self.origin;
        let input = InputMap { order, scale: self.inputs, shift };
        Ok(Linear { weight, bias: self.bias, row_count: RowCount::Repeated, parts, input })
    }
}

/// Frozen linear layer. Its backward pass needs no saved tensors.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[in, out]`
    weight: Matrix,
    bias: Option<Tensor>,
    row_count: RowCount,
    /// The checkpoint's layers; none if adapters cannot change them.
    parts: Vec<SitePart>,
    input: InputMap,
}

impl Linear {
    /// Layer whose number of input rows varies from block to block. Adapters cannot change it.
    pub(crate) fn with_varying_rows(self) -> Self {
        Self { row_count: RowCount::Varying, parts: Vec::new(), ..self }
    }

    /// Parts of the outputs by the checkpoint's layers that they come from.
    pub(crate) fn parts(&self) -> &[SitePart] {
        &self.parts
    }

    /// Difference between the layer's input and that of the checkpoint's layers.
    pub(crate) fn input(&self) -> &InputMap {
        &self.input
    }

    /// Returns the output `[n, out]` for `x [n, in]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        self.forward_to(None, x)
    }

    /// Returns the output plus `residual [n, out]`, if given.
    pub(crate) fn forward_to(&self, residual: Option<&Tensor>, x: &Tensor) -> Result<Tensor, TchError> {
        linear(x, &self.weight.to_f32()?, self.bias.as_ref(), residual, self.row_count)
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
        let layer = |bias| Layer::new("layer", ones(), bias).expect("a layer");
        let bias = Tensor::from_slice(&[5.0_f32, 6.0]);
        let stacked = Layer::stacked(&[layer(Some(bias)), layer(None)]).expect("stacked");
        assert_eq!(stacked.weight.size(), [4, 3]);
        assert_eq!(Vec::<f32>::try_from(stacked.bias.expect("a bias")).expect("numbers"), [5.0, 6.0, 0.0, 0.0]);
        assert!(Layer::stacked(&[layer(None)]).expect("stacked").bias.is_none());
    }
}

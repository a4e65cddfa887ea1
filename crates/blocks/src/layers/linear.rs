use sepal_autograd::linear::RowCount;
use tch::{Device, Kind, TchError, Tensor};

use crate::layers::matrix::{Inputs, Matrix, kind};
use crate::layers::norm::NormWeights;
use crate::layers::origin::{InputMap, Origin, SitePart};
use crate::layers::packed::Weight;
use crate::tensor_bytes::tensor_bytes;
use crate::weights::Placement;

/// Linear layer of a checkpoint in host memory, to be frozen into a [`Linear`].
pub(crate) struct Layer {
    pub(crate) weight: Weight,
    /// `[out]`
    pub(crate) bias: Option<Tensor>,
    /// Factors of the inputs, `[in]`.
    pub(crate) inputs: Option<Tensor>,
    pub(crate) origin: Origin,
}

impl Layer {
    /// Layer `name` of a checkpoint.
    pub(crate) fn new(name: &str, weight: Weight, bias: Option<Tensor>) -> Result<Self, TchError> {
        let origin = Origin::new(name, weight.outputs())?;
        Ok(Self { weight, bias, inputs: None, origin })
    }

    /// Layer with the outputs of all `layers`, which must have no factors of inputs. A missing bias among others is zero.
    pub(crate) fn stacked(layers: Vec<Layer>) -> Result<Self, TchError> {
        let origin = Origin::stacked(layers.iter().map(|layer| &layer.origin));
        let some_bias = layers.iter().find_map(|layer| layer.bias.as_ref().map(Tensor::shallow_clone));
        let bias = |(layer, some): (&Layer, &Tensor)| match &layer.bias {
            Some(bias) => Ok(bias.shallow_clone()),
            None => some.f_new_zeros([layer.weight.outputs()], (some.kind(), some.device())),
        };
        let bias = some_bias.map(|some| {
            let biases = layers.iter().map(|layer| bias((layer, &some)));
            Tensor::f_cat(&biases.collect::<Result<Vec<_>, TchError>>()?, 0)
        });
        let weight = Weight::stacked(layers.into_iter().map(|layer| layer.weight).collect())?;
        Ok(Self { weight, bias: bias.transpose()?, inputs: None, origin })
    }

    /// Applies `map`, which reorders or selects rows, to the weight and the bias.
    pub(crate) fn map_rows(&self, map: impl Fn(&Tensor) -> Result<Tensor, TchError>) -> Result<Self, TchError> {
        let bias = self.bias.as_ref().map(&map).transpose()?;
        let inputs = self.inputs.as_ref().map(Tensor::shallow_clone);
        Ok(Self { weight: self.weight.map_rows(&map)?, bias, inputs, origin: self.origin.map_rows(map)? })
    }

    /// Reorders the inputs: input `j` becomes that with the index `order[j]`.
    pub(crate) fn with_inputs(self, order: Tensor) -> Result<Self, TchError> {
        let weight = match self.weight {
            Weight::Plain(weight) => Weight::Plain(weight.f_index_select(1, &order)?),
            // While rows are widened, columns are put in the order of the origin.
            packed => packed,
        };
        Ok(Self { weight, origin: Origin { order: Some(order), ..self.origin }, ..self })
    }

    /// Layer of the outputs `start..start + len`.
    pub(crate) fn part(&self, start: usize, len: usize) -> Result<Self, TchError> {
        self.map_rows(|rows| rows.f_narrow(0, start as i64, len as i64))
    }

    /// Includes the weights of the norm before the layer. Both are linear and frozen, which saves one pass over the
    /// hidden states.
    pub(crate) fn after(self, norm: &NormWeights) -> Result<Self, TchError> {
        let to_host = |tensor: &Tensor| tensor.f_to_device(Device::Cpu);
        let shift = norm.shift.as_ref().map(to_host).transpose()?;
        let bias = match (self.bias, &shift) {
            (Some(bias), Some(shift)) => Some(self.weight.product(shift)?.f_add(&bias)?),
            (None, Some(shift)) => Some(self.weight.product(shift)?),
            (bias, None) => bias,
        };
        let origin = Origin { shift, ..self.origin };
        Ok(Self { weight: self.weight, bias, inputs: Some(to_host(&norm.scale)?), origin })
    }

    /// As [`after`](Self::after), where there may be no norm before the layer.
    pub(crate) fn after_optional(self, norm: Option<&NormWeights>) -> Result<Self, TchError> {
        match norm {
            Some(norm) => self.after(norm),
            None => Ok(self),
        }
    }

    /// Freezes the layer in the format and on the device of a placement.
    pub(crate) fn frozen(self, placement: Placement) -> Result<Linear, TchError> {
        let inputs = Inputs { order: self.origin.order.as_ref(), factors: self.inputs.as_ref() };
        let weight = Matrix::new(self.weight, inputs, placement)?;
        let parts = self.origin.parts(placement.device)?;
        let to_device = |tensor: Option<Tensor>| tensor.map(|tensor| tensor.f_to_device(placement.device)).transpose();
        let compute = kind(placement.compute);
        let bias = to_device(self.bias)?.map(|bias| bias.f_to_kind(compute)).transpose()?;
        let Origin { order, shift, .. } = self.origin;
        let input = InputMap { order: to_device(order)?, scale: to_device(self.inputs)?, shift: to_device(shift)? };
        Ok(Linear { weight, bias, compute, row_count: RowCount::Repeated, parts, input })
    }
}

/// Frozen linear layer. Its backward pass needs no saved tensors.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Matrix,
    /// `[out]`
    bias: Option<Tensor>,
    /// Kind of products.
    compute: Kind,
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

    /// Kind of products, and of what they take and return.
    pub(crate) fn compute(&self) -> Kind {
        self.compute
    }

    /// Returns the output `[n, out]` for `x [n, in]`, in the kind of products. `x` is converted to it.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        self.forward_to(None, x)
    }

    /// Returns the output plus `residual [n, out]`, if given, in fp32.
    pub(crate) fn forward_to(&self, residual: Option<&Tensor>, x: &Tensor) -> Result<Tensor, TchError> {
        let x = x.f_to_kind(self.compute)?;
        match residual {
            Some(residual) if self.compute != Kind::Float => {
                residual.f_add(&self.weight.forward(&x, self.bias.as_ref(), None, self.row_count)?)
            }
            residual => self.weight.forward(&x, self.bias.as_ref(), residual, self.row_count),
        }
    }

    /// Returns the gradient of the input `[n, in]` in the kind of products, given that of the output `[n, out]`.
    pub(crate) fn backward(&self, grad: &Tensor) -> Result<Tensor, TchError> {
        self.weight.backward(&grad.f_to_kind(self.compute)?, None, self.row_count)
    }

    /// Returns `sum [n, in]` plus the gradient of the input, in fp32.
    pub(crate) fn backward_add(&self, sum: &Tensor, grad: &Tensor) -> Result<Tensor, TchError> {
        if self.compute == Kind::Float {
            return self.weight.backward(grad, Some(sum), self.row_count);
        }
        sum.f_to_kind(Kind::Float)?.f_add(&self.backward(grad)?)
    }

    /// Bias `[out]`, if there is one.
    pub(crate) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Width of the output.
    pub(crate) fn outputs(&self) -> i64 {
        self.weight.outputs()
    }

    /// Memory of weight and bias, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.as_ref().map_or(0, tensor_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacked_missing_bias_is_zero() {
        let ones = || Weight::Plain(Tensor::ones([2, 3], (Kind::Float, tch::Device::Cpu)));
        let layer = |bias| Layer::new("layer", ones(), bias).expect("a layer");
        let bias = Tensor::from_slice(&[5.0_f32, 6.0]);
        let stacked = Layer::stacked(vec![layer(Some(bias)), layer(None)]).expect("stacked");
        assert_eq!((stacked.weight.outputs(), stacked.weight.inputs()), (4, 3));
        assert_eq!(Vec::<f32>::try_from(stacked.bias.expect("a bias")).expect("numbers"), [5.0, 6.0, 0.0, 0.0]);
        assert!(Layer::stacked(vec![layer(None)]).expect("stacked").bias.is_none());
    }
}

//! Frozen weights in the formats of [`WeightFormat`].

use sepal_autograd::linear::{RowCount, linear};
use sepal_core::{ComputeFormat, RowEncoding, WeightFormat};
use tch::{Kind, TchError, Tensor};

use crate::layers::packed::{Packed, Weight};
use crate::tensor_bytes::tensor_bytes;
use crate::weights::Placement;

/// Frozen matrix of a linear layer.
#[derive(Debug)]
pub(crate) enum Matrix {
    /// `[in, out]`, in the kind of the computation.
    Plain(Tensor),
    /// Widened for each product.
    Packed(Packed),
}

/// Changes of a weight's inputs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inputs<'a> {
    /// Index of each input among the columns of packed rows, `[in]`; a plain weight is in this order.
    pub(crate) order: Option<&'a Tensor>,
    /// Factors, `[in]`. Rounding excludes them: on SmolLM2, weights of norms multiplied into the weight more than double the
    /// error of int8.
    pub(crate) factors: Option<&'a Tensor>,
}

impl Matrix {
    /// Converts a weight to the format and the device of a placement.
    pub(crate) fn new(weight: Weight, inputs: Inputs<'_>, placement: Placement) -> Result<Self, TchError> {
        let order = if matches!(weight, Weight::Packed(_)) { inputs.order } else { None };
        let packed = |weight: &Weight, encoding: RowEncoding| {
            Packed::new(&[weight.pack(encoding)?], order, inputs.factors, placement.device).map(Self::Packed)
        };
        // Rounded in the format of the products already, so that nothing is widened.
        let plain = |weight: &Weight, encoding: RowEncoding| {
            let rounded = Weight::Packed(vec![weight.pack(encoding)?]);
            Self::plain(rounded, Inputs { order, ..inputs }, placement)
        };
        match (placement.format, &weight) {
            (WeightFormat::Auto, Weight::Packed(parts)) => {
                Packed::new(parts, order, inputs.factors, placement.device).map(Self::Packed)
            }
            (WeightFormat::Auto | WeightFormat::F32, _) => Self::plain(weight, Inputs { order, ..inputs }, placement),
            (WeightFormat::Bf16, weight) if placement.compute == ComputeFormat::Bf16 => {
                plain(weight, RowEncoding::Bf16)
            }
            (WeightFormat::F16, weight) if placement.compute == ComputeFormat::F16 => plain(weight, RowEncoding::F16),
            (WeightFormat::Bf16, weight) => packed(weight, RowEncoding::Bf16),
            (WeightFormat::F16, weight) => packed(weight, RowEncoding::F16),
            (WeightFormat::Int8, weight) => packed(weight, RowEncoding::Int8),
            (WeightFormat::Nf4, weight) => packed(weight, RowEncoding::Nf4),
        }
    }

    fn plain(weight: Weight, inputs: Inputs<'_>, placement: Placement) -> Result<Self, TchError> {
        let mut weight = weight.into_plain()?;
        if let Some(order) = inputs.order {
            weight = weight.f_index_select(1, order)?;
        }
        if let Some(factors) = inputs.factors {
            weight = weight.f_mul(factors)?;
        }
        let weight = weight.f_transpose(0, 1)?.f_to_device(placement.device)?;
        Ok(Self::Plain(weight.f_to_kind(kind(placement.compute))?.f_contiguous()?))
    }

    /// Number of outputs.
    pub(crate) fn outputs(&self) -> i64 {
        match self {
            Self::Plain(weight) => weight.size()[1],
            Self::Packed(packed) => packed.outputs(),
        }
    }

    /// Returns the output `[n, out]` for `x [n, in]`, plus `bias [out]` and `sum [n, out]` if given; all are of one kind.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        sum: Option<&Tensor>,
        row_count: RowCount,
    ) -> Result<Tensor, TchError> {
        match self {
            Self::Plain(weight) => linear(x, weight, bias, sum, row_count),
            Self::Packed(packed) => packed.forward(x, bias, sum, row_count),
        }
    }

    /// Returns the gradient of the input `[n, in]`, given that of the output `[n, out]`, plus `sum [n, in]` if given.
    pub(crate) fn backward(
        &self,
        grad: &Tensor,
        sum: Option<&Tensor>,
        row_count: RowCount,
    ) -> Result<Tensor, TchError> {
        match self {
            Self::Plain(weight) => linear(grad, &weight.f_transpose(0, 1)?, None, sum, row_count),
            Self::Packed(packed) => packed.backward(grad, sum, row_count),
        }
    }

    /// Memory in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Plain(weight) => tensor_bytes(weight),
            Self::Packed(packed) => packed.bytes(),
        }
    }
}

/// libtorch's name of a format.
pub(crate) fn kind(compute: ComputeFormat) -> Kind {
    match compute {
        ComputeFormat::F32 => Kind::Float,
        ComputeFormat::Bf16 => Kind::BFloat16,
        ComputeFormat::F16 => Kind::Half,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_in_each_format_round_within_its_precision() {
        let weight = Tensor::randn([30, 100], (Kind::Float, tch::Device::Cpu));
        let factors = Tensor::randn([100], (Kind::Float, tch::Device::Cpu));
        let identity = Tensor::eye(100, (Kind::Float, tch::Device::Cpu));
        // 16-bit formats are off by half a unit in the last place, int8 by half a step, NF4 by half the widest gap.
        let bounds = [1e-6, 1e-6, 4e-3, 5e-4, 4e-3, 0.16];
        for (format, bound) in WeightFormat::ALL.into_iter().zip(bounds) {
            let inputs = Inputs { order: None, factors: Some(&factors) };
            let matrix = Matrix::new(Weight::Plain(weight.shallow_clone()), inputs, format.into()).expect("a matrix");
            assert_eq!(matrix.outputs(), 30);
            let found = matrix.forward(&identity, None, None, RowCount::Repeated).expect("numbers").tr();
            let off = (found / &factors - &weight).abs() / weight.abs().amax([1], true);
            let off = f64::try_from(off.max()).expect("a number");
            let is_exact = matches!(format, WeightFormat::Auto | WeightFormat::F32);
            assert!(off <= bound && (off > 1e-6 || is_exact), "{format}: off by {off}");
        }
    }

    #[test]
    fn rounded_weights_in_the_format_of_products_are_plain() {
        let weight = Tensor::randn([30, 100], (Kind::Float, tch::Device::Cpu));
        let x = Tensor::randn([4, 100], (Kind::Float, tch::Device::Cpu)).to_kind(Kind::BFloat16);
        let inputs = Inputs { order: None, factors: None };
        let placement = Placement { compute: ComputeFormat::Bf16, ..WeightFormat::Bf16.into() };
        let matrix = Matrix::new(Weight::Plain(weight.shallow_clone()), inputs, placement).expect("a matrix");
        assert!(matches!(&matrix, Matrix::Plain(weight) if weight.kind() == Kind::BFloat16));
        let found = matrix.forward(&x, None, None, RowCount::Repeated).expect("a product");
        assert_eq!(found, x.matmul(&weight.to_kind(Kind::BFloat16).tr()));
    }

    #[test]
    fn packed_weights_in_another_format_equal_plain_ones() {
        let weight = Tensor::randn([30, 100], (Kind::Float, tch::Device::Cpu));
        let order = Tensor::randperm(100, (Kind::Int64, tch::Device::Cpu));
        let rounded = weight.to_kind(Kind::BFloat16).to_kind(Kind::Float);
        let x = Tensor::randn([4, 100], (Kind::Float, tch::Device::Cpu));
        for format in WeightFormat::ALL {
            let packed = Weight::Packed(vec![Weight::Plain(weight.copy()).pack(RowEncoding::Bf16).expect("rows")]);
            let inputs = Inputs { order: Some(&order), factors: None };
            let packed = Matrix::new(packed, inputs, format.into()).expect("a matrix");
            let plain = Matrix::new(Weight::Plain(rounded.shallow_clone()), inputs, format.into()).expect("a matrix");
            let found = packed.forward(&x, None, None, RowCount::Repeated).expect("a product");
            let by_order = x.zeros_like().index_copy(1, &order, &x);
            let expected = plain.forward(&by_order, None, None, RowCount::Repeated).expect("a product");
            assert!(found.allclose(&expected, 1e-4, 1e-4, false), "{format}");
        }
    }
}

//! Frozen weights in the formats of [`WeightFormat`]. Formats other than fp32 are widened for each product: 16-bit
//! products are a hundred times slower on a CPU without 16-bit arithmetic.

use sepal_autograd::quantize;
use sepal_core::WeightFormat;
use tch::{Kind, TchError, Tensor};

/// Frozen matrix `[in, out]`.
#[derive(Debug)]
pub(crate) enum Matrix {
    /// fp32.
    Plain(Tensor),
    /// bf16 or fp16.
    Half(Tensor),
    /// `quantized [out, in]` of int8, `scales [out]`, factors of `inputs [in]`.
    Int8 { quantized: Tensor, scales: Tensor, inputs: Tensor },
    /// `quantized [out, ceil(in / 64) * 32]` of two numbers each, `scales [out, ceil(in / 64)]`, factors of `inputs [in]`.
    Nf4 { quantized: Tensor, scales: Tensor, inputs: Tensor },
}

impl Matrix {
    /// Converts `weight [out, in]` in fp32 with optional factors of its inputs, `[in]`. Quantization excludes the factors:
    /// on SmolLM2, weights of norms multiplied into the weight more than double the error of int8.
    pub(crate) fn new(weight: &Tensor, inputs: Option<&Tensor>, format: WeightFormat) -> Result<Self, TchError> {
        let ones = || weight.f_new_ones([weight.size()[1]], (weight.kind(), weight.device()));
        let factors = || inputs.map_or_else(ones, |inputs| Ok(inputs.shallow_clone()));
        let product = || {
            let scaled = inputs.map_or_else(|| Ok(weight.shallow_clone()), |inputs| weight.f_mul(inputs));
            scaled?.f_transpose(0, 1)
        };
        Ok(match format {
            WeightFormat::F32 => Self::Plain(product()?.f_contiguous()?),
            WeightFormat::Bf16 => Self::Half(product()?.f_to_kind(Kind::BFloat16)?.f_contiguous()?),
            WeightFormat::F16 => Self::Half(product()?.f_to_kind(Kind::Half)?.f_contiguous()?),
            WeightFormat::Int8 => {
                let (quantized, scales) = quantize::quantize_int8(&weight.f_contiguous()?)?;
                Self::Int8 { quantized, scales, inputs: factors()? }
            }
            WeightFormat::Nf4 => {
                let (quantized, scales) = quantize::quantize_nf4(&weight.f_contiguous()?)?;
                Self::Nf4 { quantized, scales, inputs: factors()? }
            }
        })
    }

    /// `[in, out]`
    pub(crate) fn shape(&self) -> [i64; 2] {
        match self {
            Self::Plain(weight) | Self::Half(weight) => [weight.size()[0], weight.size()[1]],
            Self::Int8 { quantized, .. } => [quantized.size()[1], quantized.size()[0]],
            Self::Nf4 { scales, inputs, .. } => [inputs.size()[0], scales.size()[0]],
        }
    }

    /// The matrix in fp32: the stored one, or a widened copy.
    pub(crate) fn to_f32(&self) -> Result<Tensor, TchError> {
        match self {
            Self::Plain(weight) => Ok(weight.shallow_clone()),
            Self::Half(weight) => weight.f_to_kind(Kind::Float),
            Self::Int8 { quantized, scales, inputs } => {
                quantize::dequantize_int8(quantized, scales, inputs)?.f_transpose(0, 1)
            }
            Self::Nf4 { quantized, scales, inputs } => {
                quantize::dequantize_nf4(quantized, scales, inputs)?.f_transpose(0, 1)
            }
        }
    }

    /// Memory in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Plain(weight) => weight.numel() * 4,
            Self::Half(weight) => weight.numel() * 2,
            Self::Int8 { quantized, scales, inputs } | Self::Nf4 { quantized, scales, inputs } => {
                quantized.numel() + (scales.numel() + inputs.numel()) * 4
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_in_each_format_rounds_within_its_precision() {
        let weight = Tensor::randn([30, 100], (Kind::Float, tch::Device::Cpu));
        let factors = Tensor::randn([100], (Kind::Float, tch::Device::Cpu));
        // 16-bit formats are off by half a unit in the last place, int8 by half a step, NF4 by half the widest gap.
        let bounds = [1e-6, 4e-3, 5e-4, 4e-3, 0.16];
        for (format, bound) in WeightFormat::ALL.into_iter().zip(bounds) {
            let matrix = Matrix::new(&weight, Some(&factors), format).expect("a matrix");
            assert_eq!(matrix.shape(), [100, 30]);
            let off =
                (matrix.to_f32().expect("numbers").tr() / &factors - &weight).abs() / weight.abs().amax([1], true);
            let off = f64::try_from(off.max()).expect("a number");
            assert!(off <= bound && (off > 1e-6 || format == WeightFormat::F32), "{format}: off by {off}");
        }
    }
}

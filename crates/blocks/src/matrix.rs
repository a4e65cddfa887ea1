//! Frozen weights in the formats that a server may keep them in. One that is not fp32 is widened for each product: a CPU
//! without 16-bit arithmetic would compute in it a hundred times slower.

use std::ops::Deref;

use sepal_autograd::codes;
use sepal_core::WeightFormat;
use tch::{Kind, TchError, Tensor};

/// A frozen matrix `[in, out]`.
#[derive(Debug)]
pub(crate) enum Matrix {
    /// In fp32.
    Plain(Tensor),
    /// In 16 bits.
    Half(Tensor),
    /// `codes [out, in]` of int8, `scales [out]`, and the factors of inputs, `[in]`.
    Int8 { codes: Tensor, scales: Tensor, inputs: Tensor },
    /// `codes [out, ceil(in / 64) * 32]` of two numbers each, `scales [out, ceil(in / 64)]`, and the factors of inputs.
    Nf4 { codes: Tensor, scales: Tensor, inputs: Tensor },
}

impl Matrix {
    /// Of `weight [out, in]` in fp32, and the factors of its inputs, `[in]`, if there are any. Factors are no part of
    /// what is rounded to few bits: on SmolLM2 the norms' weights, multiplied in, more than double the error of int8.
    pub(crate) fn new(weight: &Tensor, inputs: Option<&Tensor>, format: WeightFormat) -> Result<Self, TchError> {
        let ones = || weight.f_new_ones([weight.size()[1]], (weight.kind(), weight.device()));
        let kept = || inputs.map_or_else(ones, |inputs| Ok(inputs.shallow_clone()));
        let whole = || {
            let product = inputs.map_or_else(|| Ok(weight.shallow_clone()), |inputs| weight.f_mul(inputs));
            product?.f_transpose(0, 1)
        };
        Ok(match format {
            WeightFormat::F32 => Self::Plain(whole()?.f_contiguous()?),
            WeightFormat::Bf16 => Self::Half(whole()?.f_to_kind(Kind::BFloat16)?.f_contiguous()?),
            WeightFormat::F16 => Self::Half(whole()?.f_to_kind(Kind::Half)?.f_contiguous()?),
            WeightFormat::Int8 => {
                let (codes, scales) = codes::to_int8(&weight.f_contiguous()?)?;
                Self::Int8 { codes, scales, inputs: kept()? }
            }
            WeightFormat::Nf4 => {
                let (codes, scales) = codes::to_nf4(&weight.f_contiguous()?)?;
                Self::Nf4 { codes, scales, inputs: kept()? }
            }
        })
    }

    /// `[in, out]`
    pub(crate) fn shape(&self) -> [i64; 2] {
        match self {
            Self::Plain(weight) | Self::Half(weight) => [weight.size()[0], weight.size()[1]],
            Self::Int8 { codes, .. } => [codes.size()[1], codes.size()[0]],
            Self::Nf4 { scales, inputs, .. } => [inputs.size()[0], scales.size()[0]],
        }
    }

    /// In fp32.
    pub(crate) fn numbers(&self) -> Result<Numbers<'_>, TchError> {
        Ok(match self {
            Self::Plain(weight) => Numbers::Kept(weight),
            Self::Half(weight) => Numbers::Widened(weight.f_to_kind(Kind::Float)?),
            Self::Int8 { codes, scales, inputs } => {
                Numbers::Widened(codes::from_int8(codes, scales, inputs)?.f_transpose(0, 1)?)
            }
            Self::Nf4 { codes, scales, inputs } => {
                Numbers::Widened(codes::from_nf4(codes, scales, inputs)?.f_transpose(0, 1)?)
            }
        })
    }

    /// Memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Plain(weight) => weight.numel() * 4,
            Self::Half(weight) => weight.numel() * 2,
            Self::Int8 { codes, scales, inputs } | Self::Nf4 { codes, scales, inputs } => {
                codes.numel() + (scales.numel() + inputs.numel()) * 4
            }
        }
    }
}

/// A matrix in fp32, be it the kept one.
pub(crate) enum Numbers<'a> {
    Kept(&'a Tensor),
    Widened(Tensor),
}

impl Deref for Numbers<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            Self::Kept(weight) => weight,
            Self::Widened(weight) => weight,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_lose_what_they_should() {
        let weight = Tensor::randn([30, 100], (Kind::Float, tch::Device::Cpu));
        let factors = Tensor::randn([100], (Kind::Float, tch::Device::Cpu));
        // Halves lose half a unit of their last place, int8 half a step of a factor, NF4 half the widest gap.
        let bounds = [1e-6, 4e-3, 5e-4, 4e-3, 0.16];
        for (format, bound) in WeightFormat::ALL.into_iter().zip(bounds) {
            let kept = Matrix::new(&weight, Some(&factors), format).expect("a matrix");
            assert_eq!(kept.shape(), [100, 30]);
            let off = (kept.numbers().expect("numbers").tr() / &factors - &weight).abs() / weight.abs().amax([1], true);
            let off = f64::try_from(off.max()).expect("a number");
            assert!(off <= bound && (off > 1e-6 || format == WeightFormat::F32), "{format}: off by {off}");
        }
    }
}

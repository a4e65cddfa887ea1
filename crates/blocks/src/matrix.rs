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
    /// `codes [out, in]` of int8 and `scales [out]`.
    Int8 { codes: Tensor, scales: Tensor },
    /// `codes [out, ceil(in / 64) * 32]` of two numbers each, `scales [out, ceil(in / 64)]`, and `in`.
    Nf4 { codes: Tensor, scales: Tensor, inputs: i64 },
}

impl Matrix {
    /// Of `weight [in, out]` in fp32.
    pub(crate) fn new(weight: &Tensor, format: WeightFormat) -> Result<Self, TchError> {
        Ok(match format {
            WeightFormat::F32 => Self::Plain(weight.f_contiguous()?),
            WeightFormat::Bf16 => Self::Half(weight.f_to_kind(Kind::BFloat16)?.f_contiguous()?),
            WeightFormat::F16 => Self::Half(weight.f_to_kind(Kind::Half)?.f_contiguous()?),
            WeightFormat::Int8 => {
                let (codes, scales) = codes::to_int8(&weight.f_transpose(0, 1)?.f_contiguous()?)?;
                Self::Int8 { codes, scales }
            }
            WeightFormat::Nf4 => {
                let (codes, scales) = codes::to_nf4(&weight.f_transpose(0, 1)?.f_contiguous()?)?;
                Self::Nf4 { codes, scales, inputs: weight.size()[0] }
            }
        })
    }

    /// `[in, out]`
    pub(crate) fn shape(&self) -> [i64; 2] {
        match self {
            Self::Plain(weight) | Self::Half(weight) => [weight.size()[0], weight.size()[1]],
            Self::Int8 { codes, .. } => [codes.size()[1], codes.size()[0]],
            Self::Nf4 { scales, inputs, .. } => [*inputs, scales.size()[0]],
        }
    }

    /// In fp32.
    pub(crate) fn numbers(&self) -> Result<Numbers<'_>, TchError> {
        Ok(match self {
            Self::Plain(weight) => Numbers::Kept(weight),
            Self::Half(weight) => Numbers::Widened(weight.f_to_kind(Kind::Float)?),
            Self::Int8 { codes, scales } => Numbers::Widened(codes::from_int8(codes, scales)?.f_transpose(0, 1)?),
            Self::Nf4 { codes, scales, inputs } => {
                Numbers::Widened(codes::from_nf4(codes, scales, *inputs)?.f_transpose(0, 1)?)
            }
        })
    }

    /// Memory held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Plain(weight) => weight.numel() * 4,
            Self::Half(weight) => weight.numel() * 2,
            Self::Int8 { codes, scales } | Self::Nf4 { codes, scales, .. } => codes.numel() + scales.numel() * 4,
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
        let weight = Tensor::randn([100, 30], (Kind::Float, tch::Device::Cpu));
        // Halves lose half a unit of their last place, int8 half a step of a factor, NF4 half the widest gap.
        let bounds = [0.0, 2e-3, 3e-4, 4e-3, 0.16];
        for (format, bound) in WeightFormat::ALL.into_iter().zip(bounds) {
            let kept = Matrix::new(&weight, format).expect("a matrix");
            assert_eq!(kept.shape(), [100, 30]);
            let off = (&*kept.numbers().expect("numbers") - &weight).abs() / weight.abs().amax([0], true);
            let off = f64::try_from(off.max()).expect("a number");
            assert!(off <= bound && (off > 0.0 || bound == 0.0), "{}: off by {off}", format.name());
        }
    }
}

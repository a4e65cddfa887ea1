//! Frozen weights in the formats that a server may keep them in.

use std::ops::Deref;

use sepal_autograd::codes;
use tch::{Kind, TchError, Tensor};

/// How a server keeps the weights of its linear layers. Products are computed in fp32 whatever the format, because a
/// CPU without 16-bit arithmetic computes them a hundred times slower otherwise; a weight that is not fp32 is widened
/// for each product.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 4 bytes a number, as they are.
    #[default]
    F32,
    /// 2 bytes, the range of fp32.
    Bf16,
    /// 2 bytes, three more bits than bf16.
    F16,
    /// 1 byte: whole numbers up to 127 times a factor for each output.
    Int8,
    /// Half a byte: one of 16 quantiles of the normal distribution (NF4, arXiv 2305.14314) times a factor for each 64
    /// numbers of an output.
    Nf4,
}

impl WeightFormat {
    /// All of them.
    pub const ALL: [WeightFormat; 5] = [Self::F32, Self::Bf16, Self::F16, Self::Int8, Self::Nf4];

    /// The name that people give.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Nf4 => "nf4",
        }
    }
}

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

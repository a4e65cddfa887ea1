use serde::{Deserialize, Serialize};

use crate::{DType, Device, RowEncoding};

/// Format of the weights of frozen linear layers in memory. Norms and embeddings stay in fp32. Weights are widened for each
/// product, a part of a matrix at a time, to the format of the computation, see [`ComputeFormat`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// As in the file: matrices in 16 or fewer bits stay as they are, unless they are computed in 16 bits or on a GPU, which
    /// keeps some encodings only. The numbers are those of [`F32`](Self::F32).
    #[default]
    Auto,
    /// Unrounded: 4 bytes per number, or 2 in the format of a computation in 16 bits.
    F32,
    /// 2 bytes per number, with the range of fp32.
    Bf16,
    /// 2 bytes per number, with three more bits of precision than bf16.
    F16,
    /// 1 byte per number: integers up to 127 times a factor for each output.
    Int8,
    /// Half a byte per number: one of 16 quantiles of the normal distribution (NF4, arXiv 2305.14314) times a factor for
    /// each 64 numbers of an output.
    Nf4,
}

impl WeightFormat {
    /// All formats.
    pub const ALL: [Self; 6] = [Self::Auto, Self::F32, Self::Bf16, Self::F16, Self::Int8, Self::Nf4];
    /// The formats with one number of bits for every model.
    pub const FIXED: [Self; 5] = [Self::F32, Self::Bf16, Self::F16, Self::Int8, Self::Nf4];

    /// Written name: `auto`, `f32`, `bf16`, `f16`, `int8` or `nf4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Nf4 => "nf4",
        }
    }

    /// Bits per number, including its share of the factors; of [`Auto`](Self::Auto), at most.
    pub fn bits(self) -> f64 {
        match self {
            Self::Auto | Self::F32 => 32.0,
            Self::Bf16 | Self::F16 => 16.0,
            Self::Int8 => 8.0,
            Self::Nf4 => 4.5,
        }
    }

    /// True if a matrix that is stored in `encoding` is used as it is stored, or is packed anew from it, for products in
    /// `compute` on the CPU or on another device.
    pub fn keeps(self, encoding: RowEncoding, compute: ComputeFormat, is_on_cpu: bool) -> bool {
        match self {
            Self::F32 => false,
            // The format of the computation takes no more memory.
            Self::Auto if encoding.is_16_bit() && compute != ComputeFormat::F32 => false,
            Self::Auto => is_on_cpu || encoding.is_for_every_device(),
            // Packed anew on the CPU.
            _ => true,
        }
    }

    /// Digest of a model with weights in this format, from the digest of its checkpoint. Models that are rounded
    /// differently have different digests, so that no route mixes them.
    pub fn digest(self, checkpoint: &str) -> String {
        match self {
            Self::Auto | Self::F32 => checkpoint.to_owned(),
            rounded => format!("{checkpoint}+{rounded}"),
        }
    }
}

text_by_name!(WeightFormat, "a format of weights; write auto, f32, bf16, f16, int8 or nf4");

/// Format of the products of frozen blocks, of what they take and return, and of tapes. Products are summed in fp32 (on a
/// GPU, cuBLAS may add partial sums in 16 bits). The
/// hidden states between blocks, statistics of norms, softmax, tunables and their gradients are fp32 in every format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeFormat {
    /// fp32.
    #[default]
    F32,
    /// bf16, with the range of fp32 and 8 bits of precision.
    Bf16,
    /// fp16, with 11 bits of precision and numbers up to 65504.
    F16,
}

impl ComputeFormat {
    /// All formats.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::F16];

    /// Default format on a device: fp32 on a CPU, bf16 on a GPU.
    pub fn default_on(device: Device) -> Self {
        match device {
            Device::Cpu => Self::F32,
            Device::Cuda(_) => Self::Bf16,
        }
    }

    /// Fastest format on a device: bf16 on a GPU and on a CPU that multiplies bf16 (AVX512-BF16), else fp32.
    pub fn fastest_on(device: Device) -> Self {
        Self::fastest(device, Self::Bf16.is_multiplied_by_cpu() == Some(true))
    }

    fn fastest(device: Device, has_bf16: bool) -> Self {
        match device {
            Device::Cpu if !has_bf16 => Self::F32,
            _ => Self::Bf16,
        }
    }

    /// True if the processor multiplies numbers of this format, false if it converts them for each product: on a processor with
    /// only AVX2, products in bf16 take a hundred times as long as in fp32. `None` where that is unknown, which is for 16 bits
    /// on other processors than x86-64.
    pub fn is_multiplied_by_cpu(self) -> Option<bool> {
        #[cfg(target_arch = "x86_64")]
        return Some(match self {
            Self::F32 => true,
            Self::Bf16 => std::arch::is_x86_feature_detected!("avx512bf16"),
            Self::F16 => std::arch::is_x86_feature_detected!("avx512fp16"),
        });
        #[cfg(not(target_arch = "x86_64"))]
        return (self == Self::F32).then_some(true);
    }

    /// Notice for products in this format on a device where they are slow.
    pub fn notice_on(self, device: Device) -> Option<String> {
        self.notice(device, self.is_multiplied_by_cpu())
    }

    fn notice(self, device: Device, is_multiplied: Option<bool>) -> Option<String> {
        let is_slow = device == Device::Cpu && is_multiplied == Some(false);
        is_slow.then(|| {
            format!("products in {self} may take many times as long as in f32, because this processor does not multiply {self}")
        })
    }

    /// Written name: `f32`, `bf16` or `f16`.
    pub fn name(self) -> &'static str {
        self.dtype().name()
    }

    /// The same number format of a tensor.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::Bf16,
            Self::F16 => DType::F16,
        }
    }

    /// Digest of a model that is computed in this format, from the digest of its weights, see [`WeightFormat::digest`].
    /// Models that are computed differently have different digests, so that no route mixes them.
    pub fn digest(self, weights: &str) -> String {
        match self {
            Self::F32 => weights.to_owned(),
            rounded => format!("{weights}+compute-{rounded}"),
        }
    }
}

text_by_name!(ComputeFormat, "a format of the computation; write f32, bf16 or f16");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fastest_format_is_bf16_where_it_is_multiplied() {
        let fastest = |device, has_bf16| ComputeFormat::fastest(device, has_bf16);
        assert_eq!(fastest(Device::Cpu, false), ComputeFormat::F32);
        assert_eq!(fastest(Device::Cpu, true), ComputeFormat::Bf16);
        assert_eq!(fastest(Device::Cuda(0), false), ComputeFormat::Bf16);
    }

    #[test]
    fn notice_is_given_on_processors_that_do_not_multiply_the_format() {
        let notice = |device, is_multiplied| ComputeFormat::Bf16.notice(device, is_multiplied);
        let text = notice(Device::Cpu, Some(false)).expect("a slow format");
        assert!(text.ends_with("because this processor does not multiply bf16"), "{text}");
        for (device, is_multiplied) in [(Device::Cpu, Some(true)), (Device::Cpu, None), (Device::Cuda(0), Some(false))]
        {
            assert_eq!(notice(device, is_multiplied), None, "{device} {is_multiplied:?}");
        }
        assert_eq!(ComputeFormat::F32.is_multiplied_by_cpu(), Some(true));
    }
}

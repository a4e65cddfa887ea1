use serde::{Deserialize, Serialize};

/// Format of the weights of frozen linear layers in memory. Norms and embeddings stay in fp32, and products are computed
/// in fp32 for every format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// 4 bytes per number, unrounded.
    #[default]
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
    pub const ALL: [Self; 5] = [Self::F32, Self::Bf16, Self::F16, Self::Int8, Self::Nf4];

    /// Written name: `f32`, `bf16`, `f16`, `int8` or `nf4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Nf4 => "nf4",
        }
    }

    /// Bits per number, including its share of the factors.
    pub fn bits(self) -> f64 {
        match self {
            Self::F32 => 32.0,
            Self::Bf16 | Self::F16 => 16.0,
            Self::Int8 => 8.0,
            Self::Nf4 => 4.5,
        }
    }

    /// Digest of a model with weights in this format, from the digest of its checkpoint. Models that are rounded
    /// differently have different digests, so that no route mixes them.
    pub fn digest(self, checkpoint: &str) -> String {
        match self {
            Self::F32 => checkpoint.to_owned(),
            rounded => format!("{checkpoint}+{rounded}"),
        }
    }
}

text_by_name!(WeightFormat, "a format of weights; write f32, bf16, f16, int8 or nf4");

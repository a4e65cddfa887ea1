use sepal_core::Family;

use super::llama::{ATTENTION, GATED_MLP};
use super::qwen2;
use crate::family::{ClassDefaults, FamilySpec, GgufSpec, WithoutBias};

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Qwen3,
    classifier: Some("Qwen3ForSequenceClassification"),
    defaults: ClassDefaults { head_dim: Some(128), ..qwen2::SPEC.defaults },
    without_bias: &[
        WithoutBias { layers: ATTENTION, unless: Some(("attention_bias", false)) },
        WithoutBias { layers: GATED_MLP, unless: None },
    ],
    gguf: Some(GgufSpec { architecture: "qwen3", ..GgufSpec::LLAMA }),
    ..qwen2::SPEC
};

use sepal_core::Family;

use super::llama::{self, ATTENTION, GATED_MLP};
use crate::family::{ClassDefaults, FamilySpec, WithoutBias};

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Olmo2,
    classifier: Some("Olmo2ForSequenceClassification"),
    defaults: ClassDefaults { vocab_size: 50_304, norm_eps: 1e-5, ..ClassDefaults::LLAMA },
    without_bias: &[
        WithoutBias { layers: ATTENTION, unless: Some(("attention_bias", false)) },
        WithoutBias { layers: GATED_MLP, unless: None },
    ],
    gguf: None,
    ..llama::SPEC
};

use sepal_core::Family;

use super::llama::{self, ATTENTION, GATED_MLP};
use crate::family::{ClassDefaults, FamilySpec, GgufSpec, Renames, WithoutBias};

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Olmo2,
    classifier: Some("Olmo2ForSequenceClassification"),
    defaults: ClassDefaults { vocab_size: 50_304, norm_eps: 1e-5, ..ClassDefaults::LLAMA },
    without_bias: &[
        WithoutBias { layers: ATTENTION, unless: Some(("attention_bias", false)) },
        WithoutBias { layers: GATED_MLP, unless: None },
    ],
    gguf: Some(GgufSpec {
        architecture: "olmo2",
        block: &[NORMS, GgufSpec::LLAMA_BLOCK],
        // llama.cpp writes an OLMo-3 as an OLMo-2.
        refuses_window: true,
        ..GgufSpec::LLAMA
    }),
    ..llama::SPEC
};

/// Names of the norms of outputs.
const NORMS: Renames =
    &[("post_attention_norm", "post_attention_layernorm"), ("post_ffw_norm", "post_feedforward_layernorm")];

use sepal_core::Family;

use super::llama;
use crate::family::{ClassDefaults, FamilySpec, RotaryKeys, WithoutBias};
use crate::linear_sites;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Glm4,
    classifier: Some("Glm4ForSequenceClassification"),
    defaults: ClassDefaults {
        vocab_size: 151_552,
        ffn: Some(13_696),
        n_blocks: 40,
        n_kv_heads: Some(2),
        head_dim: Some(128),
        norm_eps: 1.5625e-7,
        max_positions: 131_072,
        ..ClassDefaults::LLAMA
    },
    rotary: RotaryKeys { share: Some(("partial_rotary_factor", 0.5)), ..RotaryKeys::USUAL },
    sites: linear_sites::GLM4,
    without_bias: &[
        WithoutBias { layers: &[".q_proj", ".k_proj", ".v_proj"], unless: Some(("attention_bias", true)) },
        WithoutBias { layers: &[".o_proj", ".gate_up_proj", ".down_proj"], unless: None },
    ],
    gguf: None,
    ..llama::SPEC
};

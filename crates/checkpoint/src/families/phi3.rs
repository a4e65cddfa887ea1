use sepal_core::{Family, ModelConfig};

use super::llama;
use crate::config::with_window;
use crate::error::OpenError;
use crate::family::{ClassDefaults, FamilySpec, GgufSpec, GgufWindow, OriginalLength, RotaryKeys, WithoutBias};
use crate::keys::Keys;
use crate::linear_sites;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Phi3,
    classifier: Some("Phi3ForSequenceClassification"),
    defaults: ClassDefaults {
        vocab_size: 32_064,
        hidden: 3072,
        ffn: Some(8192),
        norm_eps: 1e-5,
        max_positions: 4096,
        ..ClassDefaults::LLAMA
    },
    rotary: RotaryKeys {
        share: Some(("partial_rotary_factor", 1.0)),
        original: OriginalLength::Beside(4096),
        is_longrope_only: true,
        ..RotaryKeys::USUAL
    },
    read_config,
    sites: linear_sites::PHI3,
    without_bias: &[WithoutBias { layers: &[".qkv_proj", ".o_proj", ".gate_up_proj", ".down_proj"], unless: None }],
    gguf: Some(GgufSpec {
        architecture: "phi3",
        block: &[&[
            ("attn_norm", "input_layernorm"),
            ("attn_qkv", "self_attn.qkv_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.gate_up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ]],
        window: Some(GgufWindow { size: None, period: None, local_theta: None }),
        ..GgufSpec::LLAMA
    }),
    ..llama::SPEC
};

fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = llama::read_config(keys, spec)?;
    let size = keys.optional_count("sliding_window")?;
    let blocks = vec![true; if size.is_some() { config.n_blocks } else { 0 }];
    with_window(keys, config, size, blocks)
}

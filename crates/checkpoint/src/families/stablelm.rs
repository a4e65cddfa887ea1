use sepal_core::{Family, ModelConfig};

use super::llama::{self, GATED_MLP};
use crate::config::{equal_head_dim, n_kv_heads, rotary, sizes};
use crate::error::OpenError;
use crate::family::{ClassDefaults, ConfigKeys, FamilySpec, GgufSpec, Parallel, Renames, RotaryKeys, WithoutBias};
use crate::keys::Keys;
use crate::linear_sites;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Stablelm,
    classifier: Some("StableLmForSequenceClassification"),
    keys: ConfigKeys { norm_eps: Some("layer_norm_eps"), ..ConfigKeys::USUAL },
    defaults: ClassDefaults {
        vocab_size: 50_304,
        hidden: 2560,
        ffn: Some(6912),
        n_kv_heads: Some(32),
        max_positions: 4096,
        ..ClassDefaults::LAYER_NORMS
    },
    rotary: RotaryKeys { share: Some(("partial_rotary_factor", 0.25)), ..RotaryKeys::USUAL },
    read_config,
    sites: linear_sites::LLAMA,
    without_bias: &[
        WithoutBias { layers: &[".q_proj", ".k_proj", ".v_proj"], unless: Some(("use_qkv_bias", false)) },
        WithoutBias { layers: &[".o_proj"], unless: None },
        WithoutBias { layers: GATED_MLP, unless: None },
    ],
    gguf: Some(GgufSpec {
        architecture: "stablelm",
        norm_eps: GgufSpec::LAYER_NORMS.norm_eps,
        // llama.cpp goes by the tensors, not by a key.
        parallel: Parallel::WithoutTensor("blk.0.ffn_norm.weight"),
        block: &[HEAD_NORMS, GgufSpec::LLAMA_BLOCK],
        head_norms: Some("blk.0.attn_q_norm.weight"),
        ..GgufSpec::LLAMA
    }),
    ..llama::SPEC
};

const HEAD_NORMS: Renames =
    &[("attn_q_norm", "self_attn.q_layernorm.norms.{}"), ("attn_k_norm", "self_attn.k_layernorm.norms.{}")];

fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = sizes(keys, spec)?;
    let (n_kv_heads, head_dim) = (n_kv_heads(keys, spec, &config)?, equal_head_dim(keys, spec, &config)?);
    let is_parallel = keys.flag("use_parallel_residual")?;
    let has_head_norms = keys.flag("qk_layernorm")?;
    rotary(keys, spec, ModelConfig { n_kv_heads, head_dim, is_parallel, has_head_norms, ..config })
}

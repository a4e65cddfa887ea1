use sepal_core::{Experts, Family, ModelConfig};

use super::llama::{self, ATTENTION, GATED_MLP};
use super::qwen2_moe;
use crate::config::with_window;
use crate::error::OpenError;
use crate::family::{ClassDefaults, FamilySpec, GgufExperts, GgufSpec, WithoutBias};
use crate::keys::Keys;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Qwen3Moe,
    classifier: Some("Qwen3MoeForSequenceClassification"),
    defaults: ClassDefaults { ffn: Some(768), n_heads: 32, n_kv_heads: Some(4), ..qwen2_moe::SPEC.defaults },
    read_config,
    without_bias: &[
        WithoutBias { layers: ATTENTION, unless: Some(("attention_bias", false)) },
        WithoutBias { layers: GATED_MLP, unless: None },
    ],
    gguf: Some(GgufSpec {
        architecture: "qwen3moe",
        experts: Some(GgufExperts { is_softmax_of_all: false, has_own_width: true, has_shared: false }),
        block: &[qwen2_moe::EXPERTS, GgufSpec::LLAMA_BLOCK],
        ..GgufSpec::LLAMA
    }),
    ..qwen2_moe::SPEC
};

/// All blocks have the window, if it is used.
fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = llama::read_config(keys, spec)?;
    let experts = qwen2_moe::experts(keys, &["num_local_experts", "num_experts"], Experts::new(128, 8))?;
    let config = ModelConfig { experts: Some(experts), ..config };
    let size = match keys.flag("use_sliding_window")? {
        true => keys.count_unless_null("sliding_window", 4096)?,
        false => None,
    };
    let blocks = vec![size.is_some(); config.n_blocks];
    with_window(keys, config, size, blocks)
}

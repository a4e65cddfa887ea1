use sepal_core::{Experts, Family, ModelConfig};

use super::llama::{self, GATED_MLP};
use super::qwen2;
use crate::config::{layer_types, with_window};
use crate::error::OpenError;
use crate::family::{ClassDefaults, ConfigKeys, FamilySpec, GgufExperts, GgufSpec, Renames, WithoutBias};
use crate::keys::Keys;
use crate::linear_sites;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Qwen2Moe,
    classifier: Some("Qwen2MoeForSequenceClassification"),
    // The width of an expert. Blocks with a plain MLP, which has another width, are refused.
    keys: ConfigKeys { ffn: Some("moe_intermediate_size"), ..ConfigKeys::USUAL },
    defaults: ClassDefaults {
        hidden: 2048,
        ffn: Some(1408),
        n_blocks: 24,
        n_heads: 16,
        n_kv_heads: Some(16),
        ..qwen2::SPEC.defaults
    },
    read_config,
    sites: linear_sites::MIXTRAL,
    without_bias: &[
        WithoutBias { layers: &[".q_proj", ".k_proj", ".v_proj"], unless: Some(("qkv_bias", true)) },
        WithoutBias { layers: &[".o_proj"], unless: None },
        WithoutBias { layers: GATED_MLP, unless: None },
    ],
    gguf: Some(GgufSpec {
        architecture: "qwen2moe",
        // llama.cpp has no key for this choice.
        experts: Some(GgufExperts { is_softmax_of_all: true, has_own_width: true, has_shared: true }),
        block: &[EXPERTS, SHARED_EXPERT, GgufSpec::LLAMA_BLOCK],
        ..GgufSpec::LLAMA
    }),
    ..llama::SPEC
};

/// Names of the router and of experts.
pub(super) const EXPERTS: Renames = &[
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.experts.{}.gate_proj"),
    ("ffn_up_exps", "mlp.experts.{}.up_proj"),
    ("ffn_down_exps", "mlp.experts.{}.down_proj"),
];

const SHARED_EXPERT: Renames = &[
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];

/// By default, every other of the first `max_window_layers` blocks has the window, if it is used.
fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = llama::read_config(keys, spec)?;
    let experts = Experts {
        shared_ffn: Some(keys.optional_count("shared_expert_intermediate_size")?.unwrap_or(5632)),
        ..experts(keys, &["num_experts"], Experts::new(60, 4))?
    };
    let config = ModelConfig { experts: Some(experts), ..config };
    let is_used = keys.flag("use_sliding_window")?;
    let size = if is_used { keys.count_unless_null("sliding_window", 4096)? } else { None };
    let end = keys.optional_index("max_window_layers")?.unwrap_or(28);
    let usual = || (0..config.n_blocks).map(|block_idx| is_used && block_idx < end && block_idx % 2 == 0).collect();
    let blocks = layer_types(keys, config.n_blocks)?.unwrap_or_else(usual);
    if !is_used && blocks.contains(&true) {
        return Err(keys.wrong("layer_types", "full_attention alone where use_sliding_window is not true"));
    }
    with_window(keys, config, size, blocks)
}

/// The mixture in every block. Its number of experts is under the first of `names` that is present.
pub(super) fn experts(keys: Keys<'_>, names: &[&str], defaults: Experts) -> Result<Experts, OpenError> {
    for (key, is_usual) in [
        ("decoder_sparse_step", keys.optional_index("decoder_sparse_step")?.is_none_or(|step| step == 1)),
        (
            "mlp_only_layers",
            keys.get("mlp_only_layers").is_none_or(|blocks| blocks.as_array().is_some_and(Vec::is_empty)),
        ),
    ] {
        if !is_usual {
            return Err(keys.unsupported(key, "experts in all blocks"));
        }
    }
    let count = keys.experts_of(names, defaults.count)?;
    let per_token = keys.optional_count("num_experts_per_tok")?.unwrap_or(defaults.per_token);
    if per_token > count {
        return Err(keys.wrong("num_experts_per_tok", format!("at most num_experts, {count}")));
    }
    Ok(Experts { is_softmax_of_all: !keys.flag("norm_topk_prob")?, ..Experts::new(count, per_token) })
}

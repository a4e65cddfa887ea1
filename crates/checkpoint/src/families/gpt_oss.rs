//! GPT-OSS, with experts in bf16 or in MXFP4, the format of the published checkpoints.

use sepal_core::{Activation, Experts, Family, ModelConfig};
use serde_json::{Map, Value, json};

use super::llama::{self, ATTENTION};
use crate::config::rope::{self, Rotary};
use crate::config::{layer_types, with_window};
use crate::error::OpenError;
use crate::family::{ClassDefaults, ConfigKeys, FamilySpec, WithoutBias};
use crate::keys::Keys;
use crate::linear_sites;

/// Factor within the sigmoid of the activation, by default.
const ALPHA: f64 = 1.702;
/// Limit of the activation, by default.
const LIMIT: f64 = 7.0;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::GptOss,
    classifier: Some("GptOssForSequenceClassification"),
    activations: &[Activation::ClampedSwiglu { alpha: ALPHA, limit: LIMIT }],
    // `hidden_act` has no effect on the experts.
    keys: ConfigKeys { activation: None, ..ConfigKeys::USUAL },
    defaults: ClassDefaults {
        vocab_size: 201_088,
        hidden: 2880,
        ffn: Some(2880),
        n_blocks: 36,
        n_heads: 64,
        n_kv_heads: Some(8),
        head_dim: Some(64),
        norm_eps: 1e-5,
        max_positions: 131_072,
        theta: 150_000.0,
    },
    read_config,
    sites: linear_sites::MIXTRAL,
    without_bias: &[WithoutBias { layers: ATTENTION, unless: Some(("attention_bias", true)) }],
    has_stacked_experts: true,
    gguf: None,
    ..llama::SPEC
};

/// By default, every other block has the window, beginning with the first.
fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = positions(keys, spec, llama::read_heads(keys, spec)?)?;
    let activation = Activation::ClampedSwiglu {
        alpha: keys.optional_positive("swiglu_alpha")?.unwrap_or(ALPHA),
        limit: keys.optional_positive("swiglu_limit")?.unwrap_or(LIMIT),
    };
    let config = ModelConfig { activation, experts: Some(experts(keys)?), ..config };
    let size = keys.count_unless_null("sliding_window", 128)?;
    let usual = || (0..config.n_blocks).map(|block_idx| block_idx % 2 == 0).collect();
    let blocks = layer_types(keys, config.n_blocks)?.unwrap_or_else(usual);
    with_window(keys, config, size, blocks)
}

/// The model with its rotary positions: YaRN, unless `rope_scaling` or `rope_parameters` states others. An empty object
/// under `rope_parameters` states unscaled ones.
fn positions(keys: Keys<'_>, spec: &FamilySpec, config: ModelConfig) -> Result<ModelConfig, OpenError> {
    let max_positions = keys.optional_count("max_position_embeddings")?;
    let rotary = Rotary { spec, head_dim: config.head_dim, max_positions };
    let (yarn, nothing) = (yarn(), Map::new());
    let (scope, map) = match rope::stated(keys)? {
        Some(stated) => stated,
        None if keys.get("rope_parameters").is_some() => ("rope_parameters.", &nothing),
        None => ("rope_parameters.", &yarn),
    };
    let (rope, max_positions) = rope::read_map(keys, &rotary, scope, map)?;
    Ok(ModelConfig { rope: Some(rope), max_positions, ..config })
}

/// The scaling of the configuration class.
fn yarn() -> Map<String, Value> {
    let keys = [
        ("rope_type", json!("yarn")),
        ("factor", json!(32.0)),
        ("beta_fast", json!(32.0)),
        ("beta_slow", json!(1.0)),
        ("truncate", json!(false)),
        ("original_max_position_embeddings", json!(4096)),
    ];
    keys.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}

/// `num_experts` stands for `num_local_experts` and takes precedence.
fn experts(keys: Keys<'_>) -> Result<Experts, OpenError> {
    let count = keys.experts_of(&["num_experts", "num_local_experts"], 128)?;
    let per_token = keys.optional_count("num_experts_per_tok")?.unwrap_or(4);
    if per_token > count {
        return Err(keys.wrong("num_experts_per_tok", format!("at most num_local_experts, {count}")));
    }
    Ok(Experts::new(count, per_token))
}

//! Phi-3.5-MoE.

use sepal_core::{Experts, Family, ModelConfig, Rope, RopeScaling};
use serde_json::Value;

use super::llama::{self, ATTENTION};
use super::mixtral;
use crate::config::{rope, with_window};
use crate::error::OpenError;
use crate::family::{ClassDefaults, FamilySpec, OriginalLength, RotaryKeys, WithoutBias};
use crate::keys::Keys;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Phimoe,
    classifier: Some("PhimoeForSequenceClassification"),
    defaults: ClassDefaults { vocab_size: 32_064, ffn: Some(6400), ..mixtral::SPEC.defaults },
    rotary: RotaryKeys { original: OriginalLength::Within, is_longrope_only: true, ..RotaryKeys::USUAL },
    read_config,
    without_bias: &[WithoutBias { layers: ATTENTION, unless: Some(("attention_bias", false)) }],
    gguf: None,
    ..mixtral::SPEC
};

/// `num_experts_per_tok` has no effect: each position passes two experts.
fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = positions(keys, llama::read_config(keys, spec)?)?;
    let config = ModelConfig { experts: Some(experts(keys)?), ..config };
    let size = keys.optional_count("sliding_window")?;
    let blocks = vec![true; if size.is_some() { config.n_blocks } else { 0 }];
    with_window(keys, config, size, blocks)
}

/// The model with the factor of queries and keys that `longrope` has up to the original length, `short_mscale`. The class
/// requires `long_mscale` beside it, for longer sequences.
fn positions(keys: Keys<'_>, config: ModelConfig) -> Result<ModelConfig, OpenError> {
    let Some((scope, map)) = rope::stated(keys)? else { return Ok(config) };
    let scaling = keys.inside(scope, map);
    let key = if scaling.has("rope_type") { "rope_type" } else { "type" };
    // The older names that Phi-3 has for `longrope` are unknown to this class, or stand for other scalings.
    if !matches!(scaling.optional_text(key)?, None | Some("default" | "longrope")) {
        return Err(scaling.unsupported(key, "default and longrope"));
    }
    match config.rope {
        Some(Rope { theta, dim, scaling: RopeScaling::Longrope { factors, .. } }) => {
            let attention_factor = scaling.positive("short_mscale")?;
            scaling.positive("long_mscale")?;
            let rope = Rope { theta, dim, scaling: RopeScaling::Longrope { factors, attention_factor } };
            Ok(ModelConfig { rope: Some(rope), ..config })
        }
        _ => Ok(config),
    }
}

fn experts(keys: Keys<'_>) -> Result<Experts, OpenError> {
    let jitter = match keys.get("router_jitter_noise").and_then(Value::as_f64) {
        Some(0.0) => 0.0,
        _ => keys.optional_positive("router_jitter_noise")?.unwrap_or(0.01),
    };
    let key = "num_local_experts";
    match keys.experts_of(&[key], 16)? {
        1 => Err(keys.wrong(key, "at least 2")),
        count => Ok(Experts { sparse_mixer: Some(jitter), ..Experts::new(count, 2) }),
    }
}

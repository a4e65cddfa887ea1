//! Gemma 1, 2 and 3 (text).

use sepal_core::{Activation, Family, ModelConfig, Rope, ScoreRule, Window};
use serde_json::{Map, Value, json};

use super::class::Class;
use super::rope::{self, Rotary};
use super::{activation, eps, head_dim, layer_types, n_kv_heads, rotary, usual, window};
use crate::error::OpenError;
use crate::keys::Keys;

pub(super) fn read(keys: Keys<'_>, family: Family) -> Result<ModelConfig, OpenError> {
    let usual = usual(keys, family)?;
    let mut config = ModelConfig {
        n_kv_heads: n_kv_heads(keys, &usual)?,
        head_dim: head_dim(keys, &usual)?,
        norm_eps: eps(keys, "rms_norm_eps", family)?,
        activation: gelu(keys, family)?,
        ..usual
    };
    if keys.flag("use_bidirectional_attention")? {
        return Err(keys.unsupported("use_bidirectional_attention", "false"));
    }
    let local_rope = match family {
        Family::Gemma3 => Some(gemma3_ropes(keys, &mut config)?),
        _ => {
            let (rope, max_positions) = rotary(keys, &config)?;
            (config.rope, config.max_positions) = (Some(rope), max_positions);
            None
        }
    };
    if family != Family::Gemma {
        config.scores = ScoreRule {
            scale: Some(keys.optional_positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5)),
            cap: cap(keys, family)?,
            window: sliding(keys, &config, local_rope)?,
            ..config.scores
        };
    }
    Ok(config)
}

/// The activation: `gelu` in Gemma 1's files stands for the one with tanh. Its key is not that of the later ones.
fn gelu(keys: Keys<'_>, family: Family) -> Result<Activation, OpenError> {
    let known = [Activation::GeluTanh];
    match family {
        Family::Gemma if keys.optional_text("hidden_act")? == Some("gelu") => Ok(Activation::GeluTanh),
        Family::Gemma => activation(keys, "hidden_act", &known, Activation::GeluTanh),
        _ => activation(keys, "hidden_activation", &known, Activation::GeluTanh),
    }
}

/// The cap of Gemma 2's scores. Gemma 3's files may have the key, but nothing applies it.
fn cap(keys: Keys<'_>, family: Family) -> Result<Option<f64>, OpenError> {
    let key = "attn_logit_softcapping";
    match family {
        Family::Gemma2 if keys.has(key) => keys.optional_positive(key),
        Family::Gemma2 => Ok(Some(50.0)),
        _ => Ok(None),
    }
}

/// Gemma 2: every other block from the first on. Gemma 3: all but every `sliding_window_pattern`th.
fn sliding(keys: Keys<'_>, config: &ModelConfig, local_rope: Option<Rope>) -> Result<Option<Window>, OpenError> {
    let period = match config.family {
        Family::Gemma2 => 2,
        _ => keys.optional_count("sliding_window_pattern")?.unwrap_or(6),
    };
    let size = keys.count_unless_null("sliding_window", 4096)?;
    let usual = || (0..config.n_blocks).map(|block_idx| (block_idx + 1) % period != 0).collect();
    let blocks = layer_types(keys, config.n_blocks)?.unwrap_or_else(usual);
    match local_rope {
        None => window(keys, config, size, blocks),
        // A window that hides nothing still says which blocks have the local positions.
        Some(rope) => {
            let unlimited = ModelConfig { max_positions: None, ..config.clone() };
            let found = window(keys, &unlimited, size, blocks)?;
            Ok(found.map(|found| Window { rope: Some(rope), ..found }))
        }
    }
}

/// Sets the positions of blocks without a window and returns those of blocks with one. What is in `rope_scaling` is laid
/// over those without a window, which are `default` where no `rope_parameters` are there, whatever `type` says.
fn gemma3_ropes(keys: Keys<'_>, config: &mut ModelConfig) -> Result<Rope, OpenError> {
    let rotary = Rotary { family: config.family, head_dim: config.head_dim, max_positions: config.max_positions };
    let nothing = Map::new();
    let parameters = keys.object("rope_parameters")?.unwrap_or(&nothing);
    let parameters = keys.inside("rope_parameters.", parameters);
    rope::untruncated(parameters)?;
    let kind = |kind: &str| Ok(parameters.object(kind)?.cloned().unwrap_or_else(default_rope));
    let (mut full, sliding) = (kind("full_attention")?, kind("sliding_attention")?);
    full.extend(keys.object("rope_scaling")?.cloned().unwrap_or_default());

    let read = |scope, map: &Map<String, Value>, key, theta| {
        let scaling = keys.inside(scope, map);
        let theta = match scaling.optional_positive("rope_theta")? {
            Some(theta) => theta,
            None => keys.optional_positive(key)?.unwrap_or(theta),
        };
        rope::read_from(scaling, keys, rotary, theta)
    };
    let theta = Class::of(config.family).theta;
    let scope = match parameters.get("full_attention") {
        None if keys.get("rope_scaling").is_some() => "rope_scaling.",
        _ => "rope_parameters.full_attention.",
    };
    let (global, limit) = read(scope, &full, "rope_theta", theta)?;
    let (local, local_limit) = read("rope_parameters.sliding_attention.", &sliding, "rope_local_base_freq", 10_000.0)?;
    (config.rope, config.max_positions) = (Some(global), [limit, local_limit].into_iter().flatten().min());
    Ok(local)
}

fn default_rope() -> Map<String, Value> {
    Map::from_iter([("rope_type".to_owned(), json!("default"))])
}

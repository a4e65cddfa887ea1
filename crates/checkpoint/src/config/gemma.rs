//! Gemma 1, 2 and 3 (text).

use sepal_core::{Activation, Family, ModelConfig, Rope, ScoreRule, Window};
use serde_json::{Map, Value};

use super::{activation, head_dim, n_kv_heads, rope, rotary, usual, window};
use crate::error::OpenError;
use crate::keys::Keys;

pub(super) fn read(keys: Keys<'_>, family: Family) -> Result<ModelConfig, OpenError> {
    let usual = usual(keys, family)?;
    let n_heads = usual.n_heads;
    let mut config = ModelConfig {
        n_kv_heads: n_kv_heads(keys, "num_key_value_heads", n_heads, None)?,
        head_dim: head_dim(keys, &usual, Some(256))?,
        norm_eps: keys.optional_positive("rms_norm_eps")?.unwrap_or(1e-6),
        activation: gelu(keys, family)?,
        ..usual
    };
    if keys.flag("use_bidirectional_attention")? {
        return Err(keys.unsupported("use_bidirectional_attention", "false"));
    }
    let local_rope = match family {
        Family::Gemma3 => Some(gemma3_ropes(keys, &mut config)?),
        _ => {
            let (rope, max_positions) = rotary(keys, &config, 1.0)?;
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

/// What Gemma 1's files call `gelu` is computed with tanh.
fn gelu(keys: Keys<'_>, family: Family) -> Result<Activation, OpenError> {
    let known = [Activation::GeluTanh];
    let key = if keys.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    match family {
        Family::Gemma if key == "hidden_act" && keys.optional_text(key)? == Some("gelu") => Ok(Activation::GeluTanh),
        _ => activation(keys, key, &known, Activation::GeluTanh),
    }
}

fn cap(keys: Keys<'_>, family: Family) -> Result<Option<f64>, OpenError> {
    let default = (family == Family::Gemma2 && !keys.has("attn_logit_softcapping")).then_some(50.0);
    Ok(keys.optional_positive("attn_logit_softcapping")?.or(default))
}

/// Gemma 2: every other block from the first on. Gemma 3: all but every `sliding_window_pattern`th.
fn sliding(keys: Keys<'_>, config: &ModelConfig, local_rope: Option<Rope>) -> Result<Option<Window>, OpenError> {
    let period = match config.family {
        Family::Gemma2 => 2,
        _ => keys.optional_count("sliding_window_pattern")?.unwrap_or(6),
    };
    let size = if keys.has("sliding_window") { keys.optional_count("sliding_window")? } else { Some(4096) };
    let found = window(keys, config, size, |block_idx| (block_idx + 1) % period != 0)?;
    match local_rope {
        None => Ok(found),
        // A window that hides nothing still says which blocks have the local positions.
        Some(rope) => {
            let unlimited = ModelConfig { max_positions: None, ..config.clone() };
            let found = window(keys, &unlimited, size, |block_idx| (block_idx + 1) % period != 0)?;
            Ok(found.map(|found| Window { rope: Some(rope), ..found }))
        }
    }
}

/// Sets the positions of blocks without a window and returns those of blocks with one.
fn gemma3_ropes(keys: Keys<'_>, config: &mut ModelConfig) -> Result<Rope, OpenError> {
    let (head_dim, max_positions) = (config.head_dim, config.max_positions);
    let by_kind = |kind: &str| keys.object("rope_parameters").ok().flatten()?.get(kind)?.as_object();
    let nothing = Map::<String, Value>::new();
    let ((global, limit), local) = match (by_kind("full_attention"), by_kind("sliding_attention")) {
        (Some(full), Some(sliding)) => {
            let full = keys.inside("rope_parameters.full_attention.", full);
            let sliding = keys.inside("rope_parameters.sliding_attention.", sliding);
            let read = |of| rope::read_from(of, keys, head_dim, max_positions, 1.0);
            (read(full)?, read(sliding)?.0)
        }
        _ => {
            let scaling = keys.object("rope_scaling")?.unwrap_or(&nothing);
            let scaling = keys.inside("rope_scaling.", scaling);
            let (mut global, limit) = rope::read_from(scaling, keys, head_dim, max_positions, 1.0)?;
            if keys.get("rope_theta").is_none() {
                global.theta = 1e6;
            }
            let theta = keys.optional_positive("rope_local_base_freq")?.unwrap_or(10_000.0);
            ((global, limit), Rope { theta, dim: head_dim, scaling: sepal_core::RopeScaling::Default })
        }
    };
    (config.rope, config.max_positions) = (Some(global), limit);
    Ok(local)
}

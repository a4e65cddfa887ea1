//! `config.json` of the HF layout.

use std::path::Path;

use sepal_core::{Family, ModelConfig, Rope, RopeScaling};
use serde_json::{Map, Value};

use crate::error::OpenError;
use crate::keys::Keys;

/// The model's shape. A key that transformers has a default for may be absent.
pub(crate) fn model_config(path: &Path, json: &Map<String, Value>) -> Result<ModelConfig, OpenError> {
    let keys = Keys::new(path, json);
    let config = match keys.text("model_type")? {
        "llama" | "qwen2" | "mistral" => llama(keys)?,
        "bloom" => bloom(keys)?,
        _ => return Err(keys.unsupported("model_type", "llama, qwen2, mistral and bloom")),
    };
    Ok(config)
}

fn llama(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    if keys.optional_text("hidden_act")?.is_some_and(|act| act != "silu") {
        return Err(keys.unsupported("hidden_act", "silu"));
    }
    let max_positions = keys.optional_count("max_position_embeddings")?;
    full_attention(keys, max_positions)?;
    let (hidden, n_heads) = (keys.count("hidden_size")?, keys.count("num_attention_heads")?);
    Ok(ModelConfig {
        family: Family::Llama,
        n_blocks: keys.count("num_hidden_layers")?,
        hidden,
        n_heads,
        n_kv_heads: n_kv_heads(keys, n_heads)?,
        head_dim: head_dim(keys, hidden, n_heads)?,
        ffn: keys.count("intermediate_size")?,
        vocab_size: keys.count("vocab_size")?,
        norm_eps: keys.optional_positive("rms_norm_eps")?.unwrap_or(1e-6),
        initializer_range: keys.optional_positive("initializer_range")?.unwrap_or(0.02),
        rope: Some(rope(keys, max_positions)?),
        max_positions,
    })
}

fn bloom(keys: Keys<'_>) -> Result<ModelConfig, OpenError> {
    if keys.flag("apply_residual_connection_post_layernorm")? {
        return Err(keys.unsupported("apply_residual_connection_post_layernorm", "false"));
    }
    // The older name, where there is one, is what transformers takes.
    let either = |old: &str, new: &str| keys.optional_count(old)?.map_or_else(|| keys.count(new), Ok);
    let (hidden, n_heads) = (either("n_embed", "hidden_size")?, either("num_attention_heads", "n_head")?);
    if !hidden.is_multiple_of(n_heads) {
        return Err(keys.wrong("n_head", format!("a divisor of the hidden size {hidden}")));
    }
    Ok(ModelConfig {
        family: Family::Bloom,
        n_blocks: either("num_hidden_layers", "n_layer")?,
        hidden,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: hidden / n_heads,
        ffn: 4 * hidden,
        vocab_size: keys.count("vocab_size")?,
        norm_eps: keys.optional_positive("layer_norm_epsilon")?.unwrap_or(1e-5),
        initializer_range: keys.optional_positive("initializer_range")?.unwrap_or(0.02),
        rope: None,
        max_positions: keys.optional_count("seq_length")?,
    })
}

/// Refuses a window that would hide positions from each other.
fn full_attention(keys: Keys<'_>, max_positions: Option<usize>) -> Result<(), OpenError> {
    let window = match keys.text("model_type")? {
        // A Mistral that says nothing has transformers' default window.
        "mistral" if !keys.has("sliding_window") => Some(4096),
        "qwen2" if !keys.flag("use_sliding_window")? => None,
        // What a Llama says of windows, transformers does not read.
        "llama" => None,
        _ => keys.optional_count("sliding_window")?,
    };
    if window.is_some_and(|window| max_positions.is_none_or(|positions| window < positions)) {
        return Err(keys.unsupported("sliding_window", "null, or at least max_position_embeddings"));
    }
    let sliding = |kinds: &Vec<Value>| kinds.iter().any(|kind| kind != "full_attention");
    if keys.get("layer_types").and_then(Value::as_array).is_some_and(sliding) && window.is_none() {
        return Err(keys.unsupported("layer_types", "full_attention in every block"));
    }
    Ok(())
}

fn n_kv_heads(keys: Keys<'_>, n_heads: usize) -> Result<usize, OpenError> {
    let n_kv_heads = match keys.optional_count("num_key_value_heads")? {
        Some(n_kv_heads) => n_kv_heads,
        // Only Llama's default is the number of query heads; the others' is a number of one checkpoint.
        None if keys.has("num_key_value_heads") || keys.text("model_type")? == "llama" => n_heads,
        None => return Err(keys.missing("num_key_value_heads")),
    };
    if n_heads.is_multiple_of(n_kv_heads) {
        Ok(n_kv_heads)
    } else {
        Err(keys.wrong("num_key_value_heads", format!("a divisor of num_attention_heads, {n_heads}")))
    }
}

fn head_dim(keys: Keys<'_>, hidden: usize, n_heads: usize) -> Result<usize, OpenError> {
    let head_dim = keys.optional_count("head_dim")?;
    if head_dim.is_none() && !hidden.is_multiple_of(n_heads) {
        return Err(keys.wrong("num_attention_heads", format!("a divisor of hidden_size, {hidden}")));
    }
    match head_dim.unwrap_or(hidden / n_heads) {
        even if even.is_multiple_of(2) => Ok(even),
        odd => Err(keys.wrong("head_dim", format!("an even number; it comes to {odd}"))),
    }
}

/// Rotary positions: `rope_scaling` and `rope_theta`, or both in `rope_parameters` (transformers 5).
fn rope(keys: Keys<'_>, max_positions: Option<usize>) -> Result<Rope, OpenError> {
    let nested = |key: &str| Ok(keys.object(key)?.filter(|map| !map.is_empty()));
    let nothing = Map::new();
    let scaling = match (nested("rope_scaling")?, nested("rope_parameters")?) {
        (Some(map), _) => keys.inside("rope_scaling.", map),
        (None, Some(map)) => keys.inside("rope_parameters.", map),
        (None, None) => keys.inside("rope_parameters.", &nothing),
    };
    for place in [scaling, keys] {
        if place.optional_positive("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
            return Err(place.unsupported("partial_rotary_factor", "1"));
        }
    }
    let theta = scaling
        .optional_positive("rope_theta")?
        .map_or_else(|| keys.optional_positive("rope_theta"), |theta| Ok(Some(theta)))?;
    Ok(Rope { theta: theta.unwrap_or(10_000.0), scaling: rope_scaling(scaling, max_positions)? })
}

fn rope_scaling(keys: Keys<'_>, max_positions: Option<usize>) -> Result<RopeScaling, OpenError> {
    let key = if keys.has("rope_type") { "rope_type" } else { "type" };
    let original = || {
        let original = keys.optional_count("original_max_position_embeddings")?.or(max_positions);
        original.ok_or_else(|| keys.missing("original_max_position_embeddings"))
    };
    match keys.optional_text(key)?.unwrap_or("default") {
        "default" => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear { factor: keys.positive("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: keys.positive("factor")?,
            low_freq_factor: keys.positive("low_freq_factor")?,
            high_freq_factor: keys.positive("high_freq_factor")?,
            original_max_positions: original()?,
        }),
        "yarn" if keys.get("truncate").is_some_and(|truncate| truncate != true) => {
            Err(keys.unsupported("truncate", "true"))
        }
        "yarn" => {
            let factor = keys.positive("factor")?;
            Ok(RopeScaling::Yarn {
                factor,
                beta_fast: keys.optional_positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.optional_positive("beta_slow")?.unwrap_or(1.0),
                original_max_positions: original()?,
                attention_factor: attention_factor(keys, factor)?,
            })
        }
        _ => Err(keys.unsupported(key, "default, linear, llama3 and yarn")),
    }
}

/// YaRN's factor of the scores, where it is not that of the paper.
fn attention_factor(keys: Keys<'_>, factor: f64) -> Result<Option<f64>, OpenError> {
    let stated = keys.optional_positive("attention_factor")?;
    let (mscale, all_dim) = (keys.optional_positive("mscale")?, keys.optional_positive("mscale_all_dim")?);
    let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    Ok(stated.or_else(|| Some(scale(mscale?) / scale(all_dim?))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> Result<ModelConfig, OpenError> {
        model_config(Path::new("config.json"), value.as_object().expect("an object"))
    }

    /// A Llama of transformers 5, with `changes` laid over it; `null` removes a key.
    fn llama_with(changes: Value) -> Result<ModelConfig, OpenError> {
        let mut config = json!({
            "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 100, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 128, "hidden_act": "silu",
            "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
        });
        let map = config.as_object_mut().expect("an object");
        for (key, value) in changes.as_object().expect("an object") {
            if value.is_null() {
                map.remove(key)
            } else {
                map.insert(key.clone(), value.clone())
            };
        }
        parse(config)
    }

    fn scaling(changes: Value) -> RopeScaling {
        llama_with(changes).expect("a configuration").rope.expect("has positions").scaling
    }

    #[test]
    fn llama() {
        let config = llama_with(json!({})).expect("a configuration");
        assert_eq!(
            config,
            ModelConfig {
                family: Family::Llama,
                n_blocks: 2,
                hidden: 32,
                n_heads: 4,
                n_kv_heads: 2,
                head_dim: 8,
                ffn: 64,
                vocab_size: 100,
                norm_eps: 1e-5,
                initializer_range: 0.02,
                rope: Some(Rope { theta: 500_000.0, scaling: RopeScaling::Default }),
                max_positions: Some(128),
            }
        );
        let old = json!({"rope_parameters": null, "rope_theta": 5000.0, "rope_scaling": null, "head_dim": 16, "num_key_value_heads": null});
        let config = llama_with(old).expect("a configuration");
        assert_eq!((config.head_dim, config.n_kv_heads, config.rope.expect("rope").theta), (16, 4, 5000.0));
    }

    #[test]
    fn rope_variants() {
        let linear = json!({"rope_scaling": {"type": "linear", "factor": 2.0}});
        assert_eq!(scaling(linear), RopeScaling::Linear { factor: 2.0 });
        let llama3 = json!({"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1.0}});
        let expected = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 64,
        };
        assert_eq!(scaling(llama3), expected);
        let yarn = |more: Value| {
            let mut yarn = json!({"rope_type": "yarn", "factor": 4.0});
            yarn.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            json!({"rope_parameters": yarn})
        };
        let expected = |attention_factor| RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_positions: 128,
            attention_factor,
        };
        assert_eq!(scaling(yarn(json!({}))), expected(None));
        assert_eq!(scaling(yarn(json!({"mscale": 1.0, "mscale_all_dim": 1.0}))), expected(Some(1.0)));
        assert_eq!(scaling(yarn(json!({"attention_factor": 0.5, "mscale": 3.0}))), expected(Some(0.5)));
        assert!(matches!(llama_with(yarn(json!({"truncate": false}))), Err(OpenError::Unsupported { .. })));
    }

    #[test]
    fn bloom() {
        let config = parse(
            json!({"model_type": "bloom", "n_embed": 48, "n_layer": 3, "num_attention_heads": 6, "vocab_size": 9}),
        );
        let config = config.expect("a configuration");
        assert_eq!((config.family, config.hidden, config.n_blocks), (Family::Bloom, 48, 3));
        assert_eq!((config.n_heads, config.n_kv_heads, config.head_dim, config.ffn), (6, 6, 8, 192));
        assert_eq!((config.norm_eps, config.rope), (1e-5, None));
        let post = json!({"model_type": "bloom", "apply_residual_connection_post_layernorm": true});
        assert!(matches!(parse(post), Err(OpenError::Unsupported { .. })));
    }

    #[test]
    fn sliding_windows_are_refused() {
        let mistral = |window: Value| {
            let mut config = json!({"model_type": "mistral", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 8192});
            config.as_object_mut().expect("an object").extend(window.as_object().expect("an object").clone());
            parse(config)
        };
        assert!(mistral(json!({"sliding_window": null})).is_ok());
        assert!(mistral(json!({"sliding_window": 8192})).is_ok());
        assert!(matches!(mistral(json!({"sliding_window": 4096})), Err(OpenError::Unsupported { .. })));
        assert!(matches!(mistral(json!({})), Err(OpenError::Unsupported { .. })), "the default is 4096");
        let qwen = json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 16});
        assert!(matches!(llama_with(qwen), Err(OpenError::Unsupported { .. })));
        assert!(llama_with(json!({"model_type": "qwen2", "use_sliding_window": false, "sliding_window": 16})).is_ok());
        let mixed = json!({"layer_types": ["full_attention", "sliding_attention"]});
        assert!(matches!(llama_with(mixed), Err(OpenError::Unsupported { .. })));
    }

    #[test]
    fn complaints_name_file_and_key() {
        let check = |changes: Value, needle: &str| {
            let error = llama_with(changes).expect_err(needle).to_string();
            assert!(error.contains("config.json") && error.contains(needle), "{error}");
        };
        check(json!({"hidden_size": null}), "`hidden_size` is missing");
        check(json!({"hidden_size": 0}), "`hidden_size` is 0, expected a whole number");
        check(json!({"vocab_size": "many"}), "`vocab_size` is \"many\"");
        check(json!({"num_key_value_heads": 3}), "`num_key_value_heads` is 3, expected a divisor");
        check(json!({"num_attention_heads": 5, "num_key_value_heads": 5}), "`num_attention_heads` is 5");
        check(json!({"head_dim": 7}), "`head_dim` is 7, expected an even number");
        check(json!({"hidden_act": "gelu"}), "`hidden_act` is \"gelu\"");
        check(json!({"rms_norm_eps": -1.0}), "`rms_norm_eps` is -1.0");
        check(json!({"model_type": "gpt2"}), "llama, qwen2, mistral and bloom");
        check(json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), "`rope_scaling.type` is \"dynamic\"");
        check(json!({"rope_scaling": {"type": "linear"}}), "`rope_scaling.factor` is missing");
        check(json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor` is 0.5");
        check(json!({"rope_parameters": 3}), "`rope_parameters` is 3, expected an object");
        check(json!({"model_type": "qwen2", "num_key_value_heads": null}), "`num_key_value_heads` is missing");
    }
}

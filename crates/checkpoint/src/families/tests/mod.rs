mod properties;
mod table;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sepal_core::{Activation, Experts, Factors, Family, ModelConfig, Rope, RopeScaling, Window};
use serde_json::{Value, json};

use super::{FAMILIES, gguf_specs, read_config};
use crate::error::OpenError;
use crate::family::PositionEncoding;

#[test]
fn families_table_is_complete() {
    let names: BTreeSet<&str> = FAMILIES.iter().map(|spec| spec.family.name()).collect();
    assert_eq!((FAMILIES.len(), names.len()), (Family::ALL.len(), Family::ALL.len()));
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/goldens");
    let folders = std::fs::read_dir(&goldens).expect("the goldens").map(|entry| entry.expect("an entry").path());
    let config = |folder: PathBuf| std::fs::read(folder.join("config.json")).ok();
    let configs: Vec<Value> =
        folders.filter_map(config).map(|json| serde_json::from_slice(&json).expect("a configuration")).collect();
    for spec in FAMILIES {
        let name = spec.family.name();
        assert!(configs.iter().any(|config| config["model_type"] == name), "{name} has no golden");
        assert!(Family::named(name) == Some(spec.family) && !spec.activations.is_empty(), "{name}");
        assert_eq!(spec.tensors.positions.is_some(), spec.positions == PositionEncoding::Learned, "{name}");
    }
    let gguf: BTreeSet<_> = gguf_specs().map(|(_, gguf)| (gguf.architecture, gguf.experts.is_some())).collect();
    assert_eq!(gguf.len(), gguf_specs().count(), "an architecture stands for two families");
}

fn parse(value: Value) -> Result<ModelConfig, OpenError> {
    read_config(Path::new("config.json"), value.as_object().expect("an object"))
}

/// The object `base` with the keys of `more`.
fn merged(mut base: Value, more: &Value) -> Value {
    base.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    base
}

/// A Llama of transformers 5 with `changes`; `null` removes a key.
fn llama_with(changes: Value) -> Result<ModelConfig, OpenError> {
    let llama = json!({
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 100, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "hidden_act": "silu",
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
    });
    let mut config = merged(llama, &changes);
    config.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
    parse(config)
}

fn scaling(changes: Value) -> RopeScaling {
    llama_with(changes).expect("a configuration").rope.expect("has positions").scaling
}

#[test]
fn llama_is_read() {
    let config = llama_with(json!({})).expect("a configuration");
    assert_eq!(
        config,
        ModelConfig {
            n_kv_heads: 2,
            rope: Some(Rope { theta: 500_000.0, dim: 8, scaling: RopeScaling::Default }),
            max_positions: Some(128),
            ..ModelConfig::plain(Family::Llama, 2, 32, 4, 64, 100)
        }
    );
    let old = json!({"rope_parameters": null, "rope_theta": 5000.0, "rope_scaling": null, "head_dim": 16, "num_key_value_heads": null});
    let config = llama_with(old).expect("a configuration");
    assert_eq!((config.head_dim, config.n_kv_heads, config.rope.expect("rope").theta), (16, 4, 5000.0));
}

/// Digests of models are made of the serialized configuration.
#[test]
fn absent_parts_are_not_serialized() {
    let keys = |changes: Value| {
        let config = llama_with(changes).expect("a configuration");
        let value = serde_json::to_value(&config).expect("a value");
        let has = |key: &str| value.get(key).is_some();
        let read: ModelConfig = serde_json::from_value(value.clone()).expect("the same");
        assert_eq!(read, config);
        (has("unrotated_blocks"), has("factors"), has("has_head_norms"))
    };
    assert_eq!(keys(json!({})), (false, false, false));
    assert_eq!(keys(json!({"model_type": "smollm3", "no_rope_layers": [1, 1]})), (false, false, false));
    assert_eq!(keys(json!({"model_type": "smollm3", "no_rope_layers": [1, 0]})), (true, false, false));
    assert_eq!(keys(json!({"model_type": "granite", "embedding_multiplier": 1.0})), (false, false, false));
    assert_eq!(keys(json!({"model_type": "granite", "logits_scaling": 8.0})), (false, true, false));
    let stablelm = |flag: bool| json!({"model_type": "stablelm", "rms_norm_eps": null, "qk_layernorm": flag});
    assert_eq!(keys(stablelm(false)), (false, false, false));
    assert_eq!(keys(stablelm(true)), (false, false, true));
}

#[test]
fn factors_of_granite_are_read() {
    let keys = json!({"model_type": "granite", "embedding_multiplier": 12, "residual_multiplier": 0.22,
        "attention_multiplier": 0.015625, "logits_scaling": 16.0});
    let config = llama_with(keys).expect("a configuration");
    let expected = Factors { embedding: Some(12.0), residual: Some(0.22), logits: Some(0.0625) };
    assert_eq!((config.factors, config.scores.scale), (expected, Some(0.015_625)));
    assert_eq!(llama_with(json!({"model_type": "granite"})).expect("a configuration").scores.scale, Some(1.0));
    let zero = llama_with(json!({"model_type": "granite", "residual_multiplier": 0.0}));
    assert!(matches!(zero, Err(OpenError::WrongKey { .. })));
}

#[test]
fn blocks_without_positions_are_read() {
    let smollm3 = |keys: Value| llama_with(merged(json!({"model_type": "smollm3"}), &keys));
    let blocks = |keys: Value| smollm3(keys).expect("a configuration").unrotated_blocks;
    assert_eq!(blocks(json!({"num_hidden_layers": 4})), [false, false, false, true], "every fourth block");
    assert_eq!(blocks(json!({"no_rope_layer_interval": 2})), [false, true]);
    assert_eq!(blocks(json!({"no_rope_layers": [0, 1, 1], "no_rope_layer_interval": 2})), [true, false]);
    for wrong in [json!([1]), json!([1, "x"]), json!(1)] {
        assert!(matches!(smollm3(json!({"no_rope_layers": wrong})), Err(OpenError::WrongKey { .. })), "{wrong}");
    }
}

#[test]
fn rope_scalings_are_read() {
    let linear = json!({"rope_scaling": {"type": "linear", "factor": 2.0}});
    assert_eq!(scaling(linear), RopeScaling::Linear { factor: 2.0 });
    let llama3 = json!({"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1.0}});
    let expected =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 64 };
    assert_eq!(scaling(llama3), expected);
    let yarn = |more: Value| json!({"rope_parameters": merged(json!({"rope_type": "yarn", "factor": 4.0}), &more)});
    let (factor, beta_fast, beta_slow, original_max_positions) = (4.0, 32.0, 1.0, 128);
    let expected = |attention_factor, is_untruncated| RopeScaling::Yarn {
        factor,
        beta_fast,
        beta_slow,
        original_max_positions,
        attention_factor,
        is_untruncated,
    };
    assert_eq!(scaling(yarn(json!({}))), expected(None, false));
    assert_eq!(scaling(yarn(json!({"mscale": 1.0, "mscale_all_dim": 1.0}))), expected(Some(1.0), false));
    assert_eq!(scaling(yarn(json!({"attention_factor": 0.5, "mscale": 3.0}))), expected(Some(0.5), false));
    for (truncate, is_untruncated) in [(json!(true), false), (json!(false), true)] {
        assert_eq!(scaling(yarn(json!({"truncate": truncate}))), expected(None, is_untruncated));
    }
    // For each kind of block, only the key beside the kinds counts.
    let nested = json!({"model_type": "olmo3", "rope_parameters": {"full_attention":
        {"rope_type": "yarn", "factor": 4.0, "truncate": false}}});
    assert!(matches!(llama_with(nested), Err(OpenError::Unsupported { .. })));
}

#[test]
fn bloom_is_read() {
    let config =
        parse(json!({"model_type": "bloom", "n_embed": 48, "n_layer": 3, "num_attention_heads": 6, "vocab_size": 9}));
    let config = config.expect("a configuration");
    assert_eq!((config.family, config.hidden, config.n_blocks), (Family::Bloom, 48, 3));
    assert_eq!((config.n_heads, config.n_kv_heads, config.head_dim, config.ffn), (6, 6, 8, 192));
    assert_eq!((config.norm_eps, config.rope), (1e-5, None));
    let post = json!({"model_type": "bloom", "apply_residual_connection_post_layernorm": true});
    assert!(matches!(parse(post), Err(OpenError::Unsupported { .. })));
}

fn window(config: Result<ModelConfig, OpenError>) -> Option<(usize, Vec<bool>)> {
    config.expect("a configuration").scores.window.map(|Window { size, blocks, .. }| (size, blocks))
}

#[test]
fn sliding_windows_are_read() {
    let mistral = |stated: Value| {
        let config = json!({"model_type": "mistral", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 8192});
        window(parse(merged(config, &stated)))
    };
    assert_eq!(mistral(json!({"sliding_window": null})), None);
    assert_eq!(mistral(json!({"sliding_window": 8192})), None, "it hides nothing");
    assert_eq!(mistral(json!({"sliding_window": 100})), Some((100, vec![true, true])));
    assert_eq!(mistral(json!({})), Some((4096, vec![true, true])), "the default");
    let qwen = |used: bool| json!({"model_type": "qwen2", "use_sliding_window": used, "sliding_window": 16, "max_window_layers": 1});
    assert_eq!(window(llama_with(qwen(true))), Some((16, vec![false, true])));
    assert_eq!(window(llama_with(qwen(false))), None);
    let listed = json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"]});
    assert_eq!(window(llama_with(listed)), Some((16, vec![true, false])));
    let few = json!({"model_type": "qwen2", "use_sliding_window": true, "layer_types": ["sliding_attention"]});
    assert!(matches!(llama_with(few), Err(OpenError::WrongKey { .. })));
}

#[test]
fn positions_that_depend_on_the_length_have_a_maximum() {
    let dynamic = llama_with(json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}})).expect("a configuration");
    assert_eq!((dynamic.rope.expect("rope").scaling, dynamic.max_positions), (RopeScaling::Default, Some(128)));
    let longrope = json!({"model_type": "phi3", "original_max_position_embeddings": 32, "rope_scaling":
        {"type": "longrope", "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [4.0, 4.0, 4.0, 4.0]}});
    let longrope = llama_with(longrope).expect("a configuration");
    let attention_factor = (1.0 + 4_f64.ln() / 32_f64.ln()).sqrt();
    let expected = RopeScaling::Longrope { factors: vec![1.0, 1.5, 2.0, 2.5], attention_factor };
    assert_eq!((longrope.rope.expect("rope").scaling, longrope.max_positions), (expected, Some(32)));
}

#[test]
fn stablelm_is_read() {
    let stablelm = |changes: Value| {
        let keys = json!({"model_type": "stablelm", "rope_parameters": null, "rope_theta": 5000.0});
        llama_with(merged(keys, &changes))
    };
    let config = stablelm(json!({"layer_norm_eps": 1e-3})).expect("a configuration");
    // A quarter of eight dimensions rotates.
    let rope = Rope { theta: 5000.0, dim: 2, scaling: RopeScaling::Default };
    assert_eq!((config.rope, config.norm_eps, config.is_parallel), (Some(rope), 1e-3, false));
    let beside = stablelm(json!({"partial_rotary_factor": 0.5, "use_parallel_residual": true}));
    let beside = beside.expect("a configuration");
    assert_eq!((beside.rope.expect("rope").dim, beside.norm_eps, beside.is_parallel), (4, 1e-5, true));
    assert!(!beside.has_head_norms && stablelm(json!({"qk_layernorm": true})).expect("read").has_head_norms);
}

#[test]
fn text_model_of_a_multimodal_model_is_read() {
    let text = json!({"hidden_size": 64, "num_hidden_layers": 2, "sliding_window": 8, "vocab_size": 100});
    for (outer, inner) in [("gemma3", "gemma3_text"), ("mistral3", "mistral")] {
        let expected = parse(merged(json!({"model_type": inner}), &text)).expect("a configuration");
        for named in [json!({}), json!({"model_type": inner})] {
            let text_config = merged(text.clone(), &named);
            // Keys beside it are of the complete model.
            let keys = json!({"model_type": outer, "text_config": text_config, "hidden_size": 32, "vision_config": {}});
            assert_eq!(parse(keys).expect("a configuration"), expected, "{outer}");
        }
    }
}

#[test]
fn gpt_oss_is_read() {
    let gpt_oss = |keys: Value| parse(merged(json!({"model_type": "gpt_oss", "num_hidden_layers": 3}), &keys));
    let config = gpt_oss(json!({"quantization_config": {"quant_method": "mxfp4"}})).expect("a configuration");
    let scaling = RopeScaling::Yarn {
        factor: 32.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max_positions: 4096,
        attention_factor: None,
        is_untruncated: true,
    };
    assert_eq!(config.rope, Some(Rope { theta: 150_000.0, dim: 64, scaling }));
    assert_eq!(config.activation, Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 });
    assert_eq!(config.experts, Some(Experts::new(128, 4)));
    assert_eq!(window(Ok(config)), Some((128, vec![true, false, true])), "every other block");
    let unscaled = gpt_oss(json!({"rope_parameters": {}})).expect("a configuration");
    assert_eq!(unscaled.rope, Some(Rope { theta: 150_000.0, dim: 64, scaling: RopeScaling::Default }));
    assert!(matches!(gpt_oss(json!({"num_local_experts": 3})), Err(OpenError::WrongKey { .. })), "four are chosen");
    assert!(matches!(gpt_oss(json!({"sliding_window": null})), Err(OpenError::MissingKey { .. })));
    let other = json!({"quantization_config": {"quant_method": "quark"}});
    assert!(matches!(gpt_oss(other), Err(OpenError::Quantized { .. })));
}

#[test]
fn phimoe_is_read() {
    let phimoe = |scaling: Value| {
        let keys = json!({"model_type": "phimoe", "hidden_size": 32, "num_attention_heads": 8, "rope_scaling": scaling,
            "router_jitter_noise": 0.0, "num_experts_per_tok": 3, "original_max_position_embeddings": 8});
        parse(keys)
    };
    let longrope = json!({"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 4.0],
        "short_mscale": 1.25, "long_mscale": 1.5, "original_max_position_embeddings": 16});
    let config = phimoe(longrope.clone()).expect("a configuration");
    let scaling = RopeScaling::Longrope { factors: vec![1.0, 1.5], attention_factor: 1.25 };
    assert_eq!(config.rope, Some(Rope { theta: 1_000_000.0, dim: 4, scaling }));
    assert_eq!(config.max_positions, Some(16));
    assert_eq!(config.experts, Some(Experts { sparse_mixer: Some(0.0), ..Experts::new(16, 2) }));
    let without = |key: &str| {
        let mut scaling = longrope.clone();
        scaling.as_object_mut().expect("an object").remove(key);
        phimoe(scaling)
    };
    assert!(matches!(without("short_mscale"), Err(OpenError::MissingKey { .. })));
    assert!(matches!(without("long_mscale"), Err(OpenError::MissingKey { .. })));
    for name in ["su", "yarn", "linear"] {
        let scaling = merged(longrope.clone(), &json!({"type": name, "factor": 2.0}));
        assert!(matches!(phimoe(scaling), Err(OpenError::Unsupported { .. })), "{name}");
    }
    let one = json!({"model_type": "phimoe", "num_local_experts": 1});
    assert!(matches!(parse(one), Err(OpenError::WrongKey { .. })));
}

#[test]
fn errors_name_file_and_key() {
    let check = |changes: Value, needle: &str| {
        let error = llama_with(changes).expect_err(needle).to_string();
        assert!(error.contains("config.json") && error.contains(needle), "{error}");
    };
    check(json!({"hidden_size": 0}), "`hidden_size` is 0, expected a whole number");
    check(json!({"vocab_size": "many"}), "`vocab_size` is \"many\"");
    check(json!({"num_key_value_heads": 3}), "`num_key_value_heads` is 3, expected a divisor");
    check(json!({"num_attention_heads": 5, "num_key_value_heads": 5}), "`num_attention_heads` is 5");
    check(json!({"head_dim": 7}), "`head_dim` is 7, expected an even number");
    check(json!({"hidden_act": "gelu"}), "`hidden_act` is \"gelu\"");
    check(json!({"rms_norm_eps": -1.0}), "`rms_norm_eps` is -1.0");
    check(json!({"model_type": "t5"}), "bloom, cohere, cohere2, falcon, gemma");
    check(json!({"model_type": "t5"}), ", and the text models of gemma3 and mistral3");
    check(json!({"model_type": "llama4"}), "not supported are its chunked attention");
    check(json!({"model_type": "deepseek_v3"}), "mistral3; not supported are its multi-head latent attention");
    check(json!({"model_type": "gemma3"}), "`text_config` is missing");
    let ministral = json!({"model_type": "mistral3", "text_config": {"model_type": "ministral3"}});
    check(ministral, "`text_config.model_type` is \"ministral3\", supported: mistral");
    check(json!({"model_type": "mistral3", "text_config": {"hidden_size": 0}}), "`text_config.hidden_size` is 0");
    let quantized =
        json!({"model_type": "mistral3", "text_config": {}, "quantization_config": {"quant_method": "aqlm"}});
    check(quantized, "`quantization_config` is aqlm");
    check(json!({"rope_scaling": {"type": "other", "factor": 2.0}}), "`rope_scaling.type` is \"other\"");
    check(json!({"rope_scaling": {"type": "linear"}}), "`rope_scaling.factor` is missing");
    check(json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor` is 0.5");
    check(json!({"rope_parameters": 3}), "`rope_parameters` is 3, expected an object");
    let too_many = "`num_key_value_heads` is absent, expected a divisor of num_attention_heads, 4; it comes to 32";
    check(json!({"model_type": "qwen2", "num_key_value_heads": null}), too_many);
    check(json!({"quantization_config": {"quant_method": "aqlm", "bits": 4}}), "`quantization_config` is aqlm");
    check(json!({"quantization_config": {"quant_method": "gptq", "bits": 5}}), "a GGUF file of the model");
    check(json!({"rope_parameters": {"full_attention": {}}}), "`rope_parameters.full_attention` is {}");
    let falcon = json!({"model_type": "falcon", "alibi": true, "rope_parameters": null});
    check(falcon, "`multi_query` is absent, supported: false where `alibi` is true");
}

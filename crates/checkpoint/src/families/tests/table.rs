//! The use of every key of every family's configuration class, and the precedence of two keys that say the same.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sepal_core::{Family, ModelConfig};
use serde_json::{Map, Value, json};

use super::{merged, parse};

/// The use of a key.
#[derive(Debug, Clone)]
pub(super) enum Use {
    /// The value gives another model than the key's absence.
    Read(Value),
    /// The value gives the same model.
    Unused(Value),
    /// The value is refused, by the name of the key.
    Refused(Value),
}

/// A key of some families, beside other keys.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) key: &'static str,
    pub(super) families: Vec<Family>,
    pub(super) beside: Value,
    pub(super) becomes: Use,
}

use Family::*;
use Use::{Read, Refused, Unused};

const LLAMAS: [Family; 10] = [Granite, Llama, Mistral, Mixtral, Olmo2, Qwen2, Qwen2Moe, Qwen3, Qwen3Moe, Smollm3];
const QWENS: [Family; 4] = [Qwen2, Qwen2Moe, Qwen3, Qwen3Moe];
/// Qwens with the window in some blocks.
const WINDOWED_QWENS: [Family; 3] = [Qwen2, Qwen2Moe, Qwen3];
const QWEN_EXPERTS: [Family; 2] = [Qwen2Moe, Qwen3Moe];
const GEMMAS: [Family; 3] = [Gemma, Gemma2, Gemma3];
const LATER_GEMMAS: [Family; 2] = [Gemma2, Gemma3];
const LEARNED_OR_ALIBI: [Family; 3] = [Bloom, Gpt2, Opt];
/// Families with a Llama's keys of sizes and norms.
const RMS: [Family; 19] = [
    Granite, Llama, Mistral, Mixtral, Olmo2, Qwen2, Qwen2Moe, Qwen3, Qwen3Moe, Smollm3, Gemma, Gemma2, Gemma3, Phi3,
    Glm, Glm4, Olmo3, GptOss, Phimoe,
];
const COHERES: [Family; 2] = [Cohere, Cohere2];
const GLMS: [Family; 2] = [Glm, Glm4];

fn all_but(families: &[Family]) -> Vec<Family> {
    Family::ALL.into_iter().filter(|family| !families.contains(family)).collect()
}

fn row(key: &'static str, families: &[Family], becomes: Use) -> Row {
    Row { key, families: families.to_vec(), beside: json!({}), becomes }
}

fn beside(beside: Value, row: Row) -> Row {
    Row { beside, ..row }
}

/// A key that `families` read and all others ignore.
fn read_by(key: &'static str, families: &[Family], value: Value) -> [Row; 2] {
    [row(key, families, Read(value.clone())), row(key, &all_but(families), Unused(value))]
}

/// A key that `families` refuse and all others ignore.
fn refused_by(key: &'static str, families: &[Family], value: Value) -> [Row; 2] {
    [row(key, families, Refused(value.clone())), row(key, &all_but(families), Unused(value))]
}

pub(super) fn table() -> Vec<Row> {
    [sizes(), norms_and_activations(), positions(), scores(), architectures(), without_effect(), of_all()].concat()
}

fn sizes() -> Vec<Row> {
    let grouped = [RMS.as_slice(), &COHERES, &[Stablelm]].concat();
    let mut gated = [grouped.as_slice(), &[GptNeox]].concat();
    gated.retain(|family| !QWEN_EXPERTS.contains(family));
    let mut rows = vec![
        row("vocab_size", &Family::ALL, Read(json!(99))),
        row("hidden_size", &Family::ALL, Read(json!(128))),
        row("num_hidden_layers", &Family::ALL, Read(json!(3))),
        row("num_attention_heads", &Family::ALL, Read(json!(2))),
        row("head_dim", &[RMS.as_slice(), &COHERES].concat(), Read(json!(8))),
        row("head_dim", &[Stablelm, GptNeox], Refused(json!(8))),
        row("head_dim", &[Falcon, Bloom, Gpt2, Opt], Unused(json!(8))),
        row("n_positions", &[Gpt2], Read(json!(9))),
        row("max_position_embeddings", &all_but(&[Bloom]), Read(json!(9))),
        row("max_position_embeddings", &[Bloom], Unused(json!(9))),
    ];
    rows.extend(read_by("n_embd", &[Gpt2], json!(128)));
    rows.extend(read_by("n_embed", &[Bloom, Falcon], json!(128)));
    rows.extend(read_by("n_layer", &[Bloom, Gpt2], json!(3)));
    rows.extend(read_by("n_head", &[Bloom, Gpt2], json!(2)));
    rows.extend(read_by("num_key_value_heads", &grouped, json!(1)));
    rows.extend(read_by("intermediate_size", &gated, json!(40)));
    rows.extend(read_by("moe_intermediate_size", &QWEN_EXPERTS, json!(40)));
    rows.extend(read_by("shared_expert_intermediate_size", &[Qwen2Moe], json!(40)));
    rows.extend(read_by("ffn_hidden_size", &[Falcon], json!(40)));
    rows.extend(read_by("n_inner", &[Gpt2], json!(40)));
    rows.extend(read_by("ffn_dim", &[Opt], json!(40)));
    rows
}

fn norms_and_activations() -> Vec<Row> {
    let silu = [LLAMAS.as_slice(), &COHERES, &GLMS, &[Olmo3, Phi3, Phimoe, Stablelm]].concat();
    let mut rows = vec![
        row("hidden_act", &silu, Refused(json!("gelu"))),
        row("hidden_act", &[Gemma], Refused(json!("relu"))),
        row("hidden_act", &[GptNeox], Read(json!("relu"))),
        row("hidden_act", &[Gemma2, Gemma3, Falcon, Bloom, Gpt2, GptOss, Opt], Unused(json!("relu"))),
        row("initializer_range", &Family::ALL, Read(json!(0.5))),
    ];
    rows.extend(refused_by("hidden_activation", &LATER_GEMMAS, json!("relu")));
    rows.extend(read_by("activation_function", &[Gpt2, Opt], json!("gelu")));
    rows.extend(read_by("activation", &[Falcon], json!("gelu_new")));
    rows.extend(read_by("swiglu_alpha", &[GptOss], json!(1.5)));
    rows.extend(read_by("swiglu_limit", &[GptOss], json!(3.0)));
    rows.extend(read_by("rms_norm_eps", &RMS, json!(0.01)));
    rows.extend(read_by("layer_norm_eps", &[COHERES.as_slice(), &[Stablelm, GptNeox]].concat(), json!(0.01)));
    rows.extend(read_by("layer_norm_epsilon", &[Falcon, Bloom, Gpt2], json!(0.01)));
    rows.extend(read_by("init_std", &[Opt], json!(0.5)));
    rows
}

fn positions() -> Vec<Row> {
    let scaled = [LLAMAS.as_slice(), &COHERES, &GLMS, &[Gemma, Gemma2, GptOss, Stablelm, Falcon, GptNeox]].concat();
    let whole = [LLAMAS.as_slice(), &GEMMAS, &COHERES, &[Falcon, GptOss, Olmo3, Phimoe]].concat();
    // Families with positions for each kind of block.
    let by_kind = [Gemma3, Olmo3];
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    let nested = json!({"full_attention": linear, "sliding_attention": linear});
    let mut rows = vec![
        row("rope_scaling", &[scaled.as_slice(), &by_kind].concat(), Read(linear.clone())),
        row("rope_scaling", &[Phi3, Phimoe], Refused(linear.clone())),
        row("rope_scaling", &LEARNED_OR_ALIBI, Unused(linear.clone())),
        row("rope_parameters", &scaled, Read(linear.clone())),
        row("rope_parameters", &[Phi3, Phimoe], Refused(linear.clone())),
        row("rope_parameters", &[LEARNED_OR_ALIBI.as_slice(), &by_kind].concat(), Unused(linear)),
        row("rope_parameters", &by_kind, Read(nested.clone())),
        row("rope_parameters", &[scaled.as_slice(), &[Phi3, Phimoe]].concat(), Refused(nested)),
        row("partial_rotary_factor", &[GLMS.as_slice(), &[Stablelm, Phi3]].concat(), Read(json!(0.75))),
        row("partial_rotary_factor", &whole, Refused(json!(0.5))),
        row("partial_rotary_factor", &[GptNeox, Bloom, Gpt2, Opt], Unused(json!(0.5))),
        // GPT-OSS has scaled positions by default.
        row("original_max_position_embeddings", &all_but(&[GptOss]), Unused(json!(16))),
        row("original_max_position_embeddings", &[GptOss], Read(json!(16))),
    ];
    let theta = all_but(&[GptNeox, Bloom, Gpt2, Opt]);
    rows.extend(read_by("rope_theta", &theta, json!(77.0)));
    rows.extend(read_by("rotary_emb_base", &[GptNeox], json!(77.0)));
    rows.extend(read_by("rotary_pct", &[GptNeox], json!(0.5)));
    rows.extend(read_by("no_rope_layers", &[Smollm3], json!([1, 0, 1, 1])));
    rows.extend(read_by("no_rope_layer_interval", &[Smollm3], json!(2)));
    rows.extend(read_by("rope_local_base_freq", &[Gemma3], json!(77.0)));
    // With a scaling that needs the original length.
    let yarn = json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8}});
    rows.push(beside(yarn.clone(), row("original_max_position_embeddings", &scaled, Read(json!(16)))));
    rows.push(beside(yarn.clone(), row("original_max_position_embeddings", &by_kind, Unused(json!(16)))));
    rows
}

fn scores() -> Vec<Row> {
    let windows = [Mistral, Mixtral, Phi3, Phimoe, Cohere2, Gemma2, Gemma3, GptOss, Olmo3];
    let types = json!(["full_attention", "sliding_attention", "attention", "full_attention"]);
    let used = json!({"use_sliding_window": true, "sliding_window": 4});
    let window = json!({"sliding_window": 4});
    let by_type = [Mistral, Cohere2, Gemma2, Gemma3, GptOss, Olmo3];
    let with_flag = [WINDOWED_QWENS.as_slice(), &[Smollm3]].concat();
    let mut rows = vec![
        row("is_causal", &Family::ALL, Refused(json!(false))),
        row("final_logit_softcapping", &Family::ALL, Unused(json!(3.0))),
        beside(json!({"max_window_layers": 1}), row("use_sliding_window", &QWENS, Read(json!(true)))),
        row("use_sliding_window", &all_but(&QWENS), Unused(json!(true))),
        beside(used.clone(), row("max_window_layers", &WINDOWED_QWENS, Read(json!(1)))),
        row("max_window_layers", &all_but(&WINDOWED_QWENS), Unused(json!(1))),
        beside(used, row("layer_types", &with_flag, Read(types.clone()))),
        row("layer_types", &with_flag, Refused(types.clone())),
        beside(window.clone(), row("use_sliding_window", &[Smollm3], Read(json!(true)))),
        beside(json!({"use_sliding_window": true}), row("sliding_window", &[Smollm3], Read(json!(4)))),
        beside(window.clone(), row("layer_types", &by_type, Read(types.clone()))),
        beside(window, row("layer_types", &all_but(&[by_type.as_slice(), &with_flag].concat()), Unused(types))),
        beside(json!({"sliding_window": 4}), row("sliding_window_pattern", &[Cohere2, Gemma3], Read(json!(2)))),
        row("sliding_window_pattern", &all_but(&[Cohere2, Gemma3]), Unused(json!(2))),
    ];
    rows.extend(read_by("sliding_window", &windows, json!(4)));
    rows.extend(read_by("query_pre_attn_scalar", &LATER_GEMMAS, json!(16)));
    rows.extend(read_by("attn_logit_softcapping", &[Gemma2], json!(5.0)));
    rows.extend(refused_by("use_bidirectional_attention", &GEMMAS, json!(true)));
    rows.extend(read_by("scale_attn_weights", &[Gpt2], json!(false)));
    rows.extend(read_by("scale_attn_by_inverse_layer_idx", &[Gpt2], json!(true)));
    rows
}

fn architectures() -> Vec<Row> {
    let new = json!({"new_decoder_architecture": true});
    let mut rows = vec![
        row("use_parallel_residual", &[GptNeox], Read(json!(false))),
        row("use_parallel_residual", &[Stablelm], Read(json!(true))),
        beside(json!({"multi_query": false}), row("alibi", &[Falcon], Read(json!(true)))),
        beside(json!({"alibi": true}), row("multi_query", &[Falcon], Refused(json!(true)))),
        beside(merged(new.clone(), &json!({"alibi": true})), row("num_kv_heads", &[Falcon], Refused(json!(2)))),
        row("alibi", &all_but(&[Falcon]), Unused(json!(true))),
        beside(new.clone(), row("num_kv_heads", &[Falcon], Read(json!(2)))),
        beside(new.clone(), row("n_head_kv", &[Falcon], Read(json!(2)))),
        row("num_kv_heads", &Family::ALL, Unused(json!(2))),
        beside(json!({"multi_query": false}), row("num_kv_heads", &[Falcon], Refused(json!(2)))),
        beside(json!({"pretraining_tp": 2}), row("slow_but_exact", &[Bloom], Refused(json!(true)))),
        row("slow_but_exact", &Family::ALL, Unused(json!(true))),
        row("pretraining_tp", &Family::ALL, Unused(json!(2))),
    ];
    for key in ["embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"] {
        rows.extend(read_by(key, &[Granite], json!(0.5)));
    }
    rows.extend(read_by("num_local_experts", &[GptOss, Mixtral, Phimoe, Qwen3Moe], json!(24)));
    rows.extend(read_by("num_experts", &[GptOss, Mixtral, Qwen2Moe, Qwen3Moe], json!(16)));
    rows.extend(read_by("num_experts_per_tok", &[GptOss, Mixtral, Qwen2Moe, Qwen3Moe], json!(1)));
    rows.extend(read_by("router_jitter_noise", &[Phimoe], json!(0.5)));
    rows.extend(read_by("norm_topk_prob", &QWEN_EXPERTS, json!(true)));
    rows.extend(refused_by("decoder_sparse_step", &QWEN_EXPERTS, json!(2)));
    rows.extend(refused_by("mlp_only_layers", &QWEN_EXPERTS, json!([0])));
    rows.extend(read_by("new_decoder_architecture", &[Falcon], json!(true)));
    rows.extend(read_by("multi_query", &[Falcon], json!(false)));
    rows.extend(read_by("parallel_attn", &[Falcon], json!(false)));
    rows.extend(read_by("logit_scale", &COHERES, json!(0.5)));
    rows.extend(read_by("use_qk_norm", &[Cohere], json!(true)));
    rows.extend(refused_by("add_cross_attention", &[Gpt2], json!(true)));
    rows.extend(refused_by("apply_residual_connection_post_layernorm", &[Bloom], json!(true)));
    rows.extend(refused_by("do_layer_norm_before", &[Opt], json!(false)));
    rows.extend(refused_by("_remove_final_layer_norm", &[Opt], json!(true)));
    rows.extend(refused_by("layer_norm_elementwise_affine", &[Opt], json!(false)));
    rows.extend(refused_by("word_embed_proj_dim", &[Opt], json!(32)));
    rows.extend(read_by("qk_layernorm", &[Stablelm], json!(true)));
    rows
}

/// Keys that do not affect a forward pass without dropout. Biases are read if the file has them, regardless of the keys.
fn without_effect() -> Vec<Row> {
    let flags = "attention_bias mlp_bias bias qkv_bias use_qkv_bias enable_bias use_cache tie_word_embeddings is_decoder \
        output_router_logits reorder_and_upcast_attn summary_use_proj summary_proj_to_labels lm_head_bias";
    let numbers = "pad_token_id bos_token_id eos_token_id num_ln_in_parallel_attn n_ctx seq_length attention_dropout \
        hidden_dropout resid_pdrop embd_pdrop attn_pdrop dropout layerdrop classifier_dropout input_jitter_noise \
        router_aux_loss_coef summary_first_dropout norm_eps rope_pct";
    let texts = "summary_type summary_activation torch_dtype dtype transformers_version";
    let rows = |(keys, value): (&'static str, Value)| {
        keys.split(' ').map(move |key| row(key, &Family::ALL, Unused(value.clone())))
    };
    [(flags, json!(true)), (numbers, json!(1)), (texts, json!("float16"))].into_iter().flat_map(rows).collect()
}

fn of_all() -> Vec<Row> {
    [
        ("quantization_config", json!({"quant_method": "hqq"})),
        ("compression_config", json!({"format": "int-quantized"})),
        ("configuration_files", json!(["config.4.0.0.json"])),
        ("per_layer_config", json!({"0": {"intermediate_size": 8}})),
        ("transformers_weights", json!("other.safetensors")),
    ]
    .map(|(key, value)| row(key, &Family::ALL, Refused(value)))
    .to_vec()
}

/// A model of four blocks, with the size keys of the family's class.
pub(super) fn base(family: Family) -> Map<String, Value> {
    let named = |hidden: &str, blocks: &str, heads: &str| json!({hidden: 64, blocks: 4, heads: 4, "vocab_size": 50});
    let mut base = match family {
        Bloom => named("hidden_size", "n_layer", "n_head"),
        Gpt2 => named("n_embd", "n_layer", "n_head"),
        _ => named("hidden_size", "num_hidden_layers", "num_attention_heads"),
    };
    base["model_type"] = json!(family.name());
    if [RMS.as_slice(), &[Stablelm]].concat().contains(&family) {
        base["num_key_value_heads"] = json!(2);
    }
    base.as_object().expect("an object").clone()
}

pub(super) fn with(mut config: Map<String, Value>, more: &Value) -> Map<String, Value> {
    config.extend(more.as_object().expect("an object").clone());
    config
}

#[track_caller]
pub(super) fn read(config: Map<String, Value>) -> ModelConfig {
    let text = Value::Object(config.clone()).to_string();
    parse(Value::Object(config)).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn keys_have_the_use_of_the_table() {
    for Row { key, families, beside, becomes } in table() {
        for family in families {
            let before = with(base(family), &beside);
            let what = format!("{key} of {} beside {beside}", family.name());
            match &becomes {
                Read(value) => {
                    assert_ne!(read(before.clone()), read(with(before, &json!({key: value}))), "{what} is not read")
                }
                Unused(value) => {
                    assert_eq!(read(before.clone()), read(with(before, &json!({key: value}))), "{what} is read")
                }
                Refused(value) => {
                    let error = parse(Value::Object(with(before, &json!({key: value})))).expect_err(&what).to_string();
                    assert!(error.contains(&format!("`{key}")), "{what}: {error}");
                }
            }
        }
    }
}

/// Keys and defaults of each configuration class of transformers.
fn classes() -> BTreeMap<String, Map<String, Value>> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/goldens/configs.json"));
    let mut goldens: Value =
        serde_json::from_slice(&std::fs::read(path).expect("the goldens")).expect("goldens of configurations");
    serde_json::from_value(goldens["classes"].take()).expect("the classes")
}

#[test]
fn every_key_of_a_class_is_in_the_table() {
    for (name, keys) in classes() {
        let family = Family::named(&name).expect("a family");
        let rows = table();
        let is_known = |key: &&String| rows.iter().any(|row| row.key == **key && row.families.contains(&family));
        let unknown: Vec<&String> = keys.keys().filter(|key| !is_known(key)).collect();
        assert!(unknown.is_empty(), "{name}: the table does not say what becomes of {unknown:?}");
    }
}

#[test]
fn absent_key_has_the_default_of_the_class() {
    for (name, keys) in classes() {
        let empty = with(Map::new(), &json!({"model_type": name}));
        let unlimited = |config: Map<String, Value>| {
            let longest = config.get("max_position_embeddings").is_some();
            let config = read(config);
            // The longest sequence is a limit only if the file states it.
            if longest { ModelConfig { max_positions: None, ..config } } else { config }
        };
        let defaults = unlimited(empty.clone());
        for (key, default) in &keys {
            let mut expected = defaults.clone();
            if key == "max_position_embeddings" {
                expected.max_positions = None;
            }
            assert_eq!(unlimited(with(empty.clone(), &json!({key: default}))), expected, "{key} of {name}");
        }
        let expected = ModelConfig { max_positions: None, ..defaults };
        let found = ModelConfig { max_positions: None, ..read(with(empty, &Value::Object(keys))) };
        assert_eq!(found, expected, "{name}");
    }
}

/// Precedence of keys with the same meaning: families, both keys, and the key that counts.
fn precedence() -> Vec<(Vec<Family>, Value, Value)> {
    let of_whole_heads = [LLAMAS.as_slice(), &COHERES, &[Gemma, Gemma2, Falcon]].concat();
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    let with_theta = merged(linear.clone(), &json!({"rope_theta": 77.0}));
    let default = json!({"rope_type": "default", "rope_theta": 5.0});
    let both_types = json!({"type": "linear", "rope_type": "default", "factor": 2.0});
    let neox = json!({"rope_theta": 77.0, "partial_rotary_factor": 1.0});
    let half = json!({"partial_rotary_factor": 0.5});
    let theta = json!({"rope_theta": 77.0});
    let longrope = json!({"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
        "long_factor": [4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0], "original_max_position_embeddings": 16});
    let shorter = merged(longrope.clone(), &json!({"original_max_position_embeddings": 8}));
    let lengths = json!({"original_max_position_embeddings": 32, "max_position_embeddings": 64});
    let phi3 = |scaling: Value| merged(lengths.clone(), &json!({"rope_scaling": scaling}));
    let falcon = |key: &str, value: Value| merged(json!({"new_decoder_architecture": true}), &json!({key: value}));
    let kv_heads = falcon("num_kv_heads", json!(2));
    let whole = || of_whole_heads.clone();
    vec![
        (vec![Gpt2], json!({"n_embd": 32, "hidden_size": 64}), json!({"n_embd": 64})),
        (vec![Gpt2, Bloom], json!({"n_head": 4, "num_attention_heads": 2}), json!({"n_head": 2})),
        (vec![Gpt2, Bloom], json!({"n_layer": 4, "num_hidden_layers": 2}), json!({"n_layer": 2})),
        (vec![Gpt2], json!({"n_positions": 8, "max_position_embeddings": 16}), json!({"n_positions": 16})),
        (vec![Bloom, Falcon], json!({"n_embed": 128}), json!({"hidden_size": 128})),
        (vec![Falcon], json!({"n_layer": 2, "n_head": 2}), json!({})),
        (vec![Falcon], merged(kv_heads.clone(), &json!({"n_head_kv": 4})), kv_heads),
        (vec![Falcon], falcon("multi_query", json!(true)), falcon("multi_query", json!(false))),
        (vec![GptOss, Mixtral], json!({"num_local_experts": 5, "num_experts": 6}), json!({"num_local_experts": 6})),
        (vec![Qwen3Moe], json!({"num_local_experts": 13, "num_experts": 14}), json!({"num_experts": 13})),
        (whole(), json!({"rope_theta": 5.0, "rope_parameters": with_theta}), json!({"rope_parameters": with_theta})),
        (whole(), json!({"rope_scaling": linear, "rope_parameters": default}), json!({"rope_scaling": linear})),
        (whole(), json!({"rope_scaling": {}, "rope_parameters": linear}), json!({"rope_parameters": linear})),
        (whole(), json!({"rope_scaling": both_types}), json!({})),
        (
            vec![GptNeox],
            json!({"rotary_emb_base": 5.0, "rotary_pct": 0.5, "rope_parameters": neox}),
            json!({"rotary_emb_base": 77.0, "rotary_pct": 1.0}),
        ),
        (vec![Glm, Glm4, Stablelm, Phi3], json!({"partial_rotary_factor": 0.25, "rope_parameters": half}), half),
        (vec![Phi3], phi3(longrope), phi3(shorter)),
        (
            vec![Gemma3],
            json!({"rope_scaling": linear, "rope_parameters": {"full_attention": theta}}),
            json!({"rope_parameters": {"full_attention": with_theta}}),
        ),
        (
            vec![Gemma3],
            json!({"rope_local_base_freq": 5.0, "rope_parameters": {"sliding_attention": theta}}),
            json!({"rope_local_base_freq": 77.0}),
        ),
        (vec![Gemma3], json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), json!({})),
        (
            vec![Olmo3],
            json!({"rope_theta": 77.0}),
            json!({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 77.0}}}),
        ),
    ]
}

#[test]
fn precedence_of_keys_is_that_of_transformers() {
    for (families, both, counts) in precedence() {
        for family in families {
            let base = base(family);
            let found = read(with(base.clone(), &both));
            assert_eq!(found, read(with(base, &counts)), "{}: {both} is not {counts}", family.name());
        }
    }
}

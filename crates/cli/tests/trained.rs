//! Trained tensors as the options of the shipped plugins state them, beside those that the plugins build.

use std::error::Error;

use sepal_checkpoint::linear_sites;
use sepal_core::{Family, ModelConfig, TrainedTensor};
use sepal_front::ENGINE_PLUGINS;
use sepal_nn::Parameters;
use sepal_options::{ModelShape, head_options, tuning_options};
use sepal_plugin::{Head, HeadContext, PluginKind, Registry, Tuning, TuningContext};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

const SEED: u64 = 7;
/// Words of the vocabulary; the id of a word is its place.
const WORDS: [&str; 9] = ["a", "bad", "terrible", "good", "great", "negative", "positive", "neutral", "O"];

/// Name, shape and first block of a tensor.
type Described = (String, Vec<usize>, Option<usize>);

fn models() -> Vec<ModelConfig> {
    let plain = |family, n_blocks, hidden, n_heads, ffn| ModelConfig::plain(family, n_blocks, hidden, n_heads, ffn, 64);
    vec![
        plain(Family::Llama, 2, 32, 4, 48),
        ModelConfig { n_kv_heads: 2, ..plain(Family::Llama, 3, 48, 6, 80) },
        ModelConfig { head_dim: 12, n_kv_heads: 1, ..plain(Family::Qwen3, 2, 32, 4, 40) },
        plain(Family::Gpt2, 4, 32, 2, 128),
        ModelConfig { n_kv_heads: 2, ..plain(Family::Phi3, 2, 16, 4, 24) },
        plain(Family::Mixtral, 3, 16, 2, 32),
    ]
}

fn heads() -> Vec<(&'static str, Value)> {
    vec![
        ("causal-lm", json!({})),
        ("multiple-choice", json!({ "pooling": "mean" })),
        ("sequence-classification", json!({ "labels": ["negative", "neutral", "positive"] })),
        ("sequence-classification", json!({ "labels": ["score"] })),
        ("sequence-classification", json!({ "labels": ["negative", "positive"], "multi_label": true })),
        ("sequence-classification", json!({ "labels": ["negative", "positive"], "init": "label-words" })),
        ("token-classification", json!({ "labels": ["O", "B-X", "I-X"] })),
        ("verbalizer", json!({ "labels": ["negative", "positive"], "words": { "negative": ["bad", "terrible"] } })),
    ]
}

fn modes() -> Vec<(&'static str, Value)> {
    vec![
        ("deep-ptune", json!({ "pre_seq_len": 3 })),
        ("deep-ptune", json!({ "pre_seq_len": 5, "init": "normal", "deep_init": "normal" })),
        ("ia3", json!({})),
        ("ia3", json!({ "targets": "all-linear" })),
        ("lora", json!({ "r": 2 })),
        ("lora", json!({ "r": 4, "targets": "all-linear", "blocks": { "last": 2 }, "rslora": true })),
        ("p-tuning", json!({ "pre_seq_len": 4 })),
        ("p-tuning", json!({ "pre_seq_len": 2, "encoder": "lstm", "hidden": 6 })),
        ("prefix-kv", json!({ "pre_seq_len": 4 })),
        ("prefix-tuning", json!({ "pre_seq_len": 1, "init": "zero" })),
        ("ptune", json!({ "pre_seq_len": 6 })),
        ("ptune", json!({ "pre_seq_len": 6, "init": "class-names" })),
        ("ptune", json!({ "pre_seq_len": 3, "init": { "text": "good great" } })),
    ]
}

fn tokenize(text: &str) -> Result<Vec<i64>, Box<dyn Error + Send + Sync>> {
    let id = |word: &str| WORDS.iter().position(|known| *known == word).map(|id| id as i64);
    text.split_whitespace().map(|word| id(word).ok_or_else(|| format!("`{word}` is unknown").into())).collect()
}

fn embeddings(hidden: usize) -> Tensor {
    Tensor::rand([64, hidden as i64], (Kind::Float, Device::Cpu))
}

fn shape(tensor: &Tensor) -> Vec<usize> {
    tensor.size().iter().map(|&dim| usize::try_from(dim).expect("a dimension")).collect()
}

/// Parameters as the store holds them; those with the name of a tunable have its first block.
fn described(params: &Parameters, tunables: &[sepal_plugin::Tunable]) -> Vec<Described> {
    let first_block = |name: &str| tunables.iter().find(|tunable| tunable.name == name).map(|found| found.first_block);
    params.iter().map(|(name, tensor)| (name.to_owned(), shape(tensor), first_block(name))).collect()
}

fn stated(tensors: Vec<TrainedTensor>) -> Vec<Described> {
    tensors.into_iter().map(|tensor| (tensor.name, tensor.shape, tensor.first_block)).collect()
}

fn numbers(tensors: &[Described]) -> usize {
    tensors.iter().map(|(_, shape, _)| shape.iter().product::<usize>()).sum()
}

fn check_head(registry: &Registry, config: &ModelConfig, name: &str, options: &Value) {
    let (mut params, embeddings) = (Parameters::new(), embeddings(config.hidden));
    let mut cx = HeadContext {
        params: &mut params,
        hidden: config.hidden,
        embeddings: &embeddings,
        tokenize: &tokenize,
        lm_rows: &|ids| Ok(Tensor::zeros([ids.len() as i64, config.hidden as i64], (Kind::Float, Device::Cpu))),
        is_restored: false,
        seed: SEED,
    };
    let built = registry.build::<Head>(name, options.clone(), &mut cx).expect("built");
    let entry = registry.catalog().find(PluginKind::Head, name).expect("registered");
    let head = head_options(entry, options).expect("the options of a shipped head");
    assert_eq!(&head.task().expect("a task"), built.task(), "{name} {options}");
    head.check_words(&tokenize).expect("words of the vocabulary");
    let (stated, found) = (stated(head.tensors(config.hidden)), described(&params, &[]));
    assert_eq!(stated, found, "{name} {options}");
    let total: usize = params.iter().map(|(_, tensor)| tensor.numel()).sum();
    assert_eq!(numbers(&stated), total, "{name} {options}");
}

fn check_mode(registry: &Registry, config: &ModelConfig, name: &str, options: &Value) {
    let (mut params, embeddings, sites) = (Parameters::new(), embeddings(config.hidden), linear_sites(config));
    let labels = ["negative", "positive"].map(str::to_owned);
    let &ModelConfig { n_blocks, hidden, initializer_range, .. } = config;
    let kv_size = config.kv_size();
    let mut cx = TuningContext {
        params: &mut params,
        n_blocks,
        hidden,
        kv_size,
        sites: &sites,
        initializer_range,
        embeddings: &embeddings,
        tokenize: &tokenize,
        labels: &labels,
        is_restored: false,
        seed: SEED,
    };
    let built = registry.build::<Tuning>(name, options.clone(), &mut cx).expect("built");
    let entry = registry.catalog().find(PluginKind::Tuning, name).expect("registered");
    let mode = tuning_options(entry, options).expect("the options of a shipped mode");
    mode.check_words(&labels, &tokenize).expect("words of the vocabulary");
    let stated = stated(mode.tensors(&ModelShape { n_blocks, hidden, kv_size, sites: &sites }).expect("tensors"));
    let tunables = built.tunables().expect("tunables");
    let context = format!("{name} {options} of {}", config.family.name());
    assert_eq!(stated, described(&params, &tunables), "{context}");
    let taken: Vec<Described> = tunables
        .iter()
        .map(|tunable| (tunable.name.clone(), shape(&tunable.tensor), Some(tunable.first_block)))
        .collect();
    let stated_tunables: Vec<Described> = stated.iter().filter(|(.., first)| first.is_some()).cloned().collect();
    assert_eq!(stated_tunables, taken, "{context}");
    assert_eq!(mode.pre_seq_len(), built.pre_seq_len(), "{context}");
    assert_eq!(mode.adapter(), built.starts_as(), "{context}");
    let total: usize = params.iter().map(|(_, tensor)| tensor.numel()).sum();
    assert_eq!(numbers(&stated), total, "{context}");
}

#[test]
fn stated_tensors_of_every_shipped_plugin_are_those_that_are_built() {
    let registry = sepal_cli::plugins().expect("plugins");
    for config in models() {
        for (name, options) in heads() {
            check_head(&registry, &config, name, &options);
        }
        for (name, options) in modes() {
            check_mode(&registry, &config, name, &options);
        }
    }
}

#[test]
fn every_shipped_head_and_tuning_mode_is_compared() {
    let registry = sepal_cli::plugins().expect("plugins");
    for (kind, cases) in [(PluginKind::Head, heads()), (PluginKind::Tuning, modes())] {
        for entry in registry.catalog().entries(kind).filter(|entry| !ENGINE_PLUGINS.contains(&entry.name)) {
            assert!(cases.iter().any(|(name, _)| *name == entry.name), "{} has no case", entry.name);
        }
    }
}

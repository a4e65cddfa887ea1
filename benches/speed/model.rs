//! Models of known shapes with random weights, in memory and as a checkpoint.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use sepal_blocks::{BlockStack, BoxError, Weights};
use sepal_checkpoint::tensor_names;
use sepal_core::{Activation, DType, Family, HostTensor, ModelConfig, Rope, RopeScaling, ScoreRule, Span};
use sepal_nn::init;
use serde_json::json;

/// Random weights of a shape, equal for every block.
pub(crate) struct Random {
    config: ModelConfig,
    drawn: Mutex<HashMap<String, HostTensor>>,
}

impl Random {
    pub(crate) fn new(config: ModelConfig) -> Self {
        Self { config, drawn: Mutex::default() }
    }

    pub(crate) fn stack(&self, span: Span) -> BlockStack {
        BlockStack::load(self, span).expect("a stack")
    }

    pub(crate) fn all_blocks(&self) -> BlockStack {
        self.stack(full_span(&self.config))
    }

    fn shape(&self, layer: &str) -> Vec<usize> {
        let ModelConfig { hidden, n_heads, n_kv_heads, head_dim, ffn, vocab_size, .. } = self.config;
        match layer {
            "q_proj" => vec![n_heads * head_dim, hidden],
            "k_proj" | "v_proj" => vec![n_kv_heads * head_dim, hidden],
            "o_proj" => vec![hidden, n_heads * head_dim],
            "gate_proj" | "up_proj" | "dense_h_to_4h" => vec![ffn, hidden],
            "down_proj" | "dense_4h_to_h" => vec![hidden, ffn],
            "query_key_value" => vec![3 * hidden, hidden],
            "dense" => vec![hidden, hidden],
            "embed_tokens" => vec![vocab_size, hidden],
            _ => vec![hidden],
        }
    }

    fn draw(&self, layer: &str) -> Result<HostTensor, BoxError> {
        let shape = self.shape(layer);
        if shape.len() == 1 {
            return Ok(HostTensor::from_f32(shape.clone(), &vec![1.0; shape[0]])?);
        }
        let shape: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
        Ok(sepal_nn::to_host(&init::normal(&shape, 0.03, &mut init::rng(1, layer))?, DType::F32)?)
    }
}

impl Weights for Random {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn has(&self, _: &str) -> bool {
        false
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, BoxError> {
        let layer = name.rsplit('.').nth(1).unwrap_or(name);
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensor) = drawn.get(layer) {
            return Ok(tensor.clone());
        }
        let tensor = self.draw(layer)?;
        drawn.insert(layer.to_owned(), tensor.clone());
        Ok(tensor)
    }
}

pub(crate) fn full_span(config: &ModelConfig) -> Span {
    Span::new(0, config.n_blocks).expect("a span")
}

pub(crate) fn smollm2() -> ModelConfig {
    ModelConfig {
        n_kv_heads: 3,
        initializer_range: 0.04,
        rope: Some(Rope { theta: 100_000.0, dim: 64, scaling: RopeScaling::Default }),
        max_positions: Some(8192),
        ..ModelConfig::plain(Family::Llama, 30, 576, 9, 1536, 49152)
    }
}

pub(crate) fn llama3_8b() -> ModelConfig {
    ModelConfig { n_kv_heads: 8, ..ModelConfig::plain(Family::Llama, 32, 4096, 32, 14_336, 128_256) }
}

pub(crate) fn bloom(n_blocks: usize, hidden: usize, n_heads: usize) -> ModelConfig {
    let plain = ModelConfig::plain(Family::Bloom, n_blocks, hidden, n_heads, 4 * hidden, 250_880);
    let scores = ScoreRule { alibi: true, ..plain.scores };
    ModelConfig { rope: None, max_positions: Some(2048), scores, activation: Activation::GeluTanh, ..plain }
}

/// Returns the fp32 bytes of one block's linear layers.
pub(crate) fn block_bytes(config: &ModelConfig) -> usize {
    let layers: usize = linear_layers(config).iter().map(|[inner, out]| inner * out).sum();
    4 * layers
}

/// Returns `[in, out]` of a block's linear layers: queries, keys and values, output, MLP.
pub(crate) fn linear_layers(config: &ModelConfig) -> Vec<[usize; 2]> {
    let &ModelConfig { hidden, ffn, .. } = config;
    let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    let mut layers = vec![[hidden, q], [hidden, 2 * kv], [q, hidden], [hidden, ffn], [ffn, hidden]];
    if config.family == Family::Llama {
        layers.push([hidden, ffn]);
    }
    layers
}

/// Writes a checkpoint with SmolLM2's shape in the layout of Hugging Face, for server processes.
pub(crate) fn write_checkpoint(folder: &Path) {
    let random = Random::new(smollm2());
    let ModelConfig { n_blocks, hidden, n_heads, n_kv_heads, ffn, vocab_size, norm_eps, .. } = random.config;
    let config = json!({
        "model_type": "llama", "num_hidden_layers": n_blocks, "hidden_size": hidden, "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads, "intermediate_size": ffn, "vocab_size": vocab_size,
        "rms_norm_eps": norm_eps, "rope_theta": 100_000.0, "max_position_embeddings": 8192,
    });
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join("config.json"), config.to_string()).expect("a configuration");
    let names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
    let mlp = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"];
    let blocks = (0..n_blocks).flat_map(|block_idx| {
        let prefix = tensor_names(random.config.family).block_prefix(block_idx);
        names.into_iter().chain(mlp).map(move |name| format!("{prefix}{name}.weight"))
    });
    let ends = ["model.embed_tokens.weight", "model.norm.weight"].map(str::to_owned);
    let tensors: Vec<(String, HostTensor)> = blocks
        .chain(ends)
        .map(|name| {
            let tensor = random.tensor(&name).expect("numbers");
            (name, tensor)
        })
        .collect();
    let views = tensors.iter().map(|(name, tensor)| {
        let view = TensorView::new(Dtype::F32, tensor.shape().to_vec(), tensor.data()).expect("it fits");
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).expect("weights");
}

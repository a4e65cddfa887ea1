//! The tiny golden models, read by hand so that a fault of the checkpoint reader cannot hide one of the blocks.

use std::collections::HashMap;
use std::path::PathBuf;

use bytes::Bytes;
use safetensors::SafeTensors;
use sepal_blocks::{BlockStack, BoxError, Ends, Weights};
use sepal_core::{DType, Family, HostTensor, ModelConfig, Ragged, Rope, RopeScaling, Span, Want};
use serde_json::Value;
use tch::{Kind, Tensor};

/// Every tiny model: both families, heads in groups or not a power of two, with biases, tied, with scaled rotations.
pub(crate) const MODELS: [&str; 5] = ["llama-gqa", "llama-tied", "qwen2", "bloom", "bloom-six-heads"];

pub(crate) fn goldens() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/goldens"))
}

pub(crate) struct Tiny {
    pub(crate) config: ModelConfig,
    pub(crate) tensors: HashMap<String, HostTensor>,
}

impl Tiny {
    pub(crate) fn open(name: &str) -> Self {
        let folder = goldens().join(format!("tiny-{name}"));
        let config = std::fs::read(folder.join("config.json")).expect("config.json");
        let config: Value = serde_json::from_slice(&config).expect("JSON");
        let bytes = std::fs::read(folder.join("model.safetensors")).expect("model.safetensors");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let host = |view: safetensors::tensor::TensorView<'_>| {
            HostTensor::new(DType::F32, view.shape().to_vec(), Bytes::copy_from_slice(view.data())).expect("fp32")
        };
        let tensors: HashMap<_, _> = file.tensors().into_iter().map(|(name, view)| (name, host(view))).collect();
        Self { config: model_config(&config, &tensors), tensors }
    }

    pub(crate) fn stack(&self, start: usize, end: usize) -> BlockStack {
        BlockStack::load(self, Span::new(start, end).expect("a span")).expect("a stack")
    }

    pub(crate) fn whole(&self) -> BlockStack {
        self.stack(0, self.config.n_blocks)
    }

    pub(crate) fn ends(&self) -> Ends {
        Ends::load(self).expect("the ends")
    }

    /// Numbers of about the size of hidden states, always the same for a seed.
    pub(crate) fn random(&self, shape: &[i64], seed: u64) -> Tensor {
        sepal_nn::init::normal(shape, 0.5, &mut sepal_nn::init::rng(seed, "test")).expect("numbers")
    }

    /// A prefix and rows.
    pub(crate) fn hidden(&self, prefix_len: usize, rows: &Ragged, seed: u64) -> Tensor {
        self.random(&[(prefix_len + rows.n_tokens()) as i64, self.config.hidden as i64], seed)
    }
}

impl Weights for Tiny {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, BoxError> {
        self.tensors.get(name).cloned().ok_or_else(|| format!("no tensor `{name}`").into())
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn block_prefix(&self, block_idx: usize) -> String {
        match self.config.family {
            Family::Llama => format!("model.layers.{block_idx}."),
            Family::Bloom => format!("transformer.h.{block_idx}."),
        }
    }
}

fn model_config(json: &Value, tensors: &HashMap<String, HostTensor>) -> ModelConfig {
    let size = |keys: [&str; 2]| keys.iter().find_map(|key| json[key].as_u64()).map(|size| size as usize);
    let family = if json["model_type"] == "bloom" { Family::Bloom } else { Family::Llama };
    let hidden = size(["hidden_size", "n_embed"]).expect("hidden_size");
    let n_heads = size(["num_attention_heads", "n_head"]).expect("num_attention_heads");
    let ffn = match family {
        Family::Llama => size(["intermediate_size", "-"]).expect("intermediate_size"),
        Family::Bloom => 4 * hidden,
    };
    let eps = json["rms_norm_eps"].as_f64().or(json["layer_norm_epsilon"].as_f64());
    let embedding = if family == Family::Bloom { "transformer.word_embeddings" } else { "model.embed_tokens" };
    ModelConfig {
        family,
        n_blocks: size(["num_hidden_layers", "n_layer"]).expect("num_hidden_layers"),
        hidden,
        n_heads,
        n_kv_heads: size(["num_key_value_heads", "-"]).unwrap_or(n_heads),
        head_dim: size(["head_dim", "-"]).unwrap_or(hidden / n_heads),
        ffn,
        vocab_size: tensors[&format!("{embedding}.weight")].shape()[0],
        norm_eps: eps.expect("an epsilon"),
        initializer_range: 0.02,
        rope: (family == Family::Llama).then(|| rope(json)),
        max_positions: None,
    }
}

fn rope(json: &Value) -> Rope {
    let new = &json["rope_parameters"];
    let theta = new["rope_theta"].as_f64().or(json["rope_theta"].as_f64()).expect("rope_theta");
    let old = &json["rope_scaling"];
    let scaling = if old["rope_type"] == "llama3" {
        RopeScaling::Llama3 {
            factor: old["factor"].as_f64().expect("factor"),
            low_freq_factor: old["low_freq_factor"].as_f64().expect("low_freq_factor"),
            high_freq_factor: old["high_freq_factor"].as_f64().expect("high_freq_factor"),
            original_max_positions: old["original_max_position_embeddings"].as_u64().expect("positions") as usize,
        }
    } else {
        assert_eq!(new["rope_type"], "default");
        RopeScaling::Default
    };
    Rope { theta, scaling }
}

/// One forward and the gradients, as host numbers, of a sum over the output with fixed weights.
pub(crate) struct Outcome {
    pub(crate) output: Tensor,
    pub(crate) grad_hidden: Tensor,
    pub(crate) grad_deep: Option<Tensor>,
}

/// Runs `forward` on leaves and goes back from its output weighted by `pull`.
pub(crate) fn outcome(
    hidden: &Tensor,
    deep: Option<&Tensor>,
    pull: &Tensor,
    forward: impl Fn(&Tensor, Option<&Tensor>) -> Tensor,
) -> Outcome {
    let hidden = hidden.detach().copy().set_requires_grad(true);
    let deep = deep.map(|deep| deep.detach().copy().set_requires_grad(true));
    let output = forward(&hidden, deep.as_ref());
    (&output * pull).sum(Kind::Float).backward();
    Outcome { output: output.detach(), grad_hidden: hidden.grad(), grad_deep: deep.map(|deep| deep.grad()) }
}

impl Outcome {
    pub(crate) fn assert_close(&self, other: &Outcome, what: &str) {
        assert_close(&self.output, &other.output, 1e-5, &format!("{what}: output"));
        assert_close(&self.grad_hidden, &other.grad_hidden, 1e-5, &format!("{what}: gradient of hidden states"));
        match (&self.grad_deep, &other.grad_deep) {
            (Some(one), Some(two)) => assert_close(one, two, 1e-5, &format!("{what}: gradient of deep prompts")),
            (one, two) => assert_eq!(one.is_some(), two.is_some(), "{what}: gradient of deep prompts"),
        }
    }
}

/// Within `tolerance` of the largest entry of `expected`, or of 1 if that is less.
pub(crate) fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}: shape");
    if expected.numel() == 0 {
        return;
    }
    let largest = f64::try_from(expected.abs().max()).expect("a number");
    let off = f64::try_from((found - expected).abs().max()).expect("a number");
    assert!(off.is_finite() && off <= tolerance * largest, "{what}: off by {off}, the largest entry is {largest}");
}

/// The last token of each row of `output [prefix_len + n_tokens, hidden]`.
pub(crate) fn last_of_rows(output: &Tensor, prefix_len: usize, rows: &Ragged) -> Tensor {
    let last: Vec<i64> = (0..rows.len()).map(|row| (prefix_len + rows.range(row).end - 1) as i64).collect();
    output.index_select(0, &Tensor::from_slice(&last))
}

/// The stack on hidden states, without deep prompts.
pub(crate) fn forward(stack: &BlockStack, hidden: &Tensor, prefix_len: usize, rows: &Ragged, want: Want) -> Tensor {
    stack.forward(hidden, prefix_len, rows, None, want).expect("a forward")
}

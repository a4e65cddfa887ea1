//! `config.json` of the HF layout, one file for each way in which families write it.

mod bloom;
mod class;
mod falcon;
mod gemma;
mod gpt2;
mod gpt_neox;
mod llama;
mod opt;
mod phi3;
mod refused;
mod rope;
mod stablelm;
#[cfg(test)]
mod tests;

use std::path::Path;

use sepal_core::{Activation, Family, ModelConfig, Rope, Window};
use serde_json::{Map, Value};

use self::class::Class;
pub(crate) use self::refused::weights as check_weights;
use self::rope::Rotary;
use crate::error::OpenError;
use crate::keys::Keys;

/// The model's shape. A key that transformers has a default for may be absent, whatever key of two counts for it counts
/// here, and a key that it does not read is not read.
pub(crate) fn model_config(path: &Path, json: &Map<String, Value>) -> Result<ModelConfig, OpenError> {
    let keys = Keys::new(path, json);
    let model_type = keys.text("model_type")?;
    if model_type == "gemma3" {
        return Err(keys.unsupported("model_type", "gemma3_text: of a Gemma 3 that sees pictures take a GGUF file"));
    }
    let Some(family) = Family::named(model_type) else {
        return Err(keys.unsupported("model_type", names_of(&Family::ALL)));
    };
    refused::keys(keys)?;
    match family {
        Family::Bloom => bloom::read(keys),
        Family::Falcon => falcon::read(keys),
        Family::Gemma | Family::Gemma2 | Family::Gemma3 => gemma::read(keys, family),
        Family::Gpt2 => gpt2::read(keys),
        Family::GptNeox => gpt_neox::read(keys),
        Family::Llama | Family::Mistral | Family::Mixtral | Family::Qwen2 | Family::Qwen3 => llama::read(keys, family),
        Family::Opt => opt::read(keys),
        Family::Phi3 => phi3::read(keys),
        Family::Stablelm => stablelm::read(keys),
    }
}

/// `a, b and c`
pub(crate) fn names_of(families: &[Family]) -> String {
    let names: Vec<&str> = families.iter().map(|family| family.name()).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

/// The keys that most families share, by their usual names, on a model without peculiarities.
fn usual(keys: Keys<'_>, family: Family) -> Result<ModelConfig, OpenError> {
    let class = Class::of(family);
    let hidden = keys.count_of(&["hidden_size"], class.hidden)?;
    let n_heads = keys.count_of(&["num_attention_heads"], class.n_heads)?;
    let n_blocks = keys.count_of(&["num_hidden_layers"], class.n_blocks)?;
    let ffn = keys.count_of(&["intermediate_size"], class.ffn.unwrap_or(4 * hidden))?;
    let vocab_size = keys.count_of(&["vocab_size"], class.vocab_size)?;
    Ok(ModelConfig {
        initializer_range: initializer_range(keys)?,
        max_positions: keys.optional_count("max_position_embeddings")?,
        ..ModelConfig::plain(family, n_blocks, hidden, n_heads, ffn, vocab_size)
    })
}

/// The epsilon of norms under `key`.
fn eps(keys: Keys<'_>, key: &str, family: Family) -> Result<f64, OpenError> {
    Ok(keys.optional_positive(key)?.unwrap_or(Class::of(family).norm_eps))
}

fn initializer_range(keys: Keys<'_>) -> Result<f64, OpenError> {
    Ok(keys.optional_positive("initializer_range")?.unwrap_or(0.02))
}

/// The activation under `key`, one of `known`; `default` if nothing is said.
fn activation(keys: Keys<'_>, key: &str, known: &[Activation], default: Activation) -> Result<Activation, OpenError> {
    let found = match keys.optional_text(key)? {
        None => return Ok(default),
        Some("silu" | "swish") => Some(Activation::Silu),
        Some("gelu" | "gelu_python") => Some(Activation::Gelu),
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" | "gelu_accurate") => {
            Some(Activation::GeluTanh)
        }
        Some("relu") => Some(Activation::Relu),
        Some(_) => None,
    };
    let name = |activation: &Activation| match activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_new",
        Activation::Relu => "relu",
    };
    let supported = || known.iter().map(name).collect::<Vec<_>>().join(" or ");
    found.filter(|found| known.contains(found)).ok_or_else(|| keys.unsupported(key, supported()))
}

/// Refuses `key` if it is there and something else than `only`.
fn only(keys: Keys<'_>, key: &str, only: bool) -> Result<(), OpenError> {
    if keys.get(key).is_some() && keys.flag(key)? != only {
        return Err(keys.unsupported(key, only.to_string()));
    }
    Ok(())
}

/// The heads of keys and values, which share the query heads evenly.
fn n_kv_heads(keys: Keys<'_>, config: &ModelConfig) -> Result<usize, OpenError> {
    let (key, n_heads) = ("num_key_value_heads", config.n_heads);
    match keys.count_unless_null(key, Class::of(config.family).n_kv_heads.unwrap_or(n_heads))?.unwrap_or(n_heads) {
        n_kv_heads if n_heads.is_multiple_of(n_kv_heads) => Ok(n_kv_heads),
        n_kv_heads => {
            Err(keys.wrong(key, format!("a divisor of num_attention_heads, {n_heads}; it comes to {n_kv_heads}")))
        }
    }
}

/// The size of a head: `head_dim`, or that of the class, or what makes up the hidden state; even, because pairs turn.
fn head_dim(keys: Keys<'_>, config: &ModelConfig) -> Result<usize, OpenError> {
    let ModelConfig { hidden, n_heads, .. } = *config;
    let stated = keys.optional_count("head_dim")?.or(Class::of(config.family).head_dim);
    if stated.is_none() && !hidden.is_multiple_of(n_heads) {
        return Err(keys.wrong("num_attention_heads", format!("a divisor of hidden_size, {hidden}")));
    }
    match stated.unwrap_or(hidden / n_heads) {
        even if even.is_multiple_of(2) => Ok(even),
        odd => Err(keys.wrong("head_dim", format!("an even number; it comes to {odd}"))),
    }
}

/// The size of a head of a family that has no other than a share of the hidden state.
fn share_of_hidden(keys: Keys<'_>, config: &ModelConfig) -> Result<usize, OpenError> {
    let (head_dim, share) = (head_dim(keys, config)?, config.hidden / config.n_heads);
    if head_dim == share { Ok(share) } else { Err(keys.unsupported("head_dim", share.to_string())) }
}

/// The blocks that `layer_types` gives a window, if it is there.
fn layer_types(keys: Keys<'_>, n_blocks: usize) -> Result<Option<Vec<bool>>, OpenError> {
    let Some(kinds) = keys.get("layer_types") else { return Ok(None) };
    let has_window = |kind: &Value| match kind.as_str() {
        Some("full_attention" | "attention") => Some(false),
        Some("sliding_attention") => Some(true),
        _ => None,
    };
    let blocks: Option<Vec<bool>> = kinds.as_array().and_then(|kinds| kinds.iter().map(has_window).collect());
    match blocks.filter(|blocks| blocks.len() == n_blocks) {
        Some(blocks) => Ok(Some(blocks)),
        None => Err(keys.wrong("layer_types", "full_attention or sliding_attention for each block")),
    }
}

/// A window of `size` positions in `blocks`. Nothing if no block has one, or if it hides nothing on any sequence that the
/// model takes.
fn window(
    keys: Keys<'_>,
    config: &ModelConfig,
    size: Option<usize>,
    blocks: Vec<bool>,
) -> Result<Option<Window>, OpenError> {
    match size {
        _ if !blocks.contains(&true) => Ok(None),
        None => Err(keys.missing("sliding_window")),
        Some(size) => {
            let hides = config.max_positions.is_none_or(|positions| size < positions);
            Ok(hides.then_some(Window { size, blocks, rope: None }))
        }
    }
}

/// The rotary positions of all blocks.
fn rotary(keys: Keys<'_>, config: &ModelConfig) -> Result<(Rope, Option<usize>), OpenError> {
    let &ModelConfig { family, head_dim, max_positions, .. } = config;
    rope::read(keys, Rotary { family, head_dim, max_positions })
}

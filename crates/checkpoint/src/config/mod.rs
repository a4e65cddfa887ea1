//! `config.json` of the HF layout, one file for each way in which families write it.

mod bloom;
mod falcon;
mod gemma;
mod gpt2;
mod gpt_neox;
mod llama;
mod opt;
mod phi3;
mod rope;
mod stablelm;
#[cfg(test)]
mod tests;

use std::path::Path;

use sepal_core::{Activation, Family, ModelConfig, Rope, Window};
use serde_json::{Map, Value};

use crate::error::OpenError;
use crate::keys::Keys;

/// The model's shape. A key that transformers has a default for may be absent.
pub(crate) fn model_config(path: &Path, json: &Map<String, Value>) -> Result<ModelConfig, OpenError> {
    let keys = Keys::new(path, json);
    let model_type = keys.text("model_type")?;
    if model_type == "gemma3" {
        return Err(keys.unsupported("model_type", "gemma3_text: of a Gemma 3 that sees pictures take a GGUF file"));
    }
    let Some(family) = Family::named(model_type) else {
        return Err(keys.unsupported("model_type", names_of(&Family::ALL)));
    };
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
    let (hidden, n_heads) = (keys.count("hidden_size")?, keys.count("num_attention_heads")?);
    let n_blocks = keys.count("num_hidden_layers")?;
    let ffn = keys.count("intermediate_size")?;
    let plain = ModelConfig::plain(family, n_blocks, hidden, n_heads, ffn, keys.count("vocab_size")?);
    Ok(ModelConfig {
        initializer_range: initializer_range(keys)?,
        max_positions: keys.optional_count("max_position_embeddings")?,
        ..plain
    })
}

fn initializer_range(keys: Keys<'_>) -> Result<f64, OpenError> {
    Ok(keys.optional_positive("initializer_range")?.unwrap_or(0.02))
}

/// The activation under `key`, one of `known`; `default` if nothing is said.
fn activation(keys: Keys<'_>, key: &str, known: &[Activation], default: Activation) -> Result<Activation, OpenError> {
    let found = match keys.optional_text(key)? {
        None => return Ok(default),
        Some("silu" | "swish") => Some(Activation::Silu),
        Some("gelu") => Some(Activation::Gelu),
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Some(Activation::GeluTanh),
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

/// The heads of keys and values under `key`, which share the query heads evenly.
fn n_kv_heads(keys: Keys<'_>, key: &str, n_heads: usize, default: Option<usize>) -> Result<usize, OpenError> {
    let Some(n_kv_heads) = keys.optional_count(key)?.or(default) else { return Err(keys.missing(key)) };
    if n_heads.is_multiple_of(n_kv_heads) {
        Ok(n_kv_heads)
    } else {
        Err(keys.wrong(key, format!("a divisor of num_attention_heads, {n_heads}")))
    }
}

/// The size of a head: `head_dim`, or `default`, or what makes up the hidden state; even, because pairs turn.
fn head_dim(keys: Keys<'_>, config: &ModelConfig, default: Option<usize>) -> Result<usize, OpenError> {
    let ModelConfig { hidden, n_heads, .. } = *config;
    let stated = keys.optional_count("head_dim")?.or(default);
    if stated.is_none() && !hidden.is_multiple_of(n_heads) {
        return Err(keys.wrong("num_attention_heads", format!("a divisor of hidden_size, {hidden}")));
    }
    match stated.unwrap_or(hidden / n_heads) {
        even if even.is_multiple_of(2) => Ok(even),
        odd => Err(keys.wrong("head_dim", format!("an even number; it comes to {odd}"))),
    }
}

/// A window of `size` positions in the blocks that `has_window` says, or in those that `layer_types` names. Nothing if
/// no block has one, or if it hides nothing on any sequence that the model takes.
fn window(
    keys: Keys<'_>,
    config: &ModelConfig,
    size: Option<usize>,
    has_window: impl Fn(usize) -> bool,
) -> Result<Option<Window>, OpenError> {
    let blocks: Vec<bool> = match keys.get("layer_types").and_then(Value::as_array) {
        None => (0..config.n_blocks).map(has_window).collect(),
        Some(kinds) => {
            let kind = |kind: &Value| match kind.as_str() {
                Some("full_attention") => Some(false),
                Some("sliding_attention") => Some(true),
                _ => None,
            };
            let read: Option<Vec<bool>> = kinds.iter().map(kind).collect();
            let expected = "full_attention or sliding_attention for each block";
            read.filter(|read| read.len() == config.n_blocks).ok_or_else(|| keys.wrong("layer_types", expected))?
        }
    };
    let is_there = blocks.contains(&true);
    match size {
        Some(size) => {
            let hides = config.max_positions.is_none_or(|positions| size < positions);
            Ok((is_there && hides).then_some(Window { size, blocks, rope: None }))
        }
        None if is_there && keys.has("layer_types") => Err(keys.missing("sliding_window")),
        None => Ok(None),
    }
}

/// The rotary positions, with as many numbers of a head turning as `partial_rotary_factor` or `share` says.
fn rotary(keys: Keys<'_>, config: &ModelConfig, share: f64) -> Result<(Rope, Option<usize>), OpenError> {
    rope::read(keys, config.head_dim, config.max_positions, share)
}

//! Keys of `config.json` in the HF layout that several families share.

mod refused;
pub(crate) mod rope;

use sepal_core::{Activation, ModelConfig, ScoreRule, Window};
use serde_json::Value;

pub(crate) use self::refused::{keys as check_keys, ruled_out_biases, weights as check_weights};
use self::rope::Rotary;
use crate::error::OpenError;
use crate::family::FamilySpec;
use crate::keys::Keys;

/// Reads sizes, epsilon and activation under the family's keys.
pub(crate) fn sizes(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let (names, defaults) = (&spec.keys, &spec.defaults);
    let hidden = keys.hidden_of(names.hidden, defaults.hidden)?;
    let n_heads = keys.count_of(names.n_heads, defaults.n_heads)?;
    let n_blocks = keys.blocks_of(names.n_blocks, defaults.n_blocks)?;
    let ffn = match (names.ffn, defaults.ffn) {
        (Some(key), Some(default)) => keys.count_of(&[key], default)?,
        (Some(key), None) => keys.optional_count(key)?.unwrap_or(4 * hidden),
        (None, _) => 4 * hidden,
    };
    let vocab_size = keys.count_of(&["vocab_size"], defaults.vocab_size)?;
    let plain = spec.plain(n_blocks, hidden, n_heads, ffn, vocab_size);
    Ok(ModelConfig {
        norm_eps: match names.norm_eps {
            Some(key) => keys.optional_positive(key)?.unwrap_or(defaults.norm_eps),
            None => plain.norm_eps,
        },
        initializer_range: keys.positive_of(names.initializer_range)?.unwrap_or(plain.initializer_range),
        activation: match names.activation {
            Some(key) => activation(keys, key, spec.activations)?,
            None => plain.activation,
        },
        ..plain
    })
}

/// The activation under `key`, one of `known`; the first of them by default.
pub(crate) fn activation(keys: Keys<'_>, key: &str, known: &[Activation]) -> Result<Activation, OpenError> {
    let found = match keys.optional_text(key)? {
        None => return Ok(known[0]),
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
        Activation::ClampedSwiglu { .. } => "swiglu",
    };
    let supported = || known.iter().map(name).collect::<Vec<_>>().join(" or ");
    found.filter(|found| known.contains(found)).ok_or_else(|| keys.unsupported(key, supported()))
}

/// Refuses `key` if it is present with another value than `only`.
pub(crate) fn only(keys: Keys<'_>, key: &str, only: bool) -> Result<(), OpenError> {
    if keys.get(key).is_some() && keys.flag(key)? != only {
        return Err(keys.unsupported(key, only.to_string()));
    }
    Ok(())
}

/// Number of key heads, a divisor of the number of query heads.
pub(crate) fn n_kv_heads(keys: Keys<'_>, spec: &FamilySpec, config: &ModelConfig) -> Result<usize, OpenError> {
    let (key, n_heads) = ("num_key_value_heads", config.n_heads);
    match keys.count_unless_null(key, spec.defaults.n_kv_heads.unwrap_or(n_heads))?.unwrap_or(n_heads) {
        n_kv_heads if n_heads.is_multiple_of(n_kv_heads) => Ok(n_kv_heads),
        n_kv_heads => {
            Err(keys.wrong(key, format!("a divisor of num_attention_heads, {n_heads}; it comes to {n_kv_heads}")))
        }
    }
}

/// Size of a head: stated, or that of the class, or an equal part of the hidden size; even, because pairs rotate.
pub(crate) fn head_dim(keys: Keys<'_>, spec: &FamilySpec, config: &ModelConfig) -> Result<usize, OpenError> {
    let stated = keys.optional_count("head_dim")?.or(spec.defaults.head_dim);
    if stated.is_none() {
        heads_divide_hidden(keys, spec, config)?;
    }
    match stated.unwrap_or(config.hidden / config.n_heads) {
        even if even.is_multiple_of(2) => Ok(even),
        odd => Err(keys.wrong("head_dim", format!("an even number; it comes to {odd}"))),
    }
}

/// Size of a head, which must be an equal part of the hidden size.
pub(crate) fn equal_head_dim(keys: Keys<'_>, spec: &FamilySpec, config: &ModelConfig) -> Result<usize, OpenError> {
    let (head_dim, part) = (head_dim(keys, spec, config)?, config.hidden / config.n_heads);
    if head_dim == part { Ok(part) } else { Err(keys.unsupported("head_dim", part.to_string())) }
}

/// Error if heads do not divide the hidden size evenly.
pub(crate) fn heads_divide_hidden(keys: Keys<'_>, spec: &FamilySpec, config: &ModelConfig) -> Result<(), OpenError> {
    let (key, hidden) = (spec.keys.n_heads.last().unwrap_or(&"num_attention_heads"), config.hidden);
    if hidden.is_multiple_of(config.n_heads) {
        return Ok(());
    }
    Err(keys.wrong(key, format!("a divisor of the hidden size, {hidden}")))
}

/// For each block, true if `layer_types` gives it a window; `None` without the key.
pub(crate) fn layer_types(keys: Keys<'_>, n_blocks: usize) -> Result<Option<Vec<bool>>, OpenError> {
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

/// A window of `size` positions in `blocks`; `None` if no block has it, or if it hides nothing in `max_positions`.
pub(crate) fn window(
    keys: Keys<'_>,
    max_positions: Option<usize>,
    size: Option<usize>,
    blocks: Vec<bool>,
) -> Result<Option<Window>, OpenError> {
    match size {
        _ if !blocks.contains(&true) => Ok(None),
        None => Err(keys.missing("sliding_window")),
        Some(size) => {
            let hides = max_positions.is_none_or(|positions| size < positions);
            Ok(hides.then_some(Window { size, blocks, rope: None }))
        }
    }
}

/// The model with a [`window`].
pub(crate) fn with_window(
    keys: Keys<'_>,
    config: ModelConfig,
    size: Option<usize>,
    blocks: Vec<bool>,
) -> Result<ModelConfig, OpenError> {
    let window = window(keys, config.max_positions, size, blocks)?;
    Ok(ModelConfig { scores: ScoreRule { window, ..config.scores }, ..config })
}

/// The model with the rotary positions of all blocks, and its longest sequence, which is by default as it was.
pub(crate) fn rotary(keys: Keys<'_>, spec: &FamilySpec, config: ModelConfig) -> Result<ModelConfig, OpenError> {
    let max_positions = keys.optional_count("max_position_embeddings")?.or(config.max_positions);
    let (rope, max_positions) = rope::read(keys, &Rotary { spec, head_dim: config.head_dim, max_positions })?;
    Ok(ModelConfig { rope: Some(rope), max_positions, ..config })
}

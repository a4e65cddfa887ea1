//! The shape of a model by GGUF metadata.

use std::f64::consts::PI;

use sepal_core::{Family, ModelConfig, Rope, RopeScaling};

use super::Architecture;
use crate::error::OpenError;
use crate::keys::Keys;
use crate::store::Store;

const EMBEDDING: &str = "token_embd.weight";
const ROPE_FREQS: &str = "rope_freqs.weight";

/// Reads the architecture's keys. `store` has the tensors by the names of the file.
pub(super) fn model_config(
    keys: Keys<'_>,
    architecture: Architecture,
    store: &Store,
) -> Result<ModelConfig, OpenError> {
    let file = keys;
    let keys = keys.with_prefix(architecture.prefix());
    let (hidden, n_heads) = (keys.count("embedding_length")?, keys.count("attention.head_count")?);
    let head_dim = head_dim(keys, hidden, n_heads)?;
    let n_kv_heads = keys.optional_count("attention.head_count_kv")?.unwrap_or(n_heads);
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(keys.wrong("attention.head_count_kv", format!("a divisor of attention.head_count, {n_heads}")));
    }
    let max_positions = keys.optional_count("context_length")?;
    let (family, norm_key, rope) = match architecture {
        Architecture::Bloom => (Family::Bloom, "attention.layer_norm_epsilon", None),
        Architecture::Llama | Architecture::Qwen2 => {
            let rope = rope(keys, head_dim, max_positions, store)?;
            (Family::Llama, "attention.layer_norm_rms_epsilon", Some(rope))
        }
    };
    dense_and_full(keys, max_positions)?;
    Ok(ModelConfig {
        family,
        n_blocks: keys.count("block_count")?,
        hidden,
        n_heads,
        n_kv_heads,
        head_dim,
        ffn: keys.count("feed_forward_length")?,
        vocab_size: vocab_size(file, architecture, store)?,
        norm_eps: keys.positive(norm_key)?,
        initializer_range: 0.02, // GGUF does not state it.
        rope,
        max_positions,
    })
}

fn head_dim(keys: Keys<'_>, hidden: usize, n_heads: usize) -> Result<usize, OpenError> {
    let head_dim = match keys.optional_count("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(n_heads) => hidden / n_heads,
        None => return Err(keys.wrong("attention.head_count", format!("a divisor of embedding_length, {hidden}"))),
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if keys.optional_count(key)?.is_some_and(|length| length != head_dim) {
            return Err(keys.unsupported(key, format!("the size of a head, {head_dim}")));
        }
    }
    Ok(head_dim)
}

/// Refuses mixtures of experts and windows that would hide positions from each other.
fn dense_and_full(keys: Keys<'_>, max_positions: Option<usize>) -> Result<(), OpenError> {
    if keys.get("expert_count").is_some_and(|count| count != 0) {
        return Err(keys.unsupported("expert_count", "0"));
    }
    match keys.get("attention.sliding_window").and_then(serde_json::Value::as_u64) {
        Some(window) if window > 0 && max_positions.is_none_or(|positions| window < positions as u64) => {
            Err(keys.unsupported("attention.sliding_window", "none, or at least context_length"))
        }
        _ => Ok(()),
    }
}

/// The rows of the embedding matrix; without it, what the metadata says.
fn vocab_size(keys: Keys<'_>, architecture: Architecture, store: &Store) -> Result<usize, OpenError> {
    match store.tensors.get(EMBEDDING).and_then(|embedding| embedding.shape.first()) {
        Some(&rows) => Ok(rows),
        None => keys.with_prefix(architecture.prefix()).count("vocab_size"),
    }
}

fn rope(keys: Keys<'_>, head_dim: usize, max_positions: Option<usize>, store: &Store) -> Result<Rope, OpenError> {
    if !head_dim.is_multiple_of(2) {
        return Err(keys.wrong("attention.key_length", format!("an even number; it comes to {head_dim}")));
    }
    let theta = keys.optional_positive("rope.freq_base")?.unwrap_or(10_000.0);
    let scaling = rope_scaling(keys, max_positions)?;
    let Some(stored) = store.tensors.get(ROPE_FREQS) else {
        return Ok(Rope { theta, scaling });
    };
    let refused = || keys.unsupported(ROPE_FREQS, "the factors of Llama 3.1, without another scaling");
    let factors = store.read(ROPE_FREQS, stored).map_err(|_| refused())?.to_f32();
    match scaling {
        RopeScaling::Default => {
            let scaling = llama3(theta, head_dim, &factors).ok_or_else(refused)?;
            Ok(Rope { theta, scaling })
        }
        _ => Err(refused()),
    }
}

fn rope_scaling(keys: Keys<'_>, max_positions: Option<usize>) -> Result<RopeScaling, OpenError> {
    let factor = keys.optional_positive("rope.scaling.factor")?;
    let factor = factor.map_or_else(|| keys.optional_positive("rope.scale_linear"), |factor| Ok(Some(factor)))?;
    for key in ["rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"] {
        if keys.optional_positive(key)?.is_some_and(|factor| factor != 1.0) {
            return Err(keys.unsupported(key, "1"));
        }
    }
    let needed = |factor: Option<f64>| factor.ok_or_else(|| keys.missing("rope.scaling.factor"));
    match keys.optional_text("rope.scaling.type")? {
        None => Ok(factor
            .filter(|&factor| factor != 1.0)
            .map_or(RopeScaling::Default, |factor| RopeScaling::Linear { factor })),
        Some("none") => Ok(RopeScaling::Default),
        Some("linear") => Ok(RopeScaling::Linear { factor: needed(factor)? }),
        Some("yarn") => {
            let original = keys.optional_count("rope.scaling.original_context_length")?.or(max_positions);
            Ok(RopeScaling::Yarn {
                factor: needed(factor)?,
                beta_fast: keys.optional_positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.optional_positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                original_max_positions: original.ok_or_else(|| keys.missing("rope.scaling.original_context_length"))?,
                attention_factor: None,
            })
        }
        Some(_) => Err(keys.unsupported("rope.scaling.type", "none, linear and yarn")),
    }
}

/// The scaling whose factors these are. A file states them for each wavelength instead of the four
/// numbers that they come from; every Llama has the same three of those, and the fourth is the
/// factor of the longest wavelength. Nothing if the factors are not Llama's.
fn llama3(theta: f64, head_dim: usize, factors: &[f32]) -> Option<RopeScaling> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const ORIGINAL: usize = 8192;
    let factor = f64::from(*factors.last()?);
    if factors.iter().all(|&factor| factor == 1.0) {
        return Some(RopeScaling::Default);
    }
    let expected = |at: usize| {
        let wavelength = 2.0 * PI * theta.powf(2.0 * at as f64 / head_dim as f64);
        let smooth = ((ORIGINAL as f64 / wavelength - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / factor + smooth)
    };
    let same = |(at, &found): (usize, &f32)| (f64::from(found) / expected(at) - 1.0).abs() < 1e-3;
    let llamas = factors.len() == head_dim / 2 && factors.iter().enumerate().all(same);
    llamas.then_some(RopeScaling::Llama3 {
        factor,
        low_freq_factor: LOW,
        high_freq_factor: HIGH,
        original_max_positions: ORIGINAL,
    })
}

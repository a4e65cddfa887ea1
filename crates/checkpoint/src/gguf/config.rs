//! The shape of a model from GGUF metadata.

use sepal_core::{Experts, ModelConfig, Rope, RopeScaling, ScoreRule, Window};
use serde_json::Value;

use crate::error::OpenError;
use crate::families;
use crate::family::{FamilySpec, GgufSpec, Parallel};
use crate::keys::Keys;
use crate::store::Store;

const EMBEDDING: &str = "token_embd.weight";
const ROPE_FREQS: &str = "rope_freqs.weight";
const SHORT_FACTORS: &str = "rope_factors_short.weight";

/// A model by its metadata, and the layout of its file.
pub(super) struct GgufModel {
    pub(super) config: ModelConfig,
    pub(super) family: &'static FamilySpec,
    pub(super) gguf: &'static GgufSpec,
}

/// Reads the architecture's keys. `store` has the tensors by the names of the file.
pub(super) fn read_model(file: Keys<'_>, store: &Store) -> Result<GgufModel, OpenError> {
    let architecture = file.text("general.architecture")?;
    let prefix = format!("{architecture}.");
    let keys = file.with_prefix(&prefix);
    let candidates = families::of_architecture(architecture);
    let Some(&first) = candidates.first() else {
        return Err(file.unsupported("general.architecture", families::architectures().join(", ")));
    };
    refuse_scales(keys)?;
    let experts = experts(keys)?;
    let has_experts = experts.is_some();
    let (family, gguf) = candidates.into_iter().find(|(_, gguf)| gguf.has_experts == has_experts).unwrap_or(first);
    let (hidden, n_heads) = (keys.count("embedding_length")?, keys.count("attention.head_count")?);
    let (n_blocks, ffn) = (keys.count("block_count")?, keys.count("feed_forward_length")?);
    let plain = family.plain(n_blocks, hidden, n_heads, ffn, vocab_size(keys, store)?);
    let n_kv_heads = keys.optional_count("attention.head_count_kv")?.unwrap_or(n_heads);
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(keys.wrong("attention.head_count_kv", format!("a divisor of attention.head_count, {n_heads}")));
    }
    let mut config = ModelConfig {
        n_kv_heads,
        head_dim: head_dim(keys, hidden, n_heads)?,
        norm_eps: keys.positive(gguf.norm_eps)?,
        max_positions: keys.optional_count("context_length")?,
        is_parallel: match gguf.parallel {
            Parallel::Never => false,
            Parallel::Always => true,
            Parallel::UnlessKey(key) => keys.optional_flag(key)?.unwrap_or(true),
            Parallel::WithoutTensor(name) => !store.tensors.contains_key(name),
        },
        experts,
        ..plain
    };
    if config.rope.is_some() {
        config.rope = Some(rope(keys, store, &mut config)?);
    }
    if config.scores.alibi {
        // ALiBi has no longest sequence.
        config.max_positions = None;
    }
    config.scores = scores(keys, gguf, &config)?;
    Ok(GgufModel { config, family, gguf })
}

/// Refuses factors that no supported architecture has.
fn refuse_scales(keys: Keys<'_>) -> Result<(), OpenError> {
    let scales = [
        ("attention.scale", 0.0),
        ("attention.clamp_kqv", 0.0),
        ("embedding_scale", 1.0),
        ("residual_scale", 1.0),
        ("rope.scaling.yarn_log_multiplier", 0.0),
    ];
    for (key, neutral) in scales {
        if keys.get(key).and_then(Value::as_f64).is_some_and(|scale| scale != 0.0 && scale != neutral) {
            return Err(keys.unsupported(key, "none"));
        }
    }
    match keys.optional_flag("attention.causal")? {
        Some(false) => Err(keys.unsupported("attention.causal", "true")),
        _ => Ok(()),
    }
}

fn head_dim(keys: Keys<'_>, hidden: usize, n_heads: usize) -> Result<usize, OpenError> {
    let head_dim = match keys.optional_count("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(n_heads) => hidden / n_heads,
        None => return Err(keys.wrong("attention.head_count", format!("a divisor of embedding_length, {hidden}"))),
    };
    match keys.optional_count("attention.value_length")? {
        Some(length) if length != head_dim => {
            Err(keys.unsupported("attention.value_length", format!("the size of a head, {head_dim}")))
        }
        _ => Ok(head_dim),
    }
}

fn experts(keys: Keys<'_>) -> Result<Option<Experts>, OpenError> {
    match keys.optional_index("expert_count")? {
        None | Some(0) => Ok(None),
        Some(count) => {
            let per_token = keys.count("expert_used_count")?;
            if per_token > count {
                return Err(keys.wrong("expert_used_count", format!("at most expert_count, {count}")));
            }
            Ok(Some(Experts::new(count, per_token)))
        }
    }
}

/// Number of rows of the embedding matrix; the stated number in files without the matrix.
fn vocab_size(keys: Keys<'_>, store: &Store) -> Result<usize, OpenError> {
    match store.tensors.get(EMBEDDING).and_then(|embedding| embedding.shape.first()) {
        Some(&rows) => Ok(rows),
        None => keys.count("vocab_size"),
    }
}

/// Scores as the file states them, with the defaults of llama.cpp.
fn scores(keys: Keys<'_>, gguf: &GgufSpec, config: &ModelConfig) -> Result<ScoreRule, OpenError> {
    // The first files of Gemma 2 state neither cap nor window.
    let cap = match gguf.score_cap {
        Some(default) => Some(keys.optional_positive("attn_logit_softcapping")?.unwrap_or(default)),
        None => None,
    };
    let is_scaled_by_hidden = gguf.n_blocks_scaled_by_hidden == Some(config.n_blocks);
    let scale = is_scaled_by_hidden.then(|| ((config.hidden / config.n_heads) as f64).powf(-0.5));
    Ok(ScoreRule { cap, scale, window: window(keys, gguf, config)?, ..config.scores.clone() })
}

fn window(keys: Keys<'_>, gguf: &GgufSpec, config: &ModelConfig) -> Result<Option<Window>, OpenError> {
    let Some(defaults) = &gguf.window else { return Ok(None) };
    let stated = keys.optional_index("attention.sliding_window")?.or(defaults.size);
    let Some(size) = stated.filter(|&size| size > 0) else {
        return Ok(None);
    };
    // The period of blocks without the window, or one entry for each block.
    let pattern = "attention.sliding_window_pattern";
    let flags = |values: &Vec<Value>| values.iter().map(Value::as_bool).collect::<Option<Vec<bool>>>();
    let blocks: Vec<bool> = match keys.get(pattern).and_then(Value::as_array) {
        Some(values) => {
            let flags = flags(values).filter(|flags| flags.len() == config.n_blocks);
            flags.ok_or_else(|| keys.wrong(pattern, format!("{} flags", config.n_blocks)))?
        }
        None => {
            let period = keys.optional_count(pattern)?.or(defaults.period);
            (0..config.n_blocks).map(|block| period.is_none_or(|period| (block + 1) % period != 0)).collect()
        }
    };
    let rope = match defaults.local_theta {
        Some(default) => {
            let theta = keys.optional_positive("rope.freq_base_swa")?.unwrap_or(default);
            Some(Rope { theta, dim: config.head_dim, scaling: RopeScaling::Default })
        }
        None => None,
    };
    let hides = rope.is_some() || config.max_positions.is_none_or(|positions| size < positions);
    Ok(hides.then_some(Window { size, blocks, rope }))
}

/// The rotary positions. Shortens the longest sequence if they are exact only up to a smaller length.
fn rope(keys: Keys<'_>, store: &Store, config: &mut ModelConfig) -> Result<Rope, OpenError> {
    let dim = keys.optional_count("rope.dimension_count")?.unwrap_or(config.head_dim);
    if !dim.is_multiple_of(2) || dim > config.head_dim {
        let expected = format!("an even number, at most the size of a head, {}", config.head_dim);
        return Err(keys.wrong("rope.dimension_count", format!("{expected}; it comes to {dim}")));
    }
    let theta = keys.optional_positive("rope.freq_base")?.unwrap_or(10_000.0);
    let factors = |name: &'static str| match store.tensors.get(name) {
        None => Ok(None),
        Some(stored) => {
            let expected = || keys.unsupported(name, format!("{} factors, without another scaling", dim / 2));
            let factors = store.read(name, stored).map_err(|_| expected())?.to_f32();
            let factors: Vec<f64> = factors.into_iter().map(f64::from).collect();
            if factors.len() == dim / 2 { Ok(Some(factors)) } else { Err(expected()) }
        }
    };
    if let Some(factors) = factors(SHORT_FACTORS)? {
        // The long factors apply to sequences beyond the original maximum, which is the limit here.
        config.max_positions = Some(keys.count("rope.scaling.original_context_length")?);
        let attention_factor = keys.optional_positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
        return Ok(Rope { theta, dim, scaling: RopeScaling::Longrope { factors, attention_factor } });
    }
    let scaling = match (factors(ROPE_FREQS)?, rope_scaling(keys, config.max_positions)?) {
        (None, scaling) => scaling,
        (Some(factors), RopeScaling::Default) => RopeScaling::Longrope { factors, attention_factor: 1.0 },
        (Some(_), _) => return Err(keys.unsupported("rope.scaling.type", format!("none beside {ROPE_FREQS}"))),
    };
    Ok(Rope { theta, dim, scaling })
}

fn rope_scaling(keys: Keys<'_>, max_positions: Option<usize>) -> Result<RopeScaling, OpenError> {
    // A factor of 0 means no factor.
    let factor = |key: &str| match keys.get(key).and_then(Value::as_f64) {
        Some(0.0) => Ok(None),
        _ => keys.optional_positive(key),
    };
    let factor =
        factor("rope.scaling.factor")?.map_or_else(|| factor("rope.scale_linear"), |factor| Ok(Some(factor)))?;
    for key in ["rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor"] {
        if keys.optional_positive(key)?.is_some_and(|factor| factor != 1.0) {
            return Err(keys.unsupported(key, "1"));
        }
    }
    match keys.optional_text("rope.scaling.type")? {
        None | Some("linear") => Ok(factor
            .filter(|&factor| factor != 1.0)
            .map_or(RopeScaling::Default, |factor| RopeScaling::Linear { factor })),
        Some("none") => Ok(RopeScaling::Default),
        Some("yarn") => {
            let original = keys.optional_count("rope.scaling.original_context_length")?.or(max_positions);
            Ok(RopeScaling::Yarn {
                factor: factor.ok_or_else(|| keys.missing("rope.scaling.factor"))?,
                beta_fast: keys.optional_positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.optional_positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                original_max_positions: original.ok_or_else(|| keys.missing("rope.scaling.original_context_length"))?,
                attention_factor: None,
            })
        }
        Some(_) => Err(keys.unsupported("rope.scaling.type", "none, linear and yarn")),
    }
}

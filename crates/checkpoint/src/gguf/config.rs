//! The shape of a model from GGUF metadata.

use sepal_core::{Experts, Factors, MAX_BLOCKS, MAX_HIDDEN, ModelConfig, Rope, RopeScaling, ScoreRule, Window};
use serde_json::Value;

use crate::error::OpenError;
use crate::families;
use crate::family::{FamilySpec, GgufExperts, GgufSpec, Parallel};
use crate::keys::Keys;
use crate::store::Store;

const FFN: &str = "feed_forward_length";
const EMBEDDING: &str = "token_embd.weight";
const ROPE_FREQS: &str = "rope_freqs.weight";
const SHORT_FACTORS: &str = "rope_factors_short.weight";
/// Tensors that belong to the configuration.
pub(super) const FACTORS: [&str; 2] = [ROPE_FREQS, SHORT_FACTORS];

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
    let (family, gguf) = family(file, keys, architecture)?;
    refuse_scales(keys, gguf)?;
    let experts = gguf.experts.map(|spec| experts(keys, spec)).transpose()?;
    let [hidden_key, blocks_key] = ["embedding_length", "block_count"];
    let hidden = keys.at_most(&[hidden_key], keys.count(hidden_key)?, MAX_HIDDEN, "numbers")?;
    let n_blocks = keys.at_most(&[blocks_key], keys.count(blocks_key)?, MAX_BLOCKS, "blocks")?;
    let (n_heads, ffn) = (keys.count("attention.head_count")?, ffn(keys, gguf, experts)?);
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
        unrotated_blocks: unrotated_blocks(gguf, n_blocks),
        has_head_norms: gguf.head_norms.is_some_and(|name| store.tensors.contains_key(name)),
        factors: if gguf.has_factors { factors(keys)? } else { Factors::default() },
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

/// The family of an architecture; of two families that share it the one with or without experts.
fn family(
    file: Keys<'_>,
    keys: Keys<'_>,
    architecture: &str,
) -> Result<(&'static FamilySpec, &'static GgufSpec), OpenError> {
    let candidates = families::of_architecture(architecture);
    if candidates.is_empty() {
        return Err(file.unsupported("general.architecture", families::architectures().join(", ")));
    }
    let key = "expert_count";
    let has_experts = keys.optional_index(key)?.is_some_and(|count| count > 0);
    let found = candidates.into_iter().find(|(_, gguf)| gguf.experts.is_some() == has_experts);
    found.ok_or_else(|| if has_experts { keys.unsupported(key, "none") } else { keys.missing(key) })
}

/// Refuses factors that the architecture does not have.
fn refuse_scales(keys: Keys<'_>, gguf: &GgufSpec) -> Result<(), OpenError> {
    const FACTORS: [(&str, f64); 3] = [("attention.scale", 0.0), ("embedding_scale", 1.0), ("residual_scale", 1.0)];
    const OTHERS: [(&str, f64); 2] = [("attention.clamp_kqv", 0.0), ("rope.scaling.yarn_log_multiplier", 0.0)];
    let factors: &[(&str, f64)] = if gguf.has_factors { &[] } else { &FACTORS };
    for &(key, neutral) in factors.iter().chain(&OTHERS) {
        if keys.get(key).and_then(Value::as_f64).is_some_and(|scale| scale != 0.0 && scale != neutral) {
            return Err(keys.unsupported(key, "none"));
        }
    }
    // The key switches off the positions of a Granite.
    if gguf.has_factors && keys.optional_flag("rope.scaling.finetuned")? == Some(false) {
        return Err(keys.unsupported("rope.scaling.finetuned", "true"));
    }
    if gguf.refuses_window && keys.optional_index("attention.sliding_window")?.is_some_and(|size| size > 0) {
        return Err(keys.unsupported("attention.sliding_window", "none; use the folder with safetensors"));
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

fn experts(keys: Keys<'_>, spec: GgufExperts) -> Result<Experts, OpenError> {
    let (count, per_token) = (keys.experts_of(&["expert_count"], 1)?, keys.count("expert_used_count")?);
    if per_token > count {
        return Err(keys.wrong("expert_used_count", format!("at most expert_count, {count}")));
    }
    let shared_ffn = match (spec.has_shared, optional_length(keys, "expert_shared_feed_forward_length")?) {
        (false, _) => None,
        (true, Some(length)) => Some(length),
        (true, None) => Some(keys.count(FFN)?),
    };
    Ok(Experts { is_softmax_of_all: spec.is_softmax_of_all, shared_ffn, ..Experts::new(count, per_token) })
}

/// Inner size of the MLP or of an expert; files without that of an expert have that of all experts of a position.
fn ffn(keys: Keys<'_>, gguf: &GgufSpec, experts: Option<Experts>) -> Result<usize, OpenError> {
    let Some(Experts { per_token, .. }) = experts.filter(|_| gguf.experts.is_some_and(|spec| spec.has_own_width))
    else {
        return keys.count(FFN);
    };
    match optional_length(keys, "expert_feed_forward_length")? {
        Some(length) => Ok(length),
        None => match keys.count(FFN)? {
            all if all.is_multiple_of(per_token) => Ok(all / per_token),
            _ => Err(keys.missing("expert_feed_forward_length")),
        },
    }
}

/// A length, of which 0 stands for none.
fn optional_length(keys: Keys<'_>, key: &str) -> Result<Option<usize>, OpenError> {
    if keys.optional_index(key)? == Some(0) { Ok(None) } else { keys.optional_count(key) }
}

/// For each block, true if it has no positions; empty if all blocks have them.
fn unrotated_blocks(gguf: &GgufSpec, n_blocks: usize) -> Vec<bool> {
    match gguf.unrotated_period {
        Some(period) if period <= n_blocks => (1..=n_blocks).map(|number| number.is_multiple_of(period)).collect(),
        _ => Vec::new(),
    }
}

/// Factors of a Granite but that of scores.
fn factors(keys: Keys<'_>) -> Result<Factors, OpenError> {
    let factor = |key: &str| Ok::<_, OpenError>(optional_factor(keys, key)?.filter(|factor| *factor != 1.0));
    Ok(Factors {
        embedding: factor("embedding_scale")?,
        residual: factor("residual_scale")?,
        logits: factor("logit_scale")?.map(|divisor| 1.0 / divisor),
    })
}

/// A factor, of which 0 stands for none.
fn optional_factor(keys: Keys<'_>, key: &str) -> Result<Option<f64>, OpenError> {
    match keys.get(key).and_then(Value::as_f64) {
        Some(0.0) => Ok(None),
        _ => keys.optional_positive(key),
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
    let scale = match gguf.has_factors {
        true => optional_factor(keys, "attention.scale")?,
        false => is_scaled_by_hidden.then(|| ((config.hidden / config.n_heads) as f64).powf(-0.5)),
    };
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
            if stored.shape != [dim / 2] {
                return Err(expected());
            }
            let factors = store.read(name, stored).map_err(|_| expected())?.to_f32();
            Ok(Some(factors.into_iter().map(f64::from).collect::<Vec<f64>>()))
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
    let factor = match optional_factor(keys, "rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => optional_factor(keys, "rope.scale_linear")?,
    };
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
                is_untruncated: false,
            })
        }
        Some(_) => Err(keys.unsupported("rope.scaling.type", "none, linear and yarn")),
    }
}

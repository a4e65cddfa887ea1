//! Gemma 1, 2 and 3 (text).

use sepal_core::{Activation, Family, ModelConfig, Rope, ScoreRule, Window};
use serde_json::{Map, Value, json};

use super::llama::{self, ATTENTION, GATED_MLP};
use crate::config::rope::{self, Rotary};
use crate::config::{activation, layer_types, only, window};
use crate::error::OpenError;
use crate::family::{
    ClassDefaults, ConfigKeys, FamilySpec, GgufSpec, GgufWindow, OriginalLength, Renames, RotaryKeys, RowOrder,
    WithoutBias,
};
use crate::keys::Keys;

pub(super) const GEMMA: FamilySpec = FamilySpec {
    family: Family::Gemma,
    classifier: Some("GemmaForSequenceClassification"),
    activations: &[Activation::GeluTanh],
    keys: ConfigKeys { activation: None, ..ConfigKeys::USUAL },
    defaults: ClassDefaults {
        vocab_size: 256_000,
        hidden: 3072,
        ffn: Some(24_576),
        n_blocks: 28,
        n_heads: 16,
        n_kv_heads: Some(16),
        head_dim: Some(256),
        max_positions: 8192,
        ..ClassDefaults::LLAMA
    },
    read_config,
    without_bias: &[
        WithoutBias { layers: ATTENTION, unless: Some(("attention_bias", false)) },
        WithoutBias { layers: GATED_MLP, unless: None },
    ],
    gguf: Some(GgufSpec { architecture: "gemma", rows: RowOrder::NormsPlusOne, ..GgufSpec::LLAMA }),
    ..llama::SPEC
};

pub(super) const GEMMA2: FamilySpec = FamilySpec {
    family: Family::Gemma2,
    classifier: Some("Gemma2ForSequenceClassification"),
    keys: ConfigKeys { activation: Some("hidden_activation"), ..ConfigKeys::USUAL },
    defaults: ClassDefaults {
        hidden: 2304,
        ffn: Some(9216),
        n_blocks: 26,
        n_heads: 8,
        n_kv_heads: Some(4),
        ..GEMMA.defaults
    },
    read_config: read_gemma2,
    gguf: Some(GgufSpec {
        architecture: "gemma2",
        block: &[NORMS, GgufSpec::LLAMA_BLOCK],
        rows: RowOrder::NormsPlusOne,
        score_cap: Some(50.0),
        n_blocks_scaled_by_hidden: Some(46),
        window: Some(GgufWindow { size: Some(4096), period: Some(2), local_theta: None }),
        ..GgufSpec::LLAMA
    }),
    ..GEMMA
};

pub(super) const GEMMA3: FamilySpec = FamilySpec {
    family: Family::Gemma3,
    classifier: Some("Gemma3TextForSequenceClassification"),
    defaults: ClassDefaults { vocab_size: 262_208, max_positions: 131_072, theta: 1_000_000.0, ..GEMMA2.defaults },
    rotary: RotaryKeys { original: OriginalLength::Within, ..RotaryKeys::USUAL },
    read_config: read_gemma3,
    gguf: Some(GgufSpec {
        architecture: "gemma3",
        block: &[NORMS, GgufSpec::LLAMA_BLOCK],
        rows: RowOrder::NormsPlusOne,
        n_blocks_scaled_by_hidden: Some(62),
        window: Some(GgufWindow { size: None, period: Some(6), local_theta: Some(10_000.0) }),
        ..GgufSpec::LLAMA
    }),
    ..GEMMA2
};

/// Names of the norms of Gemma 2 and 3.
const NORMS: Renames = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    only(keys, "use_bidirectional_attention", false)?;
    // `gelu` in Gemma 1's files stands for the approximation with tanh.
    let key = "hidden_act";
    if keys.optional_text(key)? != Some("gelu") {
        activation(keys, key, spec.activations)?;
    }
    llama::read_config(keys, spec)
}

fn read_gemma2(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    only(keys, "use_bidirectional_attention", false)?;
    let config = llama::read_config(keys, spec)?;
    let key = "attn_logit_softcapping";
    let cap = if keys.has(key) { keys.optional_positive(key)? } else { Some(50.0) };
    let (size, blocks) = windowed_blocks(keys, config.n_blocks, 2)?;
    let window = window(keys, config.max_positions, size, blocks)?;
    let scores = ScoreRule { scale: scale(keys)?, cap, window, ..config.scores };
    Ok(ModelConfig { scores, ..config })
}

/// `attn_logit_softcapping` may be in a Gemma 3's file, but transformers does not apply it.
fn read_gemma3(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    only(keys, "use_bidirectional_attention", false)?;
    let config = llama::read_heads(keys, spec)?;
    let max_positions = keys.optional_count("max_position_embeddings")?;
    let rotary = Rotary { spec, head_dim: config.head_dim, max_positions };
    let ropes = read_ropes(keys, &rotary, (Some("rope_local_base_freq"), 10_000.0))?;
    let period = keys.optional_count("sliding_window_pattern")?.unwrap_or(6);
    let (size, blocks) = windowed_blocks(keys, config.n_blocks, period)?;
    // A window that hides nothing still says which blocks have the local positions: it is kept at any size.
    let window = window(keys, None, size, blocks)?;
    let window = window.map(|window| Window { rope: Some(ropes.local), ..window });
    let scores = ScoreRule { scale: scale(keys)?, window, ..config.scores };
    Ok(ModelConfig { rope: Some(ropes.global), max_positions: ropes.max_positions, scores, ..config })
}

/// Factor of the scores.
fn scale(keys: Keys<'_>) -> Result<Option<f64>, OpenError> {
    Ok(Some(keys.optional_positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5)))
}

/// Size of the window, and for each block true if it has the window: all but every `period`th, unless stated.
pub(super) fn windowed_blocks(
    keys: Keys<'_>,
    n_blocks: usize,
    period: usize,
) -> Result<(Option<usize>, Vec<bool>), OpenError> {
    let size = keys.count_unless_null("sliding_window", 4096)?;
    let usual = || (0..n_blocks).map(|block_idx| (block_idx + 1) % period != 0).collect();
    Ok((size, layer_types(keys, n_blocks)?.unwrap_or_else(usual)))
}

/// Positions of blocks without and with a window.
pub(super) struct Ropes {
    pub(super) global: Rope,
    pub(super) local: Rope,
    pub(super) max_positions: Option<usize>,
}

/// Reads both sets of positions. `rope_scaling` is merged into that of blocks without a window. Without
/// `rope_parameters` the kind of both is `default`, regardless of `type`. `local` is the key beside them of the base of
/// blocks with a window, if there is one, and its default.
pub(super) fn read_ropes(keys: Keys<'_>, rotary: &Rotary<'_>, local: (Option<&str>, f64)) -> Result<Ropes, OpenError> {
    let nothing = Map::new();
    let parameters = keys.object("rope_parameters")?.unwrap_or(&nothing);
    let parameters = keys.inside("rope_parameters.", parameters);
    rope::refuse_untruncated(parameters)?;
    let kind = |kind: &str| Ok(parameters.object(kind)?.cloned().unwrap_or_else(default_rope));
    let (mut full, sliding) = (kind("full_attention")?, kind("sliding_attention")?);
    full.extend(keys.object("rope_scaling")?.cloned().unwrap_or_default());

    let read = |scope, map: &Map<String, Value>, (key, default): (Option<&str>, f64)| {
        let scaling = keys.inside(scope, map);
        // transformers reads the key beside the kinds of blocks only.
        rope::refuse_untruncated(scaling)?;
        let theta = match (scaling.optional_positive("rope_theta")?, key) {
            (Some(theta), _) => theta,
            (None, Some(key)) => keys.optional_positive(key)?.unwrap_or(default),
            (None, None) => default,
        };
        rope::read_scaled(scaling, keys, rotary, theta)
    };
    let scope = match parameters.get("full_attention") {
        None if keys.get("rope_scaling").is_some() => "rope_scaling.",
        _ => "rope_parameters.full_attention.",
    };
    let (global, limit) = read(scope, &full, (Some("rope_theta"), rotary.spec.defaults.theta))?;
    let (local, local_limit) = read("rope_parameters.sliding_attention.", &sliding, local)?;
    let max_positions = [limit, local_limit].into_iter().flatten().min();
    Ok(Ropes { global, local, max_positions })
}

fn default_rope() -> Map<String, Value> {
    Map::from_iter([("rope_type".to_owned(), json!("default"))])
}

use sepal_core::{Family, ModelConfig, ScoreRule, Window};

use super::gemma::read_ropes;
use super::{llama, olmo2};
use crate::config::rope::Rotary;
use crate::config::{layer_types, window};
use crate::error::OpenError;
use crate::family::{ClassDefaults, FamilySpec, OriginalLength, RotaryKeys};
use crate::keys::Keys;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Olmo3,
    classifier: Some("Olmo3ForSequenceClassification"),
    defaults: ClassDefaults { theta: 500_000.0, ..olmo2::SPEC.defaults },
    rotary: RotaryKeys { original: OriginalLength::Within, ..RotaryKeys::USUAL },
    read_config,
    gguf: None,
    ..olmo2::SPEC
};

/// All but every fourth block have the window, unless stated. `rope_scaling` and `rope_theta` are those of blocks without
/// it; blocks with it have the default base, unless `rope_parameters` states another.
fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = llama::read_heads(keys, spec)?;
    let max_positions = keys.optional_count("max_position_embeddings")?;
    let rotary = Rotary { spec, head_dim: config.head_dim, max_positions };
    let ropes = read_ropes(keys, &rotary, (None, spec.defaults.theta))?;
    let size = keys.count_unless_null("sliding_window", 4096)?;
    let usual = || (1..=config.n_blocks).map(|number| number % 4 != 0).collect();
    let blocks = layer_types(keys, config.n_blocks)?.unwrap_or_else(usual);
    // A window that hides nothing still states which blocks have the local positions.
    let window = window(keys, None, size, blocks)?.map(|window| Window { rope: Some(ropes.local), ..window });
    let scores = ScoreRule { window, ..config.scores };
    Ok(ModelConfig { rope: Some(ropes.global), max_positions: ropes.max_positions, scores, ..config })
}

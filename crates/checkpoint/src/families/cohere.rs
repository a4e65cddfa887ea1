//! Cohere: Command R, Command R+ and Aya.

use sepal_core::{Factors, Family, ModelConfig};

use super::llama::{self, ATTENTION, GATED_MLP};
use crate::error::OpenError;
use crate::family::{ClassDefaults, ConfigKeys, FamilySpec, WithoutBias};
use crate::keys::Keys;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Cohere,
    classifier: None,
    keys: ConfigKeys { norm_eps: Some("layer_norm_eps"), ..ConfigKeys::USUAL },
    defaults: ClassDefaults {
        vocab_size: 256_000,
        hidden: 8192,
        ffn: Some(22_528),
        n_blocks: 40,
        n_heads: 64,
        norm_eps: 1e-5,
        max_positions: 8192,
        theta: 500_000.0,
        ..ClassDefaults::LLAMA
    },
    read_config,
    without_bias: &[
        WithoutBias { layers: ATTENTION, unless: Some(("attention_bias", false)) },
        WithoutBias { layers: GATED_MLP, unless: None },
    ],
    gguf: None,
    ..llama::SPEC
};

fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = read_parallel(keys, spec)?;
    Ok(ModelConfig { has_head_norms: keys.flag("use_qk_norm")?, ..config })
}

/// Reads all but norms of heads.
pub(super) fn read_parallel(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = llama::read_config(keys, spec)?;
    let factor = keys.optional_positive("logit_scale")?.unwrap_or(0.0625);
    let factors = Factors { logits: Some(factor).filter(|factor| *factor != 1.0), ..config.factors };
    Ok(ModelConfig { factors, is_parallel: true, ..config })
}

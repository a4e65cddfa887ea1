use sepal_core::{Factors, Family, ModelConfig, ScoreRule};

use super::llama;
use crate::error::OpenError;
use crate::family::{FamilySpec, GgufSpec, RowOrder};
use crate::keys::Keys;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Granite,
    classifier: None,
    read_config,
    gguf: Some(GgufSpec {
        architecture: "granite",
        rows: RowOrder::InterleavedHeads,
        has_factors: true,
        ..GgufSpec::LLAMA
    }),
    ..llama::SPEC
};

fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = llama::read_config(keys, spec)?;
    let factor = |key: &str| Ok::<_, OpenError>(keys.optional_positive(key)?.filter(|factor| *factor != 1.0));
    let factors = Factors {
        embedding: factor("embedding_multiplier")?,
        residual: factor("residual_multiplier")?,
        logits: factor("logits_scaling")?.map(|divisor| 1.0 / divisor),
    };
    let scale = Some(keys.optional_positive("attention_multiplier")?.unwrap_or(1.0));
    Ok(ModelConfig { factors, scores: ScoreRule { scale, ..config.scores }, ..config })
}

//! Which models PEFT computes as we do, tried with transformers 5.23.0 and peft 0.21.2; see docs/peft.md.

use sepal_core::{Family, ModelConfig};

/// Why PEFT would not give the same logits for this model, prompts written in whatever way.
pub(crate) fn refused(config: &ModelConfig) -> Option<&'static str> {
    let is_falcon_alibi = config.family == Family::Falcon && config.scores.alibi;
    is_falcon_alibi.then_some(
        "Falcon with ALiBi rounds its biases to bf16 where the attention mask is of whole numbers, and PEFT makes it one of \
         floats, so that logits differ",
    )
}

/// How often each head of keys and values stands in transformers' cache. Falcon with grouped heads caches one for each
/// query head; with a single one, and in all other families, they stand there as they are.
pub(crate) fn copies(config: &ModelConfig) -> usize {
    let is_grouped = config.n_kv_heads > 1 && config.n_kv_heads < config.n_heads;
    if config.family == Family::Falcon && is_grouped { config.n_heads / config.n_kv_heads } else { 1 }
}

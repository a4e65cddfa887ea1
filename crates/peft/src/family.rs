//! Differences between PEFT and Sepal per family, tested with transformers 5.23.0 and peft 0.21.2; see docs/peft.md.

use sepal_core::{Family, ModelConfig};

/// Returns the reason if PEFT computes other logits for this model with every method that has a prefix.
pub(crate) fn unsupported_reason(config: &ModelConfig) -> Option<&'static str> {
    let is_falcon_alibi = config.family == Family::Falcon && config.scores.alibi;
    is_falcon_alibi.then_some(
        "Falcon with ALiBi rounds its biases to bf16 if the attention mask contains integers, and PEFT passes a mask of \
         floats, so that logits differ",
    )
}

/// Returns the number of copies of each key and value head in transformers' cache. Falcon with grouped heads caches one per
/// query head; all other models cache each head once.
pub(crate) fn cached_head_copies(config: &ModelConfig) -> usize {
    let is_grouped = config.n_kv_heads > 1 && config.n_kv_heads < config.n_heads;
    if config.family == Family::Falcon && is_grouped { config.n_heads / config.n_kv_heads } else { 1 }
}

/// True if the checkpoint stores linear layers as `[inputs, outputs]`, which PEFT calls `fan_in_fan_out`.
pub(crate) fn is_transposed(config: &ModelConfig) -> bool {
    config.family == Family::Gpt2
}

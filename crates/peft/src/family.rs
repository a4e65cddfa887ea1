//! Which models PEFT computes as we do, tried with transformers 5.23.0 and peft 0.21.2; see docs/peft.md.

use sepal_core::ModelConfig;

/// Why a prefix of keys and values would not give the same logits, if so.
pub(crate) fn not_as_prefix(_config: &ModelConfig, _prefix_len: usize) -> Option<String> {
    None
}

/// Why prompts in front of the embeddings would not, if so.
pub(crate) fn not_as_prompts(_config: &ModelConfig) -> Option<String> {
    None
}

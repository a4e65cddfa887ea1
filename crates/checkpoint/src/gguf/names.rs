//! The names of GGUF tensors in the HF layout, and the order of their numbers.

use std::collections::BTreeMap;
use std::path::Path;

use sepal_core::ModelConfig;

use super::architecture::Architecture;
use crate::error::OpenError;
use crate::rows::Rows;
use crate::store::Stored;

/// Tensors that say again what the configuration says.
const REDUNDANT: &[&str] = &["rope_freqs", "rope_factors_", "attn_rot_embd"];

/// The tensors under their HF names, with the way back to the model's order.
///
/// # Errors
/// [`OpenError::Unsupported`] for a tensor that is not known: a model that has it computes something else.
pub(super) fn to_hf(
    path: &Path,
    architecture: Architecture,
    config: &ModelConfig,
    stored: BTreeMap<String, Stored>,
) -> Result<BTreeMap<String, Stored>, OpenError> {
    let has_two_norms = stored.keys().any(|name| name.contains(".attn_norm_2."));
    let mut tensors = BTreeMap::new();
    for (name, stored) in stored {
        match HfName::of(architecture, config, &name, has_two_norms) {
            Some(hf) => tensors.extend(hf.place(architecture, config, stored)),
            None if REDUNDANT.iter().any(|redundant| name.contains(redundant)) => {}
            None => {
                return Err(OpenError::Unsupported {
                    path: path.to_owned(),
                    key: name,
                    found: "a tensor of it".to_owned(),
                    supported: format!("the tensors of a {} model", config.family.name()),
                });
            }
        }
    }
    Ok(tensors)
}

/// The name of a tensor in the HF layout.
struct HfName<'a> {
    /// `{}` stands for an expert.
    name: String,
    /// What GGUF calls it, without the block and without `weight`.
    part: &'a str,
    is_weight: bool,
}

impl<'a> HfName<'a> {
    fn of(architecture: Architecture, config: &ModelConfig, name: &'a str, has_two_norms: bool) -> Option<Self> {
        let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
        let (part, name) = match stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((block, part)) => {
                let block = config.family.block_prefix(block.parse().ok()?);
                (part, format!("{block}{}.{kind}", architecture.of_block(part, has_two_norms)?))
            }
            None => (stem, format!("{}.{kind}", architecture.of_ends(stem)?)),
        };
        Some(Self { name, part, is_weight: kind == "weight" })
    }

    /// The tensor, or those of all experts.
    fn place(self, architecture: Architecture, config: &ModelConfig, stored: Stored) -> Vec<(String, Stored)> {
        let [experts, out, inner] = stored.shape[..] else {
            let rows = self.rows(architecture, config);
            // What is transposed has its two dimensions the other way round.
            let shape = match rows {
                Rows::Transposed => stored.shape.iter().rev().copied().collect(),
                _ => stored.shape.clone(),
            };
            return vec![(self.name, Stored { rows, shape, ..stored })];
        };
        let len = stored.len / experts.max(1) as u64;
        let expert = |expert: usize| {
            let offset = stored.offset + expert as u64 * len;
            let name = self.name.replace("{}", &expert.to_string());
            (name, Stored { shape: vec![out, inner], offset, len, ..stored.clone() })
        };
        (0..experts).map(expert).collect()
    }

    fn rows(&self, architecture: Architecture, config: &ModelConfig) -> Rows {
        let is_gpt2_layer = matches!(self.part, "attn_qkv" | "attn_output" | "ffn_up" | "ffn_down");
        match (architecture, self.part) {
            (Architecture::Llama, "attn_q") => Rows::InterleavedHalves { heads: config.n_heads },
            (Architecture::Llama, "attn_k") => Rows::InterleavedHalves { heads: config.n_kv_heads },
            (Architecture::Bloom | Architecture::GptNeox | Architecture::Falcon, "attn_qkv") => {
                Rows::Concatenated { heads: config.n_kv_heads, repeat: config.n_heads / config.n_kv_heads }
            }
            (Architecture::Gpt2, _) if is_gpt2_layer && self.is_weight => Rows::Transposed,
            _ if architecture.is_gemma() && self.part.ends_with("_norm") => Rows::OneMore,
            _ => Rows::Same,
        }
    }
}

#[cfg(test)]
mod tests {
    use sepal_core::Family;

    use super::*;

    #[test]
    fn names() {
        let check = |architecture: Architecture, gguf: &str, hf: Option<&str>| {
            let config = ModelConfig::plain(architecture.family(false), 20, 8, 2, 8, 8);
            let name = HfName::of(architecture, &config, gguf, true).map(|name| name.name);
            assert_eq!(name.as_deref(), hf, "{gguf}");
        };
        check(Architecture::Llama, "token_embd.weight", Some("model.embed_tokens.weight"));
        check(Architecture::Llama, "blk.12.attn_q.bias", Some("model.layers.12.self_attn.q_proj.bias"));
        check(Architecture::Qwen2, "blk.0.ffn_down.weight", Some("model.layers.0.mlp.down_proj.weight"));
        check(Architecture::Llama, "output.weight", Some("lm_head.weight"));
        check(Architecture::Bloom, "token_embd_norm.bias", Some("transformer.word_embeddings_layernorm.bias"));
        check(Architecture::Bloom, "blk.3.ffn_up.weight", Some("transformer.h.3.mlp.dense_h_to_4h.weight"));
        check(Architecture::Falcon, "blk.3.attn_norm.bias", Some("transformer.h.3.ln_mlp.bias"));
        check(
            Architecture::Gemma2,
            "blk.1.post_ffw_norm.weight",
            Some("model.layers.1.post_feedforward_layernorm.weight"),
        );
        check(Architecture::GptNeox, "blk.1.attn_qkv.bias", Some("gpt_neox.layers.1.attention.query_key_value.bias"));
        check(Architecture::Stablelm, "blk.1.ffn_norm.bias", Some("model.layers.1.post_attention_layernorm.bias"));
        check(Architecture::Llama, "blk.0.ffn_sub_norm.weight", None);
        check(Architecture::Llama, "blk.x.attn_q.weight", None);
        check(Architecture::Llama, "rope_freqs.weight", None);
        assert_eq!(Architecture::Llama.family(true), Family::Mixtral);
    }
}

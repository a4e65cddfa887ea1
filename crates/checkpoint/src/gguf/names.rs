//! The names of GGUF tensors in the HF layout, and the order of their numbers.

use std::collections::BTreeMap;
use std::path::Path;

use sepal_core::ModelConfig;

use super::config::GgufModel;
use crate::error::OpenError;
use crate::family::RowOrder;
use crate::rows::Rows;
use crate::store::Stored;

/// Tensors that repeat the configuration.
const REDUNDANT: &[&str] = &["rope_freqs", "rope_factors_", "attn_rot_embd"];

/// The tensors under their HF names, with the order of their rows.
///
/// # Errors
/// [`OpenError::Unsupported`] if a tensor is unknown: a model with it computes something else.
pub(super) fn to_hf(
    path: &Path,
    model: &GgufModel,
    stored: BTreeMap<String, Stored>,
) -> Result<BTreeMap<String, Stored>, OpenError> {
    let has_second_norm = stored.keys().any(|name| name.contains(".attn_norm_2."));
    let mut tensors = BTreeMap::new();
    for (name, stored) in stored {
        match HfName::parse(model, &name, has_second_norm) {
            Some(hf) => tensors.extend(hf.place(model, stored)),
            None if REDUNDANT.iter().any(|redundant| name.contains(redundant)) => {}
            None => {
                let (path, found) = (path.to_owned(), "a tensor of it".to_owned());
                let supported = format!("the tensors of a {} model", model.config.family.name());
                return Err(OpenError::Unsupported { path, key: name, found, supported });
            }
        }
    }
    Ok(tensors)
}

struct HfName<'a> {
    /// `{}` stands for an expert.
    name: String,
    /// Name in the GGUF file, without block and kind.
    part: &'a str,
    is_weight: bool,
}

impl<'a> HfName<'a> {
    fn parse(model: &GgufModel, name: &'a str, has_second_norm: bool) -> Option<Self> {
        let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
        let (part, name) = match stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((block, part)) => {
                let block = model.family.tensors.block_prefix(block.parse().ok()?);
                (part, format!("{block}{}.{kind}", model.gguf.block_name(part, has_second_norm)?))
            }
            None => (stem, format!("{}.{kind}", model.gguf.end_name(stem)?)),
        };
        Some(Self { name, part, is_weight: kind == "weight" })
    }

    /// The tensor, or those of all experts.
    fn place(self, model: &GgufModel, stored: Stored) -> Vec<(String, Stored)> {
        let [experts, out, inner] = stored.shape[..] else {
            let rows = self.rows(model.gguf.rows, &model.config);
            // GGUF states the shape of the transposed matrix.
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

    fn rows(&self, order: RowOrder, config: &ModelConfig) -> Rows {
        let is_layer = matches!(self.part, "attn_qkv" | "attn_output" | "ffn_up" | "ffn_down");
        let &ModelConfig { n_heads, n_kv_heads, .. } = config;
        match (order, self.part) {
            (RowOrder::InterleavedHeads, "attn_q") => Rows::InterleavedHalves { heads: n_heads },
            (RowOrder::InterleavedHeads, "attn_k") => Rows::InterleavedHalves { heads: n_kv_heads },
            (RowOrder::ConcatenatedHeads, "attn_qkv") => {
                Rows::Concatenated { heads: n_kv_heads, repeat: n_heads / n_kv_heads }
            }
            (RowOrder::TransposedLayers, _) if is_layer && self.is_weight => Rows::Transposed,
            (RowOrder::NormsPlusOne, part) if part.ends_with("_norm") => Rows::OneMore,
            _ => Rows::Same,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::of_architecture;

    #[test]
    fn gguf_names_become_hf_names() {
        let check = |architecture: &str, gguf_name: &str, hf: Option<&str>| {
            let (family, gguf) = of_architecture(architecture)[0];
            let model = GgufModel { config: family.plain(20, 8, 2, 8, 8), family, gguf };
            let name = HfName::parse(&model, gguf_name, true).map(|name| name.name);
            assert_eq!(name.as_deref(), hf, "{gguf_name}");
        };
        check("llama", "token_embd.weight", Some("model.embed_tokens.weight"));
        check("llama", "blk.12.attn_q.bias", Some("model.layers.12.self_attn.q_proj.bias"));
        check("qwen2", "blk.0.ffn_down.weight", Some("model.layers.0.mlp.down_proj.weight"));
        check("llama", "output.weight", Some("lm_head.weight"));
        check("bloom", "token_embd_norm.bias", Some("transformer.word_embeddings_layernorm.bias"));
        check("bloom", "blk.3.ffn_up.weight", Some("transformer.h.3.mlp.dense_h_to_4h.weight"));
        check("falcon", "blk.3.attn_norm.bias", Some("transformer.h.3.ln_mlp.bias"));
        check("gemma2", "blk.1.post_ffw_norm.weight", Some("model.layers.1.post_feedforward_layernorm.weight"));
        check("gptneox", "blk.1.attn_qkv.bias", Some("gpt_neox.layers.1.attention.query_key_value.bias"));
        check("stablelm", "blk.1.ffn_norm.bias", Some("model.layers.1.post_attention_layernorm.bias"));
        check("llama", "blk.0.ffn_sub_norm.weight", None);
        check("llama", "blk.x.attn_q.weight", None);
        check("llama", "rope_freqs.weight", None);
    }
}

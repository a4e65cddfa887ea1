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
/// [`OpenError::Unsupported`] if a tensor is unknown: a model with it computes something else. Likewise if the tensor of all
/// experts or heads has another number of them than the configuration, or two tensors have the same name in the HF layout.
pub(super) fn to_hf(
    path: &Path,
    model: &GgufModel,
    stored: BTreeMap<String, Stored>,
) -> Result<BTreeMap<String, Stored>, OpenError> {
    let has_second_norm = stored.keys().any(|name| name.contains(".attn_norm_2."));
    let unsupported = |key: &str, found: String, supported: String| OpenError::Unsupported {
        path: path.to_owned(),
        key: key.to_owned(),
        found,
        supported,
    };
    let (mut tensors, mut names) = (BTreeMap::new(), BTreeMap::<String, String>::new());
    for (name, stored) in stored {
        let Some(hf) = HfName::parse(model, &name, has_second_norm) else {
            if REDUNDANT.iter().any(|redundant| name.contains(redundant)) {
                continue;
            }
            let supported = format!("the tensors of a {} model", model.config.family.name());
            return Err(unsupported(&name, "a tensor of it".to_owned(), supported));
        };
        if let Some(count) = hf.count(&model.config).filter(|count| stored.shape.first() != Some(count)) {
            let found = format!("of the shape {:?}", stored.shape);
            return Err(unsupported(&name, found, format!("a part for each of {count}, as in the metadata")));
        }
        if let Some(other) = names.insert(hf.name.clone(), name.clone()) {
            return Err(unsupported(&name, format!("the same tensor as `{other}`"), "one of them".to_owned()));
        }
        tensors.extend(hf.place(model, stored));
    }
    Ok(tensors)
}

struct HfName<'a> {
    /// `{}` stands for the number of an expert or a head.
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

    /// Number of experts or heads whose tensors are one tensor in the file; `None` for another tensor.
    fn count(&self, config: &ModelConfig) -> Option<usize> {
        let count = match self.part {
            "attn_q_norm" => config.n_heads,
            "attn_k_norm" => config.n_kv_heads,
            _ => config.experts.map_or(0, |experts| experts.count),
        };
        self.name.contains("{}").then_some(count)
    }

    /// The tensor, or those of all experts or heads.
    fn place(self, model: &GgufModel, stored: Stored) -> Vec<(String, Stored)> {
        if !self.name.contains("{}") || stored.shape.is_empty() {
            let rows = self.rows(model.gguf.rows, &model.config);
            let shape = match (rows, &stored.shape[..]) {
                // GGUF states the shape of the transposed matrix.
                (Rows::Transposed, shape) => shape.iter().rev().copied().collect(),
                // Some files leave out the dimension of 1.
                (_, &[hidden]) if self.part == "ffn_gate_inp_shexp" => vec![1, hidden],
                (_, shape) => shape.to_vec(),
            };
            return vec![(self.name, Stored { rows, shape, ..stored })];
        }
        let (count, shape) = (stored.shape[0], stored.shape[1..].to_vec());
        let len = stored.len / count.max(1) as u64;
        let part = |index: usize| {
            let offset = stored.offset + index as u64 * len;
            let name = self.name.replace("{}", &index.to_string());
            (name, Stored { shape: shape.clone(), offset, len, ..stored.clone() })
        };
        (0..count).map(part).collect()
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
        check("stablelm", "blk.1.attn_k_norm.weight", Some("model.layers.1.self_attn.k_layernorm.norms.{}.weight"));
        check("qwen3moe", "blk.1.ffn_up_exps.weight", Some("model.layers.1.mlp.experts.{}.up_proj.weight"));
        check("qwen3moe", "blk.1.ffn_up_shexp.weight", None);
        check("olmo2", "blk.1.post_ffw_norm.weight", Some("model.layers.1.post_feedforward_layernorm.weight"));
        check("llama", "blk.0.ffn_sub_norm.weight", None);
        check("llama", "blk.x.attn_q.weight", None);
        check("llama", "rope_freqs.weight", None);
    }
}

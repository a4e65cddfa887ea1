//! The names of GGUF tensors in the HF layout, and the order of their rows.

use std::collections::BTreeMap;
use std::path::Path;

use sepal_core::ModelConfig;

use super::Architecture;
use crate::error::OpenError;
use crate::rows::Rows;
use crate::store::Stored;

/// Tensors that say again what the configuration says.
const REDUNDANT: &[&str] = &["rope_freqs", "attn_rot_embd"];

const LLAMA: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
const LLAMA_ENDS: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

const BLOOM: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attention.query_key_value"),
    ("attn_output", "self_attention.dense"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_up", "mlp.dense_h_to_4h"),
    ("ffn_down", "mlp.dense_4h_to_h"),
];
const BLOOM_ENDS: &[(&str, &str)] = &[
    ("token_embd", "transformer.word_embeddings"),
    ("token_embd_norm", "transformer.word_embeddings_layernorm"),
    ("output_norm", "transformer.ln_f"),
    ("output", "lm_head"),
];

/// The tensors under their HF names, with the way back to the model's order of rows.
///
/// # Errors
/// [`OpenError::Unsupported`] for a tensor that is not known: a model that has it computes something else.
pub(super) fn to_hf(
    path: &Path,
    architecture: Architecture,
    config: &ModelConfig,
    stored: BTreeMap<String, Stored>,
) -> Result<BTreeMap<String, Stored>, OpenError> {
    let mut tensors = BTreeMap::new();
    for (name, stored) in stored {
        match hf_name(architecture, &name) {
            Some((hf_name, part)) => {
                tensors.insert(hf_name, Stored { rows: rows(architecture, config, part), ..stored });
            }
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

/// The HF name, and the part of the block that it is.
fn hf_name(architecture: Architecture, name: &str) -> Option<(String, &str)> {
    let (blocks, ends, prefix) = match architecture {
        Architecture::Llama | Architecture::Qwen2 => (LLAMA, LLAMA_ENDS, "model.layers"),
        Architecture::Bloom => (BLOOM, BLOOM_ENDS, "transformer.h"),
    };
    let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let find =
        |table: &[(&str, &'static str)], part: &str| table.iter().find(|&&(gguf, _)| gguf == part).map(|&(_, hf)| hf);
    match stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((block, part)) => {
            let block: usize = block.parse().ok()?;
            Some((format!("{prefix}.{block}.{}.{kind}", find(blocks, part)?), part))
        }
        None => Some((format!("{}.{kind}", find(ends, stem)?), stem)),
    }
}

fn rows(architecture: Architecture, config: &ModelConfig, part: &str) -> Rows {
    match (architecture, part) {
        (Architecture::Llama, "attn_q") => Rows::InterleavedHalves { heads: config.n_heads },
        (Architecture::Llama, "attn_k") => Rows::InterleavedHalves { heads: config.n_kv_heads },
        (Architecture::Bloom, "attn_qkv") => Rows::Concatenated { heads: config.n_heads },
        _ => Rows::Same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |architecture, gguf: &str, hf: Option<&str>| {
            assert_eq!(hf_name(architecture, gguf).map(|(name, _)| name).as_deref(), hf, "{gguf}");
        };
        check(Architecture::Llama, "token_embd.weight", Some("model.embed_tokens.weight"));
        check(Architecture::Llama, "blk.12.attn_q.bias", Some("model.layers.12.self_attn.q_proj.bias"));
        check(Architecture::Qwen2, "blk.0.ffn_down.weight", Some("model.layers.0.mlp.down_proj.weight"));
        check(Architecture::Llama, "output.weight", Some("lm_head.weight"));
        check(Architecture::Bloom, "token_embd_norm.bias", Some("transformer.word_embeddings_layernorm.bias"));
        check(Architecture::Bloom, "blk.3.ffn_up.weight", Some("transformer.h.3.mlp.dense_h_to_4h.weight"));
        check(Architecture::Llama, "blk.0.ffn_gate_inp.weight", None);
        check(Architecture::Llama, "blk.x.attn_q.weight", None);
        check(Architecture::Llama, "rope_freqs.weight", None);
    }
}

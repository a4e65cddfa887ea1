//! The architectures of GGUF: the families that they are, and the names of their tensors.

use sepal_core::Family;

use crate::error::OpenError;
use crate::keys::Keys;

/// An architecture, as `general.architecture` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    /// Llama, Mistral and Mixtral: the rows of queries and keys are interleaved.
    Llama,
    Qwen2,
    Qwen3,
    Gemma,
    Gemma2,
    Gemma3,
    Phi3,
    Falcon,
    Bloom,
    Gpt2,
    GptNeox,
    Stablelm,
}

const ALL: [(&str, Architecture); 12] = [
    ("llama", Architecture::Llama),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("gemma", Architecture::Gemma),
    ("gemma2", Architecture::Gemma2),
    ("gemma3", Architecture::Gemma3),
    ("phi3", Architecture::Phi3),
    ("falcon", Architecture::Falcon),
    ("bloom", Architecture::Bloom),
    ("gpt2", Architecture::Gpt2),
    ("gptneox", Architecture::GptNeox),
    ("stablelm", Architecture::Stablelm),
];

/// Names in a GGUF file, without `.weight` and `.bias`, and in the HF layout.
type Names = &'static [(&'static str, &'static str)];

const LLAMA: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "block_sparse_moe.gate"),
    // One tensor for all experts of a block.
    ("ffn_gate_exps", "block_sparse_moe.experts.{}.w1"),
    ("ffn_up_exps", "block_sparse_moe.experts.{}.w3"),
    ("ffn_down_exps", "block_sparse_moe.experts.{}.w2"),
];
/// What Gemma 2 and 3 call otherwise than a Llama.
const GEMMA2: Names = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const PHI3: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_up", "mlp.gate_up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
const BLOOM: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attention.query_key_value"),
    ("attn_output", "self_attention.dense"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_up", "mlp.dense_h_to_4h"),
    ("ffn_down", "mlp.dense_4h_to_h"),
];
const FALCON: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attention.query_key_value"),
    ("attn_output", "self_attention.dense"),
    ("ffn_up", "mlp.dense_h_to_4h"),
    ("ffn_down", "mlp.dense_4h_to_h"),
];
const FALCON_TWO_NORMS: Names = &[("attn_norm", "ln_mlp"), ("attn_norm_2", "ln_attn")];
const GPT2: Names = &[
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];
const GPT_NEOX: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "attention.query_key_value"),
    ("attn_output", "attention.dense"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_up", "mlp.dense_h_to_4h"),
    ("ffn_down", "mlp.dense_4h_to_h"),
];

const LLAMA_ENDS: Names = &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
const BLOOM_ENDS: Names = &[
    ("token_embd", "transformer.word_embeddings"),
    ("token_embd_norm", "transformer.word_embeddings_layernorm"),
    ("output_norm", "transformer.ln_f"),
    ("output", "lm_head"),
];
const GPT2_ENDS: Names = &[
    ("token_embd", "transformer.wte"),
    ("position_embd", "transformer.wpe"),
    ("output_norm", "transformer.ln_f"),
    ("output", "lm_head"),
];
const GPT_NEOX_ENDS: Names =
    &[("token_embd", "gpt_neox.embed_in"), ("output_norm", "gpt_neox.final_layer_norm"), ("output", "embed_out")];

impl Architecture {
    pub(super) fn of(keys: Keys<'_>) -> Result<Self, OpenError> {
        let name = keys.text("general.architecture")?;
        let found = ALL.iter().find(|(known, _)| *known == name).map(|(_, architecture)| *architecture);
        let names: Vec<&str> = ALL.iter().map(|(known, _)| *known).collect();
        found.ok_or_else(|| keys.unsupported("general.architecture", names.join(", ")))
    }

    /// What stands before the architecture's own keys.
    pub(super) fn prefix(self) -> String {
        let name = ALL.iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name);
        format!("{name}.")
    }

    /// The family, of a model with or without experts. A Mistral is written as a Llama.
    pub(super) fn family(self, has_experts: bool) -> Family {
        match self {
            Self::Llama if has_experts => Family::Mixtral,
            Self::Llama => Family::Llama,
            Self::Qwen2 => Family::Qwen2,
            Self::Qwen3 => Family::Qwen3,
            Self::Gemma => Family::Gemma,
            Self::Gemma2 => Family::Gemma2,
            Self::Gemma3 => Family::Gemma3,
            Self::Phi3 => Family::Phi3,
            Self::Falcon => Family::Falcon,
            Self::Bloom => Family::Bloom,
            Self::Gpt2 => Family::Gpt2,
            Self::GptNeox => Family::GptNeox,
            Self::Stablelm => Family::Stablelm,
        }
    }

    pub(super) fn has_rms_norms(self) -> bool {
        !matches!(self, Self::Falcon | Self::Bloom | Self::Gpt2 | Self::GptNeox | Self::Stablelm)
    }

    pub(super) fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3)
    }

    /// The HF name of a block's tensor `part`, after the block's prefix; `{}` stands for an expert.
    pub(super) fn of_block(self, part: &str, has_two_norms: bool) -> Option<&'static str> {
        let names = match self {
            Self::Llama | Self::Qwen2 | Self::Qwen3 | Self::Gemma | Self::Stablelm => LLAMA,
            Self::Gemma2 | Self::Gemma3 => return find(GEMMA2, part).or_else(|| find(LLAMA, part)),
            Self::Phi3 => PHI3,
            Self::Falcon if has_two_norms && part.starts_with("attn_norm") => FALCON_TWO_NORMS,
            Self::Falcon => FALCON,
            Self::Bloom => BLOOM,
            Self::Gpt2 => GPT2,
            Self::GptNeox => GPT_NEOX,
        };
        find(names, part)
    }

    /// The HF name of a tensor `stem` that no block has.
    pub(super) fn of_ends(self, stem: &str) -> Option<&'static str> {
        let names = match self {
            Self::Falcon | Self::Bloom => BLOOM_ENDS,
            Self::Gpt2 => GPT2_ENDS,
            Self::GptNeox => GPT_NEOX_ENDS,
            _ => LLAMA_ENDS,
        };
        find(names, stem)
    }
}

fn find(names: Names, part: &str) -> Option<&'static str> {
    names.iter().find(|&&(gguf, _)| gguf == part).map(|&(_, hf)| hf)
}

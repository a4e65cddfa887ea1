//! The description of one model family: an entry of the table in [`crate::families`].

use sepal_core::{Activation, Family, ModelConfig, ScoreRule};

use crate::error::OpenError;
use crate::keys::Keys;
use crate::linear_sites::Sites;

/// One model family, as its checkpoints describe it.
pub(crate) struct FamilySpec {
    pub(crate) family: Family,
    /// Class of transformers with a classifier, if it has one.
    pub(crate) classifier: Option<&'static str>,
    pub(crate) tensors: TensorNames,
    /// Position encoding, unless the configuration chooses another.
    pub(crate) positions: PositionEncoding,
    /// Supported activations, the default first.
    pub(crate) activations: &'static [Activation],
    pub(crate) keys: ConfigKeys,
    pub(crate) defaults: ClassDefaults,
    pub(crate) rotary: RotaryKeys,
    pub(crate) read_config: fn(Keys<'_>, &FamilySpec) -> Result<ModelConfig, OpenError>,
    /// Linear layers of a block that adapters can change.
    pub(crate) sites: Sites,
    /// Linear layers that have no biases.
    pub(crate) without_bias: &'static [WithoutBias],
    /// True if linear layers have a row for each input in the HF layout.
    pub(crate) has_rows_of_inputs: bool,
    /// True if one tensor holds a layer of all experts of a block.
    pub(crate) has_stacked_experts: bool,
    /// Layout of its GGUF files, if it has any.
    pub(crate) gguf: Option<GgufSpec>,
}

/// Names of a family's tensors in the HF layout.
#[derive(Debug, Clone, Copy)]
pub struct TensorNames {
    /// Prefix of all names but those of the output layer, for example `model.`. Files of the bare model leave it out.
    pub prefix: &'static str,
    /// Name of the list of blocks after the prefix, for example `layers`.
    pub blocks: &'static str,
    /// Name of the learned positions after the prefix, if there are any. They belong to the first block.
    pub positions: Option<&'static str>,
}

impl TensorNames {
    /// Prefix of the names of block `block_idx`, for example `model.layers.3.`.
    pub fn block_prefix(&self, block_idx: usize) -> String {
        format!("{}{}.{block_idx}.", self.prefix, self.blocks)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PositionEncoding {
    Rotary,
    Alibi,
    Learned,
}

/// Keys of `config.json` that differ between families. Of several keys the first that is present counts.
pub(crate) struct ConfigKeys {
    pub(crate) hidden: &'static [&'static str],
    pub(crate) n_heads: &'static [&'static str],
    pub(crate) n_blocks: &'static [&'static str],
    /// `None` if the MLP is always four times as wide as the hidden state.
    pub(crate) ffn: Option<&'static str>,
    /// `None` if the epsilon is always 1e-5.
    pub(crate) norm_eps: Option<&'static str>,
    pub(crate) initializer_range: &'static [&'static str],
    /// `None` if `read_config` sets the activation.
    pub(crate) activation: Option<&'static str>,
}

/// Defaults of a family's configuration class in transformers 5.23, for keys that a file leaves out.
pub(crate) struct ClassDefaults {
    pub(crate) vocab_size: usize,
    pub(crate) hidden: usize,
    /// `None` for four times the hidden size.
    pub(crate) ffn: Option<usize>,
    pub(crate) n_blocks: usize,
    pub(crate) n_heads: usize,
    /// `None` for one key head for each query head.
    pub(crate) n_kv_heads: Option<usize>,
    /// `None` for an equal part of the hidden size.
    pub(crate) head_dim: Option<usize>,
    pub(crate) norm_eps: f64,
    pub(crate) max_positions: usize,
    /// Base of the rotary embedding.
    pub(crate) theta: f64,
}

/// Keys of a rotary embedding that differ between families.
pub(crate) struct RotaryKeys {
    /// Key beside the scaling that holds the base.
    pub(crate) theta: &'static str,
    /// Key beside the scaling that holds the rotated share of a head, and its default; `None` if whole heads rotate.
    pub(crate) share: Option<(&'static str, f64)>,
    pub(crate) original: OriginalLength,
    /// True if `longrope`, also under its older names, is the only scaling.
    pub(crate) is_longrope_only: bool,
}

/// Place of `original_max_position_embeddings`, the length that scaled positions were trained for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OriginalLength {
    /// Beside the scaling, else within it.
    BesideOrWithin,
    /// Within the scaling only.
    Within,
    /// Beside the scaling, with this default.
    Beside(usize),
}

/// Linear layers without biases, unless a key says that they have some.
pub(crate) struct WithoutBias {
    /// Ends of the names of the layers.
    pub(crate) layers: &'static [&'static str],
    /// The key, and its default.
    pub(crate) unless: Option<(&'static str, bool)>,
}

/// Names in a GGUF file, without `.weight` and `.bias`, and in the HF layout; `{}` stands for the number of an expert or a
/// head, whose tensors are one tensor in the file.
pub(crate) type Renames = &'static [(&'static str, &'static str)];

pub(crate) struct GgufSpec {
    /// `general.architecture`. Families with and without experts may share it.
    pub(crate) architecture: &'static str,
    /// Mixture of experts, if the family has one.
    pub(crate) experts: Option<GgufExperts>,
    /// Key of the epsilon.
    pub(crate) norm_eps: &'static str,
    /// Names of a block's tensors; of several lists the first that has a name counts.
    pub(crate) block: &'static [Renames],
    /// Names that come before those of `block` in files with a second norm of attention.
    pub(crate) with_second_norm: Renames,
    /// Names of tensors outside blocks.
    pub(crate) ends: Renames,
    pub(crate) rows: RowOrder,
    pub(crate) parallel: Parallel,
    /// Default of the soft cap of scores; `None` if scores are not capped.
    pub(crate) score_cap: Option<f64>,
    /// Number of blocks of the size whose scores are scaled by `hidden / n_heads` instead of the head size.
    pub(crate) n_blocks_scaled_by_hidden: Option<usize>,
    pub(crate) window: Option<GgufWindow>,
    /// True if a file with a window is of another family.
    pub(crate) refuses_window: bool,
    /// True if the file has factors of embeddings, residuals, scores and logits.
    pub(crate) has_factors: bool,
    /// Period of blocks without positions; `None` if all blocks have them.
    pub(crate) unrotated_period: Option<usize>,
    /// Tensor of models that have norms with a weight for each head, in a family of which only some models have them.
    pub(crate) head_norms: Option<&'static str>,
}

/// Mixture of experts of a GGUF model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GgufExperts {
    /// True if the weights of experts are parts of the softmax of all scores.
    pub(crate) is_softmax_of_all: bool,
    /// True if experts have another width than a plain MLP of the model.
    pub(crate) has_own_width: bool,
    /// True if all positions pass one more expert.
    pub(crate) has_shared: bool,
}

/// Reordering of rows by llama.cpp's converter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowOrder {
    Same,
    /// The halves of each head of queries and keys are interleaved.
    InterleavedHeads,
    /// Queries, keys and values of a fused layer are concatenated.
    ConcatenatedHeads,
    /// Linear layers are transposed.
    TransposedLayers,
    /// Norms have 1 added.
    NormsPlusOne,
}

/// Condition under which attention and MLP of a GGUF model are parallel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Parallel {
    Never,
    Always,
    /// Unless the key says false.
    UnlessKey(&'static str),
    /// If the file does not have the tensor.
    WithoutTensor(&'static str),
}

/// Sliding window of a GGUF model.
pub(crate) struct GgufWindow {
    /// Default size; `None` for no window.
    pub(crate) size: Option<usize>,
    /// Default period of blocks without a window; `None` if all blocks have it.
    pub(crate) period: Option<usize>,
    /// Default rotary base of blocks with the window, if it differs from that of the others.
    pub(crate) local_theta: Option<f64>,
}

impl ConfigKeys {
    pub(crate) const USUAL: Self = Self {
        hidden: &["hidden_size"],
        n_heads: &["num_attention_heads"],
        n_blocks: &["num_hidden_layers"],
        ffn: Some("intermediate_size"),
        norm_eps: Some("rms_norm_eps"),
        initializer_range: &["initializer_range"],
        activation: Some("hidden_act"),
    };
}

impl ClassDefaults {
    pub(crate) const LLAMA: Self = Self {
        vocab_size: 32_000,
        hidden: 4096,
        ffn: Some(11_008),
        n_blocks: 32,
        n_heads: 32,
        n_kv_heads: None,
        head_dim: None,
        norm_eps: 1e-6,
        max_positions: 2048,
        theta: 10_000.0,
    };
    /// Usual defaults of families with LayerNorms.
    pub(crate) const LAYER_NORMS: Self = Self { ffn: None, norm_eps: 1e-5, ..Self::LLAMA };
}

impl RotaryKeys {
    pub(crate) const USUAL: Self =
        Self { theta: "rope_theta", share: None, original: OriginalLength::BesideOrWithin, is_longrope_only: false };
}

impl FamilySpec {
    /// A model of the family with the parts that all its models share.
    pub(crate) fn plain(
        &self,
        n_blocks: usize,
        hidden: usize,
        n_heads: usize,
        ffn: usize,
        vocab_size: usize,
    ) -> ModelConfig {
        let plain = ModelConfig::plain(self.family, n_blocks, hidden, n_heads, ffn, vocab_size);
        ModelConfig {
            rope: plain.rope.filter(|_| self.positions == PositionEncoding::Rotary),
            scores: ScoreRule { alibi: self.positions == PositionEncoding::Alibi, ..plain.scores },
            activation: self.activations[0],
            ..plain
        }
    }
}

impl GgufSpec {
    pub(crate) const LLAMA: Self = Self {
        architecture: "llama",
        experts: None,
        norm_eps: "attention.layer_norm_rms_epsilon",
        block: &[Self::LLAMA_BLOCK],
        with_second_norm: &[],
        ends: &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")],
        rows: RowOrder::Same,
        parallel: Parallel::Never,
        score_cap: None,
        n_blocks_scaled_by_hidden: None,
        window: None,
        refuses_window: false,
        has_factors: false,
        unrotated_period: None,
        head_norms: None,
    };
    /// As [`GgufSpec::LLAMA`], with LayerNorms.
    pub(crate) const LAYER_NORMS: Self = Self { norm_eps: "attention.layer_norm_epsilon", ..Self::LLAMA };
    pub(crate) const LLAMA_BLOCK: Renames = &[
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

    /// HF name of a block's tensor `part`, after the block's prefix.
    pub(crate) fn block_name(&self, part: &str, has_second_norm: bool) -> Option<&'static str> {
        let second_norm = has_second_norm.then_some(self.with_second_norm);
        second_norm.iter().chain(self.block).find_map(|names| renamed(names, part))
    }

    /// HF name of a tensor outside blocks.
    pub(crate) fn end_name(&self, stem: &str) -> Option<&'static str> {
        renamed(self.ends, stem)
    }
}

fn renamed(names: Renames, gguf_name: &str) -> Option<&'static str> {
    names.iter().find(|&&(gguf, _)| gguf == gguf_name).map(|&(_, hf)| hf)
}

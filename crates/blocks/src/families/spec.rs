use sepal_core::{Family, ModelConfig};
use tch::Tensor;

use crate::exec::block::Block;
use crate::weights::{LoadError, Reader};

type ReadPositions = fn(&Reader<'_>, &ModelConfig, &str) -> Result<Tensor, LoadError>;

/// One model family, as its blocks and ends are built from tensors.
pub(crate) struct FamilySpec {
    pub(crate) family: Family,
    /// Builds block `block_idx`; the reader reads its tensors.
    pub(crate) block: fn(&Reader<'_>, &ModelConfig, usize) -> Result<Block, LoadError>,
    pub(crate) ends: EndNames,
    /// Reads learned positions `[max_positions, hidden]` of the given name, if the family has them.
    pub(crate) positions: Option<ReadPositions>,
    /// True if there is a key head for each query head, and heads make up the hidden state.
    pub(crate) has_equal_heads: bool,
    /// True if the rotary embedding pairs adjacent numbers of a head.
    pub(crate) has_adjacent_pairs: bool,
    /// True if ALiBi's biases are rounded to bf16.
    pub(crate) rounds_alibi: bool,
}

/// Names of a model's ends, and their kinds.
pub(crate) struct EndNames {
    /// Embeddings `[vocab_size, hidden]`.
    pub(crate) embedding: &'static str,
    /// True if embeddings are multiplied by the square root of the hidden size.
    pub(crate) scales_embedding: bool,
    /// LayerNorm of embeddings.
    pub(crate) embedding_norm: Option<&'static str>,
    /// Norm after the last block.
    pub(crate) final_norm: &'static str,
    pub(crate) kind: EndNorm,
}

/// Kind of the norm after the last block.
pub(crate) enum EndNorm {
    Rms,
    /// RMSNorm with the weight `1 + weight`.
    RmsFromOne,
    Layer,
    /// LayerNorm without a bias.
    LayerWithoutBias,
}

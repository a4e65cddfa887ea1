use sepal_core::{Activation, Family, ModelConfig};

use crate::config::{heads_divide_hidden, only, sizes};
use crate::error::OpenError;
use crate::family::{
    ClassDefaults, ConfigKeys, FamilySpec, GgufSpec, PositionEncoding, Renames, RotaryKeys, RowOrder, TensorNames,
};
use crate::keys::Keys;
use crate::linear_sites;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Bloom,
    classifier: Some("BloomForSequenceClassification"),
    tensors: TensorNames { prefix: "transformer.", blocks: "h", positions: None },
    positions: PositionEncoding::Alibi,
    activations: &[Activation::GeluTanh],
    keys: ConfigKeys {
        hidden: &["n_embed", "hidden_size"],
        n_heads: &["num_attention_heads", "n_head"],
        n_blocks: &["num_hidden_layers", "n_layer"],
        ffn: None,
        norm_eps: Some("layer_norm_epsilon"),
        initializer_range: &["initializer_range"],
        activation: None,
    },
    defaults: ClassDefaults { vocab_size: 250_880, hidden: 64, n_blocks: 2, n_heads: 8, ..ClassDefaults::LAYER_NORMS },
    rotary: RotaryKeys::USUAL,
    read_config,
    sites: linear_sites::BLOOM,
    has_rows_of_inputs: false,
    has_stacked_experts: false,
    without_bias: &[],
    gguf: Some(GgufSpec {
        architecture: "bloom",
        block: &[FUSED, &[("ffn_norm", "post_attention_layernorm")]],
        ends: ENDS,
        rows: RowOrder::ConcatenatedHeads,
        ..GgufSpec::LAYER_NORMS
    }),
};

/// Names of a block with a fused layer of queries, keys and values.
pub(super) const FUSED: Renames = &[
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attention.query_key_value"),
    ("attn_output", "self_attention.dense"),
    ("ffn_up", "mlp.dense_h_to_4h"),
    ("ffn_down", "mlp.dense_4h_to_h"),
];

/// Names of tensors outside blocks.
pub(super) const ENDS: Renames = &[
    ("token_embd", "transformer.word_embeddings"),
    ("token_embd_norm", "transformer.word_embeddings_layernorm"),
    ("output_norm", "transformer.ln_f"),
    ("output", "lm_head"),
];

fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    only(keys, "apply_residual_connection_post_layernorm", false)?;
    // Products in slices are summed without their biases.
    if keys.optional_count("pretraining_tp")?.is_some_and(|slices| slices > 1) {
        only(keys, "slow_but_exact", false)?;
    }
    let config = sizes(keys, spec)?;
    heads_divide_hidden(keys, spec, &config)?;
    Ok(config)
}

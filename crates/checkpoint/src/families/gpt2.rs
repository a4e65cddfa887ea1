use sepal_core::{Activation, Family, ModelConfig, ScoreRule};

use crate::config::{heads_divide_hidden, only, sizes};
use crate::error::OpenError;
use crate::family::{
    ClassDefaults, ConfigKeys, FamilySpec, GgufSpec, PositionEncoding, RotaryKeys, RowOrder, TensorNames,
};
use crate::keys::Keys;
use crate::linear_sites;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Gpt2,
    classifier: Some("GPT2ForSequenceClassification"),
    tensors: TensorNames { prefix: "transformer.", blocks: "h", positions: Some("wpe.weight") },
    positions: PositionEncoding::Learned,
    activations: &[Activation::GeluTanh, Activation::Gelu, Activation::Relu],
    keys: ConfigKeys {
        hidden: &["hidden_size", "n_embd"],
        n_heads: &["num_attention_heads", "n_head"],
        n_blocks: &["num_hidden_layers", "n_layer"],
        ffn: Some("n_inner"),
        norm_eps: Some("layer_norm_epsilon"),
        initializer_range: &["initializer_range"],
        activation: Some("activation_function"),
    },
    defaults: ClassDefaults {
        vocab_size: 50_257,
        hidden: 768,
        n_blocks: 12,
        n_heads: 12,
        max_positions: 1024,
        ..ClassDefaults::LAYER_NORMS
    },
    rotary: RotaryKeys::USUAL,
    read_config,
    sites: linear_sites::GPT2,
    has_rows_of_inputs: true,
    has_stacked_experts: false,
    without_bias: &[],
    gguf: Some(GgufSpec {
        architecture: "gpt2",
        block: &[&[
            ("attn_norm", "ln_1"),
            ("attn_qkv", "attn.c_attn"),
            ("attn_output", "attn.c_proj"),
            ("ffn_norm", "ln_2"),
            ("ffn_up", "mlp.c_fc"),
            ("ffn_down", "mlp.c_proj"),
        ]],
        ends: &[
            ("token_embd", "transformer.wte"),
            ("position_embd", "transformer.wpe"),
            ("output_norm", "transformer.ln_f"),
            ("output", "lm_head"),
        ],
        rows: RowOrder::TransposedLayers,
        ..GgufSpec::LAYER_NORMS
    }),
};

fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    only(keys, "add_cross_attention", false)?;
    let config = sizes(keys, spec)?;
    heads_divide_hidden(keys, spec, &config)?;
    let max_positions = keys.count_of(&["max_position_embeddings", "n_positions"], spec.defaults.max_positions)?;
    Ok(ModelConfig {
        max_positions: Some(max_positions),
        scores: ScoreRule {
            scale: (keys.optional_flag("scale_attn_weights")? == Some(false)).then_some(1.0),
            by_block: keys.flag("scale_attn_by_inverse_layer_idx")?,
            ..config.scores
        },
        ..config
    })
}

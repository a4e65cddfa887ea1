use sepal_core::{Activation, Family, ModelConfig};

use crate::config::{equal_head_dim, rotary, sizes};
use crate::error::OpenError;
use crate::family::{
    ClassDefaults, ConfigKeys, FamilySpec, GgufSpec, Parallel, PositionEncoding, RotaryKeys, RowOrder, TensorNames,
    WithoutBias,
};
use crate::keys::Keys;
use crate::linear_sites;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::GptNeox,
    classifier: Some("GPTNeoXForSequenceClassification"),
    tensors: TensorNames { prefix: "gpt_neox.", blocks: "layers", positions: None },
    positions: PositionEncoding::Rotary,
    activations: &[Activation::Gelu, Activation::GeluTanh, Activation::Relu],
    keys: ConfigKeys { norm_eps: Some("layer_norm_eps"), ..ConfigKeys::USUAL },
    defaults: ClassDefaults {
        vocab_size: 50_432,
        hidden: 6144,
        ffn: Some(24_576),
        n_blocks: 44,
        n_heads: 64,
        ..ClassDefaults::LAYER_NORMS
    },
    rotary: RotaryKeys { theta: "rotary_emb_base", share: Some(("rotary_pct", 0.25)), ..RotaryKeys::USUAL },
    read_config,
    sites: linear_sites::GPT_NEOX,
    has_rows_of_inputs: false,
    has_stacked_experts: false,
    without_bias: &[WithoutBias {
        layers: &[".query_key_value", ".attention.dense"],
        unless: Some(("attention_bias", true)),
    }],
    gguf: Some(GgufSpec {
        architecture: "gptneox",
        block: &[&[
            ("attn_norm", "input_layernorm"),
            ("attn_qkv", "attention.query_key_value"),
            ("attn_output", "attention.dense"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.dense_h_to_4h"),
            ("ffn_down", "mlp.dense_4h_to_h"),
        ]],
        ends: &[
            ("token_embd", "gpt_neox.embed_in"),
            ("output_norm", "gpt_neox.final_layer_norm"),
            ("output", "embed_out"),
        ],
        rows: RowOrder::ConcatenatedHeads,
        parallel: Parallel::UnlessKey("use_parallel_residual"),
        ..GgufSpec::LAYER_NORMS
    }),
};

fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = sizes(keys, spec)?;
    let head_dim = equal_head_dim(keys, spec, &config)?;
    let is_parallel = keys.optional_flag("use_parallel_residual")?.unwrap_or(true);
    rotary(keys, spec, ModelConfig { head_dim, is_parallel, ..config })
}

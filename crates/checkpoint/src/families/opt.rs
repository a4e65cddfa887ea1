//! OPT in all sizes but the 350m, whose norms come after attention and MLP.

use sepal_core::{Activation, Family, ModelConfig};

use super::llama;
use crate::config::{heads_divide_hidden, only, sizes};
use crate::error::OpenError;
use crate::family::{ClassDefaults, ConfigKeys, FamilySpec, PositionEncoding, TensorNames, WithoutBias};
use crate::keys::Keys;
use crate::linear_sites;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Opt,
    classifier: Some("OPTForSequenceClassification"),
    tensors: TensorNames {
        blocks: "decoder.layers",
        positions: Some("decoder.embed_positions.weight"),
        ..llama::SPEC.tensors
    },
    positions: PositionEncoding::Learned,
    activations: &[Activation::Relu, Activation::Gelu, Activation::GeluTanh],
    keys: ConfigKeys {
        ffn: Some("ffn_dim"),
        norm_eps: None,
        initializer_range: &["init_std", "initializer_range"],
        activation: Some("activation_function"),
        ..ConfigKeys::USUAL
    },
    defaults: ClassDefaults {
        vocab_size: 50_272,
        hidden: 768,
        ffn: Some(3072),
        n_blocks: 12,
        n_heads: 12,
        ..ClassDefaults::LAYER_NORMS
    },
    read_config,
    sites: linear_sites::OPT,
    without_bias: &[WithoutBias {
        layers: &[".q_proj", ".k_proj", ".v_proj", ".out_proj", ".fc1", ".fc2"],
        unless: Some(("enable_bias", true)),
    }],
    gguf: None,
    ..llama::SPEC
};

fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    only(keys, "do_layer_norm_before", true)?;
    only(keys, "_remove_final_layer_norm", false)?;
    only(keys, "layer_norm_elementwise_affine", true)?;
    let config = sizes(keys, spec)?;
    let hidden = config.hidden;
    if keys.optional_count("word_embed_proj_dim")?.is_some_and(|dim| dim != hidden) {
        return Err(keys.unsupported("word_embed_proj_dim", format!("hidden_size, {hidden}")));
    }
    heads_divide_hidden(keys, spec, &config)?;
    Ok(ModelConfig {
        max_positions: Some(keys.count_of(&["max_position_embeddings"], spec.defaults.max_positions)?),
        ..config
    })
}

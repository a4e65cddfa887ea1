use sepal_core::{Activation, Family, ModelConfig};

use crate::config::{head_dim, n_kv_heads, rotary, sizes};
use crate::error::OpenError;
use crate::family::{
    ClassDefaults, ConfigKeys, FamilySpec, GgufSpec, PositionEncoding, RotaryKeys, RowOrder, TensorNames, WithoutBias,
};
use crate::keys::Keys;
use crate::linear_sites;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::Llama,
    classifier: Some("LlamaForSequenceClassification"),
    tensors: TensorNames { prefix: "model.", blocks: "layers", positions: None },
    positions: PositionEncoding::Rotary,
    activations: &[Activation::Silu],
    keys: ConfigKeys::USUAL,
    defaults: ClassDefaults::LLAMA,
    rotary: RotaryKeys::USUAL,
    read_config,
    sites: linear_sites::LLAMA,
    without_bias: &[
        WithoutBias { layers: ATTENTION, unless: Some(("attention_bias", false)) },
        WithoutBias { layers: GATED_MLP, unless: Some(("mlp_bias", false)) },
    ],
    has_rows_of_inputs: false,
    has_stacked_experts: false,
    gguf: Some(GgufSpec { architecture: "llama", rows: RowOrder::InterleavedHeads, ..GgufSpec::LLAMA }),
};

pub(super) const ATTENTION: &[&str] = &[".q_proj", ".k_proj", ".v_proj", ".o_proj"];
pub(super) const GATED_MLP: &[&str] = &[".gate_proj", ".up_proj", ".down_proj"];

/// Reads the keys of a Llama, which several families add to. A window in Llama's own files is not used by transformers.
pub(super) fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    rotary(keys, spec, read_heads(keys, spec)?)
}

/// Reads all but the positions.
pub(super) fn read_heads(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = sizes(keys, spec)?;
    let (n_kv_heads, head_dim) = (n_kv_heads(keys, spec, &config)?, head_dim(keys, spec, &config)?);
    Ok(ModelConfig { n_kv_heads, head_dim, ..config })
}

//! @TYPE@.
//!
//! Start here: this is a Llama's entry. Fields that are left out are those of a Llama. Take out the comments that are
//! answered.

use sepal_core::{Activation, Family, ModelConfig};

use super::llama::{self, ATTENTION, GATED_MLP};
use crate::config::{head_dim, n_kv_heads, rotary, sizes};
use crate::error::OpenError;
use crate::family::{ClassDefaults, ConfigKeys, FamilySpec, PositionEncoding, RotaryKeys, TensorNames, WithoutBias};
use crate::keys::Keys;
use crate::linear_sites;

pub(super) const SPEC: FamilySpec = FamilySpec {
    family: Family::@TYPE@,
    // As transformers spells it.
    classifier: Some("@TYPE@ForSequenceClassification"),
    // Prefixes of the tensors' names: gpt_neox.rs. Name of learned positions: opt.rs.
    tensors: TensorNames { ..llama::SPEC.tensors },
    // Learned positions: opt.rs. ALiBi: bloom.rs.
    positions: PositionEncoding::Rotary,
    // Supported activations, the default first.
    activations: &[Activation::Silu],
    // Names of the keys, where they differ: bloom.rs.
    keys: ConfigKeys { ..ConfigKeys::USUAL },
    // Defaults of the configuration class in transformers.
    defaults: ClassDefaults { ..ClassDefaults::LLAMA },
    // Rotated share of a head: stablelm.rs. Place of the original length: phi3.rs.
    rotary: RotaryKeys { ..RotaryKeys::USUAL },
    read_config,
    // Linear layers without biases, and the key that says otherwise.
    sites: linear_sites::LLAMA,
    without_bias: &[WithoutBias { layers: ATTENTION, unless: None }, WithoutBias { layers: GATED_MLP, unless: None }],
    // Layers with a row for each input: gpt2.rs.
    has_rows_of_inputs: false,
    // One tensor for a layer of all experts: gpt_oss.rs.
    has_stacked_experts: false,
    // Names and conventions of llama.cpp, if it has the architecture: phi3.rs.
    gguf: None,
};

// A key that asks for a computation that the blocks do not have is refused: `only` (opt.rs).
fn read_config(keys: Keys<'_>, spec: &FamilySpec) -> Result<ModelConfig, OpenError> {
    let config = sizes(keys, spec)?;
    let config = ModelConfig {
        n_kv_heads: n_kv_heads(keys, spec, &config)?,
        head_dim: head_dim(keys, spec, &config)?,
        // `is_parallel` (gpt_neox.rs), `experts` (mixtral.rs).
        ..config
    };
    // Scores: a window (phi3.rs), another scale or a cap (gemma.rs), ALiBi (falcon.rs).
    rotary(keys, spec, config)
}

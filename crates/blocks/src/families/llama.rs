//! Llama, Mistral, Qwen2 and Qwen3: RMSNorm, attention with rotary positions and grouped queries, RMSNorm, a gated MLP.
//! Biases wherever the checkpoint has them; Qwen3 has norms of heads.

use sepal_core::{Family, ModelConfig};

use super::{from_queries, heads, queries, rms_norm};
use crate::attention::heads::Heads;
use crate::exec::block::Block;
use crate::layers::dense::{Activate, Dense};
use crate::layers::linear::{Layer, Linear};
use crate::layers::mlp::Mlp;
use crate::layers::norm::{HeadNorms, NormWeights, WeightedNorm};
use crate::weights::{LoadError, Reader};

pub(super) fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    reader.refuse("post_feedforward_layernorm.weight")?;
    let mlp_norm = reader.rms("post_attention_layernorm", config.hidden)?;
    let mlp = Mlp::Dense(gated(reader, config, "mlp", ["gate_proj", "up_proj", "down_proj"], &mlp_norm)?);
    let attention_norm = reader.rms("input_layernorm", config.hidden)?;
    with_attention(reader, config, heads(config, block_idx), &attention_norm, mlp)
}

/// A block with a Llama's attention.
pub(super) fn with_attention(
    reader: &Reader<'_>,
    config: &ModelConfig,
    heads: Heads,
    norm: &NormWeights,
    mlp: Mlp,
) -> Result<Block, LoadError> {
    let &ModelConfig { hidden, n_heads, n_kv_heads, head_dim, .. } = config;
    let q = reader.layer("self_attn.q_proj", n_heads * head_dim, hidden)?;
    let k = reader.layer("self_attn.k_proj", n_kv_heads * head_dim, hidden)?;
    let v = reader.layer("self_attn.v_proj", n_kv_heads * head_dim, hidden)?;
    let output = reader.layer("self_attn.o_proj", hidden, n_heads * head_dim)?;
    Ok(Block {
        heads,
        norm: rms_norm(config),
        is_parallel: false,
        q: reader.frozen(q.map_rows(|rows| queries(heads, rows))?.after(norm)?)?,
        kv: reader.frozen(Layer::stacked(&[k, v])?.after(norm)?)?,
        head_norms: head_norms(reader, config)?,
        output: reader.frozen(from_queries(heads, output)?)?,
        attention_norm: None,
        mlp,
        mlp_norm: None,
    })
}

fn head_norms(reader: &Reader<'_>, config: &ModelConfig) -> Result<Option<HeadNorms>, LoadError> {
    if !matches!(config.family, Family::Qwen3 | Family::Gemma3) {
        reader.refuse("self_attn.q_norm.weight")?;
        return Ok(None);
    }
    let norm = |name: &str| {
        let weight = reader.tensor(&format!("self_attn.{name}.weight"), &[config.head_dim])?;
        Ok::<_, LoadError>(WeightedNorm { norm: rms_norm(config), weight })
    };
    Ok(Some(HeadNorms { q: norm("q_norm")?, k: norm("k_norm")?, dim: config.head_dim as i64 }))
}

/// A gated MLP whose layers are `names` in `folder`: gate, up and down.
pub(super) fn gated(
    reader: &Reader<'_>,
    config: &ModelConfig,
    folder: &str,
    names: [&str; 3],
    norm: &NormWeights,
) -> Result<Dense, LoadError> {
    let &ModelConfig { hidden, ffn, .. } = config;
    let [gate, up, down] = names.map(|name| format!("{folder}.{name}"));
    let up = Layer::stacked(&[reader.layer(&gate, ffn, hidden)?, reader.layer(&up, ffn, hidden)?])?.after(norm)?;
    let down: Linear = reader.frozen(reader.layer(&down, hidden, ffn)?)?;
    let activation = Activate { function: config.activation, is_gated: true };
    Ok(Dense { activation, up: reader.frozen(up)?, down })
}

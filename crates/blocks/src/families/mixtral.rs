//! Mixtral (arXiv 2401.04088): as Llama, with a mixture of experts instead of the MLP.

use sepal_core::{Family, ModelConfig};

use super::llama::{self, gated, refuse_head_norms, with_attention};
use super::parts::heads;
use super::spec::FamilySpec;
use crate::exec::block::Block;
use crate::layers::dense::Dense;
use crate::layers::experts::Router;
use crate::layers::linear::Layer;
use crate::layers::mlp::Mlp;
use crate::weights::{LoadError, Reader};

pub(super) const SPEC: FamilySpec = FamilySpec { family: Family::Mixtral, block, ..llama::SPEC };

fn block(reader: &Reader<'_>, config: &ModelConfig, block_idx: usize) -> Result<Block, LoadError> {
    let Some(experts) = config.experts else {
        return Err(LoadError::Config { problem: "a mixtral block needs a number of experts".to_owned() });
    };
    refuse_head_norms(reader)?;
    let norm = reader.rms("post_attention_layernorm", config.hidden)?;
    let weight = reader.tensor("block_sparse_moe.gate.weight", &[experts.count, config.hidden])?;
    let expert = |expert: usize| {
        let folder = format!("block_sparse_moe.experts.{expert}");
        // The gradients of the router assume that outputs are products, without biases.
        reader.refuse(&format!("{folder}.w2.bias"))?;
        gated(reader, config, &folder, ["w1", "w3", "w2"], &norm).map(Dense::with_varying_rows)
    };
    let mlp = Mlp::Routed(Router {
        router: reader.exact(Layer { weight, bias: None, inputs: None }.after(&norm)?)?,
        per_token: experts.per_token as i64,
        experts: (0..experts.count).map(expert).collect::<Result<_, _>>()?,
    });
    let norm = reader.rms("input_layernorm", config.hidden)?;
    with_attention(reader, config, heads(config, block_idx), &norm, mlp)
}

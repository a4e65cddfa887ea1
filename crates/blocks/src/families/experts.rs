//! Mixtures of experts of several families.

use sepal_core::{Experts, ModelConfig};

use super::llama::gated;
use crate::layers::dense::Dense;
use crate::layers::experts::{Router, SharedExpert};
use crate::layers::linear::{Layer, Linear};
use crate::layers::mlp::Mlp;
use crate::layers::norm::NormWeights;
use crate::layers::packed::Weight;
use crate::weights::{LoadError, Reader};

/// Names of a mixture's tensors in a block.
pub(super) struct ExpertNames {
    pub(super) folder: &'static str,
    /// The layer that scores positions.
    pub(super) router: &'static str,
    /// Gate, up and down of an expert.
    pub(super) layers: [&'static str; 3],
    /// True if the router and the layers of experts have biases.
    pub(super) has_biases: bool,
}

/// Names that most families have.
pub(super) const MLP: ExpertNames =
    ExpertNames { folder: "mlp", router: "gate", layers: ["gate_proj", "up_proj", "down_proj"], has_biases: false };

/// A mixture of experts after `norm`.
pub(super) fn routed(
    reader: &Reader<'_>,
    config: &ModelConfig,
    names: &ExpertNames,
    norm: &NormWeights,
) -> Result<Mlp, LoadError> {
    let Some(experts) = config.experts else {
        return Err(LoadError::Config {
            problem: format!("a {} block needs a number of experts", config.family.name()),
        });
    };
    let Experts { count, per_token, is_softmax_of_all, shared_ffn, sparse_mixer } = experts;
    let ExpertNames { folder, router, has_biases, .. } = *names;
    let expert = |expert: usize| {
        expert_of(reader, config, &format!("{folder}.experts.{expert}"), names, norm).map(Dense::with_varying_rows)
    };
    Ok(Mlp::Routed(Router {
        router: scores(reader, config, &format!("{folder}.{router}"), (count, has_biases), norm)?,
        per_token: per_token as i64,
        is_softmax_of_all,
        sparse_mixer,
        experts: (0..count).map(expert).collect::<Result<_, _>>()?,
        shared: shared_ffn
            .map(|ffn| shared(reader, &ModelConfig { ffn, ..config.clone() }, names, norm).map(Box::new))
            .transpose()?,
    }))
}

/// The expert that all positions pass.
fn shared(
    reader: &Reader<'_>,
    config: &ModelConfig,
    names: &ExpertNames,
    norm: &NormWeights,
) -> Result<SharedExpert, LoadError> {
    let folder = names.folder;
    Ok(SharedExpert {
        gate: scores(reader, config, &format!("{folder}.shared_expert_gate"), (1, false), norm)?,
        dense: expert_of(reader, config, &format!("{folder}.shared_expert"), names, norm)?,
    })
}

fn expert_of(
    reader: &Reader<'_>,
    config: &ModelConfig,
    folder: &str,
    names: &ExpertNames,
    norm: &NormWeights,
) -> Result<Dense, LoadError> {
    if !names.has_biases {
        reader.refuse(&format!("{folder}.{}.bias", names.layers[2]))?;
    }
    gated(reader, config, folder, names.layers, Some(norm))
}

/// A layer of `count` outputs that scores positions, in fp32, with a bias if `has_bias`.
fn scores(
    reader: &Reader<'_>,
    config: &ModelConfig,
    name: &str,
    (count, has_bias): (usize, bool),
    norm: &NormWeights,
) -> Result<Linear, LoadError> {
    let weight = reader.host_tensor(&format!("{name}.weight"), &[count, config.hidden])?;
    let bias = has_bias.then(|| reader.host_tensor(&format!("{name}.bias"), &[count])).transpose()?;
    reader.exact(Layer::new(name, Weight::Plain(weight), bias)?.after(norm)?)
}

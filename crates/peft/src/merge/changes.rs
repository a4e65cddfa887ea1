//! Changes of single weights.

use std::collections::BTreeMap;

use sepal_checkpoint::{Checkpoint, site_path, tensor_names};
use sepal_core::{DType, HostTensor, TunableName};
use sepal_nn::file::TensorLayout;
use sepal_nn::{share_from_host, to_host};
use tch::{TchError, Tensor};

use super::MergeError;
use crate::adapter::{Adapter, SCORE};
use crate::family;

/// Tensor of a merged model.
#[derive(Debug)]
pub(super) struct Weight {
    pub(super) layout: TensorLayout,
    /// Name in the checkpoint; `None` for the head.
    stored: Option<String>,
}

impl Weight {
    /// Returns the head and all tensors of the model but those of other heads and those that are no floats, such as masks.
    /// All names have the family's prefix, as a model with a head has them.
    pub(super) fn all(checkpoint: &Checkpoint, score: &HostTensor) -> Vec<Self> {
        let names = tensor_names(checkpoint.config().family);
        let is_head = |name: &str| ["lm_head.", "embed_out.", "score."].iter().any(|head| name.starts_with(head));
        let weight = |stored: &str| {
            let (dtype, shape) = (checkpoint.dtype(stored)?, checkpoint.shape(stored)?.to_vec());
            let name = match stored.starts_with(names.prefix) {
                true => stored.to_owned(),
                false => format!("{}{stored}", names.prefix),
            };
            Some(Self { layout: TensorLayout { name, dtype, shape }, stored: Some(stored.to_owned()) })
        };
        let mut weights: Vec<Self> = checkpoint.names().filter(|name| !is_head(name)).filter_map(weight).collect();
        let dtype = main_dtype(&weights);
        let layout = TensorLayout { name: SCORE.to_owned(), dtype, shape: score.shape().to_vec() };
        weights.push(Self { layout, stored: None });
        weights
    }
}

/// Number format of most bytes.
fn main_dtype(weights: &[Weight]) -> DType {
    let mut bytes: BTreeMap<&'static str, (usize, DType)> = BTreeMap::new();
    for Weight { layout, .. } in weights {
        bytes.entry(layout.dtype.name()).or_insert((0, layout.dtype)).0 += layout.n_bytes().unwrap_or(0);
    }
    bytes.into_values().max_by_key(|(bytes, _)| *bytes).map_or(DType::F32, |(_, dtype)| dtype)
}

/// Change of one weight. Rows are outputs, columns inputs.
#[derive(Debug)]
enum Change {
    /// `B A` with the factor included; `a [rank, inputs]`, `b [outputs, rank]`.
    Add { a: Tensor, b: Tensor },
    /// `[outputs]`
    ScaleOutputs(Tensor),
    /// `[inputs]`
    ScaleInputs(Tensor),
}

/// Changes of an adapter by the names of the weights.
#[derive(Debug)]
pub(super) struct Changes {
    by_name: BTreeMap<String, Vec<Change>>,
    /// True if weights are `[inputs, outputs]`.
    is_transposed: bool,
}

impl Changes {
    /// `factor` is that of the low-rank additions. The adapter must fit the model.
    pub(super) fn new(adapter: &Adapter, factor: f64, checkpoint: &Checkpoint) -> Result<Self, MergeError> {
        let config = checkpoint.config();
        let mut by_name: BTreeMap<String, Vec<Change>> = BTreeMap::new();
        for (name, host) in adapter.tunables() {
            let Some(site) = name.site() else { continue };
            let stacked = share_from_host(host)?;
            let second = adapter.tunables().find(|(other, _)| **other == TunableName::LoraB(site.to_owned()));
            let second = second.map(|(_, host)| share_from_host(host)).transpose()?;
            let n_blocks = host.shape().first().copied().unwrap_or(0);
            for index in 0..n_blocks {
                let layer = site_path(config.family, config.n_blocks.saturating_sub(n_blocks) + index, site);
                let (weight, bias) = (format!("{layer}.weight"), format!("{layer}.bias"));
                let part = stacked.f_select(0, index as i64)?;
                let mut add = |name: String, change: Change| by_name.entry(name).or_default().push(change);
                match (name, &second) {
                    (TunableName::LoraA(_), Some(second)) => {
                        let b = second.f_select(0, index as i64)?.f_mul_scalar(factor)?;
                        add(weight, Change::Add { a: part, b });
                    }
                    (TunableName::ScaleOutput(_), _) => {
                        if checkpoint.has(&bias) {
                            add(bias, Change::ScaleOutputs(part.shallow_clone()));
                        }
                        add(weight, Change::ScaleOutputs(part));
                    }
                    (TunableName::ScaleInput(_), _) => add(weight, Change::ScaleInputs(part)),
                    // The second factor is part of the first one's change.
                    _ => {}
                }
            }
        }
        Ok(Self { by_name, is_transposed: family::is_transposed(config) })
    }

    /// Number of changed tensors.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Error if a changed tensor is not among the weights.
    pub(super) fn check_names(&self, weights: &[Weight]) -> Result<(), MergeError> {
        let is_missing = |name: &&String| !weights.iter().any(|weight| weight.layout.name == **name);
        match self.by_name.keys().find(is_missing) {
            Some(name) => Err(MergeError::Missing { name: name.clone() }),
            None => Ok(()),
        }
    }

    /// Reads a weight of the checkpoint, or takes the head, and returns it with all changes, in its number format.
    pub(super) fn merged(
        &self,
        weight: &Weight,
        checkpoint: &Checkpoint,
        score: &HostTensor,
    ) -> Result<HostTensor, MergeError> {
        let TensorLayout { name, dtype, .. } = &weight.layout;
        let stored = match &weight.stored {
            Some(stored) => checkpoint.tensor(stored)?,
            None => to_host(&share_from_host(score)?, *dtype)?,
        };
        let Some(changes) = self.by_name.get(name) else { return Ok(stored) };
        let mut numbers = share_from_host(&stored)?; // fp32, not written
        for change in changes {
            numbers = self.changed(&numbers, change)?;
        }
        let merged = to_host(&numbers, *dtype)?;
        if merged.is_finite() { Ok(merged) } else { Err(MergeError::NotFinite { name: name.clone(), dtype: *dtype }) }
    }

    fn changed(&self, weight: &Tensor, change: &Change) -> Result<Tensor, TchError> {
        let oriented = |tensor: Tensor| if self.is_transposed { tensor.f_tr() } else { Ok(tensor) };
        match change {
            Change::Add { a, b } => weight.f_add(&oriented(b.f_matmul(a)?)?),
            // A bias.
            Change::ScaleOutputs(factors) if weight.dim() == 1 => weight.f_mul(factors),
            Change::ScaleOutputs(factors) => weight.f_mul(&oriented(factors.f_unsqueeze(1)?)?),
            Change::ScaleInputs(factors) => weight.f_mul(&oriented(factors.f_unsqueeze(0)?)?),
        }
    }
}

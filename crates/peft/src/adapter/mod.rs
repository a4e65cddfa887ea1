//! `adapter.safetensors`: the trained tensors of a run.

mod check;
mod error;
mod role;

use std::collections::BTreeMap;
use std::path::Path;

use sepal_core::{HostTensor, LABEL_KIND, NamedHostTensor, TunableName, join_labels, split_labels};

pub use self::error::AdapterError;
pub(crate) use self::role::{AdapterKind, TensorRole};

pub(crate) const SCORE: &str = "score.weight";

/// Trained tensors of the tuning modes, and a linear head without bias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Adapter {
    pub(crate) tensors: Vec<AdapterTensor>,
    /// `[n_labels, hidden]`
    pub(crate) score: HostTensor,
    pub(crate) facts: Facts,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AdapterTensor {
    pub(crate) role: TensorRole,
    pub(crate) tensor: HostTensor,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Digest of the model that it was trained on; empty if unknown.
    pub(crate) model_digest: String,
    pub(crate) task: String,
    pub(crate) tuning: String,
    /// In the order of the logits.
    pub(crate) labels: Vec<String>,
}

/// Sizes that all low-rank factors of an adapter share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoraShape {
    pub(crate) rank: usize,
    /// Number of tuned blocks, the last ones of the model.
    pub(crate) n_blocks: usize,
}

impl Adapter {
    pub(crate) fn read(path: &Path) -> Result<Self, AdapterError> {
        let sepal_nn::file::Contents { tensors: found, metadata, .. } = sepal_nn::file::read(path)?;
        if let Some(kind) = metadata.get(LABEL_KIND) {
            let task = metadata.get("task").cloned().unwrap_or_default();
            return Err(AdapterError::Task { task, kind: kind.clone() });
        }
        let (mut tensors, mut score) = (Vec::new(), None);
        for NamedHostTensor { name, tensor } in found {
            match TensorRole::parse(&name) {
                Some(role) => tensors.push(AdapterTensor { role, tensor }),
                None if name == SCORE => score = Some(tensor),
                None if name.ends_with("bias") => return Err(AdapterError::Bias { name }),
                None => return Err(AdapterError::Unknown { name }),
            }
        }
        let text = |key: &str| metadata.get(key).cloned().unwrap_or_default();
        let labels = split_labels(&text("labels"));
        let facts = Facts { model_digest: text("model_digest"), task: text("task"), tuning: text("tuning"), labels };
        let score = score.ok_or_else(|| AdapterError::Missing { name: SCORE.to_owned() })?;
        Self { tensors, score, facts }.checked()
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), sepal_nn::file::WriteError> {
        let named = |(name, tensor): (String, &HostTensor)| NamedHostTensor { name, tensor: tensor.clone() };
        let tensors: Vec<_> = self.named_tensors().map(named).collect();
        let Facts { model_digest, task, tuning, labels } = &self.facts;
        let metadata = [
            ("format", "pt".to_owned()),
            ("model_digest", model_digest.clone()),
            ("task", task.clone()),
            ("tuning", tuning.clone()),
            ("labels", join_labels(labels)),
        ];
        let metadata: BTreeMap<_, _> = metadata.into_iter().map(|(key, text)| (key.to_owned(), text)).collect();
        sepal_nn::file::write(path, &tensors, &metadata)
    }

    /// Returns all tensors by their names in the file, the head last.
    fn named_tensors(&self) -> impl Iterator<Item = (String, &HostTensor)> {
        let tensors = self.tensors.iter().map(|AdapterTensor { role, tensor }| (role.to_string(), tensor));
        tensors.chain([(SCORE.to_owned(), &self.score)])
    }

    pub(crate) fn get(&self, role: &TensorRole) -> Option<&HostTensor> {
        self.tensors.iter().find(|tensor| tensor.role == *role).map(|tensor| &tensor.tensor)
    }

    /// Returns the soft prompts `[prefix_len, hidden]`.
    pub(crate) fn prompts(&self) -> Option<&HostTensor> {
        self.get(&TensorRole::Prompts)
    }

    /// Returns the keys and values of the prefix, `[n_blocks, prefix_len, 2 * kv_size]`.
    pub(crate) fn keys_values(&self) -> Option<&HostTensor> {
        self.get(&TensorRole::Tunable(TunableName::PrefixKeysValues))
    }

    /// Returns the tensors that the blocks take, each `[blocks, ..]`.
    pub(crate) fn tunables(&self) -> impl Iterator<Item = (&TunableName, &HostTensor)> {
        self.tensors.iter().filter_map(|AdapterTensor { role, tensor }| match role {
            TensorRole::Tunable(name) => Some((name, tensor)),
            TensorRole::Prompts | TensorRole::Encoder(_) => None,
        })
    }

    /// Replaces the parameters of an encoder by the prompts that it computes.
    pub(crate) fn with_prompts(mut self, prompts: HostTensor) -> Self {
        self.tensors.retain(|tensor| !matches!(tensor.role, TensorRole::Encoder(_) | TensorRole::Prompts));
        self.tensors.insert(0, AdapterTensor { role: TensorRole::Prompts, tensor: prompts });
        self
    }

    /// Number of positions in front of every row, as far as the tensors tell: 0 for an encoder.
    pub(crate) fn prefix_len(&self) -> usize {
        let size = |tensor: &HostTensor, dim: usize| tensor.shape().get(dim).copied();
        let by_prompts = self.prompts().and_then(|prompts| size(prompts, 0));
        by_prompts.or_else(|| self.keys_values().and_then(|tensor| size(tensor, 1))).unwrap_or(0)
    }

    pub(crate) fn n_labels(&self) -> usize {
        self.score.shape().first().copied().unwrap_or(0)
    }

    /// Kinds of the tuning modes that it was trained with.
    pub(crate) fn kinds(&self) -> Vec<AdapterKind> {
        let mut kinds: Vec<AdapterKind> = self.tensors.iter().map(|tensor| tensor.role.kind()).collect();
        kinds.sort();
        kinds.dedup();
        // Deep prompts come with the prompts of the first block.
        if kinds.contains(&AdapterKind::DeepPrompts) {
            kinds.retain(|kind| *kind != AdapterKind::Prompts);
        }
        kinds
    }

    /// Returns the kind of its only tuning mode.
    pub(crate) fn kind(&self) -> Result<AdapterKind, AdapterError> {
        match self.kinds()[..] {
            [kind] => Ok(kind),
            ref kinds => Err(AdapterError::Combined { modes: kinds.iter().map(|kind| kind.mode()).collect() }),
        }
    }

    /// Returns the sizes of the low-rank factors; `None` if there are none.
    pub(crate) fn lora_shape(&self) -> Result<Option<LoraShape>, AdapterError> {
        let mut found: Option<LoraShape> = None;
        for (name, tensor) in self.tunables() {
            let (TunableName::LoraA(_), &[n_blocks, rank, _]) = (name, tensor.shape()) else { continue };
            let shape = LoraShape { rank, n_blocks };
            if found.is_some_and(|found| found != shape) {
                return Err(AdapterError::MixedFactors);
            }
            found = Some(shape);
        }
        Ok(found)
    }

    /// Names of the layers that low-rank factors or scales change, in the order of the tensors.
    pub(crate) fn sites(&self) -> Vec<&str> {
        let mut sites: Vec<&str> = Vec::new();
        for site in self.tunables().filter_map(|(name, _)| name.site()) {
            if !sites.contains(&site) {
                sites.push(site);
            }
        }
        sites
    }

    /// Returns what was trained besides the head, for example `16 soft prompts and deep prompts`.
    pub(crate) fn description(&self) -> String {
        let describe = |kind: AdapterKind| {
            let (len, sites) = (self.prefix_len(), self.sites().join(", "));
            match kind {
                AdapterKind::Prompts => format!("{len} soft prompts"),
                AdapterKind::DeepPrompts => format!("{len} soft prompts and deep prompts"),
                AdapterKind::EncodedPrompts => "soft prompts with an encoder".to_owned(),
                AdapterKind::KeysValues => format!("{len} positions of trained keys and values"),
                AdapterKind::Lora => match self.lora_shape() {
                    Ok(Some(LoraShape { rank, n_blocks })) => {
                        format!("low-rank additions (LoRA, rank {rank}) to {sites} of {n_blocks} blocks")
                    }
                    _ => format!("low-rank additions (LoRA) to {sites}"),
                },
                AdapterKind::Ia3 => format!("factors (IA3) of {sites}"),
            }
        };
        self.kinds().into_iter().map(describe).collect::<Vec<_>>().join(" and ")
    }
}

pub(crate) fn placeholders(n_labels: usize) -> Vec<String> {
    (0..n_labels).map(|label| format!("LABEL_{label}")).collect()
}

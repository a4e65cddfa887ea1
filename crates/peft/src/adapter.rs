//! `adapter.safetensors`: the trained tensors of a run.

use std::collections::BTreeMap;
use std::path::Path;

use sepal_core::{DEEP_PROMPTS, HostTensor, ModelConfig, NamedHostTensor, PREFIX_KEYS_VALUES};

pub(crate) const PROMPTS: &str = "prompts";
pub(crate) const SCORE: &str = "score.weight";

/// Trained prefix and linear head without bias, of matching shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Adapter {
    pub(crate) prefix: TrainedPrefix,
    /// `[n_labels, hidden]`
    pub(crate) score: HostTensor,
    pub(crate) facts: Facts,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TrainedPrefix {
    /// Soft prompts, from which the blocks compute keys and values.
    Prompts {
        /// `[prefix_len, hidden]`
        prompts: HostTensor,
        /// `[n_blocks, prefix_len, hidden]`
        deep_prompts: Option<HostTensor>,
    },
    /// Trained keys and values, `[n_blocks, prefix_len, 2 * kv_size]`.
    KeysValues(HostTensor),
}

impl TrainedPrefix {
    fn tensors(&self) -> Vec<(&'static str, &HostTensor)> {
        match self {
            Self::Prompts { prompts, deep_prompts } => {
                let deep_prompts = deep_prompts.iter().map(|deep| (DEEP_PROMPTS, deep));
                [(PROMPTS, prompts)].into_iter().chain(deep_prompts).collect()
            }
            Self::KeysValues(keys_values) => vec![(PREFIX_KEYS_VALUES, keys_values)],
        }
    }
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

/// Error of an adapter that cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum AdapterError {
    /// The file cannot be read.
    #[error("read the adapter")]
    Read(#[from] sepal_nn::file::ReadError),
    /// A required tensor is missing.
    #[error("use the adapter: it has no `{name}`")]
    Missing { name: &'static str },
    /// The head has a bias.
    #[error(
        "use the adapter: its head has a bias (`{name}`), which PEFT drops without a warning; train a head without one"
    )]
    Bias { name: String },
    /// The file contains an unknown tensor.
    #[error(
        "use the adapter: it holds `{name}`; the supported tensors are `prompts`, `deep_prompts`, `prefix_keys_values` and a \
         linear head `score.weight`"
    )]
    Unknown { name: String },
    /// A shape does not match the other tensors or the model.
    #[error("use the adapter: `{name}` is {found:?}, expected {expected}")]
    Shape { name: &'static str, expected: String, found: Vec<usize> },
    /// The number of names differs from the number of logits.
    #[error("use the adapter: it names {names} labels for {logits} logits")]
    Labels { names: usize, logits: usize },
    /// A tensor is non-finite.
    #[error("use the adapter: `{name}` holds numbers that are not finite")]
    NotFinite { name: &'static str },
}

impl Adapter {
    pub(crate) fn read(path: &Path) -> Result<Self, AdapterError> {
        let sepal_nn::file::Contents { tensors, metadata, .. } = sepal_nn::file::read(path)?;
        let (mut prompts, mut deep_prompts, mut keys_values, mut score) = (None, None, None, None);
        for NamedHostTensor { name, tensor } in tensors {
            match name.as_str() {
                PROMPTS => prompts = Some(tensor),
                DEEP_PROMPTS => deep_prompts = Some(tensor),
                PREFIX_KEYS_VALUES => keys_values = Some(tensor),
                SCORE => score = Some(tensor),
                _ if name.ends_with("bias") => return Err(AdapterError::Bias { name }),
                _ => return Err(AdapterError::Unknown { name }),
            }
        }
        let text = |key: &str| metadata.get(key).cloned().unwrap_or_default();
        let labels = match text("labels") {
            labels if labels.is_empty() => Vec::new(),
            labels => labels.split('\n').map(str::to_owned).collect(),
        };
        let facts = Facts { model_digest: text("model_digest"), task: text("task"), tuning: text("tuning"), labels };
        let prefix = match (prompts, keys_values) {
            (None, Some(keys_values)) => TrainedPrefix::KeysValues(keys_values),
            (Some(_), Some(_)) => return Err(AdapterError::Unknown { name: PREFIX_KEYS_VALUES.to_owned() }),
            (Some(prompts), None) => TrainedPrefix::Prompts { prompts, deep_prompts },
            (None, None) => return Err(AdapterError::Missing { name: PROMPTS }),
        };
        let score = score.ok_or(AdapterError::Missing { name: SCORE })?;
        Self { prefix, score, facts }.checked()
    }

    /// Returns the adapter if its shapes match and its numbers are finite. Unnamed labels get the names of transformers.
    pub(crate) fn checked(mut self) -> Result<Self, AdapterError> {
        self.check_prefix()?;
        let tensors = self.prefix.tensors().into_iter().chain([(SCORE, &self.score)]);
        if let Some((name, _)) = tensors.into_iter().find(|(_, tensor)| !tensor.is_finite()) {
            return Err(AdapterError::NotFinite { name });
        }
        if self.facts.labels.is_empty() {
            self.facts.labels = placeholders(self.n_labels());
        }
        match (self.facts.labels.len(), self.n_labels()) {
            (names, logits) if names != logits => Err(AdapterError::Labels { names, logits }),
            _ => Ok(self),
        }
    }

    fn check_prefix(&self) -> Result<(), AdapterError> {
        let &[n_labels, hidden] = self.score.shape() else {
            return Err(shape(SCORE, "[n_labels, hidden]", &self.score));
        };
        let (name, tensor, expected) = match &self.prefix {
            TrainedPrefix::Prompts { prompts, .. } => (PROMPTS, prompts, "[prefix_len, hidden]"),
            TrainedPrefix::KeysValues(keys_values) => {
                (PREFIX_KEYS_VALUES, keys_values, "[n_blocks, prefix_len, 2 * kv_size]")
            }
        };
        if tensor.shape().len() != if name == PROMPTS { 2 } else { 3 } {
            return Err(shape(name, expected, tensor));
        }
        if self.prefix_len() == 0 {
            return Err(shape(name, "at least one prompt", tensor));
        }
        let TrainedPrefix::Prompts { prompts, deep_prompts } = &self.prefix else {
            return if n_labels > 0 { Ok(()) } else { Err(shape(SCORE, "at least one label", &self.score)) };
        };
        let width = prompts.shape()[1];
        if n_labels == 0 || hidden != width {
            return Err(shape(SCORE, &format!("[n_labels, {width}]"), &self.score));
        }
        let prefix_len = self.prefix_len();
        match deep_prompts {
            Some(deep) if !matches!(deep.shape(), &[_, len, deep_width] if (len, deep_width) == (prefix_len, width)) => {
                Err(shape(DEEP_PROMPTS, &format!("[n_blocks, {prefix_len}, {width}]"), deep))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn check_model(&self, config: &ModelConfig) -> Result<(), AdapterError> {
        match &self.prefix {
            TrainedPrefix::Prompts { prompts, .. } if prompts.shape()[1] != config.hidden => {
                let expected = format!("[prefix_len, {}], as wide as the model's hidden states", config.hidden);
                Err(shape(PROMPTS, &expected, prompts))
            }
            TrainedPrefix::Prompts { deep_prompts: Some(deep), .. } if deep.shape()[0] != config.n_blocks => {
                Err(shape(DEEP_PROMPTS, &format!("one for each of the model's {} blocks", config.n_blocks), deep))
            }
            TrainedPrefix::Prompts { .. } => Ok(()),
            TrainedPrefix::KeysValues(keys_values) => {
                let [n_blocks, prefix_len, width] = [config.n_blocks, self.prefix_len(), 2 * config.kv_size()];
                if keys_values.shape() != [n_blocks, prefix_len, width] {
                    let expected =
                        format!("[{n_blocks}, prefix_len, {width}], the keys and values of the model's blocks");
                    return Err(shape(PREFIX_KEYS_VALUES, &expected, keys_values));
                }
                match self.score.shape() {
                    &[_, hidden] if hidden != config.hidden => {
                        let expected = format!("[n_labels, {}], as wide as the model's hidden states", config.hidden);
                        Err(shape(SCORE, &expected, &self.score))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    pub(crate) fn prefix_len(&self) -> usize {
        match &self.prefix {
            TrainedPrefix::Prompts { prompts, .. } => prompts.shape()[0],
            TrainedPrefix::KeysValues(keys_values) => keys_values.shape()[1],
        }
    }

    pub(crate) fn is_keys_values(&self) -> bool {
        matches!(self.prefix, TrainedPrefix::KeysValues(_))
    }

    pub(crate) fn description(&self) -> &'static str {
        match &self.prefix {
            TrainedPrefix::Prompts { deep_prompts: Some(_), .. } => "soft prompts and deep prompts",
            TrainedPrefix::Prompts { .. } => "soft prompts",
            TrainedPrefix::KeysValues(_) => "positions of trained keys and values",
        }
    }

    pub(crate) fn n_labels(&self) -> usize {
        self.score.shape()[0]
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), sepal_nn::file::WriteError> {
        let named =
            |(name, tensor): (&str, &HostTensor)| NamedHostTensor { name: name.to_owned(), tensor: tensor.clone() };
        let tensors: Vec<_> = self.prefix.tensors().into_iter().chain([(SCORE, &self.score)]).map(named).collect();
        let Facts { model_digest, task, tuning, labels } = &self.facts;
        let metadata = [
            ("format", "pt".to_owned()),
            ("model_digest", model_digest.clone()),
            ("task", task.clone()),
            ("tuning", tuning.clone()),
            ("labels", labels.join("\n")),
        ];
        let metadata: BTreeMap<_, _> = metadata.into_iter().map(|(key, text)| (key.to_owned(), text)).collect();
        sepal_nn::file::write(path, &tensors, &metadata)
    }
}

pub(crate) fn placeholders(n_labels: usize) -> Vec<String> {
    (0..n_labels).map(|label| format!("LABEL_{label}")).collect()
}

fn shape(name: &'static str, expected: &str, tensor: &HostTensor) -> AdapterError {
    AdapterError::Shape { name, expected: expected.to_owned(), found: tensor.shape().to_vec() }
}

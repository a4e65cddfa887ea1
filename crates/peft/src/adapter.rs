//! `adapter.safetensors`: what a run trained.

use std::collections::BTreeMap;
use std::path::Path;

use sepal_core::{DEEP_PROMPTS, HostTensor, ModelConfig, NamedHostTensor};

/// The soft prompts' name in an adapter.
pub(crate) const PROMPTS: &str = "prompts";
/// The head's name in an adapter.
pub(crate) const SCORE: &str = "score.weight";

/// Trained prompts and a linear head without bias, of fitting shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Adapter {
    /// `[prefix_len, hidden]`
    pub(crate) prompts: HostTensor,
    /// `[n_blocks, prefix_len, hidden]`
    pub(crate) deep_prompts: Option<HostTensor>,
    /// `[n_labels, hidden]`
    pub(crate) score: HostTensor,
    pub(crate) facts: Facts,
}

/// What an adapter says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Of the model that it was trained on; empty if nobody knows.
    pub(crate) model_digest: String,
    pub(crate) task: String,
    pub(crate) tuning: String,
    /// In the order of the logits.
    pub(crate) labels: Vec<String>,
}

/// An adapter that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// The file cannot be read.
    #[error("read the adapter")]
    Read(#[from] sepal_nn::file::ReadError),
    /// Something that is needed is not in it.
    #[error("use the adapter: it has no `{name}`")]
    Missing {
        /// The parameter.
        name: &'static str,
    },
    /// The head has a bias.
    #[error(
        "use the adapter: its head has a bias (`{name}`), which PEFT drops without a word; train a head without one"
    )]
    Bias {
        /// The parameter.
        name: String,
    },
    /// Something else was trained, too.
    #[error(
        "use the adapter: it holds `{name}`; what is known here are `prompts`, `deep_prompts` and a linear head \
         `score.weight`"
    )]
    Unknown {
        /// The parameter.
        name: String,
    },
    /// A shape that does not fit the others or the model.
    #[error("use the adapter: `{name}` is {found:?}, expected {expected}")]
    Shape {
        /// The parameter.
        name: &'static str,
        /// In words.
        expected: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// As many names as logits are needed.
    #[error("use the adapter: it names {names} labels for {logits} logits")]
    Labels {
        /// Names.
        names: usize,
        /// Rows of the head.
        logits: usize,
    },
    /// Training went wrong.
    #[error("use the adapter: `{name}` holds numbers that are not finite")]
    NotFinite {
        /// The parameter.
        name: &'static str,
    },
}

impl Adapter {
    pub(crate) fn read(path: &Path) -> Result<Self, AdapterError> {
        let sepal_nn::file::Contents { tensors, metadata, .. } = sepal_nn::file::read(path)?;
        let (mut prompts, mut deep_prompts, mut score) = (None, None, None);
        for NamedHostTensor { name, tensor } in tensors {
            match name.as_str() {
                PROMPTS => prompts = Some(tensor),
                DEEP_PROMPTS => deep_prompts = Some(tensor),
                SCORE => score = Some(tensor),
                _ if name.ends_with("bias") => return Err(AdapterError::Bias { name }),
                _ => return Err(AdapterError::Unknown { name }),
            }
        }
        let text = |key: &str| metadata.get(key).cloned().unwrap_or_default();
        let labels = match text("labels") {
            none if none.is_empty() => Vec::new(),
            some => some.split('\n').map(str::to_owned).collect(),
        };
        let facts = Facts { model_digest: text("model_digest"), task: text("task"), tuning: text("tuning"), labels };
        let prompts = prompts.ok_or(AdapterError::Missing { name: PROMPTS })?;
        let score = score.ok_or(AdapterError::Missing { name: SCORE })?;
        Self { prompts, deep_prompts, score, facts }.checked()
    }

    /// Itself, if the shapes fit each other and the numbers are finite. Without names labels get those that
    /// transformers gives.
    pub(crate) fn checked(mut self) -> Result<Self, AdapterError> {
        let [prefix_len, hidden] = self.prompts.shape()[..] else {
            return Err(shape(PROMPTS, "[prefix_len, hidden]", &self.prompts));
        };
        if prefix_len == 0 {
            return Err(shape(PROMPTS, "at least one prompt", &self.prompts));
        }
        if !matches!(self.score.shape(), &[n_labels, width] if n_labels > 0 && width == hidden) {
            return Err(shape(SCORE, &format!("[n_labels, {hidden}]"), &self.score));
        }
        if let Some(deep) = &self.deep_prompts
            && !matches!(deep.shape(), &[_, len, width] if (len, width) == (prefix_len, hidden))
        {
            return Err(shape(DEEP_PROMPTS, &format!("[n_blocks, {prefix_len}, {hidden}]"), deep));
        }
        let tensors = [(PROMPTS, Some(&self.prompts)), (SCORE, Some(&self.score))];
        for (name, tensor) in tensors.into_iter().chain([(DEEP_PROMPTS, self.deep_prompts.as_ref())]) {
            if tensor.is_some_and(|tensor| !tensor.is_finite()) {
                return Err(AdapterError::NotFinite { name });
            }
        }
        if self.facts.labels.is_empty() {
            self.facts.labels = (0..self.n_labels()).map(|label| format!("LABEL_{label}")).collect();
        }
        match (self.facts.labels.len(), self.n_labels()) {
            (names, logits) if names != logits => Err(AdapterError::Labels { names, logits }),
            _ => Ok(self),
        }
    }

    /// An error if it is of a model of another shape.
    pub(crate) fn check_model(&self, config: &ModelConfig) -> Result<(), AdapterError> {
        if self.prompts.shape()[1] != config.hidden {
            let expected = format!("[prefix_len, {}], as wide as the model's hidden states", config.hidden);
            return Err(shape(PROMPTS, &expected, &self.prompts));
        }
        match &self.deep_prompts {
            Some(deep) if deep.shape()[0] != config.n_blocks => {
                Err(shape(DEEP_PROMPTS, &format!("one for each of the model's {} blocks", config.n_blocks), deep))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn prefix_len(&self) -> usize {
        self.prompts.shape()[0]
    }

    pub(crate) fn n_labels(&self) -> usize {
        self.score.shape()[0]
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), sepal_nn::file::WriteError> {
        let named = |name: &str, tensor: &HostTensor| NamedHostTensor { name: name.to_owned(), tensor: tensor.clone() };
        let deep = self.deep_prompts.iter().map(|deep| named(DEEP_PROMPTS, deep));
        let tensors: Vec<_> = [named(PROMPTS, &self.prompts)].into_iter().chain(deep).collect();
        let tensors: Vec<_> = tensors.into_iter().chain([named(SCORE, &self.score)]).collect();
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

fn shape(name: &'static str, expected: &str, tensor: &HostTensor) -> AdapterError {
    AdapterError::Shape { name, expected: expected.to_owned(), found: tensor.shape().to_vec() }
}

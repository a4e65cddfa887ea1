//! Checks of shapes and numbers.

use std::fmt::Display;

use sepal_blocks::check_tunables;
use sepal_core::{HostTensor, ModelConfig, TunableName};

use super::{Adapter, AdapterError, AdapterTensor, SCORE, TensorRole, placeholders};

impl Adapter {
    /// Returns the adapter if its shapes match and its numbers are finite. Unnamed labels get the names of transformers.
    pub(crate) fn checked(mut self) -> Result<Self, AdapterError> {
        let &[n_labels, hidden] = self.score.shape() else {
            return Err(shape(SCORE, "[n_labels, hidden]", &self.score));
        };
        if n_labels == 0 || hidden == 0 {
            return Err(shape(SCORE, "at least one label", &self.score));
        }
        if self.tensors.is_empty() {
            return Err(AdapterError::Empty);
        }
        self.tensors.iter().try_for_each(|tensor| self.check_tensor(tensor, hidden))?;
        if let Some((name, _)) = self.named_tensors().find(|(_, tensor)| !tensor.is_finite()) {
            return Err(AdapterError::NotFinite { name });
        }
        if self.facts.labels.is_empty() {
            self.facts.labels = placeholders(n_labels);
        }
        match self.facts.labels.len() {
            names if names != n_labels => Err(AdapterError::Labels { names, logits: n_labels }),
            _ => Ok(self),
        }
    }

    fn check_tensor(&self, AdapterTensor { role, tensor }: &AdapterTensor, hidden: usize) -> Result<(), AdapterError> {
        let prefix_len = self.prefix_len();
        let (is_fitting, expected) = match role {
            TensorRole::Encoder(_) => return Ok(()),
            TensorRole::Prompts => (
                matches!(tensor.shape(), &[len, width] if len > 0 && width == hidden),
                format!("[prefix_len, {hidden}] with at least one prompt"),
            ),
            TensorRole::Tunable(TunableName::DeepPrompts) => {
                self.require(TensorRole::Prompts)?;
                (
                    matches!(tensor.shape(), &[_, len, width] if (len, width) == (prefix_len, hidden)),
                    format!("[n_blocks, {prefix_len}, {hidden}]"),
                )
            }
            TensorRole::Tunable(TunableName::PrefixKeysValues) => (
                self.prompts().is_none() && matches!(tensor.shape(), &[_, len, width] if len > 0 && width > 0),
                "[n_blocks, prefix_len, 2 * kv_size] without soft prompts".to_owned(),
            ),
            TensorRole::Tunable(TunableName::LoraA(site)) => {
                let b = self.require(TensorRole::Tunable(TunableName::LoraB(site.clone())))?;
                (are_factors(tensor, b), format!("[blocks, rank, inputs] as `lora_B:{site}` {:?}", b.shape()))
            }
            TensorRole::Tunable(TunableName::LoraB(site)) => {
                let a = self.require(TensorRole::Tunable(TunableName::LoraA(site.clone())))?;
                (are_factors(a, tensor), format!("[blocks, outputs, rank] as `lora_A:{site}` {:?}", a.shape()))
            }
            TensorRole::Tunable(TunableName::ScaleOutput(_) | TunableName::ScaleInput(_)) => {
                (matches!(tensor.shape(), &[blocks, width] if blocks > 0 && width > 0), "[n_blocks, width]".to_owned())
            }
        };
        if is_fitting { Ok(()) } else { Err(shape(role, &expected, tensor)) }
    }

    fn require(&self, role: TensorRole) -> Result<&HostTensor, AdapterError> {
        self.get(&role).ok_or_else(|| AdapterError::Missing { name: role.to_string() })
    }

    /// Error if the adapter does not fit the model's shape.
    pub(crate) fn check_model(&self, config: &ModelConfig) -> Result<(), AdapterError> {
        if !matches!(self.score.shape(), &[_, width] if width == config.hidden) {
            let expected = format!("[n_labels, {}], as wide as the model's hidden states", config.hidden);
            return Err(shape(SCORE, &expected, &self.score));
        }
        for (name, tensor) in self.tunables() {
            let is_in_all_blocks = tensor.shape().first() == Some(&config.n_blocks);
            if !is_in_all_blocks && !matches!(name, TunableName::LoraA(_) | TunableName::LoraB(_)) {
                return Err(shape(name, &format!("one for each of the model's {} blocks", config.n_blocks), tensor));
            }
        }
        let names: Vec<String> = self.tunables().map(|(name, _)| name.to_string()).collect();
        let named = names.iter().zip(self.tunables()).map(|(name, (_, tensor))| {
            // Low-rank factors may be in the last blocks only.
            let blocks = tensor.shape().first().copied().unwrap_or(0);
            (name.as_str(), config.n_blocks.saturating_sub(blocks), tensor.shape())
        });
        Ok(check_tunables(config, named)?)
    }
}

/// True for `a [blocks, rank, inputs]` and `b [blocks, outputs, rank]`.
fn are_factors(a: &HostTensor, b: &HostTensor) -> bool {
    match (a.shape(), b.shape()) {
        (&[blocks, rank, inputs], &[b_blocks, outputs, b_rank]) => {
            (blocks, rank) == (b_blocks, b_rank) && [blocks, rank, inputs, outputs].iter().all(|size| *size > 0)
        }
        _ => false,
    }
}

fn shape(name: impl Display, expected: &str, tensor: &HostTensor) -> AdapterError {
    AdapterError::Shape { name: name.to_string(), expected: expected.to_owned(), found: tensor.shape().to_vec() }
}

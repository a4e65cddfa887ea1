use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Initialisation of soft prompts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PromptInit {
    /// Embeddings of words drawn from the vocabulary.
    Vocabulary,
    /// Drawn from N(0, `initializer_range`²), like the model's own weights.
    Normal,
    /// One prompt for each class, the mean of its name's tokens; the rest are words drawn from the vocabulary (Lester
    /// et al., arXiv 2104.08691).
    ClassNames,
    /// Tokens of a text: repeated if they are fewer than the prompts, the first of them if they are more.
    Text(
        /// Text.
        #[schemars(length(min = 1))]
        String,
    ),
    /// Prompts of an earlier run with the same number of prompts and the same hidden size. A task with the same labels
    /// also starts with its head.
    Adapter(
        /// Folder of the run, or its `adapter.safetensors`.
        #[schemars(with = "String")]
        PathBuf,
    ),
}

impl PromptInit {
    /// Adapter of the prompts, if they are from one.
    pub fn adapter(&self) -> Option<&Path> {
        match self {
            PromptInit::Adapter(path) => Some(path),
            _ => None,
        }
    }
}

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use sepal_core::{TrainedTensor, in_one_line};
use serde::{Deserialize, Serialize};

use crate::{OptionError, Tokenize};

/// Name of the soft prompts among parameters and in an adapter.
pub const PROMPTS: &str = "prompts";

/// Soft prompts before every row.
pub fn soft_prompts(pre_seq_len: usize, hidden: usize) -> TrainedTensor {
    TrainedTensor::new(PROMPTS, [pre_seq_len, hidden])
}

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

    /// Tokens that prompts start from: of the name of each class, or of the text; none for other initial values.
    ///
    /// # Errors
    /// [`OptionError`] if one has no tokens, or there are more classes than prompts.
    pub fn tokens(
        &self,
        pre_seq_len: usize,
        labels: &[String],
        tokenize: &Tokenize<'_>,
    ) -> Result<Vec<Vec<i64>>, OptionError> {
        let texts: Vec<&str> = match self {
            PromptInit::ClassNames if labels.is_empty() || labels.len() > pre_seq_len => {
                let n_labels = labels.len();
                return Err(refused(format!(
                    "expected class names for at most {pre_seq_len} prompts (`pre_seq_len`), found {n_labels}"
                )));
            }
            PromptInit::ClassNames => labels.iter().map(String::as_str).collect(),
            PromptInit::Text(text) => vec![text.as_str()],
            _ => Vec::new(),
        };
        texts.into_iter().map(|text| tokens(text, tokenize)).collect()
    }
}

/// Tokens of a text, at least one.
fn tokens(text: &str, tokenize: &Tokenize<'_>) -> Result<Vec<i64>, OptionError> {
    let ids = tokenize(text).map_err(|error| refused(in_one_line(&*error)))?;
    if ids.is_empty() { Err(refused(format!("expected a text with tokens, found `{text}`"))) } else { Ok(ids) }
}

fn refused(message: String) -> OptionError {
    OptionError { key: "init", message }
}

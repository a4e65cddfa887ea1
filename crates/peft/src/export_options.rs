//! Options of an export.

use crate::config::{PREFIX_TUNING, PROMPT_TUNING};
use crate::export_record::Run;

/// Method of PEFT for the exported prompts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// Keys and values for each block. Supports deep prompts and padded batches.
    #[default]
    PrefixTuning,
    /// The prompts themselves. Supports shallow prompts; PEFT pools padded batches wrongly with it (peft#764).
    PromptTuning,
}

impl Form {
    /// All methods.
    pub const ALL: [Self; 2] = [Self::PrefixTuning, Self::PromptTuning];

    /// Returns `prefix-tuning` or `prompt-tuning`.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrefixTuning => "prefix-tuning",
            Self::PromptTuning => "prompt-tuning",
        }
    }

    pub(crate) fn peft_type(self) -> &'static str {
        match self {
            Self::PrefixTuning => PREFIX_TUNING,
            Self::PromptTuning => PROMPT_TUNING,
        }
    }
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|form| form.name() == text);
        named.ok_or_else(|| format!("`{text}` is not a form of an export; use prefix-tuning or prompt-tuning"))
    }
}

/// Rows on which the logits of the export are compared with those of the trained prompts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Verify {
    /// No comparison.
    #[default]
    Nothing,
    /// A few rows of several lengths, spread over the vocabulary.
    Samples,
    /// These rows of token ids.
    Rows(Vec<Vec<i64>>),
}

/// Options of an export.
#[derive(Debug, Clone, Default)]
pub struct ExportOptions {
    /// Name under which PEFT loads the frozen model: a hub name or a folder in the HF layout.
    pub base_model: String,
    /// Revision of the hub name.
    pub revision: Option<String>,
    /// Method of PEFT.
    pub form: Form,
    /// Comparison of logits before the folder is written.
    pub verify: Verify,
    /// Run to publish: in the model card, and beside it for [`Import`](crate::Import).
    pub run: Option<Run>,
    /// Replaces an existing export.
    pub overwrite: bool,
}

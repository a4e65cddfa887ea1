//! Options of an export.

use sepal_core::HostTensor;
use sepal_track::export::Run;

use crate::adapter::AdapterKind;
use crate::config::{IA3, LORA, P_TUNING, PREFIX_TUNING, PROMPT_TUNING};
use crate::used_plugin::UsedPlugin;

pub use sepal_core::PeftForm as Form;

/// Properties of PEFT's methods.
pub(crate) trait Method: Sized + 'static {
    /// Value of `peft_type` in `adapter_config.json`.
    fn peft_type(self) -> &'static str;

    /// True if prompts are written without their keys and values.
    fn has_prompts(self) -> bool;

    /// Methods that hold an adapter of this kind exactly, the default first.
    fn exact(kind: AdapterKind) -> &'static [Self];
}

impl Method for Form {
    fn peft_type(self) -> &'static str {
        match self {
            Self::PrefixTuning => PREFIX_TUNING,
            Self::PromptTuning => PROMPT_TUNING,
            Self::PTuning => P_TUNING,
            Self::Lora => LORA,
            Self::Ia3 => IA3,
        }
    }

    fn has_prompts(self) -> bool {
        matches!(self, Self::PromptTuning | Self::PTuning)
    }

    fn exact(kind: AdapterKind) -> &'static [Self] {
        match kind {
            AdapterKind::Prompts | AdapterKind::EncodedPrompts => {
                &[Self::PrefixTuning, Self::PromptTuning, Self::PTuning]
            }
            AdapterKind::DeepPrompts | AdapterKind::KeysValues => &[Self::PrefixTuning],
            AdapterKind::Lora => &[Self::Lora],
            AdapterKind::Ia3 => &[Self::Ia3],
        }
    }
}

/// Rows on which the logits of the export are compared with those of the trained adapter.
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
    /// Method of PEFT; by default the one that suits the adapter, for prompts [`Form::PrefixTuning`].
    pub form: Option<Form>,
    /// Comparison of logits before the folder is written.
    pub verify: Verify,
    /// Head of the run, if known.
    pub task: Option<UsedPlugin>,
    /// Tuning modes of the run, if known. Low-rank additions need their options.
    pub tuning: Vec<UsedPlugin>,
    /// Prompts `[pre_seq_len, hidden]` that the tuning mode computes from its parameters; for an adapter that
    /// [`has_encoder`](crate::has_encoder).
    pub prompts: Option<HostTensor>,
    /// Run to publish: in the model card, and beside it for [`Import`](crate::Import).
    pub run: Option<Run>,
    /// Replaces an existing export.
    pub overwrite: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_by_name() {
        for form in Form::ALL {
            assert_eq!(form.name().parse(), Ok(form));
        }
        let error = "adalora".parse::<Form>().expect_err("no such form");
        assert!(error.ends_with("use one of prefix-tuning, prompt-tuning, p-tuning, lora, ia3"), "{error}");
    }
}

use std::fmt;
use std::str::FromStr;

/// Method of PEFT for an exported adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeftForm {
    /// Keys and values for each block. Supports deep prompts and padded batches.
    PrefixTuning,
    /// The prompts themselves. Supports shallow prompts; PEFT pools padded batches wrongly with it (peft#764).
    PromptTuning,
    /// As [`PromptTuning`](Self::PromptTuning), under the name of prompts that an encoder computed.
    PTuning,
    /// Low-rank additions to linear layers.
    Lora,
    /// Factors of outputs and inputs of linear layers.
    Ia3,
}

impl PeftForm {
    /// All methods.
    pub const ALL: [Self; 5] = [Self::PrefixTuning, Self::PromptTuning, Self::PTuning, Self::Lora, Self::Ia3];

    /// Returns `prefix-tuning`, `prompt-tuning`, `p-tuning`, `lora` or `ia3`.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrefixTuning => "prefix-tuning",
            Self::PromptTuning => "prompt-tuning",
            Self::PTuning => "p-tuning",
            Self::Lora => "lora",
            Self::Ia3 => "ia3",
        }
    }
}

impl fmt::Display for PeftForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PeftForm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|form| form.name() == text);
        let names = || Self::ALL.map(Self::name).join(", ");
        named.ok_or_else(|| format!("`{text}` is not a form of an export; use one of {}", names()))
    }
}

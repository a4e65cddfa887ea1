use std::fmt;

use sepal_core::TunableName;

const PROMPTS: &str = "prompts";

/// Text before the names of an encoder's parameters.
const ENCODER: &str = "p_tuning.";

/// Role of a trained tensor, which its name in the file states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TensorRole {
    /// Soft prompts before every row, `[prefix_len, hidden]`.
    Prompts,
    /// Parameter of the encoder that computes the prompts; the rest of its name.
    Encoder(String),
    /// Tensor that the blocks take, stacked by block. The second low-rank factors lack their scaling.
    Tunable(TunableName),
}

impl TensorRole {
    /// Reads the name of a tensor; `None` if no tuning mode has it.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name.strip_prefix(ENCODER) {
            Some(parameter) => Some(Self::Encoder(parameter.to_owned())),
            None if name == PROMPTS => Some(Self::Prompts),
            None => TunableName::parse(name).map(Self::Tunable),
        }
    }

    /// Layer of a block that the tensor changes, if any.
    pub(crate) fn site(&self) -> Option<&str> {
        match self {
            Self::Prompts | Self::Encoder(_) => None,
            Self::Tunable(name) => name.site(),
        }
    }

    pub(crate) fn kind(&self) -> AdapterKind {
        match self {
            Self::Prompts => AdapterKind::Prompts,
            Self::Encoder(_) => AdapterKind::EncodedPrompts,
            Self::Tunable(TunableName::DeepPrompts) => AdapterKind::DeepPrompts,
            Self::Tunable(TunableName::PrefixKeysValues) => AdapterKind::KeysValues,
            Self::Tunable(TunableName::LoraA(_) | TunableName::LoraB(_)) => AdapterKind::Lora,
            Self::Tunable(TunableName::ScaleOutput(_) | TunableName::ScaleInput(_)) => AdapterKind::Ia3,
        }
    }
}

impl fmt::Display for TensorRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prompts => f.write_str(PROMPTS),
            Self::Encoder(parameter) => write!(f, "{ENCODER}{parameter}"),
            Self::Tunable(name) => write!(f, "{name}"),
        }
    }
}

/// Kind of a tuning mode by its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AdapterKind {
    /// Soft prompts, from which the blocks compute keys and values.
    Prompts,
    /// Soft prompts, and additions to them before each block.
    DeepPrompts,
    /// Soft prompts that an encoder computes.
    EncodedPrompts,
    /// Keys and values of a prefix.
    KeysValues,
    /// Low-rank additions to linear layers.
    Lora,
    /// Factors of outputs and inputs of linear layers.
    Ia3,
}

impl AdapterKind {
    /// True if positions stand in front of every row.
    pub(crate) fn has_prefix(self) -> bool {
        !matches!(self, Self::Lora | Self::Ia3)
    }

    /// Name of the tuning mode.
    pub(crate) fn mode(self) -> &'static str {
        match self {
            Self::Prompts => "ptune",
            Self::DeepPrompts => "deep-ptune",
            Self::EncodedPrompts => "p-tuning",
            Self::KeysValues => "prefix-kv",
            Self::Lora => "lora",
            Self::Ia3 => "ia3",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_is_read_back_from_its_name() {
        let names = [
            ("prompts", AdapterKind::Prompts),
            ("deep_prompts", AdapterKind::DeepPrompts),
            ("p_tuning.mlp.0.bias", AdapterKind::EncodedPrompts),
            ("prefix_keys_values", AdapterKind::KeysValues),
            ("lora_A:self_attn.q_proj", AdapterKind::Lora),
            ("lora_B:self_attn.q_proj", AdapterKind::Lora),
            ("scale_output:self_attn.k_proj", AdapterKind::Ia3),
            ("scale_input:mlp.down_proj", AdapterKind::Ia3),
        ];
        for (name, kind) in names {
            let role = TensorRole::parse(name).expect(name);
            assert_eq!((role.to_string().as_str(), role.kind()), (name, kind));
        }
        for unknown in ["score.weight", "dense.bias", "lora_A:", "promptss"] {
            assert_eq!(TensorRole::parse(unknown), None, "{unknown}");
        }
    }
}

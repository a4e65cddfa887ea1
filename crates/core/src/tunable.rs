//! Names of the trainable tensors that frozen blocks take, and the places where they act.

use std::fmt;

use crate::{HostTensor, ShapeError, Span};

/// Linear layer of a block that adapters can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSite {
    /// Name in the checkpoint, relative to the block, for example `self_attn.q_proj`.
    pub name: String,
    /// Number of outputs.
    pub outputs: usize,
    /// Number of inputs.
    pub inputs: usize,
    /// Role in the block.
    pub role: SiteRole,
}

impl LinearSite {
    /// Returns a site.
    pub fn new(name: impl Into<String>, outputs: usize, inputs: usize, role: SiteRole) -> Self {
        Self { name: name.into(), outputs, inputs, role }
    }
}

/// Role of a linear layer in its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiteRole {
    /// Queries alone.
    Query,
    /// Keys alone.
    Key,
    /// Values alone.
    Value,
    /// Queries, keys and values in one layer.
    QueryKeyValue,
    /// Layer after attention.
    AttentionOutput,
    /// First layer of the MLP: its gate, its other half, or both.
    MlpInput,
    /// Last layer of the MLP.
    MlpOutput,
}

/// Name of a tunable: a trainable tensor that is injected into consecutive blocks, stacked by block.
///
/// Sites are named as in the checkpoint, so a LoRA of `self_attn.q_proj` has the numbers of PEFT's, however the layer is
/// stored in memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TunableName {
    /// `deep_prompts [blocks, prefix_len, hidden]`, added to the prefix before each block.
    DeepPrompts,
    /// `prefix_keys_values [blocks, prefix_len, 2 * kv_size]`: keys of all heads, rotated to their positions, then values.
    /// They replace the keys and values that a block computes for the prefix.
    PrefixKeysValues,
    /// `lora_A:SITE [blocks, rank, inputs]`, the first factor of a low-rank addition to a layer (arXiv 2106.09685).
    LoraA(String),
    /// `lora_B:SITE [blocks, outputs, rank]`, the second factor, with the scaling included.
    LoraB(String),
    /// `scale_output:SITE [blocks, outputs]`, factors of the layer's outputs (arXiv 2205.05638).
    ScaleOutput(String),
    /// `scale_input:SITE [blocks, inputs]`, factors of the layer's inputs.
    ScaleInput(String),
}

impl TunableName {
    /// Reads a name; `None` if no tunable has this form.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            crate::DEEP_PROMPTS => Some(Self::DeepPrompts),
            crate::PREFIX_KEYS_VALUES => Some(Self::PrefixKeysValues),
            _ => {
                let (kind, site) = name.split_once(':').filter(|(_, site)| !site.is_empty())?;
                let site = site.to_owned();
                match kind {
                    "lora_A" => Some(Self::LoraA(site)),
                    "lora_B" => Some(Self::LoraB(site)),
                    "scale_output" => Some(Self::ScaleOutput(site)),
                    "scale_input" => Some(Self::ScaleInput(site)),
                    _ => None,
                }
            }
        }
    }

    /// Site in a block, if the tunable acts on a linear layer.
    pub fn site(&self) -> Option<&str> {
        match self {
            Self::DeepPrompts | Self::PrefixKeysValues => None,
            Self::LoraA(site) | Self::LoraB(site) | Self::ScaleOutput(site) | Self::ScaleInput(site) => Some(site),
        }
    }

    /// Names of all tunables that act on a site.
    pub fn of_site(site: &LinearSite) -> Vec<Self> {
        let name = || site.name.clone();
        let mut names = vec![Self::LoraA(name()), Self::LoraB(name()), Self::ScaleOutput(name())];
        if site.role == SiteRole::MlpOutput {
            names.push(Self::ScaleInput(name()));
        }
        names
    }
}

impl fmt::Display for TunableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeepPrompts => f.write_str(crate::DEEP_PROMPTS),
            Self::PrefixKeysValues => f.write_str(crate::PREFIX_KEYS_VALUES),
            Self::LoraA(site) => write!(f, "lora_A:{site}"),
            Self::LoraB(site) => write!(f, "lora_B:{site}"),
            Self::ScaleOutput(site) => write!(f, "scale_output:{site}"),
            Self::ScaleInput(site) => write!(f, "scale_input:{site}"),
        }
    }
}

/// Name and shape of a tensor that is trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainedTensor {
    /// Name among the parameters of the run.
    pub name: String,
    /// Shape; of a tunable `[blocks, ..]`.
    pub shape: Vec<usize>,
    /// Index of the first block of a tunable; `None` for a tensor that the blocks do not take.
    pub first_block: Option<usize>,
}

impl TrainedTensor {
    /// Tensor that the blocks do not take.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), shape: shape.into(), first_block: None }
    }

    /// Tunable of the blocks from `first_block`.
    pub fn tunable(name: &TunableName, first_block: usize, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.to_string(), shape: shape.into(), first_block: Some(first_block) }
    }

    /// Shape in signed numbers, as tensor libraries take it.
    pub fn signed_shape(&self) -> Vec<i64> {
        self.shape.iter().map(|&dim| dim as i64).collect()
    }

    /// Number of values, at most the largest of the type.
    pub fn numbers(&self) -> u64 {
        numbers(&self.shape)
    }

    /// Number of values of a tunable in the blocks from `first`; 0 for another tensor.
    pub fn numbers_from(&self, first: usize) -> u64 {
        let (Some(first_block), Some((&n_blocks, of_block))) = (self.first_block, self.shape.split_first()) else {
            return 0;
        };
        let end = first_block.saturating_add(n_blocks);
        let n_included = end - first.clamp(first_block, end);
        numbers(of_block).saturating_mul(n_included as u64)
    }
}

fn numbers(shape: &[usize]) -> u64 {
    shape.iter().fold(1, |numbers: u64, &dim| numbers.saturating_mul(dim as u64))
}

/// Values of a tunable, or of its gradient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostTunable {
    /// Name, see [`TunableName`].
    pub name: String,
    /// Index of the first block in the model.
    pub first_block: usize,
    /// `[blocks, ..]`, stacked by block.
    pub tensor: HostTensor,
}

impl HostTunable {
    /// Returns the part for the blocks of `span`, without a copy; `None` if there is none.
    ///
    /// # Errors
    /// [`ShapeError`] if the tensor is not stacked by block.
    pub fn within(&self, span: Span) -> Result<Option<Self>, ShapeError> {
        let (shape, data) = (self.tensor.shape(), self.tensor.data());
        let n_blocks = shape.first().copied().unwrap_or(0);
        let last_end = self.first_block.saturating_add(n_blocks);
        let start = span.start().clamp(self.first_block, last_end);
        let end = span.end().clamp(start, last_end);
        if start == end {
            return Ok(None);
        }
        let bytes = data.len() / n_blocks;
        let part = data.slice((start - self.first_block) * bytes..(end - self.first_block) * bytes);
        let shape = [&[end - start], &shape[1..]].concat();
        let tensor = HostTensor::new(self.tensor.dtype(), shape, part)?;
        Ok(Some(Self { name: self.name.clone(), first_block: start, tensor }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tunables_are_read_back() {
        let site = LinearSite::new("mlp.down_proj", 4, 8, SiteRole::MlpOutput);
        for name in
            [TunableName::DeepPrompts, TunableName::PrefixKeysValues].into_iter().chain(TunableName::of_site(&site))
        {
            assert_eq!(TunableName::parse(&name.to_string()), Some(name));
        }
        for unknown in ["lora_A:", "lora_C:q", "prompts", ""] {
            assert_eq!(TunableName::parse(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn numbers_of_earlier_blocks_are_not_counted() {
        let name = TunableName::LoraA("self_attn.q_proj".to_owned());
        let tunable = TrainedTensor::tunable(&name, 2, [4, 3, 5]);
        assert_eq!(tunable.numbers(), 60);
        assert_eq!([0, 2, 3, 6, 9].map(|first| tunable.numbers_from(first)), [60, 60, 45, 0, 0]);
        assert_eq!(TrainedTensor::new("prompts", [3, 5]).numbers_from(0), 0, "the blocks do not take it");
    }

    #[test]
    fn part_of_a_tunable_is_that_of_the_common_blocks() {
        let numbers: Vec<f32> = (0..6).map(|i| i as f32).collect();
        let tensor = HostTensor::from_f32(vec![3, 2], &numbers).expect("a tensor");
        let tunable = HostTunable { name: "deep_prompts".into(), first_block: 2, tensor };
        let part = |start, end| tunable.within(Span::new(start, end).expect("a span")).expect("a part");
        assert_eq!(part(0, 2), None);
        assert_eq!(part(5, 7), None);
        let found = part(0, 4).expect("two blocks");
        assert_eq!((found.first_block, found.tensor.shape()), (2, &[2, 2][..]));
        assert_eq!(found.tensor.to_f32(), numbers[..4]);
        let found = part(4, 9).expect("one block");
        assert_eq!((found.first_block, found.tensor.to_f32()), (4, numbers[4..].to_vec()));
        let far = HostTunable { first_block: usize::MAX, ..tunable.clone() };
        assert_eq!(far.within(Span::new(0, 9).expect("a span")), Ok(None));
    }
}

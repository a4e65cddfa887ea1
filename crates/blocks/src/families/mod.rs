//! The table of model families. A family is one entry here and one in the table of `sepal-checkpoint`.

mod bloom;
mod cohere;
mod cohere2;
mod experts;
mod falcon;
mod gemma;
mod glm;
mod glm4;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod olmo3;
mod opt;
mod parts;
mod phi3;
mod phimoe;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod smollm3;
mod spec;
mod stablelm;

use sepal_checkpoint::tensor_names;
use sepal_core::{Family, ModelConfig};
use tch::Tensor;

pub(crate) use self::spec::{EndNorm, FamilySpec};
use crate::weights::{LoadError, Reader};

/// All families, by name.
const FAMILIES: &[&FamilySpec] = &[
    &bloom::SPEC,
    &cohere::SPEC,
    &cohere2::SPEC,
    &falcon::SPEC,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &glm::SPEC,
    &glm4::SPEC,
    &gpt2::SPEC,
    &gpt_neox::SPEC,
    &gpt_oss::SPEC,
    &granite::SPEC,
    &llama::SPEC,
    &mistral::SPEC,
    &mixtral::SPEC,
    &olmo2::SPEC,
    &olmo3::SPEC,
    &opt::SPEC,
    &phi3::SPEC,
    &phimoe::SPEC,
    &qwen2::SPEC,
    &qwen2_moe::SPEC,
    &qwen3::SPEC,
    &qwen3_moe::SPEC,
    &smollm3::SPEC,
    &stablelm::SPEC,
];

/// A family without an entry does not compile.
const _: () = {
    let mut index = 0;
    while index < Family::ALL.len() {
        spec(Family::ALL[index]);
        index += 1;
    }
};

pub(crate) const fn spec(family: Family) -> &'static FamilySpec {
    let mut index = 0;
    while FAMILIES[index].family as usize != family as usize {
        index += 1;
    }
    FAMILIES[index]
}

/// Learned positions `[max_positions, hidden]`, if the family has them; `reader` reads the tensors of the whole model.
///
/// They are added before the first block, so they belong to it and not to the embeddings: only the server of the first
/// block knows the position of each token, and soft prompts get their positions there as well.
pub(crate) fn positions(reader: &Reader<'_>, config: &ModelConfig) -> Result<Option<Tensor>, LoadError> {
    match (spec(config.family).positions, tensor_names(config.family).positions) {
        (Some(positions), Some(name)) => positions(reader, config, name).map(Some),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn families_table_is_complete() {
        let names: BTreeSet<&str> = FAMILIES.iter().map(|spec| spec.family.name()).collect();
        assert_eq!((FAMILIES.len(), names.len()), (Family::ALL.len(), Family::ALL.len()));
        for spec in FAMILIES {
            let has_name = tensor_names(spec.family).positions.is_some();
            assert_eq!(spec.positions.is_some(), has_name, "{}", spec.family.name());
        }
    }
}

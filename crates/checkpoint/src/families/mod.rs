//! The table of model families. A family is one entry here and one in the table of `sepal-blocks`.

mod bloom;
mod cohere;
mod cohere2;
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
mod phi3;
mod phimoe;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod smollm3;
mod stablelm;
#[cfg(test)]
mod tests;

use std::path::Path;

use sepal_core::{Family, ModelConfig};
use serde_json::{Map, Value};

use crate::config::check_keys;
use crate::error::OpenError;
use crate::family::{FamilySpec, GgufSpec, TensorNames};
use crate::keys::Keys;
use crate::multimodal::{MULTIMODAL, multimodal_type, text_keys};

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

/// Architectures that cannot be computed, by `model_type`, and the parts that are not supported.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &["llama4", "llama4_text"],
        "its chunked attention, queries scaled by position in blocks without positions, and experts whose inputs are scaled by \
         a sigmoid",
    ),
    (
        &["deepseek_v2", "deepseek_v3"],
        "its multi-head latent attention, in which keys and values are compressed and have heads of different sizes",
    ),
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

/// Names of a family's tensors.
pub fn tensor_names(family: Family) -> &'static TensorNames {
    &spec(family).tensors
}

/// Class of transformers with a classifier, for example `LlamaForSequenceClassification`; `None` if it has none.
pub fn classifier_class(family: Family) -> Option<&'static str> {
    spec(family).classifier
}

/// Reads a `config.json`.
///
/// Absent keys have the defaults of transformers, precedence between two keys is that of transformers, and keys that
/// transformers does not read are ignored.
pub(crate) fn read_config(path: &Path, json: &Map<String, Value>) -> Result<ModelConfig, OpenError> {
    let keys = Keys::new(path, json);
    let model_type = keys.text("model_type")?;
    let (keys, family) = match (Family::named(model_type), multimodal_type(json)) {
        (Some(family), _) => (keys, family),
        (None, Some((_, family))) => {
            check_keys(keys, spec(family))?;
            (text_keys(keys, family)?, family)
        }
        (None, None) => return Err(keys.unsupported("model_type", supported_types(model_type))),
    };
    let spec = spec(family);
    check_keys(keys, spec)?;
    (spec.read_config)(keys, spec)
}

/// The supported values of `model_type`, and the reason if another one is refused for its architecture.
fn supported_types(model_type: &str) -> String {
    let names = Family::ALL.map(Family::name).join(", ");
    let multimodal = MULTIMODAL.map(|(name, _)| name).join(" and ");
    let reason = REFUSED.iter().find(|(names, _)| names.contains(&model_type));
    let reason = reason.map_or_else(String::new, |(_, reason)| format!("; not supported are {reason}"));
    format!("{names}, and the text models of {multimodal}{reason}")
}

/// Families whose GGUF files have this architecture.
pub(crate) fn of_architecture(name: &str) -> Vec<(&'static FamilySpec, &'static GgufSpec)> {
    gguf_specs().filter(|(_, gguf)| gguf.architecture == name).collect()
}

/// Names of all GGUF architectures.
pub(crate) fn architectures() -> Vec<&'static str> {
    let mut names: Vec<&str> = gguf_specs().map(|(_, gguf)| gguf.architecture).collect();
    names.dedup();
    names
}

fn gguf_specs() -> impl Iterator<Item = (&'static FamilySpec, &'static GgufSpec)> {
    FAMILIES.iter().filter_map(|spec| Some((*spec, spec.gguf.as_ref()?)))
}

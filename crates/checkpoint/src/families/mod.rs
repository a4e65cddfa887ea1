//! The table of model families. A family is one entry here and one in the table of `sepal-blocks`.

mod bloom;
mod cohere;
mod falcon;
mod gemma;
mod glm4;
mod gpt2;
mod gpt_neox;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod olmo3;
mod opt;
mod phi3;
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

/// All families, by name.
const FAMILIES: &[&FamilySpec] = &[
    &bloom::SPEC,
    &cohere::SPEC,
    &falcon::SPEC,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &glm4::SPEC,
    &gpt2::SPEC,
    &gpt_neox::SPEC,
    &granite::SPEC,
    &llama::SPEC,
    &mistral::SPEC,
    &mixtral::SPEC,
    &olmo2::SPEC,
    &olmo3::SPEC,
    &opt::SPEC,
    &phi3::SPEC,
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
    if model_type == "gemma3" {
        return Err(keys.unsupported("model_type", "gemma3_text: of a Gemma 3 that sees pictures take a GGUF file"));
    }
    let Some(family) = Family::named(model_type) else {
        let names = Family::ALL.map(Family::name).join(", ");
        return Err(keys.unsupported("model_type", names));
    };
    check_keys(keys)?;
    let spec = spec(family);
    (spec.read_config)(keys, spec)
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

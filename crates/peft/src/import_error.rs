//! Errors of an import.

use std::path::PathBuf;

use sepal_track::export::{RECORD, VERSION};

use crate::adapter::AdapterError;
use crate::config::{CONFIG, LORA};
use crate::folder::FolderError;

/// Error of an import. No file was left behind.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum ImportError {
    /// A file of the folder cannot be read.
    #[error("read {path}")]
    Io { path: PathBuf, source: std::io::Error },
    /// The tensors cannot be read.
    #[error("read the folder's tensors")]
    Tensors(#[from] sepal_nn::file::ReadError),
    /// The tensors are in a pickle, which may execute any code when it is read.
    #[error(
        "import {path}: its tensors are in a pickle (adapter_model.bin), which can execute code when it is read; load it \
         with PEFT if you trust it, and save it with `save_pretrained(.., safe_serialization=True)`"
    )]
    Pickle { path: PathBuf },
    /// A task other than SEQ_CLS.
    #[error("import an adapter for {found}: only SEQ_CLS is supported")]
    Task {
        /// Its `task_type`.
        found: String,
    },
    /// A method that a run does not have.
    #[error(
        "import {found}: only PROMPT_TUNING, P_TUNING, PREFIX_TUNING, LORA and IA3 can be imported; merge other methods into \
         the model with PEFT (`merge_and_unload`) and tune that model"
    )]
    Method {
        /// Its `peft_type`.
        found: String,
    },
    /// A variant of LORA that a run does not have.
    #[error(
        "import LORA with `{key}: {value}` ({feature}): only the low-rank additions themselves can be imported; merge it into \
         the model with PEFT (`merge_and_unload`) and tune that model"
    )]
    Feature {
        /// Key of the configuration.
        key: String,
        value: String,
        feature: String,
    },
    /// A scaling that is no positive number.
    #[error("import LORA: `{key}` of {CONFIG} is not a positive number")]
    Alpha { key: &'static str },
    /// A regular expression in `alpha_pattern`.
    #[error(
        "import LORA: `alpha_pattern` has the regular expression `{pattern}`; write the names of the layers instead"
    )]
    Pattern { pattern: String },
    /// A tensor of no layer that a run can tune.
    #[error(
        "import the folder: `{name}` is not of a layer that a run can tune ({}), nor the head `score.weight`; merge it into \
         the model with PEFT (`merge_and_unload`) and tune that model",
        layers.join(", ")
    )]
    Layer {
        name: String,
        /// Layers of each block.
        layers: Vec<String>,
    },
    /// Layers of some blocks only.
    #[error(
        "import {method}: it changes `{site}` in the blocks {found:?} of {n_blocks}; a run has the same layers in all of \
         its blocks, {}; merge it into the model with PEFT (`merge_and_unload`) and tune that model",
        tuned_blocks(method)
    )]
    Blocks {
        method: String,
        site: String,
        /// Blocks with the layer.
        found: Vec<usize>,
        n_blocks: usize,
    },
    /// Factors at the other end of a layer.
    #[error(
        "import IA3: `{name}` scales the {end} of its layer; a run scales the inputs of the MLP's last layer and the outputs of \
         other layers; merge it into the model with PEFT (`merge_and_unload`) and tune that model"
    )]
    Scaled { name: String, end: &'static str },
    /// The base model of a folder of PEFT is missing.
    #[error("import the folder: it needs its base model{}", base_model_name(base_model.as_deref()))]
    NeedsModel { base_model: Option<String> },
    /// Query heads that share keys and values have different ones in the prefix.
    #[error(
        "import PREFIX_TUNING of {family}: {copies} query heads share keys and values in this model, but have different ones \
         in the prefix, which transformers caches per query head; only a prefix with equal ones can be imported"
    )]
    SplitHeads { family: &'static str, copies: usize },
    /// The folder has no configuration of PEFT.
    #[error("import {path}: it has no {CONFIG}, so it is not a folder of PEFT{}", adapter_folders(adapters))]
    NoConfig { path: PathBuf, adapters: Vec<String> },
    /// A file was changed after the export.
    #[error("import the folder: {file} does not match {RECORD}; one of them was changed")]
    Changed { file: &'static str },
    /// Another version wrote the folder.
    #[error("import the folder: its {RECORD} has version {found}, and {VERSION} is supported")]
    Version { found: u32 },
    /// The folder belongs to another model.
    #[error("import the folder: it is of the model {expected}, and this one is {found}")]
    Model { expected: String, found: String },
    /// The content is not a valid adapter.
    #[error("make an adapter of the folder")]
    Adapter(#[from] AdapterError),
    /// Tensors cannot be widened.
    #[error("widen tensors")]
    Host(#[from] sepal_nn::HostError),
    /// libtorch failed.
    #[error("lay out the tensors")]
    Torch(#[from] tch::TchError),
    /// The result cannot be written.
    #[error("write the adapter")]
    Folder(#[from] FolderError),
    /// The manifest cannot be written as JSON.
    #[error("write JSON")]
    Json(#[from] serde_json::Error),
}

fn adapter_folders(adapters: &[String]) -> String {
    match adapters {
        [] => String::new(),
        names => format!("; adapters are in its folders {}: name one of them", names.join(", ")),
    }
}

fn tuned_blocks(method: &str) -> &'static str {
    if method == LORA { "which are the last ones of the model" } else { "which are all blocks of the model" }
}

fn base_model_name(base_model: Option<&str>) -> String {
    base_model.map_or_else(String::new, |name| format!(", which it calls {name:?}"))
}

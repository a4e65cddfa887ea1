//! Arguments of `export`, `import`, `merge` and `push`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};
use sepal_assets::Source;
use sepal_core::PeftForm;

use super::values::positive;

#[derive(Debug, Subcommand)]
pub enum ExportCommand {
    /// Write the adapter of a run as a folder that PEFT loads
    Peft(ExportPeftArgs),
}

#[derive(Debug, ClapArgs)]
pub struct ExportPeftArgs {
    /// Folder of the run, with adapter.safetensors, manifest.json and pipeline.yaml
    pub run: PathBuf,
    /// Folder to write
    pub folder: PathBuf,
    /// Method of PEFT: prefix-tuning (exact, includes deep prompts), prompt-tuning or p-tuning (shallow prompts only; PEFT
    /// pools padded batches wrongly with them), lora or ia3 [default: prefix-tuning for prompts, otherwise that of the
    /// run's tuning mode]
    #[arg(long = "as", value_name = "FORM")]
    pub form: Option<PeftForm>,
    /// Compare the logits of the export with those of the trained adapter, and write nothing if they differ
    #[arg(long)]
    pub verify: bool,
    /// Name under which PEFT loads the frozen model, for example OWNER/NAME on the hub [default: the run's own model if
    /// that is on the hub or a folder with config.json]
    #[arg(long, value_name = "NAME")]
    pub base_model: Option<String>,
    /// Model, if not the source recorded in the run; several are tried in order
    #[arg(long, value_name = "SOURCE")]
    pub model: Vec<Source>,
    /// Replace an existing export
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Debug, Subcommand)]
pub enum ImportCommand {
    /// Convert a PEFT folder to a run: PROMPT_TUNING, P_TUNING, PREFIX_TUNING, LORA, IA3, or an export of this program
    Peft(ImportPeftArgs),
}

#[derive(Debug, ClapArgs)]
pub struct ImportPeftArgs {
    /// PEFT folder, or the repository hub:OWNER/NAME that contains one
    pub folder: Source,
    /// Folder to write, a run for `sepal predict`, `evaluate`, `serve-task` and `export peft`
    pub out: PathBuf,
    /// Base model; several are tried in order. An export of this program names it
    #[arg(long, value_name = "SOURCE")]
    pub model: Vec<Source>,
    /// Names of the labels, in the order of the logits [default: those of an export of this program, or of the
    /// config.json beside the adapter or the model, or LABEL_0 and so on]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Any number of labels may apply to a text
    #[arg(long)]
    pub multi_label: bool,
    /// Column of the texts [default: text]
    #[arg(long, value_name = "COLUMN")]
    pub text: Option<String>,
    /// Column of the second texts, for tasks on pairs
    #[arg(long, value_name = "COLUMN")]
    pub text_pair: Option<String>,
    /// Column of the labels [default: label]
    #[arg(long, value_name = "COLUMN")]
    pub label: Option<String>,
    /// Template around each text in training, for example `Movie review: {text}` [default: none]
    #[arg(long, value_name = "TEXT")]
    pub template: Option<String>,
    /// Maximum number of tokens in a row [default: 512, or as many as the model takes]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_length: Option<usize>,
    /// Replace an existing import
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Debug, ClapArgs)]
pub struct MergeArgs {
    /// Folder of the run, with adapter.safetensors, manifest.json and pipeline.yaml
    pub run: PathBuf,
    /// Folder to write, which AutoModelForSequenceClassification of transformers loads
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Model, if not the source recorded in the run: a folder with config.json and safetensors, or a repository of the hub;
    /// several are tried in order
    #[arg(long, value_name = "SOURCE")]
    pub model: Vec<Source>,
    /// Replace an existing merge
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Debug, ClapArgs)]
pub struct PushArgs {
    /// Folder that `sepal export peft` wrote. Its README.md is the model card; edit it before the push
    pub folder: PathBuf,
    /// Repository, created if it does not exist: hub:OWNER/NAME, or hub:OWNER/NAME@BRANCH
    pub to: Source,
    /// Make the repository private; a repository that is public already is refused
    #[arg(long)]
    pub private: bool,
    /// Commit message
    #[arg(long, value_name = "TEXT", default_value = "A classifier trained with Sepal")]
    pub message: String,
}

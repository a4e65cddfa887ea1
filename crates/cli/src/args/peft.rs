//! Arguments of `export`, `import`, `merge` and `push`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};
use sepal_assets::Source;

use super::values::positive;

#[derive(Debug, Subcommand)]
pub(crate) enum ExportCommand {
    /// Write the adapter of a run as a folder that PEFT loads
    Peft(ExportPeftArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExportPeftArgs {
    /// Folder of the run, with adapter.safetensors, manifest.json and pipeline.yaml
    pub(crate) run: PathBuf,
    /// Folder to write
    pub(crate) folder: PathBuf,
    /// Method of PEFT: prefix-tuning (exact, includes deep prompts), prompt-tuning or p-tuning (shallow prompts only; PEFT
    /// pools padded batches wrongly with them), lora or ia3 [default: prefix-tuning for prompts, otherwise that of the
    /// run's tuning mode]
    #[arg(long = "as", value_name = "FORM")]
    pub(crate) form: Option<sepal_peft::Form>,
    /// Compare the logits of the export with those of the trained adapter, and write nothing if they differ
    #[arg(long)]
    pub(crate) verify: bool,
    /// Name under which PEFT loads the frozen model, for example OWNER/NAME on the hub [default: the run's own model if
    /// that is on the hub or a folder with config.json]
    #[arg(long, value_name = "NAME")]
    pub(crate) base_model: Option<String>,
    /// Model, if not the source recorded in the run; several are tried in order
    #[arg(long, value_name = "SOURCE")]
    pub(crate) model: Vec<Source>,
    /// Replace an existing export
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImportCommand {
    /// Convert a PEFT folder to a run: PROMPT_TUNING, P_TUNING, PREFIX_TUNING, LORA, IA3, or an export of this program
    Peft(ImportPeftArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImportPeftArgs {
    /// PEFT folder, or the repository hub:OWNER/NAME that contains one
    pub(crate) folder: Source,
    /// Folder to write, a run for `sepal predict`, `evaluate`, `serve-task` and `export peft`
    pub(crate) out: PathBuf,
    /// Base model; several are tried in order. An export of this program names it
    #[arg(long, value_name = "SOURCE")]
    pub(crate) model: Vec<Source>,
    /// Names of the labels, in the order of the logits [default: those of an export of this program, or of the
    /// config.json beside the adapter or the model, or LABEL_0 and so on]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) labels: Vec<String>,
    /// Any number of labels may apply to a text
    #[arg(long)]
    pub(crate) multi_label: bool,
    /// Column of the texts [default: text]
    #[arg(long, value_name = "COLUMN")]
    pub(crate) text: Option<String>,
    /// Column of the second texts, for tasks on pairs
    #[arg(long, value_name = "COLUMN")]
    pub(crate) text_pair: Option<String>,
    /// Column of the labels [default: label]
    #[arg(long, value_name = "COLUMN")]
    pub(crate) label: Option<String>,
    /// Template around each text in training, for example `Movie review: {text}` [default: none]
    #[arg(long, value_name = "TEXT")]
    pub(crate) template: Option<String>,
    /// Maximum number of tokens in a row [default: 512, or as many as the model takes]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) max_length: Option<usize>,
    /// Replace an existing import
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct MergeArgs {
    /// Folder of the run, with adapter.safetensors, manifest.json and pipeline.yaml
    pub(crate) run: PathBuf,
    /// Folder to write, which AutoModelForSequenceClassification of transformers loads
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Model, if not the source recorded in the run: a folder with config.json and safetensors, or a repository of the hub;
    /// several are tried in order
    #[arg(long, value_name = "SOURCE")]
    pub(crate) model: Vec<Source>,
    /// Replace an existing merge
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PushArgs {
    /// Folder that `sepal export peft` wrote. Its README.md is the model card; edit it before the push
    pub(crate) folder: PathBuf,
    /// Repository, created if it does not exist: hub:OWNER/NAME, or hub:OWNER/NAME@BRANCH
    pub(crate) to: Source,
    /// Make the repository private; a repository that is public already is refused
    #[arg(long)]
    pub(crate) private: bool,
    /// Commit message
    #[arg(long, value_name = "TEXT", default_value = "A classifier trained with Sepal")]
    pub(crate) message: String,
}

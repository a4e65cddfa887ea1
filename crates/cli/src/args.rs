//! The command line.

mod peft;
mod plan;
mod rows;
mod serve;
mod values;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};
use clap_complete::Shell;

pub(crate) use self::peft::{ExportCommand, ExportPeftArgs, ImportCommand, ImportPeftArgs, MergeArgs, PushArgs};
pub(crate) use self::plan::{PlanArgs, ServersArgs};
pub(crate) use self::rows::{EvaluateArgs, InitArgs, LabelsAs, PredictArgs};
pub(crate) use self::serve::{ServeArgs, ServeTaskArgs, SwarmArgs, SwarmCommand};
use self::values::setting;

/// Prompt tuning of large language models for text classification, with the frozen blocks on other machines
#[derive(Debug, Parser)]
#[command(name = "sepal", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a pipeline file for a data file
    Init(InitArgs),
    /// Train from a pipeline file, or resume an interrupted run
    #[command(override_usage = "sepal run [FILE] [OPTIONS]")]
    Run(RunArgs),
    /// Check a pipeline file and print it with every default filled in
    Validate(PipelineArgs),
    /// Print a pipeline file with every default filled in, and the origin of each value
    Render(RenderArgs),
    /// Estimate a run: model, data, servers, bytes, time and disk space
    Plan(PlanArgs),
    /// Fetch the model and the data of a pipeline file into the cache
    Fetch(PipelineArgs),
    /// Predict the rows of a file, or of standard input, with a trained run
    Predict(PredictArgs),
    /// Measure a trained run on labelled rows
    Evaluate(EvaluateArgs),
    /// Write the report page of a run, or one that compares several runs
    Report(ReportArgs),
    /// Serve blocks of a model to other machines
    Serve(ServeArgs),
    /// Serve the classifier of a run over HTTP
    ServeTask(ServeTaskArgs),
    /// Write an outline of a model's shards, for machines that hold only some of them
    Outline(OutlineArgs),
    /// Export a run for other programs
    #[command(subcommand)]
    Export(ExportCommand),
    /// Import an adapter that another program trained
    #[command(subcommand)]
    Import(ImportCommand),
    /// Merge the adapter of a run into its model, for transformers: LoRA and IA3
    Merge(MergeArgs),
    /// Push a folder written by `sepal export peft` to a repository of the hub
    Push(PushArgs),
    /// Show the servers of a swarm
    #[command(subcommand)]
    Swarm(SwarmCommand),
    /// Check this machine, and print a fix for each problem
    Doctor(DoctorArgs),
    /// Print the completions of a shell: bash, elvish, fish, powershell or zsh
    Completions(CompletionsArgs),
    /// Write the manual pages of all commands
    Man(ManArgs),
    /// List the plugins and their options
    Plugins(PluginsArgs),
    /// Print the JSON schema of pipeline files, plugins included
    Schema,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PipelineArgs {
    /// Pipeline file
    pub(crate) file: PathBuf,
    /// Set a key, over the file and the environment: --set train.max_steps=100
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1.., value_parser = setting)]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    /// Pipeline file [default with --resume FOLDER: that of the run]
    #[arg(required_unless_present = "resume")]
    pub(crate) file: Option<PathBuf>,
    /// Set a key, over the file and the environment: --set train.max_steps=100
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1.., value_parser = setting)]
    pub(crate) set: Vec<String>,
    /// Resume the run in this folder from its newest checkpoint. Without a folder, resume the newest unfinished run of
    /// the pipeline, or begin a new run if there is none
    #[arg(long, value_name = "FOLDER")]
    #[expect(clippy::option_option, reason = "absent, present, and present with a folder are three cases")]
    pub(crate) resume: Option<Option<PathBuf>>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RenderArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    /// Print the origin after each value: the file and its line, a variable, --set, or a default
    #[arg(long)]
    pub(crate) origin: bool,
    /// Print {KEY: {value, origin}} as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ReportArgs {
    /// Folders of the runs
    #[arg(required = true)]
    pub(crate) runs: Vec<PathBuf>,
    /// Page to write [default: report.html in the folder of the run, or comparison.html here for several runs]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Replace an existing page; the report.html of a run is always replaced
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct OutlineArgs {
    /// Folder with config.json, model.safetensors.index.json and all shards
    pub(crate) folder: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PluginsArgs {
    /// Print names, options and examples as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CompletionsArgs {
    /// Shell to complete for
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ManArgs {
    /// Folder to write one page per command into; created if it does not exist
    pub(crate) folder: PathBuf,
}

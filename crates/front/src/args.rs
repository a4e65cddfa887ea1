//! The command line.
#![expect(missing_docs, reason = "the help text of a command documents its arguments")]

mod audit;
mod calibrate;
mod peft;
mod plan;
mod rows;
mod serve;
mod sweep;
mod values;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub use self::audit::AuditArgs;
pub use self::calibrate::CalibrateArgs;
pub use self::peft::{ExportCommand, ExportPeftArgs, ImportCommand, ImportPeftArgs, MergeArgs, PushArgs};
pub use self::plan::{PlanArgs, ServersArgs};
pub use self::rows::{EvaluateArgs, InitArgs, LabelledArgs, LabelsAs, PredictArgs};
pub use self::serve::{GrantArgs, RevokeArgs, ServeArgs, ServeTaskArgs, SwarmArgs, SwarmCommand};
pub use self::sweep::SweepArgs;
pub use self::values::RunArg;
use self::values::setting;

/// Prompt tuning of large language models for text classification, with the frozen blocks on other machines
#[derive(Debug, Parser)]
#[command(name = "sepal", version)]
pub struct Args {
    /// Format of log lines on standard error: text for people, or json, one object per line with its time
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value_t, hide_possible_values = true)]
    pub log_format: LogFormat,
    #[command(subcommand)]
    pub command: Command,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Level and message.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a pipeline file for a data file
    Init(InitArgs),
    /// Train from a pipeline file, or resume an interrupted run
    #[command(override_usage = "sepal run [FILE] [OPTIONS]")]
    Run(RunArgs),
    /// Train several runs of a pipeline: a grid or list of values and seeds
    #[command(override_usage = "sepal sweep [FILE] [OPTIONS]")]
    Sweep(SweepArgs),
    /// Check a pipeline file and print it with every default filled in
    Validate(PipelineArgs),
    /// Print a pipeline file with every default filled in, and the origin of each value
    Render(RenderArgs),
    /// Estimate a run: model, data, servers, bytes, time and disk space
    Plan(PlanArgs),
    /// Fetch the model and the data of a pipeline file into the cache
    Fetch(PipelineArgs),
    /// Predict the rows of a file, or of standard input, with trained runs
    Predict(PredictArgs),
    /// Measure a trained run on labelled rows
    Evaluate(EvaluateArgs),
    /// Measure how much of a run's texts servers could recover from hidden states, and what noise against that costs
    Audit(AuditArgs),
    /// Fit the probabilities and thresholds of a trained run on labelled rows
    Calibrate(CalibrateArgs),
    /// Write the report page of a run, or one that compares several runs
    Report(ReportArgs),
    /// Serve blocks of a model to other machines
    Serve(ServeArgs),
    /// Serve the classifiers of runs over HTTP
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

impl Command {
    /// True if the command without libtorch reads the options of plugins.
    pub fn reads_catalog(&self) -> bool {
        matches!(
            self,
            Self::Validate(_)
                | Self::Render(_)
                | Self::Init(_)
                | Self::Plan(_)
                | Self::Fetch(_)
                | Self::Schema
                | Self::Plugins(_)
        )
    }
}

#[derive(Debug, ClapArgs)]
pub struct PipelineArgs {
    /// Pipeline file
    pub file: PathBuf,
    /// Set a key, over the file and the environment: --set train.max_steps=100
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1.., value_parser = setting)]
    pub set: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct RunArgs {
    /// Pipeline file [default with --resume FOLDER: that of the run]
    #[arg(required_unless_present = "resume")]
    pub file: Option<PathBuf>,
    /// Set a key, over the file and the environment: --set train.max_steps=100
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1.., value_parser = setting)]
    pub set: Vec<String>,
    /// Resume the run in this folder from its newest checkpoint. Without a folder, resume the newest unfinished run of
    /// the pipeline, or begin a new run if there is none
    #[arg(long, value_name = "FOLDER")]
    // Absent, present, and present with a folder are three cases.
    pub resume: Option<Option<PathBuf>>,
}

#[derive(Debug, ClapArgs)]
pub struct RenderArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Print the origin after each value: the file and its line, a variable, --set, or a default
    #[arg(long)]
    pub origin: bool,
    /// Print {KEY: {value, origin}} as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct ReportArgs {
    /// Folders of the runs, or folder of a sweep
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// Page to write [default: report.html in the folder of the run, or comparison.html here for several runs]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace an existing page; the report.html of a run is always replaced
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Debug, ClapArgs)]
pub struct OutlineArgs {
    /// Folder with config.json, model.safetensors.index.json and all shards
    pub folder: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub struct PluginsArgs {
    /// Print names, options and examples as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct CompletionsArgs {
    /// Shell to complete for
    #[arg(value_enum)]
    pub shell: Shell,
}

#[derive(Debug, ClapArgs)]
pub struct ManArgs {
    /// Folder to write one page per command into; created if it does not exist
    pub folder: PathBuf,
}

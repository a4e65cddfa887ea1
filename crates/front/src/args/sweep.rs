//! Arguments of `sweep`.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::values::{positive, setting};

#[derive(Debug, ClapArgs)]
pub struct SweepArgs {
    /// Pipeline file with the key `sweep` [default with --resume FOLDER: that of the sweep]
    #[arg(required_unless_present = "resume")]
    pub file: Option<PathBuf>,
    /// File with the keys and values to sweep over, as they stand below `sweep`; over those of the pipeline file
    #[arg(long, value_name = "FILE", requires = "file")]
    pub over: Option<PathBuf>,
    /// Set a key of all runs, over the file and the environment: --set train.max_steps=100
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1.., value_parser = setting)]
    pub set: Vec<String>,
    /// Resume the sweep in this folder: finished runs are kept. Without a folder, resume the newest unfinished sweep of
    /// the pipeline, or begin a new one if there is none
    #[arg(long, value_name = "FOLDER")]
    pub resume: Option<Option<PathBuf>>,
    /// Runs at the same time [default: chosen by cores and memory, at most 4]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub parallel: Option<usize>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

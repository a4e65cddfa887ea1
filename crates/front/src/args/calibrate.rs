//! Arguments of `calibrate`.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::rows::LabelledArgs;

#[derive(Debug, ClapArgs)]
#[command(override_usage = "sepal calibrate [OPTIONS] <RUN> --data <SOURCE>...")]
pub struct CalibrateArgs {
    /// Folder of the run
    pub run: PathBuf,
    #[command(flatten)]
    pub labelled: LabelledArgs,
    /// Fit the thresholds of labels by F1, too
    #[arg(long)]
    pub thresholds: bool,
    /// Do not fit a temperature
    #[arg(long, requires = "thresholds")]
    pub no_temperature: bool,
}

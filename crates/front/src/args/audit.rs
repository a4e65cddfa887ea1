//! Arguments of `sepal audit`.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::values::{positive, setting};

#[derive(Debug, ClapArgs)]
pub struct AuditArgs {
    /// Folder of the run
    pub run: PathBuf,
    /// Numbers of blocks that would run at home (`model.local_blocks`) [default: those of 0,1,2,4 that leave a block]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub local_blocks: Vec<usize>,
    /// Noise on hidden states (`swarm.with.noise`)
    #[arg(
        long,
        value_name = "LEVEL",
        value_delimiter = ',',
        default_value = "0,0.3,1",
        value_parser = noise,
        allow_negative_numbers = true
    )]
    pub noise: Vec<f64>,
    /// Maximum number of the run's validation rows to read
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = positive)]
    pub rows: usize,
    /// Set a key of the run's pipeline, over the file and the environment: --set model.device=cuda:0
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1.., value_parser = setting)]
    pub set: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn noise(text: &str) -> Result<f64, &'static str> {
    let level = text.parse().ok().filter(|level| (0.0..=100.0).contains(level));
    level.ok_or("expected a number from 0 to 100")
}

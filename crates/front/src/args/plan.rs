//! Arguments of `plan`.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use sepal_assets::Source;
use sepal_core::ComputeFormat;

use super::values::{positive, positive_number, setting};

#[derive(Debug, ClapArgs)]
pub struct PlanArgs {
    /// Pipeline file
    #[arg(required_unless_present = "model")]
    pub file: Option<PathBuf>,
    /// Set a key, over the file and the environment: --set train.max_steps=100
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1.., value_parser = setting)]
    pub set: Vec<String>,
    /// Number of steps to measure, after one warm-up step; nothing is trained or written. With 0 the plan connects to no
    /// server
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub probe_steps: u64,
    /// Approximate time limit of the measurement in seconds; the steps measured until then are used
    #[arg(long, value_name = "S", default_value_t = 60)]
    pub probe_seconds: u64,
    #[command(flatten)]
    pub servers: ServersArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct ServersArgs {
    /// Plan the servers of a model instead of a run: a folder with config.json, a GGUF file or hub:OWNER/NAME. Of a model
    /// in shards, weights are neither needed nor fetched
    #[arg(long, value_name = "SOURCE", conflicts_with_all = ["file", "set", "probe_steps", "probe_seconds"])]
    pub model: Option<Source>,
    /// Free memory of a server, in GB [default: one server with all blocks]
    #[arg(long, value_name = "GB", conflicts_with = "file", value_parser = positive_number)]
    pub server_memory_gb: Option<f64>,
    /// Rate of a server in products, in 10^12 floating-point operations per second
    #[arg(long, value_name = "TFLOPS", conflicts_with = "file", value_parser = positive_number)]
    pub server_tflops: Option<f64>,
    /// Rate of the link to the servers, in megabits per second
    #[arg(long, value_name = "MBIT", conflicts_with = "file", value_parser = positive_number)]
    pub link_mbit: Option<f64>,
    /// Number format of the products: f32, bf16 or f16; bf16 and f16 halve the tapes [default: f32]
    #[arg(long, value_name = "FORMAT", conflicts_with = "file")]
    pub compute: Option<ComputeFormat>,
    /// Rows of a step [default: 32]
    #[arg(long, value_name = "N", conflicts_with = "file", value_parser = positive)]
    pub rows: Option<usize>,
    /// Tokens of a step [default: 512]
    #[arg(long, value_name = "N", conflicts_with = "file", value_parser = positive)]
    pub tokens: Option<usize>,
    /// Deep prompts of a step [default: 16]
    #[arg(long, value_name = "N", conflicts_with = "file", value_parser = positive)]
    pub prompts: Option<usize>,
}

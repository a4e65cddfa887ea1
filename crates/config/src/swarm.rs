//! Placement of a model's blocks.

use std::path::PathBuf;

use schemars::JsonSchema;
use sepal_core::DType;
use sepal_swarm::RemoteOptions;
use serde::{Deserialize, Serialize};

use crate::ticket::TicketSpec;

/// Placement of the model's blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "use", content = "with", rename_all = "kebab-case")]
pub enum SwarmSpec {
    /// All blocks in this process, without a server.
    None(NoneSpec),
    /// In this process, through the protocol of servers.
    Embedded(EmbeddedSpec),
    /// On running servers.
    Static(StaticSpec),
    /// On servers of the local network.
    Lan(LanSpec),
    /// On servers of a peer-to-peer swarm.
    P2p(P2pSpec),
}

impl SwarmSpec {
    /// Options of calls to servers.
    pub fn remote(&self) -> RemoteOptions {
        match self {
            SwarmSpec::None(_) => RemoteOptions::default(),
            SwarmSpec::Embedded(options) => RemoteOptions {
                wire_dtype: options.wire_dtype,
                micro_batch_tokens: options.micro_batch_tokens,
                // The server is this process.
                verify: 0.0,
                ..RemoteOptions::default()
            },
            SwarmSpec::Static(options) => options.remote.clone(),
            SwarmSpec::Lan(options) => options.remote.clone(),
            SwarmSpec::P2p(options) => options.remote.clone(),
        }
    }
}

impl Default for SwarmSpec {
    fn default() -> Self {
        SwarmSpec::Embedded(EmbeddedSpec::default())
    }
}

/// Runs all blocks in this process without a server, for small models and comparisons.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoneSpec {}

/// Runs the blocks in this process, through the protocol of servers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EmbeddedSpec {
    /// Number format of hidden states and gradients on the wire; `train.precision` if not set. `q8`, for slow links,
    /// takes eight bits and a scale for every 64 numbers; tunables and their gradients are then sent as `bf16`.
    #[schemars(schema_with = "sepal_swarm::dtype_schema")]
    pub wire_dtype: Option<DType>,
    /// Maximum number of tokens in one message, prompts included. It is lower if they would take more than 16 MB.
    #[schemars(range(min = 1))]
    pub micro_batch_tokens: usize,
    /// Memory for graphs that wait for their backward pass, in MiB. Graphs that do not fit are recomputed.
    pub tape_budget_mb: u64,
}

impl Default for EmbeddedSpec {
    fn default() -> Self {
        Self { wire_dtype: None, micro_batch_tokens: RemoteOptions::default().micro_batch_tokens, tape_budget_mb: 4096 }
    }
}

/// Uses running servers (`sepal serve`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticSpec {
    /// Addresses of the servers, each `HOST:PORT` or `unix:PATH`, in any order. Together they hold all blocks. With a secret,
    /// `HOST:PORT#KEY` also expects the server to have this public key.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub servers: Vec<String>,
    /// File of the secret of the servers, or of one derived from it. Connections are then encrypted, and servers without the
    /// secret are refused; they are plain if not set.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// Options of calls to servers.
    #[serde(flatten)]
    pub remote: RemoteOptions,
}

/// Uses servers of the model on the local network (`sepal serve --lan`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LanSpec {
    /// Name or address of the network interface to search; all interfaces if not set.
    #[serde(default)]
    pub interface: Option<String>,
    /// File of the secret of the servers, or of one derived from it. Connections are then encrypted, and servers without the
    /// secret are refused; they are plain if not set.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// Options of calls to servers.
    #[serde(flatten)]
    pub remote: RemoteOptions,
}

/// Uses servers of the model in a peer-to-peer swarm (`sepal serve --p2p`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct P2pSpec {
    /// Ticket of the swarm, as `sepal serve --p2p` prints it, or the path of a file that holds it. The folder of a run keeps the
    /// path, and not the text.
    #[schemars(with = "String")]
    pub ticket: TicketSpec,
    /// Local address and UDP port, `IP:PORT`; any port on all interfaces if not set.
    #[serde(default)]
    pub bind: Option<std::net::SocketAddr>,
    /// Servers of the iroh-relay protocol, which connect machines behind routers; none if not set.
    #[serde(default)]
    pub relays: Vec<String>,
    /// Options of calls to servers.
    #[serde(flatten)]
    pub remote: RemoteOptions,
}

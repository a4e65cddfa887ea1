//! Where a model's blocks run, as a pipeline file says it.

use schemars::JsonSchema;
use sepal_core::DType;
use sepal_swarm::RemoteOptions;
use serde::{Deserialize, Serialize};

/// Where the model's blocks run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "use", content = "with", rename_all = "kebab-case")]
pub enum SwarmSpec {
    /// Nowhere else: all blocks run in this process, without a server.
    None(NoneSpec),
    /// In this process, through the same protocol as on servers.
    Embedded(EmbeddedSpec),
    /// On servers that run already.
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

/// Runs all blocks in this process and no server: for small models, or to compare.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoneSpec {}

/// Runs the blocks in this process, through the same protocol as on servers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EmbeddedSpec {
    /// The number format of hidden states and gradients on the way; that of `train.precision` if not set. `q8`, for slow
    /// links, takes eight bits and a scale for every 64 numbers; tunables and the gradients of what trains are `bf16` then.
    #[schemars(schema_with = "sepal_swarm::dtype_schema")]
    pub wire_dtype: Option<DType>,
    /// Tokens that one message holds at most, prompts included; fewer where they would take more than 16 MB.
    #[schemars(range(min = 1))]
    pub micro_batch_tokens: usize,
    /// Memory for graphs that wait for their backward pass, in MiB. Graphs that do not fit are computed again.
    pub tape_budget_mb: u64,
}

impl Default for EmbeddedSpec {
    fn default() -> Self {
        Self { wire_dtype: None, micro_batch_tokens: RemoteOptions::default().micro_batch_tokens, tape_budget_mb: 4096 }
    }
}

/// Uses servers that run already (`sepal serve`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticSpec {
    /// Their addresses, each `HOST:PORT` or `unix:PATH`. Together they have all blocks, in any order.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub servers: Vec<String>,
    /// Options of calls to servers.
    #[serde(flatten)]
    pub remote: RemoteOptions,
}

/// Uses the servers of the model that are found on the local network (`sepal serve --lan`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LanSpec {
    /// The network interface to look on, by its name or one of its addresses; all of them if not set.
    #[serde(default)]
    pub interface: Option<String>,
    /// Options of calls to servers.
    #[serde(flatten)]
    pub remote: RemoteOptions,
}

/// Uses the servers of the model that are found in a peer-to-peer swarm (`sepal serve --p2p`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct P2pSpec {
    /// Ticket of the swarm, as `sepal serve --p2p` prints it, or the path of a file that holds it.
    pub ticket: String,
    /// The address and UDP port to use, `IP:PORT`; any on all interfaces if not set.
    #[serde(default)]
    pub bind: Option<std::net::SocketAddr>,
    /// Servers of the iroh-relay protocol that help machines behind routers to reach each other; none if not set.
    #[serde(default)]
    pub relays: Vec<String>,
    /// Options of calls to servers.
    #[serde(flatten)]
    pub remote: RemoteOptions,
}

//! Where a model's blocks run, as a pipeline file says it.

use schemars::JsonSchema;
use sepal_core::DType;
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
    /// How servers are called, wherever they are.
    pub fn remote(&self) -> RemoteSpec {
        match self {
            SwarmSpec::None(_) => RemoteSpec::default(),
            SwarmSpec::Embedded(options) => RemoteSpec {
                wire_dtype: options.wire_dtype,
                micro_batch_tokens: options.micro_batch_tokens,
                ..RemoteSpec::default()
            },
            SwarmSpec::Static(options) => options.remote(),
            SwarmSpec::Lan(options) => options.remote(),
            SwarmSpec::P2p(options) => options.remote(),
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
    #[schemars(schema_with = "crate::schema::dtype")]
    pub wire_dtype: Option<DType>,
    /// Tokens that one message holds at most, prompts included; fewer where they would take more than 16 MB.
    #[schemars(range(min = 1))]
    pub micro_batch_tokens: usize,
    /// Memory for graphs that wait for their backward pass, in MiB. Graphs that do not fit are computed again.
    pub tape_budget_mb: u64,
}

impl Default for EmbeddedSpec {
    fn default() -> Self {
        Self { wire_dtype: None, micro_batch_tokens: micro_batch_tokens(), tape_budget_mb: 4096 }
    }
}

/// Defines a choice of servers with options of its own before those that all have. (`flatten` would do the same, but not
/// together with refusing unknown keys.)
macro_rules! servers {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $kind,)*
            /// The number format of hidden states and gradients on the way; that of `train.precision` if not set. `q8`,
            /// for slow links, takes eight bits and a scale for every 64 numbers; tunables and the gradients of what
            /// trains are `bf16` then.
            #[serde(default)]
            #[schemars(schema_with = "crate::schema::dtype")]
            pub wire_dtype: Option<DType>,
            /// Tokens that one message holds at most, prompts included; fewer where they would take more than 16 MB.
            #[serde(default = "micro_batch_tokens")]
            #[schemars(range(min = 1))]
            pub micro_batch_tokens: usize,
            /// How long one call may take, in milliseconds, before another server is asked, however busy its server is.
            /// One that does not answer at all is noticed much sooner, by its measured speed.
            #[serde(default = "timeout_ms")]
            #[schemars(range(min = 1))]
            pub timeout_ms: u64,
            /// How long to wait for a server, in milliseconds, when there is none for some blocks. After that the run
            /// stops, and what was trained is saved.
            #[serde(default = "wait_ms")]
            pub wait_ms: u64,
            /// Gives a micro-batch that takes longer than usual to another server, too, if there is one; the first
            /// answer wins.
            #[serde(default)]
            pub hedge: bool,
            /// Which way hidden states and gradients go from server to server: `star` is through this machine, `relay`
            /// directly, which is faster where this machine's connection is slow. What fails on the direct way goes
            /// through this machine.
            #[serde(default)]
            pub path: PathSpec,
        }

        impl $name {
            fn remote(&self) -> RemoteSpec {
                let Self { wire_dtype, micro_batch_tokens, timeout_ms, wait_ms, hedge, path, .. } = *self;
                RemoteSpec { wire_dtype, micro_batch_tokens, timeout_ms, wait_ms, hedge, path }
            }
        }
    };
}

servers! {
    /// Uses servers that run already (`sepal serve`).
    StaticSpec {
        /// Their addresses, each `HOST:PORT` or `unix:PATH`. Together they have all blocks, in any order.
        #[schemars(length(min = 1), extend("uniqueItems" = true))]
        servers: Vec<String>,
    }
}

servers! {
    /// Uses the servers of the model that are found on the local network (`sepal serve --lan`).
    LanSpec {
        /// The network interface to look on, by its name or one of its addresses; all of them if not set.
        #[serde(default)]
        interface: Option<String>,
    }
}

servers! {
    /// Uses the servers of the model that are found in a peer-to-peer swarm (`sepal serve --p2p`).
    P2pSpec {
        /// What admits to the swarm, as `sepal serve --p2p` prints it, or the path of a file that holds it.
        ticket: String,
        /// The address and UDP port to use, `IP:PORT`; any on all interfaces if not set.
        #[serde(default)]
        bind: Option<std::net::SocketAddr>,
        /// Servers of the iroh-relay protocol that help machines behind routers to reach each other; none if not set.
        #[serde(default)]
        relays: Vec<String>,
    }
}

/// How servers are called.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RemoteSpec {
    /// The number format of hidden states and gradients on the way; that of the training if not set.
    pub wire_dtype: Option<DType>,
    /// Tokens of one message at most.
    pub micro_batch_tokens: usize,
    /// How long one call may take.
    pub timeout_ms: u64,
    /// How long to wait for a server when there is none.
    pub wait_ms: u64,
    /// Whether a straggling micro-batch is given to another server, too.
    pub hedge: bool,
    /// Which way hidden states go from server to server.
    pub path: PathSpec,
}

impl Default for RemoteSpec {
    fn default() -> Self {
        Self {
            wire_dtype: None,
            micro_batch_tokens: micro_batch_tokens(),
            timeout_ms: timeout_ms(),
            wait_ms: wait_ms(),
            hedge: false,
            path: PathSpec::Star,
        }
    }
}

/// Which way hidden states go from server to server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum PathSpec {
    /// Through the client.
    #[default]
    Star,
    /// Directly.
    Relay,
}

const fn micro_batch_tokens() -> usize {
    2048
}

const fn timeout_ms() -> u64 {
    300_000
}

const fn wait_ms() -> u64 {
    60_000
}

use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use sepal_core::DType;
use serde::{Deserialize, Serialize};

/// Options of a client that runs blocks on servers. A configuration file sets the serialized fields, a program the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RemoteOptions {
    /// Number format of hidden states and gradients on the wire; the precision of the training if not set. `q8`, for
    /// slow links, takes eight bits and a scale for every 64 numbers; tunables and their gradients are then sent as
    /// `bf16`.
    #[schemars(schema_with = "dtype_schema")]
    pub wire_dtype: Option<DType>,
    /// Maximum number of tokens in one message, prompts included. It is lower if they would take more than 16 MB.
    #[schemars(range(min = 1))]
    pub micro_batch_tokens: usize,
    /// Timeout of one call in milliseconds, however busy its server is; the call is then made to another server. A
    /// server that does not respond at all is detected much sooner, by its measured speed.
    #[schemars(range(min = 1))]
    pub timeout_ms: u64,
    /// Maximum time in milliseconds to wait for a server if some blocks have none. After that the run stops, and its
    /// parameters are saved.
    pub wait_ms: u64,
    /// Sends a micro-batch that takes longer than usual to another server as well, if there is one; the first answer is
    /// used.
    pub hedge: bool,
    /// Path of hidden states and gradients between servers: `star` goes through this machine, `relay` directly, which is
    /// faster if this machine's connection is slow. A micro-batch whose relay fails goes through this machine.
    pub path: SwarmPath,
    /// Standard deviation of Gaussian noise that is added to the hidden states of texts before they leave this machine, as a
    /// multiple of the root mean square of each state. It makes texts harder to recover from hidden states and costs
    /// accuracy; `sepal audit` measures both.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub noise: f64,
    /// Share of the calls that are computed again elsewhere and compared, from 0 to 1: on other servers of the same blocks, or
    /// in this process (`verify_locally`). The first calls to a server are always checked. A server whose results are
    /// wrong is not used again, and its step is repeated. Blocks on one server alone are not checked.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub verify: f64,
    /// Checks calls with blocks in this process, which needs their weights here and memory for them. Otherwise servers with
    /// the same blocks check each other; where only two hold a block, a difference between them stops the run.
    pub verify_locally: bool,
    /// True if a batch is cut into micro-batches by size alone. Otherwise it is cut finer if several servers finish
    /// sooner that way, which changes the order of summation.
    #[serde(skip)]
    pub deterministic: bool,
    /// True if non-finite gradients are expected now and then, as those of a scaled loss are. They are then an error at
    /// once; otherwise a relayed micro-batch is repeated through the client to find the server that produced them.
    #[serde(skip)]
    pub expects_overflow: bool,
    /// First block that servers run. The caller runs those before it and passes their hidden states.
    #[serde(skip)]
    pub first_block: usize,
    /// Timeout of opening a connection.
    #[serde(skip)]
    pub connect_timeout: Duration,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self {
            wire_dtype: None,
            micro_batch_tokens: 2048,
            timeout_ms: 300_000,
            wait_ms: 60_000,
            hedge: false,
            path: SwarmPath::Star,
            noise: 0.0,
            verify: 0.02,
            verify_locally: false,
            deterministic: false,
            expects_overflow: false,
            first_block: 0,
            connect_timeout: Duration::from_secs(5),
        }
    }
}

impl RemoteOptions {
    /// Number format on the wire: [`wire_dtype`](Self::wire_dtype), or f32 if it is not set.
    pub fn dtype(&self) -> DType {
        self.wire_dtype.unwrap_or(DType::F32)
    }

    /// True if calls are checked with blocks of the client's process.
    pub fn checks_locally(&self) -> bool {
        self.verify > 0.0 && self.verify_locally
    }

    /// Timeout of one call.
    pub fn call_timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// Maximum time that blocks may be without a server before a call fails.
    pub fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms)
    }
}

/// Path of hidden states and gradients between servers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum SwarmPath {
    /// Through the client, which can continue from any hop if a server fails.
    #[default]
    Star,
    /// Directly between servers. The client sends and receives one hop's data however long the chain is.
    Relay,
}

/// Returns the JSON schema of an optional number format.
pub fn dtype_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [{ "type": "string", "enum": DType::ALL.map(DType::name) }, { "type": "null" }] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        servers: Vec<String>,
        #[serde(flatten)]
        remote: RemoteOptions,
    }

    #[test]
    fn flattened_options_keep_their_order_and_defaults() {
        let text = r#"{"servers":["a:1"],"wire_dtype":null,"micro_batch_tokens":2048,"timeout_ms":300000,"wait_ms":60000,"hedge":false,"path":"star","noise":0.0,"verify":0.02,"verify_locally":false}"#;
        let outer: Outer = serde_json::from_str(r#"{"servers":["a:1"]}"#).expect("defaults");
        assert_eq!(outer.remote, RemoteOptions::default());
        assert_eq!(serde_json::to_string(&outer).expect("JSON"), text);
        assert_eq!(serde_json::from_str::<Outer>(text).expect("the same"), outer);
    }

    #[test]
    fn flattened_options_refuse_unknown_and_skipped_fields() {
        for field in ["nonsense", "deterministic", "first_block"] {
            let text = format!(r#"{{"servers":[],"{field}":1}}"#);
            let error = serde_json::from_str::<Outer>(&text).expect_err(field).to_string();
            assert!(error.contains(&format!("unknown field `{field}`")), "{error}");
        }
    }

    #[test]
    fn flattened_schema_lists_the_serialized_fields() {
        let schema = schemars::schema_for!(Outer).to_value();
        let properties: Vec<&String> = schema["properties"].as_object().expect("properties").keys().collect();
        let calls = ["servers", "wire_dtype", "micro_batch_tokens", "timeout_ms", "wait_ms", "hedge", "path"];
        let serialized = [&calls[..], &["noise", "verify", "verify_locally"]].concat();
        assert_eq!(properties, serialized);
        assert_eq!((&schema["additionalProperties"], &schema["required"]), (&false.into(), &vec!["servers"].into()));
    }
}

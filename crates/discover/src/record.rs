use sepal_core::{DType, ServerName, Span};
use serde::{Deserialize, Serialize};

/// Public description of a server, which it announces to others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Digest of the model.
    pub digest: String,
    /// Name of the architecture.
    pub family: String,
    /// Number of blocks in the model.
    pub n_blocks: usize,
    /// Blocks that the server holds.
    pub span: Span,
    /// Format of the computation.
    pub dtype: DType,
    /// Measured seconds per token and block of a forward pass; 0 before the first.
    pub rate: f64,
    /// Number of calls that wait or run.
    pub queue: u32,
    /// Bytes that are free for tapes.
    pub free_tape_bytes: u64,
    /// True if the server accepts no new calls.
    pub draining: bool,
    /// Name and version of the program.
    pub software: String,
    /// Name of the server for people, if it has one.
    #[serde(default, deserialize_with = "ServerName::deserialize_from_peer")]
    pub name: Option<ServerName>,
}

#[cfg(test)]
impl ServerRecord {
    /// Returns the record of a server that holds all three blocks of a model.
    pub(crate) fn sample(digest: &str) -> Self {
        Self {
            digest: digest.into(),
            family: "llama".into(),
            n_blocks: 3,
            span: "0:3".parse().expect("a span"),
            dtype: DType::F32,
            rate: 1.5e-5,
            queue: 2,
            free_tape_bytes: 7,
            draining: false,
            software: "sepal".into(),
            name: "lab-3".parse().ok(),
        }
    }
}

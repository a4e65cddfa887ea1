use sepal_core::{DType, Span};
use serde::{Deserialize, Serialize};

/// What a server lets others know of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// Digest of the whole model.
    pub digest: String,
    /// Name of its architecture.
    pub family: String,
    /// Its number of blocks.
    pub n_blocks: usize,
    /// The blocks that the server holds.
    pub span: Span,
    /// What it computes in.
    pub dtype: DType,
    /// Measured seconds per token and block of a forward; 0 before the first.
    pub rate: f64,
    /// Calls that wait or run.
    pub queue: u32,
    /// Memory that is left for graphs.
    pub free_tape_bytes: u64,
    /// It is about to leave: it takes nothing new.
    pub draining: bool,
    /// Name and version of the program.
    pub software: String,
}

#[cfg(test)]
impl Notice {
    /// Of a server of all three blocks of some model.
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
        }
    }
}

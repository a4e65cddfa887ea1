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

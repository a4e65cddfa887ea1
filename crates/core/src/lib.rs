//! What every other crate speaks of: block spans, ragged batches, host tensors and model shapes.
//!
//! This crate does no I/O, knows no async runtime and no tensor library.
//!
//! Invariants: a [`Span`] is never empty and never reversed; a [`Ragged`] has at least one row and
//! no empty row; a [`HostTensor`] holds exactly as many bytes as its shape and dtype say.
//!
//! ```
//! use sepal_core::{Ragged, Span};
//!
//! let span: Span = "0:10".parse()?;
//! assert_eq!(span.len(), 10);
//!
//! let rows = Ragged::from_lengths([3, 1, 5])?;
//! assert_eq!(rows.n_tokens(), 9);
//! assert_eq!(rows.range(2), 4..9);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod device;
mod format;
mod grad_scaler;
mod host;
mod labels;
mod model;
mod q8;
mod ragged;
mod span;

pub use device::Device;
pub use format::WeightFormat;
pub use grad_scaler::GradScalerConfig;
pub use host::{DType, HostTensor, NamedHostTensor, ShapeError};
pub use labels::{LabelKind, Labels};
pub use model::{Activation, Experts, Family, ModelConfig, Rope, RopeScaling, ScoreRule, Window};
pub use ragged::{Ragged, RaggedError};
pub use span::{Span, SpanError};

use serde::{Deserialize, Serialize};

/// Name of a tunable that every block knows: `[n_blocks, prefix_len, hidden]`, added to the prefix before each block.
pub const DEEP_PROMPTS: &str = "deep_prompts";

/// Name of the other one: `[n_blocks, prefix_len, 2 * kv_size]`, the keys of all heads, turned to their positions, and then
/// the values. Each block has them for the prefix in the place of those that it computes.
pub const PREFIX_KEYS_VALUES: &str = "prefix_keys_values";

/// The text of an error and of its causes, on one line.
pub fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Which positions of the last block's output are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// The prefix and every token: `[prefix_len + n_tokens, hidden]`; what the next hop needs.
    All,
    /// The last token of each row: `[rows, hidden]`; what a classifier needs.
    LastOfRows,
}

impl Want {
    /// How many positions the output has.
    pub fn positions(self, prefix_len: usize, rows: &Ragged) -> usize {
        match self {
            Want::All => prefix_len + rows.n_tokens(),
            Want::LastOfRows => rows.len(),
        }
    }
}

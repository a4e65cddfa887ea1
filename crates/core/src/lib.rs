//! The vocabulary of the other crates: block spans, ragged batches, host tensors and model shapes.
//!
//! It does no I/O and depends on no async runtime and no tensor library. It is the lowest crate of the workspace: it uses
//! none of the others, and most of the others use it.
//!
//! Invariants: a [`Span`] is never empty and never reversed; a [`Ragged`] has at least one row and no empty row; a
//! [`HostTensor`] holds exactly as many bytes as its shape and dtype say.
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

#[macro_use]
mod text_form;

mod device;
mod digest;
mod format;
mod grad_scaler;
mod host;
mod label_list;
mod labels;
mod model;
mod nearest;
mod not_built;
mod packed;
mod peft_form;
mod public_key;
mod q8;
mod ragged;
mod server_name;
mod span;
mod task;
mod token_batch;
mod tunable;
mod unwind;
mod visible;

pub use device::Device;
pub use digest::ModelDigest;
pub use format::{ComputeFormat, WeightFormat};
pub use grad_scaler::GradScalerConfig;
pub use host::{DType, HostTensor, NamedHostTensor, ShapeError};
pub use label_list::{join_labels, split_labels};
pub use labels::{LabelKind, Labels};
pub use model::{
    Activation, Experts, Factors, Family, MAX_BLOCKS, MAX_HIDDEN, ModelConfig, Rope, RopeScaling, ScoreRule, Window,
};
pub use nearest::{NameMatching, nearest};
pub use not_built::NotBuilt;
pub use packed::{NF4_LEVELS, PackedError, PackedMatrix, RowEncoding};
pub use peft_form::PeftForm;
pub use public_key::{PublicKey, PublicKeyError};
pub use ragged::{Ragged, RaggedError};
pub use server_name::{ServerName, ServerNameError};
pub use span::{Span, SpanError};
pub use task::{CellKind, Columns, RowForm, Task};
pub use token_batch::{TokenBatch, TokenText, WindowPool};
pub use tunable::{HostTunable, LinearSite, SiteRole, TrainedTensor, TunableName};
pub use unwind::{LibraryPanic, catch_panic};
pub use visible::{visible, visible_json, visible_lines};

use serde::{Deserialize, Serialize};

/// Name of the deep prompts, a tunable of shape `[n_blocks, prefix_len, hidden]` that is added to the prefix before each
/// block.
pub const DEEP_PROMPTS: &str = "deep_prompts";

/// Name of the prefix's keys and values, a tunable of shape `[n_blocks, prefix_len, 2 * kv_size]`: the keys of all heads,
/// rotated to their positions, then the values. They replace the keys and values that a block computes for the prefix.
pub const PREFIX_KEYS_VALUES: &str = "prefix_keys_values";

/// Key of an adapter's metadata with the kind of labels, of tasks whose rows are no plain texts.
pub const LABEL_KIND: &str = "label_kind";

/// Most threads of a computation. The system refuses several thousand, and the libraries then end the process.
pub const MAX_THREADS: u32 = 1024;

/// Text of an error and its causes, on one line.
pub fn in_one_line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Requested positions of the last block's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// The prefix and every token: `[prefix_len + n_tokens, hidden]`, the input of the next hop.
    All,
    /// The last token of each row: `[rows, hidden]`, the input of a classifier.
    LastOfRows,
    /// Every token, without the prefix: `[n_tokens, hidden]`.
    Tokens,
    /// The mean over the tokens of each row, without the prefix: `[rows, hidden]`.
    MeanOfRows,
}

impl Want {
    /// Number of positions of the output.
    pub fn positions(self, prefix_len: usize, rows: &Ragged) -> usize {
        match self {
            Want::All => prefix_len + rows.n_tokens(),
            Want::LastOfRows | Want::MeanOfRows => rows.len(),
            Want::Tokens => rows.n_tokens(),
        }
    }
}

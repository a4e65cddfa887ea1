use sepal_blocks::EndsError;
use sepal_plugin::{HeadError, TuningError};
use tch::TchError;

use crate::blocks::BlocksError;
use crate::non_finite::NonFiniteOrigin;

/// A forward pass that failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum ForwardError {
    /// Failure of embeddings or final norm.
    #[error("compute embeddings or the final norm")]
    Ends(#[source] EndsError),
    /// Failure of the tuning mode.
    #[error("compute with the tuning mode")]
    Tuning(#[source] TuningError),
    /// Failure of the task head.
    #[error("compute with the task head")]
    Head(#[source] HeadError),
    /// Head that reads the positions of the prefix, which stay between servers.
    #[error(
        "compute with the task head: it wants the prefix of the last block's output, which no route gives; a head reads the \
         last token, the mean or all tokens of each row"
    )]
    Want,
    /// Failure of the blocks.
    #[error(transparent)]
    Blocks(#[from] BlocksError),
    /// Failure of libtorch.
    #[error("compute a step")]
    Torch(#[from] TchError),
    /// Predictions that are NaN or infinite.
    #[error("predict {split} row{} {}: the logits are NaN or infinite; {origin}", plural(rows), list_rows(rows))]
    NonFiniteLogits {
        /// Name of the rows: `given`, or that of a data split.
        split: &'static str,
        /// Row numbers from 1; all rows of the batch if the affected ones are unknown.
        rows: Vec<usize>,
        origin: NonFiniteOrigin,
        source: Option<Box<sepal_remote::RemoteError>>,
    },
}

impl ForwardError {
    /// Replaces the row indices of a batch, from 0, by the row numbers of `split`, from 1. `indices` are the rows of the
    /// batch, from 0.
    #[must_use]
    pub fn with_rows_of(self, split: &'static str, indices: &[usize]) -> Self {
        match self {
            Self::NonFiniteLogits { rows, origin, source, .. } => {
                let rows = rows.into_iter().filter_map(|row| Some(indices.get(row)? + 1)).collect();
                Self::NonFiniteLogits { split, rows, origin, source }
            }
            other => other,
        }
    }

    /// Replaces row numbers that count a selection of rows by `numbers`, the numbers of the selected rows.
    #[must_use]
    pub fn renumbered(self, numbers: &[usize]) -> Self {
        let number = |row: usize| row.checked_sub(1).and_then(|index| numbers.get(index)).copied().unwrap_or(row);
        match self {
            Self::NonFiniteLogits { split, rows, origin, source } => {
                Self::NonFiniteLogits { split, rows: rows.into_iter().map(number).collect(), origin, source }
            }
            other => other,
        }
    }

    /// True if servers with wrong results were taken out of use, so that the others can do the same work again.
    pub fn is_quarantine(&self) -> bool {
        matches!(self, Self::Blocks(error) if error.is_quarantine())
    }

    /// True if a server received or returned NaN or infinite values.
    pub fn is_non_finite(&self) -> bool {
        matches!(self, Self::Blocks(error) if error.is_non_finite())
    }
}

fn plural(rows: &[usize]) -> &'static str {
    if rows.len() == 1 { "" } else { "s" }
}

/// Lists the first rows by number, for messages.
pub fn list_rows(rows: &[usize]) -> String {
    let shown: Vec<String> = rows.iter().take(8).map(usize::to_string).collect();
    let more = if rows.len() > 8 { format!(" and {} more", rows.len() - 8) } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

use std::path::PathBuf;

use sepal_core::{DEEP_PROMPTS, PREFIX_KEYS_VALUES};
use sepal_remote::RemoteError;
use tch::TchError;

use crate::finite::NonFiniteOrigin;

/// A run that could not start or go on. What was trained until then is saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A source cannot be had.
    #[error("fetch the {what}")]
    Fetch {
        /// The model or the data.
        what: &'static str,
        /// Why not.
        #[source]
        source: sepal_assets::FetchError,
    },
    /// The model's files are not readable.
    #[error("open the model {}", path.display())]
    Checkpoint {
        /// Its folder or file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: BoxError,
    },
    /// The tokenizer is not readable.
    #[error("read the tokenizer of {}", path.display())]
    Tokenizer {
        /// The model's folder or file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: BoxError,
    },
    /// The tokenizer has ids without embeddings.
    #[error(
        "use the tokenizer of {}: it has {ids} ids, up to `{last}`, and the model {embeddings} embeddings; take the tokenizer \
         files that belong to the model, or a model whose embeddings were resized for them",
        path.display()
    )]
    Vocabulary {
        /// The model's folder or file.
        path: PathBuf,
        /// One more than the greatest id.
        ids: usize,
        /// Rows of the embedding matrix.
        embeddings: usize,
        /// The token with the greatest id.
        last: String,
    },
    /// The labelled text is not usable.
    #[error("read the {split} rows")]
    Data {
        /// `training` or `validation`.
        split: &'static str,
        /// Why not.
        #[source]
        source: BoxError,
    },
    /// Blocks, embeddings or the final norm cannot be loaded.
    #[error("load the model's {what}")]
    Load {
        /// Blocks, or embeddings and final norm.
        what: &'static str,
        /// Why not.
        #[source]
        source: BoxError,
    },
    /// A server's address cannot be read.
    #[error("read `swarm.with.servers`")]
    Address {
        /// What is wrong.
        source: sepal_swarm::AddrError,
    },
    /// The ticket of a swarm cannot be read.
    #[error("read `swarm.with.ticket`")]
    Ticket {
        /// What is wrong.
        source: sepal_discover::p2p::TicketError,
    },
    /// Servers cannot be looked for.
    #[error("look for servers")]
    Discovery(#[source] BoxError),
    /// The embedded server did not start.
    #[error("start the embedded server")]
    Server(#[source] sepal_server::StartError),
    /// A plugin cannot be built with these options.
    #[error("build `{key}`")]
    Build {
        /// The key of the pipeline file.
        key: &'static str,
        /// Why not.
        #[source]
        source: sepal_plugin::BuildError,
    },
    /// The blocks of this process failed.
    #[error("run the blocks of this process")]
    Blocks(#[source] BoxError),
    /// The tuning mode needs what blocks of this process do not have.
    #[error("tune the blocks of this process: they know {DEEP_PROMPTS} and {PREFIX_KEYS_VALUES}, not `{name}`")]
    Tunable {
        /// The tunable that it gives.
        name: String,
    },
    /// More blocks are to run here than there are.
    #[error("run the first {local_blocks} blocks in this process (`model.local_blocks`): the model has {n_blocks}")]
    LocalBlocks {
        /// Asked for.
        local_blocks: usize,
        /// There are.
        n_blocks: usize,
    },
    /// A row is longer than the model takes.
    #[error(
        "train on a row of {tokens} tokens and {prompts} prompts, {} positions: the model takes {max_positions}; set \
         `data.max_length` to at most {}",
        tokens + prompts,
        max_positions.saturating_sub(*prompts)
    )]
    Positions {
        /// Of the longest row.
        tokens: usize,
        /// Prompts before each row.
        prompts: usize,
        /// Positions that the model takes.
        max_positions: usize,
    },
    /// The servers cannot be used.
    #[error("run the remote blocks")]
    Remote(#[source] RemoteError),
    /// The embeddings or the final norm failed.
    #[error("compute embeddings or the final norm")]
    Ends(#[source] BoxError),
    /// The tuning mode failed.
    #[error("compute the prompts")]
    Tuning(#[source] sepal_plugin::TuningError),
    /// The head failed.
    #[error("compute with the task head")]
    Head(#[source] sepal_plugin::HeadError),
    /// The graph could not be run backward.
    #[error("run step {step} backward")]
    Backward {
        /// Counted from 1.
        step: u64,
        /// What a server or libtorch said.
        #[source]
        source: RemoteError,
    },
    /// Gradients overflow whatever the loss is scaled by.
    #[error(
        "make step {step}: {skips} steps in a row were skipped because numbers overflowed, the last at a loss scale of \
         {scale:.2e} ({reason}); try `train.precision: bf16` or `f32`, a lower \
         `optimizer.with.lr` or a smaller `train.scaler.init_scale`"
    )]
    Overflow {
        /// Counted from 1.
        step: u64,
        /// Steps skipped in a row, this one included.
        skips: u64,
        /// What the loss was multiplied by.
        scale: f64,
        /// Where numbers overflowed.
        reason: String,
    },
    /// Loss or gradients are infinite or not numbers.
    #[error(
        "make step {step}: the {what} is not finite; try a lower `optimizer.with.lr` or a smaller `train.clip_norm` \
         (training rows {}, servers: {servers})",
        rows_text(rows)
    )]
    NonFinite {
        /// `loss` or `norm of the gradients`.
        what: &'static str,
        /// Counted from 1.
        step: u64,
        /// The rows of the batch.
        rows: Vec<usize>,
        /// The servers that the batch went through.
        servers: String,
    },
    /// Predictions that are NaN or infinite.
    #[error("predict {split} row{} {}: the logits are NaN or infinite; {origin}", plural(rows), rows_text(rows))]
    NonFiniteLogits {
        /// `validation`, `labelled` or `given`.
        split: &'static str,
        /// The rows, from 1; all of the batch if it is not known which.
        rows: Vec<usize>,
        /// Origin of the numbers.
        origin: NonFiniteOrigin,
        /// Error of the server involved, if any.
        #[source]
        source: Option<Box<RemoteError>>,
    },
    /// An interruption before there was a result.
    #[error("predict all rows: it was interrupted")]
    Interrupted,
    /// The optimizer failed.
    #[error("move the parameters")]
    Optimizer(#[source] sepal_optim::StepError),
    /// libtorch refused.
    #[error("compute a step")]
    Torch(#[source] TchError),
    /// There is no such metric to decide by.
    #[error("find `{metric}` (`{key}`) among the metrics of the task: {}", known.join(", "))]
    Metric {
        /// The key of the pipeline that asks for it.
        key: &'static str,
        /// Asked for.
        metric: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// The parameters of the best evaluation cannot be put back.
    #[error("put back the parameters of the best evaluation")]
    Restore(#[source] sepal_nn::LoadError),
    /// Parameters cannot be copied.
    #[error("copy the parameters")]
    Numbers(#[source] sepal_nn::host::HostError),
    /// The state of the optimizer or of what scales the loss cannot be copied.
    #[error("copy the optimizer's state")]
    State(#[source] sepal_optim::StateError),
    /// The state of the loop has no written form.
    #[error("write the checkpoint's state")]
    CheckpointState {
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A checkpoint of the run cannot be written.
    #[error("save a checkpoint")]
    SaveCheckpoint(#[source] sepal_nn::file::WriteError),
    /// A checkpoint of the run cannot be used.
    #[error("go on from {}: {problem}; remove it to go on from the one before it, if there is one", path.display())]
    RunCheckpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// What a run trained cannot be used.
    #[error("use what was trained in {}: {problem}", path.display())]
    Adapter {
        /// The run's folder.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// A run cannot be gone on with.
    #[error("resume {}: {problem}", path.display())]
    Resume {
        /// The run's folder.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// A file of the run folder cannot be written.
    #[error("record the run")]
    Write(#[source] sepal_track::WriteError),
    /// The adapter cannot be saved.
    #[error("save the adapter")]
    Save(#[source] sepal_nn::SaveError),
    /// The predictions cannot be written.
    #[error("write the predictions")]
    Predictions(#[source] BoxError),
    /// The checked pipeline cannot be written back.
    #[error("write the pipeline file of the run: {message}")]
    Resolved {
        /// What is wrong.
        message: String,
    },
}

impl RunError {
    /// The error with the numbers that its rows have among others, `numbers` being those of the rows as they are counted
    /// now.
    #[must_use]
    pub fn renumbered(self, numbers: &[usize]) -> Self {
        let number = |row: usize| row.checked_sub(1).and_then(|at| numbers.get(at)).copied().unwrap_or(row);
        match self {
            Self::NonFiniteLogits { split, rows, origin, source } => {
                let rows = rows.into_iter().map(number).collect();
                Self::NonFiniteLogits { split, rows, origin, source }
            }
            other => other,
        }
    }

    /// The error of a batch of these rows, counted from 0, of `split`.
    pub(crate) fn of_rows(self, split: &'static str, indices: &[usize]) -> Self {
        match self {
            Self::NonFiniteLogits { rows, origin, source, .. } => {
                let rows = rows.into_iter().filter_map(|row| Some(indices.get(row)? + 1)).collect();
                Self::NonFiniteLogits { split, rows, origin, source }
            }
            other => other,
        }
    }

    /// Returns true if a server received or returned NaN or infinite numbers.
    pub(crate) fn is_non_finite(&self) -> bool {
        matches!(self, Self::Remote(RemoteError::NonFinite { .. } | RemoteError::NonFiniteInput { .. }))
    }

    /// Where numbers were too large, if that is what is wrong.
    pub(crate) fn overflow(&self) -> Option<String> {
        match self {
            RunError::Remote(source) | RunError::Backward { source, .. } if source.is_overflow() => {
                Some(source.to_string())
            }
            RunError::NonFinite { what, .. } => Some(format!("the {what} is not finite")),
            _ => None,
        }
    }
}

/// An error of a library, with its text.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn plural(rows: &[usize]) -> &'static str {
    if rows.len() == 1 { "" } else { "s" }
}

/// The first rows of a batch by number.
fn rows_text(rows: &[usize]) -> String {
    let shown: Vec<String> = rows.iter().take(8).map(usize::to_string).collect();
    let more = if rows.len() > 8 { format!(" and {} more", rows.len() - 8) } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

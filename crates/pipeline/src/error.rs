//! Errors, one enum for each operation, and the keys of the pipeline file that help against them.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use sepal_core::{ComputeFormat, WeightFormat};
use sepal_data::{RowError, RowLocation, TokenizeError};
use sepal_model::{ForwardError, Repeatable};
pub(crate) use sepal_prepare::BoxError;
use sepal_prepare::too_many_windows;
pub use sepal_prepare::{DataError, ModelError};
use sepal_remote::RemoteError;
use sepal_train::{CheckpointError, EvaluateError, MetricError, MetricUsage, TrainError};

use crate::formats::{serve_options, server_advice};

/// Characters of a digest in messages.
const SHOWN_DIGEST: usize = 12;

/// A model that cannot be assembled with its blocks, tuning mode and head.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum AssembleError {
    /// Plugin that cannot be built with these options.
    #[error("build `{key}`")]
    Build { key: &'static str, source: sepal_plugin::BuildError },
    /// Groups of parameters that the optimizer cannot use.
    #[error("build `optimizer.groups`")]
    Groups(#[source] sepal_optim::GroupError),
    /// Weights that cannot be loaded.
    #[error("load the model's {part}")]
    Load { part: &'static str, source: BoxError },
    /// Blocks that do not fit into the free memory.
    #[error("{0} (`model.weights`, `model.local_blocks`, `swarm`)")]
    Memory(Box<sepal_server::memory::MemoryError>),
    /// Stated free memory that cannot be read.
    #[error(transparent)]
    StatedMemory(sepal_server::memory::StatedMemoryError),
    /// Adapter that cannot be used as the initial one.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Fit that the task does not have.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// Rows that exceed the positions of the model.
    #[error(
        "train on a row of {tokens} tokens and {prompts} prompts, {} positions: the model takes {max_positions}; set \
         `data.max_length` to at most {}",
        tokens + prompts,
        max_positions.saturating_sub(*prompts)
    )]
    Positions { tokens: usize, prompts: usize, max_positions: usize },
    /// More local blocks than the model has.
    #[error("run the first {local_blocks} blocks in this process (`model.local_blocks`): the model has {n_blocks}")]
    LocalBlocks { local_blocks: usize, n_blocks: usize },
    /// Failure of the tuning mode.
    #[error("compute with the tuning mode")]
    Tuning(#[source] sepal_plugin::TuningError),
    /// Failure of the head.
    #[error("compute with the task head")]
    Head(#[source] sepal_plugin::HeadError),
    /// Values that libtorch cannot copy.
    #[error("copy the parameters")]
    Copy(#[source] BoxError),
    /// Swarm of a kind that this build leaves out.
    #[error("connect as `swarm.use` says")]
    SwarmNotBuilt(#[source] sepal_core::NotBuilt),
    /// Unreadable address of a server.
    #[error("read `swarm.with.servers`")]
    Address(#[source] sepal_swarm::ListedServerError),
    /// Ticket whose text was not written.
    #[error("connect: a ticket given as text is not kept; set `swarm.with.ticket` again, best to the path of its file")]
    TicketWithheld,
    /// Expected key of a server without a secret, so that connections are plain.
    #[error("check the key of {server}: connections without `swarm.with.secret_file` show none")]
    KeyWithoutSecret { server: String },
    /// Secret that cannot be read.
    #[error("read `swarm.with.secret_file`")]
    Secret(#[source] sepal_swarm::SecretFileError),
    /// Unreadable ticket of a swarm.
    #[error("read `swarm.with.ticket`")]
    Ticket(#[source] sepal_discover::p2p::TicketError),
    /// Failure of the search for servers.
    #[error("look for servers")]
    Discovery(#[source] BoxError),
    /// Embedded server that did not start.
    #[error("start the embedded server")]
    Server(#[source] sepal_server::StartError),
    /// Servers that cannot be used.
    #[error("run the remote blocks{}", connect_hint(source, *weights, *compute))]
    Connect {
        source: RemoteError,
        /// Format of the run's weights.
        weights: WeightFormat,
        /// Format of the run's products.
        compute: ComputeFormat,
    },
}

fn connect_hint(error: &RemoteError, weights: WeightFormat, compute: ComputeFormat) -> String {
    match (error, error.other_digest()) {
        (RemoteError::Uncovered { missing, .. }, _) => {
            let options = serve_options(weights, compute);
            format!(" (start a server by `sepal serve MODEL --blocks {missing}{options}`)")
        }
        (_, Some([server, expected, found])) => format!(" ({})", server_advice(server, expected, found)),
        _ => String::new(),
    }
}

/// A fit of probabilities and decisions that cannot be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum CalibrateError {
    /// Task that has no such fit.
    #[error(transparent)]
    Task(#[from] sepal_config::spec::UnfittableTask),
    /// Predictions without a measure.
    #[error("measure the predictions")]
    Metric(#[from] sepal_metrics::MetricError),
    /// Failure of the head.
    #[error("compute with the task head")]
    Head(#[source] sepal_plugin::HeadError),
    /// Rows on which nothing could be fitted.
    #[error("fit the probabilities: {}", reasons.join("; "))]
    Nothing { reasons: Vec<String> },
}

/// A trained adapter that cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("use what was trained in {}: {problem}", path.display())]
pub struct AdapterError {
    /// Run folder, or file of the adapter.
    pub path: PathBuf,
    pub problem: String,
}

/// A run that cannot be resumed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("resume {}: {problem}", path.display())]
pub struct ResumeError {
    pub path: PathBuf,
    pub problem: String,
}

/// A run of a sweep whose rows are not those of the others.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error(
    "use the {part} of {run} (`{key}`: {origin}): found {found}, but {} {expected} with the same settings of the data; \
     restore the data, or begin a new sweep without `--resume`",
    owner_of_rows(run, other)
)]
pub struct RowsError {
    pub run: String,
    /// Run with the expected rows: another one, or the same before it was resumed.
    pub other: String,
    /// `training rows`, `validation rows` or `training data`, which are the rows that the seed draws from.
    pub part: &'static str,
    /// Key of the rows in the pipeline file.
    pub key: &'static str,
    /// Source of the found rows.
    pub origin: String,
    pub found: CountedRows,
    pub expected: CountedRows,
}

fn owner_of_rows(run: &str, other: &str) -> String {
    if run == other { "it was begun with".to_owned() } else { format!("run {other} has") }
}

/// Number and content of rows. The text has the first characters of the digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedRows {
    /// Number of rows, if it is known.
    pub count: Option<usize>,
    /// Digest of the content; empty if there are no rows, or it is not known.
    pub digest: String,
}

impl fmt::Display for CountedRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            Some(1) => f.write_str("1 row")?,
            Some(count) => write!(f, "{count} rows")?,
            None => f.write_str("rows")?,
        }
        write!(f, " ({})", self.digest.get(..SHOWN_DIGEST).unwrap_or(&self.digest))
    }
}

/// Files of a run folder that cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Record, manifest or folder.
    #[error("record the run")]
    Write(#[source] sepal_track::WriteError),
    /// Adapter.
    #[error("save the adapter")]
    Adapter(#[source] sepal_nn::SaveError),
    /// Parameters of the best evaluation, before the adapter is written.
    #[error("put back the parameters of the best evaluation")]
    Restore(#[source] sepal_nn::LoadError),
    /// Digest of the parameters.
    #[error("copy the parameters")]
    Parameters(#[source] sepal_nn::host::HostError),
    /// Predictions.
    #[error("write the predictions")]
    Predictions(#[source] BoxError),
    /// Checked pipeline.
    #[error("write the pipeline file of the run: {0}")]
    Pipeline(String),
}

/// A run or a plan that could not start or continue. Everything that was trained is saved.
#[derive(Debug)]
#[non_exhaustive]
pub enum RunError {
    /// Failure of the model's files.
    Model(ModelError),
    /// Failure of the data.
    Data(DataError),
    /// Failure of the assembly.
    Assemble(AssembleError),
    /// Failure of the training loop.
    Train(TrainError),
    /// Run that cannot be resumed.
    Resume(ResumeError),
    /// Run of a sweep whose rows are not those of the others.
    Rows(Box<RowsError>),
    /// Files that cannot be written.
    Record(RecordError),
}

/// A classifier that cannot be opened, or a prediction that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClassifierError {
    /// Failure of the model's files.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Failure of the data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Failure of the assembly.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// Adapter that cannot be used.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Failure of a prediction.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// Failure of an evaluation.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// Failure of a fit.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// Failure of the head.
    #[error("compute with the task head")]
    Head(#[source] sepal_plugin::HeadError),
    /// Predictions that cannot be written.
    #[error("write the predictions")]
    Predictions(#[source] BoxError),
    /// Failure of an audit.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// A run whose hidden states cannot be audited.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum AuditError {
    /// Blocks that run elsewhere.
    #[error("observe hidden states: not all blocks run in this process")]
    Remote,
    /// More local blocks than leave one for servers.
    #[error(
        "observe hidden states after {local_blocks} local blocks: the model has {n_blocks} blocks, and servers need one"
    )]
    LocalBlocks { local_blocks: usize, n_blocks: usize },
    /// Rows without tokens to recover.
    #[error("find tokens to recover: the rows of {} differ in none, or there is only one row", path.display())]
    NoTokens { path: PathBuf },
    /// Failure of an inversion.
    #[error("recover tokens")]
    Inversion(#[source] sepal_nn::RowsError),
}

impl Repeatable for ClassifierError {
    fn is_quarantine(&self) -> bool {
        matches!(self, Self::Forward(error) if error.is_quarantine())
    }
}

impl ClassifierError {
    /// Replaces row numbers that count a selection of rows by `numbers`, the numbers of the selected rows.
    #[must_use]
    pub fn renumbered(self, numbers: &[usize]) -> Self {
        match self {
            Self::Forward(error) => Self::Forward(error.renumbered(numbers)),
            other => other,
        }
    }

    /// Names the file and number of a row that cannot be encoded; `location` gives those of the row at an index.
    #[must_use]
    pub fn located(self, location: impl FnOnce(usize) -> RowLocation) -> Self {
        match self {
            Self::Data(DataError::Rows { split, source }) => {
                let source: BoxError = match source.downcast::<RowError>() {
                    Ok(error) => {
                        let RowError { row, source } = *error;
                        TokenizeError::Encode { location: location(row), source }.into()
                    }
                    Err(source) => source,
                };
                Self::Data(DataError::Rows { split, source })
            }
            other => other,
        }
    }

    /// Number of windows that a text has, and the maximum, if a text has more.
    pub fn too_many_windows(&self) -> Option<[usize; 2]> {
        too_many_windows(self)
    }

    /// True if no server can be reached for some blocks.
    pub fn is_unreachable(&self) -> bool {
        use RemoteError::{NoServer, Uncovered};
        match self {
            Self::Assemble(AssembleError::Connect { source: Uncovered { .. } | NoServer { .. }, .. }) => true,
            Self::Forward(ForwardError::Blocks(error)) => {
                matches!(error.remote(), Some(Uncovered { .. } | NoServer { .. }))
            }
            _ => false,
        }
    }
}

impl RunError {
    fn inner(&self) -> &(dyn Error + 'static) {
        match self {
            Self::Model(error) => error,
            Self::Data(error) => error,
            Self::Assemble(error) => error,
            Self::Train(error) => error,
            Self::Resume(error) => error,
            Self::Rows(error) => &**error,
            Self::Record(error) => error,
        }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = if let Self::Train(error) = self { hint(error) } else { "" };
        write!(f, "{}{hint}", self.inner())
    }
}

impl Error for RunError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.inner().source()
    }
}

/// Keys of the pipeline file that help against an error of the training loop.
fn hint(error: &TrainError) -> &'static str {
    match error {
        TrainError::Overflow { .. } => {
            "; try `train.precision: bf16` or `f32`, a lower `optimizer.with.lr` or a smaller `train.scaler.init_scale`"
        }
        TrainError::Forward(ForwardError::Blocks(source))
        | TrainError::Evaluate(EvaluateError::Forward(ForwardError::Blocks(source)))
        | TrainError::Backward { source, .. }
            if matches!(source.remote(), Some(RemoteError::Disputed { .. })) =>
        {
            "; set `swarm.with.verify_locally: true`, or add a server with these blocks, to find out which one is wrong"
        }
        TrainError::NonFinite { .. } => "; try a lower `optimizer.with.lr` or a smaller `train.clip_norm`",
        TrainError::Metric(MetricError { usage: MetricUsage::Selection, .. }) => " (`evaluate.metric`)",
        TrainError::Metric(MetricError { usage: MetricUsage::Schedule, .. }) => " (`schedule.with.metric`)",
        TrainError::Metric(MetricError { usage: MetricUsage::Halving, .. }) => " (`sweep.halving.metric`)",
        _ => "",
    }
}

macro_rules! run_error_from {
    ($($variant:ident: $source:ty),* $(,)?) => {
        $(impl From<$source> for RunError {
            fn from(error: $source) -> Self {
                Self::$variant(error.into())
            }
        })*
    };
}

run_error_from! {
    Model: ModelError,
    Data: DataError,
    Assemble: AssembleError,
    Train: TrainError,
    Train: EvaluateError,
    Train: CheckpointError,
    Train: MetricError,
    Train: ForwardError,
    Resume: ResumeError,
    Rows: Box<RowsError>,
    Record: RecordError,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_that_cannot_be_encoded_is_named_by_its_file() {
        let located = |source: BoxError| {
            let error = ClassifierError::from(DataError::Rows { split: "given", source });
            sepal_core::in_one_line(&error.located(|row| RowLocation { path: "long.csv".into(), row: row + 4097 }))
        };
        let row = RowError { row: 903, source: "it is too long".into() };
        assert_eq!(located(row.into()), "read the given rows: tokenize row 5000 of long.csv: it is too long");
        assert_eq!(located("no options".into()), "read the given rows: no options");
    }

    #[test]
    fn missing_blocks_are_advised_to_be_served_in_the_formats_of_the_run() {
        let text = |weights, compute| {
            let missing = "3:30".parse().expect("a span");
            let source = RemoteError::Uncovered { missing, unreachable: Vec::new() };
            AssembleError::Connect { source, weights, compute }.to_string()
        };
        let plain = text(WeightFormat::Auto, ComputeFormat::F32);
        assert_eq!(plain, "run the remote blocks (start a server by `sepal serve MODEL --blocks 3:30`)");
        assert_eq!(text(WeightFormat::F32, ComputeFormat::F32), plain);
        let rounded = text(WeightFormat::Int8, ComputeFormat::Bf16);
        assert!(rounded.contains("`sepal serve MODEL --blocks 3:30 --weights int8 --compute bf16`"), "{rounded}");
    }
}

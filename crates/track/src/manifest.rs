use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::calibration::Calibration;
use crate::{RunFolder, WriteError, nullable};

/// Contents of `manifest.json`: inputs and outcome of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Name of the pipeline.
    pub name: String,
    /// Outcome.
    pub status: Status,
    /// Versions of this program and its libraries.
    pub versions: Versions,
    /// Seed of initialisation, splits and shuffles.
    pub seed: u64,
    /// Frozen model.
    pub model: ModelFacts,
    /// Labelled text.
    pub data: DataFacts,
    /// Number of trainable and of all parameters.
    pub parameters: ParameterCounts,
    /// Number of optimizer steps, with the skipped ones.
    pub steps: u64,
    /// Number of steps skipped because their gradients overflowed.
    #[serde(default)]
    pub skipped_steps: u64,
    /// Loss scale of the last step; none if the loss was not scaled.
    #[serde(default)]
    pub scale: Option<f64>,
    /// Bytes moved between this process and the servers, framing included.
    pub bytes: Traffic,
    /// Start time in RFC 3339.
    pub started: String,
    /// Wall time of the whole run in seconds.
    pub seconds: f64,
    /// Wall time of the training steps in seconds.
    pub train_seconds: f64,
    /// Number of tokens of the training rows, without prompts.
    pub train_tokens: u64,
    /// Metrics of the evaluation whose parameters were kept, without a [`Calibration`].
    #[serde(deserialize_with = "nullable::numbers")]
    pub metrics: BTreeMap<String, f64>,
    /// SHA-256 of the trained parameters.
    pub adapter_digest: String,
    /// Names of the labels, in the order of the logits.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Fit of probabilities and decisions, which predictions use; none if nothing was fitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Evaluation whose parameters were kept; none without an evaluation.
    #[serde(default)]
    pub best: Option<BestEvaluation>,
    /// Reason for an early end without an error: early stopping, or the time limit.
    #[serde(default)]
    pub ended_early: Option<String>,
    /// Steps after which the run resumed from a checkpoint.
    #[serde(default)]
    pub resumed_at: Vec<u64>,
    /// Servers that were used.
    #[serde(default)]
    pub servers: Vec<ServerUsage>,
    /// Nearest words of the vocabulary for each soft prompt.
    #[serde(default, rename = "near_words")]
    pub nearest_words: Vec<NearestWords>,
}

/// Evaluation whose parameters were kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BestEvaluation {
    /// Number of optimizer steps before it.
    pub step: u64,
    /// Deciding metric.
    pub metric: String,
    /// Value of the metric.
    #[serde(deserialize_with = "nullable::number")]
    pub value: f64,
}

/// Calls to one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerUsage {
    /// Address of the server, or its name.
    pub server: String,
    /// Blocks of the server, as `0:10`.
    pub blocks: String,
    /// Number of successful calls.
    pub calls: u64,
    /// Number of failed calls, which were retried.
    pub failures: u64,
    /// Number of answers that were computed again elsewhere and compared.
    #[serde(default)]
    pub checks: u64,
    /// Number of answers that were wrong or disputed, and of wrong receipts.
    #[serde(default)]
    pub differences: u64,
    /// True if the server was taken out of use because its results were wrong.
    #[serde(default)]
    pub quarantined: bool,
}

/// Nearest words of one soft prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NearestWords {
    /// Index of the prompt.
    pub prompt: usize,
    /// Words with their cosine similarity, the nearest first.
    pub words: Vec<(String, f64)>,
}

/// Unreadable manifest.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("read {}", path.display())]
pub struct ReadError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// Outcome of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Status {
    /// All steps were made.
    Finished,
    /// Stopped by the user; the trained parameters are saved.
    Interrupted,
    /// Stopped by an error; the trained parameters are saved.
    Failed {
        /// Text of the error.
        error: String,
    },
}

/// Versions of this program and its libraries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Version of this program.
    pub sepal: String,
    /// Version of libtorch.
    pub libtorch: String,
}

/// Frozen model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Source of the model.
    pub source: String,
    /// Unavailable sources of higher preference, each with its reason.
    #[serde(rename = "passed_over")]
    pub unavailable_sources: Vec<String>,
    /// Digest of the checkpoint.
    pub digest: String,
    /// Description of the checkpoint.
    pub weights: String,
    /// Digest of the tokenizer.
    pub tokenizer: String,
}

/// Labelled text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFacts {
    /// Source of the training rows.
    pub train: String,
    /// Source of the validation rows, or description of their split.
    pub validation: String,
    /// Unavailable sources of higher preference, each with its reason.
    #[serde(rename = "passed_over")]
    pub unavailable_sources: Vec<String>,
    /// Digest of the content of the training rows.
    pub train_digest: String,
    /// Digest of the content of the rows that training rows were taken from: before validation rows are split off and few rows
    /// are drawn. Older runs lack the field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source_digest: String,
    /// Digest of the content of the validation rows.
    pub validation_digest: String,
    /// Number of training rows.
    pub train_rows: usize,
    /// Number of validation rows.
    pub validation_rows: usize,
    /// Number of truncated rows of both.
    pub truncated_rows: usize,
    /// Number of empty rows that were left out of both.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped_rows: usize,
    /// Column of the texts.
    #[serde(default)]
    pub text: String,
    /// Column of the second texts.
    #[serde(default)]
    pub text_pair: Option<String>,
    /// Column of the labels.
    #[serde(default)]
    pub label: String,
    /// Columns of the options of each row, or the column of lists of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// True if the column of the texts may hold lists of words.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub words: bool,
    /// Template around each text.
    #[serde(default)]
    pub template: Option<String>,
    /// Maximum number of tokens of a row.
    #[serde(default)]
    pub max_length: Option<usize>,
    /// Truncated end of long texts, `left` or `right`. Older runs lack the field and truncated the right end.
    #[serde(default)]
    pub truncation_side: Option<String>,
    /// Description of the windows into which long texts are divided; none if they are truncated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long_texts: Option<String>,
    /// Layout of lists of labels among the training rows, where rows have several labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_layout: Option<String>,
    /// Number of training rows of each class; empty unless each row has one class.
    #[serde(default)]
    pub class_rows: Vec<u64>,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// Number of trainable and of all parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterCounts {
    /// Parameters of the adapter.
    pub trainable: u64,
    /// Parameters of the adapter and the frozen model.
    pub total: u64,
}

/// Bytes moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes sent to servers.
    pub sent: u64,
    /// Bytes received from servers.
    pub received: u64,
}

impl Manifest {
    /// Servers that were taken out of use because their results were wrong.
    pub fn quarantined(&self) -> impl Iterator<Item = &ServerUsage> {
        self.servers.iter().filter(|usage| usage.quarantined)
    }

    /// Reads the manifest of the run in `folder`.
    ///
    /// # Errors
    /// [`ReadError`] if the file is missing or invalid.
    pub fn read(folder: &Path) -> Result<Self, ReadError> {
        let path = folder.join("manifest.json");
        let read = || serde_json::from_slice(&sepal_machine::regular::read(&path)?).map_err(io::Error::from);
        let unfinished = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound if folder.join("pipeline.yaml").is_file() => {
                io::Error::new(io::ErrorKind::NotFound, "it is missing: the run has not ended, and can be resumed")
            }
            _ => error,
        };
        read().map_err(|error| ReadError { source: unfinished(error), path })
    }

    /// Writes `manifest.json`.
    ///
    /// # Errors
    /// [`WriteError`] if the write fails.
    pub fn save(&self, run: &RunFolder) -> Result<(), WriteError> {
        let path = run.path().join("manifest.json");
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| WriteError { path, source: error.into() })?;
        text.push(b'\n');
        run.write("manifest.json", &text)
    }
}

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{RunFolder, WriteError, nullable};

/// `manifest.json`: what a run was made of and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The pipeline's name.
    pub name: String,
    /// What became of it.
    pub status: Status,
    /// Programs and libraries.
    pub versions: Versions,
    /// Seed of initialisation, splits and shuffles.
    pub seed: u64,
    /// The frozen model.
    pub model: ModelFacts,
    /// The labelled text.
    pub data: DataFacts,
    /// How many numbers train, and how many there are.
    pub parameters: Parameters,
    /// Optimizer steps made, and those that were skipped.
    pub steps: u64,
    /// Steps skipped because their gradients overflowed.
    #[serde(default)]
    pub skipped_steps: u64,
    /// What the loss was multiplied by in the last step; none if it was not scaled.
    #[serde(default)]
    pub scale: Option<f64>,
    /// Bytes moved between this process and the servers, framing included.
    pub bytes: Bytes,
    /// When the run started, RFC 3339.
    pub started: String,
    /// Wall time of the whole run, in seconds.
    pub seconds: f64,
    /// Wall time of training steps alone, in seconds.
    pub train_seconds: f64,
    /// Tokens of the training rows, without prompts.
    pub train_tokens: u64,
    /// Metrics of the evaluation whose parameters were kept.
    #[serde(deserialize_with = "nullable::numbers")]
    pub metrics: BTreeMap<String, f64>,
    /// SHA-256 of the trained parameters.
    pub adapter_digest: String,
    /// The labels' names, in the order of the logits.
    #[serde(default)]
    pub labels: Vec<String>,
    /// The evaluation whose parameters were kept; none if nothing was evaluated.
    #[serde(default)]
    pub best: Option<Best>,
    /// Why training ended before its last step, if it did without an error: early stopping, or its time was up.
    #[serde(default)]
    pub ended_early: Option<String>,
    /// Steps after which the run went on from a checkpoint.
    #[serde(default)]
    pub resumed_at: Vec<u64>,
    /// The servers that were used.
    #[serde(default)]
    pub servers: Vec<ServerUse>,
    /// Of each soft prompt, the words of the vocabulary whose embeddings are nearest.
    #[serde(default)]
    pub near_words: Vec<NearWords>,
}

/// The evaluation whose parameters were kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Optimizer steps made before it.
    pub step: u64,
    /// The metric that decided.
    pub metric: String,
    /// Its value.
    #[serde(deserialize_with = "nullable::number")]
    pub value: f64,
}

/// A server that was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerUse {
    /// Its address, or what stands for it.
    pub server: String,
    /// The blocks that it holds, as `0:10`.
    pub blocks: String,
    /// Calls that it answered.
    pub calls: u64,
    /// Calls that it failed, and which were made again, there or elsewhere.
    pub failures: u64,
}

/// The words nearest to one soft prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NearWords {
    /// Which prompt, counted from 0.
    pub prompt: usize,
    /// The words with their cosine similarity, the nearest first.
    pub words: Vec<(String, f64)>,
}

/// A manifest that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read {}", path.display())]
pub struct ReadError {
    /// Where it should be.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// What became of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Status {
    /// All steps were made.
    Finished,
    /// Stopped by the user; what was trained until then is saved.
    Interrupted,
    /// Stopped by an error; what was trained until then is saved.
    Failed {
        /// The error.
        error: String,
    },
}

/// Programs and libraries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// This program.
    pub sepal: String,
    /// The tensor library.
    pub libtorch: String,
}

/// The frozen model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// The source that was used.
    pub source: String,
    /// Sources before it that could not be had, each with its reason.
    pub passed_over: Vec<String>,
    /// Digest of the checkpoint.
    pub digest: String,
    /// The checkpoint in words.
    pub weights: String,
    /// Digest of the tokenizer.
    pub tokenizer: String,
}

/// The labelled text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFacts {
    /// The source of the training rows.
    pub train: String,
    /// The source of the validation rows, or how they were split off.
    pub validation: String,
    /// Sources before it that could not be had, each with its reason.
    pub passed_over: Vec<String>,
    /// Digest of the training rows' content.
    pub train_digest: String,
    /// Digest of the validation rows' content.
    pub validation_digest: String,
    /// Training rows.
    pub train_rows: usize,
    /// Validation rows.
    pub validation_rows: usize,
    /// Rows of both whose texts were shortened to `max_length`.
    pub truncated_rows: usize,
    /// The column of the texts.
    #[serde(default)]
    pub text: String,
    /// The column of second texts.
    #[serde(default)]
    pub text_pair: Option<String>,
    /// The column of the labels.
    #[serde(default)]
    pub label: String,
    /// What was put around each text.
    #[serde(default)]
    pub template: Option<String>,
    /// Tokens of a row at most.
    #[serde(default)]
    pub max_length: Option<usize>,
    /// End of long texts that was removed, `left` or `right`. Runs of before do not say; they removed the right one.
    #[serde(default)]
    pub truncation_side: Option<String>,
    /// Layout of lists of labels among the training rows, where rows have several labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_layout: Option<String>,
    /// How many training rows each class has; none where rows do not have one class each.
    #[serde(default)]
    pub class_rows: Vec<u64>,
}

/// How many numbers train, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// In the adapter.
    pub trainable: u64,
    /// With the frozen model's.
    pub total: u64,
}

/// Bytes moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// To the servers.
    pub sent: u64,
    /// From the servers.
    pub received: u64,
}

impl Manifest {
    /// Reads that of the run in `folder`.
    ///
    /// # Errors
    /// [`ReadError`] if it is not there, or is not one.
    pub fn read(folder: &Path) -> Result<Self, ReadError> {
        let path = folder.join("manifest.json");
        let read = || serde_json::from_slice(&std::fs::read(&path)?).map_err(io::Error::from);
        let unfinished = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound if folder.join("pipeline.yaml").is_file() => {
                let folder = folder.display();
                let problem = format!("it is not there: the run has not ended (`sepal run --resume {folder}`)");
                io::Error::new(io::ErrorKind::NotFound, problem)
            }
            _ => error,
        };
        read().map_err(|error| ReadError { source: unfinished(error), path })
    }

    /// Writes `manifest.json`.
    ///
    /// # Errors
    /// [`WriteError`] if the system refuses.
    pub fn save(&self, run: &RunFolder) -> Result<(), WriteError> {
        let path = run.path().join("manifest.json");
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| WriteError { path, source: error.into() })?;
        text.push(b'\n');
        run.write("manifest.json", &text)
    }
}

//! Checkpoints of a run: one file, written completely or not at all, with everything that the next step depends on.
//!
//! The order of rows and the random numbers of a step depend on the seed and the step's number alone, so that a checkpoint
//! holds only the number of steps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sepal_config::spec::CheckpointSpec;
use sepal_core::{HostTensor, NamedHostTensor};
use sepal_nn::file;
use sepal_plugin::Prediction;
use sepal_track::{BestEvaluation, EvaluationRecord};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::CheckpointError;
use crate::evaluate::{Evaluation, SelectedEvaluation};
use crate::progress::{Progress, minutes};
use crate::state::TrainState;

const FOLDER: &str = "checkpoints";
const FORMAT: &str = "sepal run checkpoint 1";

/// Groups of tensors, each named `GROUP/NAME` in the file.
const PARAMETERS: &str = "parameters";
const OPTIMIZER: &str = "optimizer";
const SCHEDULE: &str = "schedule";
const SCALER: &str = "scaler";
const SELECTED: &str = "kept";
const PREDICTION: &str = "prediction";

/// Digests of everything that a run depends on. Checkpoints of a run with other digests are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunIdentity {
    /// Digest of the options.
    pub pipeline: String,
    /// Digest of the model.
    pub model: String,
    /// Digest of the tokenizer.
    pub tokenizer: String,
    /// Digest of the training rows.
    pub training_rows: String,
    /// Digest of the validation rows.
    pub validation_rows: String,
}

impl RunIdentity {
    fn difference(&self, other: &Self) -> Option<&'static str> {
        let pairs = [
            ("options", &self.pipeline, &other.pipeline),
            ("weights of the model", &self.model, &other.model),
            ("tokens (another tokenizer)", &self.tokenizer, &other.tokenizer),
            ("training rows", &self.training_rows, &other.training_rows),
            ("validation rows", &self.validation_rows, &other.validation_rows),
        ];
        pairs.into_iter().find(|(_, own, others)| own != others).map(|(name, ..)| name)
    }
}

/// The part of a checkpoint that is not tensors.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    #[serde(rename = "made_of")]
    identity: RunIdentity,
    progress: Progress,
    /// Consecutive skipped steps, and the loss scale of the last one.
    skips: (u64, f64),
    #[serde(rename = "kept")]
    selected: Option<SelectedHeader>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SelectedHeader {
    record: EvaluationRecord,
    headline: String,
    best: BestEvaluation,
}

/// Checkpoints of one run, in its folder.
#[derive(Debug)]
pub struct Checkpoints<'a> {
    spec: &'a CheckpointSpec,
    folder: PathBuf,
    identity: RunIdentity,
    last: Instant,
    last_steps: u64,
}

impl<'a> Checkpoints<'a> {
    /// Checkpoints in the run folder `run`.
    pub fn new(spec: &'a CheckpointSpec, run: &Path, identity: RunIdentity) -> Self {
        Self { spec, folder: run.join(FOLDER), identity, last: Instant::now(), last_steps: 0 }
    }

    /// True if a checkpoint is due after `steps` steps.
    pub fn is_due(&self, steps: u64) -> bool {
        let by_steps = self.spec.every_steps.is_some_and(|every| steps.is_multiple_of(every));
        let after = self.spec.every_minutes.map_or(Duration::MAX, minutes);
        steps > self.last_steps && (by_steps || self.last.elapsed() >= after)
    }

    /// Writes a checkpoint and removes old ones.
    ///
    /// # Errors
    /// [`CheckpointError`] if it cannot be written.
    pub fn save(&mut self, state: TrainState) -> Result<(), CheckpointError> {
        let steps = state.progress.steps;
        let (header, tensors) = encode(&self.identity, state)?;
        let metadata = BTreeMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("digest".to_owned(), digest(&header, &tensors)),
            ("state".to_owned(), header),
        ]);
        sepal_machine::durable::create_folders(&self.folder)
            .map_err(|source| CheckpointError::Folder(sepal_track::WriteError { path: self.folder.clone(), source }))?;
        file::write(&self.folder.join(file_name(steps)), &tensors, &metadata).map_err(CheckpointError::Write)?;
        (self.last, self.last_steps) = (Instant::now(), steps);
        // A failed removal is harmless.
        let old = newest_first(&self.folder).into_iter().skip(self.spec.keep);
        old.for_each(|path| drop(std::fs::remove_file(path)));
        Ok(())
    }

    /// Reads the newest checkpoint of the run and passes it to `restore`.
    ///
    /// # Errors
    /// [`CheckpointError::Unusable`] if it is damaged or `restore` refuses it; [`CheckpointError::Resume`] if it belongs to
    /// another run, or there is none.
    pub fn restore(
        &mut self,
        restore: impl FnOnce(TrainState) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<(), CheckpointError> {
        let resume = |problem: String| CheckpointError::Resume { path: self.folder.clone(), problem };
        let path = newest_first(&self.folder).into_iter().next().ok_or_else(|| resume(NO_CHECKPOINT.to_owned()))?;
        // A folder that cannot be listed is reported by the next write.
        let _ = sepal_track::remove_partial_files(&self.folder);
        let (identity, state) = read(&path)?;
        if let Some(difference) = self.identity.difference(&identity) {
            return Err(resume(format!(
                "it was begun with other {difference}; its checkpoint is sound, so that it goes on once they are what they were"
            )));
        }
        let steps = state.progress.steps;
        restore(state).map_err(|error| unusable(&path, sepal_core::in_one_line(&*error)))?;
        self.last_steps = steps;
        Ok(())
    }
}

/// Message for a run without checkpoints.
pub const NO_CHECKPOINT: &str = "there is no checkpoint in it";

/// True if the run folder has a checkpoint.
pub fn has_checkpoint(run: &Path) -> bool {
    !newest_first(&run.join(FOLDER)).is_empty()
}

/// Digest of the tokenizer that a run was begun with, if its newest checkpoint is readable.
pub fn tokenizer_digest(run: &Path) -> Option<String> {
    let newest = newest_first(&run.join(FOLDER)).into_iter().next()?;
    Some(read(&newest).ok()?.0.tokenizer)
}

/// Digests of the training and validation rows that a run was begun with, if its newest checkpoint is readable.
pub fn row_digests(run: &Path) -> Option<[String; 2]> {
    let newest = newest_first(&run.join(FOLDER)).into_iter().next()?;
    let identity = read(&newest).ok()?.0;
    Some([identity.training_rows, identity.validation_rows])
}

fn file_name(steps: u64) -> String {
    format!("step-{steps:08}.safetensors")
}

/// Checkpoints of a folder; a missing folder has none.
fn newest_first(folder: &Path) -> Vec<PathBuf> {
    let steps = |path: &Path| -> Option<u64> {
        path.file_name()?.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(u64, PathBuf)> =
        entries.map(|entry| entry.path()).filter_map(|path| Some((steps(&path)?, path))).collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

fn unusable(path: &Path, problem: impl Into<String>) -> CheckpointError {
    CheckpointError::Unusable { path: path.into(), problem: problem.into() }
}

/// Header as JSON, and all tensors with their groups.
fn encode(identity: &RunIdentity, state: TrainState) -> Result<(String, Vec<NamedHostTensor>), CheckpointError> {
    let TrainState { progress, selected, parameters, optimizer, schedule, scaler, skips } = state;
    let (selected, params, prediction) = match selected {
        Some(SelectedEvaluation { evaluation: Evaluation { record, headline, prediction }, best, params }) => {
            (Some(SelectedHeader { record, headline, best }), params, prediction_tensors(&prediction))
        }
        None => Default::default(),
    };
    let header = Header { identity: identity.clone(), progress, skips, selected };
    let header = serde_json::to_string(&header).map_err(CheckpointError::Serialize)?;
    let in_group = |group: &'static str| {
        move |NamedHostTensor { name, tensor }| NamedHostTensor { name: format!("{group}/{name}"), tensor }
    };
    let groups = [
        (PARAMETERS, parameters),
        (OPTIMIZER, optimizer),
        (SCHEDULE, schedule),
        (SCALER, scaler),
        (SELECTED, params),
        (PREDICTION, prediction),
    ];
    let tensors = groups.into_iter().flat_map(|(group, tensors)| tensors.into_iter().map(in_group(group)));
    Ok((header, tensors.collect()))
}

/// Reads a checkpoint and verifies its digest.
fn read(path: &Path) -> Result<(RunIdentity, TrainState), CheckpointError> {
    let contents = file::read(path).map_err(|error| unusable(path, sepal_core::in_one_line(&error)))?;
    let metadata = |key: &str| contents.metadata.get(key).map(String::as_str).unwrap_or_default();
    if metadata("format") != FORMAT {
        return Err(unusable(path, "it was not written by this version, or is something else"));
    }
    if digest(metadata("state"), &contents.tensors) != metadata("digest") {
        return Err(unusable(path, "it is damaged: its digest is not that of its content"));
    }
    let Header { identity, progress, skips, selected } =
        serde_json::from_str(metadata("state")).map_err(|error| unusable(path, error.to_string()))?;
    progress.check(skips.0).map_err(|problem| unusable(path, problem))?;
    let mut groups: BTreeMap<String, Vec<NamedHostTensor>> = BTreeMap::new();
    for NamedHostTensor { name, tensor } in contents.tensors {
        let (group, name) = name.split_once('/').unwrap_or(("", &name));
        let named = NamedHostTensor { name: name.to_owned(), tensor };
        groups.entry(group.to_owned()).or_default().push(named);
    }
    let mut group = |name: &str| groups.remove(name).unwrap_or_default();
    let (params, prediction) = (group(SELECTED), prediction(&group(PREDICTION)));
    let selected = selected.map(|SelectedHeader { record, headline, best }| SelectedEvaluation {
        evaluation: Evaluation { record, headline, prediction },
        best,
        params,
    });
    let state = TrainState {
        progress,
        selected,
        parameters: group(PARAMETERS),
        optimizer: group(OPTIMIZER),
        schedule: group(SCHEDULE),
        scaler: group(SCALER),
        skips,
    };
    Ok((identity, state))
}

const CLASS: &str = "class";
const LOGITS: &str = "logits";
const PROBABILITIES: &str = "probabilities";
const ITEMS: &str = "items";
const LENGTHS: &str = "lengths";
const RIGHT_TOKENS: &str = "right_tokens";

/// Tensors of a prediction. Whole numbers are exact in fp32. Rows of different lengths, as of words and answers, are one
/// after another, with their lengths beside them.
fn prediction_tensors(prediction: &Prediction) -> Vec<NamedHostTensor> {
    let Prediction { class, probabilities, logits, items, right_tokens, thresholds: _ } = prediction;
    let mut tensors = Vec::new();
    let mut push = |name: &str, shape: Vec<usize>, numbers: Vec<f32>| {
        let tensor = HostTensor::from_f32(shape, &numbers).ok();
        tensors.extend(tensor.map(|tensor| NamedHostTensor { name: name.to_owned(), tensor }));
    };
    push(CLASS, vec![class.len()], class.iter().map(|&class| class as f32).collect());
    let is_ragged = !items.is_empty();
    for (name, rows) in [(LOGITS, logits), (PROBABILITIES, probabilities)] {
        let width = rows.first().map_or(0, Vec::len);
        let shape = if is_ragged { vec![rows.iter().map(Vec::len).sum()] } else { vec![rows.len(), width] };
        push(name, shape, rows.concat());
    }
    if is_ragged {
        let flat: Vec<f32> = items.iter().flatten().map(|&item| item as f32).collect();
        push(ITEMS, vec![flat.len()], flat);
        push(LENGTHS, vec![items.len()], items.iter().map(|row| row.len() as f32).collect());
        push(RIGHT_TOKENS, vec![right_tokens.len()], right_tokens.iter().map(|&count| count as f32).collect());
    }
    tensors
}

fn prediction(tensors: &[NamedHostTensor]) -> Prediction {
    let find = |name: &str| tensors.iter().find(|named| named.name == name).map(|named| &named.tensor);
    let numbers = |name: &str| find(name).map(HostTensor::to_f32).unwrap_or_default();
    let lengths: Option<Vec<usize>> =
        find(LENGTHS).map(|lengths| lengths.to_f32().iter().map(|&len| len as usize).collect());
    let rows = |name: &str| -> Vec<Vec<f32>> {
        let (Some(tensor), mut numbers) = (find(name), numbers(name).into_iter()) else { return Vec::new() };
        if let Some(lengths) = &lengths {
            return lengths.iter().map(|&len| numbers.by_ref().take(len).collect()).collect();
        }
        let width = tensor.shape().last().copied().unwrap_or(1).max(1);
        numbers.as_slice().chunks(width).map(<[f32]>::to_vec).collect()
    };
    let items = rows(ITEMS).into_iter().map(|row| row.into_iter().map(|item| item as i64).collect()).collect();
    Prediction {
        class: numbers(CLASS).into_iter().map(|class| class as i64).collect(),
        probabilities: rows(PROBABILITIES),
        logits: rows(LOGITS),
        items,
        right_tokens: numbers(RIGHT_TOKENS).into_iter().map(|count| count as usize).collect(),
        // Thresholds are fitted after the training.
        thresholds: Vec::new(),
    }
}

/// Digest of the header and of the names, shapes and bytes of all tensors, independent of their order in the file.
fn digest(header: &str, tensors: &[NamedHostTensor]) -> String {
    let mut sorted: Vec<&NamedHostTensor> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hasher = Sha256::new();
    hasher.update((header.len() as u64).to_le_bytes());
    hasher.update(header);
    for NamedHostTensor { name, tensor } in sorted {
        hasher.update(format!("{name} {:?}\n", tensor.shape()));
        hasher.update(tensor.data());
    }
    hex::encode(hasher.finalize())
}

//! What an interrupted run goes on from: one file, written whole, with everything that the next step depends on.
//!
//! The order of rows, and what libtorch draws in a step, depend on the seed and the number of the step alone; so the number
//! of steps is all that is kept of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sepal_core::{HostTensor, NamedHostTensor};
use sepal_nn::file;
use sepal_plugin::Prediction;
use sepal_track::{Best, EvaluationRecord, RunFolder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::RunError;
use crate::evaluate::{Evaluated, Kept};
use crate::spec::CheckpointSpec;
use crate::train::{Outcome, Progress, Training, is_by_time, minutes};

/// The folder of a run in which they lie.
const FOLDER: &str = "checkpoints";
const FORMAT: &str = "sepal run checkpoint 1";

/// Groups of tensors, each named `GROUP/NAME` in the file.
const PARAMETERS: &str = "parameters";
const OPTIMIZER: &str = "optimizer";
const SCHEDULE: &str = "schedule";
const SCALER: &str = "scaler";
const KEPT: &str = "kept";
const PREDICTION: &str = "prediction";

/// What a run is made of: a checkpoint of anything else is not its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MadeOf {
    pub(crate) pipeline: String,
    pub(crate) model: String,
    pub(crate) tokenizer: String,
    pub(crate) training_rows: String,
    pub(crate) validation_rows: String,
}

impl MadeOf {
    /// What differs from `other`, in words.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        let pairs = [
            ("options", &self.pipeline, &other.pipeline),
            ("weights of the model", &self.model, &other.model),
            ("tokens (another tokenizer)", &self.tokenizer, &other.tokenizer),
            ("training rows", &self.training_rows, &other.training_rows),
            ("validation rows", &self.validation_rows, &other.validation_rows),
        ];
        pairs.into_iter().find(|(_, own, others)| own != others).map(|(what, ..)| what)
    }
}

/// Everything but tensors.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    made_of: MadeOf,
    progress: Progress,
    /// Skipped steps in a row, and the scale of the last, which tell when lowering it is no help.
    skips: (u64, f64),
    kept: Option<KeptState>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptState {
    record: EvaluationRecord,
    headline: String,
    best: Best,
}

/// Writes the checkpoints of a run, and removes old ones.
pub(crate) struct Saver<'a> {
    spec: &'a CheckpointSpec,
    folder: PathBuf,
    made_of: MadeOf,
    started: Instant,
    last: Instant,
    last_steps: u64,
}

impl<'a> Saver<'a> {
    /// For a run whose process began at `started`.
    pub(crate) fn new(spec: &'a CheckpointSpec, run: &RunFolder, made_of: MadeOf, started: Instant) -> Self {
        Self { spec, folder: run.path().join(FOLDER), made_of, started, last: Instant::now(), last_steps: 0 }
    }

    /// Whether one is to be written after so many steps.
    pub(crate) fn is_due(&self, steps: u64) -> bool {
        let by_steps = self.spec.every_steps.is_some_and(|every| steps.is_multiple_of(every));
        let after = self.spec.every_minutes.map_or(Duration::MAX, minutes);
        steps > self.last_steps && (by_steps || self.last.elapsed() >= after)
    }

    /// Writes one.
    pub(crate) fn save(&mut self, training: &Training<'_>, outcome: &Outcome) -> Result<(), RunError> {
        let mut progress = outcome.progress.clone();
        progress.seconds_before += self.started.elapsed().as_secs_f64();
        progress.servers_before = training.model.blocks.uses(&progress.servers_before);
        let traffic = training.model.blocks.traffic();
        progress.sent_before += traffic.up();
        progress.received_before += traffic.down();
        let kept = outcome.kept.as_ref().map(|kept| KeptState {
            record: kept.evaluated.record.clone(),
            headline: kept.evaluated.headline.clone(),
            best: kept.best.clone(),
        });
        let state = State { made_of: self.made_of.clone(), progress, skips: training.scaling.skips(), kept };
        let state = serde_json::to_string(&state).map_err(|source| RunError::CheckpointState { source })?;
        let tensors = tensors(training, outcome)?;
        let metadata = BTreeMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("digest".to_owned(), digest(&state, &tensors)),
            ("state".to_owned(), state),
        ]);
        let path = self.folder.join(file_name(outcome.progress.steps));
        std::fs::create_dir_all(&self.folder)
            .map_err(|source| RunError::Write(sepal_track::WriteError { path: self.folder.clone(), source }))?;
        file::write(&path, &tensors, &metadata).map_err(RunError::SaveCheckpoint)?;
        (self.last, self.last_steps) = (Instant::now(), outcome.progress.steps);
        self.remove_old();
        Ok(())
    }

    /// One that cannot be removed is in nobody's way.
    fn remove_old(&self) {
        let older = newest_first(&self.folder).into_iter().skip(self.spec.keep);
        older.for_each(|path| drop(std::fs::remove_file(path)));
    }

    /// Puts the newest checkpoint of the run into `training` and says how far it had come.
    ///
    /// # Errors
    /// [`RunError::RunCheckpoint`] if it is damaged, or of another run; [`RunError::Resume`] if there is none.
    pub(crate) fn restore(&mut self, training: &mut Training<'_>) -> Result<Outcome, RunError> {
        let none = || RunError::Resume { path: self.folder.clone(), problem: NO_CHECKPOINT.to_owned() };
        let path = newest_first(&self.folder).into_iter().next().ok_or_else(none)?;
        // A folder that cannot be listed will say so when it is written to.
        let _ = sepal_track::remove_unfinished(&self.folder);
        let read = Read::open(&path)?;
        let refused = |problem: String| RunError::RunCheckpoint { path: path.clone(), problem };
        if let Some(what) = self.made_of.difference(&read.state.made_of) {
            let problem = format!(
                "it was begun with other {what}; its checkpoint is sound, so that it goes on once they are what they were"
            );
            return Err(RunError::Resume { path: self.folder.clone(), problem });
        }
        let outcome = read.put_into(training).map_err(|error| refused(sepal_core::in_one_line(&*error)))?;
        self.last_steps = outcome.progress.steps;
        Ok(outcome)
    }
}

/// A checkpoint of a run that was read, and is whole.
struct Read {
    state: State,
    groups: BTreeMap<String, Vec<NamedHostTensor>>,
}

impl Read {
    fn open(path: &Path) -> Result<Self, RunError> {
        let refused = |problem: &str| RunError::RunCheckpoint { path: path.into(), problem: problem.to_owned() };
        let contents = file::read(path).map_err(|error| refused(&sepal_core::in_one_line(&error)))?;
        let metadata = |key: &str| contents.metadata.get(key).map(String::as_str).unwrap_or_default();
        if metadata("format") != FORMAT {
            return Err(refused("it was not written by this version, or is something else"));
        }
        let (state, mut tensors) = (metadata("state").to_owned(), contents.tensors.clone());
        if digest(&state, &tensors) != metadata("digest") {
            return Err(refused("it is damaged: its digest is not that of its content"));
        }
        let state = serde_json::from_str(&state).map_err(|error| refused(&error.to_string()))?;
        let mut groups: BTreeMap<String, Vec<NamedHostTensor>> = BTreeMap::new();
        for NamedHostTensor { name, tensor } in tensors.drain(..) {
            let (group, name) = name.split_once('/').unwrap_or(("", &name));
            let named = NamedHostTensor { name: name.to_owned(), tensor };
            groups.entry(group.to_owned()).or_default().push(named);
        }
        Ok(Self { state, groups })
    }

    fn put_into(mut self, training: &mut Training<'_>) -> Result<Outcome, Box<dyn std::error::Error + Send + Sync>> {
        let mut group = |name: &str| self.groups.remove(name).unwrap_or_default();
        training.model.params.set(group(PARAMETERS))?;
        training.optimizer.load_state(&training.model.params, &group(OPTIMIZER))?;
        training.schedule.load_state(&group(SCHEDULE))?;
        training.scaling.load_state(&group(SCALER), self.state.progress.skipped, self.state.skips)?;
        let (params, prediction) = (group(KEPT), prediction(&group(PREDICTION)));
        let mut progress = self.state.progress;
        progress.resumed_at.push(progress.steps);
        // If the time is still up, the loop says so again.
        progress.ended_early = progress.ended_early.filter(|reason| !is_by_time(Some(reason)));
        let kept = self.state.kept.map(|KeptState { record, headline, best }| Kept {
            evaluated: Evaluated { record, headline, prediction },
            best,
            params,
        });
        Ok(Outcome { progress, interrupted: false, kept })
    }
}

/// What is wrong with a run that has nothing to go on from.
pub(crate) const NO_CHECKPOINT: &str = "there is no checkpoint in it";

/// Whether the run in this folder has something to go on from.
pub(crate) fn has_checkpoint(run: &Path) -> bool {
    !newest_first(&run.join(FOLDER)).is_empty()
}

/// Digest of the tokenizer that a run in this folder was begun with, if its newest checkpoint can be read.
pub(crate) fn tokenizer_of(run: &Path) -> Option<String> {
    let newest = newest_first(&run.join(FOLDER)).into_iter().next()?;
    Some(Read::open(&newest).ok()?.state.made_of.tokenizer)
}

fn file_name(steps: u64) -> String {
    format!("step-{steps:08}.safetensors")
}

/// The checkpoints of a folder; one that is not there has none.
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

/// All tensors that the next step depends on, and what was kept.
fn tensors(training: &Training<'_>, outcome: &Outcome) -> Result<Vec<NamedHostTensor>, RunError> {
    let in_group = |group: &'static str| {
        move |NamedHostTensor { name, tensor }| NamedHostTensor { name: format!("{group}/{name}"), tensor }
    };
    let params = training.model.params.to_host().map_err(RunError::Numbers)?;
    let optimizer = training.optimizer.state().map_err(RunError::State)?;
    let schedule = training.schedule.state().map_err(RunError::State)?;
    let scaler = training.scaling.state().map_err(RunError::State)?;
    let kept = outcome.kept.as_ref();
    let kept_params = kept.map(|kept| kept.params.clone()).unwrap_or_default();
    let predicted = kept.map(|kept| prediction_tensors(&kept.evaluated.prediction)).unwrap_or_default();
    let groups = [(PARAMETERS, params), (OPTIMIZER, optimizer), (SCHEDULE, schedule), (SCALER, scaler)];
    let groups = groups.into_iter().chain([(KEPT, kept_params), (PREDICTION, predicted)]);
    Ok(groups.flat_map(|(group, tensors)| tensors.into_iter().map(in_group(group))).collect())
}

const CLASS: &str = "class";
const LOGITS: &str = "logits";
const PROBABILITIES: &str = "probabilities";

/// A class is a whole number that fp32 holds.
fn prediction_tensors(prediction: &Prediction) -> Vec<NamedHostTensor> {
    let rows = prediction.rows();
    let flat = |numbers: &[Vec<f32>]| (vec![rows, numbers.first().map_or(0, Vec::len)], numbers.concat());
    let class: Vec<f32> = prediction.class.iter().map(|&class| class as f32).collect();
    let (logits, probabilities) = (flat(&prediction.logits), flat(&prediction.probabilities));
    [(CLASS, (vec![rows], class)), (LOGITS, logits), (PROBABILITIES, probabilities)]
        .into_iter()
        .filter_map(|(name, (shape, numbers))| {
            Some(NamedHostTensor { name: name.to_owned(), tensor: HostTensor::from_f32(shape, &numbers).ok()? })
        })
        .collect()
}

fn prediction(tensors: &[NamedHostTensor]) -> Prediction {
    let rows = |name: &str| -> Vec<Vec<f32>> {
        let Some(named) = tensors.iter().find(|named| named.name == name) else { return Vec::new() };
        let width = named.tensor.shape().last().copied().unwrap_or(1).max(1);
        named.tensor.to_f32().chunks(width).map(<[f32]>::to_vec).collect()
    };
    let class = tensors.iter().find(|named| named.name == CLASS).map(|named| named.tensor.to_f32()).unwrap_or_default();
    Prediction {
        class: class.into_iter().map(|class| class as i64).collect(),
        probabilities: rows(PROBABILITIES),
        logits: rows(LOGITS),
    }
}

/// Of the state and of names, shapes and bytes in an order that does not depend on the file's.
fn digest(state: &str, tensors: &[NamedHostTensor]) -> String {
    let mut sorted: Vec<&NamedHostTensor> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hasher = Sha256::new();
    hasher.update((state.len() as u64).to_le_bytes());
    hasher.update(state);
    for NamedHostTensor { name, tensor } in sorted {
        hasher.update(format!("{name} {:?}\n", tensor.shape()));
        hasher.update(tensor.data());
    }
    hex::encode(hasher.finalize())
}

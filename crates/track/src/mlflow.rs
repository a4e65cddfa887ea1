//! Runs on an MLflow server, through its REST interface.

mod api;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use api::{MlflowAccess, MlflowError};

use crate::scalars::{of_evaluation, of_step, since_epoch};
use crate::{EvaluationRecord, Manifest, RunInfo, Status, StepRecord, TrackError, Tracker, WITHHELD, write_whole};
use api::{Api, ApiRun};

/// A run on an MLflow server: options as parameters, losses and metrics, and the files of the run's folder.
///
/// Who asks is said by the variables of MLflow's own client: `MLFLOW_TRACKING_USERNAME` with `MLFLOW_TRACKING_PASSWORD`, or
/// `MLFLOW_TRACKING_TOKEN`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MlflowConfig {
    /// The server, for example `http://127.0.0.1:5000`; that of `MLFLOW_TRACKING_URI` if not given. Passwords belong into
    /// the environment: this file is copied to the run's folder.
    pub tracking_uri: Option<String>,
    /// The experiment, which is made if there is none; the pipeline's name if not given.
    pub experiment: Option<String>,
    /// What the run is called there; the name of its folder if not given.
    pub run_name: Option<String>,
    /// Seconds between two requests with the numbers of steps; those of an evaluation are sent at once.
    #[schemars(range(min = 0.0))]
    pub flush_seconds: f64,
    /// Whether what was trained, the report, the manifest and the pipeline are stored with the run, if its server stores
    /// artifacts itself (as it does unless it was told otherwise).
    pub artifacts: bool,
}

impl Default for MlflowConfig {
    fn default() -> Self {
        Self { tracking_uri: None, experiment: None, run_name: None, flush_seconds: 5.0, artifacts: true }
    }
}

impl MlflowConfig {
    /// What is wrong with `tracking_uri`, if it is given and is no address of a server.
    pub fn problem(&self) -> Option<MlflowError> {
        self.tracking_uri.as_deref().and_then(|uri| api::address(uri).err())
    }
}

/// Tells an MLflow server of a run; see [`MlflowConfig`].
///
/// The server's name for the run is kept in `mlflow.json` of the run's folder: a run that goes on is the same run there.
#[derive(Debug)]
pub struct Mlflow {
    config: MlflowConfig,
    access: MlflowAccess,
    session: Option<Session>,
}

impl Mlflow {
    /// With these options; nothing is asked before [`start`](Tracker::start).
    ///
    /// # Errors
    /// [`MlflowError`] if neither the options nor `access` say where the server is, or it is no address.
    pub fn new(config: MlflowConfig, mut access: MlflowAccess) -> Result<Self, MlflowError> {
        let uri = config.tracking_uri.clone().or(access.tracking_uri.take()).ok_or(MlflowError::Nowhere)?;
        access.tracking_uri = Some(api::address(&uri)?);
        Ok(Self { config, access, session: None })
    }

    fn session(&mut self) -> Result<&mut Session, MlflowError> {
        self.session.as_mut().ok_or(MlflowError::NotBegun)
    }
}

/// Files of a run's folder that are stored with the run.
const ARTIFACTS: [&str; 4] = ["adapter.safetensors", PIPELINE, "report.html", "manifest.json"];
const PIPELINE: &str = "pipeline.yaml";

/// What an MLflow server takes at most, in one request and in one value. Servers before 2.8 take no longer values.
const METRICS_PER_REQUEST: usize = 1000;
const PARAMS_PER_REQUEST: usize = 100;
const PARAM_LENGTH: usize = 500;
const KEY_LENGTH: usize = 250;
const TAG_LENGTH: usize = 5000;

/// Numbers that are kept at most while the server cannot be reached; the oldest go first.
const KEPT_METRICS: usize = 50_000;

impl Tracker for Mlflow {
    fn start(&mut self, run: &RunInfo) -> Result<(), TrackError> {
        let api = Api::new(&self.access)?;
        let mark = Mark::path(&run.folder);
        let known = Mark::read(&mark).filter(|known| known.server == api.server());
        let reopened = match known {
            Some(known) => api.reopen_run(&known.run_id)?,
            None => None,
        };
        let there = match reopened {
            Some(there) => there,
            None => {
                let experiment = self.config.experiment.as_deref().unwrap_or(&run.name);
                let name = self.config.run_name.as_deref().unwrap_or(&run.id);
                let there = api.create_run(&api.experiment(experiment)?, name, &run.id)?;
                // They cannot be changed there, so they are those of the beginning.
                for params in params(run).chunks(PARAMS_PER_REQUEST) {
                    api.log_batch(&there.run_id, "params", params)?;
                }
                // A run without them is not gone on with.
                let known = Mark { server: api.server(), run_id: there.run_id.clone() };
                write_whole(&mark, &serde_json::to_vec_pretty(&known)?)?;
                there
            }
        };
        let pause = Duration::try_from_secs_f64(self.config.flush_seconds).unwrap_or_default();
        self.session = Some(Session {
            api,
            run: there,
            folder: run.folder.clone(),
            is_private: run.options.iter().any(|(_, value)| value == WITHHELD),
            pending: Vec::new(),
            pause,
            next: Instant::now() + pause,
        });
        Ok(())
    }

    fn step(&mut self, record: &StepRecord) -> Result<(), TrackError> {
        let session = self.session()?;
        session.add(record.step, of_step(record));
        if Instant::now() < session.next {
            return Ok(());
        }
        Ok(session.flush()?)
    }

    fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), TrackError> {
        let session = self.session()?;
        session.add(record.step, of_evaluation(record));
        Ok(session.flush()?)
    }

    fn finish(&mut self, manifest: &Manifest) -> Result<(), TrackError> {
        let wants_artifacts = self.config.artifacts;
        let session = self.session()?;
        // All is tried, whatever fails before.
        let flushed = session.flush();
        let tagged = session.api.log_batch(&session.run.run_id, "tags", &tags(manifest));
        let stored = if wants_artifacts { session.store() } else { Ok(()) };
        let status = match manifest.status {
            Status::Finished => "FINISHED",
            Status::Failed { .. } => "FAILED",
            Status::Interrupted => "KILLED",
        };
        let ended = session.api.end_run(&session.run.run_id, status);
        Ok(ended.and(flushed).and(tagged).and(stored)?)
    }
}

/// A run on a server.
#[derive(Debug)]
struct Session {
    api: Api,
    run: ApiRun,
    folder: PathBuf,
    /// Whether the pipeline file holds what admits to a swarm.
    is_private: bool,
    /// Numbers that are not sent yet, the oldest first.
    pending: Vec<Value>,
    pause: Duration,
    /// When they are sent next.
    next: Instant,
}

impl Session {
    fn add(&mut self, step: u64, numbers: Vec<(String, f64)>) {
        let timestamp = since_epoch().as_millis() as u64;
        let metric =
            |(key, value)| json!({ "key": plain_key(key), "value": value, "timestamp": timestamp, "step": step });
        self.pending.extend(numbers.into_iter().map(metric));
        let too_many = self.pending.len().saturating_sub(KEPT_METRICS);
        self.pending.drain(..too_many);
    }

    /// Sends what is pending; what cannot be sent stays, and is tried again after a while.
    fn flush(&mut self) -> Result<(), MlflowError> {
        while !self.pending.is_empty() {
            let n = self.pending.len().min(METRICS_PER_REQUEST);
            if let Err(error) = self.api.log_batch(&self.run.run_id, "metrics", &self.pending[..n]) {
                self.next = Instant::now() + self.pause.max(Duration::from_secs(10));
                return Err(error);
            }
            self.pending.drain(..n);
        }
        self.next = Instant::now() + self.pause;
        Ok(())
    }

    /// Stores the files of the run's folder that are there.
    fn store(&self) -> Result<(), MlflowError> {
        let may_go = |name: &&str| !(self.is_private && *name == PIPELINE);
        let there = ARTIFACTS.into_iter().filter(may_go).filter(|name| self.folder.join(name).is_file());
        there.map(|name| self.api.store(&self.run, name, &self.folder.join(name))).fold(Ok(()), Result::and)
    }
}

/// What is kept in the run's folder.
#[derive(Serialize, Deserialize)]
struct Mark {
    server: String,
    run_id: String,
}

impl Mark {
    fn path(folder: &Path) -> PathBuf {
        folder.join("mlflow.json")
    }

    /// None if there is none, or none that can be read: then the run is a new one there.
    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }
}

/// The options as parameters: each key once, values cut.
fn params(run: &RunInfo) -> Vec<Value> {
    let mut keys = std::collections::BTreeSet::new();
    let trainable = ("trainable".to_owned(), run.trainable.to_string());
    let options = run.options.iter().cloned().chain([trainable]).map(|(key, value)| (plain_key(key), value));
    options
        .filter(|(key, _)| keys.insert(key.clone()))
        .map(|(key, value)| json!({ "key": key, "value": cut(&value, PARAM_LENGTH) }))
        .collect()
}

fn tags(manifest: &Manifest) -> Vec<Value> {
    let error = match &manifest.status {
        Status::Failed { error } => Some(("sepal.error", error.clone())),
        _ => None,
    };
    let facts = [
        ("sepal.version", manifest.versions.sepal.clone()),
        ("sepal.libtorch", manifest.versions.libtorch.clone()),
        ("sepal.model_digest", manifest.model.digest.clone()),
        ("sepal.train_digest", manifest.data.train_digest.clone()),
        ("sepal.adapter_digest", manifest.adapter_digest.clone()),
    ];
    facts.into_iter().chain(error).map(|(key, value)| json!({ "key": key, "value": cut(&value, TAG_LENGTH) })).collect()
}

/// A key of characters that every server takes.
fn plain_key(key: String) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-. /".contains(c);
    key.chars().take(KEY_LENGTH).map(|c| if is_plain(c) { c } else { '_' }).collect()
}

fn cut(text: &str, length: usize) -> &str {
    text.char_indices().nth(length).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests;

//! Runs on an MLflow server, through its REST interface.

mod api;
mod outbox;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use api::{MlflowAccess, MlflowError};

use crate::names::Rule;
use crate::scalars::{of_evaluation, of_step, since_epoch};
use crate::{EvaluationRecord, Manifest, RunInfo, Status, StepRecord, TrackError, Tracker, WITHHELD, write_whole};
use api::{Api, ApiRun};
use outbox::{Content, Entry, Kind, Outbox};

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
/// While the server cannot be reached, also at the start, numbers are kept and it is asked again every ten seconds. Names that
/// it does not take are escaped, and what it refuses all the same is left out alone.
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

/// Names of experiments and runs: any characters but control characters, as long as the columns of the server's database.
const TITLES: Rule = Rule { allows: |c| !c.is_control(), is_path: false, max_chars: 250 };

/// Pause before a server that could not be reached is tried again.
const LEAST_PAUSE: Duration = Duration::from_secs(10);

impl Tracker for Mlflow {
    fn start(&mut self, run: &RunInfo) -> Result<(), TrackError> {
        let mut session = Session::new(&self.config, &self.access, run)?;
        let begun = session.flush();
        if session.run.is_some() || begun.as_ref().err().is_some_and(MlflowError::is_passing) {
            self.session = Some(session);
        }
        Ok(begun?)
    }

    fn goes_on(&self) -> bool {
        self.session.is_some()
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
        Ok(self.session()?.finish(manifest, wants_artifacts)?)
    }
}

/// The outcome of sending parameters and of sending metrics. Names that were left out are told once and so come first, but
/// for a run that was deleted; other errors come again.
fn both(params: Result<(), MlflowError>, metrics: Result<(), MlflowError>) -> Result<(), MlflowError> {
    match (params, metrics) {
        (Err(MlflowError::LeftOut { mut names, source, .. }), Err(MlflowError::LeftOut { names: more, .. })) => {
            names.extend(more);
            Err(MlflowError::LeftOut { kind: "params and metrics", names, source })
        }
        (_, Err(error @ (MlflowError::Deleted { .. } | MlflowError::LeftOut { .. }))) => Err(error),
        (params, metrics) => params.and(metrics),
    }
}

/// A run on a server, or one that is yet to be made there.
#[derive(Debug)]
struct Session {
    api: Api,
    /// The run on the server; none until the server was reached.
    run: Option<ApiRun>,
    /// The run was deleted on the server.
    is_deleted: bool,
    experiment: String,
    run_name: String,
    /// The name of the run's folder.
    id: String,
    folder: PathBuf,
    /// Whether the pipeline file holds what admits to a swarm.
    is_private: bool,
    params: Outbox,
    metrics: Outbox,
    pause: Duration,
    /// Earliest time of the next flush.
    next: Instant,
}

impl Session {
    fn new(config: &MlflowConfig, access: &MlflowAccess, run: &RunInfo) -> Result<Self, MlflowError> {
        let mut params = Outbox::new(Kind::Params);
        params.extend(entries_of(run));
        Ok(Self {
            api: Api::new(access)?,
            run: None,
            is_deleted: false,
            experiment: TITLES.rename(config.experiment.as_deref().unwrap_or(&run.name)),
            run_name: TITLES.rename(config.run_name.as_deref().unwrap_or(&run.id)),
            id: run.id.clone(),
            folder: run.folder.clone(),
            is_private: run.options.iter().any(|(_, value)| value == WITHHELD),
            params,
            metrics: Outbox::new(Kind::Metrics),
            pause: Duration::try_from_secs_f64(config.flush_seconds).unwrap_or_default(),
            next: Instant::now(),
        })
    }

    fn add(&mut self, step: u64, numbers: Vec<(String, f64)>) {
        let timestamp = since_epoch().as_millis() as u64;
        let metric = |(name, value)| Entry { name, content: Content::Number { value, timestamp, step } };
        self.metrics.extend(numbers.into_iter().map(metric));
    }

    /// Sends what is pending; what cannot be sent stays, and is tried again after a while.
    fn flush(&mut self) -> Result<(), MlflowError> {
        if self.is_deleted {
            return Ok(());
        }
        let sent = self.connect().and_then(|()| self.send());
        self.is_deleted = matches!(sent, Err(MlflowError::Deleted { .. }));
        let is_down = sent.as_ref().is_err_and(|error| !matches!(error, MlflowError::LeftOut { .. }));
        self.next = Instant::now() + if is_down { self.pause.max(LEAST_PAUSE) } else { self.pause };
        sent
    }

    /// Makes the run on the server, or opens it again.
    fn connect(&mut self) -> Result<(), MlflowError> {
        if self.run.is_some() {
            return Ok(());
        }
        let path = Mark::path(&self.folder);
        let known = Mark::read(&path).filter(|known| known.server == self.api.server());
        let reopened = match &known {
            Some(known) => self.api.reopen_run(&known.run_id)?,
            None => None,
        };
        let run = match reopened {
            Some(run) => {
                // They cannot be changed there, so they are those of the beginning.
                if known.is_some_and(|known| known.has_params) {
                    self.params = Outbox::new(Kind::Params);
                }
                run
            }
            None => {
                let experiment = self.api.experiment(&self.experiment)?;
                let run = self.api.create_run(&experiment, &self.run_name, &self.id)?;
                // Known before anything fails: another attempt must not make another run.
                self.run = Some(run.clone());
                return self.mark(&run, false);
            }
        };
        self.run = Some(run);
        Ok(())
    }

    fn send(&mut self) -> Result<(), MlflowError> {
        let Some(run) = &self.run else { return Ok(()) };
        let has_params = self.params.unsent() == 0;
        let params = self.params.send(&self.api, &run.run_id);
        if !has_params && self.params.unsent() == 0 {
            self.mark(run, true)?;
        }
        if matches!(params, Err(MlflowError::Deleted { .. })) {
            return params;
        }
        both(params, self.metrics.send(&self.api, &run.run_id))
    }

    fn mark(&self, run: &ApiRun, has_params: bool) -> Result<(), MlflowError> {
        let mark = Mark { server: self.api.server(), run_id: run.run_id.clone(), has_params };
        let text = serde_json::to_vec_pretty(&mark).unwrap_or_default();
        write_whole(&Mark::path(&self.folder), &text).map_err(MlflowError::Mark)
    }

    /// Tries all that is left, whatever fails before.
    fn finish(&mut self, manifest: &Manifest, wants_artifacts: bool) -> Result<(), MlflowError> {
        let flushed = self.flush();
        if self.is_deleted {
            return flushed;
        }
        let unsent = self.metrics.unsent();
        let flushed = match flushed {
            flushed if unsent == 0 => flushed,
            flushed => Err(MlflowError::Unsent { n: unsent, source: flushed.err().map(Box::new) }),
        };
        let Some(run) = &self.run else { return flushed };
        let mut tags = Outbox::new(Kind::Tags);
        tags.extend(tags_of(manifest));
        let tagged = tags.send(&self.api, &run.run_id);
        let stored = if wants_artifacts { self.store(run) } else { Ok(()) };
        let status = match manifest.status {
            Status::Finished => "FINISHED",
            Status::Failed { .. } => "FAILED",
            Status::Interrupted => "KILLED",
        };
        let ended = self.api.end_run(&run.run_id, status);
        ended.and(flushed).and(tagged).and(stored)
    }

    /// Stores the files of the run's folder that are there.
    fn store(&self, run: &ApiRun) -> Result<(), MlflowError> {
        let may_go = |name: &&str| !(self.is_private && *name == PIPELINE);
        let there = ARTIFACTS.into_iter().filter(may_go).filter(|name| self.folder.join(name).is_file());
        there.map(|name| self.api.store(run, name, &self.folder.join(name))).fold(Ok(()), Result::and)
    }
}

/// What is kept in the run's folder.
#[derive(Serialize, Deserialize)]
struct Mark {
    server: String,
    run_id: String,
    /// The server has the parameters, as far as it takes them.
    #[serde(default = "yes")]
    has_params: bool,
}

fn yes() -> bool {
    true
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

/// The options as parameters, each name once.
fn entries_of(run: &RunInfo) -> Vec<Entry> {
    let mut names = std::collections::BTreeSet::new();
    let trainable = ("trainable".to_owned(), run.trainable.to_string());
    let options = run.options.iter().cloned().chain([trainable]);
    let options = options.filter(|(name, _)| names.insert(name.clone()));
    options.map(|(name, value)| Entry { name, content: Content::Text(value) }).collect()
}

fn tags_of(manifest: &Manifest) -> Vec<Entry> {
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
    let entry = |(name, text): (&str, String)| Entry { name: name.to_owned(), content: Content::Text(text) };
    facts.into_iter().chain(error).map(entry).collect()
}

#[cfg(test)]
mod tests;

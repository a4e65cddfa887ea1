//! Tracker for MLflow servers, through their REST interface.

mod api;
mod outbox;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use api::MlflowError;

use crate::folder::read_json;
use crate::mlflow_config::{MlflowAccess, MlflowConfig};
use crate::names::NameRule;
use crate::scalars::{evaluation_scalars, since_epoch, step_scalars};
use crate::{EvaluationRecord, Manifest, REDACTED, RunInfo, Status, StepRecord, TrackError, Tracker, write_atomic};
use api::{Api, ApiRun};
use outbox::{Content, Entry, Kind, Outbox};

impl MlflowConfig {
    /// Returns an error if `tracking_uri` is given and is not an address of a server.
    pub fn problem(&self) -> Option<MlflowError> {
        self.tracking_uri.as_deref().and_then(|uri| api::address(uri).err())
    }
}

/// Tracker that sends a run to an MLflow server; see [`MlflowConfig`].
///
/// The server's run id is stored in `mlflow.json` of the run folder, so that a resumed run continues the same run on
/// the server. While the server is unreachable, also at the start, numbers are kept and the connection is retried every
/// ten seconds. Refused names are escaped, and entries that are still refused are dropped one by one.
#[derive(Debug)]
pub struct Mlflow {
    config: MlflowConfig,
    access: MlflowAccess,
    session: Option<Session>,
}

impl Mlflow {
    /// Creates a tracker with the given options; no request is sent before [`start`](Tracker::start).
    ///
    /// # Errors
    /// [`MlflowError`] if neither the options nor `access` contain an address, or the address is invalid.
    pub fn new(config: MlflowConfig, mut access: MlflowAccess) -> Result<Self, MlflowError> {
        let uri = config.tracking_uri.clone().or(access.tracking_uri.take()).ok_or(MlflowError::NoServer)?;
        access.tracking_uri = Some(api::address(&uri)?);
        Ok(Self { config, access, session: None })
    }

    fn session(&mut self) -> Result<&mut Session, MlflowError> {
        self.session.as_mut().ok_or(MlflowError::NotStarted)
    }
}

/// Files of the run folder that are stored with the run.
const ARTIFACTS: [&str; 4] = ["adapter.safetensors", PIPELINE, "report.html", "manifest.json"];
const PIPELINE: &str = "pipeline.yaml";

/// Names of experiments and runs: any characters but control characters, up to the column length of the server's
/// database.
const TITLES: NameRule = NameRule { allows: |c| !c.is_control(), is_path: false, max_chars: 250 };

/// Minimum pause before an unreachable server is tried again.
const MIN_PAUSE: Duration = Duration::from_secs(10);

impl Tracker for Mlflow {
    fn start(&mut self, run: &RunInfo) -> Result<(), TrackError> {
        let mut session = Session::new(&self.config, &self.access, run)?;
        let started = session.flush();
        if session.run.is_some() || started.as_ref().err().is_some_and(MlflowError::is_transient) {
            self.session = Some(session);
        }
        Ok(started?)
    }

    fn retries_start(&self) -> bool {
        self.session.is_some()
    }

    fn step(&mut self, record: &StepRecord) -> Result<(), TrackError> {
        let session = self.session()?;
        session.add(record.step, step_scalars(record));
        if Instant::now() < session.next {
            return Ok(());
        }
        Ok(session.flush()?)
    }

    fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), TrackError> {
        let session = self.session()?;
        session.add(record.step, evaluation_scalars(record));
        Ok(session.flush()?)
    }

    fn finish(&mut self, manifest: &Manifest) -> Result<(), TrackError> {
        let wants_artifacts = self.config.artifacts;
        Ok(self.session()?.finish(manifest, wants_artifacts)?)
    }
}

/// Combines the results for parameters and metrics. A report of dropped names comes first, because it is given once;
/// only a deleted run precedes it.
fn combine(params: Result<(), MlflowError>, metrics: Result<(), MlflowError>) -> Result<(), MlflowError> {
    match (params, metrics) {
        (Err(MlflowError::Dropped { mut names, source, .. }), Err(MlflowError::Dropped { names: more, .. })) => {
            names.extend(more);
            Err(MlflowError::Dropped { kind: "params and metrics", names, source })
        }
        (_, Err(error @ (MlflowError::Deleted { .. } | MlflowError::Dropped { .. }))) => Err(error),
        (params, metrics) => params.and(metrics),
    }
}

/// Run on a server, or one that is still to be created.
#[derive(Debug)]
struct Session {
    api: Api,
    /// Run on the server; none until the server was reached.
    run: Option<ApiRun>,
    is_deleted: bool,
    experiment: String,
    run_name: String,
    /// Name of the run folder.
    id: String,
    folder: PathBuf,
    /// True if the pipeline file has values that must stay on this machine.
    is_redacted: bool,
    params: Outbox,
    metrics: Outbox,
    pause: Duration,
    /// Earliest time of the next flush.
    next: Instant,
}

impl Session {
    fn new(config: &MlflowConfig, access: &MlflowAccess, run: &RunInfo) -> Result<Self, MlflowError> {
        let mut params = Outbox::new(Kind::Params);
        params.extend(option_entries(run));
        Ok(Self {
            api: Api::new(access)?,
            run: None,
            is_deleted: false,
            experiment: TITLES.rename(config.experiment.as_deref().unwrap_or(&run.name)),
            run_name: TITLES.rename(config.run_name.as_deref().unwrap_or(&run.id)),
            id: run.id.clone(),
            folder: run.folder.clone(),
            is_redacted: run.options.iter().any(|(_, value)| value == REDACTED),
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

    /// Sends pending entries; entries that cannot be sent stay and are retried later.
    fn flush(&mut self) -> Result<(), MlflowError> {
        if self.is_deleted {
            return Ok(());
        }
        let sent = self.connect().and_then(|()| self.send());
        self.is_deleted = matches!(sent, Err(MlflowError::Deleted { .. }));
        let has_failed = sent.as_ref().is_err_and(|error| !matches!(error, MlflowError::Dropped { .. }));
        self.next = Instant::now() + if has_failed { self.pause.max(MIN_PAUSE) } else { self.pause };
        sent
    }

    /// Creates or reopens the run on the server.
    fn connect(&mut self) -> Result<(), MlflowError> {
        if self.run.is_some() {
            return Ok(());
        }
        let path = RunReference::path(&self.folder);
        let known = read_json::<RunReference>(&path).filter(|known| known.server == self.api.server());
        let reopened = match &known {
            Some(known) => self.api.reopen_run(&known.run_id)?,
            None => None,
        };
        let Some(run) = reopened else {
            let experiment = self.api.experiment(&self.experiment)?;
            let run = self.api.create_run(&experiment, &self.run_name, &self.id)?;
            // Set before anything can fail: a retry must not create another run.
            self.run = Some(run.clone());
            return self.save_reference(&run, false);
        };
        // MLflow does not allow changes of parameters.
        if known.is_some_and(|known| known.has_params) {
            self.params = Outbox::new(Kind::Params);
        }
        self.run = Some(run);
        Ok(())
    }

    fn send(&mut self) -> Result<(), MlflowError> {
        let Some(run) = &self.run else { return Ok(()) };
        let has_params = self.params.unsent() == 0;
        let params = self.params.send(&self.api, &run.run_id);
        if !has_params && self.params.unsent() == 0 {
            self.save_reference(run, true)?;
        }
        if matches!(params, Err(MlflowError::Deleted { .. })) {
            return params;
        }
        combine(params, self.metrics.send(&self.api, &run.run_id))
    }

    fn save_reference(&self, run: &ApiRun, has_params: bool) -> Result<(), MlflowError> {
        let reference = RunReference { server: self.api.server(), run_id: run.run_id.clone(), has_params };
        let text = serde_json::to_vec_pretty(&reference).unwrap_or_default();
        write_atomic(&RunReference::path(&self.folder), &text).map_err(MlflowError::SaveReference)
    }

    /// Attempts all remaining requests, even after a failure.
    fn finish(&mut self, manifest: &Manifest, wants_artifacts: bool) -> Result<(), MlflowError> {
        let flushed = self.flush();
        if self.is_deleted {
            return flushed;
        }
        let n = self.metrics.unsent();
        let flushed =
            if n == 0 { flushed } else { Err(MlflowError::Unsent { n, source: flushed.err().map(Box::new) }) };
        let Some(run) = &self.run else { return flushed };
        let mut tags = Outbox::new(Kind::Tags);
        tags.extend(manifest_tags(manifest));
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

    /// Stores the present files of the run folder.
    fn store(&self, run: &ApiRun) -> Result<(), MlflowError> {
        let is_uploaded = |name: &&str| !(self.is_redacted && *name == PIPELINE);
        let present = ARTIFACTS.into_iter().filter(is_uploaded).filter(|name| self.folder.join(name).is_file());
        present.map(|name| self.api.store(run, name, &self.folder.join(name))).fold(Ok(()), Result::and)
    }
}

/// Contents of `mlflow.json` in the run folder.
#[derive(Serialize, Deserialize)]
struct RunReference {
    server: String,
    run_id: String,
    /// True if the parameters were sent.
    #[serde(default = "default_true")]
    has_params: bool,
}

fn default_true() -> bool {
    true
}

impl RunReference {
    fn path(folder: &Path) -> PathBuf {
        folder.join("mlflow.json")
    }
}

/// Options as parameters, each name once.
fn option_entries(run: &RunInfo) -> Vec<Entry> {
    let mut names = std::collections::BTreeSet::new();
    let trainable = ("trainable".to_owned(), run.trainable.to_string());
    let options = run.options.iter().cloned().chain([trainable]);
    let options = options.filter(|(name, _)| names.insert(name.clone()));
    options.map(|(name, value)| Entry { name, content: Content::Text(value) }).collect()
}

fn manifest_tags(manifest: &Manifest) -> Vec<Entry> {
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

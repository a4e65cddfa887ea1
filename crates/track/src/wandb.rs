//! Tracker that writes offline runs for Weights & Biases, without an account or a connection; `wandb sync` uploads
//! them.

mod log;
mod proto;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::Local;
use prost::Message;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::folder::read_json;
use crate::names::{NameRule, distinct_ignoring_case};
use crate::scalars::{evaluation_scalars, since_epoch, step_scalars};
use crate::{EvaluationRecord, Manifest, RunInfo, Status, StepRecord, TrackError, Tracker, WriteError, write_atomic};
use log::Log;
use proto::{Exit, Header, History, Item, Items, Kind, Record, Run, Step, Timestamp, Version};

/// Offline run of Weights & Biases, which `wandb sync` uploads during or after training.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WandbConfig {
    /// Parent folder of `wandb/offline-run-TIME-ID`; the run folder if not given.
    #[schemars(with = "Option<String>")]
    pub folder: Option<PathBuf>,
    /// Name of the project; the pipeline's name if not given.
    pub project: Option<String>,
    /// User or team; that of the uploading account if not given.
    pub entity: Option<String>,
    /// Name of the run; the name of its folder if not given.
    pub run_name: Option<String>,
    /// Group of the run.
    pub group: Option<String>,
    /// Tags of the run.
    pub tags: Vec<String>,
}

/// Tracker that writes an offline run; see [`WandbConfig`].
///
/// The folder is stored in `wandb.json` of the run folder. A resumed run continues the same file, without the steps
/// that are repeated.
#[derive(Debug)]
pub struct Wandb {
    config: WandbConfig,
    session: Option<Session>,
}

impl Wandb {
    /// Creates a tracker with the given options; nothing is written before [`start`](Tracker::start).
    pub fn new(config: WandbConfig) -> Self {
        Self { config, session: None }
    }

    fn run(&self, run: &RunInfo, reference: &RunReference) -> Run {
        let options = run.options.iter().map(|(key, value)| Item::new(key, &parse_value(value)));
        let trainable = Item::new("trainable", &json!(run.trainable));
        let text = |option: &Option<String>| option.clone().unwrap_or_default();
        Run {
            run_id: reference.run_id.clone(),
            entity: text(&self.config.entity),
            project: PROJECTS.rename(self.config.project.as_deref().unwrap_or(&run.name)),
            config: Some(Items { update: options.chain([trainable]).collect() }),
            group: text(&self.config.group),
            display_name: self.config.run_name.clone().unwrap_or_else(|| run.id.clone()),
            tags: self.config.tags.iter().filter(|tag| !tag.is_empty()).map(|tag| TAGS.rename(tag)).collect(),
            start_time: Some(timestamp(since_epoch())),
        }
    }

    fn session(&mut self) -> Result<&mut Session, TrackError> {
        self.session.as_mut().ok_or_else(|| "the tracker was not started".into())
    }
}

/// Names of projects, by the rule of W&B's own client.
const PROJECTS: NameRule =
    NameRule { allows: |c| !c.is_control() && !"/\\#?%:".contains(c), is_path: false, max_chars: 128 };
const TAGS: NameRule = NameRule { allows: |c| !c.is_control(), is_path: false, max_chars: 64 };

impl Tracker for Wandb {
    fn start(&mut self, run: &RunInfo) -> Result<(), TrackError> {
        let reference_path = run.folder.join("wandb.json");
        let previous = read_json::<RunReference>(&reference_path)
            .and_then(|reference| Some((reference.records_until(run.resumed_at)?, reference)));
        let (kinds, reference) = match previous {
            Some(previous) => previous,
            None => {
                let reference = RunReference::new(&self.config.folder.as_deref().unwrap_or(&run.folder).join("wandb"));
                let kinds = vec![Kind::Header(header()), Kind::Run(self.run(run, &reference))];
                (kinds, reference)
            }
        };
        let files = reference.folder.join("files");
        std::fs::create_dir_all(&files).map_err(|source| WriteError { path: files, source })?;
        self.session = Some(Session::write(&reference.path(), kinds)?);
        write_atomic(&reference_path, &serde_json::to_vec_pretty(&reference)?)?;
        // The notes of `wandb sync` are about the previous contents of the file.
        for note in ["wandb.synced", "wandb.syncstate"] {
            let _ = std::fs::remove_file(reference.path().with_extension(note));
        }
        Ok(())
    }

    fn step(&mut self, record: &StepRecord) -> Result<(), TrackError> {
        self.session()?.add(record.step, step_scalars(record))
    }

    fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), TrackError> {
        self.session()?.add(record.step, evaluation_scalars(record))
    }

    fn finish(&mut self, manifest: &Manifest) -> Result<(), TrackError> {
        let code = match manifest.status {
            Status::Finished => 0,
            Status::Failed { .. } => 1,
            Status::Interrupted => 255,
        };
        self.session()?.finish(code)?;
        self.session = None;
        Ok(())
    }
}

#[derive(Debug)]
struct Session {
    log: Log,
    written: i64,
    started: Duration,
    /// Scalars of the last step, which those of an evaluation may join: one row per step.
    row: Option<(u64, BTreeMap<String, f64>)>,
    /// Last value of each scalar.
    summary: BTreeMap<String, Value>,
}

impl Session {
    /// Creates a file with these records.
    fn write(path: &Path, kinds: Vec<Kind>) -> Result<Self, WriteError> {
        let (mut summary, mut started) = (BTreeMap::new(), since_epoch());
        for kind in &kinds {
            match kind {
                Kind::Run(Run { start_time: Some(time), .. }) => {
                    started = Duration::new(time.seconds.unsigned_abs(), time.nanos.unsigned_abs());
                }
                Kind::History(history) => {
                    let value = |item: &Item| Some((item.key.clone(), serde_json::from_str(&item.value_json).ok()?));
                    summary.extend(history.item.iter().filter_map(value));
                }
                _ => {}
            }
        }
        let encode = |(num, kind)| Record { num, kind: Some(kind) }.encode_to_vec();
        let records: Vec<Vec<u8>> = (1..).zip(kinds).map(encode).collect();
        let log = Log::create(path, records.iter().map(Vec::as_slice))?;
        Ok(Self { log, written: records.len() as i64, started, row: None, summary })
    }

    fn append(&mut self, kind: Kind) -> Result<(), TrackError> {
        self.written += 1;
        Ok(self.log.append(&Record { num: self.written, kind: Some(kind) }.encode_to_vec())?)
    }

    fn add(&mut self, step: u64, numbers: Vec<(String, f64)>) -> Result<(), TrackError> {
        if self.row.as_ref().is_some_and(|&(last, _)| last != step) {
            self.write_row()?;
        }
        let (names, values): (Vec<String>, Vec<f64>) = numbers.into_iter().unzip();
        // W&B ignores case in names.
        let numbers = distinct_ignoring_case(&names).into_iter().zip(values);
        self.row.get_or_insert_with(|| (step, BTreeMap::new())).1.extend(numbers);
        Ok(())
    }

    /// Writes the pending row, and the summary after an evaluation.
    fn write_row(&mut self) -> Result<(), TrackError> {
        let Some((step, numbers)) = self.row.take() else { return Ok(()) };
        let has_metrics = numbers.keys().any(|key| key.starts_with("eval/"));
        let internal = [
            ("_step".to_owned(), json!(step)),
            ("_timestamp".to_owned(), json!(since_epoch().as_secs_f64())),
            ("_runtime".to_owned(), json!(self.runtime().as_secs_f64())),
        ];
        let row: Vec<(String, Value)> =
            numbers.into_iter().map(|(key, value)| (key, json!(value))).chain(internal).collect();
        let item = row.iter().map(|(key, value)| Item::new(key, value)).collect();
        self.summary.extend(row);
        let step = Some(Step { num: i64::try_from(step).unwrap_or(i64::MAX) });
        self.append(Kind::History(History { item, step }))?;
        if has_metrics { self.write_summary() } else { Ok(()) }
    }

    fn write_summary(&mut self) -> Result<(), TrackError> {
        let update = self.summary.iter().map(|(key, value)| Item::new(key, value)).collect();
        self.append(Kind::Summary(Items { update }))
    }

    fn finish(&mut self, exit_code: i32) -> Result<(), TrackError> {
        self.write_row()?;
        self.write_summary()?;
        let runtime = i32::try_from(self.runtime().as_secs()).unwrap_or(i32::MAX);
        self.append(Kind::Exit(Exit { exit_code, runtime }))
    }

    fn runtime(&self) -> Duration {
        since_epoch().saturating_sub(self.started)
    }
}

/// Contents of `wandb.json` in the run folder.
#[derive(Debug, Serialize, Deserialize)]
struct RunReference {
    run_id: String,
    /// Folder of the offline run.
    folder: PathBuf,
}

impl RunReference {
    fn new(parent: &Path) -> Self {
        let run_id = random_id();
        let time = Local::now().format("%Y%m%d_%H%M%S");
        Self { folder: parent.join(format!("offline-run-{time}-{run_id}")), run_id }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(format!("run-{}.wandb", self.run_id))
    }

    /// Records of the steps up to this one; none if the file is missing.
    fn records_until(&self, last_step: u64) -> Option<Vec<Kind>> {
        let content = std::fs::read(self.path()).ok()?;
        let is_before = |kind: &Kind| match kind {
            Kind::Header(_) | Kind::Run(_) => true,
            Kind::History(history) => history.step.as_ref().is_some_and(|step| step.num.unsigned_abs() <= last_step),
            Kind::Summary(_) | Kind::Exit(_) => false,
        };
        let kinds = log::records(&content).into_iter().filter_map(|record| Record::decode(&*record).ok()?.kind);
        let kinds: Vec<Kind> = kinds.filter(is_before).collect();
        kinds.iter().any(|kind| matches!(kind, Kind::Run(_))).then_some(kinds)
    }
}

fn header() -> Header {
    // Lowest W&B version that reads such a file, as its own client writes it.
    let (producer, min_consumer) = (format!("sepal {}", env!("CARGO_PKG_VERSION")), "0.70.0".to_owned());
    Header { version_info: Some(Version { producer, min_consumer }) }
}

/// Eight letters and digits, as in W&B's own ids.
fn random_id() -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut hash = RandomState::new().hash_one(since_epoch());
    let letter = |_| {
        let letter = ALPHABET[(hash % 36) as usize];
        hash /= 36;
        char::from(letter)
    };
    (0..8).map(letter).collect()
}

fn timestamp(time: Duration) -> Timestamp {
    Timestamp { seconds: time.as_secs() as i64, nanos: time.subsec_nanos() as i32 }
}

/// Value of an option as a number, a boolean or text.
fn parse_value(value: &str) -> Value {
    match serde_json::from_str(value) {
        Ok(value @ (Value::Bool(_) | Value::Number(_) | Value::Null)) => value,
        _ => json!(value),
    }
}

#[cfg(test)]
mod tests;

//! Runs for Weights & Biases, written without an account and without a connection; `wandb sync` sends them.

mod log;
mod proto;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Zoned;
use prost::Message;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::names::{Rule, apart_without_case};
use crate::scalars::{of_evaluation, of_step, since_epoch};
use crate::{EvaluationRecord, Manifest, RunInfo, Status, StepRecord, TrackError, Tracker, WriteError, write_whole};
use log::Log;
use proto::{Exit, Header, History, Item, Items, Kind, Record, Run, Step, Timestamp, Version};

/// An offline run of Weights & Biases; `wandb sync` sends it, then or later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WandbConfig {
    /// The folder that gets the folder `wandb` with `offline-run-TIME-ID` in it; the run's own if not given.
    #[schemars(with = "Option<String>")]
    pub folder: Option<PathBuf>,
    /// The project; the pipeline's name if not given.
    pub project: Option<String>,
    /// The user or team; that of the account that sends it if not given.
    pub entity: Option<String>,
    /// What the run is called there; the name of its folder if not given.
    pub run_name: Option<String>,
    /// The group that the run belongs to.
    pub group: Option<String>,
    /// Tags of the run.
    pub tags: Vec<String>,
}

/// Writes an offline run; see [`WandbConfig`].
///
/// The folder is remembered in `wandb.json` of the run's folder. A run that goes on goes on in the same file, without the
/// steps that are made again.
#[derive(Debug)]
pub struct Wandb {
    config: WandbConfig,
    session: Option<Session>,
}

impl Wandb {
    /// With these options; nothing is written before [`start`](Tracker::start).
    pub fn new(config: WandbConfig) -> Self {
        Self { config, session: None }
    }

    fn run(&self, run: &RunInfo, mark: &Mark) -> Run {
        let options = run.options.iter().map(|(key, value)| Item::new(key, &plain(value)));
        let trainable = Item::new("trainable", &json!(run.trainable));
        let text = |option: &Option<String>| option.clone().unwrap_or_default();
        Run {
            run_id: mark.run_id.clone(),
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
        self.session.as_mut().ok_or_else(|| "no run was begun".into())
    }
}

/// Names of projects, as W&B's own client checks them.
const PROJECTS: Rule = Rule { allows: |c| !c.is_control() && !"/\\#?%:".contains(c), is_path: false, max_chars: 128 };
const TAGS: Rule = Rule { allows: |c| !c.is_control(), is_path: false, max_chars: 64 };

impl Tracker for Wandb {
    fn start(&mut self, run: &RunInfo) -> Result<(), TrackError> {
        let marks = run.folder.join("wandb.json");
        let before = Mark::read(&marks).and_then(|mark| Some((mark.records_until(run.resumed_at)?, mark)));
        let (kinds, mark) = match before {
            Some(before) => before,
            None => {
                let mark = Mark::new(&self.config.folder.as_deref().unwrap_or(&run.folder).join("wandb"));
                let begun = vec![Kind::Header(header()), Kind::Run(self.run(run, &mark))];
                (begun, mark)
            }
        };
        let files = mark.folder.join("files");
        std::fs::create_dir_all(&files).map_err(|source| WriteError { path: files, source })?;
        self.session = Some(Session::write(&mark.path(), kinds)?);
        write_whole(&marks, &serde_json::to_vec_pretty(&mark)?)?;
        // What `wandb sync` notes beside the file is of the file as it was.
        for note in ["wandb.synced", "wandb.syncstate"] {
            let _ = std::fs::remove_file(mark.path().with_extension(note));
        }
        Ok(())
    }

    fn step(&mut self, record: &StepRecord) -> Result<(), TrackError> {
        self.session()?.add(record.step, of_step(record))
    }

    fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), TrackError> {
        self.session()?.add(record.step, of_evaluation(record))
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

/// An open file.
#[derive(Debug)]
struct Session {
    log: Log,
    written: i64,
    started: Duration,
    /// The numbers of the last step, which those of an evaluation may join: one row per step.
    row: Option<(u64, BTreeMap<String, f64>)>,
    /// The last value of each number.
    summary: BTreeMap<String, Value>,
}

impl Session {
    /// A file with these records.
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
        // W&B takes names that differ in case for the same.
        let numbers = apart_without_case(&names).into_iter().zip(values);
        self.row.get_or_insert_with(|| (step, BTreeMap::new())).1.extend(numbers);
        Ok(())
    }

    /// Writes the pending row, and what is the latest with it.
    fn write_row(&mut self) -> Result<(), TrackError> {
        let Some((step, numbers)) = self.row.take() else { return Ok(()) };
        let has_metrics = numbers.keys().any(|key| key.starts_with("eval/"));
        let own = [
            ("_step".to_owned(), json!(step)),
            ("_timestamp".to_owned(), json!(since_epoch().as_secs_f64())),
            ("_runtime".to_owned(), json!(self.runtime().as_secs_f64())),
        ];
        let row: Vec<(String, Value)> =
            numbers.into_iter().map(|(key, value)| (key, json!(value))).chain(own).collect();
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

/// What is kept in the run's folder.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    run_id: String,
    /// The offline run's folder.
    folder: PathBuf,
}

impl Mark {
    /// Of a new run in this folder.
    fn new(parent: &Path) -> Self {
        let run_id = random_id();
        let time = Zoned::now().strftime("%Y%m%d_%H%M%S");
        Self { folder: parent.join(format!("offline-run-{time}-{run_id}")), run_id }
    }

    /// None if there is none, or none that can be read: then the run is a new one.
    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    fn path(&self) -> PathBuf {
        self.folder.join(format!("run-{}.wandb", self.run_id))
    }

    /// What was written of the steps up to this one; none if there is no such file.
    fn records_until(&self, last_step: u64) -> Option<Vec<Kind>> {
        let content = std::fs::read(self.path()).ok()?;
        let is_kept = |kind: &Kind| match kind {
            Kind::Header(_) | Kind::Run(_) => true,
            Kind::History(history) => history.step.as_ref().is_some_and(|step| step.num.unsigned_abs() <= last_step),
            Kind::Summary(_) | Kind::Exit(_) => false,
        };
        let kinds = log::records(&content).into_iter().filter_map(|record| Record::decode(&*record).ok()?.kind);
        let kept: Vec<Kind> = kinds.filter(is_kept).collect();
        kept.iter().any(|kind| matches!(kind, Kind::Run(_))).then_some(kept)
    }
}

fn header() -> Header {
    // The version of W&B from which on such a file can be read, as its own client writes it.
    let (producer, min_consumer) = (format!("sepal {}", env!("CARGO_PKG_VERSION")), "0.70.0".to_owned());
    Header { version_info: Some(Version { producer, min_consumer }) }
}

/// Eight letters and digits, as W&B's own ids.
fn random_id() -> String {
    const SIGNS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rest = RandomState::new().hash_one(since_epoch());
    let sign = |_| {
        let sign = SIGNS[(rest % 36) as usize];
        rest /= 36;
        char::from(sign)
    };
    (0..8).map(sign).collect()
}

fn timestamp(time: Duration) -> Timestamp {
    Timestamp { seconds: time.as_secs() as i64, nanos: time.subsec_nanos() as i32 }
}

/// An option's value as what it says: a number, true or false, or text.
fn plain(value: &str) -> Value {
    match serde_json::from_str(value) {
        Ok(value @ (Value::Bool(_) | Value::Number(_) | Value::Null)) => value,
        _ => json!(value),
    }
}

#[cfg(test)]
mod tests;

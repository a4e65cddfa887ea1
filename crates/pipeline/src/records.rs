//! Records of a run: lines of `metrics.jsonl`, and trackers.

use sepal_plugin::{Registry, Track, TrackContext};
use sepal_track::{
    EvaluationRecord, Manifest, MetricsLog, REDACTED, RunFolder, RunInfo, StepRecord, Tracker, Trackers, WriteError,
    is_secret,
};
use sepal_train::Recorder;
use serde_json::Value;

use crate::error::{AssembleError, RecordError};
use sepal_config::spec::{PluginSpec, Spec};

pub(crate) type NamedTrackers = Vec<(String, Box<dyn Tracker>)>;

pub(crate) struct Records {
    log: MetricsLog,
    /// Trackers that wait for the start of the training.
    waiting: NamedTrackers,
    trackers: Option<Trackers>,
}

impl Records {
    /// Opens the records of the run folder and locks it for this process.
    pub(crate) fn open(folder: &RunFolder, trackers: NamedTrackers) -> Result<Self, RecordError> {
        Ok(Self { log: folder.metrics().map_err(RecordError::Write)?, waiting: trackers, trackers: None })
    }

    /// Removes the records after `steps`; see [`MetricsLog::truncate_after`].
    pub(crate) fn truncate_after(&mut self, steps: u64, is_evaluated: bool) -> Result<(), RecordError> {
        self.log.truncate_after(steps, is_evaluated).map_err(RecordError::Write)
    }

    pub(crate) fn start_trackers(&mut self, run: &RunInfo) {
        let trackers = std::mem::take(&mut self.waiting);
        self.trackers = Some(Trackers::start_with_defaults(trackers, run));
    }

    /// Ends the trackers and waits a limited time for them.
    pub(crate) fn finish(self, manifest: &Manifest) {
        if let Some(trackers) = self.trackers {
            // Late trackers have been warned about.
            let _ = trackers.finish(manifest);
        }
    }
}

impl Recorder for Records {
    fn step(&mut self, record: &StepRecord) -> Result<(), WriteError> {
        if let Some(trackers) = &mut self.trackers {
            trackers.step(record);
        }
        self.log.step(record)
    }

    fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), WriteError> {
        if let Some(trackers) = &mut self.trackers {
            trackers.evaluation(record);
        }
        self.log.evaluation(record)
    }

    fn sync(&self) -> Result<(), WriteError> {
        self.log.sync()
    }
}

pub(crate) fn trackers(spec: &Spec, registry: &Registry) -> Result<NamedTrackers, AssembleError> {
    let build = |tracker: &PluginSpec| {
        let built = registry.build::<Track>(&tracker.name, tracker.options(), &mut TrackContext {});
        Ok((tracker.name.clone(), built.map_err(|source| AssembleError::Build { key: "track", source })?))
    };
    spec.track.iter().map(build).collect()
}

pub(crate) fn run_info(spec: &Spec, folder: &RunFolder, trainable: usize, resumed_at: u64) -> RunInfo {
    let mut options = Vec::new();
    flatten("", &serde_json::to_value(spec).unwrap_or_default(), &mut options);
    let id = folder.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    RunInfo {
        name: spec.name.clone(),
        id,
        // A resumed run may have another working directory.
        folder: std::path::absolute(folder.path()).unwrap_or_else(|_| folder.path().to_owned()),
        options,
        trainable: trainable as u64,
        resumed_at,
    }
}

/// Adds the leaves of a value with their keys, for example `train.seed` and `data.train.0`.
fn flatten(key: &str, value: &Value, options: &mut Vec<(String, String)>) {
    let child = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        value if is_secret(key) && !value.is_null() => options.push((key.to_owned(), REDACTED.to_owned())),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| flatten(&child(name), value, options)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| flatten(&child(&i.to_string()), value, options));
        }
        Value::String(text) => options.push((key.to_owned(), text.clone())),
        other => options.push((key.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn flatten_lists_leaves_by_key_and_withholds_secrets() {
        let mut options = Vec::new();
        flatten(
            "",
            &json!({ "train": { "seed": 7 }, "data": { "train": ["a", null] }, "swarm": { "ticket": "sepal1" } }),
            &mut options,
        );
        let expected =
            [("train.seed", "7"), ("data.train.0", "a"), ("data.train.1", "null"), ("swarm.ticket", REDACTED)];
        assert_eq!(options, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }
}

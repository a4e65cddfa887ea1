//! What a run says of itself as it goes: lines of `metrics.jsonl`, and whoever follows it elsewhere.

use sepal_plugin::{Registry, Track, TrackContext};
use sepal_track::{
    EvaluationRecord, Manifest, MetricsLog, RunFolder, RunInfo, StepRecord, Tracker, Trackers, WITHHELD, is_secret,
};
use serde_json::Value;

use crate::error::RunError;
use crate::spec::{PluginSpec, Spec};

/// Trackers with the names that warnings call them by.
pub(crate) type NamedTrackers = Vec<(String, Box<dyn Tracker>)>;

/// The records of one run.
pub(crate) struct Records {
    log: MetricsLog,
    trackers: Option<Trackers>,
}

impl Records {
    /// Those of the run in this folder, which is this process's from now on.
    pub(crate) fn open(folder: &RunFolder) -> Result<Self, RunError> {
        Ok(Self { log: folder.metrics().map_err(RunError::Write)?, trackers: None })
    }

    /// Cuts off what will be written again; see [`MetricsLog::cut_behind`].
    pub(crate) fn cut_behind(&mut self, steps: u64, is_evaluated: bool) -> Result<(), RunError> {
        self.log.cut_behind(steps, is_evaluated).map_err(RunError::Write)
    }

    /// Has the trackers follow from here on.
    pub(crate) fn follow(&mut self, trackers: NamedTrackers, run: &RunInfo) {
        self.trackers = Some(Trackers::start_with_defaults(trackers, run));
    }

    pub(crate) fn step(&mut self, record: &StepRecord) -> Result<(), RunError> {
        if let Some(trackers) = &mut self.trackers {
            trackers.step(record);
        }
        self.log.step(record).map_err(RunError::Write)
    }

    pub(crate) fn evaluation(&mut self, record: &EvaluationRecord) -> Result<(), RunError> {
        if let Some(trackers) = &mut self.trackers {
            trackers.evaluation(record);
        }
        self.log.evaluation(record).map_err(RunError::Write)
    }

    /// Waits until everything is on the disk.
    pub(crate) fn sync(&self) -> Result<(), RunError> {
        self.log.sync().map_err(RunError::Write)
    }

    /// Tells the trackers that the run ended, and waits a while for them.
    pub(crate) fn finish(self, manifest: &Manifest) {
        if let Some(trackers) = self.trackers {
            // Whoever is late was warned of.
            let _ = trackers.finish(manifest);
        }
    }
}

/// The trackers of a pipeline, with their names.
pub(crate) fn trackers(spec: &Spec, registry: &Registry) -> Result<NamedTrackers, RunError> {
    let build = |tracker: &PluginSpec| {
        let built = registry.build::<Track>(&tracker.name, tracker.options(), &mut TrackContext {});
        Ok((tracker.name.clone(), built.map_err(|source| RunError::Build { key: "track", source })?))
    };
    spec.track.iter().map(build).collect()
}

/// What trackers are told when the run begins.
pub(crate) fn run_info(spec: &Spec, folder: &RunFolder, trainable: usize, resumed_at: u64) -> RunInfo {
    let mut options = Vec::new();
    flatten("", &serde_json::to_value(spec).unwrap_or_default(), &mut options);
    let id = folder.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    RunInfo {
        name: spec.name.clone(),
        id,
        // They may go on in another process, begun elsewhere.
        folder: std::path::absolute(folder.path()).unwrap_or_else(|_| folder.path().to_owned()),
        options,
        trainable: trainable as u64,
        resumed_at,
    }
}

/// One value to a key: `train.seed`, `data.train.0`.
fn flatten(key: &str, value: &Value, options: &mut Vec<(String, String)>) {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        // What is shown elsewhere admits nobody to the swarm.
        value if is_secret(key) && !value.is_null() => options.push((key.to_owned(), WITHHELD.to_owned())),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| flatten(&below(name), value, options)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| flatten(&below(&i.to_string()), value, options));
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
    fn options_are_one_value_to_a_key() {
        let mut options = Vec::new();
        flatten(
            "",
            &json!({ "train": { "seed": 7 }, "data": { "train": ["a", null] }, "swarm": { "ticket": "sepal1" } }),
            &mut options,
        );
        let expected =
            [("train.seed", "7"), ("data.train.0", "a"), ("data.train.1", "null"), ("swarm.ticket", WITHHELD)];
        assert_eq!(options, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }
}

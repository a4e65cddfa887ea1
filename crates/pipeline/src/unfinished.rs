//! Which run is gone on with, and whether it is the same.

use std::path::{Path, PathBuf};

use sepal_plugin::Registry;
use sepal_track::{Manifest, Status};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::RunError;
use crate::load::Layers;
use crate::run_checkpoint::{NO_CHECKPOINT, has_checkpoint};
use crate::spec::Spec;
use crate::train::is_by_time;

/// Keys that change nothing of what is trained, and may differ in what goes on.
const FREE: [&[&str]; 10] = [
    &["checkpoint"],
    &["output", "folder"],
    &["swarm"],
    &["track"],
    &["loader", "prefetch"],
    &["model", "device"],
    &["model", "local_blocks"],
    &["model", "source"],
    &["train", "max_minutes"],
    &["train", "threads"],
];

/// The newest run of this pipeline, by its name and by all options that decide what is trained, that did not end well and
/// has something to go on from.
pub fn unfinished_run(spec: &Spec, registry: &Registry) -> Option<PathBuf> {
    let entries = std::fs::read_dir(&spec.output.folder).into_iter().flatten().flatten();
    let is_of_name = |path: &PathBuf| {
        let stamp = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(&spec.name));
        stamp.is_some_and(is_stamp)
    };
    let is_unfinished = |path: &PathBuf| {
        let finished = Manifest::read(path).is_ok_and(|manifest| manifest.status == Status::Finished);
        !finished && has_checkpoint(path)
    };
    let is_same = |path: &PathBuf| pipeline_of(path, registry).is_ok_and(|old| check_same(path, &old, spec).is_ok());
    entries.map(|entry| entry.path()).filter(is_of_name).filter(is_unfinished).filter(is_same).max()
}

/// What follows the name in that of a run's folder: `-20261125-134019`, and `-1` if there was one already.
fn is_stamp(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let digits = |part: &str, len: usize| part.len() == len && part.bytes().all(|byte| byte.is_ascii_digit());
    match parts.as_slice() {
        ["", day, time, rest @ ..] => {
            digits(day, 8) && digits(time, 6) && rest.len() < 2 && rest.iter().all(|part| digits(part, part.len()))
        }
        _ => false,
    }
}

/// A run that is complete has nothing to go on with, unless its time was up; nor has one that was ended too early.
pub(crate) fn check_incomplete(run: &Path) -> Result<(), RunError> {
    match Manifest::read(run) {
        Ok(manifest) if manifest.status == Status::Finished && !is_by_time(manifest.ended_early.as_deref()) => {
            let problem = "it is complete; begin a new run without `--resume`".to_owned();
            Err(RunError::Resume { path: run.into(), problem })
        }
        // Said before anything is loaded.
        _ if !has_checkpoint(run) => Err(RunError::Resume { path: run.into(), problem: NO_CHECKPOINT.to_owned() }),
        _ => Ok(()),
    }
}

/// The pipeline that a run was made from.
///
/// # Errors
/// [`RunError::Resume`] if the folder is none of a run, or holds a pipeline that is not one any more.
pub fn pipeline_of(run: &Path, registry: &Registry) -> Result<Spec, RunError> {
    let refused = |problem: String| RunError::Resume { path: run.into(), problem };
    let path = run.join("pipeline.yaml");
    let layers =
        Layers::read(&path).map_err(|_| refused("it is no folder of a run: it has no pipeline.yaml".into()))?;
    Ok(layers.load(registry).map_err(|problems| refused(problems.to_string()))?.spec)
}

/// A run of `old` may go on as `new`.
pub(crate) fn check_same(run: &Path, old: &Spec, new: &Spec) -> Result<(), RunError> {
    let mut differences = Vec::new();
    compare("", &fixed(old), &fixed(new), &mut differences);
    if differences.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "it was begun with other options ({}); run it with these, or begin a new run without `--resume`",
        differences.join(", ")
    );
    Err(RunError::Resume { path: run.into(), problem })
}

/// Of what decides what is trained: equal exactly if that is.
pub(crate) fn digest(spec: &Spec) -> String {
    hex::encode(Sha256::digest(fixed(spec).to_string()))
}

fn fixed(spec: &Spec) -> Value {
    let mut value = serde_json::to_value(spec).unwrap_or_default();
    // Of the swarm, what numbers are rounded to and in which order they are added up.
    value["swarm.with.wire_dtype"] = serde_json::to_value(spec.wire_dtype()).unwrap_or_default();
    value["swarm.with.micro_batch_tokens"] =
        serde_json::to_value(spec.swarm.remote().micro_batch_tokens).unwrap_or_default();
    for path in FREE {
        if let [above @ .., key] = path
            && let Some(fields) = above.iter().try_fold(&mut value, |value, key| value.get_mut(*key))
            && let Some(fields) = fields.as_object_mut()
        {
            fields.shift_remove(*key);
        }
    }
    value
}

/// Notes each value that differs, with both.
fn compare(key: &str, old: &Value, new: &Value, differences: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(olds), Value::Object(news)) => {
            let keys = olds.keys().chain(news.keys().filter(|key| !olds.contains_key(*key)));
            for name in keys {
                let below = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                compare(&below, &old[name], &new[name], differences);
            }
        }
        _ if old != new => differences.push(format!("`{key}` was {old}, is {new}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_other_names_are_no_runs_of_this_one() {
        for (text, expected) in [
            ("-20261125-134019", true),
            ("-20261125-134019-12", true),
            ("-4-20261125-134019", false),
            ("-20261125", false),
            ("-20261125-134019-a", false),
            ("", false),
        ] {
            assert_eq!(is_stamp(text), expected, "{text}");
        }
    }
}

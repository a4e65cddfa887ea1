//! Resuming: the run of a pipeline that can be resumed, and the options that must not change.

use std::path::{Path, PathBuf};

use sepal_config::{Layers, Spec};
use sepal_core::{ComputeFormat, WeightFormat};
use sepal_plugin::Registry;
use sepal_track::{Manifest, Status};
use sepal_train::{NO_CHECKPOINT, ended_by_time, has_checkpoint};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::ResumeError;

/// Keys that do not affect the result of training, and may differ in a resumed run.
const FREE: [&[&str]; 12] = [
    &["calibrate"],
    &["checkpoint"],
    &["data", "long_texts", "windows", "max_windows"],
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

/// Newest unfinished run of this pipeline with a checkpoint and the same options.
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

/// True for the suffix of a run's folder: `-20261125-134019`, and `-1` if that folder existed already.
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

/// Returns an error if the run is complete, unless its time was up, or has no checkpoint.
pub(crate) fn check_incomplete(run: &Path) -> Result<(), ResumeError> {
    match Manifest::read(run) {
        Ok(manifest) if manifest.status == Status::Finished && !ended_by_time(manifest.ended_early.as_deref()) => {
            let problem = "it is complete; begin a new run without `--resume`".to_owned();
            Err(ResumeError { path: run.into(), problem })
        }
        // Checked before anything is loaded.
        _ if !has_checkpoint(run) => Err(ResumeError { path: run.into(), problem: NO_CHECKPOINT.to_owned() }),
        _ => Ok(()),
    }
}

/// Reads the pipeline of a run. Runs state the format of products since there is one; earlier ones computed in fp32 on every
/// device.
///
/// # Errors
/// [`ResumeError`] if the folder is no run folder, or its pipeline is no longer valid.
pub fn pipeline_of(run: &Path, registry: &Registry) -> Result<Spec, ResumeError> {
    let refused = |problem: String| ResumeError { path: run.into(), problem };
    let path = run.join("pipeline.yaml");
    let layers =
        Layers::read(&path).map_err(|_| refused("it is no folder of a run: it has no pipeline.yaml".into()))?;
    let mut spec = layers.load(registry.catalog()).map_err(|problems| refused(problems.to_string()))?.spec;
    spec.model.compute.get_or_insert(ComputeFormat::F32);
    Ok(spec)
}

/// Returns an error if a run of `old` cannot be resumed as `new`.
pub(crate) fn check_same(run: &Path, old: &Spec, new: &Spec) -> Result<(), ResumeError> {
    let mut differences = Vec::new();
    compare("", &compared_options(old), &compared_options(new), &mut differences);
    if differences.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "it was begun with other options ({}); run it with these, or begin a new run without `--resume`",
        differences.join(", ")
    );
    Err(ResumeError { path: run.into(), problem })
}

/// Digest of the options that affect the result of training.
pub(crate) fn digest(spec: &Spec) -> String {
    let mut value = fixed_options(spec);
    few_shot(spec, &mut value);
    hex::encode(Sha256::digest(value.to_string()))
}

/// Fixed options, of which the format of products and the seed of few rows are always written.
fn compared_options(spec: &Spec) -> Value {
    let mut value = fixed_options(spec);
    value["model"]["compute"] = spec.model.compute_format().name().into();
    if let Some(rows) = &spec.data.few_shot {
        value["data"]["few_shot"]["seed"] = rows.seed.unwrap_or(spec.train.seed).into();
    }
    value
}

fn fixed_options(spec: &Spec) -> Value {
    let mut value = serde_json::to_value(spec).unwrap_or_default();
    // The wire format decides rounding, the size of micro-batches the order of summation.
    value["swarm.with.wire_dtype"] = serde_json::to_value(spec.wire_dtype()).unwrap_or_default();
    value["swarm.with.micro_batch_tokens"] =
        serde_json::to_value(spec.swarm.remote().micro_batch_tokens).unwrap_or_default();
    formats_of_numbers(spec, &mut value);
    filters(&mut value["data"]);
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

/// Writes rows drawn by the seed of the run as earlier versions did, so that the digests of their runs stay valid.
fn few_shot(spec: &Spec, value: &mut Value) {
    let Some(rows) = &spec.data.few_shot else { return };
    let Some(data) = value["data"].as_object_mut() else { return };
    if rows.seed.is_none_or(|seed| seed == spec.train.seed) {
        let members = std::mem::take(data).into_iter().map(|(key, member)| match key.as_str() {
            "few_shot" => ("rows_per_class".to_owned(), Value::from(rows.per_class)),
            _ => (key, member),
        });
        data.extend(members.collect::<Vec<_>>());
    }
}

/// Writes the formats of the blocks by their effect, so that digests of earlier runs and defaults of devices stay valid:
/// `auto` has the numbers of `f32`, and products in `f32` are not written.
fn formats_of_numbers(spec: &Spec, value: &mut Value) {
    let Some(model) = value["model"].as_object_mut() else { return };
    if spec.model.weights == WeightFormat::Auto {
        model.insert("weights".to_owned(), WeightFormat::F32.name().into());
    }
    match spec.model.compute_format() {
        ComputeFormat::F32 => drop(model.shift_remove("compute")),
        rounded => drop(model.insert("compute".to_owned(), rounded.name().into())),
    }
}

/// Writes the values of filters as texts, as earlier versions did. Digests of the rows tell filters apart.
fn filters(data: &mut Value) {
    let columns = data.get_mut("where").and_then(Value::as_object_mut);
    for value in columns.into_iter().flat_map(|columns| columns.values_mut()) {
        if !value.is_string() {
            *value = value.to_string().into();
        }
    }
    data.get_mut("otherwise").and_then(Value::as_array_mut).into_iter().flatten().for_each(filters);
}

fn compare(key: &str, old: &Value, new: &Value, differences: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(olds), Value::Object(news)) => {
            let keys = olds.keys().chain(news.keys().filter(|key| !olds.contains_key(*key)));
            for name in keys {
                let child = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                compare(&child, &old[name], &new[name], differences);
            }
        }
        _ if old != new => differences.push(format!("`{key}` was {old}, is {new}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{PIPELINE, registry, spec};

    #[test]
    fn formats_with_the_same_numbers_are_the_same_options() {
        let folder = Path::new("run");
        let plain = spec(&[]);
        for same in [&["model.weights=f32"][..], &["model.compute=f32"], &["model.device=cuda:0", "model.compute=f32"]]
        {
            let same = spec(same);
            assert!(check_same(folder, &plain, &same).is_ok() && digest(&same) == digest(&plain));
        }
        assert_eq!(digest(&spec(&["model.device=cuda:0"])), digest(&spec(&["model.compute=bf16"])));
        let others = [
            ("model.weights=int8", "`model.weights` was \"f32\", is \"int8\""),
            ("model.compute=bf16", "`model.compute` was \"f32\", is \"bf16\""),
            ("model.device=cuda:0", "`model.compute` was \"f32\", is \"bf16\""),
        ];
        for (other, expected) in others {
            let text = check_same(folder, &plain, &spec(&[other])).expect_err("another format").to_string();
            assert!(text.contains(expected), "{text}");
        }
        assert!(!fixed_options(&plain).to_string().contains("compute"), "digests of earlier runs stay valid");
    }

    #[test]
    fn filters_by_numbers_have_the_digest_of_their_texts() {
        let [number, text, other] = ["1", "'1'", "2"].map(|value| spec(&[&format!("data.where={{g: {value}}}")]));
        assert_eq!(digest(&number), digest(&text));
        assert_ne!(digest(&number), digest(&other));
        assert!(fixed_options(&number)["data"]["where"]["g"] == "1");
    }

    #[test]
    fn few_rows_by_the_seed_of_the_run_are_the_same_options() {
        let (folder, few) = (Path::new("run"), spec(&["data.few_shot={per_class: 8}", "train.seed=3"]));
        let same = spec(&["data.few_shot={per_class: 8, seed: 3}", "train.seed=3"]);
        assert!(check_same(folder, &few, &same).is_ok() && digest(&few) == digest(&same));
        let other = spec(&["data.few_shot={per_class: 8, seed: 4}", "train.seed=3"]);
        assert_ne!(digest(&few), digest(&other));
        let text = check_same(folder, &few, &other).expect_err("other rows").to_string();
        assert!(text.contains("`data.few_shot.seed` was 3, is 4"), "{text}");
    }

    #[test]
    fn run_of_an_earlier_version_with_rows_of_each_class_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let stated = PIPELINE.replace("label: label", "label: label, rows_per_class: 8");
        std::fs::write(folder.path().join("pipeline.yaml"), stated).expect("written");
        let text = pipeline_of(folder.path(), &registry()).expect_err("no run").to_string();
        assert!(text.contains("write `data.few_shot: {per_class: ROWS}`"), "{text}");
        std::fs::write(folder.path().join("metrics.jsonl"), "").expect("written");
        let old = pipeline_of(folder.path(), &registry()).expect("a pipeline");
        assert!(check_same(folder.path(), &old, &spec(&["data.few_shot={per_class: 8}"])).is_ok());
    }

    #[test]
    fn run_of_a_gpu_that_states_no_format_of_products_computed_in_fp32() {
        let folder = tempfile::tempdir().expect("a folder");
        let stated = PIPELINE.replace("source: tiny", "source: tiny, device: \"cuda:0\"");
        assert_ne!(stated, PIPELINE);
        std::fs::write(folder.path().join("pipeline.yaml"), stated).expect("written");
        let old = pipeline_of(folder.path(), &registry()).expect("a pipeline");
        let resumed = |sets: &[&str]| check_same(folder.path(), &old, &spec(sets));
        assert!(resumed(&["model.device=cuda:0", "model.compute=f32"]).is_ok() && resumed(&[]).is_ok());
        let text = resumed(&["model.device=cuda:0"]).expect_err("bf16").to_string();
        assert!(text.contains("`model.compute` was \"f32\", is \"bf16\""), "{text}");
    }

    #[test]
    fn stamp_matches_folder_suffixes_only() {
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

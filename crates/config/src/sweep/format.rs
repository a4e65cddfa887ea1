//! `model.compute: fast` in a sweep. A sweep is resumed in the formats in which it began, so its file names them.

use serde_json::Value;

use super::is_set_by;
use super::settings::Setting;
use crate::diagnose::Finding;
use crate::path::KeyPath;
use crate::schema::FAST;

/// Key of the format.
const COMPUTE: &str = "model.compute";
/// Keys on which the choice of `fast` depends.
const DECIDING: [&str; 2] = ["swarm.use", "model.device"];

/// Problem of a sweep whose file cannot name one format for `fast`: its runs set the format to `fast`, or set what decides it.
pub(super) fn undecided(pipeline: &Value, runs: &[Vec<Setting>]) -> Option<Finding> {
    let is_base_fast = pipeline["model"]["compute"] == FAST;
    runs.iter().flatten().find_map(|setting| {
        if is_fast(setting) {
            let message = "expected f32, bf16 or f16 as a format of some runs of a sweep, found `fast`";
            return Some(Finding::new(setting.place.clone(), message));
        }
        let deciding = DECIDING.into_iter().find(|key| is_set_by(key, setting)).filter(|_| is_base_fast)?;
        let message =
            format!("expected f32, bf16 or f16, because the runs of the sweep set `{deciding}`; found `fast`");
        Some(Finding::new(KeyPath::keys(COMPUTE.split('.')), message))
    })
}

/// True if the setting gives the format, by itself or in a map around it, and gives `fast`.
fn is_fast(setting: &Setting) -> bool {
    is_set_by(COMPUTE, setting) && (setting.value == FAST || setting.value["compute"] == FAST)
}

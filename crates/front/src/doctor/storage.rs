//! Folders for models and data.

use std::path::Path;

use sepal_assets::{AssetOptions, free_space};

use super::finding::Finding;
use crate::units::size;

/// Space for several small models: SmolLM2-135M is 270 MB in safetensors and 98 MB in GGUF.
const ENOUGH: u64 = 2_000_000_000;
/// Space that fetching the model of pipelines/sst2.yaml needs: 253 MB of packages, as much in pip's cache, and their joined parts.
const TOO_LITTLE: u64 = 700_000_000;

pub(super) fn cache() -> Finding {
    folder(&AssetOptions::from_env().cache, "SEPAL_CACHE", Finding::problem)
}

pub(super) fn hub_cache() -> Finding {
    folder(&AssetOptions::from_env().hub_cache, "HF_HUB_CACHE", Finding::warning)
}

fn folder(folder: &Path, variable: &str, bad: fn(String, String) -> Finding) -> Finding {
    match writable(folder) {
        Ok(()) => Finding::ok(folder.display().to_string()),
        Err(error) => bad(
            format!("{} cannot be written ({error})", folder.display()),
            format!("set {variable} to a folder that can be"),
        ),
    }
}

fn writable(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let probe = folder.join(format!(".doctor-{}", std::process::id()));
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(probe)
}

pub(super) fn space() -> Finding {
    let options = AssetOptions::from_env();
    let places = [&options.cache, &options.hub_cache];
    let least = places.into_iter().filter_map(|place| Some((free_space(place)?, place))).min();
    match least {
        Some((free, place)) => judge_space(free, place),
        None => Finding::ok("not known on this system"),
    }
}

fn judge_space(free: u64, place: &Path) -> Finding {
    let found = format!("{} free at {}", size(free), place.display());
    let fix = "make room, or set SEPAL_CACHE and HF_HUB_CACHE to folders on another disk";
    match free {
        _ if free < TOO_LITTLE => Finding::problem(found, fix),
        _ if free < ENOUGH => Finding::warning(found, fix),
        _ => Finding::ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    #[test]
    fn cache_that_is_a_file_is_a_problem() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let finding = folder(&file.path().join("below"), "SEPAL_CACHE", Finding::problem);
        assert_eq!(finding.state, State::Problem);
        assert!(finding.fix.is_some_and(|fix| fix.contains("SEPAL_CACHE")));
        let there = tempfile::tempdir().expect("a folder");
        assert_eq!(folder(&there.path().join("new"), "SEPAL_CACHE", Finding::problem).state, State::Ok);
    }

    #[test]
    fn disk_space_below_the_limits_is_a_warning_or_a_problem() {
        let state = |free| judge_space(free, Path::new("/cache")).state;
        assert_eq!([state(9_000_000_000), state(900_000_000), state(1)], [State::Ok, State::Warning, State::Problem]);
    }
}

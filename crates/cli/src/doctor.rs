//! `sepal doctor`: what this machine has, and what is missing with its fix.

use std::path::{Path, PathBuf};
use std::process::Command;

use sepal_assets::Source;

use crate::console::size;
use crate::{Failure, print};

/// One thing that was looked at.
struct Finding {
    what: &'static str,
    /// What was found, or what is wrong.
    found: String,
    /// What to do, if something is missing.
    fix: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, found: found.into(), fix: None }
    }

    fn bad(what: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what, found: found.into(), fix: Some(fix.into()) }
    }
}

pub(crate) fn doctor() -> Result<(), Failure> {
    let findings = [libtorch(), device(), memory(), cache(), python(), hub()];
    for Finding { what, found, fix } in &findings {
        let mark = if fix.is_none() { "ok  " } else { "MISS" };
        print(&format!("{mark} {what:<10} {found}"))?;
        if let Some(fix) = fix {
            print(&format!("     {:<10} -> {fix}", ""))?;
        }
    }
    Ok(())
}

/// That this program runs at all means that libtorch was found and loads.
fn libtorch() -> Finding {
    let threads = tch::get_num_threads();
    Finding::good("libtorch", format!("loaded, {threads} threads"))
}

fn device() -> Finding {
    match tch::Cuda::is_available() {
        true => Finding::good("device", format!("CPU, and {} CUDA device(s)", tch::Cuda::device_count())),
        false => Finding::good("device", "CPU (no CUDA; SEPAL_CUDA=1 just setup brings it where there is a GPU)"),
    }
}

fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    match (kilobytes("MemTotal:"), kilobytes("MemAvailable:")) {
        (Some(total), Some(free)) if free < 2_000_000 => Finding::bad(
            "memory",
            format!("{} of {} free", size(free * 1024), size(total * 1024)),
            "the default model needs about 2 GB; close other programs or serve fewer blocks here",
        ),
        (Some(total), Some(free)) => {
            Finding::good("memory", format!("{} of {} free", size(free * 1024), size(total * 1024)))
        }
        _ => Finding::good("memory", "not known on this system"),
    }
}

fn cache() -> Finding {
    let folder = sepal_assets::AssetOptions::from_env().cache;
    match writable(&folder) {
        Ok(()) => Finding::good("cache", folder.display().to_string()),
        Err(error) => Finding::bad(
            "cache",
            format!("{} cannot be written ({error})", folder.display()),
            "set SEPAL_CACHE to a folder that can be",
        ),
    }
}

fn writable(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let probe: PathBuf = folder.join(format!(".doctor-{}", std::process::id()));
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(probe)
}

fn python() -> Finding {
    let python = std::env::var("SEPAL_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    match Command::new(&python).args(["-m", "pip", "--version"]).output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Finding::good("pip", text.split(" from ").next().unwrap_or_default().trim())
        }
        _ => Finding::bad(
            "pip",
            format!("`{python} -m pip` does not run"),
            "install Python 3 with pip, or set SEPAL_PYTHON; only `pypi:` sources need it",
        ),
    }
}

fn hub() -> Finding {
    let Ok(Source::Hub(repository)) = "hub:HuggingFaceTB/SmolLM2-135M".parse::<Source>() else {
        return Finding::good("hub", "not asked");
    };
    match sepal_assets::Assets::from_env().probe_hub(&repository) {
        Ok(()) => Finding::good("hub", "reachable"),
        Err(error) => Finding::bad(
            "hub",
            error.in_one_line(),
            "`hub:` sources are passed over; name a `pypi:` source or a path after them",
        ),
    }
}

//! Processor, memory and libtorch.

use std::num::NonZero;
use std::path::{Path, PathBuf};

use sepal_server::memory::HostMemory;

use super::cuda::is_cuda_build;
use super::finding::Finding;
use crate::units::size;

/// Version of libtorch that the bindings require.
const LIBTORCH: &str = "2.13.0";
/// Peak memory of training SmolLM2-135M: 540 MB of fp32 weights, 110 MB of embeddings, 300 MB of libtorch.
const SMALL_MODEL: u64 = 2_000_000_000;
/// Memory below which its weights do not fit.
const TOO_LITTLE: u64 = 700_000_000;

/// The running program has loaded libtorch, so that only the version and the kind are checked.
pub(super) fn libtorch() -> Finding {
    let Some(folder) = library_folder(&memory_map(), "libtorch_cpu.so") else {
        return Finding::ok(format!("loaded; this program is made for {LIBTORCH}"));
    };
    judge_libtorch(&folder)
}

fn judge_libtorch(folder: &Path) -> Finding {
    let kind = if is_cuda_build(folder) { "CUDA build" } else { "CPU build" };
    let place = folder.display();
    match version_of(folder) {
        Some(version) if !version.starts_with(LIBTORCH) => Finding::warning(
            format!("{version}, {kind}, from {place}, but this program is made for {LIBTORCH}"),
            format!("`just setup` brings {LIBTORCH}; see LIBTORCH and LD_LIBRARY_PATH"),
        ),
        Some(version) => Finding::ok(format!("{version}, {kind}, from {place}")),
        None => Finding::ok(format!("{kind}, loaded from {place}; it does not say its version")),
    }
}

/// Files that this program has mapped into its memory, one per line.
pub(super) fn memory_map() -> String {
    std::fs::read_to_string("/proc/self/maps").unwrap_or_default()
}

/// Folder of the library `name` in a memory map.
pub(super) fn library_folder(maps: &str, name: &str) -> Option<PathBuf> {
    let path = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    let mut found = path.filter(|path| path.file_name().is_some_and(|file| file == name));
    found.next()?.parent().map(Path::to_owned)
}

/// Reads `build-version` (distribution) or `version.py` (Python package) above the `lib` folder.
fn version_of(folder: &Path) -> Option<String> {
    let above = folder.parent()?;
    if let Ok(text) = std::fs::read_to_string(above.join("build-version")) {
        return Some(text.trim().to_owned());
    }
    let text = std::fs::read_to_string(above.join("version.py")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(line.trim_matches(|c| c == '\'' || c == '"').to_owned())
}

pub(super) fn processor() -> Finding {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = name.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    let features = features();
    let listed = if features.is_empty() { "none of the usual extensions".to_owned() } else { features.join(", ") };
    let found = format!("{name}: {listed}");
    if cfg!(target_arch = "x86_64") && !features.contains(&"AVX2") {
        let fix = "matrix products take several times as long without AVX2; let another machine serve the blocks";
        return Finding::warning(found, fix);
    }
    let bits = if features.contains(&"bf16") { "" } else { "; no bf16 arithmetic, so matrix products stay in fp32" };
    Finding::ok(format!("{found}{bits}"))
}

fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let known = [
        ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
        ("FMA", std::arch::is_x86_feature_detected!("fma")),
        ("AVX-512", std::arch::is_x86_feature_detected!("avx512f")),
        ("VNNI", std::arch::is_x86_feature_detected!("avx512vnni")),
        ("bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
    ];
    #[cfg(target_arch = "aarch64")]
    let known = [
        ("NEON", std::arch::is_aarch64_feature_detected!("neon")),
        ("SVE", std::arch::is_aarch64_feature_detected!("sve")),
        ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let known: [(&str, bool); 0] = [];
    known.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect()
}

pub(super) fn threads() -> Finding {
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    let cores = std::thread::available_parallelism().map_or(threads, NonZero::get);
    let found = format!("{threads} for matrix products, on {cores} processors");
    if threads > cores {
        let fix = format!("set `train.threads: {cores}`, `--threads {cores}` or OMP_NUM_THREADS={cores}");
        return Finding::warning(format!("{found}: they wait for each other"), fix);
    }
    Finding::ok(found)
}

pub(super) fn memory() -> Finding {
    let Some(HostMemory { free, total }) = HostMemory::read() else {
        return Finding::ok("not known on this system");
    };
    judge_memory(free, total)
}

fn judge_memory(free: u64, total: u64) -> Finding {
    let found = format!("{} of {} free", size(free), size(total));
    let needed = size(SMALL_MODEL);
    let fix =
        format!("SmolLM2-135M takes about {needed}; close other programs, or let other machines serve its blocks");
    match free {
        _ if free < TOO_LITTLE => Finding::problem(found, fix),
        _ if free < SMALL_MODEL => Finding::warning(found, fix),
        _ => Finding::ok(format!("{found}; SmolLM2-135M takes about {needed}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    #[test]
    fn library_folder_is_read_from_the_memory_map() {
        let maps = "7f-80 r-xp 00 08:01 12   /opt/lib torch/lib/libtorch_cpu.so\n7f r-xp 00 0 0 [heap]\n";
        assert_eq!(library_folder(maps, "libtorch_cpu.so"), Some(PathBuf::from("/opt/lib torch/lib")));
        assert_eq!(library_folder(maps, "libtorch_cuda.so"), None);
    }

    #[test]
    fn library_version_is_read_from_its_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let lib = folder.path().join("lib");
        assert_eq!(version_of(&lib), None);
        std::fs::write(folder.path().join("version.py"), "__version__ = '2.13.0+cpu'\ndebug = False\n")
            .expect("written");
        assert_eq!(version_of(&lib).as_deref(), Some("2.13.0+cpu"));
        std::fs::write(folder.path().join("build-version"), "2.12.1\n").expect("written");
        assert_eq!(version_of(&lib).as_deref(), Some("2.12.1"));
    }

    #[test]
    fn libtorch_of_each_kind_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let lib = folder.path().join("lib");
        std::fs::create_dir(&lib).expect("a folder");
        std::fs::write(folder.path().join("build-version"), "2.13.0\n").expect("written");
        assert!(judge_libtorch(&lib).found.starts_with("2.13.0, CPU build, from "));
        std::fs::write(lib.join("libtorch_cuda.so"), "").expect("written");
        assert!(judge_libtorch(&lib).found.starts_with("2.13.0, CUDA build, from "));
        std::fs::write(folder.path().join("build-version"), "2.12.1\n").expect("written");
        assert_eq!(judge_libtorch(&lib).state, State::Warning);
    }

    #[test]
    fn memory_below_the_limits_is_a_warning_or_a_problem() {
        let state = |free| judge_memory(free, 16_000_000_000).state;
        assert_eq!([state(3_000_000_000), state(1_000_000_000), state(1)], [State::Ok, State::Warning, State::Problem]);
    }
}

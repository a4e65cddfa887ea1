//! CUDA: the kind of libtorch, the driver and the devices.

use std::ffi::OsStr;
use std::path::PathBuf;

use sepal_machine::nvidia_smi;

use super::finding::Finding;
use super::torch::Torch;

/// Library of the driver.
const DRIVER: &str = "libcuda.so.1";
/// Folders of the driver's library beside those of LD_LIBRARY_PATH: of distributions, of containers and of WSL.
const FOLDERS: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
];

/// Parts of a CUDA installation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Parts {
    /// True if libtorch is a CUDA build.
    is_cuda_build: bool,
    /// True if this program has loaded libtorch's CUDA library.
    is_loaded: bool,
    /// Path of the driver's library.
    driver: Option<PathBuf>,
    /// Devices that libtorch finds.
    n_devices: usize,
    /// Devices that the driver lists.
    listed: Vec<ListedDevice>,
    /// CUDA_VISIBLE_DEVICES, if it is set.
    visible: Option<String>,
}

/// Device in the driver's list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ListedDevice {
    /// Name and memory, for example `NVIDIA H200, 143156 MiB of 143771 MiB free`.
    description: String,
    driver_version: String,
}

/// Devices, or the reason why blocks are computed on the CPU only.
pub(super) fn device(torch: &Torch) -> Finding {
    let Some(report) = torch.report() else {
        return Finding::warning("not known: the engine does not start", "see the check of libtorch");
    };
    judge(&Parts {
        is_cuda_build: torch.is_cuda_build(),
        is_loaded: report.has_cuda_library,
        driver: driver(&library_folders(std::env::var_os("LD_LIBRARY_PATH").as_deref())),
        n_devices: report.cuda_devices,
        listed: list_devices(),
        visible: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
    })
}

fn judge(parts: &Parts) -> Finding {
    let has_driver = parts.driver.is_some() || !parts.listed.is_empty();
    match (parts.is_cuda_build, has_driver) {
        (false, false) => Finding::ok("CPU; libtorch is a CPU build, and there is no NVIDIA driver"),
        (false, true) => Finding::warning(
            format!("CPU build: libtorch cannot use {}", listed(parts)),
            "`just setup --cuda` brings a libtorch for CUDA; then build again",
        ),
        (true, _) if parts.n_devices > 0 => {
            Finding::ok(format!("CPU, and CUDA devices 0 to {}: {}", parts.n_devices - 1, listed(parts)))
        }
        (true, _) if !parts.is_loaded => Finding::warning(
            "not linked: libtorch is a CUDA build, but this program has not loaded its CUDA library",
            "run `just setup`, then build again",
        ),
        (true, false) => Finding::warning(
            format!("no driver: libtorch is a CUDA build, but {DRIVER} was not found"),
            "install the NVIDIA driver, in a container start it with its GPUs; or `just setup --cpu`",
        ),
        (true, true) => Finding::warning(
            format!(
                "no device: libtorch is a CUDA build, and it finds no device of {}{}",
                listed(parts),
                visible(parts)
            ),
            "see `nvidia-smi`, its driver must suit libtorch's CUDA; see CUDA_VISIBLE_DEVICES and access to /dev/nvidia*",
        ),
    }
}

/// Driver and devices in words.
fn listed(parts: &Parts) -> String {
    let names: Vec<&str> = parts.listed.iter().map(|device| device.description.as_str()).collect();
    match (parts.listed.first(), &parts.driver) {
        (Some(first), _) => format!("{} (driver {})", names.join("; "), first.driver_version),
        (None, Some(driver)) => format!("the driver {}, which lists no device", driver.display()),
        (None, None) => "a driver that lists no device".to_owned(),
    }
}

fn visible(parts: &Parts) -> String {
    parts.visible.as_ref().map(|value| format!("; CUDA_VISIBLE_DEVICES is `{value}`")).unwrap_or_default()
}

/// Folders that may hold the driver's library, in the order of the loader.
fn library_folders(library_path: Option<&OsStr>) -> Vec<PathBuf> {
    let stated = library_path.into_iter().flat_map(std::env::split_paths);
    stated.chain(FOLDERS.map(PathBuf::from)).collect()
}

fn driver(folders: &[PathBuf]) -> Option<PathBuf> {
    folders.iter().map(|folder| folder.join(DRIVER)).find(|path| path.is_file())
}

/// Devices that nvidia-smi lists; none if it does not run.
fn list_devices() -> Vec<ListedDevice> {
    let query = "--query-gpu=name,memory.free,memory.total,driver_version";
    nvidia_smi(&[query, "--format=csv,noheader"]).map(|text| read_list(&text)).unwrap_or_default()
}

fn read_list(text: &str) -> Vec<ListedDevice> {
    let device = |line: &str| {
        // A name may contain commas.
        let mut parts = line.rsplitn(4, ',').map(str::trim);
        let (version, total, free, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let description = format!("{name}, {free} of {total} free");
        Some(ListedDevice { description, driver_version: version.to_owned() })
    };
    text.lines().filter_map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    fn h200() -> Vec<ListedDevice> {
        read_list("NVIDIA H200, 143156 MiB, 143771 MiB, 570.86.15\n")
    }

    fn check(parts: &Parts, state: State, expected: &[&str]) {
        let finding = judge(parts);
        assert_eq!(finding.state, state, "{finding:?}");
        for part in expected {
            assert!(finding.found.contains(part), "{part} is not in {finding:?}");
        }
    }

    #[test]
    fn missing_parts_of_cuda_are_told_apart() {
        let none = Parts::default();
        check(&none, State::Ok, &["CPU build", "no NVIDIA driver"]);
        let with_gpu = Parts { listed: h200(), driver: Some("/usr/lib/libcuda.so.1".into()), ..none };
        check(
            &with_gpu,
            State::Warning,
            &["CPU build", "NVIDIA H200, 143156 MiB of 143771 MiB free (driver 570.86.15)"],
        );
        let no_driver = Parts { is_cuda_build: true, is_loaded: true, ..Parts::default() };
        check(&no_driver, State::Warning, &["no driver", "libcuda.so.1"]);
        let no_device = Parts { is_cuda_build: true, is_loaded: true, visible: Some(String::new()), ..with_gpu };
        check(&no_device, State::Warning, &["no device", "570.86.15", "CUDA_VISIBLE_DEVICES is ``"]);
        let not_linked = Parts { is_loaded: false, ..no_device.clone() };
        check(&not_linked, State::Warning, &["not linked"]);
        let devices = Parts { n_devices: 2, visible: None, ..no_device };
        check(&devices, State::Ok, &["CUDA devices 0 to 1", "NVIDIA H200"]);
    }

    #[test]
    fn driver_is_found_by_its_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let folders = library_folders(Some(folder.path().as_os_str()));
        assert_eq!(folders.first().map(PathBuf::as_path), Some(folder.path()));
        assert_eq!(driver(&folders[..1]), None);
        std::fs::write(folder.path().join(DRIVER), "").expect("written");
        assert_eq!(driver(&folders), Some(folder.path().join(DRIVER)));
    }

    #[test]
    fn devices_are_listed_line_by_line() {
        let text = "NVIDIA H200, 1 MiB, 2 MiB, 570.86.15\nA, B, 3 MiB, 4 MiB, 570.86.15\n";
        let device = |description: &str| ListedDevice {
            description: description.to_owned(),
            driver_version: "570.86.15".to_owned(),
        };
        assert_eq!(read_list(text), [device("NVIDIA H200, 1 MiB of 2 MiB free"), device("A, B, 3 MiB of 4 MiB free")]);
        assert!(read_list("No devices were found\n").is_empty());
    }
}

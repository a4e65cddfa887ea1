//! Properties of libtorch, for `sepal doctor`.

use sepal_front::EngineReport;
use sepal_machine::CUDA_LIBRARY;

use crate::output::{Failure, print_json};

pub(crate) fn write() -> Result<(), Failure> {
    // The loaded libraries are files in the memory of this process.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let report = EngineReport {
        threads: usize::try_from(tch::get_num_threads()).unwrap_or(1),
        cuda_devices: usize::try_from(tch::Cuda::device_count()).unwrap_or(0),
        has_cuda_library: maps.lines().any(|line| line.ends_with(CUDA_LIBRARY)),
    };
    print_json(&serde_json::to_string(&report)?)
}

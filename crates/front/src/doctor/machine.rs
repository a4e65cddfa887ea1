//! Processor, threads and memory.

use std::num::NonZero;

use sepal_core::{ComputeFormat, Device};
use sepal_machine::HostMemory;

use super::finding::Finding;
use super::torch::Torch;
use crate::units::size;

/// Peak memory of training SmolLM2-135M: 540 MB of fp32 weights, 110 MB of embeddings, 300 MB of libtorch.
const SMALL_MODEL: u64 = 2_000_000_000;
/// Memory below which its weights do not fit.
const TOO_LITTLE: u64 = 700_000_000;

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
    let bits = match ComputeFormat::fastest_on(Device::Cpu) {
        ComputeFormat::F32 => "; `model.compute: fast` is f32",
        _ => "",
    };
    Finding::ok(format!("{found}{bits}"))
}

fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let known = [
        ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
        ("FMA", std::arch::is_x86_feature_detected!("fma")),
        ("AVX-512", std::arch::is_x86_feature_detected!("avx512f")),
        ("VNNI", std::arch::is_x86_feature_detected!("avx512vnni")),
        ("bf16", ComputeFormat::Bf16.is_multiplied_by_cpu() == Some(true)),
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

pub(super) fn threads(torch: &Torch) -> Finding {
    let Some(report) = torch.report() else {
        return Finding::warning("not known: the engine does not start", "see the check of libtorch");
    };
    let threads = report.threads;
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
    fn memory_below_the_limits_is_a_warning_or_a_problem() {
        let state = |free| judge_memory(free, 16_000_000_000).state;
        assert_eq!([state(3_000_000_000), state(1_000_000_000), state(1)], [State::Ok, State::Warning, State::Problem]);
    }
}

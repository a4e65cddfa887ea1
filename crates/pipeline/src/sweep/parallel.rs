//! Number of runs at the same time.

use sepal_checkpoint::{Checkpoint, ends_bytes};
use sepal_machine::HostMemory;

/// Largest default number of runs at the same time. More clients of one server gain little: its batches are full.
const MOST: usize = 4;
/// Runs per core. While the server computes for one run, the others prepare batches and train their heads.
const PER_CORE: usize = 2;
/// Memory of a run besides its embeddings: rows, parameters, the optimizer and messages.
const RUN_BYTES: u64 = 256 << 20;

/// Default number of runs at the same time, and the limit that decided it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parallel {
    pub(super) runs: usize,
    pub(super) reason: &'static str,
}

/// Chooses by cores and memory: two runs for each core, at most four, which together take at most half of the free memory.
/// Each run has its own copy of the embeddings.
pub(super) fn default_parallel(members: usize, cores: usize, free: Option<u64>, run_bytes: u64) -> Parallel {
    let by_memory = free.map_or(usize::MAX, |free| usize::try_from(free / 2 / run_bytes.max(1)).unwrap_or(usize::MAX));
    let limits = [
        (members, "all of them"),
        (cores.saturating_mul(PER_CORE), "two for each core"),
        (by_memory, "as many as half of the free memory holds"),
        (MOST, "the server's batches are full with these"),
    ];
    let (runs, reason) = limits.into_iter().min_by_key(|&(runs, _)| runs).unwrap_or((1, "one"));
    Parallel { runs: runs.max(1), reason }
}

/// Memory of one run besides the blocks, in bytes.
pub(super) fn run_bytes(checkpoint: &Checkpoint) -> u64 {
    RUN_BYTES + ends_bytes(checkpoint.config())
}

pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

pub(super) fn free_memory() -> Option<u64> {
    HostMemory::read().map(|memory| memory.free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_the_smallest_limit() {
        let runs = |members, cores, free| default_parallel(members, cores, free, 1 << 30).runs;
        assert_eq!(runs(9, 2, None), 4);
        assert_eq!(runs(9, 1, None), 2);
        assert_eq!(runs(3, 64, None), 3);
        assert_eq!(runs(9, 64, Some(6 << 30)), 3);
        assert_eq!(runs(9, 64, Some(0)), 1, "one run is always tried");
        assert_eq!(default_parallel(9, 64, None, 1).reason, "the server's batches are full with these");
    }
}

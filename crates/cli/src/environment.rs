//! Settings of libraries that are read before the program begins.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Threads sleep while they wait for each other, which is decided when libgomp is loaded. Servers that share a machine
/// spin against each other otherwise: three on two cores took five times as long for a step as one, against one and a
/// half times as long; one server alone loses two per cent.
pub(crate) const SLEEPING_THREADS: (&str, &str) = ("OMP_WAIT_POLICY", "passive");

/// Memory that is freed is kept for the next call instead of given back to the system, which clears every page that it
/// gives out again: messages and activations of one step are as large as those of the last. A tensor of 16 MB went through
/// a call and back in 20 ms instead of 58.
const HEAP: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "33554432"), ("MALLOC_TRIM_THRESHOLD_", "1073741824")];

/// Starts the program anew with these settings and those of the heap, unless they are made. Only one that is not made is
/// set, so that whoever starts the program decides.
pub(crate) fn start_with(settings: &[(&str, &str)]) {
    let missing = settings.iter().chain(&HEAP).filter(|(name, _)| std::env::var_os(name).is_none());
    let missing: Vec<_> = missing.copied().collect();
    if missing.is_empty() {
        return;
    }
    let again = |program| Command::new(program).args(std::env::args_os().skip(1)).envs(missing.iter().copied()).exec();
    // Only an error comes back, and then it goes on as it is.
    match std::env::current_exe().map(again) {
        Ok(error) | Err(error) => eprintln!("could not start anew with {missing:?}: {error}"),
    }
}

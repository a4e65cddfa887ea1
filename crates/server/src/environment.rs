//! Settings of libraries that are read before a program begins, for those that start one.

/// Threads sleep while they wait for each other, which is decided when libgomp is loaded. Servers that share a machine
/// spin against each other otherwise: three on two cores took five times as long for a step as one, against one and a
/// half times as long; one server alone loses two per cent.
pub const SLEEPING_THREADS: (&str, &str) = ("OMP_WAIT_POLICY", "passive");

/// Memory that is freed is kept for the next call instead of given back to the system, which clears every page that it
/// gives out again: messages and activations of one step are as large as those of the last. A tensor of 16 MB went through
/// a call and back in 20 ms instead of 58. What is too large to be kept comes in pages of 2 MB: one of 64 MB took 67 ms
/// instead of 140.
pub const HEAP: [(&str, &str); 4] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "1073741824"),
    ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
];

//! Environment variables that libraries read at the start of a program, for the launchers of servers.

/// Passive waiting of OpenMP threads; libgomp reads it when it is loaded. Servers that share a machine compete by spinning
/// otherwise: three on two cores took five times as long for a step as one, against one and a half times with this setting.
/// A single server loses two per cent.
pub const PASSIVE_WAIT: (&str, &str) = ("OMP_WAIT_POLICY", "passive");

/// Heap settings that keep freed memory for the next call, since steps need equal amounts. The system would clear each page
/// before it is used again. The round trip of a tensor of 16 MB took 20 ms instead of 58. Larger blocks use pages of 2 MB: a
/// tensor of 64 MB took 67 ms instead of 140.
pub const HEAP: [(&str, &str); 4] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "1073741824"),
    ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
];

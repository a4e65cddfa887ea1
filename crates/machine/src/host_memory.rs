use std::path::Path;

/// Memory of this machine, or of the container if that has less, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// Available without swapping.
    pub free: u64,
    /// All memory.
    pub total: u64,
}

impl HostMemory {
    /// Reads the memory; `None` if the system does not report it.
    pub fn read() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let free = kilobytes(&text, "MemAvailable:")? << 10;
        let machine = Self { free, total: kilobytes(&text, "MemTotal:").unwrap_or(0) << 10 };
        Some(Self::of_group(Path::new("/sys/fs/cgroup")).filter(|group| group.free < free).unwrap_or(machine))
    }

    /// Memory of the control group in `folder`, if it has a limit.
    fn of_group(folder: &Path) -> Option<Self> {
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok();
        let (total, used): (u64, u64) = (read("memory.max")?, read("memory.current")?);
        // The system reclaims pages of files on demand.
        let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let files = kilobytes(&stat, "inactive_file ").unwrap_or(0);
        Some(Self { free: total.saturating_sub(used.saturating_sub(files)), total })
    }
}

/// First number after `key` at the beginning of a line.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_memory_counts_pages_of_files_as_free() {
        let folder = std::env::temp_dir().join(format!("sepal-memory-group-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("written");
        write("memory.current", "700\n");
        write("memory.max", "max\n");
        assert_eq!(HostMemory::of_group(&folder), None, "without a limit");
        write("memory.max", "1000\n");
        write("memory.stat", "anon 1\ninactive_file 300\n");
        assert_eq!(HostMemory::of_group(&folder), Some(HostMemory { free: 600, total: 1000 }));
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}

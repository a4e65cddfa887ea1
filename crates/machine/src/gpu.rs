//! Memory of GPUs, as `nvidia-smi` reports it.

use std::ffi::OsStr;
use std::process::Command;
use std::time::Duration;

use crate::bounded::output_within;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Free memory of the CUDA device `index` in bytes. `None` if `nvidia-smi` does not report it, or may mean another GPU: the
/// entries of CUDA_VISIBLE_DEVICES are counted if it is set, as libtorch counts them, and an index in another order than that
/// of the PCI bus names a GPU only if all are of one kind.
pub fn gpu_free_bytes(index: usize) -> Option<u64> {
    let variable = |name: &str| std::env::var(name).ok();
    let id = gpu_id(index, variable("CUDA_VISIBLE_DEVICES").as_deref())?;
    let is_by_bus = variable("CUDA_DEVICE_ORDER").is_some_and(|order| order == "PCI_BUS_ID");
    if is_index(&id) && !is_by_bus && !are_equal(&nvidia_smi(&["--query-gpu=name", "--format=csv,noheader"])?) {
        return None;
    }
    let query = "--query-gpu=memory.free,memory.total";
    parse(&nvidia_smi(&[query, "--format=csv,noheader,nounits", &format!("--id={id}")])?)
}

/// Runs `nvidia-smi` and returns its output; `None` if the program is missing, fails or takes longer than 5 s.
pub fn nvidia_smi(args: &[&str]) -> Option<String> {
    output(OsStr::new("nvidia-smi"), args, TIMEOUT)
}

/// Name of the CUDA device `index` for `nvidia-smi`: an index of its own or the beginning of a UUID.
fn gpu_id(index: usize, visible: Option<&str>) -> Option<String> {
    let Some(visible) = visible else { return Some(index.to_string()) };
    let ids: Vec<&str> = visible.split(',').take(index + 1).map(str::trim).collect();
    // CUDA ignores the entries after an invalid one.
    let are_valid = ids.iter().all(|id| is_index(id) || id.starts_with("GPU-"));
    ids.get(index).filter(|_| are_valid).map(|id| (*id).to_owned())
}

fn is_index(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit())
}

/// True if all lines are equal.
fn are_equal(names: &str) -> bool {
    let mut names = names.lines().map(str::trim);
    let first = names.next();
    names.all(|name| Some(name) == first)
}

/// Reads the free memory of one GPU in bytes from its free and its total memory in MiB.
fn parse(text: &str) -> Option<u64> {
    let (free, total) = text.trim().split_once(',')?;
    let bytes = |number: &str| number.trim().parse::<u64>().ok()?.checked_mul(1 << 20);
    let (free, total) = (bytes(free)?, bytes(total)?);
    (free <= total).then_some(free)
}

/// Standard output of a program that succeeds within `timeout`.
fn output(program: &OsStr, args: &[&str], timeout: Duration) -> Option<String> {
    let output = output_within(Command::new(program).args(args), timeout).ok()?;
    String::from_utf8(output.stdout).ok().filter(|_| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_one_line_of_two_numbers() {
        assert_eq!(parse("143156, 143771\n"), Some(143_156 << 20));
        for text in [
            "",
            "143156\n",
            "143156 MiB, 143771 MiB\n",
            "[N/A], [N/A]\n",
            "1, 2, 3\n",
            "1, 2\n1, 2\n",
            "2, 1\n",
            "-1, 2\n",
            "1.5, 2\n",
            "18446744073709551615, 18446744073709551615\n",
            "No devices were found\n",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn devices_are_counted_among_the_visible_ones() {
        let id = |index, visible| gpu_id(index, visible);
        assert_eq!(id(1, None).as_deref(), Some("1"));
        assert_eq!(id(1, Some("3, 2")).as_deref(), Some("2"));
        assert_eq!(id(0, Some("GPU-8932f937")).as_deref(), Some("GPU-8932f937"));
        for (index, visible) in
            [(0, ""), (2, "3,2"), (0, "-1"), (0, "MIG-1"), (0, "2 --help"), (1, "-1,0"), (2, "0,MIG-1,1")]
        {
            assert_eq!(id(index, Some(visible)), None, "{visible}");
        }
    }

    #[test]
    fn gpus_of_one_kind_have_equal_names() {
        assert!(are_equal("NVIDIA H200\n") && are_equal("NVIDIA H200\nNVIDIA H200 \n"));
        assert!(!are_equal("NVIDIA H200\nTesla T4\nNVIDIA H200\n"));
    }

    #[test]
    fn programs_that_fail_or_hang_have_no_output() {
        let run = |program: &str, args: &[&str], timeout| output(OsStr::new(program), args, timeout);
        assert_eq!(run("echo", &["1, 2"], TIMEOUT).as_deref(), Some("1, 2\n"));
        assert_eq!(run("false", &[], TIMEOUT), None);
        assert_eq!(run("no-such-program", &[], TIMEOUT), None);
        assert_eq!(run("sleep", &["60"], Duration::from_millis(20)), None);
    }
}

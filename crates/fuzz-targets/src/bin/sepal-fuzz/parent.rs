//! Starts a process for each target, watches it and keeps the inputs that end it.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use sepal_fuzz_targets::Target;

use crate::child::{COUNT, CURRENT};

/// Longest time for one input.
const INPUT_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Findings after which a target ends.
const MAX_FINDINGS: usize = 5;

/// Runs the targets, each for an equal part of `duration`, and returns the number of findings, which are files in the folder
/// `findings`.
///
/// # Errors
/// The error of a process that cannot be started or of a file that cannot be written.
pub(crate) fn run(targets: &[&Target], findings: &Path, seed: u64, duration: Duration) -> io::Result<usize> {
    let share = duration / u32::try_from(targets.len().max(1)).unwrap_or(u32::MAX);
    let mut total = 0;
    for target in targets {
        let found = run_target(target, findings, seed, share)?;
        total += found;
    }
    match total {
        0 => println!("no findings"),
        total => println!("{total} findings in {}", findings.display()),
    }
    Ok(total)
}

fn run_target(target: &Target, findings: &Path, seed: u64, share: Duration) -> io::Result<usize> {
    let deadline = Instant::now() + share;
    let (mut found, mut count) = (0, 0_u64);
    while found < MAX_FINDINGS {
        let left = deadline.saturating_duration_since(Instant::now());
        if found > 0 && left.is_zero() {
            break;
        }
        let work = tempfile::tempdir()?;
        // Other mutations than those of a process that has ended.
        let outcome = watch(start(target, work.path(), seed.wrapping_add(found as u64), left)?, work.path())?;
        let Some(problem) = outcome else {
            count += fs::read_to_string(work.path().join(COUNT))?.parse::<u64>().unwrap_or(0);
            break;
        };
        found += 1;
        fs::create_dir_all(findings)?;
        let path = findings.join(format!("{}-{seed}-{found}", target.name));
        fs::copy(work.path().join(CURRENT), &path)?;
        let output = fs::read_to_string(work.path().join("stderr")).unwrap_or_default();
        let last: Vec<&str> = output.lines().rev().take(3).collect();
        println!("{}: {problem}: {}", target.name, path.display());
        last.iter().rev().for_each(|line| println!("    {}", sepal_core::visible(line)));
    }
    println!("{}: {count} inputs, {found} findings", target.name);
    Ok(found)
}

fn start(target: &Target, work: &Path, seed: u64, duration: Duration) -> io::Result<Child> {
    fs::write(work.join(CURRENT), b"")?;
    Command::new(std::env::current_exe()?)
        .args(["--target", target.name, "--seed", &seed.to_string()])
        .args(["--seconds", &duration.as_secs_f64().to_string()])
        .arg("--work")
        .arg(work)
        // Each thread reserves address space, which is limited: on large machines their number would be a finding.
        .envs([("RAYON_NUM_THREADS", "2"), ("OMP_NUM_THREADS", "2"), ("MALLOC_ARENA_MAX", "2")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(work.join("stderr"))?)
        .spawn()
}

/// Waits for the end of a process. Returns the problem of an input that ended it or took too long, if there is one.
fn watch(mut child: Child, work: &Path) -> io::Result<Option<String>> {
    let current = work.join(CURRENT);
    let written_at = || fs::metadata(&current).and_then(|metadata| metadata.modified()).ok();
    let (mut last, mut since): (Option<SystemTime>, Instant) = (None, Instant::now());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((!status.success()).then(|| describe(status)));
        }
        let written = written_at();
        if written != last {
            (last, since) = (written, Instant::now());
        }
        if since.elapsed() > INPUT_TIMEOUT {
            child.kill()?;
            child.wait()?;
            return Ok(Some(format!("an input takes more than {} s", INPUT_TIMEOUT.as_secs())));
        }
        thread::sleep(POLL_INTERVAL);
    }
}

fn describe(status: ExitStatus) -> String {
    format!("the process ended with {status}")
}

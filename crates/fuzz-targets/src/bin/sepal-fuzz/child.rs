//! Process that runs one target until its time is over, or until an input ends it.

use std::fs;
use std::io;
use std::panic;
use std::path::Path;
use std::process::abort;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};
use sepal_fuzz_targets::{Mutator, Target};

/// Address space of the process in bytes. Larger allocations abort it.
const MEMORY: u64 = 2 << 30;

/// File with the input that is being run, and file with the number of inputs at the end.
pub(crate) const CURRENT: &str = "current";
pub(crate) const COUNT: &str = "count";

/// Runs the target on its corpus and then on mutations of it. Each input is written to the folder `work` before.
///
/// # Errors
/// The error of a file that cannot be read or written.
pub(crate) fn run(target: &Target, work: &Path, seed: u64, duration: Duration) -> io::Result<()> {
    let deadline = Instant::now() + duration;
    setrlimit(Resource::As, Rlimit { current: Some(MEMORY), maximum: Some(MEMORY) })?;
    // A panic that no parser turns into an error is a finding, in any thread.
    panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        abort();
    }));
    let corpus: Vec<Vec<u8>> = target.corpus()?.into_iter().map(|(_, input)| input).collect();
    if corpus.is_empty() {
        return Err(io::Error::other(format!("find seeds of the target {}", target.name)));
    }
    let (mut mutator, mut count) = (Mutator::new(seed), 0_u64);
    let mut unchanged = corpus.iter();
    while Instant::now() < deadline {
        let input = match unchanged.next() {
            Some(input) => input.clone(),
            None => {
                let [input, other] = [(); 2].map(|()| &corpus[mutator.below(corpus.len())]);
                mutator.mutate(input, other, target.dictionary)
            }
        };
        fs::write(work.join(CURRENT), &input)?;
        (target.run)(&input);
        count += 1;
    }
    fs::write(work.join(COUNT), count.to_string())
}

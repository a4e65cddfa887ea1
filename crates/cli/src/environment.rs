//! Settings of libraries that are read before the program begins.

use std::os::unix::process::CommandExt;
use std::process::Command;

use sepal_server::environment::HEAP;

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

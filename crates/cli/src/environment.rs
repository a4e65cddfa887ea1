//! Environment variables that libraries read before the program begins.

use std::os::unix::process::CommandExt;
use std::process::Command;

use sepal_server::environment::HEAP;

/// Restarts the program with those of `settings` and of the heap settings that the user has not set.
pub(crate) fn restart_with(settings: &[(&str, &str)]) {
    let missing = settings.iter().chain(&HEAP).filter(|(name, _)| std::env::var_os(name).is_none());
    let missing: Vec<_> = missing.copied().collect();
    if missing.is_empty() {
        return;
    }
    let exec = |program| Command::new(program).args(std::env::args_os().skip(1)).envs(missing.iter().copied()).exec();
    // `exec` returns only on an error; the program continues without the settings then.
    match std::env::current_exe().map(exec) {
        Ok(error) | Err(error) => eprintln!("could not restart with {missing:?}: {error}"),
    }
}

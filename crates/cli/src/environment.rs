//! Environment variables that libraries read before the program begins.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Restarts the program with these settings, if there are any. The front starts it with them.
pub(crate) fn restart_with(settings: &[(&str, &str)]) {
    if settings.is_empty() {
        return;
    }
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "sepal".into());
    let arguments: Vec<_> = arguments.collect();
    let exec = |program| Command::new(program).arg0(&name).args(&arguments).envs(settings.iter().copied()).exec();
    // `exec` returns only on an error; the program continues without the settings then.
    match std::env::current_exe().map(exec) {
        Ok(error) | Err(error) => eprintln!("could not restart with {settings:?}: {error}"),
    }
}

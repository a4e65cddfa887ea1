use sepal_machine::environment::{HEAP, PASSIVE_WAIT};

use crate::args::Command;

/// Settings of libraries for a command that computes, without those that the user has set. Libraries read them before the
/// program begins.
pub fn missing_settings(command: &Command) -> Vec<(&'static str, &'static str)> {
    let (passive_wait, heap) = match command {
        Command::Serve(_) => (Some(PASSIVE_WAIT), true),
        // The threads of several classifiers would spin while the server computes.
        Command::ServeTask(args) if args.runs.len() > 1 => (Some(PASSIVE_WAIT), true),
        Command::Run(_)
        | Command::Sweep(_)
        | Command::Plan(_)
        | Command::Predict(_)
        | Command::Evaluate(_)
        | Command::Audit(_)
        | Command::Calibrate(_)
        | Command::ServeTask(_)
        | Command::Export(_)
        | Command::Merge(_) => (None, true),
        _ => (None, false),
    };
    let settings = passive_wait.into_iter().chain(HEAP.into_iter().filter(|_| heap));
    settings.filter(|(name, _)| std::env::var_os(name).is_none()).collect()
}

//! Engine of the program: all commands of Sepal, with libtorch.
//!
//! This crate performs the commands that compute and leaves the others to `sepal-front`, from which it takes the command line
//! and its output. It stands at the top of the crate graph, knows keys, flags and recipes, and holds the list of plugins. A
//! program with its own plugins has all commands, and is three lines:
//!
//! ```no_run
//! let mut registry = sepal_cli::plugins()?;
//! // registry.register::<sepal_plugin::Head, my_head::MyHead>()?;
//! sepal_cli::main(registry);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod abstain;
mod advice;
mod audit;
mod calibrate;
mod engine_report;
mod environment;
mod import;
mod interrupt;
mod joint_rows;
mod merge;
mod network;
mod peft;
mod pipeline_file;
mod plan;
mod plugins;
mod predict;
mod run;
mod runs;
mod serve;
mod serve_memory;
#[cfg(feature = "gateway")]
mod serve_task;
#[cfg(feature = "gateway")]
mod session_classifier;
mod summary;
mod sweep;

use std::process::ExitCode;

#[cfg(not(feature = "gateway"))]
use sepal_core::NotBuilt;
use sepal_front::{Engine, Program, args, console, downloads, output, status_line, table, units};
use sepal_plugin::Registry;

use args::{Command, ExportCommand, ImportCommand};
use output::Failure;
pub use plugins::plugins;

/// Runs the program with these plugins. The exit code is 0, 1 after an error, or 2 for invalid arguments.
pub fn main(registry: Registry) -> ExitCode {
    if Engine::is_asked_for_report() {
        return sepal_front::exit_code(engine_report::write(), |_| None);
    }
    let args = sepal_front::parse();
    sepal_front::start_logging(args.log_format, &args.command);
    environment::restart_with(&sepal_front::missing_settings(&args.command));
    sepal_front::exit_code(perform(args.command, &registry), |error| advice::advice(&**error))
}

fn perform(command: Command, registry: &Registry) -> Result<(), Failure> {
    match command {
        Command::Run(args) => run::run(registry, &args),
        Command::Sweep(args) => sweep::sweep(registry, &args),
        Command::Plan(args) => plan::plan(registry, &args),
        Command::Predict(args) => predict::predict(registry, &args),
        Command::Evaluate(args) => predict::evaluate(registry, &args),
        Command::Audit(args) => audit::audit(registry, &args),
        Command::Calibrate(args) => calibrate::calibrate(registry, &args),
        Command::Serve(args) => serve::serve(&args),
        #[cfg(feature = "gateway")]
        Command::ServeTask(args) => serve_task::serve(registry, &args),
        #[cfg(not(feature = "gateway"))]
        Command::ServeTask(_) => Err(NotBuilt { part: "`sepal serve-task`", feature: "gateway" }.into()),
        Command::Export(ExportCommand::Peft(args)) => peft::export(registry, &args),
        Command::Import(ImportCommand::Peft(args)) => import::import(registry, &args),
        Command::Merge(args) => merge::merge(registry, &args),
        command => {
            let program = Program { catalog: registry.catalog(), engine: Engine::Running };
            let unknown = || Err("perform the command: neither the front nor the engine has it".into());
            sepal_front::perform(&command, &program).unwrap_or_else(unknown)
        }
    }
}

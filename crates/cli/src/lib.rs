//! Command line of Sepal: trains from pipeline files, serves blocks, predicts, and reports on machines and swarms.
//!
//! This crate parses arguments and prints results; the crates below it do the work. It stands at the top of the crate
//! graph, knows keys, flags and recipes, and holds the list of plugins. A program with its own plugins is three lines:
//!
//! ```no_run
//! let mut registry = sepal_cli::plugins()?;
//! // registry.register::<sepal_plugin::Head, my_head::MyHead>()?;
//! sepal_cli::main(registry);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod advice;
mod args;
mod console;
mod doctor;
mod downloads;
mod environment;
mod import;
mod init;
mod interrupt;
mod manual;
mod merge;
mod network;
mod output;
mod peft;
mod pipeline_file;
mod plan;
mod plugins;
mod predict;
mod probe_progress;
mod push;
mod render;
mod report;
mod run;
mod serve;
mod serve_task;
mod suggest;
mod swarm;
mod table;
mod units;

use std::io::IsTerminal;
use std::process::ExitCode;

use sepal_plugin::Registry;
use sepal_server::environment::PASSIVE_WAIT;
use tracing_subscriber::EnvFilter;

use args::{Command, ExportCommand, ImportCommand};
use output::describe;
pub use plugins::plugins;

/// Runs the program with these plugins. The exit code is 0, 1 after an error, or 2 for invalid arguments.
pub fn main(registry: Registry) -> ExitCode {
    let args = suggest::parse();
    start_logging();
    set_environment(&args.command);
    let result = match args.command {
        Command::Run(args) => run::run(&registry, &args),
        Command::Validate(args) => run::validate(&registry, &args),
        Command::Render(args) => render::render(&registry, &args),
        Command::Plan(args) => plan::plan(&registry, &args),
        Command::Init(args) => init::init(&registry, &args),
        Command::Fetch(args) => run::fetch(&registry, &args),
        Command::Schema => run::schema(&registry),
        Command::Plugins(args) => run::list(&registry, &args),
        Command::Predict(args) => predict::predict(&registry, &args),
        Command::Evaluate(args) => predict::evaluate(&registry, &args),
        Command::Report(args) => report::write(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::ServeTask(args) => serve_task::serve(&registry, &args),
        Command::Outline(args) => run::outline(&args),
        Command::Export(ExportCommand::Peft(args)) => peft::export(&registry, &args),
        Command::Import(ImportCommand::Peft(args)) => import::import(&registry, &args),
        Command::Merge(args) => merge::merge(&registry, &args),
        Command::Push(args) => push::push(&args),
        Command::Swarm(command) => swarm::swarm(&command),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: failed to {}{}", describe(&*error), advice::advice(&*error).unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

/// Restarts the program with the settings of libraries for the commands that compute.
fn set_environment(command: &Command) {
    match command {
        Command::Serve(_) => environment::restart_with(&[PASSIVE_WAIT]),
        Command::Run(_)
        | Command::Plan(_)
        | Command::Predict(_)
        | Command::Evaluate(_)
        | Command::ServeTask(_)
        | Command::Export(_)
        | Command::Merge(_) => environment::restart_with(&[]),
        _ => {}
    }
}

/// Prints warnings of this project to standard error; `SEPAL_LOG=debug` adds more, also of its dependencies.
fn start_logging() {
    let filter = EnvFilter::try_from_env("SEPAL_LOG").unwrap_or_else(|_| EnvFilter::new("off,sepal=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
}

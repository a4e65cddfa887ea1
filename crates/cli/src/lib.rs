//! The `sepal` program: trains from a pipeline file, serves blocks, and says what is there.
//!
//! This crate parses arguments and talks to people; everything else is done by the crates below it. It
//! holds the one list of plugins. A program with plugins of its own is three lines:
//!
//! ```no_run
//! let mut registry = sepal_cli::plugins()?;
//! // registry.register::<sepal_plugin::Head, my_head::MyHead>()?;
//! sepal_cli::main(registry);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod args;
mod console;
mod doctor;
mod downloads;
mod environment;
mod import;
mod init;
mod manual;
mod peft;
mod place;
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

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use sepal_plugin::Registry;
use tracing_subscriber::EnvFilter;

use args::{Command, ExportCommand, ImportCommand};
pub use plugins::plugins;

type Failure = Box<dyn Error>;

/// Runs the program with these plugins; the exit code is 0, or 1 after a message, or 2 for wrong arguments.
pub fn main(registry: Registry) -> ExitCode {
    let args = suggest::parse();
    start_logging();
    let done = match args.command {
        Command::Run(args) => {
            environment::start_with(&[]);
            run::run(&registry, &args)
        }
        Command::Validate(args) => run::validate(&registry, &args),
        Command::Render(args) => render::render(&registry, &args),
        Command::Plan(args) => {
            environment::start_with(&[]);
            plan::plan(&registry, &args)
        }
        Command::Init(args) => init::init(&registry, &args),
        Command::Fetch(args) => run::fetch(&registry, &args),
        Command::Schema => run::schema(&registry),
        Command::Plugins(args) => run::list(&registry, &args),
        Command::Predict(args) => {
            environment::start_with(&[]);
            predict::predict(&registry, &args)
        }
        Command::Evaluate(args) => {
            environment::start_with(&[]);
            predict::evaluate(&registry, &args)
        }
        Command::Report(args) => report::write(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::ServeTask(args) => {
            environment::start_with(&[]);
            serve_task::serve(&registry, &args)
        }
        Command::Outline(args) => run::outline(&args),
        Command::Export(ExportCommand::Peft(args)) => {
            environment::start_with(&[]);
            peft::export(&registry, &args)
        }
        Command::Import(ImportCommand::Peft(args)) => import::import(&registry, &args),
        Command::Push(args) => push::push(&args),
        Command::Swarm(command) => swarm::swarm(&command),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: failed to {}", describe(&*error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, one to a line.
pub(crate) fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str("\n  because: ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Ends the program now. Libraries are not told: what they would tidy up is still in use by other threads.
pub(crate) fn end_at_once() -> ! {
    signal_hook::low_level::exit(130)
}

/// Writes to standard output; a reader that has gone (`sepal schema | head`) is no error.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Warnings of this project go to standard error; `SEPAL_LOG=debug` shows more, also of what it is built on.
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

//! Front of the program: the command line, its output, and the commands that need no libtorch.
//!
//! The program `sepal` checks pipelines, fetches files, reports, lists plugins, looks at swarms and at this machine by itself.
//! For the commands that compute it [starts the engine](Engine), the program `sepal-engine` with libtorch, in its own place.
//! `sepal-cli` is the engine: it takes arguments and output from here, and performs all commands.
//!
//! This crate computes nothing and does not know libtorch. Place in the crate graph: above `prepare`, `options`, `report`,
//! `survey` and `machine`; only `cli` stands on it.
//!
//! Invariants: a command is performed by [`perform`] or by the engine, never by both; the engine gets the arguments unchanged.
//!
//! ```
//! use clap::Parser;
//! use sepal_front::{Engine, Program, args::Args, perform};
//!
//! let catalog = sepal_front::catalog()?;
//! let program = Program { catalog: &catalog, engine: Engine::Beside };
//! let args = Args::try_parse_from(["sepal", "run", "pipeline.yaml"])?;
//! assert!(perform(&args.command, &program).is_none(), "it needs libtorch");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod advice;
pub mod args;
pub mod console;
mod doctor;
pub mod downloads;
mod engine;
mod engine_plugins;
mod environment;
mod grants;
mod init;
mod log_format;
mod manual;
mod options_file;
pub mod output;
pub mod pipeline_file;
mod pipelines;
pub mod plan;
mod probe_progress;
mod push;
mod render;
mod report;
pub mod status_line;
mod suggest;
mod swarm;
pub mod table;
pub mod units;

use std::io::IsTerminal;
use std::process::ExitCode;

use sepal_catalog::{Catalog, RegisterError};
use sepal_track::{MlflowConfig, TensorBoardConfig, WandbConfig};
use tracing_subscriber::EnvFilter;

use args::{Command, LogFormat};
pub use engine::{Engine, EngineError, EngineReport};
pub use engine_plugins::ENGINE_PLUGINS;
pub use environment::missing_settings;
use output::Failure;
pub use pipelines::overview;
pub use suggest::parse;

/// Runs the program `sepal`. The exit code is 0, 1 after an error, or 2 for invalid arguments.
pub fn main() -> ExitCode {
    let args = parse();
    start_logging(args.log_format, &args.command);
    exit_code(run(&args.command), |_| None)
}

fn run(command: &Command) -> Result<(), Failure> {
    // Plugins that only the engine knows may be named by every pipeline.
    let is_performed_here = !command.reads_catalog() || (ENGINE_PLUGINS.is_empty() && !Engine::is_named());
    let catalog = catalog()?;
    let program = Program { catalog: &catalog, engine: Engine::Beside };
    let result = if is_performed_here { perform(command, &program) } else { None };
    result.unwrap_or_else(|| Err(Engine::Beside.replace_this_program(&missing_settings(command)).into()))
}

/// Options of the shipped plugins.
///
/// # Errors
/// [`RegisterError`] if two have the same name.
pub fn catalog() -> Result<Catalog, RegisterError> {
    let mut catalog = Catalog::new();
    sepal_options::register(&mut catalog)?;
    catalog.register::<MlflowConfig>()?.register::<TensorBoardConfig>()?.register::<WandbConfig>()?;
    Ok(catalog)
}

/// Plugins and engine of a running program.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// Options of the plugins.
    pub catalog: &'a Catalog,
    /// Program that computes.
    pub engine: Engine,
}

/// Performs a command that needs no libtorch; `None` for another command, and for a plan of tensors that only plugins know.
pub fn perform(command: &Command, program: &Program<'_>) -> Option<Result<(), Failure>> {
    let Program { catalog, engine } = *program;
    Some(match command {
        Command::Validate(args) => pipelines::validate(catalog, args),
        Command::Render(args) => render::render(catalog, args),
        Command::Init(args) => init::init(catalog, args),
        Command::Fetch(args) => pipelines::fetch(catalog, args),
        Command::Schema => pipelines::schema(catalog),
        Command::Plugins(args) => pipelines::list(catalog, args),
        Command::Plan(args) => plan::count(catalog, args)?,
        Command::Push(args) => push::push(args),
        Command::Report(args) => report::write(args),
        Command::Outline(args) => pipelines::outline(args),
        Command::Swarm(command) => swarm::swarm(command),
        Command::Doctor(args) => doctor::doctor(args, engine),
        Command::Completions(args) => manual::completions(args),
        Command::Man(args) => manual::man(args),
        _ => return None,
    })
}

/// Prints the error of a command, with the advice of the program or `further` advice, and returns the exit code.
pub fn exit_code(result: Result<(), Failure>, further: impl FnOnce(&Failure) -> Option<String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let further = further(&error);
            output::report(&error, further);
            ExitCode::FAILURE
        }
    }
}

/// Prints warnings of this project to standard error, and what servers do; `SEPAL_LOG=debug` adds more, also of its
/// dependencies.
pub fn start_logging(format: LogFormat, command: &Command) {
    let default = match command {
        Command::Serve(_) | Command::ServeTask(_) if format == LogFormat::Text => {
            "off,sepal=warn,sepal_cli=info,sepal_discover=info,sepal_swarm=info"
        }
        // Lines for people are records, too.
        _ if format == LogFormat::Json => "off,sepal=info",
        _ => "off,sepal=warn",
    };
    let filter = EnvFilter::try_from_env("SEPAL_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            builder.with_ansi(std::io::stderr().is_terminal()).event_format(log_format::TextLines).init();
        }
        LogFormat::Json => {
            output::write_log_only();
            builder.event_format(log_format::JsonLines).init();
        }
    }
}

//! Speed of the project, as ratios of alternately measured alternatives in one process, on models of known shapes with
//! random weights.
//!
//! Prints a table for each section and writes `docs/bench.json` and the picture `docs/bench.svg`. Figures with a
//! target are marked `ok` or `MISSED`; a missed one is not an error. `--rounds N` measures longer; `--only SECTION`
//! measures one section and keeps the others of the files.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use sepal_machine::environment::{HEAP, PASSIVE_WAIT};
use serde_json::{Map, Value, json};

mod adapters;
mod block_products;
mod chain;
mod clients;
mod echo;
mod floor;
mod formats;
mod growth;
mod memory;
mod model;
mod picture;
mod processes;
mod products;
mod report;
mod requantize;
mod step;
mod steps;
mod transport;
mod turns;

use processes::Checkpoint;
use report::Section;

type Measure = fn(usize, &Checkpoint) -> Section;

/// Sections by their names for `--only`.
const SECTIONS: [(&str, Measure); 9] = [
    ("steps", steps::measure),
    ("adapters", adapters::measure),
    ("floor", floor::measure),
    ("servers", chain::measure),
    ("clients", clients::measure),
    ("transport", transport::measure),
    ("memory", memory::measure),
    ("growth", growth::measure),
    ("formats", formats::measure),
];

struct Options {
    rounds: usize,
    only: Option<String>,
}

impl Options {
    fn from_args(args: &[String]) -> Result<Self, String> {
        let mut options = Self { rounds: 3, only: None };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} takes a value"));
            match arg.as_str() {
                "--rounds" => options.rounds = value()?.parse().map_err(|_| "--rounds takes a number".to_owned())?,
                "--only" => options.only = Some(value()?.clone()),
                // Argument of cargo.
                "--bench" => {}
                _ => return Err(format!("`{arg}` is none of --rounds and --only")),
            }
        }
        let names: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
        match &options.only {
            _ if options.rounds == 0 => Err("--rounds takes a number of at least 1".to_owned()),
            Some(only) if !names.contains(&only.as_str()) => {
                Err(format!("there is no section `{only}`; there are {}", names.join(", ")))
            }
            _ => Ok(options),
        }
    }
}

fn main() -> ExitCode {
    restart_with_settings();
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == memory::CLIENT) {
        memory::client(&args[1..]);
        return ExitCode::SUCCESS;
    }
    let done = match args.first() {
        Some(arg) if arg == block_products::BLOCK_PRODUCTS => block_products::print(&args[1..]),
        _ => Options::from_args(&args).map(|options| measure(&options)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// Restarts with the settings of `sepal serve`: a spinning thread would take a core from a server, and a heap that
/// returns memory would measure the clearing of pages by the system.
fn restart_with_settings() {
    let missing = [PASSIVE_WAIT].into_iter().chain(HEAP).filter(|(name, _)| std::env::var_os(name).is_none());
    let missing: Vec<_> = missing.collect();
    if !missing.is_empty() {
        let again = std::env::current_exe().expect("this is a file");
        let error = Command::new(again).args(std::env::args_os().skip(1)).envs(missing).exec();
        panic!("could not restart: {error}");
    }
}

fn measure(options: &Options) {
    let checkpoint = Checkpoint::default();
    let mut sections = previous_results();
    let is_selected = |name: &str| options.only.as_ref().is_none_or(|only| only == name);
    for (name, measure) in SECTIONS.into_iter().filter(|(name, _)| is_selected(name)) {
        let begun = Instant::now();
        let section = measure(options.rounds, &checkpoint);
        section.print();
        println!("  ({name}: {:.0} s)", begun.elapsed().as_secs_f64());
        sections.insert(name.to_owned(), section.json(options.rounds));
        write(&sections);
    }
}

fn write(sections: &Map<String, Value>) {
    let named = SECTIONS.iter().filter_map(|(name, _)| Some(((*name).to_owned(), sections.get(*name)?.clone())));
    let sections: Map<String, Value> = named.collect();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let picture = picture::draw(&sections);
    let json = json!({ "command": "just bench", "cores": cores, "sections": sections });
    let text = serde_json::to_string_pretty(&json).expect("numbers") + "\n";
    std::fs::write(docs("bench.json"), text).expect("docs/ can be written");
    std::fs::write(docs("bench.svg"), picture).expect("docs/ can be written");
}

fn previous_results() -> Map<String, Value> {
    let text = std::fs::read_to_string(docs("bench.json")).unwrap_or_default();
    let json: Value = serde_json::from_str(&text).unwrap_or_default();
    json["sections"].as_object().cloned().unwrap_or_default()
}

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)
}

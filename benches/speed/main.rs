//! The project's speed, as ratios of things that are measured in turns in one run, on models of known shapes with
//! random weights.
//!
//! Prints a table for each section and writes all to `docs/bench.json`, and as a picture to `docs/bench.svg`. Figures
//! that have a target say `ok` or `MISSED`; a missed one fails nothing. `--rounds N` measures longer, `--only SECTION`
//! one section alone, beside what the files say of the others.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use sepal_server::environment::{HEAP, PASSIVE_WAIT};
use serde_json::{Map, Value, json};

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
mod step;
mod steps;
mod transport;
mod turns;

use processes::Checkpoint;
use report::Section;

/// What a section measures, given the rounds and a checkpoint for servers that are processes.
type Measure = fn(usize, &Checkpoint) -> Section;

/// The sections, by the names that `--only` takes.
const SECTIONS: [(&str, Measure); 8] = [
    ("steps", steps::measure),
    ("floor", floor::measure),
    ("servers", chain::measure),
    ("clients", clients::measure),
    ("transport", transport::measure),
    ("memory", memory::measure),
    ("growth", growth::measure),
    ("formats", formats::measure),
];

/// What was asked for.
struct Asked {
    rounds: usize,
    only: Option<String>,
}

impl Asked {
    fn from_args(args: &[String]) -> Result<Self, String> {
        let mut asked = Self { rounds: 3, only: None };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} takes a value"));
            match arg.as_str() {
                "--rounds" => asked.rounds = value()?.parse().map_err(|_| "--rounds takes a number".to_owned())?,
                "--only" => asked.only = Some(value()?.clone()),
                // Cargo's own.
                "--bench" => {}
                _ => return Err(format!("`{arg}` is none of --rounds and --only")),
            }
        }
        let names: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
        match &asked.only {
            _ if asked.rounds == 0 => Err("--rounds takes a number of at least 1".to_owned()),
            Some(only) if !names.contains(&only.as_str()) => {
                Err(format!("there is no section `{only}`; there are {}", names.join(", ")))
            }
            _ => Ok(asked),
        }
    }
}

fn main() -> ExitCode {
    start_with_settings();
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == memory::CLIENT) {
        memory::client(&args[1..]);
        return ExitCode::SUCCESS;
    }
    match Asked::from_args(&args) {
        Ok(asked) => measure(&asked),
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Starts anew with the settings that `sepal serve` has: a thread that spins would take its core from a server beside it,
/// and a heap that gives memory back would measure the system's clearing of pages.
fn start_with_settings() {
    let missing = [PASSIVE_WAIT].into_iter().chain(HEAP).filter(|(name, _)| std::env::var_os(name).is_none());
    let missing: Vec<_> = missing.collect();
    if !missing.is_empty() {
        let again = std::env::current_exe().expect("this is a file");
        let error = Command::new(again).args(std::env::args_os().skip(1)).envs(missing).exec();
        panic!("could not start anew: {error}");
    }
}

fn measure(asked: &Asked) {
    let checkpoint = Checkpoint::default();
    let mut sections = known();
    let is_asked = |name: &str| asked.only.as_ref().is_none_or(|only| only == name);
    for (name, measure) in SECTIONS.into_iter().filter(|(name, _)| is_asked(name)) {
        let begun = Instant::now();
        let section = measure(asked.rounds, &checkpoint);
        section.print();
        println!("  ({name}: {:.0} s)", begun.elapsed().as_secs_f64());
        sections.insert(name.to_owned(), section.json(asked.rounds));
        write(&sections);
    }
}

/// Writes what there is by now, in the order of the sections.
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

/// What was measured before.
fn known() -> Map<String, Value> {
    let text = std::fs::read_to_string(docs("bench.json")).unwrap_or_default();
    let json: Value = serde_json::from_str(&text).unwrap_or_default();
    json["sections"].as_object().cloned().unwrap_or_default()
}

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)
}

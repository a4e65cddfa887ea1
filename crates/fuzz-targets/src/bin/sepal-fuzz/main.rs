//! Driver of the fuzz targets on the stable toolchain: each target runs in a process of its own with limited memory, and an
//! input that ends or stops that process is kept as a finding. The exit code is 1 if there are findings.

mod child;
mod options;
mod parent;

use std::process::ExitCode;

use options::{Mode, Options};

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("error: {problem}\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    let done = match options.mode {
        Mode::Child { target, work } => child::run(target, &work, options.seed, options.duration).map(|()| 0),
        Mode::Parent { targets, findings } => parent::run(&targets, &findings, options.seed, options.duration),
    };
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: failed to {error}");
            ExitCode::FAILURE
        }
    }
}

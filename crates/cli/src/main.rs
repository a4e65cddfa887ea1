//! The engine with the plugins of this repository.

use std::process::ExitCode;

fn main() -> ExitCode {
    match sepal_cli::plugins() {
        Ok(registry) => sepal_cli::main(registry),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

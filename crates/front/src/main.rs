//! The program `sepal`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sepal_front::main()
}

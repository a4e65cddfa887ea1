//! One of Sepal's fuzz targets under libFuzzer. The variable `SEPAL_FUZZ_TARGET` names it.

#![no_main]

use std::process::exit;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use sepal_fuzz_targets::{TARGETS, Target, target};

const NAME: &str = "SEPAL_FUZZ_TARGET";

fuzz_target!(|bytes: &[u8]| {
    static CHOSEN: OnceLock<&Target> = OnceLock::new();
    (CHOSEN.get_or_init(choose).run)(bytes);
});

/// Returns the target that the environment names, or ends the process.
fn choose() -> &'static Target {
    let name = std::env::var(NAME).unwrap_or_default();
    target(&name).unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("error: {NAME} is `{name}`, expected one of {}", names.join(", "));
        exit(2)
    })
}

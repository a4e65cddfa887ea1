//! `sepal doctor`, `sepal completions` and `sepal man`.

use std::fs;
use std::process::{Command, Output};

use sepal_integration_tests::fixture::{Fixture, json, stdout};
use serde_json::Value;

#[test]
fn completions_load_in_bash_and_manual_pages_are_written() {
    let fixture = Fixture::new("llama-gqa");
    fs::write(fixture.path("sepal.bash"), stdout(fixture.sepal(&["completions", "bash"]))).expect("written");
    let script = "source sepal.bash && complete -p sepal";
    match Command::new("bash").current_dir(fixture.folder.path()).args(["-c", script]).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(String::from_utf8_lossy(&output.stdout).contains("_sepal"));
        }
        Err(error) => eprintln!("skipped: bash does not run ({error})"),
    }
    stdout(fixture.sepal(&["man", "pages"]));
    for page in ["sepal.1", "sepal-run.1", "sepal-swarm-status.1"] {
        assert!(fixture.path("pages").join(page).is_file(), "{page}");
    }
}

#[test]
fn doctor_without_a_writable_cache_fails() {
    let fixture = Fixture::new("llama-gqa");
    fs::write(fixture.path("file"), "").expect("written");
    let doctor = |cache: &str| -> Output {
        let mut command = fixture.sepal(&["doctor", "--json"]);
        command.env("SEPAL_CACHE", fixture.path(cache)).env("PIP_NO_INDEX", "1").output().expect("sepal runs")
    };
    let found = |output: &Output| json(&String::from_utf8_lossy(&output.stdout));
    let state = |findings: &Value, what: &str| {
        let finding = findings.as_array().expect("findings").iter().find(|finding| finding["what"] == what);
        finding.unwrap_or_else(|| panic!("no {what}"))["state"].clone()
    };
    let broken = doctor("file/below");
    assert_eq!(broken.status.code(), Some(1));
    assert_eq!(state(&found(&broken), "cache"), "problem");
    assert_eq!(state(&found(&doctor("cache")), "cache"), "ok");
    assert_eq!(state(&found(&broken), "libtorch"), "ok");
}

#[test]
fn broken_libtorch_is_a_problem_and_stops_only_the_engine() {
    let fixture = Fixture::new("llama-gqa");
    fs::write(fixture.path("libtorch_cpu.so"), "no library").expect("written");
    let run = |args: &[&str]| {
        let mut command = fixture.sepal(args);
        command.env("LD_LIBRARY_PATH", fixture.folder.path()).env("PIP_NO_INDEX", "1").output().expect("sepal runs")
    };
    assert!(run(&["validate", "pipeline.yaml"]).status.success(), "it needs no libtorch");
    let findings = json(&String::from_utf8_lossy(&run(&["doctor", "--json"]).stdout));
    let finding = findings.as_array().expect("findings").iter().find(|finding| finding["what"] == "libtorch");
    let finding = finding.expect("a check");
    assert_eq!(finding["state"], "problem", "{finding}");
    assert!(finding["found"].as_str().is_some_and(|text| text.contains("libtorch_cpu.so")), "{finding}");
    let failed = run(&["run", "pipeline.yaml"]);
    assert!(!failed.status.success() && String::from_utf8_lossy(&failed.stderr).contains("libtorch_cpu.so"));
}

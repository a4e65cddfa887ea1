//! The engine as a program: it has all commands.

use std::process::Command;

fn engine(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sepal-engine")).args(args).output().expect("the engine runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn doctor_checks_every_part() {
    let output = engine(&["doctor"]);
    for what in
        ["libtorch", "processor", "threads", "memory", "cache", "space", "hub", "package index", "open files", "peers"]
    {
        assert!(output.contains(what), "{what} is missing from\n{output}");
    }
}

#[test]
fn engine_describes_itself_for_doctor() {
    let report: serde_json::Value = serde_json::from_str(&engine(&["--engine-report"])).expect("JSON");
    assert!(report["threads"].as_u64().is_some_and(|threads| threads > 0), "{report}");
    assert!(report["cuda_devices"].is_u64() && report["has_cuda_library"].is_boolean(), "{report}");
}

#[test]
fn engine_performs_commands_without_libtorch() {
    assert!(engine(&["plugins"]).contains("sequence-classification"));
    assert!(engine(&["schema"]).contains("deep-ptune"));
}

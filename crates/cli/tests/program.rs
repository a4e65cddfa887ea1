//! Output of the program on itself, and the committed schema.

use std::path::Path;
use std::process::Command;

fn sepal(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sepal")).args(args).output().expect("sepal runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn committed_schema_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas/pipeline.schema.json");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == sepal(&["schema"]),
        "schemas/pipeline.schema.json is not what the plugins give; run `just schemas`"
    );
}

#[test]
fn help_lists_every_command() {
    insta::assert_snapshot!(sepal(&["--help"]));
}

#[test]
fn plugins_are_listed_with_their_options() {
    insta::assert_snapshot!(sepal(&["plugins"]));
}

#[test]
fn repository_pipelines_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines");
    for entry in std::fs::read_dir(folder).expect("pipelines") {
        let path = entry.expect("an entry").path();
        let resolved = sepal(&["validate", &path.display().to_string()]);
        assert!(resolved.contains("seed:"), "defaults are filled in: {resolved}");
    }
}

#[test]
fn doctor_checks_every_part() {
    let output = sepal(&["doctor"]);
    for what in
        ["libtorch", "processor", "threads", "memory", "cache", "space", "hub", "package index", "open files", "peers"]
    {
        assert!(output.contains(what), "{what} is missing from\n{output}");
    }
}

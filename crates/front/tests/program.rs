//! Output of the program on itself, the committed schema, and the start of the engine.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

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
fn program_loads_no_libtorch() {
    // The loader lists the libraries and ends.
    let listed = Command::new(env!("CARGO_BIN_EXE_sepal")).env("LD_TRACE_LOADED_OBJECTS", "1").output().expect("runs");
    let libraries = String::from_utf8(listed.stdout).expect("text");
    assert!(libraries.contains("libc.so"), "{libraries}");
    for name in ["torch", "c10", "gomp", "stdc++"] {
        assert!(!libraries.contains(name), "{libraries}");
    }
}

/// Program in a folder of its own, without an engine.
struct Installed(tempfile::TempDir);

impl Installed {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("bin")).expect("made");
        let (built, program) = (env!("CARGO_BIN_EXE_sepal"), folder.path().join("bin/sepal"));
        // A copy that another test's process has open for writing cannot be started.
        fs::hard_link(built, &program).or_else(|_| fs::copy(built, &program).map(drop)).expect("linked or copied");
        Self(folder)
    }

    /// Writes a script as an engine that prints its arguments.
    fn write_engine(&self, path: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(&path, "#!/bin/sh\necho engine \"$@\"\nexit 3\n").expect("written");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("executable");
    }

    fn run(&self, args: &[&str], engine: &str) -> Output {
        let mut command = Command::new(self.0.path().join("bin/sepal"));
        command.args(args).env("SEPAL_ENGINE", engine).current_dir(self.0.path()).output().expect("sepal runs")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn engine_gets_the_arguments_and_its_exit_code_is_returned() {
    let installed = Installed::new();
    installed.write_engine("lib/python3.12/site-packages/sepal/bin/sepal-engine");
    let output = installed.run(&["run", "a b.yaml", "--set", "train.seed=1"], "");
    assert_eq!(
        (text(&output.stdout).as_str(), output.status.code()),
        ("engine run a b.yaml --set train.seed=1\n", Some(3))
    );
    // A link to the program is in another folder than the engine.
    std::os::unix::fs::symlink(installed.0.path().join("bin/sepal"), installed.0.path().join("link")).expect("linked");
    let linked = Command::new(installed.0.path().join("link")).args(["run", "x.yaml"]).output().expect("sepal runs");
    assert_eq!(text(&linked.stdout), "engine run x.yaml\n");
}

#[test]
fn engine_that_is_named_performs_what_depends_on_its_plugins() {
    let installed = Installed::new();
    installed.write_engine("mine");
    let engine = installed.0.path().join("mine").display().to_string();
    assert_eq!(text(&installed.run(&["plugins", "--json"], &engine).stdout), "engine plugins --json\n");
    assert!(text(&installed.run(&["completions", "bash"], &engine).stdout).contains("_sepal"), "it needs no plugins");
}

#[test]
fn program_that_is_named_as_its_own_engine_is_refused() {
    let output = Installed::new().run(&["run", "x.yaml"], env!("CARGO_BIN_EXE_sepal"));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("it is no engine"), "{}", text(&output.stderr));
}

#[test]
fn missing_engine_is_an_error_that_names_its_places() {
    let output = Installed::new().run(&["run", "x.yaml"], "");
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        message.contains("failed to find the program sepal-engine") && message.contains("bin/sepal-engine"),
        "{message}"
    );
    assert!(message.contains("SEPAL_ENGINE"), "{message}");

    let doctor = Installed::new().run(&["doctor", "--json"], "no/such/engine");
    let findings = text(&doctor.stdout);
    assert!(findings.contains("there is none at no/such/engine"), "{findings}");
}

//! Comparison of the committed code with the code that the schema generates.

use std::path::Path;
use std::process::Command;

fn crate_path(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Returns the lines, without the version of the `capnp` compiler.
fn code_lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).expect("generated code is readable");
    text.lines().filter(|line| !line.starts_with("// capnp binary version")).map(str::to_owned).collect()
}

#[test]
fn generated_code_matches_schema() {
    if Command::new("capnp").arg("--version").output().is_err() {
        println!("skipped: the `capnp` compiler is not installed, so the committed code was not compared");
        return;
    }
    let out = tempfile::tempdir().expect("a temporary folder");
    capnpc::CompilerCommand::new()
        .src_prefix(crate_path("../../schemas/rpc"))
        .file(crate_path("../../schemas/rpc/sepal.capnp"))
        .output_path(out.path())
        .default_parent_module(vec!["generated".into()])
        .run()
        .expect("the schema compiles");
    let current =
        code_lines(&crate_path("src/generated/sepal_capnp.rs")) == code_lines(&out.path().join("sepal_capnp.rs"));
    assert!(
        current,
        "src/generated/sepal_capnp.rs differs from the code of schemas/rpc/sepal.capnp; run `just schemas`"
    );
}
